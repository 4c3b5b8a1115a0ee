//! Names and numbers along the sides of a heatmap.

use egui::{Align2, Rect, Ui, pos2};

use super::widget::{HeatZoom, Heatmap, Labels};
use crate::theme::{self, Palette};
use crate::widgets::plots::{Scale, Ticks};

impl Heatmap<'_> {
    pub(super) fn paint_labels(&self, ui: &Ui, outer: Rect, frame: Rect, view: &HeatZoom, p: &Palette) {
        let painter = ui.painter_at(outer.expand(2.0));
        let font = theme::mono_caption();
        let one = Scale { divisor: 1.0, unit: "" };
        match self.rows {
            Labels::None => {}
            Labels::Numbers(caption, offset) => {
                let shift = offset as f64;
                let most = ((frame.height() / 14.0) as usize).clamp(1, 8);
                let ticks = Ticks::new(view.rows.0 + shift, view.rows.1 + shift - 1.0, most, one, true);
                let height = frame.height() / (view.rows.1 - view.rows.0) as f32;
                let values = if ticks.values.is_empty() {
                    vec![view.rows.0 + shift]
                } else {
                    ticks.values.clone()
                };
                for v in values {
                    let y = frame.top() + ((v - shift - view.rows.0) as f32 + 0.5) * height;
                    painter.text(
                        pos2(frame.left() - 4.0, y),
                        Align2::RIGHT_CENTER,
                        ticks.text(v, one),
                        font.clone(),
                        p.secondary,
                    );
                }
                let galley = painter.layout_no_wrap(caption.to_string(), theme::caption(), p.faint);
                let at = pos2(outer.left() + 2.0, frame.center().y + galley.size().x * 0.5);
                if galley.size().x < frame.height() {
                    painter.add(
                        egui::epaint::TextShape::new(at, galley, p.faint).with_angle(-std::f32::consts::FRAC_PI_2),
                    );
                }
            }
            Labels::Names(name) => {
                let height = frame.height() / (view.rows.1 - view.rows.0) as f32;
                let step = (12.0 / height).ceil().max(1.0) as usize;
                let first = (view.rows.0.ceil() as usize).next_multiple_of(step);
                for row in (first..(view.rows.1.ceil() as usize).min(self.grid.rows())).step_by(step) {
                    let y = frame.top() + (row as f64 + 0.5 - view.rows.0) as f32 * height;
                    painter.text(
                        pos2(frame.left() - 5.0, y),
                        Align2::RIGHT_CENTER,
                        name(row),
                        font.clone(),
                        p.secondary,
                    );
                }
            }
        }
        self.paint_col_labels(&painter, frame, view, p);
    }

    fn paint_col_labels(&self, painter: &egui::Painter, frame: Rect, view: &HeatZoom, p: &Palette) {
        let font = theme::mono_caption();
        let one = Scale { divisor: 1.0, unit: "" };
        let width = frame.width() / (view.cols.1 - view.cols.0) as f32;
        match self.cols {
            Labels::None => {}
            Labels::Numbers(caption, offset) => {
                let shift = offset as f64;
                let galley = painter.layout_no_wrap(caption.to_string(), theme::caption(), p.faint);
                let free = frame.right() - galley.size().x - 12.0;
                painter.galley(
                    pos2(frame.right() - galley.size().x, frame.bottom() + 3.0),
                    galley,
                    p.faint,
                );
                let most = ((frame.width() / 56.0) as usize).clamp(1, 8);
                let ticks = Ticks::new(view.cols.0 + shift, view.cols.1 + shift - 1.0, most, one, true);
                for v in &ticks.values {
                    let x = frame.left() + ((v - shift - view.cols.0) as f32 + 0.5) * width;
                    if x < free {
                        painter.text(
                            pos2(x, frame.bottom() + 3.0),
                            Align2::CENTER_TOP,
                            ticks.text(*v, one),
                            font.clone(),
                            p.secondary,
                        );
                    }
                }
            }
            Labels::Names(name) => {
                let step = (11.0 / width).ceil().max(1.0) as usize;
                let first = (view.cols.0.ceil() as usize).next_multiple_of(step);
                for col in (first..(view.cols.1.ceil() as usize).min(self.grid.cols())).step_by(step) {
                    let x = frame.left() + (col as f64 + 0.5 - view.cols.0) as f32 * width;
                    let text = shorten(&name(col), 10);
                    let galley = painter.layout_no_wrap(text, font.clone(), p.secondary);
                    // Read upwards, ending at the axis.
                    let at = pos2(x - galley.size().y * 0.5, frame.bottom() + 5.0 + galley.size().x);
                    painter.add(
                        egui::epaint::TextShape::new(at, galley, p.secondary).with_angle(-std::f32::consts::FRAC_PI_2),
                    );
                }
            }
        }
    }
}

/// The first `most` characters, with an ellipsis where something is missing.
fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_string();
    }
    text.chars()
        .take(most.saturating_sub(1))
        .chain(std::iter::once('…'))
        .collect()
}
