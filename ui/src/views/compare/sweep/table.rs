//! The recipes of a sweep with their figures, as they come in.

use egui::{Align2, Color32, Sense, Ui, WidgetInfo, pos2, vec2};
use protocol::{SweepCell, SweepPick, SweepState};

use super::data::{self, Data, Price};
use crate::fmt;
use crate::theme::{self, Palette};
use crate::widgets::controls;
use crate::widgets::plots::choice;

/// Order of the rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum By {
    /// As they were asked for.
    #[default]
    Asked,
    /// Least KL first.
    Kl,
    /// Fewest bytes per step first.
    Bytes,
    /// Fastest first.
    Speed,
}

const BY: [(By, &str); 4] = [
    (By::Asked, "as asked for"),
    (By::Kl, "by KL"),
    (By::Bytes, "by bytes per step"),
    (By::Speed, "by speed"),
];

/// Height of a row.
const ROW: f32 = 22.0;
/// Right ends of the columns as shares of the width; the recipe has the rest, after them.
const EDGES: [f32; 8] = [0.05, 0.15, 0.235, 0.32, 0.395, 0.475, 0.585, 0.655];
const NAMES: [&str; 8] = ["", "mean KL", "99 %", "same top-1", "ppl", "KV", "bytes/step", "tok/s"];

/// The table with its order.
#[derive(Debug, Default)]
pub struct Table {
    by: By,
    order: (u64, By, Vec<usize>),
}

impl Table {
    /// The choice of the order, for the title row.
    pub fn choose(&mut self, ui: &mut Ui) {
        choice(ui, "Order of the recipes", &mut self.by, &BY);
    }

    /// Draws it, at most `height` high. The cell that was clicked.
    pub fn show(&mut self, ui: &mut Ui, data: &Data, chosen: Option<usize>, height: f32) -> Option<usize> {
        let p = Palette::of(ui);
        if (self.order.0, self.order.1) != (data.revision, self.by) {
            self.order = (data.revision, self.by, order(data, self.by));
        }
        let front = data.front(Price::Bytes);
        let (head, _) = ui.allocate_exact_size(vec2(ui.available_width(), 18.0), Sense::hover());
        for (i, name) in NAMES.into_iter().enumerate() {
            right(ui, head, i, name, p.secondary, theme::caption());
        }
        left(ui, head, "recipe", p.secondary, theme::caption());
        let mut clicked = None;
        let rows = &self.order.2;
        egui::ScrollArea::vertical()
            .id_salt("sweep table")
            .max_height(height)
            .auto_shrink([false, true])
            .show_rows(ui, ROW, rows.len(), |ui, shown| {
                ui.spacing_mut().item_spacing.y = 0.0;
                for &i in rows.get(shown).unwrap_or(&[]) {
                    let cell = &data.cells()[i];
                    let best = front.get(i).copied().unwrap_or(false);
                    let picked = data.pick() == SweepPick::Cell(i as u32);
                    if row(ui, data, (i, cell), best, picked, chosen == Some(i)) {
                        clicked = Some(i);
                    }
                }
            });
        clicked
    }
}

fn order(data: &Data, by: By) -> Vec<usize> {
    let mut all: Vec<usize> = data.main().collect();
    let key = |i: &usize| {
        let row = data.cells()[*i].row();
        row.map_or(f64::INFINITY, |r| match by {
            By::Asked => 0.0,
            By::Kl => r.kl.mean,
            By::Bytes => Price::Bytes.of(r),
            By::Speed => Price::Time.of(r),
        })
    };
    if by != By::Asked {
        all.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.cmp(b)));
    }
    all
}

