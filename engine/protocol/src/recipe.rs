//! Recipes and the validity table as the interface sees them.

use serde::{Deserialize, Serialize};

/// An option of a variant. Values are whole numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionView {
    /// Name.
    pub name: String,
    /// What it does.
    pub help: String,
    /// Smallest accepted value.
    pub min: u64,
    /// Largest accepted value.
    pub max: u64,
    /// Value when left out.
    pub default: u64,
}

/// Layers that refuse a variant, with the reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Layer; 0 for slots of the whole model.
    pub layer: u32,
    /// One sentence.
    pub reason: String,
}

/// A variant of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantView {
    /// Name in recipes.
    pub name: String,
    /// One sentence.
    pub help: String,
    /// Options it takes.
    pub options: Vec<OptionView>,
    /// Where it is refused; everywhere else it is accepted.
    pub refused: Vec<Refusal>,
}

/// A slot with its variants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotView {
    /// Name in recipes: `attention`, `kv_cache`, `weights.lm_head`, ...
    pub name: String,
    /// Whether it exists once per layer.
    pub per_layer: bool,
    /// Variants in order.
    pub variants: Vec<VariantView>,
    /// Layers that have the slot (index_cache: those with an indexer); empty for slots of the whole model.
    pub layers: Vec<u32>,
    /// Fixed for this model and shown greyed; the sentence says why. Empty = can be changed.
    pub fixed: String,
}

/// A value given to an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionChoice {
    /// Option.
    pub name: String,
    /// Value.
    pub value: u64,
}

/// A chosen variant with the options that differ from its defaults.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChoiceView {
    /// Variant.
    pub variant: String,
    /// Options given.
    pub options: Vec<OptionChoice>,
}

impl std::fmt::Display for ChoiceView {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.variant)?;
        for (i, o) in self.options.iter().enumerate() {
            write!(f, "{}{}={}", if i == 0 { ':' } else { ',' }, o.name, o.value)?;
        }
        Ok(())
    }
}

/// The choices of one layer: slot name and choice, in the order of the slots.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSlots {
    /// (slot, choice).
    pub slots: Vec<(String, ChoiceView)>,
}

/// One edit, as `--set` writes it: `layers.3-6.kv_cache` = `bf16`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edit {
    /// `layers.3-6.kv_cache`, `layers.*.attention`, `weights.lm_head`.
    pub selector: String,
    /// The choice.
    pub choice: ChoiceView,
}

impl std::fmt::Display for Edit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.selector, self.choice)
    }
}

/// A named set of edits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preset {
    /// Name.
    pub name: String,
    /// One sentence.
    pub help: String,
    /// Edits, applied to the checkpoint's own recipe.
    pub edits: Vec<Edit>,
    /// Why it does not fit this model; empty = it does.
    pub refused: String,
}

/// The recipe in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RecipeView {
    /// Full JSON, as saved to files.
    pub json: String,
    /// Stable hash, 16 hex digits.
    pub hash: String,
    /// Choices per layer.
    pub layers: Vec<LayerSlots>,
    /// Choices of the whole model: (slot, choice).
    pub model: Vec<(String, ChoiceView)>,
    /// What differs from the checkpoint's own recipe.
    pub changes: Vec<Edit>,
    /// Positions at which a swap converted cache rows in the running text; such text is labelled "converted" and
    /// never enters a report.
    pub converted_at: Vec<u64>,
}
