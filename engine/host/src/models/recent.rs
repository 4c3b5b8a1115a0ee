//! Models opened before: a small file, latest first.

use std::path::{Path, PathBuf};

use protocol::RecentModel;
use serde::{Deserialize, Serialize};

use crate::docs::now;
use crate::models::{bytes_of, kind_of, name_of_path};
use crate::paths::Paths;
use crate::settings::replace;

/// Models remembered.
const MOST: usize = 20;

#[derive(Clone, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    opened: u64,
}

/// A list that cannot be read is as good as none.
fn read(file: &Path) -> Vec<Entry> {
    let text = std::fs::read(file).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

fn write(file: &Path, entries: &[Entry]) {
    let written = replace(file, |out| Ok(serde_json::to_writer_pretty(out, entries)?));
    if let Err(e) = written {
        tracing::warn!("{}: {e}", file.display());
    }
}

/// The list; models that are gone are left out.
pub(crate) fn list(paths: &Paths) -> Vec<RecentModel> {
    let Some(file) = paths.recent() else {
        return Vec::new();
    };
    let known = read(&file).into_iter().filter_map(|e| {
        Some(RecentModel {
            name: name_of_path(&e.path),
            path: e.path.display().to_string(),
            kind: kind_of(&e.path)?,
            bytes: bytes_of(&e.path),
            opened: e.opened,
        })
    });
    known.collect()
}

/// Notes that a model was opened.
pub(crate) fn note(paths: &Paths, path: &Path) {
    let Some(file) = paths.recent() else { return };
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let mut entries = read(&file);
    entries.retain(|e| e.path != path);
    entries.insert(0, Entry { path, opened: now() });
    entries.truncate(MOST);
    write(&file, &entries);
}

/// Removes a model from the list.
pub(crate) fn forget(paths: &Paths, path: &str) {
    let Some(file) = paths.recent() else { return };
    let mut entries = read(&file);
    entries.retain(|e| e.path != Path::new(path));
    write(&file, &entries);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latest_first_without_doubles_and_without_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths {
            data: Some(dir.path().join("data")),
            not_kept: String::new(),
            bundled: None,
            cache: None,
            endpoint: String::new(),
            packages: String::new(),
        };
        assert!(list(&paths).is_empty());
        let model = |name: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, "xy").unwrap();
            path
        };
        let (a, b) = (model("a.gguf"), model("b.gguf"));
        note(&paths, &a);
        note(&paths, &b);
        note(&paths, &a);
        let names = |l: Vec<RecentModel>| l.into_iter().map(|m| (m.name, m.bytes)).collect::<Vec<_>>();
        assert_eq!(names(list(&paths)), [("a".to_string(), 2), ("b".to_string(), 2)]);
        std::fs::remove_file(&a).unwrap();
        assert_eq!(list(&paths).len(), 1);
        forget(&paths, &b.display().to_string());
        assert!(list(&paths).is_empty());
        std::fs::write(paths.recent().unwrap(), "{broken").unwrap();
        assert!(list(&paths).is_empty());
    }
}
