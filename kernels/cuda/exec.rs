//! Runs plans: one upload, one graph, one download per step.

use std::sync::{Arc, Mutex, PoisonError};

use super::cx::{DevSampled, DevSampler, DevStep};
use super::device::{Device, Graph};
use super::measure::read_bandwidth;
use super::memory::Mem;
use super::prepared::{Arena, IDS, Prepared, SAMPLER, key};
use super::readback;
use super::state::CudaState;
use super::weights::{Held, PlanWeights, Weights};
use crate::cpu::sample;
use crate::ir::{
    Backend, CacheDesc, ElemType, ExecError, ExecKind, ExecStep, Op, Plan, Sampled, SamplerParams, State, StepOutput,
    StepRequest, WeightSource,
};

/// Plans kept ready per state.
const KEPT: usize = 24;
/// What guard bytes and poisoned buffers hold: NaN as a float, -1 as an integer.
const POISON: u8 = 0xff;
/// Tokens of a step at most. With 512 a product of 1536 outputs and inputs has 48 tiles for 132 multiprocessors, with 1024 it
/// has 96, and takes little longer.
pub const CHUNK: usize = 1024;
/// Times the second-level cache that is read to measure the memory's speed (0.8 GB on an H200).
const READ: u64 = 16;

/// How the backend runs.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Capture the second run of a plan as a graph and launch that from then on.
    pub graphs: bool,
    /// For tests: keep sentinels around all working memory, fill it with NaN before every step, and fail where a sentinel
    /// was written over. No graphs.
    pub guarded: bool,
    /// Note in every step what L0 telemetry is made from (rounding errors of cache rows, chosen experts); without, what it
    /// costs can be measured, and those numbers are 0.
    pub counted: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            graphs: true,
            guarded: false,
            counted: true,
        }
    }
}

/// Working memory of the plan that runs; grows, never shrinks.
struct Work {
    mem: Mem,
    generation: u64,
}

/// The CUDA backend, on one device.
pub struct Cuda {
    device: Arc<dyn Device>,
    options: CudaOptions,
    weights: Arc<Weights>,
    work: Mutex<Work>,
    turn: Arc<Mutex<()>>,
}

impl Cuda {
    /// A backend on a device.
    pub fn on(device: Arc<dyn Device>, options: CudaOptions) -> Self {
        Self {
            weights: Arc::new(Weights::new(&device)),
            work: Mutex::new(Work {
                mem: Mem::none(&device),
                generation: 0,
            }),
            turn: Arc::default(),
            device,
            options,
        }
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// Bytes of weights on the device, those that are only kept for going back to a recipe included.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.bytes()
    }

    /// Makes sure the state has this plan ready in the current arena and holds its weights; returns its index.
    fn prepare(
        &self,
        work: &mut Work,
        state: &mut CudaState,
        plan: &Plan,
        weights: &dyn WeightSource,
    ) -> Result<usize, ExecError> {
        let key = key(plan);
        let generation = work.generation;
        let ready = |p: &Prepared| p.key == key && p.generation == generation;
        if let Some(i) = state.prepared.iter().position(ready) {
            if state.held.as_ref().is_some_and(|h| h.0 == key) {
                return Ok(i);
            }
            if let Some(held) = state.prepared[i].copies.hold() {
                state.held = Some((key, held));
                self.weights.settle()?;
                return Ok(i);
            }
        }
        // What the plan before this one held may have to give way to what this one needs.
        state.held = None;
        let (made, held) = match self.place(work, state, plan, weights) {
            // Tables and graphs of other plans, too.
            Err(ExecError::OutOfMemory { .. }) if !state.prepared.is_empty() => {
                state.prepared.clear();
                self.place(work, state, plan, weights)?
            }
            placed => placed?,
        };
        state.prepared.push(made);
        state.held = Some((key, held));
        self.weights.settle()?;
        Ok(state.prepared.len() - 1)
    }

