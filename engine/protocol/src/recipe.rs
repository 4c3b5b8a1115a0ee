//! Recipes and the validity table as the interface sees them.

use serde::{Deserialize, Serialize};

/// A finite number with a fraction.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decimal(pub f64);

// Options are checked to be finite, and then equality is total.
impl Eq for Decimal {}

/// What an option takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptionKind {
    /// A whole number.
    Whole {
        /// Smallest accepted value.
        min: u64,
        /// Largest accepted value.
        max: u64,
        /// Value when left out.
        default: u64,
    },
    /// A number with a fraction.
    Decimal {
        /// Smallest accepted value.
        min: Decimal,
        /// Largest accepted value.
        max: Decimal,
        /// Value when left out.
        default: Decimal,
    },
    /// Query heads of the layer: `0,5-7`. None when left out.
    Heads,
    /// Text.
    Text {
        /// Value when left out.
        default: String,
    },
}

impl OptionKind {
    /// The value when left out.
    pub fn default(&self) -> OptionValue {
        match self {
            Self::Whole { default, .. } => OptionValue::Whole(*default),
            Self::Decimal { default, .. } => OptionValue::Decimal(*default),
            Self::Heads => OptionValue::Heads(Vec::new()),
            Self::Text { default } => OptionValue::Text(default.clone()),
        }
    }
}

/// How an option is written down: as before there were options beside whole numbers, so that files of that time are read.
#[derive(Serialize, Deserialize)]
struct OptionForm {
    name: String,
    help: String,
    min: u64,
    max: u64,
    default: u64,
    /// What it takes, if not a whole number.
    #[serde(default)]
    other: Option<OptionKind>,
}

impl From<OptionForm> for OptionView {
    fn from(f: OptionForm) -> Self {
        let whole = OptionKind::Whole {
            min: f.min,
            max: f.max,
            default: f.default,
        };
        Self {
            name: f.name,
            help: f.help,
            kind: f.other.unwrap_or(whole),
        }
    }
}

impl From<OptionView> for OptionForm {
    fn from(o: OptionView) -> Self {
        let (min, max, default, other) = match o.kind {
            OptionKind::Whole { min, max, default } => (min, max, default, None),
            other => (0, 0, 0, Some(other)),
        };
        Self {
            name: o.name,
            help: o.help,
            min,
            max,
            default,
            other,
        }
    }
}

/// An option of a variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OptionForm", into = "OptionForm")]
pub struct OptionView {
    /// Name.
    pub name: String,
    /// What it does.
    pub help: String,
    /// What it takes.
    pub kind: OptionKind,
}

/// A value given to an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OptionValue {
    /// A whole number.
    Whole(u64),
    /// A finite number.
    Decimal(Decimal),
    /// Head numbers, ascending.
    Heads(Vec<u32>),
    /// Text.
    Text(String),
}

/// As the command line writes it: `64`, `0.001`, `0,5-7`, `"score - q"`.
impl std::fmt::Display for OptionValue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(v) => write!(f, "{v}"),
            Self::Decimal(v) => write!(f, "{}", v.0),
            Self::Text(v) => write!(f, "\"{v}\""),
            Self::Heads(heads) => {
                let mut runs: Vec<(u32, u32)> = Vec::new();
                for &h in heads {
                    match runs.last_mut() {
                        Some((_, last)) if last.checked_add(1) == Some(h) => *last = h,
                        _ => runs.push((h, h)),
                    }
                }
                for (i, (a, b)) in runs.into_iter().enumerate() {
                    let comma = if i == 0 { "" } else { "," };
                    if a == b {
                        write!(f, "{comma}{a}")?;
                    } else {
                        write!(f, "{comma}{a}-{b}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

impl OptionValue {
    /// Reads `0,5-7`; ascending and each once. `None` for anything else, and for numbers beyond `u16`.
    pub fn heads(text: &str) -> Option<Vec<u32>> {
        let mut heads = std::collections::BTreeSet::new();
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (a, b) = part.split_once('-').unwrap_or((part, part));
            let (a, b): (u16, u16) = (a.trim().parse().ok()?, b.trim().parse().ok()?);
            if a > b {
                return None;
            }
            heads.extend((a..=b).map(u32::from));
        }
        Some(heads.into_iter().collect())
    }
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

/// How a given value is written down; see [`OptionForm`].
#[derive(Serialize, Deserialize)]
struct ChoiceForm {
    name: String,
    value: u64,
    /// The value, if not a whole number.
    #[serde(default)]
    other: Option<OptionValue>,
}

impl From<ChoiceForm> for OptionChoice {
    fn from(f: ChoiceForm) -> Self {
        Self {
            name: f.name,
            value: f.other.unwrap_or(OptionValue::Whole(f.value)),
        }
    }
}

impl From<OptionChoice> for ChoiceForm {
    fn from(c: OptionChoice) -> Self {
        let (value, other) = match c.value {
            OptionValue::Whole(value) => (value, None),
            other => (0, Some(other)),
        };
        Self {
            name: c.name,
            value,
            other,
        }
    }
}

/// A value given to an option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ChoiceForm", into = "ChoiceForm")]
pub struct OptionChoice {
    /// Option.
    pub name: String,
    /// Value.
    pub value: OptionValue,
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

/// The parts of a list: commas within quotes or parentheses separate nothing.
pub fn split_list(text: &str) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut depth) = (false, 0usize);
    for (i, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '(' if !quoted => depth += 1,
            ')' if !quoted => depth = depth.saturating_sub(1),
            ',' if !quoted && depth == 0 => {
                parts.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.into_iter().map(str::trim).filter(|p| !p.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_read_back_as_they_are_written() {
        for (text, want) in [
            ("", ""),
            ("5", "5"),
            ("0,2,1,9", "0-2,9"),
            ("3-4, 5", "3-5"),
            ("7-7", "7"),
        ] {
            let heads = OptionValue::heads(text).unwrap();
            assert_eq!(OptionValue::Heads(heads.clone()).to_string(), want);
            assert_eq!(OptionValue::heads(want), Some(heads));
        }
        for wrong in ["a", "3-1", "-1", "1-", "99999999999", "0.5"] {
            assert_eq!(OptionValue::heads(wrong), None, "{wrong}");
        }
    }
}
