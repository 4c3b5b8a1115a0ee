//! The bottom region: a time line over the tokens of the shown text.

use super::App;
use crate::fmt;
use crate::selection::Spot;
use crate::theme::{self, Palette};

/// State of the scrubber.
#[derive(Debug, Default)]
pub(super) struct Scrubber {}

pub(super) fn show(app: &mut App, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new()
        .fill(p.panel)
        .inner_margin(egui::Margin::symmetric(12, 6));
    egui::Panel::bottom("bottom")
        .frame(frame)
        .resizable(false)
        .show(ui, |ui| {
            let Scrubber {} = app.scrubber;
            let span = app.store.text.as_ref().and_then(|t| t.span());
            ui.horizontal(|ui| match span {
                None => {
                    ui.label(egui::RichText::new("Tokens appear here as they are written").color(p.faint));
                }
                Some((first, last)) => {
                    let mut at = app.selection.shown().token.unwrap_or(last).clamp(first, last);
                    let slider = egui::Slider::new(&mut at, first..=last).show_value(false);
                    let response = ui.add(slider).accessible_name("Token");
                    if response.changed() {
                        app.selection.lock(Spot::token(at));
                    }
                    let text = format!("token {} / {}", fmt::count(at), fmt::count(last));
                    ui.label(egui::RichText::new(text).font(theme::mono()).color(p.secondary));
                }
            });
        });
}