    /// Makes a plan ready in the arena, which grows if it has to.
    fn place(
        &self,
        work: &mut Work,
        state: &mut CudaState,
        plan: &Plan,
        weights: &dyn WeightSource,
    ) -> Result<(Prepared, Held), ExecError> {
        let arena = Arena::new(plan, if self.options.guarded { 1024 } else { 0 });
        if arena.bytes() > work.mem.len() {
            self.device.synchronise()?;
            // The old memory first: both together may not fit.
            work.mem = Mem::none(&self.device);
            work.generation += 1;
            let new = || Mem::new(&self.device, arena.bytes(), "the activations of a step");
            work.mem = self.weights.or_free(new)?;
        }
        let generation = work.generation;
        self.device.synchronise()?;
        state
            .prepared
            .retain(|p| p.generation == generation && p.key != key(plan));
        if state.prepared.len() >= KEPT {
            state.prepared.remove(0);
        }
        let place = (work.mem.ptr(), generation);
        let PlanWeights { places, copies, held } = self.weights.of_plan(plan, weights)?;
        let prepared = Prepared::new(&self.device, &self.weights, plan, (places, copies), arena, place)?
            .counting(plan, self.options.counted);
        Ok((prepared, held))
    }

    /// Launches everything: directly the first time, through a graph from the second time on.
    fn launch(&self, plan: &Plan, state: &mut CudaState, index: usize) -> Result<(), ExecError> {
        let device = self.device.as_ref();
        let p = &state.prepared[index];
        if let Some(graph) = &p.graph {
            return device.launch_graph(graph.as_ref());
        }
        let caches = state.places();
        state.prepared[index].graph = self.run_or_record(p, &|| p.launch(device, plan, &caches, None))?;
        Ok(())
    }

    /// Runs what `enqueue` enqueues for a plan: as it is the first time, recorded as a graph, which comes back, later.
    fn run_or_record(
        &self,
        p: &Prepared,
        enqueue: &dyn Fn() -> Result<(), ExecError>,
    ) -> Result<Option<Box<dyn Graph>>, ExecError> {
        let device = self.device.as_ref();
        if p.runs == 0 || !self.options.graphs || self.options.guarded || !device.begin_capture()? {
            return enqueue().map(|()| None);
        }
        let recorded = enqueue();
        let graph = device.end_capture();
        recorded?;
        // What was recorded has not run. Where there is no memory for a graph the step goes without one.
        let graph = match graph {
            Err(ExecError::OutOfMemory { .. }) => return enqueue().map(|()| None),
            graph => graph?,
        };
        device.launch_graph(graph.as_ref())?;
        Ok(Some(graph))
    }

    /// Runs with time stamps between the groups: in a graph of its own where there are graphs, so that launches cost what
    /// they cost in an ordinary step. What a stamp costs, measured between two of them with nothing in between, is taken off.
    fn traced(
        &self,
        plan: &Plan,
        state: &mut CudaState,
        index: usize,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let device = self.device.as_ref();
        let p = &state.prepared[index];
        let groups = p.groups.len();
        if let Some(graph) = &p.traced {
            device.launch_graph(graph.as_ref())?;
        } else {
            let caches = state.places();
            state.prepared[index].traced = self.run_or_record(p, &|| {
                p.launch(device, plan, &caches, Some(&mut |i| device.mark(i)))?;
                (groups..groups + 3).try_for_each(|i| device.mark(i))
            })?;
        }
        let stamp = device.between(groups + 1, groups + 2)?;
        for (i, g) in state.prepared[index].groups.iter().enumerate() {
            let nanos = (device.between(i, i + 1)? - stamp).max(0.0);
            let step = ExecStep {
                kind: ExecKind::Single,
                origin: g.origin.clone(),
            };
            step.attribute(
                plan,
                nanos,
                u64::from(request.step.tokens),
                request.step.position,
                &mut out.times,
            );
        }
        Ok(())
    }

