//! What every figure offers on a right click: its value, its table, its picture and how it is computed.

use egui::{Rect, Response};
use protocol::Label;

use crate::icons;
use crate::theme::{self, Palette};
use crate::views::{Action, Context};

/// How a figure came to be.
#[derive(Clone, Copy, Debug)]
pub struct Explain<'a> {
    /// Measured, sampled or estimated.
    pub label: Label,
    /// The definition, with its source.
    pub text: &'a str,
}

impl<'a> Explain<'a> {
    /// A measured figure.
    pub fn measured(text: &'a str) -> Self {
        Self {
            label: Label::Measured,
            text,
        }
    }

    /// A sampled figure.
    pub fn sampled(text: &'a str) -> Self {
        Self {
            label: Label::Sampled,
            text,
        }
    }

    /// An estimated figure.
    pub fn estimated(text: &'a str) -> Self {
        Self {
            label: Label::Estimated,
            text,
        }
    }
}

/// The label as a word.
pub fn label_word(label: Label) -> &'static str {
    match label {
        Label::Measured => "measured",
        Label::Sampled => "sampled",
        Label::Estimated => "estimated",
    }
}

/// The definition as tooltips and menus show it.
pub fn definition(ui: &mut egui::Ui, explain: &Explain<'_>) {
    let p = Palette::of(ui);
    ui.set_max_width(320.0);
    ui.label(egui::RichText::new(label_word(explain.label)).font(theme::strong()));
    ui.add(egui::Label::new(egui::RichText::new(explain.text).color(p.secondary)).wrap());
}

/// The menu. `name` becomes the file name, `picture` is the part of the window that is saved, `value` what
/// "Copy value" copies (empty = nothing to copy), `csv` makes the table.
pub fn figure_menu(
    cx: &mut Context<'_>,
    response: &Response,
    name: &str,
    picture: Rect,
    value: &str,
    csv: &dyn Fn() -> String,
    explain: &Explain<'_>,
) {
    response.context_menu(|ui| {
        let item = |ui: &mut egui::Ui, icon: &str, text: &str, on: bool| {
            ui.add_enabled(on, egui::Button::new(format!("{icon}  {text}")))
                .clicked()
        };
        if item(ui, icons::COPY, "Copy value", !value.is_empty()) {
            cx.act(Action::Copy(value.to_string()));
        }
        if item(ui, icons::TABLE, "Copy as CSV", true) {
            cx.act(Action::Copy(csv()));
        }
        if item(ui, icons::FILE, "Save CSV…", true) {
            cx.act(Action::Save(format!("{}.csv", file_name(name)), csv().into_bytes()));
        }
        if item(ui, icons::IMAGE, "Save PNG…", true) {
            cx.act(Action::SavePng(format!("{}.png", file_name(name)), picture));
        }
        ui.separator();
        ui.menu_button(format!("{}  How is this computed", icons::QUESTION), |ui| {
            definition(ui, explain)
        });
    });
}

/// A name as a file name: lower case, words joined by hyphens.
pub fn file_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            out.push(c.to_ascii_lowercase());
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
    }
    let out = out.trim_end_matches('-');
    if out.is_empty() { "figure".into() } else { out.into() }
}

/// A table as CSV: fields with commas, quotes or line breaks are quoted.
#[derive(Clone, Debug, Default)]
pub struct Csv(String);

impl Csv {
    /// A table with its header.
    pub fn new<S: AsRef<str>>(header: impl IntoIterator<Item = S>) -> Self {
        let mut csv = Self::default();
        csv.row(header);
        csv
    }

    /// Adds a row.
    pub fn row<S: AsRef<str>>(&mut self, fields: impl IntoIterator<Item = S>) {
        for (i, field) in fields.into_iter().enumerate() {
            if i > 0 {
                self.0.push(',');
            }
            let field = field.as_ref();
            if field.contains([',', '"', '\n', '\r']) {
                self.0.push('"');
                self.0.push_str(&field.replace('"', "\"\""));
                self.0.push('"');
            } else {
                self.0.push_str(field);
            }
        }
        self.0.push('\n');
    }

    /// The table.
    pub fn text(self) -> String {
        self.0
    }
}

/// A number as a CSV field: shortest form that reads back the same; empty for NaN.
pub fn field(value: f64) -> String {
    if value.is_nan() {
        String::new()
    } else {
        format!("{value}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_file_names() {
        assert_eq!(file_name("Tokens per second"), "tokens-per-second");
        assert_eq!(file_name("KV bytes by layer (used)"), "kv-bytes-by-layer-used");
        assert_eq!(file_name("…"), "figure");
    }

    #[test]
    fn tables_quote_what_needs_it() {
        let mut csv = Csv::new(["token", "text"]);
        csv.row(["1", "a, \"b\"\n"]);
        csv.row([field(0.5).as_str(), field(f64::NAN).as_str()]);
        assert_eq!(csv.text(), "token,text\n1,\"a, \"\"b\"\"\n\"\n0.5,\n");
    }
}
