//! A plan made ready to run on a state: where everything lies, and its captured graph.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::cx::{
    ARRIVALS, DevBuf, DevCache, DevExpert, DevRope, DevRowStats, DevSampled, DevSampler, DevStep, LaunchCx, rows_code,
};
use super::device::{ALIGN, Arg, DevPtr, Device, DeviceInfo, Graph, Launch};
use super::mail::{MAIL, MAILS};
use super::memory::{Mem, Parts};
use super::ops::{Group, Pair, Pairs, Resident, Run, dense_bytes, groups, join, join_pairs, scratch_bytes};
use super::schedule::{STREAMS, holds, order};
use super::weights::{PlanCopies, Weights};
use crate::ir::{BufId, CacheFormat, ElemType, ExecError, Mask, Op, Plan};

/// What tells plans apart.
pub(super) type PlanKey = (u64, usize, usize, usize, bool);

/// The key of a plan.
pub(super) fn key(plan: &Plan) -> PlanKey {
    (
        plan.hash,
        plan.ops.len(),
        plan.token_bucket,
        plan.context_bucket,
        plan.all_logits,
    )
}

/// `DeliverArgs` of `src/deliver.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DeliverArgs {
    output: DevPtr,
    step: DevPtr,
    ids: DevPtr,
    history: DevPtr,
    mail: [DevPtr; MAILS],
    words: u32,
    room: u32,
}

/// Offset of the sampler's settings in the input block: behind [`DevStep`].
pub(super) const SAMPLER: usize = size_of::<DevStep>();
/// Offset of the token ids in the input block.
pub(super) const IDS: usize = (SAMPLER + size_of::<DevSampler>()).next_multiple_of(16);

/// Offsets of a plan's working memory in the arena. Everything a sequence has of its own lies there once for each sequence
/// of a batch, one behind the other.
pub(super) struct Arena {
    parts: Parts,
    /// Sequences.
    pub sequences: usize,
    bufs: Vec<usize>,
    /// Input block: [`DevStep`], [`DevSampler`], ids; one upload per step. In a batch these are about all sequences, and
    /// [`DevStep`] and [`DevSampler`] of each follow from [`Arena::own`] on.
    pub input: usize,
    history: usize,
    /// Tokens the history has room for.
    room: usize,
    scratch: usize,
    /// Bytes of scratch memory per stream.
    scratch_bytes: usize,
    dense: usize,
    /// What is launched together, in the plan's order.
    groups: Vec<Group>,
    /// Output block: [`DevSampled`], then what the ops count; one download per step.
    pub output: usize,
    /// Bytes of the output block.
    pub output_bytes: usize,
    /// By op: offset of its counters in the output block, and the bytes of one sequence's.
    pub counters: Vec<Option<(usize, usize)>>,
    /// By op: offset of a probe's copy.
    pub probes: Vec<Option<usize>>,
}

impl Arena {
    /// Lays out a plan's working memory for so many sequences, `guard` bytes kept free behind each part.
    pub fn new(plan: &Plan, guard: usize, sequences: usize) -> Self {
        let mut parts = Parts::new(guard);
        let own = if sequences > 1 { sequences * IDS } else { 0 };
        let input = parts.add(own_records(plan, sequences) + own);
        let mut output_bytes = sequences * size_of::<DevSampled>();
        let mut counters = vec![None; plan.ops.len()];
        for (slot, base) in counters.iter_mut().zip(&plan.ops) {
            let bytes = match &base.op {
                // Nothing is lost in plain numbers.
                Op::CacheWrite { cache, .. } if plain(plan.cache(*cache).format) => continue,
                Op::CacheWrite { src, .. } => bucket_rows(plan, *src) * size_of::<DevRowStats>(),
                Op::Route { out_experts, .. } => plan.buffer_len(*out_experts) * 4,
                Op::TopP { x, group, .. } => bucket_rows(plan, *x) * (plan.width(*x) / group) * 4,
                Op::Attend {
                    heads,
                    mask: Mask::BlockSkip { .. },
                    ..
                } => plan.token_bucket * heads * 4,
                _ => continue,
            };
            *slot = Some((output_bytes, bytes));
            output_bytes += (sequences * bytes).next_multiple_of(16);
        }
        let output = parts.add(output_bytes);
        let history = parts.add(sequences * 4 * plan.context_bucket);
        let groups = groups(plan);
        let scratch_bytes = scratch_bytes(plan, &groups, sequences).next_multiple_of(ALIGN);
        let scratch = parts.add(lanes(sequences) * scratch_bytes);
        let dense = parts.add(dense_bytes(plan, &groups));
        let bufs = (0..plan.buffers.len())
            .map(|i| parts.add(sequences * 4 * plan.buffer_len(BufId(i as u32))))
            .collect();
        let probes = plan
            .ops
            .iter()
            .map(|o| match &o.op {
                Op::Probe { x, .. } => Some(parts.add(4 * plan.buffer_len(*x))),
                _ => None,
            })
            .collect();
        Self {
            parts,
            sequences,
            bufs,
            input,
            history,
            room: plan.context_bucket,
            scratch,
            scratch_bytes,
            dense,
            groups,
            output,
            output_bytes,
            counters,
            probes,
        }
    }

