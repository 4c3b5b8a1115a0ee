//! Where the user writes, and what the run is doing.

use egui::{Color32, Key, RichText, Ui, vec2};
use protocol::{DocKind, ErrorKind, FinishView, Reply, Request};

use super::sampling::Form;
use crate::commands::{self, Command};
use crate::fmt::{self, Figure};
use crate::icons;
use crate::store::{Store, Text, Ticket};
use crate::theme::{self, Palette};
use crate::views::{Action, Context};
use crate::widgets::controls;

/// Pasted text larger than this is held beside the field: laying it out would stop the window.
const LARGE: usize = 128 << 10;
/// Seconds of rest before tokens are counted.
const REST: f64 = 0.3;
/// Seconds until counting is tried again after the host could not be reached.
const AGAIN: f64 = 2.0;
/// Steps the speed is averaged over.
const RATE_STEPS: usize = 32;

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Composer {
    text: String,
    large: Option<String>,
    changed: Option<f64>,
    asked: Option<Ticket>,
    tokens: Option<u64>,
    focus: bool,
}

impl Composer {
    /// Puts text into the field.
    pub(super) fn set(&mut self, text: &str, now: f64) {
        self.text = text.to_string();
        self.touched(now);
        self.focus = true;
    }

    fn touched(&mut self, now: f64) {
        self.changed = Some(now);
        self.tokens = None;
        self.asked = None;
    }

    /// What would be sent.
    fn content(&self) -> String {
        match &self.large {
            Some(large) if self.text.is_empty() => large.clone(),
            Some(large) => format!("{}\n{large}", self.text),
            None => self.text.clone(),
        }
    }

    fn is_empty(&self) -> bool {
        self.text.is_empty() && self.large.is_none()
    }

    /// Why it cannot be sent; `None` = it can.
    fn refusal(&self, store: &Store) -> Option<String> {
        if let Err(why) = commands::available(Command::Generate, store) {
            return Some(why.to_string());
        }
        let state = store.state.as_ref()?;
        let left = state.context.saturating_sub(state.position);
        match self.tokens {
            Some(n) if n > left => Some(format!(
                "{} tokens do not fit: {} of {} are left",
                fmt::count(n),
                fmt::count(left),
                fmt::count(state.context)
            )),
            _ if self.large.is_some() && self.tokens.is_none() => Some("its tokens are being counted".into()),
            _ if left == 0 => Some("the context is full".into()),
            _ => None,
        }
    }

    /// Sends what was written, or goes on where the text ends.
    pub(super) fn send(&mut self, cx: &mut Context<'_>, form: &mut Form) {
        if self.refusal(cx.store).is_some() {
            return;
        }
        let spec = form.for_run(cx.now);
        if self.is_empty() {
            if can_continue(cx.store.text.as_ref()) {
                cx.send(Request::Generate { node: None, spec });
            }
            return;
        }
        cx.send(Request::Send {
            text: self.content(),
            spec,
        });
        *self = Self {
            focus: true,
            ..Self::default()
        };
    }

