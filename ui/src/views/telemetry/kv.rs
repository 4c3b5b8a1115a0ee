//! Bytes of the KV cache: by layer and component, over the text, and beside other layouts.

use protocol::{KvBaselines, KvBytes, KvFit};

use super::layers::{MOST_BARS, layer_axis, select_layer};
use super::metric::LayerMetric;
use super::shared::{Shared, State, chips, nothing_yet};
use super::speed::estimated;
use crate::fmt;
use crate::icons;
use crate::store::{Fetched, Query};
use crate::theme::Palette;
use crate::views::{Context, View, failed, loading};
use crate::widgets::plots::{
    Axis, Bars, Chart, Csv, Explain, LegendItem, Mark, Part, Quantity, Trace, choice, field, legend,
};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Show {
    #[default]
    ByLayer,
    OverText,
    Baselines,
}

/// See the module.
#[derive(Debug)]
pub struct Kv {
    shared: Shared,
    show: Show,
}

const COUNTED: &str = "Bytes of the cache in use after the step, per layer and component: window (raw rows), compressed \
rows, indexer keys, scales, pooling state, checkpoints for rewinding. Counted by the engine (DESIGN, telemetry L0).";
const FITTED: &str = "Each layout as fixed part + slope per token, from its record sizes, for as many layers as this model \
has; never bytes per token alone, because MODEL1's windows cost the same at any length. The solid line is what this \
session uses, its checkpoints for rewinding left out. A mark stands where this recipe becomes the smaller one.";

impl Kv {
    /// A view of the shared history.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            show: Show::default(),
        }
    }

    fn by_layer(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &State) {
        let p = Palette::of(ui);
        let Some(sample) = state.sample(cx) else { return };
        let layers = state.history.layers();
        let parts: Vec<[f32; 6]> = (0..layers).map(|l| state.history.layer_parts(l, sample)).collect();
        let total = state.all_value(cx, LayerMetric::KvBytes);
        let token = Quantity::Whole.figure(state.history.x(sample)).plain();
        let chart = Chart::new(
            "KV bytes by layer",
            Axis::new("layer", Quantity::Whole).range(layer_axis(layers)),
            Axis::new("in use", Quantity::Bytes),
            Explain::measured(COUNTED),
        )
        .bars(stacked(&parts, p))
        .cursor(cx.shown().layer.map(f64::from))
        .summary(format!(
            "at token {token}: all layers {}",
            Quantity::Bytes.figure(total).plain()
        ));
        let back = chart.show(cx, ui, &|| csv_by_layer(&parts));
        select_layer(cx, back.hover, back.clicked, layers);
    }

    fn over_text(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &mut State) {
        let p = Palette::of(ui);
        let total = f64::from(state.history.all_layers(LayerMetric::KvBytes).last());
        let mut chart = Chart::new(
            "KV bytes over the text",
            Axis::new("token", Quantity::Whole).range(state.axis()),
            Axis::new("in use", Quantity::Bytes),
            Explain::measured(COUNTED),
        )
        .cursor(state.cursor(cx))
        .summary(format!("all layers {}", Quantity::Bytes.figure(total).plain()));
        for (i, (name, _)) in KvBytes::default().parts().into_iter().enumerate() {
            let series = &state.history.parts()[i];
            let (_, high) = series.range(state.samples());
            if high > 0.0 {
                let mut line = state.trace(name, p.kv[i], series);
                (line.end_label, line.width) = (false, 1.25);
                chart = chart.trace(line);
            }
        }
        chart = chart.trace(state.trace("all", p.text, state.history.all_layers(LayerMetric::KvBytes)));
        if let Some(fits) = cx.fetch(&Query::baselines()).value() {
            chart = chart.marks(crossovers(&fits.fits, state.axis(), p));
        }
        let marks = state.marks(cx.store, p);
        let back = chart.marks(marks).show(cx, ui, &|| csv_over_text(state));
        state.select(cx, back.hover, back.clicked);
        state.zoom(back.zoom);
    }

    fn baselines(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &State) {
        let p = Palette::of(ui);
        let fits = match cx.fetch(&Query::baselines()) {
            Fetched::Loading => return loading(ui, "Other layouts are being computed"),
            Fetched::Failed(e) => return failed(cx, ui, e),
            Fetched::Ready(b) | Fetched::Stale(b) => b,
        };
        let used = state.tokens().end as f64;
        let farthest = fits.fits.iter().filter_map(|f| f.crossover).max().unwrap_or(0) as f64;
        let right = (used * 1.25).max(farthest * 2.0).max(256.0);
        let mut chart = Chart::new(
            "KV bytes beside other layouts",
            Axis::new("context, tokens", Quantity::Whole).range((0.0, right)),
            Axis::new("all layers", Quantity::Bytes),
            Explain::estimated(FITTED),
        )
        .summary(baseline_summary(fits))
        .cursor(cx.shown().token.map(|t| t as f64));
        for (i, fit) in fits.fits.iter().enumerate() {
            let points = [0.0, right * 0.5, right]
                .map(|x| [x, fit.fixed + fit.slope * x])
                .to_vec();
            chart = chart.trace(estimated(Trace::new(&fit.name, fit_color(p, i), points)));
        }
        // Checkpoints for rewinding are the session's, not the layout's: without them the lines can be compared.
        let own = &state.history.parts()[..5];
        let series = state.history.all_layers(LayerMetric::KvBytes);
        let measured = series
            .buckets(state.history.first()..state.history.end(), super::shared::MOST_POINTS)
            .map(|b| {
                let sum: f64 = own.iter().map(|part| f64::from(part.get(b.end - 1))).sum();
                [state.history.x(b.end - 1) + 1.0, sum]
            })
            .collect();
        let mut line = Trace::new("measured, without checkpoints", p.text, measured);
        line.end_label = false;
        chart = chart.trace(line).marks(crossovers(&fits.fits, (0.0, right), p));
        chart.show(cx, ui, &|| csv_baselines(fits, right));
    }
}

