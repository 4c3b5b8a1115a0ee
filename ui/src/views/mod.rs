//! The panels. One file or folder per view; a view reads the [`Store`] and the shared [`Selection`] and asks for
//! everything else by [`Action`]s.
//!
//! To add a view: implement [`View`], add its module below and one line to [`all`]. Where it stands is decided by
//! [`crate::layout`]; a view that no layout names is found in the View menu.

pub mod blocks;
pub mod compare;
pub mod explorer;
pub mod generate;
pub mod inspect;
pub mod telemetry;
pub mod token;

use protocol::{ErrorInfo, Request};

use crate::commands::Command;
use crate::icons;
use crate::selection::{Selection, Spot};
use crate::store::{Fetched, Query, Scope, Store, Ticket, Tickets};
use crate::theme::{self, Palette};

/// A panel.
pub trait View {
    /// Stable name, used in layouts: `generate`, `telemetry.speed`.
    fn id(&self) -> &'static str;
    /// Title for people.
    fn title(&self) -> &'static str;
    /// The panel without its title row. It owns the whole of `ui`'s rectangle; padding is its own affair.
    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui);
    /// Widgets at the right end of the title row, added right to left: legend, options.
    fn toolbar(&mut self, _cx: &mut Context<'_>, _ui: &mut egui::Ui) {}
    /// The user asked to find something in it (Ctrl+F). True if it has a search field and took the focus.
    fn find(&mut self) -> bool {
        false
    }
    /// A command of the registry that concerns it. True if it was carried out.
    fn command(&mut self, _cx: &mut Context<'_>, _command: Command) -> bool {
        false
    }
}

/// All views.
pub fn all() -> Vec<Box<dyn View>> {
    let mut all: Vec<Box<dyn View>> = vec![Box::<generate::Generate>::default(), Box::<token::TokenView>::default()];
    all.extend(blocks::views());
    all.extend(compare::views());
    all.extend(explorer::views());
    all.extend(inspect::views());
    all.extend(telemetry::views());
    all
}

/// What a view wants done.
#[derive(Debug)]
pub enum Action {
    /// Send a request; an error becomes a toast.
    Send(Request),
    /// Send a request and keep its outcome for [`Context::outcome`].
    Call(Ticket, Request),
    /// A cached answer is missing: sent by [`Context::fetch`].
    Ask(Request, Scope),
    /// Change the recipe in a way that undo takes back: sent by [`Context::edit_recipe`].
    Recipe(Request),
    /// Run a command of the registry.
    Run(Command),
    /// Show a view, bringing its workspace or tab to the front.
    Show(&'static str),
    /// Put text on the clipboard, and say so.
    Copy(String),
    /// Offer a file to save: name and content.
    Save(String, Vec<u8>),
    /// Save this part of the window as a PNG under this name.
    SavePng(String, egui::Rect),
    /// Say something at the bottom of the window.
    Say(String),
    /// Say something that can be taken back: sentence, label of the button, what it sends.
    SayUndo(String, &'static str, Request),
    /// Show an error.
    Error(ErrorInfo),
    /// Keep changed settings.
    Settings(Box<protocol::Settings>),
    /// Close a toast.
    CloseToast(u64),
    /// Dial now.
    Reconnect,
}

/// What a view gets in each frame.
pub struct Context<'a> {
    /// What the host said.
    pub store: &'a Store,
    /// The shared selection.
    pub selection: &'a mut Selection,
    /// Whether fades are wanted.
    pub motion: bool,
    /// Seconds since the program started.
    pub now: f64,
    pub(crate) actions: &'a mut Vec<Action>,
    pub(crate) tickets: &'a mut Tickets,
}

impl<'a> Context<'a> {
    /// Asks for something; it is done at the end of the frame.
    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    /// Sends a request; an error becomes a toast.
    pub fn send(&mut self, request: Request) {
        self.act(Action::Send(request));
    }

    /// Sends a request whose outcome the view wants to see.
    pub fn call(&mut self, request: Request) -> Ticket {
        let ticket = self.tickets.take();
        self.act(Action::Call(ticket, request));
        ticket
    }

    /// The outcome of a call; `None` while it is on the way.
    pub fn outcome(&self, ticket: Ticket) -> Option<&'a Result<protocol::Reply, ErrorInfo>> {
        self.store.outcome(ticket)
    }

