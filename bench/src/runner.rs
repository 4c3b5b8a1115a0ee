//! What an engine must be able to do to be measured.

use std::path::Path;

/// Errors are text for the person who measures.
pub type Result<T> = std::result::Result<T, String>;

/// One engine with one model loaded.
///
/// Both measurements start from an empty context, so that they can be repeated and alternated in any order.
pub trait Runner {
    /// The engine and its version, as it stands in the table.
    fn name(&self) -> String;
    /// What the engine says about the CPU features it was built with or chose.
    fn features(&self) -> String;
    /// The size of the vocabulary: token ids lie below it.
    fn vocabulary(&self) -> u32;
    /// Seconds to take in all of `ids` and to have the logits of the last one.
    fn prefill(&mut self, ids: &[u32]) -> Result<f64>;
    /// Seconds for `steps` greedy tokens, one at a time, after the single token `first`.
    fn decode(&mut self, first: u32, steps: usize) -> Result<f64>;
    /// Token ids of a text; markers in it are read as such.
    fn tokenize(&self, text: &str) -> Result<Vec<u32>>;
    /// The `steps` most likely tokens after `ids`, one at a time, into an empty context.
    fn greedy(&mut self, ids: &[u32], steps: usize) -> Result<Vec<u32>>;
}

/// Opens a GGUF file with room for `context` positions, to be run on `threads` threads.
pub type Load = fn(path: &Path, threads: usize, context: usize) -> Result<Box<dyn Runner>>;

/// The engines known, by the name that `--engines` takes.
pub const ENGINES: &[(&str, Load)] = &[("model1", crate::ours::load), ("llama.cpp", crate::llama::load)];
