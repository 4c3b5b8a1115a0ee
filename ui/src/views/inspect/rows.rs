//! Compressed rows that the indexer of a layer kept for each token, how much of the dense attention they hold, and which
//! tokens a row pools.

use egui::{Align2, RichText, Sense, Ui, WidgetInfo, pos2, vec2};
use protocol::{AttentionMap, AttentionSpec, KeptRows, LayerFactsView, TokenLabel};

use super::held::{Held, Shown, Upto};
use super::part;
use crate::fmt::{self, Figure};
use crate::icons;
use crate::selection::Spot;
use crate::store::Query;
use crate::theme::{self, Palette};
use crate::views::{Context, View, empty, failed, loading};
use crate::widgets::controls;
use crate::widgets::heatmap::{Dense, HeatState, Heatmap, Labels, MASKED, Shades};
use crate::widgets::plots::{Axis, Chart, Csv, Explain, Quantity, Trace, field};

const ABOUT: &str = "Compressed rows that the indexer kept for each query, best first: 1 = first choice, falling to the last one \
                     kept; 0 = visible but dropped. Hatched: not complete yet. By replay (instrumented).";
const RECALL: &str = "attn_recall: dense softmax mass over compressed rows, renormalised over them, that falls on the kept rows; mean \
                      over heads, for queries with at least 2 × top-k visible rows. At most 1024 queries are judged.";

/// See the module.
#[derive(Debug, Default)]
pub struct Rows {
    layer: Option<u32>,
    upto: Upto,
    held: Held<(u32, u64), KeptRows>,
    /// For the texts of tokens: the attention of the last one carries them.
    tokens: Held<AttentionSpec, AttentionMap>,
    heat: HeatState,
    grid: Option<(u64, Dense)>,
    /// The row whose tokens are listed.
    row: Option<u32>,
}

fn selects(layer: &LayerFactsView) -> bool {
    layer.index_topk > 0
}

impl View for Rows {
    fn id(&self) -> &'static str {
        "inspect.rows"
    }

    fn title(&self) -> &'static str {
        "Kept rows"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let Some(kept) = self.held.value() else { return };
        let (layer, n) = (kept.layer, kept.kept.len() as u64);
        super::layer_menu(cx, ui, layer, selects);
        let now = super::readable(cx);
        super::older(ui, n, now);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let what = "Which compressed rows each token keeps appears here once there is a text.";
        let Some(now) = super::tokens(cx, ui, icons::FUNNEL, what) else {
            return;
        };
        let layers = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
        let Some(first) = layers.iter().position(selects) else {
            let what = "No layer of this model has an indexer: every layer reads all rows it can see.";
            empty(ui, icons::FUNNEL, what, None);
            return;
        };
        let upto = self.upto.tokens(cx, now);
        let layer = super::layer(cx, &mut self.layer, selects);
        if !layers.get(layer as usize).is_some_and(selects) {
            let what = format!("Layer {layer} has no indexer: it reads every row it can see.");
            if empty(ui, icons::FUNNEL, &what, Some(&format!("Show layer {first}"))) {
                cx.selection.lock(Spot::layer(first as u32));
            }
            return;
        }
        let (kept, revision) = match self.held.pull(cx, &(layer, upto), &Query::rows(layer)) {
            Shown::Loading => return loading(ui, "The text is being replayed"),
            Shown::Failed(e) => return failed(cx, ui, &e),
            Shown::Ready(kept, revision) => (kept, revision),
        };
        let last = AttentionSpec {
            layer,
            head: None,
            from: upto.saturating_sub(1),
            to: upto,
        };
        let labels: &[TokenLabel] = match self.tokens.pull(cx, &last, &Query::attention(last)) {
            Shown::Ready(map, _) => &map.tokens,
            _ => &[],
        };
        let top = layers.get(layer as usize).map_or(0, |l| l.index_topk);
        let width = ui.available_width();
        figures(ui, kept, top);
        let room = vec2(width, ui.available_height());
        let query = super::chosen_token(cx).filter(|t| (*t as usize) < kept.kept.len());
        let (layout, map, list) = super::beside(room);
        let (grid, heat, row) = (&mut self.grid, &mut self.heat, &mut self.row);
        ui.with_layout(layout, |ui| {
            ui.spacing_mut().item_spacing = vec2(0.0, 0.0);
            part(ui, map, |ui| {
                maps(cx, ui, kept, revision, labels, (grid, heat), (query, row))
            });
            part(ui, list, |ui| rows_of(cx, ui, kept, labels, query, row));
        });
    }
}

