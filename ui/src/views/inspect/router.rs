//! Router choices: which experts each token of the text went to, with which weight.

use egui::{RichText, Ui, WidgetInfo, vec2};
use protocol::{LayerFactsView, RouterMap};

use super::held::{Held, Shown, Upto};
use super::part;
use crate::fmt;
use crate::icons;
use crate::selection::Spot;
use crate::store::Query;
use crate::theme::{self, Palette};
use crate::views::{Context, View, empty, failed, loading};
use crate::widgets::controls;
use crate::widgets::heatmap::{Dense, HeatState, Heatmap, Labels, MASKED, Shades, color_bar};
use crate::widgets::plots::{Csv, Explain, Quantity, field, figure_menu};
use crate::widgets::token_text::{TokenMark, TokenText, tint};

const ABOUT: &str = "Weights of the experts the router chose for each token of the layer. Hatched: not chosen. By replay \
                     (instrumented).";

/// See the module.
#[derive(Debug, Default)]
pub struct Router {
    layer: Option<u32>,
    upto: Upto,
    held: Held<u64, RouterMap>,
    heat: HeatState,
    /// Revision and layer the grid was made for.
    grid: Option<((u64, u32), Dense)>,
    text: TokenText,
}

fn routes(layer: &LayerFactsView) -> bool {
    layer.experts > 0
}

/// Choices of a layer (by its place among the layers with experts) for a token.
fn choices(map: &RouterMap, place: usize, token: usize) -> &[(u16, f32)] {
    let k = map.per_token as usize;
    let at = (place * map.tokens.len() + token) * k;
    let all = map.choices.get(at..at + k).unwrap_or(&[]);
    // A layer with fewer experts per token than the most ends with experts that do not exist.
    let there = all.iter().take_while(|(e, _)| u32::from(*e) < map.experts).count();
    &all[..there]
}

/// `[experts, tokens]`: weights, masked where an expert was not chosen.
fn grid_of(map: &RouterMap, place: usize) -> Vec<f32> {
    let n = map.tokens.len();
    let mut values = vec![MASKED; n * map.experts as usize];
    for t in 0..n {
        for (expert, weight) in choices(map, place, t) {
            if let Some(cell) = values.get_mut(usize::from(*expert) * n + t) {
                *cell = *weight;
            }
        }
    }
    values
}

impl View for Router {
    fn id(&self) -> &'static str {
        "inspect.router"
    }

    fn title(&self) -> &'static str {
        "Router"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let Some(map) = self.held.value() else { return };
        let n = map.tokens.len() as u64;
        if let Some((_, high)) = self.grid.as_ref().and_then(|(_, g)| g.range()) {
            color_bar(ui, &Shades::sequential(0.0, high), Quantity::Plain);
        }
        if let Some(layer) = self.layer {
            super::layer_menu(cx, ui, layer, routes);
        }
        let now = super::readable(cx);
        super::older(ui, n, now);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let what = "Which experts each token goes to appears here once there is a text.";
        let Some(now) = super::tokens(cx, ui, icons::GRAPH, what) else {
            return;
        };
        let layers = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
        if !layers.iter().any(routes) {
            let what = "This model has no experts: every token takes the same feed-forward block.";
            empty(ui, icons::GRAPH, what, None);
            return;
        }
        let upto = self.upto.tokens(cx, now);
        let layer = super::layer(cx, &mut self.layer, routes);
        let (map, revision) = match self.held.pull(cx, &upto, &Query::router()) {
            Shown::Loading => return loading(ui, "The text is being replayed"),
            Shown::Failed(e) => return failed(cx, ui, &e),
            Shown::Ready(map, revision) => (map, revision),
        };
        let Some(place) = map.layers.iter().position(|l| *l == layer) else {
            let first = map.layers.first().copied().unwrap_or(0);
            let what = format!("Layer {layer} has no experts.");
            if empty(ui, icons::GRAPH, &what, Some(&format!("Show layer {first}"))) {
                cx.selection.lock(Spot::layer(first));
            }
            return;
        };
        let token = super::chosen_token(cx).filter(|t| (*t as usize) < map.tokens.len());
        let room = ui.available_size();
        let (layout, rest, list) = super::beside(room);
        let key = (revision, layer);
        if self.grid.as_ref().is_none_or(|(k, _)| *k != key) {
            // Layers that look alike still differ: the revision names both.
            let named = revision.wrapping_mul(1 << 20) + u64::from(layer);
            self.grid = Some((key, Dense::new(grid_of(map, place), map.tokens.len(), named)));
        }
        let Some((_, grid)) = &self.grid else { return };
        let (heat, text) = (&mut self.heat, &mut self.text);
        ui.with_layout(layout, |ui| {
            ui.spacing_mut().item_spacing = vec2(0.0, 0.0);
            part(ui, rest, |ui| {
                let below = if rest.y > 220.0 { rest.y * 0.45 } else { 0.0 };
                part(ui, vec2(rest.x, rest.y - below), |ui| {
                    experts(cx, ui, map, (layer, place), grid, heat, token)
                });
                if below > 0.0 {
                    part(ui, vec2(rest.x, below), |ui| {
                        colored(cx, ui, map, revision, (layer, place), text, token)
                    });
                }
            });
            part(ui, list, |ui| of_token(cx, ui, map, token));
        });
    }
}

