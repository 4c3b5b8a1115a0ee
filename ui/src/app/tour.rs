//! Ten short steps through the window.

use egui::{RichText, Stroke, StrokeKind, vec2};

use super::{App, windows};
use crate::commands::Command;
use crate::icons;
use crate::layout::Workspace;
use crate::theme::{self, Palette};
use crate::views::Action;
use crate::widgets::controls;

/// State of the tour.
#[derive(Debug, Default)]
pub(super) struct Tour {
    at: Option<usize>,
    offered: bool,
}

struct Step {
    workspace: Workspace,
    /// Region that is pointed at.
    anchor: &'static str,
    title: &'static str,
    text: &'static str,
}

const STEPS: [Step; 10] = [
    Step {
        workspace: Workspace::Generate,
        anchor: "generate",
        title: "A text and its tokens",
        text: "Write how it begins and press Generate. Point at a word to see how likely it was and what it could have been; a click locks it.",
    },
    Step {
        workspace: Workspace::Generate,
        anchor: "scrubber",
        title: "Every token again",
        text: "The bars show how surprising each token was. Drag, use the arrow keys, or play. Everything else follows.",
    },
    Step {
        workspace: Workspace::Generate,
        anchor: "right",
        title: "The inspector",
        text: "What is selected, in figures: probability, rank, alternatives to branch with, and what every layer did.",
    },
    Step {
        workspace: Workspace::Generate,
        anchor: "left",
        title: "The model",
        text: "Layers, blocks and tensors as a tree, with sizes and statistics. Ctrl+F searches it.",
    },
    Step {
        workspace: Workspace::Generate,
        anchor: "telemetry.kv",
        title: "Live figures",
        text: "Memory of the KV cache by layer and part, speed, sparsity and rounding errors, measured while it writes.",
    },
    Step {
        workspace: Workspace::Generate,
        anchor: "recipe",
        title: "The recipe",
        text: "Each layer's blocks can be exchanged while it writes, from the next token on. This shows how far you are from the checkpoint's own.",
    },
    Step {
        workspace: Workspace::Compare,
        anchor: "compare",
        title: "A against B",
        text: "Compare two recipes on the same text: KL per token, memory, speed. Blue is always A, amber always B.",
    },
    Step {
        workspace: Workspace::Inspect,
        anchor: "inspect.attention",
        title: "Looking inside",
        text: "Attention of any layer and head, which compressed rows each token kept, and which experts it went to.",
    },
    Step {
        workspace: Workspace::Bench,
        anchor: "explorer.plan",
        title: "Where the time goes",
        text: "Every operation with its arithmetic, bytes and, when you switch timing on, its measured time.",
    },
    Step {
        workspace: Workspace::Generate,
        anchor: "top",
        title: "Everything by name",
        text: "Ctrl+K finds every command and panel. Ctrl+Z takes back changes of recipe, layout and selection.",
    },
];

impl Tour {
    pub(super) fn start(&mut self) {
        self.at = Some(0);
        self.offered = false;
    }

    /// Offers the tour once a model is there.
    pub(super) fn offer(&mut self) {
        self.offered = true;
    }

    pub(super) fn close(&mut self) -> bool {
        self.at.take().is_some()
    }
}

pub(super) fn show(app: &mut App, ctx: &egui::Context) {
    let ready = app.store.model().is_some() && !app.start.open;
    if app.tour.offered && ready {
        offer(app, ctx);
        return;
    }
    let Some(at) = app.tour.at else { return };
    if !ready {
        return;
    }
    let step = &STEPS[at];
    if app.layout.workspace != step.workspace {
        app.layout.workspace = step.workspace;
        app.layout.full = None;
    }
    let screen = ctx.content_rect();
    let target = app.anchors.get(step.anchor).copied().filter(|r| r.intersects(screen));
    let p = Palette::of_context(ctx);
    let target = target.unwrap_or_else(|| egui::Rect::from_center_size(screen.center(), vec2(1.0, 1.0)));
    dim(ctx, target);
    let width = 320.0f32.min(screen.width() - 24.0);
    let place = beside(screen, target, vec2(width, 150.0));
    let mut go: Option<i32> = None;
    egui::Area::new(egui::Id::unique("tour"))
        .order(egui::Order::Tooltip)
        .fixed_pos(place)
        .show(ctx, |ui| {
            egui::Frame::new()
                .fill(p.panel)
                .stroke(Stroke::new(theme::LINE, p.accent))
                .corner_radius(theme::RADIUS + 2)
                .inner_margin(14)
                .show(ui, |ui| {
                    ui.set_width(width - 28.0);
                    ui.label(RichText::new(step.title).font(theme::strong()));
                    ui.add(egui::Label::new(RichText::new(step.text).color(p.secondary)).wrap());
                    ui.add_space(8.0);
                    ui.horizontal(|ui| {
                        let count = format!("{} of {}", at + 1, STEPS.len());
                        ui.label(RichText::new(count).font(theme::mono_caption()).color(p.faint));
                        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                            let last = at + 1 == STEPS.len();
                            if controls::primary(ui, "", if last { "Done" } else { "Next" }).clicked() {
                                go = Some(1);
                            }
                            if at > 0 && controls::button(ui, "", "Back").clicked() {
                                go = Some(-1);
                            }
                            if controls::link(ui, "End the tour").clicked() {
                                go = Some(100);
                            }
                        });
                    });
                });
        });
    if let Some(by) = go {
        let next = at as i32 + by;
        if (0..STEPS.len() as i32).contains(&next) {
            app.tour.at = Some(next as usize);
        } else {
            app.tour.at = None;
            app.layout.workspace = Workspace::Generate;
            seen(app);
        }
    }
}

