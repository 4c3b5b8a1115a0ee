//! The text coloured by what a chosen token looks at.

use egui::{RichText, Ui};
use protocol::AttentionMap;

use super::words;
use crate::fmt;
use crate::selection::Spot;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::plots::{Csv, Explain, field, figure_menu};
use crate::widgets::token_text::{TokenMark, TokenText, tint};

const ABOUT: &str = "Attention of the chosen token over the text, head mean or one head. The mass on a compressed row is spread \
                     evenly over the tokens it pools. Colours grow with the square root of the mass. By replay \
                     (instrumented).";

/// See the module.
#[derive(Debug, Default)]
pub struct Reading {
    text: TokenText,
    /// Revision of the map, query: what `mass` belongs to.
    made: Option<(u64, usize)>,
    mass: Vec<Option<f32>>,
    most: f32,
}

impl Reading {
    /// Draws it. `query` is the row of the map, if the chosen token has one.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, map: &AttentionMap, revision: u64, query: Option<usize>) {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        self.text.set(revision, map.tokens.iter().map(|t| t.text.as_str()));
        let wanted = query.map(|q| (revision, q));
        if self.made != wanted {
            self.made = wanted;
            self.mass = query.map(|q| words::by_token(map, q)).unwrap_or_default();
            self.most = self.mass.iter().flatten().copied().fold(0.0, f32::max);
        }
        let caption = match query {
            Some(q) => {
                let at = map.spec.from + q as u64;
                format!(
                    "Text, coloured by the attention of {}",
                    super::token_name(&map.tokens, at)
                )
            }
            None => "Click a token to colour the text by its attention".to_string(),
        };
        ui.label(RichText::new(caption).font(theme::caption()).color(p.secondary));
        let most = self.most.max(f32::MIN_POSITIVE);
        let mass = &self.mass;
        let fill = |i: usize| mass.get(i).copied().flatten().and_then(|m| tint(p, (m / most).sqrt()));
        let at = query.map(|q| map.spec.from as usize + q);
        let marks: Vec<TokenMark> = at
            .map(|token| TokenMark { token, color: p.accent })
            .into_iter()
            .collect();
        let colors = wanted.map_or(0, |(r, q)| (r << 20) + q as u64 + 1);
        let text = &mut self.text;
        let shown = egui::ScrollArea::vertical()
            .id_salt("attention text")
            .auto_shrink(false)
            .show(ui, |ui| {
                text.show(ui, "Text coloured by attention", colors, &fill, &marks)
            })
            .inner;
        if let Some(i) = shown.hover {
            cx.hover(Spot::token(i as u64));
            let said = match mass.get(i).copied().flatten() {
                Some(m) => format!("{} of the mass", fmt::sig3(f64::from(m))),
                None if query.is_some() => "not visible to it".into(),
                None => String::new(),
            };
            shown.response.clone().on_hover_ui_at_pointer(|ui| {
                ui.label(RichText::new(super::token_name(&map.tokens, i as u64)).font(theme::mono()));
                if !said.is_empty() {
                    ui.label(RichText::new(&said).color(p.secondary));
                }
            });
        }
        if let Some(i) = shown.clicked {
            cx.selection.click(Spot::token(i as u64));
        }
        let csv = || {
            let mut csv = Csv::new(["token", "text", "mass"]);
            for (i, t) in map.tokens.iter().enumerate() {
                let m = mass.get(i).copied().flatten().unwrap_or(f32::NAN);
                csv.row([i.to_string(), t.text.clone(), field(f64::from(m))]);
            }
            csv.text()
        };
        figure_menu(
            cx,
            &shown.response,
            "Text coloured by attention",
            whole,
            "",
            &csv,
            &Explain::measured(ABOUT),
        );
    }
}
