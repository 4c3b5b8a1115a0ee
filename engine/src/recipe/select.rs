//! Selectors: where an edit of a recipe goes.

use super::RecipeError;
use super::registry::Slot;

/// What a selector points at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A slot of some layers.
    Layers {
        /// Layer numbers.
        layers: Vec<usize>,
        /// The slot.
        slot: Slot,
        /// Written as `*`.
        all: bool,
    },
    /// The storage of some weights, in the whole model.
    Weights(Slot),
}

impl Target {
    /// Reads `layers.3-8.kv_cache`, `layers.2.attention`, `layers.*.index_cache`, `layers.1,4-6.ffn` or
    /// `weights.ffn`, for a model of `count` layers.
    pub fn parse(selector: &str, count: usize) -> Result<Self, RecipeError> {
        if let Some(slot) = Slot::WEIGHTS.into_iter().find(|s| s.name() == selector) {
            return Ok(Target::Weights(slot));
        }
        let wrong = || RecipeError::Selector {
            selector: selector.to_string(),
        };
        let rest = selector.strip_prefix("layers.").ok_or_else(wrong)?;
        let (range, slot) = rest.split_once('.').ok_or_else(wrong)?;
        let slot = Slot::ALL
            .into_iter()
            .find(|s| s.per_layer() && s.name() == slot)
            .ok_or_else(wrong)?;
        let mut layers = Vec::new();
        if range == "*" {
            return Ok(Target::Layers {
                layers: (0..count).collect(),
                slot,
                all: true,
            });
        }
        for part in range.split(',') {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            let (a, b): (usize, usize) = (
                a.trim().parse().map_err(|_| wrong())?,
                b.trim().parse().map_err(|_| wrong())?,
            );
            if a > b {
                return Err(wrong());
            }
            if b >= count {
                let last = count.saturating_sub(1);
                return Err(RecipeError::LayerRange {
                    selector: selector.to_string(),
                    layer: b,
                    last,
                });
            }
            layers.extend(a..=b);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(Target::Layers {
            layers,
            slot,
            all: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors() {
        let t = Target::parse("layers.3-5,1.kv_cache", 8).unwrap();
        assert_eq!(
            t,
            Target::Layers {
                layers: vec![1, 3, 4, 5],
                slot: Slot::KvCache,
                all: false
            }
        );
        for slot in Slot::WEIGHTS {
            assert_eq!(Target::parse(slot.name(), 8).unwrap(), Target::Weights(slot));
        }
        let e = Target::parse("layers.7-9.attention", 8).unwrap_err().to_string();
        assert_eq!(
            e,
            "`layers.7-9.attention`: layer 9 is out of range, the model has layers 0 to 7"
        );
        for bad in [
            "layers",
            "layers.1",
            "layers.x.ffn",
            "layers.1.weights",
            "layers.5-2.ffn",
            "layers.1.weights.lm_head",
            "weights",
            "weights.router",
        ] {
            assert!(
                matches!(Target::parse(bad, 8), Err(RecipeError::Selector { .. })),
                "{bad}"
            );
        }
    }
}
