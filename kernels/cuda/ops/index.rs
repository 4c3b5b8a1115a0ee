//! The lightning indexer: scores of compressed rows, and the choice of the best.

use bytemuck::{Pod, Zeroable};

use super::args::{CacheArg, launch, unsupported};
use super::fuse;
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::cuda::schedule::FEW;
use crate::ir::{BufId, CacheFormat, CacheId, ExecError, Op, OpId, Plan, Positions, RopeStyle};

/// Values of a head on tensor cores (`kDim` of `src/index_mma.cuh`); shared memory there per 16 heads: queries in two parts, as
/// fragments, and factors.
const MMA_DIM: usize = 128;
const MMA_SET: usize = 16 * MMA_DIM * 2 * 2 + 16 * 4;
/// Rows of a block there, and in `index_score`.
const MMA_ROWS: usize = 128;
const ROWS: usize = 64;
/// Blocks of a cluster that selects (`kNear`), and rows it has room for.
const NEAR: usize = 8;
const NEAR_ROWS: usize = NEAR * 4 * 4096;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct IndexScoreArgs {
    keys: CacheArg,
    q: DevPtr,
    weights: DevPtr,
    out: DevPtr,
    step: DevPtr,
    turn_freqs: DevPtr,
    heads: u32,
    dim: u32,
    rate: u32,
    skip: u32,
    width: u32,
    scale: f32,
    turn_offset: u32,
    turn_dims: u32,
    rounded: u32,
    pad: u32,
}

/// The kernels that score rows of this cache on tensor cores, where some do: and the one that chooses at once among few.
fn on_tensor_cores(plan: &Plan, keys: CacheId, heads: usize, dim: usize) -> Option<[&'static str; 2]> {
    let d = &plan.caches[keys.index()];
    let fits = dim == MMA_DIM && d.records == 1 && d.width == dim && d.rope == 0 && heads <= 64;
    let kernel = match d.format {
        CacheFormat::Bf16 => ["index_mma_bf16", "index_near_bf16"],
        CacheFormat::Fp8Model1 | CacheFormat::Fp8B64 => ["index_mma_fp8", "index_near_fp8"],
        CacheFormat::Fp4 => ["index_mma_fp4", "index_near_fp4"],
        CacheFormat::F32 | CacheFormat::Fp8V32 => return None,
    };
    fits.then_some(kernel)
}

/// What the launch of a score does besides: the rotation of its queries, whether they go through a Hadamard transform and FP4, and
/// the choice of rows: how many, and where they go.
#[derive(Default)]
struct Besides<'a> {
    rope: Option<&'a Op>,
    rounded: bool,
    choice: Option<(usize, BufId)>,
}

/// The ops from `first` on that go together: a rotation of queries, their rounding, the scores, the choice by them.
fn describe(plan: &Plan, first: usize) -> Option<(Besides<'_>, usize)> {
    let op = |i: usize| plan.ops.get(first + i).map(|o| &o.op);
    let rope = op(0)?;
    let Op::Rope {
        x,
        heads: h,
        head_dim,
        offset,
        dims,
        style: RopeStyle::Interleaved,
        positions: Positions::Tokens,
        inverse: false,
        ..
    } = rope
    else {
        return None;
    };
    let rounds = |i: usize| {
        let turned =
            matches!(op(i), Some(Op::Hadamard { x: y, width, rows: Positions::Tokens }) if y == x && width == head_dim);
        let four = matches!(op(i + 1), Some(Op::RoundTrip { x: y, width, format: CacheFormat::Fp4 }) if y == x && width == head_dim);
        turned && four
    };
    let rounded = rounds(1);
    let n = if rounded { 4 } else { 2 };
    let Some(Op::IndexScore {
        q,
        keys,
        heads,
        dim,
        rate,
        skip,
        out: scored,
        ..
    }) = op(n - 1)
    else {
        return None;
    };
    let choice = match op(n) {
        Some(Op::SelectTopK {
            scores,
            k,
            rate: of,
            out,
        }) if (scores, k, of) == (scored, skip, rate) && fuse::dead(plan, *scored, first + n + 1) => Some((*k, *out)),
        _ => None,
    };
    let same = q == x && heads == h && dim == head_dim && plan.width(*q) == heads * dim;
    let fits = offset.is_multiple_of(4) && dims.is_multiple_of(4) && plan.token_bucket <= FEW;
    let taken = on_tensor_cores(plan, *keys, *heads, *dim).is_some();
    (same && fits && taken && fuse::dead(plan, *q, first + n)).then_some((
        Besides {
            rope: Some(rope),
            rounded,
            choice,
        },
        n + usize::from(choice.is_some()),
    ))
}

/// How many ops from `first` on go together with a score; 0 = none.
pub(super) fn length(plan: &Plan, first: usize) -> usize {
    describe(plan, first).map_or(0, |(_, n)| n)
}

