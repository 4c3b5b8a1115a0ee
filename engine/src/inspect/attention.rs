//! Attention probabilities, computed again from queries and stored keys.

use std::ops::Range;

use kernels::cpu::exec::rescore;
use kernels::ir::{CacheId, KeyRows, Mask, Op, Plan, SKIP_BLOCK, ScoreProgram, StepParams, WeightSource};
use protocol::{AttentionMap, AttentionSpec, Segment};

use super::walk::{Probe, Walk};
use super::{MAX_QUERIES, Replay, check_layer};
use crate::engine::{Engine, default_threads};
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::{Layers, Look};
use crate::par::map_rows;
use crate::watch::Watch;

/// Largest map in values: 48 MiB, so that it fits one message.
const MAX_VALUES: u64 = 12 << 20;

/// An attend op as inspections need it.
pub(super) struct Attend {
    pub heads: usize,
    kv_heads: usize,
    head_dim: usize,
    scale: f32,
    sources: Vec<(CacheId, KeyRows)>,
    mask: Mask,
    score: Option<ScoreProgram>,
    /// One logit per head.
    sinks: Option<Vec<f32>>,
}

impl Attend {
    /// The attend op of a layer.
    pub fn of(engine: &Engine, plan: &Plan, layer: u32) -> Result<Self, EngineError> {
        let found = plan.ops.iter().find_map(|b| match &b.op {
            Op::Attend {
                heads,
                kv_heads,
                head_dim,
                scale,
                sources,
                sinks,
                mask,
                score,
                ..
            } if b.layer == Some(layer) => Some((
                *heads,
                *kv_heads,
                *head_dim,
                *scale,
                sources,
                *sinks,
                (*mask, score.clone()),
            )),
            _ => None,
        });
        let Some((heads, kv_heads, head_dim, scale, sources, sinks, (mask, score))) = found else {
            return Err(EngineError::Invalid(format!("layer {layer} has no attention")));
        };
        let sinks = match sinks {
            None => None,
            Some(id) => Some(kernels::cpu::weight_values(&engine.weights().weight(id)?).map_err(EngineError::Invalid)?),
        };
        Ok(Self {
            heads,
            kv_heads,
            head_dim,
            scale,
            sources: sources.iter().map(|s| (s.keys, s.rows)).collect(),
            mask,
            score,
            sinks,
        })
    }

    /// Number of the source that holds compressed rows.
    pub fn compressed(&self) -> Option<usize> {
        let is = |(_, rows): &(CacheId, KeyRows)| matches!(rows, KeyRows::Compressed { .. });
        self.sources.iter().position(is)
    }

    /// Absolute rows of a source that a query at position `t` may see: one or two runs.
    fn visible(&self, rows: KeyRows, t: usize) -> [Range<usize>; 2] {
        match rows {
            KeyRows::Causal => match self.mask {
                Mask::SlidingWindow { window, sinks } => {
                    let start = (t + 1).saturating_sub(window);
                    [0..sinks.min(start), start..t + 1]
                }
                _ => [0..t + 1, 0..0],
            },
            KeyRows::Window { window } => [(t + 1).saturating_sub(window)..t + 1, 0..0],
            KeyRows::Compressed { rate, .. } => [0..StepParams::new(t as u64, 1).rows_visible(rate, 0), 0..0],
        }
    }
}

/// Keys of one source for the queries of a chunk.
struct Keys {
    rows: KeyRows,
    /// Absolute number of the first row held.
    first: usize,
    /// Values per row: key heads x head_dim.
    width: usize,
    values: Vec<f32>,
    /// Rows the indexer kept per query of the chunk.
    selected: Option<Vec<Vec<usize>>>,
}

/// One query's attention, head by head, over the keys it scored.
pub(super) struct Query {
    /// (source, absolute row) of every key scored, in the order of the sources.
    pub keys: Vec<(usize, usize)>,
    /// `[heads][keys]`.
    pub weights: Vec<Vec<f64>>,
    /// Sink mass per head.
    pub sink: Vec<f64>,
}

