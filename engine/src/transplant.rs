//! Weights of blocks from other checkpoints: opened once per engine, held to the shapes of the loaded model.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, PoisonError};

use checkpoint::{Checkpoint, Silent};
use kernels::ir::{Block, WeightId};

use crate::engine::Engine;
use crate::error::EngineError;
use crate::families::{self, Loaded};
use crate::lower::block_weights;
use crate::model::{Stored, WeightStore};
use crate::recipe::{LayerFacts, Recipe, RecipeError, Slot};

/// Checkpoints opened so far, by the path recipes name them by.
pub(crate) type Donors = HashMap<String, Arc<Loaded>>;

/// A block that has its weights from elsewhere.
struct Graft {
    layer: usize,
    slot: Slot,
    path: String,
}

/// The blocks of a recipe that have.
fn grafts(engine: &Engine, recipe: &Recipe) -> Vec<Graft> {
    let mut out = Vec::new();
    for (layer, choices) in recipe.layers.iter().enumerate() {
        for (slot, choice) in choices.slots() {
            if let Some(path) = engine.registry().donor(slot, choice) {
                out.push(Graft { layer, slot, path });
            }
        }
    }
    out
}

impl Engine {
    /// Places the weights that a recipe's blocks have from other checkpoints.
    ///
    /// # Errors
    /// A checkpoint that cannot be opened, is of another family, or whose layer has other shapes; nothing is placed then.
    pub(crate) fn place_donated(&self, recipe: &Recipe, weights: &mut WeightStore) -> Result<(), EngineError> {
        let mut all: Vec<(String, WeightId, Arc<Stored>)> = Vec::new();
        for graft in grafts(self, recipe) {
            let donor = self.donor(&graft.path)?;
            let refused = |reason: String| {
                EngineError::Recipe(RecipeError::Refused {
                    at: format!("layers.{}.{}", graft.layer, graft.slot.name()),
                    variant: "transplant".into(),
                    reason: format!("{}: {reason}", graft.path),
                })
            };
            if self.worker().is_some() {
                return Err(refused(
                    "the engine runs in a process of its own, which has the loaded checkpoint's weights alone; accepted: \
                     `--worker off`"
                        .into(),
                ));
            }
            let own = &self.facts().layers[graft.layer];
            let Some(theirs) = donor.family.facts().layers.get(graft.layer) else {
                return Err(refused(format!(
                    "found {} layers, accepted: a model with a layer {}",
                    donor.family.facts().layers.len(),
                    graft.layer
                )));
            };
            alike(own, theirs, graft.slot).map_err(&refused)?;
            let block = if graft.slot == Slot::Ffn {
                Block::Ffn
            } else {
                Block::Attention
            };
            for id in block_weights(self, graft.layer, block) {
                let desc = self.weights().desc(id);
                let Some(stored) = donor.weights.named(&desc.name) else {
                    return Err(refused(format!("has no tensor `{}`", desc.name)));
                };
                let d = &stored.desc;
                if (d.rows, d.cols) != (desc.rows, desc.cols) {
                    return Err(refused(format!(
                        "tensor `{}`: found {} x {}, accepted: {} x {} as in the loaded model",
                        desc.name, d.rows, d.cols, desc.rows, desc.cols
                    )));
                }
                all.push((graft.path.clone(), id, stored.clone()));
            }
        }
        for (path, id, stored) in all {
            weights.add_graft(&path, id, stored);
        }
        Ok(())
    }

    /// The checkpoint at a path, opened at its first use.
    fn donor(&self, path: &str) -> Result<Arc<Loaded>, EngineError> {
        let mut donors = self.donors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(donor) = donors.get(path) {
            return Ok(donor.clone());
        }
        let checkpoint = Checkpoint::open(Path::new(path), &Silent)?;
        let donor = Arc::new(families::load(&checkpoint)?);
        donors.insert(path.to_string(), donor.clone());
        Ok(donor)
    }
}

/// Whether two layers compute the same from weights of the same shapes.
fn alike(own: &LayerFacts, theirs: &LayerFacts, slot: Slot) -> Result<(), String> {
    let words = |f: &LayerFacts| match slot {
        Slot::Ffn => format!("{} {} with {} experts", f.family, f.ffn.name(), f.experts),
        _ => format!(
            "{} {} attention, {} heads over {} of {}",
            f.family,
            f.attention.name(),
            f.heads,
            f.kv_heads,
            f.head_dim
        ),
    };
    if words(own) == words(theirs) {
        return Ok(());
    }
    Err(format!("found a layer of {}, accepted: {}", words(theirs), words(own)))
}