    /// `one_row`: field and button side by side, without the figures below.
    pub(super) fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, form: &mut Form, one_row: bool) {
        self.hold_large_paste(ui, cx.now);
        self.count(cx, ui);
        let p = Palette::of(ui);
        let chat = cx
            .store
            .text
            .as_ref()
            .is_some_and(|t| t.view().info.kind == DocKind::Chat);
        if let Some(large) = &self.large {
            let megabytes = fmt::bytes(large.len() as u64).plain();
            let remove = ui
                .horizontal(|ui| {
                    ui.label(RichText::new(icons::FILE_TEXT).size(theme::TITLE).color(p.secondary));
                    ui.label(format!("Pasted text, {megabytes}"));
                    controls::icon_button(ui, icons::X, "Remove the pasted text").clicked()
                })
                .inner;
            if remove {
                self.large = None;
                self.touched(cx.now);
            }
        }
        if one_row {
            let row = egui::Layout::right_to_left(egui::Align::Center);
            ui.allocate_ui_with_layout(vec2(ui.available_width(), 32.0), row, |ui| {
                self.button(cx, ui, form, chat, true);
                self.field(cx, ui, chat, 1);
            });
            return;
        }
        let rows = self.text.lines().count().clamp(1, 6);
        self.field(cx, ui, chat, rows);
        ui.add_space(6.0);
        self.bottom(cx, ui, form, chat);
    }

    fn field(&mut self, cx: &Context<'_>, ui: &mut Ui, chat: bool, rows: usize) {
        let able = cx.can_edit();
        let hint = match (chat, can_continue(cx.store.text.as_ref())) {
            (true, _) => "Write to the model",
            (false, true) => "Write what comes next, or leave this empty and go on",
            (false, false) => "Write how the text begins",
        };
        let hint = if ui.available_width() < 280.0 { "Write" } else { hint };
        let field = egui::TextEdit::multiline(&mut self.text)
            .id(egui::Id::unique("composer"))
            .hint_text(hint)
            .font(theme::reading())
            .desired_rows(rows)
            .desired_width(f32::INFINITY)
            .margin(egui::Margin::symmetric(10, 8))
            .return_key(egui::KeyboardShortcut::new(egui::Modifiers::NONE, Key::Enter));
        let response = ui.add_enabled(able, field).accessible_name("Prompt");
        if std::mem::take(&mut self.focus) {
            response.request_focus();
        }
        if response.changed() {
            self.touched(cx.now);
        }
    }

    fn bottom(&mut self, cx: &mut Context<'_>, ui: &mut Ui, form: &mut Form, chat: bool) {
        let p = Palette::of(ui);
        ui.allocate_ui_with_layout(
            vec2(ui.available_width(), 28.0),
            egui::Layout::right_to_left(egui::Align::Center),
            |ui| {
                self.button(cx, ui, form, chat, false);
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    ui.set_clip_rect(ui.max_rect().intersect(ui.clip_rect()));
                    match self.refusal(cx.store) {
                        Some(why) if !self.is_empty() && cx.store.writing().is_none() => {
                            let color = if self.tokens.is_some() { p.bad } else { p.secondary };
                            ui.add(egui::Label::new(RichText::new(why).color(color)).truncate());
                        }
                        _ => status(cx, ui, self.tokens.filter(|_| !self.is_empty())),
                    }
                });
            },
        );
    }

    fn button(&mut self, cx: &mut Context<'_>, ui: &mut Ui, form: &mut Form, chat: bool, icon_only: bool) {
        if cx.store.writing().is_some() {
            ui.add_enabled_ui(cx.can_edit(), |ui| {
                let response = if icon_only {
                    controls::danger_icon(ui, icons::STOP, "Stop").on_hover_text("Stop (Esc)")
                } else {
                    controls::danger(ui, icons::STOP, "Stop").on_hover_text("Esc")
                };
                if response.clicked() {
                    cx.act(Action::Run(Command::Stop));
                }
            });
            return;
        }
        let goes_on = self.is_empty() && can_continue(cx.store.text.as_ref());
        let text = match (chat, goes_on) {
            (_, true) => "Continue",
            (true, false) => "Send",
            (false, false) => "Generate",
        };
        let refusal = self
            .refusal(cx.store)
            .or_else(|| (self.is_empty() && !goes_on).then(|| "write something first".to_string()));
        ui.add_enabled_ui(refusal.is_none(), |ui| {
            let response = if icon_only {
                controls::primary_icon(ui, icons::PLAY, text).on_hover_text(format!("{text} (Ctrl+Enter)"))
            } else {
                controls::primary(ui, icons::PLAY, text).on_hover_text("Ctrl+Enter")
            };
            if response.clicked() {
                self.send(cx, form);
            }
            if let Some(why) = refusal {
                response.on_disabled_hover_text(why);
            }
        });
    }

    /// Takes pastes out of the input that are too large for the field.
    fn hold_large_paste(&mut self, ui: &Ui, now: f64) {
        let focused = ui.memory(|m| m.has_focus(egui::Id::unique("composer")));
        if !focused {
            return;
        }
        let mut held = None;
        ui.input_mut(|i| {
            i.events.retain_mut(|e| match e {
                egui::Event::Paste(text) if text.len() > LARGE => {
                    held = Some(std::mem::take(text));
                    false
                }
                _ => true,
            });
        });
        if let Some(text) = held {
            self.large = Some(text);
            self.touched(now);
        }
    }

    fn count(&mut self, cx: &mut Context<'_>, ui: &Ui) {
        if let Some(ticket) = self.asked
            && let Some(outcome) = cx.outcome(ticket)
        {
            self.asked = None;
            match outcome {
                Ok(Reply::Count(n)) => self.tokens = Some(*n),
                // Text that cannot even be sent to be counted cannot be sent to be read either.
                Err(e) if self.large.is_some() && e.kind == ErrorKind::Input => {
                    cx.act(Action::Error(e.clone()));
                    self.large = None;
                }
                // A lost connection comes back.
                Err(e) if e.kind == ErrorKind::Resource => self.changed = Some(cx.now + AGAIN),
                _ => {}
            }
        }
        let Some(changed) = self.changed else { return };
        let rest = changed + REST - cx.now;
        if self.is_empty() {
            self.changed = None;
        } else if rest <= 0.0 {
            self.changed = None;
            if cx.store.model().is_some() {
                self.asked = Some(cx.call(Request::CountTokens(self.content())));
            }
        } else {
            ui.ctx().request_repaint_after_secs(rest as f32);
        }
    }
}