/// The layer in numbers.
fn figures(ui: &mut Ui, kept: &KeptRows, top: u32) {
    let p = Palette::of(ui);
    egui::Frame::new().inner_margin(egui::Margin::symmetric(12, 4)).show(ui, |ui| {
        ui.horizontal_wrapped(|ui| {
            ui.spacing_mut().item_spacing.x = 20.0;
            // One label each: groups would not wrap.
            let mut one = |name: &str, figure: Figure, about: &str| {
                let mut job = egui::text::LayoutJob::default();
                let format = egui::TextFormat {
                    font_id: theme::body(),
                    color: p.secondary,
                    ..Default::default()
                };
                job.append(&format!("{name}  "), 0.0, format);
                let value = figure.job(p, theme::mono(), p.text);
                for section in value.sections {
                    job.append(&value.text[section.byte_range.start.0..section.byte_range.end.0], section.leading_space, section.format);
                }
                let label = format!("{name}: {}", figure.plain());
                let shown = ui.label(job);
                shown.widget_info(|| WidgetInfo::labeled(egui::Role::Label, true, &label));
                shown.on_hover_text(about);
            };
            let n = u64::from(kept.judged);
            let value = |x: f32| Figure::new(fmt::sig3(f64::from(x)), "").sampled(n);
            if kept.judged == 0 {
                let words = format!("not judged: no query sees {} rows yet", 2 * top);
                one("attn_recall", Figure::new(words, ""), RECALL);
                return;
            }
            one("attn_recall", value(kept.attn_recall), RECALL);
            one("smallest", value(kept.attn_recall_min), "The smallest attn_recall of a judged query.");
            let share = |x: f32| {
                let mut f = fmt::percent(f64::from(x));
                f = f.sampled(n);
                f
            };
            one("top1_hit", share(kept.top1_hit), "Share of judged queries whose heaviest row was kept.");
            let about = "Share of kept rows that are among the top-k most recent: high = the indexer mostly keeps what is near.";
            one("local", share(kept.select_local_ratio), about);
            one("judged", Figure::new(fmt::count(n), "queries"), RECALL);
        });
    });
}

/// Queries x rows: rank among the kept ones.
fn grid_of(kept: &KeptRows) -> Vec<f32> {
    let columns = kept.rows.len();
    let mut values = vec![MASKED; columns * kept.kept.len()];
    for (q, rows) in kept.kept.iter().enumerate() {
        let line = &mut values[q * columns..(q + 1) * columns];
        for (cell, span) in line.iter_mut().zip(&kept.rows) {
            if span.last <= q as u64 {
                *cell = 0.0;
            }
        }
        for (rank, row) in rows.iter().enumerate() {
            if let Some(cell) = line.get_mut(*row as usize) {
                *cell = 1.0 - rank as f32 / (rows.len() as f32 + 1.0);
            }
        }
    }
    values
}

type Kept<'a> = (&'a mut Option<(u64, Dense)>, &'a mut HeatState);

