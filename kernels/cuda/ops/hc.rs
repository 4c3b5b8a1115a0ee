//! mHC coefficients.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch, unsupported};
use super::pointwise::MAX_STREAMS;
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{ExecError, Op, Plan};

/// Values of the width per block (`kHcSlice`).
const SLICE: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct HcMixArgs {
    matrix: WeightArg,
    base: WeightArg,
    scale: WeightArg,
    x: DevPtr,
    partial: DevPtr,
    pre: DevPtr,
    post: DevPtr,
    comb: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    n: u32,
    outputs: u32,
    iterations: u32,
    eps: f32,
    norm_eps: f32,
    slices: u32,
}

pub(super) fn args(cx: &LaunchCx<'_>, op: &Op) -> Result<HcMixArgs, ExecError> {
    let Op::HcMix {
        x,
        matrix,
        base,
        scale,
        pre,
        post,
        comb,
        streams,
        iterations,
        eps,
        norm_eps,
    } = op
    else {
        return unsupported("this op as stream mixing");
    };
    if *streams > MAX_STREAMS {
        return unsupported(format!("{streams} residual streams (at most {MAX_STREAMS})"));
    }
    let x = cx.buf(*x);
    let matrix = WeightArg::get(cx, *matrix);
    Ok(HcMixArgs {
        matrix,
        base: WeightArg::get(cx, *base),
        scale: WeightArg::get(cx, *scale),
        x: x.ptr,
        partial: cx.scratch,
        pre: cx.buf(*pre).ptr,
        post: post.map_or(0, |b| cx.buf(b).ptr),
        comb: comb.map_or(0, |b| cx.buf(b).ptr),
        step: cx.step,
        rows: x.code,
        width: x.width as u32,
        n: *streams as u32,
        outputs: matrix.rows,
        iterations: *iterations as u32,
        eps: *eps,
        norm_eps: *norm_eps,
        slices: x.width.div_ceil(SLICE) as u32,
    })
}

/// The products of the streams with the mixing matrix, slice by slice; a chain finishes them.
pub(super) fn partial(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let (Op::HcMix { x, .. }, args) = (op, args(cx, op)?) else {
        return unsupported("this op as stream mixing");
    };
    let rows = cx.buf(*x).rows;
    launch(cx, "hc_partial", [args.slices as usize, rows, 1], 256, 0, &args)
}

/// Working memory, bytes.
pub(super) fn scratch_bytes(plan: &Plan, op: &Op) -> usize {
    let Op::HcMix { x, matrix, .. } = op else { return 0 };
    let width = plan.width(*x);
    let rows = plan.buffer_len(*x) / width.max(1);
    4 * rows * width.div_ceil(SLICE) * (plan.weight(*matrix).rows + 1)
}
