//! The window: top bar, left, centre, right, bottom, and what floats above them.

mod act;
mod centre;
mod scrubber;
mod side;
mod top;

use std::collections::BTreeMap;

use crate::layout::Layout;
use crate::link::Dialer;
use crate::platform::Platform;
use crate::selection::Selection;
use crate::store::{Store, Tickets};
use crate::theme::{self, Palette};
use crate::views::{Action, Context, View};

/// Views by name.
pub(crate) type Views = BTreeMap<&'static str, Box<dyn View>>;

/// The program.
pub struct App {
    /// What the host said.
    pub store: Store,
    /// The shared selection.
    pub selection: Selection,
    /// Where views stand.
    pub layout: Layout,
    views: Views,
    actions: Vec<Action>,
    tickets: Tickets,
    scrubber: scrubber::Scrubber,
    platform: Box<dyn Platform>,
}

impl App {
    /// A program that reaches its host through `dialer`. Installs fonts and colours into `ctx`; `client` (`browser`,
    /// `window`, `tauri`) goes into the host's log.
    pub fn new(ctx: &egui::Context, dialer: Dialer, platform: Box<dyn Platform>, client: &str) -> Self {
        theme::install(ctx);
        let views: Views = crate::views::all().into_iter().map(|v| (v.id(), v)).collect();
        Self {
            store: Store::new(dialer, client),
            selection: Selection::new(),
            layout: Layout::new(&|id| views.contains_key(id)),
            views,
            actions: Vec::new(),
            tickets: Tickets::default(),
            scrubber: scrubber::Scrubber::default(),
            platform,
        }
    }

    /// Draws one frame into the whole of `ui`.
    pub fn frame(&mut self, ui: &mut egui::Ui) {
        let ctx = ui.ctx().clone();
        let now = ctx.input(|i| i.time);
        self.store.pump(&ctx, now);
        for command in crate::commands::pressed(&ctx) {
            self.actions.push(Action::Run(command));
        }
        let p = Palette::of(ui);
        ui.painter().rect_filled(ui.max_rect(), 0.0, p.canvas);
        if self.store.model().is_some() {
            self.regions(ui);
        }
        self.perform(&ctx);
        if self.selection.end_frame(self.store.latest_token()) {
            ctx.request_repaint();
        }
    }

    /// Runs a command in the next frame, as if its shortcut had been pressed.
    pub fn invoke(&mut self, command: crate::commands::Command) {
        self.actions.push(Action::Run(command));
    }

    fn regions(&mut self, ui: &mut egui::Ui) {
        top::show(self, ui);
        if self.layout.bottom {
            scrubber::show(self, ui);
        }
        if self.layout.left {
            side::left(self, ui);
        }
        if self.layout.right {
            side::right(self, ui);
        }
        centre::show(self, ui);
    }

    /// The views and a context for them, borrowed apart.
    fn parts(&mut self, now: f64) -> (&mut Views, &mut Layout, Context<'_>) {
        let context = Context {
            store: &self.store,
            selection: &mut self.selection,
            motion: !self.store.settings.reduced_motion,
            now,
            actions: &mut self.actions,
            tickets: &mut self.tickets,
        };
        (&mut self.views, &mut self.layout, context)
    }
}

impl eframe::App for App {
    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.frame(ui);
    }
}
