//! The telemetry file: a header line, then one line per step.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use protocol::StepRecord;

/// A telemetry file. What it held before is kept until the first step is there; a file that this program made and
/// that no step came to is removed again.
pub struct Telemetry {
    path: PathBuf,
    file: BufWriter<File>,
    header: String,
    created: bool,
    started: bool,
    failed: Option<std::io::Error>,
}

impl Telemetry {
    /// Opens the file, so that a path that cannot be written is known before the work begins.
    pub fn open(path: &Path, header: &serde_json::Value) -> Result<Self> {
        let created = !path.exists();
        let opened = OpenOptions::new().write(true).create(true).truncate(false).open(path);
        let file = opened.with_context(|| format!("--telemetry {}", path.display()))?;
        Ok(Self {
            path: path.to_path_buf(),
            file: BufWriter::new(file),
            header: header.to_string(),
            created,
            started: false,
            failed: None,
        })
    }

    /// Adds a step. Failures are reported by [`Telemetry::close`].
    pub fn step(&mut self, record: &StepRecord) {
        if self.failed.is_none()
            && let Err(e) = self.write(record)
        {
            self.failed = Some(e);
        }
    }

    fn write(&mut self, record: &StepRecord) -> std::io::Result<()> {
        if !self.started {
            self.started = true;
            // Pipes and devices have no length to set.
            if self.file.get_ref().metadata()?.is_file() {
                self.file.get_ref().set_len(0)?;
            }
            writeln!(self.file, "{}", self.header)?;
        }
        serde_json::to_writer(&mut self.file, record)?;
        self.file.write_all(b"\n")
    }

    /// Writes everything out and reports what could not be written. More steps may follow.
    pub fn close(&mut self) -> Result<()> {
        let flushed = self.file.flush();
        self.failed
            .take()
            .map_or(flushed, Err)
            .with_context(|| format!("--telemetry {}", self.path.display()))
    }
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if self.created && !self.started {
            std::fs::remove_file(&self.path).ok();
        }
    }
}
