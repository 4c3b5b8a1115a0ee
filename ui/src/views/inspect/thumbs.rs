//! Thumbnails of attention, a row per layer: the mean of its heads, then each head. They are fetched one at a time and
//! only while no text is being written; on slow models only the heads of the chosen layer are.

use std::collections::BTreeMap;

use egui::{
    Align2, Color32, ColorImage, Pos2, Rect, RichText, Sense, Stroke, StrokeKind, TextureHandle, TextureOptions, Ui,
    WidgetInfo, pos2, vec2,
};
use protocol::{AttentionMap, AttentionSpec, Reply, Request};

use crate::fmt;
use crate::selection::Spot;
use crate::store::Ticket;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::views::token::short_kind;
use crate::widgets::heatmap::{Dense, Grid, MASKED, Shades, hatch};
use crate::widgets::plots::choice;

/// Side of a thumbnail in points, and of its picture in cells.
const SIDE: f32 = 34.0;
const CELLS: usize = 34;
const GAP: f32 = 4.0;
/// Width of a layer's name.
const NAME: f32 = 62.0;
/// Queries of a thumbnail.
const QUERIES: u64 = 256;
/// A replay that takes longer, in seconds, is not repeated for every head.
const SLOW: f64 = 1.5;

/// How layers are ordered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Sort {
    #[default]
    Layer,
    Entropy,
    Recall,
    Sink,
}

/// A layer, and a head or the mean of all.
type Place = (u32, Option<u32>);

/// What is on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Map(Place),
    Recall(u32),
}

/// What thumbnails belong to: text, recipe, tokens.
type Stamp = (u64, String, u64);

/// See the module.
#[derive(Default)]
pub struct Thumbs {
    sort: Sort,
    stamp: Stamp,
    pictures: BTreeMap<Place, TextureHandle>,
    /// Mean entropy in bits and sink mass per layer and head.
    stats: BTreeMap<u32, Vec<(f32, f32)>>,
    /// `attn_recall` per layer; NaN where there is none.
    recall: BTreeMap<u32, f32>,
    flight: Option<(Ticket, Wanted, f64)>,
    slow: bool,
    /// The host could not answer one: no more are asked for until something changes.
    failed: bool,
}

impl std::fmt::Debug for Thumbs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Thumbs")
            .field("pictures", &self.pictures.len())
            .finish_non_exhaustive()
    }
}

impl Thumbs {
    /// Width that shows all heads.
    pub fn width(&self, heads: u32) -> f32 {
        NAME + theme::PAD + (SIDE + GAP) * (heads + 1) as f32 + 8.0
    }

