//! The variants of the chosen cells: what each does, where it is refused and why, its options, what it costs.

use std::collections::{BTreeMap, BTreeSet};

use protocol::{
    ChoiceView, LayerFactsView, OptionChoice, OptionKind, OptionValue, OptionView, RecipeView, SlotView, VariantView,
};

use super::pick::{self, Pick, edits, layers_text, typed};
use crate::fmt;
use crate::icons;
use crate::store::Query;
use crate::theme::{self, Palette};
use crate::views::Context;

/// Values of options that are being changed, by variant.
#[derive(Debug, Default)]
pub(super) struct Editor {
    place: Option<Pick>,
    values: BTreeMap<(String, String), OptionValue>,
    /// Texts that are being typed.
    drafts: BTreeMap<(String, String), String>,
}

/// A variant as the chosen cells see it.
struct Row<'a> {
    variant: &'a VariantView,
    /// Chosen cells that have it, of how many.
    used: (usize, usize),
    /// (layers, reason) where it is refused.
    refused: Vec<(String, String)>,
}

impl Editor {
    /// Shows the editor. True if it was closed.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, slot: &SlotView, pick: &Pick) -> bool {
        let Some(recipe) = cx.store.recipe() else { return true };
        let current = choices(recipe, slot, pick);
        if self.place.as_ref() != Some(pick) {
            self.place = Some(pick.clone());
            self.values.clear();
            self.drafts.clear();
        }
        let mut close = false;
        let facts = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
        egui::ScrollArea::vertical()
            .id_salt("variants")
            .auto_shrink(false)
            .show(ui, |ui| {
                egui::Frame::new()
                    .inner_margin(egui::Margin::symmetric(12, 8))
                    .show(ui, |ui| {
                        close = title(ui, slot, pick, facts);
                        if !cx.can_edit() {
                            let p = Palette::of(ui);
                            ui.label(
                                egui::RichText::new("Another window is in control; this one only looks.").color(p.warn),
                            );
                        }
                        for variant in &slot.variants {
                            let row = Row::new(variant, slot, pick, &current);
                            self.variant(cx, ui, slot, pick, &row, &current);
                        }
                        footer(cx, ui);
                    });
            });
        close
    }

    fn variant(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut egui::Ui,
        slot: &SlotView,
        pick: &Pick,
        row: &Row<'_>,
        current: &[ChoiceView],
    ) {
        let p = Palette::of(ui);
        let able = row.refused.is_empty() && cx.can_edit();
        let on = row.used.0 > 0;
        let fill = if on {
            p.selected.gamma_multiply(0.55)
        } else {
            egui::Color32::TRANSPARENT
        };
        let frame = egui::Frame::new()
            .fill(fill)
            .corner_radius(theme::RADIUS)
            .inner_margin(egui::Margin::symmetric(8, 4));
        frame.show(ui, |ui| {
            ui.set_width(ui.available_width());
            let all = row.used.0 == row.used.1;
            let name = match (on, all) {
                (true, false) => format!("{}  ({} of {})", row.variant.name, row.used.0, row.used.1),
                _ => row.variant.name.clone(),
            };
            ui.spacing_mut().item_spacing.y = 1.0;
            let radio = ui.add_enabled(
                able,
                egui::RadioButton::new(on && all, egui::RichText::new(name).font(theme::mono())),
            );
            let label = format!("{} {}", slot.name, row.variant.name);
            let radio = radio.accessible_name(label);
            ui.indent("about", |ui| {
                let help = egui::RichText::new(&row.variant.help)
                    .font(theme::caption())
                    .color(p.secondary);
                ui.add(egui::Label::new(help).wrap());
                for (layers, reason) in &row.refused {
                    refusal(ui, slot, layers, reason);
                }
            });
            if radio.clicked() && !(on && all && row.variant.options.is_empty()) {
                let choice = ChoiceView {
                    variant: row.variant.name.clone(),
                    options: Vec::new(),
                };
                self.values.clear();
                self.drafts.clear();
                cx.edit_recipe(edits(slot, &pick.layers, &choice));
            }
            if able && (radio.hovered() || radio.has_focus()) && !(on && all) {
                let choice = ChoiceView {
                    variant: row.variant.name.clone(),
                    options: Vec::new(),
                };
                preview(cx, ui, slot, pick, &choice);
            }
            if on && !row.variant.options.is_empty() {
                self.options(cx, ui, slot, pick, row.variant, current);
            }
        });
    }

    /// The form of a variant's options; a change takes effect when it is let go.
    fn options(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut egui::Ui,
        slot: &SlotView,
        pick: &Pick,
        variant: &VariantView,
        current: &[ChoiceView],
    ) {
        let p = Palette::of(ui);
        let mut done = false;
        ui.indent("options", |ui| {
            for option in &variant.options {
                let in_force = value_in_force(variant, option, current);
                let key = (variant.name.clone(), option.name.clone());
                let default = option.kind.default();
                let shown = self.values.get(&key).cloned().or(in_force.clone());
                let mut value = shown.unwrap_or_else(|| default.clone());
                ui.add_space(theme::GRID);
                ui.horizontal(|ui| {
                    ui.label(egui::RichText::new(&option.name).font(theme::mono()))
                        .on_hover_text(&option.help);
                    if in_force.is_none() {
                        ui.label(egui::RichText::new("mixed").font(theme::caption()).color(p.warn));
                    }
                    ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                        let text = match &default {
                            d if *d == value => "default".to_string(),
                            OptionValue::Whole(d) => format!("default {}", fmt::count(*d)),
                            OptionValue::Heads(_) => "default none".to_string(),
                            OptionValue::Text(d) => format!("default {d}"),
                            d @ OptionValue::Decimal(_) => format!("default {d}"),
                        };
                        let back = ui.add_enabled(
                            value != default,
                            egui::Button::new(egui::RichText::new(text).font(theme::caption()))
                                .frame(false)
                                .small(),
                        );
                        if back
                            .accessible_name(format!("{} to its default", option.name))
                            .clicked()
                        {
                            value = default.clone();
                            self.values.insert(key.clone(), value.clone());
                            self.drafts.remove(&key);
                            done = true;
                        }
                    });
                });
                done |= match (&option.kind, &value) {
                    (OptionKind::Whole { min, max, .. }, OptionValue::Whole(v)) => {
                        self.slider(cx, ui, option, key, (*min, *max), *v)
                    }
                    _ => self.field(cx, ui, option, key, &value),
                };
                ui.add(
                    egui::Label::new(egui::RichText::new(&option.help).font(theme::caption()).color(p.faint)).wrap(),
                );
            }
        });
        if done {
            let options = variant.options.iter().filter_map(|o| {
                let key = (variant.name.clone(), o.name.clone());
                let value = self
                    .values
                    .get(&key)
                    .cloned()
                    .or_else(|| value_in_force(variant, o, current))?;
                (value != o.kind.default()).then(|| OptionChoice {
                    name: o.name.clone(),
                    value,
                })
            });
            let choice = ChoiceView {
                variant: variant.name.clone(),
                options: options.collect(),
            };
            if current.iter().any(|c| *c != choice) {
                cx.edit_recipe(edits(slot, &pick.layers, &choice));
            }
            self.values.clear();
        }
    }

    /// A whole number. True when a change is complete.
    fn slider(
        &mut self,
        cx: &Context<'_>,
        ui: &mut egui::Ui,
        option: &OptionView,
        key: (String, String),
        (min, max): (u64, u64),
        mut value: u64,
    ) -> bool {
        let far = max.saturating_sub(min) > 256;
        let slider = egui::Slider::new(&mut value, min..=max).logarithmic(far && min > 0);
        ui.spacing_mut().slider_width = (ui.available_width() - 72.0).max(60.0);
        let response = ui.add_enabled(cx.can_edit(), slider).accessible_name(&option.name);
        if response.changed() {
            self.values.insert(key, OptionValue::Whole(value));
        }
        // Typing ends by leaving the field, dragging by letting go.
        response.drag_stopped() || (response.lost_focus() && !self.values.is_empty())
    }

    /// Everything that is typed: numbers with a fraction, lists of heads, text. True when a change is complete: the
    /// field was left with something in it that is accepted.
    fn field(
        &mut self,
        cx: &Context<'_>,
        ui: &mut egui::Ui,
        option: &OptionView,
        key: (String, String),
        value: &OptionValue,
    ) -> bool {
        let p = Palette::of(ui);
        let plain = match value {
            OptionValue::Text(text) => text.clone(),
            other => other.to_string(),
        };
        let mut text = self.drafts.get(&key).cloned().unwrap_or_else(|| plain.clone());
        let hint = match &option.kind {
            OptionKind::Heads => "none; for example 0,5-7",
            _ => "",
        };
        let edit = egui::TextEdit::singleline(&mut text)
            .font(theme::mono())
            .hint_text(hint)
            .desired_width(f32::INFINITY);
        let response = ui.add_enabled(cx.can_edit(), edit).accessible_name(&option.name);
        if response.changed() {
            self.drafts.insert(key.clone(), text.clone());
        }
        let typed = typed(&option.kind, &text);
        if let Err(accepted) = &typed {
            let label = egui::RichText::new(format!("accepted: {accepted}"));
            ui.add(egui::Label::new(label.font(theme::caption()).color(p.warn)).wrap());
        }
        match typed {
            Ok(new) if response.lost_focus() => {
                self.drafts.remove(&key);
                let changed = new != *value;
                if changed {
                    self.values.insert(key, new);
                }
                changed
            }
            _ => false,
        }
    }
}

