//! The top bar: workspaces, what is loaded, the menu; and slim strips below it.

use egui::{Align2, RichText, Sense, Stroke, Ui, WidgetInfo, vec2};
use protocol::Request;

use super::{App, Region};
use crate::commands::{self, COMMANDS, Command, Group};
use crate::fmt;
use crate::icons;
use crate::layout::Workspace;
use crate::store::Connection;
use crate::theme::{self, Palette};
use crate::views::Action;
use crate::widgets::controls::{self, icon_button, icon_toggle};

/// Height of the bar.
const HEIGHT: f32 = 40.0;

pub(super) fn show(app: &mut App, ui: &mut Ui, narrow: bool) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new()
        .fill(p.panel)
        .inner_margin(egui::Margin::symmetric(if narrow { 4 } else { 12 }, 0));
    let response = egui::Panel::top("top").frame(frame).exact_size(HEIGHT).show(ui, |ui| {
        ui.spacing_mut().item_spacing.x = 4.0;
        ui.allocate_ui_with_layout(
            vec2(ui.available_width(), HEIGHT),
            egui::Layout::left_to_right(egui::Align::Center),
            |ui| {
                ui.set_min_height(HEIGHT);
                if narrow {
                    region_switch(app, ui);
                    workspace_menu(app, ui);
                } else {
                    logo(ui);
                    ui.add_space(8.0);
                    for workspace in Workspace::ALL {
                        tab(app, ui, workspace);
                    }
                }
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    right(app, ui, narrow)
                });
            },
        );
    });
    app.anchors.insert("top", response.response.rect);
}

/// The mark of the program: a causal attention matrix.
pub(super) fn logo(ui: &mut Ui) {
    let p = Palette::of(ui);
    let (rect, _) = ui.allocate_exact_size(vec2(22.0, 22.0), Sense::hover());
    let cell = 4.6;
    let at = |x: usize, y: usize| {
        let min = rect.min + vec2(1.0 + x as f32 * 5.4, 1.0 + y as f32 * 5.4);
        egui::Rect::from_min_size(min, vec2(cell, cell))
    };
    let near = theme::mix(p.panel, p.accent, 0.6);
    let far = p.line;
    for (x, y, color) in [
        (0, 0, p.accent),
        (1, 1, p.accent),
        (2, 2, p.accent),
        (3, 3, p.accent),
        (0, 1, near),
        (1, 2, near),
        (2, 3, near),
        (1, 3, far),
        (0, 2, far),
        (0, 3, p.second),
    ] {
        ui.painter().rect_filled(at(x, y), 1, color);
    }
}

fn tab(app: &mut App, ui: &mut Ui, workspace: Workspace) {
    let p = Palette::of(ui);
    let on = app.layout.workspace == workspace;
    let font = if on { theme::strong() } else { theme::body() };
    let galley = ui.painter().layout_no_wrap(workspace.title().to_string(), font, p.text);
    let strong = ui
        .painter()
        .layout_no_wrap(workspace.title().to_string(), theme::strong(), p.text);
    let (rect, response) = ui.allocate_exact_size(vec2(strong.size().x + 20.0, HEIGHT), Sense::click());
    response.widget_info(|| WidgetInfo::selected(egui::Role::Tab, true, on, workspace.title()));
    let color = if on || response.hovered() { p.text } else { p.secondary };
    ui.painter()
        .galley_with_override_text_color(rect.center() - galley.size() / 2.0, galley, color);
    if on {
        let line = egui::Rect::from_min_max(
            egui::pos2(rect.left() + 8.0, rect.bottom() - 2.0),
            egui::pos2(rect.right() - 8.0, rect.bottom()),
        );
        ui.painter().rect_filled(line, 1, p.accent);
    }
    controls::focus_ring(ui, &response, rect.shrink2(vec2(2.0, 6.0)));
    if response.clicked() {
        app.invoke(Command::Workspace(workspace));
    }
    if let Some(keys) = commands::find(Command::Workspace(workspace)).and_then(|e| e.keys) {
        let text = ui.ctx().format_shortcut(&keys);
        response.on_hover_text(text);
    }
}

