//! Texts: the list, the current one, and what is still to be saved.

pub(crate) mod command;
mod disk;
pub(crate) mod export;
mod tree;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use protocol::{DocInfo, DocKind, ErrorInfo};

pub(crate) use disk::{read, write};
pub(crate) use tree::{Doc, Draft, Ended, Node, one_line};

use crate::errors::input;

/// A text is saved after this long without a change ...
const QUIET: Duration = Duration::from_millis(300);
/// ... or this long after the first change that is not saved.
const LATEST: Duration = Duration::from_secs(2);

/// A text in the list; its messages are read when it is opened.
struct Entry {
    info: DocInfo,
    doc: Option<Doc>,
    /// First and last change that is not on the disk.
    unsaved: Option<(Instant, Instant)>,
    /// Tokens of the log lie in it, so it stays in memory.
    logged: bool,
}

/// Something to do on the disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DiskTask {
    /// Move to the folder of deleted texts.
    Delete(u64),
    /// Move back.
    Undelete(u64),
}

/// All texts.
#[derive(Default)]
pub(crate) struct Docs {
    entries: BTreeMap<u64, Entry>,
    deleted: BTreeMap<u64, Entry>,
    current: Option<u64>,
    last_id: u64,
    tasks: VecDeque<DiskTask>,
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    now_ms() / 1000
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64)
}

/// Name of a text's file.
pub(crate) fn file_name(id: u64) -> String {
    format!("{id}.json")
}

/// What a folder of texts holds.
pub(crate) struct Found {
    pub infos: Vec<DocInfo>,
    /// Files that are no texts: path and why.
    pub broken: Vec<(PathBuf, String)>,
}

/// Reads the list of a folder. A folder that is not there is empty.
pub(crate) fn scan(folder: &Path) -> std::io::Result<Found> {
    let mut found = Found {
        infos: Vec::new(),
        broken: Vec::new(),
    };
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(found),
        other => other?,
    };
    let mut paths: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        let id = path
            .file_stem()
            .and_then(|s| s.to_str())
            .and_then(|s| s.parse::<u64>().ok());
        let (Some(id), true) = (id, path.extension().is_some_and(|e| e == "json")) else {
            continue;
        };
        match disk::read_info(&path) {
            Ok(info) if info.id == id => found.infos.push(info),
            Ok(info) => found.broken.push((path, format!("it holds text {}", info.id))),
            Err(why) => found.broken.push((path, why)),
        }
    }
    Ok(found)
}

impl Docs {
    /// Takes over what a folder held.
    pub fn adopt(&mut self, infos: Vec<DocInfo>) {
        for info in infos {
            self.last_id = self.last_id.max(info.id);
            let entry = Entry {
                info,
                doc: None,
                unsaved: None,
                logged: false,
            };
            self.entries.insert(entry.info.id, entry);
        }
    }

    /// A number nobody had: milliseconds since 1970, or one more than the last.
    fn new_id(&mut self, now_ms: u64) -> u64 {
        self.last_id = now_ms.max(self.last_id + 1);
        self.last_id
    }

    /// The list, latest first. Empty texts are left out.
    pub fn list(&self) -> Vec<DocInfo> {
        let kept = self
            .entries
            .values()
            .filter(|e| e.doc.as_ref().is_none_or(|d| !d.is_empty()));
        let mut all: Vec<DocInfo> = kept.map(|e| e.info.clone()).collect();
        all.sort_by_key(|i| std::cmp::Reverse((i.changed, i.id)));
        all
    }

    /// The current text.
    pub fn current(&self) -> Option<&Doc> {
        self.doc(self.current?)
    }

    /// Number of the current text.
    pub fn current_id(&self) -> Option<u64> {
        self.current
    }

    /// A text in memory.
    pub fn doc(&self, id: u64) -> Option<&Doc> {
        self.entries.get(&id).or_else(|| self.deleted.get(&id))?.doc.as_ref()
    }

    /// Changes a text in memory and notes that it is to be saved.
    pub fn change<R>(&mut self, id: u64, f: impl FnOnce(&mut Doc) -> R) -> Option<R> {
        let entry = match self.entries.get_mut(&id) {
            Some(e) => e,
            None => self.deleted.get_mut(&id)?,
        };
        let doc = entry.doc.as_mut()?;
        let out = f(doc);
        entry.info = doc.info();
        entry.touch();
        Some(out)
    }

    /// Appends a produced token without making the list entry anew; its number within the message.
    pub fn append(&mut self, id: u64, node: u32, info: protocol::TokenInfo) -> Option<u32> {
        let entry = self.entries.get_mut(&id)?;
        let index = entry.doc.as_mut()?.append(node, info)?;
        entry.logged = true;
        entry.touch();
        Some(index)
    }

    /// A new text becomes the current one.
    pub fn create(&mut self, kind: DocKind, model: &str, now_ms: u64) -> u64 {
        let id = self.new_id(now_ms);
        let doc = Doc::new(id, kind, model, now_ms / 1000);
        let entry = Entry {
            info: doc.info(),
            doc: Some(doc),
            unsaved: None,
            logged: false,
        };
        self.entries.insert(id, entry);
        self.current = Some(id);
        self.drop_unused();
        id
    }

    /// Whether the text is in the list, and whether it is in memory.
    ///
    /// # Errors
    /// A number that is not in the list.
    pub fn require(&self, id: u64) -> Result<bool, ErrorInfo> {
        match self.entries.get(&id) {
            Some(e) => Ok(e.doc.is_some()),
            None => Err(input("There is no such text.", "Choose one of the list.")),
        }
    }

