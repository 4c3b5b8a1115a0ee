//! How far the hidden states of A and B are apart: layers x tokens, and a table of layers.

use egui::{Align2, Color32, Sense, Ui, WidgetInfo, pos2, vec2};
use protocol::CompareResult;

use crate::fmt;
use crate::selection::Spot;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::heatmap::{Dense, HeatState, Heatmap, Labels, Shades};
use crate::widgets::plots::{Csv, Explain, Quantity, field};

const ABOUT: &str = "||a − b|| / ||a|| of the residual stream after each layer, A against B at the same position of the same \
                     text. 0 = equal. Several positions under one pixel show their largest value.";

/// The map with what it keeps.
#[derive(Debug, Default)]
pub struct Drift {
    heat: HeatState,
    grid: Option<Dense>,
    /// Smallest and largest value above 0.
    range: Option<(f32, f32)>,
}

impl Drift {
    /// Takes another result.
    pub fn set(&mut self, r: &CompareResult, revision: u64) {
        let positive = r
            .drift
            .relative_rms
            .iter()
            .copied()
            .filter(|v| v.is_finite() && *v > 0.0);
        self.range = positive.fold(None, |range, v| {
            let (low, high) = range.unwrap_or((v, v));
            Some((v.min(low), v.max(high)))
        });
        self.grid = Some(Dense::new(r.drift.relative_rms.clone(), r.drift.columns(), revision));
        self.heat.zoom = None;
    }

    /// Colours, for the map and its colour bar.
    pub fn shades(&self) -> Shades {
        match self.range {
            Some((low, high)) => Shades::log(low, high),
            None => Shades::sequential(0.0, 1.0),
        }
    }

    /// Draws the map into a place of this height. Returns the positions hovered and clicked.
    pub fn map(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        r: &CompareResult,
        chosen: Option<usize>,
        height: f32,
    ) -> [Option<usize>; 2] {
        let shades = self.shades();
        let Some(grid) = &self.grid else { return [None; 2] };
        let shown = cx.shown().layer.map(|l| l as usize);
        let last = r.drift.layer_rms.last().copied().unwrap_or(0.0);
        let summary = format!(
            "{} layers, {} positions; after the last layer {}",
            r.drift.layer_rms.len(),
            fmt::count(r.tokens.len() as u64),
            fmt::sig3(f64::from(last))
        );
        let step = r.drift.step.max(1) as usize;
        let chosen = chosen.map(|c| c / step);
        let explain = if step > 1 {
            Explain::sampled(ABOUT)
        } else {
            Explain::measured(ABOUT)
        };
        let tooltip = |ui: &mut Ui, row: usize, col: usize, value: f32| {
            let p = Palette::of(ui);
            let col = col * step;
            let text = r.tokens.get(col).map_or("", |t| t.text.as_str());
            let place = format!("layer {row}, token {} {}", fmt::count(col as u64), fmt::quoted(text));
            ui.label(egui::RichText::new(place).color(p.secondary));
            let of = if step > 1 {
                format!(", largest of {step} tokens")
            } else {
                String::new()
            };
            let value = format!("relative RMS {}{of}", fmt::sig3(f64::from(value)));
            ui.label(egui::RichText::new(value).font(theme::mono()));
        };
        let size = vec2(ui.available_width(), height);
        let back = ui
            .allocate_ui(size, |ui| {
                ui.set_min_size(size);
                ui.set_max_size(size);
                Heatmap::new("Drift by layer and token", grid, shades, Quantity::Plain, explain)
                    .labels(Labels::Numbers("layer", 0), Labels::Numbers("token", 0))
                    .highlight(shown, chosen)
                    .summary(summary)
                    .tooltip(&tooltip)
                    .show(cx, ui, &mut self.heat, &|| csv(r))
            })
            .inner;
        if let Some((row, _)) = back.hover {
            cx.hover(Spot::layer(row as u32));
        }
        if let Some((row, _)) = back.clicked {
            cx.selection.lock(Spot::layer(row as u32));
        }
        [back.hover.map(|h| h.1 * step), back.clicked.map(|c| c.1 * step)]
    }
}

fn csv(r: &CompareResult) -> String {
    let layers = r.drift.layer_rms.len();
    let step = r.drift.step.max(1) as usize;
    let mut csv = Csv::new(
        ["position".to_string(), "text".into()]
            .into_iter()
            .chain((0..layers).map(|l| format!("layer {l} relative RMS"))),
    );
    for (i, t) in r.tokens.iter().enumerate().step_by(step) {
        let values = (0..layers).map(|l| r.drift.at(l, i).unwrap_or(f32::NAN));
        let head = [i.to_string(), t.text.clone()];
        csv.row(head.into_iter().chain(values.map(|v| field(f64::from(v)))));
    }
    csv.text()
}

