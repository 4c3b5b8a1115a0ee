//! Everything the page may ask of the shell. The list is the one in `build.rs`; `capabilities/main.json` permits each
//! by name.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use desktop::{Message, SeatHolder};
use serde::Serialize;
use tauri::ipc::{Channel, InvokeBody, InvokeResponseBody, Request};
use tauri::{AppHandle, State, Theme, WebviewWindow, Wry};

use crate::link::Link;

/// What the shell tells the page without being asked, as JSON.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ShellEvent {
    /// Files are being dragged over the window.
    Hover {
        /// Full paths.
        paths: Vec<String>,
    },
    /// They left again.
    Leave,
    /// They were dropped.
    Drop {
        /// Full paths.
        paths: Vec<String>,
    },
    /// The program was started again with a model to open.
    Open {
        /// Full path.
        path: String,
    },
}

/// State of the shell.
pub struct Shell {
    events: Mutex<Option<Channel<ShellEvent>>>,
    seat: Mutex<Option<SeatHolder>>,
}

impl Shell {
    /// A shell that holds the place of the only instance.
    pub fn new(seat: SeatHolder) -> Self {
        Self {
            events: Mutex::new(None),
            seat: Mutex::new(Some(seat)),
        }
    }

    /// Tells the page, if there is one that listens.
    pub fn tell(&self, event: ShellEvent) {
        if let Some(channel) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            // A page that is going away misses what no longer concerns it.
            let _ = channel.send(event);
        }
    }

    /// A second instance was started and handed over its message.
    pub fn opened_elsewhere(&self, message: Message) {
        if let Some(path) = message.open {
            self.tell(ShellEvent::Open { path });
        }
    }
}

/// All commands.
pub fn handler() -> impl Fn(tauri::ipc::Invoke<Wry>) -> bool + Send + Sync + 'static {
    tauri::generate_handler![
        host_connect,
        host_send,
        shell_events,
        pick_folder,
        pick_model,
        save_file,
        set_theme,
        toggle_fullscreen,
        open_native
    ]
}

/// A host on another machine.
#[derive(Clone, Debug, serde::Deserialize)]
struct RemoteHost {
    /// `HOST:PORT`.
    authority: String,
    /// Token of its link.
    token: String,
}

/// Opens a connection to the host, or to one on another machine; its frames arrive in `frames` as raw bytes, and at the end the reason why it ended
/// as a string. A page that was loaded anew replaces the connection of the one before.
#[tauri::command(async)]
fn host_connect(
    link: State<'_, Link>,
    frames: Channel<InvokeResponseBody>,
    remote: Option<RemoteHost>,
) -> Result<(), String> {
    let remote = remote.as_ref().map(|r| (r.authority.as_str(), r.token.as_str()));
    link.connect(frames, remote).map_err(|e| format!("{e:#}"))
}

/// Sends one frame to the host; the body is its bytes. An empty body says that the page has read one frame of the host:
/// a page that says so gets no more than it can read.
#[tauri::command]
fn host_send(link: State<'_, Link>, request: Request<'_>) -> Result<(), String> {
    match request.body() {
        InvokeBody::Raw(frame) => link.send(frame).map_err(|e| format!("{e:#}")),
        InvokeBody::Json(_) => Err("host_send takes the bytes of one frame, not JSON".to_string()),
    }
}

/// From now on the page hears of dragged files and of models to open.
#[tauri::command]
fn shell_events(shell: State<'_, Shell>, events: Channel<ShellEvent>) {
    *shell.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
}

/// Lets the user choose a model's folder; `null` = cancelled.
#[tauri::command]
async fn pick_folder() -> Result<Option<String>, String> {
    name(desktop::pick_folder("Open a model: a folder with config.json and safetensors").await)
}

/// Lets the user choose a GGUF file; `null` = cancelled.
#[tauri::command]
async fn pick_model() -> Result<Option<String>, String> {
    name(
        desktop::pick_file(
            "Open a model (a GGUF file) or a recorded run",
            "GGUF models, recorded runs",
            &["gguf", "m1run"],
        )
        .await,
    )
}

