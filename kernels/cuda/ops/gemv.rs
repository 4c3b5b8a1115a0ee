//! Products for up to 8 tokens, with what can be done on the way: a norm of the input, several matrices of one input, a
//! residual or a gate on the output.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::gemv_mma;
use super::pointwise::activation_code;
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{Activation, BufId, ExecError, Format, Layout, Plan, WeightDesc, WeightId};

/// Matrices per launch (`kSegments`).
pub(super) const SEGMENTS: usize = 8;
/// Most tokens of a step these kernels are for.
pub(super) const TOKENS: usize = 8;
/// Warps of a block.
pub(super) const WARPS: usize = 8;
/// Blocks per multiprocessor.
pub(super) const BLOCKS: usize = 2;
/// Floats of x kept in shared memory: below the 48 KiB every launch may ask for.
const STAGED: usize = 12288;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct SegmentArg {
    data: DevPtr,
    scales: DevPtr,
    bias: WeightArg,
    out: DevPtr,
    pub rows: u32,
    out_stride: u32,
    pub blocks: u32,
    pub each: u32,
    pub more: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct GemvArgs {
    pub segments: [SegmentArg; SEGMENTS],
    w: WeightArg,
    norm: WeightArg,
    x: DevPtr,
    residual: DevPtr,
    slot_weights: DevPtr,
    step: DevPtr,
    experts: DevPtr,
    partners: DevPtr,
    chosen: DevPtr,
    beside: DevPtr,
    tokens: u32,
    x_stride: u32,
    pub n_segments: u32,
    pub rows: u32,
    group_rows: u32,
    k: u32,
    per_slot: u32,
    normed: u32,
    pub glu: u32,
    activation: u32,
    limit: f32,
    eps: f32,
    pub tile: u32,
    pub split: u32,
    pub split_shift: u32,
    pub row_shift: u32,
    pub col_shift: u32,
    pub scale_pitch: u32,
    pub passes: u32,
    settled: u32,
    hold: u32,
    blocks: u32,
    slots: u32,
    pad: u32,
}

/// Products that are ready to be launched.
pub(super) struct Ready {
    pub kernel: &'static str,
    pub grid: [usize; 3],
    pub threads: usize,
    pub shared: usize,
    pub args: GemvArgs,
}

impl Ready {
    /// Enqueues them by themselves.
    pub fn launch(&self, cx: &LaunchCx<'_>) -> Result<(), ExecError> {
        launch(cx, self.kernel, self.grid, self.threads, self.shared, &self.args)
    }
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
    /// Input of one more slot, whose matrix is no expert: the launch's second product.
    pub beside: Option<BufId>,
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

/// The kernels of a format.
struct Kernels {
    /// Values per chunk (see `chunks.cuh`).
    len: usize,
    /// For one token: chunks of x per lane, kernel; see `gemv_one.cuh`.
    one: &'static [(usize, &'static str)],
    /// For up to 8 tokens.
    many: &'static str,
}

fn kernels_of(format: Format) -> Option<Kernels> {
    macro_rules! kernels {
        ($name:literal, $len:literal, $($chunks:literal),*) => {
            Some(Kernels {
                len: $len,
                one: &[$(($chunks, concat!("gemv_", $name, "_x", $chunks))),*],
                many: concat!("gemv_", $name, "_8x2"),
            })
        };
    }
    match format {
        Format::F32 => kernels!("f32", 4, 2, 3, 6),
        Format::F16 => kernels!("f16", 8, 1, 2, 3, 5),
        Format::Bf16 => kernels!("bf16", 8, 1, 2, 3, 5),
        Format::F8E4m3 => kernels!("f8", 16, 1, 2, 3),
        Format::Fp4E2m1 => kernels!("fp4", 32, 1, 2),
        // Q5_0 becomes Q8_0 on the way to the device.
        Format::Q8_0 | Format::Q5_0 => kernels!("q8_0", 16, 1, 2, 3),
        Format::Q4_0 => kernels!("q4_0", 32, 1, 2),
        Format::Q4_1 => kernels!("q4_1", 32, 1, 2),
        Format::Q4K => kernels!("q4_k", 32, 1, 2),
        Format::Q6K => kernels!("q6_k", 16, 1, 2, 3),
        Format::I32 | Format::I64 => None,
    }
}

