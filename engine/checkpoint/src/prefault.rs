//! Touching every page once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::Progress;
use crate::bytes::Bytes;
use crate::error::CheckpointError;

/// The smallest page of any system we run on; larger pages are touched more often than needed, which costs nothing.
const PAGE: usize = 4096;
/// One unit of work: small enough that cancelling takes effect at once, large enough for read-ahead to pay.
const PIECE: usize = 8 << 20;

pub(crate) fn run(maps: &[Bytes], threads: usize, progress: &dyn Progress) -> Result<(), CheckpointError> {
    let pieces: Vec<(&Bytes, usize)> = maps
        .iter()
        .flat_map(|m| (0..m.len()).step_by(PIECE).map(move |at| (m, at)))
        .collect();
    let total: u64 = maps.iter().map(|m| m.len() as u64).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, 64) {
            scope.spawn(|| {
                let mut seen = 0u8;
                while let Some(&(map, at)) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if progress.cancelled() {
                        return;
                    }
                    let range = at..(at + PIECE).min(map.len());
                    map.will_need(range.clone());
                    let piece = map.slice(range);
                    for b in piece.iter().step_by(PAGE) {
                        seen ^= *b;
                    }
                    let bytes = piece.len() as u64;
                    progress.report(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total);
                }
                // Keeps the reads from being optimised away.
                std::hint::black_box(seen);
            });
        }
    });
    if progress.cancelled() {
        Err(CheckpointError::Cancelled)
    } else {
        Ok(())
    }
}
