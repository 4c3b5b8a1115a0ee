//! Products for many tokens on Hopper's tensor cores (wgmma): matrices that share their input in one launch.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::matmul::MatMulArgs;
use super::{dense, fuse, gemm, pointwise};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, ExecError, Format, Layout, Op, OpId, Plan, WeightDesc};

/// Tokens of a tile (`kWgTokens`), and slots of a tile of one expert.
pub(super) const TOKENS: usize = 128;
/// Inputs per step (`kWgStep`).
const STEP: usize = 64;
/// Matrices of a launch at most (`kMatrices`).
const MATRICES: usize = 8;
/// Outputs of a tile (`kWgRows`).
const OUTPUTS: usize = 128;
/// Outputs of a tile of gate and up together.
pub(super) const GATES: usize = OUTPUTS / 2;
/// Least tokens of a plan: with fewer, half of a tile's work is for nobody.
const FEWEST: usize = 65;
/// Least outputs of a matrix.
const ROWS: usize = 64;
/// Most shares of the inputs.
const SPLITS: usize = 24;
/// Outputs of a wide tile (`kWideRows`), and most blocks of a cluster that share its inputs.
const WIDE: usize = 192;
const NEAR: usize = 2;

/// Multiprocessors of the devices these kernels are for (one block each); shares of the inputs are chosen by it, and working
/// memory is planned before the device is known.
const MULTIPROCESSORS: usize = 132;
/// What was measured on an H200, in nanoseconds: a step of a tile by parts of the activations; what the last tile of a block
/// costs beside its steps; a step and the end of a wide tile, behind which nobody multiplies; a launch that adds up. And bytes
/// that are written and read in one.
const STEP_NS: usize = 315;
const TILE_NS: usize = 2500;
const WIDE_STEP_NS: usize = STEP_NS * WIDE / OUTPUTS;
const WIDE_TILE_NS: usize = 3500;
const LAUNCH_NS: usize = 5000;
const BYTES_PER_NS: usize = 3000;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Matrix {
    w: WeightArg,
    bias: WeightArg,
    out: DevPtr,
    residual: DevPtr,
    experts: DevPtr,
    out_stride: u32,
    first_tile: u32,
    first_row: u32,
    parts: u32,
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
    token_tiles: u32,
    row_tiles: u32,
    next: DevPtr,
    slot_weights: DevPtr,
    next_pitch: u32,
    limit: f32,
    tiled: u32,
    next_tiled: u32,
}

/// Where a launch finds and leaves things in the scratch memory.
pub(super) struct Places {
    /// The input in parts.
    pub parts: DevPtr,
    /// They lie in the order of tiles ([`tiled`]).
    pub tiled: bool,
    /// Slots sorted by expert in tiles of [`TOKENS`], where there are experts.
    pub tiles: DevPtr,
    /// Shares of the sums.
    pub partial: DevPtr,
}

/// What is done with the sums.
pub(super) enum Last<'a> {
    /// They go where the products' arguments say.
    Store,
    /// They are added to what lies at an address, and go to another one, as the op says: at the end of wide tiles, with the
    /// shares of the inputs, or, where there are neither, by that op's own kernel. (Read by each thread of tiles of [`OUTPUTS`]
    /// outputs at their end, 6 MB from memory took 30 us.)
    Add(DevPtr, DevPtr, &'a Op),
    /// They are gate and up, and are joined.
    Join(Joined),
}

/// Gate and up as one: silu(min(gate, limit)) * clamp(up, -limit, limit), times the weight of a slot, in parts.
pub(super) struct Joined {
    /// Where it goes: parts of `[tokens or slots, pitch]`.
    pub next: DevPtr,
    /// Numbers of a row there.
    pub pitch: usize,
    /// In the order of tiles.
    pub tiled: bool,
    /// `[tokens, k]`, 0 = none.
    pub slot_weights: DevPtr,
    /// Infinity = none.
    pub limit: f32,
}

/// A product of a launch: its arguments and its matrix.
pub(super) type Part<'a> = (MatMulArgs, &'a WeightDesc);

/// What is added to a product that is the only one of its launch, and where the sum goes; for op `first` of a plan and the
/// one behind it.
pub(super) fn residual(plan: &Plan, first: usize) -> Option<(BufId, BufId)> {
    let (Some(product), Some(Op::Add { x, y, out })) = (plan.ops.get(first), plan.ops.get(first + 1).map(|o| &o.op))
    else {
        return None;
    };
    let Op::MatMul { out: sum, .. } = &product.op else {
        return None;
    };
    let other = if x == sum { y } else { x };
    let one = (x == sum) != (y == sum);
    let unread = sum == out || fuse::dead(plan, *sum, first + 2);
    (takes(plan, &product.op) && one && unread).then_some((*other, *out))
}

