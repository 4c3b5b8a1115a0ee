//! Sentences at the bottom of the window.

use protocol::{ErrorInfo, ErrorKind, Notice};

/// Kind of a toast.
#[derive(Clone, Debug, PartialEq)]
pub enum ToastKind {
    /// Something worth saying.
    Info,
    /// Something to watch.
    Warning,
    /// An error, with its details.
    Error(ErrorInfo),
}

/// One sentence.
#[derive(Clone, Debug, PartialEq)]
pub struct Toast {
    /// Unique number.
    pub id: u64,
    /// Kind.
    pub kind: ToastKind,
    /// What it says.
    pub text: String,
    /// An undo that goes with it: its label and what it sends.
    pub undo: Option<(String, protocol::Request)>,
    /// When it goes away, in seconds of the pump's clock; errors stay until closed.
    until: Option<f64>,
}

/// The ones shown, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Toasts {
    list: Vec<Toast>,
    next: u64,
    seen: u64,
}

/// Most shown at once.
const SHOWN: usize = 4;

impl Toasts {
    /// Shows a sentence for a few seconds.
    pub fn info(&mut self, text: impl Into<String>, now: f64) {
        self.push(ToastKind::Info, text.into(), None, Some(now + 5.0));
    }

    /// Shows a sentence with an undo.
    pub fn undoable(&mut self, text: impl Into<String>, label: &str, request: protocol::Request, now: f64) {
        self.push(
            ToastKind::Info,
            text.into(),
            Some((label.to_string(), request)),
            Some(now + 10.0),
        );
    }

    /// Shows an error until it is closed. Cancelled work is a sentence, not an error.
    pub fn error(&mut self, error: ErrorInfo, now: f64) {
        if error.kind == ErrorKind::Cancelled {
            self.info(error.what, now);
        } else if !self
            .list
            .iter()
            .any(|t| matches!(&t.kind, ToastKind::Error(e) if *e == error))
        {
            self.push(ToastKind::Error(error.clone()), error.what, None, None);
        }
    }

    /// Shows a warning for a while.
    pub fn warning(&mut self, text: impl Into<String>, now: f64) {
        self.push(ToastKind::Warning, text.into(), None, Some(now + 12.0));
    }

    pub(super) fn notice(&mut self, notice: Notice, now: f64) {
        if notice.seq > self.seen {
            self.seen = notice.seq;
            let (kind, time) = if notice.warning {
                (ToastKind::Warning, 12.0)
            } else {
                (ToastKind::Info, 6.0)
            };
            self.push(kind, notice.text, None, Some(now + time));
        }
    }

    fn push(&mut self, kind: ToastKind, text: String, undo: Option<(String, protocol::Request)>, until: Option<f64>) {
        self.next += 1;
        self.list.push(Toast {
            id: self.next,
            kind,
            text,
            undo,
            until,
        });
        if self.list.len() > SHOWN {
            // Errors wait to be read; the newest is always shown.
            let before = &self.list[..SHOWN];
            let goes = before.iter().position(|t| !matches!(t.kind, ToastKind::Error(_)));
            self.list.remove(goes.unwrap_or(0));
        }
    }

    /// Closes one.
    pub fn close(&mut self, id: u64) {
        self.list.retain(|t| t.id != id);
    }

    /// Those shown, oldest first.
    pub fn list(&self) -> &[Toast] {
        &self.list
    }

    pub(super) fn expire(&mut self, now: f64) {
        self.list.retain(|t| t.until.is_none_or(|u| u > now));
    }

    pub(super) fn wake_in(&self, now: f64) -> Option<f64> {
        self.list
            .iter()
            .filter_map(|t| t.until)
            .reduce(f64::min)
            .map(|u| (u - now).max(0.0) + 0.01)
    }
}
