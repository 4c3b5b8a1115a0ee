//! Attention over cache rows. Every (token, head) is computed wholly by one task in a fixed order of keys, so results
//! do not depend on the number of threads.

use std::cell::RefCell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::run::Ctx;
use super::score::rescore;
use super::skip::{attend_skip, drop_blocks};
use super::store::{CpuState, Store};
use super::workspace::Shared;
use crate::cpu::Cpu;
use crate::cpu::attn_dot::{axpy_rows, dot_rows, exp_softmax, scale_f32};
use crate::ir::{CacheFormat, ExecError, KeyRows, LayerStats, Mask, Op, ScoreProgram, StepParams};

/// Keys per block of decoded rows.
const BLOCK: usize = 64;
/// Queries that share one pass over the keys.
pub(super) const QUERIES: usize = 8;

/// What one attention op does, resolved for a step.
pub(super) struct Job<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub scale: f32,
    pub mask: Mask,
    pub score: Option<&'a ScoreProgram>,
    pub sinks: Option<&'a [f32]>,
    pub step: StepParams,
    pub sources: Vec<Source<'a>>,
}

/// One source with its stores and, for selected rows, the selection `[tokens, k]`.
pub(super) struct Source<'a> {
    pub keys: &'a Store,
    pub values: &'a Store,
    pub rows: KeyRows,
    pub selection: Option<(&'a [i32], usize)>,
}

thread_local! {
    pub(super) static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::default());
}

#[derive(Default)]
pub(super) struct Scratch {
    pub(super) scores: Vec<f32>,
    pub(super) block: Vec<f32>,
    order: Vec<u32>,
    factors: Vec<f32>,
    weights: Vec<f32>,
    rows: Vec<u32>,
    positions: Vec<f32>,
}

/// Runs an attend op.
pub(super) fn run(ctx: &Ctx<'_>, op: &Op, state: &mut CpuState, stats: &mut LayerStats) -> Result<(), ExecError> {
    let Op::Attend {
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
    } = op
    else {
        return Ok(());
    };
    if matches!(mask, Mask::BlockSkip { .. }) && score.is_some() {
        return Err(ExecError::Unsupported {
            backend: "cpu",
            what: "skipped blocks with a score expression: nothing bounds what it makes of a score".into(),
        });
    }
    let sinks = ctx.optional(*sinks)?;
    if let (Mask::BlockSkip { .. }, [s]) = (mask, &sources[..])
        && s.rows == KeyRows::Causal
    {
        state.stores[s.keys.index()].look_at_blocks(ctx.step.context() as usize);
    }
    let mut y = state.work.take(*out);
    let list = sources
        .iter()
        .map(|s| Source {
            keys: &state.stores[s.keys.index()],
            values: &state.stores[s.values.index()],
            rows: s.rows,
            selection: match s.rows {
                KeyRows::Compressed { selection: Some(b), .. } => Some((state.work.ints(b), ctx.width(b))),
                _ => None,
            },
        })
        .collect();
    let job = Job {
        heads: *heads,
        kv_heads: *kv_heads,
        head_dim: *head_dim,
        scale: *scale,
        mask: *mask,
        score: score.as_ref(),
        sinks: sinks.as_deref(),
        step: ctx.step,
        sources: list,
    };
    let n = ctx.len(*q);
    attend(ctx.cpu, &job, &state.work.get(*q)[..n], &mut y[..n], stats);
    state.work.put(*out, y);
    Ok(())
}

/// Runs the op: q and out are `[tokens, heads * head_dim]`. Returns (keys scored, keys kept) summed over queries.
pub(super) fn attend(cpu: &Cpu, job: &Job<'_>, q: &[f32], out: &mut [f32], stats: &mut LayerStats) {
    let tokens = job.step.tokens as usize;
    let (p, t) = (job.step.position, u64::from(job.step.tokens));
    stats.keys_context += t * p + t * (t + 1) / 2;
    let dense = job.sources.len() == 1 && matches!(job.sources[0].rows, KeyRows::Causal);
    if let (Mask::BlockSkip { threshold }, true) = (job.mask, dense) {
        let (scored, kept) = attend_skip(cpu, job, threshold, q, out);
        stats.keys_scored += scored;
        stats.keys_kept += kept;
        return;
    }
    for i in 0..tokens {
        let scored: usize = job.sources.iter().map(|s| s.count(job, i)).sum();
        stats.keys_scored += scored as u64;
        stats.keys_kept += match job.mask {
            Mask::TopK { k } => scored.min(k) as u64,
            // Counted while they are chosen.
            Mask::BlockSkip { .. } => 0,
            _ => scored as u64,
        };
    }
    if dense {
        attend_dense(cpu, job, q, out);
    } else {
        let kept = attend_rows(cpu, job, q, out);
        if let Mask::BlockSkip { .. } = job.mask {
            stats.keys_kept += kept / job.heads as u64;
        }
    }
}

