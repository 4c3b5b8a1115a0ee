//! Steps of one token of several sequences, taken together: every weight is read once for all of them.
//!
//! Working memory has a row per sequence in every buffer. What a sequence does with its position, its caches or its token
//! (rotation, cache rows, pooling, attention, indexer, sampling) is launched for each sequence as in a step of its own or,
//! where the kernel has a form for that ([`join`]), for all of them with a parameter struct for each. All else is launched
//! once, over the rows of all, by the kernels for steps of up to 8 tokens. Those launches are made for [`SEQUENCES`] rows,
//! however many there are, so that the sums behind a row depend neither on what is in the others nor on how many there are.
//! Launches for one sequence have streams of their own, in turns.

mod join;

use std::cell::RefCell;
use std::sync::{Arc, PoisonError};

use super::cx::{DevBuf, DevCache, DevSampled, DevStep, LaunchCx, Noted};
use super::device::{DevPtr, Device, Graph};
use super::exec::{Cuda, POISON, Work};
use super::input::{check, records};
use super::memory::Mem;
use super::ops::{self, Group};
use super::prepared::{IDS, PlanKey, Prepared, key, own_records};
use super::readback;
use super::schedule::{Place, STREAMS, Schedule, dependencies, spread, touched};
use super::state::CudaState;
use super::weights::{Held, PlanWeights, Weights};
use crate::ir::{
    BufId, Dim, ElemType, ExecError, Op, Plan, Positions, State, StepOutput, StepRequest, WeightSource, check_batch,
};
use join::Joined;

/// Sequences of a batch at most: tokens that the kernels for few of them take.
pub const SEQUENCES: usize = 8;
/// Batches kept ready per state.
const KEPT: usize = 4;

/// A launch: a group of ops, for all sequences or for one.
#[derive(Clone, Copy)]
struct Unit {
    group: usize,
    sequence: Option<usize>,
    /// The stream it must be on.
    stream: Option<usize>,
}

/// Where launches find what differs between sequences, and rows.
struct View {
    bufs: Vec<DevBuf>,
    counters: Vec<DevPtr>,
    step: DevPtr,
    ids: DevPtr,
    history: DevPtr,
    sampler: DevPtr,
    sampled: DevPtr,
}

/// A plan made ready to run on the states of several sequences.
pub(super) struct Batch {
    key: PlanKey,
    /// Stamps of the states, in order.
    members: Vec<u64>,
    prepared: Prepared,
    units: Vec<Unit>,
    /// By group: launches for all sequences in place of one for each.
    joined: Vec<Option<Vec<Joined>>>,
    /// What some of them read.
    _table: Mem,
    schedule: Schedule,
    /// Of all sequences.
    all: View,
    /// Of each.
    each: Vec<View>,
    graph: Option<Box<dyn Graph>>,
}

/// Whether an op treats the rows of all sequences alike, so that one launch can take them together.
fn alike(plan: &Plan, op: &Op) -> bool {
    let by_row = match op {
        Op::Embed { .. }
        | Op::Norm { .. }
        | Op::MatMul { .. }
        | Op::GroupedMatMul { .. }
        | Op::ExpertMatMul { .. }
        | Op::Slice { .. }
        | Op::Add { .. }
        | Op::Glu { .. }
        | Op::Activate { .. }
        | Op::ZeroHeads { .. }
        | Op::TopP { .. }
        | Op::Route { .. }
        | Op::ExpertSum { .. }
        | Op::HcMix { .. }
        | Op::HcCollapse { .. }
        | Op::HcExpand { .. }
        | Op::RoundTrip { .. }
        | Op::TakeOutput { .. } => true,
        Op::Hadamard { rows, .. } => *rows == Positions::Tokens,
        Op::EmbedPosition { .. }
        | Op::Rope { .. }
        | Op::CacheWrite { .. }
        | Op::Pool { .. }
        | Op::IndexScore { .. }
        | Op::SelectTopK { .. }
        | Op::Attend { .. }
        | Op::Sample { .. }
        | Op::Probe { .. } => false,
    };
    let (read, changed) = touched(op);
    let rows = |p: &Place| match p {
        Place::Buffer(b) => matches!(plan.buffers[*b].rows, Dim::Tokens | Dim::Output),
        Place::Cache(_) => false,
    };
    by_row && read.iter().chain(&changed).all(rows)
}

