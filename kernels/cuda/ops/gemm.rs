//! Products for many tokens, on tensor cores.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::matmul::MatMulArgs;
use super::pointwise::{self, NormArgs};
use super::{fuse, gemm_wg, gemv};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::{ALIGN, DevPtr};
use crate::ir::{BufId, ExecError, Format, Layout, Op, OpId, Plan, ScaleFormat, WeightDesc};

/// Outputs of a block (`kTile`), and its tokens where they are few or an expert's.
pub(super) const TILE: usize = 64;
/// Tokens of a block where there are many.
const MANY: usize = 128;
/// Rows of x in parts begin at multiples of this (two of `kStep`, one of `kWgStep`).
const PITCH: usize = 64;
/// Inputs per step (`kStep`).
const STEP: usize = 32;
/// Blocks that fill a large device; inputs are shared out to reach it.
const BLOCKS: usize = 264;
/// Most shares of the inputs.
const SPLITS: usize = 8;

/// Most slots of a product with experts (`expert_tiles` has them in shared memory).
const SLOTS: usize = 16384;
/// Parts a number is split into at most.
const PARTS: usize = 3;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SplitArgs {
    x: DevPtr,
    parts: DevPtr,
    step: DevPtr,
    tokens: u32,
    x_stride: u32,
    runs: u32,
    cols: u32,
    pitch: u32,
    bucket: u32,
    n_parts: u32,
    tiled: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NormSplitArgs {
    norm: NormArgs,
    split: SplitArgs,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmArgs {
    w: WeightArg,
    bias: WeightArg,
    parts: DevPtr,
    out: DevPtr,
    partial: DevPtr,
    step: DevPtr,
    experts: DevPtr,
    tiles: DevPtr,
    order: DevPtr,
    tokens: u32,
    runs: u32,
    pitch: u32,
    out_stride: u32,
    group_rows: u32,
    k: u32,
    per_slot: u32,
    splits: u32,
    bucket: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ExpertTilesArgs {
    chosen: DevPtr,
    tiles: DevPtr,
    order: DevPtr,
    step: DevPtr,
    tokens: u32,
    k: u32,
    experts: u32,
    n_tiles: u32,
    run: u32,
    pad: u32,
}

/// Whether a plan chooses (experts, rows, codes) by what its products give: there every bit of f32 is kept, as on the CPU.
fn chooses(plan: &Plan) -> bool {
    let chooses = |op: &Op| matches!(op, Op::Route { .. } | Op::SelectTopK { .. } | Op::RoundTrip { .. });
    plan.ops.iter().any(|o| chooses(&o.op))
}

/// Parts of the activations beside weights that are bf16 numbers.
pub(super) fn parts(plan: &Plan) -> usize {
    if chooses(plan) { 3 } else { 2 }
}

/// Parts a matrix is split into; `None` where it is read element by element.
pub(super) fn weight_parts(plan: &Plan, d: &WeightDesc) -> Option<usize> {
    let kernel = Kernel::of(plan, d);
    (kernel.names[0] != "gemm_any_128").then_some(kernel.parts.1)
}

/// A kernel: its names for many and for few tokens, and the parts (of x, of the weights) it takes.
struct Kernel {
    names: [&'static str; 2],
    parts: (usize, usize),
}

impl Kernel {
    /// The kernel for a stored format: 16 neighbouring weights at a time where rows allow it.
    fn of(plan: &Plan, d: &WeightDesc) -> Self {
        let row = d.format.row_bytes(d.cols).unwrap_or(0);
        let whole = d.layout == Layout::OutIn && d.cols.is_multiple_of(16);
        // Other scales than powers of two make products that are no bf16 numbers.
        let scales = |block: usize| {
            d.scales
                .is_none_or(|s| s.format == ScaleFormat::E8m0 && s.block_cols.is_multiple_of(block))
        };
        macro_rules! kernel {
            ($name:literal, $parts:expr) => {
                Kernel {
                    names: [concat!($name, "_128"), concat!($name, "_64")],
                    parts: $parts,
                }
            };
        }
        match (d.format, chooses(plan)) {
            (Format::F32, _) if whole => kernel!("gemm_f32", (3, 3)),
            (Format::F16, false) if whole && row.is_multiple_of(16) => kernel!("gemm_f16", (2, 2)),
            (Format::F16, true) if whole && row.is_multiple_of(16) => kernel!("gemm_f16_all", (3, 3)),
            (Format::Bf16, false) if whole && row.is_multiple_of(16) => kernel!("gemm_bf16", (2, 1)),
            (Format::Bf16, true) if whole && row.is_multiple_of(16) => kernel!("gemm_bf16_all", (3, 1)),
            (Format::F8E4m3, false) if whole && row.is_multiple_of(16) && scales(16) => kernel!("gemm_f8", (2, 1)),
            (Format::F8E4m3, true) if whole && row.is_multiple_of(16) && scales(16) => kernel!("gemm_f8_all", (3, 1)),
            (Format::Fp4E2m1, false) if whole && row.is_multiple_of(8) && scales(16) => kernel!("gemm_fp4", (2, 1)),
            (Format::Fp4E2m1, true) if whole && row.is_multiple_of(8) && scales(16) => kernel!("gemm_fp4_all", (3, 1)),
            (Format::Q8_0 | Format::Q5_0, false) if whole => kernel!("gemm_q8_0", (2, 2)),
            (Format::Q8_0 | Format::Q5_0, true) if whole => kernel!("gemm_q8_0_all", (3, 3)),
            (Format::Q4_0, false) if whole => kernel!("gemm_q4_0", (2, 2)),
            (Format::Q4_0, true) if whole => kernel!("gemm_q4_0_all", (3, 3)),
            (Format::Q4_1, false) if whole => kernel!("gemm_q4_1", (2, 2)),
            (Format::Q4_1, true) if whole => kernel!("gemm_q4_1_all", (3, 3)),
            (Format::Q4K, false) if whole => kernel!("gemm_q4_k", (2, 2)),
            (Format::Q4K, true) if whole => kernel!("gemm_q4_k_all", (3, 3)),
            (Format::Q6K, false) if whole => kernel!("gemm_q6_k", (2, 2)),
            (Format::Q6K, true) if whole => kernel!("gemm_q6_k_all", (3, 3)),
            _ => kernel!("gemm_any", (3, 3)),
        }
    }

    /// Shared memory of a block of `tokens` tokens (`GemmShared`).
    fn shared_bytes(&self, tokens: usize) -> usize {
        const STAGES: usize = 3;
        const PITCH: usize = 20;
        4 * PITCH * (STAGES * self.parts.0 * tokens + 2 * self.parts.1 * TILE)
    }
}

/// Tokens of a block.
fn block_tokens(bucket: usize, experts: bool) -> usize {
    if bucket > TILE && !experts { MANY } else { TILE }
}

/// Shares of the inputs of a plain product.
fn splits(tokens: usize, d: &WeightDesc) -> usize {
    let blocks = d.rows.div_ceil(TILE) * tokens.div_ceil(block_tokens(tokens, false));
    // At least four steps each.
    BLOCKS
        .div_ceil(blocks.max(1))
        .min(d.cols.div_ceil(4 * STEP))
        .clamp(1, SPLITS)
}

/// Where slots sorted by expert are: room for so many tiles, then their order from this byte on; bytes of both.
#[derive(Clone, Copy)]
pub(super) struct Sorted {
    pub tiles: usize,
    pub order: u64,
    pub bytes: usize,
}

/// Slots of a product with experts, in tiles of up to `run`.
pub(super) fn sorted(slots: usize, experts: usize, run: usize) -> Sorted {
    let tiles = slots / run + experts.min(slots);
    Sorted {
        tiles,
        order: 16 * tiles as u64,
        bytes: 16 * tiles + 4 * slots,
    }
}

/// Whether the kernels here take a product.
pub(super) fn takes(plan: &Plan, op: &Op) -> bool {
    match op {
        Op::MatMul { .. } => true,
        Op::GroupedMatMul { weight, groups, .. } => (plan.weight(*weight).rows / groups).is_multiple_of(TILE),
        Op::ExpertMatMul { k, weights, .. } => plan.token_bucket * k <= SLOTS && weights.len() <= 1024,
        _ => false,
    }
}

/// Runs of inputs in a row of x, and their pitch in `parts`.
pub(super) fn runs(op: &Op, d: &WeightDesc) -> (usize, usize) {
    let runs = match op {
        Op::GroupedMatMul { groups, .. } => *groups,
        Op::ExpertMatMul { k, per_slot: true, .. } => *k,
        _ => 1,
    };
    (runs, d.cols.next_multiple_of(PITCH))
}

/// Bytes of x in parts.
pub(super) fn parts_bytes(op: &Op, d: &WeightDesc, bucket: usize) -> usize {
    let (runs, pitch) = runs(op, d);
    (2 * PARTS * bucket.next_multiple_of(gemm_wg::TOKENS) * runs * pitch).next_multiple_of(ALIGN)
}

/// Working memory, bytes: x in parts, then shares of the sums, or the tiles of experts.
pub(super) fn scratch_bytes(plan: &Plan, op: &Op) -> usize {
    match op {
        Op::MatMul { weight, .. } | Op::GroupedMatMul { weight, .. } => {
            let d = plan.weight(*weight);
            let shares = match splits(plan.token_bucket, d) {
                1 => 0,
                n => 4 * n * plan.token_bucket * d.rows,
            };
            parts_bytes(op, d, plan.token_bucket) + shares
        }
        Op::ExpertMatMul { k, weights, .. } => {
            let slots = plan.token_bucket * k;
            let parts = weights
                .first()
                .map_or(0, |w| parts_bytes(op, plan.weight(*w), plan.token_bucket));
            parts + sorted(slots, weights.len(), TILE).bytes
        }
        _ => 0,
    }
}

/// A norm of whole rows that leaves its values to the products behind it alone, `products` of them from op `first + 1` on: it
/// splits them at once.
pub(super) fn norm_before(plan: &Plan, first: usize, products: usize) -> bool {
    let (Some(norm), Some(next)) = (plan.ops.get(first), plan.ops.get(first + 1)) else {
        return false;
    };
    let (Op::Norm { x, out, group, .. }, Op::MatMul { x: input, .. }) = (&norm.op, &next.op) else {
        return false;
    };
    let many = products > 0 && rows(plan, *input) > gemv::TOKENS && takes(plan, &next.op);
    let unread = x != out && fuse::dead(plan, *out, first + 1 + products);
    many && out == input && plan.width(*x) == *group && unread
}

/// The norm a group begins with, and the rest of it.
pub(super) fn norm_of<'a>(cx: &LaunchCx<'a>, group: &'a [OpId]) -> (Option<&'a Op>, &'a [OpId]) {
    let first = group.first().map(|id| &cx.plan.ops[id.index()].op);
    match first.filter(|op| matches!(op, Op::Norm { .. })) {
        Some(norm) => (Some(norm), &group[1..]),
        None => (None, group),
    }
}

/// How many ops from `first` on are products of one input that is prepared once; 0 or 1: nothing to gain.
pub(super) fn alike(plan: &Plan, first: usize) -> usize {
    let input = |op: &Op| match op {
        Op::MatMul { x, weight, .. } => Some((*x, None, plan.weight(*weight).cols)),
        Op::ExpertMatMul {
            x,
            experts,
            k,
            per_slot,
            weights,
            ..
        } => {
            let w = weights.first()?;
            Some((*x, Some((*experts, *k, *per_slot, weights.len())), plan.weight(*w).cols))
        }
        _ => None,
    };
    let output = |op: &Op| match op {
        Op::MatMul { out, .. } | Op::ExpertMatMul { out, .. } => Some(*out),
        _ => None,
    };
    let Some(shared) = plan.ops.get(first).and_then(|o| input(&o.op)) else {
        return 0;
    };
    let run = plan.ops[first..].iter().take_while(|o| {
        let many = output(&o.op).is_some_and(|out| out != shared.0 && rows(plan, shared.0) > gemv::TOKENS);
        many && takes(plan, &o.op) && input(&o.op) == Some(shared)
    });
    run.count()
}

pub(super) fn rows(plan: &Plan, b: BufId) -> usize {
    plan.buffer_len(b) / plan.width(b).max(1)
}

/// What products of one input share: x in parts at the beginning of the scratch memory and, behind them (the address comes
/// back), slots sorted by expert in tiles of up to `run`. `matrices` are those of all the products,
/// `norm` is what makes x. `tiled`: in the order of `gemm_wg`'s tiles.
pub(super) fn prepare(
    cx: &LaunchCx<'_>,
    norm: Option<&Op>,
    op: &Op,
    a: &MatMulArgs,
    matrices: &[&WeightDesc],
    (run, tiled): (usize, bool),
) -> Result<DevPtr, ExecError> {
    let (bucket, d) = (bucket(cx, op), matrices[0]);
    let n_parts = matrices.iter().map(|d| Kernel::of(cx.plan, d).parts.0).max();
    let (runs, pitch) = runs(op, d);
    let split = SplitArgs {
        x: a.x,
        parts: cx.scratch,
        step: a.step,
        tokens: a.tokens,
        x_stride: a.x_stride,
        runs: runs as u32,
        cols: d.cols as u32,
        pitch: pitch as u32,
        bucket: bucket as u32,
        n_parts: n_parts.unwrap_or(PARTS) as u32,
        tiled: u32::from(tiled),
    };
    if let Some(norm) = norm {
        let norm = pointwise::norm_args(cx, norm)?;
        // A thread holds 16 values; in one round of blocks where rows are short.
        let threads = if d.cols <= 2048 { 128 } else { 256 };
        launch(
            cx,
            "norm_split",
            [bucket, 1, 1],
            threads,
            0,
            &NormSplitArgs { norm, split },
        )?;
    } else {
        let grid = [pitch.div_ceil(1024), bucket * runs, 1];
        launch(cx, "gemm_split", grid, 256, 0, &split)?;
    }
    if let Op::ExpertMatMul { k, weights, .. } = op {
        let slots = bucket * k;
        let sorted = sorted(slots, weights.len(), run);
        let tiles = behind(cx, op, d);
        let sort = ExpertTilesArgs {
            chosen: a.chosen,
            tiles,
            order: tiles + sorted.order,
            step: a.step,
            tokens: a.tokens,
            k: a.k,
            experts: weights.len() as u32,
            n_tiles: sorted.tiles as u32,
            run: run as u32,
            pad: 0,
        };
        let shared = 4 * (slots + 2 * weights.len());
        launch(cx, "expert_tiles", [1, 1, 1], 1024, shared, &sort)?;
    }
    Ok(behind(cx, op, d))
}

/// Rows of a product's input in the plan's bucket.
pub(super) fn bucket(cx: &LaunchCx<'_>, op: &Op) -> usize {
    match op {
        Op::MatMul { x, .. } | Op::GroupedMatMul { x, .. } | Op::ExpertMatMul { x, .. } => cx.buf(*x).rows,
        _ => cx.plan.token_bucket,
    }
}

/// The scratch memory behind x in parts.
fn behind(cx: &LaunchCx<'_>, op: &Op, d: &WeightDesc) -> DevPtr {
    cx.scratch + parts_bytes(op, d, bucket(cx, op)) as u64
}

/// A product whose arguments are those of the plain kernel, after [`prepare`] with tiles of [`TILE`]; `op` says which kind.
pub(super) fn gemm(cx: &LaunchCx<'_>, op: &Op, a: &MatMulArgs, d: &WeightDesc) -> Result<(), ExecError> {
    let bucket = bucket(cx, op);
    let kernel = Kernel::of(cx.plan, d);
    let (runs, pitch) = runs(op, d);
    let rest = behind(cx, op, d);
    let mut args = GemmArgs::zeroed();
    (args.w, args.bias, args.parts, args.out, args.step) = (a.w, a.bias, cx.scratch, a.out, a.step);
    (args.tokens, args.runs, args.pitch, args.out_stride) = (a.tokens, runs as u32, pitch as u32, a.out_stride);
    (args.group_rows, args.k, args.per_slot) = (a.group_rows, a.k, a.per_slot);
    (args.partial, args.splits, args.bucket) = (rest, 1, bucket as u32);
    let columns = d.rows.div_ceil(TILE);
    if let Op::ExpertMatMul { k, weights, .. } = op {
        let sorted = sorted(bucket * k, weights.len(), TILE);
        (args.experts, args.tiles, args.order) = (a.experts, rest, rest + sorted.order);
        let shared = kernel.shared_bytes(TILE);
        return launch(cx, kernel.names[1], [columns, sorted.tiles, 1], 128, shared, &args);
    }
    let splits = splits(bucket, d);
    args.splits = splits as u32;
    let tokens = block_tokens(bucket, false);
    launch(
        cx,
        kernel.names[usize::from(tokens == TILE)],
        [columns, bucket.div_ceil(tokens), splits],
        128,
        kernel.shared_bytes(tokens),
        &args,
    )?;
    if splits > 1 {
        launch(cx, "gemm_sum", [d.rows.div_ceil(256), bucket, 1], 256, 0, &args)?;
    }
    Ok(())
}