/// Whether the kernels here take a product, where the device has them.
pub(super) fn takes(plan: &Plan, op: &Op) -> bool {
    let whole = |d: &WeightDesc| d.rows.is_multiple_of(8) && d.cols.is_multiple_of(8) && d.rows >= ROWS;
    let stored =
        |d: &WeightDesc| d.format == Format::Bf16 && d.layout == Layout::OutIn && d.scales.is_none() && whole(d);
    let fits = |d: &WeightDesc| stored(d) || (whole(d) && dense::of(plan, d).is_some());
    let many = |x| gemm::rows(plan, x) >= FEWEST;
    match op {
        Op::MatMul { x, weight, out, .. } => {
            many(*x) && fits(plan.weight(*weight)) && plan.width(*out).is_multiple_of(4)
        }
        Op::GroupedMatMul { x, weight, groups, .. } => {
            let d = plan.weight(*weight);
            many(*x) && fits(d) && (d.rows / groups).is_multiple_of(OUTPUTS)
        }
        Op::ExpertMatMul { x, weights, .. } => {
            let all = |id: &crate::ir::WeightId| stored(plan.weight(*id));
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

/// Whether the input of a product can lie in the order of tiles, so that the copy engine brings a tile at once: where no tile
/// is gathered from the slots of an expert or cut out of a longer row.
pub(super) fn tiled(op: &Op) -> bool {
    matches!(op, Op::MatMul { .. })
}

/// The matrices of products.
pub(super) fn matrices<'a>(plan: &'a Plan, ops: &[OpId]) -> Vec<&'a WeightDesc> {
    ops.iter()
        .filter_map(|id| match &plan.ops[id.index()].op {
            Op::MatMul { weight, .. } | Op::GroupedMatMul { weight, .. } => Some(plan.weight(*weight)),
            Op::ExpertMatMul { weights, .. } => weights.first().map(|w| plan.weight(*w)),
            _ => None,
        })
        .collect()
}

/// How the blocks of a launch divide its products.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Tiles of [`OUTPUTS`] outputs and of a share of the inputs; another launch adds shares up.
    Tiles { shares: usize },
    /// Tiles of [`WIDE`] outputs, whose inputs the blocks of a cluster share.
    Wide { near: usize },
}

impl Way {
    /// Outputs of a tile, and shares of its inputs.
    fn division(self) -> (usize, usize) {
        match self {
            Way::Tiles { shares } => (OUTPUTS, shares),
            Way::Wide { near } => (WIDE, near),
        }
    }

    /// Blocks at once on so many multiprocessors: clusters are whole.
    fn blocks(self, multiprocessors: usize) -> usize {
        match self {
            Way::Tiles { .. } => multiprocessors.max(1),
            Way::Wide { near } => (multiprocessors / near).max(1) * near,
        }
    }

    /// The kernel for so many parts of the activations; `joined`: of gate and up.
    fn kernel(self, joined: bool, parts: usize) -> &'static str {
        match (self, joined, parts) {
            (Way::Wide { near: 1 }, _, 2) => "gemm_wide",
            (Way::Wide { near: 1 }, ..) => "gemm_wide_all",
            (Way::Wide { .. }, _, 2) => "gemm_near",
            (Way::Wide { .. }, ..) => "gemm_near_all",
            (_, false, 2) => "gemm_wg",
            (_, false, _) => "gemm_wg_all",
            (_, true, 2) => "glu_wg",
            (_, true, _) => "glu_wg_all",
        }
    }
}

/// What products of one launch are like.
struct Shape<'a> {
    /// Outputs of each.
    rows: &'a [usize],
    /// Inputs, those of all parts of the weights.
    cols: usize,
    token_tiles: usize,
    /// Parts of the activations.
    parts: usize,
    /// Something is added to what comes out.
    added: bool,
}

