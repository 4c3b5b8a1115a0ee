//! Swapping blocks in the middle of a text.

use kernels::ir::{CacheDesc, CacheId};

use super::{Cancel, Session};
use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::watch::Watch;

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
        self.apply_watched(
            recipe,
            &mut Watch {
                cancel: &Cancel::default(),
                progress: &mut |_, _| {},
            },
        )
    }

    /// As [`Session::apply`]. Weights that must be stored otherwise first take their time: `watch` hears of them in
    /// bytes, and nothing has changed if it stops that.
    pub fn apply_watched(&mut self, recipe: Recipe, watch: &mut Watch<'_>) -> Result<SwapReport, EngineError> {
        recipe.check(self.engine.facts(), self.engine.registry())?;
        let mut report = SwapReport::default();
        let caches = self.engine.caches(&recipe);
        let position = self.position();
        let old = std::mem::replace(&mut self.recipe, recipe);
        if let Err(e) = self.place_variants(watch) {
            self.recipe = old;
            return Err(e);
        }
        // A state that is lost is made anew for the recipe in force then.
        let held = if self.state.is_lost() { &[][..] } else { &caches[..] };
        match self.convert(held, position) {
            Ok(converted) => report.converted = converted,
            Err(e) => {
                self.recipe = old;
                return Err(e);
            }
        }
        report.blocks = changed_blocks(&old, &self.recipe);
        if report.converted > 0 {
            // Checkpoints hold rows in the old storage; a rewind replays from the start instead.
            self.snapshots.clear();
        }
        self.lowering.invalidate(&caches);
        Ok(report)
    }

    /// Stores components as these are; how many were stored otherwise. All or none: what was converted before one that
    /// fails (memory) is converted back, and has been rounded once more then.
    fn convert(&mut self, caches: &[CacheDesc], position: u64) -> Result<usize, EngineError> {
        let mut done: Vec<(CacheId, CacheDesc)> = Vec::new();
        for (i, desc) in caches.iter().enumerate() {
            let id = CacheId(i as u32);
            let before = self.state.caches().get(i).filter(|b| *b != desc).cloned();
            let Some(before) = before else { continue };
            if let Err(e) = self.state.reformat(id, desc.clone(), position) {
                // Gone with its process: it is made anew for the recipe in force then.
                if self.state.is_lost() {
                    return Ok(0);
                }
                if !done.is_empty() {
                    self.snapshots.clear();
                }
                for (id, before) in done.into_iter().rev() {
                    let back = self.state.reformat(id, before, position);
                    back.map_err(|e| self.explained(e))?;
                }
                return Err(self.explained(e));
            }
            done.push((id, before));
        }
        Ok(done.len())
    }

    /// Applies one edit, e.g. `layers.3-8.kv_cache=bf16`.
    pub fn set(&mut self, edit: &str) -> Result<SwapReport, EngineError> {
        let mut recipe = self.recipe.clone();
        recipe.set(edit, self.engine.facts(), self.engine.registry())?;
        self.apply(recipe)
    }

    /// Makes the weights the recipe wants stored otherwise.
    pub(super) fn place_variants(&mut self, watch: &mut Watch<'_>) -> Result<(), EngineError> {
        let mut wanted = self.engine.wanted(&self.recipe);
        wanted.retain(|r| self.weights.variant(r.own, r.storage).is_none());
        let stored = self.engine.variants(&wanted, &self.recipe, watch)?;
        for (r, stored) in wanted.iter().zip(stored) {
            self.weights.add_variant(r.own, r.storage, stored);
        }
        self.engine.place_donated(&self.recipe, &mut self.weights)
    }
}

/// Blocks that two recipes of one model make different ops of.
fn changed_blocks(old: &Recipe, new: &Recipe) -> usize {
    let (a, b) = (&old.weights, &new.weights);
    let (attention, ffn) = (a.attention != b.attention, a.ffn != b.ffn);
    let of_layers = old.layers.iter().zip(&new.layers).map(|(x, y)| {
        let rows = x.attention != y.attention || x.kv_cache != y.kv_cache || x.index_cache != y.index_cache;
        usize::from(attention || rows) + usize::from(ffn || x.ffn != y.ffn)
    });
    of_layers.sum::<usize>() + usize::from(a.embedding != b.embedding) + usize::from(a.lm_head != b.lm_head)
}
