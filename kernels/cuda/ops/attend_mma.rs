//! Attention on tensor cores: which attentions go there, and how the work is cut.

use super::attend::{FOLDED, SPLITS, most_keys};
use super::gemv;
use crate::cuda::cx::ARRIVALS;
use crate::ir::{CacheFormat, CacheId, KeyRows, Mask, Op, Plan};

/// Rows of lists a block remembers (`kLists`), sources it knows (`kSources`), bytes of a `Sight` and of a `Span`.
const LISTS: usize = 4;
const SOURCES: usize = 2;
const SIGHT: usize = 12;
const SPAN: usize = 24;
/// Blocks a large device runs at once: two per multiprocessor.
const BLOCKS: usize = 264;
/// Keys from which on a few tokens are worth tensor cores: a step of few tokens over few keys waits for launches, not for
/// keys.
const MANY_KEYS: usize = 4096;
/// Least keys of a share: of heads up to 128 values, of wider ones (on an H200 128 tokens x 160 keys took 20 us in one share, 28
/// in two; x 640 keys 52 and 49).
const SHARE: usize = 128;
const WIDE_SHARE: usize = 320;
/// Parts a number is split into (`P`).
const PARTS: usize = 2;
/// Shared memory a block has on every GPU since Ampere, bytes.
const SHARED: usize = 99 << 10;

/// What blocks of many rows take, as measured on an H200.
pub(super) struct Pace {
    /// Blocks that the device runs at once.
    pub at_once: usize,
    /// Keys of a tile, and how long one takes beside the others that run, ns.
    pub keys: usize,
    pub tile_ns: usize,
    /// What a block takes beside its tiles, ns.
    pub block_ns: usize,
}

impl Pace {
    /// The shares of the keys, up to `most`, with which `blocks` blocks per share should be done first, where contexts go up to
    /// `context` and a share of all blocks is `written` bytes. Shares of long texts fill the device evenly; every one costs its
    /// block's beginning and end, and is written and read again.
    pub(super) fn shares(&self, blocks: usize, context: usize, written: usize, most: usize) -> usize {
        // Contexts that grow fill half of their bucket or more.
        let tiles = (context / 2).div_ceil(self.keys).max(1);
        let nanos = |shares: &usize| {
            let longest = tiles.div_ceil(*shares) * self.tile_ns + self.block_ns;
            let all = blocks * shares * longest / self.at_once;
            let together = if *shares > 1 {
                SHARES_NS + 2 * shares * written / BYTES_PER_NS
            } else {
                0
            };
            longest.max(all) + together
        };
        (1..=most).min_by_key(nanos).unwrap_or(1)
    }
}

/// A launch that puts shares together, beside its bytes; and how many of those are written or read in a nanosecond.
const SHARES_NS: usize = 4000;
const BYTES_PER_NS: usize = 3000;

/// Blocks with 64 rows.
const PACE: Pace = Pace {
    at_once: BLOCKS,
    keys: 64,
    tile_ns: 4300,
    block_ns: 10_000,
};

/// How `attend_mma_*` and `attend_wide_*` cut the work; depends on the plan's buckets alone.
pub(super) struct MmaShape {
    /// The kernel.
    pub kernel: &'static str,
    /// Threads of a block.
    pub threads: usize,
    /// Blocks along the rows of queries of one key head.
    pub runs: usize,
    /// Whether a block has rows of one token alone: where tokens choose their keys.
    pub single: bool,
    /// Shares of the keys.
    pub splits: usize,
    /// Whether the last block of some rows puts their shares together.
    pub folds: bool,
    /// Dynamic shared memory of a block, bytes.
    pub shared: usize,
}

