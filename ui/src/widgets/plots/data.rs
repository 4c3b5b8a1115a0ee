//! What charts are made of.

use egui::{Color32, Stroke};
use egui_plot::{Bar, BarChart, FilledArea, Line, LineStyle, PlotPoints};

use super::quantity::Quantity;

/// An axis.
#[derive(Clone, Copy, Debug)]
pub struct Axis<'a> {
    /// What it shows: `token`, `KV bytes`.
    pub label: &'a str,
    /// What its values count.
    pub quantity: Quantity,
    /// Shown range; for the y axis `None` = what the data need, 0 included.
    pub range: Option<(f64, f64)>,
}

impl<'a> Axis<'a> {
    /// An axis that fits its data.
    pub fn new(label: &'a str, quantity: Quantity) -> Self {
        Self {
            label,
            quantity,
            range: None,
        }
    }

    /// With a fixed range.
    #[must_use]
    pub fn range(mut self, range: (f64, f64)) -> Self {
        self.range = Some(range);
        self
    }
}

/// A line.
#[derive(Clone, Debug)]
pub struct Trace {
    /// Name in readouts.
    pub name: String,
    /// Colour.
    pub color: Color32,
    /// Points from left to right; y = NaN interrupts the line.
    pub points: Vec<[f64; 2]>,
    /// x, smallest and largest where a point stands for several samples.
    pub band: Vec<[f64; 3]>,
    /// Stroke.
    pub width: f32,
    /// Dashed: estimated.
    pub dashed: bool,
    /// Its last value is written at the right end.
    pub end_label: bool,
}

impl Trace {
    /// A solid line with its last value at the right end.
    pub fn new(name: impl Into<String>, color: Color32, points: Vec<[f64; 2]>) -> Self {
        Self {
            name: name.into(),
            color,
            points,
            band: Vec::new(),
            width: 1.5,
            dashed: false,
            end_label: true,
        }
    }

    /// The value at the point nearest to `x`.
    pub fn value_at(&self, x: f64) -> Option<f64> {
        let at = self.points.partition_point(|p| p[0] < x);
        let near = [at.checked_sub(1), Some(at)]
            .into_iter()
            .flatten()
            .filter_map(|i| self.points.get(i));
        let nearest = near.min_by(|a, b| (a[0] - x).abs().total_cmp(&(b[0] - x).abs()))?;
        nearest[1].is_finite().then_some(nearest[1])
    }
}

/// One part of stacked bars.
#[derive(Clone, Debug)]
pub struct Part {
    /// Name in readouts.
    pub name: String,
    /// Colour.
    pub color: Color32,
    /// Height per bar.
    pub heights: Vec<f64>,
}

/// Stacked bars, one per place.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    /// Centres, rising.
    pub at: Vec<f64>,
    /// Width of a bar on the x axis.
    pub width: f64,
    /// Parts from bottom to top.
    pub parts: Vec<Part>,
}

/// A vertical line with a caption.
#[derive(Clone, Debug)]
pub struct Mark {
    /// Place.
    pub x: f64,
    /// Caption.
    pub text: String,
    /// Colour.
    pub color: Color32,
}

/// What the user did to the x axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Zoom {
    /// Dragged or wheeled to this range.
    To(f64, f64),
    /// Double click.
    Reset,
}

impl Bars {
    /// The bar under `x`.
    pub(super) fn near(&self, x: f64) -> Option<usize> {
        let at = self.at.partition_point(|a| a + self.width * 0.5 < x);
        self.at
            .get(at)
            .filter(|a| (**a - x).abs() <= self.width * 0.75)
            .map(|_| at)
    }

    pub(super) fn items(&self) -> Vec<BarChart> {
        let mut base = vec![0.0; self.at.len()];
        let mut charts = Vec::new();
        for part in &self.parts {
            let mut bars = Vec::with_capacity(self.at.len());
            for (i, x) in self.at.iter().enumerate() {
                let h = part.heights.get(i).copied().filter(|h| h.is_finite()).unwrap_or(0.0);
                if h != 0.0 {
                    bars.push(
                        Bar::new(*x, h)
                            .base_offset(base[i])
                            .width(self.width)
                            .fill(part.color)
                            .stroke(Stroke::NONE),
                    );
                    base[i] += h;
                }
            }
            charts.push(
                BarChart::new(part.name.clone(), bars)
                    .color(part.color)
                    .allow_hover(false),
            );
        }
        charts
    }
}

impl Trace {
    /// Draws it.
    pub(super) fn paint(&self, plot: &mut egui_plot::PlotUi<'_>) {
        if self.band.len() > 1 {
            let column = |i: usize| self.band.iter().map(|b| b[i]).collect::<Vec<f64>>();
            let area = FilledArea::new(self.name.clone(), &column(0), &column(1), &column(2));
            plot.add(area.fill_color(self.color.gamma_multiply(0.22)).allow_hover(false));
        }
        for part in self.points.split(|p| !p[1].is_finite()) {
            match part {
                [] => {}
                // A single sample between gaps would have no length: drawn as a short dash.
                [one] => plot.points(
                    egui_plot::Points::new(self.name.clone(), vec![*one])
                        .color(self.color)
                        .radius(self.width)
                        .allow_hover(false),
                ),
                part => {
                    let style = if self.dashed {
                        LineStyle::dashed_dense()
                    } else {
                        LineStyle::Solid
                    };
                    plot.line(
                        Line::new(self.name.clone(), PlotPoints::new(part.to_vec()))
                            .color(self.color)
                            .width(self.width)
                            .style(style)
                            .allow_hover(false),
                    );
                }
            }
        }
    }
}
