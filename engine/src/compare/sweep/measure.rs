//! Measuring: A and a few recipes at a time go through the text in lockstep.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kernels::ir::ExecError;
use protocol::{CompareSpec, CompareText, RecipeRef, SweepRow};

use super::{Candidate, Pass};
use crate::compare::{CompareJob, SIDES};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::watch::Watch;

/// Measured rows, in the order they were asked for, and what could not be measured.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// One per recipe that could be measured.
    pub rows: Vec<SweepRow>,
    /// Edits and the reason, for those that could not (memory).
    pub failed: Vec<(Vec<String>, String)>,
}

/// What happens while recipes are measured.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A recipe is being read.
    Reading {
        /// The recipe.
        candidate: &'a Candidate,
        /// Positions so far.
        positions: u64,
        /// Mean KL(A||it) over them, in nats.
        kl_mean: f64,
    },
    /// A recipe is measured. What was told stays true whatever happens later.
    Row(&'a SweepRow),
    /// A recipe could not be measured; the others go on.
    Failed {
        /// The recipe.
        candidate: &'a Candidate,
        /// The reason.
        reason: &'a str,
    },
}

/// Is told what happens. An error ends the sweep.
pub type Listener<'a> = dyn FnMut(Event<'_>) -> Result<(), EngineError> + 'a;

/// A text, recipe A, and what is known already.
pub struct Sweep {
    engine: Arc<Engine>,
    job: CompareJob,
    known: BTreeMap<String, SweepRow>,
}

impl Sweep {
    /// A sweep of recipes against `a` on these tokens, at most `positions` of them.
    ///
    /// # Errors
    /// A recipe that does not fit, fewer than two tokens.
    pub fn new(engine: &Arc<Engine>, a: Recipe, ids: Vec<u32>, positions: u64) -> Result<Self, EngineError> {
        let spec = CompareSpec {
            a: RecipeRef::Own,
            b: RecipeRef::Own,
            text: CompareText::Current,
            positions,
            isolate: false,
        };
        Ok(Self::of_job(
            engine,
            CompareJob::from_parts(engine, spec, a.clone(), a, ids)?,
        ))
    }

    /// A sweep against A of this comparison, on its text.
    pub(super) fn of_job(engine: &Arc<Engine>, job: CompareJob) -> Self {
        Self {
            engine: engine.clone(),
            job,
            known: BTreeMap::new(),
        }
    }

    /// The model.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Recipe A.
    pub fn a(&self) -> &Recipe {
        &self.job.a
    }

    /// Tokens that are read.
    pub fn ids(&self) -> &[u32] {
        &self.job.ids
    }

    /// Sentences about the text: cut and the like.
    pub fn notes(&self) -> &[String] {
        &self.job.notes
    }

    pub(super) fn job(&self) -> &CompareJob {
        &self.job
    }

    /// A alone, as the candidate that all others are compared with.
    pub fn base(&self) -> Candidate {
        Candidate {
            name: String::new(),
            edits: Vec::new(),
            recipe: self.job.a.clone(),
        }
    }

    /// Takes in rows measured earlier: their recipes are not measured again.
    pub fn know(&mut self, rows: impl IntoIterator<Item = SweepRow>) {
        self.known.extend(rows.into_iter().map(|r| (r.hash.clone(), r)));
    }

    /// The figures of a recipe that has been measured.
    pub fn row(&self, candidate: &Candidate) -> Option<&SweepRow> {
        self.known.get(&candidate.recipe.hash())
    }

    /// Whether a recipe has been measured.
    pub fn knows(&self, candidate: &Candidate) -> bool {
        self.row(candidate).is_some()
    }

