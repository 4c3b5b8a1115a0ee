//! What the desktop shell (`src-tauri`) and the native window (`ui/native`) share. No interface code, no engine: the
//! things a desktop program needs around them.

mod crash;
mod dialogs;
mod display;
mod single;
mod window_state;

pub use crash::{CrashReport, install_panic_hook, last_report};
pub use dialogs::{DialogError, pick_file, pick_folder, pick_save, write_file};
pub use display::{Display, NoDisplay, display};
pub use single::{Message, Seat, SeatError, SeatHolder, take_seat};
pub use window_state::{Area, WindowState};

use std::path::PathBuf;

/// Name of the program's folders.
pub const APP: &str = "model1-explorer";

/// Folder for small settings, `~/.config/model1-explorer` or as the system has it; `None` without a home.
pub fn config_dir() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", APP).map(|d| d.config_dir().to_path_buf())
}

/// Folder for logs and reports, `~/.local/state/model1-explorer` or as the system has it; `None` without a home.
pub fn state_dir() -> Option<PathBuf> {
    directories::ProjectDirs::from("", "", APP).map(|d| {
        d.state_dir()
            .map_or_else(|| d.data_local_dir().to_path_buf(), PathBuf::from)
    })
}

/// Folder of the lock that keeps a second instance from starting: the session's own if there is one.
pub fn seat_dir() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|v| !v.is_empty()) {
        Some(folder) => PathBuf::from(folder).join(APP),
        None => state_dir().unwrap_or_else(std::env::temp_dir).join("seat"),
    }
}
