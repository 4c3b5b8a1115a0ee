//! The two recipes: the checkpoint's own, the one in force, a preset, one of an earlier comparison, edits, or JSON.

use std::collections::BTreeSet;

use egui::{RichText, Ui};
use protocol::{ChoiceView, Edit, Preset, RecipeRef, SlotView};

use crate::fmt;
use crate::icons;
use crate::store::{Query, Store};
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::views::blocks::pick::{edits, layers_text, parse_selector};
use crate::views::blocks::short_form;

/// What a side is.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    /// The checkpoint's own recipe.
    Own,
    /// The one in force.
    Current,
    /// A preset, by name.
    Preset(String),
    /// A side of an earlier comparison: what it was called, and its JSON.
    Earlier(String, String),
    /// Edits of the checkpoint's own recipe.
    Edits(Vec<Edit>),
    /// Pasted JSON.
    Json(String),
}

/// One side's choice with the form that is being filled in.
#[derive(Clone, Debug)]
pub struct Side {
    /// What it is.
    pub choice: Choice,
    form: Form,
}

/// An edit that is being written.
#[derive(Clone, Debug, Default)]
struct Form {
    slot: String,
    layers: String,
    variant: String,
}

impl Side {
    /// A side with its first choice.
    pub fn new(choice: Choice) -> Self {
        Self {
            choice,
            form: Form::default(),
        }
    }

    /// As the host understands it. The sentence says what is missing.
    ///
    /// # Errors
    /// A preset that is not there, text that is not JSON.
    pub fn reference(&self, presets: &[Preset]) -> Result<RecipeRef, String> {
        match &self.choice {
            Choice::Own => Ok(RecipeRef::Own),
            Choice::Current => Ok(RecipeRef::Current),
            Choice::Preset(name) => match presets.iter().find(|p| p.name == *name) {
                Some(p) if p.refused.is_empty() => Ok(RecipeRef::Json(short_form(&p.edits))),
                Some(p) => Err(p.refused.clone()),
                None => Err(format!("this model has no preset {name}")),
            },
            Choice::Earlier(_, json) => Ok(RecipeRef::Json(json.clone())),
            Choice::Edits(edits) => Ok(RecipeRef::Json(short_form(edits))),
            Choice::Json(text) if text.trim().is_empty() => Err("paste a recipe".into()),
            Choice::Json(text) => match serde_json::from_str::<serde_json::Value>(text) {
                Ok(_) => Ok(RecipeRef::Json(text.clone())),
                Err(e) => Err(format!("not JSON: {e}")),
            },
        }
    }

    /// What it is, in a few words.
    pub fn describe(&self, store: &Store) -> String {
        let all = store.facts().map_or(0, |f| f.layers.len() as u32);
        match &self.choice {
            Choice::Own => "checkpoint's own".into(),
            Choice::Current => match store.recipe().map_or(0, |r| r.changes.len()) {
                0 => "in force (no changes)".into(),
                _ => format!(
                    "in force: {}",
                    in_words(store.recipe().map_or(&[][..], |r| &r.changes), all)
                ),
            },
            Choice::Preset(name) => format!("preset {name}"),
            Choice::Earlier(name, _) => name.clone(),
            Choice::Edits(list) if list.is_empty() => "own, with edits: none yet".into(),
            Choice::Edits(list) => in_words(list, all),
            Choice::Json(_) => "from JSON".into(),
        }
    }

