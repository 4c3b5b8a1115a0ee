//! What a step says about itself: counters the kernels wrote, and those that follow from the step alone.

use super::cx::DevRowStats;
use crate::ir::{BufId, CacheFormat, Dim, KeyRows, KeySource, LayerStats, Mask, Op, Plan, Positions, StepParams};

/// Rows of a buffer in a step.
pub(super) fn rows(plan: &Plan, id: BufId, step: &StepParams) -> usize {
    match plan.buffers[id.index()].rows {
        Dim::Closed(rate) => step.closed(rate),
        d => plan.dim(d, step.tokens as usize, step.context() as usize),
    }
}

/// Fills the counters of every layer from the output block, where those of each op begin at `counters`.
pub(super) fn layers(
    plan: &Plan,
    counters: impl Iterator<Item = Option<usize>>,
    step: &StepParams,
    block: &[u8],
    out: &mut Vec<LayerStats>,
) {
    out.clear();
    out.resize(plan.layers, LayerStats::default());
    for (base, at) in plan.ops.iter().zip(counters) {
        let Some(stats) = out.get_mut(base.layer.map_or(0, |l| l as usize)) else {
            continue;
        };
        match (&base.op, at) {
            (Op::CacheWrite { cache, rows, .. }, Some(at)) => {
                let desc = plan.cache(*cache);
                let per_record = match desc.format {
                    CacheFormat::F32 | CacheFormat::Bf16 => continue,
                    CacheFormat::Fp8Model1 | CacheFormat::Fp8B64 | CacheFormat::Fp8V32 => desc.width - desc.rope,
                    CacheFormat::Fp4 => desc.width,
                };
                let n = match rows {
                    Positions::Tokens => step.tokens as usize,
                    Positions::Closed { rate } => step.closed(*rate),
                };
                for bytes in block[at..].chunks_exact(size_of::<DevRowStats>()).take(n) {
                    let row: DevRowStats = bytemuck::pod_read_unaligned(bytes);
                    stats.round_trip_err += f64::from(row.sum_sq_err);
                    stats.round_trip_ref += f64::from(row.sum_sq);
                    stats.saturated += u64::from(row.saturated);
                    stats.flushed += u64::from(row.flushed);
                }
                stats.stored_values += (n * desc.records * per_record) as u64;
            }
            (Op::Route { logits, k, .. }, Some(at)) => {
                stats.expert_load.resize(plan.width(*logits), 0);
                for bytes in block[at..].chunks_exact(4).take(step.tokens as usize * k) {
                    let e = i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                    if let Some(n) = usize::try_from(e).ok().and_then(|e| stats.expert_load.get_mut(e)) {
                        *n += 1;
                    }
                }
            }
            (Op::TopP { x, group, .. }, Some(at)) => {
                let n = rows(plan, *x, step);
                stats.ffn_units += (n * plan.width(*x)) as u64;
                stats.ffn_kept += counts(&block[at..], n * (plan.width(*x) / group));
            }
            (
                Op::Attend {
                    sources, mask, heads, ..
                },
                at,
            ) => {
                attention(plan, step, sources, *mask, stats);
                if let Some(at) = at {
                    let kept = counts(&block[at..], step.tokens as usize * heads);
                    stats.keys_kept += kept / *heads as u64;
                }
            }
            (Op::IndexScore { rate, skip, .. }, _) => {
                let visible = (0..step.tokens as usize).map(|t| step.rows_visible(*rate, t));
                stats.index_scored += visible.filter(|v| v > skip).map(|v| v as u64).sum::<u64>();
            }
            _ => {}
        }
    }
}

/// The sum of `n` counters.
fn counts(block: &[u8], n: usize) -> u64 {
    let each = block.chunks_exact(4).take(n);
    each.map(|b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])))
        .sum()
}

/// Keys in context, scored and kept: they follow from the step.
fn attention(plan: &Plan, step: &StepParams, sources: &[KeySource], mask: Mask, stats: &mut LayerStats) {
    let (p, t) = (step.position, u64::from(step.tokens));
    stats.keys_context += t * p + t * (t + 1) / 2;
    for i in 0..step.tokens as usize {
        let at = step.position as usize + i;
        let count = |s: &KeySource| match s.rows {
            KeyRows::Causal => match mask {
                Mask::SlidingWindow { window, sinks } => {
                    let start = (at + 1).saturating_sub(window);
                    sinks.min(start) + at + 1 - start
                }
                _ => at + 1,
            },
            KeyRows::Window { window } => window.min(at + 1),
            KeyRows::Compressed { rate, selection } => {
                let visible = step.rows_visible(rate, i);
                selection.map_or(visible, |b| visible.min(plan.width(b)))
            }
        };
        let scored: usize = sources.iter().map(count).sum();
        stats.keys_scored += scored as u64;
        stats.keys_kept += match mask {
            Mask::TopK { k } => scored.min(k) as u64,
            // Counted on the device.
            Mask::BlockSkip { .. } => 0,
            _ => scored as u64,
        };
    }
}
