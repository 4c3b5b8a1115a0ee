//! Slots, the variants that fit them, and who accepts what.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::ir::{Activation, CacheFormat, Mask, ScoreProgram};
use protocol::OptionValue;
use serde::{Deserialize, Serialize};

use super::Choice;
use super::facts::{AttentionKind, LayerFacts};
use super::storage::WeightStorage;

/// A place in a model where variants can be swapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Slot {
    /// Per layer: which keys a query attends to.
    Attention,
    /// Per layer: the feed-forward block.
    Ffn,
    /// Per layer: storage of keys and values (or latents).
    KvCache,
    /// Per layer: storage of indexer rows.
    IndexCache,
    /// Model: storage of the attention blocks' matrices.
    #[serde(rename = "weights.attention")]
    AttentionWeights,
    /// Model: storage of the feed-forward blocks' matrices.
    #[serde(rename = "weights.ffn")]
    FfnWeights,
    /// Model: storage of the token embedding.
    #[serde(rename = "weights.embedding")]
    Embedding,
    /// Model: storage of the output layer.
    #[serde(rename = "weights.lm_head")]
    LmHead,
}

impl Slot {
    /// All slots.
    pub const ALL: [Slot; 8] = [
        Slot::Attention,
        Slot::Ffn,
        Slot::KvCache,
        Slot::IndexCache,
        Slot::AttentionWeights,
        Slot::FfnWeights,
        Slot::Embedding,
        Slot::LmHead,
    ];

    /// Those that say how weights are stored: one each for the whole model.
    pub const WEIGHTS: [Slot; 4] = [Slot::AttentionWeights, Slot::FfnWeights, Slot::Embedding, Slot::LmHead];

    /// The name used in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            Slot::Attention => "attention",
            Slot::Ffn => "ffn",
            Slot::KvCache => "kv_cache",
            Slot::IndexCache => "index_cache",
            Slot::AttentionWeights => "weights.attention",
            Slot::FfnWeights => "weights.ffn",
            Slot::Embedding => "weights.embedding",
            Slot::LmHead => "weights.lm_head",
        }
    }

    /// Whether the slot exists once per layer.
    pub const fn per_layer(self) -> bool {
        matches!(self, Slot::Attention | Slot::Ffn | Slot::KvCache | Slot::IndexCache)
    }
}

/// Options of a chosen variant, by name.
pub type Options = BTreeMap<String, OptionValue>;

/// What an option takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum OptionKind {
    /// A whole number from `min` to `max`.
    Whole {
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
        /// Value when left out.
        default: u64,
    },
    /// A number with a fraction, from `min` to `max`.
    Decimal {
        /// Smallest accepted value.
        min: f64,
        /// Largest accepted value.
        max: f64,
        /// Value when left out.
        default: f64,
    },
    /// Query heads of the layer; none when left out.
    Heads,
    /// Text.
    Text {
        /// Value when left out.
        default: &'static str,
    },
}

/// One option a variant takes.
#[derive(Clone, Debug, Serialize)]
pub struct OptionSpec {
    /// Name.
    pub name: &'static str,
    /// What it does.
    pub help: &'static str,
    /// What it takes.
    pub kind: OptionKind,
}

/// Why a variant is refused, in one sentence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason(pub String);

/// What an attention variant may change of the checkpoint's own attention.
#[derive(Clone, Debug, PartialEq)]
pub struct AttendSpec {
    /// Mask over the visible keys.
    pub mask: Mask,
    /// Whether the indexer chooses among compressed rows (else all visible ones are read).
    pub select: bool,
    /// Rows the indexer keeps.
    pub index_topk: usize,
    /// Query heads whose output becomes zeros, ascending.
    pub zero: Vec<u32>,
    /// What every score becomes before the mask chooses by it.
    pub score: Option<ScoreProgram>,
    /// Query heads that look at all visible keys alike (their query becomes zeros), ascending.
    pub mean: Vec<u32>,
}

/// What a feed-forward variant may change of the checkpoint's own block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct FfnSpec {
    /// Activation.
    pub activation: Activation,
    /// Experts per token (0 = no experts).
    pub experts_per_token: usize,
    /// Share of a block's (an expert's) activation mass whose largest hidden units stay; 1 = all of them.
    pub top_p: f32,
}

/// Something that fits a slot. Composed of existing ops, it is one file and one registry line, also from outside.
pub trait Variant: Send + Sync {
    /// Where it goes.
    fn slot(&self) -> Slot;
    /// Its name in recipes.
    fn name(&self) -> &'static str;
    /// One sentence for people.
    fn help(&self) -> &'static str;
    /// Options it takes.
    fn options(&self) -> &[OptionSpec] {
        &[]
    }
    /// Whether it can be used in this layer, or why not.
    fn accepts(&self, facts: &LayerFacts, options: &Options) -> Result<(), Reason>;
    /// For attention variants: what changes.
    fn attention(&self, _facts: &LayerFacts, _options: &Options, _spec: &mut AttendSpec) {}
    /// For feed-forward variants: what changes.
    fn ffn(&self, _facts: &LayerFacts, _options: &Options, _spec: &mut FfnSpec) {}
    /// For variants of blocks: the checkpoint whose weights the block has, a path; `None` = the loaded one's.
    fn donor(&self, _options: &Options) -> Option<String> {
        None
    }
    /// For cache variants: the storage.
    fn cache_format(&self) -> Option<CacheFormat> {
        None
    }
    /// For variants of weights: the storage.
    fn weight_storage(&self) -> Option<WeightStorage> {
        None
    }
}

