//! Products for one token on tensor cores (`gemv_mma.cuh`): all of weights of 4 and 8 bits, and small ones of 16. Which kernel,
//! how many blocks, how their warps share out the rows.

use super::gemv::{GemvArgs, Ready};
use crate::cuda::cx::LaunchCx;
use crate::cuda::planes;
use crate::ir::{Format, ScaleFormat, WeightDesc};

/// Rows of a tile.
const TILE: usize = 16;
/// Chunks of a row in a step.
const CHUNKS: usize = 4;
/// Values of x per piece.
const PIECE: usize = 8;
/// Columns up to which a block has 256 threads and two blocks share a multiprocessor; else 512, and one.
const FEW: usize = 2048;
/// Columns of a long row.
const LONG: usize = 4096;
/// Shared memory that every launch may ask for, without what the kernels declare.
const SHARED: usize = 48 * 1024 - 128;

/// A kernel: steps of a round, pieces of x per thread.
#[derive(Clone, Copy)]
struct Kernel {
    steps: usize,
    pieces: usize,
    name: &'static str,
    /// That of gates.
    gate: &'static str,
}

/// What a format's kernels are like.
struct Kernels {
    /// Values of a chunk.
    len: usize,
    /// Parts of x, of 16 bits each.
    parts: usize,
    /// Whether sums of x are kept.
    sums: bool,
    /// Only where no block has more than a tile: with more, the kernels of `gemv_one.cuh` are as fast.
    small: bool,
    kernels: &'static [Kernel],
}

fn kernels_of(format: Format) -> Option<Kernels> {
    macro_rules! kernels {
        ($name:literal, $len:literal, $parts:literal, $sums:literal, $($steps:literal x $pieces:literal),*) => {
            Some(Kernels {
                len: $len,
                parts: $parts,
                sums: $sums,
                small: $len == 8,
                kernels: &[$(Kernel {
                    steps: $steps,
                    pieces: $pieces,
                    name: concat!("gemv_", $name, "_m", $steps, "x", $pieces),
                    gate: concat!("gemv_", $name, "_g", $steps, "x", $pieces),
                }),*],
            })
        };
    }
    match format {
        Format::Bf16 => kernels!("bf16", 8, 3, false, 6 x 1),
        Format::F16 => kernels!("f16", 8, 2, false, 6 x 1),
        Format::F8E4m3 => kernels!("f8", 16, 2, false, 3 x 1, 4 x 1, 4 x 3),
        Format::Fp4E2m1 => kernels!("fp4", 32, 2, false, 3 x 1, 4 x 3),
        Format::Q8_0 | Format::Q5_0 => kernels!("q8_0", 16, 2, false, 3 x 1, 4 x 1, 4 x 3),
        Format::Q4_0 => kernels!("q4_0", 32, 2, false, 3 x 1, 3 x 3),
        Format::Q4_1 => kernels!("q4_1", 32, 2, true, 3 x 1, 3 x 3),
        Format::Q4K => kernels!("q4_k", 32, 2, true, 3 x 3),
        Format::Q6K => kernels!("q6_k", 16, 2, false, 3 x 1, 3 x 3),
        Format::F32 | Format::I32 | Format::I64 => None,
    }
}

/// Where a row's scales lie: log2 of the rows and columns of a block, bytes of a row of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scales {
    pub row_shift: u32,
    pub col_shift: u32,
    pub pitch: usize,
}

/// Scales that the kernels can find without a division and read in whole words; `None`: others.
pub(super) fn scales_of(d: &WeightDesc) -> Option<Scales> {
    if let Some(p) = planes::of(d.format) {
        return Some(Scales {
            row_shift: 0,
            col_shift: 0,
            pitch: d.cols / p.block * p.scales,
        });
    }
    let Some(s) = d.scales else {
        return Some(Scales {
            row_shift: 0,
            col_shift: 0,
            pitch: 0,
        });
    };
    let fits = match d.format {
        // A step lies in one block.
        Format::F8E4m3 => s.block_cols >= 64,
        Format::Fp4E2m1 => s.block_cols == 32 && s.format == ScaleFormat::E8m0,
        _ => false,
    };
    let twos = s.block_rows.is_power_of_two() && s.block_cols.is_power_of_two();
    (fits && twos).then(|| Scales {
        row_shift: s.block_rows.ilog2(),
        col_shift: s.block_cols.ilog2(),
        pitch: d.cols.div_ceil(s.block_cols) * s.format.bytes(),
    })
}

/// How the work of a launch is shared out.
#[derive(Clone, Debug)]
struct Shares {
    kernel: usize,
    threads: usize,
    /// Blocks of each matrix (of a group).
    blocks: Vec<usize>,
    /// Warps per row.
    split: usize,
    /// Inputs of a pass.
    tile: usize,
    passes: usize,
    /// Bytes of shared memory.
    shared: usize,
}

