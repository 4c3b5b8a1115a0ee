//! The chain of many tokens before a dense attention: queries and keys rotated, keys and values stored.

use bytemuck::{Pod, Zeroable};

use super::args::launch;
use super::mixing::{CacheWriteArgs, cache_write_args};
use super::pointwise::{RopeArgs, rope_args};
use crate::cuda::cx::LaunchCx;
use crate::ir::{BufId, CacheFormat, CacheRows, ExecError, Op, OpId, Plan, Positions, RopeStyle};

/// Tokens of a block, and pairs of a head at most (`kTokens`, `kPairs`).
const TOKENS: usize = 4;
const PAIRS: usize = 64;
/// Least tokens: with fewer, blocks of single rows fill the device better.
const FEWEST: usize = 128;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RopeWriteArgs {
    q: RopeArgs,
    k: RopeArgs,
    keys: CacheWriteArgs,
    values: CacheWriteArgs,
}

/// The head's width and the buffer of a rotation of whole heads by halves.
fn rotated(plan: &Plan, op: &Op) -> Option<(usize, BufId)> {
    match op {
        Op::Rope {
            x,
            heads,
            head_dim,
            offset: 0,
            dims,
            style: RopeStyle::Half,
            positions: Positions::Tokens,
            ..
        } if dims == head_dim && heads * head_dim == plan.width(*x) => Some((*dims, *x)),
        _ => None,
    }
}

/// The buffer that is stored in bf16 rows which grow with the text.
fn stored(plan: &Plan, op: &Op) -> Option<BufId> {
    let Op::CacheWrite {
        src,
        cache,
        rows: Positions::Tokens,
    } = op
    else {
        return None;
    };
    let d = &plan.caches[cache.index()];
    let plain = d.format == CacheFormat::Bf16 && d.rows == CacheRows::Growing { rate: 1 } && d.width.is_multiple_of(4);
    (plain && d.records * d.width == plan.width(*src)).then_some(*src)
}

/// Whether a chain is made of a rotation of queries, the same of keys, and the writes of keys and of values.
pub(super) fn takes(plan: &Plan, origin: &[OpId]) -> bool {
    let op = |id: OpId| &plan.ops[id.index()].op;
    let &[q, k, keys, values] = origin else {
        return false;
    };
    let same = match (op(q), op(k)) {
        (
            Op::Rope {
                table: a, inverse: i, ..
            },
            Op::Rope {
                table: b, inverse: j, ..
            },
        ) => a == b && i == j,
        _ => false,
    };
    let (Some(a), Some(b)) = (rotated(plan, op(q)), rotated(plan, op(k))) else {
        return false;
    };
    let (Some(stored_keys), Some(stored_values)) = (stored(plan, op(keys)), stored(plan, op(values))) else {
        return false;
    };
    let apart = stored_keys == b.1 && a.1 != b.1 && stored_values != a.1 && stored_values != b.1;
    let fits = a.0 == b.0 && a.0.is_multiple_of(8) && a.0 / 2 <= PAIRS;
    plan.token_bucket >= FEWEST && same && apart && fits
}

/// Enqueues such a chain.
pub(super) fn rope_write(cx: &LaunchCx<'_>, origin: &[OpId]) -> Result<(), ExecError> {
    let op = |i: usize| &cx.plan.ops[origin[i].index()].op;
    let write = |i: usize| match op(i) {
        Op::CacheWrite { src, cache, rows } => {
            Ok(cache_write_args(cx, *src, *cache, *rows, cx.stats[origin[i].index()]))
        }
        _ => super::args::unsupported("this op as a cache write"),
    };
    let args = RopeWriteArgs {
        q: rope_args(cx, op(0))?,
        k: rope_args(cx, op(1))?,
        keys: write(2)?,
        values: write(3)?,
    };
    let blocks = cx.plan.token_bucket.div_ceil(TOKENS);
    launch(cx, "rope_write", [blocks, 1, 1], 256, 0, &args)
}