fn row(ui: &mut Ui, data: &Data, (i, cell): (usize, &SweepCell), best: bool, picked: bool, chosen: bool) -> bool {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::click());
    let name = data::name(cell);
    let said = format!("Recipe {i}: {name}: {}", in_words(cell, data));
    response.widget_info(|| WidgetInfo::selected(egui::Role::Button, true, chosen, &said));
    if chosen || response.hovered() {
        ui.painter()
            .rect_filled(rect, 4, if chosen { p.selected } else { p.hover });
    }
    let mono = theme::mono;
    let number = if best { format!("{i}*") } else { format!("{i} ") };
    right(ui, rect, 0, &number, if best { p.text } else { p.secondary }, mono());
    let ink = if picked { p.second } else { p.text };
    match &cell.state {
        SweepState::Done { row, .. } => {
            let est = fmt::bytes(row.step_bytes).estimated();
            let values = [
                fmt::sig3(row.kl.mean),
                fmt::sig3(row.kl.p99),
                fmt::percent(row.same_top1[0]).plain(),
                fmt::sig3(row.perplexity),
                fmt::bytes(row.kv).plain(),
                est.plain(),
                fmt::sig3(row.decode_tokens_per_s),
            ];
            for (c, value) in values.iter().enumerate() {
                let ink = if c == 5 { p.secondary } else { p.text };
                right(ui, rect, c + 1, value, ink, mono());
            }
        }
        SweepState::Reading { positions, kl_mean } => {
            let figure = fmt::Figure::new(fmt::sig3(*kl_mean), "").sampled(*positions);
            right(ui, rect, 1, &figure.plain(), p.secondary, mono());
            let total = data.head().map_or(1, |h| h.positions).max(1);
            let bar = egui::Rect::from_min_max(
                pos2(rect.left() + EDGES[1] * rect.width() + 8.0, rect.center().y - 3.0),
                pos2(rect.left() + EDGES[4] * rect.width(), rect.center().y + 3.0),
            );
            let share = *positions as f32 / total as f32;
            controls::paint_bar(ui, bar, &[(share, p.accent)], p.line);
        }
        SweepState::Waiting => right(ui, rect, 1, "waiting", p.faint, theme::body()),
        SweepState::Failed(_) => right(ui, rect, 1, "failed", p.bad, theme::body()),
    }
    left(ui, rect, &name, ink, mono());
    if let SweepState::Failed(why) = &cell.state {
        return response.on_hover_text(why).clicked();
    }
    response.on_hover_text(&said).clicked()
}

/// A cell's figures in words.
pub fn in_words(cell: &SweepCell, data: &Data) -> String {
    match &cell.state {
        SweepState::Waiting => "waiting".into(),
        SweepState::Failed(why) => format!("could not be measured: {why}"),
        SweepState::Reading { positions, kl_mean } => format!(
            "{} of {} positions read, KL so far {} nats",
            fmt::count(*positions),
            fmt::count(data.head().map_or(0, |h| h.positions)),
            fmt::sig3(*kl_mean)
        ),
        SweepState::Done { row, known } => format!(
            "mean KL {} ± {} nats, same top-1 {}, perplexity {}, KV {}, bytes per step {}, {}{}",
            fmt::sig3(row.kl.mean),
            fmt::sig3(row.kl.mean_se),
            fmt::percent(row.same_top1[0]).plain(),
            fmt::sig3(row.perplexity),
            fmt::bytes(row.kv).plain(),
            fmt::bytes(row.step_bytes).estimated().plain(),
            fmt::rate(row.decode_tokens_per_s).plain(),
            if *known { ", measured before" } else { "" }
        ),
    }
}

fn right(ui: &Ui, rect: egui::Rect, column: usize, text: &str, color: Color32, font: egui::FontId) {
    let x = rect.left() + EDGES[column] * rect.width();
    ui.painter()
        .text(pos2(x, rect.center().y), Align2::RIGHT_CENTER, text, font, color);
}

fn left(ui: &Ui, rect: egui::Rect, text: &str, color: Color32, font: egui::FontId) {
    let x = rect.left() + EDGES[7] * rect.width() + 14.0;
    let clip = egui::Rect::from_x_y_ranges(x..=rect.right() - 4.0, rect.y_range());
    let painter = ui.painter().with_clip_rect(ui.clip_rect().intersect(clip));
    painter.text(pos2(x, rect.center().y), Align2::LEFT_CENTER, text, font, color);
}
