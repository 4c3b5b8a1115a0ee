//! The tiny checkpoints of `tests/goldens`, for unit tests.

use std::path::Path;
use std::sync::Arc;

use crate::{Engine, EngineOptions, Silent};

/// A tiny model by the name of its folder, on two threads.
pub(crate) fn engine(name: &str) -> Arc<Engine> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/goldens")
        .join(name);
    let options = EngineOptions {
        threads: Some(2),
        ..EngineOptions::default()
    };
    Engine::open(&path, &options, &Silent).unwrap()
}

/// Tokens that look like nothing in particular.
pub(crate) fn ids(engine: &Engine, n: usize) -> Vec<u32> {
    let vocab = engine.facts().vocab as u64;
    (0..n as u64)
        .map(|i| ((i * i * 7919 + 13 * i + 5) % vocab) as u32)
        .collect()
}
