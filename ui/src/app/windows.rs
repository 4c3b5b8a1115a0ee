//! Settings, keyboard, about; and the pages that stand in for what cannot be shown.

use egui::{RichText, Ui, vec2};
use protocol::{Settings, ThemeChoice};

use super::App;
use crate::commands::{self, COMMANDS, Command, Group};
use crate::icons;
use crate::store::{Connection, Fetched, Query};
use crate::theme::{self, Palette};
use crate::views::{Action, Context};
use crate::widgets::controls::{self, icon_button, section, segmented, switch};

/// Which window is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Window {
    /// Settings.
    Settings,
    /// Shortcuts.
    Keyboard,
    /// About.
    About,
    /// A host on another machine.
    Remote,
}

impl Window {
    fn title(self) -> &'static str {
        match self {
            Window::Settings => "Settings",
            Window::Keyboard => "Keyboard",
            Window::About => "About MODEL1 Explorer",
            Window::Remote => "Remote host",
        }
    }
}

/// State of the windows.
#[derive(Debug, Default)]
pub(super) struct Windows {
    open: Option<Window>,
}

impl Windows {
    pub(super) fn open(&mut self, window: Window) {
        self.open = if self.open == Some(window) { None } else { Some(window) };
    }

    pub(super) fn close(&mut self) -> bool {
        self.open.take().is_some()
    }
}

pub(super) fn show(app: &mut App, ctx: &egui::Context) {
    let Some(window) = app.windows.open else { return };
    let screen = ctx.content_rect();
    let width = (screen.width() - 32.0).min(if window == Window::Keyboard { 640.0 } else { 460.0 });
    let p = Palette::of_context(ctx);
    let frame = egui::Frame::new()
        .fill(p.panel)
        .stroke(egui::Stroke::new(theme::LINE, p.line))
        .corner_radius(theme::RADIUS + 2)
        .inner_margin(16);
    let modal = egui::Modal::new(egui::Id::unique("window"))
        .frame(frame)
        .backdrop_color(p.canvas.gamma_multiply(0.6));
    let (mut close, mut done) = (false, false);
    let room = (screen.height() - 110.0).max(40.0);
    let response = modal.show(ctx, |ui| {
        ui.set_width(width - 32.0);
        ui.horizontal(|ui| {
            ui.label(RichText::new(window.title()).font(theme::title()));
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                close = icon_button(ui, icons::X, "Close").clicked();
            });
        });
        ui.add_space(8.0);
        egui::ScrollArea::vertical()
            .max_height(room)
            .min_scrolled_height(room)
            .show(ui, |ui| match window {
                Window::Settings => settings(app, ui),
                Window::Keyboard => keyboard(ui),
                Window::About => about(app, ui),
                Window::Remote => done = super::remote::show(app, ui),
            });
    });
    if close || done || response.should_close() {
        app.windows.close();
    }
}

fn settings(app: &mut App, ui: &mut Ui) {
    let before = app.store.settings.clone();
    let mut s = before.clone();
    section(ui, "Looks");
    controls::row(ui, "Colours", |ui| {
        let choices = [("", "System", ""), (icons::MOON, "Dark", ""), (icons::SUN, "Light", "")];
        let all = [ThemeChoice::System, ThemeChoice::Dark, ThemeChoice::Light];
        let on = all.iter().position(|t| *t == s.theme).unwrap_or(0);
        if let Some(i) = segmented(ui, &choices, on) {
            s.theme = all[i];
        }
    });
    controls::row(ui, "Size", |ui| {
        if icon_button(ui, icons::PLUS, "Larger").clicked() {
            s.zoom = (s.zoom + 0.1).min(3.0);
        }
        ui.label(RichText::new(format!("{:.0}%", s.zoom * 100.0)).font(theme::mono()));
        if icon_button(ui, icons::MINUS, "Smaller").clicked() {
            s.zoom = (s.zoom - 0.1).max(0.5);
        }
    });
    controls::row(ui, "Less motion", |ui| switch(ui, &mut s.reduced_motion, "Less motion"));
    section(ui, "Engine");
    let most = app.store.model().map_or(131_072, |m| m.facts.max_context);
    number(
        ui,
        "Threads",
        "0 = all cores; used when a model is loaded next",
        &mut s.threads,
        0..=256,
    );
    let mut context = s.context as u32;
    let help = format!(
        "tokens; 0 = the checkpoint's own ({}), as far as it fits",
        crate::fmt::count(most)
    );
    number(ui, "Context of new sessions", &help, &mut context, 0..=1_048_576);
    s.context = u64::from(context);
    section(ui, "Telemetry");
    number(
        ui,
        "Alternatives per token",
        "kept with their probabilities",
        &mut s.logprobs,
        0..=20,
    );
    number(
        ui,
        "Steps kept",
        "older ones are dropped",
        &mut s.telemetry_steps,
        256..=131_072,
    );
    footer(app, ui, &mut s);
    if s != before {
        app.actions.push(Action::Settings(Box::new(s)));
    }
}

