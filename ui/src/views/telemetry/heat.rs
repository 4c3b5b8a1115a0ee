//! Layers x tokens of any figure: from telemetry as it comes, or computed by replaying the text.

use std::cell::RefCell;
use std::ops::Range;

use protocol::TokenLayerMetric;

use super::history::History;
use super::metric::LayerMetric;
use super::shared::{Shared, State, chips, nothing_yet};
use crate::icons;
use crate::selection::Spot;
use crate::store::{Fetched, Query};
use crate::theme::{self, Palette};
use crate::views::{Context, View, failed, loading};
use crate::widgets::heatmap::{Dense, Grid, HeatState, Heatmap, Labels, MASKED, Shades, color_bar, range_of};
use crate::widgets::plots::{Csv, Explain, Quantity, Zoom, field};

/// Which figure.
#[derive(Clone, Debug, PartialEq)]
enum Chosen {
    Live(LayerMetric),
    Replayed(String),
}

/// See the module.
#[derive(Debug)]
pub struct Heat {
    shared: Shared,
    chosen: Chosen,
    heat: HeatState,
    replayed: Option<(usize, Dense)>,
}

/// The history as a grid: a column per token, a row per layer.
struct Live<'a> {
    history: &'a History,
    metric: LayerMetric,
    cols: usize,
    revision: u64,
    /// Samples of the column asked for last: pictures are made column by column.
    column: RefCell<(Range<usize>, Range<u64>)>,
}

impl Grid for Live<'_> {
    fn rows(&self) -> usize {
        self.history.layers()
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn revision(&self) -> u64 {
        self.revision
    }

    fn pooled(&self, rows: Range<usize>, cols: Range<usize>) -> f32 {
        let mut column = self.column.borrow_mut();
        if column.0 != cols {
            let tokens = cols.start as u64..(cols.end.min(self.cols)) as u64;
            *column = (cols, self.history.samples_of(tokens));
        }
        let mut high = f32::NAN;
        for row in rows {
            if let Some(series) = self.history.layer(row, self.metric) {
                high = high.max(series.range(column.1.clone()).1);
            }
        }
        if high.is_nan() { MASKED } else { high }
    }
}

impl Heat {
    /// A view of the shared history.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            chosen: Chosen::Live(LayerMetric::Sparsity),
            heat: HeatState::default(),
            replayed: None,
        }
    }

    fn live(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, state: &mut State, metric: LayerMetric) {
        let tokens = state.tokens();
        let grid = Live {
            history: &state.history,
            metric,
            cols: tokens.end as usize,
            revision: state.history.revision().wrapping_mul(64) + metric.index() as u64 + (tokens.end << 40),
            column: RefCell::new((0..0, 0..0)),
        };
        let (x0, x1) = state.axis();
        let about = format!(
            "{} One value per layer and step; several steps under one pixel show their largest value. Hatched: \
             nothing was reported.",
            metric.definition()
        );
        let shown = cx.shown();
        let summary = format!(
            "{} of {} layers over {} tokens",
            metric.name(),
            state.history.layers(),
            tokens.end
        );
        let back = Heatmap::new(
            "Layers x tokens",
            &grid,
            shades(state, metric),
            metric.quantity(),
            Explain::measured(&about),
        )
        .labels(Labels::Numbers("layer", 0), Labels::Numbers("token", 0))
        .highlight(shown.layer.map(|l| l as usize), state.cursor(cx).map(|x| x as usize))
        .linked_cols((x0, x1 + 1.0))
        .summary(summary)
        .show(cx, ui, &mut self.heat, &|| csv(state, metric));
        select(cx, back.hover, back.clicked);
        match back.zoomed {
            Some(Some(zoom)) => state.zoom(Some(Zoom::To(zoom.cols.0, zoom.cols.1 - 1.0))),
            Some(None) => state.zoom(Some(Zoom::Reset)),
            None => {}
        }
    }

    fn replay(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, name: &str) {
        let metric = match cx.fetch(&Query::metric(name)) {
            Fetched::Loading => return loading(ui, "The text is being replayed"),
            Fetched::Failed(e) => return failed(cx, ui, e),
            Fetched::Ready(m) | Fetched::Stale(m) => m,
        };
        let grid = replayed(&mut self.replayed, metric);
        let about = format!(
            "{} of the residual stream per layer and token: {}, computed by replaying the text with probes \
             (instrumented); the running text is not touched.",
            metric.name, metric.name
        );
        let (low, high) = grid.range().unwrap_or((0.0, 1.0));
        let shown = cx.shown();
        let summary = format!(
            "{} of {} layers over {} tokens",
            metric.name, metric.layers, metric.tokens
        );
        let back = Heatmap::new(
            "Layers x tokens",
            grid,
            Shades::sequential(low, high),
            Quantity::Plain,
            Explain::measured(&about),
        )
        .labels(Labels::Numbers("layer", 0), Labels::Numbers("token", 0))
        .highlight(shown.layer.map(|l| l as usize), shown.token.map(|t| t as usize))
        .summary(summary)
        .show(cx, ui, &mut self.heat, &|| csv_replayed(metric));
        select(cx, back.hover, back.clicked);
    }
}