impl MmaShape {
    /// `None` for what goes to other kernels: masks that choose by scores, score expressions, caches of numbers that are no
    /// bf16 numbers, few tokens over few keys.
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
        let keys: usize = sources.iter().map(|s| most_keys(plan, s, mask)).sum();
        let plain = score.is_none() && matches!(mask, Mask::None | Mask::SlidingWindow { .. });
        let many = plan.token_bucket > gemv::TOKENS || keys > MANY_KEYS;
        let fits = |c: CacheId| exact(plan, c, *head_dim);
        if !plain || !many || !sources.iter().all(|s| fits(s.keys) && fits(s.values)) {
            return None;
        }
        let group = heads / kv_heads;
        let single = sources
            .iter()
            .any(|s| matches!(s.rows, KeyRows::Compressed { selection: Some(_), .. }));
        // A block of few rows shares its keys out among its warps.
        let few = (if single { group } else { plan.token_bucket * group }) <= 16;
        let (kernel, narrow) = match (head_dim, few) {
            (32, false) => ("attend_mma_32", true),
            (32, true) => ("attend_mma_32_few", true),
            (64, false) => ("attend_mma_64", true),
            (64, true) => ("attend_mma_64_few", true),
            (128, false) => ("attend_mma_128", true),
            (128, true) => ("attend_mma_128_few", true),
            (256, _) => ("attend_wide_256", false),
            (512, _) => ("attend_wide_512", false),
            _ => return None,
        };
        let per = if narrow && !few { 64 } else { 16 };
        let runs = match single {
            true => plan.token_bucket * group.div_ceil(per),
            false => (plan.token_bucket * group).div_ceil(per),
        };
        let share = if narrow { SHARE } else { WIDE_SHARE };
        let blocks = (runs * kv_heads).max(1);
        // A token over a long context: as many shares as there is room for.
        let written = 4 * plan.token_bucket * heads * (head_dim + 4);
        let splits = match (narrow, few) {
            (true, true) => (BLOCKS / blocks).min(keys / share).clamp(1, SPLITS),
            (true, false) => PACE.shares(blocks, keys, written, (keys / share).clamp(1, SPLITS)),
            (false, _) => filling(blocks, keys / share),
        };
        let separate = sources.iter().any(|s| s.keys != s.values);
        let shared = shared_bytes(*head_dim, narrow, few, separate);
        (shared <= SHARED).then_some(Self {
            kernel,
            threads: if narrow { 128 } else { head_dim / 2 },
            runs,
            single,
            splits,
            folds: per == 16 && splits > 1 && splits <= FOLDED && blocks <= ARRIVALS,
            shared,
        })
    }
}

/// The fewest shares with which `blocks` blocks per share leave little of the device idle in their last round.
fn filling(blocks: usize, most: usize) -> usize {
    let idle = |splits: &usize| {
        let all = blocks * splits;
        (all.next_multiple_of(BLOCKS) - all) * 100 / all
    };
    let few = (1..=most.clamp(1, SPLITS)).take_while(|s| *s == 1 || blocks * s <= 4 * BLOCKS);
    let best = few.clone().find(|s| idle(s) <= 15);
    best.or_else(|| few.min_by_key(idle)).unwrap_or(1)
}

/// Whether a cache's values are bf16 numbers, and lie where eight neighbours can be read at once.
fn exact(plan: &Plan, c: CacheId, head_dim: usize) -> bool {
    let d = &plan.caches[c.index()];
    let (data, _) = d.format.record_bytes(d.width, d.rope);
    let codes = d.width - d.rope;
    d.width == head_dim
        && match d.format {
            CacheFormat::Bf16 => data.is_multiple_of(16),
            // The part kept for rotation is copied 16 bytes at a time.
            CacheFormat::Fp8Model1 | CacheFormat::Fp8B64 if d.rope > 0 => {
                data.is_multiple_of(16) && codes.is_multiple_of(16)
            }
            CacheFormat::Fp8Model1 | CacheFormat::Fp8B64 => data.is_multiple_of(8),
            CacheFormat::Fp4 => d.rope == 0 && data.is_multiple_of(4),
            CacheFormat::F32 | CacheFormat::Fp8V32 => false,
        }
}

/// Shared memory: `Shared` of the kernel, then two tiles of keys, and of values kept apart.
fn shared_bytes(dim: usize, narrow: bool, few: bool, separate: bool) -> usize {
    let (keys, rows) = match (narrow, few) {
        (true, true) => (64, 16),
        (true, false) => (64, 64),
        (false, _) => (32, 16),
    };
    let lists = 2 * 4 * LISTS * keys + SOURCES * (SIGHT * rows + SPAN) + (LISTS + 8) * 4;
    let folded = if rows == 16 { FOLDED } else { 1 };
    let found = 4 * (rows * (2 * if few && narrow { 4 } else { 1 } + folded + 1) + 1);
    let exchanged = match narrow {
        true => 0,
        false => 4 * (dim / 64) * rows * (keys + 8) + 4 * PARTS * rows * (keys / 2 + 4) + 4 * rows,
    };
    let queries = if narrow { (PARTS - 1) * dim / 16 * 32 * rows } else { 0 };
    let tile = 4 * keys * (dim / 2 + 4);
    (lists + found + exchanged).next_multiple_of(16) + queries + 2 * tile * if separate { 2 } else { 1 }
}
