//! The engine's projections as replies, in one place.

use engine::{Engine, EngineError, Recipe};
use protocol::{ErrorInfo, JobId, Preset, RecipeView, Reply, SlotView};

use crate::errors::{input, of_engine, refused};
use crate::hub::{Inner, is_over};

/// The validity table of a model.
pub(crate) fn slots(engine: &Engine) -> Vec<SlotView> {
    engine::recipe::slot_views(engine.facts(), engine.registry())
}

/// A recipe for people.
pub(crate) fn recipe(engine: &Engine, recipe: &Recipe, converted: &[u64]) -> RecipeView {
    recipe.view(&engine.recipe(), converted)
}

/// Presets, fitted to a model.
pub(crate) fn presets(engine: &Engine) -> Vec<Preset> {
    engine::recipe::presets(engine.facts(), engine.registry())
}

/// A sweep as it stands, with the cells that changed after a revision.
///
/// # Errors
/// A job that left none.
pub(crate) fn sweep(inner: &Inner, job: JobId, since: u64) -> Result<Reply, ErrorInfo> {
    let found = inner.sweeps.get(job).map(|s| Reply::Sweep(Box::new(s.view(since))));
    found.ok_or_else(|| none_of(inner, job, "sweep"))
}

/// Recipe A of a sweep as JSON, and the edits that make a cell of it.
///
/// # Errors
/// A job that left no sweep, a number that no cell has.
pub(crate) fn sweep_cell(inner: &Inner, job: JobId, cell: u32) -> Result<(String, Vec<String>), ErrorInfo> {
    let sweep = inner.sweeps.get(job).ok_or_else(|| none_of(inner, job, "sweep"))?;
    sweep.recipe(cell).ok_or_else(|| {
        let what = format!(
            "Job {} left no sweep with this recipe: there is no number {cell}.",
            job.0
        );
        input(what, "Choose one of the table.")
    })
}

/// A free run as it stands, with the tokens from these numbers on.
///
/// # Errors
/// A job that left none.
pub(crate) fn free_run(inner: &Inner, job: JobId, since: [u64; 2]) -> Result<Reply, ErrorInfo> {
    let found = inner.free_runs.view(job, since).map(|v| Reply::FreeRun(Box::new(v)));
    found.ok_or_else(|| none_of(inner, job, "free run"))
}

fn none_of(inner: &Inner, job: JobId, what: &str) -> ErrorInfo {
    match inner.jobs.get(job) {
        Some(j) if !is_over(&j.state) => refused(
            format!("The {what} has not begun yet."),
            "Ask again when its job is running.",
        ),
        _ => input(format!("Job {} left no {what}.", job.0), "Begin it again."),
    }
}

/// A recipe with edits, as JSON.
///
/// # Errors
/// A recipe or an edit that does not fit the loaded model.
pub(crate) fn edited(engine: &Engine, json: &str, edits: &[String]) -> Result<Reply, ErrorInfo> {
    let (facts, registry) = (engine.facts(), engine.registry());
    let made = Recipe::parse(json, "A", facts, registry).and_then(|mut recipe| {
        edits.iter().try_for_each(|e| recipe.set(e, facts, registry))?;
        Ok(recipe)
    });
    let recipe = made.map_err(|e| of_engine(&EngineError::from(e)))?;
    Ok(Reply::Text(serde_json::to_string(&recipe).unwrap_or_default()))
}

/// Statistics of a tensor.
///
/// # Errors
/// A name that is not in the checkpoint.
pub(crate) fn tensor(engine: &Engine, name: &str) -> Result<Reply, ErrorInfo> {
    engine.tensor_stats(name).map(Reply::Tensor).map_err(|e| of_engine(&e))
}

/// Tokens of a text.
pub(crate) fn count(engine: &Engine, text: &str) -> Result<Reply, ErrorInfo> {
    let tokenizer = engine.tokenizer().map_err(|e| of_engine(&e))?;
    let ids = tokenizer
        .encode(text, true)
        .map_err(|e| of_engine(&EngineError::from(e)))?;
    Ok(Reply::Count(ids.len() as u64))
}
