//! Costs as rows show them: figures in columns, a bar, a tooltip, a table.

use egui::{Color32, Rect, RichText, pos2};
use protocol::PlanView;

use super::digest::{Costs, Digest};
use crate::fmt::{self, Figure};
use crate::theme::{self, Palette};
use crate::widgets::controls::paint_bar;
use crate::widgets::plots::{Csv, field, readout_table};

/// Columns that fit.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// Right edges of FLOPs, bytes, time.
    pub right: [Option<f32>; 3],
    /// Left and right edge of the bar.
    pub bar: Option<(f32, f32)>,
    /// Where names must end.
    pub names: f32,
}

impl Columns {
    /// What fits into a row.
    pub fn new(rect: Rect) -> Self {
        let right = rect.right() - theme::PAD;
        let width = rect.width();
        let (bar, after) = if width > 380.0 {
            (Some((right - 72.0, right)), right - 84.0)
        } else {
            (None, right)
        };
        let time = after;
        let bytes = time - 72.0;
        let flops = bytes - 76.0;
        if width > 460.0 {
            Self {
                right: [Some(flops), Some(bytes), Some(time)],
                bar,
                names: flops - 64.0,
            }
        } else {
            Self {
                right: [None, Some(bytes), Some(time)],
                bar,
                names: bytes - 72.0,
            }
        }
    }
}

fn flops(n: u64) -> Figure {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut x = n as f64;
    let mut unit = 0;
    while x >= 999.5 && unit < UNITS.len() - 1 {
        x /= 1e3;
        unit += 1;
    }
    let value = if unit == 0 { fmt::count(n) } else { fmt::sig3(x) };
    Figure::new(value, UNITS[unit])
}

fn time(costs: &Costs) -> Figure {
    if costs.steps == 0 {
        Figure::new("–", "")
    } else {
        fmt::seconds(costs.nanos * 1e-9).sampled(u64::from(costs.steps))
    }
}

/// Costs in words.
pub(super) fn spoken(costs: &Costs) -> String {
    let mut text = format!(
        "{} FLOPs, {}",
        flops(costs.flops).plain(),
        fmt::bytes(costs.bytes()).plain()
    );
    if costs.steps > 0 {
        text.push_str(", ");
        text.push_str(&time(costs).plain());
    }
    text
}

/// Figures and bar of a row. A full bar is `whole`: the largest part, so that bars of one plan can be compared.
pub(super) fn paint_costs(ui: &egui::Ui, columns: &Columns, y: f32, costs: &Costs, digest: &Digest, whole: f64) {
    let p = Palette::of(ui);
    let timed = digest.timed;
    let figures = [flops(costs.flops), fmt::bytes(costs.bytes()), time(costs)];
    for (right, figure) in columns.right.into_iter().zip(figures) {
        if let Some(x) = right {
            let ink = if figure.value == "–" || figure.value == "0" {
                p.faint
            } else {
                p.text
            };
            let galley = ui.painter().layout_job(figure.job(p, theme::mono_caption(), ink));
            let size = galley.size();
            ui.painter().galley(pos2(x - size.x, y - size.y * 0.5), galley, ink);
        }
    }
    let Some((left, right)) = columns.bar else { return };
    let track = Rect::from_x_y_ranges(left..=right, y - 3.0..=y + 3.0);
    if whole <= 0.0 {
        return;
    }
    let share = (costs.weight(timed) / whole) as f32;
    let parts: Vec<(f32, Color32)> = if timed {
        vec![(share, p.accent)]
    } else {
        let part = |bytes: u64, color: Color32| ((bytes as f64 / whole) as f32, color);
        vec![
            part(costs.weights, p.accent),
            part(costs.cache, p.kv[1]),
            part(costs.activations, p.faint),
        ]
    };
    paint_bar(ui, track, &parts, p.line.gamma_multiply(0.6));
}

/// Everything about a row.
pub(super) fn about(
    ui: &mut egui::Ui,
    name: &str,
    costs: &Costs,
    total: &Costs,
    timed: bool,
    neighbours: &[(&'static str, String)],
) {
    let p = Palette::of(ui);
    ui.label(RichText::new(name).font(theme::strong()));
    let share = costs.weight(timed) / total.weight(timed).max(1.0);
    let of = if timed {
        "share of the step's time"
    } else {
        "share of the step's bytes"
    };
    let mut rows = vec![
        (
            "FLOPs".to_string(),
            flops(costs.flops).estimated().plain(),
            Color32::TRANSPARENT,
        ),
        ("weights read".to_string(), fmt::bytes(costs.weights).plain(), p.accent),
        ("cache moved".to_string(), fmt::bytes(costs.cache).plain(), p.kv[1]),
        (
            "workspace moved".to_string(),
            fmt::bytes(costs.activations).plain(),
            p.faint,
        ),
        (of.to_string(), fmt::percent(share).plain(), Color32::TRANSPARENT),
    ];
    if costs.steps > 0 && costs.nanos > 0.0 {
        let rate = |x: f64| format!("{} G", fmt::sig3(x / costs.nanos));
        rows.push(("time".into(), time(costs).plain(), Color32::TRANSPARENT));
        rows.push((
            "bytes per second".into(),
            rate(costs.bytes() as f64) + "B/s",
            Color32::TRANSPARENT,
        ));
        rows.push((
            "FLOPs per second".into(),
            rate(costs.flops as f64) + "FLOP/s",
            Color32::TRANSPARENT,
        ));
    }
    readout_table(ui, &rows);
    for (what, names) in neighbours {
        ui.set_max_width(300.0);
        let words = RichText::new(format!("{what} {names}"))
            .font(theme::caption())
            .color(p.secondary);
        ui.add(egui::Label::new(words).wrap());
    }
}

/// The plan as a table.
pub(super) fn csv(plan: &PlanView) -> String {
    let mut csv = Csv::new([
        "op",
        "layer",
        "block",
        "name",
        "kind",
        "flops",
        "weight bytes",
        "cache bytes",
        "workspace bytes",
        "fused with",
        "nanoseconds",
        "steps",
    ]);
    for op in &plan.ops {
        csv.row([
            op.id.to_string(),
            op.layer.map(|l| l.to_string()).unwrap_or_default(),
            op.block.clone(),
            op.name.clone(),
            op.kind.clone(),
            op.flops.to_string(),
            op.weight_bytes.to_string(),
            op.cache_bytes.to_string(),
            op.activation_bytes.to_string(),
            op.fused_with.to_string(),
            op.time.map(|t| field(t.nanos)).unwrap_or_default(),
            op.time.map(|t| t.steps.to_string()).unwrap_or_default(),
        ]);
    }
    csv.text()
}