/// Whether a matrix can be read chunk by chunk.
pub(super) fn takes(d: &WeightDesc) -> bool {
    let Some(Kernels { len, .. }) = kernels_of(d.format) else {
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
    prepare(cx, x, p, 0)?.launch(cx)
}

/// Makes products ready to be launched; `kept`: blocks that something else beside them takes.
pub(super) fn prepare(cx: &LaunchCx<'_>, x: BufId, p: &Project, kept: usize) -> Result<Ready, ExecError> {
    let x = cx.buf(x);
    let first = cx.weight(p.products[0].weight);
    let Some(kernels) = kernels_of(first.desc.format) else {
        return super::args::unsupported(format!("format {} in a fast product", first.desc.format));
    };
    let mut args = GemvArgs::zeroed();
    let mut rows = 0;
    for (s, product) in args.segments.iter_mut().zip(&p.products) {
        let (w, out) = (cx.weight(product.weight), cx.buf(product.out));
        *s = SegmentArg {
            data: w.data,
            scales: w.scales,
            bias: WeightArg::optional(cx, product.bias),
            out: out.ptr,
            rows: w.desc.rows as u32,
            out_stride: out.width as u32,
            ..SegmentArg::zeroed()
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
    args.hold = u32::from(cx.holds.get(cx.group).is_some_and(|h| *h));
    (args.k, args.slots) = (1, 1);
    let mut slots = None;
    if let Some(e) = p.experts {
        (args.experts, args.partners, args.chosen) = (e.table, e.partners, cx.buf(e.chosen).ptr);
        (args.k, args.per_slot) = (e.k as u32, u32::from(e.per_slot));
        args.settled = u32::from(cx.settled(e.chosen));
        args.slot_weights = e.weights.map_or(0, |b| cx.buf(b).ptr);
        let mut each = e.k;
        if let Some(b) = e.beside {
            (args.beside, args.n_segments) = (cx.buf(b).ptr, 1);
            rows = first.desc.rows;
            each += 1;
        }
        args.slots = each as u32;
        slots = Some(x.rows * each);
    }
    args.rows = rows as u32;
    let groups = p.groups.max(1);
    if x.rows == 1 || slots.is_some() {
        let slots = slots.unwrap_or(1);
        let tensor = gemv_mma::prepare(cx, first.desc, &args, (slots, groups), kept);
        return Ok(tensor.unwrap_or_else(|| one(cx, &kernels, first.desc, args, (slots, groups), kept)));
    }
    Ok(many(cx, &kernels, first.desc, args, x.rows, groups))
}

/// For one token, or one slot of a token's experts, per row of the grid.
fn one(
    cx: &LaunchCx<'_>,
    kernels: &Kernels,
    d: &WeightDesc,
    mut args: GemvArgs,
    (slots, groups): (usize, usize),
    kept: usize,
) -> Ready {
    let per = if args.glu != 0 { 2 } else { 1 };
    let units = args.rows as usize / groups;
    // No block more than there is room for: it would begin when all others have ended.
    let all = BLOCKS * cx.device.info().multiprocessors as usize;
    let room = all.saturating_sub(kept);
    let resident = room / (groups * slots);
    let blocks = resident.clamp(1, units);
    let rows = units.div_ceil(blocks) * per;
    let chunks = d.cols / kernels.len;
    // Warps share a row where its columns are too many for one, or a block's rows too few for all of its warps.
    let most = kernels.one.last().map_or(1, |k| k.0);
    let mut split = 1;
    while split < WARPS && (chunks > 32 * split * most || (rows * split < WARPS && chunks >= 64 * split)) {
        split *= 2;
    }
    let held = chunks.div_ceil(32 * split);
    let (_, kernel) = kernels
        .one
        .iter()
        .find(|k| k.0 >= held)
        .unwrap_or(&kernels.one[kernels.one.len() - 1]);
    (args.split, args.blocks) = (split as u32, (blocks * groups) as u32);
    Ready {
        kernel,
        grid: [blocks * groups, slots, 1],
        threads: 32 * WARPS,
        shared: 4 * split * rows,
        args,
    }
}

/// For up to 8 tokens at once.
fn many(
    cx: &LaunchCx<'_>,
    kernels: &Kernels,
    d: &WeightDesc,
    mut args: GemvArgs,
    tokens: usize,
    groups: usize,
) -> Ready {
    let rows = args.rows as usize;
    let units = if args.glu != 0 { rows } else { rows.div_ceil(2) };
    let step = 32 * kernels.len;
    let tile = d.cols.next_multiple_of(step).min(STAGED / TOKENS / step * step);
    args.tile = tile as u32;
    let rows_of_blocks = tokens.div_ceil(TOKENS);
    // As many blocks as run at once (one per multiprocessor: they have that many registers), so that each reads x once; they
    // share the units evenly. Where x passes through shared memory in several tiles a warp can have one unit alone.
    let least = (units / groups).div_ceil(WARPS);
    let resident = (cx.device.info().multiprocessors as usize).div_ceil(groups * rows_of_blocks);
    let blocks = if d.cols > tile {
        least
    } else {
        resident.clamp(1, (units / groups).max(1))
    };
    Ready {
        kernel: kernels.many,
        grid: [blocks * groups, rows_of_blocks, 1],
        threads: 32 * WARPS,
        shared: 4 * TOKENS * tile,
        args,
    }
}
