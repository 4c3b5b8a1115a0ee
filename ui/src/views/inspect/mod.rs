//! Looking inside the current text: attention, kept rows, router choices. Values come from replays (instrumented); the
//! running text is not touched.

mod attention;
mod held;
mod map;
mod router;
mod rows;
mod text;
mod thumbs;
mod words;

use egui::{Layout, RichText, Ui, Vec2, vec2};
use protocol::TokenLabel;

use super::{Action, Context, View, empty};
use crate::fmt;
use crate::icons;
use crate::theme::{self, Palette};

/// All views.
pub fn views() -> Vec<Box<dyn View>> {
    vec![
        Box::<attention::Attention>::default(),
        Box::<rows::Rows>::default(),
        Box::<router::Router>::default(),
    ]
}

/// Width from which a list stands beside a map instead of below it.
const WIDE: f32 = 560.0;

/// Where a map and a list go: the layout, the map's room, the list's.
fn beside(room: Vec2) -> (Layout, Vec2, Vec2) {
    if room.x >= WIDE {
        let list = (room.x * 0.34).clamp(190.0, 300.0);
        let layout = Layout::left_to_right(egui::Align::Min);
        (layout, vec2(room.x - list, room.y), vec2(list, room.y))
    } else {
        let list = room.y * 0.4;
        let layout = Layout::top_down(egui::Align::Min);
        (layout, vec2(room.x, room.y - list), vec2(room.x, list))
    }
}

/// Tokens that can be looked at; `None` after saying that there are none.
fn tokens(cx: &mut Context<'_>, ui: &mut Ui, icon: &str, what: &str) -> Option<u64> {
    let n = readable(cx);
    if cx.store.model().is_some() && n > 0 {
        return Some(n);
    }
    if empty(ui, icon, what, Some("Go to the text")) {
        cx.act(Action::Show("generate"));
    }
    None
}

/// Tokens that a replay has: while a text is being written, the newest one is drawn but not read yet.
fn readable(cx: &Context<'_>) -> u64 {
    let n = cx.store.state.as_ref().map_or(0, |s| s.position);
    n.saturating_sub(u64::from(cx.store.writing().is_some()))
}

/// The chosen layer: locked, else the one of before, else the first that suits.
fn layer(cx: &Context<'_>, before: &mut Option<u32>, suits: impl Fn(&protocol::LayerFactsView) -> bool) -> u32 {
    let layers = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
    let first = layers.iter().position(suits).unwrap_or(0) as u32;
    let chosen = cx.selection.locked().layer.or(*before).unwrap_or(first);
    let chosen = chosen.min(layers.len().saturating_sub(1) as u32);
    *before = Some(chosen);
    chosen
}

/// The token that is pointed at or locked, not the newest one.
fn chosen_token(cx: &Context<'_>) -> Option<u64> {
    cx.selection.hovered().or(cx.selection.locked()).token
}

/// A token with its place: `57 " dragon"`.
fn token_name(tokens: &[TokenLabel], at: u64) -> String {
    let text = tokens.get(at as usize).map_or("", |t| t.text.as_str());
    format!("{} {}", fmt::count(at), fmt::quoted(text))
}

/// The text of some tokens, cut where it gets long.
fn span_text(tokens: &[TokenLabel], first: u64, last: u64, most: usize) -> String {
    let texts = tokens
        .iter()
        .skip(first as usize)
        .take((last + 1).saturating_sub(first) as usize);
    let all: String = texts.map(|t| fmt::visible(&t.text)).collect();
    if all.chars().count() <= most {
        return format!("\"{all}\"");
    }
    let cut: String = all.chars().take(most.saturating_sub(1)).collect();
    format!("\"{cut}…\"")
}

/// A part of a panel, exactly so large.
fn part(ui: &mut Ui, size: egui::Vec2, content: impl FnOnce(&mut Ui)) {
    ui.allocate_ui(size, |ui| {
        ui.set_min_size(size);
        ui.set_max_size(size);
        ui.spacing_mut().item_spacing = egui::vec2(2.0 * theme::GRID, theme::GRID);
        ui.vertical(content);
    });
}

/// A menu of layers for a title row. Those that do not suit are left out.
fn layer_menu(cx: &mut Context<'_>, ui: &mut Ui, current: u32, suits: impl Fn(&protocol::LayerFactsView) -> bool) {
    let p = Palette::of(ui);
    let layers = cx.store.facts().map_or(&[][..], |f| f.layers.as_slice());
    let name = |l: usize| {
        let kind = layers.get(l).map_or("", |k| super::token::short_kind(&k.attention));
        format!("layer {l} {kind}")
    };
    let text = RichText::new(format!("{} {}", name(current as usize), icons::CARET_DOWN))
        .font(theme::caption())
        .color(p.secondary);
    let button = egui::Button::new(text).frame(false).small();
    let menu = egui::containers::menu::MenuButton::from_button(button).ui(ui, |ui| {
        let fit: Vec<usize> = (0..layers.len()).filter(|i| suits(&layers[*i])).collect();
        let scroll = egui::ScrollArea::vertical().max_height(320.0);
        scroll.show_rows(ui, theme::ROW, fit.len(), |ui, rows| {
            for &i in fit.get(rows).unwrap_or(&[]) {
                if ui.selectable_label(i as u32 == current, name(i)).clicked() {
                    cx.selection.lock(crate::selection::Spot::layer(i as u32));
                }
            }
        });
    });
    menu.0.accessible_name(format!("Layer: {}", name(current as usize)));
}

/// Says that the text went on since what is shown was computed.
fn older(ui: &mut Ui, shown: u64, now: u64) {
    if now <= shown {
        return;
    }
    let p = Palette::of(ui);
    let more = fmt::count(now - shown);
    let text = format!("the text went on by {more} tokens; looked at again when it rests");
    ui.label(RichText::new(text).font(theme::caption()).color(p.warn));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_quoted_and_cut() {
        let tokens: Vec<TokenLabel> = [" a", " big", " red", "\n"]
            .iter()
            .map(|t| TokenLabel {
                token: 1,
                text: (*t).into(),
            })
            .collect();
        assert_eq!(span_text(&tokens, 0, 1, 40), "\" a big\"");
        assert_eq!(span_text(&tokens, 1, 3, 40), "\" big red\u{240a}\"");
        assert_eq!(span_text(&tokens, 0, 3, 6), "\" a bi…\"");
        assert_eq!(token_name(&tokens, 2), "2 \" red\"");
        assert_eq!(token_name(&tokens, 9), "9 \"\"");
    }
}