/// Right ends of the columns: layer, growth and drift at the token, all positions, 1 - cosine, max, SQNR.
const EDGES: [f32; 7] = [0.15, 0.3, 0.44, 0.58, 0.72, 0.84, 1.0];

/// Layers with their drift, at the chosen position too: there the layer in which it grows most comes first. The layer
/// that was clicked.
pub fn layers(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    r: &CompareResult,
    chosen: Option<usize>,
    height: f32,
) -> Option<usize> {
    let mut clicked = None;
    let p = Palette::of(ui);
    let (head, _) = ui.allocate_exact_size(vec2(ui.available_width(), 18.0), Sense::hover());
    let names = ["layer", "grows by", "here", "rel. RMS", "1 − cos", "max", "SQNR"];
    for (i, name) in names.into_iter().enumerate() {
        cell(ui, head, i, name, p.secondary, theme::caption());
    }
    let growth = chosen.map(|c| r.drift.growth(c)).unwrap_or_default();
    let order: Vec<(usize, f32)> = if growth.is_empty() {
        (0..r.drift.layer_rms.len()).map(|l| (l, f32::NAN)).collect()
    } else {
        growth
    };
    let most = order.iter().map(|o| o.1).filter(|g| *g > 0.0).fold(0.0, f32::max);
    let shown = cx.shown().layer;
    let kinds = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
    egui::ScrollArea::vertical()
        .id_salt("drift layers")
        .max_height((height - 18.0).max(44.0))
        .auto_shrink([false, true])
        .show_rows(ui, 22.0, order.len(), |ui, rows| {
            ui.spacing_mut().item_spacing.y = 0.0;
            for &(l, grows) in order.get(rows).unwrap_or(&[]) {
                let get = |v: &[f32]| v.get(l).map_or(f64::NAN, |x| f64::from(*x));
                let here = chosen.and_then(|c| r.drift.at(l, c)).map_or(f64::NAN, f64::from);
                let kind = kinds
                    .get(l)
                    .map_or("", |k| crate::views::token::short_kind(&k.attention));
                let db = get(&r.drift.layer_sqnr_db);
                let sqnr = if db.is_infinite() {
                    "equal".into()
                } else {
                    format!("{} dB", fmt::sig3(db))
                };
                let values = [
                    format!("{l} {kind}"),
                    grown(grows),
                    fmt::sig3(here),
                    fmt::sig3(get(&r.drift.layer_rms)),
                    fmt::sig3(get(&r.drift.layer_cosine)),
                    fmt::sig3(get(&r.drift.layer_max)),
                    sqnr,
                ];
                let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 22.0), Sense::click());
                let label = format!("Drift of layer {}", values.join(" "));
                response.widget_info(|| WidgetInfo::labeled(egui::Role::Button, true, &label));
                if shown == Some(l as u32) || response.hovered() {
                    let locked = cx.selection.locked().layer == Some(l as u32);
                    ui.painter()
                        .rect_filled(rect, 4, if locked { p.selected } else { p.hover });
                }
                // How much of the largest growth happens here.
                if grows > 0.0 && most > 0.0 {
                    let wide = (EDGES[1] - EDGES[0]) * rect.width() * (grows / most);
                    let x = rect.left() + EDGES[1] * rect.width() - 2.0;
                    let bar = egui::Rect::from_x_y_ranges(x - wide..=x, rect.top() + 3.0..=rect.bottom() - 3.0);
                    ui.painter().rect_filled(bar, 2, theme::mix(p.panel, p.second, 0.35));
                }
                for (c, value) in values.iter().enumerate() {
                    let color = if c == 0 { p.secondary } else { p.text };
                    cell(ui, rect, c, value, color, theme::mono());
                }
                if response.hovered() {
                    cx.hover(Spot::layer(l as u32));
                }
                if response.clicked() {
                    cx.selection.click(Spot::layer(l as u32));
                    clicked = Some(l);
                }
            }
        });
    clicked
}

fn grown(by: f32) -> String {
    let sign = if by > 0.0 { "+" } else { "" };
    format!("{sign}{}", fmt::sig3(f64::from(by)))
}

fn cell(ui: &Ui, rect: egui::Rect, column: usize, text: &str, color: Color32, font: egui::FontId) {
    let right = rect.left() + EDGES[column] * rect.width() - 4.0;
    let (align, x) = if column == 0 {
        (Align2::LEFT_CENTER, rect.left() + 4.0)
    } else {
        (Align2::RIGHT_CENTER, right)
    };
    ui.painter().text(pos2(x, rect.center().y), align, text, font, color);
}