/// Enqueues such a group.
pub(super) fn group(cx: &LaunchCx<'_>, origin: &[OpId]) -> Result<(), ExecError> {
    let first = origin.first().map_or(0, |id| id.index());
    match describe(cx.plan, first).filter(|(_, n)| *n == origin.len()) {
        Some((besides, n)) => {
            let score = first + n - 1 - usize::from(besides.choice.is_some());
            scores(cx, &cx.plan.ops[score].op, &besides)
        }
        None => unsupported(format!("a group of {} ops as an indexer", origin.len())),
    }
}

/// Enqueues `IndexScore` by itself.
pub(super) fn score(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    scores(cx, op, &Besides::default())
}

fn scores(cx: &LaunchCx<'_>, op: &Op, besides: &Besides<'_>) -> Result<(), ExecError> {
    let Op::IndexScore {
        q,
        weights,
        keys,
        heads,
        dim,
        rate,
        scale,
        skip,
        out,
    } = op
    else {
        return unsupported("this op as an indexer");
    };
    if !dim.is_multiple_of(4) {
        return unsupported(format!("an indexer dimension of {dim} (multiples of 4)"));
    }
    let kernels = on_tensor_cores(cx.plan, *keys, *heads, *dim);
    let (scored, q, out) = (*out, cx.buf(*q), cx.buf(*out));
    let mut args = IndexScoreArgs {
        keys: CacheArg::of(&cx.cache(*keys)),
        q: q.ptr,
        weights: cx.buf(*weights).ptr,
        out: out.ptr,
        step: cx.step,
        heads: *heads as u32,
        dim: *dim as u32,
        rate: *rate as u32,
        skip: *skip as u32,
        width: out.width as u32,
        scale: *scale,
        rounded: u32::from(besides.rounded),
        ..IndexScoreArgs::zeroed()
    };
    if let Some(Op::Rope {
        table, offset, dims, ..
    }) = besides.rope
    {
        args.turn_freqs = cx.rope(*table).freqs;
        (args.turn_offset, args.turn_dims) = (*offset as u32, *dims as u32);
    }
    let shared = heads.div_ceil(16) * MMA_SET;
    // One sequence's few rows; several sequences share the launches that have a form for that.
    let alone = cx.device.info().clusters && cx.plan.token_bucket == 1 && cx.noted.is_none();
    if let (Some([_, near]), Some((_, chosen)), true) = (kernels, besides.choice, alone && out.width <= NEAR * MMA_ROWS)
    {
        let args = IndexSelectArgs {
            score: args,
            out: cx.buf(chosen).ptr,
        };
        return launch(cx, near, [NEAR, 1, 1], 256, shared, &args);
    }
    let blocks = out.width.div_ceil(if kernels.is_some() { MMA_ROWS } else { ROWS });
    // Few rows: the tokens are shared out over more blocks. Many tokens: 16 each, since the last rows are seen by few.
    let shares = q.rows.min(264usize.div_ceil(blocks.max(1)).max(q.rows / 16));
    match kernels {
        Some([kernel, _]) => launch(cx, kernel, [blocks, shares, 1], 256, shared, &args)?,
        None => {
            let shared = 4 * (ROWS * (dim + 4) + 16 * dim + 16 + 256);
            launch(cx, "index_score", [blocks, shares, 1], 256, shared, &args)?;
        }
    }
    match besides.choice {
        Some((k, chosen)) => select(cx, scored, k, *rate, chosen),
        None => Ok(()),
    }
}

/// What `index_near` is given.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct IndexSelectArgs {
    score: IndexScoreArgs,
    out: DevPtr,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SelectArgs {
    scores: DevPtr,
    out: DevPtr,
    step: DevPtr,
    width: u32,
    k: u32,
    rate: u32,
    pad: u32,
}

/// Rows that a block's threads hold in registers (`select_held_rows`).
const HELD_ROWS: usize = 1024 * 4 * 2;

/// Enqueues `SelectTopK`.
pub(super) fn select(cx: &LaunchCx<'_>, scores: BufId, k: usize, rate: usize, out: BufId) -> Result<(), ExecError> {
    let (scores, out) = (cx.buf(scores), cx.buf(out));
    let args = SelectArgs {
        scores: scores.ptr,
        out: out.ptr,
        step: cx.step,
        width: scores.width as u32,
        k: k as u32,
        rate: rate as u32,
        pad: 0,
    };
    let fours = scores.width > k && scores.width.is_multiple_of(4);
    if fours && scores.width <= HELD_ROWS {
        return launch(cx, "select_held", [out.rows, 1, 1], 1024, 0, &args);
    }
    let near = fours && scores.width <= NEAR_ROWS;
    if cx.device.info().clusters && near && out.rows <= FEW {
        return launch(cx, "select_near", [NEAR, out.rows, 1], 1024, 0, &args);
    }
    let block = scores.width.next_multiple_of(32).clamp(32, 1024);
    launch(cx, "select_top_k", [out.rows, 1, 1], block, 0, &args)
}
