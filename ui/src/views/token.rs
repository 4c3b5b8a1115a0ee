//! The right region: the selected token, what else it could have been, and what every layer did for it.

use egui::{Color32, RichText, Sense, Ui, WidgetInfo, vec2};
use protocol::{LayerRecord, Request, StepRecord, TokenInfo};

use super::{Action, Context, View, empty};
use crate::fmt::{self, Figure};
use crate::icons;
use crate::selection::Spot;
use crate::store::TokenRef;
use crate::theme::{self, Palette};
use crate::widgets::controls::{self, icon_button};

/// Height of a row of the layers.
const LAYER_ROW: f32 = 22.0;

/// See the module.
#[derive(Debug, Default)]
pub struct TokenView;

impl View for TokenView {
    fn id(&self) -> &'static str {
        "token"
    }

    fn title(&self) -> &'static str {
        "Token"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        if cx.selection.locked().is_empty() {
            return;
        }
        if icon_button(ui, icons::LOCK_SIMPLE, "Unlock the selection").clicked() {
            cx.selection.unlock();
        }
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let store = cx.store;
        let shown = cx.shown();
        let token = shown
            .token
            .and_then(|t| store.text.as_ref().and_then(|x| x.token_at(t)));
        let step = shown.token.and_then(|t| store.steps.at_token(t));
        if token.is_none() && step.is_none() {
            let what = "Point at a token to see its probability, what else it could have been, and what every layer did for it.";
            empty(ui, icons::CROSSHAIR, what, None);
            return;
        }
        let scroll = egui::ScrollArea::vertical()
            .id_salt("token")
            .auto_shrink([false, false])
            .content_margin(egui::Margin::symmetric(theme::PAD as i8, 4));
        scroll.show(ui, |ui| {
            match token {
                Some(token) => self.token(cx, ui, token),
                None => {
                    let p = Palette::of(ui);
                    ui.label(RichText::new("A token of the prompt: it was read, not drawn.").color(p.secondary));
                }
            }
            if let Some(step) = step {
                layers(cx, ui, step);
            }
        });
    }
}

impl TokenView {
    fn token(&mut self, cx: &mut Context<'_>, ui: &mut Ui, token: TokenRef<'_>) {
        details(ui, token.info);
        if let Some(hash) = token.node.recipes.get(usize::from(token.info.recipe)) {
            let short: String = hash.chars().take(4).collect();
            controls::row(ui, "recipe", |ui| {
                ui.label(RichText::new(format!("#{short}")).font(theme::mono()));
            });
        }
        controls::section(ui, "What it could have been");
        if token.info.top.is_empty() {
            let p = Palette::of(ui);
            let what = "No alternatives were kept. Settings: alternatives per token.";
            ui.add(egui::Label::new(RichText::new(what).color(p.secondary)).wrap());
        } else {
            branching(cx, ui, token);
        }
    }
}

/// Place of a token among its alternatives, from 1; `None` = not among those kept.
pub fn rank(info: &TokenInfo) -> Option<usize> {
    info.top.iter().position(|a| a.token == info.token).map(|i| i + 1)
}

/// Entropy of the distribution in bits: of the alternatives kept, the rest counted as one. A lower bound; close where
/// the rest is small.
pub fn entropy(info: &TokenInfo) -> Option<f64> {
    if info.top.is_empty() {
        return None;
    }
    let mut sum = 0.0;
    let mut h = 0.0;
    for a in &info.top {
        let p = f64::from(a.logprob).exp();
        sum += p;
        h -= p * f64::from(a.logprob);
    }
    let rest: f64 = 1.0 - sum;
    if rest > 1e-9 {
        h -= rest * rest.ln();
    }
    Some(h / std::f64::consts::LN_2)
}

/// Title and figures of a token.
pub fn details(ui: &mut Ui, info: &TokenInfo) {
    let p = Palette::of(ui);
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        ui.label(
            RichText::new(fmt::quoted(&info.text))
                .font(egui::FontId::monospace(theme::BODY))
                .color(p.text),
        );
        let id = format!("token {}  id {}", fmt::count(info.position), info.token);
        ui.label(RichText::new(id).font(theme::caption()).color(p.secondary));
    });
    let large = |ui: &mut Ui, name: &str, value: String| {
        ui.vertical(|ui| {
            ui.spacing_mut().item_spacing.y = 0.0;
            ui.label(RichText::new(name).font(theme::caption()).color(p.secondary));
            ui.label(RichText::new(value).font(egui::FontId::monospace(theme::TITLE)));
        });
    };
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 20.0;
        large(ui, "probability", fmt::probability(info.logprob));
        let place = match rank(info) {
            Some(r) => r.to_string(),
            None if info.top.is_empty() => "–".into(),
            None => format!("> {}", info.top.len()),
        };
        large(ui, "rank", place);
        if let Some(h) = entropy(info) {
            ui.vertical(|ui| {
                ui.spacing_mut().item_spacing.y = 0.0;
                ui.label(RichText::new("entropy").font(theme::caption()).color(p.secondary));
                let figure = Figure::new(fmt::sig3(h), "bits").estimated();
                ui.label(figure.job(p, egui::FontId::monospace(theme::TITLE), p.text));
            })
            .response
            .on_hover_text(
                "Of the alternatives kept, the rest of the vocabulary counted as one: a lower bound, close where the rest is small.",
            );
        }
    });
}

