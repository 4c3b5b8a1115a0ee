//! Recipes: which variant sits in each slot of each layer, as data with a stable hash.

mod choice;
mod diff;
mod facts;
mod presets;
mod registry;
mod schema;
mod score;
mod select;
mod storage;
#[cfg(test)]
pub(crate) mod tests_support;
mod variants;
mod view;
mod weights;

use kernels::ir::{CacheFormat, SamplerParams};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use choice::Choice;
pub use diff::RecipeChange;
pub use facts::{AttentionKind, FfnKind, LayerFacts, MatrixInputs, ModelFacts};
pub use presets::presets;
pub use protocol::{Decimal, OptionValue, split_list};
pub use registry::{
    AttendSpec, Cell, FfnSpec, OptionKind, OptionSpec, Options, Reason, Registry, Slot, Variant, decimal, heads,
    option, text, validity,
};
pub use schema::json_schema;
pub use score::{Expr, Name, ScoreError, parse as parse_score};
pub use select::Target;
pub use storage::WeightStorage;
pub use view::slot_views;
pub use weights::WeightRecipe;

/// Version of the recipe's JSON form.
pub const SCHEMA: u32 = 1;

/// What can go wrong with a recipe. Every message names the field.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// Not JSON, or not of the right shape.
    #[error("recipe {origin}: {detail}")]
    Parse {
        /// File or option it came from.
        origin: String,
        /// The parser's words.
        detail: String,
    },
    /// Made for another model.
    #[error("the recipe is for {found}, the loaded model is {expected}")]
    WrongModel {
        /// What the recipe says.
        found: String,
        /// What is loaded.
        expected: String,
    },
    /// A selector that names no slot.
    #[error(
        "`{selector}` names no slot; accepted: layers.N.SLOT, layers.A-B.SLOT or layers.*.SLOT with SLOT one of \
         attention, ffn, kv_cache, index_cache; weights.attention, weights.ffn, weights.embedding and weights.lm_head"
    )]
    Selector {
        /// As written.
        selector: String,
    },
    /// A layer that does not exist.
    #[error("`{selector}`: layer {layer} is out of range, the model has layers 0 to {last}")]
    LayerRange {
        /// As written.
        selector: String,
        /// The layer.
        layer: usize,
        /// Last valid layer.
        last: usize,
    },
    /// A variant that is not registered.
    #[error("{at}: no variant `{found}`; accepted: {accepted}")]
    UnknownVariant {
        /// Slot.
        at: String,
        /// As written.
        found: String,
        /// Names that exist.
        accepted: String,
    },
    /// An option that is unknown or out of range.
    #[error("{at}: {detail}")]
    Option {
        /// Slot.
        at: String,
        /// What was found, what is accepted.
        detail: String,
    },
    /// The variant refuses the layer.
    #[error("{at}: `{variant}` cannot be used here: {reason}")]
    Refused {
        /// Slot.
        at: String,
        /// Variant.
        variant: String,
        /// Its reason.
        reason: String,
    },
    /// Sampler values out of range.
    #[error("{0}")]
    Sampler(String),
}

/// Which model a recipe was written for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelKey {
    /// Family.
    pub family: String,
    /// Number of layers.
    pub layers: usize,
    /// Residual width.
    pub hidden: usize,
    /// Vocabulary.
    pub vocab: usize,
}

impl std::fmt::Display for ModelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({} layers, {} wide, vocabulary {})",
            self.family, self.layers, self.hidden, self.vocab
        )
    }
}

/// The choices of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecipe {
    /// Which keys are attended to.
    pub attention: Choice,
    /// Feed-forward block.
    pub ffn: Choice,
    /// Storage of keys and values.
    pub kv_cache: Choice,
    /// Storage of indexer rows; `None` where there is no indexer.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index_cache: Option<Choice>,
}

/// A complete recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Version of this form.
    pub schema: u32,
    /// The model it is for.
    pub model: ModelKey,
    /// One entry per layer.
    pub layers: Vec<LayerRecipe>,
    /// Weights.
    pub weights: WeightRecipe,
    /// Sampler.
    pub sampler: SamplerParams,
}

/// The short form a person writes by hand: edits on the checkpoint's own recipe.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShortForm {
    schema: u32,
    #[serde(default)]
    set: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    sampler: Option<SamplerParams>,
}