/// The grid of a replayed figure, made when it changed.
fn replayed<'a>(made: &'a mut Option<(usize, Dense)>, metric: &TokenLayerMetric) -> &'a Dense {
    // A new answer is decoded while the old one is held, so its values lie elsewhere.
    let key = metric.values.as_ptr() as usize;
    let stale = made
        .as_ref()
        .is_none_or(|(k, grid)| *k != key || grid.cols() != metric.tokens as usize);
    if stale {
        let values: Vec<f32> = metric
            .values
            .iter()
            .map(|v| if v.is_nan() { MASKED } else { *v })
            .collect();
        *made = None;
        return &made
            .insert((key, Dense::new(values, metric.tokens as usize, key as u64)))
            .1;
    }
    &made.get_or_insert_with(|| (key, Dense::new(Vec::new(), 0, 0))).1
}

fn shades(state: &State, metric: LayerMetric) -> Shades {
    let all = state.history.first()..state.history.end();
    let each = (0..state.history.layers())
        .filter_map(|l| state.history.layer(l, metric))
        .flat_map(|s| {
            let (lo, hi) = s.range(all.clone());
            [lo, hi]
        });
    let (low, high) = range_of(each.filter(|v| !v.is_nan())).unwrap_or((0.0, 1.0));
    match metric.quantity() {
        // In steps of a tenth: the colours hold still while the text grows.
        Quantity::Share if high > 0.1 => Shades::sequential(0.0, (high * 10.0).ceil() / 10.0),
        // Where nothing is above 0 there is still a range to name.
        Quantity::Share if high <= 0.0 => Shades::sequential(0.0, 0.1),
        Quantity::Share | Quantity::Bytes => Shades::sequential(0.0, high.max(f32::MIN_POSITIVE)),
        _ => Shades::sequential(low.min(high * 0.999), high.max(f32::MIN_POSITIVE)),
    }
}

fn select(cx: &mut Context<'_>, hover: Option<(usize, usize)>, clicked: Option<(usize, usize)>) {
    let spot = |(row, col): (usize, usize)| Spot::cell(row as u32, col as u64);
    if let Some(cell) = hover {
        cx.hover(spot(cell));
    }
    if let Some(cell) = clicked {
        cx.selection.click(spot(cell));
    }
}

fn csv(state: &State, metric: LayerMetric) -> String {
    let layers = state.history.layers();
    let mut csv = Csv::new(std::iter::once("token".to_string()).chain((0..layers).map(|l| format!("layer {l}"))));
    for i in state.samples() {
        let values = (0..layers).map(|l| state.history.layer(l, metric).map_or(f32::NAN, |s| s.get(i)));
        csv.row(std::iter::once(field(state.history.x(i))).chain(values.map(|v| field(f64::from(v)))));
    }
    csv.text()
}

fn csv_replayed(metric: &TokenLayerMetric) -> String {
    let mut csv =
        Csv::new(std::iter::once("token".to_string()).chain((0..metric.layers).map(|l| format!("layer {l}"))));
    for token in 0..metric.tokens as usize {
        let values = (0..metric.layers as usize).map(|l| metric.values.get(l * metric.tokens as usize + token));
        csv.row(
            std::iter::once(token.to_string())
                .chain(values.map(|v| v.map_or_else(String::new, |v| field(f64::from(*v))))),
        );
    }
    csv.text()
}