impl<'a> Row<'a> {
    fn new(variant: &'a VariantView, slot: &SlotView, pick: &Pick, current: &[ChoiceView]) -> Self {
        let used = current.iter().filter(|c| c.variant == variant.name).count();
        let mut by_reason: Vec<(&str, BTreeSet<u32>)> = Vec::new();
        for refusal in &variant.refused {
            if slot.per_layer && !pick.layers.contains(&refusal.layer) {
                continue;
            }
            match by_reason.iter_mut().find(|(reason, _)| *reason == refusal.reason) {
                Some((_, layers)) => {
                    layers.insert(refusal.layer);
                }
                None => by_reason.push((&refusal.reason, BTreeSet::from([refusal.layer]))),
            }
        }
        let refused = by_reason
            .into_iter()
            .map(|(reason, layers)| (layers_text(layers), reason.to_string()))
            .collect();
        Self {
            variant,
            used: (used, current.len()),
            refused,
        }
    }
}

/// The choices of the chosen cells.
fn choices(recipe: &RecipeView, slot: &SlotView, pick: &Pick) -> Vec<ChoiceView> {
    if slot.per_layer {
        pick.layers
            .iter()
            .filter_map(|l| pick::choice_of(recipe, &slot.name, *l))
            .cloned()
            .collect()
    } else {
        pick::model_choice(recipe, &slot.name).into_iter().cloned().collect()
    }
}

