//! What the pointer does to a chart, and what it reads.

use egui::{Color32, Pos2, Rect, Response, Sense, Stroke, vec2};

use super::data::Zoom;
use crate::theme::{self, Palette};

/// Drag zooms, a wheel with Ctrl zooms around the pointer, a sideways wheel pans, a double click goes back.
pub(super) fn drag_zoom(
    ui: &egui::Ui,
    response: &Response,
    frame: Rect,
    hover: Option<[f64; 2]>,
    value: &dyn Fn(Pos2) -> [f64; 2],
) -> Option<Zoom> {
    if response.double_clicked() {
        return Some(Zoom::Reset);
    }
    let p = Palette::of(ui);
    if let Some((from, to)) = dragged(ui, response)
        && (to.x - from.x).abs() >= 6.0
    {
        let band = Rect::from_x_y_ranges(from.x.min(to.x)..=from.x.max(to.x), frame.y_range()).intersect(frame);
        ui.painter().rect(
            band,
            0.0,
            p.accent.gamma_multiply(0.15),
            Stroke::new(theme::LINE, p.accent),
            egui::StrokeKind::Inside,
        );
        if response.drag_stopped() {
            let (a, b) = (value(from)[0], value(to)[0]);
            return Some(Zoom::To(a.min(b), a.max(b)));
        }
    }
    let at = hover?[0];
    let factor = f64::from(ui.input(|i| i.zoom_delta()));
    let pan = f64::from(ui.input(|i| i.smooth_scroll_delta().x));
    let (x0, x1) = (value(frame.left_center())[0], value(frame.right_center())[0]);
    if factor != 1.0 {
        return Some(Zoom::To(at - (at - x0) / factor, at + (x1 - at) / factor));
    }
    if pan != 0.0 {
        let by = -pan * (x1 - x0) / f64::from(frame.width().max(1.0));
        return Some(Zoom::To(x0 + by, x1 + by));
    }
    None
}

/// Where a drag began and where it is. In the frame that ends it egui no longer knows its beginning: it is kept here.
fn dragged(ui: &egui::Ui, response: &Response) -> Option<(Pos2, Pos2)> {
    let at = response
        .interact_pointer_pos()
        .or_else(|| ui.input(|i| i.pointer.latest_pos()))?;
    if response.drag_stopped() {
        return Some((ui.data_mut(|d| d.remove_temp::<Pos2>(response.id))?, at));
    }
    let from = at - response.total_drag_delta()?;
    ui.data_mut(|d| d.insert_temp(response.id, from));
    Some((from, at))
}

/// Rows of a tooltip: a dot, a name, a value.
pub fn readout_table(ui: &mut egui::Ui, rows: &[(String, String, Color32)]) {
    let p = Palette::of(ui);
    egui::Grid::new("readout")
        .num_columns(2)
        .spacing(vec2(16.0, 2.0))
        .show(ui, |ui| {
            for (name, value, color) in rows {
                ui.horizontal(|ui| {
                    if *color != Color32::TRANSPARENT {
                        dot(ui, *color);
                    }
                    ui.label(egui::RichText::new(name).color(p.secondary));
                });
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    ui.label(egui::RichText::new(value).font(theme::mono()));
                });
                ui.end_row();
            }
        });
}

/// The coloured dot of legends.
pub fn dot(ui: &mut egui::Ui, color: Color32) -> Response {
    let (rect, response) = ui.allocate_exact_size(vec2(8.0, theme::CAPTION + 3.0), Sense::hover());
    ui.painter().circle_filled(rect.center(), 3.5, color);
    response
}
