//! The bottom region: a time line over the tokens of the shown text. Bars show how surprising each token was.

use egui::{Align2, Color32, Mesh, Rect, RichText, Sense, Stroke, Ui, WidgetInfo, pos2, vec2};

use super::App;
use crate::commands::Command;
use crate::fmt;
use crate::icons;
use crate::selection::{Selection, Spot};
use crate::store::Text;
use crate::theme::{self, Palette};
use crate::widgets::controls::{icon_button, icon_toggle};

/// Tokens a second while it plays.
const PLAY_RATE: f64 = 12.0;
/// Bits at which a bar is full.
const FULL_BITS: f32 = 8.0;

/// State of the scrubber.
#[derive(Debug, Default)]
pub(super) struct Scrubber {
    playing: bool,
    next: f64,
    bars: Bars,
}

/// Bars in pixels, kept while nothing changes.
#[derive(Debug, Default)]
struct Bars {
    revision: u64,
    width: usize,
    bits: Vec<f32>,
}

impl Scrubber {
    /// Starts or stops playing; from the end it starts over.
    pub(super) fn toggle(&mut self, locked: Option<u64>, first: u64, last: u64, selection: &mut Selection) {
        self.playing = !self.playing;
        self.next = 0.0;
        if self.playing && locked.is_none_or(|t| t >= last) {
            selection.lock(Spot::token(first));
        }
    }

    fn advance(&mut self, selection: &mut Selection, last: u64, ctx: &egui::Context, now: f64) {
        if !self.playing {
            return;
        }
        let Some(at) = selection.locked().token else {
            self.playing = false;
            return;
        };
        if self.next == 0.0 {
            self.next = now + 1.0 / PLAY_RATE;
        }
        if now >= self.next {
            if at >= last {
                self.playing = false;
                selection.follow_again();
                return;
            }
            selection.lock(Spot::token(at + 1));
            self.next = now + 1.0 / PLAY_RATE;
        }
        ctx.request_repaint_after_secs((self.next - now).max(0.0) as f32);
    }
}

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new()
        .fill(p.panel)
        .inner_margin(egui::Margin::symmetric(12, 0));
    let response = egui::Panel::bottom("bottom")
        .frame(frame)
        .resizable(false)
        .exact_size(44.0)
        .show(ui, |ui| {
            let row = egui::Layout::left_to_right(egui::Align::Center);
            ui.allocate_ui_with_layout(vec2(ui.available_width(), 44.0), row, |ui| {
                ui.set_min_height(44.0);
                ui.spacing_mut().item_spacing.x = 2.0;
                let span = app.store.text.as_ref().and_then(|t| t.span());
                match span {
                    Some((first, last)) => content(app, ui, first, last),
                    None => {
                        let words = "The tokens of the text appear here as they are written.";
                        ui.label(RichText::new(words).color(p.faint));
                    }
                }
            });
        });
    app.anchors.insert("scrubber", response.response.rect);
}

fn content(app: &mut App, ui: &mut Ui, first: u64, last: u64) {
    let p = Palette::of(ui);
    let now = app.store.now;
    app.scrubber.advance(&mut app.selection, last, &ui.ctx().clone(), now);
    let wide = ui.available_width() > 520.0;
    if wide && icon_button(ui, icons::SKIP_BACK, "First token").clicked() {
        app.invoke(Command::First);
    }
    if icon_button(ui, icons::CARET_LEFT, "Previous token").clicked() {
        app.invoke(Command::Back);
    }
    let (icon, name) = if app.scrubber.playing {
        (icons::PAUSE, "Pause")
    } else {
        (icons::PLAY, "Play")
    };
    if icon_button(ui, icon, name).clicked() {
        app.invoke(Command::Play);
    }
    if icon_button(ui, icons::CARET_RIGHT, "Next token").clicked() {
        app.invoke(Command::Forward);
    }
    if wide && icon_button(ui, icons::SKIP_FORWARD, "Last token").clicked() {
        app.invoke(Command::Last);
    }
    ui.add_space(8.0);
    ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
        let live = app.selection.follow && app.selection.locked().token.is_none();
        if icon_toggle(ui, icons::BROADCAST, "Follow the text", live).clicked() {
            if live {
                app.selection.lock(Spot::token(last));
            } else {
                app.selection.follow_again();
            }
        }
        let at = app.selection.shown().token.unwrap_or(last);
        let text = format!("token {} / {}", fmt::count(at), fmt::count(last));
        let widest = format!("token {0} / {0}", fmt::count(last));
        let width = ui.painter().layout_no_wrap(widest, theme::mono(), p.text).size().x + 8.0;
        let (rect, response) = ui.allocate_exact_size(vec2(width, theme::ROW), Sense::hover());
        response.widget_info(|| WidgetInfo::labeled(egui::Role::Label, true, &text));
        ui.painter().text(
            rect.right_center(),
            Align2::RIGHT_CENTER,
            text,
            theme::mono(),
            p.secondary,
        );
        ui.add_space(8.0);
        track(app, ui, first, last);
    });
}

