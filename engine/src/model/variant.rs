//! Re-storing a loaded weight in another format.

use std::sync::atomic::{AtomicBool, Ordering};

use checkpoint::Bytes;
use kernels::cpu::formats::{Matrix, quantize_bf16, quantize_fp4_block32, quantize_fp8_block128};
use kernels::ir::{WeightDesc, WeightView};

use super::Stored;
use crate::error::EngineError;
use crate::par::map_rows;
use crate::recipe::WeightStorage;

/// Rows re-stored together: a block of FP8 scales.
const BAND: usize = 128;

/// Elements worth a thread of their own.
const PER_THREAD: usize = 1 << 18;

/// Makes `weight` as `desc` (see [`WeightStorage::of`]) in bands of rows, on up to `threads` threads. Gives up between two bands once
/// `stop` is set.
pub fn make_variant(
    weight: WeightView<'_>,
    storage: WeightStorage,
    desc: WeightDesc,
    threads: usize,
    stop: &AtomicBool,
) -> Result<Stored, EngineError> {
    let d = weight.desc;
    let matrix = Matrix::from_view(&weight).map_err(|e| EngineError::Invalid(format!("weight `{}`: {e}", d.name)))?;
    let threads = threads.min(d.rows * d.cols / PER_THREAD + 1);
    let bands = map_rows(threads, d.rows.div_ceil(BAND), |i| {
        // What was begun is thrown away below.
        if stop.load(Ordering::Relaxed) {
            return (Vec::new(), Vec::new());
        }
        let first = i * BAND;
        let rows = (d.rows - first).min(BAND);
        let mut band = vec![0.0; rows * d.cols];
        for (r, row) in band.chunks_exact_mut(d.cols.max(1)).enumerate() {
            matrix.decode_row(first + r, row);
        }
        match storage {
            WeightStorage::Fp8 => quantize_fp8_block128(&band, rows, d.cols),
            WeightStorage::Fp4 => quantize_fp4_block32(&band, d.cols),
            WeightStorage::Bf16 | WeightStorage::Own => (quantize_bf16(&band), Vec::new()),
        }
    });
    if stop.load(Ordering::Relaxed) {
        return Err(EngineError::Cancelled);
    }
    let size = |part: fn(&(Vec<u8>, Vec<u8>)) -> usize| bands.iter().map(part).sum();
    let (mut data, mut scales) = (
        Vec::with_capacity(size(|b| b.0.len())),
        Vec::with_capacity(size(|b| b.1.len())),
    );
    for (codes, s) in bands {
        data.extend(codes);
        scales.extend(s);
    }
    Ok(Stored {
        scales: desc.scales.map(|_| Bytes::from(scales)),
        desc,
        data: Bytes::from(data),
    })
}
