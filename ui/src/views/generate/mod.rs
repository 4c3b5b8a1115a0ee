//! Writing: prompt and chat in one view.

mod composer;
mod groups;
mod message;
mod prose;
mod sampling;
mod shelf;
mod transcript;

use egui::{RichText, Ui, vec2};
use protocol::{DocKind, Request, Role};

use super::{Action, Context, View};
use crate::commands::{self, Command};
use crate::icons;
use crate::store::Text;
use crate::theme::{self, Palette};
use crate::widgets::controls::{self, icon_toggle};
use prose::Tint;

/// Width from which the shelf and the form stand beside the text instead of over it.
const WIDE: f32 = 560.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Generate {
    transcript: transcript::Transcript,
    composer: composer::Composer,
    form: sampling::Form,
    shelf: shelf::Shelf,
    shelf_open: bool,
    form_open: bool,
}

impl View for Generate {
    fn id(&self) -> &'static str {
        "generate"
    }

    fn title(&self) -> &'static str {
        "Text"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let changes = self.form.changes();
        let name = if changes == 0 {
            "Sampling".to_string()
        } else {
            format!("Sampling ({changes} changed)")
        };
        if icon_toggle(ui, icons::SLIDERS_HORIZONTAL, &name, self.form_open).clicked() {
            self.form_open = !self.form_open;
        }
        self.export_menu(cx, ui);
        let tinted = self.transcript.tint == Tint::Probability;
        if icon_toggle(ui, icons::PALETTE, "Colour tokens by probability", tinted).clicked() {
            self.transcript.tint = if tinted { Tint::None } else { Tint::Probability };
        }
        for (command, icon, name) in [
            (Command::NewChat, icons::CHAT_CIRCLE, "New chat"),
            (Command::NewText, icons::NOTE_PENCIL, "New text"),
        ] {
            let able = commands::available(command, cx.store);
            ui.add_enabled_ui(able.is_ok(), |ui| {
                let response = controls::icon_button(ui, icon, name);
                if response.clicked() {
                    cx.act(Action::Run(command));
                }
                if command == Command::NewChat
                    && let Some(Err(why)) = cx.store.model().map(|m| m.chat.clone())
                {
                    response.on_disabled_hover_text(why);
                }
            });
        }
        if icon_toggle(ui, icons::LIST_BULLETS, "Saved texts", self.shelf_open).clicked() {
            self.shelf_open = !self.shelf_open;
        }
        if tinted {
            legend(ui);
        }
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        if let Some(model) = cx.store.model() {
            self.form.follow(model, cx.store.settings.logprobs);
        }
        let wide = ui.available_width() >= WIDE;
        let p = Palette::of(ui);
        let side = egui::Frame::new().fill(p.panel);
        if self.shelf_open && wide {
            let width = (ui.available_width() * 0.3).clamp(180.0, 260.0);
            egui::Panel::left("shelf")
                .frame(side)
                .exact_size(width)
                .show(ui, |ui| self.shelf.show(cx, ui));
        }
        if self.form_open && wide {
            let width = (ui.available_width() * 0.4).clamp(240.0, 300.0);
            egui::Panel::right("sampling")
                .frame(side)
                .exact_size(width)
                .show(ui, |ui| self.form.show(cx, ui));
        }
        if !wide && (self.shelf_open || self.form_open) {
            if self.form_open {
                self.form.show(cx, ui);
            } else {
                self.shelf.show(cx, ui);
            }
            return;
        }
        // Short panes give the text what little room there is.
        let low = ui.available_height() < 150.0;
        let margin = egui::Margin {
            left: 12,
            right: 12,
            top: if low { 4 } else { 10 },
            bottom: if low { 4 } else { 10 },
        };
        let frame = egui::Frame::new().fill(p.panel).inner_margin(margin);
        egui::Panel::bottom("composer")
            .frame(frame)
            .resizable(false)
            .show(ui, |ui| {
                // So little room that the button stands beside the field, and the field is one line.
                let one_row = low && ui.available_width() < 560.0;
                self.composer.show(cx, ui, &mut self.form, one_row);
            });
        egui::CentralPanel::no_frame().show(ui, |ui| self.text(cx, ui));
    }

    fn command(&mut self, cx: &mut Context<'_>, command: Command) -> bool {
        match command {
            Command::Generate => {
                if !self.transcript.submit(cx, &mut self.form) {
                    self.composer.send(cx, &mut self.form);
                }
            }
            Command::Regenerate => {
                let last = cx
                    .store
                    .text
                    .as_ref()
                    .and_then(|t| t.branch().rfind(|n| n.role == Role::Assistant));
                if let Some(node) = last.map(|n| n.id) {
                    let spec = self.form.for_run(cx.now);
                    cx.send(Request::Generate { node: Some(node), spec });
                }
            }
            Command::Endless => {
                let said = if self.form.toggle_endless() {
                    "The next text goes on until the context is full"
                } else {
                    "The next text ends where the model ends it"
                };
                cx.act(Action::Say(said.into()));
            }
            Command::NewText => cx.send(Request::NewDoc(DocKind::Text)),
            Command::NewChat => cx.send(Request::NewDoc(DocKind::Chat)),
            _ => return false,
        }
        true
    }
}