/// Alternatives with their probabilities as bars.
pub fn alternatives_table(ui: &mut Ui, info: &TokenInfo, most: usize) {
    for a in info.top.iter().take(most) {
        alternative_row(ui, a.logprob, &a.text, a.token == info.token, false);
    }
}

/// One alternative; returns the response of the row.
fn alternative_row(ui: &mut Ui, logprob: f32, text: &str, chosen: bool, clickable: bool) -> egui::Response {
    let p = Palette::of(ui);
    let sense = if clickable { Sense::click() } else { Sense::hover() };
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 22.0), sense);
    let label = format!("{} {}", fmt::quoted(text), fmt::probability(logprob));
    let enabled = ui.is_enabled();
    response.widget_info(|| {
        let role = if clickable {
            egui::Role::Button
        } else {
            egui::Role::Label
        };
        WidgetInfo::labeled(
            role,
            enabled,
            if clickable {
                format!("Branch with {label}")
            } else {
                label.clone()
            },
        )
    });
    if !ui.is_rect_visible(rect) {
        return response;
    }
    let share = logprob.exp().clamp(0.0, 1.0);
    let hot = clickable && (response.hovered() || response.has_focus());
    if hot {
        ui.painter().rect_filled(rect, 4, p.hover);
    }
    let bar = egui::Rect::from_min_size(rect.min + vec2(0.0, 3.0), vec2((rect.width() * share).max(1.0), 16.0));
    let fill = if chosen {
        theme::mix(p.panel, p.accent, 0.34)
    } else {
        theme::mix(p.panel, p.secondary, 0.22)
    };
    ui.painter().rect_filled(bar, 3, fill);
    let painter = ui.painter().with_clip_rect(rect.with_max_x(rect.right() - 52.0));
    let color = if chosen {
        p.text
    } else {
        theme::mix(p.secondary, p.text, 0.6)
    };
    let at = rect.left_center() + vec2(6.0, 0.0);
    painter.text(at, egui::Align2::LEFT_CENTER, fmt::quoted(text), theme::mono(), color);
    let right = rect.right_center() - vec2(4.0, 0.0);
    if hot {
        ui.painter().text(
            right,
            egui::Align2::RIGHT_CENTER,
            icons::GIT_BRANCH,
            theme::body(),
            p.accent,
        );
    } else {
        let value = fmt::probability(logprob);
        ui.painter()
            .text(right, egui::Align2::RIGHT_CENTER, value, theme::mono(), color);
    }
    response
}

fn branching(cx: &mut Context<'_>, ui: &mut Ui, token: TokenRef<'_>) {
    let able = cx.can_edit() && cx.store.writing().is_none();
    ui.spacing_mut().item_spacing.y = 1.0;
    for a in &token.info.top {
        let chosen = a.token == token.info.token;
        let response = alternative_row(ui, a.logprob, &a.text, chosen, able && !chosen);
        if able && !chosen {
            if response.clicked()
                && let Some(spec) = &token.node.spec
            {
                cx.send(Request::BranchAt {
                    node: token.node.id,
                    index: token.index as u32,
                    token: a.token,
                    spec: spec.clone(),
                });
            }
            response.on_hover_text("Branch here: the text goes on with this token instead");
        }
    }
    ui.spacing_mut().item_spacing.y = theme::GRID;
    ui.add_space(theme::GRID);
    ui.horizontal(|ui| {
        if controls::button(ui, icons::COPY, "Copy as CSV").clicked() {
            let mut csv = String::from("token,text,probability\n");
            for a in &token.info.top {
                csv.push_str(&format!("{},{:?},{}\n", a.token, a.text, a.logprob.exp()));
            }
            cx.act(Action::Copy(csv));
        }
    });
}

