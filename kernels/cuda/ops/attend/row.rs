//! Attention of few tokens over short contexts: `attend_row_*` and, for one token, `attend_keys_*` and `attend_near_*`.

use bytemuck::bytes_of;

use super::super::args::{CacheArg, launch, unsupported};
use super::super::attend_mma::MmaShape;
use super::super::chain::domain;
use super::super::{fuse, pointwise};
use super::{AttendArgs, BLOCKS, FOLDED, MANY_KEYS, SOURCES, SPLITS, SourceArg, THREADS, most_keys, turned};
use crate::cuda::cx::{ARRIVALS, LaunchCx, cache_code};
use crate::cuda::device::{Arg, Launch};
use crate::ir::{CacheFormat, CacheId, ExecError, Mask, NormKind, Op, Plan, Positions, RopeStyle};

/// The kernel for few tokens with heads of 512 values.
const WIDE: &str = "attend_row_512x4";
/// Blocks of a cluster of `attend_near_*`, their heads, keys of a tile and of a block at a time (`kNear` and the like in
/// `src/attend_near.cu`), and most keys that such blocks shall go through.
const NEAR: usize = 8;
const NEAR_HEADS: usize = 2;
const NEAR_TILE: usize = 16;
const MOST_ROWS: usize = 5 * NEAR_TILE;
const MOST_NEAR: usize = 4096;

/// `KeySpan` of `src/attend_keys.cuh`.
const SPAN: usize = 72;

/// Shared memory of a block with room for `lanes` heads: the sums of its eight warps, then `HeadShares`
/// (`src/attend_heads.cuh`).
fn heads_bytes(lanes: usize, head_dim: usize) -> usize {
    const WARPS: usize = THREADS / 32;
    4 * WARPS * lanes * head_dim + 4 * lanes * (2 * WARPS + FOLDED + 1) + 8 * 256 + 16
}

/// `attend_near_*`: a kernel whose blocks see each other's shared memory, which holds the keys.
#[derive(Clone, Copy)]
struct NearShape {
    kernel: &'static str,
    /// Bytes of a record and of its scales, and of both in shared memory.
    record: (u32, u32),
    place: usize,
}

/// By [`KeysShape`]'s formats; f32 has none.
const NEAR_SHAPES: [Option<NearShape>; 3] = [
    None,
    Some(NearShape {
        kernel: "attend_near_512x2_bf16",
        record: (1024, 0),
        place: 1040,
    }),
    Some(NearShape {
        kernel: "attend_near_512x2_fp8",
        record: (576, 8),
        place: 592,
    }),
];

impl NearShape {
    fn takes(&self, source: &SourceArg) -> bool {
        let c = &source.keys;
        c.records == 1 && (c.data_bytes, c.scale_bytes) == self.record
    }

    /// Keys that a block has at a time where there are so many in all. Blocks of the launch behind need room beside it.
    fn rows(keys: usize) -> usize {
        keys.div_ceil(NEAR)
            .next_multiple_of(NEAR_TILE)
            .clamp(NEAR_TILE, MOST_ROWS)
    }

    /// Shared memory of a block: keys, and their scores by warp and head.
    fn bytes(&self, rows: usize) -> usize {
        rows * (self.place + THREADS / 32 * NEAR_HEADS * 4)
    }
}

/// How `attend_row_*` cuts the work; depends on the plan's buckets alone.
pub(super) struct RowShape {
    kernel: &'static str,
    /// Heads the kernel has room for.
    lanes: usize,
    /// Heads per block.
    heads: usize,
    /// Shares of the keys.
    pub(super) splits: usize,
    /// Keys at most.
    keys: usize,
}

impl RowShape {
    /// `None` for shapes and masks that go to other kernels.
    pub(super) fn of(plan: &Plan, op: &Op) -> Option<Self> {
        let Op::Attend {
            heads,
            kv_heads,
            head_dim,
            sources,
            mask,
            score,
            ..
        } = op
        else {
            return None;
        };
        if score.is_some() || matches!(mask, Mask::TopK { .. } | Mask::BlockSkip { .. }) {
            return None;
        }
        let group = heads / kv_heads;
        let (kernel, lanes, team) = match (head_dim, group) {
            (32, _) => ("attend_row_32x4", 4, 8),
            (64, 1) => ("attend_row_64x1", 1, 8),
            (64, _) => ("attend_row_64x4", 4, 8),
            (128, 1) => ("attend_row_128x1", 1, 16),
            (128, _) => ("attend_row_128x4", 4, 16),
            (256, _) => ("attend_row_256x4", 4, 32),
            (512, _) => (WIDE, 4, 32),
            _ => return None,
        };
        let fits = |c: CacheId| {
            let d = &plan.caches[c.index()];
            d.width == *head_dim && d.width.is_multiple_of(4) && d.rope.is_multiple_of(4)
        };
        if !sources.iter().all(|s| fits(s.keys) && fits(s.values)) {
            return None;
        }
        let per_block = (1..=group.min(lanes))
            .rev()
            .find(|n| group.is_multiple_of(*n))
            .unwrap_or(1);
        let keys: usize = sources.iter().map(|s| most_keys(plan, s, mask)).sum();
        let blocks = plan.token_bucket * heads / per_block;
        // A team has some keys of its own to go through, unless the device would stand idle.
        let wanted = keys.div_ceil(4 * THREADS / team);
        let most = if keys >= MANY_KEYS { SPLITS } else { FOLDED };
        let splits = (BLOCKS / 2).div_ceil(blocks).min(wanted).clamp(1, most);
        Some(Self {
            kernel,
            lanes,
            heads: per_block,
            splits,
            keys,
        })
    }

