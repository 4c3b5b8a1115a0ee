//! One tensor: where it stands, its shape and bytes, statistics and a histogram.

use egui::{RichText, vec2};
use protocol::{BlockView, TensorStats, TensorView};

use super::Shared;
use crate::fmt;
use crate::icons;
use crate::store::{Fetched, Query};
use crate::theme::{self, Palette};
use crate::views::{Action, Context, View, empty, failed, loading};
use crate::widgets::controls;
use crate::widgets::plots::{Axis, Bars, Chart, Csv, Explain, Mark, Part, Quantity, elided, field};

/// See the module.
#[derive(Debug)]
pub struct Tensor {
    shared: Shared,
}

impl Tensor {
    /// A view of the chosen tensor.
    pub fn new(shared: Shared) -> Self {
        Self { shared }
    }
}

impl View for Tensor {
    fn id(&self) -> &'static str {
        "explorer.tensor"
    }

    fn title(&self) -> &'static str {
        "Tensor"
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let Some(name) = self.shared.tensor() else {
            let what = "Statistics and the histogram of a tensor appear here once one is chosen in the model tree.";
            if empty(ui, icons::CHART_BAR, what, Some("Go to the model tree")) {
                cx.act(Action::Show("explorer"));
            }
            return;
        };
        let found = match cx.fetch(&Query::tree()) {
            Fetched::Loading => return loading(ui, "The model's tensors are being listed"),
            Fetched::Failed(e) => return failed(cx, ui, e),
            Fetched::Ready(t) | Fetched::Stale(t) => find(t, &name),
        };
        let Some((block, tensor)) = found else {
            empty(
                ui,
                icons::CHART_BAR,
                &format!("The loaded model has no tensor {name}. Choose another one in the model tree."),
                None,
            );
            return;
        };
        egui::Frame::new().inner_margin(theme::PAD).show(ui, |ui| {
            let room = ui.available_size();
            ui.scope(|ui| heading(ui, block, tensor));
            match cx.fetch(&Query::tensor(&name)) {
                Fetched::Loading => loading(ui, "Its values are being read"),
                Fetched::Failed(e) => failed(cx, ui, e),
                Fetched::Ready(stats) | Fetched::Stale(stats) => {
                    if room.x >= 480.0 {
                        ui.horizontal_top(|ui| {
                            let column = egui::Layout::top_down(egui::Align::Min);
                            let size = vec2(200.0, ui.available_height());
                            ui.allocate_ui_with_layout(size, column, |ui| {
                                ui.set_width(200.0);
                                figures(ui, stats);
                            });
                            ui.add_space(theme::PAD);
                            ui.allocate_ui_with_layout(ui.available_size(), column, |ui| histogram(cx, ui, stats));
                        });
                    } else {
                        let high = (ui.available_height() * 0.5).clamp(90.0, 220.0);
                        ui.allocate_ui(vec2(ui.available_width(), high), |ui| histogram(cx, ui, stats));
                        egui::ScrollArea::vertical()
                            .id_salt("figures")
                            .show(ui, |ui| figures(ui, stats));
                    }
                }
            }
        });
    }
}

/// A tensor with its block.
pub(super) fn find<'a>(tree: &'a [BlockView], name: &str) -> Option<(&'a BlockView, &'a TensorView)> {
    tree.iter()
        .find_map(|b| b.tensors.iter().find(|t| t.name == name).map(|t| (b, t)))
}

/// The small form below the tree. True if it was closed.
pub(super) fn card(cx: &mut Context<'_>, ui: &mut egui::Ui, block: &BlockView, tensor: &TensorView) -> bool {
    let p = Palette::of(ui);
    let mut close = false;
    egui::Frame::new()
        .inner_margin(egui::Margin::symmetric(12, 6))
        .show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 2.0;
            ui.horizontal(|ui| {
                let room = ui.available_width() - 56.0;
                let galley = elided(ui, &tensor.name, theme::mono(), p.text, room);
                ui.label(galley).on_hover_text(&tensor.name);
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    ui.spacing_mut().item_spacing.x = 0.0;
                    close = controls::icon_button(ui, icons::X, "Close the tensor").clicked();
                    if controls::icon_button(ui, icons::ARROW_SQUARE_OUT, "Show the tensor large").clicked() {
                        cx.act(Action::Show("explorer.tensor"));
                    }
                });
            });
            facts(ui, block, tensor);
            match cx.fetch(&Query::tensor(&tensor.name)) {
                Fetched::Loading => {
                    let text = RichText::new("Its values are being read").font(theme::caption());
                    ui.label(text.color(p.faint));
                }
                Fetched::Failed(e) => failed(cx, ui, e),
                Fetched::Ready(stats) | Fetched::Stale(stats) => {
                    let text = format!(
                        "mean {}   std {}   {} … {}",
                        fmt::sig3(f64::from(stats.mean)),
                        fmt::sig3(f64::from(stats.std)),
                        fmt::sig3(f64::from(stats.min)),
                        fmt::sig3(f64::from(stats.max)),
                    );
                    ui.add(
                        egui::Label::new(RichText::new(text).font(theme::mono_caption()).color(p.secondary)).truncate(),
                    );
                    if stats.not_finite > 0 {
                        not_finite(ui, stats.not_finite);
                    }
                    ui.allocate_ui(vec2(ui.available_width(), 92.0), |ui| histogram(cx, ui, stats));
                }
            }
        });
    close
}

