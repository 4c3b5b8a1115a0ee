//! The blocks panel: which variant sits in each slot of each layer. A click changes it from the next token on.

mod editor;
mod grid;
pub mod pick;
mod recipe_text;

use protocol::{Edit, OptionValue, Preset, Request, SlotView};

use super::{Action, Context, View, empty};
use crate::commands::Command;
use crate::fmt;
use crate::icons;
use crate::store::Query;
use crate::theme::{self, Palette};
pub use grid::kind_word;
use pick::Pick;

/// The panel.
pub fn views() -> Vec<Box<dyn View>> {
    vec![Box::<Blocks>::default()]
}

/// Width from which grid and editor stand side by side.
const WIDE: f32 = 620.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Blocks {
    pick: Pick,
    dragging: bool,
    editor: editor::Editor,
    text: Option<recipe_text::RecipeText>,
}

impl View for Blocks {
    fn id(&self) -> &'static str {
        "blocks"
    }

    fn title(&self) -> &'static str {
        "Blocks"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let Some(recipe) = cx.store.recipe() else { return };
        self.file_menu(cx, ui);
        presets(cx, ui);
        for (icon, name, command) in [
            (icons::ARROW_U_UP_RIGHT, "Redo", Command::Redo),
            (icons::ARROW_U_UP_LEFT, "Undo", Command::Undo),
        ] {
            if small_icon(ui, icon, name).clicked() {
                cx.act(Action::Run(command));
            }
        }
        let changes = recipe.changes.len();
        let text = match changes {
            0 => "checkpoint's own".to_string(),
            1 => "1 change".to_string(),
            n => format!("{} changes", fmt::count(n as u64)),
        };
        crate::widgets::plots::remark(ui, &text);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let store = cx.store;
        let (Some(model), Some(recipe)) = (store.model(), store.recipe()) else {
            empty(
                ui,
                icons::STACK,
                "The slots of each layer appear here once a model is loaded.",
                None,
            );
            return;
        };
        self.pick.fit(&model.slots);
        converted(cx, ui, &recipe.converted_at);
        if let Some(text) = &mut self.text {
            if text.show(cx, ui) {
                self.text = None;
            }
            return;
        }
        let wide = ui.available_width() >= WIDE;
        let room = ui.available_size();
        let grid = |this: &mut Self, cx: &mut Context<'_>, ui: &mut egui::Ui| {
            grid::show(cx, ui, model, recipe, &mut this.pick, &mut this.dragging);
        };
        if self.pick.slot.is_none() {
            grid(self, cx, ui);
            return;
        }
        let slot = self
            .pick
            .slot
            .as_ref()
            .and_then(|name| model.slots.iter().find(|s| s.name == *name));
        if wide {
            ui.horizontal_top(|ui| {
                ui.spacing_mut().item_spacing.x = 0.0;
                let left = (room.x * 0.55).max(room.x - 420.0);
                // Columns: what stands in them must not inherit the row's direction (indents panic in a row).
                let column = egui::Layout::top_down(egui::Align::Min);
                ui.allocate_ui_with_layout(egui::vec2(left, room.y), column, |ui| grid(self, cx, ui));
                divide(ui, true);
                if let Some(slot) = slot {
                    ui.allocate_ui_with_layout(ui.available_size(), column, |ui| self.edit(cx, ui, slot));
                }
            });
        } else {
            let top = (room.y * 0.5).clamp(72.0, 40.0 + 23.0 * (recipe.layers.len() + 4) as f32);
            ui.allocate_ui(egui::vec2(room.x, top), |ui| {
                ui.set_min_height(top);
                grid(self, cx, ui);
            });
            divide(ui, false);
            if let Some(slot) = slot {
                self.edit(cx, ui, slot);
            }
        }
    }
}

impl Blocks {
    fn edit(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, slot: &SlotView) {
        if self.editor.show(cx, ui, slot, &self.pick) {
            self.pick = Pick::default();
        }
    }

    fn file_menu(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let Some(recipe) = cx.store.recipe() else { return };
        let button = small_menu(ui, icons::DOTS_THREE_VERTICAL);
        let menu = button.ui(ui, |ui| {
            let item = |ui: &mut egui::Ui, icon: &str, text: &str, on: bool| {
                ui.add_enabled(on, egui::Button::new(format!("{icon}  {text}")))
                    .clicked()
            };
            if item(ui, icons::FLOPPY_DISK, "Save recipe…", true) {
                let name = format!("recipe-{}.json", recipe.hash.chars().take(8).collect::<String>());
                cx.act(Action::Save(name, recipe.json.clone().into_bytes()));
            }
            if item(ui, icons::FOLDER_OPEN, "Load or edit as JSON…", true) {
                self.text = Some(recipe_text::RecipeText::new(recipe));
            }
            if item(ui, icons::COPY, "Copy as JSON", true) {
                cx.act(Action::Copy(recipe.json.clone()));
            }
            if item(
                ui,
                icons::TERMINAL_WINDOW,
                "Copy as --set arguments",
                !recipe.changes.is_empty(),
            ) {
                let words = recipe.changes.iter().map(|c| format!("--set {c}"));
                cx.act(Action::Copy(words.collect::<Vec<_>>().join(" ")));
            }
            ui.separator();
            if item(
                ui,
                icons::ARROW_COUNTER_CLOCKWISE,
                "Back to the checkpoint's own",
                cx.can_edit() && !recipe.changes.is_empty(),
            ) {
                cx.set_recipe(short_form(&[]));
            }
        });
        menu.0.accessible_name("Recipe menu");
    }
}