    /// Bytes of all of it.
    pub fn bytes(&self) -> usize {
        self.parts.bytes()
    }

    /// Gaps nothing may write to.
    pub fn gaps(&self) -> Vec<(usize, usize)> {
        self.parts.gaps()
    }
}

/// Launches that can be under way beside each other, each with working memory and counters of its own: those of a single
/// sequence follow each other.
fn lanes(sequences: usize) -> usize {
    if sequences > 1 { STREAMS + sequences } else { 1 }
}

/// Offset in the input block of a batch where the sequences' own records begin.
pub(super) fn own_records(plan: &Plan, sequences: usize) -> usize {
    (IDS + 4 * plan.token_bucket * sequences).next_multiple_of(16)
}

/// Whether rows of a format have no rounding errors to be counted.
fn plain(format: CacheFormat) -> bool {
    matches!(format, CacheFormat::F32 | CacheFormat::Bf16)
}

/// Rows of a buffer in the plan's bucket.
fn bucket_rows(plan: &Plan, id: BufId) -> usize {
    plan.dim(plan.buffers[id.index()].rows, plan.token_bucket, plan.context_bucket)
}

/// A plan ready to run.
pub(super) struct Prepared {
    pub key: PlanKey,
    /// Number of the arena's memory its addresses are in; another one makes it useless.
    pub generation: u64,
    pub arena: Arena,
    pub groups: Vec<Group>,
    /// By number of their group: runs of ops in one launch, and, once the caches are known, the launches.
    spans: Vec<(usize, Run)>,
    residents: Vec<(usize, Resident)>,
    /// Pairs of products in the order of their groups, and their launches.
    found: Vec<Pair>,
    pairs: Pairs,
    /// Which groups hold the launch after them.
    holds: Vec<bool>,
    /// Whether products may keep their weights in shared memory until their input is there.
    held: bool,
    base: DevPtr,
    bufs: Vec<DevBuf>,
    weights: Vec<(DevPtr, DevPtr)>,
    /// What `weights` points into: to be held when the plan runs.
    pub copies: PlanCopies,
    ropes: Vec<DevRope>,
    experts: Vec<DevPtr>,
    counters: Vec<DevPtr>,
    arrived: DevPtr,
    /// Frequencies and expert tables.
    _tables: Mem,
    /// Steps run so far.
    pub runs: u64,
    pub graph: Option<Box<dyn Graph>>,
    /// The same with time stamps between the groups.
    pub traced: Option<Box<dyn Graph>>,
}