fn maps(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    kept: &KeptRows,
    revision: u64,
    labels: &[TokenLabel],
    (grid, heat): Kept<'_>,
    (query, row): (Option<u64>, &mut Option<u32>),
) {
    if grid.as_ref().is_none_or(|(r, _)| *r != revision) {
        *grid = Some((revision, Dense::new(grid_of(kept), kept.rows.len(), revision)));
        heat.zoom = None;
    }
    let Some((_, grid)) = grid.as_ref() else { return };
    let room = ui.available_size();
    let chart = if room.y > 240.0 && kept.judged > 0 {
        (room.y * 0.3).min(130.0)
    } else {
        0.0
    };
    if kept.rows.is_empty() {
        let words = "No compressed row is complete yet: the text is shorter than one.";
        ui.label(RichText::new(words).color(Palette::of(ui).secondary));
        return;
    }
    let tooltip = |ui: &mut Ui, q: usize, r: usize, value: f32| {
        ui.set_max_width(320.0);
        let words = cell_words(kept, labels, q, r, value);
        ui.add(egui::Label::new(words).wrap());
    };
    let summary = format!(
        "layer {}, {} queries, {} rows",
        kept.layer,
        kept.kept.len(),
        kept.rows.len()
    );
    part(ui, vec2(room.x, room.y - chart), |ui| {
        let back = Heatmap::new(
            "Kept rows",
            grid,
            Shades::sequential(0.0, 1.0),
            Quantity::Plain,
            Explain::measured(ABOUT),
        )
        .labels(Labels::Numbers("query", 0), Labels::Numbers("compressed row", 0))
        .highlight(query.map(|q| q as usize), row.map(|r| r as usize))
        .summary(summary)
        .tooltip(&tooltip)
        .show(cx, ui, heat, &|| csv(kept));
        if let Some((q, _)) = back.hover {
            cx.hover(Spot::token(q as u64));
        }
        if let Some((q, r)) = back.clicked {
            cx.selection.lock(Spot::token(q as u64));
            *row = Some(r as u32);
        }
    });
    if chart > 0.0 {
        part(ui, vec2(room.x, chart), |ui| recall(cx, ui, kept, query));
    }
}

fn cell_words(kept: &KeptRows, labels: &[TokenLabel], q: usize, r: usize, value: f32) -> String {
    let who = format!("Query {}", super::token_name(labels, q as u64));
    let Some(span) = kept.rows.get(r) else { return who };
    let text = super::span_text(labels, span.first, span.last, 60);
    let what = format!("row {r} (tokens {}–{}: {text})", span.first, span.last);
    if crate::widgets::heatmap::is_masked(value) {
        return format!("{who} cannot see {what} yet: it is complete only after its last token.");
    }
    let rows = kept.kept.get(q).map_or(&[][..], Vec::as_slice);
    match rows.iter().position(|k| *k as usize == r) {
        Some(i) => format!("{who} keeps {what}, rank {} of {}.", i + 1, rows.len()),
        None => format!("{who} drops {what}."),
    }
}

/// attn_recall per judged query.
fn recall(cx: &mut Context<'_>, ui: &mut Ui, kept: &KeptRows, query: Option<u64>) {
    let p = Palette::of(ui);
    let judged = kept.recall.iter().enumerate().filter(|(_, r)| r.is_finite());
    let points: Vec<[f64; 2]> = judged.map(|(q, r)| [q as f64, f64::from(*r)]).collect();
    let low = points.iter().map(|x| x[1]).fold(1.0, f64::min);
    let floor = (low * 20.0).floor() / 20.0;
    let summary = format!(
        "mean {}, smallest {}",
        fmt::sig3(f64::from(kept.attn_recall)),
        fmt::sig3(low)
    );
    let back = Chart::new(
        "attn_recall by query",
        Axis::new("query", Quantity::Whole).range((0.0, kept.kept.len() as f64)),
        Axis::new("attn_recall", Quantity::Plain).range((floor.min(0.95), 1.0)),
        Explain::sampled(RECALL),
    )
    .trace(Trace::new("attn_recall", p.layer(0, 1), points))
    .cursor(query.map(|q| q as f64))
    .summary(summary)
    .show(cx, ui, &|| csv(kept));
    let spot = |at: [f64; 2]| Some(at[0].round()).filter(|q| *q >= 0.0).map(|q| Spot::token(q as u64));
    if let Some(spot) = back.hover.and_then(spot) {
        cx.hover(spot);
    }
    if let Some(spot) = back.clicked.and_then(spot) {
        cx.selection.click(spot);
    }
}