/// A chunk's queries and keys of one layer.
pub(super) struct Chunk<'a> {
    attend: &'a Attend,
    queries: Probe<'a>,
    position: usize,
    keys: Vec<Keys>,
}

impl<'a> Chunk<'a> {
    /// Reads keys back from the cache after the chunk at `range` was processed, for its queries `from ..`.
    pub fn read(
        walk: &'a Walk<'_>,
        attend: &'a Attend,
        layer: u32,
        range: &Range<usize>,
        from: usize,
    ) -> Result<Self, EngineError> {
        let mut keys = Vec::new();
        for &(cache, rows) in &attend.sources {
            let first = attend.visible(rows, from)[0].start;
            let end = attend
                .visible(rows, range.end - 1)
                .iter()
                .map(|r| r.end)
                .max()
                .unwrap_or(0);
            let desc = walk.cache(cache)?;
            let selected = match rows {
                KeyRows::Compressed { selection: Some(_), .. } => Some(selection(walk, layer)?),
                _ => None,
            };
            keys.push(Keys {
                rows,
                first,
                width: desc.width * desc.records,
                values: walk.rows(cache, first..end.max(first))?,
                selected,
            });
        }
        Ok(Self {
            attend,
            queries: walk.probe(&format!("attn.q.{layer}"))?,
            position: range.start,
            keys,
        })
    }

    /// The attention of the query at position `t`.
    pub fn query(&self, t: usize) -> Query {
        let a = self.attend;
        let i = t - self.position;
        let mut keys: Vec<(usize, usize)> = Vec::new();
        for (s, k) in self.keys.iter().enumerate() {
            match &k.selected {
                Some(kept) => keys.extend(kept[i].iter().map(|&r| (s, r))),
                None => keys.extend(a.visible(k.rows, t).into_iter().flatten().map(|r| (s, r))),
            }
        }
        let (mut weights, mut sink) = (Vec::new(), Vec::new());
        for h in 0..a.heads {
            let scores = self.scores(i, h, &keys);
            let (w, s) = softmax(scores, a.sinks.as_ref().map(|s| f64::from(s[h])), a.mask);
            weights.push(w);
            sink.push(s);
        }
        Query { keys, weights, sink }
    }

    /// Scores of query `i` of the chunk with head `h`.
    pub fn scores(&self, i: usize, h: usize, keys: &[(usize, usize)]) -> Vec<f64> {
        let a = self.attend;
        let (d, kv) = (a.head_dim, h / (a.heads / a.kv_heads));
        let q = &self.queries.row(i)[h * d..(h + 1) * d];
        let score = |&(s, row): &(usize, usize)| {
            let k = &self.keys[s];
            let at = (row - k.first) * k.width + kv * d;
            f64::from(dot(q, &k.values[at..at + d]) * a.scale)
        };
        let plain = keys.iter().map(score);
        let Some(program) = &a.score else {
            return plain.collect();
        };
        let mut scores: Vec<f32> = plain.map(|s| s as f32).collect();
        let position = |j: usize| {
            let (s, row) = keys[j];
            let rate = match a.sources[s].1 {
                KeyRows::Compressed { rate, .. } => rate,
                _ => 1,
            };
            (row * rate) as f32
        };
        rescore(program, &mut scores, ((self.position + i) as f32, h as f32), position);
        scores.into_iter().map(f64::from).collect()
    }
}

/// Rows the indexer kept, per query of the last chunk, ascending.
pub(super) fn selection(walk: &Walk<'_>, layer: u32) -> Result<Vec<Vec<usize>>, EngineError> {
    let probe = walk.probe(&format!("select.{layer}"))?;
    let kept = |i: usize| {
        probe
            .row(i)
            .iter()
            .filter(|&&r| r >= 0.0)
            .map(|&r| r as usize)
            .collect()
    };
    Ok((0..probe.rows()).map(kept).collect())
}

/// In eight sums, which compilers turn into vector instructions.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; 8];
    let (x, y) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = x.remainder().iter().zip(y.remainder()).map(|(a, b)| a * b).sum();
    for (x, y) in x.zip(y) {
        for l in 0..8 {
            sums[l] += x[l] * y[l];
        }
    }
    sums.iter().sum::<f32>() + rest
}

