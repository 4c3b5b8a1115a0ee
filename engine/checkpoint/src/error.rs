//! What can be wrong with a checkpoint. Every message names file, tensor or field, what was found, what is accepted.

use std::path::{Path, PathBuf};

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
    #[error("{}: {detail}", path.display())]
    Format {
        /// File.
        path: PathBuf,
        /// What was found and what is accepted.
        detail: String,
    },
    /// A tensor whose entry is broken.
    #[error("{}: tensor `{tensor}`: {detail}", path.display())]
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
    #[error("{}: tensor `{tensor}`: found dtype {found}, accepted: {accepted}", path.display())]
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
    #[error("{}: found no file `{shard}`, accepted: every shard of the index (tensor `{tensor}` lies in this one)", path.display())]
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