fn track(app: &mut App, ui: &mut Ui, first: u64, last: u64) {
    let p = Palette::of(ui);
    let size = vec2(ui.available_width(), 32.0);
    if size.x < 24.0 {
        return;
    }
    let (rect, response) = ui.allocate_exact_size(size, Sense::click_and_drag());
    let shown = app.selection.shown().token.unwrap_or(last).clamp(first, last);
    response.widget_info(|| WidgetInfo::slider(true, shown as f64, "Token"));
    let n = (last - first + 1) as f32;
    let x_of = |token: u64| rect.left() + (token.saturating_sub(first) as f32 + 0.5) / n * rect.width();
    let token_of = |x: f32| {
        let t = ((x - rect.left()) / rect.width() * n).floor().clamp(0.0, n - 1.0);
        first + t as u64
    };
    bars(app, ui, rect);
    ui.painter()
        .hline(rect.x_range(), rect.bottom() - 0.5, Stroke::new(theme::LINE, p.line));
    for swap in app.store.steps.swaps() {
        if (first..=last).contains(&swap.position) {
            let x = rect.left() + (swap.position - first) as f32 / n * rect.width();
            ui.painter().vline(x, rect.y_range(), Stroke::new(1.5, p.second));
        }
    }
    let head = |ui: &Ui, token: u64, color: Color32| {
        let x = x_of(token);
        let width = (rect.width() / n).clamp(2.0, 12.0);
        let body = Rect::from_center_size(pos2(x, rect.center().y), vec2(width, rect.height()));
        ui.painter().rect_filled(body, 1, color);
    };
    if let Some(pointer) = response.hover_pos().or(response.interact_pointer_pos()) {
        let token = token_of(pointer.x);
        if response.clicked() || response.dragged() {
            app.selection.lock(Spot::token(token));
        } else {
            app.selection.hover(Spot::token(token));
        }
    }
    let locked = app.selection.locked().token;
    head(
        ui,
        shown,
        theme::mix(p.panel, p.accent, if locked.is_some() { 1.0 } else { 0.7 }),
    );
    if let Some(locked) = locked.filter(|t| *t != shown) {
        head(ui, locked.clamp(first, last), p.accent);
    }
    let tip = app
        .store
        .text
        .as_ref()
        .and_then(|t| t.token_at(shown))
        .map(|t| fmt::quoted(&t.info.text));
    if let Some(tip) = tip {
        response.on_hover_text_at_pointer(tip);
    }
}

/// Surprise of the tokens, -log2 p: the largest of those that share a pixel.
fn bars(app: &mut App, ui: &Ui, rect: Rect) {
    let p = Palette::of(ui);
    let Some(text) = &app.store.text else { return };
    let width = rect.width().floor() as usize;
    let bars = &mut app.scrubber.bars;
    if bars.revision != text.revision() || bars.width != width {
        *bars = Bars {
            revision: text.revision(),
            width,
            bits: bits_of(text, width),
        };
    }
    let color = theme::mix(p.panel, p.secondary, 0.5);
    let mut mesh = Mesh::default();
    for (i, bits) in bars.bits.iter().enumerate().filter(|(_, b)| **b > 0.0) {
        let height = (bits / FULL_BITS).min(1.0) * (rect.height() - 4.0);
        let x = rect.left() + i as f32;
        let bar = Rect::from_min_max(
            pos2(x, rect.bottom() - 1.0 - height.max(1.0)),
            pos2(x + 1.0, rect.bottom() - 1.0),
        );
        mesh.add_colored_rect(bar, color);
    }
    ui.painter().add(mesh);
}

fn bits_of(text: &Text, width: usize) -> Vec<f32> {
    let mut bits = vec![0.0f32; width];
    let Some((first, last)) = text.span() else { return bits };
    let n = (last - first + 1) as usize;
    for token in text.tokens() {
        let i = (token.info.position - first) as usize;
        let (a, b) = (i * width / n, ((i + 1) * width / n).max(i * width / n + 1));
        let value = -token.info.logprob / std::f32::consts::LN_2;
        for bar in &mut bits[a.min(width.saturating_sub(1))..b.min(width)] {
            *bar = bar.max(value);
        }
        // A gap between wide bars keeps tokens apart.
        if b - a > 4 {
            bits[b - 1] = 0.0;
        }
    }
    bits
}
