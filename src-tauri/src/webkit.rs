//! What WebKitGTK needs.
//!
//! Beside NVIDIA's driver its windows stay blank, freeze or are closed by the compositor unless a variable is set; which
//! one depends on the session. It is decided before GTK starts, because GTK and WebKit read the environment once, and
//! never against the user.
//!
//! And it shows what an input method composes in the text field only if it is told to.

use std::path::{Path, PathBuf};

use tauri::WebviewWindow;
use webkit2gtk::{InputMethodContextExt, WebViewExt};

/// Variables by which somebody has decided already. Any of them, with whatever value, and nothing is changed.
const DECIDED: [&str; 4] = [
    DMABUF,
    EXPLICIT_SYNC,
    "WEBKIT_DISABLE_COMPOSITING_MODE",
    "WEBKIT_DMABUF_RENDERER_FORCE_SHM",
];
const DMABUF: &str = "WEBKIT_DISABLE_DMABUF_RENDERER";
const EXPLICIT_SYNC: &str = "__NV_DISABLE_EXPLICIT_SYNC";

/// First NVIDIA driver whose Wayland library (`egl-wayland2`) hands over buffers as compositors want them.
const GOOD_DRIVER: u32 = 560;

/// What the window will be on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Session {
    X11,
    Wayland,
    #[default]
    Unknown,
}

/// What the decision depends on.
#[derive(Clone, Debug, Default)]
struct Facts {
    /// The GPU that shows the desktop is NVIDIA's and runs NVIDIA's own driver.
    nvidia: bool,
    session: Session,
    /// Names of the desktop, as `XDG_CURRENT_DESKTOP` has them: `KDE`, `ubuntu:GNOME`.
    desktop: String,
    /// The driver's newer Wayland library is in use.
    egl_wayland2: bool,
    /// The variable of [`DECIDED`] that is set.
    decided: Option<&'static str>,
}

/// What is done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    Nothing,
    /// `WEBKIT_DISABLE_DMABUF_RENDERER=1`.
    NoDmabuf,
    /// `__NV_DISABLE_EXPLICIT_SYNC=1`.
    NoExplicitSync,
}

/// The decision. X11: windows stay blank with the DMA-BUF renderer (tauri issues 9304, 10702). Wayland: WebKit commits
/// frames without the acquire point that explicit sync asks for (WebKit bug 280210); compositors that insist on it close
/// the connection, and Hyprland's windows crash in the driver besides.
fn remedy(facts: &Facts) -> Remedy {
    if !facts.nvidia || facts.decided.is_some() {
        return Remedy::Nothing;
    }
    let desktop = |names: &[&str]| facts.desktop.split([':', ';', ',']).any(|d| names.contains(&d.trim()));
    match facts.session {
        Session::X11 => Remedy::NoDmabuf,
        Session::Wayland if desktop(&["Hyprland"]) => Remedy::NoDmabuf,
        Session::Wayland if desktop(&["KDE", "Plasma"]) || !facts.egl_wayland2 => Remedy::NoExplicitSync,
        Session::Wayland | Session::Unknown => Remedy::Nothing,
    }
}

/// Looks at this machine and sets what is needed. For the start of `main`: other threads must not read the environment
/// meanwhile.
pub fn prepare() {
    let facts = Facts::read(Path::new("/"), &|name| std::env::var(name).ok());
    match remedy(&facts) {
        Remedy::Nothing => {}
        Remedy::NoDmabuf => {
            webkit2gtk_nvidia_quirk::set_webkit_disable_dmabuf_renderer(false);
            say(DMABUF);
        }
        Remedy::NoExplicitSync => {
            webkit2gtk_nvidia_quirk::nv_disable_explicit_sync(false);
            say(EXPLICIT_SYNC);
        }
    }
}

/// Lets input methods show in the page what they compose. The webview's library switches that off so that candidates are
/// placed at the cursor; the page keeps the field that has the focus there anyway.
pub fn show_compositions(window: &WebviewWindow) -> tauri::Result<()> {
    window.with_webview(|webview| {
        if let Some(context) = webview.inner().input_method_context() {
            context.set_enable_preedit(true);
        }
    })
}

fn say(variable: &str) {
    eprintln!(
        "note: {variable}=1 is set for this window, because WebKitGTK and NVIDIA's driver do not get on without it. Set it \
         yourself to decide otherwise; ./run --native opens a window without WebKitGTK."
    );
}