/// What every layer did in the step of the token, from the telemetry that is always on.
fn layers(cx: &mut Context<'_>, ui: &mut Ui, step: &StepRecord) {
    let p = Palette::of(ui);
    let facts = cx.store.facts();
    let title = if step.tokens == 1 {
        "Layers at this token".to_string()
    } else {
        format!("Layers, in its step of {} tokens", fmt::count(u64::from(step.tokens)))
    };
    controls::section(ui, &title);
    let width = ui.available_width();
    let edges = [0.0, 0.34, 0.60, 0.80, 1.0].map(|x| x * width);
    let header = ["layer", "keys kept", "skipped", "FP8 error"];
    let cell = |ui: &Ui, rect: egui::Rect, column: usize, text: String, color: Color32, font: egui::FontId| {
        let (align, x) = if column == 0 {
            (egui::Align2::LEFT_CENTER, rect.left() + 4.0)
        } else {
            (egui::Align2::RIGHT_CENTER, rect.left() + edges[column + 1] - 4.0)
        };
        ui.painter()
            .text(egui::pos2(x, rect.center().y), align, text, font, color);
    };
    let (rect, _) = ui.allocate_exact_size(vec2(width, 18.0), Sense::hover());
    for (c, name) in header.iter().enumerate() {
        cell(ui, rect, c, (*name).into(), p.secondary, theme::caption());
    }
    ui.spacing_mut().item_spacing.y = 0.0;
    let shown = cx.shown().layer;
    // Only rows in sight are made: models of thousands of layers stay usable.
    let (all, _) = ui.allocate_exact_size(vec2(width, LAYER_ROW * step.layers.len() as f32), Sense::hover());
    let clip = ui.clip_rect();
    let row_at = |y: f32| ((y - all.top()) / LAYER_ROW).max(0.0) as usize;
    let in_sight = row_at(clip.top())..(row_at(clip.bottom()) + 1).min(step.layers.len());
    for i in in_sight {
        let Some(layer) = step.layers.get(i) else { continue };
        let top = all.top() + LAYER_ROW * i as f32;
        let rect = egui::Rect::from_min_size(egui::pos2(all.left(), top), vec2(width, LAYER_ROW));
        let response = ui.interact(rect, ui.scope_id().with(("layer", i)), Sense::click());
        let kind = facts.and_then(|f| f.layers.get(i)).map_or("", |l| l.attention.as_str());
        let values = row_of(i, kind, layer);
        response.widget_info(|| WidgetInfo::labeled(egui::Role::Button, true, format!("Layer {}", values.join(" "))));
        if shown == Some(i as u32) || response.hovered() {
            let locked = cx.selection.locked().layer == Some(i as u32);
            ui.painter()
                .rect_filled(rect, 4, if locked { p.selected } else { p.hover });
        }
        controls::focus_ring(ui, &response, rect);
        for (c, value) in values.iter().enumerate() {
            let color = if c == 0 { p.secondary } else { p.text };
            cell(ui, rect, c, value.clone(), color, theme::mono());
        }
        if response.hovered() {
            cx.hover(Spot::layer(i as u32));
        }
        if response.clicked() {
            cx.selection.click(Spot::layer(i as u32));
        }
        response.on_hover_ui(|ui| layer_tip(ui, i, layer, step));
    }
}

fn row_of(i: usize, kind: &str, layer: &LayerRecord) -> [String; 4] {
    let error = layer
        .round_trip_error
        .map_or_else(|| "–".to_string(), |e| format!("{}%", fmt::sig3(e * 100.0)));
    [
        format!("{i} {}", short_kind(kind)),
        fmt::count(layer.keys_kept),
        format!("{}%", fmt::sig3(layer.sparsity() * 100.0)),
        error,
    ]
}

/// A kind of attention in three or four letters.
pub fn short_kind(kind: &str) -> &str {
    match kind {
        "sliding" => "SWA",
        "csa" => "CSA",
        "hca" => "HCA",
        "dense" => "full",
        other => other,
    }
}

fn layer_tip(ui: &mut Ui, i: usize, layer: &LayerRecord, step: &StepRecord) {
    ui.label(RichText::new(format!("Layer {i}")).font(theme::strong()));
    controls::figure_row(ui, "keys in context", &Figure::new(fmt::count(layer.keys_context), ""));
    controls::figure_row(
        ui,
        "scored by attention",
        &Figure::new(fmt::count(layer.keys_scored), ""),
    );
    if layer.index_scored > 0 {
        controls::figure_row(
            ui,
            "scored by the indexer",
            &Figure::new(fmt::count(layer.index_scored), ""),
        );
    }
    controls::figure_row(ui, "KV bytes in use", &fmt::bytes(layer.kv_used.total()));
    let experts: Vec<String> = layer
        .expert_load
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .map(|(e, n)| {
            if step.tokens == 1 {
                e.to_string()
            } else {
                format!("{e}×{n}")
            }
        })
        .collect();
    if !experts.is_empty() {
        controls::figure_row(ui, "experts", &Figure::new(experts.join(", "), ""));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use protocol::Alternative;

    #[test]
    fn entropy_of_known_distributions() {
        let mut t = testing::token(0);
        let even = |n: usize| -> Vec<Alternative> {
            (0..n)
                .map(|i| Alternative {
                    token: i as u32,
                    text: String::new(),
                    logprob: (0.25f32).ln(),
                })
                .collect()
        };
        t.top = even(4);
        assert!((entropy(&t).unwrap() - 2.0).abs() < 1e-6);
        // Half of the mass unknown: counted as one symbol.
        t.top = even(2);
        assert!((entropy(&t).unwrap() - 1.5).abs() < 1e-6);
        t.top.clear();
        assert_eq!(entropy(&t), None);
    }

    #[test]
    fn rank_counts_from_one() {
        let mut t = testing::token(3);
        t.token = t.top[2].token;
        assert_eq!(rank(&t), Some(3));
        t.token = 999_999;
        assert_eq!(rank(&t), None);
    }
}
