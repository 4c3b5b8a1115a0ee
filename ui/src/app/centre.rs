//! The centre: tiles.

use egui_tiles::{SimplificationOptions, TileId, Tiles, UiResponse};

use super::{App, Views};
use crate::theme::{self, Palette};
use crate::views::Context;

pub(super) fn show(app: &mut App, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    egui::CentralPanel::no_frame()
        .frame(egui::Frame::new().fill(p.line))
        .show(ui, |ui| {
            let now = app.store.now;
            let (views, layout, cx) = app.parts(now);
            let mut behavior = Behavior { views, cx };
            layout.tree_mut().ui(&mut behavior, ui);
        });
}

struct Behavior<'a, 'b> {
    views: &'a mut Views,
    cx: Context<'b>,
}

impl egui_tiles::Behavior<String> for Behavior<'_, '_> {
    fn pane_ui(&mut self, ui: &mut egui::Ui, _tile: TileId, pane: &mut String) -> UiResponse {
        let p = Palette::of(ui);
        ui.painter().rect_filled(ui.max_rect(), 0.0, p.panel);
        let mut response = UiResponse::None;
        if let Some(view) = self.views.get_mut(pane.as_str()) {
            let title = egui::RichText::new(view.title()).font(theme::strong());
            ui.horizontal(|ui| {
                ui.add_space(theme::PAD);
                let handle = ui.add(egui::Label::new(title).sense(egui::Sense::drag()));
                if handle.drag_started() {
                    response = UiResponse::DragStarted;
                }
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    ui.add_space(theme::PAD);
                    view.toolbar(&mut self.cx, ui);
                });
            });
            view.ui(&mut self.cx, ui);
        }
        response
    }

    fn tab_title_for_pane(&mut self, pane: &String) -> egui::WidgetText {
        self.views.get(pane.as_str()).map_or("", |v| v.title()).into()
    }

    fn retain_pane(&mut self, pane: &String) -> bool {
        self.views.contains_key(pane.as_str())
    }

    fn gap_width(&self, _style: &egui::Style) -> f32 {
        theme::LINE
    }

    fn simplification_options(&self) -> SimplificationOptions {
        SimplificationOptions {
            all_panes_must_have_tabs: false,
            ..Default::default()
        }
    }

    fn tab_title_for_tile(&mut self, tiles: &Tiles<String>, tile: TileId) -> egui::WidgetText {
        match tiles.get(tile) {
            Some(egui_tiles::Tile::Pane(pane)) => self.tab_title_for_pane(pane),
            _ => "Group".into(),
        }
    }
}
