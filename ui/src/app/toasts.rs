//! Sentences at the bottom of the window.

use egui::{RichText, Stroke, vec2};

use super::App;
use crate::icons;
use crate::store::{Toast, ToastKind};
use crate::theme::{self, Palette};
use crate::views::{Action, details_of};
use crate::widgets::controls::{self, icon_button};

pub(super) fn show(app: &mut App, ctx: &egui::Context) {
    if app.store.toasts.list().is_empty() {
        return;
    }
    let bottom = app
        .anchors
        .get("scrubber")
        .map_or(16.0, |r| ctx.content_rect().bottom() - r.top() + 12.0);
    let width = (ctx.content_rect().width() - 24.0).min(420.0);
    let mut actions = Vec::new();
    egui::Area::new(egui::Id::unique("toasts"))
        .order(egui::Order::Foreground)
        .anchor(egui::Align2::RIGHT_BOTTOM, vec2(-12.0, -bottom))
        .show(ctx, |ui| {
            ui.set_max_width(width);
            ui.spacing_mut().item_spacing.y = 8.0;
            for toast in app.store.toasts.list() {
                one(ui, toast, width, &mut actions);
            }
        });
    app.actions.extend(actions);
}

fn one(ui: &mut egui::Ui, toast: &Toast, width: f32, actions: &mut Vec<Action>) {
    let p = Palette::of(ui);
    let (icon, color) = match &toast.kind {
        ToastKind::Info => (icons::INFO, p.accent),
        ToastKind::Warning => (icons::WARNING, p.warn),
        ToastKind::Error(_) => (icons::WARNING_CIRCLE, p.bad),
    };
    egui::Frame::new()
        .fill(p.raised)
        .stroke(Stroke::new(theme::LINE, theme::mix(p.line, color, 0.4)))
        .corner_radius(theme::RADIUS)
        .inner_margin(egui::Margin::symmetric(12, 8))
        .shadow(ui.visuals().popup_shadow)
        .show(ui, |ui| {
            ui.set_width(width - 24.0);
            ui.horizontal_top(|ui| {
                ui.label(RichText::new(icon).size(theme::TITLE).color(color));
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Min), |ui| {
                    if icon_button(ui, icons::X, "Close").clicked() {
                        actions.push(Action::CloseToast(toast.id));
                    }
                    if let Some((label, request)) = &toast.undo
                        && controls::link(ui, label).clicked()
                    {
                        actions.push(Action::Send(request.clone()));
                        actions.push(Action::CloseToast(toast.id));
                    }
                    ui.with_layout(egui::Layout::top_down(egui::Align::Min), |ui| {
                        ui.add(egui::Label::new(&toast.text).wrap());
                        if let ToastKind::Error(error) = &toast.kind {
                            if !error.remedy.is_empty() {
                                ui.add(egui::Label::new(RichText::new(&error.remedy).color(p.secondary)).wrap());
                            }
                            if controls::link(ui, "Copy details").clicked() {
                                actions.push(Action::Copy(details_of(error)));
                            }
                        }
                    });
                });
            });
        });
}
