//! One figure of every layer: at the selected token, and over the text.

use super::metric::LayerMetric;
use super::shared::{Shared, State, chips, nothing_yet};
use crate::icons;
use crate::selection::Spot;
use crate::theme::Palette;
use crate::views::{Context, View};
use crate::widgets::plots::{
    Axis, Bars, Chart, Csv, Explain, LegendItem, Part, Quantity, Trace, choice, field, legend,
};

/// Layers up to which each one has its own line.
const OWN_LINES: usize = 8;
/// Bars up to which each layer has its own.
pub(super) const MOST_BARS: usize = 512;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Show {
    #[default]
    ByLayer,
    OverText,
}

/// See the module.
#[derive(Debug)]
pub struct Layers {
    shared: Shared,
    metric: LayerMetric,
    show: Show,
}

impl Layers {
    /// A view of one figure.
    pub fn new(shared: Shared, metric: LayerMetric) -> Self {
        Self {
            shared,
            metric,
            show: Show::default(),
        }
    }

    fn by_layer(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &State) {
        let p = Palette::of(ui);
        let Some(sample) = state.sample(cx) else { return };
        let values: Vec<f64> = (0..state.history.layers())
            .map(|l| layer_value(state, l, self.metric, sample))
            .collect();
        let bars = bars(&values, p.accent, self.metric.name());
        let token = state.history.x(sample);
        let all = f64::from(state.history.all_layers(self.metric).get(sample));
        let summary = format!(
            "at token {}: {} {}",
            Quantity::Whole.figure(token).plain(),
            self.metric.all_layers(),
            self.metric.quantity().figure(all).plain()
        );
        let about = self.about();
        let reach = if self.metric.quantity() == Quantity::Share {
            // Below 0 where window and rows are more than there are tokens.
            let least = values.iter().copied().filter(|v| v.is_finite()).fold(0.0, f64::min);
            Some((least, 1.0))
        } else {
            None
        };
        let axis = Axis::new("layer", Quantity::Whole).range(layer_axis(values.len()));
        let y = Axis {
            range: reach,
            ..Axis::new(self.metric.name(), self.metric.quantity())
        };
        let chart = Chart::new(self.title_text(), axis, y, Explain::measured(&about))
            .bars(bars)
            .cursor(cx.shown().layer.map(f64::from))
            .summary(summary);
        let back = chart.show(cx, ui, &|| csv(state, self.metric));
        select_layer(cx, back.hover, back.clicked, values.len());
    }

    fn over_text(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &mut State) {
        let p = Palette::of(ui);
        let layers = state.history.layers();
        let all = state.trace(
            self.metric.all_layers(),
            p.accent,
            state.history.all_layers(self.metric),
        );
        let about = self.about();
        let y = Axis::new(self.metric.name(), self.metric.quantity());
        let mut chart = Chart::new(
            self.title_text(),
            Axis::new("token", Quantity::Whole).range(state.axis()),
            y,
            Explain::measured(&about),
        )
        .marks(state.marks(cx.store, p))
        .cursor(state.cursor(cx));
        if layers <= OWN_LINES {
            for layer in 0..layers {
                if let Some(series) = state.history.layer(layer, self.metric) {
                    let mut line = state.trace(format!("layer {layer}"), p.layer(layer, layers), series);
                    (line.width, line.end_label) = (1.0, false);
                    chart = chart.trace(line);
                }
            }
        } else {
            chart = chart.trace(reach_of_layers(state, self.metric, p));
        }
        if let Some(layer) = cx.shown().layer
            && let Some(series) = state.history.layer(layer as usize, self.metric)
        {
            let mut line = state.trace(format!("layer {layer}"), p.text, series);
            line.width = 2.0;
            chart = chart.trace(line);
        }
        let last = f64::from(state.history.all_layers(self.metric).last());
        let summary = format!(
            "{} {}",
            self.metric.all_layers(),
            self.metric.quantity().figure(last).plain()
        );
        let back = chart
            .trace(all)
            .summary(summary)
            .show(cx, ui, &|| csv(state, self.metric));
        state.select(cx, back.hover, back.clicked);
        state.zoom(back.zoom);
    }

    fn about(&self) -> String {
        format!(
            "{} Together: {}. (DESIGN, telemetry L0.)",
            self.metric.definition(),
            self.metric.all_layers()
        )
    }

    fn title_text(&self) -> &'static str {
        match self.metric {
            LayerMetric::Error => "FP8 round-trip error",
            _ => "Sparsity ratio",
        }
    }
}

/// The value of a layer at a sample. Layers that only report now and then (rows are quantised when they close) keep
/// their last value.
pub(super) fn layer_value(state: &State, layer: usize, metric: LayerMetric, sample: u64) -> f64 {
    let Some(series) = state.history.layer(layer, metric) else {
        return f64::NAN;
    };
    // A CSA row closes every 4 tokens, an HCA row every 128.
    const BACK: u64 = 128;
    let at = (sample.saturating_sub(BACK)..=sample)
        .rev()
        .map(|i| series.get(i))
        .find(|v| !v.is_nan());
    at.map_or(f64::NAN, f64::from)
}

