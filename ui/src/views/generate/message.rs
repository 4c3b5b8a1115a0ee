//! Around the prose of a message: its head and foot, the branches beside it, folded thoughts, rewriting, the system
//! prompt and the progress of reading.

use egui::{Rect, RichText, Sense, Ui, pos2, vec2};
use protocol::{FinishView, NodeView, Request, Role};

use super::prose::Tint;
use super::sampling::Form;
use super::transcript::{GAP, HEAD, Rewriting, Transcript};
use crate::fmt;
use crate::icons;
use crate::store::Text;
use crate::theme::{self, Palette};
use crate::views::{Action, Context};
use crate::widgets::controls::{self, icon_button};

impl Transcript {
    /// Ctrl+Enter while a message or the system prompt is being written. True if it was a message: nothing else is to
    /// be sent then.
    pub(super) fn submit(&mut self, cx: &mut Context<'_>, form: &mut Form) -> bool {
        if let (Some((doc, system)), Some(text)) = (&self.system, &cx.store.text)
            && *doc == text.view().info.id
            && *system != text.view().system
        {
            cx.send(Request::SetSystem(system.clone()));
        }
        let Some(edit) = self.rewriting.take() else {
            return false;
        };
        edit.send(cx, form, edit.answer);
        true
    }

    /// Starts rewriting a message.
    pub(super) fn rewrite(&mut self, node: &NodeView) {
        self.rewriting = Some(Rewriting {
            node: node.id,
            text: node.text.clone(),
            fresh: 2,
            answer: node.role == Role::User,
        });
    }