    /// The menu of a side. `earlier`: sides of earlier comparisons.
    pub fn menu(&mut self, cx: &mut Context<'_>, ui: &mut Ui, name: &str, earlier: &[(String, String)]) {
        let p = Palette::of(ui);
        let presets: &[Preset] = cx.fetch(&Query::presets()).value().map_or(&[], Vec::as_slice);
        let text = self.describe(cx.store);
        let shown = elide(&text, ((ui.available_width() - 76.0) / 7.0).max(12.0) as usize);
        let button = egui::Button::new(format!("{shown}  {}", icons::CARET_DOWN)).min_size(egui::vec2(0.0, 28.0));
        let menu = egui::containers::menu::MenuButton::from_button(button).ui(ui, |ui| {
            ui.set_min_width(280.0);
            egui::ScrollArea::vertical().max_height(360.0).show(ui, |ui| {
                let caption =
                    |ui: &mut Ui, text: &str| ui.label(RichText::new(text).font(theme::caption()).color(p.faint));
                self.item(
                    ui,
                    Choice::Own,
                    "checkpoint's own",
                    "Every slot as the checkpoint was made.",
                );
                self.item(
                    ui,
                    Choice::Current,
                    "in force now",
                    "The recipe the running text is written with.",
                );
                if !presets.is_empty() {
                    caption(ui, "presets");
                }
                for preset in presets {
                    let able = preset.refused.is_empty();
                    let about = if able { &preset.help } else { &preset.refused };
                    ui.add_enabled_ui(able, |ui| {
                        self.item(ui, Choice::Preset(preset.name.clone()), &preset.name, about);
                    });
                }
                if !earlier.is_empty() {
                    caption(ui, "from earlier comparisons");
                }
                for (what, json) in earlier {
                    self.item(
                        ui,
                        Choice::Earlier(what.clone(), json.clone()),
                        what,
                        "Used in a comparison of this session.",
                    );
                }
                caption(ui, "written here");
                if !matches!(self.choice, Choice::Edits(_)) {
                    let first = match (&self.choice, cx.store.recipe()) {
                        (Choice::Current, Some(r)) => r.changes.clone(),
                        (Choice::Preset(name), _) => presets
                            .iter()
                            .find(|x| x.name == *name)
                            .map(|x| x.edits.clone())
                            .unwrap_or_default(),
                        _ => Vec::new(),
                    };
                    self.item(
                        ui,
                        Choice::Edits(first),
                        "edits…",
                        "Choose variants of slots, starting from what is chosen now.",
                    );
                }
                if !matches!(self.choice, Choice::Json(_)) {
                    self.item(
                        ui,
                        Choice::Json(String::new()),
                        "paste JSON…",
                        "A recipe that was saved before.",
                    );
                }
            });
        });
        menu.0
            .accessible_name(format!("Recipe {name}: {text}"))
            .on_hover_text(text);
    }

    fn item(&mut self, ui: &mut Ui, choice: Choice, name: &str, about: &str) {
        let chosen = self.choice == choice;
        let response = ui
            .selectable_label(chosen, name)
            .on_hover_text(about)
            .on_disabled_hover_text(about);
        if response.clicked() {
            self.choice = choice;
        }
    }

