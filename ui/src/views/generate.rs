//! Writing: prompt and chat in one view.

use protocol::{DocKind, Request};

use super::{Context, View, empty};
use crate::icons;
use crate::theme;

/// See the module.
#[derive(Debug, Default)]
pub struct Generate;

impl View for Generate {
    fn id(&self) -> &'static str {
        "generate"
    }

    fn title(&self) -> &'static str {
        "Text"
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let Some(text) = &cx.store.text else {
            if empty(ui, icons::NOTE_PENCIL, "No text yet.", Some("New text")) {
                cx.send(Request::NewDoc(DocKind::Text));
            }
            return;
        };
        egui::ScrollArea::vertical().show(ui, |ui| {
            egui::Frame::new().inner_margin(theme::PAD).show(ui, |ui| {
                for node in text.branch() {
                    ui.add(egui::Label::new(egui::RichText::new(&node.text).font(theme::reading())).wrap());
                }
            });
        });
    }
}