    #[expect(clippy::too_many_arguments, reason = "one caller")]
    pub(super) fn head(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        text: &Text,
        node: &NodeView,
        rect: Rect,
        hovered: bool,
        chat: bool,
    ) {
        let p = Palette::of(ui);
        let builder = egui::UiBuilder::new()
            .max_rect(rect)
            .layout(egui::Layout::left_to_right(egui::Align::Center));
        ui.scope_builder(builder.id_salt(("head", node.id)), |ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            let (icon, name) = match (chat, node.role) {
                (true, Role::User) => (icons::USER, "You"),
                (true, _) => (icons::ROBOT, "Model"),
                _ => ("", "Prompt"),
            };
            if !icon.is_empty() {
                ui.label(RichText::new(icon).color(p.secondary));
            }
            let font = egui::FontId::new(theme::CAPTION, theme::strong_family());
            ui.label(RichText::new(name).font(font).color(p.secondary));
            if node.role == Role::User {
                self.switcher(cx, ui, text, node);
                fade_in(ui, hovered, |ui| {
                    let able = cx.can_edit() && cx.store.writing().is_none();
                    ui.add_enabled_ui(able, |ui| {
                        let name = if chat { "Edit this message" } else { "Edit the prompt" };
                        if icon_button(ui, icons::PENCIL_SIMPLE, name).clicked() {
                            self.rewrite(node);
                        }
                    });
                    if icon_button(
                        ui,
                        icons::COPY,
                        if chat { "Copy this message" } else { "Copy the prompt" },
                    )
                    .clicked()
                    {
                        cx.act(Action::Copy(node.text.clone()));
                    }
                });
            }
        });
    }

    /// `< 2/3 >`, where a message has siblings.
    pub(super) fn switcher(&self, cx: &mut Context<'_>, ui: &mut Ui, text: &Text, node: &NodeView) {
        let (ids, at) = text.siblings(node.id);
        if ids.len() < 2 {
            return;
        }
        let p = Palette::of(ui);
        let able = cx.can_edit() && cx.store.writing().is_none();
        let mut go = None;
        ui.add_enabled_ui(able && at > 0, |ui| {
            if icon_button(ui, icons::CARET_LEFT, "Previous branch").clicked() {
                go = Some(at - 1);
            }
        });
        let label = format!("{}/{}", at + 1, ids.len());
        ui.label(RichText::new(label).font(theme::mono_caption()).color(p.secondary));
        ui.add_enabled_ui(able && at + 1 < ids.len(), |ui| {
            if icon_button(ui, icons::CARET_RIGHT, "Next branch").clicked() {
                go = Some(at + 1);
            }
        });
        if let Some(i) = go {
            cx.send(Request::SelectLeaf(text.newest_leaf(ids[i])));
        }
    }

    pub(super) fn thoughts(&mut self, ui: &mut Ui, i: usize, node: &NodeView, left: f32, width: f32) {
        let group = &mut self.groups.list[i];
        let Some(thoughts) = &mut group.thoughts else { return };
        let p = Palette::of(ui);
        let running = node.finish == FinishView::Running && !group.thought;
        let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, HEAD));
        ui.allocate_rect(rect, Sense::hover());
        let words = thoughts.text().split_whitespace().count() as u64;
        let title = format!(
            "{} ({} words)",
            if running { "Thinking" } else { "Thoughts" },
            fmt::count(words)
        );
        let caret = if group.open {
            icons::CARET_DOWN
        } else {
            icons::CARET_RIGHT
        };
        let builder = egui::UiBuilder::new()
            .max_rect(rect)
            .layout(egui::Layout::left_to_right(egui::Align::Center));
        let clicked = ui
            .scope_builder(builder.id_salt(("thoughts", node.id)), |ui| {
                let label = format!("{}  {caret}  {title}", icons::BRAIN);
                let response =
                    ui.add(egui::Button::new(RichText::new(label).color(p.secondary)).frame_when_inactive(false));
                let open = group.open;
                response.widget_info(|| egui::WidgetInfo::selected(egui::Role::Button, true, open, &title));
                response.clicked()
            })
            .inner;
        if clicked {
            group.open = !group.open;
        }
        if group.open {
            thoughts.layout(ui.ctx(), width - 16.0, Tint::None);
            let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, thoughts.height()));
            ui.allocate_rect(rect, Sense::hover());
            ui.painter()
                .vline(left + 4.0, rect.y_range(), egui::Stroke::new(theme::LINE, p.line));
            thoughts.paint(ui.painter(), rect.min + vec2(16.0, 0.0), &[]);
            ui.add_space(8.0);
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller")]
    pub(super) fn foot(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        text: &Text,
        form: &mut Form,
        node: &NodeView,
        rect: Rect,
        hovered: bool,
    ) {
        let p = Palette::of(ui);
        let builder = egui::UiBuilder::new()
            .max_rect(rect)
            .layout(egui::Layout::left_to_right(egui::Align::Center));
        ui.scope_builder(builder.id_salt(("foot", node.id)), |ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            self.switcher(cx, ui, text, node);
            let idle = cx.store.writing().is_none();
            fade_in(ui, hovered && idle, |ui| {
                ui.add_enabled_ui(cx.can_edit() && idle, |ui| {
                    if icon_button(ui, icons::ARROW_CLOCKWISE, "Regenerate").clicked() {
                        let spec = form.for_run(cx.now);
                        cx.send(Request::Generate {
                            node: Some(node.id),
                            spec,
                        });
                    }
                    if icon_button(ui, icons::PENCIL_SIMPLE, "Edit this answer").clicked() {
                        self.rewrite(node);
                    }
                });
                if icon_button(ui, icons::COPY, "Copy this answer").clicked() {
                    cx.act(Action::Copy(node.text.clone()));
                }
            });
            if let Some(words) = ending(node) {
                let color = if node.finish == FinishView::ContextFull {
                    p.warn
                } else {
                    p.faint
                };
                let words = RichText::new(words).font(theme::caption()).color(color);
                ui.add(egui::Label::new(words).truncate());
            }
        });
    }

    pub(super) fn rewriting(&mut self, cx: &mut Context<'_>, ui: &mut Ui, form: &mut Form, left: f32, width: f32) {
        let Some(mut edit) = self.rewriting.take() else { return };
        let mut keep = true;
        let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, 10.0));
        ui.scope_builder(egui::UiBuilder::new().max_rect(rect).id_salt("rewriting"), |ui| {
            let field = egui::TextEdit::multiline(&mut edit.text)
                .id(egui::Id::unique("rewriting"))
                .font(theme::reading())
                .desired_width(width)
                .desired_rows(2)
                .margin(egui::Margin::symmetric(10, 8));
            let response = ui.add(field).accessible_name("Message");
            if edit.fresh > 0 {
                edit.fresh -= 1;
                response.request_focus();
            }
            ui.add_space(6.0);
            ui.horizontal(|ui| {
                let send = edit.answer && controls::primary(ui, icons::PLAY, "Answer anew").clicked();
                let save = controls::button(ui, icons::CHECK, "Keep as a branch").clicked();
                if send || save {
                    edit.send(cx, form, send);
                    keep = false;
                }
                // egui takes the focus away before a field sees the key.
                let focused = response.has_focus() || response.lost_focus();
                let escape = focused && ui.input(|i| i.key_pressed(egui::Key::Escape));
                if controls::button(ui, "", "Cancel").clicked() || escape {
                    keep = false;
                }
            });
            ui.add_space(6.0);
        });
        if keep {
            self.rewriting = Some(edit);
        }
    }

    pub(super) fn system_prompt(&mut self, cx: &mut Context<'_>, ui: &mut Ui, text: &Text, left: f32, width: f32) {
        let p = Palette::of(ui);
        let doc = text.view().info.id;
        if self.system.as_ref().is_none_or(|(d, _)| *d != doc) {
            self.system = Some((doc, text.view().system.clone()));
        }
        let Some((_, system)) = &mut self.system else { return };
        let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, 10.0));
        ui.scope_builder(egui::UiBuilder::new().max_rect(rect).id_salt("system"), |ui| {
            let caret = if self.system_open {
                icons::CARET_DOWN
            } else {
                icons::CARET_RIGHT
            };
            let preview = match (self.system_open, system.lines().next()) {
                (true, _) => "System prompt".to_string(),
                (false, Some(line)) => format!("System prompt: {line}"),
                (false, None) => "System prompt: none".to_string(),
            };
            let label = RichText::new(format!("{caret}  {preview}")).color(p.secondary);
            let response = ui.add(egui::Button::new(label).frame_when_inactive(false).truncate());
            response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Button, true, "System prompt"));
            if response.clicked() {
                self.system_open = !self.system_open;
            }
            if self.system_open {
                let field = egui::TextEdit::multiline(system)
                    .desired_width(width)
                    .desired_rows(2)
                    .hint_text("What the model is told before the conversation")
                    .margin(egui::Margin::symmetric(10, 8));
                let response = ui
                    .add_enabled(cx.can_edit(), field)
                    .accessible_name("Text of the system prompt");
                if response.lost_focus() && *system != text.view().system {
                    cx.send(Request::SetSystem(system.clone()));
                }
            }
            ui.add_space(GAP);
        });
    }

    /// Progress while the prompt is read.
    pub(super) fn prefill(&self, cx: &Context<'_>, ui: &mut Ui, left: f32, width: f32) {
        let Some((done, total)) = cx.store.state.as_ref().and_then(|s| s.prefill) else {
            return;
        };
        let p = Palette::of(ui);
        let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, HEAD));
        ui.allocate_rect(rect, Sense::hover());
        let builder = egui::UiBuilder::new()
            .max_rect(rect)
            .layout(egui::Layout::left_to_right(egui::Align::Center));
        ui.scope_builder(builder.id_salt("prefill"), |ui| {
            let share = done as f32 / total.max(1) as f32;
            controls::bar(ui, vec2(160.0, 4.0), &[(share, p.accent)], "Reading the prompt");
            let words = format!(
                "reading the prompt: {} of {} tokens",
                fmt::count(done),
                fmt::count(total)
            );
            ui.label(RichText::new(words).font(theme::caption()).color(p.secondary));
        });
    }
}