    /// Uploads what the step needs to know.
    fn input(&self, plan: &Plan, p: &Prepared, request: &StepRequest<'_>) -> Result<(), ExecError> {
        let draws = request.sampler.is_some() && plan.ops.iter().any(|o| matches!(o.op, Op::Sample { .. }));
        let sampler = request.sampler.copied().unwrap_or_default();
        let penalties = draws && sampler.has_penalties();
        let step = DevStep {
            position: request.step.position,
            rng_counter: request.step.rng_counter,
            tokens: request.step.tokens,
            history: if penalties { request.history.len() as u32 } else { 0 },
            sample: u32::from(draws),
            pad: 0,
        };
        let mut block = vec![0u8; IDS + 4 * request.ids.len()];
        block[..SAMPLER].copy_from_slice(bytemuck::bytes_of(&step));
        block[SAMPLER..SAMPLER + size_of::<DevSampler>()].copy_from_slice(bytemuck::bytes_of(&on_device(&sampler)));
        block[IDS..].copy_from_slice(bytemuck::cast_slice(request.ids));
        self.device.upload(p.at(p.arena.input), &block)?;
        if penalties {
            self.device.upload(p.history(), bytemuck::cast_slice(request.history))?;
        }
        Ok(())
    }

    /// Fails where a sentinel was written over.
    fn check_guards(&self, plan: &Plan, p: &Prepared, used: usize, all: usize) -> Result<(), ExecError> {
        let mut bytes = vec![0u8; all];
        self.device.download(p.at(0), &mut bytes)?;
        let mut gaps = p.arena.gaps();
        gaps.push((used, all - used));
        for (at, n) in gaps {
            if let Some(i) = bytes[at..at + n].iter().position(|&b| b != POISON) {
                return Err(ExecError::Device(format!(
                    "a kernel wrote {i} bytes behind the end of a buffer that ends at offset {at} (plan {:016x})",
                    plan.hash
                )));
            }
        }
        Ok(())
    }

    /// Reads the answer of the step.
    fn output(
        &self,
        plan: &Plan,
        p: &Prepared,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let device = self.device.as_ref();
        let mut block = vec![0u8; p.arena.output_bytes];
        device.download(p.at(p.arena.output), &mut block)?;
        let draws = request.sampler.is_some() && plan.ops.iter().any(|o| matches!(o.op, Op::Sample { .. }));
        out.logits.clear();
        // A step that draws its token here leaves the logits where they are: 150,000 of them are 0.6 MB a step.
        if !draws || plan.all_logits {
            self.logits(plan, p, request, &mut out.logits)?;
        }
        readback::layers(plan, &p.arena, &request.step, &block, &mut out.layers);
        for (base, at) in plan.ops.iter().zip(&p.arena.probes) {
            let (Op::Probe { x, name }, Some(at)) = (&base.op, at) else {
                continue;
            };
            let b = p.buf(*x);
            let mut values = vec![0f32; readback::rows(plan, *x, &request.step) * b.width];
            device.download(p.at(*at), bytemuck::cast_slice_mut(&mut values))?;
            if b.elem == ElemType::I32 {
                values.iter_mut().for_each(|v| *v = v.to_bits() as i32 as f32);
            }
            out.probes.push((name.clone(), b.width, values));
        }
        if let Some(params) = request.sampler.filter(|_| draws) {
            out.sampled = Some(self.sampled(plan, p, request, params, &block)?);
        }
        Ok(())
    }

    /// Copies the step's logits out.
    fn logits(
        &self,
        plan: &Plan,
        p: &Prepared,
        request: &StepRequest<'_>,
        out: &mut Vec<f32>,
    ) -> Result<(), ExecError> {
        let logits = p.buf(plan.logits);
        out.resize(readback::rows(plan, plan.logits, &request.step) * logits.width, 0.0);
        self.device.download(logits.ptr, bytemuck::cast_slice_mut(out))
    }

    /// The token the step drew.
    fn sampled(
        &self,
        plan: &Plan,
        p: &Prepared,
        request: &StepRequest<'_>,
        params: &SamplerParams,
        block: &[u8],
    ) -> Result<Sampled, ExecError> {
        let drawn: DevSampled = bytemuck::pod_read_unaligned(&block[..size_of::<DevSampled>()]);
        if drawn.status == 0 && params.logprobs == 0 {
            return Ok(Sampled {
                token: drawn.token,
                logprob: drawn.logprob,
                top: Vec::new(),
            });
        }
        // Lists of alternatives, and what is wrong with logits that cannot be drawn from, are the host's.
        let mut logits = Vec::new();
        self.logits(plan, p, request, &mut logits)?;
        let last = &logits[logits.len() - plan.width(plan.logits)..];
        let mut host = sample::sample(last, params, request.history, request.step.rng_counter)
            .map_err(|e| ExecError::Sample(e.to_string()))?;
        if drawn.status == 0 {
            (host.token, host.logprob) = (drawn.token, drawn.logprob);
        }
        Ok(host)
    }
}

