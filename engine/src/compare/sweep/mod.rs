//! Many recipes against one: what to measure, measuring it, and what follows from it.
//!
//! A sweep has axes (`weights.lm_head=bf16,fp8`, `layers.*.kv_cache=bf16,fp8_b64`). Its *grid* is every combination of
//! one choice per axis; its *single* recipes have one choice in one layer alone and say which layers are tolerant.

mod axis;
mod job;
mod measure;
mod recommend;
#[cfg(test)]
mod tests;

use protocol::SweepRow;

use super::Pass;

pub use axis::{Axis, Candidate, Refused, from_presets, grid, singles};
pub use job::{Found, SweepJob};
pub use measure::{Event, Listener, Measured, Sweep};
pub use recommend::{Recommended, recommend};

/// Most recipes of one sweep.
pub const MOST: usize = 4096;

/// What a recipe costs: the bytes a decode step moves, or the time it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Price {
    /// Weight and cache bytes of one decode step (estimated by the plan).
    Bytes,
    /// Seconds per decoded token (measured).
    Time,
}

impl Price {
    /// The price of a row.
    pub fn of(self, row: &SweepRow) -> f64 {
        match self {
            Price::Bytes => row.step_bytes as f64,
            Price::Time => 1.0 / row.decode_tokens_per_s,
        }
    }
}

/// Which rows no other row beats: cheaper or equal, with less or equal KL, and better in one of both.
pub fn front(rows: &[SweepRow], price: Price) -> Vec<bool> {
    let beats = |a: &SweepRow, b: &SweepRow| {
        let (pa, pb) = (price.of(a), price.of(b));
        pa <= pb && a.kl.mean <= b.kl.mean && (pa < pb || a.kl.mean < b.kl.mean)
    };
    rows.iter().map(|r| !rows.iter().any(|o| beats(o, r))).collect()
}

/// Short name of some bytes: the first 16 hex digits of their SHA-256.
pub fn fingerprint(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(bytes);
    digest.iter().take(8).map(|b| format!("{b:02x}")).collect()
}
