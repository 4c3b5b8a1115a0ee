//! Resident memory over the text.

use super::metric::{LayerMetric, StepMetric};
use super::shared::{Shared, State, chips, nothing_yet};
use crate::fmt;
use crate::icons;
use crate::theme::Palette;
use crate::views::{Context, View};
use crate::widgets::plots::{Axis, Chart, Csv, Explain, LegendItem, Quantity, field, legend};

/// See the module.
#[derive(Debug)]
pub struct Memory {
    shared: Shared,
}

const ABOUT: &str = "Resident memory of the engine's process (or memory used on the device) after each step, as the \
operating system or driver reports it; and the bytes of the KV cache in use.";

impl Memory {
    /// A view of the shared history.
    pub fn new(shared: Shared) -> Self {
        Self { shared }
    }
}

fn csv(state: &State) -> String {
    let mut csv = Csv::new(["token", "memory bytes", "kv bytes"]);
    for i in state.samples() {
        let memory = state.history.step(StepMetric::Memory).get(i);
        let kv = state.history.all_layers(LayerMetric::KvBytes).get(i);
        csv.row([state.history.x(i), f64::from(memory), f64::from(kv)].map(field));
    }
    csv.text()
}

impl View for Memory {
    fn id(&self) -> &'static str {
        "telemetry.memory"
    }

    fn title(&self) -> &'static str {
        "Memory"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if self.shared.pull(cx.store).history.is_empty() {
            return;
        }
        chips(&self.shared, cx, ui);
        let p = Palette::of(ui);
        let state = self.shared.pull(cx.store);
        let figure = |v: f64| v.is_finite().then(|| fmt::bytes(v as u64));
        let items = [
            LegendItem::new("process", p.accent, figure(state.step_value(cx, StepMetric::Memory))),
            LegendItem::new("KV cache", p.kv[0], figure(state.all_value(cx, LayerMetric::KvBytes))),
        ];
        drop(state);
        legend(ui, &items);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let shared = self.shared.clone();
        let mut state = shared.pull(cx.store);
        let series = state.history.step(StepMetric::Memory);
        let (_, high) = series.range(series.first()..series.end());
        if high.is_nan() {
            drop(state);
            return nothing_yet(
                cx,
                ui,
                icons::MEMORY,
                "Memory in use appears here while a text is written.",
            );
        }
        let p = Palette::of(ui);
        let last = f64::from(series.last());
        let chart = Chart::new(
            "Memory",
            Axis::new("token", Quantity::Whole).range(state.axis()),
            Axis::new("in use", Quantity::Bytes),
            Explain::measured(ABOUT),
        )
        .trace(state.trace("process", p.accent, state.history.step(StepMetric::Memory)))
        .trace(state.trace("KV cache", p.kv[0], state.history.all_layers(LayerMetric::KvBytes)))
        .cursor(state.cursor(cx))
        .marks(state.marks(cx.store, p))
        .summary(format!("process {}", Quantity::Bytes.figure(last).plain()));
        let back = chart.show(cx, ui, &|| csv(&state));
        state.select(cx, back.hover, back.clicked);
        state.zoom(back.zoom);
    }
}
