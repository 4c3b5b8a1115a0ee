//! A position of a comparison in words: for tooltips and for the row of the chosen token.

use std::collections::BTreeMap;

use egui::{RichText, Ui};
use protocol::CompareResult;

use crate::fmt::{self, Figure};
use crate::store::Text;
use crate::theme::{self, Palette};
use crate::widgets::controls;

/// Texts of tokens that occur in the compared text, by number.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<u32, String>);

impl Names {
    /// From a result, and from what the model thought of at each token of the current text.
    pub fn of(r: &CompareResult, text: Option<&Text>) -> Self {
        let mut names: BTreeMap<u32, String> = r.tokens.iter().map(|t| (t.token, t.text.clone())).collect();
        let drawn = text.into_iter().flat_map(Text::tokens);
        for other in drawn.flat_map(|t| &t.info.top) {
            names.entry(other.token).or_insert_with(|| other.text.clone());
        }
        Self(names)
    }

    /// A token as people read it; its number where the text does not have it.
    pub fn get(&self, token: u32) -> String {
        self.0
            .get(&token)
            .map_or_else(|| format!("id {token}"), |t| fmt::quoted(t))
    }
}

/// A position: what both sides say after its token.
pub fn position(ui: &mut Ui, r: &CompareResult, names: &Names, i: usize) {
    let p = Palette::of(ui);
    let Some(t) = r.tokens.get(i) else { return };
    ui.spacing_mut().item_spacing.y = 1.0;
    ui.horizontal(|ui| {
        ui.label(RichText::new(fmt::quoted(&t.text)).font(egui::FontId::monospace(theme::BODY)));
        let place = format!("token {}  id {}", fmt::count(i as u64), t.token);
        ui.label(RichText::new(place).font(theme::caption()).color(p.secondary));
    });
    controls::figure_row(
        ui,
        "KL(A||B) after it",
        &Figure::new(fmt::sig3(f64::from(t.kl)), "nats"),
    );
    if let Some(next) = r.tokens.get(i + 1) {
        let pair = format!(
            "A {}   B {}",
            fmt::probability(t.logprob[0]),
            fmt::probability(t.logprob[1])
        );
        controls::figure_row(
            ui,
            &format!("p of the next, {}", fmt::quoted(&next.text)),
            &Figure::new(pair, ""),
        );
    }
    if t.top1[0] == t.top1[1] {
        controls::figure_row(ui, "likeliest next, both", &Figure::new(names.get(t.top1[0]), ""));
    } else {
        controls::figure_row(ui, "likeliest next, A", &Figure::new(names.get(t.top1[0]), ""));
        controls::figure_row(ui, "likeliest next, B", &Figure::new(names.get(t.top1[1]), ""));
    }
    let margin = fmt::sig3(f64::from(t.margin_a));
    let near = if t.margin_a < 1e-3 { "  near tie" } else { "" };
    controls::figure_row(ui, "A's margin", &Figure::new(format!("{margin}{near}"), ""));
}

/// The same as one line, for people who do not see it.
pub fn line(r: &CompareResult, names: &Names, i: usize) -> String {
    let Some(t) = r.tokens.get(i) else { return String::new() };
    let split = if t.top1[0] == t.top1[1] {
        String::new()
    } else {
        format!(", A {} B {}", names.get(t.top1[0]), names.get(t.top1[1]))
    };
    format!(
        "token {} {} KL {} p A {} p B {}{split}",
        fmt::count(i as u64),
        fmt::quoted(&t.text),
        fmt::sig3(f64::from(t.kl)),
        fmt::probability(t.logprob[0]),
        fmt::probability(t.logprob[1]),
    )
}