impl Shape<'_> {
    fn steps(&self) -> usize {
        self.cols.div_ceil(STEP).max(1)
    }

    /// Tiles of so many outputs.
    fn tiles(&self, outputs: usize) -> usize {
        self.rows.iter().map(|r| r.div_ceil(outputs)).sum::<usize>() * self.token_tiles
    }

    /// Nanoseconds that should pass: whole rounds of tiles, their steps, and what adding up costs.
    fn nanos(&self, way: Way) -> usize {
        let sums = 4 * self.token_tiles * TOKENS * self.rows.iter().sum::<usize>();
        match way {
            Way::Tiles { shares } => {
                let rounds = (self.tiles(OUTPUTS) * shares).div_ceil(MULTIPROCESSORS);
                let work = rounds * self.steps().div_ceil(shares) * self.parts * STEP_NS + TILE_NS;
                let behind = match shares {
                    1 if !self.added => 0,
                    1 => LAUNCH_NS + 3 * sums / BYTES_PER_NS,
                    _ => LAUNCH_NS + 2 * shares * sums / BYTES_PER_NS,
                };
                work + behind
            }
            Way::Wide { near } => {
                let rounds = self.tiles(WIDE).div_ceil(MULTIPROCESSORS / near);
                rounds * (self.steps() / near * self.parts * WIDE_STEP_NS + WIDE_TILE_NS)
            }
        }
    }

    /// The way that should take least time; `wide`: wide tiles can be had. No share is empty, and those of a cluster are equal.
    fn way(&self, wide: bool) -> Way {
        let steps = self.steps();
        let tiles = (1..=SPLITS.min(steps))
            .filter(|n| (n - 1) * steps.div_ceil(*n) < steps)
            .map(|shares| Way::Tiles { shares });
        let near = (1..=NEAR)
            .filter(|n| wide && steps.is_multiple_of(*n))
            .map(|near| Way::Wide { near });
        let best = tiles.chain(near).min_by_key(|way| self.nanos(*way));
        best.unwrap_or(Way::Tiles { shares: 1 })
    }
}

/// Working memory of a group's shares beside what [`gemm::scratch_bytes`] says of its ops, bytes.
pub(super) fn scratch_bytes(plan: &Plan, group: &[OpId]) -> usize {
    let ops = taken(plan, group);
    let Some(id) = ops.first() else {
        return 0;
    };
    let op = &plan.ops[id.index()].op;
    let matrices = matrices(plan, &ops);
    if matches!(op, Op::ExpertMatMul { .. }) {
        return gemm::scratch_bytes(plan, op);
    }
    gemm::parts_bytes(op, matrices[0], plan.token_bucket) + shares_bytes(plan, &ops)
}

/// Working memory of the shares of products that one launch here takes, bytes.
pub(super) fn shares_bytes(plan: &Plan, ops: &[OpId]) -> usize {
    let matrices = matrices(plan, ops);
    let (rows, bucket) = (matrices.iter().map(|d| d.rows).collect::<Vec<_>>(), plan.token_bucket);
    let experts = |id: &OpId| matches!(plan.ops[id.index()].op, Op::ExpertMatMul { .. });
    let Some(d) = matrices.first().filter(|_| !ops.iter().any(experts)) else {
        return 0;
    };
    // Whether something is added, and whether wide tiles can be had, is known where they are launched.
    let shares = [false, true].map(|added| {
        let shape = Shape {
            rows: &rows,
            cols: dense::cols(plan, d),
            token_tiles: bucket.div_ceil(TOKENS),
            parts: gemm::parts(plan),
            added,
        };
        match shape.way(false) {
            Way::Tiles { shares } if shares > 1 => shares,
            _ => 0,
        }
    });
    4 * shares.into_iter().max().unwrap_or(0) * bucket * rows.iter().sum::<usize>()
}

/// Shared memory of a block (`WgRing`): a ring of buffers, two barriers for each of them, and two more.
fn shared_bytes(parts: usize, outputs: usize) -> usize {
    let buffer = 2 * STEP * (parts * TOKENS + outputs);
    let stages = (225 << 10) / buffer;
    1024 + stages * (buffer + 16) + 16
}

