//! The start screen: three cards, recent models, what fits.

mod cards;
mod memory;

use egui::{RichText, Ui, vec2};
use protocol::{ErrorInfo, JobState, ModelSource, ModelState, ModelsView, Request};

use super::{App, top};
use crate::commands::Command;
use crate::fmt;
use crate::icons;
use crate::store::{Fetched, Query};
use crate::theme::{self, Palette};
use crate::views::{Context, failed};
use crate::widgets::controls::{self, icon_button};

/// State of the start screen.
#[derive(Debug, Default)]
pub(super) struct Start {
    /// Shown although a model is loaded.
    pub(super) open: bool,
    path: String,
    repository: String,
    chosen: Option<(String, ModelSource)>,
    memory: std::collections::BTreeMap<String, memory::Memory>,
    why: bool,
}

/// Width from which cards stand side by side.
const THREE: f32 = 860.0;
/// Widest the cards become.
const WIDEST: f32 = 1120.0;

impl Start {
    /// A path was picked, dropped or handed over: it stands ready to be opened.
    pub(super) fn choose_path(&mut self, path: String) {
        self.open = true;
        let name = path
            .trim_end_matches(['/', '\\'])
            .rsplit(['/', '\\'])
            .next()
            .unwrap_or(&path)
            .to_string();
        self.chosen = Some((name, ModelSource::Path(path)));
    }
}

/// Whether a path is that of a recorded run.
pub(super) fn is_run(path: &str) -> bool {
    path.trim().to_ascii_lowercase().ends_with(".m1run")
}

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.painter().rect_filled(ui.max_rect(), 0, p.canvas);
    if app.store.state.is_none() {
        connecting(app, ui);
        return;
    }
    let query = Query::models();
    let fetched = {
        let (_, _, mut cx) = app.parts();
        cx.fetch(&query).value().cloned().ok_or(match cx.fetch(&query) {
            Fetched::Failed(e) => Some(e.clone()),
            _ => None,
        })
    };
    let scroll = egui::ScrollArea::vertical()
        .id_salt("start")
        .auto_shrink([false, false]);
    scroll.show(ui, |ui| {
        let room = ui.available_width();
        let width = (room - 32.0).min(WIDEST);
        let left = ((room - width) / 2.0).max(8.0);
        let height = ui.clip_rect().height();
        let rect = egui::Rect::from_min_size(ui.cursor().min + vec2(left, 0.0), vec2(width, height));
        ui.scope_builder(egui::UiBuilder::new().max_rect(rect), |ui| {
            ui.spacing_mut().item_spacing = vec2(12.0, 12.0);
            head(app, ui);
            match fetched {
                Ok(models) => content(app, ui, &models, height),
                Err(Some(error)) => {
                    let (_, _, mut cx) = app.parts();
                    failed(&mut cx, ui, &error);
                }
                Err(None) => {
                    ui.label(RichText::new("Looking for models …").color(p.secondary));
                }
            }
        });
    });
}

fn connecting(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.vertical_centered(|ui| {
        ui.add_space(ui.available_height() * 0.35);
        top::logo(ui);
        ui.add_space(8.0);
        ui.label(RichText::new("MODEL1 Explorer").font(theme::title()));
        let what = match &app.remote.at {
            _ if app.store.host.is_some() => "Waiting for the host's state …".to_string(),
            Some(at) => format!("Connecting to the host at {at} …"),
            None => "Connecting to the host …".to_string(),
        };
        ui.label(RichText::new(what).color(p.secondary));
        if app.remote.at.is_some() {
            ui.add_space(8.0);
            if controls::button(ui, icons::ARROW_LEFT, "Back to this machine").clicked() {
                app.invoke(Command::LocalHost);
            }
        }
    });
}

fn head(app: &mut App, ui: &mut Ui) {
    let row = egui::Layout::left_to_right(egui::Align::Center);
    ui.add_space(if ui.clip_rect().height() > 560.0 { 20.0 } else { 0.0 });
    ui.allocate_ui_with_layout(vec2(ui.available_width(), 40.0), row, |ui| {
        ui.set_min_height(40.0);
        top::logo(ui);
        // Narrow windows keep the room for the buttons.
        if ui.available_width() > 260.0 {
            ui.label(RichText::new("MODEL1 Explorer").font(theme::title()));
        }
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            if icon_button(ui, icons::GEAR_SIX, "Settings").clicked() {
                app.invoke(Command::Settings);
            }
            if icon_button(ui, icons::COMMAND, "All commands").clicked() {
                app.invoke(Command::Palette);
            }
            let remote = match &app.remote.at {
                Some(at) => format!("Host at {at}"),
                None => "Remote host".to_string(),
            };
            let clicked = if ui.available_width() > 200.0 {
                controls::button(ui, icons::BROADCAST, &remote).clicked()
            } else {
                icon_button(ui, icons::BROADCAST, &remote).clicked()
            };
            if clicked {
                app.invoke(Command::RemoteHost);
            }
            if app.store.model().is_some() && controls::button(ui, icons::ARROW_LEFT, "Back to the text").clicked() {
                app.start.open = false;
            }
        });
    });
}