impl Source<'_> {
    /// Visible keys of the step's token `i`.
    fn count(&self, job: &Job<'_>, i: usize) -> usize {
        let t = job.step.position as usize + i;
        match self.rows {
            KeyRows::Causal => match job.mask {
                Mask::SlidingWindow { window, sinks } => visible(t, window, sinks).map(|(a, b)| b - a).iter().sum(),
                _ => t + 1,
            },
            KeyRows::Window { window } => window.min(t + 1),
            KeyRows::Compressed { rate, .. } => {
                let visible = job.step.rows_visible(rate, i);
                self.selection.map_or(visible, |(_, k)| visible.min(k))
            }
        }
    }

    /// Appends the slots of the visible rows of token `i`.
    fn list(&self, job: &Job<'_>, i: usize, out: &mut Vec<u32>) {
        let t = job.step.position as usize + i;
        match self.rows {
            KeyRows::Causal => out.extend((0..=t).map(|r| r as u32)),
            KeyRows::Window { window } => {
                out.extend(((t + 1).saturating_sub(window)..=t).map(|r| self.keys.slot(r) as u32));
            }
            KeyRows::Compressed { rate, .. } => match self.selection {
                None => out.extend(0..job.step.rows_visible(rate, i) as u32),
                Some((rows, k)) => out.extend(rows[i * k..(i + 1) * k].iter().filter(|&&r| r >= 0).map(|&r| r as u32)),
            },
        }
    }
}

/// Positions of the keys of token `i`, in the order of [`gather`]: of compressed rows, that of their block's first token.
fn positions(job: &Job<'_>, i: usize, out: &mut Vec<f32>) {
    out.clear();
    let t = job.step.position as usize + i;
    let mut rows = Vec::new();
    for source in &job.sources {
        match source.rows {
            KeyRows::Causal => out.extend((0..=t).map(|r| r as f32)),
            KeyRows::Window { window } => out.extend(((t + 1).saturating_sub(window)..=t).map(|r| r as f32)),
            KeyRows::Compressed { rate, .. } => {
                rows.clear();
                source.list(job, i, &mut rows);
                out.extend(rows.iter().map(|r| (*r as usize * rate) as f32));
            }
        }
    }
}

/// Visible ranges under a sliding window with sinks: [first, end) twice, disjoint.
fn visible(t: usize, window: usize, sinks: usize) -> [(usize, usize); 2] {
    let start = (t + 1).saturating_sub(window);
    [(0, sinks.min(start)), (start, t + 1)]
}

/// Keeps the k largest scores (ties to the lower index), the rest become -inf.
fn keep_top_k(scores: &mut [f32], k: usize, order: &mut Vec<u32>) {
    if scores.len() <= k {
        return;
    }
    order.clear();
    order.extend(0..scores.len() as u32);
    let by = |&a: &u32, &b: &u32| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b));
    order.select_nth_unstable_by(k, by);
    for &i in &order[k..] {
        scores[i as usize] = f32::NEG_INFINITY;
    }
}

/// Softmax in place with an optional sink logit that only enlarges the denominator. Returns the factor to apply to
/// the weighted sum (weights stay unnormalised).
pub(super) fn softmax(cpu: &Cpu, scores: &mut [f32], sink: Option<f32>) -> f32 {
    let mut max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if let Some(s) = sink {
        max = max.max(s);
    }
    if max == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 0.0;
    }
    let sum = exp_softmax(cpu.isa, scores, max) + sink.map_or(0.0, |s| (s - max).exp());
    1.0 / sum
}

/// Causal attention over a growing cache: tasks are (key head, 8 queries).
fn attend_dense(cpu: &Cpu, job: &Job<'_>, q: &[f32], out: &mut [f32]) {
    let tokens = job.step.tokens as usize;
    let blocks = tokens.div_ceil(QUERIES);
    let shared = Shared::new(out);
    cpu.pool.run(job.kv_heads * blocks, &|task| {
        let (kv, first) = (task / blocks, task % blocks * QUERIES);
        let n = QUERIES.min(tokens - first);
        SCRATCH.with_borrow_mut(|s| dense_task(cpu, job, q, &shared, (kv, first, n), s));
    });
}

