//! A chart as every view draws it: at most five grid lines, units on both axes, the last value at the right end, a
//! band where several samples share a pixel, a shared cursor, drag to zoom, double click to go back, and a menu with
//! values, CSV, PNG and the definition.

use egui::{Align2, Color32, Pos2, Rect, Response, Role, Sense, Stroke, WidgetInfo, pos2, vec2};
use egui_plot::{AxisHints, GridMark, Plot, PlotBounds, PlotPoint};

use super::data::{Axis, Bars, Mark, Trace, Zoom};
use super::explain::{Explain, figure_menu};
use super::pointer::{drag_zoom, readout_table};
use super::quantity::{Quantity, Scale, Ticks};
use crate::theme::{self, Palette};
use crate::views::Context;

/// Grid lines per axis.
const GRID_LINES: usize = 5;
/// Most room at the right end for last values.
const END_ROOM: f32 = 64.0;
/// Room above the plot for the unit of the y axis.
const TOP_ROOM: f32 = 16.0;

/// What came back.
#[derive(Debug)]
pub struct ChartResponse {
    /// The plot's response.
    pub response: Response,
    /// Where the pointer is, in data coordinates.
    pub hover: Option<[f64; 2]>,
    /// Where a click was, in data coordinates.
    pub clicked: Option<[f64; 2]>,
    /// A new range.
    pub zoom: Option<Zoom>,
}

/// See the module.
pub struct Chart<'a> {
    name: &'a str,
    x: Axis<'a>,
    y: Axis<'a>,
    traces: Vec<Trace>,
    bars: Option<Bars>,
    marks: Vec<Mark>,
    cursor: Option<f64>,
    summary: String,
    explain: Explain<'a>,
}

impl<'a> Chart<'a> {
    /// A chart; `name` is its identity, its accessible name and its file name.
    pub fn new(name: &'a str, x: Axis<'a>, y: Axis<'a>, explain: Explain<'a>) -> Self {
        Self {
            name,
            x,
            y,
            traces: Vec::new(),
            bars: None,
            marks: Vec::new(),
            cursor: None,
            summary: String::new(),
            explain,
        }
    }

    /// Adds a line.
    #[must_use]
    pub fn trace(mut self, trace: Trace) -> Self {
        self.traces.push(trace);
        self
    }

    /// Adds lines.
    #[must_use]
    pub fn traces(mut self, traces: impl IntoIterator<Item = Trace>) -> Self {
        self.traces.extend(traces);
        self
    }

    /// Sets the bars.
    #[must_use]
    pub fn bars(mut self, bars: Bars) -> Self {
        self.bars = Some(bars);
        self
    }

    /// Adds marks.
    #[must_use]
    pub fn marks(mut self, marks: impl IntoIterator<Item = Mark>) -> Self {
        self.marks.extend(marks);
        self
    }

    /// Where the shared cursor stands.
    #[must_use]
    pub fn cursor(mut self, x: Option<f64>) -> Self {
        self.cursor = x;
        self
    }

    /// What the chart says, for people who do not see it.
    #[must_use]
    pub fn summary(mut self, summary: impl Into<String>) -> Self {
        self.summary = summary.into();
        self
    }

