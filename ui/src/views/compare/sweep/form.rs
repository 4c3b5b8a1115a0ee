//! What is swept: axes as text with what could follow, presets, layers alone, a budget.

use egui::{RichText, Ui};
use protocol::SlotView;

use super::axis::{self, Parsed};
use crate::fmt;
use crate::icons;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls;

/// Most axes: every one multiplies the number of recipes.
const MOST_AXES: usize = 8;
/// Most recipes of one sweep, as the engine has it.
const MOST_RECIPES: usize = 4096;

/// See the module.
#[derive(Clone, Debug)]
pub struct Form {
    /// Axes as typed; `None` = the first offer has not been made.
    axes: Option<Vec<String>>,
    /// The axis that is being written.
    current: usize,
    /// Also every preset.
    pub presets: bool,
    /// Also every choice in one layer alone.
    pub per_layer: bool,
    /// Look for the cheapest recipe within the budget.
    pub recommend: bool,
    /// Budget, mean KL in nats.
    pub budget: f64,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            axes: None,
            current: 0,
            presets: false,
            per_layer: true,
            recommend: true,
            budget: 0.01,
        }
    }
}

impl Form {
    /// The axes that will be swept, each as the command writes it.
    ///
    /// # Errors
    /// Which axis is wrong and how.
    pub fn axes(&self, slots: &[SlotView], layers: u32) -> Result<Vec<(String, Parsed)>, String> {
        let typed = self.axes.iter().flatten().filter(|t| !t.trim().is_empty());
        let read = |text: &String| match axis::parse(text, slots, layers) {
            Ok(parsed) => {
                let selector = text.split_once('=').map_or("", |(s, _)| s.trim());
                Ok((format!("{selector}={}", parsed.choices.join(",")), parsed))
            }
            Err(e) => Err(format!("{}: {e}", text.trim())),
        };
        let axes = typed.map(read).collect::<Result<Vec<_>, _>>()?;
        if axes.is_empty() && !self.presets {
            return Err("name a slot and its choices, or switch the presets on".into());
        }
        let combinations = axes.iter().try_fold(1usize, |n, (_, x)| n.checked_mul(x.choices.len()));
        match combinations {
            Some(n) if n <= MOST_RECIPES => Ok(axes),
            _ => Err(format!("these are too many combinations; {MOST_RECIPES} are accepted")),
        }
    }

    /// The budget, where a recommendation is wanted and can be made.
    pub fn budget(&self, axes: usize) -> Option<f64> {
        (self.recommend && axes > 0).then_some(self.budget)
    }