impl View for Heat {
    fn id(&self) -> &'static str {
        "telemetry.heatmap"
    }

    fn title(&self) -> &'static str {
        "Layers × tokens"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if self.shared.pull(cx.store).history.is_empty() {
            return;
        }
        chips(&self.shared, cx, ui);
        let names = cx.fetch(&Query::metric_names()).value();
        let p = Palette::of(ui);
        let current = match &self.chosen {
            Chosen::Live(m) => m.name().to_string(),
            Chosen::Replayed(name) => name.clone(),
        };
        let text = egui::RichText::new(format!("{current} {}", icons::CARET_DOWN))
            .font(theme::caption())
            .color(p.secondary);
        let button = egui::Button::new(text).frame(false).small();
        let menu = egui::containers::menu::MenuButton::from_button(button).ui(ui, |ui| {
            let caption = |ui: &mut egui::Ui, text: &str| {
                ui.label(egui::RichText::new(text).font(theme::caption()).color(p.faint))
            };
            caption(ui, "from telemetry, as the text is written");
            for metric in LayerMetric::ALL {
                if ui
                    .selectable_label(self.chosen == Chosen::Live(metric), metric.name())
                    .clicked()
                {
                    self.chosen = Chosen::Live(metric);
                }
            }
            caption(ui, "by replaying the text (instrumented)");
            for name in names.into_iter().flatten() {
                let chosen = Chosen::Replayed(name.clone());
                if ui.selectable_label(self.chosen == chosen, name).clicked() {
                    self.chosen = chosen;
                    self.heat.zoom = None;
                }
            }
        });
        menu.0.accessible_name(format!("Figure: {current}"));
        match &self.chosen {
            Chosen::Live(metric) => {
                let state = self.shared.pull(cx.store);
                color_bar(ui, &shades(&state, *metric), metric.quantity());
            }
            Chosen::Replayed(_) => {
                if let Some((low, high)) = self.replayed.as_ref().and_then(|(_, g)| g.range()) {
                    color_bar(ui, &Shades::sequential(low, high), Quantity::Plain);
                }
            }
        }
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let shared = self.shared.clone();
        let mut state = shared.pull(cx.store);
        if state.history.is_empty() {
            drop(state);
            return nothing_yet(
                cx,
                ui,
                icons::GRID_FOUR,
                "Any figure of every layer and token appears here while a text is written.",
            );
        }
        match self.chosen.clone() {
            Chosen::Live(metric) => self.live(cx, ui, &mut state, metric),
            Chosen::Replayed(name) => {
                drop(state);
                self.replay(cx, ui, &name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{LayerRecord, StepRecord, TELEMETRY_VERSION};

    fn history(prompt: u32, tokens: u64) -> History {
        let mut h = History::new(256);
        let record = |seq, position: u64, tokens: u32| StepRecord {
            version: TELEMETRY_VERSION,
            seq,
            position,
            tokens,
            nanos: 1_000_000,
            plan: 1,
            memory: None,
            layers: (0..3)
                .map(|l| LayerRecord {
                    keys_context: 100,
                    keys_scored: 100 - 10 * l - position % 7,
                    ..LayerRecord::default()
                })
                .collect(),
        };
        h.push(&record(1, 0, prompt));
        for i in 0..tokens {
            h.push(&record(2 + i, u64::from(prompt) + i, 1));
        }
        h
    }

    #[test]
    fn tokens_of_a_prompt_share_their_step_and_pooling_takes_the_largest() {
        let h = history(10, 20);
        let grid = Live {
            history: &h,
            metric: LayerMetric::Sparsity,
            cols: 30,
            revision: 1,
            column: RefCell::new((0..0, 0..0)),
        };
        assert_eq!((grid.rows(), grid.cols()), (3, 30));
        assert_eq!(grid.value(1, 0), grid.value(1, 9));
        let each: Vec<f32> = (12..16).map(|t| grid.value(2, t)).collect();
        let pooled = grid.pooled(2..3, 12..16);
        assert_eq!(pooled, each.iter().copied().fold(f32::MIN, f32::max));
        assert_eq!(grid.pooled(0..3, 12..16), pooled, "layer 2 skips most");
    }

    #[test]
    fn beyond_the_text_there_is_nothing() {
        let h = history(4, 2);
        let grid = Live {
            history: &h,
            metric: LayerMetric::Error,
            cols: 6,
            revision: 1,
            column: RefCell::new((0..0, 0..0)),
        };
        assert!(
            crate::widgets::heatmap::is_masked(grid.value(0, 0)),
            "f32 rows have no error"
        );
        assert!(crate::widgets::heatmap::is_masked(grid.value(0, 6)));
    }
}
