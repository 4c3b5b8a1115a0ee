//! Attention.

use bytemuck::{Pod, Zeroable};

use super::args::{CacheArg, WeightArg, launch, unsupported};
use super::attend_mma::MmaShape;
use super::attend_wg::{self, WgShape};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{ExecError, KeyRows, KeySource, Mask, Op, Plan, Positions, RopeStyle};

mod row;

pub(super) use row::before;
use row::{RowShape, attend_row};

/// Sources of keys one attention takes (`kSources`).
const SOURCES: usize = 2;
/// Keys per tile (`kKeys`).
const KEYS: usize = 32;
/// Threads of a block.
pub(super) const THREADS: usize = 256;
/// Largest head dimension: two columns per thread.
const MAX_DIM: usize = 2 * THREADS;
/// Blocks that keep a large device busy (several per multiprocessor, so that one computes while another loads); the split
/// count is chosen to reach it.
const BLOCKS: usize = 528;

/// Most shares of the keys (`kMostSplits`).
pub(super) const SPLITS: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SourceArg {
    keys: CacheArg,
    values: CacheArg,
    selection: DevPtr,
    kind: u32,
    window: u32,
    rate: u32,
    k: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct AttendArgs {
    sources: [SourceArg; SOURCES],
    sinks: WeightArg,
    q: DevPtr,
    out: DevPtr,
    partial: DevPtr,
    step: DevPtr,
    arrived: DevPtr,
    turn_freqs: DevPtr,
    n_sources: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    mask: u32,
    window: u32,
    first: u32,
    k: u32,
    splits: u32,
    block_heads: u32,
    block_tokens: u32,
    scale: f32,
    fold: u32,
    format: u32,
    turn_offset: u32,
    turn_dims: u32,
    turn_inverse: u32,
    prepare: u32,
    q_eps: f32,
    rows: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SkipArgs {
    attend: AttendArgs,
    kept: DevPtr,
    threshold: f32,
    pad: u32,
}

impl AttendArgs {
    /// Has the output rotated as the op that [`turned`] found says.
    fn turn(&mut self, cx: &LaunchCx<'_>, op: Option<&Op>) {
        if let Some(Op::Rope {
            offset,
            dims,
            table,
            inverse,
            ..
        }) = op
        {
            (self.turn_freqs, self.turn_inverse) = (cx.rope(*table).freqs, u32::from(*inverse));
            (self.turn_offset, self.turn_dims) = (*offset as u32, *dims as u32);
        }
    }
}

/// How the work is cut; depends on the plan's buckets alone.
struct Shape {
    /// Lanes (a head of a token) a block has room for: 4, 8 or 16.
    lanes: usize,
    /// Heads per block.
    heads: usize,
    /// Tokens per block.
    tokens: usize,
    /// Shares of the keys.
    splits: usize,
}

impl Shape {
    fn of(plan: &Plan, op: &Op) -> Option<Self> {
        let Op::Attend {
            heads,
            kv_heads,
            head_dim,
            sources,
            mask,
            ..
        } = op
        else {
            return None;
        };
        let group = heads / kv_heads;
        // Neighbouring tokens share a causal list of keys; other lists differ from token to token.
        let causal = matches!(
            sources[..],
            [KeySource {
                rows: KeyRows::Causal,
                ..
            }]
        );
        // 16 lanes of wide heads would take more shared memory than a block has on GPUs other than data centres'.
        let room = if *head_dim > THREADS { 8 } else { 16 };
        let per_block = (1..=group.min(room))
            .rev()
            .find(|n| group.is_multiple_of(*n))
            .unwrap_or(1);
        let most = if causal { room / per_block } else { 1 };
        let tokens = most.min(plan.token_bucket).max(1);
        let lanes = [4, 8].into_iter().find(|n| per_block * tokens <= *n).unwrap_or(room);
        let keys: usize = sources.iter().map(|s| most_keys(plan, s, mask)).sum();
        let blocks = plan.token_bucket.div_ceil(tokens) * kv_heads * (group / per_block);
        // Growing contexts fill half of their bucket or more: two tiles per share there, one where the keys are few.
        let least = if causal { 2 * KEYS } else { KEYS };
        let splits = BLOCKS.div_ceil(blocks).min(keys.div_ceil(least)).clamp(1, SPLITS);
        Some(Self {
            lanes,
            heads: per_block,
            tokens,
            splits,
        })
    }
}

/// Most keys of a source in the plan's bucket.
pub(super) fn most_keys(plan: &Plan, source: &KeySource, mask: &Mask) -> usize {
    match source.rows {
        KeyRows::Causal => match mask {
            Mask::SlidingWindow { window, sinks } => plan
                .context_bucket
                .min(window.saturating_add(*sinks).saturating_add(plan.token_bucket)),
            _ => plan.context_bucket,
        },
        KeyRows::Window { window } => window.min(plan.context_bucket),
        KeyRows::Compressed { rate, selection } => {
            let rows = plan.context_bucket / rate;
            selection.map_or(rows, |b| rows.min(plan.width(b)))
        }
    }
}

/// Most shares that the last block of a token's heads puts together (`kFolded`).
pub(super) const FOLDED: usize = 32;
/// Keys from which on more shares, and a launch that puts them together, are worth it.
const MANY_KEYS: usize = 4096;

/// Working memory of an attention, bytes.
pub(super) fn scratch_bytes(plan: &Plan, op: &Op) -> usize {
    let Op::Attend {
        heads,
        head_dim,
        mask,
        score,
        ..
    } = op
    else {
        return 0;
    };
    // Whether the device has the kernels for Hopper is not known yet.
    let wide = WgShape::of(plan, op).map_or(1, |s| s.splits);
    let cut = MmaShape::of(plan, op).map(|s| s.splits.max(wide));
    let cut = cut.or_else(|| RowShape::of(plan, op).map(|s| s.splits));
    let splits = cut.or(Shape::of(plan, op).map(|s| s.splits)).unwrap_or(1);
    if splits == 1 || score.is_some() || matches!(mask, Mask::TopK { .. } | Mask::BlockSkip { .. }) {
        return 0;
    }
    4 * plan.token_bucket * heads * splits * (head_dim + 4)
}

/// The rotation behind an attention that its last blocks can do: of its output, in neighbouring pairs.
pub(super) fn turned<'a>(plan: &Plan, attend: &Op, next: Option<&'a Op>) -> Option<&'a Op> {
    let (
        Op::Attend {
            out, heads, head_dim, ..
        },
        Some(next),
    ) = (attend, next)
    else {
        return None;
    };
    let Op::Rope {
        x,
        heads: h,
        head_dim: d,
        offset,
        dims,
        style: RopeStyle::Interleaved,
        positions: Positions::Tokens,
        ..
    } = next
    else {
        return None;
    };
    let fits = x == out && h == heads && d == head_dim && offset.is_multiple_of(4) && dims.is_multiple_of(4);
    if MmaShape::of(plan, attend).is_some() {
        return fits.then_some(next);
    }
    let shape = RowShape::of(plan, attend)?;
    (fits && *dims <= 512 && (shape.splits == 1 || shape.folds(plan, *heads))).then_some(next)
}