fn experts(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    map: &RouterMap,
    (layer, place): (u32, usize),
    grid: &Dense,
    heat: &mut HeatState,
    token: Option<u64>,
) {
    let high = grid.range().map_or(1.0, |r| r.1);
    let tooltip = |ui: &mut Ui, expert: usize, token: usize, value: f32| {
        let p = Palette::of(ui);
        ui.label(RichText::new(super::token_name(&map.tokens, token as u64)).font(theme::mono()));
        let words = if crate::widgets::heatmap::is_masked(value) {
            format!("does not go to expert {expert}")
        } else {
            let all = choices(map, place, token);
            let rank = 1 + all.iter().filter(|(_, w)| *w > value).count();
            format!(
                "goes to expert {expert} with weight {}, choice {rank} of {}",
                fmt::sig3(f64::from(value)),
                all.len()
            )
        };
        ui.label(RichText::new(words).color(p.secondary));
    };
    let summary = format!("layer {layer}, {} experts, {} tokens", map.experts, map.tokens.len());
    let shown = cx
        .shown()
        .expert
        .map(|e| e as usize)
        .filter(|e| *e < map.experts as usize);
    let explain = Explain::measured(ABOUT);
    let back = Heatmap::new(
        "Router choices",
        grid,
        Shades::sequential(0.0, high),
        Quantity::Plain,
        explain,
    )
    .labels(Labels::Numbers("expert", 0), Labels::Numbers("token", 0))
    .highlight(shown, token.map(|t| t as usize))
    .summary(summary)
    .tooltip(&tooltip)
    .show(cx, ui, heat, &|| csv(map, place));
    if let Some((expert, token)) = back.hover {
        cx.hover(Spot::cell(layer, token as u64).with_expert(expert as u32));
    }
    if let Some((expert, token)) = back.clicked {
        cx.selection
            .click(Spot::cell(layer, token as u64).with_expert(expert as u32));
    }
}

