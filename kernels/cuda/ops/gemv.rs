//! Products for up to 8 tokens, with what can be done on the way: a norm of the input, several matrices of one input, a
//! residual or a gate on the output.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::pointwise::activation_code;
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{Activation, BufId, ExecError, Format, Layout, Plan, WeightDesc, WeightId};

/// Matrices per launch (`kSegments`).
pub(super) const SEGMENTS: usize = 8;
/// Most tokens of a step these kernels are for.
pub(super) const TOKENS: usize = 8;
/// Warps of a block.
const WARPS: usize = 8;
/// Blocks per multiprocessor.
const BLOCKS: usize = 2;
/// Floats of x kept in shared memory: below the 48 KiB every launch may ask for.
const STAGED: usize = 12288;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SegmentArg {
    data: DevPtr,
    scales: DevPtr,
    bias: WeightArg,
    out: DevPtr,
    rows: u32,
    out_stride: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemvArgs {
    segments: [SegmentArg; SEGMENTS],
    w: WeightArg,
    norm: WeightArg,
    x: DevPtr,
    residual: DevPtr,
    slot_weights: DevPtr,
    step: DevPtr,
    experts: DevPtr,
    partners: DevPtr,
    chosen: DevPtr,
    tokens: u32,
    x_stride: u32,
    n_segments: u32,
    rows: u32,
    group_rows: u32,
    k: u32,
    per_slot: u32,
    normed: u32,
    glu: u32,
    activation: u32,
    limit: f32,
    eps: f32,
    tile: u32,
    pad: u32,
}

/// One matrix of a launch.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub weight: WeightId,
    pub bias: Option<WeightId>,
    pub out: BufId,
}

/// Experts instead of fixed matrices.
#[derive(Clone, Copy)]
pub(super) struct Experts {
    /// Table of the first product's experts.
    pub table: DevPtr,
    /// Table of the second product's (the up half of a gate).
    pub partners: DevPtr,
    /// `[tokens, k]`
    pub chosen: BufId,
    pub k: usize,
    pub per_slot: bool,
    /// `[tokens, k]`, multiplies what a gate gives.
    pub weights: Option<BufId>,
}

/// A launch.
#[derive(Clone, Default)]
pub(super) struct Project {
    pub products: Vec<Product>,
    /// RMSNorm of x on the way: its weight and eps.
    pub norm: Option<(Option<WeightId>, f32)>,
    /// Added to the first product's output.
    pub residual: Option<BufId>,
    /// Two products are gate and up; `out` of the first gets activation(gate) * up.
    pub glu: Option<(Activation, Option<f32>)>,
    pub groups: usize,
    pub experts: Option<Experts>,
}

