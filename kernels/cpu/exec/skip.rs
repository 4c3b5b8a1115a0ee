//! `Mask::BlockSkip` on a growing cache: blocks of keys are not even scored where statistics prove that they hold
//! too little of the softmax.
//!
//! Of every full block b of n = 32 keys of a head the cache keeps the largest and smallest value per dimension (hi,
//! lo), a centre c with the largest distance r of a key from it, and the largest norm m. For a query q every score
//! s = scale * q.k of the block obeys
//!
//! - q.k <= sum_d max(q_d hi_d, q_d lo_d): each term is at most its larger end;
//! - q.k = q.c + q.(k - c) <= q.c + |q| r: Cauchy-Schwarz.
//!
//! U = scale * the smaller of the two, plus twice the rounding error of a product in f32 (gamma_d |q| m), so that it
//! bounds the scores as they are computed, too. The block's mass is then at most n e^U.
//!
//! Blocks are scored in falling order of U. With Z the mass scored so far (a lower bound of the whole) and R the sum
//! of the bounds of the rest, scoring stops when no block of the rest can exceed threshold * Z, and every block that
//! was scored is either at most threshold * Z or more than threshold * (Z + R): what is kept then is exactly what the
//! op asks for, the blocks above the threshold of the whole softmax.

use super::attend::{Job, QUERIES, SCRATCH, Scratch, rows_f32, softmax};
use super::store::Store;
use super::workspace::Shared;
use crate::cpu::Cpu;
use crate::cpu::attn_dot::{axpy_rows, dot_rows, exp_softmax, scale_f32};
use crate::ir::SKIP_BLOCK;

/// What is known of the full blocks of a cache of keys. `[block][record][3 d + 2]`: hi, lo, centre, radius, norm.
#[derive(Clone, Default)]
pub struct KeyBlocks {
    /// Blocks that are up to date.
    valid: usize,
    data: Vec<f32>,
}

impl KeyBlocks {
    /// The row `row` is written anew.
    pub fn written(&mut self, row: usize) {
        self.valid = self.valid.min(row / SKIP_BLOCK);
    }

    /// Looks at the blocks that filled up since the last time, of the first `keys` rows.
    pub fn update(&mut self, store: &Store, keys: usize) {
        let (d, records) = (store.desc.width, store.desc.records);
        let stride = 3 * d + 2;
        let full = keys / SKIP_BLOCK;
        self.data.resize((full * records * stride).max(self.data.len()), 0.0);
        let mut rows = vec![0.0f32; SKIP_BLOCK * d];
        for b in self.valid..full {
            for record in 0..records {
                for (r, row) in rows.chunks_exact_mut(d).enumerate() {
                    store.read(b * SKIP_BLOCK + r, record, row);
                }
                let at = (b * records + record) * stride;
                summarise(&rows, d, &mut self.data[at..at + stride]);
            }
        }
        self.valid = self.valid.max(full);
    }

    fn of(&self, block: usize, record: usize, records: usize, d: usize) -> &[f32] {
        let stride = 3 * d + 2;
        let at = (block * records + record) * stride;
        &self.data[at..at + stride]
    }
}

/// Rounded up, so that f32 arithmetic on it stays a bound.
fn up(v: f64) -> f32 {
    (v * (1.0 + 1e-6)) as f32
}

fn summarise(rows: &[f32], d: usize, out: &mut [f32]) {
    let n = rows.len() / d;
    let (hi, rest) = out.split_at_mut(d);
    let (lo, rest) = rest.split_at_mut(d);
    let (centre, ends) = rest.split_at_mut(d);
    for i in 0..d {
        let column = || rows.iter().skip(i).step_by(d).copied();
        hi[i] = column().fold(f32::NEG_INFINITY, f32::max);
        lo[i] = column().fold(f32::INFINITY, f32::min);
        centre[i] = column().sum::<f32>() / n as f32;
    }
    let (mut radius, mut norm) = (0.0f64, 0.0f64);
    for row in rows.chunks_exact(d) {
        let square = |v: f64| v * v;
        let far: f64 = row
            .iter()
            .zip(&*centre)
            .map(|(k, c)| square(f64::from(*k) - f64::from(*c)))
            .sum();
        let long: f64 = row.iter().map(|k| square(f64::from(*k))).sum();
        // A NaN stays: a block with one is always scored.
        radius = if far <= radius { radius } else { far };
        norm = if long <= norm { norm } else { long };
    }
    ends[0] = up(radius.sqrt());
    ends[1] = up(norm.sqrt());
}