/// The launches of a step of `n` sequences, and what each comes after.
fn units(plan: &Plan, groups: &[Group], joined: &[Option<Vec<Joined>>], n: usize) -> (Vec<Unit>, Vec<Vec<usize>>) {
    let before = dependencies(plan, groups);
    let (mut units, mut deps) = (Vec::new(), Vec::new());
    // By group: its launches.
    let mut of: Vec<Vec<usize>> = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        let mine: Vec<(Option<usize>, Option<usize>)> = match &joined[i] {
            // Those that work in the same memory run one after the other.
            Some(all) => vec![(None, all.iter().any(|j| j.alone).then_some(0))],
            None if together(plan, group) => vec![(None, None)],
            None => (0..n).map(|s| (Some(s), Some(s % STREAMS))).collect(),
        };
        let first = units.len();
        for (sequence, stream) in mine {
            let after = before[i].iter().flat_map(|&g| match (sequence, of[g].as_slice()) {
                (Some(s), many @ [_, _, ..]) => vec![many[s]],
                (_, all) => all.to_vec(),
            });
            deps.push(after.collect());
            units.push(Unit {
                group: i,
                sequence,
                stream,
            });
        }
        of.push((first..units.len()).collect());
    }
    (units, deps)
}

/// Whether a group's ops are launched for all sequences as they are.
fn together(plan: &Plan, group: &Group) -> bool {
    group.origin.iter().all(|id| alike(plan, &plan.ops[id.index()].op))
}

impl Batch {
    fn new(
        device: &Arc<dyn Device>,
        weights: &Weights,
        plan: &Plan,
        prepared: Prepared,
        states: &[&mut CudaState],
    ) -> Result<Self, ExecError> {
        let n = states.len();
        let each: Vec<View> = (0..n).map(|s| own(plan, &prepared, s)).collect();
        let caches: Vec<Vec<DevCache<'_>>> = states.iter().map(|s| s.places()).collect();
        let note = |group: &Group, s: usize| -> Result<Vec<Noted>, ExecError> {
            let noted = RefCell::default();
            {
                let mut cx = each[s].seen(prepared.cx(device.as_ref(), plan, &caches[s]));
                cx.noted = Some(&noted);
                prepared.on_stream(&mut cx, STREAMS + s);
                ops::launch(&cx, group)?;
            }
            Ok(noted.into_inner())
        };
        let mut table = Vec::new();
        let mut joined = Vec::with_capacity(prepared.groups.len());
        for group in &prepared.groups {
            let of_each = if together(plan, group) { 0 } else { n };
            let noted = (0..of_each).map(|s| note(group, s)).collect::<Result<Vec<_>, _>>()?;
            joined.push(join::join(&noted, &mut table));
        }
        let table = weights.or_free(|| Mem::of(device, &table, "launches of several sequences"))?;
        for j in joined.iter_mut().flatten().flatten() {
            j.place(table.ptr());
        }
        let (units, deps) = units(plan, &prepared.groups, &joined, n);
        let schedule = spread(&deps, &|i| units[i].stream);
        Ok(Self {
            key: key(plan),
            members: states.iter().map(|s| s.stamp).collect(),
            all: all(plan, &prepared),
            each,
            prepared,
            units,
            joined,
            _table: table,
            schedule,
            graph: None,
        })
    }