fn heading(ui: &mut egui::Ui, block: &BlockView, tensor: &TensorView) {
    let p = Palette::of(ui);
    ui.spacing_mut().item_spacing.y = 2.0;
    let name = RichText::new(&tensor.name).font(theme::mono()).color(p.text);
    ui.add(egui::Label::new(name).wrap().selectable(true));
    facts(ui, block, tensor);
    ui.add_space(theme::GRID);
}

/// Where it stands, shape, format, bytes.
fn facts(ui: &mut egui::Ui, block: &BlockView, tensor: &TensorView) {
    let p = Palette::of(ui);
    let place = match block.layer {
        Some(l) => format!("layer {l}, {}", block.block),
        None => block.block.clone(),
    };
    let values = tensor.shape[0] as f64 * tensor.shape[1] as f64;
    let each = tensor.bytes as f64 * 8.0 / values.max(1.0);
    let text = format!(
        "{place}   {}   {}   {}   {} bits per value",
        shape_text(tensor),
        tensor.format,
        fmt::bytes(tensor.bytes).plain(),
        fmt::sig3(each)
    );
    let text = RichText::new(text).font(theme::caption()).color(p.secondary);
    ui.add(egui::Label::new(text).wrap());
}

/// `2 048 × 128`.
pub(super) fn shape_text(tensor: &TensorView) -> String {
    let [rows, columns] = tensor.shape.map(|n| fmt::count(n as u64));
    format!("{rows} × {columns}")
}

fn figures(ui: &mut egui::Ui, s: &TensorStats) {
    ui.spacing_mut().item_spacing.y = 0.0;
    let sampled = s.counted < s.total;
    let figure = |v: f32| {
        let f = fmt::Figure::new(fmt::sig3(f64::from(v)), "");
        if sampled { f.sampled(s.counted) } else { f }
    };
    for (name, value) in [
        ("mean", s.mean),
        ("standard deviation", s.std),
        ("smallest", s.min),
        ("largest", s.max),
    ] {
        controls::figure_row(ui, name, &figure(value));
    }
    let share = fmt::percent(s.zeros as f64 / s.counted.max(1) as f64);
    controls::figure_row(ui, "zeros", &if sampled { share.sampled(s.counted) } else { share });
    controls::figure_row(ui, "values", &fmt::Figure::new(fmt::count(s.total), ""));
    if sampled {
        controls::figure_row(ui, "looked at", &fmt::Figure::new(fmt::count(s.counted), ""));
    }
    if s.not_finite > 0 {
        not_finite(ui, s.not_finite);
    }
}

fn not_finite(ui: &mut egui::Ui, n: u64) {
    let p = Palette::of(ui);
    let text = format!("{} {} NaN or infinite values", icons::WARNING, fmt::count(n));
    ui.label(RichText::new(text).color(p.not_finite));
}

fn csv(s: &TensorStats) -> String {
    let mut csv = Csv::new(["from", "to", "values"]);
    let width = 2.0 * f64::from(s.limit) / s.histogram.len().max(1) as f64;
    for (i, n) in s.histogram.iter().enumerate() {
        let from = -f64::from(s.limit) + i as f64 * width;
        csv.row([field(from), field(from + width), n.to_string()]);
    }
    csv.text()
}

/// The histogram, into the rest of `ui`.
fn histogram(cx: &mut Context<'_>, ui: &mut egui::Ui, s: &TensorStats) {
    let p = Palette::of(ui);
    let limit = f64::from(s.limit);
    let width = 2.0 * limit / s.histogram.len().max(1) as f64;
    let at: Vec<f64> = (0..s.histogram.len())
        .map(|i| -limit + (i as f64 + 0.5) * width)
        .collect();
    let part = Part {
        name: "values".into(),
        color: p.accent,
        heights: s.histogram.iter().map(|n| *n as f64).collect(),
    };
    let about = "Counts over equal bins between plus and minus five standard deviations (less where no value lies that \
        far out); what lies beyond is counted in the outermost bins. Quantised tensors are decoded first.";
    let explain = if s.counted < s.total {
        Explain::sampled(about)
    } else {
        Explain::measured(about)
    };
    let summary = format!(
        "{} values, mean {}, standard deviation {}, from {} to {}",
        fmt::count(s.total),
        fmt::sig3(f64::from(s.mean)),
        fmt::sig3(f64::from(s.std)),
        fmt::sig3(f64::from(s.min)),
        fmt::sig3(f64::from(s.max))
    );
    let zero = Mark {
        x: 0.0,
        text: String::new(),
        color: p.faint,
    };
    Chart::new(
        "Histogram",
        Axis::new("value", Quantity::Plain).range((-limit, limit)),
        Axis::new("values per bin", Quantity::Whole),
        explain,
    )
    .bars(Bars {
        at,
        width: width * 0.92,
        parts: vec![part],
    })
    .marks([zero])
    .summary(summary)
    .show(cx, ui, &|| csv(s));
}
