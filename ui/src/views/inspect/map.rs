//! The attention map at full size, with a profile on two sides.

use egui::{Mesh, Rect, Sense, Ui, UiBuilder, pos2, vec2};
use protocol::{AttentionMap, KeptRows};

use super::words;
use crate::fmt;
use crate::selection::Spot;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::heatmap::{Dense, HeatResponse, HeatState, Heatmap, Labels, MASKED, Shades};
use crate::widgets::plots::{Csv, Explain, Quantity, field};

const ABOUT: &str = "Attention probabilities of the layer over the current text: rows are queries, columns what they read; a row \
                     adds up to 1 with its sink. Hatched: not visible to the query, or not kept by the indexer. Computed \
                     from queries and the stored cache rows by replaying the text (instrumented); the running text is not \
                     touched.";

/// Height of the profile above and width of the one at the right.
const PROFILE: f32 = 34.0;

/// The map with what it keeps.
#[derive(Debug, Default)]
pub struct Map {
    heat: HeatState,
    made: Option<Made>,
    /// Colours by equal ratios instead of equal steps.
    pub linear: bool,
}

#[derive(Debug)]
struct Made {
    revision: u64,
    grid: Dense,
    high: f32,
    low: f32,
    separators: Vec<usize>,
    /// Mean mass per column, over the queries that see it.
    received: Vec<f32>,
    /// Window, rows and sink per query.
    shares: Vec<[f32; 3]>,
}

impl Made {
    fn new(map: &AttentionMap, revision: u64) -> Self {
        let columns: usize = map.segments.iter().map(|s| s.columns() as usize).sum();
        let values: Vec<f32> = map.values.iter().map(|v| if *v < 0.0 { MASKED } else { *v }).collect();
        let (mut sums, mut seen) = (vec![0.0f32; columns], vec![0u32; columns]);
        for row in map.values.chunks_exact(columns.max(1)) {
            for (c, v) in row.iter().enumerate().filter(|(_, v)| **v >= 0.0) {
                sums[c] += v;
                seen[c] += 1;
            }
        }
        let received = sums.iter().zip(&seen).map(|(s, n)| s / (*n).max(1) as f32).collect();
        let positive = map.values.iter().copied().filter(|v| v.is_finite() && *v > 0.0);
        let (low, high) = positive.fold((f32::INFINITY, 0.0f32), |(lo, hi), v| (lo.min(v), hi.max(v)));
        let queries = map.spec.to.saturating_sub(map.spec.from) as usize;
        Self {
            revision,
            grid: Dense::new(values, columns, revision),
            high,
            low,
            separators: words::separators(&map.segments),
            received,
            shares: (0..queries).map(|q| words::shares(map, q)).collect(),
        }
    }
}

impl Map {
    /// Colours of the map, once it is made.
    pub fn shades(&self) -> Option<Shades> {
        let made = self.made.as_ref().filter(|m| m.high > 0.0)?;
        Some(if self.linear {
            Shades::sequential(0.0, made.high)
        } else {
            Shades::log(made.low, made.high)
        })
    }

    /// Draws it into the rest of `ui`. Returns the cell under the pointer: query, column.
    pub fn show(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        map: &AttentionMap,
        revision: u64,
        kept: Option<&KeptRows>,
        query: Option<usize>,
    ) -> Option<(usize, usize)> {
        if self.made.as_ref().is_none_or(|m| m.revision != revision) {
            self.made = Some(Made::new(map, revision));
            self.heat.zoom = None;
        }
        let shades = self.shades().unwrap_or(Shades::sequential(0.0, 1.0));
        let made = self.made.as_ref()?;
        let (outer, _) = ui.allocate_exact_size(ui.available_size().max(vec2(80.0, 80.0)), Sense::hover());
        let heat = Rect::from_min_max(outer.min + vec2(0.0, PROFILE), outer.max - vec2(PROFILE, 0.0));
        let from = map.spec.from;
        let row_name = |q: usize| {
            let text = map.tokens.get(from as usize + q).map_or("", |t| t.text.as_str());
            let cut: String = fmt::visible(text).chars().take(10).collect();
            cut
        };
        let col_name = |c: usize| words::column_name(map, c);
        let tooltip = |ui: &mut Ui, row: usize, col: usize, _value: f32| {
            ui.set_max_width(320.0);
            ui.add(egui::Label::new(words::sentence(map, kept, row, col)).wrap());
        };
        let head = map
            .spec
            .head
            .map_or("mean of the heads".to_string(), |h| format!("head {h}"));
        let summary = format!(
            "layer {}, {head}, {} queries, {} columns",
            map.spec.layer,
            fmt::count(map.spec.to - from),
            fmt::count(made.received.len() as u64)
        );
        let mut child = ui.new_child(UiBuilder::new().max_rect(heat));
        let back = Heatmap::new(
            "Attention",
            &made.grid,
            shades,
            Quantity::Plain,
            Explain::measured(ABOUT),
        )
        .labels(Labels::Names(&row_name), Labels::Names(&col_name))
        .separators(&made.separators)
        .highlight(query, None)
        .summary(summary)
        .tooltip(&tooltip)
        .show(cx, &mut child, &mut self.heat, &|| csv(map));
        profiles(ui, &back, made, outer);
        if let Some((row, _)) = back.hover {
            cx.hover(Spot::token(from + row as u64));
        }
        if let Some((row, _)) = back.clicked {
            cx.selection.click(Spot::token(from + row as u64));
        }
        back.hover
    }
}