    /// Draws them; `chosen` is the place of the large map, which comes first: `ready` says that it is there.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, chosen: Place, upto: u64, ready: bool) {
        let p = Palette::of(ui);
        self.renew(cx, upto);
        self.arrived(cx, ui);
        let order = self.order(cx);
        ui.horizontal(|ui| {
            ui.add_space(theme::PAD);
            ui.label(
                RichText::new("layers × heads")
                    .font(theme::caption())
                    .color(p.secondary),
            );
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                let all = [
                    (Sort::Layer, "by layer"),
                    (Sort::Entropy, "by entropy"),
                    (Sort::Recall, "by recall"),
                    (Sort::Sink, "by sink mass"),
                ];
                choice(ui, "Order of layers", &mut self.sort, &all);
            });
        });
        let mut visible = Vec::new();
        egui::ScrollArea::vertical()
            .id_salt("thumbs")
            .auto_shrink(false)
            .show_rows(ui, SIDE, order.len(), |ui, rows| {
                ui.spacing_mut().item_spacing.y = GAP;
                for &layer in order.get(rows).unwrap_or(&[]) {
                    visible.push(layer);
                    self.row(cx, ui, layer, chosen);
                }
            });
        if ready {
            self.ask(cx, &visible, chosen.0, upto);
        }
    }

    /// Forgets what belongs to another text or recipe. While a text is being written everything stays.
    fn renew(&mut self, cx: &Context<'_>, upto: u64) {
        let Some(state) = &cx.store.state else { return };
        let doc = state.doc.as_ref().map_or(0, |d| d.id);
        let recipe = state.recipe.as_ref().map_or(String::new(), |r| r.hash.clone());
        let now = (doc, recipe, upto);
        if self.stamp != now {
            let sort = self.sort;
            *self = Self {
                sort,
                stamp: now,
                ..Self::default()
            };
        }
    }

    fn arrived(&mut self, cx: &Context<'_>, ui: &Ui) {
        let Some((ticket, wanted, asked)) = self.flight else {
            return;
        };
        let Some(outcome) = cx.outcome(ticket) else { return };
        self.flight = None;
        self.slow |= cx.now - asked > SLOW;
        match (outcome, wanted) {
            (Ok(Reply::Attention(map)), Wanted::Map(place)) => {
                let image = picture(map, Palette::of(ui));
                let name = format!("attention {} {:?}", place.0, place.1);
                self.pictures
                    .insert(place, ui.ctx().load_texture(name, image, TextureOptions::NEAREST));
                self.stats.insert(place.0, map.head_stats.clone());
            }
            (Ok(Reply::Rows(rows)), Wanted::Recall(layer)) => {
                self.recall.insert(layer, rows.attn_recall);
            }
            _ => self.failed = true,
        }
    }

    /// Asks for the next missing one.
    fn ask(&mut self, cx: &mut Context<'_>, visible: &[u32], chosen: u32, upto: u64) {
        if self.flight.is_some() || self.failed || cx.store.writing().is_some() {
            return;
        }
        let Some(wanted) = self.next(cx, visible, chosen) else {
            return;
        };
        let request = match wanted {
            Wanted::Map((layer, head)) => Request::InspectAttention(AttentionSpec {
                layer,
                head,
                from: upto.saturating_sub(QUERIES),
                to: upto,
            }),
            Wanted::Recall(layer) => Request::InspectRows(layer),
        };
        let ticket = cx.call(request);
        self.flight = Some((ticket, wanted, cx.now));
    }

    fn next(&self, cx: &Context<'_>, visible: &[u32], chosen: u32) -> Option<Wanted> {
        let layers = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
        if self.sort == Sort::Recall {
            let missing = |l: &u32| layers[*l as usize].index_topk > 0 && !self.recall.contains_key(l);
            if let Some(layer) = (0..layers.len() as u32).find(missing) {
                return Some(Wanted::Recall(layer));
            }
        }
        let mean = visible.iter().map(|l| (*l, None));
        let heads = |layer: u32| {
            let n = layers.get(layer as usize).map_or(0, |l| l.heads);
            (0..n).map(move |h| (layer, Some(h)))
        };
        let others = visible.iter().copied().filter(|_| !self.slow).flat_map(heads);
        let mut all = mean.chain(heads(chosen)).chain(others);
        all.find(|place| !self.pictures.contains_key(place)).map(Wanted::Map)
    }

    fn order(&self, cx: &Context<'_>) -> Vec<u32> {
        let n = cx.store.facts().map_or(0, |f| f.layers.len()) as u32;
        let mut all: Vec<u32> = (0..n).collect();
        if self.sort == Sort::Layer {
            return all;
        }
        // What is not known yet stands last.
        let key = |l: &u32| match self.sort {
            Sort::Layer => Some(*l as f32),
            Sort::Entropy => self.mean(*l).map(|m| m.0),
            Sort::Sink => self.mean(*l).map(|m| -m.1),
            Sort::Recall => self.recall.get(l).copied().filter(|r| !r.is_nan()),
        };
        all.sort_by(|a, b| {
            key(a)
                .unwrap_or(f32::INFINITY)
                .total_cmp(&key(b).unwrap_or(f32::INFINITY))
                .then(a.cmp(b))
        });
        all
    }

    /// Mean entropy and sink mass of a layer.
    fn mean(&self, layer: u32) -> Option<(f32, f32)> {
        let stats = self.stats.get(&layer).filter(|s| !s.is_empty())?;
        let n = stats.len() as f32;
        Some((
            stats.iter().map(|s| s.0).sum::<f32>() / n,
            stats.iter().map(|s| s.1).sum::<f32>() / n,
        ))
    }

    fn row(&self, cx: &mut Context<'_>, ui: &mut Ui, layer: u32, chosen: Place) {
        let p = Palette::of(ui);
        let facts = cx.store.facts().and_then(|f| f.layers.get(layer as usize));
        let heads = facts.map_or(0, |l| l.heads);
        let kind = facts.map_or("", |l| short_kind(&l.attention));
        let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), SIDE), Sense::hover());
        let ink = if chosen.0 == layer { p.accent } else { p.text };
        let at = rect.left_top() + vec2(theme::PAD, 3.0);
        ui.painter().text(
            at,
            Align2::LEFT_TOP,
            format!("{layer} {kind}"),
            theme::mono_caption(),
            ink,
        );
        let under = self.under(layer);
        ui.painter().text(
            at + vec2(0.0, 14.0),
            Align2::LEFT_TOP,
            under,
            theme::mono_caption(),
            p.faint,
        );
        let mut x = rect.left() + theme::PAD + NAME;
        let places = std::iter::once(None).chain((0..heads).map(Some));
        for (i, head) in places.enumerate() {
            let left = heads as usize - i.min(heads as usize);
            if x + SIDE > rect.right() {
                let text = format!("+{}", left + 1);
                ui.painter().text(
                    pos2(x, rect.center().y),
                    Align2::LEFT_CENTER,
                    text,
                    theme::mono_caption(),
                    p.faint,
                );
                break;
            }
            let cell = Rect::from_min_size(pos2(x, rect.top()), vec2(SIDE, SIDE));
            self.cell(cx, ui, cell, (layer, head), chosen);
            x += SIDE + GAP;
        }
    }

    /// The figure below a layer's name: of the order that is chosen.
    fn under(&self, layer: u32) -> String {
        match self.sort {
            Sort::Recall => self
                .recall
                .get(&layer)
                .map_or(String::new(), |r| format!("rec {}", fmt::sig3(f64::from(*r)))),
            Sort::Sink => self.mean(layer).map_or(String::new(), |m| {
                format!("snk {}", fmt::percent(f64::from(m.1)).plain())
            }),
            _ => self
                .mean(layer)
                .map_or(String::new(), |m| format!("{} bit", fmt::sig3(f64::from(m.0)))),
        }
    }

    fn cell(&self, cx: &mut Context<'_>, ui: &mut Ui, rect: Rect, place: Place, chosen: Place) {
        let p = Palette::of(ui);
        let id = ui.scope_id().with(("thumb", place));
        let response = ui.interact(rect, id, Sense::click());
        let what = place.1.map_or("mean of heads".to_string(), |h| format!("head {h}"));
        let stat = place
            .1
            .and_then(|h| self.stats.get(&place.0)?.get(h as usize).copied())
            .or(self.mean(place.0));
        let figures = stat.map_or(String::new(), |(e, s)| {
            format!(
                ": entropy {} bits, sink mass {}",
                fmt::sig3(f64::from(e)),
                fmt::percent(f64::from(s)).plain()
            )
        });
        let label = format!("Layer {} {what}{figures}", place.0);
        response.widget_info(|| WidgetInfo::selected(egui::Role::Button, true, place == chosen, &label));
        match self.pictures.get(&place) {
            Some(picture) => {
                let uv = Rect::from_min_max(Pos2::ZERO, pos2(1.0, 1.0));
                ui.painter().rect_filled(rect, 0, p.canvas);
                ui.painter().image(picture.id(), rect, uv, Color32::WHITE);
            }
            None => hatch(ui.painter(), rect, p),
        }
        let (width, color) = match (place == chosen, response.hovered() || response.has_focus()) {
            (true, _) => (2.0, p.accent),
            (_, true) => (theme::LINE, p.text),
            _ => (theme::LINE, p.line),
        };
        ui.painter()
            .rect_stroke(rect, 0, Stroke::new(width, color), StrokeKind::Inside);
        if response.hovered() {
            cx.hover(Spot {
                layer: Some(place.0),
                head: place.1,
                ..Spot::default()
            });
        }
        if response.clicked() {
            let locked = cx.selection.locked();
            cx.selection.restore(Spot {
                layer: Some(place.0),
                head: place.1,
                ..locked
            });
        }
        response.on_hover_text(label);
    }
}

/// A map as a small picture: max-pooled, colours by equal ratios.
fn picture(map: &AttentionMap, p: &Palette) -> ColorImage {
    let columns: usize = map.segments.iter().map(|s| s.columns() as usize).sum();
    let values: Vec<f32> = map.values.iter().map(|v| if *v < 0.0 { MASKED } else { *v }).collect();
    let grid = Dense::new(values, columns, 0);
    let positive = map.values.iter().copied().filter(|v| v.is_finite() && *v > 0.0);
    let high = positive.fold(f32::MIN_POSITIVE, f32::max);
    let shades = Shades::log(high * 1e-3, high);
    let (rows, cols) = (grid.rows().max(1), grid.cols().max(1));
    let cut = |i: usize, n: usize| (i * n / CELLS)..((i + 1) * n).div_ceil(CELLS).max(i * n / CELLS + 1);
    let pixels = (0..CELLS * CELLS)
        .map(|i| shades.color(p, grid.pooled(cut(i / CELLS, rows), cut(i % CELLS, cols))))
        .collect();
    ColorImage::new([CELLS, CELLS], pixels)
}
