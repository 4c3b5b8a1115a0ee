//! Runs plans: per step one upload, one graph, one answer. The step behind it may be on its way already ([`super::ahead`]).

use std::sync::{Arc, Mutex, PoisonError};

use super::ahead::Begun;
use super::batch::{self, SEQUENCES};
use super::cx::{DevBuf, DevSampled};
use super::device::{Device, Graph};
use super::input::{check, drawn, records, samples};
use super::measure::read_bandwidth;
use super::memory::Mem;
use super::prepared::{Arena, IDS, Prepared, key};
use super::readback;
use super::state::CudaState;
use super::weights::{Held, PlanWeights, Weights};
use crate::cpu::sample;
use crate::ir::{
    Backend, CacheDesc, ElemType, ExecError, ExecKind, ExecStep, Op, Plan, Sampled, SamplerParams, State, StepOutput,
    StepRequest, WeightSource, check_batch,
};

/// Plans kept ready per state.
const KEPT: usize = 24;
/// What guard bytes and poisoned buffers hold: NaN as a float, -1 as an integer.
pub(super) const POISON: u8 = 0xff;
/// Tokens of a step at most. A product of 1536 outputs has 48 tiles for 132 multiprocessors with 512 tokens, 96 with 1024, which
/// take little longer, and 192 with 2048: two rounds of which the second is nearly full.
pub const CHUNK: usize = 2048;
/// Tokens from which on a step is one of many, and how many of its runs count as one on the way to a graph: there the GPU works
/// for longer than the host takes to launch, and most prompts end before a graph has paid for being made.
const MANY: usize = 64;
const MANY_RUNS: u64 = 8;
/// Times the second-level cache that is read to measure the memory's speed (0.8 GB on an H200).
const READ: u64 = 16;

/// How the backend runs.
#[derive(Clone, Copy, Debug)]
pub struct CudaOptions {
    /// Capture the second run of a plan (of many tokens: the ninth) as a graph and launch that from then on.
    pub graphs: bool,
    /// For tests: keep sentinels around all working memory, fill it with NaN before every step, and fail where a sentinel
    /// was written over. No graphs.
    pub guarded: bool,
    /// Begin steps before they are asked for, where that is allowed ([`StepRequest::ahead`]). Off with MODEL1_CUDA_AHEAD=0.
    pub ahead: bool,
    /// Note in every step what L0 telemetry is made from (rounding errors of cache rows, chosen experts); without, what it
    /// costs can be measured, and those numbers are 0.
    pub counted: bool,
    /// Run the layers of dense models in one launch where the device can. Off with MODEL1_CUDA_RESIDENT=0.
    pub resident: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            graphs: true,
            guarded: false,
            ahead: true,
            counted: true,
            resident: true,
        }
    }
}

/// Working memory of the plan that runs; grows, never shrinks.
pub(super) struct Work {
    pub mem: Mem,
    pub generation: u64,
    /// Steps launched so far, of all states.
    pub launches: u64,
}

/// The CUDA backend, on one device.
pub struct Cuda {
    device: Arc<dyn Device>,
    pub(super) options: CudaOptions,
    pub(super) weights: Arc<Weights>,
    pub(super) work: Mutex<Work>,
    pub(super) turn: Arc<Mutex<()>>,
}