fn footer(app: &mut App, ui: &mut Ui, s: &mut Settings) {
    ui.add_space(8.0);
    ui.horizontal(|ui| {
        if controls::button(ui, icons::SQUARES_FOUR, "Reset the layout").clicked() {
            app.invoke(Command::ResetLayout);
        }
        if controls::button(ui, icons::ARROW_COUNTER_CLOCKWISE, "All settings back").clicked() {
            let Settings { tour_seen, layout, .. } = s.clone();
            *s = Settings {
                tour_seen,
                layout,
                ..Settings::default()
            };
        }
    });
}

fn number(ui: &mut Ui, name: &str, help: &str, value: &mut u32, range: std::ops::RangeInclusive<u32>) {
    let p = Palette::of(ui);
    controls::row(ui, name, |ui| {
        ui.add_sized([72.0, theme::ROW], egui::DragValue::new(value).range(range))
            .accessible_name(name);
    });
    ui.label(RichText::new(help).font(theme::caption()).color(p.faint));
}

fn keyboard(ui: &mut Ui) {
    let p = Palette::of(ui);
    for group in Group::ALL {
        let entries: Vec<_> = COMMANDS
            .iter()
            .filter(|e| e.group == group && e.keys.is_some())
            .collect();
        if entries.is_empty() {
            continue;
        }
        section(ui, group.title());
        for entry in entries {
            controls::row(ui, entry.title, |ui| {
                if let Some(keys) = entry.keys {
                    let text = ui.ctx().format_shortcut(&keys);
                    ui.label(RichText::new(text).font(theme::mono()).color(p.text));
                }
            });
        }
    }
    section(ui, "Anywhere");
    for (what, keys) in [
        ("Lock what the pointer is on", "click"),
        ("Unlock the selection, close what is open, stop writing", "Esc"),
        ("Branch at a token, copy it", "right click"),
        ("Enlarge a panel", "double click its title"),
        ("Select text; a word; a message", "drag; double; triple click"),
    ] {
        controls::row(ui, what, |ui| {
            ui.label(RichText::new(keys).font(theme::mono()).color(p.text));
        });
    }
}

fn about(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    let host = app.store.host.as_ref();
    let version = host.map_or_else(|| env!("CARGO_PKG_VERSION").to_string(), |h| h.program.clone());
    ui.label(format!("Version {version}"));
    ui.add(
        egui::Label::new(
            RichText::new("Runs MODEL1-style language models and shows what each idea costs and gains.")
                .color(p.secondary),
        )
        .wrap(),
    );
    ui.add_space(8.0);
    let query = Query::about();
    let report = {
        let (_, _, mut cx) = app.parts();
        match cx.fetch(&query) {
            Fetched::Ready(text) | Fetched::Stale(text) => text.clone(),
            Fetched::Failed(e) => e.to_string(),
            Fetched::Loading => "Asking the host …".into(),
        }
    };
    egui::Frame::new()
        .fill(p.canvas)
        .corner_radius(theme::RADIUS)
        .inner_margin(10)
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.add(
                egui::Label::new(RichText::new(report.trim_end()).font(theme::mono()))
                    .wrap()
                    .selectable(true),
            );
        });
    ui.add_space(8.0);
    if controls::button(ui, icons::COPY, "Copy a report").clicked() {
        app.actions.push(Action::Copy(report));
    }
    section(ui, "Licences");
    let licences = "The program: MIT or Apache-2.0. Inter and JetBrains Mono: SIL Open Font License 1.1. Phosphor icons: MIT. \
                    Viridis: CC0.";
    ui.add(egui::Label::new(RichText::new(licences).font(theme::caption()).color(p.secondary)).wrap());
}

