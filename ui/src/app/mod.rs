//! The window: top bar, left, centre, right, bottom, and what floats above them.

mod act;
mod centre;
mod composing;
mod fonts;
mod history;
mod palette;
mod remote;
mod scrubber;
mod side;
mod start;
mod toasts;
mod top;
mod tour;
mod windows;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use protocol::ThemeChoice;

use crate::commands::{self, Command};
use crate::layout::Layout;
use crate::link::Dialer;
use crate::platform::{Platform, PlatformEvent};
use crate::selection::{Selection, Spot};
use crate::store::{Connection, Store, Ticket, Tickets};
use crate::theme::{self, Palette};
use crate::views::{Action, Context, View};

/// Views by name.
pub(crate) type Views = BTreeMap<&'static str, Slot>;

/// A view, and what is left of it after it broke.
pub(crate) struct Slot {
    view: Box<dyn View>,
    broken: Option<String>,
}

/// What a reply is waited for.
enum After {
    /// A file to save.
    Save,
    /// A recipe that undo takes back to this one.
    Recipe(String),
    /// The report to copy.
    Report,
}

/// The part that is shown where there is room for one only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Region {
    Left,
    #[default]
    Centre,
    Right,
}

/// Width in points below which one region is shown at a time.
const NARROW: f32 = 760.0;
/// Height below which the scrubber goes.
const LOW: f32 = 360.0;

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
    after: Vec<(Ticket, After)>,
    platform: Box<dyn Platform>,
    history: history::History,
    seen: Seen,
    region: Region,
    narrow: bool,
    scrubber: scrubber::Scrubber,
    palette: palette::PaletteWindow,
    start: start::Start,
    windows: windows::Windows,
    tour: tour::Tour,
    remote: remote::Remote,
    fonts: fonts::Fonts,
    anchors: BTreeMap<&'static str, egui::Rect>,
    shots: Shots,
    hovering: bool,
}

/// Pictures taken for views: name, part of the window, the whole window.
type Shots = Arc<Mutex<Vec<(String, egui::Rect, Arc<egui::ColorImage>)>>>;

/// What the last frame left, to notice changes.
#[derive(Default)]
struct Seen {
    layout: Option<Layout>,
    locked: Spot,
    saved_layout: String,
    layout_changed: Option<f64>,
    settings: Option<(ThemeChoice, u32, bool)>,
    welcomed: bool,
    /// A text field had the focus.
    in_field: bool,
}

impl App {
    /// A program that reaches its host through `dialer`. Installs fonts and colours into `ctx`; `client` (`browser`,
    /// `window`, `tauri`) goes into the host's log.
    pub fn new(ctx: &egui::Context, dialer: Dialer, platform: Box<dyn Platform>, client: &str) -> Self {
        theme::install(ctx);
        ctx.add_plugin(composing::Keys::default());
        ctx.options_mut(|o| o.zoom_with_keyboard = false);
        let views: Views = crate::views::all()
            .into_iter()
            .map(|view| (view.id(), Slot { view, broken: None }))
            .collect();
        Self {
            store: Store::new(dialer, client),
            selection: Selection::new(),
            layout: Layout::new(&|id| views.contains_key(id)),
            views,
            actions: Vec::new(),
            tickets: Tickets::default(),
            after: Vec::new(),
            platform,
            history: history::History::default(),
            seen: Seen::default(),
            region: Region::default(),
            narrow: false,
            scrubber: scrubber::Scrubber::default(),
            palette: palette::PaletteWindow::default(),
            start: start::Start::default(),
            windows: windows::Windows::default(),
            tour: tour::Tour::default(),
            remote: remote::Remote::default(),
            fonts: fonts::Fonts::default(),
            anchors: BTreeMap::new(),
            shots: Shots::default(),
            hovering: false,
        }
    }

    /// Families loaded from the system for scripts that the bundled fonts lack, and characters drawn as boxes because no
    /// installed font has them (one a script).
    pub fn system_fonts(&self) -> (Vec<&str>, &[char]) {
        (self.fonts.families().collect(), self.fonts.boxes())
    }

    /// Runs a command of the registry as if a key had been pressed.
    pub fn invoke(&mut self, command: Command) {
        self.actions.push(Action::Run(command));
    }

    /// Draws one frame into the whole of `ui`.
    pub fn frame(&mut self, ui: &mut egui::Ui) {
        let ctx = ui.ctx().clone();
        let now = ctx.input(|i| i.time);
        self.store.pump(&ctx, now);
        self.platform_events();
        self.follow_settings(&ctx);
        self.replies();
        for command in commands::pressed(&ctx) {
            self.actions.push(Action::Run(command));
        }
        self.escape(&ctx);
        self.take_shots(&ctx);
        let p = Palette::of(ui);
        ui.painter().rect_filled(ui.max_rect(), 0.0, p.canvas);
        if matches!(self.store.connection(), Connection::Refused(_)) {
            windows::refused(self, ui);
        } else if self.store.model().is_some() && !self.start.open {
            self.regions(ui);
        } else {
            top::strips(self, ui);
            start::show(self, ui);
        }
        palette::show(self, &ctx);
        windows::show(self, &ctx);
        tour::show(self, &ctx);
        toasts::show(self, &ctx);
        self.drop_target(&ctx);
        self.fonts.look(&ctx, &mut self.store, now);
        self.perform(&ctx);
        self.track(&ctx, now);
        if self.selection.end_frame(self.store.latest_token()) {
            ctx.request_repaint();
        }
    }

