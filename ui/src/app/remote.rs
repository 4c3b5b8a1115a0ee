//! Working on a host that runs on another machine: a form for its address, and the way back.

use egui::{RichText, Ui};
use protocol::{ErrorInfo, Reply, Request};

use super::App;
use crate::icons;
use crate::link::Dialer;
use crate::platform::Reach;
use crate::store::Ticket;
use crate::theme::{self, Palette};
use crate::views::Action;
use crate::widgets::controls;

/// The form, and where the window is connected now.
#[derive(Default)]
pub(super) struct Remote {
    address: String,
    token: String,
    asked: Option<Ticket>,
    failed: Option<ErrorInfo>,
    /// `HOST:PORT` of the other host, while it is used.
    pub(super) at: Option<String>,
    /// The way back to the host of this machine.
    home: Option<Dialer>,
}

/// The form. True if the window is to be closed.
pub(super) fn show(app: &mut App, ui: &mut Ui) -> bool {
    let p = Palette::of(ui);
    if let Some(at) = app.remote.at.clone() {
        let words = format!("This window works on the host at {at}.");
        ui.add(egui::Label::new(words).wrap());
        ui.add_space(8.0);
        return controls::primary(ui, icons::ARROW_LEFT, "Back to this machine").clicked() && {
            app.go_home();
            true
        };
    }
    let told = outcome(app);
    if let Some(Ok((authority, token))) = told {
        return app.go_to(&authority, &token);
    }
    if let Some(Err(e)) = told {
        app.remote.failed = Some(e);
    }
    let words = "A host that runs on another machine: ./run --serve --listen ADDRESS prints its link there.";
    ui.add(egui::Label::new(RichText::new(words).color(p.secondary)).wrap());
    ui.add_space(8.0);
    let busy = app.remote.asked.is_some();
    let mut enter = false;
    ui.add_enabled_ui(!busy, |ui| {
        let (address, token) = (&mut app.remote.address, &mut app.remote.token);
        let mut changed = false;
        for (name, hint, text) in [
            ("Address", "HOST:PORT, or the whole link", address),
            ("Token", "what follows /enter/ in the link", token),
        ] {
            ui.label(RichText::new(name).font(theme::caption()).color(p.secondary));
            let field = egui::TextEdit::singleline(text)
                .hint_text(hint)
                .font(theme::mono())
                .desired_width(f32::INFINITY);
            let response = ui.add(field).accessible_name(name);
            changed |= response.changed();
            enter |= response.lost_focus() && ui.input(|i| i.key_pressed(egui::Key::Enter));
            ui.add_space(4.0);
        }
        if changed {
            app.remote.failed = None;
        }
    });
    if let Some(e) = app.remote.failed.clone() {
        problem(app, ui, &e);
    }
    ui.add_space(4.0);
    ui.horizontal(|ui| {
        let able = !busy && !app.remote.address.trim().is_empty();
        ui.add_enabled_ui(able, |ui| {
            if controls::primary(ui, icons::BROADCAST, "Connect").clicked() || (enter && able) {
                app.ask_remote();
            }
        });
        if busy {
            ui.spinner();
            ui.label(RichText::new("Looking for it …").color(p.secondary));
        }
    });
    ui.add_space(8.0);
    let words = "The connection is not encrypted: whoever listens on the way reads your texts. Through \
                 ssh -L 8080:127.0.0.1:PORT it is; the address is 127.0.0.1:8080 then.";
    ui.add(egui::Label::new(RichText::new(words).font(theme::caption()).color(p.faint)).wrap());
    false
}

/// What was found, once: (address, token).
fn outcome(app: &mut App) -> Option<Result<(String, String), ErrorInfo>> {
    let outcome = app.store.outcome(app.remote.asked?)?.clone();
    app.remote.asked = None;
    match outcome {
        Ok(Reply::RemoteHost(host)) => Some(Ok((host.authority, host.token))),
        Ok(_) => None,
        Err(e) => Some(Err(e)),
    }
}

fn problem(app: &mut App, ui: &mut Ui, e: &ErrorInfo) {
    let p = Palette::of(ui);
    ui.add(
        egui::Label::new(RichText::new(&e.what).color(p.bad))
            .wrap()
            .selectable(true),
    );
    ui.add(
        egui::Label::new(RichText::new(&e.remedy).color(p.secondary))
            .wrap()
            .selectable(true),
    );
    if !e.details.is_empty() && controls::link(ui, "copy details").clicked() {
        app.actions.push(Action::Copy(format!("{e}\n{}", e.details)));
    }
}

impl App {
    fn ask_remote(&mut self) {
        let ticket = self.tickets.take();
        self.remote.failed = None;
        self.remote.asked = Some(ticket);
        let request = Request::LookAtHost {
            address: self.remote.address.clone(),
            token: self.remote.token.clone(),
            same_build: self.platform.carries_frames(),
        };
        self.store.call(request, ticket);
    }

    /// Leaves for another host. True if that worked.
    fn go_to(&mut self, authority: &str, token: &str) -> bool {
        match self.platform.reach(authority, token) {
            Reach::Leaves => {}
            Reach::Through(dialer) => {
                let home = self.store.redial(dialer);
                self.remote.home.get_or_insert(home);
                self.remote.at = Some(authority.to_string());
                self.arrived();
            }
            Reach::Not(why) => {
                let error = ErrorInfo::new(protocol::ErrorKind::Refused, why);
                self.remote.failed = Some(error);
                return false;
            }
        }
        self.remote.token.clear();
        true
    }

    /// Comes back to the host of this machine.
    pub(super) fn go_home(&mut self) {
        if let Some(home) = self.remote.home.take() {
            drop(self.store.redial(home));
            self.remote.at = None;
            self.arrived();
        }
    }

    /// Nothing of the former host may be shown or undone on the new one.
    fn arrived(&mut self) {
        self.history = super::history::History::default();
        self.selection = crate::selection::Selection::new();
        self.seen.welcomed = false;
        self.seen.settings = None;
        self.start = super::start::Start::default();
        self.after.clear();
    }
}