/// Probabilities and the mass of the sink; with a top-k mask, all but the k largest (ties to the earlier) get 0; with
/// skipped blocks, those at or below the threshold.
fn softmax(mut scores: Vec<f64>, sink: Option<f64>, mask: Mask) -> (Vec<f64>, f64) {
    if let Mask::BlockSkip { threshold } = mask {
        let (whole, _) = softmax(scores.clone(), sink, Mask::None);
        let shares: Vec<f64> = whole.chunks(SKIP_BLOCK).map(|b| b.iter().sum()).collect();
        let heaviest = (0..shares.len()).max_by(|&a, &b| shares[a].total_cmp(&shares[b]).then(b.cmp(&a)));
        for (b, block) in scores.chunks_mut(SKIP_BLOCK).enumerate() {
            if shares[b] <= f64::from(threshold) && heaviest != Some(b) {
                block.fill(f64::NEG_INFINITY);
            }
        }
    }
    if let Mask::TopK { k } = mask
        && scores.len() > k
    {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        for &i in &order[k..] {
            scores[i] = f64::NEG_INFINITY;
        }
    }
    let max = scores.iter().copied().chain(sink).fold(f64::NEG_INFINITY, f64::max);
    if max == f64::NEG_INFINITY {
        scores.fill(0.0);
        return (scores, 0.0);
    }
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let extra = sink.map_or(0.0, |s| (s - max).exp());
    let sum = scores.iter().sum::<f64>() + extra;
    scores.iter_mut().for_each(|s| *s /= sum);
    (scores, extra / sum)
}

impl Query {
    /// Entropy of a head's attention in bits, its sink counted as one outcome.
    pub fn entropy(&self, h: usize) -> f64 {
        let all = self.weights[h].iter().chain([&self.sink[h]]);
        -all.filter(|&&p| p > 0.0).map(|p| p * p.log2()).sum::<f64>()
    }
}

/// Columns of a map.
struct Columns {
    segments: Vec<Segment>,
    /// Per source: its first row and first column.
    at: Vec<(usize, usize)>,
    sink: Option<usize>,
    count: usize,
}

impl Columns {
    fn new(attend: &Attend, from: usize, to: usize, overlap: bool) -> Self {
        let mut c = Self {
            segments: Vec::new(),
            at: Vec::new(),
            sink: None,
            count: 0,
        };
        for &(_, rows) in &attend.sources {
            let first = attend.visible(rows, from)[0].start;
            let end = attend.visible(rows, to - 1).iter().map(|r| r.end).max().unwrap_or(0);
            let columns = end.saturating_sub(first) as u32;
            c.at.push((first, c.count));
            c.count += columns as usize;
            let first = first as u64;
            if columns > 0 {
                c.segments.push(match rows {
                    KeyRows::Compressed { rate, .. } => Segment::Rows {
                        first,
                        columns,
                        rate: rate as u32,
                        overlap,
                    },
                    _ => Segment::Tokens { first, columns },
                });
            }
        }
        if attend.sinks.is_some() {
            c.segments.push(Segment::Sink);
            c.sink = Some(c.count);
            c.count += 1;
        }
        c
    }
}

/// Checks the range and the head.
fn check(replay: &Replay<'_>, spec: &AttentionSpec) -> Result<(usize, usize), EngineError> {
    let n = replay.ids.len() as u64;
    if spec.from >= spec.to || spec.to > n || spec.to - spec.from > MAX_QUERIES {
        return Err(EngineError::Invalid(format!(
            "queries {}..{}: accepted are 1 to {MAX_QUERIES} of the {n} tokens of the text",
            spec.from, spec.to
        )));
    }
    let facts = check_layer(replay.engine, spec.layer)?;
    if let Some(h) = spec.head.filter(|&h| h as usize >= facts.heads) {
        return Err(EngineError::Invalid(format!(
            "head {h}: accepted are 0 to {} of layer {}",
            facts.heads - 1,
            spec.layer
        )));
    }
    Ok((spec.from as usize, spec.to as usize))
}

