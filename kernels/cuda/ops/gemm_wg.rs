//! Products for many tokens on Hopper's tensor cores (wgmma): matrices that share their input in one launch.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::gemm;
use super::matmul::MatMulArgs;
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{ExecError, Format, Layout, Op, OpId, Plan, WeightDesc};

/// Tokens of a block (`kWgTokens`), and slots of a tile of one expert.
pub(super) const TOKENS: usize = 128;
/// Inputs per step (`kWgStep`).
const STEP: usize = 64;
/// Matrices of a launch at most (`kMatrices`).
const MATRICES: usize = 8;
/// Outputs of a block: the kernels there are.
const WIDTHS: [usize; 2] = [256, 128];
/// Least tokens of a plan: with fewer, half of a block's work is for nobody.
const FEWEST: usize = 65;
/// Least outputs of a matrix.
const ROWS: usize = 64;
/// Most shares of the inputs.
const SPLITS: usize = 24;

/// Multiprocessors of the devices these kernels are for (one block each); shares of the inputs are chosen by it, and working
/// memory is planned before the device is known.
const MULTIPROCESSORS: usize = 132;
/// What a multiprocessor does in a clock: multiplications, bytes that come from the second-level cache.
const PER_CLOCK: (usize, usize) = (2048, 32);
/// Clocks of a block before its first and after its last product, of a launch, and bytes that all multiprocessors move in a
/// clock.
const BLOCK_CLOCKS: usize = 3000;
const LAUNCH_CLOCKS: usize = 4000;
const DEVICE_BYTES: usize = 1500;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Matrix {
    w: WeightArg,
    bias: WeightArg,
    out: DevPtr,
    experts: DevPtr,
    out_stride: u32,
    first_tile: u32,
    first_row: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct WgArgs {
    matrices: [Matrix; MATRICES],
    parts: DevPtr,
    partial: DevPtr,
    step: DevPtr,
    tiles: DevPtr,
    order: DevPtr,
    n: u32,
    rows: u32,
    tokens: u32,
    runs: u32,
    pitch: u32,
    group_rows: u32,
    k: u32,
    per_slot: u32,
    splits: u32,
    bucket: u32,
}

/// How a launch is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Outputs of a block.
    width: usize,
    /// Shares of the inputs.
    splits: usize,
}

/// A product of a launch: its arguments and its matrix.
pub(super) type Part<'a> = (MatMulArgs, &'a WeightDesc);

/// Whether the kernels here take a product, where the device has them.
pub(super) fn takes(plan: &Plan, op: &Op) -> bool {
    let fits = |d: &WeightDesc| {
        let whole = d.rows.is_multiple_of(8) && d.cols.is_multiple_of(8) && d.rows >= ROWS;
        d.format == Format::Bf16 && d.layout == Layout::OutIn && d.scales.is_none() && whole
    };
    let many = |x| gemm::rows(plan, x) >= FEWEST;
    match op {
        Op::MatMul { x, weight, out, .. } => {
            many(*x) && fits(plan.weight(*weight)) && plan.width(*out).is_multiple_of(4)
        }
        Op::GroupedMatMul { x, weight, groups, .. } => {
            let d = plan.weight(*weight);
            many(*x) && fits(d) && (d.rows / groups).is_multiple_of(WIDTHS[0])
        }
        Op::ExpertMatMul { x, weights, .. } => {
            let all = |id: &crate::ir::WeightId| fits(plan.weight(*id));
            many(*x) && gemm::takes(plan, op) && weights.iter().all(all)
        }
        _ => false,
    }
}

/// Which ops of a group one launch here takes: experts only together.
pub(super) fn taken(plan: &Plan, group: &[OpId]) -> Vec<OpId> {
    let op = |id: &OpId| &plan.ops[id.index()].op;
    let mut all: Vec<OpId> = group.iter().copied().filter(|id| takes(plan, op(id))).collect();
    let experts = |id: &OpId| matches!(op(id), Op::ExpertMatMul { .. });
    if all.len() < group.len() && all.iter().any(experts) {
        all.clear();
    }
    all.truncate(MATRICES);
    all
}

/// The matrices of products.
fn matrices<'a>(plan: &'a Plan, ops: &[OpId]) -> Vec<&'a WeightDesc> {
    ops.iter()
        .filter_map(|id| match &plan.ops[id.index()].op {
            Op::MatMul { weight, .. } | Op::GroupedMatMul { weight, .. } => Some(plan.weight(*weight)),
            Op::ExpertMatMul { weights, .. } => weights.first().map(|w| plan.weight(*w)),
            _ => None,
        })
        .collect()
}

/// The cut that should take least time: whole rounds of blocks, their steps, and what adding up shares costs. The inputs of
/// experts are not shared out.
fn cut(rows: &[usize], cols: usize, tiles: usize, parts: usize, experts: bool) -> Cut {
    let steps = cols.div_ceil(STEP).max(1);
    let clocks = |c: &Cut| {
        let blocks = rows.iter().map(|r| r.div_ceil(c.width)).sum::<usize>() * tiles * c.splits;
        let work = parts * TOKENS * c.width * STEP / PER_CLOCK.0;
        let bytes = 2 * STEP * (parts * TOKENS + c.width) / PER_CLOCK.1;
        let block = steps.div_ceil(c.splits) * work.max(bytes) + BLOCK_CLOCKS;
        let shares = match c.splits {
            1 => 0,
            n => LAUNCH_CLOCKS + 2 * 4 * n * tiles * TOKENS * rows.iter().sum::<usize>() / DEVICE_BYTES,
        };
        blocks.div_ceil(MULTIPROCESSORS) * block + shares
    };
    let most = if experts { 1 } else { SPLITS.min(steps) };
    let all = (1..=most).flat_map(|splits| WIDTHS.map(|width| Cut { width, splits }));
    let none_empty = |c: &Cut| (c.splits - 1) * steps.div_ceil(c.splits) < steps;
    let first = Cut {
        width: WIDTHS[0],
        splits: 1,
    };
    all.filter(none_empty).min_by_key(clocks).unwrap_or(first)
}

