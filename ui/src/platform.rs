//! What the window around the interface can do: dialogs, files, full screen. Native window, Tauri and browsers differ
//! here and nowhere else.

#[cfg(target_arch = "wasm32")]
pub mod tauri;
#[cfg(target_arch = "wasm32")]
pub mod web;

use protocol::ThemeChoice;

/// What the window has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PlatformEvent {
    /// The user chose a folder or file of a model.
    Picked(String),
    /// A file was saved here (a path, or just the name where the browser decides).
    Saved(String),
    /// Something did not work, as a sentence.
    Failed(String),
    /// Files hover over the window (paths where known).
    Hover(Vec<String>),
    /// They left.
    Leave,
    /// Files were dropped; paths where known.
    Dropped(Vec<String>),
    /// The program was asked from outside to open a model.
    Open(String),
}

/// How a window gets to a host on another machine.
pub enum Reach {
    /// It goes there itself: the other host has a page of its own.
    Leaves,
    /// Through this.
    Through(crate::link::Dialer),
    /// It cannot; why.
    Not(String),
}

/// The window around the interface.
pub trait Platform {
    /// What happened since the last call.
    fn poll(&mut self) -> Vec<PlatformEvent>;
    /// Whether `pick_folder` and `pick_model` open dialogs here; else a path is typed.
    fn has_dialogs(&self) -> bool;
    /// Asks for a model's folder; [`PlatformEvent::Picked`] follows, or nothing.
    fn pick_folder(&mut self);
    /// Asks for a GGUF file; [`PlatformEvent::Picked`] follows, or nothing.
    fn pick_model(&mut self);
    /// Offers a file to save; [`PlatformEvent::Saved`] follows, or nothing.
    fn save(&mut self, name: &str, bytes: Vec<u8>);
    /// Colours of the window's frame.
    fn set_theme(&mut self, theme: ThemeChoice);
    /// Fills the display, or goes back.
    fn toggle_full_screen(&mut self, ctx: &egui::Context);
    /// Starts the interface anew, e.g. because the host is of another version. `None` where that is not possible.
    fn reload(&mut self) -> Option<()>;
    /// Whether frames of another host would come to this window; a browser opens the other host's page instead.
    fn carries_frames(&self) -> bool {
        true
    }
    /// The way to the host at `authority` (`HOST:PORT`) that this token lets in.
    fn reach(&mut self, authority: &str, token: &str) -> Reach;
    /// Whether the native window can be opened instead of this page.
    fn can_go_native(&self) -> bool {
        false
    }
    /// Opens the native window instead of this page.
    fn go_native(&mut self) {}
}

/// Files over a window and dropped on it, for platforms where egui hears of them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hovering(bool);

impl Hovering {
    /// What happened in this frame. In browsers files have names, not paths.
    pub fn look(&mut self, input: &egui::InputState) -> Vec<PlatformEvent> {
        let name = |path: &std::path::Path| path.to_string_lossy().into_owned();
        let hovered = &input.raw.hovered_files;
        let dropped: Vec<String> = input.raw.dropped_files.iter().map(|f| name(f.path())).collect();
        let was = std::mem::replace(&mut self.0, !hovered.is_empty());
        match (dropped.is_empty(), was, self.0) {
            (false, ..) => vec![PlatformEvent::Dropped(dropped)],
            (true, false, true) => {
                let names = hovered
                    .iter()
                    .map(|f| f.path.as_deref().map_or_else(|| f.mime.clone(), name));
                vec![PlatformEvent::Hover(names.collect())]
            }
            (true, true, false) => vec![PlatformEvent::Leave],
            _ => Vec::new(),
        }
    }
}

/// A window that can do nothing, for tests: it records what was asked of it.
#[derive(Clone, Default)]
pub struct NoPlatform(
    std::rc::Rc<std::cell::RefCell<Asked>>,
    std::rc::Rc<std::cell::RefCell<Option<Reach>>>,
);

/// What a [`NoPlatform`] was asked for, and what it will say.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Names and contents of files to save.
    pub saved: Vec<(String, Vec<u8>)>,
    /// Dialogs asked for.
    pub dialogs: Vec<&'static str>,
    /// Reloads asked for.
    pub reloads: usize,
    /// What the next poll says.
    pub events: Vec<PlatformEvent>,
    /// Hosts (address, token) it was asked to reach.
    pub reached: Vec<(String, String)>,
}

impl NoPlatform {
    /// What was asked so far.
    pub fn asked(&self) -> Asked {
        self.0.borrow().clone()
    }

    /// How the next host is reached; without it, none is.
    pub fn will_reach(&self, reach: Reach) {
        *self.1.borrow_mut() = Some(reach);
    }

    /// Lets the next poll say something.
    pub fn say(&self, event: PlatformEvent) {
        self.0.borrow_mut().events.push(event);
    }
}

impl Platform for NoPlatform {
    fn poll(&mut self) -> Vec<PlatformEvent> {
        std::mem::take(&mut self.0.borrow_mut().events)
    }

    fn has_dialogs(&self) -> bool {
        true
    }

    fn pick_folder(&mut self) {
        self.0.borrow_mut().dialogs.push("folder");
    }

    fn pick_model(&mut self) {
        self.0.borrow_mut().dialogs.push("model");
    }

    fn save(&mut self, name: &str, bytes: Vec<u8>) {
        let mut asked = self.0.borrow_mut();
        asked.events.push(PlatformEvent::Saved(name.to_string()));
        asked.saved.push((name.to_string(), bytes));
    }

    fn set_theme(&mut self, _theme: ThemeChoice) {}

    fn toggle_full_screen(&mut self, _ctx: &egui::Context) {
        self.0.borrow_mut().dialogs.push("full screen");
    }

    fn reach(&mut self, authority: &str, token: &str) -> Reach {
        let mut asked = self.0.borrow_mut();
        asked.reached.push((authority.to_string(), token.to_string()));
        let reach = self.1.borrow_mut().take();
        reach.unwrap_or_else(|| Reach::Not("This window can reach no other host.".into()))
    }

    fn reload(&mut self) -> Option<()> {
        self.0.borrow_mut().reloads += 1;
        Some(())
    }
}
