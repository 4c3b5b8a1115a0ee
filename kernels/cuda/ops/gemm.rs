//! Products for many tokens, on tensor cores.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::matmul::MatMulArgs;
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{ExecError, Format, Layout, Op, Plan, ScaleFormat, WeightDesc};

/// Tokens and outputs of a block (`kTile`).
pub(super) const TILE: usize = 64;
/// Inputs per step (`kStep`).
const STEP: usize = 32;
/// Blocks that fill a large device; inputs are shared out to reach it.
const BLOCKS: usize = 264;
/// Most shares of the inputs.
const SPLITS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemmArgs {
    w: WeightArg,
    bias: WeightArg,
    x: DevPtr,
    out: DevPtr,
    partial: DevPtr,
    step: DevPtr,
    experts: DevPtr,
    tiles: DevPtr,
    order: DevPtr,
    tokens: u32,
    x_stride: u32,
    out_stride: u32,
    group_rows: u32,
    k: u32,
    per_slot: u32,
    splits: u32,
    bucket: u32,
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
}

/// Whether a plan chooses (experts, rows, codes) by what its products give: there every bit of f32 is kept, as on the CPU.
fn chooses(plan: &Plan) -> bool {
    let chooses = |op: &Op| matches!(op, Op::Route { .. } | Op::SelectTopK { .. } | Op::RoundTrip { .. });
    plan.ops.iter().any(|o| chooses(&o.op))
}

/// The kernel for a stored format: 16 neighbouring weights at a time where rows allow it.
fn kernel(plan: &Plan, d: &WeightDesc) -> &'static str {
    let row = d.format.row_bytes(d.cols).unwrap_or(0);
    let whole = d.layout == Layout::OutIn && d.cols.is_multiple_of(16);
    // Other scales than powers of two make products that are no bf16 numbers.
    let scales = |block: usize| {
        d.scales
            .is_none_or(|s| s.format == ScaleFormat::E8m0 && s.block_cols.is_multiple_of(block))
    };
    let names = match d.format {
        Format::F32 if whole => ["gemm_f32", "gemm_f32"],
        Format::F16 if whole && row.is_multiple_of(16) => ["gemm_f16", "gemm_f16_all"],
        Format::Bf16 if whole && row.is_multiple_of(16) => ["gemm_bf16", "gemm_bf16_all"],
        Format::F8E4m3 if whole && row.is_multiple_of(16) && scales(16) => ["gemm_f8", "gemm_f8_all"],
        Format::Fp4E2m1 if whole && row.is_multiple_of(8) && scales(16) => ["gemm_fp4", "gemm_fp4_all"],
        _ => ["gemm_any", "gemm_any"],
    };
    names[usize::from(chooses(plan))]
}

/// Shares of the inputs of a plain product.
fn splits(tokens: usize, d: &WeightDesc) -> usize {
    let blocks = d.rows.div_ceil(TILE) * tokens.div_ceil(TILE);
    // At least four steps each.
    BLOCKS
        .div_ceil(blocks.max(1))
        .min(d.cols.div_ceil(4 * STEP))
        .clamp(1, SPLITS)
}

/// Tiles of a product with experts.
fn tiles(slots: usize, experts: usize) -> usize {
    slots / TILE + experts.min(slots)
}

/// Whether the kernels here take a product.
pub(super) fn takes(plan: &Plan, op: &Op) -> bool {
    match op {
        Op::MatMul { .. } => true,
        Op::GroupedMatMul { weight, groups, .. } => (plan.weight(*weight).rows / groups).is_multiple_of(TILE),
        Op::ExpertMatMul { k, weights, .. } => plan.token_bucket * k <= 4096 && weights.len() <= 1024,
        _ => false,
    }
}

/// Working memory, bytes.
pub(super) fn scratch_bytes(plan: &Plan, op: &Op) -> usize {
    match op {
        Op::MatMul { weight, .. } | Op::GroupedMatMul { weight, .. } => {
            let d = plan.weight(*weight);
            match splits(plan.token_bucket, d) {
                1 => 0,
                n => 4 * n * plan.token_bucket * d.rows,
            }
        }
        Op::ExpertMatMul { k, weights, .. } => {
            let slots = plan.token_bucket * k;
            16 * tiles(slots, weights.len()) + 4 * slots
        }
        _ => 0,
    }
}

/// A product whose arguments are those of the plain kernel; `op` says which kind.
pub(super) fn gemm(cx: &LaunchCx<'_>, op: &Op, a: &MatMulArgs, d: &WeightDesc) -> Result<(), ExecError> {
    let bucket = match op {
        Op::MatMul { x, .. } | Op::GroupedMatMul { x, .. } | Op::ExpertMatMul { x, .. } => cx.buf(*x).rows,
        _ => cx.plan.token_bucket,
    };
    let mut args = GemmArgs::zeroed();
    (args.w, args.bias, args.x, args.out, args.step) = (a.w, a.bias, a.x, a.out, a.step);
    (args.tokens, args.x_stride, args.out_stride) = (a.tokens, a.x_stride, a.out_stride);
    (args.group_rows, args.k, args.per_slot) = (a.group_rows, a.k, a.per_slot);
    (args.partial, args.splits, args.bucket) = (cx.scratch, 1, bucket as u32);
    let columns = d.rows.div_ceil(TILE);
    if let Op::ExpertMatMul { k, weights, .. } = op {
        let slots = bucket * k;
        let n_tiles = tiles(slots, weights.len());
        (args.experts, args.tiles) = (a.experts, cx.scratch);
        args.order = cx.scratch + 16 * n_tiles as u64;
        let sort = ExpertTilesArgs {
            chosen: a.chosen,
            tiles: args.tiles,
            order: args.order,
            step: a.step,
            tokens: a.tokens,
            k: a.k,
            experts: weights.len() as u32,
            n_tiles: n_tiles as u32,
        };
        let shared = 4 * (slots + 2 * weights.len());
        launch(cx, "expert_tiles", [1, 1, 1], 1024, shared, &sort)?;
        return launch(cx, kernel(cx.plan, d), [columns, n_tiles, 1], 128, 0, &args);
    }
    let splits = splits(bucket, d);
    args.splits = splits as u32;
    launch(
        cx,
        kernel(cx.plan, d),
        [columns, bucket.div_ceil(TILE), splits],
        128,
        0,
        &args,
    )?;
    if splits > 1 {
        launch(cx, "gemm_sum", [d.rows.div_ceil(256), bucket, 1], 256, 0, &args)?;
    }
    Ok(())
}
