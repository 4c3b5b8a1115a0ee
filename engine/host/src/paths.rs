//! Where things lie on this machine.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Folders of a host.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// Settings, texts, the list of recent models. `None`: nothing is kept.
    pub data: Option<PathBuf>,
    /// Why nothing is kept, in words; empty if it is.
    pub not_kept: String,
    /// The bundled model, if it is there.
    pub bundled: Option<PathBuf>,
    /// Fetched models.
    pub cache: Option<PathBuf>,
    /// Address of the Hugging Face Hub or of a mirror.
    pub endpoint: String,
    /// Address of the host of PyPI's files or of a mirror.
    pub packages: String,
}

impl Paths {
    /// Folder of texts.
    pub fn texts(&self) -> Option<PathBuf> {
        Some(self.data.as_ref()?.join("texts"))
    }

    /// Folder of texts that were deleted in this run.
    pub fn deleted(&self) -> Option<PathBuf> {
        Some(self.texts()?.join("deleted"))
    }

    /// Folder of files that were no texts.
    pub fn broken(&self) -> Option<PathBuf> {
        Some(self.texts()?.join("broken"))
    }

    /// The settings.
    pub fn settings(&self) -> Option<PathBuf> {
        Some(self.data.as_ref()?.join("settings.json"))
    }

    /// The list of recent models.
    pub fn recent(&self) -> Option<PathBuf> {
        Some(self.data.as_ref()?.join("recent.json"))
    }
}

fn variable(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from)
}

/// Where texts and settings are kept when nothing is said: `$MODEL1_DATA`, else the system's place for the data of
/// programs (`~/.local/share/model1-explorer` on Linux). `None` where the environment names no home.
pub fn default_data_dir() -> Option<PathBuf> {
    variable("MODEL1_DATA").or_else(|| {
        let dirs = directories::ProjectDirs::from("org", "MODEL1", "model1-explorer")?;
        Some(dirs.data_dir().to_path_buf())
    })
}

/// The model that comes with the program: `$MODEL1_BUNDLED`, else `model1-mini` beside the program, else the one in
/// the source tree the program was built from. `None` if it is in none of these places.
pub fn bundled_model() -> Option<PathBuf> {
    if let Some(set) = variable("MODEL1_BUNDLED") {
        return Some(set);
    }
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("model1-mini"));
    let source = || {
        let host = Path::new(env!("CARGO_MANIFEST_DIR"));
        Some(host.parent()?.join("bundled").join("model1-mini"))
    };
    [beside(), source()]
        .into_iter()
        .flatten()
        .find(|p| p.join("config.json").is_file())
}

/// A path as people type it: `~` is the home folder.
pub(crate) fn expand(path: &str) -> PathBuf {
    let path = path.trim();
    let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
    match path.strip_prefix('~') {
        Some("") => home().unwrap_or_else(|| PathBuf::from(path)),
        Some(rest) if rest.starts_with(['/', '\\']) => {
            home().map_or_else(|| PathBuf::from(path), |h| h.join(rest.trim_start_matches(['/', '\\'])))
        }
        _ => PathBuf::from(path),
    }
}

/// Holds the data folder: two hosts that save the same texts would overwrite each other's.
#[derive(Debug)]
pub(crate) struct FolderLock {
    // Released when the file is closed.
    _file: File,
}

impl FolderLock {
    /// Takes the folder, which is made if it is not there.
    ///
    /// # Errors
    /// In words: another host has it, or it cannot be written.
    pub fn take(folder: &Path) -> Result<Self, String> {
        let wrong = |e: &std::io::Error| format!("{}: {e}", folder.display());
        std::fs::create_dir_all(folder).map_err(|e| wrong(&e))?;
        let options = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(folder.join("lock"));
        let file = options.map_err(|e| wrong(&e))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(TryLockError::WouldBlock) => Err(format!(
                "another MODEL1 Explorer has {} open; close it, or give this one another folder (MODEL1_DATA)",
                folder.display()
            )),
            // Some network file systems have no locks: better to save without than not to save.
            Err(TryLockError::Error(e)) => {
                tracing::warn!("{}: no locks here: {e}", folder.display());
                Ok(Self { _file: file })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_held_by_one_host() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        let first = FolderLock::take(&folder).unwrap();
        let e = FolderLock::take(&folder).unwrap_err();
        assert!(
            e.contains("another MODEL1 Explorer") && e.contains("MODEL1_DATA"),
            "{e}"
        );
        drop(first);
        FolderLock::take(&folder).unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(FolderLock::take(&file).unwrap_err().contains("file"));
    }

    #[test]
    fn a_tilde_is_the_home() {
        assert_eq!(expand(" /a/~b "), Path::new("/a/~b"));
        assert_eq!(expand("~other/x"), Path::new("~other/x"));
        if let Some(home) = variable("HOME") {
            assert_eq!(expand("~/x"), home.join("x"));
        }
    }
}