fn dense_task(
    cpu: &Cpu,
    job: &Job<'_>,
    q: &[f32],
    out: &Shared<'_, f32>,
    (kv, first, n): (usize, usize, usize),
    s: &mut Scratch,
) {
    let source = &job.sources[0];
    let (d, group) = (job.head_dim, job.heads / job.kv_heads);
    let width = job.heads * d;
    let position = job.step.position as usize + first;
    let keys = position + n;
    let lanes = n * group;
    s.scores.resize(lanes * keys, 0.0);
    s.block.resize(BLOCK * d, 0.0);
    // Queries of a task see different numbers of keys; with a window, blocks nobody sees are skipped.
    let needed = |a: usize, b: usize| match job.mask {
        Mask::SlidingWindow { window, sinks } => a < sinks || b + window > position + 1,
        _ => true,
    };
    for a in (0..keys).step_by(BLOCK) {
        let b = (a + BLOCK).min(keys);
        if !needed(a, b) {
            continue;
        }
        let block = rows_f32(source.keys, a, b, kv, &mut s.block);
        for lane in 0..lanes {
            let (i, h) = (lane / group, kv * group + lane % group);
            let query = &q[(first + i) * width + h * d..][..d];
            let row = &mut s.scores[lane * keys..(lane + 1) * keys];
            dot_rows(cpu.isa, query, block.values, block.stride, job.scale, &mut row[a..b]);
            if let Some(program) = job.score {
                rescore(program, &mut row[a..b], ((position + i) as f32, h as f32), |j| {
                    (a + j) as f32
                });
            }
        }
    }
    s.factors.clear();
    for lane in 0..lanes {
        let (i, h) = (lane / group, kv * group + lane % group);
        let t = position + i;
        let row = &mut s.scores[lane * keys..(lane + 1) * keys];
        row[t + 1..].fill(0.0);
        if let Mask::SlidingWindow { window, sinks } = job.mask {
            let [(_, a), (b, _)] = visible(t, window, sinks);
            row[a..b].fill(f32::NEG_INFINITY);
        }
        if let Mask::TopK { k } = job.mask {
            keep_top_k(&mut row[..=t], k, &mut s.order);
        }
        s.factors.push(softmax(cpu, &mut row[..=t], job.sinks.map(|x| x[h])));
        // SAFETY: (token, head) belongs to this task alone.
        unsafe { out.part((first + i) * width + h * d, d) }.fill(0.0);
    }
    for a in (0..keys).step_by(BLOCK) {
        let b = (a + BLOCK).min(keys);
        if !needed(a, b) {
            continue;
        }
        let block = rows_f32(source.values, a, b, kv, &mut s.block);
        for lane in 0..lanes {
            let (i, h) = (lane / group, kv * group + lane % group);
            // SAFETY: (token, head) belongs to this task alone.
            let o = unsafe { out.part((first + i) * width + h * d, d) };
            let weights = &s.scores[lane * keys..(lane + 1) * keys];
            // Keys of later tokens are in the block, too.
            let seen = b.min(position + i + 1).max(a);
            axpy_rows(cpu.isa, &weights[a..seen], block.values, block.stride, o);
        }
    }
    for lane in 0..lanes {
        let (i, h) = (lane / group, kv * group + lane % group);
        // SAFETY: (token, head) belongs to this task alone.
        let o = unsafe { out.part((first + i) * width + h * d, d) };
        scale_f32(cpu.isa, s.factors[lane], o);
    }
}

/// A block of rows as f32: in place when the cache stores f32, decoded otherwise.
pub(super) struct Rows<'a> {
    pub(super) values: &'a [f32],
    pub(super) stride: usize,
}

/// Rows a to b of a record. `scratch` holds them if they must be decoded.
pub(super) fn rows_f32<'a>(store: &'a Store, a: usize, b: usize, record: usize, scratch: &'a mut [f32]) -> Rows<'a> {
    let d = store.desc.width;
    if store.desc.format == CacheFormat::F32 {
        let all: &[f32] = bytemuck::cast_slice(store.bytes());
        let stride = d * store.desc.records;
        return Rows {
            values: &all[a * stride + record * d..],
            stride,
        };
    }
    for r in a..b {
        store.read(r, record, &mut scratch[(r - a) * d..(r - a + 1) * d]);
    }
    Rows {
        values: scratch,
        stride: d,
    }
}