impl Cuda {
    /// A backend on a device.
    pub fn on(device: Arc<dyn Device>, mut options: CudaOptions) -> Self {
        let off = |name| std::env::var(name).is_ok_and(|v| v == "0");
        options.ahead &= !off("MODEL1_CUDA_AHEAD");
        options.resident &= !off("MODEL1_CUDA_RESIDENT");
        Self {
            weights: Arc::new(Weights::new(&device)),
            work: Mutex::new(Work {
                mem: Mem::none(&device),
                generation: 0,
                launches: 0,
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

    /// Where a plan's working memory for so many sequences lies in the arena, which grows if it has to.
    pub(super) fn arena(&self, work: &mut Work, plan: &Plan, sequences: usize) -> Result<Arena, ExecError> {
        let arena = Arena::new(plan, if self.options.guarded { 1024 } else { 0 }, sequences);
        if arena.bytes() > work.mem.len() {
            self.device.synchronise()?;
            // The old memory first: both together may not fit.
            work.mem = Mem::none(&self.device);
            work.generation += 1;
            let new = || Mem::new(&self.device, arena.bytes(), "the activations of a step");
            work.mem = self.weights.or_free(new)?;
        }
        Ok(arena)
    }

    /// Makes a plan ready in the arena.
    fn place(
        &self,
        work: &mut Work,
        state: &mut CudaState,
        plan: &Plan,
        weights: &dyn WeightSource,
    ) -> Result<(Prepared, Held), ExecError> {
        let arena = self.arena(work, plan, 1)?;
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
        let mut prepared = Prepared::new(&self.device, &self.weights, plan, (places, copies), arena, place)?
            .counting(plan, self.options.counted);
        prepared.alone(plan, self.options.resident.then(|| self.device.info()));
        let memory = |bytes| {
            let new = || Mem::new(&self.device, bytes, "records of a plan");
            self.weights.or_free(new)
        };
        prepared.settle(self.device.as_ref(), plan, &state.places(), &memory)?;
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
        let runs = p.runs / if plan.token_bucket < MANY { 1 } else { MANY_RUNS };
        state.prepared[index].graph = self.run_or_record(runs, &|| {
            p.launch(device, plan, &caches, None)?;
            Self::end(p, state, device)
        })?;
        Ok(())
    }

    /// The end of a step of one token.
    fn end(p: &Prepared, state: &CudaState, device: &dyn Device) -> Result<(), ExecError> {
        if p.delivers() {
            p.deliver(device, state.mails.parts())
        } else {
            Ok(())
        }
    }

    /// Runs what `enqueue` enqueues for a plan that ran `runs` times: as it is the first time, recorded as a graph, which comes
    /// back, later.
    pub(super) fn run_or_record(
        &self,
        runs: u64,
        enqueue: &dyn Fn() -> Result<(), ExecError>,
    ) -> Result<Option<Box<dyn Graph>>, ExecError> {
        let device = self.device.as_ref();
        if runs == 0 || !self.options.graphs || self.options.guarded || !device.begin_capture()? {
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
            state.prepared[index].traced = self.run_or_record(p.runs, &|| {
                p.launch(device, plan, &caches, Some(&mut |i| device.mark(i)))?;
                (groups..groups + 3).try_for_each(|i| device.mark(i))?;
                Self::end(p, state, device)
            })?;
        }
        let stamp = device.between(groups + 1, groups + 2)?;
        let p = &state.prepared[index];
        for (i, g) in p.groups.iter().enumerate() {
            let nanos = (device.between(i, i + 1)? - stamp).max(0.0);
            let own = p.resident(i).map_or(Ok(Vec::new()), |r| r.times(&self.device))?;
            // A launch of many ops noted by its own clock how its time is shared out.
            let all: f64 = own.iter().map(|t| t.1).sum();
            let parts = match all > 0.0 {
                true => own.into_iter().map(|(origin, t)| (origin, t * nanos / all)).collect(),
                false => vec![(g.origin.clone(), nanos)],
            };
            for (origin, nanos) in parts {
                let kind = ExecKind::Single;
                let tokens = u64::from(request.step.tokens);
                ExecStep { kind, origin }.attribute(plan, nanos, tokens, request.step.position, &mut out.times);
            }
        }
        Ok(())
    }

    /// Uploads what the step needs to know; its answer goes to mail `mail` if it is of one token.
    fn input(&self, plan: &Plan, p: &Prepared, request: &StepRequest<'_>, mail: usize) -> Result<(), ExecError> {
        let mut block = vec![0u8; IDS + 4 * request.ids.len()];
        let penalties = records(plan, request, mail, &mut block);
        block[IDS..].copy_from_slice(bytemuck::cast_slice(request.ids));
        self.device.upload(p.at(p.arena.input), &block)?;
        if penalties {
            self.device.upload(p.history(), bytemuck::cast_slice(request.history))?;
        }
        Ok(())
    }

    /// Enqueues the step that is asked for: the mail its answer goes to, and the number of its launch.
    fn begin(
        &self,
        work: &mut Work,
        (plan, index): (&Plan, usize),
        state: &mut CudaState,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(usize, u64), ExecError> {
        if self.options.guarded {
            self.device.fill(state.prepared[index].at(0), POISON, work.mem.len())?;
        }
        let mail = state.mails.next();
        work.launches += 1;
        self.input(plan, &state.prepared[index], request, mail)?;
        if request.trace {
            self.traced(plan, state, index, request, out)?;
        } else {
            self.launch(plan, state, index)?;
        }
        state.mails.post(mail)?;
        state.prepared[index].runs += 1;
        Ok((mail, work.launches))
    }

    /// Enqueues the step after the one that is asked for, if it can be run without the host.
    fn begin_next(
        &self,
        work: &mut Work,
        (plan, index): (&Plan, usize),
        state: &mut CudaState,
        request: &StepRequest<'_>,
    ) -> Result<Option<Begun>, ExecError> {
        let p = &state.prepared[index];
        let (Some(mut next), Some(graph)) = (self.next_step(plan, p, state, request), &p.graph) else {
            return Ok(None);
        };
        self.device.launch_graph(graph.as_ref())?;
        work.launches += 1;
        next.launch = work.launches;
        next.mail = state.mails.next();
        state.mails.post(next.mail)?;
        Ok(Some(next))
    }

    /// Fails where a sentinel was written over.
    pub(super) fn check_guards(&self, plan: &Plan, p: &Prepared, used: usize, all: usize) -> Result<(), ExecError> {
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

    /// Waits for the step, and reads what it drew and counted.
    fn answer(&self, p: &Prepared, state: &CudaState, mail: usize) -> Result<Vec<u8>, ExecError> {
        if p.delivers() {
            return state.mails.read(mail, p.arena.output_bytes);
        }
        let mut block = vec![0u8; p.arena.output_bytes];
        self.device.download(p.at(p.arena.output), &mut block)?;
        Ok(block)
    }

    /// Fills the output from the step's answer and what it left on the device.
    fn output(
        &self,
        plan: &Plan,
        p: &Prepared,
        request: &StepRequest<'_>,
        block: &[u8],
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let device = self.device.as_ref();
        let counters = p.arena.counters.iter().map(|c| c.map(|c| c.0));
        readback::layers(plan, counters, &request.step, block, &mut out.layers);
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
        self.drawn(plan, p.buf(plan.logits), request, drawn(block), out)
    }

    /// Fills the output with the token that a step drew, or with its logits, which lie there.
    pub(super) fn drawn(
        &self,
        plan: &Plan,
        logits: DevBuf,
        request: &StepRequest<'_>,
        drawn: DevSampled,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let params = request.sampler.filter(|_| samples(plan));
        out.logits.clear();
        // A step that draws its token here leaves the logits where they are: 150,000 of them are 0.6 MB a step.
        if params.is_none() || plan.all_logits {
            self.logits(plan, logits, request, &mut out.logits)?;
        }
        if let Some(params) = params {
            out.sampled = Some(self.sampled(plan, logits, request, params, drawn)?);
        }
        Ok(())
    }

    /// Copies the step's logits out.
    fn logits(
        &self,
        plan: &Plan,
        logits: DevBuf,
        request: &StepRequest<'_>,
        out: &mut Vec<f32>,
    ) -> Result<(), ExecError> {
        out.resize(readback::rows(plan, plan.logits, &request.step) * logits.width, 0.0);
        self.device.download(logits.ptr, bytemuck::cast_slice_mut(out))
    }

    /// The token the step drew.
    fn sampled(
        &self,
        plan: &Plan,
        from: DevBuf,
        request: &StepRequest<'_>,
        params: &SamplerParams,
        drawn: DevSampled,
    ) -> Result<Sampled, ExecError> {
        if drawn.status == 0 && params.logprobs == 0 {
            return Ok(Sampled {
                token: drawn.token,
                logprob: drawn.logprob,
                top: Vec::new(),
            });
        }
        // Lists of alternatives, and what is wrong with logits that cannot be drawn from, are the host's.
        let mut logits = Vec::new();
        self.logits(plan, from, request, &mut logits)?;
        let last = &logits[logits.len() - plan.width(plan.logits)..];
        let mut host = sample::sample(last, params, request.history, request.step.rng_counter)
            .map_err(|e| ExecError::Sample(e.to_string()))?;
        if drawn.status == 0 {
            (host.token, host.logprob) = (drawn.token, drawn.logprob);
        }
        Ok(host)
    }
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
        let state = CudaState::of(state, plan)?;
        check(plan, request)?;
        request.go_on()?;
        out.probes.clear();
        out.times.clear();
        out.sampled = None;
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        let index = self.prepare(&mut work, state, plan, weights)?;
        let begun = state.begun.take().filter(|b| b.is(plan, request));
        let (mail, launch) = match &begun {
            Some(b) => (b.mail, b.launch),
            None => self.begin(&mut work, (plan, index), state, request, out)?,
        };
        // Its records are on the device only as long as nothing else was launched.
        let next = if launch == work.launches {
            self.begin_next(&mut work, (plan, index), state, request)?
        } else {
            None
        };
        let p = &state.prepared[index];
        let block = self.answer(p, state, mail)?;
        out.ahead_nanos = begun.is_some().then(|| state.mails.nanos(mail)).transpose()?;
        self.output(plan, p, request, &block, out)?;
        if self.options.guarded {
            self.check_guards(plan, p, p.arena.bytes(), work.mem.len())?;
        }
        let drawn = drawn(&block);
        state.begun = next.filter(|_| drawn.status == 0).map(|n| n.reads(drawn.token));
        Ok(())
    }

    fn batch(&self) -> usize {
        SEQUENCES
    }

    fn run_batch(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        states: &mut [&mut dyn State],
        requests: &[StepRequest<'_>],
        outs: &mut [StepOutput],
    ) -> Result<Option<String>, ExecError> {
        check_batch(states.len(), requests, outs.len())?;
        let apart = batch::apart(plan, requests);
        if apart.is_none() {
            self.run_together(plan, weights, states, requests, outs)?;
        } else {
            let mut all = states.iter_mut().zip(requests).zip(outs);
            all.try_for_each(|((state, request), out)| self.run(plan, weights, *state, request, out))?;
        }
        Ok(apart)
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
