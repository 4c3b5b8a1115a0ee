//! KL against cost, and KL of one change by layer.

use std::collections::BTreeMap;

use egui::{Color32, Ui};
use protocol::{SweepGroup, SweepPick};

use super::data::{self, Data, Price};
use crate::fmt;
use crate::selection::Spot;
use crate::theme::Palette;
use crate::views::Context;
use crate::widgets::plots::{Axis, Dot, Explain, LegendItem, Quantity, Scatter, choice, legend};

const PRICES: [(Price, &str); 3] = [
    (Price::Bytes, "bytes per step"),
    (Price::Kv, "KV bytes"),
    (Price::Time, "time per token"),
];

const PARETO_ABOUT: &str = "Mean KL(A||recipe) over what a recipe costs. The line joins what no other recipe beats: none is as \
                            cheap with as little KL. Bytes per step: weights and cache of one decode step at the end of \
                            the text, estimated by the plan; KV bytes and times are measured.";

const LAYERS_ABOUT: &str =
    "Mean KL(A||A with one choice in one layer alone), measured on the same text. A low point: this layer takes it.";

/// The choice of the price, for the title row.
pub fn choose(ui: &mut Ui, price: &mut Price) {
    choice(ui, "Cost of a recipe", price, &PRICES);
}

/// KL against cost. The cell that was clicked.
pub fn pareto(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    data: &Data,
    price: Price,
    chosen: Option<usize>,
    budget: Option<f64>,
) -> Option<usize> {
    let p = Palette::of(ui);
    let front = data.front(price);
    let mut cells = Vec::new();
    let mut dots = Vec::new();
    for (i, cell) in data.cells().iter().enumerate() {
        let Some(row) = cell.row() else { continue };
        let (best, picked) = (front[i], data.pick() == SweepPick::Cell(i as u32));
        let color = match (picked, best, cell.group) {
            (true, ..) => p.second,
            (_, true, _) => p.accent,
            _ => p.faint,
        };
        cells.push(i);
        dots.push(Dot {
            at: [price.of(row), row.kl.mean],
            name: data::name(cell),
            label: match (cell.group, best || picked) {
                (SweepGroup::Base, _) => "A".into(),
                (_, true) => i.to_string(),
                _ => String::new(),
            },
            color,
            large: best || picked,
            chosen: chosen == Some(i),
        });
    }
    let mut line: Vec<usize> = (0..dots.len()).filter(|d| front[cells[*d]]).collect();
    line.sort_by(|a, b| dots[*a].at[0].total_cmp(&dots[*b].at[0]));
    let (label, quantity) = match price {
        Price::Bytes => ("bytes per step (est.)", Quantity::Bytes),
        Price::Kv => ("KV cache", Quantity::Bytes),
        Price::Time => ("time per token", Quantity::Milliseconds),
    };
    let best: Vec<String> = line.iter().map(|d| cells[*d].to_string()).collect();
    let summary = format!("{} recipes; not beaten: {}", dots.len(), best.join(", "));
    let explain = if price == Price::Bytes {
        Explain::estimated(PARETO_ABOUT)
    } else {
        Explain::measured(PARETO_ABOUT)
    };
    let shown = Scatter::new(
        "KL against cost",
        Axis::new(label, quantity),
        Axis::new("mean KL(A||·)", Quantity::Nats),
        explain,
    )
    .dots(dots)
    .line(p.accent, line)
    .limit(budget)
    .summary(summary)
    .show(cx, ui, &|| data::csv(data.cells()));
    shown.clicked.map(|d| cells[d])
}

/// A choice, and per layer the cell that has it there alone, with its KL.
type Series = (String, Vec<(u32, usize, f64)>);

/// Changes in one layer alone, by choice.
fn series(data: &Data) -> Vec<Series> {
    let mut order: Vec<String> = Vec::new();
    let mut all: BTreeMap<String, Vec<(u32, usize, f64)>> = BTreeMap::new();
    for (i, cell) in data.cells().iter().enumerate() {
        let (SweepGroup::Single, Some(row)) = (cell.group, cell.row()) else {
            continue;
        };
        let Some((Some(layer), choice)) = data::place(cell) else {
            continue;
        };
        if !all.contains_key(&choice) {
            order.push(choice.clone());
        }
        all.entry(choice).or_default().push((layer, i, row.kl.mean));
    }
    let take = |name: String| {
        let mut points = all.remove(&name).unwrap_or_default();
        points.sort_by_key(|p| p.0);
        (name, points)
    };
    order.into_iter().map(take).collect()
}

/// Colours of the choices: they mean nothing but "another one".
fn color(ui: &Ui, i: usize, of: usize) -> Color32 {
    Palette::of(ui).layer(i, of.max(1))
}

/// The legend of the chart of layers.
pub fn layers_legend(ui: &mut Ui, data: &Data) {
    let all = series(data);
    let items: Vec<LegendItem> = all
        .iter()
        .enumerate()
        .map(|(i, (name, _))| LegendItem::new(name.clone(), color(ui, i, all.len()), None))
        .collect();
    legend(ui, &items);
}

/// Whether any layer was tried alone.
pub fn has_layers(data: &Data) -> bool {
    data.cells().iter().any(|c| c.group == SweepGroup::Single)
}

/// KL of one change by layer. The cell that was clicked.
pub fn layers(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    data: &Data,
    chosen: Option<usize>,
    budget: Option<f64>,
) -> Option<usize> {
    let all = series(data);
    let mut cells = Vec::new();
    let mut dots = Vec::new();
    let mut lines = Vec::new();
    let mut words = Vec::new();
    for (i, (name, points)) in all.iter().enumerate() {
        let color = color(ui, i, all.len());
        lines.push((color, (dots.len()..dots.len() + points.len()).collect::<Vec<_>>()));
        for (layer, cell, kl) in points {
            cells.push(*cell);
            dots.push(Dot {
                at: [f64::from(*layer), *kl],
                name: name.clone(),
                label: String::new(),
                color,
                large: cx.shown().layer == Some(*layer),
                chosen: chosen == Some(*cell),
            });
        }
        let worst = points.iter().max_by(|a, b| a.2.total_cmp(&b.2));
        if let Some((layer, _, kl)) = worst {
            words.push(format!("{name} costs most in layer {layer}, {} nats", fmt::sig3(*kl)));
        }
    }
    let count = cx.store.facts().map_or(1, |f| f.layers.len()).max(1) as f64;
    let x = Axis::new("layer", Quantity::Whole).range((-0.5, count - 0.5));
    let mut plot = Scatter::new(
        "KL of one change by layer",
        x,
        Axis::new("mean KL(A||·)", Quantity::Nats),
        Explain::measured(LAYERS_ABOUT),
    )
    .dots(dots)
    .limit(budget)
    .summary(words.join("; "));
    for (color, line) in lines {
        plot = plot.line(color, line);
    }
    let shown = plot.show(cx, ui, &|| data::csv(data.cells()));
    if let Some(cell) = shown.hover.and_then(|d| data.cells().get(cells[d]))
        && let Some((Some(layer), _)) = data::place(cell)
    {
        cx.hover(Spot::layer(layer));
    }
    shown.clicked.map(|d| cells[d])
}