    /// Whether the last block puts the shares together.
    pub(super) fn folds(&self, plan: &Plan, heads: usize) -> bool {
        self.splits > 1 && self.splits <= FOLDED && plan.token_bucket * heads / self.heads <= ARRIVALS
    }

    /// Shared memory of a block.
    fn shared_bytes(&self, head_dim: usize) -> usize {
        heads_bytes(self.lanes, head_dim)
    }
}

/// Attention of one token by `attend_keys_*` (`src/attend_keys.cuh`): a kernel per cache format, for the plainer caches.
struct KeysShape {
    kernel: &'static str,
    /// The kernel for blocks that see each other's shared memory, where there is one.
    near: Option<NearShape>,
    /// Heads per block.
    heads: usize,
    /// Shared memory of a block, bytes.
    shared: usize,
}

impl KeysShape {
    /// `None` for more tokens, and for caches that go to `attend_row_*`. `args` are otherwise those of that kernel.
    fn of(row: &RowShape, tokens: usize, args: &AttendArgs) -> Option<Self> {
        macro_rules! kernels {
            ($shape:literal) => {
                [
                    concat!("attend_keys_", $shape, "_f32"),
                    concat!("attend_keys_", $shape, "_bf16"),
                    concat!("attend_keys_", $shape, "_fp8"),
                ]
            };
        }
        let (kernels, lanes, columns) = match row.kernel {
            "attend_row_64x1" => (kernels!("64x1"), 1, 8),
            "attend_row_64x4" => (kernels!("64x3"), 3, 8),
            "attend_row_128x1" => (kernels!("128x1"), 1, 8),
            "attend_row_128x4" => (kernels!("128x3"), 3, 8),
            WIDE => (kernels!("512x2"), 2, 16),
            _ => return None,
        };
        let formats = [
            CacheFormat::F32,
            CacheFormat::Bf16,
            CacheFormat::Fp8Model1,
            CacheFormat::Fp8B64,
        ]
        .map(cache_code);
        let format = formats.iter().position(|f| *f == args.format)?;
        let plain = |s: &SourceArg| {
            let (k, v) = (&s.keys, &s.values);
            let of = |c: &CacheArg| [c.data_bytes, c.scale_bytes, c.records, c.width, c.rope, c.ring];
            // Latents are read once, as keys and as values; a thread's columns lie before or behind the border of the part kept
            // for rotation.
            let same = columns == 8 || k.data == v.data;
            of(k) == of(v) && same && (k.width - k.rope).is_multiple_of(columns) && k.data_bytes.is_multiple_of(8)
        };
        let heads = (1..=lanes).rev().find(|n| row.heads.is_multiple_of(*n)).unwrap_or(1);
        let blocks = args.heads as usize / heads;
        let sources = &args.sources[..args.n_sources as usize];
        let fits = tokens == 1 && sources.iter().all(plain);
        let near = NEAR_SHAPES[format.min(2)].filter(|near| {
            row.kernel == WIDE
                && row.heads.is_multiple_of(NEAR_HEADS)
                && row.keys <= MOST_NEAR
                && sources.iter().all(|s| near.takes(s))
        });
        // `KeysShared` begins with where the keys of each source lie (`KeySpan`).
        let shared = SOURCES * SPAN + heads_bytes(lanes, args.head_dim as usize);
        (fits && (args.fold == 0 || blocks <= ARRIVALS)).then_some(Self {
            kernel: kernels[format.min(2)],
            near,
            heads,
            shared,
        })
    }
}