    /// Draws it.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let slots = cx.store.model().map_or(&[][..], |m| m.slots.as_slice());
        let layers = cx.store.facts().map_or(0, |f| f.layers.len() as u32);
        let axes = self.axes.get_or_insert_with(|| first(slots));
        let mut gone = None;
        let count = axes.len();
        for (i, text) in axes.iter_mut().enumerate() {
            ui.horizontal(|ui| {
                ui.set_min_height(28.0);
                let p = Palette::of(ui);
                let said = axis::parse(text, slots, layers);
                let width = (ui.available_width() - 260.0).clamp(160.0, 560.0);
                let edit = egui::TextEdit::singleline(text)
                    .desired_width(width)
                    .font(theme::mono())
                    .char_limit(400)
                    .hint_text("layers.*.kv_cache=bf16,fp8_b64");
                let field = ui.add(edit).accessible_name(format!("Axis {}", i + 1));
                if field.has_focus() {
                    self.current = i;
                }
                if count > 1 && controls::icon_button(ui, icons::X, &format!("Remove axis {}", i + 1)).clicked() {
                    gone = Some(i);
                }
                match said {
                    _ if text.trim().is_empty() => {}
                    Ok(parsed) => {
                        let words = what(&parsed);
                        ui.label(RichText::new(words).font(theme::caption()).color(p.secondary));
                    }
                    Err(e) => {
                        ui.add(egui::Label::new(RichText::new(&e).font(theme::caption()).color(p.warn)).truncate())
                            .on_hover_text(&e);
                    }
                }
            });
        }
        if let Some(i) = gone {
            axes.remove(i);
        }
        self.current = self.current.min(axes.len().saturating_sub(1));
        let current = self.current;
        ui.horizontal_wrapped(|ui| {
            let p = Palette::of(ui);
            ui.spacing_mut().item_spacing = egui::vec2(theme::GRID, theme::GRID);
            if let Some(text) = axes.get_mut(current) {
                for (shown, whole) in axis::completions(text, slots, layers).into_iter().take(12) {
                    let chip = controls::chip(ui, icons::PLUS, &shown, p.secondary);
                    if chip.on_hover_text(&whole).clicked() {
                        *text = whole;
                    }
                }
            }
            let more = axes.len() < MOST_AXES && controls::link(ui, "another axis").clicked();
            if more {
                axes.push(String::new());
                self.current = axes.len() - 1;
            }
        });
        self.switches(ui);
    }

    fn switches(&mut self, ui: &mut Ui) {
        ui.horizontal_wrapped(|ui| {
            ui.spacing_mut().item_spacing.x = 2.0 * theme::GRID;
            let named = |ui: &mut Ui, on: &mut bool, name: &str, about: &str| {
                let p = Palette::of(ui);
                let text = ui.painter().layout_no_wrap(name.into(), theme::body(), p.secondary);
                ui.allocate_ui(egui::vec2(text.size().x + 44.0, 28.0), |ui| {
                    ui.horizontal(|ui| {
                        ui.set_min_height(28.0);
                        controls::switch(ui, on, name);
                        let label = egui::Label::new(RichText::new(name).color(p.secondary)).extend();
                        ui.add(label).on_hover_text(about);
                    });
                });
            };
            let about = "Every named recipe that fits the model.";
            named(ui, &mut self.presets, "presets too", about);
            let about = "Every choice in one layer alone: which layers take it.";
            named(ui, &mut self.per_layer, "layer by layer", about);
            let about = "Looks for the recipe that moves the fewest bytes per step with a mean KL within the budget, and \
                         measures it as a whole. Tries every choice in one layer alone.";
            named(ui, &mut self.recommend, "recommend within", about);
            let drag = egui::DragValue::new(&mut self.budget)
                .range(0.0..=10.0)
                .speed(0.0005)
                .max_decimals(5)
                .suffix(" nats");
            ui.add_enabled(self.recommend, drag)
                .on_hover_text("Largest mean KL(A||recipe).")
                .accessible_name("Budget");
        });
    }
}

/// What an axis makes, in words.
fn what(axis: &Parsed) -> String {
    let n = |n: usize, one: &str| format!("{} {one}{}", fmt::count(n as u64), if n == 1 { "" } else { "s" });
    let choices = n(axis.choices.len(), "choice");
    if axis.layers.is_empty() {
        choices
    } else {
        format!("{choices}, {}", n(axis.layers.len(), "layer"))
    }
}

/// The first offer: every storage of the cache in all layers, and of the output layer.
fn first(slots: &[SlotView]) -> Vec<String> {
    let wanted = ["kv_cache", "weights.lm_head"];
    let offer = |slot: &SlotView| {
        let begin = format!("{}=", axis::selector_of(slot));
        let takes = |v: &&protocol::VariantView| {
            let refused = v.refused.len();
            refused == 0 || (slot.per_layer && refused < slot.layers.len())
        };
        let names: Vec<&str> = slot.variants.iter().filter(takes).map(|v| v.name.as_str()).collect();
        begin + &names.join(",")
    };
    let found = wanted.iter().filter_map(|w| axis::open(slots).find(|s| s.name == *w));
    let all: Vec<String> = found.map(offer).collect();
    if all.is_empty() {
        axis::open(slots).next().map(offer).into_iter().collect()
    } else {
        all
    }
}
