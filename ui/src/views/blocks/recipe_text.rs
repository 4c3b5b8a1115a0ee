//! The recipe as JSON: to read, to edit, to paste one that was saved.

use protocol::RecipeView;

use crate::theme::{self, Palette};
use crate::views::Context;

/// The text field.
#[derive(Debug)]
pub(super) struct RecipeText {
    text: String,
    /// Hash of the recipe that was in force when another one was asked for.
    asked: Option<String>,
}

impl RecipeText {
    /// Starts with the recipe in force.
    pub fn new(recipe: &RecipeView) -> Self {
        Self {
            text: recipe.json.clone(),
            asked: None,
        }
    }

    /// Shows it. True when it is done with.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) -> bool {
        let p = Palette::of(ui);
        let mut done = false;
        egui::Frame::new().inner_margin(theme::PAD).show(ui, |ui| {
            let about = "Paste a saved recipe over this text, or edit it. The short form works too: {\"schema\":1,\"set\":{\"layers.3-6.kv_cache\":\"bf16\"}} changes the checkpoint's own recipe.";
            ui.add(egui::Label::new(egui::RichText::new(about).font(theme::caption()).color(p.secondary)).wrap());
            ui.add_space(theme::GRID);
            // A refusal is said at the bottom of the window; the text stays for another try.
            let hash = cx.store.recipe().map(|r| r.hash.clone());
            done = self.asked.is_some() && self.asked != hash;
            let height = (ui.available_height() - 48.0).max(80.0);
            egui::ScrollArea::vertical().max_height(height).auto_shrink([false, true]).show(ui, |ui| {
                let edit = egui::TextEdit::multiline(&mut self.text)
                    .code_editor()
                    .font(theme::mono())
                    .desired_width(f32::INFINITY)
                    .desired_rows(8);
                ui.add(edit).accessible_name("Recipe as JSON");
            });
            ui.add_space(theme::GRID);
            ui.horizontal(|ui| {
                let checked = serde_json::from_str::<serde_json::Value>(&self.text);
                let able = checked.is_ok() && cx.can_edit();
                if ui.add_enabled(able, egui::Button::new("Put in force")).clicked() {
                    self.asked = hash;
                    cx.set_recipe(self.text.clone());
                }
                if ui.button("Cancel").clicked() {
                    done = true;
                }
                if let Err(e) = checked {
                    let text = format!("not JSON: {e}");
                    ui.add(egui::Label::new(egui::RichText::new(text).font(theme::caption()).color(p.warn)).truncate());
                }
            });
        });
        done
    }
}