impl Replay<'_> {
    /// Attention probabilities of a layer. -1 marks keys that a query may not see (later ones, outside a window); a
    /// key that was left out by its score (indexer, top-k) has 0.
    ///
    /// # Errors
    /// A layer, head or range that does not exist, more than [`MAX_QUERIES`] queries, cancelled, a failed step.
    pub fn attention(&self, spec: &AttentionSpec, watch: &mut Watch<'_>) -> Result<AttentionMap, EngineError> {
        let (from, to) = check(self, spec)?;
        let look = Look {
            attention: Layers::One(spec.layer),
            until: Some(spec.layer),
            ..Look::default()
        };
        let overlap = check_layer(self.engine, spec.layer)?.overlaps();
        let mut walk = Walk::new(self, &self.ids[..to], look, false, CHUNK)?;
        let mut map: Option<(Attend, Columns)> = None;
        let (mut values, mut stats) = (Vec::new(), Vec::new());
        let mut heads = 0;
        while let Some(range) = walk.step(watch)? {
            if range.end <= from {
                continue;
            }
            if map.is_none() {
                let attend = Attend::of(self.engine, walk.plan()?, spec.layer)?;
                let columns = Columns::new(&attend, from, to, overlap);
                check_size(to - from, columns.count)?;
                heads = attend.heads;
                stats = vec![(0.0f64, 0.0f64); heads];
                map = Some((attend, columns));
            }
            let Some((attend, columns)) = &map else { continue };
            let first = range.start.max(from);
            let chunk = Chunk::read(&walk, attend, spec.layer, &range, first)?;
            let rows = map_rows(default_threads(), range.end - first, |i| {
                chunk.map_row(first + i, spec.head, columns)
            });
            for (row, per_head) in rows {
                values.extend(row);
                for (sum, (entropy, sink)) in stats.iter_mut().zip(per_head) {
                    sum.0 += entropy;
                    sum.1 += sink;
                }
            }
        }
        let n = (to - from) as f64;
        Ok(AttentionMap {
            spec: *spec,
            segments: map.map(|(_, c)| c.segments).unwrap_or_default(),
            values,
            tokens: self.engine.token_labels(&self.ids[..to]),
            heads: heads as u32,
            head_stats: stats.iter().map(|(e, s)| ((e / n) as f32, (s / n) as f32)).collect(),
        })
    }
}

fn check_size(queries: usize, columns: usize) -> Result<(), EngineError> {
    if (queries * columns) as u64 <= MAX_VALUES {
        return Ok(());
    }
    Err(EngineError::Invalid(format!(
        "a map of {queries} queries x {columns} keys is larger than {MAX_VALUES} values: accepted are at most {} \
         queries here",
        MAX_VALUES as usize / columns
    )))
}

impl Chunk<'_> {
    /// One row of a map, and (entropy, sink mass) per head.
    fn map_row(&self, t: usize, head: Option<u32>, columns: &Columns) -> (Vec<f32>, Vec<(f64, f64)>) {
        let query = self.query(t);
        let heads = match head {
            Some(h) => h as usize..h as usize + 1,
            None => 0..self.attend.heads,
        };
        let share = 1.0 / heads.len() as f64;
        let mut row = vec![-1.0f32; columns.count];
        for (s, k) in self.keys.iter().enumerate() {
            let (first, at) = columns.at[s];
            for r in self.attend.visible(k.rows, t).into_iter().flatten() {
                row[at + r - first] = 0.0;
            }
        }
        for (i, &(s, r)) in query.keys.iter().enumerate() {
            let (first, at) = columns.at[s];
            let p: f64 = heads.clone().map(|h| query.weights[h][i]).sum();
            row[at + r - first] = (p * share) as f32;
        }
        if let Some(at) = columns.sink {
            row[at] = (heads.clone().map(|h| query.sink[h]).sum::<f64>() * share) as f32;
        }
        let stats = (0..self.attend.heads)
            .map(|h| (query.entropy(h), query.sink[h]))
            .collect();
        (row, stats)
    }
}
