//! Chains: consecutive ops that work on rows one by one, in one launch, a block per row.

use bytemuck::{Pod, Zeroable, bytes_of};

use super::args::{launch, unsupported};
use super::{hc, mixing, pointwise};
use crate::cuda::cx::{LaunchCx, rows_code};
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, ExecError, Op, OpId, Plan};

/// Ops of a chain (`kLinks`).
pub(super) const LINKS: usize = 8;
/// Room for a parameter struct (`kLinkBytes`).
const BYTES: usize = 240;
/// Threads of a block.
const THREADS: usize = 512;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct LinkArg {
    kind: u32,
    pad: u32,
    args: [u64; BYTES / 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ChainArgs {
    links: [LinkArg; LINKS],
    step: DevPtr,
    rows: u32,
    n: u32,
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
        _ => None,
    }
}

/// How many ops from `first` on make a chain (0: that op is none of a chain).
pub(super) fn length(plan: &Plan, first: usize) -> usize {
    let code = |i: usize| {
        let op = &plan.ops.get(i)?.op;
        domain(op).map(|b| rows_code(plan, plan.buffers[b.index()].rows))
    };
    let Some(rows) = code(first) else { return 0 };
    // The mixing matrix takes a launch of its own first, so that it can only begin a chain.
    (first..plan.ops.len().min(first + LINKS))
        .take_while(|&i| code(i) == Some(rows) && (i == first || !matches!(plan.ops[i].op, Op::HcMix { .. })))
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
    Ok(match op {
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
        _ => return unsupported("this op in a chain"),
    })
}

/// Enqueues a chain.
pub(super) fn chain(cx: &LaunchCx<'_>, origin: &[OpId]) -> Result<(), ExecError> {
    let ops = || origin.iter().map(|id| &cx.plan.ops[id.index()].op);
    let Some(rows) = ops().next().and_then(domain).map(|b| cx.buf(b)) else {
        return unsupported("a chain of this op");
    };
    if let Some(op @ Op::HcMix { .. }) = ops().next() {
        hc::partial(cx, op)?;
    }
    let mut args = ChainArgs::zeroed();
    for (slot, id) in args.links.iter_mut().zip(origin) {
        *slot = link_of(cx, *id)?;
    }
    (args.step, args.rows, args.n) = (cx.step, rows.code, origin.len() as u32);
    let shared = ops().map(|op| match op {
        Op::Hadamard { width, .. } => 4 * width,
        _ => 0,
    });
    let shared = shared.max().unwrap_or(0);
    launch(cx, "row_chain", [rows.rows, 1, 1], THREADS, shared, &args)
}