    fn regions(&mut self, ui: &mut egui::Ui) {
        let size = ui.available_size();
        let narrow = size.x < NARROW;
        self.narrow = narrow;
        top::show(self, ui, narrow);
        top::strips(self, ui);
        if self.layout.bottom && size.y >= LOW {
            scrubber::show(self, ui);
        }
        if narrow {
            match self.region {
                Region::Left => side::left_content(self, ui),
                Region::Centre => centre::show(self, ui),
                Region::Right => side::right_content(self, ui),
            }
            return;
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
    fn parts(&mut self) -> (&mut Views, &mut Layout, Context<'_>) {
        let context = Context {
            store: &self.store,
            selection: &mut self.selection,
            motion: !self.store.settings.reduced_motion,
            now: self.store.now,
            actions: &mut self.actions,
            tickets: &mut self.tickets,
        };
        (&mut self.views, &mut self.layout, context)
    }

    /// Puts settings in force that came from the host or were just changed.
    fn follow_settings(&mut self, ctx: &egui::Context) {
        let s = &self.store.settings;
        let now = (s.theme, s.zoom.to_bits(), s.reduced_motion);
        if self.store.host.is_none() || self.seen.settings == Some(now) {
            return;
        }
        self.seen.settings = Some(now);
        ctx.set_theme(match s.theme {
            ThemeChoice::System => egui::ThemePreference::System,
            ThemeChoice::Dark => egui::ThemePreference::Dark,
            ThemeChoice::Light => egui::ThemePreference::Light,
        });
        self.platform.set_theme(s.theme);
        ctx.set_zoom_factor(s.zoom.clamp(0.5, 3.0));
        theme::set_motion(ctx, !s.reduced_motion);
        if !self.seen.welcomed {
            self.seen.welcomed = true;
            let views = &self.views;
            if let Some(layout) = Layout::load(&s.layout, &|id| views.contains_key(id)) {
                self.layout = layout;
            }
            self.seen.saved_layout = self.layout.save();
            if !s.tour_seen {
                self.tour.offer();
            }
        }
    }

    fn platform_events(&mut self) {
        for event in self.platform.poll() {
            let now = self.store.now;
            match event {
                PlatformEvent::Picked(path) | PlatformEvent::Open(path) => self.choose(path),
                PlatformEvent::Saved(name) => self.store.toasts.info(format!("Saved {name}"), now),
                PlatformEvent::Failed(sentence) => {
                    let error = protocol::ErrorInfo::new(protocol::ErrorKind::Resource, sentence);
                    self.store.toasts.error(error, now);
                }
                PlatformEvent::Hover(_) => self.hovering = true,
                PlatformEvent::Leave => self.hovering = false,
                PlatformEvent::Dropped(paths) => {
                    self.hovering = false;
                    self.dropped(paths);
                }
            }
        }
    }

    /// A model's path: its card shows what it takes. A recorded run takes nothing and is shown at once.
    pub(super) fn choose(&mut self, path: String) {
        if !start::is_run(&path) {
            return self.start.choose_path(path);
        }
        self.start.open = false;
        let source = protocol::ModelSource::Path(path);
        self.store.send(protocol::Request::OpenModel { source, context: 0 });
    }

    fn dropped(&mut self, paths: Vec<String>) {
        let Some(path) = paths.into_iter().next() else { return };
        let full = path.starts_with('/') || path.get(1..3) == Some(":\\") || path.starts_with("\\\\");
        if full {
            self.choose(path);
        } else {
            let said = "A browser does not tell where a dropped file lies. Type its path, or use the desktop window.";
            self.start.open = true;
            self.store.toasts.info(said, self.store.now);
        }
    }

    /// Files hover over the window: it says what dropping does.
    fn drop_target(&self, ctx: &egui::Context) {
        if !self.hovering {
            return;
        }
        let p = Palette::of_context(ctx);
        let layer = egui::LayerId::new(egui::Order::Foreground, egui::Id::unique("drop target"));
        let painter = ctx.layer_painter(layer);
        let rect = ctx.content_rect();
        painter.rect_filled(rect, 0, p.canvas.gamma_multiply(0.85));
        let frame = rect.shrink(16.0);
        painter.rect_stroke(
            frame,
            theme::RADIUS + 2,
            egui::Stroke::new(2.0, p.accent),
            egui::StrokeKind::Inside,
        );
        let words = format!(
            "{}  Drop a model's folder or GGUF file to open it",
            crate::icons::FOLDER_OPEN
        );
        painter.text(
            rect.center(),
            egui::Align2::CENTER_CENTER,
            words,
            theme::title(),
            p.text,
        );
    }

    /// Esc goes to the innermost thing that can use it: popups and fields first (egui's own), then windows, the
    /// running text, the selection.
    fn escape(&mut self, ctx: &egui::Context) {
        let pressed = ctx.input(|i| i.key_pressed(egui::Key::Escape));
        if !pressed || egui::Popup::is_any_open(ctx) {
            return;
        }
        if self.palette.close() || self.windows.close() || self.tour.close() {
            return;
        }
        if self.start.open && self.store.model().is_some() {
            self.start.open = false;
        } else if self.store.writing().is_some() {
            self.actions.push(Action::Run(Command::Stop));
        } else if self.seen.in_field {
            // The field gave up the focus: that is what the key did.
        } else if self.layout.full.is_some() {
            self.layout.full = None;
        } else {
            self.selection.unlock();
        }
    }

    /// Remembers what changed in this frame: for undo, and to keep the layout.
    fn track(&mut self, ctx: &egui::Context, now: f64) {
        self.seen.in_field = ctx.text_edit_focused();
        let dragging = ctx.input(|i| i.pointer.any_down());
        let locked = self.selection.locked();
        if locked != self.seen.locked && !dragging {
            let before = std::mem::replace(&mut self.seen.locked, locked);
            self.history
                .push(history::Step::Selection { before, after: locked }, now);
        }
        if !dragging && self.seen.layout.as_ref() != Some(&self.layout) {
            let before = self.seen.layout.replace(self.layout.clone());
            if let Some(before) = before {
                let step = history::Step::Layout {
                    before: Box::new(before),
                    after: Box::new(self.layout.clone()),
                };
                self.history.push(step, now);
                self.seen.layout_changed = Some(now);
            }
        }
        self.keep_layout(ctx, now);
    }

    /// Sends a changed layout to the host once it has rested.
    fn keep_layout(&mut self, ctx: &egui::Context, now: f64) {
        const REST: f64 = 2.0;
        let Some(changed) = self.seen.layout_changed else {
            return;
        };
        let wait = changed + REST - now;
        if wait > 0.0 {
            ctx.request_repaint_after_secs(wait as f32);
            return;
        }
        self.seen.layout_changed = None;
        let json = self.layout.save();
        if json != self.seen.saved_layout && self.store.is_driver() {
            self.seen.saved_layout.clone_from(&json);
            self.store.settings.layout = json;
            self.store
                .send(protocol::Request::SetSettings(Box::new(self.store.settings.clone())));
        }
    }
}

impl Slot {
    /// Draws the view; one that panics is replaced by a page with a report, the rest of the window goes on.
    fn show(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if let Some(report) = &self.broken {
            if windows::broken_view(cx, ui, self.view.title(), report) {
                self.broken = None;
            }
            return;
        }
        let view = &mut self.view;
        guarded(&mut self.broken, || view.ui(cx, ui));
    }
}

/// Runs `draw`; a panic becomes a report. In browsers a panic ends the program instead, and its page shows the report.
fn guarded(broken: &mut Option<String>, draw: impl FnOnce()) {
    #[cfg(not(target_arch = "wasm32"))]
    if let Err(cause) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(draw)) {
        let said = cause
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| cause.downcast_ref::<&str>().map(|s| (*s).to_string()))
            .unwrap_or_else(|| "a panic without a sentence".into());
        *broken = Some(said);
    }
    #[cfg(target_arch = "wasm32")]
    {
        let _ = broken;
        draw();
    }
}

