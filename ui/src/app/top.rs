//! The top bar.

use super::App;
use crate::layout::Workspace;
use crate::theme::{self, Palette};

pub(super) fn show(app: &mut App, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new()
        .fill(p.panel)
        .inner_margin(egui::Margin::symmetric(12, 6));
    egui::Panel::top("top").frame(frame).show(ui, |ui| {
        ui.horizontal(|ui| {
            for workspace in Workspace::ALL {
                let text = egui::RichText::new(workspace.title()).font(theme::body());
                if ui.selectable_label(app.layout.workspace == workspace, text).clicked() {
                    app.layout.workspace = workspace;
                }
            }
            if let Some(model) = app.store.model() {
                ui.label(egui::RichText::new(&model.name).color(p.secondary));
            }
        });
    });
}