/// Rows the chosen query kept, best first, with the tokens they pool.
fn rows_of(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    kept: &KeptRows,
    labels: &[TokenLabel],
    query: Option<u64>,
    chosen: &mut Option<u32>,
) {
    let p = Palette::of(ui);
    egui::Frame::new()
        .inner_margin(egui::Margin::symmetric(12, 0))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            let q = query.or_else(|| (kept.kept.len() as u64).checked_sub(1));
            let Some(q) = q else { return };
            let rows = kept.kept.get(q as usize).map_or(&[][..], Vec::as_slice);
            ui.label(RichText::new(format!("Query {}", super::token_name(labels, q))).font(theme::strong()));
            let visible = kept.rows.iter().filter(|s| s.last <= q).count();
            let recall = kept.recall.get(q as usize).filter(|r| r.is_finite());
            let judged = recall.map_or(String::new(), |r| format!(", attn_recall {}", fmt::sig3(f64::from(*r))));
            let words = format!("keeps {} of {} visible rows{judged}", rows.len(), visible);
            ui.add(egui::Label::new(RichText::new(words).font(theme::caption()).color(p.secondary)).wrap());
            if let Some(span) = chosen.and_then(|r| kept.rows.get(r as usize)) {
                controls::section(
                    ui,
                    &format!("Row {} pools tokens {}–{}", chosen.unwrap_or(0), span.first, span.last),
                );
                for t in span.first..=span.last {
                    let name = super::token_name(labels, t);
                    let response =
                        ui.add(egui::Label::new(RichText::new(&name).font(theme::mono())).sense(Sense::click()));
                    if response.hovered() {
                        cx.hover(Spot::token(t));
                    }
                    if response.clicked() {
                        cx.selection.lock(Spot::token(t));
                    }
                }
            }
            controls::section(ui, "Kept, best first");
            if rows.is_empty() {
                ui.label(RichText::new("none: no row is complete yet").color(p.secondary));
            }
            egui::ScrollArea::vertical()
                .id_salt("kept")
                .auto_shrink(false)
                .show_rows(ui, 20.0, rows.len(), |ui, range| {
                    ui.spacing_mut().item_spacing.y = 0.0;
                    for i in range {
                        if let Some(row) = rows.get(i) {
                            kept_row(ui, kept, labels, i, *row, chosen);
                        }
                    }
                });
        });
}

fn kept_row(ui: &mut Ui, kept: &KeptRows, labels: &[TokenLabel], rank: usize, row: u32, chosen: &mut Option<u32>) {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 20.0), Sense::click());
    let Some(span) = kept.rows.get(row as usize) else {
        return;
    };
    let text = if labels.is_empty() {
        format!("tokens {}–{}", span.first, span.last)
    } else {
        super::span_text(labels, span.first, span.last, 60)
    };
    let label = format!(
        "Rank {}: row {row}, tokens {} to {}, {text}",
        rank + 1,
        span.first,
        span.last
    );
    let on = *chosen == Some(row);
    response.widget_info(|| WidgetInfo::selected(egui::Role::Button, true, on, &label));
    if on || response.hovered() {
        ui.painter().rect_filled(rect, 4, if on { p.selected } else { p.hover });
    }
    let painter = ui.painter().with_clip_rect(ui.clip_rect().intersect(rect));
    let font = theme::mono();
    let at = |x: f32| pos2(rect.left() + x, rect.center().y);
    painter.text(
        at(26.0),
        Align2::RIGHT_CENTER,
        format!("{}", rank + 1),
        font.clone(),
        p.secondary,
    );
    painter.text(at(66.0), Align2::RIGHT_CENTER, format!("{row}"), font.clone(), p.text);
    painter.text(at(76.0), Align2::LEFT_CENTER, text, font, p.text);
    if response.clicked() {
        *chosen = if on { None } else { Some(row) };
    }
    response.on_hover_text(label);
}

fn csv(kept: &KeptRows) -> String {
    let mut csv = Csv::new(["query", "attn_recall", "kept rows, best first"]);
    for (q, rows) in kept.kept.iter().enumerate() {
        let list: Vec<String> = rows.iter().map(ToString::to_string).collect();
        let recall = kept.recall.get(q).copied().unwrap_or(f32::NAN);
        csv.row([q.to_string(), field(f64::from(recall)), list.join(" ")]);
    }
    csv.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_shows_ranks_drops_and_what_is_not_there_yet() {
        let mut kept = crate::testing::kept_rows(2, 12);
        kept.kept[11] = vec![2, 0];
        let grid = grid_of(&kept);
        let line = &grid[11 * 3..];
        assert_eq!(line, [1.0 - 1.0 / 3.0, 0.0, 1.0]);
        assert!(
            grid[..9].iter().all(|v| *v == MASKED),
            "no row is complete before token 3"
        );
        assert!(cell_words(&kept, &[], 11, 1, 0.0).contains("drops row 1 (tokens 0–7"));
        assert!(cell_words(&kept, &[], 11, 0, 0.5).ends_with("rank 2 of 2."));
    }
}