/// What is done with the queries of the attention at op `at` before, where the blocks of `attend_keys_512x2_*` can do it: a norm
/// of every head without weights, and the rotation that [`turned`] takes back. Nothing in between may touch the queries.
pub(in super::super) fn before(plan: &Plan, at: usize) -> Option<[usize; 2]> {
    let op = |i: usize| plan.ops.get(i).map(|o| &o.op);
    let attend @ Op::Attend { q, heads, head_dim, .. } = op(at)? else {
        return None;
    };
    let Some(Op::Rope {
        offset,
        dims,
        table,
        inverse: true,
        ..
    }) = turned(plan, attend, op(at + 1))
    else {
        return None;
    };
    let fits = plan.token_bucket == 1 && RowShape::of(plan, attend).is_some_and(|s| s.kernel == WIDE);
    if !fits || MmaShape::of(plan, attend).is_some() {
        return None;
    }
    let last = |from: usize| {
        let touches = |o: &Op| fuse::reads(o).contains(q) || domain(o) == Some(*q) || fuse::writes(o).contains(q);
        (0..from).rev().find(|&i| op(i).is_some_and(touches))
    };
    let rope = last(at)?;
    let norm = last(rope)?;
    let turns = matches!(op(rope), Some(Op::Rope {
            x,
            heads: h,
            head_dim: d,
            offset: o,
            dims: n,
            style: RopeStyle::Interleaved,
            table: t,
            positions: Positions::Tokens,
            inverse: false,
        }) if (x, h, d, o, n, t) == (q, heads, head_dim, offset, dims, table));
    let norms = matches!(op(norm), Some(Op::Norm {
            kind: NormKind::Rms,
            x,
            weight: None,
            bias: None,
            out,
            group,
            ..
        }) if x == q && out == q && group == head_dim);
    (turns && norms && fuse::dead(plan, *q, at + 1)).then_some([norm, rope])
}

/// Enqueues an attention of few tokens over short contexts.
pub(super) fn attend_row(
    cx: &LaunchCx<'_>,
    op: &Op,
    shape: &RowShape,
    (first, turn): (Option<[&Op; 2]>, Option<&Op>),
    mut args: AttendArgs,
) -> Result<(), ExecError> {
    let Op::Attend {
        heads,
        head_dim,
        sources,
        out,
        ..
    } = op
    else {
        return unsupported("this op as attention");
    };
    let rows = cx.buf(*out).rows;
    args.splits = shape.splits as u32;
    (args.block_heads, args.block_tokens) = (shape.heads as u32, 1);
    let folds = shape.folds(cx.plan, *heads);
    (args.fold, args.arrived) = (u32::from(folds), cx.arrived);
    let mut formats = sources
        .iter()
        .flat_map(|s| [s.keys, s.values])
        .map(|c| cache_code(cx.cache(c).desc.format));
    let format = formats.next().unwrap_or(u32::MAX);
    args.format = if formats.all(|f| f == format) { format } else { u32::MAX };
    args.turn(cx, turn);
    let keys = KeysShape::of(shape, cx.plan.token_bucket, &args);
    if let Some([norm, rope]) = first {
        match (&keys, norm) {
            (Some(_), Op::Norm { eps, .. }) => (args.prepare, args.q_eps) = (1, *eps),
            _ => {
                pointwise::norm(cx, norm)?;
                pointwise::rope(cx, rope)?;
            }
        }
    }
    match keys {
        Some(keys) => {
            if let Some(near) = keys.near.filter(|_| cx.device.info().clusters) {
                // Launches for several sequences are alike, whatever each of them has.
                let most = if cx.noted.is_some() { MOST_NEAR } else { shape.keys };
                let at_once = NearShape::rows(most);
                (args.block_heads, args.splits, args.fold) = (NEAR_HEADS as u32, NEAR as u32, 0);
                args.rows = at_once as u32;
                let grid = [rows, heads / NEAR_HEADS, NEAR];
                return cx.enqueue(&Launch {
                    kernel: near.kernel,
                    grid: grid.map(|n| n as u32),
                    block: [THREADS as u32, 1, 1],
                    shared: near.bytes(at_once),
                    early: cx.early(),
                    apart: true,
                    args: &[Arg::Struct(bytes_of(&args))],
                });
            }
            args.block_heads = keys.heads as u32;
            let grid = [rows, heads / keys.heads, shape.splits];
            launch(cx, keys.kernel, grid, THREADS, keys.shared, &args)?;
        }
        None => {
            let grid = [rows, heads / shape.heads, shape.splits];
            launch(cx, shape.kernel, grid, THREADS, shape.shared_bytes(*head_dim), &args)?;
        }
    }
    if shape.splits > 1 && !folds {
        let block = head_dim.next_multiple_of(32).clamp(SPLITS, 512);
        launch(cx, "attend_combine", [*heads, rows, 1], block, 0, &args)?;
    }
    Ok(())
}
