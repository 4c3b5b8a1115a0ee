//! Compressed rows that the indexer kept, and how much of the dense attention they hold.

use kernels::ir::{CacheId, Component, Op, Plan};
use protocol::{KeptRows, RowSpan};

use super::attention::{Attend, Chunk, dot, selection};
use super::walk::Walk;
use super::{Replay, check_layer};
use crate::engine::default_threads;
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::{Layers, Look};
use crate::par::map_rows;
use crate::watch::Watch;

/// Queries that are judged at most, at equal distances; recall needs all visible rows of all heads.
const JUDGED: usize = 1024;

/// What the dense attention over compressed rows says about a query's kept rows.
struct Judged {
    recall: f64,
    top1: bool,
    local: f64,
}

impl Replay<'_> {
    /// Compressed rows that each query of a CSA layer kept, and how much of the dense attention they hold. Recall is
    /// judged on all heads, and on at most 1024 queries at equal distances (the others have NaN).
    ///
    /// # Errors
    /// A layer without an indexer, cancelled, a failed step.
    pub fn kept_rows(&self, layer: u32, watch: &mut Watch<'_>) -> Result<KeptRows, EngineError> {
        self.some_text()?;
        let facts = check_layer(self.engine, layer)?;
        if facts.index_topk == 0 {
            return Err(EngineError::Invalid(format!(
                "layer {layer} is {}: it has no indexer that keeps some rows and drops others",
                facts.attention.name()
            )));
        }
        let (rate, n) = (facts.rate, self.ids.len());
        let look = Look {
            attention: Layers::One(layer),
            until: Some(layer),
            ..Look::default()
        };
        let mut walk = Walk::new(self, self.ids, look, false, CHUNK)?;
        let (mut kept, mut recall) = (Vec::with_capacity(n), vec![f32::NAN; n]);
        let mut judged: Vec<Judged> = Vec::new();
        while let Some(range) = walk.step(watch)? {
            let plan = walk.plan()?.clone();
            let attend = Attend::of(self.engine, &plan, layer)?;
            let chunk = Chunk::read(&walk, &attend, layer, &range, range.start)?;
            let visible = |t: usize| (t + 1) / rate;
            let k = top_k(&plan, layer);
            if let Some(k) = k {
                let first = (2 * k * rate).saturating_sub(1);
                let stride = n.saturating_sub(first).div_ceil(JUDGED).max(1);
                let rows = selection(&walk, layer)?;
                let order = Order::read(&walk, &plan, layer, visible(range.end - 1))?;
                let found = map_rows(default_threads(), range.len(), |i| {
                    let t = range.start + i;
                    let judge = t >= first && (t - first).is_multiple_of(stride);
                    let judged = judge.then(|| judge_query(&chunk, &attend, (i, visible(t)), &rows[i], k));
                    (order.best_first(i, &rows[i]), judged)
                });
                for (i, (best, judge)) in found.into_iter().enumerate() {
                    kept.push(best);
                    if let Some(j) = judge {
                        recall[range.start + i] = j.recall as f32;
                        judged.push(j);
                    }
                }
            } else {
                // Every visible row is read: there is no order.
                kept.extend(range.clone().map(|t| (0..visible(t) as u32).collect::<Vec<u32>>()));
            }
        }
        let span = |j: usize| RowSpan {
            first: (if facts.overlaps() { j.saturating_sub(1) } else { j } * rate) as u64,
            last: ((j + 1) * rate - 1) as u64,
        };
        let count = judged.len() as f64;
        let mean = |f: &dyn Fn(&Judged) -> f64| (judged.iter().map(f).sum::<f64>() / count) as f32;
        Ok(KeptRows {
            layer,
            rows: (0..n / rate).map(span).collect(),
            kept,
            attn_recall: mean(&|j| j.recall),
            attn_recall_min: judged.iter().map(|j| j.recall as f32).fold(f32::NAN, f32::min),
            top1_hit: mean(&|j| f64::from(u8::from(j.top1))),
            select_local_ratio: mean(&|j| j.local),
            judged: judged.len() as u32,
            recall,
        })
    }
}

/// Rows that the layer's select op keeps; `None` where the recipe reads all of them.
fn top_k(plan: &Plan, layer: u32) -> Option<usize> {
    plan.ops.iter().find_map(|b| match b.op {
        Op::SelectTopK { k, .. } if b.layer == Some(layer) => Some(k),
        _ => None,
    })
}

/// Dense softmax over the visible compressed rows alone, head by head, against the kept ones.
fn judge_query(chunk: &Chunk<'_>, attend: &Attend, (i, visible): (usize, usize), kept: &[usize], k: usize) -> Judged {
    let Some(source) = attend.compressed() else {
        return Judged {
            recall: 1.0,
            top1: true,
            local: 1.0,
        };
    };
    let all: Vec<(usize, usize)> = (0..visible).map(|r| (source, r)).collect();
    let mut mass = vec![0.0; visible];
    let mut recall = 0.0;
    for h in 0..attend.heads {
        let mut scores = chunk.scores(i, h, &all);
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        scores.iter_mut().for_each(|s| *s = (*s - max).exp());
        let sum: f64 = scores.iter().sum();
        recall += kept.iter().map(|&r| scores[r]).sum::<f64>() / sum;
        mass.iter_mut().zip(&scores).for_each(|(m, s)| *m += s / sum);
    }
    let mut heaviest = 0;
    for (r, m) in mass.iter().enumerate() {
        if *m > mass[heaviest] {
            heaviest = r;
        }
    }
    let recent = kept.iter().filter(|&&r| r + k >= visible).count();
    Judged {
        recall: recall / attend.heads as f64,
        top1: kept.contains(&heaviest),
        local: recent as f64 / kept.len().max(1) as f64,
    }
}

/// What the indexer scores with, to put kept rows in order.
struct Order<'a> {
    q: super::walk::Probe<'a>,
    weights: super::walk::Probe<'a>,
    keys: Vec<f32>,
    dim: usize,
}

impl<'a> Order<'a> {
    fn read(walk: &'a Walk<'_>, plan: &Plan, layer: u32, rows: usize) -> Result<Self, EngineError> {
        let at = plan
            .caches
            .iter()
            .position(|c| c.layer == layer && c.component == Component::Index);
        let cache = CacheId(at.unwrap_or_default() as u32);
        Ok(Self {
            q: walk.probe(&format!("index.q.{layer}"))?,
            weights: walk.probe(&format!("index.w.{layer}"))?,
            dim: walk.cache(cache)?.width,
            keys: walk.rows(cache, 0..rows)?,
        })
    }

    /// sum_h w_h max(0, q_h . k): the indexer's score up to a positive factor.
    fn score(&self, i: usize, row: usize) -> f32 {
        let key = &self.keys[row * self.dim..(row + 1) * self.dim];
        let heads = self.q.row(i).chunks_exact(self.dim).zip(self.weights.row(i));
        heads.map(|(q, w)| w * dot(q, key).max(0.0)).sum()
    }

    fn best_first(&self, i: usize, kept: &[usize]) -> Vec<u32> {
        let mut rows: Vec<(f32, u32)> = kept.iter().map(|&r| (self.score(i, r), r as u32)).collect();
        rows.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        rows.into_iter().map(|(_, r)| r).collect()
    }
}
