//! Pieces around a heatmap: the hatch, the badge of wrong values, the colour bar.

use egui::{Align2, Color32, Rect, Response, Sense, Shape, Stroke, Ui, pos2, vec2};

use super::paint::{ColorMap, Shades};
use crate::fmt;
use crate::theme::{self, Palette};
use crate::widgets::plots::Quantity;

/// The pattern of what is masked or was not computed.
pub fn hatch(painter: &egui::Painter, rect: Rect, p: &Palette) {
    const APART: f32 = 6.0;
    painter.rect_filled(rect, 0.0, p.panel);
    let stroke = Stroke::new(theme::LINE, p.line);
    let lines = ((rect.width() + rect.height()) / APART) as usize;
    let painter = painter.with_clip_rect(painter.clip_rect().intersect(rect));
    painter.extend((0..=lines).map(|i| {
        let x = rect.left() + i as f32 * APART;
        Shape::line_segment([pos2(x, rect.top()), pos2(x - rect.height(), rect.bottom())], stroke)
    }));
}

/// Says how many pixels stand for NaN or infinities.
pub(super) fn badge(ui: &Ui, frame: Rect, p: &Palette, n: usize) {
    let text = format!("{} NaN or ∞", fmt::count(n as u64));
    let galley = ui.painter().layout_no_wrap(text, theme::caption(), Color32::WHITE);
    let rect = Align2::RIGHT_TOP.anchor_size(frame.right_top() + vec2(-4.0, 4.0), galley.size() + vec2(10.0, 4.0));
    ui.painter().rect_filled(rect, theme::RADIUS, p.not_finite);
    ui.painter().galley(rect.min + vec2(5.0, 2.0), galley, Color32::WHITE);
}

/// The colours of a map with the values at its ends, for title rows.
pub fn color_bar(ui: &mut Ui, shades: &Shades, quantity: Quantity) -> Response {
    let p = Palette::of(ui);
    let font = theme::mono_caption();
    let text = |v: f32| quantity.figure(f64::from(v)).plain();
    let low = ui.painter().layout_no_wrap(text(shades.low), font.clone(), p.secondary);
    let high = ui.painter().layout_no_wrap(text(shades.high), font, p.secondary);
    const BAR: std::ops::RangeInclusive<f32> = 12.0..=64.0;
    let texts = low.size().x + high.size().x + 12.0;
    let room = ui.available_width() - texts - 2.0 * theme::GRID;
    if room < *BAR.start() {
        // The title needs the room; what the cells are is said where they are pointed at.
        return ui.allocate_response(egui::Vec2::ZERO, Sense::hover());
    }
    let long = room.min(*BAR.end());
    let width = texts + long;
    ui.add_space(theme::GRID);
    let (rect, response) = ui.allocate_exact_size(vec2(width, 16.0), Sense::hover());
    let bar = Rect::from_min_size(
        pos2(rect.left() + low.size().x + 6.0, rect.center().y - 4.0),
        vec2(long, 8.0),
    );
    const STEPS: usize = 32;
    for i in 0..STEPS {
        let t = (i as f32 + 0.5) / STEPS as f32;
        let x = bar.left() + i as f32 * long / STEPS as f32;
        let part = Rect::from_min_size(pos2(x, bar.top()), vec2(long / STEPS as f32 + 0.5, bar.height()));
        ui.painter().rect_filled(part, 0.0, shades.color(p, shades.value_at(t)));
    }
    let y = rect.center().y;
    ui.painter()
        .galley(pos2(rect.left(), y - low.size().y * 0.5), low, p.secondary);
    ui.painter()
        .galley(pos2(bar.right() + 6.0, y - high.size().y * 0.5), high, p.secondary);
    let about = match (shades.map, shades.log) {
        (ColorMap::Diverging, _) => "blue below 0, amber above",
        (_, true) => "logarithmic; smaller values take the first colour",
        _ => "linear",
    };
    response.on_hover_text(about)
}
