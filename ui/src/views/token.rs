//! The right region: the selected token.

use super::{Context, View, empty};
use crate::fmt;
use crate::icons;
use crate::theme::{self, Palette};

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

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let token = cx
            .shown()
            .token
            .and_then(|t| cx.store.text.as_ref().and_then(|x| x.token_at(t)));
        let Some(token) = token else {
            empty(
                ui,
                icons::CROSSHAIR,
                "Point at a token of the text to see its probability and what else it could have been.",
                None,
            );
            return;
        };
        let p = Palette::of(ui);
        egui::Frame::new().inner_margin(theme::PAD).show(ui, |ui| {
            let title = format!(
                "Token {} {}",
                fmt::count(token.info.position),
                fmt::quoted(&token.info.text)
            );
            ui.label(egui::RichText::new(title).font(theme::strong()));
            ui.label(egui::RichText::new(format!("p {}", fmt::probability(token.info.logprob))).color(p.secondary));
        });
    }
}