impl Generate {
    fn text(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        match &cx.store.text {
            Some(text) if text.branch().len() > 0 || !text.view().system.is_empty() => {
                self.transcript.show(cx, ui, text, &mut self.form);
            }
            Some(text) => self.beginnings(cx, ui, text),
            None => super::loading(ui, "Fetching the text"),
        }
    }

    /// An empty text: prompts that suit the model.
    fn beginnings(&mut self, cx: &mut Context<'_>, ui: &mut Ui, text: &Text) {
        let p = Palette::of(ui);
        let Some(model) = cx.store.model() else { return };
        let chat = text.view().info.kind == DocKind::Chat;
        let scroll = egui::ScrollArea::vertical()
            .id_salt("beginnings")
            .auto_shrink([false, false]);
        scroll
            .content_margin(egui::Margin::same(theme::PAD as i8))
            .show(ui, |ui| {
                if chat {
                    let (left, width) = (ui.cursor().left(), ui.available_width());
                    self.transcript.system_prompt(cx, ui, text, left, width);
                }
                let room = ui.available_size();
                ui.add_space(((room.y - 60.0 - 40.0 * model.starters.len() as f32) * 0.4).max(0.0));
                ui.vertical_centered(|ui| {
                    ui.set_max_width(520.0);
                    let what = if chat { "Ask something" } else { "Begin with" };
                    ui.label(RichText::new(what).color(p.secondary));
                    ui.add_space(4.0);
                    for starter in &model.starters {
                        let label = if chat {
                            starter.clone()
                        } else {
                            format!("{starter} …")
                        };
                        let size = vec2(ui.available_width(), 32.0);
                        let button = egui::Button::new(RichText::new(label)).min_size(size).truncate();
                        let able = cx.can_edit();
                        let response = ui.add_enabled(able, button);
                        response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Button, able, starter));
                        if response.clicked() {
                            self.composer.set(starter, cx.now);
                            self.composer.send(cx, &mut self.form);
                        }
                    }
                    if let Err(why) = &model.chat {
                        ui.add_space(8.0);
                        let note = format!("{}  {why}", icons::INFO);
                        ui.add(egui::Label::new(RichText::new(note).font(theme::caption()).color(p.secondary)).wrap());
                    }
                });
            });
    }

    fn export_menu(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let response = controls::icon_button(ui, icons::EXPORT, "Copy and export");
        egui::Popup::menu(&response).show(|ui| {
            ui.set_min_width(260.0);
            for command in [
                Command::CopyText,
                Command::ExportText,
                Command::ExportMarkdown,
                Command::ExportJson,
                Command::CopyCommand,
            ] {
                let Some(entry) = commands::find(command) else { continue };
                let able = commands::available(command, cx.store).is_ok();
                let label = format!("{}  {}", entry.icon, entry.title);
                let response = ui.add_enabled(able, egui::Button::new(label));
                let title = entry.title;
                response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Button, able, title));
                if response.clicked() {
                    cx.act(Action::Run(command));
                    ui.close();
                }
            }
            let line = cx
                .store
                .text
                .as_ref()
                .map(|t| t.view().command.clone())
                .unwrap_or_default();
            if !line.is_empty() {
                let p = Palette::of(ui);
                ui.separator();
                ui.set_max_width(360.0);
                // Menus justify their rows; a command line must keep its spaces.
                let plain = egui::Layout::top_down(egui::Align::Min);
                ui.with_layout(plain, |ui| {
                    ui.add(egui::Label::new(RichText::new(line).font(theme::mono()).color(p.secondary)).wrap());
                });
            }
        });
    }
}

/// Legend of the tint.
fn legend(ui: &mut Ui) {
    let p = Palette::of(ui);
    if ui.available_width() < 150.0 {
        return;
    }
    ui.label(RichText::new("1").font(theme::mono_caption()).color(p.secondary));
    let (rect, response) = ui.allocate_exact_size(vec2(64.0, 8.0), egui::Sense::hover());
    for i in 0..32 {
        let x = rect.left() + 2.0 * i as f32;
        let cell = egui::Rect::from_min_size(egui::pos2(x, rect.top()), vec2(2.0, rect.height()));
        ui.painter().rect_filled(cell, 0, theme::viridis(i as f32 / 31.0));
    }
    response.on_hover_text("probability of each token at temperature 1");
    ui.label(RichText::new("0").font(theme::mono_caption()).color(p.secondary));
}