impl Recipe {
    /// The checkpoint's own recipe: own blocks, caches in the checkpoint's precision, greedy sampler.
    ///
    /// Caches: f32 for checkpoints stored in 32-bit floats; the 584-byte FP8 record and FP4 index rows for
    /// MODEL1 checkpoints released in FP8 whose rows have that shape; bf16 for everything else.
    pub fn own(facts: &ModelFacts, registry: &Registry) -> Self {
        let layers = facts
            .layers
            .iter()
            .map(|l| {
                let pick = |slot, wish: CacheFormat, fallback: CacheFormat| {
                    let fits = registry
                        .get(slot, wish.name())
                        .is_some_and(|v: &std::sync::Arc<dyn Variant>| v.accepts(l, &Options::new()).is_ok());
                    Choice::plain(if fits { wish.name() } else { fallback.name() })
                };
                let (kv, index) = match (facts.quantised, facts.full_precision) {
                    (true, _) => (CacheFormat::Fp8Model1, CacheFormat::Fp4),
                    (false, true) => (CacheFormat::F32, CacheFormat::F32),
                    (false, false) => (CacheFormat::Bf16, CacheFormat::Bf16),
                };
                LayerRecipe {
                    attention: Choice::plain("own"),
                    ffn: Choice::plain("own"),
                    kv_cache: pick(Slot::KvCache, kv, CacheFormat::Bf16),
                    index_cache: (l.index_topk > 0).then(|| pick(Slot::IndexCache, index, CacheFormat::Bf16)),
                }
            })
            .collect();
        Self {
            schema: SCHEMA,
            model: facts.key(),
            layers,
            weights: WeightRecipe::default(),
            sampler: SamplerParams::default(),
        }
    }

    /// Reads a full recipe or the short form `{"schema":1,"set":{"layers.3-8.kv_cache":"bf16"}}`.
    pub fn parse(json: &str, origin: &str, facts: &ModelFacts, registry: &Registry) -> Result<Self, RecipeError> {
        let fail = |detail: String| RecipeError::Parse {
            origin: origin.to_string(),
            detail,
        };
        let value: serde_json::Value = serde_json::from_str(json).map_err(|e| fail(e.to_string()))?;
        let schema = value.get("schema").and_then(serde_json::Value::as_u64);
        if schema != Some(u64::from(SCHEMA)) {
            let found = value.get("schema").map_or("nothing".to_string(), ToString::to_string);
            return Err(fail(format!("field `schema`: found {found}, accepted: {SCHEMA}")));
        }
        let recipe = if value.get("layers").is_some() {
            let mut recipe = serde_json::from_value::<Recipe>(value).map_err(|e| fail(e.to_string()))?;
            for (i, layer) in recipe.layers.iter_mut().enumerate() {
                for (slot, choice) in layer.slots_mut() {
                    *choice = canonical(&format!("layers.{i}.{}", slot.name()), slot, choice, registry)?;
                }
            }
            recipe
        } else {
            let short: ShortForm = serde_json::from_value(value).map_err(|e| fail(e.to_string()))?;
            debug_assert_eq!(short.schema, SCHEMA);
            let mut recipe = Recipe::own(facts, registry);
            for (selector, choice) in short.set {
                let choice: Choice =
                    serde_json::from_value(choice).map_err(|e| fail(format!("field `{selector}`: {e}")))?;
                recipe.set_choice(&selector, choice, facts, registry)?;
            }
            if let Some(s) = short.sampler {
                recipe.sampler = s;
            }
            recipe
        };
        recipe.check(facts, registry)?;
        Ok(recipe)
    }

    /// Applies one edit as the command line writes it: `layers.3-8.kv_cache=bf16`,
    /// `layers.*.attention=sliding_window:window=64,sinks=4`.
    pub fn set(&mut self, edit: &str, facts: &ModelFacts, registry: &Registry) -> Result<(), RecipeError> {
        let Some((selector, choice)) = edit.split_once('=') else {
            return Err(RecipeError::Selector {
                selector: edit.to_string(),
            });
        };
        let choice = Choice::parse(choice).map_err(|detail| RecipeError::Option {
            at: selector.trim().to_string(),
            detail,
        })?;
        self.set_choice(selector.trim(), choice, facts, registry)
    }

    /// Puts a choice where the selector points. Nothing changes if any of the places refuses it.
    pub fn set_choice(
        &mut self,
        selector: &str,
        choice: Choice,
        facts: &ModelFacts,
        registry: &Registry,
    ) -> Result<(), RecipeError> {
        let target = Target::parse(selector, self.layers.len())?;
        let slot = match target {
            Target::Layers { slot, .. } | Target::Weights(slot) => slot,
        };
        let choice = canonical(selector, slot, &choice, registry)?;
        let mut changed = self.clone();
        let (layers, slot, all) = match target {
            Target::Layers { layers, slot, all } => (layers, slot, all),
            Target::Weights(slot) => {
                changed.weights.set(slot, choice);
                changed.check(facts, registry)?;
                *self = changed;
                return Ok(());
            }
        };
        let mut placed = 0;
        for i in layers {
            let layer = &mut changed.layers[i];
            match slot {
                Slot::Attention => layer.attention = choice.clone(),
                Slot::Ffn => layer.ffn = choice.clone(),
                Slot::KvCache => layer.kv_cache = choice.clone(),
                // `layers.*` means "wherever there is an indexer"; a layer named on its own must have one.
                Slot::IndexCache if all && layer.index_cache.is_none() => continue,
                Slot::IndexCache => layer.index_cache = Some(choice.clone()),
                Slot::AttentionWeights | Slot::FfnWeights | Slot::Embedding | Slot::LmHead => continue,
            }
            placed += 1;
        }
        if placed == 0 {
            return Err(RecipeError::Refused {
                at: selector.to_string(),
                variant: choice.variant,
                reason: "no layer of this model has an indexer".into(),
            });
        }
        changed.check(facts, registry)?;
        *self = changed;
        Ok(())
    }