/// A small card in the corner on the first start.
fn offer(app: &mut App, ctx: &egui::Context) {
    let p = Palette::of_context(ctx);
    let bottom = app
        .anchors
        .get("scrubber")
        .map_or(16.0, |r| ctx.content_rect().bottom() - r.top() + 12.0);
    egui::Area::new(egui::Id::unique("tour offer"))
        .order(egui::Order::Middle)
        .anchor(egui::Align2::LEFT_BOTTOM, vec2(12.0, -bottom))
        .show(ctx, |ui| {
            egui::Frame::new()
                .fill(p.raised)
                .stroke(Stroke::new(theme::LINE, p.line))
                .corner_radius(theme::RADIUS)
                .shadow(ui.visuals().popup_shadow)
                .inner_margin(12)
                .show(ui, |ui| {
                    ui.set_max_width(240.0);
                    ui.label(RichText::new(format!("{}  New here?", icons::COMPASS)).font(theme::strong()));
                    let keys = windows::keys_of(ui.ctx(), Command::Palette);
                    let text = format!("Ten short steps through the window. Later: {keys}, \"Tour\".");
                    ui.add(egui::Label::new(RichText::new(text).color(p.secondary)).wrap());
                    ui.add_space(6.0);
                    ui.horizontal(|ui| {
                        if controls::primary(ui, "", "Start the tour").clicked() {
                            app.tour.start();
                        }
                        if controls::button(ui, "", "Not now").clicked() {
                            app.tour.offered = false;
                            seen(app);
                        }
                    });
                });
        });
}

fn seen(app: &mut App) {
    if !app.store.settings.tour_seen {
        let settings = protocol::Settings {
            tour_seen: true,
            ..app.store.settings.clone()
        };
        app.actions.push(Action::Settings(Box::new(settings)));
    }
}

/// Darkens everything but the target.
fn dim(ctx: &egui::Context, target: egui::Rect) {
    let p = Palette::of_context(ctx);
    let screen = ctx.content_rect();
    let layer = egui::LayerId::new(egui::Order::Foreground, egui::Id::unique("tour dim"));
    let painter = ctx.layer_painter(layer);
    let shade = p.canvas.gamma_multiply(0.62);
    let t = target.intersect(screen);
    for rect in [
        egui::Rect::from_min_max(screen.min, egui::pos2(screen.right(), t.top())),
        egui::Rect::from_min_max(egui::pos2(screen.left(), t.bottom()), screen.max),
        egui::Rect::from_min_max(egui::pos2(screen.left(), t.top()), t.left_bottom()),
        egui::Rect::from_min_max(t.right_top(), egui::pos2(screen.right(), t.bottom())),
    ] {
        painter.rect_filled(rect, 0, shade);
    }
    painter.rect_stroke(t, theme::RADIUS, Stroke::new(1.5, p.accent), StrokeKind::Inside);
}

/// A place for a card of this size beside the target, inside the window.
fn beside(screen: egui::Rect, target: egui::Rect, size: egui::Vec2) -> egui::Pos2 {
    let gap = 12.0;
    let options = [
        egui::pos2(target.right() + gap, target.top()),
        egui::pos2(target.left() - gap - size.x, target.top()),
        egui::pos2(target.left(), target.bottom() + gap),
        egui::pos2(target.left(), target.top() - gap - size.y),
    ];
    let room = screen.shrink(8.0);
    let fits = options
        .into_iter()
        .find(|at| room.contains_rect(egui::Rect::from_min_size(*at, size)));
    let at = fits.unwrap_or(target.center() - size / 2.0);
    let max = (room.max - size).max(room.min);
    egui::pos2(at.x.clamp(room.left(), max.x), at.y.clamp(room.top(), max.y))
}
