//! Chains: consecutive ops that work on rows one by one, in one launch, a block per row.

use bytemuck::{Pod, Zeroable, bytes_of};

use super::args::{launch, unsupported};
use super::{fuse, hc, index, mixing, pointwise, rope_write};
use crate::cuda::cx::{LaunchCx, rows_code};
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, CacheFormat, ExecError, Op, OpId, Plan};

/// Ops of a chain (`kLinks`).
pub(super) const LINKS: usize = 12;
/// Room for a parameter struct (`kLinkBytes`).
const BYTES: usize = 240;
/// Threads of a block; and where there are many rows, of which six then fit a multiprocessor instead of one.
const THREADS: usize = 256;
const MANY_THREADS: usize = 128;
/// Rows that are many.
const MANY: usize = 32;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkArg {
    kind: u32,
    rows: u32,
    args: [u64; BYTES / 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct ChainArgs {
    links: [LinkArg; LINKS],
    step: DevPtr,
    parts: u32,
    pad: u32,
    first: [u32; LINKS + 1],
    slices: [u32; LINKS],
    pad2: u32,
}

/// The buffer whose rows an op goes through, for ops that can be part of a chain.
pub(super) fn domain(op: &Op) -> Option<BufId> {
    match op {
        Op::Norm { x, .. }
        | Op::Rope { x, .. }
        | Op::Hadamard { x, .. }
        | Op::RoundTrip { x, .. }
        | Op::ExpertSum { x, .. }
        | Op::HcMix { x, .. }
        | Op::HcCollapse { x, .. }
        | Op::HcExpand { x, .. } => Some(*x),
        Op::CacheWrite { src, .. } => Some(*src),
        Op::Pool { kv, .. } => Some(*kv),
        _ => None,
    }
}

/// How many ops from `first` on make a chain (0: that op is none of a chain). In steps of one token rows that close in a step
/// and those of the token go through a chain together, with the pooling before; elsewhere a chain is about rows of one kind.
pub(super) fn length(plan: &Plan, first: usize) -> usize {
    let one = plan.token_bucket == 1;
    let code = |i: usize| {
        let op = &plan.ops.get(i)?.op;
        let rows = domain(op).map(|b| rows_code(plan, plan.buffers[b.index()].rows))?;
        match op {
            Op::Pool { .. } => one.then_some(rows),
            _ => Some(rows),
        }
    };
    let Some(rows) = code(first) else { return 0 };
    // The mixing matrix takes a launch of its own first, so that it can only begin a chain.
    (first..plan.ops.len().min(first + LINKS))
        .take_while(|&i| {
            // An indexer's scores take what comes before them.
            let apart = i > first && index::length(plan, i) > 0;
            !apart
                && code(i).is_some_and(|r| r == rows || one)
                && (i == first || !matches!(plan.ops[i].op, Op::HcMix { .. }))
        })
        .count()
}

fn link<T: Pod>(kind: u32, args: &T) -> LinkArg {
    let mut link = LinkArg::zeroed();
    link.kind = kind;
    bytemuck::cast_slice_mut(&mut link.args)[..size_of::<T>()].copy_from_slice(bytes_of(args));
    link
}

fn link_of(cx: &LaunchCx<'_>, id: OpId) -> Result<LinkArg, ExecError> {
    let op = &cx.plan.ops[id.index()].op;
    let mut link = match op {
        Op::Norm { .. } => link(0, &pointwise::norm_args(cx, op)?),
        Op::Rope { .. } => link(1, &pointwise::rope_args(cx, op)?),
        Op::CacheWrite { src, cache, rows } => {
            let stats = cx.stats[id.index()];
            link(2, &mixing::cache_write_args(cx, *src, *cache, *rows, stats))
        }
        Op::Hadamard { x, width, .. } => link(3, &mixing::runs_args(cx, *x, *width, None)?),
        Op::RoundTrip { x, width, format } => link(4, &mixing::runs_args(cx, *x, *width, Some(*format))?),
        Op::ExpertSum { x, k, shared, out } => link(5, &pointwise::expert_sum_args(cx, *x, *k, *shared, *out)),
        Op::HcMix { .. } => link(6, &hc::args(cx, op)?),
        Op::HcCollapse { .. } => link(7, &pointwise::streams_args(cx, op)?.1),
        Op::HcExpand { .. } => link(8, &pointwise::streams_args(cx, op)?.1),
        Op::Pool { .. } => link(9, &mixing::pool_args(cx, op)?),
        _ => return unsupported("this op in a chain"),
    };
    // Pooling is about the token, whether a row closes or not.
    link.rows = domain(op).map_or(0, |b| cx.buf(b).code);
    Ok(link)
}

/// Runs per block where a part's rows are shared out.
const RUNS: usize = 4;

/// Runs (heads) of an op's rows that it treats one by one and alike; 1 where it does not.
fn runs(plan: &Plan, op: &Op) -> usize {
    let width = |b: &BufId| plan.width(*b);
    match op {
        Op::Norm { x, group, .. } => width(x) / group,
        Op::Rope { x, heads, head_dim, .. } if heads * head_dim == width(x) => *heads,
        Op::Hadamard { x, width: w, .. } | Op::RoundTrip { x, width: w, .. } => width(x) / w,
        Op::CacheWrite { cache, .. } => match plan.caches[cache.index()].format {
            CacheFormat::F32 | CacheFormat::Bf16 => plan.caches[cache.index()].records,
            _ => 1,
        },
        _ => 1,
    }
}

/// A buffer or (true) a cache, by number.
type Place = (bool, usize);

/// The ops in parts that share neither a buffer nor a cache, each in order.
fn parts(plan: &Plan, origin: &[OpId]) -> Vec<Vec<OpId>> {
    let places = |id: &OpId| {
        let op = &plan.ops[id.index()].op;
        let mut all: Vec<Place> = fuse::reads(op).into_iter().map(|b| (false, b.index())).collect();
        all.extend(fuse::writes(op).into_iter().map(|b| (false, b.index())));
        if let Op::CacheWrite { cache, .. } | Op::Pool { state: cache, .. } = op {
            all.push((true, cache.index()));
        }
        all
    };
    let mut parts: Vec<(Vec<OpId>, Vec<Place>)> = Vec::new();
    for id in origin {
        let mine = places(id);
        let (with, without): (Vec<_>, Vec<_>) = parts
            .into_iter()
            .partition(|(_, theirs)| theirs.iter().any(|b| mine.contains(b)));
        let mut joined = (vec![*id], mine);
        for (ids, theirs) in with {
            joined.0.extend(ids);
            joined.1.extend(theirs);
        }
        joined.0.sort();
        parts = without;
        parts.push(joined);
    }
    parts.sort_by_key(|(ids, _)| ids[0]);
    parts.into_iter().map(|(ids, _)| ids).collect()
}

/// A chain's launch.
pub(super) struct Chain {
    pub args: ChainArgs,
    pub grid: [usize; 3],
    pub shared: usize,
}

impl Chain {
    /// Its blocks for one row.
    pub fn blocks(&self) -> usize {
        self.grid[1] * self.grid[2]
    }

    /// Enqueues it by itself.
    pub fn launch(&self, cx: &LaunchCx<'_>) -> Result<(), ExecError> {
        let threads = if self.grid[0] > MANY { MANY_THREADS } else { THREADS };
        launch(cx, "row_chain", self.grid, threads, self.shared, &self.args)
    }
}

/// Enqueues a chain.
pub(super) fn chain(cx: &LaunchCx<'_>, origin: &[OpId]) -> Result<(), ExecError> {
    if rope_write::takes(cx.plan, origin) {
        return rope_write::rope_write(cx, origin);
    }
    prepare(cx, origin)?.launch(cx)
}

/// Makes a chain ready to be launched.
pub(super) fn prepare(cx: &LaunchCx<'_>, origin: &[OpId]) -> Result<Chain, ExecError> {
    let ops = || origin.iter().map(|id| &cx.plan.ops[id.index()].op);
    let Some(rows) = ops().filter_map(domain).map(|b| cx.buf(b).rows).max() else {
        return unsupported("a chain of this op");
    };
    if let Some(op @ Op::HcMix { .. }) = ops().next() {
        hc::partial(cx, op)?;
    }
    let parts = parts(cx.plan, origin);
    let mut args = ChainArgs::zeroed();
    let mut at = 0;
    for (p, ids) in parts.iter().enumerate() {
        args.first[p] = at as u32;
        let mut runs_of = ids.iter().map(|id| runs(cx.plan, &cx.plan.ops[id.index()].op));
        let runs = runs_of.next().unwrap_or(1);
        let alike = runs_of.all(|n| n == runs);
        args.slices[p] = if alike { runs.div_ceil(RUNS) as u32 } else { 1 };
        for id in ids {
            args.links[at] = link_of(cx, *id)?;
            at += 1;
        }
    }
    args.first[parts.len()] = at as u32;
    (args.step, args.parts) = (cx.step, parts.len() as u32);
    let shared = ops().map(|op| match op {
        Op::Hadamard { width, .. } => 4 * width,
        _ => 0,
    });
    let shared = shared.max().unwrap_or(0);
    let slices = args.slices.iter().max().map_or(1, |n| *n as usize);
    Ok(Chain {
        args,
        grid: [rows, parts.len(), slices],
        shared,
    })
}
