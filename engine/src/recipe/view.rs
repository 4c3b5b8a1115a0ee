//! Recipes and the validity table as the protocol shows them.

use protocol::{
    ChoiceView, Decimal, Edit, LayerSlots, OptionChoice, OptionValue, OptionView, RecipeView, Refusal, SlotView,
    VariantView,
};

use super::registry::{OptionKind, Options, Registry, Slot};
use super::{Choice, ModelFacts, Recipe, RecipeChange, RecipeError};

impl From<&Choice> for ChoiceView {
    fn from(c: &Choice) -> Self {
        let option = |(name, value): (&String, &OptionValue)| OptionChoice {
            name: name.clone(),
            value: value.clone(),
        };
        Self {
            variant: c.variant.clone(),
            options: c.options.iter().map(option).collect(),
        }
    }
}

impl From<&ChoiceView> for Choice {
    fn from(c: &ChoiceView) -> Self {
        Self {
            variant: c.variant.clone(),
            options: c.options.iter().map(|o| (o.name.clone(), o.value.clone())).collect(),
        }
    }
}

impl From<&RecipeChange> for Edit {
    fn from(c: &RecipeChange) -> Self {
        Self {
            selector: c.selector.clone(),
            choice: (&c.choice).into(),
        }
    }
}

impl From<&RecipeChange> for protocol::Change {
    fn from(c: &RecipeChange) -> Self {
        Self {
            edit: c.into(),
            from: c.from.to_string(),
        }
    }
}

impl Recipe {
    /// The recipe with edits applied in order: all of them, or the error of the first that is refused.
    pub fn edited(&self, edits: &[Edit], facts: &ModelFacts, registry: &Registry) -> Result<Recipe, RecipeError> {
        let mut recipe = self.clone();
        for e in edits {
            recipe.set_choice(&e.selector, (&e.choice).into(), facts, registry)?;
        }
        Ok(recipe)
    }

    /// The recipe for people. `own` is the checkpoint's; `converted_at` are positions of the running text at which
    /// swaps converted rows.
    pub fn view(&self, own: &Recipe, converted_at: &[u64]) -> RecipeView {
        let layer = |l: &super::LayerRecipe| LayerSlots {
            slots: l.slots().map(|(s, c)| (s.name().to_string(), c.into())).collect(),
        };
        RecipeView {
            json: serde_json::to_string_pretty(self).unwrap_or_default(),
            hash: self.hash(),
            layers: self.layers.iter().map(layer).collect(),
            model: self
                .weights
                .slots()
                .map(|(slot, choice)| (slot.name().to_string(), choice.into()))
                .to_vec(),
            changes: self.changes_from(own).iter().map(Into::into).collect(),
            converted_at: converted_at.to_vec(),
        }
    }
}

/// The validity table of a model: every slot with its variants, and which layers refuse which, with the reason. The
/// residual stands at the end, fixed.
pub fn slot_views(facts: &ModelFacts, registry: &Registry) -> Vec<SlotView> {
    let mut views: Vec<SlotView> = Slot::ALL.into_iter().map(|s| slot_view(s, facts, registry)).collect();
    let (form, why) = match facts.streams {
        0 | 1 => (
            "plain",
            "a plain residual: the layers were trained around it".to_string(),
        ),
        n => (
            "mhc",
            format!("manifold hyper-connections of {n} streams: their mixing matrices are part of the weights"),
        ),
    };
    views.push(SlotView {
        name: "residual".into(),
        per_layer: true,
        variants: vec![VariantView {
            name: form.into(),
            help: "what the checkpoint was trained with".into(),
            options: Vec::new(),
            refused: Vec::new(),
        }],
        layers: (0..facts.layers.len() as u32).collect(),
        fixed: why,
    });
    views
}

fn kind_view(kind: OptionKind) -> protocol::OptionKind {
    match kind {
        OptionKind::Whole { min, max, default } => protocol::OptionKind::Whole { min, max, default },
        OptionKind::Decimal { min, max, default } => protocol::OptionKind::Decimal {
            min: Decimal(min),
            max: Decimal(max),
            default: Decimal(default),
        },
        OptionKind::Heads => protocol::OptionKind::Heads,
        OptionKind::Text { default } => protocol::OptionKind::Text {
            default: default.to_string(),
        },
    }
}

