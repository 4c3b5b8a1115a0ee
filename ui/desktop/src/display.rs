//! Is there a display to open a window on?

use std::fmt;
use std::path::{Path, PathBuf};

/// The display a window would open on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Display {
    /// A Wayland compositor.
    Wayland,
    /// An X server.
    X11,
    /// A system that always has one.
    Own,
}

/// Why no window can open here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoDisplay(String);

impl fmt::Display for NoDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}. Start MODEL1 Explorer from a desktop session, or serve it to a browser with ./run --browser",
            self.0
        )
    }
}

impl std::error::Error for NoDisplay {}

/// The display of this session. Toolkits end the process where there is none, so it is asked first.
///
/// # Errors
/// The sentence says what is not there.
pub fn display() -> Result<Display, NoDisplay> {
    if cfg!(any(target_os = "macos", target_os = "windows")) {
        return Ok(Display::Own);
    }
    let var = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    find(
        var("WAYLAND_DISPLAY").as_deref(),
        var("DISPLAY").as_deref(),
        var("XDG_RUNTIME_DIR").map(PathBuf::from).as_deref(),
        Path::new("/tmp/.X11-unix"),
    )
}

fn find(
    wayland: Option<&str>,
    x11: Option<&str>,
    runtime_dir: Option<&Path>,
    x11_sockets: &Path,
) -> Result<Display, NoDisplay> {
    let mut problem = "DISPLAY and WAYLAND_DISPLAY are not set: there is no display here".to_string();
    if let Some(name) = wayland {
        let socket = match runtime_dir {
            Some(folder) => folder.join(name),
            None => PathBuf::from(name),
        };
        if socket.exists() {
            return Ok(Display::Wayland);
        }
        problem = format!(
            "WAYLAND_DISPLAY is {name}, but no compositor listens at {}",
            socket.display()
        );
    }
    if let Some(name) = x11 {
        // ":1" or ":1.0" is a server on this machine with a socket; "host:1" is one elsewhere, which only connecting
        // would tell.
        let Some(local) = name.strip_prefix(':') else {
            return Ok(Display::X11);
        };
        let number = local.split('.').next().unwrap_or(local);
        let socket = x11_sockets.join(format!("X{number}"));
        if socket.exists() {
            return Ok(Display::X11);
        }
        problem = format!("DISPLAY is {name}, but no X server listens at {}", socket.display());
    }
    Err(NoDisplay(problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_the_sockets_not_the_variables_alone() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = Some(folder.path());
        let ask = |wayland, x11| find(wayland, x11, runtime, folder.path());
        assert!(ask(None, None).unwrap_err().to_string().contains("--browser"));
        assert!(
            ask(Some("wayland-0"), None)
                .unwrap_err()
                .to_string()
                .contains("wayland-0")
        );
        assert!(ask(None, Some(":7")).unwrap_err().to_string().contains(":7"));
        std::fs::write(folder.path().join("X7"), "").unwrap();
        assert_eq!(ask(Some("wayland-0"), Some(":7.0")), Ok(Display::X11));
        std::fs::write(folder.path().join("wayland-0"), "").unwrap();
        assert_eq!(ask(Some("wayland-0"), Some(":7")), Ok(Display::Wayland));
        assert_eq!(ask(None, Some("far:0")), Ok(Display::X11));
    }
}