/// Blocks for matrices of `units` outputs: whole tiles of `tile` where a block has little, else the same for all, of about
/// `resident` blocks.
fn blocks_of(units: &[usize], tile: usize, resident: usize) -> Vec<usize> {
    let all: usize = units.iter().sum();
    let even = all.div_ceil(resident);
    if even <= 2 * tile {
        let whole = even.next_multiple_of(tile);
        let blocks: Vec<usize> = units.iter().map(|u| u.div_ceil(whole)).collect();
        if blocks.iter().sum::<usize>() <= resident {
            return blocks;
        }
    }
    units.iter().map(|u| (resident * u / all).clamp(1, *u)).collect()
}

/// The cheapest way: the fewest steps of the busiest warp, a tile's start counted as one more. `units` outputs of each matrix
/// (of a group), in `per` rows each; `resident` multiprocessors for each group and slot.
fn shares(k: &Kernels, cols: usize, units: &[usize], per: usize, (resident, kept): (usize, usize)) -> Option<Shares> {
    let step = CHUNKS * k.len;
    let threads = if cols <= FEW { 256 } else { 512 };
    let (warps, tile) = (threads / 32, TILE / per);
    let blocks = blocks_of(units, tile, (resident * (512 / threads)).saturating_sub(kept).max(1));
    let most = units.iter().zip(&blocks).map(|(u, b)| u.div_ceil(*b)).max()?;
    let (rows, tiles) = (most * per, most.div_ceil(tile));
    // Where a block has long rows and few of them, laying x out takes as long as the product: the kernels of `gemv_one.cuh`
    // keep it in registers.
    if tiles == 1 && cols > LONG || k.small && (tiles > 1 || cols > FEW) {
        return None;
    }
    let mut best: Option<(usize, Shares)> = None;
    for (i, kernel) in k.kernels.iter().enumerate() {
        let mut split = 1;
        while split <= warps {
            let zeros = 8 * k.parts * k.len * kernel.steps;
            let sums = if k.sums { 4 * CHUNKS } else { 0 };
            let each = 2 * k.parts * step + sums;
            let room = SHARED.saturating_sub(zeros + 4 * split * rows) / each;
            let room = room.min(threads * PIECE * kernel.pieces / step);
            let steps = cols / step;
            if room >= 1 && split <= steps {
                let passes = steps.div_ceil(room);
                let pass = steps.div_ceil(passes);
                let mine = pass.div_ceil(split);
                let cost = passes * tiles.div_ceil(warps / split) * (mine.next_multiple_of(kernel.steps) + 1);
                if split <= pass && best.as_ref().is_none_or(|b| cost < b.0) {
                    let found = Shares {
                        kernel: i,
                        threads,
                        blocks: blocks.clone(),
                        split,
                        tile: pass * step,
                        passes,
                        shared: zeros + pass * each + 4 * split * rows,
                    };
                    best = Some((cost, found));
                }
            }
            split *= 2;
        }
    }
    best.map(|b| b.1)
}

/// Makes a product of one token (or one slot of its experts per row of the grid) ready where these kernels can; `kept`: blocks
/// that something else beside it takes.
pub(super) fn prepare(
    cx: &LaunchCx<'_>,
    d: &WeightDesc,
    args: &GemvArgs,
    (slots, groups): (usize, usize),
    kept: usize,
) -> Option<Ready> {
    let kernels = kernels_of(d.format).filter(|k| d.cols.is_multiple_of(CHUNKS * k.len))?;
    let scales = scales_of(d)?;
    let mut args = *args;
    let gate = args.glu != 0;
    // A gate's two matrices are one to the blocks.
    let matrices = if gate { 1 } else { args.n_segments as usize };
    let units: Vec<usize> = args.segments[..matrices]
        .iter()
        .map(|s| s.rows as usize / groups)
        .collect();
    let resident = (cx.device.info().multiprocessors as usize).div_ceil(groups * slots);
    let s = shares(&kernels, d.cols, &units, if gate { 2 } else { 1 }, (resident, kept))?;
    (args.split, args.split_shift) = (s.split as u32, s.split.ilog2());
    (args.row_shift, args.col_shift, args.scale_pitch) = (scales.row_shift, scales.col_shift, scales.pitch as u32);
    (args.tile, args.passes) = (s.tile as u32, s.passes as u32);
    for ((segment, &units), &blocks) in args.segments.iter_mut().zip(&units).zip(&s.blocks) {
        segment.blocks = blocks as u32;
        (segment.each, segment.more) = ((units / blocks) as u32, (units % blocks) as u32);
    }
    let kernel = &kernels.kernels[s.kernel];
    Some(Ready {
        kernel: if gate { kernel.gate } else { kernel.name },
        grid: [s.blocks.iter().sum::<usize>() * groups, slots, 1],
        threads: s.threads,
        shared: s.shared,
        args,
    })
}