fn slot_view(slot: Slot, facts: &ModelFacts, registry: &Registry) -> SlotView {
    let has = |l: &&super::LayerFacts| slot.per_layer() && (slot != Slot::IndexCache || l.index_topk > 0);
    let layers: Vec<&super::LayerFacts> = facts.layers.iter().filter(has).collect();
    // What holds for the whole model must suit every layer.
    let judges: Vec<&super::LayerFacts> = if slot.per_layer() {
        layers.clone()
    } else {
        facts.layers.iter().collect()
    };
    let variants: Vec<VariantView> = registry
        .of(slot)
        .map(|v| VariantView {
            name: v.name().into(),
            help: v.help().into(),
            options: v
                .options()
                .iter()
                .map(|o| OptionView {
                    name: o.name.into(),
                    help: o.help.into(),
                    kind: kind_view(o.kind),
                })
                .collect(),
            refused: judges
                .iter()
                .filter_map(|l| {
                    let reason = v.accepts(l, &Options::new()).err()?.0;
                    let layer = if slot.per_layer() { l.layer as u32 } else { 0 };
                    Some(Refusal { layer, reason })
                })
                .take(if slot.per_layer() { usize::MAX } else { 1 })
                .collect(),
        })
        .collect();
    let fixed = if slot == Slot::IndexCache && layers.is_empty() {
        "no layer of this model has an indexer".to_string()
    } else if variants.len() < 2 {
        "the checkpoint's own is the only form there is".to_string()
    } else {
        String::new()
    };
    SlotView {
        name: slot.name().into(),
        per_layer: slot.per_layer(),
        variants,
        layers: layers.iter().map(|l| l.layer as u32).collect(),
        fixed,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::{dense_facts, facts};
    use super::*;

    #[test]
    fn every_refusal_is_the_registrys_and_every_layer_is_listed() {
        let registry = Registry::default();
        let facts = facts();
        let views = slot_views(&facts, &registry);
        let names: Vec<&str> = views.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "attention",
                "ffn",
                "kv_cache",
                "index_cache",
                "weights.attention",
                "weights.ffn",
                "weights.embedding",
                "weights.lm_head",
                "residual"
            ]
        );
        let dense = &views[0].variants[1];
        assert_eq!(dense.name, "dense");
        assert_eq!(dense.refused.iter().map(|r| r.layer).collect::<Vec<_>>(), [0, 1]);
        assert!(dense.refused[0].reason.contains("ring of 16 tokens"));
        assert_eq!(views[3].layers, [2, 4, 6]);
        assert!(views[0].fixed.is_empty() && views[1].fixed.is_empty() && views[8].fixed.contains("4 streams"));
        // Every cell agrees with `check`.
        let own = Recipe::own(&facts, &registry);
        for slot in views.iter().filter(|s| s.per_layer && s.name != "residual") {
            for v in &slot.variants {
                for &layer in &slot.layers {
                    let refused = v.refused.iter().any(|r| r.layer == layer);
                    let edit = Edit {
                        selector: format!("layers.{layer}.{}", slot.name),
                        choice: (&Choice::plain(&v.name)).into(),
                    };
                    assert_eq!(own.edited(&[edit], &facts, &registry).is_err(), refused, "{}", v.name);
                }
            }
        }
        let dense = slot_views(&dense_facts(), &registry);
        assert!(dense[3].layers.is_empty() && dense[3].fixed.contains("no layer"));
    }

    /// One layer that cannot take a storage of weights is enough; it is said once.
    #[test]
    fn weights_are_stored_so_that_every_layer_takes_it() {
        let registry = Registry::default();
        let mut facts = facts();
        facts.layers[3].inputs.ffn[1] = 33;
        let views = slot_views(&facts, &registry);
        let refused: Vec<(&str, &str)> = views
            .iter()
            .filter(|s| s.name.starts_with("weights."))
            .flat_map(|s| s.variants.iter().map(|v| (s.name.as_str(), v)))
            .filter(|(_, v)| !v.refused.is_empty())
            .map(|(s, v)| (s, v.name.as_str()))
            .collect();
        assert_eq!(refused, [("weights.ffn", "fp4")]);
        let fp4 = &views[5].variants[3];
        assert_eq!(fp4.refused.len(), 1);
        assert!(fp4.refused[0].reason.contains("33 inputs"), "{}", fp4.refused[0].reason);
        let mut own = Recipe::own(&facts, &registry);
        let text = own.set("weights.ffn=fp4", &facts, &registry).unwrap_err().to_string();
        assert!(
            text.contains("weights.ffn: `fp4` cannot be used here") && text.contains("33"),
            "{text}"
        );
        own.set("weights.ffn=fp8", &facts, &registry).unwrap();
        own.set("weights.attention=fp4", &facts, &registry).unwrap();
    }

    #[test]
    fn edits_are_all_or_none() {
        let (facts, registry) = (facts(), Registry::default());
        let own = Recipe::own(&facts, &registry);
        let edit = |s: &str, v: &str| Edit {
            selector: s.into(),
            choice: (&Choice::parse(v).unwrap()).into(),
        };
        let good = edit("layers.*.attention", "top_k:k=16");
        let b = own.edited(std::slice::from_ref(&good), &facts, &registry).unwrap();
        let view = b.view(&own, &[7]);
        assert_eq!(view.changes, std::slice::from_ref(&good));
        assert_eq!(view.changes[0].to_string(), "layers.*.attention=top_k:k=16");
        assert_eq!(view.layers[2].slots.len(), 4);
        assert_eq!(view.hash, b.hash());
        assert_eq!(Recipe::parse(&view.json, "test", &facts, &registry).unwrap(), b);
        let bad = edit("layers.0.attention", "dense");
        assert!(own.edited(&[good, bad], &facts, &registry).is_err());
    }
}
