//! Which experts the tokens went to.

use super::history::{EXPERT_WINDOW, ExpertLoad};
use super::shared::{Shared, chips, nothing_yet};
use crate::fmt;
use crate::icons;
use crate::selection::Spot;
use crate::theme::{self, Palette};
use crate::views::{Context, View, empty};
use crate::widgets::heatmap::{Dense, HeatState, Heatmap, Labels, Shades, color_bar};
use crate::widgets::plots::{Csv, Explain, Quantity, field, remark};

/// See the module.
#[derive(Debug)]
pub struct Experts {
    shared: Shared,
    heat: HeatState,
    made: Option<Made>,
}

/// The grid of a moment.
#[derive(Debug)]
struct Made {
    revision: u64,
    sample: u64,
    load: ExpertLoad,
    /// Layers that have experts, one per row.
    layers: Vec<u32>,
    /// Share of the tokens an expert got, 1 = as many as every other.
    grid: Dense,
    high: f32,
}

impl Made {
    fn new(load: ExpertLoad, revision: u64, sample: u64) -> Self {
        let n = load.experts;
        let layers: Vec<u32> = (0_u32..)
            .zip(&load.with_experts)
            .filter(|(_, has)| **has)
            .map(|(l, _)| l)
            .collect();
        let mut values = Vec::with_capacity(layers.len() * n);
        for layer in &layers {
            let counts = &load.counts[*layer as usize * n..(*layer as usize + 1) * n];
            let sum: u64 = counts.iter().map(|c| u64::from(*c)).sum();
            values.extend(counts.iter().map(|c| {
                if sum == 0 {
                    0.0
                } else {
                    *c as f32 * n as f32 / sum as f32
                }
            }));
        }
        let high = values.iter().copied().fold(2.0, f32::max);
        let grid = Dense::new(values, n, revision.wrapping_mul(31).wrapping_add(sample));
        Self {
            revision,
            sample,
            load,
            layers,
            grid,
            high,
        }
    }

    fn count(&self, row: usize, expert: usize) -> u32 {
        let layer = self.layers.get(row).map_or(0, |l| *l as usize);
        self.load
            .counts
            .get(layer * self.load.experts + expert)
            .copied()
            .unwrap_or(0)
    }

    /// Layer, expert and factor of the most used expert.
    fn busiest(&self) -> Option<(u32, usize, f32)> {
        let n = self.load.experts.max(1);
        let (i, v) = self
            .grid
            .values()
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.total_cmp(b.1))?;
        Some((*self.layers.get(i / n)?, i % n, *v))
    }

    fn csv(&self) -> String {
        let mut csv = Csv::new(["layer", "expert", "tokens", "times an even share"]);
        for (row, layer) in self.layers.iter().enumerate() {
            for (expert, share) in self.grid.row(row).iter().enumerate() {
                csv.row([
                    layer.to_string(),
                    expert.to_string(),
                    self.count(row, expert).to_string(),
                    field(f64::from(*share)),
                ]);
            }
        }
        csv.text()
    }
}

impl Experts {
    /// A view of the shared history.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            heat: HeatState::default(),
            made: None,
        }
    }

    fn refresh(&mut self, cx: &Context<'_>) {
        let state = self.shared.pull(cx.store);
        let Some(sample) = state.sample(cx) else {
            self.made = None;
            return;
        };
        let revision = state.history.revision();
        if self
            .made
            .as_ref()
            .is_none_or(|m| m.revision != revision || m.sample != sample)
        {
            self.made = Some(Made::new(state.history.expert_load(sample), revision, sample));
        }
    }
}

impl View for Experts {
    fn id(&self) -> &'static str {
        "telemetry.experts"
    }

    fn title(&self) -> &'static str {
        "Expert load"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        self.refresh(cx);
        let Some(made) = self.made.as_ref().filter(|m| !m.layers.is_empty()) else {
            return;
        };
        chips(&self.shared, cx, ui);
        color_bar(ui, &Shades::sequential(0.0, made.high), Quantity::Times);
        remark(ui, &format!("last {} steps", fmt::count(made.load.steps)));
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        self.refresh(cx);
        let Some(made) = &self.made else {
            return nothing_yet(
                cx,
                ui,
                icons::GRID_FOUR,
                "Which experts the tokens go to appears here while a text is written.",
            );
        };
        if made.layers.is_empty() {
            empty(
                ui,
                icons::GRID_FOUR,
                "This model has no experts: every token takes the same feed-forward block.",
                None,
            );
            return;
        }
        let about = format!(
            "Tokens sent to each expert over the last {EXPERT_WINDOW} steps up to the selected token, as a multiple of an \
             even share (1 = as many as every other expert of the layer). Counted by the router; shared experts are not \
             listed."
        );
        let name = |row: usize| made.layers.get(row).map(|l| format!("L{l}")).unwrap_or_default();
        let shown = cx.shown();
        let row = shown.layer.and_then(|l| made.layers.iter().position(|x| *x == l));
        let col = shown.expert.map(|e| e as usize).filter(|e| *e < made.load.experts);
        let summary = made
            .busiest()
            .map(|(l, e, v)| {
                format!(
                    "busiest: layer {l}, expert {e} with {} of an even share",
                    Quantity::Times.figure(f64::from(v)).plain()
                )
            })
            .unwrap_or_default();
        let tooltip = |ui: &mut egui::Ui, row: usize, expert: usize, value: f32| {
            let p = Palette::of(ui);
            ui.label(egui::RichText::new(format!("layer {}, expert {expert}", made.layers[row])).color(p.secondary));
            let n = fmt::count(u64::from(made.count(row, expert)));
            let share = Quantity::Times.figure(f64::from(value)).plain();
            ui.label(egui::RichText::new(format!("{n} tokens, {share} of an even share")).font(theme::mono()));
        };
        let back = Heatmap::new(
            "Expert load",
            &made.grid,
            Shades::sequential(0.0, made.high),
            Quantity::Times,
            Explain::measured(&about),
        )
        .labels(Labels::Names(&name), Labels::Numbers("expert", 0))
        .highlight(row, col)
        .summary(summary)
        .tooltip(&tooltip)
        .show(cx, ui, &mut self.heat, &|| made.csv());
        let spot = |(row, expert): (usize, usize)| Some(Spot::layer(*made.layers.get(row)?).with_expert(expert as u32));
        if let Some(spot) = back.hover.and_then(spot) {
            cx.hover(spot);
        }
        if let Some(spot) = back.clicked.and_then(spot) {
            cx.selection.click(spot);
        }
    }
}