/// Products of one input that is there in parts; `op` is any of them.
pub(super) fn gemm_wg(
    cx: &LaunchCx<'_>,
    op: &Op,
    products: &[Part<'_>],
    places: &Places,
    last: &Last<'_>,
) -> Result<(), ExecError> {
    let Some((a, d)) = products.first() else {
        return Ok(());
    };
    let bucket = gemm::bucket(cx, op);
    let (runs, pitch) = gemm::runs(op, d);
    let experts = match op {
        Op::ExpertMatMul { k, weights, .. } => Some(gemm::sorted(bucket * k, weights.len(), TOKENS)),
        _ => None,
    };
    let tiles = experts.map_or(bucket.div_ceil(TOKENS), |s| s.tiles);
    let rows: Vec<usize> = products.iter().map(|(_, d)| d.rows).collect();
    let parts = gemm::parts(cx.plan);
    let shape = Shape {
        rows: &rows,
        cols: dense::cols(cx.plan, d),
        token_tiles: tiles,
        parts,
        added: matches!(last, Last::Add(..)),
    };
    let way = if experts.is_some() || matches!(last, Last::Join(_)) {
        Way::Tiles { shares: 1 }
    } else {
        shape.way(places.tiled && dense::parts(cx.plan, d) == 1)
    };
    let (outputs, splits) = way.division();
    let mut args = WgArgs::zeroed();
    let (mut tile, mut row, mut free) = (0, 0, cx.dense);
    for (m, (a, d)) in args.matrices.iter_mut().zip(products) {
        (m.w, m.bias, m.out, m.experts) = (a.w, a.bias, a.out, a.experts);
        (m.w, m.parts) = dense::made(cx, a.w, d, &mut free)?;
        (m.out_stride, m.first_tile, m.first_row) = (a.out_stride, tile as u32, row as u32);
        tile += d.rows.div_ceil(outputs);
        row += d.rows;
    }
    (args.parts, args.partial, args.step) = (places.parts, places.partial, a.step);
    (args.n, args.rows, args.tokens) = (products.len() as u32, row as u32, a.tokens);
    (args.runs, args.pitch, args.group_rows) = (runs as u32, pitch as u32, a.group_rows);
    (args.k, args.per_slot) = (a.k, a.per_slot);
    args.tiled = u32::from(places.tiled);
    (args.splits, args.bucket) = (splits as u32, bucket as u32);
    match last {
        Last::Add(residual, out, _) if way != (Way::Tiles { shares: 1 }) => {
            (args.matrices[0].residual, args.matrices[0].out) = (*residual, *out);
        }
        Last::Store | Last::Add(..) => {}
        Last::Join(j) => {
            tile = d.rows / GATES;
            (args.next, args.next_pitch, args.next_tiled) = (j.next, j.pitch as u32, u32::from(j.tiled));
            (args.slot_weights, args.limit) = (j.slot_weights, j.limit);
        }
    }
    (args.token_tiles, args.row_tiles) = (tiles as u32, tile as u32);
    if let Some(s) = experts {
        (args.tiles, args.order) = (places.tiles, places.tiles + s.order);
    }
    let kernel = way.kernel(matches!(last, Last::Join(_)), parts);
    let blocks = (tiles * tile * splits).min(way.blocks(cx.device.info().multiprocessors as usize));
    launch(cx, kernel, [blocks, 1, 1], 384, shared_bytes(parts, outputs), &args)?;
    match (way, last) {
        (Way::Tiles { shares: 1 }, Last::Add(_, _, sum)) => pointwise::add(cx, sum),
        (Way::Tiles { shares }, _) if shares > 1 => {
            launch(cx, "gemm_wg_sum", [row.div_ceil(1024), bucket, 1], 256, 0, &args)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(rows: &[usize], cols: usize, token_tiles: usize, parts: usize) -> Shape<'_> {
        Shape {
            rows,
            cols,
            token_tiles,
            parts,
            added: false,
        }
    }

    #[test]
    fn shares_fill_the_device() {
        // Few outputs, long inputs: shares.
        let down = shape(&[1536], 8960, 4, 2).way(false);
        assert!(matches!(down, Way::Tiles { shares } if shares > 1), "{down:?}");
        // Many outputs: as they are.
        let up = shape(&[8960, 8960], 1536, 16, 2).way(true);
        assert_eq!(up, Way::Tiles { shares: 1 });
        // No share is empty.
        for cols in [64_usize, 65, 640, 4096] {
            let steps = cols.div_ceil(STEP);
            let way = shape(&[64], cols, 1, 3).way(false);
            assert!(
                matches!(way, Way::Tiles { shares } if (shares - 1) * steps.div_ceil(shares) < steps),
                "{cols}: {way:?}"
            );
        }
    }

    #[test]
    fn wide_tiles_where_others_leave_multiprocessors_idle() {
        for (cols, tiles, near) in [(1536, 8, 2), (8960, 8, 2), (1536, 16, 1), (8960, 16, 1)] {
            assert_eq!(
                shape(&[1536], cols, tiles, 2).way(true),
                Way::Wide { near },
                "{cols}, {tiles}"
            );
        }
        // Steps that cannot be halved.
        let odd = shape(&[1536], 1472, 8, 2).way(true);
        assert!(!matches!(odd, Way::Wide { near: 2 }), "{odd:?}");
    }
}
