//! Measuring: A and a few recipes at a time go through the text in lockstep.

use std::collections::BTreeMap;
use std::sync::Arc;

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
        Ok(Self {
            engine: engine.clone(),
            job: CompareJob::from_parts(engine, spec, a.clone(), a, ids)?,
            known: BTreeMap::new(),
        })
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

    /// Whether a recipe has been measured.
    pub fn knows(&self, candidate: &Candidate) -> bool {
        self.known.contains_key(&candidate.recipe.hash())
    }

    /// Measures what is not known yet. `keep` is told of every new row as soon as it is there; what it has been told
    /// stays true when this is cancelled. Progress counts tokens. A recipe that does not fit in memory beside A is
    /// reported and the others go on.
    ///
    /// # Errors
    /// Cancelled, a failed step, or `keep` failing.
    pub fn measure(
        &mut self,
        candidates: &[Candidate],
        watch: &mut Watch<'_>,
        keep: &mut dyn FnMut(&SweepRow) -> Result<(), EngineError>,
    ) -> Result<Measured, EngineError> {
        let todo: Vec<&Candidate> = candidates.iter().filter(|c| !self.knows(c)).collect();
        let n = self.job.ids.len();
        let total = (n * (todo.len() + todo.len().div_ceil(SIDES))) as u64;
        let mut done = 0;
        watch.report(0, total)?;
        let mut failed = Vec::new();
        let mut at = 0;
        let mut size = SIDES;
        while at < todo.len() {
            let part = &todo[at..(at + size).min(todo.len())];
            let recipes: Vec<&Recipe> = part.iter().map(|c| &c.recipe).collect();
            let mut pass = match Pass::new(&self.engine, &self.job, &recipes, false) {
                Ok(pass) => pass,
                Err(e) if part.len() == 1 => {
                    failed.push((part[0].edits.clone(), e.to_string()));
                    at += 1;
                    continue;
                }
                // Fewer at a time need less memory.
                Err(_) => {
                    size = part.len() / 2;
                    continue;
                }
            };
            pass.run(watch, &mut |tokens, watch| {
                done += tokens as u64;
                watch.report(done.min(total), total)
            })?;
            let rows: Vec<SweepRow> = part.iter().enumerate().map(|(i, c)| pass.figures(i, c)).collect();
            drop(pass);
            for row in rows {
                keep(&row)?;
                self.known.insert(row.hash.clone(), row);
            }
            at += part.len();
        }
        watch.report(total, total)?;
        Ok(Measured {
            rows: candidates
                .iter()
                .filter_map(|c| self.known.get(&c.recipe.hash()).cloned())
                .collect(),
            failed,
        })
    }
}
