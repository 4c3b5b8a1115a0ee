//! How the block formats of GGUF files lie in device memory. In a file a block begins with its scale, so that nothing is
//! aligned to more than 2 bytes; kernels read 16 bytes at a time. On the way to the device blocks are taken apart: the
//! integers of all values without gaps, row by row, and the scales in rows of their own. Every value keeps its bits
//! (`planes` in `src/planes.cu`, `weight_at` in `src/weights.cuh`).
//!
//! | format | integers | scales | bits per value, file | here |
//! |---|---|---|---|---|
//! | Q8_0 | signed bytes | f16 per 32 | 8.5 | 8.5 |
//! | Q4_0, Q4_1 | nibbles | f16, or f16 and an f16 minimum, per 32 | 4.5, 5 | 4.5, 5 |
//! | Q4_K | nibbles | two f16 per 256, two bytes per 32 | 4.5 | 4.625 |
//! | Q5_0 | signed bytes: becomes Q8_0 | f16 per 32 | 5.5 | 8.5 |
//! | Q6_K | signed bytes | per 32: the f16 of 256, two bytes | 6.5625 | 9 |
//!
//! Q5_0 and Q6_K pay with bytes for integers that need no putting together: a product of one token has some six
//! instructions per byte at the memory's speed.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};

use super::cx::format_code;
use super::device::{Arg, Device, Launch};
use super::memory::Mem;
use crate::ir::{ExecError, Format, WeightDesc, WeightView};

/// Bytes of a file's blocks that are taken apart at once.
const PIECE: usize = 16 << 20;
/// Values per thread of the kernel.
const RUN: usize = 32;
/// Its block.
const THREADS: usize = 256;

/// `PlanesArgs` of `src/planes.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PlanesArgs {
    blocks: u64,
    data: u64,
    scales: u64,
    format: u32,
    runs: u32,
}

/// The planes of a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planes {
    /// The format kernels know them by.
    pub format: Format,
    /// Number of the scales' format in `src/step.cuh`.
    pub scale_code: u32,
    /// Values of a block.
    pub block: usize,
    /// Bytes of a block's integers.
    pub data: usize,
    /// Bytes of a block's scales.
    pub scales: usize,
    /// Values per entry of the scales.
    pub entry: usize,
}

/// How a format lies in device memory; `None`: as it is stored.
pub(super) fn of(format: Format) -> Option<Planes> {
    let planes = |format, scale_code, block, data, (scales, entry)| {
        Some(Planes {
            format,
            scale_code,
            block,
            data,
            scales,
            entry,
        })
    };
    match format {
        Format::Q8_0 | Format::Q5_0 => planes(Format::Q8_0, 3, 32, 32, (2, 32)),
        Format::Q4_0 => planes(Format::Q4_0, 3, 32, 16, (2, 32)),
        Format::Q4_1 => planes(Format::Q4_1, 4, 32, 16, (4, 32)),
        Format::Q4K => planes(Format::Q4K, 5, 256, 128, (20, 256)),
        Format::Q6K => planes(Format::Q6K, 6, 256, 256, (32, 32)),
        Format::F32 | Format::F16 | Format::Bf16 | Format::F8E4m3 | Format::Fp4E2m1 | Format::I32 | Format::I64 => None,
    }
}

/// Bytes of a weight's elements and of its scales in device memory.
pub(super) fn parts(d: &WeightDesc) -> (usize, usize) {
    match of(d.format) {
        Some(p) => {
            let blocks = d.rows * d.cols / p.block;
            (blocks * p.data, blocks * p.scales)
        }
        None => d.parts(),
    }
}

/// Bytes of a weight in device memory.
pub fn device_bytes(d: &WeightDesc) -> u64 {
    let (data, scales) = parts(d);
    (data + scales) as u64
}

/// Takes a weight's blocks apart on the device; returns integers and scales. `stage` is memory for the blocks as they are
/// in the file, made when it is too small.
pub(super) fn upload(
    device: &Arc<dyn Device>,
    planes: Planes,
    view: &WeightView<'_>,
    stage: &mut Mem,
    what: &str,
) -> Result<(Mem, Mem), ExecError> {
    let bytes = view.desc.format.block_bytes();
    let blocks = view.data.len() / bytes;
    let (data, scales) = (
        Mem::new(device, blocks * planes.data, what)?,
        Mem::new(device, blocks * planes.scales, what)?,
    );
    let piece = PIECE / bytes;
    let staged = bytes * piece.min(blocks);
    if stage.len() < staged {
        *stage = Mem::none(device);
        *stage = Mem::new(device, staged, what)?;
    }
    for (i, part) in view.data.chunks(piece * bytes).enumerate() {
        device.upload(stage.ptr(), part)?;
        let runs = part.len() / bytes * planes.block / RUN;
        let args = PlanesArgs {
            blocks: stage.ptr(),
            data: data.ptr() + (i * piece * planes.data) as u64,
            scales: scales.ptr() + (i * piece * planes.scales) as u64,
            format: format_code(view.desc.format),
            runs: runs as u32,
        };
        device.launch(&Launch {
            kernel: "planes",
            grid: [runs.div_ceil(THREADS) as u32, 1, 1],
            block: [THREADS as u32, 1, 1],
            shared: 0,
            early: false,
            apart: false,
            args: &[Arg::Struct(bytemuck::bytes_of(&args))],
        })?;
    }
    Ok((data, scales))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Layout;

    #[test]
    fn bytes_are_counted_as_they_lie() {
        let weight = |format| WeightDesc {
            name: "w".into(),
            rows: 3,
            cols: 512,
            format,
            layout: Layout::OutIn,
            scales: None,
        };
        let bytes = |format| device_bytes(&weight(format));
        for same in [Format::Bf16, Format::Q8_0, Format::Q4_0, Format::Q4_1] {
            assert_eq!(bytes(same), weight(same).bytes(), "{same}");
        }
        assert_eq!(bytes(Format::Q5_0), bytes(Format::Q8_0));
        assert_eq!(bytes(Format::Q4K), 3 * 2 * (128 + 20));
        assert_eq!(bytes(Format::Q6K), 3 * 2 * (256 + 32));
    }

    #[test]
    fn rows_of_integers_are_whole_chunks() {
        for format in [
            Format::Q8_0,
            Format::Q4_0,
            Format::Q4_1,
            Format::Q5_0,
            Format::Q4K,
            Format::Q6K,
        ] {
            let planes = of(format).unwrap();
            assert_eq!(planes.block, format.block_len(), "{format}");
            assert_eq!(planes.data % 16, 0, "{format}");
        }
    }
}
