//! Carrying out what views and shortcuts asked for.

use super::App;
use crate::commands::{self, Command};
use crate::views::Action;

impl App {
    pub(super) fn perform(&mut self, ctx: &egui::Context) {
        // Actions may cause others; what they cause is done in the same frame.
        while !self.actions.is_empty() {
            for action in std::mem::take(&mut self.actions) {
                self.act(ctx, action);
            }
        }
    }

    fn act(&mut self, ctx: &egui::Context, action: Action) {
        let now = self.store.now;
        match action {
            Action::Send(request) | Action::Recipe(request) => self.store.send(request),
            Action::Call(ticket, request) => self.store.call(request, ticket),
            Action::Ask(request, scope) => self.store.ask(request, scope),
            Action::Run(command) => self.run(command),
            Action::Show(view) => self.layout.show(view),
            Action::Copy(text) => {
                ctx.copy_text(text);
                self.store.toasts.info("Copied", now);
            }
            Action::Say(text) => self.store.toasts.info(text, now),
            Action::SayUndo(text, label, request) => self.store.toasts.undoable(text, label, request, now),
            Action::Error(error) => self.store.toasts.error(error, now),
            Action::CloseToast(id) => self.store.toasts.close(id),
            Action::Reconnect => self.store.reconnect_now(),
            Action::Save(name, bytes) => self.platform.save(&name, bytes),
            Action::SavePng(..) | Action::Settings(_) => {}
        }
    }

    fn run(&mut self, command: Command) {
        if commands::available(command, &self.store).is_err() {
            return;
        }
        match command {
            Command::Workspace(workspace) => {
                self.layout.workspace = workspace;
                self.layout.full = None;
            }
            Command::ToggleLeft => self.layout.left = !self.layout.left,
            Command::ToggleRight => self.layout.right = !self.layout.right,
            Command::ToggleBottom => self.layout.bottom = !self.layout.bottom,
            Command::Unlock => self.selection.unlock(),
            _ => {}
        }
    }
}
