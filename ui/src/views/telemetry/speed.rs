//! Tokens per second and the time between tokens.

use super::history::{LATENCY_WINDOW, RATE_WINDOW};
use super::metric::StepMetric;
use super::shared::{Shared, State, chips, nothing_yet};
use crate::fmt;
use crate::icons;
use crate::theme::Palette;
use crate::views::{Context, View};
use crate::widgets::plots::{Axis, Chart, Csv, Explain, LegendItem, Quantity, Trace, choice, field, legend};

/// Height from which both charts are shown.
const BOTH: f32 = 300.0;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Show {
    #[default]
    Rate,
    Latency,
}

/// See the module.
#[derive(Debug)]
pub struct Speed {
    shared: Shared,
    show: Show,
    both: bool,
}

impl Speed {
    /// A view of the shared history.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            show: Show::default(),
            both: false,
        }
    }

    fn rate(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &mut State) {
        let p = Palette::of(ui);
        let decode = state.trace("decode", p.accent, state.history.step(StepMetric::DecodeRate));
        let last = state.history.step(StepMetric::DecodeRate).last();
        let prefill = state.history.step(StepMetric::PrefillRate);
        let (_, fastest) = prefill.range(state.samples());
        let mut summary = format!("decode {}", fmt::rate(f64::from(last)).plain());
        if fastest.is_finite() {
            summary.push_str(&format!(", prefill {}", fmt::rate(f64::from(fastest)).plain()));
        }
        let about = format!(
            "Decode: tokens of the last {RATE_WINDOW} decode steps / their wall time. Prefill: tokens of a step that reads a \
             prompt / its wall time; it is given in the title and not drawn, because it is an order of magnitude faster. \
             Wall time is measured in the engine around each step (DESIGN, telemetry L0)."
        );
        let chart = Chart::new(
            "Tokens per second",
            Axis::new("token", Quantity::Whole).range(state.axis()),
            Axis::new("decode", Quantity::TokensPerSecond),
            Explain::measured(&about),
        )
        .trace(decode)
        .marks(state.marks(cx.store, p))
        .cursor(state.cursor(cx))
        .summary(summary);
        let back = chart.show(cx, ui, &|| csv(state));
        state.select(cx, back.hover, back.clicked);
        state.zoom(back.zoom);
    }

    fn latency(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &mut State) {
        let p = Palette::of(ui);
        let mut each = state.trace("each token", p.faint, state.history.step(StepMetric::StepMs));
        (each.width, each.end_label) = (1.0, false);
        let lines = percentiles(p).map(|(metric, color)| state.trace(metric.name(), color, state.history.step(metric)));
        let summary = percentiles(p)
            .map(|(m, _)| {
                let v = f64::from(state.history.step(m).last());
                format!("{} {}", m.name(), m.quantity().figure(v).plain())
            })
            .join(", ");
        let about = format!(
            "Wall time of each decode step (one token), and the 50th, 95th and 99th percentile over the last {LATENCY_WINDOW} \
             decode steps, interpolated between neighbours. Steps that read a prompt are left out."
        );
        let chart = Chart::new(
            "Time between tokens",
            Axis::new("token", Quantity::Whole).range(state.axis()),
            Axis::new("time", Quantity::Milliseconds),
            Explain::measured(&about),
        )
        .trace(each)
        .traces(lines)
        .marks(state.marks(cx.store, p))
        .cursor(state.cursor(cx))
        .summary(summary);
        let back = chart.show(cx, ui, &|| csv(state));
        state.select(cx, back.hover, back.clicked);
        state.zoom(back.zoom);
    }
}

/// The percentiles with their colours.
fn percentiles(p: &Palette) -> [(StepMetric, egui::Color32); 3] {
    [
        (StepMetric::P50, p.accent),
        (StepMetric::P95, p.kv[1]),
        (StepMetric::P99, p.kv[2]),
    ]
}

/// Every step on the time axis.
fn csv(state: &State) -> String {
    let header = [
        "token",
        "tokens",
        "decode tokens/s",
        "prefill tokens/s",
        "ms",
        "p50 ms",
        "p95 ms",
        "p99 ms",
    ];
    let mut csv = Csv::new(header);
    for i in state.samples() {
        let Some((first, tokens)) = state.history.span(i) else {
            continue;
        };
        let mut row = vec![
            (first + u64::from(tokens)).saturating_sub(1).to_string(),
            tokens.to_string(),
        ];
        let columns = [
            StepMetric::DecodeRate,
            StepMetric::PrefillRate,
            StepMetric::StepMs,
            StepMetric::P50,
            StepMetric::P95,
            StepMetric::P99,
        ];
        row.extend(columns.map(|m| field(f64::from(state.history.step(m).get(i)))));
        csv.row(row);
    }
    csv.text()
}

impl View for Speed {
    fn id(&self) -> &'static str {
        "telemetry.speed"
    }

    fn title(&self) -> &'static str {
        "Speed"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if self.shared.pull(cx.store).history.is_empty() {
            return;
        }
        chips(&self.shared, cx, ui);
        if !self.both {
            choice(
                ui,
                "Chart",
                &mut self.show,
                &[(Show::Rate, "tokens/s"), (Show::Latency, "latency")],
            );
        }
        let p = Palette::of(ui);
        let state = self.shared.pull(cx.store);
        let value = |metric: StepMetric| {
            let v = state.step_value(cx, metric);
            v.is_finite().then(|| metric.quantity().figure(v))
        };
        let mut items = Vec::new();
        if self.both || self.show == Show::Rate {
            items.push(LegendItem::new("decode", p.accent, value(StepMetric::DecodeRate)));
            let (_, fastest) = state.history.step(StepMetric::PrefillRate).range(state.samples());
            if fastest.is_finite() {
                items.push(LegendItem::new("prefill", p.faint, Some(fmt::rate(f64::from(fastest)))));
            }
        }
        if self.both || self.show == Show::Latency {
            items.extend(percentiles(p).map(|(m, color)| LegendItem::new(m.name(), color, value(m))));
        }
        drop(state);
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
                icons::GAUGE,
                "Tokens per second and latency appear here while a text is written.",
            );
        }
        self.both = ui.available_height() >= BOTH;
        if self.both {
            let half = egui::vec2(ui.available_width(), ui.available_height() * 0.5);
            ui.allocate_ui(half, |ui| self.rate(cx, ui, &mut state));
            self.latency(cx, ui, &mut state);
        } else if self.show == Show::Rate {
            self.rate(cx, ui, &mut state);
        } else {
            self.latency(cx, ui, &mut state);
        }
    }
}

/// A dashed line of an estimate.
pub(super) fn estimated(mut trace: Trace) -> Trace {
    trace.dashed = true;
    trace
}
