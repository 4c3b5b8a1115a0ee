//! Recipe A against recipe B on the same tokens, teacher-forced: each side processes the same tokens from position 0
//! with its own cache.

mod drift;
pub mod export;
mod figures;
mod free;
mod job;
mod side;
pub mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use protocol::{Change, CompareResult, CompareSide, CompareToken, Divergence, IsolateRow, KvBytes, Label, SweepRow};

use crate::engine::{Engine, default_threads};
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::memory;
use crate::par::map_rows;
use crate::recipe::{Recipe, RecipeChange};
use crate::session::kv_view;
use crate::watch::Watch;

use drift::Gather;
use figures::{Row, delta_p, kl, kl_stats, mean_se, ppl_stats, share_se};
use side::Side;

pub use free::{FreeJob, REJOIN, Written, blocks, empty as free_empty, free_run};
pub use job::{BUILTIN, CompareJob, Current, DEFAULT_POSITIONS};

/// Positions at the end of the text that are read one token at a time, to measure decode speed.
pub const DECODE_POSITIONS: usize = 48;

/// A's margin under which a different likeliest token says nothing: rounding alone could have decided.
pub const NEAR_TIE: f32 = 1e-3;

/// Sessions beside A in one pass through the text; more take turns.
const SIDES: usize = 8;

/// KL(A||other) and agreement of one other side, position by position.
#[derive(Default)]
struct Against {
    kl: Vec<f64>,
    top: Vec<u32>,
    logprob: Vec<f64>,
}

/// What side A says, position by position.
#[derive(Default)]
struct Reference {
    rows: Vec<Row>,
    logprob: Vec<f64>,
}

/// Chunks of a text: whole ones up to the positions that are read one by one.
fn schedule(n: usize) -> Vec<std::ops::Range<usize>> {
    let single = DECODE_POSITIONS.min(n / 2);
    let mut chunks = Vec::new();
    let mut at = 0;
    while at < n - single {
        let end = (at + CHUNK - at % CHUNK).min(n - single);
        chunks.push(at..end);
        at = end;
    }
    chunks.extend((at..n).map(|i| i..i + 1));
    chunks
}

/// Compares. Memory stays bounded: both sides go through the text chunk by chunk in lockstep. Progress counts tokens
/// over all passes.
///
/// # Errors
/// Cancelled, a failed step, or too little memory for the caches of the sides.
pub fn compare(engine: &Arc<Engine>, job: &CompareJob, watch: &mut Watch<'_>) -> Result<CompareResult, EngineError> {
    let start = Instant::now();
    let n = job.ids.len();
    let changes = job.b.changes_from(&job.a);
    // With one change, "A with it alone" is B.
    let alone: Vec<(RecipeChange, Recipe)> = if job.spec.isolate && changes.len() > 1 {
        changes
            .iter()
            .map(|c| Ok((c.clone(), with(engine, &job.a, c)?)))
            .collect::<Result<_, EngineError>>()?
    } else {
        Vec::new()
    };
    let rest: Vec<&[(RecipeChange, Recipe)]> = alone.chunks(SIDES).collect();
    let total = (n * (3 + alone.len() + rest.len().saturating_sub(1))) as u64;
    let mut done = 0;
    let mut tick = |tokens: usize, watch: &mut Watch<'_>| {
        done += tokens as u64;
        watch.report(done, total)
    };
    watch.report(0, total)?;

    // First pass: A twice (the noise floor), B, and the first few single changes.
    let mut recipes = vec![&job.a, &job.b];
    let first = rest.first().copied().unwrap_or(&[]);
    recipes.extend(first.iter().map(|(_, r)| r));
    let mut pass = Pass::new(engine, job, &recipes, true)?;
    pass.run(watch, &mut tick, &mut |_| Ok(()))?;
    let mut rows = pass.isolated(first);
    for part in rest.iter().skip(1) {
        let recipes: Vec<&Recipe> = part.iter().map(|(_, r)| r).collect();
        let mut again = Pass::new(engine, job, &recipes, false)?;
        again.run(watch, &mut tick, &mut |_| Ok(()))?;
        rows.extend(again.isolated(part));
    }
    if job.spec.isolate && changes.len() == 1 {
        rows.extend(changes.first().map(|c| pass.row(c, 1)));
    }
    let mut result = pass.result(job, &changes, rows)?;
    result.seconds = start.elapsed().as_secs_f64();
    Ok(result)
}

fn with(engine: &Engine, a: &Recipe, change: &RecipeChange) -> Result<Recipe, EngineError> {
    let mut recipe = a.clone();
    recipe.set_choice(
        &change.selector,
        change.choice.clone(),
        engine.facts(),
        engine.registry(),
    )?;
    Ok(recipe)
}

/// One pass through the text: A and others in lockstep.
struct Pass<'a> {
    engine: &'a Arc<Engine>,
    ids: &'a [u32],
    threads: usize,
    a: Side,
    others: Vec<Side>,
    reference: Reference,
    against: Vec<Against>,
    /// Between A and the side of this number.
    drift: Option<(usize, Gather)>,
}

