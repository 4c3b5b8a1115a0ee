//! Errors of loading and running models.

use std::path::PathBuf;

use crate::recipe::RecipeError;

/// Anything the engine can refuse or fail at.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::CheckpointError),
    /// A config field is missing or has a value we cannot run.
    #[error("{}: field `{field}`: found {found}, accepted: {accepted}", path.display())]
    Config {
        /// The config's file.
        path: PathBuf,
        /// Field name.
        field: String,
        /// What was found.
        found: String,
        /// What is accepted.
        accepted: String,
    },
    /// A tensor that does not fit its place.
    #[error("{}: tensor `{tensor}`: {detail}", path.display())]
    Tensor {
        /// The checkpoint.
        path: PathBuf,
        /// Tensor name.
        tensor: String,
        /// Found and expected.
        detail: String,
    },
    /// A recipe that does not fit.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A step failed.
    #[error(transparent)]
    Exec(#[from] kernels::ir::ExecError),
    /// Text handling failed.
    #[error(transparent)]
    Text(#[from] text::TextError),
    /// The caller asked for something impossible.
    #[error("{0}")]
    Invalid(String),
    /// More tokens than the context holds.
    #[error("context overflow: {needed} tokens are needed, the context holds {capacity} ({hint})")]
    ContextOverflow {
        /// Tokens asked for.
        needed: u64,
        /// Tokens that fit.
        capacity: u64,
        /// What to do.
        hint: String,
    },
    /// Not enough memory for what was asked.
    #[error("not enough memory: {what} needs about {needed} (estimated), {available} are available; {hint}")]
    Memory {
        /// What it is for.
        what: String,
        /// Human-readable size.
        needed: String,
        /// Human-readable size.
        available: String,
        /// What to do.
        hint: String,
    },
    /// The user cancelled.
    #[error("cancelled")]
    Cancelled,
}