    /// Draws it into the rest of `ui`. `csv` makes the table behind it when asked for.
    pub fn show(self, cx: &mut Context<'_>, ui: &mut egui::Ui, csv: &dyn Fn() -> String) -> ChartResponse {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        let (x0, x1) = self.x.range.unwrap_or_else(|| self.data_x());
        let (y0, y1) = self.y.range.unwrap_or_else(|| self.data_y(x0, x1));
        let x_scale = self.x.quantity.scale(x1.abs().max(x0.abs()));
        let y_scale = self.y.quantity.scale(y1.abs().max(y0.abs()));
        let caption = axis_caption(self.y.label, y_scale.unit);
        let top = ui
            .allocate_exact_size(vec2(ui.available_width(), TOP_ROOM), Sense::hover())
            .0;
        ui.painter().text(
            top.left_center() + vec2(theme::PAD, 0.0),
            Align2::LEFT_CENTER,
            caption,
            theme::caption(),
            p.faint,
        );
        let end_text = y_scale_text(self.y.quantity, y_scale);
        let room = self.end_room(ui, &end_text);
        let size = vec2(
            ui.available_width() - theme::GRID,
            (ui.available_height() - theme::GRID).max(24.0),
        );
        let wide = (size.x - 44.0).max(40.0);
        let right = x1 + (x1 - x0) * f64::from(room / (wide - room).max(20.0));
        let x_ticks = Ticks::new(
            x0,
            x1,
            most_ticks(wide - room, 56.0),
            x_scale,
            self.x.quantity.is_whole(),
        );
        let y_ticks = Ticks::new(
            y0,
            y1,
            most_ticks(size.y - 20.0, 18.0),
            y_scale,
            self.y.quantity.is_whole(),
        );
        let bounds = PlotBounds::from_min_max([x0, y0], [right, y1]);
        let x_text = |v: f64| x_ticks.text(v, x_scale);
        let y_text = |v: f64| y_ticks.text(v, y_scale);
        let plot = plain_plot(ui, self.name, size, [&x_ticks, &y_ticks], [&x_text, &y_text]);
        let (traces, bars) = (&self.traces, &self.bars);
        let shown = plot.show(ui, |plot| {
            plot.set_plot_bounds(bounds);
            if let Some(bars) = bars {
                bars.items().into_iter().for_each(|b| plot.bar_chart(b));
            }
            for trace in traces {
                trace.paint(plot);
            }
        });
        let frame = *shown.transform.frame();
        let place = |x: f64, y: f64| shown.transform.position_from_point(&PlotPoint::new(x, y));
        let painter = ui.painter_at(frame.expand2(vec2(END_ROOM, theme::GRID)));
        let data_right = place(x1, y0).x;
        let mut captions = Vec::new();
        for mark in &self.marks {
            paint_mark(&painter, frame, place(mark.x, y0).x, mark, &mut captions);
        }
        self.paint_cursor(&painter, frame, p, &place, (x0, x1));
        self.paint_ends(&painter, frame, data_right, &place, &end_text);
        let unit = axis_caption(self.x.label, x_scale.unit);
        ui.painter().text(
            pos2(frame.right(), frame.bottom() + 3.0),
            Align2::RIGHT_TOP,
            unit,
            theme::caption(),
            p.faint,
        );
        let response = shown.response.on_hover_cursor(egui::CursorIcon::Crosshair);
        self.respond(cx, ui, response, [frame, whole], csv, &|at| {
            let v = shown.transform.value_from_position(at);
            [v.x.clamp(x0, x1), v.y]
        })
    }

    fn respond(
        &self,
        cx: &mut Context<'_>,
        ui: &egui::Ui,
        response: Response,
        [frame, whole]: [Rect; 2],
        csv: &dyn Fn() -> String,
        value: &dyn Fn(Pos2) -> [f64; 2],
    ) -> ChartResponse {
        let name = format!("{}: {}", self.name, self.summary);
        response.widget_info(|| WidgetInfo::labeled(Role::Image, true, &name));
        let hover = response.hover_pos().filter(|at| frame.contains(*at)).map(value);
        let zoom = drag_zoom(ui, &response, frame, hover, value);
        let clicked = response
            .clicked()
            .then(|| response.interact_pointer_pos())
            .flatten()
            .map(value);
        let readout = self.readout(hover.map(|h| h[0]).or(self.cursor));
        if let (Some(_), false) = (hover, response.dragged())
            && !readout.is_empty()
        {
            response
                .clone()
                .on_hover_ui_at_pointer(|ui| readout_table(ui, &readout));
        }
        let copy = readout
            .iter()
            .map(|(n, v, _)| format!("{n}\t{v}"))
            .collect::<Vec<_>>()
            .join("\n");
        figure_menu(cx, &response, self.name, whole, &copy, csv, &self.explain);
        ChartResponse {
            response,
            hover,
            clicked,
            zoom,
        }
    }

    /// (name, value, colour) of everything at `x`.
    fn readout(&self, x: Option<f64>) -> Vec<(String, String, Color32)> {
        let Some(x) = x else { return Vec::new() };
        let figure = |v: f64| self.y.quantity.figure(v).plain();
        let mut rows = Vec::new();
        if let Some(bars) = &self.bars
            && let Some(i) = bars.near(x)
        {
            let total: f64 = bars
                .parts
                .iter()
                .filter_map(|b| b.heights.get(i))
                .filter(|h| h.is_finite())
                .sum();
            rows.push((
                format!("{} {}", self.x.label, self.x.quantity.figure(bars.at[i]).plain()),
                figure(total),
                Color32::TRANSPARENT,
            ));
            for part in &bars.parts {
                if let Some(h) = part.heights.get(i).filter(|h| **h > 0.0) {
                    rows.push((part.name.clone(), figure(*h), part.color));
                }
            }
        } else {
            let at = self.x.quantity.figure(x).plain();
            rows.push((self.x.label.to_string(), at, Color32::TRANSPARENT));
        }
        for trace in &self.traces {
            if let Some(v) = trace.value_at(x) {
                rows.push((trace.name.clone(), figure(v), trace.color));
            }
        }
        rows
    }

