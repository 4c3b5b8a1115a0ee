//! Attention: thumbnails of layers and heads, one map at full size, the pointed-at cell in words, the text coloured.

use egui::{RichText, Ui, vec2};
use protocol::{AttentionSpec, KeptRows};

use super::held::{Held, Shown, Upto};
use super::map::Map;
use super::text::Reading;
use super::thumbs::Thumbs;
use super::{part, words};
use crate::fmt::{self, Figure};
use crate::icons;
use crate::selection::Spot;
use crate::store::Query;
use crate::theme::{self, Palette};
use crate::views::{Context, View, failed, loading};
use crate::widgets::controls;
use crate::widgets::heatmap::color_bar;
use crate::widgets::plots::{Quantity, choice, dot, remark};

/// Most queries of one map.
const QUERIES: u64 = 1024;
/// Width from which thumbnails stand at the left, and words at the right.
const THUMBS: f32 = 460.0;
const WORDS: f32 = 780.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Attention {
    layer: Option<u32>,
    upto: Upto,
    map: Map,
    held: Held<AttentionSpec, protocol::AttentionMap>,
    kept: Held<(u32, u64), KeptRows>,
    thumbs: Thumbs,
    reading: Reading,
    /// The cell that was pointed at last: query, column.
    cell: Option<(usize, usize)>,
}

impl View for Attention {
    fn id(&self) -> &'static str {
        "inspect.attention"
    }

    fn title(&self) -> &'static str {
        "Attention"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let now = super::readable(cx);
        let Some(map) = self.held.value() else { return };
        let (layer, heads, to, from) = (map.spec.layer, map.heads, map.spec.to, map.spec.from);
        if let Some(shades) = self.map.shades().filter(|_| ui.available_width() > 420.0) {
            color_bar(ui, &shades, Quantity::Plain);
        }
        choice(ui, "Colours", &mut self.map.linear, &[(false, "log"), (true, "linear")]);
        head_menu(cx, ui, heads);
        super::layer_menu(cx, ui, layer, |_| true);
        if from > 0 {
            remark(
                ui,
                &format!("queries {}–{}", fmt::count(from), fmt::count(to.saturating_sub(1))),
            );
        }
        super::older(ui, to, now);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let what = "Which tokens each token looks at appears here once there is a text.";
        let Some(now) = super::tokens(cx, ui, icons::GRID_FOUR, what) else {
            return;
        };
        let upto = self.upto.tokens(cx, now);
        let layer = super::layer(cx, &mut self.layer, |l| l.attention == "csa");
        let facts = cx.store.facts().and_then(|f| f.layers.get(layer as usize));
        let heads = facts.map_or(0, |l| l.heads);
        let selects = facts.is_some_and(|l| l.index_topk > 0);
        let head = cx.selection.locked().head.filter(|h| *h < heads);
        let spec = AttentionSpec {
            layer,
            head,
            from: upto.saturating_sub(QUERIES),
            to: upto,
        };
        let room = ui.available_size();
        ui.horizontal_top(|ui| {
            ui.spacing_mut().item_spacing.x = 0.0;
            let thumbs = if room.x >= THUMBS {
                self.thumbs.width(heads).min(room.x * 0.36)
            } else {
                0.0
            };
            let words = if room.x >= WORDS {
                (room.x * 0.24).clamp(180.0, 260.0)
            } else {
                0.0
            };
            if thumbs > 0.0 {
                let ready = self.held.value().is_some_and(|m| m.spec == spec);
                part(ui, vec2(thumbs, room.y), |ui| {
                    self.thumbs.show(cx, ui, (layer, head), upto, ready);
                });
            }
            part(ui, vec2(room.x - thumbs - words, room.y), |ui| {
                self.centre(cx, ui, spec, selects, words > 0.0)
            });
            if words > 0.0 {
                part(ui, vec2(words, room.y), |ui| self.words(cx, ui));
            }
        });
    }
}

fn head_menu(cx: &mut Context<'_>, ui: &mut Ui, heads: u32) {
    let mut head = cx.selection.locked().head.filter(|h| *h < heads);
    let names: Vec<(Option<u32>, String)> = std::iter::once((None, "mean of heads".to_string()))
        .chain((0..heads).map(|h| (Some(h), format!("head {h}"))))
        .collect();
    let all: Vec<(Option<u32>, &str)> = names.iter().map(|(h, n)| (*h, n.as_str())).collect();
    if choice(ui, "Head", &mut head, &all) {
        let locked = cx.selection.locked();
        cx.selection.restore(Spot { head, ..locked });
    }
}

