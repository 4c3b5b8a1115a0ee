//! Caches, rounding, compressor, router, sampler.

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
pub(super) struct PoolArgs {
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

pub(super) fn pool_args(cx: &LaunchCx<'_>, op: &Op) -> Result<PoolArgs, ExecError> {
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
    Ok(PoolArgs {
        ape: WeightArg::get(cx, *ape),
        kv: kv.ptr,
        gate: gate.ptr,
        state: cx.cache(*state).data,
        out: out.ptr,
        step: cx.step,
        c: kv.width as u32,
        d: out.width as u32,
        rate: *rate as u32,
        slots: (rate * if *overlap { 2 } else { 1 }) as u32,
    })
}

pub(super) fn pool(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let (Op::Pool { kv, out, .. }, args) = (op, pool_args(cx, op)?) else {
        return unsupported("this op as pooling");
    };
    let (kv, out) = (cx.buf(*kv), cx.buf(*out));
    if cx.plan.token_bucket == 1 {
        return launch(cx, "pool_one", [kv.width.div_ceil(64), 1, 1], 64, 0, &args);
    }
    launch(cx, "pool_rows", [out.width.div_ceil(64), out.rows, 1], 64, 0, &args)?;
    let grid = [kv.width.div_ceil(256), (args.slots as usize).min(kv.rows), 1];
    launch(cx, "pool_state", grid, 256, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RouteArgs {
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

/// `copy`: where the choice is noted for telemetry, 0 = nowhere.
pub(super) fn route_args(cx: &LaunchCx<'_>, op: &Op, copy: DevPtr) -> Result<RouteArgs, ExecError> {
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
    Ok(RouteArgs {
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
    })
}

pub(super) fn route(cx: &LaunchCx<'_>, op: &Op, copy: DevPtr) -> Result<(), ExecError> {
    let (Op::Route { logits, k, .. }, args) = (op, route_args(cx, op, copy)?) else {
        return unsupported("this op as a router");
    };
    let logits = cx.buf(*logits);
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
const SHARES: usize = 128;
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
    let scan = logits.width.div_ceil(SHARES).next_multiple_of(32).clamp(32, 256);
    launch(cx, "sample_scan", [SHARES, 1, 1], scan, 0, &args)?;
    let block = logits.width.next_multiple_of(32).clamp(SHARES, 1024);
    launch(cx, "sample_token", [1, 1, 1], block, 0, &args)
}