fn region_switch(app: &mut App, ui: &mut Ui) {
    for (region, icon, name) in [
        (Region::Left, icons::TREE_VIEW, "Model"),
        (Region::Centre, icons::SQUARES_FOUR, "Workspace"),
        (Region::Right, icons::CROSSHAIR, "Inspector"),
    ] {
        if icon_toggle(ui, icon, name, app.region == region).clicked() {
            app.region = region;
        }
    }
}

fn workspace_menu(app: &mut App, ui: &mut Ui) {
    let label = format!("{} {}", app.layout.workspace.title(), icons::CARET_DOWN);
    let response = ui.add(egui::Button::new(RichText::new(label).font(theme::strong())).frame_when_inactive(false));
    let name = format!("Workspace: {}", app.layout.workspace.title());
    response.widget_info(|| WidgetInfo::labeled(egui::Role::Button, true, &name));
    egui::Popup::menu(&response).show(|ui| {
        for workspace in Workspace::ALL {
            if ui.button(workspace.title()).clicked() {
                app.invoke(Command::Workspace(workspace));
            }
        }
    });
}

fn right(app: &mut App, ui: &mut Ui, narrow: bool) {
    let p = Palette::of(ui);
    menu(app, ui);
    if !narrow {
        if icon_button(ui, icons::COMMAND, "All commands").clicked() {
            app.invoke(Command::Palette);
        }
        if icon_toggle(ui, icons::COLUMNS, "Show or hide the inspector", app.layout.right).clicked() {
            app.invoke(Command::ToggleRight);
        }
        if icon_toggle(ui, icons::SIDEBAR_SIMPLE, "Show or hide the model", app.layout.left).clicked() {
            app.invoke(Command::ToggleLeft);
        }
        ui.add_space(8.0);
    }
    if let Some(at) = app.remote.at.clone() {
        let name = format!("Host at {at}");
        let response = if narrow {
            icon_button(ui, icons::BROADCAST, &name)
        } else {
            controls::chip(ui, icons::BROADCAST, &at, p.second).on_hover_text(name)
        };
        if response.clicked() {
            app.invoke(Command::RemoteHost);
        }
    }
    if ui.available_width() < 60.0 {
        return;
    }
    recipe_chip(app, ui);
    if !narrow {
        let device = app.store.state.as_ref().map(|s| s.device.clone());
        if let Some(device) = device
            && ui.available_width() > 180.0
        {
            let name = device.name.to_uppercase();
            ui.label(RichText::new(name).color(p.secondary)).on_hover_ui(|ui| {
                ui.label(&device.describe);
                if !device.why_not.is_empty() {
                    ui.label(RichText::new(&device.why_not).color(Palette::of(ui).secondary));
                }
            });
            ui.add_space(4.0);
        }
    }
    model_chip(app, ui);
}

fn model_chip(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let Some(model) = app.store.model() else { return };
    let (name, path, warnings) = (model.name.clone(), model.path.clone(), model.warnings.clone());
    let facts = format!(
        "{} parameters, {} of weights, {} layers, context {}",
        fmt::short(model.facts.parameters).plain(),
        fmt::bytes(model.facts.weight_bytes).plain(),
        model.facts.layers.len(),
        fmt::count(model.context)
    );
    if ui.available_width() < 90.0 {
        return;
    }
    let response = controls::chip(ui, icons::CUBE, &name, p.text);
    egui::Popup::menu(&response).show(|ui| {
        ui.set_min_width(240.0);
        ui.label(RichText::new(facts).font(theme::caption()).color(p.secondary));
        ui.label(RichText::new(path).font(theme::mono_caption()).color(p.faint));
        for warning in warnings {
            ui.set_max_width(360.0);
            let words = format!("{}  {warning}", icons::WARNING);
            ui.add(egui::Label::new(RichText::new(words).font(theme::caption()).color(p.warn)).wrap());
        }
        ui.separator();
        for command in [Command::OpenModel, Command::CloseModel] {
            item(app, ui, command);
        }
    });
}