/// Sampler settings as kernels read them.
fn on_device(s: &SamplerParams) -> DevSampler {
    DevSampler {
        seed: s.seed,
        temperature: s.temperature,
        top_p: s.top_p,
        min_p: s.min_p,
        repetition_penalty: s.repetition_penalty,
        frequency_penalty: s.frequency_penalty,
        presence_penalty: s.presence_penalty,
        top_k: s.top_k,
        penalty_window: s.penalty_window,
    }
}

/// Refuses what a plan cannot run, before anything is launched.
fn check(plan: &Plan, r: &StepRequest<'_>) -> Result<(), ExecError> {
    let tokens = r.step.tokens as usize;
    if tokens == 0 || tokens > plan.token_bucket || r.ids.len() != tokens {
        return Err(ExecError::Mismatch {
            what: "step",
            detail: format!(
                "{tokens} tokens, {} ids, the plan takes 1 to {}",
                r.ids.len(),
                plan.token_bucket
            ),
        });
    }
    let full = |capacity: usize| ExecError::ContextFull {
        needed: r.step.context(),
        capacity: capacity as u64,
    };
    if r.step.context() > plan.context_bucket as u64 || r.history.len() > plan.context_bucket {
        return Err(full(plan.context_bucket));
    }
    for base in &plan.ops {
        match &base.op {
            Op::Embed { table, .. } => {
                let vocab = plan.weight(*table).rows;
                if let Some(&id) = r.ids.iter().find(|&&id| id as usize >= vocab) {
                    return Err(ExecError::TokenRange { id, vocab });
                }
            }
            Op::EmbedPosition { table, .. } if r.step.context() > plan.weight(*table).rows as u64 => {
                return Err(full(plan.weight(*table).rows));
            }
            _ => {}
        }
    }
    if let Some(s) = r.sampler {
        s.validate().map_err(ExecError::Sample)?;
    }
    Ok(())
}

impl Backend for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn describe(&self) -> String {
        let i = self.device.info();
        format!(
            "{}, {:.0} GiB, CUDA {}.{}",
            i.name,
            i.memory as f64 / f64::from(1 << 30),
            i.driver / 1000,
            i.driver % 1000 / 10
        )
    }

    fn chunk(&self) -> usize {
        CHUNK
    }

    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        let shared = (&self.turn, &self.weights);
        Ok(Box::new(CudaState::new(&self.device, shared, caches, context)?))
    }

    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let Some(state) = state.as_any_mut().downcast_mut::<CudaState>() else {
            return Err(ExecError::Mismatch {
                what: "state",
                detail: "made by another backend".into(),
            });
        };
        state.check(plan)?;
        check(plan, request)?;
        request.go_on()?;
        out.probes.clear();
        out.times.clear();
        out.sampled = None;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.prepare(&mut work, state, plan, weights)?;
        let all = work.mem.len();
        if self.options.guarded {
            self.device.fill(state.prepared[index].at(0), POISON, all)?;
        }
        self.input(plan, &state.prepared[index], request)?;
        if request.trace {
            self.traced(plan, state, index, request, out)?;
        } else {
            self.launch(plan, state, index)?;
        }
        let p = &mut state.prepared[index];
        p.runs += 1;
        self.output(plan, p, request, out)?;
        if self.options.guarded {
            self.check_guards(plan, p, p.arena.bytes(), all)?;
        }
        Ok(())
    }

    fn read_bandwidth(&self) -> Result<Option<f64>, ExecError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let free = self.device.memory()?.0;
        let bytes = READ * self.device.info().l2;
        read_bandwidth(&self.device, bytes.min(free / 2) as usize, 10).map(Some)
    }

    fn device_memory(&self) -> Result<Option<(u64, u64)>, ExecError> {
        let (free, total) = self.device.memory()?;
        Ok(Some((free + self.weights.spare_bytes(), total)))
    }
}