    /// Enqueues every launch.
    fn launch(&self, device: &dyn Device, plan: &Plan, caches: &[Vec<DevCache<'_>>]) -> Result<(), ExecError> {
        let slots = self.units.iter().zip(&self.schedule.slots);
        let ran = slots.enumerate().try_for_each(|(i, (unit, slot))| {
            device.stream(slot.stream);
            slot.after.iter().try_for_each(|&u| device.wait(u))?;
            if let Some(all) = &self.joined[unit.group] {
                all.iter().try_for_each(|j| j.launch(device))?;
            } else {
                let (view, caches) = match unit.sequence {
                    Some(s) => (&self.each[s], caches[s].as_slice()),
                    None => (&self.all, [].as_slice()),
                };
                let mut cx = view.seen(self.prepared.cx(device, plan, caches));
                self.prepared.on_stream(&mut cx, slot.stream);
                ops::launch(&cx, &self.prepared.groups[unit.group])?;
            }
            if slot.signals { device.signal(i) } else { Ok(()) }
        });
        device.stream(0);
        ran?;
        self.schedule.last.iter().try_for_each(|&u| device.wait(u))
    }
}

impl View {
    /// What launches refer to, seen from here.
    fn seen<'a>(&'a self, base: LaunchCx<'a>) -> LaunchCx<'a> {
        LaunchCx {
            step: self.step,
            ids: self.ids,
            history: self.history,
            sampler: self.sampler,
            sampled: self.sampled,
            bufs: &self.bufs,
            stats: &self.counters,
            ..base
        }
    }
}

/// How kernels find the sequences of a batch: as a step's tokens.
const TOKENS: u32 = 1 << 28;

/// What launches for all sequences see: a row, or as many as a step of one token has, for each.
fn all(plan: &Plan, p: &Prepared) -> View {
    let buf = |i: usize| {
        let b = p.buf(BufId(i as u32));
        DevBuf {
            rows: b.rows * SEQUENCES,
            code: TOKENS,
            ..b
        }
    };
    let at = p.arena.input;
    View {
        bufs: (0..plan.buffers.len()).map(buf).collect(),
        counters: p.counters().to_vec(),
        step: p.at(at),
        ids: p.at(at + IDS),
        history: 0,
        sampler: 0,
        sampled: 0,
    }
}

/// What the launches of sequence `s` see: its own rows.
fn own(plan: &Plan, p: &Prepared, s: usize) -> View {
    let buf = |i: usize| {
        let b = p.buf(BufId(i as u32));
        DevBuf {
            ptr: b.ptr + (4 * s * b.rows * b.width) as u64,
            ..b
        }
    };
    let counter = |(at, place): (&DevPtr, &Option<(usize, usize)>)| match (at, place) {
        (0, _) | (_, None) => 0,
        (at, Some((_, bytes))) => at + (s * bytes) as u64,
    };
    let records = p.arena.input + own_records(plan, SEQUENCES) + s * IDS;
    View {
        bufs: (0..plan.buffers.len()).map(buf).collect(),
        counters: p.counters().iter().zip(&p.arena.counters).map(counter).collect(),
        step: p.at(records),
        ids: p.at(p.arena.input + IDS + 4 * s),
        history: p.history() + (4 * s * plan.context_bucket) as u64,
        sampler: p.at(records + super::prepared::SAMPLER),
        sampled: p.at(p.arena.output + s * size_of::<DevSampled>()),
    }
}

/// Why steps cannot be taken together.
pub(super) fn apart(plan: &Plan, requests: &[StepRequest<'_>]) -> Option<String> {
    if plan.token_bucket != 1 {
        return Some(format!(
            "the plan is one for {} tokens of a sequence",
            plan.token_bucket
        ));
    }
    if requests.len() > SEQUENCES {
        return Some(format!("{} sequences, at most {SEQUENCES} go together", requests.len()));
    }
    if plan.ops.iter().any(|o| matches!(o.op, Op::Probe { .. })) {
        return Some("the plan has probes, which look at one sequence".into());
    }
    let traced = requests.iter().any(|r| r.trace);
    traced.then(|| "a traced step is timed by itself".into())
}

/// Names the sequence that an error is about.
fn of_sequence(s: usize, e: ExecError) -> ExecError {
    match e {
        ExecError::Sample(why) => ExecError::Sample(format!("sequence {s}: {why}")),
        e => e,
    }
}

impl Cuda {
    /// The batch of these states under a plan: taken from the first one, or made ready.
    fn batch(
        &self,
        work: &mut Work,
        states: &mut [&mut CudaState],
        plan: &Plan,
        weights: &dyn WeightSource,
    ) -> Result<Batch, ExecError> {
        let members: Vec<u64> = states.iter().map(|s| s.stamp).collect();
        let (key, generation) = (key(plan), work.generation);
        let known = &mut states[0].batches;
        let found = known.iter().position(|b| b.key == key && b.members == members);
        if let Some(i) = found {
            let batch = known.remove(i);
            let ready = batch.prepared.generation == generation;
            if ready && states[0].held.as_ref().is_some_and(|h| h.0 == key) {
                return Ok(batch);
            }
            if let Some(held) = batch.prepared.copies.hold().filter(|_| ready) {
                states[0].held = Some((key, held));
                self.weights.settle()?;
                return Ok(batch);
            }
        }
        let (batch, held) = match self.make_batch(work, plan, weights, states) {
            // Tables and graphs of other plans, and what these hold, may have to give way.
            Err(ExecError::OutOfMemory { .. }) => {
                for state in states.iter_mut() {
                    state.prepared.clear();
                    state.batches.clear();
                    state.held = None;
                }
                self.make_batch(work, plan, weights, states)?
            }
            made => made?,
        };
        states[0].held = Some((key, held));
        self.weights.settle()?;
        Ok(batch)
    }

    fn make_batch(
        &self,
        work: &mut Work,
        plan: &Plan,
        weights: &dyn WeightSource,
        states: &[&mut CudaState],
    ) -> Result<(Batch, Held), ExecError> {
        let arena = self.arena(work, plan, SEQUENCES)?;
        self.device().synchronise()?;
        let place = (work.mem.ptr(), work.generation);
        let PlanWeights { places, copies, held } = self.weights.of_plan(plan, weights)?;
        let prepared = Prepared::new(self.device(), &self.weights, plan, (places, copies), arena, place)?
            .counting(plan, self.options.counted);
        let batch = Batch::new(self.device(), &self.weights, plan, prepared, states)?;
        Ok((batch, held))
    }

    /// Uploads what a step needs to know.
    fn batch_input(&self, plan: &Plan, batch: &Batch, requests: &[StepRequest<'_>]) -> Result<(), ExecError> {
        let p = &batch.prepared;
        let own = own_records(plan, SEQUENCES);
        let mut block = vec![0u8; own + requests.len() * IDS];
        let step = DevStep {
            tokens: requests.len() as u32,
            ..DevStep::default()
        };
        block[..size_of::<DevStep>()].copy_from_slice(bytemuck::bytes_of(&step));
        for (s, r) in requests.iter().enumerate() {
            block[IDS + 4 * s..][..4].copy_from_slice(bytemuck::cast_slice(&r.ids[..1]));
            if records(plan, r, 0, &mut block[own + s * IDS..][..IDS]) {
                self.device()
                    .upload(batch.each[s].history, bytemuck::cast_slice(r.history))?;
            }
        }
        self.device().upload(p.at(p.arena.input), &block)
    }

    /// Fills the outputs from what a step left on the device.
    fn batch_output(
        &self,
        plan: &Plan,
        batch: &Batch,
        requests: &[StepRequest<'_>],
        outs: &mut [StepOutput],
    ) -> Result<(), ExecError> {
        let p = &batch.prepared;
        let mut block = vec![0u8; p.arena.output_bytes];
        self.device().download(p.at(p.arena.output), &mut block)?;
        for (s, (request, out)) in requests.iter().zip(outs).enumerate() {
            let drawn: DevSampled =
                bytemuck::pod_read_unaligned(&block[s * size_of::<DevSampled>()..][..size_of::<DevSampled>()]);
            let counters = p.arena.counters.iter().map(|c| c.map(|(at, bytes)| at + s * bytes));
            readback::layers(plan, counters, &request.step, &block, &mut out.layers);
            let logits = batch.each[s].bufs[plan.logits.index()];
            debug_assert!(logits.elem == ElemType::F32);
            self.drawn(plan, logits, request, drawn, out)
                .map_err(|e| of_sequence(s, e))?;
        }
        Ok(())
    }

    /// [`crate::ir::Backend::run_batch`] of steps that can be taken together.
    pub(super) fn run_together(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        states: &mut [&mut dyn State],
        requests: &[StepRequest<'_>],
        outs: &mut [StepOutput],
    ) -> Result<(), ExecError> {
        check_batch(states.len(), requests, outs.len())?;
        let mut own = Vec::with_capacity(states.len());
        for state in states.iter_mut() {
            own.push(CudaState::of(*state, plan)?);
        }
        for request in requests {
            check(plan, request)?;
            request.go_on()?;
        }
        for out in outs.iter_mut() {
            (out.sampled, out.ahead_nanos) = (None, None);
            out.probes.clear();
            out.times.clear();
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let mut work = self.work.lock().unwrap_or_else(PoisonError::into_inner);
        own.iter_mut().for_each(|s| s.begun = None);
        let mut batch = self.batch(&mut work, &mut own, plan, weights)?;
        if self.options.guarded {
            self.device().fill(work.mem.ptr(), POISON, work.mem.len())?;
        }
        work.launches += 1;
        self.batch_input(plan, &batch, requests)?;
        match &batch.graph {
            Some(graph) => self.device().launch_graph(graph.as_ref())?,
            None => {
                let caches: Vec<Vec<DevCache<'_>>> = own.iter().map(|s| s.places()).collect();
                let enqueue = || batch.launch(self.device().as_ref(), plan, &caches);
                batch.graph = self.run_or_record(batch.prepared.runs, &enqueue)?;
            }
        }
        batch.prepared.runs += 1;
        self.batch_output(plan, &batch, requests, outs)?;
        if self.options.guarded {
            self.check_guards(plan, &batch.prepared, batch.prepared.arena.bytes(), work.mem.len())?;
        }
        let kept = &mut own[0].batches;
        if kept.len() >= KEPT {
            kept.remove(0);
        }
        kept.push(batch);
        Ok(())
    }
}
