//! What the native window does for the interface: dialogs, files, full screen, colours of its frame.

use std::sync::mpsc::{Receiver, Sender};

use desktop::{DialogError, Message};
use egui::{SystemTheme, ViewportCommand};
use protocol::ThemeChoice;
use ui::platform::{Hovering, Platform, PlatformEvent, Reach};

/// What arrives from other threads.
pub enum Heard {
    /// For the interface.
    Event(PlatformEvent),
    /// The program was started once more.
    Elsewhere(Message),
}

/// The native window.
pub struct Native {
    ctx: egui::Context,
    tell: Sender<Heard>,
    told: Receiver<Heard>,
    hovering: Hovering,
}

impl Native {
    /// The window of this context; `told` is the other end of `tell`.
    pub fn new(ctx: egui::Context, tell: Sender<Heard>, told: Receiver<Heard>) -> Self {
        Self {
            ctx,
            tell,
            told,
            hovering: Hovering::default(),
        }
    }

    /// Does something slow beside the interface and tells it the outcome; `None` = nothing happened.
    fn beside(&self, work: impl FnOnce() -> Result<Option<PlatformEvent>, DialogError> + Send + 'static) {
        let (ctx, tell) = (self.ctx.clone(), self.tell.clone());
        let spawned = std::thread::Builder::new().name("dialog".into()).spawn(move || {
            let event = work().unwrap_or_else(|e| Some(PlatformEvent::Failed(e.to_string())));
            if let Some(event) = event {
                // The window may be gone meanwhile.
                let _ = tell.send(Heard::Event(event));
                ctx.request_repaint();
            }
        });
        if let Err(e) = spawned {
            let _ = self.tell.send(Heard::Event(PlatformEvent::Failed(format!(
                "no thread for a dialog: {e}"
            ))));
        }
    }
}

fn name(path: std::path::PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

impl Platform for Native {
    fn poll(&mut self) -> Vec<PlatformEvent> {
        let mut events = Vec::new();
        for heard in self.told.try_iter() {
            match heard {
                Heard::Event(event) => events.push(event),
                Heard::Elsewhere(message) => {
                    self.ctx.send_viewport_cmd(ViewportCommand::Minimized(false));
                    self.ctx.send_viewport_cmd(ViewportCommand::Focus);
                    events.extend(message.open.map(PlatformEvent::Open));
                }
            }
        }
        let hovering = &mut self.hovering;
        events.extend(self.ctx.input(|i| hovering.look(i)));
        events
    }

    fn reach(&mut self, authority: &str, token: &str) -> Reach {
        Reach::Through(crate::link::remote_dialer(authority, token))
    }

    fn has_dialogs(&self) -> bool {
        true
    }

    fn pick_folder(&mut self) {
        self.beside(|| {
            let picked = pollster::block_on(desktop::pick_folder("Open a model: a folder with config.json"))?;
            Ok(picked.map(name).map(PlatformEvent::Picked))
        });
    }

    fn pick_model(&mut self) {
        self.beside(|| {
            let picked = pollster::block_on(desktop::pick_file(
                "Open a model (a GGUF file) or a recorded run",
                "GGUF models, recorded runs",
                &["gguf", "m1run"],
            ))?;
            Ok(picked.map(name).map(PlatformEvent::Picked))
        });
    }

    fn save(&mut self, file: &str, bytes: Vec<u8>) {
        let file = file.to_string();
        self.beside(move || {
            let Some(path) = pollster::block_on(desktop::pick_save("Save", &file))? else {
                return Ok(None);
            };
            desktop::write_file(&path, &bytes)?;
            Ok(Some(PlatformEvent::Saved(name(path))))
        });
    }

    fn set_theme(&mut self, theme: ThemeChoice) {
        self.ctx.send_viewport_cmd(ViewportCommand::SetTheme(match theme {
            ThemeChoice::System => SystemTheme::SystemDefault,
            ThemeChoice::Dark => SystemTheme::Dark,
            ThemeChoice::Light => SystemTheme::Light,
        }));
    }

    fn toggle_full_screen(&mut self, ctx: &egui::Context) {
        let full = ctx.input(|i| i.viewport().fullscreen.unwrap_or(false));
        ctx.send_viewport_cmd(ViewportCommand::Fullscreen(!full));
    }

    fn reload(&mut self) -> Option<()> {
        None
    }
}