/// One bar per layer, or per run of layers (their mean) in very deep models.
pub(super) fn bars(values: &[f64], color: egui::Color32, name: &str) -> Bars {
    let block = values.len().div_ceil(MOST_BARS).max(1);
    let mean = |run: &[f64]| {
        let (sum, n) = run
            .iter()
            .filter(|v| v.is_finite())
            .fold((0.0, 0), |(s, n), v| (s + v, n + 1));
        if n == 0 { f64::NAN } else { sum / f64::from(n) }
    };
    Bars {
        at: values
            .chunks(block)
            .enumerate()
            .map(|(i, run)| (i * block) as f64 + (run.len() as f64 - 1.0) * 0.5)
            .collect(),
        width: block as f64 * if values.len() > 100 { 1.0 } else { 0.72 },
        parts: vec![Part {
            name: name.to_string(),
            color,
            heights: values.chunks(block).map(mean).collect(),
        }],
    }
}

/// The x axis of bars by layer.
pub(super) fn layer_axis(layers: usize) -> (f64, f64) {
    (-0.6, layers as f64 - 0.4)
}

/// Hover and click of a chart by layer.
pub(super) fn select_layer(cx: &mut Context<'_>, hover: Option<[f64; 2]>, clicked: Option<[f64; 2]>, layers: usize) {
    let layer = |at: [f64; 2]| Some(at[0].round().max(0.0) as u32).filter(|l| (*l as usize) < layers);
    if let Some(layer) = hover.and_then(layer) {
        cx.hover(Spot::layer(layer));
    }
    if let Some(layer) = clicked.and_then(layer) {
        cx.selection.click(Spot::layer(layer));
    }
}

/// Smallest and largest of all layers as a band.
fn reach_of_layers(state: &State, metric: LayerMetric, p: &Palette) -> Trace {
    let mut band = Vec::new();
    let buckets = state
        .history
        .all_layers(metric)
        .buckets(state.samples(), super::shared::MOST_POINTS / 3);
    for bucket in buckets {
        let mut reach = (f32::NAN, f32::NAN);
        for layer in 0..state.history.layers() {
            if let Some(series) = state.history.layer(layer, metric) {
                let (lo, hi) = series.range(bucket.first..bucket.end);
                reach = (reach.0.min(lo), reach.1.max(hi));
            }
        }
        if !reach.0.is_nan() {
            let x = state.history.x((bucket.first + bucket.end - 1) / 2);
            band.push([x, f64::from(reach.0), f64::from(reach.1)]);
        }
    }
    Trace {
        band,
        end_label: false,
        ..Trace::new("layers", p.secondary, Vec::new())
    }
}

/// Every step and layer on the time axis.
fn csv(state: &State, metric: LayerMetric) -> String {
    let layers = state.history.layers();
    let header = ["token".to_string(), metric.all_layers().to_string()];
    let mut csv = Csv::new(header.into_iter().chain((0..layers).map(|l| format!("layer {l}"))));
    for i in state.samples() {
        let own = (0..layers).map(|l| state.history.layer(l, metric).map_or(f32::NAN, |s| s.get(i)));
        let all = state.history.all_layers(metric).get(i);
        let values = std::iter::once(all).chain(own).map(|v| field(f64::from(v)));
        csv.row(std::iter::once(field(state.history.x(i))).chain(values));
    }
    csv.text()
}

impl View for Layers {
    fn id(&self) -> &'static str {
        match self.metric {
            LayerMetric::Error => "telemetry.error",
            _ => "telemetry.sparsity",
        }
    }

    fn title(&self) -> &'static str {
        match self.metric {
            LayerMetric::Error => "FP8 error",
            _ => "Sparsity",
        }
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if self.shared.pull(cx.store).history.is_empty() {
            return;
        }
        chips(&self.shared, cx, ui);
        choice(
            ui,
            "Chart",
            &mut self.show,
            &[(Show::ByLayer, "by layer"), (Show::OverText, "over text")],
        );
        let p = Palette::of(ui);
        let state = self.shared.pull(cx.store);
        let figure = |v: f64| v.is_finite().then(|| self.metric.quantity().figure(v));
        let mut items = Vec::new();
        if let (Some(layer), Some(sample)) = (cx.shown().layer, state.sample(cx)) {
            let v = layer_value(&state, layer as usize, self.metric, sample);
            items.push(LegendItem::new(format!("layer {layer}"), p.text, figure(v)));
        }
        items.push(LegendItem::new(
            self.metric.all_layers(),
            p.accent,
            figure(state.all_value(cx, self.metric)),
        ));
        drop(state);
        legend(ui, &items);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let shared = self.shared.clone();
        let mut state = shared.pull(cx.store);
        if state.history.is_empty() {
            drop(state);
            let what = match self.metric {
                LayerMetric::Error => {
                    "The rounding error of each layer's cache rows appears here while a text is written."
                }
                _ => "How many keys each layer skips appears here while a text is written.",
            };
            return nothing_yet(cx, ui, icons::CHART_BAR, what);
        }
        let (low, _) = state
            .history
            .all_layers(self.metric)
            .range(state.history.first()..state.history.end());
        if self.metric == LayerMetric::Error && low.is_nan() {
            drop(state);
            let what = "No layer quantises its cache: every row is stored as f32 or bf16.";
            if crate::views::empty(ui, icons::CHART_BAR, what, Some("Choose another cache format")) {
                cx.act(crate::views::Action::Show("blocks"));
            }
            return;
        }
        match self.show {
            Show::ByLayer => self.by_layer(cx, ui, &state),
            Show::OverText => self.over_text(cx, ui, &mut state),
        }
    }
}
