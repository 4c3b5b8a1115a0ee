//! What can be wrong with a checkpoint. Every message names file, tensor or field, what was found, what is accepted.

use std::path::{Path, PathBuf};

/// Most characters of a file's own text that a message repeats at either end.
const SHOWN: usize = 200;

/// Text that may hold a file's own words, on one line: control characters are escaped, a long middle is left out.
fn shown(text: &str) -> String {
    let escape = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    let n = text.chars().count();
    if n <= 2 * SHOWN {
        return text.chars().map(escape).collect();
    }
    let start = text.chars().take(SHOWN).map(escape);
    let end = text.chars().skip(n - SHOWN).map(escape);
    start.chain([" [...] ".to_string()]).chain(end).collect()
}

/// A checkpoint that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Reading failed.
    #[error("{}: {source}", path.display())]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// A file that cannot be mapped into memory.
    #[error(
        "{}: found {:.2} GiB, accepted: at most what can be mapped into memory (is an address-space limit set? \
         `ulimit -v` shows it): {source}",
        path.display(), *bytes as f64 / (1u64 << 30) as f64
    )]
    Map {
        /// File.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The system's words.
        source: std::io::Error,
    },
    /// Not a model at all.
    #[error(
        "{}: found {found}; accepted: a folder with config.json and *.safetensors, or a .gguf file", path.display()
    )]
    NotAModel {
        /// Path given.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// A file whose structure is broken.
    #[error("{}: {}", path.display(), shown(detail))]
    Format {
        /// File.
        path: PathBuf,
        /// What was found and what is accepted.
        detail: String,
    },
    /// A tensor whose entry is broken.
    #[error("{}: tensor `{}`: {}", path.display(), shown(tensor), shown(detail))]
    Tensor {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// What was found and what is accepted.
        detail: String,
    },
    /// A tensor that is not there.
    #[error("{}: tensor `{tensor}`: found nothing, accepted: a tensor of shape {shape:?}", path.display())]
    Missing {
        /// Checkpoint.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Shape needed.
        shape: Vec<usize>,
    },
    /// A tensor of the wrong shape.
    #[error("{}: tensor `{tensor}`: found shape {found:?}, accepted: {expected:?}", path.display())]
    Shape {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape the configuration asks for.
        expected: Vec<usize>,
    },
    /// A tensor in a format we do not read.
    #[error("{}: tensor `{}`: found dtype {}, accepted: {accepted}", path.display(), shown(tensor), shown(found))]
    Dtype {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Its format.
        found: String,
        /// Ours.
        accepted: &'static str,
    },
    /// A shard the index names is not there.
    #[error(
        "{}: found no file `{}`, accepted: every shard of the index (tensor `{}` lies in this one)",
        path.display(), shown(shard), shown(tensor)
    )]
    MissingShard {
        /// Folder.
        path: PathBuf,
        /// File name.
        shard: String,
        /// The first tensor that needs it.
        tensor: String,
    },
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl CheckpointError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        CheckpointError::Io {
            path: path.into(),
            source,
        }
    }

    pub(crate) fn not_a_model(path: &Path, found: String) -> Self {
        CheckpointError::NotAModel {
            path: path.into(),
            found,
        }
    }

    pub(crate) fn format(path: &Path, detail: impl Into<String>) -> Self {
        CheckpointError::Format {
            path: path.into(),
            detail: detail.into(),
        }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, detail: impl Into<String>) -> Self {
        CheckpointError::Tensor {
            path: path.into(),
            tensor: tensor.into(),
            detail: detail.into(),
        }
    }
}