/// Kernels by tokens and outputs per warp, and values per chunk (see `chunks.cuh`).
fn kernels_of(format: Format) -> Option<([&'static str; 3], usize)> {
    Some(match format {
        Format::F32 => (["gemv_f32_1x1", "gemv_f32_1x2", "gemv_f32_8x2"], 4),
        Format::F16 => (["gemv_f16_1x1", "gemv_f16_1x2", "gemv_f16_8x2"], 8),
        Format::Bf16 => (["gemv_bf16_1x1", "gemv_bf16_1x2", "gemv_bf16_8x2"], 8),
        Format::F8E4m3 => (["gemv_f8_1x1", "gemv_f8_1x2", "gemv_f8_8x2"], 16),
        Format::Fp4E2m1 => (["gemv_fp4_1x1", "gemv_fp4_1x2", "gemv_fp4_8x2"], 32),
        Format::Q8_0 => (["gemv_q8_0_1x1", "gemv_q8_0_1x2", "gemv_q8_0_8x2"], 32),
        Format::Q4_0 => (["gemv_q4_0_1x1", "gemv_q4_0_1x2", "gemv_q4_0_8x2"], 32),
        Format::Q4_1 => (["gemv_q4_1_1x1", "gemv_q4_1_1x2", "gemv_q4_1_8x2"], 32),
        Format::Q5_0 => (["gemv_q5_0_1x1", "gemv_q5_0_1x2", "gemv_q5_0_8x2"], 32),
        Format::Q4K => (["gemv_q4_k_1x1", "gemv_q4_k_1x2", "gemv_q4_k_8x2"], 32),
        Format::Q6K => (["gemv_q6_k_1x1", "gemv_q6_k_1x2", "gemv_q6_k_8x2"], 32),
        Format::I32 | Format::I64 => return None,
    })
}

/// Whether a matrix can be read chunk by chunk.
pub(super) fn takes(d: &WeightDesc) -> bool {
    let Some((_, len)) = kernels_of(d.format) else {
        return false;
    };
    let scales = d.scales.is_none_or(|s| s.block_cols.is_multiple_of(len));
    d.layout == Layout::OutIn && d.cols > 0 && d.cols.is_multiple_of(len) && scales
}

/// Whether two matrices can share a launch.
pub(super) fn alike(a: &WeightDesc, b: &WeightDesc) -> bool {
    a.format == b.format && a.cols == b.cols && a.layout == b.layout && a.scales == b.scales
}

/// Whether a block-diagonal product fits: a warp's outputs must be of one group.
pub(super) fn takes_groups(plan: &Plan, weight: WeightId, groups: usize) -> bool {
    let d = plan.weight(weight);
    takes(d) && (d.rows / groups).is_multiple_of(2)
}

pub(super) fn project(cx: &LaunchCx<'_>, x: BufId, p: &Project) -> Result<(), ExecError> {
    let x = cx.buf(x);
    let first = cx.weight(p.products[0].weight);
    let Some((kernels, len)) = kernels_of(first.desc.format) else {
        return super::args::unsupported(format!("format {} in a fast product", first.desc.format));
    };
    let mut args = GemvArgs::zeroed();
    let mut rows = 0;
    for (s, product) in args.segments.iter_mut().zip(&p.products) {
        let (w, out) = (cx.weight(product.weight), cx.buf(product.out));
        *s = SegmentArg {
            data: w.data,
            scales: if w.desc.scales.is_some() { w.scales } else { 0 },
            bias: WeightArg::optional(cx, product.bias),
            out: out.ptr,
            rows: w.desc.rows as u32,
            out_stride: out.width as u32,
        };
        rows += w.desc.rows;
    }
    args.w = WeightArg::of(&first);
    (args.x, args.step, args.tokens, args.x_stride) = (x.ptr, cx.step, x.code, x.width as u32);
    args.n_segments = p.products.len() as u32;
    args.residual = p.residual.map_or(0, |b| cx.buf(b).ptr);
    if let Some((weight, eps)) = p.norm {
        (args.normed, args.norm, args.eps) = (1, WeightArg::optional(cx, weight), eps);
    }
    args.group_rows = rows.checked_div(p.groups).unwrap_or(0) as u32;
    args.limit = f32::INFINITY;
    if let Some((activation, limit)) = p.glu {
        rows = first.desc.rows;
        (args.glu, args.activation) = (1, activation_code(activation));
        args.limit = limit.unwrap_or(f32::INFINITY);
    }
    args.k = 1;
    let mut slots = None;
    if let Some(e) = p.experts {
        (args.experts, args.partners, args.chosen) = (e.table, e.partners, cx.buf(e.chosen).ptr);
        (args.k, args.per_slot) = (e.k as u32, u32::from(e.per_slot));
        args.slot_weights = e.weights.map_or(0, |b| cx.buf(b).ptr);
        slots = Some(x.rows * e.k);
    }
    args.rows = rows as u32;
    let few = x.rows == 1 || slots.is_some();
    // Two outputs per warp where there are enough of them for every multiprocessor anyway.
    let (kernel, tokens, per_warp) = match (few, p.glu.is_some() || rows * slots.unwrap_or(1) >= 1 << 13) {
        (true, false) => (kernels[0], 1, 1),
        (true, true) => (kernels[1], 1, 2),
        (false, _) => (kernels[2], TOKENS, 2),
    };
    let units = if p.glu.is_some() { rows } else { rows.div_ceil(per_warp) };
    let groups = p.groups.max(1);
    let step = 32 * len;
    let tile = first
        .desc
        .cols
        .next_multiple_of(step)
        .min(STAGED / tokens / step * step);
    args.tile = tile as u32;
    let rows_of_blocks = slots.unwrap_or(x.rows.div_ceil(tokens));
    // As many blocks as run at once, so that each reads x once; they share the units evenly. Where x passes through shared
    // memory in several tiles a warp can have one unit alone.
    let least = (units / groups).div_ceil(WARPS);
    let resident = (BLOCKS * cx.device.info().multiprocessors as usize).div_ceil(groups * rows_of_blocks);
    let blocks = if first.desc.cols > tile {
        least
    } else {
        resident.clamp(1, (units / groups).max(1))
    };
    launch(
        cx,
        kernel,
        [blocks * groups, rows_of_blocks, 1],
        32 * WARPS,
        4 * tokens * tile,
        &args,
    )
}
