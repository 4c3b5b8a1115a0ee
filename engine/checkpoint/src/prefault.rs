//! Touching every page once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::bytes::Bytes;
use crate::error::CheckpointError;
use crate::Progress;

const PAGE: usize = 4096;
const PIECE: usize = 8 << 20;

pub(crate) fn run(maps: &[Bytes], threads: usize, progress: &dyn Progress) -> Result<(), CheckpointError> {
    let pieces: Vec<&[u8]> = maps.iter().flat_map(|m| m.chunks(PIECE)).collect();
    let total: u64 = maps.iter().map(|m| m.len() as u64).sum();
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, 64) {
            scope.spawn(|| {
                let mut seen = 0u8;
                while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if progress.cancelled() {
                        return;
                    }
                    for b in piece.iter().step_by(PAGE) {
                        seen ^= *b;
                    }
                    let now = done.fetch_add(piece.len() as u64, Ordering::Relaxed) + piece.len() as u64;
                    progress.report(now, total);
                }
                std::hint::black_box(seen);
            });
        }
    });
    if progress.cancelled() { Err(CheckpointError::Cancelled) } else { Ok(()) }
}