    /// The form under the menu, for sides that are written here.
    pub fn form(&mut self, cx: &mut Context<'_>, ui: &mut Ui, name: &str) {
        let p = Palette::of(ui);
        match &mut self.choice {
            Choice::Json(text) => {
                let edit = egui::TextEdit::multiline(text)
                    .code_editor()
                    .char_limit(super::setup::LONGEST)
                    .font(theme::mono())
                    .desired_rows(4)
                    .desired_width(f32::INFINITY)
                    .hint_text("{\"schema\":1,\"set\":{\"layers.3-6.kv_cache\":\"bf16\"}}");
                egui::ScrollArea::vertical()
                    .id_salt(("json", name))
                    .max_height(120.0)
                    .show(ui, |ui| {
                        ui.add(edit).accessible_name(format!("Recipe {name} as JSON"));
                    });
            }
            Choice::Edits(list) => {
                let layers = cx.store.facts().map_or(0, |f| f.layers.len() as u32);
                let mut gone = None;
                ui.horizontal_wrapped(|ui| {
                    for (i, edit) in list.iter().enumerate() {
                        let words = edit_in_words(edit, layers);
                        let chip = crate::widgets::controls::chip(ui, icons::X, &words, p.text);
                        if chip.on_hover_text("Remove this edit").clicked() {
                            gone = Some(i);
                        }
                    }
                });
                if let Some(i) = gone {
                    list.remove(i);
                }
                let slots = cx.store.model().map_or(&[][..], |m| m.slots.as_slice());
                if let Some(added) = self.form.show(ui, name, slots) {
                    for edit in added {
                        list.retain(|e| !covers(&edit, e, layers));
                        list.push(edit);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Form {
    /// A row of fields. The edits when "Add" was clicked.
    fn show(&mut self, ui: &mut Ui, name: &str, slots: &[SlotView]) -> Option<Vec<Edit>> {
        let p = Palette::of(ui);
        let open: Vec<&SlotView> = slots
            .iter()
            .filter(|s| s.fixed.is_empty() && s.variants.len() > 1)
            .collect();
        if !open.iter().any(|s| s.name == self.slot) {
            let first = open.iter().find(|s| s.name == "kv_cache").or(open.first())?;
            self.slot.clone_from(&first.name);
        }
        let slot = open.iter().find(|s| s.name == self.slot)?;
        if !slot.variants.iter().any(|v| v.name == self.variant) {
            // bf16 is what an 8-bit format is compared with most often.
            let likely = slot
                .variants
                .iter()
                .find(|v| v.name == "bf16")
                .or(slot.variants.first());
            self.variant = likely.map(|v| v.name.clone()).unwrap_or_default();
        }
        let mut added = None;
        let parsed = self.layers_of(slot);
        ui.horizontal_wrapped(|ui| {
            let combo = |ui: &mut Ui, what: &str, current: &mut String, all: &[&str]| {
                let shown = current.clone();
                let r = egui::ComboBox::from_id_salt((name, what))
                    .selected_text(&shown)
                    .show_ui(ui, |ui| {
                        for one in all {
                            ui.selectable_value(current, (*one).to_string(), *one);
                        }
                    });
                r.response
                    .accessible_name(format!("{what} of the edit of {name}: {shown}"));
            };
            let names: Vec<&str> = open.iter().map(|s| s.name.as_str()).collect();
            combo(ui, "slot", &mut self.slot, &names);
            if slot.per_layer {
                ui.label(RichText::new("layers").color(p.secondary));
                let field = egui::TextEdit::singleline(&mut self.layers)
                    .desired_width(72.0)
                    .font(theme::mono())
                    .hint_text("all");
                ui.add(field).accessible_name(format!("layers of the edit of {name}"));
            }
            let variants: Vec<&str> = slot.variants.iter().map(|v| v.name.as_str()).collect();
            combo(ui, "variant", &mut self.variant, &variants);
            let problem = parsed.as_ref().err().cloned();
            let able = problem.is_none();
            let add = ui
                .add_enabled(able, egui::Button::new("Add"))
                .accessible_name(format!("Add the edit to {name}"));
            if add.clicked()
                && let Ok(layers) = &parsed
            {
                let choice = ChoiceView {
                    variant: self.variant.clone(),
                    options: Vec::new(),
                };
                added = Some(edits(slot, layers, &choice));
            }
            if let Some(problem) = problem {
                ui.label(RichText::new(problem).font(theme::caption()).color(p.warn));
            }
        });
        added
    }

    /// The layers that were typed, or why they cannot be.
    fn layers_of(&self, slot: &SlotView) -> Result<BTreeSet<u32>, String> {
        if !slot.per_layer {
            return Ok(BTreeSet::new());
        }
        let layers = parse_layers(&self.layers, &slot.layers)?;
        let variant = slot.variants.iter().find(|v| v.name == self.variant);
        let refused = variant
            .into_iter()
            .flat_map(|v| &v.refused)
            .find(|r| layers.contains(&r.layer));
        match refused {
            Some(r) => Err(format!("layer {}: {}", r.layer, r.reason)),
            None => Ok(layers),
        }
    }
}

/// Layers as people type them: `3-6, 9`; empty or `all` = every one that has the slot.
///
/// # Errors
/// A sentence that says which part is not understood or which layer lacks the slot.
pub fn parse_layers(text: &str, among: &[u32]) -> Result<BTreeSet<u32>, String> {
    let text = text.trim();
    if text.is_empty() || text == "all" || text == "*" {
        return Ok(among.iter().copied().collect());
    }
    let mut out = BTreeSet::new();
    for part in text.split([',', ' ']).map(str::trim).filter(|p| !p.is_empty()) {
        let (a, b) = part.split_once(['-', '–']).unwrap_or((part, part));
        let (Ok(a), Ok(b)) = (a.trim().parse::<u32>(), b.trim().parse::<u32>()) else {
            return Err(format!("{part}: not a layer or a range like 3-6"));
        };
        if a > b || b - a > 10_000 {
            return Err(format!("{part}: not a range"));
        }
        for layer in a..=b {
            if !among.contains(&layer) {
                let have = layers_text(among.iter().copied());
                return Err(format!("layer {layer} has no such slot; accepted are {have}"));
            }
            out.insert(layer);
        }
    }
    Ok(out)
}

/// Whether nothing is left of `old` once `new` is made.
fn covers(new: &Edit, old: &Edit, layers: u32) -> bool {
    match (
        parse_selector(&new.selector, layers),
        parse_selector(&old.selector, layers),
    ) {
        (Some((a, slot)), Some((b, other))) => slot == other && a.start <= b.start && b.end <= a.end,
        _ => new.selector == old.selector,
    }
}

/// An edit in words: `kv_cache bf16 (layers 3–6)`.
pub fn edit_in_words(edit: &Edit, layers: u32) -> String {
    match parse_selector(&edit.selector, layers) {
        Some((range, slot)) if range == (0..layers) => format!("{slot} {} (all layers)", edit.choice),
        Some((range, slot)) if range.len() == 1 => format!("{slot} {} (layer {})", edit.choice, range.start),
        Some((range, slot)) => format!("{slot} {} (layers {})", edit.choice, layers_text(range)),
        None => format!("{} {}", edit.selector, edit.choice),
    }
}

/// Edits in words. Those that differ only in their layers are said together.
pub fn in_words(edits: &[Edit], layers: u32) -> String {
    let mut groups: Vec<(String, BTreeSet<u32>)> = Vec::new();
    for edit in edits {
        let (range, what) = match parse_selector(&edit.selector, layers) {
            Some((range, slot)) => (range, format!("{slot} {}", edit.choice)),
            None => (0..0, format!("{} {}", edit.selector, edit.choice)),
        };
        match groups.iter_mut().find(|(w, _)| *w == what) {
            Some((_, set)) => set.extend(range),
            None => groups.push((what, range.collect())),
        }
    }
    let parts = groups.into_iter().map(|(what, set)| match set.len() {
        0 => what,
        1 => format!("{what} (layer {})", layers_text(set)),
        n if n as u32 == layers => format!("{what} (all layers)"),
        _ => format!("{what} (layers {})", layers_text(set)),
    });
    parts.collect::<Vec<_>>().join(", ")
}

/// The first `most` characters, with an ellipsis where something is missing.
pub fn elide(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars()
        .take(most.saturating_sub(1))
        .chain(std::iter::once('…'))
        .collect()
}

/// A recipe's hash as people say it.
pub fn short_hash(hash: &str) -> String {
    format!("#{}", fmt::visible(&hash.chars().take(4).collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn edit(selector: &str, variant: &str) -> Edit {
        Edit {
            selector: selector.into(),
            choice: ChoiceView {
                variant: variant.into(),
                options: Vec::new(),
            },
        }
    }

    #[test]
    fn layers_as_typed() {
        let all: Vec<u32> = (0..7).collect();
        assert_eq!(parse_layers("3-6", &all), Ok((3..7).collect()));
        assert_eq!(parse_layers(" 1, 4–5 ", &all), Ok([1, 4, 5].into()));
        assert_eq!(parse_layers("", &[2, 4, 6]), Ok([2, 4, 6].into()));
        assert_eq!(parse_layers("all", &all).map(|l| l.len()), Ok(7));
        assert!(parse_layers("5-9", &all).is_err_and(|e| e.contains("layer 7") && e.contains("0–6")));
        assert!(parse_layers("x", &all).is_err_and(|e| e.contains("3-6")));
        assert!(parse_layers("6-3", &all).is_err());
        assert!(parse_layers("3", &[2, 4]).is_err());
    }

    #[test]
    fn edits_in_words_say_layers_together() {
        let list = [
            edit("layers.3.kv_cache", "bf16"),
            edit("layers.4.kv_cache", "bf16"),
            edit("weights.lm_head", "fp8"),
        ];
        assert_eq!(in_words(&list, 7), "kv_cache bf16 (layers 3–4), weights.lm_head fp8");
        assert_eq!(
            in_words(&[edit("layers.*.kv_cache", "f32")], 7),
            "kv_cache f32 (all layers)"
        );
        assert_eq!(
            edit_in_words(&edit("layers.3-6.kv_cache", "bf16"), 7),
            "kv_cache bf16 (layers 3–6)"
        );
    }

    #[test]
    fn a_wider_edit_replaces_what_it_covers() {
        let wide = edit("layers.3-6.kv_cache", "bf16");
        assert!(covers(&wide, &edit("layers.4-5.kv_cache", "f32"), 7));
        assert!(!covers(&wide, &edit("layers.2-5.kv_cache", "f32"), 7));
        assert!(!covers(&wide, &edit("layers.4.attention", "dense"), 7));
        assert!(covers(
            &edit("weights.lm_head", "fp8"),
            &edit("weights.lm_head", "bf16"),
            7
        ));
    }

    #[test]
    fn sides_become_references_or_say_what_is_missing() {
        let presets = testing::presets();
        assert_eq!(Side::new(Choice::Own).reference(&presets), Ok(RecipeRef::Own));
        let side = Side::new(Choice::Edits(vec![edit("layers.3-6.kv_cache", "bf16")]));
        let want = r#"{"schema":1,"set":{"layers.3-6.kv_cache":"bf16"}}"#;
        assert_eq!(side.reference(&presets), Ok(RecipeRef::Json(want.into())));
        assert!(
            Side::new(Choice::Json("{".into()))
                .reference(&presets)
                .is_err_and(|e| e.contains("not JSON"))
        );
        assert!(Side::new(Choice::Json(" ".into())).reference(&presets).is_err());
        assert!(
            Side::new(Choice::Preset("none such".into()))
                .reference(&presets)
                .is_err()
        );
        for p in presets {
            let got = Side::new(Choice::Preset(p.name.clone())).reference(std::slice::from_ref(&p));
            assert_eq!(got.is_ok(), p.refused.is_empty(), "{}", p.name);
        }
    }
}