/// Attention over listed rows of several sources that hold one latent per row (keys are values). Returns the keys kept,
/// summed over queries and heads.
fn attend_rows(cpu: &Cpu, job: &Job<'_>, q: &[f32], out: &mut [f32]) -> u64 {
    let tokens = job.step.tokens as usize;
    let shared = Shared::new(out);
    let kept = AtomicU64::new(0);
    if tokens > 1 {
        cpu.pool.run(tokens, &|i| {
            SCRATCH.with_borrow_mut(|s| {
                let mut latents = std::mem::take(&mut s.block);
                let n = gather(job, i, &mut latents, s, None);
                if job.score.is_some() {
                    positions(job, i, &mut s.positions);
                }
                for h in 0..job.heads {
                    let stay = row_head(cpu, job, q, &shared, (i, h), &latents, n, s);
                    kept.fetch_add(stay, Ordering::Relaxed);
                }
                s.block = latents;
            });
        });
        return kept.into_inner();
    }
    // One token: decode the rows in parallel, then the heads in parallel.
    let mut latents = Vec::new();
    let mut s = Scratch::default();
    let n = gather(job, 0, &mut latents, &mut s, Some(cpu));
    cpu.pool.run(job.heads, &|h| {
        let stay = SCRATCH.with_borrow_mut(|s| {
            if job.score.is_some() {
                positions(job, 0, &mut s.positions);
            }
            row_head(cpu, job, q, &shared, (0, h), &latents, n, s)
        });
        kept.fetch_add(stay, Ordering::Relaxed);
    });
    kept.into_inner()
}

/// Decodes every visible row of token `i` into `[n, head_dim]`.
fn gather(job: &Job<'_>, i: usize, latents: &mut Vec<f32>, s: &mut Scratch, parallel: Option<&Cpu>) -> usize {
    let d = job.head_dim;
    let mut done = 0;
    for source in &job.sources {
        s.rows.clear();
        source.list(job, i, &mut s.rows);
        let n = s.rows.len();
        latents.resize(latents.len().max((done + n) * d), 0.0);
        let part = &mut latents[done * d..(done + n) * d];
        match parallel {
            None => part
                .chunks_exact_mut(d)
                .zip(&s.rows)
                .for_each(|(o, &r)| source.keys.read(r as usize, 0, o)),
            Some(cpu) => {
                let shared = Shared::new(part);
                let rows = &s.rows;
                cpu.pool.run(n.div_ceil(BLOCK), &|b| {
                    for j in b * BLOCK..n.min((b + 1) * BLOCK) {
                        // SAFETY: row j belongs to this task alone.
                        source.keys.read(rows[j] as usize, 0, unsafe { shared.part(j * d, d) });
                    }
                });
            }
        }
        done += n;
    }
    done
}

#[expect(clippy::too_many_arguments, reason = "the inner loop's view of one (token, head)")]
fn row_head(
    cpu: &Cpu,
    job: &Job<'_>,
    q: &[f32],
    out: &Shared<'_, f32>,
    (i, h): (usize, usize),
    latents: &[f32],
    n: usize,
    s: &mut Scratch,
) -> u64 {
    let (d, width) = (job.head_dim, job.heads * job.head_dim);
    let query = &q[i * width + h * d..][..d];
    s.scores.resize(n.max(s.scores.len()), 0.0);
    let scores = &mut s.scores[..n];
    dot_rows(cpu.isa, query, latents, d, job.scale, scores);
    if let Some(program) = job.score {
        let (t, at) = (job.step.position as usize + i, &s.positions);
        rescore(program, scores, (t as f32, h as f32), |j| at[j]);
    }
    if let Mask::TopK { k } = job.mask {
        keep_top_k(scores, k, &mut s.order);
    }
    let sink = job.sinks.map(|x| x[h]);
    let mut kept = n as u64;
    if let Mask::BlockSkip { threshold } = job.mask {
        kept = drop_blocks(cpu, scores, threshold, sink, &mut s.weights);
    }
    let factor = softmax(cpu, scores, sink);
    // SAFETY: (token, head) belongs to this task alone.
    let o = unsafe { out.part(i * width + h * d, d) };
    o.fill(0.0);
    axpy_rows(cpu.isa, scores, latents, d, o);
    scale_f32(cpu.isa, factor, o);
    kept
}