impl<'a> Pass<'a> {
    /// `full`: the first two others are A again and B, whose drift is gathered.
    fn new(engine: &'a Arc<Engine>, job: &'a CompareJob, others: &[&Recipe], full: bool) -> Result<Self, EngineError> {
        let a = Side::new(engine, &job.a, full)?;
        let mut sides = Vec::new();
        for (i, recipe) in others.iter().enumerate() {
            sides.push(Side::new(engine, recipe, full && i == 1)?);
        }
        let n = job.ids.len() as u64;
        let bytes = sides.iter().chain([&a]).map(|s| s.session.predicted_bytes(n)).sum();
        memory::require(
            bytes,
            &format!("{} caches of {n} tokens", sides.len() + 1),
            "compare fewer positions",
        )?;
        Ok(Self {
            engine,
            ids: &job.ids,
            threads: default_threads(),
            a,
            against: sides.iter().map(|_| Against::default()).collect(),
            others: sides,
            reference: Reference::default(),
            drift: full.then(|| (1, Gather::new(engine.facts().layers.len(), job.ids.len()))),
        })
    }

    /// Reads the text. `tick` is told of the tokens that one side has read, `each` of the figures after every chunk.
    fn run(
        &mut self,
        watch: &mut Watch<'_>,
        tick: &mut dyn FnMut(usize, &mut Watch<'_>) -> Result<(), EngineError>,
        each: &mut dyn FnMut(&[Against]) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        for (step, range) in schedule(self.ids.len()).into_iter().enumerate() {
            let ids = &self.ids[range.clone()];
            // What warms up is not measured: the second reading of A goes first. A and B take turns in going first,
            // so that neither always finds the weights in the processor's cache.
            let mut order: Vec<Option<usize>> = (0..self.others.len()).map(Some).collect();
            if self.drift.is_none() {
                // Many against one: every one of them goes first as often as the others.
                order.rotate_left(step % self.others.len().max(1));
            }
            order.insert(
                if step % 2 == 0 {
                    1.min(order.len())
                } else {
                    2.min(order.len())
                },
                None,
            );
            for i in order {
                let side = match i {
                    None => &mut self.a,
                    Some(i) => &mut self.others[i],
                };
                side.feed(ids, watch.cancel)?;
                tick(ids.len(), watch)?;
            }
            self.judge(range);
            each(&self.against)?;
        }
        Ok(())
    }

    /// Takes the figures of the chunk that all sides have just read.
    fn judge(&mut self, range: std::ops::Range<usize>) {
        let (ids, n) = (self.ids, range.len());
        let next = |i: usize| ids.get(range.start + i + 1).copied();
        let logprob = |row: &Row, logits: &[f32], i: usize| next(i).map_or(f64::NAN, |t| row.logprob(logits, t));
        let a = self.a.logits();
        let rows = map_rows(self.threads, n, |i| {
            let row = Row::new(a.row(i));
            (row, logprob(&row, a.row(i), i))
        });
        for (side, against) in self.others.iter().zip(&mut self.against) {
            let b = side.logits();
            let figures = map_rows(self.threads, n, |i| {
                let row = Row::new(b.row(i));
                (
                    kl(a.row(i), &rows[i].0, b.row(i), &row),
                    row.top,
                    logprob(&row, b.row(i), i),
                )
            });
            for (kl, top, p) in figures {
                against.kl.push(kl);
                against.top.push(top);
                against.logprob.push(p);
            }
        }
        for (row, p) in rows {
            self.reference.rows.push(row);
            self.reference.logprob.push(p);
        }
        if let Some((i, gather)) = &mut self.drift {
            gather.add(&self.a, &self.others[*i]);
        }
    }

    fn same(&self, side: usize) -> usize {
        let tops = self.reference.rows.iter().zip(&self.against[side].top);
        tops.filter(|(r, t)| r.top == **t).count()
    }

    /// The row of a change that side `side` has alone.
    fn row(&self, change: &RecipeChange, side: usize) -> IsolateRow {
        let kl = &self.against[side].kl;
        let used = |s: &Side| kv_layers(s).iter().map(KvBytes::total).sum::<u64>() as i64;
        IsolateRow {
            change: change.into(),
            kl_mean: mean_se(kl).0,
            kl_max: kl.iter().copied().fold(0.0, f64::max),
            same_top1: share_se(self.same(side), kl.len())[0],
            kv_saved: used(&self.a) - used(&self.others[side]),
        }
    }

    /// Everything about side `side`, which has this recipe, but how far its layers drift.
    fn figures(&mut self, side: usize, candidate: &sweep::Candidate) -> SweepRow {
        let n = self.ids.len();
        let against = &self.against[side];
        let ratio: Vec<f64> = against.logprob[..n - 1]
            .iter()
            .zip(&self.reference.logprob)
            .map(|(b, a)| a - b)
            .collect();
        let nll: Vec<f64> = against.logprob[..n - 1].iter().map(|p| -p).collect();
        let (ln_ratio, se) = mean_se(&ratio);
        let row = SweepRow {
            hash: candidate.recipe.hash(),
            name: candidate.name.clone(),
            edits: candidate.edits.clone(),
            kl: kl_stats(&against.kl),
            same_top1: share_se(self.same(side), n),
            ln_ppl_ratio: [ln_ratio, se],
            perplexity: mean_se(&nll).0.exp(),
            kv: kv_layers(&self.others[side]).iter().map(KvBytes::total).sum(),
            step_bytes: 0,
            decode_tokens_per_s: self.others[side].decode_speed(),
            prefill_tokens_per_s: self.others[side].prefill_speed(),
        };
        SweepRow {
            step_bytes: self.others[side].step_bytes(),
            ..row
        }
    }

    /// Rows of the last sides of the pass, which have one change each.
    fn isolated(&self, changes: &[(RecipeChange, Recipe)]) -> Vec<IsolateRow> {
        let first = self.others.len() - changes.len();
        let rows = changes.iter().enumerate();
        rows.map(|(i, (c, _))| self.row(c, first + i)).collect()
    }

    fn result(
        self,
        job: &CompareJob,
        changes: &[RecipeChange],
        isolate: Vec<IsolateRow>,
    ) -> Result<CompareResult, EngineError> {
        let (noise, b) = (&self.against[0], &self.against[1]);
        let n = self.ids.len();
        let nll = |p: &[f64]| p[..n - 1].iter().map(|p| -p).collect::<Vec<f64>>();
        let (nll_a, nll_b) = (nll(&self.reference.logprob), nll(&b.logprob));
        let ratio: Vec<f64> = nll_b.iter().zip(&nll_a).map(|(b, a)| b - a).collect();
        let (ln_ratio, ratio_se) = mean_se(&ratio);
        let parts = (0..n).find(|&i| self.reference.rows[i].top != b.top[i]);
        let divergence = parts.map(|i| {
            let margin = self.reference.rows[i].margin as f32;
            Divergence {
                position: i as u64,
                margin,
                near_tie: margin < NEAR_TIE,
            }
        });
        let texts = self.engine.token_texts(self.ids);
        let tokens = self
            .ids
            .iter()
            .zip(texts)
            .enumerate()
            .map(|(i, (&token, text))| CompareToken {
                token,
                text,
                kl: b.kl[i] as f32,
                logprob: [self.reference.logprob[i] as f32, b.logprob[i] as f32],
                top1: [self.reference.rows[i].top, b.top[i]],
                margin_a: self.reference.rows[i].margin as f32,
            });
        let mut notes = job.notes.clone();
        if changes.is_empty() {
            notes.push("A and B make the same choices in every slot.".into());
        }
        Ok(CompareResult {
            spec: job.spec.clone(),
            model: job.model.clone(),
            device: self.engine.backend().describe(),
            sides: [
                compared(&self.a, &job.a, &nll_a),
                compared(&self.others[1], &job.b, &nll_b),
            ],
            changes: changes.iter().map(Change::from).collect(),
            tokens: tokens.collect(),
            kl: kl_stats(&b.kl),
            same_top1: share_se(self.same(1), n),
            ln_ppl_ratio: [ln_ratio, ratio_se],
            ppl: ppl_stats(&nll_a, &nll_b),
            delta_p: delta_p(&nll_a, &nll_b),
            divergence,
            noise_floor: [mean_se(&noise.kl).0, noise.kl.iter().copied().fold(0.0, f64::max)],
            isolate,
            label: Label::Measured,
            reference: reference(self.engine),
            seconds: 0.0,
            command: job.command(self.engine),
            notes,
            drift: self
                .drift
                .map(|(_, g)| g.finish())
                .unwrap_or_else(|| Gather::new(0, 0).finish()),
        })
    }
}

fn kv_layers(side: &Side) -> Vec<KvBytes> {
    side.session.kv_bytes().iter().map(|(used, _)| kv_view(used)).collect()
}

fn compared(side: &Side, recipe: &Recipe, nll: &[f64]) -> CompareSide {
    let (mean, se) = mean_se(nll);
    let layers = kv_layers(side);
    let mut kv = KvBytes::default();
    layers.iter().for_each(|l| kv.add(l));
    CompareSide {
        hash: recipe.hash(),
        json: serde_json::to_string_pretty(recipe).unwrap_or_default(),
        perplexity: mean.exp(),
        ln_perplexity_se: se,
        kv,
        kv_layers: layers,
        decode_tokens_per_s: side.decode_speed(),
        prefill_tokens_per_s: side.prefill_speed(),
    }
}

/// Precision of the arithmetic in words.
fn reference(engine: &Engine) -> String {
    format!(
        "{} weights, f32 arithmetic on {}",
        engine.main_format(),
        engine.backend().name().to_uppercase()
    )
}
