//! What the device itself can do: the yardsticks of timing tables.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::device::{Arg, Device, Launch};
use super::memory::Mem;
use crate::ir::ExecError;

/// `ReadArgs` of `src/bandwidth.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReadArgs {
    data: u64,
    out: u64,
    words: u64,
}

const THREADS: u32 = 512;

/// Bytes per second of reading `bytes` bytes (rounded down) of device memory, best of `repeats`. Larger than the
/// second-level cache, or the cache is measured.
pub fn read_bandwidth(device: &Arc<dyn Device>, bytes: usize, repeats: usize) -> Result<f64, ExecError> {
    let blocks = 4 * device.info().multiprocessors.max(1);
    let unit = 4 * blocks as usize * THREADS as usize;
    let words = (bytes / 16 / unit).max(1) * unit;
    let data = Mem::new(device, 16 * words, "measuring bandwidth")?;
    // Not zeros: they hide nothing here, but they are read faster than real data.
    device.fill(data.ptr(), 0x5b, 16 * words)?;
    let out = Mem::new(device, 4 * blocks as usize, "measuring bandwidth")?;
    let args = ReadArgs {
        data: data.ptr(),
        out: out.ptr(),
        words: words as u64,
    };
    let mut best = f64::INFINITY;
    for _ in 0..repeats.max(1) {
        device.mark(0)?;
        device.launch(&Launch {
            kernel: "read_bandwidth",
            grid: [blocks, 1, 1],
            block: [THREADS, 1, 1],
            shared: 0,
            early: false,
            apart: false,
            args: &[Arg::Struct(bytemuck::bytes_of(&args))],
        })?;
        device.mark(1)?;
        best = best.min(device.between(0, 1)?);
    }
    Ok(16.0 * words as f64 / (best * 1e-9))
}

/// Bytes per second of copying within device memory, read and written bytes both counted, best of `repeats`.
pub fn copy_bandwidth(device: &Arc<dyn Device>, bytes: usize, repeats: usize) -> Result<f64, ExecError> {
    let (a, b) = (
        Mem::new(device, bytes, "measuring bandwidth")?,
        Mem::new(device, bytes, "measuring bandwidth")?,
    );
    device.fill(a.ptr(), 0x5b, bytes)?;
    let mut best = f64::INFINITY;
    for _ in 0..repeats.max(1) {
        device.mark(0)?;
        device.copy(b.ptr(), a.ptr(), bytes)?;
        device.mark(1)?;
        best = best.min(device.between(0, 1)?);
    }
    Ok(2.0 * bytes as f64 / (best * 1e-9))
}