/// Edits on the checkpoint's own recipe, in the short JSON form.
pub fn short_form(edits: &[Edit]) -> String {
    let mut set = serde_json::Map::new();
    for edit in edits {
        let options: serde_json::Map<String, serde_json::Value> = edit
            .choice
            .options
            .iter()
            .map(|o| (o.name.clone(), json_of(&o.value)))
            .collect();
        let choice = if options.is_empty() {
            serde_json::Value::from(edit.choice.variant.clone())
        } else {
            serde_json::json!({ edit.choice.variant.clone(): options })
        };
        set.insert(edit.selector.clone(), choice);
    }
    serde_json::json!({ "schema": 1, "set": set }).to_string()
}

fn json_of(value: &OptionValue) -> serde_json::Value {
    match value {
        OptionValue::Whole(v) => (*v).into(),
        OptionValue::Decimal(v) => v.0.into(),
        OptionValue::Heads(v) => v.clone().into(),
        OptionValue::Text(v) => v.clone().into(),
    }
}

fn presets(cx: &mut Context<'_>, ui: &mut egui::Ui) {
    let presets: &[Preset] = cx.fetch(&Query::presets()).value().map_or(&[], Vec::as_slice);
    let p = Palette::of(ui);
    let text = egui::RichText::new(format!("presets {}", icons::CARET_DOWN))
        .font(theme::caption())
        .color(p.secondary);
    let menu =
        egui::containers::menu::MenuButton::from_button(egui::Button::new(text).frame(false).small()).ui(ui, |ui| {
            ui.set_min_width(240.0);
            if presets.is_empty() {
                ui.label(egui::RichText::new("none for this model").color(p.faint));
            }
            for preset in presets {
                let on = preset.refused.is_empty() && cx.can_edit();
                let about = if preset.refused.is_empty() {
                    &preset.help
                } else {
                    &preset.refused
                };
                let button = egui::Button::new(&preset.name);
                let response = ui.add_enabled(on, button);
                let clicked = response.clicked();
                response.on_hover_text(about).on_disabled_hover_text(about);
                let ink = if preset.refused.is_empty() { p.faint } else { p.warn };
                ui.add(egui::Label::new(egui::RichText::new(about).font(theme::caption()).color(ink)).wrap());
                if clicked {
                    cx.set_recipe(short_form(&preset.edits));
                }
            }
        });
    menu.0.accessible_name("Presets");
}

/// Says that rows of the running text were converted, and offers to process the text anew.
fn converted(cx: &mut Context<'_>, ui: &mut egui::Ui, at: &[u64]) {
    let Some(first) = at.first() else { return };
    let p = Palette::of(ui);
    egui::Frame::new()
        .fill(theme::mix(p.panel, p.warn, 0.10))
        .inner_margin(egui::Margin::symmetric(12, 6))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            let where_ = match at.len() {
                1 => format!("at token {}", fmt::count(*first)),
                n => format!("{} times, first at token {}", fmt::count(n as u64), fmt::count(*first)),
            };
            ui.horizontal_wrapped(|ui| {
                ui.label(egui::RichText::new(icons::ARROWS_CLOCKWISE).color(p.warn));
                ui.label(egui::RichText::new("converted").font(theme::strong()).color(p.warn));
                let text = format!("Cache rows were converted {where_}. They carry the rounding of the format they were written in; such text never enters a report.");
                ui.label(egui::RichText::new(text).font(theme::caption()).color(p.secondary));
                let replay = ui.add_enabled(cx.can_edit(), egui::Button::new("Replay the text").small());
                if replay.on_hover_text("Process every token of the text anew under the recipe in force.").clicked() {
                    cx.send(Request::ReplayText);
                }
            });
        });
}

fn divide(ui: &mut egui::Ui, upright: bool) {
    let p = Palette::of(ui);
    let size = if upright {
        egui::vec2(theme::LINE, ui.available_height())
    } else {
        egui::vec2(ui.available_width(), theme::LINE)
    };
    let (rect, _) = ui.allocate_exact_size(size, egui::Sense::hover());
    ui.painter().rect_filled(rect, 0.0, p.line);
}

fn small_icon(ui: &mut egui::Ui, icon: &str, name: &str) -> egui::Response {
    let p = Palette::of(ui);
    let text = egui::RichText::new(icon).size(theme::BODY).color(p.secondary);
    ui.add(egui::Button::new(text).frame(false).small())
        .on_hover_text(name)
        .accessible_name(name)
}

fn small_menu<'a>(ui: &egui::Ui, icon: &str) -> egui::containers::menu::MenuButton<'a> {
    let p = Palette::of(ui);
    let text = egui::RichText::new(icon).size(theme::BODY).color(p.secondary);
    egui::containers::menu::MenuButton::from_button(egui::Button::new(text).frame(false).small())
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{ChoiceView, OptionChoice};

    #[test]
    fn presets_are_written_in_the_short_form() {
        assert_eq!(short_form(&[]), r#"{"schema":1,"set":{}}"#);
        let window = ChoiceView {
            variant: "sliding_window".into(),
            options: vec![OptionChoice {
                name: "w".into(),
                value: OptionValue::Whole(64),
            }],
        };
        let edits = [
            Edit {
                selector: "layers.*.kv_cache".into(),
                choice: ChoiceView {
                    variant: "bf16".into(),
                    options: vec![],
                },
            },
            Edit {
                selector: "layers.0-2.attention".into(),
                choice: window,
            },
        ];
        assert_eq!(
            short_form(&edits),
            r#"{"schema":1,"set":{"layers.*.kv_cache":"bf16","layers.0-2.attention":{"sliding_window":{"w":64}}}}"#
        );
    }
}
