//! The window: how it opens, what is kept of it, the interface inside.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use desktop::{APP, WindowState};
use host::Host;

use crate::platform::{Heard, Native};
use crate::{ICON, link};

/// Opens the window and draws the interface until it is closed.
pub fn run(host: Arc<Host>, tell: Sender<Heard>, told: Receiver<Heard>) -> Result<()> {
    let file = WindowState::file();
    let state = file.as_deref().map_or_else(WindowState::default, WindowState::load);
    eframe::run_native(
        APP,
        options(viewport(&state)),
        Box::new(move |cc| {
            let ctx = cc.egui_ctx.clone();
            let platform = Box::new(Native::new(ctx.clone(), tell, told));
            let app = ui::App::new(&ctx, link::dialer(host), platform, "window");
            Ok(Box::new(Window {
                app,
                state,
                file,
                written: Instant::now(),
                fitted: false,
            }))
        }),
    )
    .map_err(explained)
}

/// Settings of every window of this program.
pub fn options(viewport: egui::ViewportBuilder) -> eframe::NativeOptions {
    eframe::NativeOptions {
        viewport,
        renderer: eframe::Renderer::Glow,
        centered: true,
        persist_window: false,
        ..Default::default()
    }
}

/// Why there is no window, and what to do.
pub fn explained(e: eframe::Error) -> anyhow::Error {
    anyhow!(
        "the native window could not be opened: {e}. It needs OpenGL 2.1 or OpenGL ES 2; where there is no driver for \
         it, LIBGL_ALWAYS_SOFTWARE=1 draws in software, and ./run --browser needs neither"
    )
}

fn viewport(state: &WindowState) -> egui::ViewportBuilder {
    let mut builder = egui::ViewportBuilder::default()
        .with_title("MODEL1 Explorer")
        .with_app_id(APP)
        .with_inner_size([state.width as f32, state.height as f32])
        .with_min_inner_size([400.0, 300.0])
        .with_maximized(state.maximized)
        .with_drag_and_drop(true);
    if let Some((x, y)) = state.position {
        builder = builder.with_position([x as f32, y as f32]);
    }
    // The picture is compiled in; without it the window is as good.
    if let Ok(icon) = eframe::icon_data::from_png_bytes(ICON) {
        builder = builder.with_icon(icon);
    }
    builder
}

/// The interface, and what is kept of its window.
struct Window {
    app: ui::App,
    state: WindowState,
    file: Option<PathBuf>,
    written: Instant,
    fitted: bool,
}

/// Between two writes while the window is dragged about.
const REST: Duration = Duration::from_secs(1);

impl eframe::App for Window {
    fn ui(&mut self, ui: &mut egui::Ui, frame: &mut eframe::Frame) {
        self.follow(ui.ctx());
        self.app.ui(ui, frame);
    }

    fn clear_color(&self, visuals: &egui::Visuals) -> [f32; 4] {
        visuals.panel_fill.to_normalized_gamma_f32()
    }

    fn on_exit(&mut self, _gl: Option<&eframe::glow::Context>) {
        self.save();
    }
}

impl Window {
    /// Notes place and size, and writes them when they have changed.
    fn follow(&mut self, ctx: &egui::Context) {
        let info = ctx.input(|i| i.viewport().clone());
        if !self.fitted {
            self.fitted = true;
            self.fit(ctx, &info);
        }
        if info.fullscreen == Some(true) || info.minimized == Some(true) {
            return;
        }
        let mut now = WindowState {
            maximized: info.maximized.unwrap_or(false),
            ..self.state
        };
        // Place and size of the window when it is not maximised are what it goes back to.
        if !now.maximized {
            let size = info.inner_rect.map_or_else(|| ctx.content_rect().size(), |r| r.size());
            let points = f64::from(ctx.zoom_factor());
            (now.width, now.height) = (f64::from(size.x) * points, f64::from(size.y) * points);
            let place = |r: egui::Rect| (f64::from(r.min.x) * points, f64::from(r.min.y) * points);
            now.position = info.outer_rect.map(place).or(now.position);
        }
        if now != self.state {
            self.state = now;
            if self.written.elapsed() > REST {
                self.save();
            }
        }
    }

    /// The window was as large as it is on another display: it shrinks to this one.
    fn fit(&self, ctx: &egui::Context, info: &egui::ViewportInfo) {
        if let Some(display) = info.monitor_size.filter(|d| d.x >= 400.0 && d.y >= 300.0)
            && let Some(rect) = info.inner_rect
            && (rect.width() > display.x || rect.height() > display.y)
        {
            ctx.send_viewport_cmd(egui::ViewportCommand::InnerSize(rect.size().min(display)));
        }
    }

    fn save(&mut self) {
        self.written = Instant::now();
        if let Some(file) = &self.file
            && let Err(e) = self.state.save(file)
        {
            eprintln!("warning: the window's place could not be kept: {}: {e}", file.display());
        }
    }
}