/// Colour of a layout: the recipe in force is A's.
fn fit_color(p: &Palette, i: usize) -> egui::Color32 {
    match i {
        0 => p.accent,
        1 => p.secondary,
        2 => p.kv[2],
        _ => p.kv[4],
    }
}

/// Marks where this recipe becomes smaller than another layout.
fn crossovers(fits: &[KvFit], axis: (f64, f64), p: &Palette) -> Vec<Mark> {
    let marks = fits.iter().enumerate().skip(1).filter_map(|(i, fit)| {
        let x = fit.crossover.filter(|c| *c > 0)? as f64;
        let inside = x >= axis.0 && x <= axis.1;
        inside.then(|| Mark {
            x,
            text: format!("< {}", short_name(&fit.name)),
            color: fit_color(p, i),
        })
    });
    marks.collect()
}

/// The first words of a layout's name.
fn short_name(name: &str) -> &str {
    name.split([' ', '(']).next().unwrap_or(name)
}

fn baseline_summary(fits: &KvBaselines) -> String {
    let words = fits.fits.iter().skip(1).map(|f| match f.crossover {
        Some(0) => format!("smaller than {} at any length", f.name),
        Some(n) => format!("smaller than {} from {} tokens on", f.name, fmt::count(n)),
        None => format!("never smaller than {}", f.name),
    });
    words.collect::<Vec<_>>().join("; ")
}

