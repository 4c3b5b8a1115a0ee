//! The window: how it opens, and what is kept of it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use desktop::{Area, WindowState};
use tauri::window::Color;
use tauri::{
    App, AppHandle, DragDropEvent, LogicalPosition, LogicalSize, Manager, WebviewUrl, WebviewWindow,
    WebviewWindowBuilder, WindowEvent,
};

use crate::commands::{Shell, ShellEvent};

/// Label of the only window; capabilities name it.
pub const LABEL: &str = "main";

/// Opens the window where it was when it was closed.
pub fn open(app: &App) -> tauri::Result<()> {
    let displays: Vec<Area> = app
        .available_monitors()?
        .iter()
        .map(|m| {
            let at: LogicalPosition<f64> = m.position().to_logical(m.scale_factor());
            let size: LogicalSize<f64> = m.size().to_logical(m.scale_factor());
            Area {
                x: at.x,
                y: at.y,
                width: size.width,
                height: size.height,
            }
        })
        .collect();
    let file = WindowState::file();
    let state = file
        .as_deref()
        .map_or_else(WindowState::default, WindowState::load)
        .fitted(&displays);

    // With MODEL1_TEST set the page offers its widget tree to test drivers.
    let page = if std::env::var_os("MODEL1_TEST").is_some() {
        "index.html?test"
    } else {
        "index.html"
    };
    let mut builder = WebviewWindowBuilder::new(app, LABEL, WebviewUrl::App(page.into()))
        .title("MODEL1 Explorer")
        .inner_size(state.width, state.height)
        .min_inner_size(400.0, 300.0)
        .maximized(state.maximized)
        // What is seen before the page's first frame: the canvas of the dark theme, not white.
        .background_color(Color(0x0e, 0x11, 0x16, 0xff))
        // The page shows texts of models. It never leads anywhere else.
        .on_navigation(|url| matches!(url.scheme(), "tauri") || url.host_str() == Some("tauri.localhost"))
        .on_new_window(|_, _| tauri::webview::NewWindowResponse::Deny)
        .enable_clipboard_access();
    builder = match state.position {
        Some((x, y)) => builder.position(x, y),
        None => builder.center(),
    };
    let window = builder.build()?;
    #[cfg(target_os = "linux")]
    crate::webkit::show_compositions(&window)?;

    let kept = Keeper::new(state, file);
    let events = window.clone();
    window.on_window_event(move |event| match event {
        WindowEvent::Resized(_) | WindowEvent::Moved(_) => kept.look(&events),
        WindowEvent::CloseRequested { .. } | WindowEvent::Destroyed => kept.write(),
        WindowEvent::DragDrop(drag) => {
            if let Some(told) = dragged(drag) {
                events.state::<Shell>().tell(told);
            }
        }
        _ => {}
    });
    Ok(())
}

/// What the page is told of a drag; moving over it is not news.
fn dragged(event: &DragDropEvent) -> Option<ShellEvent> {
    let names = |paths: &[std::path::PathBuf]| paths.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    match event {
        DragDropEvent::Enter { paths, .. } => Some(ShellEvent::Hover { paths: names(paths) }),
        DragDropEvent::Drop { paths, .. } => Some(ShellEvent::Drop { paths: names(paths) }),
        DragDropEvent::Leave => Some(ShellEvent::Leave),
        _ => None,
    }
}

/// Brings the window to the front.
pub fn to_front(app: &AppHandle) {
    if let Some(window) = app.get_webview_window(LABEL) {
        // Best effort: a window manager may refuse, and nothing follows from that.
        let _ = window.unminimize();
        let _ = window.set_focus();
    }
}

/// Follows the window's place and size and writes them, at most once a second and when it closes.
struct Keeper {
    file: Option<std::path::PathBuf>,
    state: Mutex<(WindowState, Instant)>,
}

/// Between two writes while the window is dragged about.
const REST: Duration = Duration::from_secs(1);

impl Keeper {
    fn new(state: WindowState, file: Option<std::path::PathBuf>) -> Self {
        Self {
            file,
            state: Mutex::new((state, Instant::now())),
        }
    }

    fn look(&self, window: &WebviewWindow) {
        let Ok(mut guard) = self.state.lock() else { return };
        let (state, written) = &mut *guard;
        if window.is_fullscreen().unwrap_or(false) {
            return;
        }
        state.maximized = window.is_maximized().unwrap_or(false);
        let scale = window.scale_factor().unwrap_or(1.0);
        // Place and size of the window when it is not maximised are what it goes back to.
        if !state.maximized {
            if let Ok(size) = window.inner_size() {
                let size: LogicalSize<f64> = size.to_logical(scale);
                if size.width >= 1.0 && size.height >= 1.0 {
                    (state.width, state.height) = (size.width, size.height);
                }
            }
            if let Ok(at) = window.outer_position() {
                let at: LogicalPosition<f64> = at.to_logical(scale);
                state.position = Some((at.x, at.y));
            }
        }
        if written.elapsed() > REST {
            *written = Instant::now();
            self.save(state);
        }
    }

    fn write(&self) {
        if let Ok(guard) = self.state.lock() {
            self.save(&guard.0);
        }
    }

    fn save(&self, state: &WindowState) {
        if let Some(file) = &self.file
            && let Err(e) = state.save(file)
        {
            eprintln!("warning: the window's place could not be kept: {}: {e}", file.display());
        }
    }
}
