//! The engine's projections as replies, in one place.

use engine::{Engine, EngineError, Recipe};
use protocol::{ErrorInfo, Preset, RecipeView, Reply, SlotView};

use crate::errors::of_engine;

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