fn content(app: &mut App, ui: &mut Ui, models: &ModelsView, height: f32) {
    let three = ui.available_width() >= THREE;
    let loading = loading(app, ui);
    if three && height > 620.0 && !loading {
        ui.add_space(((height - 620.0) * 0.3).min(80.0));
    }
    let able = app.store.is_driver() && !loading;
    ui.add_enabled_ui(able, |ui| {
        if three {
            let width = (ui.available_width() - 24.0) / 3.0;
            let tall = 340.0;
            ui.horizontal_top(|ui| {
                for i in 0..3 {
                    let down = egui::Layout::top_down(egui::Align::Min);
                    ui.allocate_ui_with_layout(vec2(width, tall), down, |ui| {
                        ui.set_width(width);
                        cards::show(app, ui, models, i, tall);
                    });
                }
            });
        } else {
            for i in 0..3 {
                cards::show(app, ui, models, i, 0.0);
            }
        }
    });
    device(app, ui, models);
}

/// Progress of loading, or why it failed. True while something loads.
fn loading(app: &mut App, ui: &mut Ui) -> bool {
    let state = app.store.model_state().clone();
    match state {
        ModelState::Loading { name, job } => {
            let view = app.store.jobs.get(job).cloned();
            controls::card(ui, |ui| {
                ui.set_width(ui.available_width());
                let p = Palette::of(ui);
                ui.horizontal(|ui| {
                    ui.label(
                        RichText::new(icons::CLOUD_ARROW_DOWN)
                            .size(theme::TITLE)
                            .color(p.accent),
                    );
                    let what = view
                        .as_ref()
                        .map_or_else(|| format!("loading {name}"), |j| j.what.clone());
                    ui.label(RichText::new(capital(&what)).font(theme::strong()));
                    ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                        if controls::button(ui, icons::X, "Cancel").clicked() {
                            app.store.send(Request::CancelJob(job));
                        }
                        if let Some(j) = &view {
                            ui.label(RichText::new(progress_of(j)).font(theme::mono()).color(p.secondary));
                        }
                    });
                });
                let share = view.as_ref().map_or(0.0, |j| j.done as f32 / j.total.max(1) as f32);
                let width = ui.available_width();
                controls::bar(ui, vec2(width, 4.0), &[(share, p.accent)], "Loading");
            });
            view.is_none_or(|j| matches!(j.state, JobState::Queued | JobState::Running))
        }
        ModelState::Failed { name, error } => {
            failed_load(app, ui, &name, &error);
            false
        }
        _ => false,
    }
}

fn failed_load(app: &mut App, ui: &mut Ui, name: &str, error: &ErrorInfo) {
    ui.label(RichText::new(format!("{name} could not be loaded")).font(theme::strong()));
    let (_, _, mut cx) = app.parts();
    failed(&mut cx, ui, error);
}

/// Units done and to do, in words.
fn progress_of(job: &protocol::JobView) -> String {
    let (done, total) = if job.unit == "bytes" {
        (fmt::bytes(job.done).plain(), fmt::bytes(job.total).plain())
    } else {
        (fmt::count(job.done), format!("{} {}", fmt::count(job.total), job.unit))
    };
    match (job.total, job.unit.as_str()) {
        (0, "bytes") => done,
        (0, unit) => format!("{done} {unit}"),
        _ => format!("{done} of {total}"),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |c| c.to_uppercase().chain(chars).collect())
}

fn device(app: &mut App, ui: &mut Ui, models: &ModelsView) {
    let p = Palette::of(ui);
    let device = &models.device;
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 8.0;
        ui.label(RichText::new(icons::CPU).color(p.secondary));
        ui.label(&device.describe);
        if device.free_bytes > 0 {
            let free = format!("{} free", fmt::bytes(device.free_bytes).plain());
            ui.label(RichText::new(free).color(p.secondary));
        }
        if !device.why_not.is_empty() {
            let (short, long) = device.why_not.split_once(": ").unwrap_or((&device.why_not, ""));
            ui.label(RichText::new(format!("· {short}")).color(p.secondary));
            if !long.is_empty() && controls::link(ui, "why?").clicked() {
                app.start.why = !app.start.why;
            }
            if app.start.why {
                ui.label(RichText::new(long).color(p.secondary));
            }
        }
        ui.label(RichText::new("·").color(p.faint));
        if controls::link(ui, "Tour: 10 short steps").clicked() {
            app.invoke(Command::Tour);
            if app.store.model().is_none() {
                let said = "The tour starts once a model is open.";
                app.store.toasts.info(said, app.store.now);
            }
        }
    });
}

/// Opens a model; the state and a job follow.
fn open(cx: &mut Context<'_>, source: ModelSource, context: u64) {
    cx.send(Request::OpenModel { source, context });
}
