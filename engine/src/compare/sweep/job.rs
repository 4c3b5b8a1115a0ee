//! A sweep from what was asked for to what was found; the command and the app both run this.

use std::sync::Arc;

use protocol::{CompareSpec, RecipeRef, SweepGroup, SweepRow, SweepSpec};

use super::{Axis, Candidate, Listener, MOST, Recommended, Refused, Sweep, from_presets, grid, recommend, singles};
use crate::compare::job::{quoted, text_words};
use crate::compare::{CompareJob, Current, reference};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::watch::Watch;

/// A sweep with everything it refers to resolved.
pub struct SweepJob {
    /// What was asked for.
    pub spec: SweepSpec,
    /// Model name for people.
    pub model: String,
    sweep: Sweep,
    all: Vec<(SweepGroup, Candidate)>,
    refused: Vec<Refused>,
}

/// Everything a sweep found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// A, combinations and presets, in this order.
    pub rows: Vec<SweepRow>,
    /// Changes in one layer alone.
    pub singles: Vec<SweepRow>,
    /// Edits and the reason, for what could not be measured.
    pub failed: Vec<(Vec<String>, String)>,
    /// For the budget, if one was given and something cheaper than A stays within it.
    pub recommended: Option<Recommended>,
}

impl SweepJob {
    /// Resolves recipe A, text and axes. `current` is needed by specs that name the current recipe or text.
    ///
    /// # Errors
    /// A recipe or an axis that does not fit, no tokenizer for a text, fewer than two tokens, nothing to measure.
    pub fn resolve(engine: &Arc<Engine>, spec: &SweepSpec, current: Option<Current<'_>>) -> Result<Self, EngineError> {
        check(spec)?;
        let compare = CompareSpec {
            a: spec.a.clone(),
            b: RecipeRef::Own,
            text: spec.text.clone(),
            positions: spec.positions,
            isolate: false,
        };
        let job = CompareJob::resolve(engine, &compare, current)?;
        Self::of_job(engine, spec.clone(), job)
    }

    /// A sweep against a recipe on given tokens. `spec` says everything else.
    ///
    /// # Errors
    /// As [`SweepJob::resolve`].
    pub fn from_parts(engine: &Arc<Engine>, spec: SweepSpec, a: Recipe, ids: Vec<u32>) -> Result<Self, EngineError> {
        check(&spec)?;
        let compare = CompareSpec {
            a: spec.a.clone(),
            b: RecipeRef::Own,
            text: spec.text.clone(),
            positions: spec.positions,
            isolate: false,
        };
        let job = CompareJob::from_parts(engine, compare, a.clone(), a, ids)?;
        Self::of_job(engine, spec, job)
    }

    fn of_job(engine: &Arc<Engine>, spec: SweepSpec, job: CompareJob) -> Result<Self, EngineError> {
        let axes = axes(&spec.axes)?;
        let (model, a) = (job.model.clone(), job.a.clone());
        let sweep = Sweep::of_job(engine, job);
        let mut all = vec![(SweepGroup::Base, sweep.base())];
        let (combinations, mut refused) = grid(engine, &a, &axes)?;
        all.extend(combinations.into_iter().map(|c| (SweepGroup::Grid, c)));
        if spec.presets {
            let (presets, not) = from_presets(engine, &a)?;
            // The checkpoint's own is A, unless A was changed.
            let presets = presets.into_iter().filter(|p| !p.edits.is_empty());
            all.extend(presets.map(|c| (SweepGroup::Grid, c)));
            refused.extend(not);
        }
        if spec.per_layer || spec.budget.is_some() {
            let (some, not) = singles(engine, &a, &axes)?;
            all.extend(some.into_iter().map(|c| (SweepGroup::Single, c)));
            // A place that an axis names as it is was refused with the combinations.
            let named = |r: &Refused| {
                let edit = r.edits.first().map_or("", String::as_str);
                axes.iter().any(|x| edit.starts_with(&format!("{}=", x.selector)))
            };
            refused.extend(not.into_iter().filter(|r| !named(r)));
        }
        if all.len() > MOST {
            return Err(EngineError::Invalid(format!(
                "a sweep of {} recipes, accepted: at most {MOST}",
                all.len()
            )));
        }
        if all.len() == 1
            && let Some(first) = refused.first()
        {
            return Err(EngineError::Invalid(format!(
                "the model takes none of these recipes: {}: {}",
                first.edits.join(" "),
                first.reason
            )));
        }
        Ok(Self {
            spec,
            model,
            sweep,
            all,
            refused,
        })
    }

    /// Text, recipe A, and what is measured.
    pub fn sweep(&self) -> &Sweep {
        &self.sweep
    }

    /// The recipes that will be measured, A first; what the recommendation tries is not known before.
    pub fn all(&self) -> &[(SweepGroup, Candidate)] {
        &self.all
    }

    /// Combinations and presets that the model does not take.
    pub fn refused(&self) -> &[Refused] {
        &self.refused
    }

    /// Precision of A's arithmetic in words.
    pub fn reference(&self) -> String {
        reference(self.sweep.engine())
    }