impl Facts {
    /// Reads them below `root` (`/`, but for tests) and from the environment.
    fn read(root: &Path, environment: &dyn Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| environment(name).filter(|v| !v.is_empty());
        let hyprland = set("HYPRLAND_INSTANCE_SIGNATURE").map(|_| "Hyprland".to_string());
        Self {
            nvidia: shown_by_nvidia(&root.join("sys/class/drm")),
            session: session(&set),
            desktop: set("XDG_CURRENT_DESKTOP")
                .or_else(|| set("XDG_SESSION_DESKTOP"))
                .or(hyprland)
                .unwrap_or_default(),
            egl_wayland2: egl_wayland2(root, &set),
            // An empty value is a decision, too.
            decided: DECIDED.into_iter().find(|name| environment(name).is_some()),
        }
    }
}

/// What GTK will choose: it asks `GDK_BACKEND` first, and takes Wayland where it can.
fn session(set: &dyn Fn(&str) -> Option<String>) -> Session {
    let named = |name: &str| match name.trim() {
        "x11" => Some(Session::X11),
        "wayland" => Some(Session::Wayland),
        _ => None,
    };
    let asked = set("GDK_BACKEND").and_then(|list| list.split(',').find_map(named));
    asked
        .or_else(|| set("XDG_SESSION_TYPE").and_then(|s| named(&s)))
        .or_else(|| set("WAYLAND_DISPLAY").map(|_| Session::Wayland))
        .or_else(|| set("DISPLAY").map(|_| Session::X11))
        .unwrap_or_default()
}

/// Whether the GPU that the machine started on is NVIDIA's, and NVIDIA's driver (not nouveau) runs one.
fn shown_by_nvidia(drm: &Path) -> bool {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let entries = std::fs::read_dir(drm).into_iter().flatten().flatten();
    // "card0" is a GPU, "card0-DP-1" one of its plugs.
    let is_gpu = |name: &str| name.starts_with("card") && !name.contains('-');
    let gpus: Vec<PathBuf> = entries
        .filter(|e| e.file_name().to_str().is_some_and(is_gpu))
        .map(|e| e.path())
        .collect();
    let first = |gpu: &PathBuf| {
        let marks = ["boot_display", "device/boot_display", "device/boot_vga"];
        marks.iter().any(|mark| read(gpu.join(mark)) == "1") && read(gpu.join("device/vendor")) == "0x10de"
    };
    let driven = |gpu: &PathBuf| std::fs::read_link(gpu.join("device/driver")).is_ok_and(|to| to.ends_with("nvidia"));
    gpus.iter().any(first) && gpus.iter().any(driven)
}

/// Whether EGL will load the driver's newer library for Wayland: it takes the first manifest that names one of the two,
/// and the newer one works from [`GOOD_DRIVER`] on.
fn egl_wayland2(root: &Path, set: &dyn Fn(&str) -> Option<String>) -> bool {
    let version = std::fs::read_to_string(root.join("proc/driver/nvidia/version")).unwrap_or_default();
    // "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.86.15  Thu ..."
    let major = version
        .split_whitespace()
        .filter(|word| word.contains('.'))
        .find_map(|word| word.split('.').next()?.parse::<u32>().ok());
    let files: Vec<PathBuf> = match set("__EGL_EXTERNAL_PLATFORM_CONFIG_FILENAMES") {
        Some(files) => files.split(':').map(PathBuf::from).collect(),
        None => {
            let folders = set("__EGL_EXTERNAL_PLATFORM_CONFIG_DIRS").map_or_else(
                || {
                    let places = ["etc", "usr/share"];
                    places
                        .map(|p| root.join(p).join("egl/egl_external_platform.d"))
                        .to_vec()
                },
                |folders| folders.split(':').map(PathBuf::from).collect(),
            );
            folders.iter().flat_map(|f| manifests(f)).collect()
        }
    };
    let first = files.iter().find_map(|file| {
        let text = std::fs::read_to_string(file).ok()?;
        text.contains("nvidia-egl-wayland")
            .then(|| text.contains("nvidia-egl-wayland2"))
    });
    first == Some(true) && major.is_some_and(|m| m >= GOOD_DRIVER)
}

/// The manifests in a folder, in the order EGL reads them.
fn manifests(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|e| e.path())
        .filter(|p| p.extension().is_some_and(|e| e == "json"))
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests;