    /// Makes a text of the list the current one. `read` is what the disk held, for one that is not in memory.
    pub fn open(&mut self, id: u64, read: Option<Doc>) -> bool {
        let opened = self.hold(id, read);
        if opened {
            self.current = Some(id);
            self.drop_unused();
        }
        opened
    }

    /// Brings a text of the list into memory; whether it is there then.
    pub fn hold(&mut self, id: u64, read: Option<Doc>) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else {
            return false;
        };
        if entry.doc.is_none() {
            entry.doc = read;
        }
        entry.doc.is_some()
    }

    /// Empty texts leave the list, texts that nothing refers to leave the memory. The current one stays.
    fn drop_unused(&mut self) {
        let current = self.current;
        self.entries
            .retain(|id, e| Some(*id) == current || e.doc.as_ref().is_none_or(|d| !d.is_empty()));
        let unused = |(id, e): &(&u64, &mut Entry)| Some(**id) != current && !e.logged && e.unsaved.is_none();
        for (_, e) in self.entries.iter_mut().filter(unused) {
            e.doc = None;
        }
    }

    /// Takes a text off the list. Whether it was the current one.
    pub fn delete(&mut self, id: u64) -> Result<bool, ErrorInfo> {
        self.require(id)?;
        if let Some(entry) = self.entries.remove(&id) {
            self.deleted.insert(id, entry);
            self.tasks.push_back(DiskTask::Delete(id));
        }
        let was_current = self.current == Some(id);
        if was_current {
            self.current = None;
        }
        Ok(was_current)
    }

    /// Brings a deleted text back.
    pub fn undelete(&mut self, id: u64) -> Result<(), ErrorInfo> {
        let Some(entry) = self.deleted.remove(&id) else {
            return Err(input(
                "The text cannot be brought back: it was not deleted since the start.",
                "Choose one of the list.",
            ));
        };
        self.entries.insert(id, entry);
        self.tasks.push_back(DiskTask::Undelete(id));
        Ok(())
    }

    /// Takes a text off the list that turned out to be broken.
    pub fn forget(&mut self, id: u64) {
        self.entries.remove(&id);
        self.current = self.current.filter(|&c| c != id);
    }

    /// Ends a wait for quiet: the text is saved at the next opportunity.
    pub fn hurry(&mut self, id: u64) {
        if let Some(e) = self.entries.get_mut(&id)
            && let Some((first, last)) = &mut e.unsaved
        {
            let long_ago = Instant::now().checked_sub(LATEST);
            *first = long_ago.unwrap_or(*first);
            *last = long_ago.unwrap_or(*last);
        }
    }

    /// Texts to be saved now; they count as saved until [`Docs::not_saved`] says otherwise.
    pub fn take_due(&mut self, all: bool) -> Vec<Doc> {
        let mut due = Vec::new();
        for e in self.entries.values_mut() {
            let Some((first, last)) = e.unsaved else { continue };
            if (all || first.elapsed() >= LATEST || last.elapsed() >= QUIET)
                && let Some(doc) = e.doc.as_ref()
            {
                e.unsaved = None;
                if !doc.is_empty() {
                    due.push(doc.clone());
                }
            }
        }
        due
    }

    /// A text could not be saved.
    pub fn not_saved(&mut self, id: u64) {
        if let Some(e) = self.entries.get_mut(&id) {
            e.touch();
        }
    }

    /// Things to do on the disk.
    pub fn take_tasks(&mut self) -> Vec<DiskTask> {
        self.tasks.drain(..).collect()
    }
}

impl Entry {
    fn touch(&mut self) {
        let now = Instant::now();
        let first = self.unsaved.map_or(now, |(first, _)| first);
        self.unsaved = Some((first, now));
    }
}

#[cfg(test)]
mod tests {
    use protocol::Role;

    use super::*;

    fn write_one(docs: &mut Docs, id: u64) {
        docs.change(id, |d| {
            let draft = Draft {
                parent: None,
                role: Role::User,
                text: "x".into(),
                tokens: Vec::new(),
                vocabulary: 0,
                spec: None,
            };
            d.add(draft, 1)
        });
    }

    #[test]
    fn empty_texts_are_neither_listed_nor_saved_nor_kept() {
        let mut docs = Docs::default();
        let a = docs.create(DocKind::Text, "m", 1000);
        assert!(docs.list().is_empty() && docs.take_due(true).is_empty());
        let b = docs.create(DocKind::Text, "m", 1000);
        assert!(b > a, "numbers are never used again");
        assert!(docs.doc(a).is_none());
        write_one(&mut docs, b);
        assert_eq!(docs.list().len(), 1);
        assert!(docs.take_due(false).is_empty(), "not at once");
        docs.hurry(b);
        assert_eq!(docs.take_due(false).len(), 1);
        assert!(docs.take_due(true).is_empty());
        docs.not_saved(b);
        assert_eq!(docs.take_due(true).len(), 1);
    }

    #[test]
    fn deleted_texts_come_back() {
        let mut docs = Docs::default();
        let id = docs.create(DocKind::Text, "m", 1000);
        write_one(&mut docs, id);
        assert_eq!(docs.delete(id), Ok(true));
        assert!(docs.list().is_empty() && docs.current().is_none() && docs.delete(id).is_err());
        docs.undelete(id).unwrap();
        assert_eq!(docs.list().len(), 1);
        assert!(docs.undelete(id).is_err());
        assert_eq!(docs.take_tasks(), [DiskTask::Delete(id), DiskTask::Undelete(id)]);
        assert!(docs.open(id, None) && docs.current_id() == Some(id));
    }
}
