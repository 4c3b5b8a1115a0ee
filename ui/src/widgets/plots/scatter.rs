//! Points over a logarithmic y axis, with lines through some of them and a limit to stay under. 0 has a place of its
//! own at the bottom.

use egui::{Align2, Color32, Pos2, Response, Role, Sense, Stroke, WidgetInfo, pos2, vec2};
use egui_plot::{PlotBounds, PlotPoint};

use super::chart::plain_plot;
use super::data::Axis;
use super::explain::{Explain, figure_menu};
use super::pointer::readout_table;
use super::quantity::Ticks;
use crate::fmt;
use crate::theme::{self, Palette};
use crate::views::Context;

/// A point.
#[derive(Clone, Debug)]
pub struct Dot {
    /// Place; y = 0 lies at the bottom.
    pub at: [f64; 2],
    /// What it is: in the readout, and for people who do not see it.
    pub name: String,
    /// Written beside it; may be empty.
    pub label: String,
    /// Colour.
    pub color: Color32,
    /// Larger, for those that matter.
    pub large: bool,
    /// Chosen.
    pub chosen: bool,
}

/// What the pointer did: numbers of dots.
#[derive(Clone, Debug)]
pub struct ScatterResponse {
    /// The plot's response.
    pub response: Response,
    /// Under the pointer.
    pub hover: Option<usize>,
    /// Clicked.
    pub clicked: Option<usize>,
}

/// See the module.
pub struct Scatter<'a> {
    name: &'a str,
    x: Axis<'a>,
    y: Axis<'a>,
    dots: Vec<Dot>,
    lines: Vec<(Color32, Vec<usize>)>,
    limit: Option<f64>,
    summary: String,
    explain: Explain<'a>,
}

/// Reach of a dot for the pointer.
const REACH: f32 = 14.0;

impl<'a> Scatter<'a> {
    /// A scatter plot; `name` is its identity, its accessible name and its file name.
    pub fn new(name: &'a str, x: Axis<'a>, y: Axis<'a>, explain: Explain<'a>) -> Self {
        Self {
            name,
            x,
            y,
            dots: Vec::new(),
            lines: Vec::new(),
            limit: None,
            summary: String::new(),
            explain,
        }
    }

    /// Sets the points.
    #[must_use]
    pub fn dots(mut self, dots: Vec<Dot>) -> Self {
        self.dots = dots;
        self
    }

    /// Adds a line through points, by their numbers.
    #[must_use]
    pub fn line(mut self, color: Color32, through: Vec<usize>) -> Self {
        self.lines.push((color, through));
        self
    }

    /// Sets the limit.
    #[must_use]
    pub fn limit(mut self, limit: Option<f64>) -> Self {
        self.limit = limit;
        self
    }