    /// Room that the last values need.
    fn end_room(&self, ui: &egui::Ui, text: &dyn Fn(f64) -> String) -> f32 {
        let last = |t: &Trace| t.points.iter().rev().find(|p| p[1].is_finite()).map(|p| text(p[1]));
        let ends = self.traces.iter().filter(|t| t.end_label).filter_map(last);
        let width = |s: String| {
            ui.painter()
                .layout_no_wrap(s, theme::mono_caption(), Color32::WHITE)
                .size()
                .x
        };
        ends.map(width).fold(theme::PAD - 10.0, f32::max).min(END_ROOM - 10.0) + 10.0
    }

    fn data_x(&self) -> (f64, f64) {
        let lines = self.traces.iter().flat_map(|t| t.points.iter().map(|p| p[0]));
        let bars = self
            .bars
            .iter()
            .flat_map(|b| b.at.iter().flat_map(|x| [x - b.width * 0.6, x + b.width * 0.6]));
        let (lo, hi) = lines
            .chain(bars)
            .fold((f64::MAX, f64::MIN), |(lo, hi), x| (lo.min(x), hi.max(x)));
        if lo < hi {
            (lo, hi)
        } else if lo == hi {
            (lo - 0.5, hi + 0.5)
        } else {
            (0.0, 1.0)
        }
    }

    /// Range of y over the shown x, 0 included, with some room above.
    fn data_y(&self, x0: f64, x1: f64) -> (f64, f64) {
        let inside = |x: f64| x >= x0 && x <= x1;
        let mut range = (0.0_f64, f64::MIN);
        let mut take = |y: f64| {
            if y.is_finite() {
                range = (range.0.min(y), range.1.max(y));
            }
        };
        for trace in &self.traces {
            trace.points.iter().filter(|p| inside(p[0])).for_each(|p| take(p[1]));
            trace
                .band
                .iter()
                .filter(|b| inside(b[0]))
                .for_each(|b| [b[1], b[2]].into_iter().for_each(&mut take));
        }
        if let Some(bars) = &self.bars {
            for (i, _) in bars.at.iter().enumerate().filter(|(_, x)| inside(**x)) {
                take(
                    bars.parts
                        .iter()
                        .filter_map(|p| p.heights.get(i))
                        .filter(|h| h.is_finite())
                        .sum(),
                );
            }
        }
        let high = if range.1 <= range.0 { range.0 + 1.0 } else { range.1 };
        let low = if range.0 < 0.0 {
            range.0 - (high - range.0) * 0.08
        } else {
            0.0
        };
        (low, high + (high - range.0) * 0.08)
    }

    fn paint_cursor(
        &self,
        painter: &egui::Painter,
        frame: Rect,
        p: &Palette,
        place: &dyn Fn(f64, f64) -> Pos2,
        x: (f64, f64),
    ) {
        let Some(at) = self.cursor.filter(|c| *c >= x.0 && *c <= x.1) else {
            return;
        };
        let screen = place(at, 0.0).x;
        if self.bars.is_none() {
            painter.vline(
                screen,
                frame.y_range(),
                Stroke::new(theme::LINE, theme::mix(p.panel, p.secondary, 0.6)),
            );
        } else if let Some(bars) = &self.bars {
            let half = (place(at + bars.width * 0.5, 0.0).x - screen).abs().max(2.0) + 1.5;
            let bar = Rect::from_x_y_ranges(screen - half..=screen + half, frame.y_range());
            painter.rect_filled(bar, 2.0, p.text.gamma_multiply(0.08));
        }
        for trace in &self.traces {
            if let Some(v) = trace.value_at(at) {
                let dot = place(at, v);
                if frame.expand(2.0).contains(dot) {
                    painter.circle(dot, 3.0, trace.color, Stroke::new(1.5, p.panel));
                }
            }
        }
    }

