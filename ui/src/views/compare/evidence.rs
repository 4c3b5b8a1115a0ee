//! Writing a comparison down: one folder with recipes, environment, CSV, pictures and a standalone page.

use egui::{RichText, Ui};
use protocol::{CompareResult, ErrorInfo, JobId, Reply, Request};

use super::recipes::short_hash;
use crate::icons;
use crate::store::Ticket;
use crate::theme::{self, Palette};
use crate::views::{Action, Context, failed};

/// See the module.
#[derive(Debug, Default)]
pub struct Evidence {
    folder: String,
    asked: Option<Ticket>,
    written: Vec<String>,
    error: Option<ErrorInfo>,
    /// How many were written, to suggest a fresh name each time.
    times: u32,
}

impl Evidence {
    /// Another comparison: what was said about the last one goes.
    pub fn set(&mut self, r: &CompareResult) {
        let times = self.times;
        *self = Self {
            folder: suggestion(r, times),
            times,
            ..Self::default()
        };
    }

    /// The row with its outcome below; `before` is drawn at its left end.
    pub fn show(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        job: JobId,
        r: &CompareResult,
        before: impl FnOnce(&mut Ui),
    ) {
        self.follow(cx, r);
        let p = Palette::of(ui);
        ui.horizontal_wrapped(|ui| {
            before(ui);
            let busy = self.asked.is_some();
            let ready = !busy && !self.folder.trim().is_empty();
            let export = button(ui, ready, icons::EXPORT, "Export evidence");
            if export
                .on_hover_text("Writes one folder: recipes, environment, CSV, pictures and a page that stands alone.")
                .clicked()
            {
                self.ask(cx, job, self.folder.trim().to_string());
            }
            ui.label(RichText::new("to").color(p.secondary));
            let width = (ui.available_width() - 130.0).clamp(120.0, 360.0);
            let field = egui::TextEdit::singleline(&mut self.folder)
                .desired_width(width)
                .font(theme::mono());
            ui.add(field)
                .on_hover_text("A folder on the machine of the engine. It must not exist yet, or be empty.")
                .accessible_name("Folder of the evidence");
            let zip = button(ui, !busy, icons::DOWNLOAD_SIMPLE, "Save as ZIP");
            if zip
                .on_hover_text("The same files in one, saved by this window.")
                .clicked()
            {
                self.ask(cx, job, String::new());
            }
            if busy {
                ui.label(RichText::new("writing…").color(p.secondary));
            }
        });
        if let Some(error) = &self.error {
            failed(cx, ui, error);
        }
        self.list(cx, ui);
    }

    fn ask(&mut self, cx: &mut Context<'_>, job: JobId, folder: String) {
        self.error = None;
        self.written.clear();
        self.asked = Some(cx.call(Request::ExportComparison { job, folder }));
    }

    fn follow(&mut self, cx: &mut Context<'_>, r: &CompareResult) {
        let Some(outcome) = self.asked.and_then(|t| cx.outcome(t)) else {
            return;
        };
        self.asked = None;
        match outcome {
            Ok(Reply::Written(files)) => {
                self.written = files.clone();
                self.times += 1;
                self.folder = suggestion(r, self.times);
            }
            Ok(Reply::File { name, bytes }) => cx.act(Action::Save(name.clone(), bytes.clone())),
            Ok(_) => {}
            Err(e) => {
                self.error = Some(e.clone());
                // Most likely the folder is of an earlier session: the next click takes another one.
                if self.folder == suggestion(r, self.times) {
                    self.times += 1;
                    self.folder = suggestion(r, self.times);
                }
            }
        }
    }

    fn list(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        if self.written.is_empty() {
            return;
        }
        let p = Palette::of(ui);
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new(icons::CHECK_CIRCLE).color(p.good));
            let n = self.written.len();
            let page = self
                .written
                .iter()
                .find(|f| f.ends_with(".html"))
                .or(self.written.first());
            let page = page.cloned().unwrap_or_default();
            let words = format!("{n} file{} written; open {page}", if n == 1 { "" } else { "s" });
            ui.add(
                egui::Label::new(RichText::new(words).color(p.text))
                    .wrap()
                    .selectable(true),
            )
            .on_hover_text(self.written.join("\n"));
            if ui.small_button("Copy path").clicked() {
                cx.act(Action::Copy(page));
            }
        });
    }
}

/// A framed button that wraps with what stands beside it.
fn button(ui: &mut Ui, enabled: bool, icon: &str, text: &str) -> egui::Response {
    let button = egui::Button::new(format!("{icon}  {text}")).min_size(egui::vec2(0.0, 28.0));
    ui.add_enabled(enabled, button).accessible_name(text)
}

/// A folder that likely does not exist yet.
fn suggestion(r: &CompareResult, times: u32) -> String {
    let [a, b] = &r.sides;
    let hash = |h: &str| short_hash(h).trim_start_matches('#').to_string();
    let again = if times == 0 {
        String::new()
    } else {
        format!("-{}", times + 1)
    };
    format!("~/model1-evidence/compare-{}-{}{again}", hash(&a.hash), hash(&b.hash))
}