    /// What it says, for people who do not see it.
    #[must_use]
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = summary.into();
        self
    }

    /// Draws it into the rest of `ui`. `csv` makes the table behind it when asked for.
    pub fn show(self, cx: &mut Context<'_>, ui: &mut egui::Ui, csv: &dyn Fn() -> String) -> ScatterResponse {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        let scale = Decades::of(self.dots.iter().map(|d| d.at[1]).chain(self.limit));
        let (x0, x1) = self.range_x();
        let x_scale = self.x.quantity.scale(x1.abs().max(x0.abs()));
        let caption = |label: &str, unit: &str| {
            if unit.is_empty() {
                label.to_string()
            } else {
                format!("{label}, {unit}")
            }
        };
        let y_unit = self.y.quantity.scale(1.0).unit;
        let top = ui
            .allocate_exact_size(vec2(ui.available_width(), 16.0), Sense::hover())
            .0;
        ui.painter().text(
            top.left_center() + vec2(theme::PAD, 0.0),
            Align2::LEFT_CENTER,
            caption(self.y.label, y_unit),
            theme::caption(),
            p.faint,
        );
        let size = vec2(
            ui.available_width() - theme::GRID,
            (ui.available_height() - theme::GRID).max(24.0),
        );
        let most = ((size.x - 44.0) / 72.0).clamp(1.0, 5.0) as usize;
        let mut x_ticks = Ticks::new(x0, x1, most, x_scale, self.x.quantity.is_whole());
        let x_caption = caption(self.x.label, x_scale.unit);
        // Figures under the axis keep clear of its caption.
        let taken = f64::from(
            (ui.painter()
                .layout_no_wrap(x_caption.clone(), theme::caption(), p.faint)
                .size()
                .x
                + 14.0)
                / size.x,
        );
        x_ticks.values.retain(|v| *v < x1 - (x1 - x0) * taken);
        let y_ticks = scale.ticks((size.y / 24.0).clamp(2.0, 5.0) as usize);
        let x_text = |v: f64| x_ticks.text(v, x_scale);
        let y_text = |v: f64| scale.text(v);
        let plot = plain_plot(ui, self.name, size, [&x_ticks, &y_ticks], [&x_text, &y_text]);
        let bounds = PlotBounds::from_min_max([x0, scale.low - 0.7], [x1, scale.high + 0.3]);
        let shown = plot.show(ui, |plot| plot.set_plot_bounds(bounds));
        let frame = *shown.transform.frame();
        let place = |at: [f64; 2]| {
            let point = PlotPoint::new(at[0], scale.at(at[1]));
            shown.transform.position_from_point(&point)
        };
        self.paint(&ui.painter_at(frame.expand2(vec2(24.0, theme::GRID))), p, frame, &place);
        ui.painter().text(
            pos2(frame.right(), frame.bottom() + 3.0),
            Align2::RIGHT_TOP,
            x_caption,
            theme::caption(),
            p.faint,
        );
        let response = shown.response.on_hover_cursor(egui::CursorIcon::Crosshair);
        self.respond(cx, response, whole, csv, &place)
    }

    fn range_x(&self) -> (f64, f64) {
        if let Some(range) = self.x.range {
            return range;
        }
        let finite = self.dots.iter().map(|d| d.at[0]).filter(|x| x.is_finite());
        let (low, high) = finite.fold((f64::MAX, f64::MIN), |(l, h), x| (l.min(x), h.max(x)));
        if low > high {
            return (0.0, 1.0);
        }
        let room = ((high - low) * 0.06).max(high.abs() * 0.02).max(1e-9);
        (low - room, high + room)
    }

    fn paint(&self, painter: &egui::Painter, p: &Palette, frame: egui::Rect, place: &dyn Fn([f64; 2]) -> Pos2) {
        if let Some(limit) = self.limit {
            let y = place([0.0, limit]).y;
            if frame.y_range().contains(y) {
                let ends = [pos2(frame.left(), y), pos2(frame.right(), y)];
                painter.extend(egui::Shape::dashed_line(
                    &ends,
                    Stroke::new(theme::LINE, p.warn),
                    4.0,
                    3.0,
                ));
                let text = format!("budget {}", fmt::sig3(limit));
                let at = pos2(frame.right() - 2.0, y - 1.0);
                painter.text(at, Align2::RIGHT_BOTTOM, text, theme::caption(), p.warn);
            }
        }
        for (color, through) in &self.lines {
            let points: Vec<Pos2> = through
                .iter()
                .filter_map(|i| self.dots.get(*i))
                .map(|d| place(d.at))
                .collect();
            painter.add(egui::Shape::line(points, Stroke::new(1.5, *color)));
        }
        // The large ones above the others.
        for large in [false, true] {
            for dot in self.dots.iter().filter(|d| d.large == large && d.at[0].is_finite()) {
                let at = place(dot.at);
                painter.circle(at, if large { 4.5 } else { 3.0 }, dot.color, Stroke::new(1.0, p.panel));
                if dot.chosen {
                    painter.circle_stroke(at, 7.5, Stroke::new(1.5, p.text));
                }
                if !dot.label.is_empty() {
                    let text = at + vec2(7.0, -7.0);
                    let mut align = Align2::LEFT_BOTTOM;
                    let mut at_text = text;
                    if text.x > frame.right() - 60.0 {
                        (align, at_text) = (Align2::RIGHT_BOTTOM, at + vec2(-7.0, -7.0));
                    }
                    painter.text(at_text, align, &dot.label, theme::mono_caption(), p.secondary);
                }
            }
        }
    }

    fn respond(
        &self,
        cx: &mut Context<'_>,
        response: Response,
        whole: egui::Rect,
        csv: &dyn Fn() -> String,
        place: &dyn Fn([f64; 2]) -> Pos2,
    ) -> ScatterResponse {
        let name = format!("{}: {}", self.name, self.summary);
        response.widget_info(|| WidgetInfo::labeled(Role::Image, true, &name));
        let near = |at: Pos2| {
            let all = self.dots.iter().enumerate().filter(|(_, d)| d.at[0].is_finite());
            all.map(|(i, d)| (i, place(d.at).distance(at)))
                .filter(|(_, far)| *far <= REACH)
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .map(|(i, _)| i)
        };
        let hover = response.hover_pos().and_then(near);
        let clicked = response
            .clicked()
            .then(|| response.interact_pointer_pos())
            .flatten()
            .and_then(near);
        let readout = |i: usize| {
            let d = &self.dots[i];
            vec![
                (d.name.clone(), String::new(), d.color),
                (
                    self.x.label.to_string(),
                    self.x.quantity.figure(d.at[0]).plain(),
                    Color32::TRANSPARENT,
                ),
                (
                    self.y.label.to_string(),
                    self.y.quantity.figure(d.at[1]).plain(),
                    Color32::TRANSPARENT,
                ),
            ]
        };
        if let Some(i) = hover {
            response
                .clone()
                .on_hover_ui_at_pointer(|ui| readout_table(ui, &readout(i)));
        }
        let chosen = hover.or(self.dots.iter().position(|d| d.chosen));
        let value: Vec<String> = chosen
            .map(readout)
            .unwrap_or_default()
            .iter()
            .map(|(n, v, _)| format!("{n}\t{v}"))
            .collect();
        figure_menu(cx, &response, self.name, whole, &value.join("\n"), csv, &self.explain);
        ScatterResponse {
            response,
            hover,
            clicked,
        }
    }
}