/// Shared memory of `attend_*`: queries, a tile of keys and one of values kept apart (or the row groups' sums), weights, state, key lists.
fn shared_bytes(lanes: usize, dim: usize, separate: bool) -> usize {
    let columns = dim.next_multiple_of(32).min(THREADS);
    let columns = THREADS / (THREADS / columns);
    let groups = THREADS / columns;
    let tile =
        (KEYS * (dim + 4) * if separate { 2 } else { 1 }).max(if groups > 1 { groups * lanes * columns } else { 0 });
    4 * (lanes * dim + tile + lanes * KEYS + 3 * lanes + 3 * KEYS)
}

/// Enqueues an attention, with the norm and the rotation of its queries that [`before`] found and the rotation of its output
/// that [`turned`] found. `kept`: where an attention that skips blocks counts its keys.
pub(super) fn attend(
    cx: &LaunchCx<'_>,
    op: &Op,
    first: Option<[&Op; 2]>,
    turn: Option<&Op>,
    kept: DevPtr,
) -> Result<(), ExecError> {
    let (
        Op::Attend {
            q,
            out,
            heads,
            kv_heads,
            head_dim,
            scale,
            sources,
            sinks,
            mask,
            score,
        },
        Some(shape),
    ) = (op, Shape::of(cx.plan, op))
    else {
        return unsupported("this op as attention");
    };
    if sources.is_empty() || sources.len() > SOURCES {
        return unsupported(format!("attention over {} sources (1 to {SOURCES})", sources.len()));
    }
    if *head_dim > MAX_DIM || !head_dim.is_multiple_of(4) {
        return unsupported(format!(
            "a head dimension of {head_dim} (multiples of 4 up to {MAX_DIM})"
        ));
    }
    let (q, out) = (cx.buf(*q), cx.buf(*out));
    let mut args = AttendArgs::zeroed();
    for (a, s) in args.sources.iter_mut().zip(sources) {
        *a = source(cx, s);
    }
    args.sinks = WeightArg::optional(cx, *sinks);
    (args.q, args.out, args.partial, args.step) = (q.ptr, out.ptr, cx.scratch, cx.step);
    args.n_sources = sources.len() as u32;
    (args.heads, args.kv_heads, args.head_dim) = (*heads as u32, *kv_heads as u32, *head_dim as u32);
    args.scale = *scale;
    match mask {
        Mask::None => {}
        Mask::SlidingWindow { window, sinks } => {
            (args.mask, args.window, args.first) = (1, clamp(*window), clamp(*sinks));
        }
        Mask::TopK { .. } | Mask::BlockSkip { .. } if score.is_some() => {
            return unsupported("a score expression with a mask that chooses by scores");
        }
        Mask::TopK { k } => {
            (args.mask, args.k) = (2, clamp(*k));
            return launch(cx, "attend_top_k", [*heads, q.rows, 1], THREADS, 4 * head_dim, &args);
        }
        Mask::BlockSkip { threshold } => {
            let args = SkipArgs {
                attend: args,
                kept,
                threshold: *threshold,
                pad: 0,
            };
            return launch(cx, "attend_skip", [*heads, q.rows, 1], THREADS, 4 * head_dim, &args);
        }
    }
    if let Some(program) = score {
        return super::score::attend(cx, program, &args, [*heads, q.rows, 1], 4 * head_dim);
    }
    if let (Some(shape), None, true) = (WgShape::of(cx.plan, op), turn, cx.device.info().wgmma) {
        return attend_wg(cx, &shape, args);
    }
    if let Some(shape) = MmaShape::of(cx.plan, op) {
        return attend_mma(cx, &shape, turn, args);
    }
    if let Some(row) = RowShape::of(cx.plan, op) {
        return attend_row(cx, op, &row, (first, turn), args);
    }
    args.splits = shape.splits as u32;
    (args.block_heads, args.block_tokens) = (shape.heads as u32, shape.tokens as u32);
    let kernel = match (shape.lanes, *head_dim > THREADS) {
        (4, false) => "attend_4",
        (4, true) => "attend_4_wide",
        (8, false) => "attend_8",
        (_, true) => "attend_8_wide",
        (_, false) => "attend_16",
    };
    let separate = sources.iter().any(|s| s.keys != s.values);
    let shared = shared_bytes(shape.lanes, *head_dim, separate);
    let parts = kv_heads * (heads / kv_heads / shape.heads);
    let grid = [q.rows.div_ceil(shape.tokens), parts, shape.splits];
    launch(cx, kernel, grid, THREADS, shared, &args)?;
    if shape.splits > 1 {
        let block = head_dim.next_multiple_of(32).clamp(SPLITS, 512);
        launch(cx, "attend_combine", [*heads, q.rows, 1], block, 0, &args)?;
    }
    Ok(())
}