    /// Measures what is not known yet. `tell` hears of every new row as soon as it is there; what it has been told
    /// stays true when this is cancelled. Progress counts tokens. Where memory does not suffice, before a pass or in
    /// the middle of it, fewer recipes are tried at a time; one that does not fit beside A alone is reported and the
    /// others go on.
    ///
    /// # Errors
    /// Cancelled, a failed step, or `tell` failing.
    pub fn measure(
        &mut self,
        candidates: &[Candidate],
        watch: &mut Watch<'_>,
        tell: &mut Listener<'_>,
    ) -> Result<Measured, EngineError> {
        // One recipe may be a combination and a single change as well.
        let mut seen = BTreeSet::new();
        let todo: Vec<&Candidate> = candidates
            .iter()
            .filter(|c| !self.knows(c) && seen.insert(c.recipe.hash()))
            .collect();
        let n = self.job.ids.len();
        let mut progress = Progress {
            done: 0,
            shown: 0,
            total: (n * (todo.len() + todo.len().div_ceil(SIDES))) as u64,
        };
        progress.add(0, watch)?;
        let mut failed = Vec::new();
        let mut at = 0;
        let mut size = SIDES;
        while at < todo.len() {
            let part = &todo[at..(at + size).min(todo.len())];
            let before = progress.done;
            match self.pass(part, &mut progress, watch, tell) {
                Ok(rows) => {
                    for row in rows {
                        tell(Event::Row(&row))?;
                        self.known.insert(row.hash.clone(), row);
                    }
                }
                Err(e) if !of_memory(&e) => return Err(e),
                Err(e) if part.len() == 1 => {
                    let reason = e.to_string();
                    tell(Event::Failed {
                        candidate: part[0],
                        reason: &reason,
                    })?;
                    failed.push((part[0].edits.clone(), reason));
                }
                // Fewer at a time need less memory.
                Err(_) => {
                    progress.done = before;
                    size = part.len() / 2;
                    continue;
                }
            }
            at += part.len();
        }
        progress.done = progress.total;
        progress.add(0, watch)?;
        Ok(Measured {
            rows: candidates
                .iter()
                .filter_map(|c| self.known.get(&c.recipe.hash()).cloned())
                .collect(),
            failed,
        })
    }

    /// Reads the text with A and these recipes.
    fn pass(
        &self,
        part: &[&Candidate],
        progress: &mut Progress,
        watch: &mut Watch<'_>,
        tell: &mut Listener<'_>,
    ) -> Result<Vec<SweepRow>, EngineError> {
        let recipes: Vec<&Recipe> = part.iter().map(|c| &c.recipe).collect();
        let mut pass = Pass::new(&self.engine, &self.job, &recipes, false)?;
        // Positions and the sum of their KL, per recipe.
        let mut sums = vec![(0, 0.0); part.len()];
        pass.run(
            watch,
            &mut |tokens, watch| progress.add(tokens as u64, watch),
            &mut |against| {
                for ((candidate, side), sum) in part.iter().zip(against).zip(&mut sums) {
                    let to = side.kl.len();
                    sum.1 += side.kl[sum.0..].iter().sum::<f64>();
                    sum.0 = to;
                    tell(Event::Reading {
                        candidate,
                        positions: to as u64,
                        kl_mean: sum.1 / to as f64,
                    })?;
                }
                Ok(())
            },
        )?;
        Ok(part.iter().enumerate().map(|(i, c)| pass.figures(i, c)).collect())
    }
}

/// Whether fewer recipes at a time may help.
fn of_memory(e: &EngineError) -> bool {
    matches!(
        e,
        EngineError::Memory { .. } | EngineError::Exec(ExecError::OutOfMemory { .. })
    )
}

/// Tokens read, of all passes. What a pass that ran out of memory had read is read again and not shown twice.
struct Progress {
    done: u64,
    shown: u64,
    total: u64,
}

impl Progress {
    fn add(&mut self, tokens: u64, watch: &mut Watch<'_>) -> Result<(), EngineError> {
        self.done += tokens;
        self.shown = self.shown.max(self.done.min(self.total));
        watch.report(self.shown, self.total)
    }
}
