//! What differs between two recipes, as edits.

use super::registry::Slot;
use super::{Choice, Recipe};

/// One difference: setting `selector` to `choice` in the other recipe takes it a step closer.
#[derive(Clone, Debug, PartialEq)]
pub struct RecipeChange {
    /// Where: `layers.3-6.kv_cache`, `layers.*.attention`, `weights.lm_head`.
    pub selector: String,
    /// What this recipe has there.
    pub choice: Choice,
    /// What the other one has there.
    pub from: Choice,
}

impl std::fmt::Display for RecipeChange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}={}", self.selector, self.choice)
    }
}

impl Recipe {
    /// The edits that turn `other` into this recipe, slot by slot, first layers first. Layers that change from the
    /// same choice to the same choice are one edit; `*` stands for every layer that has the slot. Samplers are not
    /// compared. Both recipes must be for the same model.
    pub fn changes_from(&self, other: &Recipe) -> Vec<RecipeChange> {
        let mut changes = Vec::new();
        for slot in Slot::ALL.into_iter().filter(|s| s.per_layer()) {
            let mut groups: Vec<(Choice, Choice, Vec<usize>)> = Vec::new();
            let mut having = 0;
            for (i, (new, old)) in self.layers.iter().zip(&other.layers).enumerate() {
                let at = |l: &super::LayerRecipe| l.slots().find(|(s, _)| *s == slot).map(|(_, c)| c.clone());
                let (Some(new), Some(old)) = (at(new), at(old)) else {
                    continue;
                };
                having += 1;
                if new == old {
                    continue;
                }
                match groups.iter_mut().find(|g| g.0 == new && g.1 == old) {
                    Some((_, _, layers)) => layers.push(i),
                    None => groups.push((new, old, vec![i])),
                }
            }
            changes.extend(groups.into_iter().map(|(choice, from, layers)| {
                let range = if layers.len() == having {
                    "*".to_string()
                } else {
                    ranges(&layers)
                };
                RecipeChange {
                    selector: format!("layers.{range}.{}", slot.name()),
                    choice,
                    from,
                }
            }));
        }
        for ((slot, new), (_, old)) in self.weights.slots().into_iter().zip(other.weights.slots()) {
            if new != old {
                changes.push(RecipeChange {
                    selector: slot.name().to_string(),
                    choice: new.clone(),
                    from: old.clone(),
                });
            }
        }
        changes
    }
}

/// `1,4-6` from ascending numbers.
pub(super) fn ranges(numbers: &[usize]) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for &n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let text = runs.iter().map(|&(a, b)| match b - a {
        0 => a.to_string(),
        _ => format!("{a}-{b}"),
    });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::super::tests_support::facts;
    use super::*;
    use crate::recipe::Registry;

    #[test]
    fn equal_changes_are_one_edit() {
        let (facts, registry) = (facts(), Registry::default());
        let own = Recipe::own(&facts, &registry);
        assert!(own.changes_from(&own).is_empty());
        let mut b = own.clone();
        for edit in [
            "layers.3-6.kv_cache=f32",
            "layers.1.kv_cache=f32",
            "layers.*.index_cache=fp8_b64",
            "layers.0.attention=top_k:k=8",
            "weights.lm_head=fp8",
            "weights.ffn=fp4",
        ] {
            b.set(edit, &facts, &registry).unwrap();
        }
        let changes: Vec<String> = b.changes_from(&own).iter().map(ToString::to_string).collect();
        let want = [
            "layers.0.attention=top_k:k=8",
            "layers.1,3-6.kv_cache=f32",
            "layers.*.index_cache=fp8_b64",
            "weights.ffn=fp4",
            "weights.lm_head=fp8",
        ];
        assert_eq!(changes, want);
        assert_eq!(b.changes_from(&own)[1].from, Choice::plain("bf16"));
        // Layers that come from different choices are different changes.
        let mut mixed = own.clone();
        mixed.set("layers.4.kv_cache=fp8_b64", &facts, &registry).unwrap();
        let changes: Vec<String> = b.changes_from(&mixed).iter().map(ToString::to_string).collect();
        assert_eq!(changes[1], "layers.1,3,5-6.kv_cache=f32");
        assert_eq!(changes[2], "layers.4.kv_cache=f32");
    }

    proptest::proptest! {
        /// Applying the changes leads from one recipe to the other, whatever they are.
        #[test]
        fn changes_lead_from_one_to_the_other(
            a in proptest::collection::vec((0usize..7, 0usize..8, 0usize..8), 0..12),
            b in proptest::collection::vec((0usize..7, 0usize..8, 0usize..8), 0..12),
        ) {
            let (facts, registry) = (facts(), Registry::default());
            let make = |edits: &[(usize, usize, usize)]| {
                let mut r = Recipe::own(&facts, &registry);
                for &(layer, slot, variant) in edits {
                    let slot = Slot::ALL[slot];
                    let names: Vec<&str> = registry.of(slot).map(|v| v.name()).collect();
                    let name = names[variant % names.len()];
                    // Choices that a layer refuses leave the recipe as it was.
                    let place = if slot.per_layer() { format!("layers.{layer}.") } else { String::new() };
                    let _ = r.set(&format!("{place}{}={name}", slot.name()), &facts, &registry);
                }
                r
            };
            let (a, b) = (make(&a), make(&b));
            let mut reached = a.clone();
            for c in b.changes_from(&a) {
                reached.set(&c.to_string(), &facts, &registry).unwrap();
            }
            proptest::prop_assert_eq!(reached, b);
        }
    }
}