    /// Whether every choice exists and is accepted by its layer.
    pub fn check(&self, facts: &ModelFacts, registry: &Registry) -> Result<(), RecipeError> {
        if self.model != facts.key() || self.layers.len() != facts.layers.len() {
            return Err(RecipeError::WrongModel {
                found: self.model.to_string(),
                expected: facts.key().to_string(),
            });
        }
        for (i, (layer, f)) in self.layers.iter().zip(&facts.layers).enumerate() {
            for (slot, choice) in layer.slots() {
                check_choice(&format!("layers.{i}.{}", slot.name()), slot, choice, f, registry)?;
            }
        }
        for (slot, choice) in self.weights.slots() {
            // A storage of weights is that of all layers: every one must take it.
            for f in &facts.layers {
                check_choice(slot.name(), slot, choice, f, registry)?;
            }
        }
        self.sampler.validate().map_err(RecipeError::Sampler)
    }

    /// Stable hash of everything that affects values: SHA-256 of the canonical JSON, 16 hex digits.
    pub fn hash(&self) -> String {
        let json = serde_json::to_string(self).unwrap_or_default();
        let digest = Sha256::digest(json.as_bytes());
        digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
    }
}

impl LayerRecipe {
    /// The filled slots of the layer, to be changed.
    fn slots_mut(&mut self) -> impl Iterator<Item = (Slot, &mut Choice)> {
        [
            Some((Slot::Attention, &mut self.attention)),
            Some((Slot::Ffn, &mut self.ffn)),
            Some((Slot::KvCache, &mut self.kv_cache)),
            self.index_cache.as_mut().map(|c| (Slot::IndexCache, c)),
        ]
        .into_iter()
        .flatten()
    }

    /// The filled slots of the layer.
    pub fn slots(&self) -> impl Iterator<Item = (Slot, &Choice)> {
        [
            Some((Slot::Attention, &self.attention)),
            Some((Slot::Ffn, &self.ffn)),
            Some((Slot::KvCache, &self.kv_cache)),
            self.index_cache.as_ref().map(|c| (Slot::IndexCache, c)),
        ]
        .into_iter()
        .flatten()
    }
}

impl ModelFacts {
    /// The key recipes carry.
    pub fn key(&self) -> ModelKey {
        ModelKey {
            family: self.family.to_string(),
            layers: self.layers.len(),
            hidden: self.hidden,
            vocab: self.vocab,
        }
    }
}

/// The choice with its values as options are stored, where its variant exists.
fn canonical(at: &str, slot: Slot, choice: &Choice, registry: &Registry) -> Result<Choice, RecipeError> {
    let Some(variant) = registry.get(slot, &choice.variant) else {
        // `check` says what there is.
        return Ok(choice.clone());
    };
    choice.canonical(&**variant).map_err(|detail| RecipeError::Option {
        at: at.to_string(),
        detail,
    })
}

fn check_choice(
    at: &str,
    slot: Slot,
    choice: &Choice,
    facts: &LayerFacts,
    registry: &Registry,
) -> Result<(), RecipeError> {
    let Some(variant) = registry.get(slot, &choice.variant) else {
        return Err(RecipeError::UnknownVariant {
            at: at.to_string(),
            found: choice.variant.clone(),
            accepted: registry.of(slot).map(|v| v.name()).collect::<Vec<_>>().join(", "),
        });
    };
    let fits = choice.canonical(&**variant).and_then(|c| {
        let same = c == *choice;
        same.then_some(())
            .ok_or_else(|| format!("`{choice}` is not written as options are stored; accepted: `{c}`"))
    });
    fits.map_err(|detail| RecipeError::Option {
        at: at.to_string(),
        detail,
    })?;
    variant
        .accepts(facts, &choice.options)
        .map_err(|r| RecipeError::Refused {
            at: at.to_string(),
            variant: choice.variant.clone(),
            reason: r.0,
        })
}
