//! Looking inside by replay: the given tokens are processed again in a fresh session under a recipe, with probes. The
//! running text is never touched. Values are what the recipe makes of them: keys and rows are read back from the
//! cache as stored.

mod attention;
mod metrics;
mod router;
mod rows;
#[cfg(test)]
mod tests;
mod walk;

use std::sync::Arc;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::recipe::{LayerFacts, Recipe};

pub use metrics::metric_names;

/// Most queries of one attention map.
pub const MAX_QUERIES: u64 = 1024;

/// Tokens to process again, and how.
#[derive(Clone, Copy)]
pub struct Replay<'a> {
    /// The model.
    pub engine: &'a Arc<Engine>,
    /// The recipe.
    pub recipe: &'a Recipe,
    /// The text.
    pub ids: &'a [u32],
}

impl Replay<'_> {
    /// Refuses an empty text.
    fn some_text(&self) -> Result<(), EngineError> {
        if self.ids.is_empty() {
            return Err(EngineError::Invalid(
                "the text is empty: there is nothing to look at yet".into(),
            ));
        }
        Ok(())
    }
}

/// Facts of a layer that must exist.
fn check_layer(engine: &Engine, layer: u32) -> Result<&LayerFacts, EngineError> {
    let layers = &engine.facts().layers;
    layers.get(layer as usize).ok_or_else(|| {
        EngineError::Invalid(format!(
            "layer {layer}: accepted are 0 to {}",
            layers.len().saturating_sub(1)
        ))
    })
}
