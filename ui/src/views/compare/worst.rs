//! The positions at which the sides are farthest apart. A click chooses the token everywhere.

use egui::{Align2, Color32, Sense, Ui, WidgetInfo, pos2, vec2};
use protocol::CompareResult;

use super::words::{self, Names};
use crate::fmt;
use crate::theme::{self, Palette};

/// What is worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// KL.
    #[default]
    Kl,
    /// Change of the probability of the token that follows.
    Probability,
    /// Only where the likeliest tokens differ, by A's margin.
    Split,
    /// The same in the order of the text: the first is where greedy texts part.
    First,
    /// Drift after the chosen layer.
    Layer,
}

/// Choices for the title row.
pub const BY: [(By, &str); 5] = [
    (By::Kl, "by KL"),
    (By::Probability, "by change of p"),
    (By::Split, "where top-1 differs"),
    (By::First, "first divergences"),
    (By::Layer, "by drift of the layer"),
];

/// Most rows.
const MOST: usize = 200;
/// Height of a row.
const ROW: f32 = 22.0;

/// Positions, worst first; `layer` for those of a layer.
pub fn order(r: &CompareResult, by: By, layer: usize) -> Vec<usize> {
    match by {
        By::Kl => r.by_kl(MOST),
        By::Split => r.flips(MOST),
        By::First => r.first_flips(MOST),
        By::Layer => r.drift.most(layer, MOST).into_iter().map(|(i, _)| i).collect(),
        By::Probability => {
            let key = |i: &usize| {
                let [a, b] = r.tokens[*i].logprob.map(|l| f64::from(l).exp());
                if (a - b).is_nan() { -1.0 } else { (a - b).abs() }
            };
            let mut all: Vec<usize> = (0..r.tokens.len()).collect();
            all.sort_by(|a, b| key(b).total_cmp(&key(a)).then(a.cmp(b)));
            all.truncate(MOST);
            all
        }
    }
}

/// What the pointer did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hit {
    /// Position under the pointer.
    pub hover: Option<usize>,
    /// Position that was clicked.
    pub clicked: Option<usize>,
}

/// Right ends of the columns, as shares of the width: token, KL, p A, p B.
const EDGES: [f32; 4] = [0.46, 0.66, 0.83, 1.0];

/// Draws the table, `height` high.
pub fn table(
    ui: &mut Ui,
    r: &CompareResult,
    names: &Names,
    order: &[usize],
    layer: Option<usize>,
    chosen: Option<usize>,
    height: f32,
) -> Hit {
    let p = Palette::of(ui);
    let mut hit = Hit::default();
    let (head, _) = ui.allocate_exact_size(vec2(ui.available_width(), 18.0), Sense::hover());
    for (i, (name, color)) in [
        ("token", p.secondary),
        (if layer.is_some() { "drift" } else { "KL(A||B)" }, p.secondary),
        ("p A", p.accent),
        ("p B", p.second),
    ]
    .into_iter()
    .enumerate()
    {
        cell(ui, head, i, name, color, theme::caption());
    }
    if order.is_empty() {
        let words = match layer {
            Some(l) => format!("Nowhere: after layer {l} A and B are equal."),
            None => "Nowhere: A and B always find the same token likeliest.".into(),
        };
        ui.label(egui::RichText::new(words).color(p.secondary));
        return hit;
    }
    egui::ScrollArea::vertical()
        .id_salt("worst")
        .max_height(height - 18.0)
        .auto_shrink([false, true])
        .show_rows(ui, ROW, order.len(), |ui, rows| {
            ui.spacing_mut().item_spacing.y = 0.0;
            for &i in order.get(rows).unwrap_or(&[]) {
                let drift = layer.map(|l| r.drift.at(l, i).unwrap_or(f32::NAN));
                row(ui, r, names, (i, drift), chosen, &mut hit);
            }
        });
    hit
}

fn row(
    ui: &mut Ui,
    r: &CompareResult,
    names: &Names,
    (i, drift): (usize, Option<f32>),
    chosen: Option<usize>,
    hit: &mut Hit,
) {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::click());
    let mut label = words::line(r, names, i);
    if let Some(drift) = drift {
        label = format!("{label} drift {}", fmt::sig3(f64::from(drift)));
    }
    response.widget_info(|| WidgetInfo::selected(egui::Role::Button, true, chosen == Some(i), &label));
    let Some(t) = r.tokens.get(i) else { return };
    if chosen == Some(i) || response.hovered() {
        ui.painter()
            .rect_filled(rect, 4, if chosen == Some(i) { p.selected } else { p.hover });
    }
    let split = t.top1[0] != t.top1[1];
    let token = format!("{:>4} {}", fmt::count(i as u64), fmt::quoted(&t.text));
    cell(ui, rect, 0, &token, if split { p.warn } else { p.text }, theme::mono());
    let value = f64::from(drift.unwrap_or(t.kl));
    cell(ui, rect, 1, &fmt::sig3(value), p.text, theme::mono());
    cell(ui, rect, 2, &fmt::probability(t.logprob[0]), p.text, theme::mono());
    cell(ui, rect, 3, &fmt::probability(t.logprob[1]), p.text, theme::mono());
    if response.hovered() {
        hit.hover = Some(i);
    }
    if response.clicked() {
        hit.clicked = Some(i);
    }
    response.on_hover_ui(|ui| {
        ui.set_width(300.0);
        words::position(ui, r, names, i);
    });
}

fn cell(ui: &Ui, rect: egui::Rect, column: usize, text: &str, color: Color32, font: egui::FontId) {
    let right = rect.left() + EDGES[column] * rect.width() - 6.0;
    let left = if column == 0 {
        rect.left() + 4.0
    } else {
        rect.left() + EDGES[column - 1] * rect.width()
    };
    let clip = egui::Rect::from_x_y_ranges(left..=right.max(left), rect.y_range());
    let painter = ui.painter().with_clip_rect(ui.clip_rect().intersect(clip));
    let (align, x) = if column == 0 {
        (Align2::LEFT_CENTER, left)
    } else {
        (Align2::RIGHT_CENTER, right)
    };
    painter.text(pos2(x, rect.center().y), align, text, font, color);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_comes_first_and_splits_stand_alone() {
        let r = crate::testing::comparison();
        let by_kl = order(&r, By::Kl, 0);
        assert_eq!(by_kl[0], 143);
        assert!(by_kl.windows(2).all(|w| r.tokens[w[0]].kl >= r.tokens[w[1]].kl));
        assert_eq!(order(&r, By::Split, 0), [143]);
        assert_eq!(order(&r, By::First, 0), [143]);
        assert!(order(&r, By::Probability, 0).len() <= MOST);
        let drift = order(&r, By::Layer, 6);
        assert!(drift.windows(2).all(|w| r.drift.at(6, w[0]) >= r.drift.at(6, w[1])) && drift.len() == MOST);
        assert!(order(&r, By::Layer, 0).is_empty(), "nothing differs after layer 0");
    }
}