/// The kind of an option of a variant.
fn kind(variant: &dyn Variant, name: &str) -> Option<OptionKind> {
    variant.options().iter().find(|o| o.name == name).map(|o| o.kind)
}

/// Reads an option that is a whole number, or its default.
pub fn option(variant: &dyn Variant, options: &Options, name: &str) -> u64 {
    match (options.get(name), kind(variant, name)) {
        (Some(OptionValue::Whole(v)), _) => *v,
        (_, Some(OptionKind::Whole { default, .. })) => default,
        _ => 0,
    }
}

/// Reads an option that is a number with a fraction, or its default.
pub fn decimal(variant: &dyn Variant, options: &Options, name: &str) -> f64 {
    match (options.get(name), kind(variant, name)) {
        (Some(OptionValue::Decimal(v)), _) => v.0,
        (_, Some(OptionKind::Decimal { default, .. })) => default,
        _ => 0.0,
    }
}

/// Reads an option that is a list of heads, ascending; empty when left out.
pub fn heads(options: &Options, name: &str) -> Vec<u32> {
    match options.get(name) {
        Some(OptionValue::Heads(v)) => v.clone(),
        _ => Vec::new(),
    }
}

/// Reads an option that is a text, or its default.
pub fn text(variant: &dyn Variant, options: &Options, name: &str) -> String {
    match (options.get(name), kind(variant, name)) {
        (Some(OptionValue::Text(v)), _) => v.clone(),
        (_, Some(OptionKind::Text { default })) => default.to_string(),
        _ => String::new(),
    }
}

/// All variants known to an engine.
#[derive(Clone)]
pub struct Registry {
    variants: Vec<Arc<dyn Variant>>,
}

impl Default for Registry {
    fn default() -> Self {
        let mut r = Self { variants: Vec::new() };
        super::variants::register(&mut r);
        r
    }
}

impl Registry {
    /// Adds a variant; one of the same slot and name is replaced.
    pub fn add(&mut self, variant: Arc<dyn Variant>) {
        self.variants
            .retain(|v| (v.slot(), v.name()) != (variant.slot(), variant.name()));
        self.variants.push(variant);
    }

    /// The variant of this name.
    pub fn get(&self, slot: Slot, name: &str) -> Option<&Arc<dyn Variant>> {
        self.variants.iter().find(|v| v.slot() == slot && v.name() == name)
    }

    /// What a choice makes of a layer's own feed-forward block.
    pub fn ffn_spec(&self, facts: &LayerFacts, choice: &Choice) -> FfnSpec {
        let mut spec = FfnSpec {
            activation: facts.activation,
            experts_per_token: facts.experts_per_token,
            top_p: 1.0,
        };
        if let Some(v) = self.get(Slot::Ffn, &choice.variant) {
            v.ffn(facts, &choice.options, &mut spec);
        }
        spec
    }

    /// The checkpoint a block's weights come from, if not from the loaded one.
    pub fn donor(&self, slot: Slot, choice: &Choice) -> Option<String> {
        self.get(slot, &choice.variant)?.donor(&choice.options)
    }

    /// What a choice makes of the storage of a slot's weights.
    pub fn weight_storage(&self, slot: Slot, choice: &Choice) -> WeightStorage {
        let variant = self.get(slot, &choice.variant);
        variant.and_then(|v| v.weight_storage()).unwrap_or(WeightStorage::Own)
    }

    /// All variants of a slot, in order of registration.
    pub fn of(&self, slot: Slot) -> impl Iterator<Item = &Arc<dyn Variant>> {
        self.variants.iter().filter(move |v| v.slot() == slot)
    }
}

/// One cell of the validity table.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Model family.
    pub family: &'static str,
    /// Kind of attention of the layer.
    pub attention: AttentionKind,
    /// Slot.
    pub slot: Slot,
    /// Variant.
    pub variant: &'static str,
    /// `None` when accepted, else the reason.
    pub refused: Option<String>,
}

/// The validity table for these layers: every distinct kind of layer x slot x variant, generated from `accepts`.
pub fn validity(registry: &Registry, layers: &[LayerFacts]) -> Vec<Cell> {
    let mut seen: Vec<(&str, AttentionKind)> = Vec::new();
    let mut cells = Vec::new();
    for facts in layers {
        if seen.contains(&(facts.family, facts.attention)) {
            continue;
        }
        seen.push((facts.family, facts.attention));
        for slot in Slot::ALL {
            for v in registry.of(slot) {
                cells.push(Cell {
                    family: facts.family,
                    attention: facts.attention,
                    slot,
                    variant: v.name(),
                    refused: v.accepts(facts, &Options::new()).err().map(|r| r.0),
                });
            }
        }
    }
    cells
}
