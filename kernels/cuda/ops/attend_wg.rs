//! Attention of many tokens on Hopper's tensor cores (wgmma): which attentions go there, and how the work is cut.

use super::attend::SPLITS;
use super::attend_mma::Pace;
use super::gemv;
use crate::ir::{CacheFormat, CacheId, CacheRows, KeyRows, Mask, Op, Plan};

/// Rows of queries of a block, keys of a tile, buffers of tiles, parts of a number (`kGroups * kRows`, `kTokens`, `kBuffers`,
/// `kParts`), bytes of a row of 64 columns (`kRowBytes`).
const ROWS: usize = 128;
const KEYS: usize = 128;
const BUFFERS: usize = 2;
const PARTS: usize = 2;
const ROW_BYTES: usize = 128;
/// Threads of a block.
pub(super) const THREADS: usize = 384;

/// What was measured on an H200: a block per multiprocessor.
const PACE: Pace = Pace {
    at_once: 132,
    keys: KEYS,
    tile_ns: 3200,
    block_ns: 6000,
};

/// How `attend_wg_*` cut the work; depends on the plan's buckets alone.
pub(super) struct WgShape {
    /// The kernel.
    pub kernel: &'static str,
    /// Blocks along the rows of queries of one key head.
    pub runs: usize,
    /// Shares of the keys.
    pub splits: usize,
    /// Dynamic shared memory of a block, bytes.
    pub shared: usize,
}

impl WgShape {
    /// `None` for what goes to other kernels: everything but plain causal attention of many tokens over bf16 caches, with heads
    /// of 64 or 128 values.
    pub(super) fn of(plan: &Plan, op: &Op) -> Option<Self> {
        let Op::Attend {
            heads,
            kv_heads,
            head_dim,
            sources,
            sinks: None,
            mask: Mask::None,
            score: None,
            ..
        } = op
        else {
            return None;
        };
        let [source] = &sources[..] else {
            return None;
        };
        let plain = |id: CacheId| {
            let d = &plan.caches[id.index()];
            let growing = matches!(d.rows, CacheRows::Growing { rate: 1 });
            growing && d.format == CacheFormat::Bf16 && d.width == *head_dim
        };
        let causal = matches!(source.rows, KeyRows::Causal) && plain(source.keys) && plain(source.values);
        let rows = plan.token_bucket * (heads / kv_heads);
        if !causal || plan.token_bucket <= gemv::TOKENS || rows < ROWS {
            return None;
        }
        let kernel = match head_dim {
            64 => "attend_wg_64",
            128 => "attend_wg_128",
            _ => return None,
        };
        let runs = rows.div_ceil(ROWS);
        let written = 4 * plan.token_bucket * heads * (head_dim + 4);
        Some(Self {
            kernel,
            runs,
            splits: PACE.shares(runs * kv_heads, plan.context_bucket, written, SPLITS),
            shared: shared_bytes(*head_dim),
        })
    }
}

/// Shared memory of a block (`Places`): from the next multiple of 1024 on queries in parts, buffers of keys and values, barriers.
fn shared_bytes(dim: usize) -> usize {
    let halves = dim / 64;
    1024 + (ROWS * PARTS + BUFFERS * 2 * KEYS) * halves * ROW_BYTES + 2 * 2 * BUFFERS * 8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_shared_out_where_blocks_leave_the_device_idle() {
        // Bytes of a share of 1,024 tokens of 12 heads.
        let written = 4 * 1024 * 12 * 132;
        let shares = |blocks, context, written| PACE.shares(blocks, context, written, SPLITS);
        assert_eq!(shares(96, 4096, written), 1);
        assert!((4..=16).contains(&shares(12, 4096, written / 8)));
        // Long texts make up for what shares cost.
        assert!(shares(96, 1 << 15, written) > 1);
        assert_eq!(PACE.shares(12, 1 << 20, written, 3), 3);
    }
}