    /// What must be equal for rows of one sweep to hold in another: weights, device, recipe A and tokens.
    pub fn key(&self) -> String {
        let engine = self.sweep.engine();
        let ids: Vec<u8> = self.sweep.ids().iter().flat_map(|i| i.to_le_bytes()).collect();
        format!(
            "{} {} {} {} {} {}",
            engine.checkpoint().path.display(),
            engine.facts().key(),
            engine.weight_bytes(),
            engine.backend().describe(),
            self.sweep.a().hash(),
            super::fingerprint(&ids)
        )
    }

    /// Takes in rows measured earlier, of a sweep with the same [`SweepJob::key`].
    pub fn know(&mut self, rows: impl IntoIterator<Item = SweepRow>) {
        self.sweep.know(rows);
    }

    /// Measures everything that is not known yet, then looks for the recommendation if there is a budget. What `tell`
    /// has been told stays true when this is cancelled.
    ///
    /// # Errors
    /// Cancelled, a failed step, or `tell` failing.
    pub fn run(&mut self, watch: &mut Watch<'_>, tell: &mut Listener<'_>) -> Result<Found, EngineError> {
        let together: Vec<Candidate> = self.all.iter().map(|(_, c)| c.clone()).collect();
        let measured = self.sweep.measure(&together, watch, tell)?;
        let (grid, singles) = (self.known(false), self.known(true));
        let base = self.sweep.row(&self.sweep.base()).cloned();
        let recommended = match (self.spec.budget, base) {
            (Some(budget), Some(base)) => recommend(&mut self.sweep, &base, &singles, &grid, budget, watch, tell)?,
            _ => None,
        };
        Ok(Found {
            failed: measured.failed,
            recommended,
            ..self.so_far()
        })
    }

    /// What is measured, also when [`SweepJob::run`] was cancelled.
    pub fn so_far(&self) -> Found {
        let rows = |single| self.known(single).into_iter().map(|(_, r)| r).collect();
        Found {
            rows: rows(false),
            singles: rows(true),
            ..Found::default()
        }
    }

    fn known(&self, single: bool) -> Vec<(Candidate, SweepRow)> {
        let some = self.all.iter().filter(|(g, _)| (*g == SweepGroup::Single) == single);
        some.filter_map(|(_, c)| Some((c.clone(), named(c, self.sweep.row(c)?))))
            .collect()
    }

    /// The command that repeats this sweep.
    pub fn command(&self) -> String {
        let engine = self.sweep.engine();
        let job = self.sweep.job();
        let mut words = vec!["model1".to_string(), "sweep".into(), "--model".into()];
        words.push(quoted(&engine.checkpoint().path.display().to_string()));
        for change in job.a.changes_from(&engine.recipe()) {
            words.extend(["--a-set".into(), quoted(&change.to_string())]);
        }
        for axis in &self.spec.axes {
            words.extend(["--sweep".into(), quoted(axis)]);
        }
        if self.spec.presets {
            words.push("--presets".into());
        }
        if self.spec.per_layer {
            words.push("--per-layer".into());
        }
        if let Some(budget) = self.spec.budget {
            words.extend(["--budget".into(), budget.to_string()]);
        }
        words.extend(text_words(&self.spec.text, &job.ids));
        words.extend(["--positions".into(), self.spec.positions.to_string()]);
        words.join(" ")
    }
}

/// A row under the name that this sweep has for it; the one that was measured may have been another's.
fn named(candidate: &Candidate, row: &SweepRow) -> SweepRow {
    SweepRow {
        name: candidate.name.clone(),
        edits: candidate.edits.clone(),
        ..row.clone()
    }
}

/// What needs no model to be found wrong.
fn check(spec: &SweepSpec) -> Result<(), EngineError> {
    let wrong = |what: String| Err(EngineError::Invalid(what));
    if spec.axes.is_empty() && !spec.presets {
        return wrong("found nothing to sweep, accepted: at least one SLOT=CHOICE,CHOICE,... or the presets".into());
    }
    if spec.axes.is_empty() && (spec.per_layer || spec.budget.is_some()) {
        return wrong("found no SLOT=CHOICE,..., accepted: at least one where layers are tried alone".into());
    }
    match spec.budget {
        Some(b) if !(b.is_finite() && b >= 0.0) => wrong(format!("budget: found {b}, accepted: 0 or more, in nats")),
        _ => Ok(()),
    }
}

/// Reads axes and counts what they make.
///
/// # Errors
/// What is wrong and what would be accepted.
fn axes(texts: &[String]) -> Result<Vec<Axis>, EngineError> {
    let read = |text: &String| Axis::parse(text).map_err(|e| EngineError::Invalid(format!("{text}: {e}")));
    let axes = texts.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let total = axes.iter().try_fold(1usize, |n, x| n.checked_mul(x.choices.len()));
    match total {
        Some(n) if n <= MOST => Ok(axes),
        _ => Err(EngineError::Invalid(format!(
            "found {} combinations, accepted: at most {MOST}",
            total.map_or("far too many".into(), |n| n.to_string())
        ))),
    }
}
