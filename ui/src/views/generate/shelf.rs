//! Saved texts.

use egui::{Sense, Ui, WidgetInfo, vec2};
use protocol::{DocInfo, DocKind, Request};

use crate::commands::{self, Command};
use crate::fmt;
use crate::icons;
use crate::theme::{self, Palette};
use crate::views::{Action, Context, empty};
use crate::widgets::controls::{self, icon_button};

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Shelf {
    renaming: Option<(u64, String, bool)>,
}

impl Shelf {
    pub(super) fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        egui::Frame::new()
            .inner_margin(egui::Margin::symmetric(8, 8))
            .show(ui, |ui| {
                ui.horizontal(|ui| {
                    for (command, icon, name) in [
                        (Command::NewText, icons::NOTE_PENCIL, "New text"),
                        (Command::NewChat, icons::CHAT_CIRCLE, "New chat"),
                    ] {
                        let able = commands::available(command, cx.store);
                        ui.add_enabled_ui(able.is_ok(), |ui| {
                            let response = controls::button(ui, icon, name);
                            if response.clicked() {
                                cx.act(Action::Run(command));
                            }
                            if command == Command::NewChat
                                && let Some(Err(why)) = cx.store.model().map(|m| m.chat.clone())
                            {
                                response.on_disabled_hover_text(why);
                            } else if let Err(why) = able {
                                response.on_disabled_hover_text(why);
                            }
                        });
                    }
                });
            });
        let docs = cx.store.docs.as_deref().unwrap_or_default();
        if docs.is_empty() {
            empty(ui, icons::BOOK_OPEN, "Texts are kept here by themselves.", None);
            return;
        }
        let current = cx.store.state.as_ref().and_then(|s| s.doc.as_ref()).map(|d| d.id);
        let scroll = egui::ScrollArea::vertical()
            .id_salt("shelf")
            .auto_shrink([false, false]);
        // Rows of one height: a shelf of thousands costs what is in sight.
        scroll
            .content_margin(egui::Margin::symmetric(8, 0))
            .show_rows(ui, 40.0, docs.len(), |ui, rows| {
                for doc in &docs[rows] {
                    self.row(cx, ui, doc, current == Some(doc.id));
                }
            });
    }

    fn row(&mut self, cx: &mut Context<'_>, ui: &mut Ui, doc: &DocInfo, current: bool) {
        let p = Palette::of(ui);
        if let Some((id, title, fresh)) = &mut self.renaming
            && *id == doc.id
        {
            let response = ui.add(
                egui::TextEdit::singleline(title)
                    .desired_width(f32::INFINITY)
                    .min_size(vec2(0.0, 36.0)),
            );
            let response = response.accessible_name("Title");
            if std::mem::take(fresh) {
                response.request_focus();
            }
            if response.lost_focus() {
                if !ui.input(|i| i.key_pressed(egui::Key::Escape)) {
                    cx.send(Request::RenameDoc {
                        doc: doc.id,
                        title: title.clone(),
                    });
                }
                self.renaming = None;
            }
            return;
        }
        let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 36.0), Sense::click());
        response.widget_info(|| WidgetInfo::selected(egui::Role::Button, true, current, &doc.title));
        let hot = ui.rect_contains_pointer(rect);
        if current || hot {
            ui.painter()
                .rect_filled(rect, theme::RADIUS, if current { p.selected } else { p.hover });
        }
        controls::focus_ring(ui, &response, rect);
        let icon = if doc.kind == DocKind::Chat {
            icons::CHAT_CIRCLE
        } else {
            icons::FILE_TEXT
        };
        let left = rect.left_center() + vec2(14.0, 0.0);
        ui.painter()
            .text(left, egui::Align2::CENTER_CENTER, icon, theme::body(), p.secondary);
        let tools = if hot { 56.0 } else { 8.0 };
        let inner = rect.with_min_x(rect.left() + 28.0).with_max_x(rect.right() - tools);
        let painter = ui.painter().with_clip_rect(inner.intersect(ui.clip_rect()));
        let line = |y: f32| egui::pos2(inner.left(), rect.top() + y);
        painter.text(
            line(11.0),
            egui::Align2::LEFT_CENTER,
            fmt::visible(&doc.title),
            theme::body(),
            p.text,
        );
        let age = fmt::ago(doc.changed, seconds_since_1970());
        let below = format!("{} · {age}", doc.model);
        painter.text(
            line(26.0),
            egui::Align2::LEFT_CENTER,
            below,
            theme::caption(),
            p.secondary,
        );
        if response.clicked() && !current {
            cx.send(Request::OpenDoc(doc.id));
        }
        let builder = egui::UiBuilder::new()
            .max_rect(rect.with_min_x(rect.right() - 54.0))
            .layout(egui::Layout::left_to_right(egui::Align::Center));
        ui.scope_builder(builder.id_salt(("tools", doc.id)), |ui| {
            ui.spacing_mut().item_spacing.x = 0.0;
            if !hot {
                ui.multiply_opacity(0.0);
            }
            ui.add_enabled_ui(cx.can_edit(), |ui| {
                if icon_button(ui, icons::PENCIL_SIMPLE, &format!("Rename {}", doc.title)).clicked() {
                    self.renaming = Some((doc.id, doc.title.clone(), true));
                }
                if icon_button(ui, icons::TRASH, &format!("Delete {}", doc.title)).clicked() {
                    cx.send(Request::DeleteDoc(doc.id));
                    let said = format!("Deleted \"{}\"", doc.title);
                    cx.act(Action::SayUndo(said, "Undo", Request::UndeleteDoc(doc.id)));
                }
            });
        });
    }
}

/// Now, for ages; 0 where the clock cannot be read.
fn seconds_since_1970() -> u64 {
    #[cfg(target_arch = "wasm32")]
    {
        (js_sys::Date::now() / 1000.0) as u64
    }
    #[cfg(not(target_arch = "wasm32"))]
    {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs())
    }
}