/// The value all chosen cells with this variant share; `None` if they differ.
fn value_in_force(variant: &VariantView, option: &OptionView, current: &[ChoiceView]) -> Option<OptionValue> {
    let value = |c: &ChoiceView| {
        let given = c.options.iter().find(|o| o.name == option.name);
        given.map_or_else(|| option.kind.default(), |o| o.value.clone())
    };
    let mut values = current.iter().filter(|c| c.variant == variant.name).map(value);
    let first = values.next()?;
    values.all(|v| v == first).then_some(first)
}

fn title(ui: &mut egui::Ui, slot: &SlotView, pick: &Pick, facts: &[LayerFactsView]) -> bool {
    let p = Palette::of(ui);
    let mut close = false;
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 2.0 * theme::GRID;
        ui.label(egui::RichText::new(&slot.name).font(theme::strong()));
        let place = match (slot.per_layer, pick.layers.len()) {
            (false, _) => "whole model".to_string(),
            (true, 1) => format!("layer {}", layers_text(pick.layers.iter().copied())),
            (true, _) => format!("layers {}", layers_text(pick.layers.iter().copied())),
        };
        ui.label(egui::RichText::new(place).color(p.secondary));
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let x = egui::Button::new(egui::RichText::new(icons::X).color(p.faint))
                .frame(false)
                .small();
            close = ui.add(x).accessible_name("Close the editor").clicked();
        });
    });
    let kinds: BTreeSet<&str> = pick
        .layers
        .iter()
        .filter_map(|l| facts.get(*l as usize))
        .map(|f| f.attention_name.as_str())
        .collect();
    if !kinds.is_empty() && kinds.len() <= 3 {
        let text = kinds.into_iter().collect::<Vec<_>>().join(", ");
        ui.add(egui::Label::new(egui::RichText::new(text).font(theme::caption()).color(p.faint)).wrap());
    }
    ui.add_space(theme::GRID);
    close
}

