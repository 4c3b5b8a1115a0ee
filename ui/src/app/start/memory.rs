//! Whether a model fits: a bar that moves with a context slider.

use egui::{Color32, RichText, Sense, Ui, WidgetInfo, pos2, vec2};
use protocol::{ErrorInfo, MemoryBasis, MemoryPlan, ModelSource};

use crate::fmt;
use crate::store::{Fetched, Query};
use crate::theme::{self, Palette};
use crate::views::Context;

/// Smallest context offered, in tokens.
const LEAST: u64 = 256;
/// Stops of the slider per doubling.
const STOPS: f64 = 4.0;

/// State of one bar.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// Chosen context; 0 = the checkpoint's own.
    pub(super) context: u64,
    last: Option<MemoryPlan>,
    failed: Option<ErrorInfo>,
}

impl Memory {
    /// The bar with its slider. Returns whether the model can be opened like this.
    pub(super) fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, source: &ModelSource) -> bool {
        match cx.fetch(&Query::memory(source.clone(), self.context)) {
            Fetched::Ready(plan) | Fetched::Stale(plan) => {
                self.last = Some(plan.clone());
                self.failed = None;
            }
            Fetched::Failed(e) => self.failed = Some(e.clone()),
            Fetched::Loading => {}
        }
        let p = Palette::of(ui);
        if let Some(why) = &self.failed {
            ui.add(egui::Label::new(RichText::new(why.to_string()).color(p.bad)).wrap());
            return false;
        }
        // The former plan stands while the next one is on its way, so that the bar glides.
        let Some(plan) = self.last.clone() else {
            ui.label(
                RichText::new("Reading its headers …")
                    .font(theme::caption())
                    .color(p.faint),
            );
            return true;
        };
        if plan.basis == MemoryBasis::Nothing {
            let words = "Its size and memory are known once its headers are here.";
            ui.add(egui::Label::new(RichText::new(words).font(theme::caption()).color(p.secondary)).wrap());
            return true;
        }
        bar(ui, &plan);
        self.slider(ui, &plan);
        let fits = plan.refusal.is_empty();
        if fits {
            let est = if plan.basis == MemoryBasis::Shape { "est. " } else { "" };
            let words = if plan.free > 0 {
                format!(
                    "fits: {est}{} of {} free",
                    fmt::bytes(plan.total()).plain(),
                    fmt::bytes(plan.free).plain()
                )
            } else {
                format!("needs {est}{}", fmt::bytes(plan.total()).plain())
            };
            let mut words = RichText::new(words).font(theme::caption()).color(p.good);
            if plan.basis == MemoryBasis::Shape {
                words = words.italics();
            }
            ui.label(words).on_hover_ui(|ui| tip(ui, &plan));
        } else {
            let why = RichText::new(format!("does not fit: {}", plan.refusal))
                .font(theme::caption())
                .color(p.bad);
            ui.add(egui::Label::new(why).wrap()).on_hover_ui(|ui| tip(ui, &plan));
        }
        fits
    }

    fn slider(&mut self, ui: &mut Ui, plan: &MemoryPlan) {
        let p = Palette::of(ui);
        let most = plan.max_context.max(LEAST);
        let stops = ((most as f64 / LEAST as f64).log2() * STOPS).round().max(1.0);
        let now = if self.context == 0 { plan.context } else { self.context };
        let at = ((now.max(LEAST) as f64 / LEAST as f64).log2() * STOPS).clamp(0.0, stops);
        ui.horizontal(|ui| {
            ui.spacing_mut().item_spacing.x = 8.0;
            ui.label(RichText::new("context").font(theme::caption()).color(p.secondary));
            let width = (ui.available_width() - 64.0).max(40.0);
            let (rect, response) = ui.allocate_exact_size(vec2(width, 18.0), Sense::click_and_drag());
            response.widget_info(|| WidgetInfo::slider(true, now as f64, "Context"));
            let track = egui::Rect::from_center_size(rect.center(), vec2(width - 12.0, 3.0));
            let mut to = at;
            if let Some(pointer) = response.interact_pointer_pos() {
                let t = ((pointer.x - track.left()) / track.width()).clamp(0.0, 1.0);
                to = (f64::from(t) * stops).round();
            }
            if response.has_focus() {
                crate::commands::keep_arrows(ui.ctx(), response.id);
                let (right, left) = ui.input(|i| {
                    (
                        i.key_pressed(egui::Key::ArrowRight),
                        i.key_pressed(egui::Key::ArrowLeft),
                    )
                });
                if right != left {
                    to = at.round() + if right { 1.0 } else { -1.0 };
                }
            }
            if to != at {
                let tokens = LEAST as f64 * 2f64.powf(to.clamp(0.0, stops) / STOPS);
                self.context = if to >= stops {
                    most
                } else {
                    (tokens / 16.0).round() as u64 * 16
                };
            }
            let x = track.left() + track.width() * (to / stops).clamp(0.0, 1.0) as f32;
            ui.painter().rect_filled(track, 2, p.line);
            let done = egui::Rect::from_min_max(track.min, pos2(x, track.bottom()));
            ui.painter().rect_filled(done, 2, theme::mix(p.line, p.accent, 0.7));
            let ring = if response.hovered() || response.has_focus() {
                p.accent
            } else {
                p.secondary
            };
            ui.painter()
                .circle(pos2(x, track.center().y), 6.0, p.raised, egui::Stroke::new(1.5, ring));
            ui.label(RichText::new(fmt::count(now)).font(theme::mono()).color(p.text));
        });
    }
}