/// Lets the user choose where the body goes, under the name in the header `name` (percent-encoded), and writes it
/// there. Answers the path, or `null` = cancelled.
#[tauri::command]
async fn save_file(request: Request<'_>) -> Result<Option<String>, String> {
    let InvokeBody::Raw(bytes) = request.body() else {
        return Err("save_file takes the bytes of the file, not JSON".to_string());
    };
    let wanted = request
        .headers()
        .get("name")
        .and_then(|n| n.to_str().ok())
        .map(unescaped)
        .unwrap_or_default();
    let Some(path) = desktop::pick_save("Save", &wanted).await.map_err(|e| e.to_string())? else {
        return Ok(None);
    };
    desktop::write_file(&path, bytes).map_err(|e| e.to_string())?;
    Ok(Some(path.to_string_lossy().into_owned()))
}

fn name(path: Result<Option<PathBuf>, desktop::DialogError>) -> Result<Option<String>, String> {
    path.map(|p| p.map(|p| p.to_string_lossy().into_owned()))
        .map_err(|e| e.to_string())
}

/// Text of a percent-encoded header; what is not encoded rightly stays as it is.
fn unescaped(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = text
            .get(at + 1..at + 3)
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], code) {
            (b'%', Some(code)) => {
                out.push(code);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Colours of the window's frame: `dark`, `light`, anything else = the system's.
#[tauri::command]
fn set_theme(window: WebviewWindow, theme: String) -> Result<(), String> {
    let theme = match theme.as_str() {
        "dark" => Some(Theme::Dark),
        "light" => Some(Theme::Light),
        _ => None,
    };
    window.set_theme(theme).map_err(|e| e.to_string())
}

/// Fills the display, or goes back. Answers whether it now fills it.
#[tauri::command]
fn toggle_fullscreen(window: WebviewWindow) -> Result<bool, String> {
    let full = !window.is_fullscreen().map_err(|e| e.to_string())?;
    window.set_fullscreen(full).map_err(|e| e.to_string())?;
    Ok(full)
}

/// Ends this program and opens the native window instead: the page measured that it draws slowly here.
#[tauri::command]
fn open_native(app: AppHandle, shell: State<'_, Shell>, link: State<'_, Link>) -> Result<(), String> {
    let own = std::env::current_exe().map_err(|e| e.to_string())?;
    let native = own.with_file_name(format!("model1-window{}", std::env::consts::EXE_SUFFIX));
    if !native.is_file() {
        return Err("The native window is not built yet. Close this one and start ./run --native".to_string());
    }
    // The texts are written and the place is free before the other program looks.
    link.stop();
    let seat = shell.seat.lock().unwrap_or_else(PoisonError::into_inner).take();
    drop(seat);
    Command::new(&native)
        .spawn()
        .map_err(|e| format!("{}: {e}", native.display()))?;
    app.exit(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_from_their_header() {
        assert_eq!(unescaped("story%20%C3%A4.txt"), "story ä.txt");
        assert_eq!(unescaped("100%"), "100%");
        assert_eq!(unescaped("%zz%4"), "%zz%4");
        assert_eq!(unescaped("a%E4b"), "a\u{fffd}b");
        assert_eq!(unescaped(""), "");
        assert_eq!(unescaped("%ä"), "%ä");
    }

    #[test]
    fn every_command_is_listed_and_permitted() {
        let build = include_str!("../build.rs");
        let capability = include_str!("../capabilities/main.json");
        let source = include_str!("commands.rs");
        let commands: Vec<&str> = source
            .split("\n#[tauri::command")
            .skip(1)
            .filter_map(|s| s.split("fn ").nth(1)?.split('(').next())
            .filter(|s| s.chars().all(|c| c.is_ascii_lowercase() || c == '_'))
            .collect();
        assert_eq!(commands.len(), 9, "{commands:?}");
        for command in &commands {
            assert!(
                build.contains(&format!("\"{command}\"")),
                "{command} is missing in build.rs"
            );
            let permission = format!("\"allow-{}\"", command.replace('_', "-"));
            assert!(
                capability.contains(&permission),
                "{permission} is missing in capabilities/main.json"
            );
        }
        assert_eq!(
            capability.matches("\"allow-").count(),
            commands.len(),
            "a permission without a command"
        );
        assert_eq!(
            capability.matches("core:").count(),
            0,
            "the page gets nothing of Tauri's own"
        );
    }
}
