//! Which cells of the grid are chosen: one slot, any layers.

use std::collections::BTreeSet;

use protocol::{ChoiceView, Decimal, Edit, OptionKind, OptionValue, RecipeView, SlotView};

/// The chosen cells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pick {
    /// Slot; `None` = nothing is chosen.
    pub slot: Option<String>,
    /// Layers; empty for slots of the whole model.
    pub layers: BTreeSet<u32>,
    anchor: Option<u32>,
    /// Layers that were chosen before the drag or shift-click that is going on.
    kept: BTreeSet<u32>,
}

impl Pick {
    /// Whether a cell is chosen.
    pub fn has(&self, slot: &str, layer: u32) -> bool {
        self.slot.as_deref() == Some(slot) && self.layers.contains(&layer)
    }

    /// A click: alone it chooses the cell, with `add` (Ctrl) it adds or removes it, with `range` (Shift) it chooses
    /// everything from the last clicked cell on. Only `among` can be chosen.
    pub fn click(&mut self, slot: &str, layer: u32, add: bool, range: bool, among: &[u32]) {
        if self.slot.as_deref() != Some(slot) {
            *self = Self {
                slot: Some(slot.to_string()),
                ..Self::default()
            };
        }
        match (range, add) {
            (true, _) => self.reach(layer, among),
            (false, true) => {
                if !self.layers.remove(&layer) {
                    self.layers.insert(layer);
                }
                self.start(layer);
            }
            (false, false) => {
                self.layers = BTreeSet::from([layer]);
                self.start(layer);
                self.kept.clear();
            }
        }
    }

    /// A drag has come to this layer.
    pub fn reach(&mut self, layer: u32, among: &[u32]) {
        let anchor = self.anchor.unwrap_or(layer);
        self.anchor = Some(anchor);
        let (low, high) = (anchor.min(layer), anchor.max(layer));
        self.layers = self.kept.clone();
        self.layers.extend(among.iter().filter(|l| **l >= low && **l <= high));
    }

    fn start(&mut self, layer: u32) {
        self.anchor = Some(layer);
        self.kept.clone_from(&self.layers);
    }

    /// Chooses a slot of the whole model, or all layers of a slot; chosen already = nothing.
    pub fn whole(&mut self, slot: &SlotView) {
        let layers: BTreeSet<u32> = slot.layers.iter().copied().collect();
        if self.slot.as_deref() == Some(&slot.name) && self.layers == layers {
            *self = Self::default();
        } else {
            *self = Self {
                slot: Some(slot.name.clone()),
                layers,
                ..Self::default()
            };
        }
    }

    /// Drops layers a newly loaded model does not have.
    pub fn fit(&mut self, slots: &[SlotView]) {
        match self
            .slot
            .as_ref()
            .and_then(|name| slots.iter().find(|s| s.name == *name && s.fixed.is_empty()))
        {
            Some(slot) if slot.per_layer => {
                self.layers.retain(|l| slot.layers.contains(l));
                if self.layers.is_empty() {
                    *self = Self::default();
                }
            }
            Some(_) => {}
            None => *self = Self::default(),
        }
    }
}

/// Runs of consecutive layers.
pub fn runs(layers: impl IntoIterator<Item = u32>) -> Vec<(u32, u32)> {
    let mut out: Vec<(u32, u32)> = Vec::new();
    for layer in layers {
        match out.last_mut() {
            Some((_, end)) if *end + 1 == layer => *end = layer,
            _ => out.push((layer, layer)),
        }
    }
    out
}

/// What was typed, or what would be accepted.
pub fn typed(kind: &OptionKind, text: &str) -> Result<OptionValue, String> {
    let text = text.trim();
    match kind {
        OptionKind::Whole { min, max, .. } => text
            .parse()
            .ok()
            .filter(|v| (min..=max).contains(&v))
            .map(OptionValue::Whole)
            .ok_or_else(|| format!("{min} to {max}")),
        OptionKind::Decimal { min, max, .. } => text
            .parse()
            .ok()
            .filter(|v| (min.0..=max.0).contains(v))
            .map(|v| OptionValue::Decimal(Decimal(v)))
            .ok_or_else(|| format!("{} to {}", min.0, max.0)),
        OptionKind::Heads => OptionValue::heads(text)
            .map(OptionValue::Heads)
            .ok_or_else(|| "head numbers, for example 0,5-7".to_string()),
        OptionKind::Text { .. } => Ok(OptionValue::Text(text.to_string())),
    }
}

/// Layers in words: `3–6, 9`.
pub fn layers_text(layers: impl IntoIterator<Item = u32>) -> String {
    let part = |(a, b): &(u32, u32)| if a == b { a.to_string() } else { format!("{a}–{b}") };
    runs(layers).iter().map(part).collect::<Vec<_>>().join(", ")
}

/// The edits that put a choice into a slot of these layers: one per run, one with `*` for all of them.
pub fn edits(slot: &SlotView, layers: &BTreeSet<u32>, choice: &ChoiceView) -> Vec<Edit> {
    let edit = |selector: String| Edit {
        selector,
        choice: choice.clone(),
    };
    if !slot.per_layer {
        return vec![edit(slot.name.clone())];
    }
    if layers.len() > 1 && layers.len() == slot.layers.len() {
        return vec![edit(format!("layers.*.{}", slot.name))];
    }
    let range = |(a, b): (u32, u32)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    runs(layers.iter().copied())
        .into_iter()
        .map(|r| edit(format!("layers.{}.{}", range(r), slot.name)))
        .collect()
}