    /// Last values, moved apart where they would overlap.
    fn paint_ends(
        &self,
        painter: &egui::Painter,
        frame: Rect,
        right: f32,
        place: &dyn Fn(f64, f64) -> Pos2,
        text: &dyn Fn(f64) -> String,
    ) {
        let mut ends: Vec<(f32, String, Color32)> = Vec::new();
        for trace in self.traces.iter().filter(|t| t.end_label) {
            if let Some(last) = trace
                .points
                .iter()
                .rev()
                .find(|p| p[1].is_finite() && place(p[0], 0.0).x <= right + 1.0)
            {
                ends.push((place(last[0], last[1]).y, text(last[1]), trace.color));
            }
        }
        ends.sort_by(|a, b| a.0.total_cmp(&b.0));
        const APART: f32 = 12.0;
        let lowest = frame.bottom() - 4.0 - APART * ends.len().saturating_sub(1) as f32;
        let mut next = frame.top() + 4.0;
        for (i, (y, text, color)) in ends.into_iter().enumerate() {
            let y = y.max(next).min(lowest + APART * i as f32);
            painter.text(
                pos2(right + 5.0, y),
                Align2::LEFT_CENTER,
                text,
                theme::mono_caption(),
                color,
            );
            next = y + APART;
        }
    }
}

/// An axis title: what and in which unit.
fn axis_caption(label: &str, unit: &str) -> String {
    if unit.is_empty() {
        label.to_string()
    } else {
        format!("{label}, {unit}")
    }
}

fn y_scale_text(quantity: Quantity, scale: Scale) -> impl Fn(f64) -> String {
    let whole = quantity.is_whole();
    move |v| {
        if whole {
            crate::fmt::count(v.abs().round() as u64)
        } else {
            crate::fmt::sig3(v / scale.divisor)
        }
    }
}

fn most_ticks(room: f32, each: f32) -> usize {
    ((room / each) as usize).clamp(1, GRID_LINES)
}

/// A plot without any behaviour of its own; `texts` write the values at the ticks.
pub(super) fn plain_plot<'p>(
    ui: &egui::Ui,
    name: &str,
    size: egui::Vec2,
    ticks: [&'p Ticks; 2],
    texts: [&'p dyn Fn(f64) -> String; 2],
) -> Plot<'p> {
    let p = Palette::of(ui);
    let marks = |ticks: &Ticks| {
        ticks
            .values
            .iter()
            .map(|v| GridMark {
                value: *v,
                step_size: ticks.step,
            })
            .collect::<Vec<_>>()
    };
    let hints = |axis: AxisHints<'p>| {
        axis.tick_label_color(p.secondary)
            .tick_label_font(theme::mono_caption())
    };
    let [x, y] = ticks;
    let [x_text, y_text] = texts;
    Plot::new(("chart", name.to_string()))
        .width(size.x)
        .height(size.y)
        .allow_drag(false)
        .allow_zoom(false)
        .allow_scroll(false)
        .allow_boxed_zoom(false)
        .allow_double_click_reset(false)
        .allow_axis_zoom_drag(false)
        .show_x(false)
        .show_y(false)
        .show_crosshair(false)
        .show_background(false)
        .show_grid(egui::Vec2b::new(false, true))
        .auto_bounds(false)
        .grid_color(p.line)
        .grid_fade(0.0)
        .grid_spacing(egui::Rangef::new(2.0, 3.0))
        .x_grid_spacer(move |_| marks(x))
        .y_grid_spacer(move |_| marks(y))
        .custom_x_axes(vec![
            hints(AxisHints::new_x())
                .label_spacing(egui::Rangef::new(4.0, 5.0))
                .formatter(move |mark, _| x_text(mark.value)),
        ])
        .custom_y_axes(vec![
            hints(AxisHints::new_y())
                .label_spacing(egui::Rangef::new(4.0, 5.0))
                .min_thickness(36.0)
                .formatter(move |mark, _| y_text(mark.value)),
        ])
        .sense(Sense::click_and_drag())
}

/// A mark with its caption, which moves down where it would stand on an earlier one.
fn paint_mark(painter: &egui::Painter, frame: Rect, x: f32, mark: &Mark, captions: &mut Vec<Rect>) {
    if !frame.x_range().contains(x) {
        return;
    }
    let stroke = Stroke::new(theme::LINE, mark.color.gamma_multiply(0.8));
    painter.extend(egui::Shape::dashed_line(
        &[pos2(x, frame.top()), pos2(x, frame.bottom())],
        stroke,
        3.0,
        3.0,
    ));
    let galley = painter.layout_no_wrap(mark.text.clone(), theme::caption(), mark.color);
    let left = x + 4.0 + galley.size().x > frame.right();
    let at = if left { x - 4.0 - galley.size().x } else { x + 4.0 };
    let mut room = Rect::from_min_size(pos2(at, frame.top() + 1.0), galley.size());
    while captions.iter().any(|c| c.intersects(room)) && room.bottom() < frame.bottom() {
        room = room.translate(vec2(0.0, room.height()));
    }
    painter.galley(room.min, galley, mark.color);
    if !mark.text.is_empty() {
        captions.push(room);
    }
}
