//! Carrying out what views and shortcuts asked for.

use protocol::{Reply, Request, ThemeChoice};

use super::history::Step;
use super::{After, App};
use crate::commands::{self, Command};
use crate::layout::Layout;
use crate::selection::Spot;
use crate::views::Action;

impl App {
    pub(super) fn perform(&mut self, ctx: &egui::Context) {
        // Actions may cause others; what they cause is done in the same frame.
        for _ in 0..8 {
            if self.actions.is_empty() {
                break;
            }
            for action in std::mem::take(&mut self.actions) {
                self.act(ctx, action);
            }
        }
    }

    fn act(&mut self, ctx: &egui::Context, action: Action) {
        let now = self.store.now;
        match action {
            Action::Send(request) => self.store.send(request),
            Action::Call(ticket, request) => self.store.call(request, ticket),
            Action::Ask(request, scope) => self.store.ask(request, scope),
            Action::Recipe(request) => {
                let before = self.store.recipe().map(|r| r.json.clone()).unwrap_or_default();
                self.call(request, After::Recipe(before));
            }
            Action::Run(command) => self.run(ctx, command),
            Action::Show(view) => {
                self.start.open = false;
                self.layout.show(view);
                // Small windows show one panel at a time.
                if self.narrow && view != crate::layout::RIGHT && self.layout.has(view) {
                    self.layout.full = Some(view.to_string());
                    self.region = super::Region::Centre;
                }
            }
            Action::Copy(text) => {
                ctx.copy_text(text);
                self.store.toasts.info("Copied", now);
            }
            Action::Save(name, bytes) => self.platform.save(&name, bytes),
            Action::SavePng(name, rect) => {
                let (shots, woken) = (self.shots.clone(), ctx.clone());
                ctx.request_screenshot(move |image| {
                    if let Ok(mut shots) = shots.lock() {
                        shots.push((name, rect, image));
                    }
                    woken.request_repaint();
                });
            }
            Action::Say(text) => self.store.toasts.info(text, now),
            Action::SayUndo(text, label, request) => self.store.toasts.undoable(text, label, request, now),
            Action::Error(error) => self.store.toasts.error(error, now),
            Action::Settings(settings) => self.keep_settings(*settings),
            Action::CloseToast(id) => self.store.toasts.close(id),
            Action::Reconnect => self.store.reconnect_now(),
        }
    }

    fn call(&mut self, request: Request, after: After) {
        let ticket = self.tickets.take();
        self.store.call(request, ticket);
        self.after.push((ticket, after));
    }

    pub(super) fn keep_settings(&mut self, settings: protocol::Settings) {
        self.store.settings = settings.clone();
        if self.store.is_driver() {
            self.store.send(Request::SetSettings(Box::new(settings)));
        }
    }

    /// Replies that something was waiting for.
    pub(super) fn replies(&mut self) {
        let now = self.store.now;
        for (ticket, after) in std::mem::take(&mut self.after) {
            match (self.store.outcome(ticket).cloned(), after) {
                (None, after) => self.after.push((ticket, after)),
                (Some(Err(error)), _) => self.store.toasts.error(error, now),
                (Some(Ok(Reply::File { name, bytes })), After::Save) => self.platform.save(&name, bytes),
                (Some(Ok(Reply::Recipe(recipe))), After::Recipe(before)) if before != recipe.json => {
                    self.history.push(
                        Step::Recipe {
                            before,
                            after: recipe.json,
                        },
                        now,
                    );
                }
                (Some(Ok(Reply::Text(text))), After::Report) => self.actions.push(Action::Copy(text)),
                _ => {}
            }
        }
    }

    fn run(&mut self, ctx: &egui::Context, command: Command) {
        let able = match command {
            Command::LocalHost if self.remote.at.is_none() => Err("this window works on this machine's host"),
            _ => commands::available(command, &self.store),
        };
        if let Err(why) = able {
            // Keys that do nothing now stay silent; a command chosen by name says why.
            if self.palette.ran(command) {
                self.store.toasts.info(format!("Not now: {why}"), self.store.now);
            }
            return;
        }
        match command {
            Command::Generate | Command::Regenerate | Command::Endless | Command::NewText | Command::NewChat => {
                let (views, _, mut cx) = self.parts();
                for slot in views.values_mut() {
                    if slot.broken.is_none() && slot.view.command(&mut cx, command) {
                        break;
                    }
                }
            }
            Command::Stop => self.store.send(Request::Stop),
            Command::CopyText => self.copy_text(ctx),
            Command::CopyCommand => {
                let line = self.store.text.as_ref().map(|t| t.view().command.clone());
                self.actions.extend(line.map(Action::Copy));
            }
            Command::ExportText => self.export("txt"),
            Command::ExportMarkdown => self.export("md"),
            Command::ExportJson => self.export("json"),
            Command::OpenModel => self.start.open = !self.start.open,
            Command::CloseModel => self.store.send(Request::CloseModel),
            Command::RestartEngine => self.store.send(Request::RestartEngine),
            Command::TakeOver => self.store.send(Request::TakeOver),
            Command::CopyReport => self.call(Request::About, After::Report),
            Command::Play | Command::Back | Command::Forward | Command::First | Command::Last => self.step(command),
            Command::Unlock => self.selection.unlock(),
            Command::Undo => self.undo(),
            Command::Redo => self.redo(),
            Command::FullScreen => self.platform.toggle_full_screen(ctx),
            _ => self.run_shown(command),
        }
    }