/// The layers and the slot a selector names; `None` for slots of the whole model.
pub fn parse_selector(selector: &str, layers: u32) -> Option<(std::ops::Range<u32>, &str)> {
    let (range, slot) = selector.strip_prefix("layers.")?.split_once('.')?;
    if range == "*" {
        return Some((0..layers, slot));
    }
    let (a, b) = range.split_once('-').unwrap_or((range, range));
    let (a, b) = (a.parse::<u32>().ok()?, b.parse::<u32>().ok()?);
    Some((a..b.min(layers.saturating_sub(1)) + 1, slot))
}

/// The cells that differ from the checkpoint's own recipe: (slot, layer).
pub fn changed(recipe: &RecipeView) -> BTreeSet<(String, u32)> {
    let count = recipe.layers.len() as u32;
    let mut out = BTreeSet::new();
    for change in &recipe.changes {
        match parse_selector(&change.selector, count) {
            Some((layers, slot)) => {
                for layer in layers {
                    out.insert((slot.to_string(), layer));
                }
            }
            None => {
                out.insert((change.selector.clone(), 0));
            }
        }
    }
    out
}

/// The choice in force in a slot of a layer.
pub fn choice_of<'a>(recipe: &'a RecipeView, slot: &str, layer: u32) -> Option<&'a ChoiceView> {
    let layer = recipe.layers.get(layer as usize)?;
    layer
        .slots
        .iter()
        .find(|(name, _)| name == slot)
        .map(|(_, choice)| choice)
}

/// The choice in force in a slot of the whole model.
pub fn model_choice<'a>(recipe: &'a RecipeView, slot: &str) -> Option<&'a ChoiceView> {
    recipe
        .model
        .iter()
        .find(|(name, _)| name == slot)
        .map(|(_, choice)| choice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [u32; 7] = [0, 1, 2, 3, 4, 5, 6];

    fn slot(name: &str, layers: &[u32]) -> SlotView {
        SlotView {
            name: name.into(),
            per_layer: !layers.is_empty(),
            variants: Vec::new(),
            layers: layers.to_vec(),
            fixed: String::new(),
        }
    }

    fn chosen(pick: &Pick) -> Vec<u32> {
        pick.layers.iter().copied().collect()
    }

    #[test]
    fn clicks_ranges_and_drags() {
        let mut p = Pick::default();
        p.click("kv_cache", 3, false, false, &ALL);
        p.click("kv_cache", 6, false, true, &ALL);
        assert_eq!(chosen(&p), [3, 4, 5, 6]);
        p.click("kv_cache", 1, true, false, &ALL);
        assert_eq!(chosen(&p), [1, 3, 4, 5, 6]);
        p.click("kv_cache", 4, true, false, &ALL);
        assert_eq!(chosen(&p), [1, 3, 5, 6]);
        p.click("kv_cache", 2, false, false, &ALL);
        p.reach(4, &ALL);
        p.reach(0, &ALL);
        assert_eq!(chosen(&p), [0, 1, 2], "a drag that turns back gives up what it left");
        p.click("attention", 5, false, true, &ALL);
        assert_eq!(
            (p.slot.as_deref(), chosen(&p)),
            (Some("attention"), vec![5]),
            "another slot starts over"
        );
    }

    #[test]
    fn ranges_leave_out_layers_without_the_slot() {
        let mut p = Pick::default();
        p.click("index_cache", 2, false, false, &[2, 4, 6]);
        p.click("index_cache", 6, false, true, &[2, 4, 6]);
        assert_eq!(chosen(&p), [2, 4, 6]);
    }

    #[test]
    fn a_column_is_chosen_whole_and_let_go() {
        let s = slot("index_cache", &[2, 4, 6]);
        let mut p = Pick::default();
        p.whole(&s);
        assert_eq!(chosen(&p), [2, 4, 6]);
        p.whole(&s);
        assert_eq!(p, Pick::default());
        p.whole(&s);
        p.fit(&[slot("index_cache", &[2])]);
        assert_eq!(chosen(&p), [2]);
        p.fit(&[slot("attention", &ALL)]);
        assert_eq!(p, Pick::default());
    }

    #[test]
    fn edits_use_runs_and_the_star() {
        let choice = ChoiceView {
            variant: "bf16".into(),
            options: vec![],
        };
        let text = |slot: &SlotView, layers: &[u32]| {
            let layers = layers.iter().copied().collect();
            edits(slot, &layers, &choice)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        let kv = slot("kv_cache", &ALL);
        assert_eq!(text(&kv, &[3, 4, 5, 6]), ["layers.3-6.kv_cache=bf16"]);
        assert_eq!(
            text(&kv, &[1, 3, 4]),
            ["layers.1.kv_cache=bf16", "layers.3-4.kv_cache=bf16"]
        );
        assert_eq!(text(&kv, &ALL), ["layers.*.kv_cache=bf16"]);
        assert_eq!(
            text(&slot("index_cache", &[2, 4, 6]), &[2, 4, 6]),
            ["layers.*.index_cache=bf16"]
        );
        assert_eq!(text(&slot("weights.lm_head", &[]), &[]), ["weights.lm_head=bf16"]);
        assert_eq!(layers_text([1, 3, 4, 5]), "1, 3–5");
    }

    #[test]
    fn selectors_are_read_back() {
        assert_eq!(parse_selector("layers.3-6.kv_cache", 7), Some((3..7, "kv_cache")));
        assert_eq!(parse_selector("layers.*.attention", 7), Some((0..7, "attention")));
        assert_eq!(parse_selector("layers.2.ffn", 7), Some((2..3, "ffn")));
        assert_eq!(parse_selector("layers.2-99.ffn", 7), Some((2..7, "ffn")));
        assert_eq!(parse_selector("weights.lm_head", 7), None);
    }
}