/// The recipe in force and how far it is from the checkpoint's own.
fn recipe_chip(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let Some(recipe) = app.store.recipe() else { return };
    let short: String = recipe.hash.chars().take(4).collect();
    let n = recipe.changes.len();
    let text = match n {
        0 => format!("recipe #{short}"),
        1 => format!("recipe #{short} (1 change)"),
        n => format!("recipe #{short} ({n} changes)"),
    };
    let changes: Vec<String> = recipe.changes.iter().map(ToString::to_string).collect();
    let response = controls::chip(ui, icons::GIT_DIFF, &text, if n == 0 { p.secondary } else { p.second });
    app.anchors.insert("recipe", response.rect);
    if response.clicked() {
        app.actions.push(Action::Show("blocks"));
    }
    response.on_hover_ui(|ui| {
        if changes.is_empty() {
            ui.label("The checkpoint's own recipe");
        }
        const SHOWN: usize = 16;
        for change in changes.iter().take(SHOWN) {
            ui.label(RichText::new(change).font(theme::mono()));
        }
        if changes.len() > SHOWN {
            let more = format!("and {} more", fmt::count((changes.len() - SHOWN) as u64));
            ui.label(RichText::new(more).color(Palette::of(ui).secondary));
        }
    });
}

fn menu(app: &mut App, ui: &mut Ui) {
    let response = icon_button(ui, icons::LIST, "Menu");
    egui::Popup::menu(&response).show(|ui| {
        ui.set_min_width(200.0);
        for group in Group::ALL {
            ui.menu_button(group.title(), |ui| {
                ui.set_min_width(280.0);
                for entry in COMMANDS.iter().filter(|e| e.group == group) {
                    item(app, ui, entry.command);
                }
                if group == Group::View {
                    ui.separator();
                    views_menu(app, ui);
                }
            });
        }
    });
}

/// One command as a menu item.
fn item(app: &mut App, ui: &mut Ui, command: Command) {
    let Some(entry) = commands::find(command) else { return };
    let able = commands::available(command, &app.store);
    let keys = entry.keys.map(|k| ui.ctx().format_shortcut(&k)).unwrap_or_default();
    let label = format!("{}  {}", entry.icon, entry.title);
    let button = egui::Button::new(label).shortcut_text(RichText::new(keys).font(theme::mono_caption()));
    let response = ui.add_enabled(able.is_ok(), button);
    let (enabled, title) = (able.is_ok(), entry.title);
    response.widget_info(|| WidgetInfo::labeled(egui::Role::MenuItem, enabled, title));
    if response.clicked() {
        app.invoke(command);
        ui.close();
    }
    if let Err(why) = able {
        response.on_disabled_hover_text(why);
    }
}

fn views_menu(app: &mut App, ui: &mut Ui) {
    let views: Vec<(&'static str, &'static str)> = app.views.iter().map(|(id, s)| (*id, s.view.title())).collect();
    egui::ScrollArea::vertical().max_height(240.0).show(ui, |ui| {
        for (id, title) in views {
            if ui.button(title).clicked() {
                app.actions.push(Action::Show(id));
                ui.close();
            }
        }
    });
}