/// Parts of the plan with their colours: weights, components of the cache, workspace.
fn parts(plan: &MemoryPlan, p: &Palette) -> Vec<(&'static str, u64, Color32)> {
    let mut parts = vec![("weights", plan.weights, theme::mix(p.panel, p.secondary, 0.8))];
    for ((name, bytes), color) in plan.kv.parts().into_iter().zip(p.kv) {
        parts.push((name, bytes, color));
    }
    parts.push(("workspace", plan.workspace, theme::mix(p.panel, p.secondary, 0.4)));
    parts
}

fn bar(ui: &mut Ui, plan: &MemoryPlan) {
    let p = Palette::of(ui);
    let whole = if plan.free == 0 { plan.total() } else { plan.free }.max(1) as f32;
    let over = plan.total() as f32 / whole;
    let scale = whole * over.max(1.0);
    let shares: Vec<(f32, Color32)> = parts(plan, p)
        .into_iter()
        .map(|(_, bytes, color)| (bytes as f32 / scale, color))
        .collect();
    let width = ui.available_width();
    let (rect, response) = ui.allocate_exact_size(vec2(width, 8.0), Sense::hover());
    let name = format!(
        "Memory: {} of {}",
        fmt::bytes(plan.total()).plain(),
        fmt::bytes(plan.free).plain()
    );
    response.widget_info(|| WidgetInfo::labeled(egui::Role::ProgressIndicator, true, &name));
    crate::widgets::controls::paint_bar(ui, rect, &shares, p.line);
    if over > 1.0 {
        // Where memory ends.
        let x = rect.left() + rect.width() / over;
        ui.painter()
            .vline(x, rect.top() - 3.0..=rect.bottom() + 3.0, egui::Stroke::new(2.0, p.bad));
    }
    response.on_hover_ui(|ui| tip(ui, plan));
}

fn tip(ui: &mut Ui, plan: &MemoryPlan) {
    let p = Palette::of(ui);
    ui.set_max_width(260.0);
    for (name, bytes, color) in parts(plan, p) {
        if bytes == 0 {
            continue;
        }
        crate::widgets::controls::row(ui, name, |ui| {
            ui.label(fmt::bytes(bytes).job(p, theme::mono(), p.text));
            let (rect, _) = ui.allocate_exact_size(vec2(8.0, 8.0), Sense::hover());
            ui.painter().rect_filled(rect, 2, color);
        });
    }
    let from = match plan.basis {
        MemoryBasis::Shape => "estimated from its shape: it is not on this machine yet",
        _ => "estimated from the model's headers",
    };
    ui.label(RichText::new(from).font(theme::caption()).color(p.faint));
}
