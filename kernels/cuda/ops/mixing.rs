//! Caches, compressor, indexer, router, stream mixing, sampler.

use bytemuck::{Pod, Zeroable};

use super::args::{CacheArg, WeightArg, launch, unsupported};
use crate::cuda::cx::{LaunchCx, cache_code, closed_rate};
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, CacheFormat, CacheId, ExecError, Op, Positions, Scoring};

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct CacheWriteArgs {
    cache: CacheArg,
    src: DevPtr,
    step: DevPtr,
    stats: DevPtr,
    src_rows: u32,
    rate: u32,
}

pub(super) fn cache_write_args(
    cx: &LaunchCx<'_>,
    src: BufId,
    cache: CacheId,
    rows: Positions,
    stats: DevPtr,
) -> CacheWriteArgs {
    let src = cx.buf(src);
    CacheWriteArgs {
        cache: CacheArg::of(&cx.cache(cache)),
        src: src.ptr,
        step: cx.step,
        stats,
        src_rows: src.code,
        rate: closed_rate(rows),
    }
}

pub(super) fn cache_write(
    cx: &LaunchCx<'_>,
    src: BufId,
    cache: CacheId,
    rows: Positions,
    stats: DevPtr,
) -> Result<(), ExecError> {
    let args = cache_write_args(cx, src, cache, rows, stats);
    launch(cx, "cache_write", [cx.buf(src).rows, 1, 1], 256, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RunsArgs {
    x: DevPtr,
    step: DevPtr,
    rows: u32,
    runs: u32,
    width: u32,
    format: u32,
}

pub(super) fn runs_args(
    cx: &LaunchCx<'_>,
    x: BufId,
    width: usize,
    format: Option<CacheFormat>,
) -> Result<RunsArgs, ExecError> {
    match format {
        Some(f @ (CacheFormat::Fp8Model1 | CacheFormat::Fp8V32)) => {
            return unsupported(format!("rounding to {} without a cache", f.name()));
        }
        None if !width.is_power_of_two() => return unsupported(format!("a Hadamard transform of {width} values")),
        _ => {}
    }
    let x = cx.buf(x);
    Ok(RunsArgs {
        x: x.ptr,
        step: cx.step,
        rows: x.code,
        runs: (x.width / width) as u32,
        width: width as u32,
        format: format.map_or(0, cache_code),
    })
}

/// `RoundTrip` in a format, or `Hadamard` without one.
pub(super) fn runs(cx: &LaunchCx<'_>, x: BufId, width: usize, format: Option<CacheFormat>) -> Result<(), ExecError> {
    let args = runs_args(cx, x, width, format)?;
    let x = cx.buf(x);
    let grid = [x.width / width, x.rows, 1];
    match format {
        Some(_) => launch(cx, "round_trip", grid, 128, 0, &args),
        None => launch(cx, "hadamard", grid, 128, 4 * width, &args),
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PoolArgs {
    ape: WeightArg,
    kv: DevPtr,
    gate: DevPtr,
    state: DevPtr,
    out: DevPtr,
    step: DevPtr,
    c: u32,
    d: u32,
    rate: u32,
    slots: u32,
}

pub(super) fn pool(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let Op::Pool {
        kv,
        gate,
        ape,
        state,
        out,
        rate,
        overlap,
    } = op
    else {
        return unsupported("this op as pooling");
    };
    let (kv, gate, out) = (cx.buf(*kv), cx.buf(*gate), cx.buf(*out));
    let slots = rate * if *overlap { 2 } else { 1 };
    let args = PoolArgs {
        ape: WeightArg::get(cx, *ape),
        kv: kv.ptr,
        gate: gate.ptr,
        state: cx.cache(*state).data,
        out: out.ptr,
        step: cx.step,
        c: kv.width as u32,
        d: out.width as u32,
        rate: *rate as u32,
        slots: slots as u32,
    };
    if cx.plan.token_bucket == 1 {
        return launch(cx, "pool_one", [kv.width.div_ceil(64), 1, 1], 64, 0, &args);
    }
    launch(cx, "pool_rows", [out.width.div_ceil(64), out.rows, 1], 64, 0, &args)?;
    let grid = [kv.width.div_ceil(256), slots.min(kv.rows), 1];
    launch(cx, "pool_state", grid, 256, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct IndexScoreArgs {
    keys: CacheArg,
    q: DevPtr,
    weights: DevPtr,
    out: DevPtr,
    step: DevPtr,
    heads: u32,
    dim: u32,
    rate: u32,
    skip: u32,
    width: u32,
    scale: f32,
}

pub(super) fn index_score(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
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
    let (q, out) = (cx.buf(*q), cx.buf(*out));
    let args = IndexScoreArgs {
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
    };
    let blocks = out.width.div_ceil(64);
    // Few rows: the tokens are shared out over more blocks. Many tokens: 16 each, since the last rows are seen by few.
    let shares = q.rows.min(264usize.div_ceil(blocks.max(1)).max(q.rows / 16));
    let shared = 4 * (64 * (dim + 4) + 16 * dim + 16 + 256);
    launch(cx, "index_score", [blocks, shares, 1], 256, shared, &args)
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
    let block = scores.width.next_multiple_of(32).clamp(32, 1024);
    launch(cx, "select_top_k", [out.rows, 1, 1], block, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RouteArgs {
    bias: WeightArg,
    table: WeightArg,
    logits: DevPtr,
    out_experts: DevPtr,
    copy: DevPtr,
    out_weights: DevPtr,
    ids: DevPtr,
    step: DevPtr,
    experts: u32,
    k: u32,
    scoring: u32,
    normalise: u32,
    factor: f32,
    pad: u32,
}

pub(super) fn route(cx: &LaunchCx<'_>, op: &Op, copy: DevPtr) -> Result<(), ExecError> {
    let Op::Route {
        logits,
        bias,
        table,
        scoring,
        k,
        normalise,
        factor,
        out_experts,
        out_weights,
    } = op
    else {
        return unsupported("this op as a router");
    };
    let logits = cx.buf(*logits);
    if logits.width > 1024 {
        return unsupported(format!("{} experts (at most 1024)", logits.width));
    }
    let args = RouteArgs {
        bias: WeightArg::optional(cx, *bias),
        table: WeightArg::optional(cx, *table),
        logits: logits.ptr,
        out_experts: cx.buf(*out_experts).ptr,
        copy,
        out_weights: cx.buf(*out_weights).ptr,
        ids: cx.ids,
        step: cx.step,
        experts: logits.width as u32,
        k: *k as u32,
        scoring: match scoring {
            Scoring::SqrtSoftplus => 0,
            Scoring::Sigmoid => 1,
            Scoring::Softmax => 2,
        },
        normalise: u32::from(*normalise),
        factor: *factor,
        pad: 0,
    };
    if logits.width.max(*k) <= 32 {
        return launch(cx, "route_few", [logits.rows, 1, 1], 32, 0, &args);
    }
    launch(cx, "route", [logits.rows, 1, 1], 128, 8 * logits.width, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SampleArgs {
    logits: DevPtr,
    adjusted: DevPtr,
    counts: DevPtr,
    history: DevPtr,
    sampler: DevPtr,
    sampled: DevPtr,
    step: DevPtr,
    shares: DevPtr,
    rows: u32,
    vocab: u32,
}

/// Working memory of the sampler for a vocabulary, bytes.
pub(super) fn sample_scratch(vocab: usize) -> usize {
    SHARES * SHARE_BYTES + 8 * vocab
}

/// Blocks that scan the logits (`kSampleBlocks`), and the bytes of what each finds (`SampleShare`).
const SHARES: usize = 64;
const SHARE_BYTES: usize = 24;

pub(super) fn sample(cx: &LaunchCx<'_>, logits: BufId) -> Result<(), ExecError> {
    let logits = cx.buf(logits);
    let args = SampleArgs {
        logits: logits.ptr,
        adjusted: cx.scratch + (SHARES * SHARE_BYTES) as u64,
        counts: cx.scratch + (SHARES * SHARE_BYTES + 4 * logits.width) as u64,
        history: cx.history,
        sampler: cx.sampler,
        sampled: cx.sampled,
        step: cx.step,
        shares: cx.scratch,
        rows: logits.code,
        vocab: logits.width as u32,
    };
    let scan = logits.width.div_ceil(SHARES).next_multiple_of(32).clamp(32, 1024);
    launch(cx, "sample_scan", [SHARES, 1, 1], scan, 0, &args)?;
    let block = logits.width.next_multiple_of(32).clamp(64, 1024);
    launch(cx, "sample_token", [1, 1, 1], block, 0, &args)
}