/// Largest score that a key of a block can have.
struct Bound {
    /// max(q, 0), then min(q, 0): against hi and lo.
    ends: Vec<f32>,
    norm: f32,
    scale: f32,
    /// Twice the error of a product, per |q| m.
    slack: f32,
}

impl Bound {
    fn new(query: &[f32], scale: f32) -> Self {
        let ends = query.iter().map(|q| q.max(0.0)).chain(query.iter().map(|q| q.min(0.0)));
        let norm: f64 = query.iter().map(|q| f64::from(*q) * f64::from(*q)).sum();
        Self {
            ends: ends.collect(),
            norm: up(norm.sqrt()),
            scale,
            slack: 4.0 * (query.len() + 8) as f32 * f32::EPSILON,
        }
    }

    /// A bound that is no number bounds nothing.
    fn of(&self, cpu: &Cpu, query: &[f32], stats: &[f32]) -> f32 {
        let d = query.len();
        let (mut box_, mut ball) = ([0.0], [0.0]);
        dot_rows(cpu.isa, &self.ends, &stats[..2 * d], 2 * d, 1.0, &mut box_);
        dot_rows(cpu.isa, query, &stats[2 * d..3 * d], d, 1.0, &mut ball);
        let (radius, norm) = (stats[3 * d], stats[3 * d + 1]);
        let best = box_[0].min(ball[0] + self.norm * radius);
        let bound = (best + self.slack * self.norm * norm) * self.scale;
        if bound.is_finite() && norm.is_finite() && self.scale > 0.0 {
            bound
        } else {
            f32::INFINITY
        }
    }
}

/// A sum of exponentials, kept as e^max * sum.
#[derive(Clone, Copy)]
struct Mass {
    max: f64,
    sum: f64,
}

impl Mass {
    const NONE: Self = Self {
        max: f64::NEG_INFINITY,
        sum: 0.0,
    };

    fn add(&mut self, ln: f64) {
        if ln == f64::NEG_INFINITY {
            return;
        }
        if ln > self.max {
            self.sum = self.sum * (self.max - ln).exp() + 1.0;
            self.max = ln;
        } else {
            self.sum += (ln - self.max).exp();
        }
    }