/// The text coloured by the weight of the chosen expert, else by how sure the router was.
fn colored(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    map: &RouterMap,
    revision: u64,
    (layer, place): (u32, usize),
    text: &mut TokenText,
    token: Option<u64>,
) {
    let p = Palette::of(ui);
    let whole = ui.max_rect();
    let expert = cx.selection.locked().expert.filter(|e| *e < map.experts);
    text.set(revision, map.tokens.iter().map(|t| t.text.as_str()));
    let weight = |t: usize| -> Option<f32> {
        let all = choices(map, place, t);
        match expert {
            Some(e) => all.iter().find(|(x, _)| u32::from(*x) == e).map(|(_, w)| *w),
            None => all.iter().map(|(_, w)| *w).reduce(f32::max),
        }
    };
    let all = || (0..map.tokens.len()).filter_map(weight);
    let most = all().fold(f32::MIN_POSITIVE, f32::max);
    let least = if expert.is_none() {
        all().fold(most, f32::min).min(most * 0.99)
    } else {
        0.0
    };
    egui::Frame::new()
        .inner_margin(egui::Margin::symmetric(12, 4))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            let caption = match expert {
                Some(e) => format!("Text, coloured by the weight of expert {e} in layer {layer}"),
                None => {
                    format!("Text, coloured by the largest weight in layer {layer}; click a cell to choose an expert")
                }
            };
            ui.label(RichText::new(caption).font(theme::caption()).color(p.secondary));
            // Of the largest weight only its differences say something; of one expert, whether it was chosen too.
            let fill = |t: usize| weight(t).and_then(|w| tint(p, ((w - least) / (most - least)).max(0.02)));
            let marks: Vec<TokenMark> = token
                .map(|t| TokenMark {
                    token: t as usize,
                    color: p.accent,
                })
                .into_iter()
                .collect();
            let colors =
                revision.wrapping_mul(1 << 24) + (u64::from(layer) << 12) + expert.map_or(0, |e| u64::from(e) + 1);
            let shown = egui::ScrollArea::vertical()
                .id_salt("router text")
                .auto_shrink(false)
                .show(ui, |ui| text.show(ui, "Text coloured by router", colors, &fill, &marks))
                .inner;
            if let Some(t) = shown.hover {
                cx.hover(Spot::token(t as u64));
            }
            if let Some(t) = shown.clicked {
                cx.selection.click(Spot::token(t as u64));
            }
            let explain = Explain::measured(ABOUT);
            figure_menu(
                cx,
                &shown.response,
                "Text coloured by router",
                whole,
                "",
                &|| csv(map, place),
                &explain,
            );
        });
}

/// Experts of the chosen token, layer by layer.
fn of_token(cx: &mut Context<'_>, ui: &mut Ui, map: &RouterMap, token: Option<u64>) {
    let p = Palette::of(ui);
    egui::Frame::new()
        .inner_margin(egui::Margin::symmetric(12, 0))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            let Some(token) = token.or_else(|| (map.tokens.len() as u64).checked_sub(1)) else {
                return;
            };
            ui.label(RichText::new(format!("Token {}", super::token_name(&map.tokens, token))).font(theme::strong()));
            controls::section(ui, "Experts and their weights, by layer");
            let shown = cx.shown();
            egui::ScrollArea::vertical()
                .id_salt("router layers")
                .auto_shrink(false)
                .show_rows(ui, 22.0, map.layers.len(), |ui, rows| {
                    ui.spacing_mut().item_spacing.y = 0.0;
                    for place in rows {
                        let layer = map.layers.get(place).copied().unwrap_or(0);
                        let words: Vec<String> = choices(map, place, token as usize)
                            .iter()
                            .map(|(e, w)| format!("{e}:{w:.2}"))
                            .collect();
                        let text = format!("L{layer:<3} {}", words.join("  "));
                        let on = shown.layer == Some(layer);
                        let color = if on { p.accent } else { p.text };
                        let label = egui::Label::new(RichText::new(&text).font(theme::mono()).color(color));
                        let response = ui.add(label.sense(egui::Sense::click()).truncate());
                        let name = format!("Layer {layer}: experts {}", words.join(", "));
                        response.widget_info(|| WidgetInfo::labeled(egui::Role::Button, true, &name));
                        if response.hovered() {
                            cx.hover(Spot::layer(layer));
                        }
                        if response.clicked() {
                            cx.selection.lock(Spot::layer(layer));
                        }
                    }
                });
        });
}

fn csv(map: &RouterMap, place: usize) -> String {
    let mut csv = Csv::new(["token", "text", "choice", "expert", "weight"]);
    for (t, label) in map.tokens.iter().enumerate() {
        for (i, (expert, weight)) in choices(map, place, t).iter().enumerate() {
            csv.row([
                t.to_string(),
                label.text.clone(),
                (i + 1).to_string(),
                expert.to_string(),
                field(f64::from(*weight)),
            ]);
        }
    }
    csv.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chosen_experts_have_their_weights() {
        let map = crate::testing::router(20);
        let grid = grid_of(&map, 3);
        for t in 0..20 {
            let chosen: Vec<usize> = (0..8).filter(|e| grid[e * 20 + t] != MASKED).collect();
            assert_eq!(chosen.len(), 3);
            let (expert, weight) = choices(&map, 3, t)[0];
            assert_eq!(grid[usize::from(expert) * 20 + t], weight);
        }
        assert!(choices(&map, 99, 0).is_empty());
    }
}
