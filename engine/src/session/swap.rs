//! Swapping blocks in the middle of a text.

use kernels::ir::CacheId;

use super::Session;
use crate::error::EngineError;
use crate::recipe::{HeadFormat, Recipe, Slot};

/// What a swap did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SwapReport {
    /// Cache components whose rows were converted to another storage. Text from here on is labelled "converted".
    pub converted: usize,
    /// Blocks that will be lowered anew.
    pub blocks: usize,
}

impl Session {
    /// Puts another recipe in force from the next token on. The cache is kept: rows stored in another format are
    /// converted. Nothing changes if the recipe is refused.
    pub fn apply(&mut self, recipe: Recipe) -> Result<SwapReport, EngineError> {
        recipe.check(self.engine.facts(), self.engine.registry())?;
        let mut report = SwapReport::default();
        let caches = self.engine.family.caches(&recipe, self.engine.registry());
        let position = self.position();
        let old = std::mem::replace(&mut self.recipe, recipe);
        if let Err(e) = self.place_variants() {
            self.recipe = old;
            return Err(e);
        }
        for (i, desc) in caches.iter().enumerate() {
            if self.state.caches().get(i) != Some(desc) {
                self.state.reformat(CacheId(i as u32), desc.clone(), position)?;
                report.converted += 1;
            }
        }
        report.blocks = old
            .layers
            .iter()
            .zip(&self.recipe.layers)
            .filter(|(a, b)| a != b)
            .count()
            + usize::from(old.weights != self.recipe.weights);
        if report.converted > 0 {
            // Checkpoints hold rows in the old storage; a rewind replays from the start instead.
            self.snapshots.clear();
        }
        self.lowering.invalidate(&caches);
        Ok(report)
    }

    /// Applies one edit, e.g. `layers.3-8.kv_cache=bf16`.
    pub fn set(&mut self, edit: &str) -> Result<SwapReport, EngineError> {
        let mut recipe = self.recipe.clone();
        recipe.set(edit, self.engine.facts(), self.engine.registry())?;
        self.apply(recipe)
    }

    /// Makes the weights the recipe wants stored otherwise.
    pub(super) fn place_variants(&mut self) -> Result<(), EngineError> {
        let choice = &self.recipe.weights.lm_head.variant;
        let format = self
            .engine
            .registry()
            .get(Slot::LmHead, choice)
            .and_then(|v| v.head_format())
            .unwrap_or(HeadFormat::Own);
        let own = self.engine.family.lm_head();
        if self.weights.variant(own, format).is_some() {
            return Ok(());
        }
        if let Some(stored) = self.engine.variant(own, format)? {
            self.weights.add_variant(own, format, stored);
        }
        Ok(())
    }
}