/// A logarithmic axis of whole decades, with a place for 0 below them.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Decades {
    low: f64,
    high: f64,
}

impl Decades {
    /// Most decades shown; smaller values stand with 0.
    const MOST: f64 = 9.0;

    fn of(values: impl Iterator<Item = f64>) -> Self {
        let positive = values.filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = positive.fold((f64::MAX, 0.0_f64), |(l, h), v| (l.min(v), h.max(v)));
        if high <= 0.0 {
            return Self { low: -4.0, high: 0.0 };
        }
        let high = high.log10().ceil();
        let low = low.log10().floor().clamp(high - Self::MOST, high - 1.0);
        Self { low, high }
    }

    fn at(self, value: f64) -> f64 {
        if value > 0.0 {
            value.log10().clamp(self.low - 0.5, self.high)
        } else {
            self.low - 0.5
        }
    }

    fn ticks(self, most: usize) -> Ticks {
        let step = ((self.high - self.low + 1.0) / most as f64).ceil().max(1.0);
        let mut values = vec![self.low - 0.5];
        let mut at = self.high;
        while at >= self.low {
            values.push(at);
            at -= step;
        }
        values[1..].reverse();
        Ticks { values, step }
    }

    fn text(self, at: f64) -> String {
        if at < self.low {
            "0".into()
        } else {
            format!("1e{}", at.round() as i64)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_hold_all_values_and_zero_below() {
        let d = Decades::of([0.0, 3e-4, 0.02, f64::NAN].into_iter());
        assert_eq!((d.low, d.high), (-4.0, -1.0));
        assert!(d.at(0.0) < d.at(3e-4) && d.at(3e-4) < d.at(0.02));
        let texts: Vec<String> = d.ticks(5).values.iter().map(|v| d.text(*v)).collect();
        assert_eq!(texts, ["0", "1e-4", "1e-3", "1e-2", "1e-1"]);
        assert_eq!(Decades::of([0.0].into_iter()), Decades { low: -4.0, high: 0.0 });
        let wide = Decades::of([1e-30, 1.0].into_iter());
        assert_eq!(wide.low, -9.0);
        assert!(wide.ticks(5).values.len() <= 6 && wide.at(1e-30) >= wide.low - 0.5);
    }
}
