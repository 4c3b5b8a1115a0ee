//! What can go wrong, in words for the person who waits for the model.

use std::io;
use std::path::{Path, PathBuf};

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No connection, or one that broke time and again.
    #[error(
        "cannot fetch {url}: {reason} ({tries} tries). Check the network; behind a proxy set https_proxy. \
         A model that is already on this machine needs no network: --model DIR"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The last try's failure.
        reason: String,
        /// How often it was tried.
        tries: u32,
    },
    /// Status 404 or 410.
    #[error("{url}: there is no such thing there (status {status}); check the name and the revision")]
    NotFound {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// Status 401 or 403.
    #[error(
        "{url}: access denied (status {status}, {}). A private or gated repository needs an access token (HF_TOKEN) \
         of an account that may read it; a repository that does not exist is reported in the same way",
        if *.with_token { "a token was sent" } else { "no token was sent" }
    )]
    Denied {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
        /// Whether the request carried a token.
        with_token: bool,
    },
    /// Any other status that is not a success.
    #[error("{url}: the server answered with status {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// An answer that is not what the protocol says.
    #[error("{url}: unexpected answer: {reason}")]
    Reply {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The bytes are not the published ones.
    #[error("{file}: SHA-256 is {found}, expected {expected}; the file was deleted")]
    WrongHash {
        /// Which file.
        file: String,
        /// SHA-256 of what came, in hex.
        found: String,
        /// SHA-256 of what was published.
        expected: String,
    },
    /// The length is not the published one.
    #[error("{file}: {found} bytes, expected {expected}")]
    WrongSize {
        /// Which file.
        file: String,
        /// Bytes offered or received.
        found: u64,
        /// Bytes published.
        expected: u64,
    },
    /// The package cannot be opened or lacks the model.
    #[error("{}: {reason}", path.display())]
    Package {
        /// The package.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A repository without a model that could be loaded.
    #[error("{repo}: no {missing} among its files ({found}); weights must be in safetensors")]
    NoModel {
        /// The repository.
        repo: String,
        /// What a model needs and this has not.
        missing: &'static str,
        /// What it has instead.
        found: String,
    },
    /// A repository, revision or file name that cannot be one.
    #[error("{name:?} is not a valid {what}")]
    Name {
        /// Repository, revision or file name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// The destination holds something else.
    #[error("{} exists and is not {wanted}; choose another folder or remove it", path.display())]
    Occupied {
        /// The destination.
        path: PathBuf,
        /// What was to be put there.
        wanted: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The watcher said stop.
    #[error("stopped; what has been fetched is kept for the next try")]
    Cancelled,
}

/// Wraps an I/O error with the path it is about.
pub(crate) fn at(path: &Path) -> impl FnOnce(io::Error) -> FetchError + '_ {
    move |source| FetchError::File {
        path: path.to_owned(),
        source,
    }
}
