//! Launches of `pointwise.cu`, `norm.cu`, `rope.cu`.

use bytemuck::{Pod, Zeroable};

use super::args::{POINTWISE, WeightArg, launch, pointwise, unsupported};
use crate::cuda::cx::{DevBuf, LaunchCx, closed_rate};
use crate::cuda::device::DevPtr;
use crate::ir::{Activation, BufId, ExecError, NormKind, Op, RopeStyle, WeightId};

/// Most parallel streams the mHC kernels take.
pub(super) const MAX_STREAMS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedArgs {
    table: WeightArg,
    step: DevPtr,
    ids: DevPtr,
    out: DevPtr,
    width: u32,
    copies: u32,
}

pub(super) fn embed(cx: &LaunchCx<'_>, table: WeightId, out: BufId, copies: usize) -> Result<(), ExecError> {
    let (table, out) = (WeightArg::get(cx, table), cx.buf(out));
    let args = EmbedArgs {
        table,
        step: cx.step,
        ids: cx.ids,
        out: out.ptr,
        width: table.cols,
        copies: copies as u32,
    };
    launch(
        cx,
        "embed",
        pointwise(table.cols as usize, out.rows),
        POINTWISE,
        0,
        &args,
    )
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedPositionArgs {
    table: WeightArg,
    step: DevPtr,
    x: DevPtr,
    width: u32,
    pad: u32,
}

pub(super) fn embed_position(cx: &LaunchCx<'_>, table: WeightId, x: BufId) -> Result<(), ExecError> {
    let x = cx.buf(x);
    let args = EmbedPositionArgs {
        table: WeightArg::get(cx, table),
        step: cx.step,
        x: x.ptr,
        width: x.width as u32,
        pad: 0,
    };
    launch(cx, "embed_position", pointwise(x.width, x.rows), POINTWISE, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RowsArgs {
    x: DevPtr,
    y: DevPtr,
    out: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    x_width: u32,
    offset: u32,
}

/// `Add`.
pub(super) fn add(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    match op {
        Op::Add { x, y, out } => rows(cx, "add", *x, Some(*y), *out, 0),
        _ => unsupported("this op as a sum"),
    }
}

/// `add`, `slice` and `take_output`.
pub(super) fn rows(
    cx: &LaunchCx<'_>,
    kernel: &'static str,
    x: BufId,
    y: Option<BufId>,
    out: BufId,
    offset: usize,
) -> Result<(), ExecError> {
    let (x, out) = (cx.buf(x), cx.buf(out));
    let args = RowsArgs {
        x: x.ptr,
        y: y.map_or(0, |y| cx.buf(y).ptr),
        out: out.ptr,
        step: cx.step,
        rows: out.code,
        width: out.width as u32,
        x_width: x.width as u32,
        offset: offset as u32,
    };
    launch(cx, kernel, pointwise(out.width, out.rows), POINTWISE, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GluArgs {
    gate: DevPtr,
    up: DevPtr,
    out: DevPtr,
    row_weights: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    parts: u32,
    activation: u32,
    limit: f32,
    pad: u32,
}

/// Number of an activation in `common.cuh`.
pub(super) fn activation_code(a: Activation) -> u32 {
    match a {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Relu2 => 4,
        Activation::Identity => 5,
    }
}

/// `Glu`, and `Activate` as a gate without a partner.
pub(super) fn glu(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let (gate, up, out, activation, limit, row_weights) = match op {
        Op::Glu {
            gate,
            up,
            out,
            activation,
            limit,
            row_weights,
        } => (*gate, Some(*up), *out, *activation, *limit, *row_weights),
        Op::Activate { x, activation } => (*x, None, *x, *activation, None, None),
        _ => return unsupported("this op as a gate"),
    };
    let (gate, out) = (cx.buf(gate), cx.buf(out));
    let args = GluArgs {
        gate: gate.ptr,
        up: up.map_or(0, |b| cx.buf(b).ptr),
        out: out.ptr,
        row_weights: row_weights.map_or(0, |b| cx.buf(b).ptr),
        step: cx.step,
        rows: gate.code,
        width: gate.width as u32,
        parts: row_weights.map_or(1, |b| cx.buf(b).width) as u32,
        activation: activation_code(activation),
        limit: limit.unwrap_or(f32::INFINITY),
        pad: 0,
    };
    launch(cx, "glu", pointwise(gate.width, gate.rows), POINTWISE, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct ExpertSumArgs {
    x: DevPtr,
    shared: DevPtr,
    out: DevPtr,
    step: DevPtr,
    k: u32,
    width: u32,
}

pub(super) fn expert_sum_args(
    cx: &LaunchCx<'_>,
    x: BufId,
    k: usize,
    shared: Option<BufId>,
    out: BufId,
) -> ExpertSumArgs {
    let out = cx.buf(out);
    ExpertSumArgs {
        x: cx.buf(x).ptr,
        shared: shared.map_or(0, |s| cx.buf(s).ptr),
        out: out.ptr,
        step: cx.step,
        k: k as u32,
        width: out.width as u32,
    }
}

pub(super) fn expert_sum(
    cx: &LaunchCx<'_>,
    x: BufId,
    k: usize,
    shared: Option<BufId>,
    out: BufId,
) -> Result<(), ExecError> {
    let args = expert_sum_args(cx, x, k, shared, out);
    let out = cx.buf(out);
    launch(cx, "expert_sum", pointwise(out.width, out.rows), POINTWISE, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct StreamsArgs {
    x: DevPtr,
    o: DevPtr,
    pre: DevPtr,
    post: DevPtr,
    comb: DevPtr,
    out: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    n: u32,
    pad: u32,
}

/// Kernel, buffer of plain width and arguments of `HcCollapse` and `HcExpand`.
pub(super) fn streams_args(cx: &LaunchCx<'_>, op: &Op) -> Result<((&'static str, DevBuf), StreamsArgs), ExecError> {
    let ptr = |id: BufId| cx.buf(id).ptr;
    let (kernel, plain, n, mut args) = match op {
        Op::HcCollapse { x, pre, streams, out } => {
            let mut args = StreamsArgs::zeroed();
            (args.x, args.pre, args.out) = (ptr(*x), ptr(*pre), ptr(*out));
            ("hc_collapse", cx.buf(*out), *streams, args)
        }
        Op::HcExpand {
            o,
            x,
            post,
            comb,
            streams,
        } => {
            let mut args = StreamsArgs::zeroed();
            (args.o, args.x, args.post, args.comb) = (ptr(*o), ptr(*x), ptr(*post), ptr(*comb));
            ("hc_expand", cx.buf(*o), *streams, args)
        }
        _ => return unsupported("this op on streams"),
    };
    if n > MAX_STREAMS {
        return unsupported(format!("{n} residual streams (at most {MAX_STREAMS})"));
    }
    args.step = cx.step;
    (args.rows, args.width, args.n) = (plain.code, plain.width as u32, n as u32);
    Ok(((kernel, plain), args))
}

/// `HcCollapse` and `HcExpand`.
pub(super) fn streams(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let ((kernel, plain), args) = streams_args(cx, op)?;
    launch(cx, kernel, pointwise(plain.width, plain.rows), POINTWISE, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct NormArgs {
    weight: WeightArg,
    bias: WeightArg,
    x: DevPtr,
    out: DevPtr,
    step: DevPtr,
    rows: u32,
    groups: u32,
    group: u32,
    layer: u32,
    eps: f32,
    pad: u32,
}

pub(super) fn norm_args(cx: &LaunchCx<'_>, op: &Op) -> Result<NormArgs, ExecError> {
    let Op::Norm {
        kind,
        x,
        weight,
        bias,
        out,
        group,
        eps,
    } = op
    else {
        return unsupported("this op as a norm");
    };
    let (x, out) = (cx.buf(*x), cx.buf(*out));
    let groups = x.width / group;
    Ok(NormArgs {
        weight: WeightArg::optional(cx, *weight),
        bias: WeightArg::optional(cx, *bias),
        x: x.ptr,
        out: out.ptr,
        step: cx.step,
        rows: x.code,
        groups: groups as u32,
        group: *group as u32,
        layer: u32::from(*kind == NormKind::Layer),
        eps: *eps,
        pad: 0,
    })
}

pub(super) fn norm(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let (Op::Norm { x, group, .. }, args) = (op, norm_args(cx, op)?) else {
        return unsupported("this op as a norm");
    };
    let x = cx.buf(*x);
    // Four values per thread, more where there are many: rows are latency, not bandwidth (12,288 values took 50 us with 256
    // threads).
    let block = (group / 4).next_power_of_two().clamp(32, 1024);
    launch(cx, "norm_rows", [x.width / group, x.rows, 1], block, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct RopeArgs {
    x: DevPtr,
    freqs: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    heads: u32,
    head_dim: u32,
    offset: u32,
    dims: u32,
    half: u32,
    rate: u32,
    inverse: u32,
    pad: u32,
}

pub(super) fn rope_args(cx: &LaunchCx<'_>, op: &Op) -> Result<RopeArgs, ExecError> {
    let Op::Rope {
        x,
        heads,
        head_dim,
        offset,
        dims,
        style,
        table,
        positions,
        inverse,
    } = op
    else {
        return unsupported("this op as a rotation");
    };
    if *dims > 512 {
        return unsupported(format!("{dims} rotated values per head (at most 512)"));
    }
    let x = cx.buf(*x);
    Ok(RopeArgs {
        x: x.ptr,
        freqs: cx.rope(*table).freqs,
        step: cx.step,
        rows: x.code,
        width: x.width as u32,
        heads: *heads as u32,
        head_dim: *head_dim as u32,
        offset: *offset as u32,
        dims: *dims as u32,
        half: u32::from(*style == RopeStyle::Half),
        rate: closed_rate(*positions),
        inverse: u32::from(*inverse),
        pad: 0,
    })
}

pub(super) fn rope(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let (Op::Rope { x, heads, dims, .. }, args) = (op, rope_args(cx, op)?) else {
        return unsupported("this op as a rotation");
    };
    let block = (heads * dims / 2).next_multiple_of(32).clamp(32, 256);
    launch(cx, "rope", [cx.buf(*x).rows, 1, 1], block, 0, &args)
}