/// Connection, read-only, long jobs: one line each, only while there is something to say.
pub(super) fn strips(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    if let Connection::Waiting { reason, until, attempt } = app.store.connection().clone() {
        let wait = (until - app.store.now).max(0.0).ceil();
        let text = format!("No connection to the host: {reason}. Trying again in {wait:.0} s (attempt {attempt}).");
        strip(ui, "lost", icons::PLUGS, p.bad, &text, "Try now", || {
            app.actions.push(Action::Reconnect)
        });
        ui.ctx().request_repaint_after_secs(0.5);
    } else if *app.store.connection() == Connection::Connecting && app.store.host.is_some() {
        strip(
            ui,
            "lost",
            icons::PLUGS,
            p.warn,
            "Connecting to the host again.",
            "",
            || {},
        );
    }
    if app.store.state.as_ref().is_some_and(|s| !s.driver) {
        let text = "Read-only: another window is in control.";
        strip(ui, "viewer", icons::EYE, p.accent, text, "Take over", || {
            app.invoke(Command::TakeOver)
        });
    }
    let ended = app
        .store
        .state
        .as_ref()
        .map_or(String::new(), |s| s.engine_ended.clone());
    if !ended.is_empty() {
        let text = format!("{ended} The text is safe.");
        strip(ui, "ended", icons::PLUGS, p.bad, &text, "Restart engine", || {
            app.invoke(Command::RestartEngine)
        });
    }
    let storing = app
        .store
        .jobs
        .running()
        .find(|j| j.kind == protocol::JobKind::Store)
        .cloned();
    if let Some(job) = storing {
        let (done, total) = (fmt::bytes(job.done).plain(), fmt::bytes(job.total).plain());
        let text = format!("Storing weights for the recipe: {done} of {total}. It is in force then.");
        strip(ui, "store", icons::ARROWS_CLOCKWISE, p.accent, &text, "Cancel", || {
            app.store.send(Request::CancelJob(job.id))
        });
    }
    let recorded = app.store.host.as_ref().map_or(String::new(), |h| h.recorded.clone());
    if !recorded.is_empty() {
        let text = format!("{recorded} Nothing is computed.");
        strip(ui, "recorded", icons::RECORD, p.second, &text, "Leave it", || {
            app.store.send(Request::CloseModel)
        });
    }
    converted(app, ui);
    if app.platform.can_go_native() {
        let text = "This page draws slowly here. The native window draws the same faster.";
        strip(ui, "slow", icons::GAUGE, p.warn, text, "Open the native window", || {
            app.platform.go_native()
        });
    }
}

/// After a swap that converted cache rows: what that means, and the way out.
fn converted(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let Some(first) = app.store.recipe().and_then(|r| r.converted_at.first().copied()) else {
        return;
    };
    if app.store.writing().is_some() || app.store.text.is_none() {
        return;
    }
    let replaying = app
        .store
        .jobs
        .running()
        .find(|j| j.kind == protocol::JobKind::Replay)
        .cloned();
    if let Some(job) = replaying {
        let text = format!(
            "{}: {} of {} {}",
            job.what,
            fmt::count(job.done),
            fmt::count(job.total),
            job.unit
        );
        strip(ui, "replay", icons::ARROWS_CLOCKWISE, p.accent, &text, "Cancel", || {
            app.store.send(Request::CancelJob(job.id));
        });
        return;
    }
    let text = format!(
        "Converted: cache rows up to token {} were made under another recipe. Such text never enters a report.",
        fmt::count(first)
    );
    strip(ui, "converted", icons::INFO, p.second, &text, "Compute it anew", || {
        app.store.send(Request::ReplayText)
    });
}

fn strip(
    ui: &mut Ui,
    id: &'static str,
    icon: &str,
    color: egui::Color32,
    text: &str,
    action: &str,
    mut done: impl FnMut(),
) {
    let p = Palette::of(ui);
    let frame = egui::Frame::new()
        .fill(theme::mix(p.panel, color, 0.12))
        .stroke(Stroke::NONE)
        .inner_margin(egui::Margin::symmetric(12, 2));
    egui::Panel::top(id).frame(frame).resizable(false).show(ui, |ui| {
        ui.horizontal(|ui| {
            let (rect, _) = ui.allocate_exact_size(vec2(18.0, theme::ROW), Sense::hover());
            ui.painter().text(
                rect.center(),
                Align2::CENTER_CENTER,
                icon,
                egui::FontId::proportional(15.0),
                color,
            );
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                if !action.is_empty() && controls::link(ui, action).clicked() {
                    done();
                }
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    ui.add(egui::Label::new(text).truncate());
                });
            });
        });
    });
}
