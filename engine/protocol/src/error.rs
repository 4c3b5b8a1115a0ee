//! Errors as people see them.

use serde::{Deserialize, Serialize};

/// Who can mend it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorKind {
    /// The user: another input, file or setting.
    Input,
    /// The machine: memory, disk, network.
    Resource,
    /// Stopped on request; nothing is wrong.
    Cancelled,
    /// The client may not do this (a viewer, or out of order).
    Refused,
    /// We: a bug or a broken engine.
    Internal,
}

/// What happened, on what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorInfo {
    /// Who can mend it.
    pub kind: ErrorKind,
    /// One sentence: what happened, on what, in the engine's words.
    pub what: String,
    /// One sentence: what would be accepted or what to do; empty if `what` says it.
    pub remedy: String,
    /// Everything that helps a report: causes, versions, paths. Several lines.
    pub details: String,
}

impl ErrorInfo {
    /// An error of a kind with its sentence.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            remedy: String::new(),
            details: String::new(),
        }
    }

    /// With what to do about it.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// With details for a report.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}

impl std::fmt::Display for ErrorInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        if !self.remedy.is_empty() {
            write!(f, " {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for ErrorInfo {}
