//! Settings on the disk, and files that replace others whole.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use protocol::{Settings, ThemeChoice};
use serde::{Deserialize, Serialize};

/// The file. Fields that are missing or wrong keep their defaults, so that older and newer files can be read.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Stored {
    theme: String,
    zoom: f32,
    reduced_motion: bool,
    threads: u32,
    context: u64,
    logprobs: u32,
    telemetry_steps: u32,
    tour_seen: bool,
    layout: String,
}

impl Default for Stored {
    fn default() -> Self {
        Self::new(&Settings::default())
    }
}

impl Stored {
    fn new(s: &Settings) -> Self {
        Self {
            theme: match s.theme {
                ThemeChoice::System => "system",
                ThemeChoice::Dark => "dark",
                ThemeChoice::Light => "light",
            }
            .into(),
            zoom: s.zoom,
            reduced_motion: s.reduced_motion,
            threads: s.threads,
            context: s.context,
            logprobs: s.logprobs,
            telemetry_steps: s.telemetry_steps,
            tour_seen: s.tour_seen,
            layout: s.layout.clone(),
        }
    }

    fn settings(self) -> Settings {
        within(Settings {
            theme: match self.theme.as_str() {
                "dark" => ThemeChoice::Dark,
                "light" => ThemeChoice::Light,
                _ => ThemeChoice::System,
            },
            zoom: self.zoom,
            reduced_motion: self.reduced_motion,
            threads: self.threads,
            context: self.context,
            logprobs: self.logprobs,
            telemetry_steps: self.telemetry_steps,
            tour_seen: self.tour_seen,
            layout: self.layout,
        })
    }
}

/// Most telemetry steps kept.
const MOST_STEPS: u32 = 1 << 20;
/// Most alternatives per token.
pub(crate) const MOST_LOGPROBS: u32 = 64;

/// Settings with values out of range moved into it.
pub(crate) fn within(mut s: Settings) -> Settings {
    s.zoom = if s.zoom.is_finite() {
        s.zoom.clamp(0.25, 8.0)
    } else {
        1.0
    };
    s.threads = s.threads.min(1024);
    s.logprobs = s.logprobs.min(MOST_LOGPROBS);
    s.telemetry_steps = s.telemetry_steps.clamp(16, MOST_STEPS);
    s
}

/// Settings of a file; the defaults where there is none.
///
/// # Errors
/// In words, with the path: a file that cannot be read. The defaults are in force then.
pub(crate) fn read(path: &Path) -> Result<Settings, String> {
    let text = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Settings::default()),
        Err(e) => return Err(format!("{}: {e}", path.display())),
        Ok(text) => text,
    };
    let file: Result<Stored, _> = serde_json::from_slice(&text);
    file.map(Stored::settings)
        .map_err(|e| format!("{}: {e}", path.display()))
}

/// Writes settings.
///
/// # Errors
/// What the system says.
pub(crate) fn write(path: &Path, settings: &Settings) -> std::io::Result<()> {
    replace(path, |out| {
        serde_json::to_writer_pretty(&mut *out, &Stored::new(settings))?;
        out.write_all(b"\n")
    })
}

/// Writes a file so that it is either the old one or the new one whatever happens: written beside, flushed to the
/// disk, renamed. Folders are made.
pub(crate) fn replace(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> std::io::Result<()>,
) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".new");
    let beside = folder.join(name);
    let written = (|| {
        let mut out = BufWriter::new(File::create(&beside)?);
        write(&mut out)?;
        let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    if written.is_err() {
        // What is left of it only takes room.
        let _ = std::fs::remove_file(&beside);
        return written;
    }
    // The rename itself is on the disk once the folder is. Windows has no such thing.
    #[cfg(unix)]
    File::open(folder)?.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/settings.json");
        assert_eq!(read(&path).unwrap(), Settings::default());
        let s = Settings {
            theme: ThemeChoice::Light,
            zoom: 1.5,
            tour_seen: true,
            layout: "{\"a\":1}".into(),
            ..Settings::default()
        };
        write(&path, &s).unwrap();
        assert_eq!(read(&path).unwrap(), s);
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn files_of_other_versions_and_wrong_values_are_taken_as_far_as_they_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("settings.json");
        std::fs::write(&path, r#"{"theme":"dark","zoom":1e30,"future":[1]}"#).unwrap();
        let s = read(&path).unwrap();
        assert_eq!((s.theme, s.zoom, s.logprobs), (ThemeChoice::Dark, 8.0, 8));
        std::fs::write(&path, "{").unwrap();
        let e = read(&path).unwrap_err();
        assert!(e.contains("settings.json"), "{e}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, "old").unwrap();
        let full = |_: &mut BufWriter<File>| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(replace(&path, full).is_err());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