/// Whether the shown branch ends with something the model can go on from.
pub(super) fn can_continue(text: Option<&Text>) -> bool {
    text.and_then(|t| t.branch().last())
        .is_some_and(|n| n.finish != FinishView::Running)
}

/// Speed over the last steps of one token each, in tokens per second (measured).
fn speed(store: &Store) -> Option<f64> {
    let end = store.steps.end();
    let recent = store.steps.since(end.saturating_sub(RATE_STEPS as u64));
    let (tokens, nanos) = recent
        .filter(|s| s.tokens == 1)
        .fold((0u64, 0u64), |(t, n), s| (t + 1, n + s.nanos));
    (tokens > 0 && nanos > 0).then(|| tokens as f64 * 1e9 / nanos as f64)
}

/// Gauge of the context, speed, time to the first token.
fn status(cx: &Context<'_>, ui: &mut Ui, tokens: Option<u64>) {
    let p = Palette::of(ui);
    let Some(state) = &cx.store.state else { return };
    let share = state.position as f32 / state.context.max(1) as f32;
    let color = match share {
        s if s >= 1.0 => p.bad,
        s if s >= 0.9 => p.warn,
        _ => p.accent,
    };
    let left = state.context.saturating_sub(state.position);
    let tip = format!(
        "{} of {} tokens are in the context, {} are left. When it is full the writing stops; nothing is dropped. \
         Start a new text, or open the model with a longer context.",
        fmt::count(state.position),
        fmt::count(state.context),
        fmt::count(left)
    );
    ui.spacing_mut().item_spacing.x = 8.0;
    controls::bar(ui, vec2(72.0, 4.0), &[(share, color)], "Context").on_hover_text(&tip);
    let words = format!("{} / {}", fmt::count(state.position), fmt::count(state.context));
    ui.label(
        RichText::new(words)
            .font(theme::mono())
            .color(if share >= 0.9 { color } else { p.secondary }),
    )
    .on_hover_text(tip);
    if let Some(n) = tokens {
        ui.label(
            RichText::new(format!("+{}", fmt::count(n)))
                .font(theme::mono())
                .color(p.secondary),
        )
        .on_hover_text("tokens of what you wrote");
    }
    let node = state
        .writing
        .and_then(|id| cx.store.text.as_ref().and_then(|t| t.node(id)));
    if node.is_some() {
        if let Some(rate) = speed(cx.store) {
            labelled(ui, "", &fmt::rate(rate), p.text);
        }
        if let Some((asked, Some(first))) = cx.store.first_token {
            labelled(ui, "first token", &fmt::seconds(first - asked), p.secondary);
        }
        return;
    }
    let last = cx
        .store
        .text
        .as_ref()
        .and_then(|t| t.branch().last())
        .and_then(|n| n.summary.as_ref());
    if let Some(s) = last {
        labelled(ui, "", &fmt::rate(s.decode_tokens_per_s), p.secondary);
        labelled(ui, "first token", &fmt::seconds(s.first_token_s), p.secondary);
    }
}

fn labelled(ui: &mut Ui, name: &str, figure: &Figure, color: Color32) {
    let p = Palette::of(ui);
    ui.spacing_mut().item_spacing.x = 8.0;
    if !name.is_empty() {
        ui.label(RichText::new(name).font(theme::caption()).color(p.faint));
        ui.spacing_mut().item_spacing.x = 4.0;
    }
    ui.label(figure.job(p, theme::mono(), color));
    ui.spacing_mut().item_spacing.x = 8.0;
}
