//! Where the window was when it was closed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A rectangle of the desktop, in logical pixels (before the display's scale).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Area {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Width.
    pub width: f64,
    /// Height.
    pub height: f64,
}

/// Smallest window that is ever restored, in logical pixels: the interface still works in it.
const SMALLEST: (f64, f64) = (400.0, 300.0);
/// Largest: beyond this a file was damaged.
const LARGEST: f64 = 16_384.0;
/// So much of the title bar must be on some display, or the window cannot be moved back.
const GRIP: (f64, f64) = (120.0, 24.0);

/// Size, place and form of the window.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WindowState {
    /// Inner width, in logical pixels, when not maximised.
    pub width: f64,
    /// Inner height.
    pub height: f64,
    /// Place of the window; `None` where the system does not tell (Wayland).
    pub position: Option<(f64, f64)>,
    /// Whether it fills the display.
    pub maximized: bool,
}

impl Default for WindowState {
    fn default() -> Self {
        Self {
            width: 1360.0,
            height: 860.0,
            position: None,
            maximized: false,
        }
    }
}

impl WindowState {
    /// The file it is kept in; `None` without a home.
    pub fn file() -> Option<PathBuf> {
        crate::config_dir().map(|d| d.join("window.json"))
    }

    /// What was saved, or the default where nothing was or the file is damaged: a window always opens.
    pub fn load(file: &Path) -> Self {
        fs::read(file)
            .ok()
            .and_then(|b| serde_json::from_slice::<Self>(&b).ok())
            .unwrap_or_default()
            .sane()
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// What the file system says.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        let folder = file.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder)?;
        let fresh = file.with_extension("new");
        fs::write(&fresh, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&fresh, file)
    }

    /// Within bounds, whatever the file said.
    fn sane(mut self) -> Self {
        let default = Self::default();
        let bound = |v: f64, least: f64, default: f64| {
            if v.is_finite() {
                v.clamp(least, LARGEST)
            } else {
                default
            }
        };
        self.width = bound(self.width, SMALLEST.0, default.width);
        self.height = bound(self.height, SMALLEST.1, default.height);
        self.position = self.position.filter(|p| p.0.abs() <= LARGEST && p.1.abs() <= LARGEST);
        self
    }

    /// As it fits the displays that are there now: never larger than the largest, and at a place where the title bar
    /// can be reached, else at the place the system chooses. Without displays nothing changes.
    #[must_use]
    pub fn fitted(mut self, displays: &[Area]) -> Self {
        let widest = displays.iter().map(|d| d.width).fold(0.0, f64::max);
        let highest = displays.iter().map(|d| d.height).fold(0.0, f64::max);
        if widest < SMALLEST.0 || highest < SMALLEST.1 {
            return self;
        }
        self.width = self.width.min(widest);
        self.height = self.height.min(highest);
        let reachable = |(x, y): (f64, f64), d: &Area| {
            let seen = (x + self.width).min(d.x + d.width) - x.max(d.x);
            seen >= GRIP.0 && y >= d.y - 1.0 && y + GRIP.1 <= d.y + d.height
        };
        self.position = self.position.filter(|p| displays.iter().any(|d| reachable(*p, d)));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL_HD: Area = Area {
        x: 0.0,
        y: 0.0,
        width: 1920.0,
        height: 1080.0,
    };

    #[test]
    fn comes_back_as_it_was_saved() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("below").join("window.json");
        let state = WindowState {
            width: 1000.0,
            height: 700.0,
            position: Some((40.0, 60.0)),
            maximized: true,
        };
        state.save(&file).unwrap();
        assert_eq!(WindowState::load(&file), state);
    }

    #[test]
    fn a_damaged_or_missing_file_gives_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("window.json");
        assert_eq!(WindowState::load(&file), WindowState::default());
        for text in [
            "",
            "{",
            "{\"width\":1}",
            "[]",
            "{\"width\":\"a\",\"height\":2,\"position\":null,\"maximized\":0}",
        ] {
            fs::write(&file, text).unwrap();
            assert_eq!(WindowState::load(&file), WindowState::default(), "{text}");
        }
    }

    #[test]
    fn absurd_numbers_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("window.json");
        fs::write(
            &file,
            r#"{"width":1e300,"height":-5,"position":[1e9,0],"maximized":false}"#,
        )
        .unwrap();
        let state = WindowState::load(&file);
        assert_eq!((state.width, state.height, state.position), (LARGEST, SMALLEST.1, None));
    }

    #[test]
    fn a_window_off_every_display_comes_back_onto_one() {
        let at = |x, y| WindowState {
            position: Some((x, y)),
            ..WindowState::default()
        };
        assert_eq!(at(100.0, 50.0).fitted(&[FULL_HD]).position, Some((100.0, 50.0)));
        for (x, y) in [(3000.0, 50.0), (100.0, 1070.0), (-1300.0, 50.0), (100.0, -40.0)] {
            assert_eq!(at(x, y).fitted(&[FULL_HD]).position, None, "{x} {y}");
        }
        // On a second display to the left it is where it was.
        let left = Area { x: -1920.0, ..FULL_HD };
        assert_eq!(
            at(-1300.0, 50.0).fitted(&[FULL_HD, left]).position,
            Some((-1300.0, 50.0))
        );
    }

    #[test]
    fn a_window_larger_than_the_display_shrinks() {
        let small = Area {
            x: 0.0,
            y: 0.0,
            width: 1024.0,
            height: 600.0,
        };
        let state = WindowState::default().fitted(&[small]);
        assert_eq!((state.width, state.height), (1024.0, 600.0));
        assert_eq!(WindowState::default().fitted(&[]), WindowState::default());
    }
}