    /// A cached answer; it is asked for when missing or no longer true.
    pub fn fetch<T>(&mut self, query: &Query<T>) -> Fetched<'a, T> {
        let (fetched, wanted) = self.store.lookup(query);
        if wanted {
            self.act(Action::Ask(query.request.clone(), query.scope));
        }
        fetched
    }

    /// Edits the recipe; undo takes it back.
    pub fn edit_recipe(&mut self, edits: Vec<protocol::Edit>) {
        self.act(Action::Recipe(Request::EditRecipe(edits)));
    }

    /// Puts a recipe in force; undo takes it back.
    pub fn set_recipe(&mut self, json: String) {
        self.act(Action::Recipe(Request::SetRecipe(json)));
    }

    /// The pointer is on this.
    pub fn hover(&mut self, spot: Spot) {
        self.selection.hover(spot);
    }

    /// What is highlighted.
    pub fn shown(&self) -> Spot {
        self.selection.shown()
    }

    /// Whether this client may change things.
    pub fn can_edit(&self) -> bool {
        self.store.is_driver()
    }
}

/// An empty panel: what would be here, and the one action that fills it. True if that was clicked.
pub fn empty(ui: &mut egui::Ui, icon: &str, what: &str, action: Option<&str>) -> bool {
    let p = Palette::of(ui);
    let mut clicked = false;
    centred(ui, 96.0, |ui| {
        ui.label(egui::RichText::new(icon).size(theme::FIGURE).color(p.faint));
        ui.add_space(theme::GRID);
        ui.add(egui::Label::new(egui::RichText::new(what).color(p.secondary)).wrap());
        if let Some(action) = action {
            ui.add_space(2.0 * theme::GRID);
            clicked = ui.button(action).clicked();
        }
    });
    clicked
}

/// A panel whose content is on the way.
pub fn loading(ui: &mut egui::Ui, what: &str) {
    let p = Palette::of(ui);
    centred(ui, 48.0, |ui| {
        ui.label(
            egui::RichText::new(icons::CIRCLE_NOTCH)
                .size(theme::FIGURE)
                .color(p.faint),
        );
        ui.add_space(theme::GRID);
        ui.label(egui::RichText::new(what).color(p.secondary));
    });
}

/// A failed panel or card: what happened, what to do, "copy details". The actions are done by the caller's context.
pub fn failed(cx: &mut Context<'_>, ui: &mut egui::Ui, error: &ErrorInfo) {
    let p = Palette::of(ui);
    egui::Frame::new()
        .fill(theme::mix(p.panel, p.bad, 0.08))
        .stroke(egui::Stroke::new(theme::LINE, theme::mix(p.line, p.bad, 0.5)))
        .corner_radius(theme::RADIUS)
        .inner_margin(theme::PAD)
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.horizontal_top(|ui| {
                ui.label(
                    egui::RichText::new(icons::WARNING_CIRCLE)
                        .size(theme::TITLE)
                        .color(p.bad),
                );
                ui.vertical(|ui| {
                    ui.add(egui::Label::new(&error.what).wrap().selectable(true));
                    if !error.remedy.is_empty() {
                        let remedy = egui::RichText::new(&error.remedy).color(p.secondary);
                        ui.add(egui::Label::new(remedy).wrap().selectable(true));
                    }
                    ui.add_space(theme::GRID);
                    if ui.small_button("Copy details").clicked() {
                        cx.act(Action::Copy(details_of(error)));
                    }
                });
            });
        });
}

/// An error as text for a report.
pub fn details_of(error: &ErrorInfo) -> String {
    let mut s = error.to_string();
    if !error.details.is_empty() {
        s.push_str("\n\n");
        s.push_str(&error.details);
    }
    s
}

fn centred(ui: &mut egui::Ui, height: f32, content: impl FnOnce(&mut egui::Ui)) {
    let room = ui.available_size();
    let width = (room.x - 2.0 * theme::PAD).clamp(40.0, 360.0);
    let top = ((room.y - height) * 0.45).max(theme::PAD);
    ui.vertical_centered(|ui| {
        ui.add_space(top);
        ui.set_max_width(width);
        content(ui);
    });
}