impl Attention {
    /// The map with the text below; the words too where they have no place beside.
    fn centre(&mut self, cx: &mut Context<'_>, ui: &mut Ui, spec: AttentionSpec, selects: bool, beside: bool) {
        let kept = if selects {
            match self.kept.pull(cx, &(spec.layer, spec.to), &Query::rows(spec.layer)) {
                Shown::Ready(rows, _) => Some(rows),
                _ => None,
            }
        } else {
            None
        };
        let (map, revision) = match self.held.pull(cx, &spec, &Query::attention(spec)) {
            Shown::Loading => return loading(ui, "The text is being replayed"),
            Shown::Failed(e) => return failed(cx, ui, &e),
            Shown::Ready(map, revision) => (map, revision),
        };
        let queries = (map.spec.to - map.spec.from) as usize;
        let query = super::chosen_token(cx)
            .and_then(|t| t.checked_sub(map.spec.from))
            .map(|q| q as usize);
        let query = query.filter(|q| *q < queries);
        let room = ui.available_size();
        let below = if room.y < 260.0 {
            0.0
        } else {
            (room.y * 0.28).clamp(90.0, 220.0)
        };
        let said = if beside || below == 0.0 { 0.0 } else { 40.0 };
        let mut hover = None;
        part(ui, vec2(room.x, room.y - below - said), |ui| {
            hover = self.map.show(cx, ui, map, revision, kept, query);
        });
        self.cell = hover.or(self.cell).filter(|(q, _)| *q < queries);
        if said > 0.0 {
            part(ui, vec2(room.x, said), |ui| {
                pad(ui, |ui| {
                    let text = cell_words(map, kept, self.cell, query);
                    ui.add(egui::Label::new(RichText::new(text).font(theme::caption())).wrap());
                });
            });
        }
        if below > 0.0 {
            part(ui, vec2(room.x, below), |ui| {
                pad(ui, |ui| self.reading.show(cx, ui, map, revision, query))
            });
        }
    }

    /// The cell that is pointed at, and what the layer and its heads do.
    fn words(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let p = Palette::of(ui);
        let Some(map) = self.held.value() else { return };
        let kept = self.kept.value().filter(|k| k.layer == map.spec.layer);
        let query = super::chosen_token(cx)
            .and_then(|t| t.checked_sub(map.spec.from))
            .map(|q| q as usize);
        let queries = (map.spec.to - map.spec.from) as usize;
        egui::ScrollArea::vertical()
            .id_salt("attention words")
            .auto_shrink(false)
            .show(ui, |ui| {
                pad(ui, |ui| {
                    let text = cell_words(map, kept, self.cell, query);
                    ui.add(
                        egui::Label::new(RichText::new(text).color(p.text))
                            .wrap()
                            .selectable(true),
                    );
                    if let Some(q) = self.cell.map(|c| c.0).or(query).filter(|q| *q < queries) {
                        controls::section(ui, &format!("Mass of query {}", fmt::count(map.spec.from + q as u64)));
                        let shares = words::shares(map, q);
                        let names = ["window", "compressed rows", "sink"];
                        for ((name, share), color) in names.iter().zip(shares).zip([p.kv[0], p.kv[1], p.faint]) {
                            controls::row(ui, name, |ui| {
                                ui.label(RichText::new(fmt::percent(f64::from(share)).plain()).font(theme::mono()));
                                dot(ui, color);
                            });
                        }
                    }
                    if let Some(kept) = kept {
                        controls::section(ui, "Rows kept by the indexer");
                        let recall =
                            Figure::new(fmt::sig3(f64::from(kept.attn_recall)), "").sampled(u64::from(kept.judged));
                        controls::figure_row(ui, "attn_recall", &recall);
                        controls::figure_row(
                            ui,
                            "smallest",
                            &Figure::new(fmt::sig3(f64::from(kept.attn_recall_min)), ""),
                        );
                    }
                    heads(cx, ui, map);
                });
            });
    }
}

fn pad(ui: &mut Ui, content: impl FnOnce(&mut Ui)) {
    egui::Frame::new()
        .inner_margin(egui::Margin::symmetric(12, 4))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            content(ui);
        });
}

fn cell_words(
    map: &protocol::AttentionMap,
    kept: Option<&KeptRows>,
    cell: Option<(usize, usize)>,
    query: Option<usize>,
) -> String {
    // A locked token speaks through its largest share when no cell was pointed at.
    let largest = |q: usize| {
        let row = words::row_of(map, q);
        (0..row.len())
            .max_by(|a, b| row[*a].total_cmp(&row[*b]))
            .map(|c| (q, c))
    };
    match cell.or_else(|| query.and_then(largest)) {
        Some((q, c)) => words::sentence(map, kept, q, c),
        None => "Point at a cell: what it is stands here in words.".into(),
    }
}

/// Entropy and sink mass per head.
fn heads(cx: &mut Context<'_>, ui: &mut Ui, map: &protocol::AttentionMap) {
    let p = Palette::of(ui);
    controls::section(ui, "Heads: entropy, sink mass");
    let locked = cx.selection.locked();
    for (h, (entropy, sink)) in map.head_stats.iter().enumerate() {
        let h = h as u32;
        let on = locked.head == Some(h);
        let text = format!(
            "{:>2}   {} bits   {}",
            h,
            fmt::sig3(f64::from(*entropy)),
            fmt::percent(f64::from(*sink)).plain()
        );
        let color = if on { p.accent } else { p.text };
        let response = ui.selectable_label(on, RichText::new(&text).font(theme::mono()).color(color));
        let name = format!(
            "Head {h}: entropy {} bits, sink mass {}",
            fmt::sig3(f64::from(*entropy)),
            fmt::percent(f64::from(*sink)).plain()
        );
        let response = response.accessible_name(name);
        if response.clicked() {
            cx.selection.restore(Spot {
                head: if on { None } else { Some(h) },
                layer: Some(map.spec.layer),
                ..locked
            });
        }
    }
}
