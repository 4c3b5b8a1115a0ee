//! The part of a recipe that says how weights are stored.

use serde::{Deserialize, Serialize};

use super::Choice;
use super::registry::{Registry, Slot};
use super::storage::WeightStorage;

fn own() -> Choice {
    Choice::plain("own")
}

fn is_own(choice: &Choice) -> bool {
    *choice == own()
}

/// Choices about weights, for the whole model. What is left out is the checkpoint's own, as in recipes written before
/// there were slots beside the output layer's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightRecipe {
    /// Matrices of the attention blocks.
    #[serde(default = "own", skip_serializing_if = "is_own")]
    pub attention: Choice,
    /// Matrices of the feed-forward blocks.
    #[serde(default = "own", skip_serializing_if = "is_own")]
    pub ffn: Choice,
    /// Token embedding.
    #[serde(default = "own", skip_serializing_if = "is_own")]
    pub embedding: Choice,
    /// Output layer.
    pub lm_head: Choice,
}

impl Default for WeightRecipe {
    fn default() -> Self {
        Self {
            attention: own(),
            ffn: own(),
            embedding: own(),
            lm_head: own(),
        }
    }
}

impl WeightRecipe {
    /// All of them, in the order of [`Slot::WEIGHTS`].
    pub fn slots(&self) -> [(Slot, &Choice); 4] {
        [
            (Slot::AttentionWeights, &self.attention),
            (Slot::FfnWeights, &self.ffn),
            (Slot::Embedding, &self.embedding),
            (Slot::LmHead, &self.lm_head),
        ]
    }

    /// Puts a choice in a slot; those of layers are none of these.
    pub(super) fn set(&mut self, slot: Slot, choice: Choice) {
        match slot {
            Slot::AttentionWeights => self.attention = choice,
            Slot::FfnWeights => self.ffn = choice,
            Slot::Embedding => self.embedding = choice,
            Slot::LmHead => self.lm_head = choice,
            Slot::Attention | Slot::Ffn | Slot::KvCache | Slot::IndexCache => {}
        }
    }

    /// The storage each slot asks for.
    pub fn storages(&self, registry: &Registry) -> [(Slot, WeightStorage); 4] {
        self.slots()
            .map(|(slot, choice)| (slot, registry.weight_storage(slot, choice)))
    }
}
