//! Recipes: edits between tokens, and computing the text's cache anew.

use std::sync::Arc;

use engine::recipe::RecipeError;
use engine::{Cancel, EngineError, Recipe, SwapReport, Watch};
use kernels::ir::StepOutput;
use protocol::{Edit, ErrorInfo, Event, JobId, JobKind, JobState, KvBaselines, RecipeView, StepRecord};

use super::{Loaded, RecipeChange, Worker};
use crate::errors::{cancelled, of_engine};
use crate::hub::Hub;

/// Puts a recipe in force. Where weights must be stored otherwise first, that is a job: it says how far it is and can be
/// cancelled, and then nothing has changed.
fn stored(
    hub: &Hub,
    bytes: u64,
    apply: impl FnOnce(&mut Watch<'_>) -> Result<SwapReport, EngineError>,
) -> Result<SwapReport, ErrorInfo> {
    if bytes == 0 {
        let (cancel, progress) = (&Cancel::default(), &mut |_, _| {});
        return apply(&mut Watch { cancel, progress }).map_err(|e| of_engine(&e));
    }
    let (job, cancel) = hub.with(|inner| {
        let job = inner
            .jobs
            .add(JobKind::Store, "storing weights for the recipe", "bytes");
        inner
            .jobs
            .change(job.0, |j| (j.state, j.total) = (JobState::Running, bytes));
        job
    });
    let mut progress = |done, total| hub.with(|inner| inner.jobs.change(job, |j| (j.done, j.total) = (done, total)));
    let result = apply(&mut Watch {
        cancel: &cancel,
        progress: &mut progress,
    });
    let result = result.map_err(|e| of_engine(&e));
    hub.with(|inner| {
        inner.jobs.change(job, |j| {
            j.state = match &result {
                Ok(_) => JobState::Done,
                Err(e) => JobState::Failed(e.clone()),
            };
        });
    });
    result
}

fn wrong(e: RecipeError) -> ErrorInfo {
    of_engine(&EngineError::from(e))
}

impl Loaded {
    fn changed_recipe(&self, change: RecipeChange) -> Result<Recipe, RecipeError> {
        let (facts, registry) = (self.engine.facts(), self.engine.registry());
        match change {
            RecipeChange::Edits(edits) => {
                let mut recipe = self.session.recipe().clone();
                for edit in edits {
                    recipe.set(&edit.to_string(), facts, registry)?;
                }
                Ok(recipe)
            }
            RecipeChange::Json(json) => Recipe::parse(&json, "given", facts, registry),
        }
    }

    /// KV bytes of the recipe in force, then of the recipe with these edits.
    pub(super) fn preview(&self, edits: Vec<Edit>) -> Result<KvBaselines, ErrorInfo> {
        let then = self.changed_recipe(RecipeChange::Edits(edits)).map_err(wrong)?;
        Ok(self.engine.kv_preview(self.session.recipe(), &then))
    }

    /// The recipe in force as clients see it.
    pub(super) fn recipe_view(&self) -> RecipeView {
        crate::views::recipe(&self.engine, self.session.recipe(), &self.converted)
    }
}

impl Worker {
    /// Puts another recipe in force from the next token on; nothing changes if it is refused.
    pub(super) fn change_recipe(&mut self, change: RecipeChange) -> Result<RecipeView, ErrorInfo> {
        let loaded = self.loaded_mut()?;
        let recipe = loaded.changed_recipe(change).map_err(wrong)?;
        if recipe == *loaded.session.recipe() {
            return Ok(loaded.recipe_view());
        }
        let position = loaded.session.position();
        let making = loaded.engine.bytes_to_make(&recipe);
        let hub = self.hub.clone();
        let loaded = self.loaded_mut()?;
        let report = stored(&hub, making, |watch| loaded.session.apply_watched(recipe, watch))?;
        if report.converted > 0 && position > 0 {
            loaded.converted.push(position);
        }
        let view = loaded.recipe_view();
        loaded.hash = view.hash.clone();
        let (hash, shared) = (view.hash.clone(), Arc::new(view.clone()));
        let restored = loaded.engine.restored_bytes(loaded.session.recipe());
        self.hub.with(|inner| {
            inner.recipe = Some(shared);
            inner.restored = restored;
            inner.events.push(Event::Swapped {
                position,
                converted: report.converted as u32,
                hash,
            });
            inner.changed();
        });
        Ok(view)
    }

    /// Tells clients that the cache holds no converted rows any more.
    pub(super) fn forget_conversions(&mut self) {
        let Some(loaded) = self.loaded.as_mut().filter(|l| !l.converted.is_empty()) else {
            return;
        };
        loaded.converted.clear();
        let view = Arc::new(loaded.recipe_view());
        self.hub.with(|inner| {
            inner.recipe = Some(view);
            inner.changed();
        });
    }

    /// After the text was read anew because the engine's process had ended: no row is converted any more.
    pub(super) fn note_revival(&mut self) {
        let Some(loaded) = &mut self.loaded else { return };
        let revivals = loaded.session.revivals();
        if revivals != loaded.revivals {
            loaded.revivals = revivals;
            self.forget_conversions();
        }
    }

    /// Starts the engine's process again, whatever became of it before, and reads the text into it.
    pub(super) fn restart(&mut self, job: JobId, cancel: &Cancel) {
        self.busy = "A restart of the engine";
        let result = self.restart_now(job, cancel);
        self.busy = "";
        self.end_job(job, result);
        self.between();
    }

    fn restart_now(&mut self, job: JobId, cancel: &Cancel) -> Result<(), ErrorInfo> {
        if cancel.is_cancelled() {
            return Err(cancelled());
        }
        self.hub.with(|inner| {
            inner.jobs.change(job, |j| j.state = JobState::Running);
            inner.jobs.detach(job, true);
        });
        let loaded = self.loaded_mut()?;
        let Some(process) = loaded.engine.worker() else {
            return Err(crate::errors::refused(
                "The engine runs in this program: there is nothing to start again.",
                "Open the model again instead.",
            ));
        };
        process.allow_restart();
        loaded.session.recover(cancel).map_err(|e| of_engine(&e))?;
        self.note_revival();
        Ok(())
    }

    /// Computes the cache of the text anew under the recipe in force.
    pub(super) fn replay(&mut self, job: JobId, cancel: &Cancel) {
        if cancel.is_cancelled() {
            self.end_job(job, Err(cancelled()));
            return;
        }
        self.busy = "A replay";
        let result = self.replay_now(job, cancel);
        self.busy = "";
        self.end_job(job, result);
        self.between();
    }

    fn replay_now(&mut self, job: JobId, cancel: &Cancel) -> Result<(), ErrorInfo> {
        let loaded = self.loaded_mut()?;
        let ids = loaded.session.tokens().to_vec();
        let total = ids.len() as u64;
        // An empty session cannot hold on to anything that was converted.
        loaded
            .session
            .truncate(0, &Cancel::default())
            .map_err(|e| of_engine(&e))?;
        self.forget_conversions();
        self.hub.with(|inner| {
            inner
                .jobs
                .change(job, |j| (j.state, j.total) = (JobState::Running, total));
            inner.jobs.detach(job, true);
        });
        for chunk in ids.chunks(self.loaded_mut()?.session.chunk_len()) {
            let mut records = Vec::new();
            let mut keep = |r: &StepRecord, _: &StepOutput| records.push(r.clone());
            let loaded = self.loaded_mut()?;
            let fed = loaded.session.feed(chunk, None, cancel, &mut keep);
            let position = loaded.session.position();
            self.hub.with(|inner| {
                records.into_iter().for_each(|r| inner.step(r));
                inner.position = position;
                inner.moved();
                inner.jobs.change(job, |j| j.done = position);
            });
            fed.map_err(|e| of_engine(&e))?;
            self.between();
        }
        Ok(())
    }
}