/// Attention on tensor cores.
fn attend_mma(cx: &LaunchCx<'_>, shape: &MmaShape, turn: Option<&Op>, mut args: AttendArgs) -> Result<(), ExecError> {
    args.turn(cx, turn);
    args.block_heads = args.heads / args.kv_heads;
    (args.splits, args.block_tokens) = (shape.splits as u32, u32::from(shape.single));
    (args.fold, args.arrived) = (u32::from(shape.folds), cx.arrived);
    let grid = [shape.runs, args.kv_heads as usize, shape.splits];
    launch(cx, shape.kernel, grid, shape.threads, shape.shared, &args)?;
    if shape.folds {
        return Ok(());
    }
    put_together(cx, &args)
}

/// Attention of many tokens by wgmma.
fn attend_wg(cx: &LaunchCx<'_>, shape: &WgShape, mut args: AttendArgs) -> Result<(), ExecError> {
    args.block_heads = args.heads / args.kv_heads;
    args.splits = shape.splits as u32;
    let grid = [args.kv_heads as usize, shape.runs, shape.splits];
    launch(cx, shape.kernel, grid, attend_wg::THREADS, shape.shared, &args)?;
    put_together(cx, &args)
}

/// Puts the shares of the keys together that blocks of tensor cores have left.
fn put_together(cx: &LaunchCx<'_>, args: &AttendArgs) -> Result<(), ExecError> {
    let (heads, tokens, splits) = (args.heads as usize, cx.plan.token_bucket, args.splits as usize);
    match splits {
        1 => Ok(()),
        2..=FOLDED => {
            let grid = [(heads * tokens).div_ceil(THREADS / 32), 1, 1];
            launch(cx, "attend_shares_few", grid, THREADS, 0, args)
        }
        _ => launch(cx, "attend_shares", [heads, tokens, 1], 512, 0, args),
    }
}

/// Counts beyond any context stay beyond it.
fn clamp(n: usize) -> u32 {
    n.min(1 << 30) as u32
}

fn source(cx: &LaunchCx<'_>, s: &KeySource) -> SourceArg {
    let mut arg = SourceArg::zeroed();
    arg.keys = CacheArg::of(&cx.cache(s.keys));
    arg.values = CacheArg::of(&cx.cache(s.values));
    match s.rows {
        KeyRows::Causal => {}
        KeyRows::Window { window } => (arg.kind, arg.window) = (1, clamp(window)),
        KeyRows::Compressed { rate, selection } => {
            (arg.kind, arg.rate) = (2, rate as u32);
            if let Some(b) = selection {
                let b = cx.buf(b);
                (arg.selection, arg.k) = (b.ptr, b.width as u32);
            }
        }
    }
    arg
}