impl Prepared {
    /// Places a plan whose weights are on the device: makes its tables.
    pub fn new(
        device: &Arc<dyn Device>,
        all: &Weights,
        plan: &Plan,
        (places, copies): (Vec<(DevPtr, DevPtr)>, PlanCopies),
        mut arena: Arena,
        (base, generation): (DevPtr, u64),
    ) -> Result<Self, ExecError> {
        let mut parts = Parts::default();
        let ropes: Vec<usize> = plan.ropes.iter().map(|r| parts.add(8 * r.freqs.len())).collect();
        let experts: Vec<Option<usize>> = plan
            .ops
            .iter()
            .map(|o| match &o.op {
                Op::ExpertMatMul { weights: w, .. } => Some(parts.add(size_of::<DevExpert>() * w.len())),
                _ => None,
            })
            .collect();
        let arrived = parts.add(4 * ARRIVALS * lanes(arena.sequences));
        let mut bytes = vec![0u8; parts.bytes()];
        for (r, &at) in plan.ropes.iter().zip(&ropes) {
            bytes[at..at + 8 * r.freqs.len()].copy_from_slice(bytemuck::cast_slice(&r.freqs));
        }
        for (base, at) in plan.ops.iter().zip(&experts) {
            let (Op::ExpertMatMul { weights: ids, .. }, Some(at)) = (&base.op, at) else {
                continue;
            };
            for (i, id) in ids.iter().enumerate() {
                let (data, scales) = places[id.index()];
                let at = at + i * size_of::<DevExpert>();
                bytes[at..at + size_of::<DevExpert>()].copy_from_slice(bytemuck::bytes_of(&DevExpert { data, scales }));
            }
        }
        let tables = all.or_free(|| Mem::of(device, &bytes, "tables of a plan"))?;
        let at = |offset: usize| base + offset as u64;
        let bufs = plan
            .buffers
            .iter()
            .zip(&arena.bufs)
            .enumerate()
            .map(|(i, (b, &offset))| DevBuf {
                ptr: at(offset),
                rows: bucket_rows(plan, BufId(i as u32)),
                width: plan.width(BufId(i as u32)),
                elem: b.elem,
                code: rows_code(plan, b.rows),
            });
        let rope = |(r, at): (&crate::ir::RopeTable, usize)| DevRope {
            freqs: tables.ptr() + at as u64,
            pairs: r.freqs.len(),
        };
        let groups = std::mem::take(&mut arena.groups);
        Ok(Self {
            key: key(plan),
            generation,
            holds: Vec::new(),
            held: false,
            groups,
            spans: Vec::new(),
            residents: Vec::new(),
            found: Vec::new(),
            pairs: Pairs::default(),
            base,
            bufs: bufs.collect(),
            weights: places,
            copies,
            ropes: plan.ropes.iter().zip(ropes).map(rope).collect(),
            experts: experts
                .iter()
                .map(|e| e.map_or(0, |at| tables.ptr() + at as u64))
                .collect(),
            arrived: tables.ptr() + arrived as u64,
            counters: arena
                .counters
                .iter()
                .map(|c| c.map_or(0, |(offset, _)| at(arena.output + offset)))
                .collect(),
            _tables: tables,
            runs: 0,
            graph: None,
            traced: None,
            arena,
        })
    }

    /// With or without what ops only note for telemetry.
    pub fn counting(mut self, plan: &Plan, counted: bool) -> Self {
        for (counter, base) in self.counters.iter_mut().zip(&plan.ops) {
            if !counted && matches!(base.op, Op::CacheWrite { .. } | Op::Route { .. }) {
                *counter = 0;
            }
        }
        self
    }

    /// Address of an offset in the arena.
    pub fn at(&self, offset: usize) -> DevPtr {
        self.base + offset as u64
    }

    /// Address of the token history.
    pub fn history(&self) -> DevPtr {
        self.at(self.arena.history)
    }

    /// Whether its steps end with `deliver`: those of one token, where the answer fits a mail.
    pub fn delivers(&self) -> bool {
        self.key.2 == 1 && self.arena.output_bytes <= MAIL
    }

    /// Enqueues the end of a step of one token.
    pub fn deliver(&self, device: &dyn Device, mail: [DevPtr; MAILS]) -> Result<(), ExecError> {
        let args = DeliverArgs {
            output: self.at(self.arena.output),
            step: self.at(self.arena.input),
            ids: self.at(self.arena.input + IDS),
            history: self.history(),
            mail,
            words: (self.arena.output_bytes / 16) as u32,
            room: self.arena.room as u32,
        };
        device.launch(&Launch {
            kernel: "deliver",
            grid: [1, 1, 1],
            block: [256, 1, 1],
            shared: 0,
            early: true,
            apart: false,
            args: &[Arg::Struct(bytemuck::bytes_of(&args))],
        })
    }

    /// A buffer.
    pub fn buf(&self, id: BufId) -> DevBuf {
        self.bufs[id.index()]
    }

