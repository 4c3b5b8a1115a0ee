//! Writes texts and settings to the disk: whole files, a moment after they changed. What cannot be written stays in
//! memory, is said once, and is tried again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use protocol::Settings;

use crate::docs::{self, DiskTask};
use crate::hub::Hub;
use crate::settings;

/// How long to wait for a change when nothing is due.
const IDLE: Duration = Duration::from_millis(250);

struct Saver {
    hub: Arc<Hub>,
    retry: Duration,
    /// Whether the last write failed; said once.
    failing: bool,
    /// Settings as they are on the disk.
    settings: Settings,
}

/// Runs until the other end of the channel is dropped; saves everything then. `settings` are those on the disk: they
/// may change before this thread runs for the first time.
pub(crate) fn run(hub: Arc<Hub>, end: &Receiver<()>, retry: Duration, settings: Settings) {
    let mut saver = Saver {
        hub,
        retry,
        failing: false,
        settings,
    };
    let mut wait = IDLE;
    loop {
        if end.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected) {
            saver.save(true);
            saver.purge();
            return;
        }
        wait = if saver.save(false) { IDLE } else { saver.retry };
    }
}

impl Saver {
    /// Saves what is due; false if something could not be.
    fn save(&mut self, all: bool) -> bool {
        let Some(folder) = self.hub.paths.texts() else {
            return true;
        };
        let (due, tasks, settings) = self.hub.with(|inner| {
            let due = inner.docs.take_due(all);
            (due, inner.docs.take_tasks(), inner.settings.clone())
        });
        let mut failed: Option<(PathBuf, std::io::Error)> = None;
        let mut wrote = !due.is_empty();
        for doc in &due {
            let path = folder.join(docs::file_name(doc.id));
            if let Err(e) = settings::replace(&path, |out| docs::write(doc, out)) {
                failed.get_or_insert((path, e));
                self.hub.with(|inner| inner.docs.not_saved(doc.id));
            }
        }
        for task in tasks {
            if let Err(e) = self.task(&folder, &task) {
                tracing::warn!("{task:?}: {e}");
            }
        }
        if settings != self.settings
            && let Some(path) = self.hub.paths.settings()
        {
            match settings::write(&path, &settings) {
                Ok(()) => {
                    self.settings = settings;
                    wrote = true;
                }
                Err(e) => {
                    failed.get_or_insert((path, e));
                }
            }
        }
        self.say(failed.as_ref(), wrote);
        failed.is_none()
    }

    fn say(&mut self, failed: Option<&(PathBuf, std::io::Error)>, wrote: bool) {
        match failed {
            Some((path, e)) if !self.failing => {
                self.failing = true;
                let error = crate::errors::of_io("Texts and settings cannot be saved", path, e);
                let text = format!(
                    "{} {} Until then they stay in memory; saving is tried again every {} s.",
                    error.what,
                    error.remedy,
                    self.retry.as_secs().max(1)
                );
                self.hub.with(|inner| inner.notice(true, text));
            }
            None if self.failing && wrote => {
                self.failing = false;
                self.hub.with(|inner| inner.notice(false, "Texts are saved again."));
            }
            _ => {}
        }
    }

    fn task(&self, folder: &Path, task: &DiskTask) -> std::io::Result<()> {
        let Some(deleted) = self.hub.paths.deleted() else {
            return Ok(());
        };
        let (from, to) = match task {
            DiskTask::Delete(id) => (folder.join(docs::file_name(*id)), deleted.join(docs::file_name(*id))),
            DiskTask::Undelete(id) => (deleted.join(docs::file_name(*id)), folder.join(docs::file_name(*id))),
        };
        if !from.exists() {
            // It was never saved.
            return Ok(());
        }
        std::fs::create_dir_all(&deleted)?;
        std::fs::rename(from, to)
    }

    /// Texts that were deleted in this run are gone when it ends.
    fn purge(&self) {
        if let Some(deleted) = self.hub.paths.deleted() {
            purge(&deleted);
        }
    }
}

/// Removes a folder of deleted texts.
pub(crate) fn purge(folder: &Path) {
    match std::fs::remove_dir_all(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => tracing::warn!("{}: {e}", folder.display()),
        _ => {}
    }
}

/// Moves files that are no texts out of the way and says so.
pub(crate) fn set_aside(folder: &Path, broken: &[(PathBuf, String)]) -> Vec<String> {
    let mut said = BTreeMap::new();
    for (path, why) in broken {
        let name = path.file_name().unwrap_or_default();
        let to = folder.join(name);
        let moved = std::fs::create_dir_all(folder).and_then(|()| std::fs::rename(path, &to));
        let place = match moved {
            Ok(()) => format!("It was set aside as {}.", to.display()),
            Err(e) => format!("It could not be set aside: {e}."),
        };
        said.insert(
            path.clone(),
            format!("{} is not a saved text: {why}. {place}", path.display()),
        );
    }
    said.into_values().collect()
}