/// Mass received per column above, shares of window, rows and sink per query at the right. Meshes: the soft edges of
/// rectangles would make stripes of rows that are a pixel high.
fn profiles(ui: &Ui, back: &HeatResponse, made: &Made, outer: Rect) {
    let p = Palette::of(ui);
    let frame = back.frame;
    let above = Rect::from_min_max(
        pos2(frame.left(), outer.top() + 4.0),
        pos2(frame.right(), frame.top() - 3.0),
    );
    let most = made.received.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    let mut mesh = Mesh::default();
    for (c, v) in made.received.iter().enumerate().filter(|(_, v)| **v > 0.0) {
        let cell = back.cell(0, c);
        let top = above.bottom() - (v / most) * above.height();
        let bar = Rect::from_x_y_ranges(cell.x_range(), top..=above.bottom()).intersect(above);
        if bar.is_positive() {
            mesh.add_colored_rect(bar, p.secondary);
        }
    }
    let right = (outer.right() - 6.0).max(frame.right() + 5.0);
    let beside = Rect::from_min_max(pos2(frame.right() + 4.0, frame.top()), pos2(right, frame.bottom()));
    let colors = [p.kv[0], p.kv[1], p.faint];
    for (q, shares) in made.shares.iter().enumerate() {
        let cell = back.cell(q, 0);
        let mut x = beside.left();
        for (share, color) in shares.iter().zip(colors) {
            let width = share.clamp(0.0, 1.0) * beside.width();
            let bar = Rect::from_x_y_ranges(x..=x + width, cell.y_range()).intersect(beside);
            if bar.is_positive() {
                mesh.add_colored_rect(bar, color);
            }
            x += width;
        }
    }
    ui.painter().add(mesh);
    caption(ui, above, "received");
}

fn caption(ui: &Ui, rect: Rect, text: &str) {
    let p = Palette::of(ui);
    ui.painter().text(
        rect.left_top(),
        egui::Align2::LEFT_TOP,
        text,
        theme::mono_caption(),
        p.faint,
    );
}

fn csv(map: &AttentionMap) -> String {
    let columns: usize = map.segments.iter().map(|s| s.columns() as usize).sum();
    let name = |c: usize| match words::key_of(&map.segments, c).map(|k| k.0) {
        Some(words::Key::Token(t)) => format!("token {t}"),
        Some(words::Key::Row(row, span)) => format!("row {row} ({}-{})", span.first, span.last),
        Some(words::Key::Sink) | None => "sink".into(),
    };
    let head = ["query".to_string(), "text".into()];
    let mut csv = Csv::new(head.into_iter().chain((0..columns).map(name)));
    for q in 0..map.spec.to.saturating_sub(map.spec.from) as usize {
        let at = map.spec.from as usize + q;
        let text = map.tokens.get(at).map_or(String::new(), |t| t.text.clone());
        let values = words::row_of(map, q)
            .iter()
            .map(|v| if *v < 0.0 { String::new() } else { field(f64::from(*v)) });
        csv.row([at.to_string(), text].into_iter().chain(values));
    }
    csv.text()
}
