//! Files into a folder that appears whole or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::ExportError;

/// A folder that may be filled.
pub(super) struct Target {
    path: PathBuf,
    /// It is there, and empty.
    exists: bool,
}

impl Target {
    /// Refuses what is there already.
    pub fn new(folder: &Path) -> Result<Self, ExportError> {
        let exists = |path: &Path, found: String| ExportError::Exists {
            path: path.into(),
            found,
        };
        let meta = match fs::metadata(folder) {
            Ok(m) => m,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self {
                    path: folder.into(),
                    exists: false,
                });
            }
            Err(e) => return Err(io(folder, e)),
        };
        if !meta.is_dir() {
            return Err(exists(folder, "a file".into()));
        }
        let count = fs::read_dir(folder).map_err(|e| io(folder, e))?.count();
        if count > 0 {
            return Err(exists(folder, format!("a folder with {count} entries")));
        }
        Ok(Self {
            // A link to an empty folder keeps pointing where it does.
            path: folder.canonicalize().map_err(|e| io(folder, e))?,
            exists: true,
        })
    }

    /// Writes files into a folder beside the target, which then takes its name. Returns their final paths.
    pub fn fill(self, files: &[(String, Vec<u8>)]) -> Result<Vec<PathBuf>, ExportError> {
        let parent = match self.path.parent() {
            Some(p) if !p.as_os_str().is_empty() => p.to_path_buf(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent).map_err(|e| io(&parent, e))?;
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let part = Part(parent.join(format!(".{name}.{}.part", std::process::id())));
        fs::create_dir(&part.0).map_err(|e| io(&part.0, e))?;
        for (name, bytes) in files {
            let at = part.0.join(name);
            let mut file = fs::File::create_new(&at).map_err(|e| io(&at, e))?;
            // Full disks often show only when the data really goes out.
            file.write_all(bytes)
                .and_then(|()| file.sync_all())
                .map_err(|e| io(&at, e))?;
        }
        if self.exists {
            // Fails if something was put there meanwhile.
            fs::remove_dir(&self.path).map_err(|e| io(&self.path, e))?;
        }
        fs::rename(&part.0, &self.path).map_err(|e| io(&self.path, e))?;
        Ok(files.iter().map(|(name, _)| self.path.join(name)).collect())
    }
}

/// A folder that is removed unless it took its final name.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn io(path: &Path, error: std::io::Error) -> ExportError {
    ExportError::Io {
        path: path.into(),
        error,
    }
}