    /// Brings the groups in the order in which a single sequence goes through them; with `one_launch` those that such a device
    /// runs in one launch are joined.
    pub fn alone(&mut self, plan: &Plan, one_launch: Option<&DeviceInfo>) {
        self.groups = order(plan, std::mem::take(&mut self.groups));
        if let Some(info) = one_launch {
            self.held = !info.resident.is_none();
            (self.groups, self.found) = join_pairs(plan, std::mem::take(&mut self.groups), info);
            (self.groups, self.spans) = join(plan, std::mem::take(&mut self.groups), info);
        }
        self.holds = holds(plan, &self.groups);
    }

    /// Makes the launches ready that hold where the caches lie.
    pub fn settle(
        &mut self,
        device: &dyn Device,
        plan: &Plan,
        caches: &[DevCache<'_>],
        memory: &dyn Fn(usize) -> Result<Mem, ExecError>,
    ) -> Result<(), ExecError> {
        let made = self.spans.iter().map(|(i, run)| {
            let cx = self.cx(device, plan, caches);
            Ok((*i, Resident::new(&cx, run, device.info(), memory)?))
        });
        self.residents = made.collect::<Result<_, ExecError>>()?;
        self.pairs = Pairs::new(self.cx(device, plan, caches), &self.groups, &self.found, memory)?;
        Ok(())
    }

    /// The launch that is group `i`, if it is one of many ops.
    pub fn resident(&self, i: usize) -> Option<&Resident> {
        self.residents.iter().find(|r| r.0 == i).map(|r| &r.1)
    }

    /// What the launches of ops get.
    pub fn cx<'a>(&'a self, device: &'a dyn Device, plan: &'a Plan, caches: &'a [DevCache<'a>]) -> LaunchCx<'a> {
        LaunchCx {
            device,
            noted: None,
            plan,
            step: self.at(self.arena.input),
            ids: self.at(self.arena.input + IDS),
            history: self.history(),
            sampler: self.at(self.arena.input + SAMPLER),
            sampled: self.at(self.arena.output),
            scratch: self.at(self.arena.scratch),
            dense: self.at(self.arena.dense),
            arrived: self.arrived,
            bufs: &self.bufs,
            weights: &self.weights,
            caches,
            ropes: &self.ropes,
            experts: &self.experts,
            stats: &self.counters,
            groups: &self.groups,
            holds: &self.holds,
            held: self.held,
            group: 0,
        }
    }

    /// What launches of a stream have to themselves; behind the streams, what launches for one of several sequences have.
    pub fn on_stream(&self, cx: &mut LaunchCx<'_>, stream: usize) {
        cx.scratch = self.at(self.arena.scratch + stream * self.arena.scratch_bytes);
        cx.arrived = self.arrived + (4 * ARRIVALS * stream) as u64;
    }

    /// By op: where its counters are, of the first sequence; 0 where it has none.
    pub fn counters(&self) -> &[DevPtr] {
        &self.counters
    }

    /// Enqueues every op of a single sequence, probes included, one group after the other. `between` is called before each
    /// with its number.
    pub fn launch(
        &self,
        device: &dyn Device,
        plan: &Plan,
        caches: &[DevCache<'_>],
        mut between: Option<&mut dyn FnMut(usize) -> Result<(), ExecError>>,
    ) -> Result<(), ExecError> {
        let mut cx = self.cx(device, plan, caches);
        let timed = between.is_some();
        for (i, group) in self.groups.iter().enumerate() {
            if let Some(between) = &mut between {
                between(i)?;
            }
            cx.group = i;
            match self.resident(i) {
                Some(resident) => resident.launch(device, timed)?,
                None if self.pairs.launch(device, i)? => {}
                None => self.group(&cx, group)?,
            }
        }
        Ok(())
    }

    fn group(&self, cx: &LaunchCx<'_>, group: &Group) -> Result<(), ExecError> {
        for id in &group.origin {
            if let (Op::Probe { x, .. }, Some(to)) = (&cx.plan.ops[id.index()].op, self.arena.probes[id.index()]) {
                let b = self.buf(*x);
                debug_assert!(matches!(b.elem, ElemType::F32 | ElemType::I32));
                cx.device.copy(self.at(to), b.ptr, 4 * b.rows * b.width)?;
            }
        }
        super::ops::launch(cx, group)
    }
}