/// The host is of another version, or will not have us: its sentence and a way on.
pub(super) fn refused(app: &mut App, ui: &mut Ui) {
    let Connection::Refused(sentence) = app.store.connection().clone() else {
        return;
    };
    let p = Palette::of(ui);
    page(ui, |ui| {
        ui.label(RichText::new(icons::PLUG).size(theme::FIGURE).color(p.warn));
        ui.add_space(8.0);
        ui.label(RichText::new("The host did not accept this window").font(theme::title()));
        ui.add_space(4.0);
        ui.add(
            egui::Label::new(RichText::new(&sentence).color(p.secondary))
                .wrap()
                .selectable(true),
        );
        ui.add_space(12.0);
        ui.horizontal(|ui| {
            if controls::primary(ui, icons::ARROW_CLOCKWISE, "Reload").clicked() && app.platform.reload().is_none() {
                app.actions.push(Action::Reconnect);
            }
            if controls::button(ui, icons::COPY, "Copy the message").clicked() {
                app.actions.push(Action::Copy(sentence));
            }
            if app.remote.at.is_some() && controls::button(ui, icons::ARROW_LEFT, "Back to this machine").clicked() {
                app.invoke(Command::LocalHost);
            }
        });
    });
}

/// A panel that broke: the report, and a restart of the panel alone. True if it is to start anew.
pub(super) fn broken_view(cx: &mut Context<'_>, ui: &mut Ui, title: &str, report: &str) -> bool {
    let p = Palette::of(ui);
    let mut again = false;
    page(ui, |ui| {
        ui.label(RichText::new(icons::BUG).size(theme::FIGURE).color(p.bad));
        ui.add_space(4.0);
        ui.add(egui::Label::new(RichText::new(format!("The panel \"{title}\" broke")).font(theme::strong())).wrap());
        ui.add(egui::Label::new(RichText::new("A fault in the program. Your text is safe.").color(p.secondary)).wrap());
        ui.add(egui::Label::new(RichText::new(report).font(theme::mono()).color(p.secondary)).wrap());
        ui.add_space(8.0);
        ui.horizontal(|ui| {
            again = controls::button(ui, icons::ARROW_CLOCKWISE, "Restart the panel").clicked();
            if controls::button(ui, icons::COPY, "Copy report").clicked() {
                let version = env!("CARGO_PKG_VERSION");
                cx.act(Action::Copy(format!(
                    "MODEL1 Explorer {version}\npanel: {title}\n{report}"
                )));
            }
        });
    });
    again
}

fn page(ui: &mut Ui, content: impl FnOnce(&mut Ui)) {
    let room = ui.available_size();
    let width = (room.x - 2.0 * theme::PAD).min(440.0);
    let left = ((room.x - width) / 2.0).max(theme::PAD);
    let top = (room.y * 0.3 - 40.0).max(theme::PAD);
    let rect = egui::Rect::from_min_size(ui.max_rect().min + vec2(left, top), vec2(width, room.y - top));
    ui.scope_builder(egui::UiBuilder::new().max_rect(rect), |ui| {
        egui::ScrollArea::vertical().show(ui, content);
    });
}

/// The title of a command, for texts that mention it.
pub(super) fn keys_of(ctx: &egui::Context, command: Command) -> String {
    commands::find(command)
        .and_then(|e| e.keys)
        .map(|k| ctx.format_shortcut(&k))
        .unwrap_or_default()
}
