//! File dialogs of the system, and the writing of the file somebody chose.

use std::fs;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why no dialog could be shown, or a file not written.
#[derive(Debug, Error)]
pub enum DialogError {
    /// Neither a portal nor zenity: then no dialog would appear, and that would look like "cancelled".
    #[error(
        "this desktop has no file dialog to offer (neither xdg-desktop-portal nor zenity is installed); type the path \
         instead, or install one of them"
    )]
    NoService,
    /// The file could not be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Lets the user choose a folder; `None` = cancelled.
///
/// # Errors
/// [`DialogError::NoService`].
pub async fn pick_folder(title: &str) -> Result<Option<PathBuf>, DialogError> {
    service()?;
    Ok(rfd::AsyncFileDialog::new()
        .set_title(title)
        .pick_folder()
        .await
        .map(|f| f.path().to_path_buf()))
}

/// Lets the user choose a file with one of the endings, named together `kind`; `None` = cancelled.
///
/// # Errors
/// [`DialogError::NoService`].
pub async fn pick_file(title: &str, kind: &str, endings: &[&str]) -> Result<Option<PathBuf>, DialogError> {
    service()?;
    let dialog = rfd::AsyncFileDialog::new()
        .set_title(title)
        .add_filter(kind, endings)
        .add_filter("All files", &["*"]);
    Ok(dialog.pick_file().await.map(|f| f.path().to_path_buf()))
}

/// Lets the user choose where a file goes; `None` = cancelled. The dialog itself asks before a file is replaced.
///
/// # Errors
/// [`DialogError::NoService`].
pub async fn pick_save(title: &str, name: &str) -> Result<Option<PathBuf>, DialogError> {
    service()?;
    let name = file_name(name);
    let mut dialog = rfd::AsyncFileDialog::new().set_title(title).set_file_name(&name);
    if let Some(ending) = Path::new(&name).extension().and_then(|e| e.to_str()) {
        dialog = dialog.add_filter(ending.to_uppercase(), &[ending]);
    }
    Ok(dialog.save_file().await.map(|f| f.path().to_path_buf()))
}

/// Writes a file whole or not at all: first beside it, then in its place.
///
/// # Errors
/// [`DialogError::Write`], with nothing left behind.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), DialogError> {
    let fail = |source| DialogError::Write {
        path: path.to_path_buf(),
        source,
    };
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    fs::write(&beside, bytes)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|e| {
            // Best effort: what is reported is why it could not be written.
            let _ = fs::remove_file(&beside);
            fail(e)
        })
}

/// A name without folders or control characters, however it was suggested.
fn file_name(wanted: &str) -> String {
    let name: String = wanted
        .chars()
        .map(|c| {
            if c == '/' || c == '\\' || c.is_control() {
                '-'
            } else {
                c
            }
        })
        .take(120)
        .collect();
    match name.trim_matches([' ', '.']) {
        "" => "untitled".to_string(),
        name => name.to_string(),
    }
}

/// Whether a dialog can appear at all. Other systems bring theirs.
#[cfg(not(target_os = "linux"))]
fn service() -> Result<(), DialogError> {
    Ok(())
}

/// Whether a dialog can appear at all: rfd answers "cancelled" where neither a portal nor zenity is there.
#[cfg(target_os = "linux")]
fn service() -> Result<(), DialogError> {
    let data = std::env::var("XDG_DATA_DIRS").unwrap_or_else(|_| "/usr/local/share:/usr/share".to_string());
    let portal = std::env::split_paths(&data).any(|d| {
        d.join("dbus-1/services/org.freedesktop.portal.Desktop.service")
            .exists()
    });
    let zenity =
        std::env::var_os("PATH").is_some_and(|p| std::env::split_paths(&p).any(|d| d.join("zenity").is_file()));
    if portal || zenity {
        Ok(())
    } else {
        Err(DialogError::NoService)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_folders_and_control_characters() {
        for (wanted, name) in [
            ("story.txt", "story.txt"),
            ("../../etc/passwd", "-..-etc-passwd"),
            ("a\nb\\c", "a-b-c"),
            (" .. ", "untitled"),
            ("", "untitled"),
        ] {
            assert_eq!(file_name(wanted), name);
        }
        assert_eq!(file_name(&"x".repeat(500)).len(), 120);
    }

    #[test]
    fn a_file_is_written_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.csv");
        write_file(&path, b"1,2").unwrap();
        write_file(&path, b"3").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"3");
        let gone = folder.path().join("no").join("a.csv");
        let error = write_file(&gone, b"x").unwrap_err().to_string();
        assert!(error.contains("a.csv") && error.contains("No such file"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
