//! Left and right regions.

use super::App;
use crate::layout::{LEFT, RIGHT};
use crate::theme::{self, Palette};

pub(super) fn left(app: &mut App, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new().fill(p.panel);
    egui::Panel::left("left")
        .frame(frame)
        .default_size(260.0)
        .min_size(160.0)
        .show(ui, |ui| {
            let now = app.store.now;
            let (views, layout, mut cx) = app.parts(now);
            ui.horizontal(|ui| {
                ui.add_space(theme::PAD);
                for id in LEFT {
                    if let Some(view) = views.get(id)
                        && ui.selectable_label(layout.left_tab == id, view.title()).clicked()
                    {
                        layout.left_tab = id.to_string();
                    }
                }
            });
            if let Some(view) = views.get_mut(layout.left_tab.as_str()) {
                view.ui(&mut cx, ui);
            }
        });
}

pub(super) fn right(app: &mut App, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new().fill(p.panel);
    egui::Panel::right("right")
        .frame(frame)
        .default_size(280.0)
        .min_size(200.0)
        .show(ui, |ui| {
            let now = app.store.now;
            let (views, _, mut cx) = app.parts(now);
            if let Some(view) = views.get_mut(RIGHT) {
                view.ui(&mut cx, ui);
            }
        });
}