impl Rewriting {
    /// Sends the message as it was rewritten; with `answer` the model answers it.
    fn send(&self, cx: &mut Context<'_>, form: &mut Form, answer: bool) {
        let spec = answer.then(|| form.for_run(cx.now));
        cx.send(Request::EditMessage {
            node: self.node,
            text: self.text.clone(),
            spec,
        });
    }
}

/// Shows its content only while `shown`, at the same place and still reachable by keyboard and assistive tools.
fn fade_in(ui: &mut Ui, shown: bool, content: impl FnOnce(&mut Ui)) {
    ui.scope(|ui| {
        let focused = ui.memory(|m| m.focused()).and_then(|id| ui.ctx().read_response(id));
        let near = focused.is_some_and(|r| ui.max_rect().contains(r.rect.center()));
        if !(shown || near) {
            ui.multiply_opacity(0.0);
        }
        content(ui);
    });
}

/// Why a message ended, with its figures.
fn ending(node: &NodeView) -> Option<String> {
    let why = match node.finish {
        FinishView::Running => return None,
        FinishView::Eos => "the model ended it",
        FinishView::Stop => "a stop string ended it",
        FinishView::MaxTokens => "the number of tokens asked for",
        FinishView::ContextFull => "the context is full: start a new text, or open the model with a longer context",
        FinishView::Cancelled => "stopped",
        FinishView::Failed => "failed; what was written stays",
    };
    if node.tokens.is_empty() {
        return Some(why.to_string()).filter(|_| node.finish != FinishView::Eos);
    }
    let tokens = format!("{} tokens", fmt::count(node.tokens.len() as u64));
    let speed = node.summary.as_ref().filter(|s| s.tokens > 1).map(|s| {
        format!(
            " · {} · first token {}",
            fmt::rate(s.decode_tokens_per_s).plain(),
            fmt::seconds(s.first_token_s).plain()
        )
    });
    Some(format!("{tokens}{} · {why}", speed.unwrap_or_default()))
}
