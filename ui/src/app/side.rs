//! Left and right regions.

use egui::{Sense, Ui, WidgetInfo, vec2};

use super::App;
use crate::layout::{LEFT, RIGHT};
use crate::theme::{self, Palette};
use crate::widgets::controls;

/// Height of title rows.
pub(super) const TITLE: f32 = 32.0;

pub(super) fn left(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new().fill(p.panel);
    let panel = egui::Panel::left("left")
        .frame(frame)
        .default_size(264.0)
        .size_range(180.0..=560.0);
    let response = panel.show(ui, |ui| left_content(app, ui));
    app.anchors.insert("left", response.response.rect);
}

pub(super) fn left_content(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.painter().rect_filled(ui.max_rect(), 0, p.panel);
    let (views, layout, mut cx) = app.parts();
    if !views.contains_key(layout.left_tab.as_str())
        && let Some(first) = LEFT.iter().find(|id| views.contains_key(*id))
    {
        layout.left_tab = (*first).to_string();
    }
    let row = egui::Layout::left_to_right(egui::Align::Center);
    ui.allocate_ui_with_layout(vec2(ui.available_width(), TITLE), row, |ui| {
        ui.set_min_height(TITLE);
        ui.spacing_mut().item_spacing.x = 0.0;
        ui.add_space(theme::PAD - 8.0);
        for id in LEFT {
            if let Some(slot) = views.get(id)
                && title_tab(ui, slot.view.title(), layout.left_tab == id)
            {
                layout.left_tab = id.to_string();
            }
        }
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            ui.add_space(4.0);
            if let Some(slot) = views.get_mut(layout.left_tab.as_str()) {
                slot.view.toolbar(&mut cx, ui);
            }
        });
    });
    hairline(ui);
    if let Some(slot) = views.get_mut(layout.left_tab.as_str()) {
        slot.show(&mut cx, ui);
    }
}

pub(super) fn right(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new().fill(p.panel);
    let panel = egui::Panel::right("right")
        .frame(frame)
        .default_size(288.0)
        .size_range(200.0..=480.0);
    let response = panel.show(ui, |ui| right_content(app, ui));
    app.anchors.insert("right", response.response.rect);
}

pub(super) fn right_content(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.painter().rect_filled(ui.max_rect(), 0, p.panel);
    let (views, _, mut cx) = app.parts();
    let Some(slot) = views.get_mut(RIGHT) else { return };
    let row = egui::Layout::left_to_right(egui::Align::Center);
    ui.allocate_ui_with_layout(vec2(ui.available_width(), TITLE), row, |ui| {
        ui.set_min_height(TITLE);
        ui.add_space(theme::PAD);
        ui.label(egui::RichText::new(slot.view.title()).font(theme::strong()));
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            ui.add_space(4.0);
            slot.view.toolbar(&mut cx, ui);
        });
    });
    hairline(ui);
    slot.show(&mut cx, ui);
}

/// A title that is also a tab. True if it was clicked.
fn title_tab(ui: &mut Ui, title: &str, on: bool) -> bool {
    let p = Palette::of(ui);
    let font = if on { theme::strong() } else { theme::body() };
    let galley = ui.painter().layout_no_wrap(title.to_string(), font, p.text);
    let (rect, response) = ui.allocate_exact_size(vec2(galley.size().x + 16.0, TITLE), Sense::click());
    response.widget_info(|| WidgetInfo::selected(egui::Role::Tab, true, on, title));
    let color = if on || response.hovered() { p.text } else { p.secondary };
    ui.painter()
        .galley_with_override_text_color(rect.center() - galley.size() / 2.0, galley, color);
    controls::focus_ring(ui, &response, rect.shrink(2.0));
    response.clicked()
}

/// A line below a title row.
pub(super) fn hairline(ui: &mut Ui) {
    let p = Palette::of(ui);
    let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), theme::LINE), Sense::hover());
    ui.painter().rect_filled(rect, 0, p.line);
}