    fn ln(&self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// What one lane (a head of a token) keeps: per block whether, and how many keys it scored and kept.
struct Lane<'a> {
    query: &'a [f32],
    /// Keys 0 to `seen` are visible.
    seen: usize,
    sink: Option<f32>,
    /// Scores, then weights e^(score - largest of its block).
    row: &'a mut [f32],
    /// Largest score per scored block, replaced by what weights are multiplied with; negative infinity = left out.
    blocks: &'a mut [f64],
}

/// Decoded keys of a task, block by block as they are needed.
struct Decoded {
    have: Vec<bool>,
    values: Vec<f32>,
}

/// Attention over a growing cache: tasks are (key head, 8 queries). Returns (keys scored, keys kept), summed over
/// queries, the mean over heads rounded down.
pub(super) fn attend_skip(cpu: &Cpu, job: &Job<'_>, threshold: f32, q: &[f32], out: &mut [f32]) -> (u64, u64) {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    let tokens = job.step.tokens as usize;
    let tasks = tokens.div_ceil(QUERIES);
    let shared = Shared::new(out);
    let (scored, kept) = (AtomicU64::new(0), AtomicU64::new(0));
    cpu.pool.run(job.kv_heads * tasks, &|task| {
        let (kv, first) = (task / tasks, task % tasks * QUERIES);
        let n = QUERIES.min(tokens - first);
        let counts = SCRATCH.with_borrow_mut(|s| skip_task(cpu, job, threshold, q, &shared, (kv, first, n), s));
        scored.fetch_add(counts.0, Relaxed);
        kept.fetch_add(counts.1, Relaxed);
    });
    let heads = job.heads as u64;
    (scored.load(Relaxed) / heads, kept.load(Relaxed) / heads)
}

fn skip_task(
    cpu: &Cpu,
    job: &Job<'_>,
    threshold: f32,
    q: &[f32],
    out: &Shared<'_, f32>,
    (kv, first, n): (usize, usize, usize),
    s: &mut Scratch,
) -> (u64, u64) {
    let (d, group) = (job.head_dim, job.heads / job.kv_heads);
    let width = job.heads * d;
    let position = job.step.position as usize + first;
    let keys = position + n;
    let (lanes, blocks) = (n * group, keys.div_ceil(SKIP_BLOCK));
    s.scores.resize(lanes * keys, 0.0);
    let mut per_block = vec![f64::NEG_INFINITY; lanes * blocks];
    let mut decoded = Decoded {
        have: vec![false; blocks],
        values: std::mem::take(&mut s.block),
    };
    let (mut counts, mut factors) = ((0, 0), Vec::with_capacity(lanes));
    for lane in 0..lanes {
        let (i, h) = (lane / group, kv * group + lane % group);
        let lane = Lane {
            query: &q[(first + i) * width + h * d..][..d],
            seen: position + i + 1,
            sink: job.sinks.map(|x| x[h]),
            row: &mut s.scores[lane * keys..(lane + 1) * keys],
            blocks: &mut per_block[lane * blocks..(lane + 1) * blocks],
        };
        let (scored, kept, factor) = lane.choose(cpu, job, threshold, kv, &mut decoded);
        counts.0 += scored;
        counts.1 += kept;
        factors.push(factor);
        // SAFETY: (token, head) belongs to this task alone.
        unsafe { out.part((first + i) * width + h * d, d) }.fill(0.0);
    }
    s.block = decoded.values;
    for b in 0..blocks {
        let (from, to) = (b * SKIP_BLOCK, ((b + 1) * SKIP_BLOCK).min(keys));
        let wanted = |lane: usize| per_block[lane * blocks + b] != f64::NEG_INFINITY;
        if !(0..lanes).any(wanted) {
            continue;
        }
        s.block.resize(s.block.len().max(SKIP_BLOCK * d), 0.0);
        let values = rows_f32(job.sources[0].values, from, to, kv, &mut s.block);
        for lane in (0..lanes).filter(|&l| wanted(l)) {
            let (i, h) = (lane / group, kv * group + lane % group);
            // SAFETY: (token, head) belongs to this task alone.
            let o = unsafe { out.part((first + i) * width + h * d, d) };
            let seen = to.min(position + i + 1);
            let weights = &mut s.scores[lane * keys + from..lane * keys + seen];
            scale_f32(cpu.isa, per_block[lane * blocks + b] as f32, weights);
            axpy_rows(cpu.isa, weights, values.values, values.stride, o);
        }
    }
    for (lane, factor) in factors.into_iter().enumerate() {
        let (i, h) = (lane / group, kv * group + lane % group);
        // SAFETY: (token, head) belongs to this task alone.
        scale_f32(cpu.isa, factor, unsafe { out.part((first + i) * width + h * d, d) });
    }
    counts
}

impl Lane<'_> {
    /// Scores a block; its weights go to `row`. Returns the logarithm of its mass.
    fn score(&mut self, cpu: &Cpu, job: &Job<'_>, kv: usize, b: usize, decoded: &mut Decoded) -> f64 {
        let (from, to) = (b * SKIP_BLOCK, ((b + 1) * SKIP_BLOCK).min(self.seen));
        let row = &mut self.row[from..to];
        let keys = job.sources[0].keys;
        if keys.desc.format == crate::ir::CacheFormat::F32 {
            let rows = rows_f32(keys, from, to, kv, &mut []);
            dot_rows(cpu.isa, self.query, rows.values, rows.stride, job.scale, row);
        } else {
            let (d, end) = (job.head_dim, (from + SKIP_BLOCK).min(job.step.context() as usize));
            let size = (from + SKIP_BLOCK) * d;
            if decoded.values.len() < size {
                decoded.values.resize(size, 0.0);
            }
            let part = &mut decoded.values[from * d..size];
            if !decoded.have[b] {
                rows_f32(keys, from, end, kv, part);
                decoded.have[b] = true;
            }
            dot_rows(cpu.isa, self.query, part, d, job.scale, row);
        }
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            row.fill(0.0);
            return f64::NEG_INFINITY;
        }
        let sum = exp_softmax(cpu.isa, row, max);
        self.blocks[b] = f64::from(max);
        f64::from(max) + f64::from(sum).ln()
    }

    /// Scores until it is known which blocks are kept. Returns keys scored, keys kept, and the factor for the sum.
    fn choose(mut self, cpu: &Cpu, job: &Job<'_>, threshold: f32, kv: usize, decoded: &mut Decoded) -> (u64, u64, f32) {
        let ln_threshold = f64::from(threshold).ln();
        let keys = job.sources[0].keys;
        let (full, blocks) = (self.seen / SKIP_BLOCK, self.seen.div_ceil(SKIP_BLOCK));
        let bound = Bound::new(self.query, job.scale);
        let ln_n = (SKIP_BLOCK as f64).ln();
        let mut order: Vec<(f64, usize)> = (0..full)
            .map(|b| {
                let stats = keys.blocks.of(b, kv, keys.desc.records, job.head_dim);
                (f64::from(bound.of(cpu, self.query, stats)) + ln_n, b)
            })
            .collect();
        order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        // rest[i]: the bounds of order[i..] together.
        let mut rest = vec![f64::NEG_INFINITY; full + 1];
        let mut sum = Mass::NONE;
        for (i, (ln, _)) in order.iter().enumerate().rev() {
            if *ln == f64::INFINITY {
                rest[i] = f64::INFINITY;
                continue;
            }
            sum.add(*ln);
            rest[i] = sum.ln();
        }
        let mut all = Mass::NONE;
        self.sink.into_iter().for_each(|s| all.add(f64::from(s)));
        let mut masses: Vec<(usize, f64)> = Vec::new();
        // The block that is not full has no statistics.
        for b in full..blocks {
            let mass = self.score(cpu, job, kv, b, decoded);
            all.add(mass);
            masses.push((b, mass));
        }
        for (i, &(ln, b)) in order.iter().enumerate() {
            let low = all.ln() + ln_threshold - 1e-6;
            if ln <= low {
                let mut high = all;
                high.add(rest[i]);
                let high = high.ln() + ln_threshold;
                let known = |&(_, mass): &(usize, f64)| mass <= low || mass > high;
                if masses.iter().all(known) && masses.iter().any(|(_, m)| *m > high) {
                    break;
                }
            }
            let mass = self.score(cpu, job, kv, b, decoded);
            all.add(mass);
            masses.push((b, mass));
        }
        self.keep(&masses, all.ln() + ln_threshold)
    }

    /// Drops the blocks at or below the cut; the heaviest stays in any case (the earlier of equals).
    fn keep(self, masses: &[(usize, f64)], cut: f64) -> (u64, u64, f32) {
        let size = |b: usize| ((b + 1) * SKIP_BLOCK).min(self.seen) - b * SKIP_BLOCK;
        let heaviest = masses
            .iter()
            .max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
            .map(|m| m.0);
        let (mut scored, mut kept, mut sum) = (0, 0, Mass::NONE);
        for &(b, mass) in masses {
            scored += size(b) as u64;
            if mass > cut || heaviest == Some(b) {
                kept += size(b) as u64;
                sum.add(mass);
            } else {
                self.blocks[b] = f64::NEG_INFINITY;
            }
        }
        let top = sum.max.max(self.sink.map_or(f64::NEG_INFINITY, f64::from));
        self.sink.into_iter().for_each(|s| sum.add(f64::from(s)));
        for block in self.blocks.iter_mut().filter(|b| **b != f64::NEG_INFINITY) {
            *block = (*block - top).exp();
        }
        let total = if sum.sum > 0.0 { (sum.ln() - top).exp() } else { 0.0 };
        (scored, kept, if total > 0.0 { (1.0 / total) as f32 } else { 0.0 })
    }
}

/// Leaves out blocks of 32 neighbouring scores of a list: those that become -inf are at most `threshold` of the
/// softmax. Returns the keys kept.
pub(super) fn drop_blocks(
    cpu: &Cpu,
    scores: &mut [f32],
    threshold: f32,
    sink: Option<f32>,
    scratch: &mut Vec<f32>,
) -> u64 {
    scratch.clear();
    scratch.extend_from_slice(scores);
    // The total, as the softmax will compute it.
    let factor = softmax(cpu, scratch, sink);
    let mass = |part: &[f32]| part.iter().map(|w| f64::from(*w)).sum::<f64>() * f64::from(factor);
    let masses: Vec<f64> = scratch.chunks(SKIP_BLOCK).map(mass).collect();
    let heaviest = masses
        .iter()
        .enumerate()
        .max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
    let heaviest = heaviest.map(|h| h.0);
    let mut kept = 0;
    for (b, part) in scores.chunks_mut(SKIP_BLOCK).enumerate() {
        if masses[b] > f64::from(threshold) || heaviest == Some(b) {
            kept += part.len() as u64;
        } else {
            part.fill(f32::NEG_INFINITY);
        }
    }
    kept
}