/// Working memory of a group's shares beside what [`gemm::scratch_bytes`] says of its ops, bytes.
pub(super) fn scratch_bytes(plan: &Plan, group: &[OpId]) -> usize {
    let ops = taken(plan, group);
    let Some(id) = ops.first() else {
        return 0;
    };
    let op = &plan.ops[id.index()].op;
    let matrices = matrices(plan, &ops);
    let (rows, cols) = (matrices.iter().map(|d| d.rows).collect::<Vec<_>>(), matrices[0].cols);
    if matches!(op, Op::ExpertMatMul { .. }) {
        return gemm::scratch_bytes(plan, op);
    }
    let bucket = plan.token_bucket;
    let shares = match cut(&rows, cols, bucket.div_ceil(TOKENS), gemm::parts(plan), false).splits {
        1 => 0,
        n => 4 * n * bucket * rows.iter().sum::<usize>(),
    };
    gemm::parts_bytes(op, matrices[0], bucket) + shares
}

/// Shared memory of a block (`WgRing`).
fn shared_bytes(parts: usize, width: usize) -> usize {
    let buffer = 2 * STEP * (parts * TOKENS + width);
    let stages = (200 << 10) / buffer;
    1024 + stages * (buffer + 16) + 4 * width
}

/// Products of one input whose parts are in the scratch memory; `rest` is what lies behind them there, beginning with the
/// tiles of experts where `op` (any of the products) has experts.
pub(super) fn gemm_wg(cx: &LaunchCx<'_>, op: &Op, products: &[Part<'_>], rest: DevPtr) -> Result<(), ExecError> {
    let Some((a, d)) = products.first() else {
        return Ok(());
    };
    let bucket = match op {
        Op::MatMul { x, .. } | Op::GroupedMatMul { x, .. } | Op::ExpertMatMul { x, .. } => cx.buf(*x).rows,
        _ => cx.plan.token_bucket,
    };
    let (runs, pitch) = gemm::runs(op, d);
    let experts = match op {
        Op::ExpertMatMul { k, weights, .. } => Some(gemm::sorted(bucket * k, weights.len(), TOKENS)),
        _ => None,
    };
    let tiles = experts.map_or(bucket.div_ceil(TOKENS), |s| s.tiles);
    let rows: Vec<usize> = products.iter().map(|(_, d)| d.rows).collect();
    let parts = gemm::parts(cx.plan);
    let cut = cut(&rows, d.cols, tiles, parts, experts.is_some());
    let mut args = WgArgs::zeroed();
    let (mut tile, mut row) = (0, 0);
    for (m, (a, d)) in args.matrices.iter_mut().zip(products) {
        (m.w, m.bias, m.out, m.experts) = (a.w, a.bias, a.out, a.experts);
        (m.out_stride, m.first_tile, m.first_row) = (a.out_stride, tile as u32, row as u32);
        tile += d.rows.div_ceil(cut.width);
        row += d.rows;
    }
    (args.parts, args.partial, args.step) = (cx.scratch, rest, a.step);
    (args.n, args.rows, args.tokens) = (products.len() as u32, row as u32, a.tokens);
    (args.runs, args.pitch, args.group_rows) = (runs as u32, pitch as u32, a.group_rows);
    (args.k, args.per_slot) = (a.k, a.per_slot);
    (args.splits, args.bucket) = (cut.splits as u32, bucket as u32);
    if let Some(s) = experts {
        (args.tiles, args.order) = (rest, rest + s.order);
    }
    let kernel = match (parts, cut.width) {
        (2, 256) => "gemm_wg_256",
        (2, _) => "gemm_wg_128",
        (_, 256) => "gemm_wg_all_256",
        _ => "gemm_wg_all_128",
    };
    let shared = shared_bytes(parts, cut.width);
    launch(cx, kernel, [tiles, tile, cut.splits], 384, shared, &args)?;
    if cut.splits > 1 {
        launch(cx, "gemm_wg_sum", [row.div_ceil(1024), bucket, 1], 256, 0, &args)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_fill_the_device() {
        // Few outputs, long inputs: shares of about a round of blocks.
        let down = cut(&[1536], 8960, 4, 2, false);
        let blocks = 1536usize.div_ceil(down.width) * 4 * down.splits;
        assert!(down.splits > 1 && blocks <= MULTIPROCESSORS, "{down:?}");
        // Many outputs: as they are.
        assert_eq!(cut(&[8960, 8960], 1536, 16, 2, false).splits, 1);
        // Experts' inputs stay whole, and no share is empty.
        assert_eq!(cut(&[512], 8960, 1, 2, true).splits, 1);
        for cols in [64, 65, 640, 4096] {
            let c = cut(&[64], cols, 1, 3, false);
            let steps = cols.div_ceil(STEP);
            assert!((c.splits - 1) * steps.div_ceil(c.splits) < steps, "{cols}: {c:?}");
        }
    }
}
