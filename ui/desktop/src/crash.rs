//! What is kept of a fault in the program itself, for the crash page and for reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// A panic, as text for a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashReport {
    /// The panic's own sentence.
    pub message: String,
    /// Everything: version, system, thread, place, backtrace.
    pub text: String,
    /// Where the text was written; `None` if it could not be.
    pub file: Option<PathBuf>,
}

static LAST: Mutex<Option<CrashReport>> = Mutex::new(None);

/// The last panic of this process.
pub fn last_report() -> Option<CrashReport> {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// From now on every panic is kept for [`last_report`] and written to `folder/crash.txt` (the last one only), besides
/// being printed as before.
pub fn install_panic_hook(program: &'static str, folder: Option<PathBuf>) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without words".to_string());
        let place = info
            .location()
            .map_or_else(|| "unknown place".to_string(), ToString::to_string);
        let backtrace = std::backtrace::Backtrace::force_capture();
        let thread = std::thread::current();
        let text = format!(
            "{program} {}\n{} {}\nthread {}: {message}\nat {place}\n\n{backtrace}",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
            thread.name().unwrap_or("unnamed"),
        );
        let file = folder.as_deref().and_then(|f| write(f, &text));
        *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(CrashReport { message, text, file });
    }));
}

fn write(folder: &Path, text: &str) -> Option<PathBuf> {
    let file = folder.join("crash.txt");
    fs::create_dir_all(folder).ok()?;
    fs::write(&file, text).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_kept_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("state");
        install_panic_hook("tested", Some(below.clone()));
        let thread = std::thread::Builder::new().name("breaks".into());
        thread
            .spawn(|| assert_eq!(1 + 1, 3, "numbers"))
            .unwrap()
            .join()
            .unwrap_err();
        let report = last_report().unwrap();
        assert!(report.message.contains("numbers"), "{}", report.message);
        assert!(
            report.text.contains("thread breaks") && report.text.contains("crash.rs"),
            "{}",
            report.text
        );
        assert_eq!(fs::read_to_string(below.join("crash.txt")).unwrap(), report.text);
    }
}
