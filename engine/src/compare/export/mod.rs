//! A comparison as files: recipes, environment, CSV, pictures and a page that needs nothing else.

mod charts;
mod csv;
mod folder;
mod html;
mod pareto;
mod picture;
mod svg;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use protocol::CompareResult;
use serde::Serialize;

use crate::engine::Engine;
use crate::memory;

pub use pareto::pareto;

/// Why a report could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Something is there already.
    #[error("{}: found {found}, accepted: a folder that does not exist yet or is empty", path.display())]
    Exists {
        /// The folder asked for.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// A file could not be written.
    #[error("{}: {error}; nothing was left behind", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// A picture could not be drawn.
    #[error("picture {name}: {detail}")]
    Picture {
        /// File name.
        name: String,
        /// Why.
        detail: String,
    },
}

/// Where a comparison was made.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// Program and version.
    pub program: String,
    /// UTC, RFC 3339.
    pub created: String,
    /// Operating system and architecture.
    pub machine: String,
    /// Device line of the backend.
    pub device: String,
    /// Folder or file of the model.
    pub model_path: String,
    /// Bytes of its files.
    pub model_bytes: u64,
    /// Memory available when asked, in bytes; `None` = unknown.
    pub memory_available: Option<u64>,
}

impl Environment {
    /// Looks around. `program` is name and version, e.g. `model1 0.1.0`.
    pub fn gather(engine: &Engine, program: &str) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        Self {
            program: program.into(),
            created: utc(now),
            machine: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            device: engine.backend().describe(),
            model_path: engine.checkpoint().path.display().to_string(),
            model_bytes: engine.checkpoint().total_bytes,
            memory_available: memory::available(),
        }
    }
}

/// Seconds since 1970 as `2025-11-25T20:09:28Z`.
fn utc(seconds: u64) -> String {
    let (days, rest) = ((seconds / 86400) as i64, seconds % 86400);
    // Civil date from days, counted in 400-year eras from 0000-03-01 (H. Hinnant, "chrono-compatible date algorithms").
    let z = days + 719_468;
    let (era, doe) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let yoe = (doe - doe / 1460 + doe / 36524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// The files of a report, (name, content), for writing or for a ZIP: `report.html`, `a.json`, `b.json`, `result.json`,
/// `environment.json`, `ids.txt`, `tokens.csv`, `drift.csv`, `layers.csv`, `isolate.csv` (if asked for), and the
/// charts as PNG.
///
/// # Errors
/// A picture that could not be drawn.
pub fn files(result: &CompareResult, environment: &Environment) -> Result<Vec<(String, Vec<u8>)>, ExportError> {
    let charts = charts::all(result);
    let ids: Vec<String> = result.tokens.iter().map(|t| t.token.to_string()).collect();
    let mut out: Vec<(String, Vec<u8>)> = vec![
        (
            "report.html".into(),
            html::page(result, environment, &charts).into_bytes(),
        ),
        ("a.json".into(), line(&result.sides[0].json)),
        ("b.json".into(), line(&result.sides[1].json)),
        ("environment.json".into(), line(&pretty(environment))),
        ("result.json".into(), line(&pretty(result))),
        ("ids.txt".into(), line(&ids.join(","))),
        ("tokens.csv".into(), csv::tokens(result).into_bytes()),
        ("drift.csv".into(), csv::drift(result).into_bytes()),
        ("layers.csv".into(), csv::layers(result).into_bytes()),
    ];
    if !result.isolate.is_empty() {
        out.push(("isolate.csv".into(), csv::isolate(result).into_bytes()));
    }
    for chart in &charts {
        let name = format!("{}.png", chart.name);
        let png = picture::png(&chart.svg).map_err(|detail| ExportError::Picture {
            name: name.clone(),
            detail,
        })?;
        out.push((name, png));
    }
    Ok(out)
}

/// Values that are no numbers in JSON (NaN, infinity) become null.
fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn line(text: &str) -> Vec<u8> {
    format!("{text}\n").into_bytes()
}

/// Whether a report could go into `folder`, as far as can be told before the work.
///
/// # Errors
/// [`ExportError::Exists`] if something is there, [`ExportError::Io`] if it cannot be looked at.
pub fn check(folder: &Path) -> Result<(), ExportError> {
    folder::Target::new(folder).map(|_| ())
}

/// Writes a report into `folder`, which must not exist or be empty: first into a folder beside it, which then takes
/// its name, so that nothing half done is left. Returns the paths written.
///
/// # Errors
/// [`ExportError`].
pub fn write(result: &CompareResult, environment: &Environment, folder: &Path) -> Result<Vec<PathBuf>, ExportError> {
    // Before the pictures are drawn: a folder that cannot be used is told at once.
    let target = folder::Target::new(folder)?;
    target.fill(&files(result, environment)?)
}