    /// Commands about what is shown.
    fn run_shown(&mut self, command: Command) {
        match command {
            Command::Workspace(workspace) => {
                self.start.open = false;
                self.layout.workspace = workspace;
                self.layout.full = None;
                self.region = super::Region::Centre;
            }
            Command::Palette => self.palette.toggle(),
            Command::Find => self.find(),
            Command::ToggleLeft => self.layout.left = !self.layout.left,
            Command::ToggleRight => self.layout.right = !self.layout.right,
            Command::ToggleBottom => self.layout.bottom = !self.layout.bottom,
            Command::ResetLayout => {
                let workspace = self.layout.workspace;
                let views = &self.views;
                self.layout = Layout::new(&|id| views.contains_key(id));
                self.layout.workspace = workspace;
            }
            Command::ToggleTheme => {
                let mut settings = self.store.settings.clone();
                settings.theme = match settings.theme {
                    ThemeChoice::Light => ThemeChoice::Dark,
                    _ => ThemeChoice::Light,
                };
                self.keep_settings(settings);
            }
            Command::ZoomIn => self.zoom(1.1),
            Command::ZoomOut => self.zoom(1.0 / 1.1),
            Command::ZoomReset => self.zoom(0.0),
            Command::Settings => self.windows.open(super::windows::Window::Settings),
            Command::Keyboard => self.windows.open(super::windows::Window::Keyboard),
            Command::About => self.windows.open(super::windows::Window::About),
            Command::RemoteHost => self.windows.open(super::windows::Window::Remote),
            Command::LocalHost => self.go_home(),
            Command::Tour => self.tour.start(),
            _ => {}
        }
    }

    fn zoom(&mut self, factor: f32) {
        let mut settings = self.store.settings.clone();
        let zoom = if factor == 0.0 { 1.0 } else { settings.zoom * factor };
        settings.zoom = ((zoom * 20.0).round() / 20.0).clamp(0.5, 3.0);
        self.keep_settings(settings);
    }

    fn export(&mut self, format: &str) {
        self.call(Request::ExportDoc { format: format.into() }, After::Save);
    }

    fn copy_text(&mut self, _ctx: &egui::Context) {
        let Some(text) = &self.store.text else { return };
        let separator = if text.view().info.kind == protocol::DocKind::Text {
            ""
        } else {
            "\n\n"
        };
        let parts: Vec<&str> = text.branch().map(|n| n.text.as_str()).collect();
        self.actions.push(Action::Copy(parts.join(separator)));
    }

    /// Moves the locked token.
    pub(super) fn step(&mut self, command: Command) {
        let Some((first, last)) = self.store.text.as_ref().and_then(|t| t.span()) else {
            return;
        };
        let at = self.selection.locked().token.unwrap_or(last);
        let to = match command {
            Command::Back => at.saturating_sub(1).max(first),
            Command::Forward => at + 1,
            Command::First => first,
            Command::Play => {
                self.scrubber
                    .toggle(self.selection.locked().token, first, last, &mut self.selection);
                return;
            }
            _ => {
                self.selection.follow_again();
                return;
            }
        };
        if to > last {
            self.selection.follow_again();
        } else {
            self.selection.lock(Spot::token(to));
        }
    }

    fn undo(&mut self) {
        let step = self.history.undo();
        self.say_step("Undone", step.as_ref());
        match step {
            Some(Step::Recipe { before, .. }) => self.store.send(Request::SetRecipe(before)),
            Some(Step::Layout { before, .. }) => self.put_layout(*before),
            Some(Step::Selection { before, .. }) => self.put_selection(before),
            None => {}
        }
    }

    fn redo(&mut self) {
        let step = self.history.redo();
        self.say_step("Done again", step.as_ref());
        match step {
            Some(Step::Recipe { after, .. }) => self.store.send(Request::SetRecipe(after)),
            Some(Step::Layout { after, .. }) => self.put_layout(*after),
            Some(Step::Selection { after, .. }) => self.put_selection(after),
            None => {}
        }
    }

    fn say_step(&mut self, verb: &str, step: Option<&Step>) {
        let said = step.map_or_else(
            || "Nothing to take back".to_string(),
            |s| format!("{verb}: {}", s.name()),
        );
        self.store.toasts.info(said, self.store.now);
    }

    fn put_layout(&mut self, layout: Layout) {
        self.layout = layout.clone();
        self.seen.layout = Some(layout);
        self.seen.layout_changed = Some(self.store.now);
    }

    fn put_selection(&mut self, spot: Spot) {
        self.selection.restore(spot);
        self.seen.locked = spot;
    }

    /// Ctrl+F: the left region, in its first view that can search.
    fn find(&mut self) {
        self.layout.left = true;
        self.region = super::Region::Left;
        for id in crate::layout::LEFT {
            if let Some(slot) = self.views.get_mut(id)
                && slot.view.find()
            {
                self.layout.left_tab = id.to_string();
                return;
            }
        }
    }

    /// Pictures that views asked for and that have been taken.
    pub(super) fn take_shots(&mut self, ctx: &egui::Context) {
        let taken = self
            .shots
            .lock()
            .map(|mut s| std::mem::take(&mut *s))
            .unwrap_or_default();
        for (name, rect, image) in taken {
            let part = image.region(&rect.intersect(ctx.content_rect()), Some(ctx.pixels_per_point()));
            match png_of(&part) {
                Ok(bytes) => self.platform.save(&name, bytes),
                Err(e) => self
                    .store
                    .toasts
                    .info(format!("The picture could not be written: {e}"), self.store.now),
            }
        }
    }
}

/// A picture as PNG.
fn png_of(image: &egui::ColorImage) -> Result<Vec<u8>, png::EncodingError> {
    let mut out = Vec::new();
    let [width, height] = image.size;
    let mut encoder = png::Encoder::new(&mut out, width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgba);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    let bytes: Vec<u8> = image.pixels.iter().flat_map(|p| p.to_array()).collect();
    writer.write_image_data(&bytes)?;
    drop(writer);
    Ok(out)
}