impl eframe::App for App {
    fn ui(&mut self, ui: &mut egui::Ui, _frame: &mut eframe::Frame) {
        self.frame(ui);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::platform::NoPlatform;
    use crate::testing::Scene;

    struct Breaks;

    impl View for Breaks {
        fn id(&self) -> &'static str {
            "generate"
        }

        fn title(&self) -> &'static str {
            "Text"
        }

        fn ui(&mut self, _cx: &mut Context<'_>, _ui: &mut egui::Ui) {
            panic!("index 7 is out of range");
        }
    }

    #[test]
    fn a_view_that_breaks_leaves_the_window_standing() {
        let ctx = egui::Context::default();
        ctx.enable_accesskit();
        let scene = Scene::finished();
        let mut app = App::new(&ctx, scene.dialer(), Box::new(NoPlatform::default()), "test");
        let broken = Slot {
            view: Box::new(Breaks),
            broken: None,
        };
        app.views.insert("generate", broken);
        let mut said = String::new();
        for _ in 0..6 {
            let input = egui::RawInput {
                screen_rect: Some(egui::Rect::from_min_size(egui::Pos2::ZERO, egui::vec2(1280.0, 800.0))),
                ..Default::default()
            };
            let mut output = ctx.run_ui(input, |ui| app.frame(ui));
            output.textures_delta.clear();
            said = format!("{:?}", output.platform_output.accesskit_update);
        }
        assert_eq!(app.views["generate"].broken.as_deref(), Some("index 7 is out of range"));
        for part in [
            "The panel",
            "broke",
            "index 7 is out of range",
            "Restart the panel",
            "Copy report",
            "token 310 / 310",
        ] {
            assert!(said.contains(part), "{part}");
        }
    }
}