fn refusal(ui: &mut egui::Ui, slot: &SlotView, layers: &str, reason: &str) {
    let p = Palette::of(ui);
    let mut job = egui::text::LayoutJob::default();
    let format = |color| egui::TextFormat {
        font_id: theme::caption(),
        color,
        ..Default::default()
    };
    job.append(&format!("{} ", icons::PROHIBIT), 0.0, format(p.warn));
    if slot.per_layer {
        let plural = if layers.contains(['–', ',']) {
            "layers"
        } else {
            "layer"
        };
        job.append(&format!("{plural} {layers}: "), 0.0, format(p.text));
    }
    job.append(reason, 0.0, format(p.warn));
    ui.add(egui::Label::new(job).wrap());
}

/// What the choice would do to the cache.
fn preview(cx: &mut Context<'_>, ui: &mut egui::Ui, slot: &SlotView, pick: &Pick, choice: &ChoiceView) {
    if !slot.name.ends_with("cache") && slot.name != "attention" {
        return;
    }
    let query = Query::preview(edits(slot, &pick.layers, choice));
    let Some(fits) = cx.fetch(&query).value() else { return };
    let [now, then] = fits.fits.as_slice() else { return };
    let context = cx.store.state.as_ref().map_or(0, |s| s.position).max(1) as f64;
    let at = |fit: &protocol::KvFit| fit.fixed + fit.slope * context;
    let (before, after) = (at(now), at(then));
    let p = Palette::of(ui);
    let mut job = egui::text::LayoutJob::default();
    let format = |color| egui::TextFormat {
        font_id: theme::mono_caption(),
        color,
        ..Default::default()
    };
    let difference = fmt::signed_bytes((after - before) as i64);
    let ink = if after > before {
        p.warn
    } else if after < before {
        p.good
    } else {
        p.secondary
    };
    job.append(
        &format!(
            "KV cache {} → {}  ",
            fmt::bytes(before as u64).plain(),
            fmt::bytes(after as u64).plain()
        ),
        0.0,
        format(p.secondary),
    );
    job.append(&difference.plain(), 0.0, format(ink));
    job.append(
        &format!("  est. at {} tokens", fmt::count(context as u64)),
        0.0,
        format(p.faint),
    );
    ui.indent("preview", |ui| ui.add(egui::Label::new(job).wrap()));
}

fn footer(cx: &Context<'_>, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    ui.add_space(2.0 * theme::GRID);
    let text = if cx.store.writing().is_some() {
        "A change takes effect from the next token on."
    } else {
        "A change takes effect from the next token on; undo takes it back."
    };
    ui.add(egui::Label::new(egui::RichText::new(text).font(theme::caption()).color(p.faint)).wrap());
}