/// One stack per layer, or per run of layers (their mean).
fn stacked(parts: &[[f32; 6]], p: &Palette) -> Bars {
    let block = parts.len().div_ceil(MOST_BARS).max(1);
    let names = KvBytes::default().parts();
    Bars {
        at: parts
            .chunks(block)
            .enumerate()
            .map(|(i, run)| (i * block) as f64 + (run.len() as f64 - 1.0) * 0.5)
            .collect(),
        width: block as f64 * if parts.len() > 100 { 1.0 } else { 0.72 },
        parts: (0..6)
            .map(|i| Part {
                name: names[i].0.to_string(),
                color: p.kv[i],
                heights: parts
                    .chunks(block)
                    .map(|run| run.iter().map(|l| f64::from(l[i])).sum::<f64>() / run.len() as f64)
                    .collect(),
            })
            .collect(),
    }
}

fn csv_by_layer(parts: &[[f32; 6]]) -> String {
    let names = KvBytes::default().parts().map(|(n, _)| n);
    let mut csv = Csv::new(std::iter::once("layer").chain(names));
    for (layer, values) in parts.iter().enumerate() {
        csv.row(std::iter::once(layer.to_string()).chain(values.iter().map(|v| field(f64::from(*v)))));
    }
    csv.text()
}

fn csv_over_text(state: &State) -> String {
    let names = KvBytes::default().parts().map(|(n, _)| n);
    let mut csv = Csv::new(["token"].into_iter().chain(names));
    for i in state.samples() {
        let values = state.history.parts().iter().map(|s| field(f64::from(s.get(i))));
        csv.row(std::iter::once(field(state.history.x(i))).chain(values));
    }
    csv.text()
}

fn csv_baselines(fits: &KvBaselines, right: f64) -> String {
    let mut csv = Csv::new([
        "layout",
        "fixed bytes",
        "bytes per token",
        "crossover tokens",
        "bytes at the right end",
    ]);
    for f in &fits.fits {
        let crossover = f.crossover.map(|c| c.to_string()).unwrap_or_default();
        csv.row([
            f.name.clone(),
            field(f.fixed),
            field(f.slope),
            crossover,
            field(f.fixed + f.slope * right),
        ]);
    }
    csv.text()
}

impl View for Kv {
    fn id(&self) -> &'static str {
        "telemetry.kv"
    }

    fn title(&self) -> &'static str {
        "KV cache"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if self.shared.pull(cx.store).history.is_empty() {
            return;
        }
        chips(&self.shared, cx, ui);
        let all = [
            (Show::ByLayer, "by layer"),
            (Show::OverText, "over text"),
            (Show::Baselines, "beside others"),
        ];
        choice(ui, "Chart", &mut self.show, &all);
        let p = Palette::of(ui);
        let mut items = Vec::new();
        if self.show == Show::Baselines {
            if let Some(b) = cx.fetch(&Query::baselines()).value() {
                items.extend(
                    b.fits
                        .iter()
                        .enumerate()
                        .map(|(i, f)| LegendItem::new(short(&f.name), fit_color(p, i), None)),
                );
            }
            items.push(LegendItem::new("measured", p.text, None));
        } else {
            let state = self.shared.pull(cx.store);
            if let Some(sample) = state.sample(cx) {
                for (i, (name, _)) in KvBytes::default().parts().into_iter().enumerate() {
                    let v = state.history.parts()[i].get(sample);
                    if v > 0.0 {
                        items.push(LegendItem::new(name, p.kv[i], Some(fmt::bytes(v as u64))));
                    }
                }
            }
        }
        legend(ui, &items);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let shared = self.shared.clone();
        let mut state = shared.pull(cx.store);
        if state.history.is_empty() {
            drop(state);
            return nothing_yet(
                cx,
                ui,
                icons::DATABASE,
                "The bytes of the KV cache appear here while a text is written.",
            );
        }
        match self.show {
            Show::ByLayer => self.by_layer(cx, ui, &state),
            Show::OverText => self.over_text(cx, ui, &mut state),
            Show::Baselines => self.baselines(cx, ui, &state),
        }
    }
}

/// `this recipe` stays, `R1-Distill-Qwen-1.5B (GQA)` loses its brackets.
fn short(name: &str) -> &str {
    name.split(" (").next().unwrap_or(name)
}
