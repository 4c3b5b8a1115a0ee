//! Products of a few activation rows with plain formats (f32, f16, bf16, FP8, FP4): exact weights, f32 activations.
//!
//! A unit is two vectors of columns (32 with AVX-512, 16 with AVX2). Each (row, token) pair has two accumulators and a
//! total, whatever else is computed with it, so its bits never depend on its neighbours.
// Every function: the processor has the instruction set of `S`; pointers are valid for the matrix they belong to.
#![allow(unsafe_op_in_unsafe_fn)]

use super::Task;
use super::simd::{Avx2, Avx512, Simd};
use crate::cpu::formats::Matrix;
use crate::cpu::isa::Isa;
use crate::ir::Format;

/// Most bytes of a unit.
const TAIL: usize = 128;

/// How a format's unit becomes two vectors.
trait Unit<S: Simd> {
    const BYTES: usize;
    unsafe fn load(p: *const u8) -> (S::V, S::V);
}

macro_rules! unit {
    ($name:ident, $load:ident, $bytes:expr) => {
        struct $name;
        impl<S: Simd> Unit<S> for $name {
            const BYTES: usize = $bytes * S::LANES;
            #[inline(always)]
            unsafe fn load(p: *const u8) -> (S::V, S::V) {
                S::$load(p)
            }
        }
    };
}
unit!(UnitF32, f32x2, 8);
unit!(UnitF16, f16x2, 4);
unit!(UnitBf16, bf16x2, 4);
unit!(UnitE4m3, e4m3x2, 2);
unit!(UnitE2m1, e2m1x2, 1);

type Acc<S, const T: usize> = [[<S as Simd>::V; 2]; T];

#[inline(always)]
unsafe fn unit<S: Simd, W: Unit<S>, const T: usize>(acc: &mut Acc<S, T>, w: *const u8, x: &[*const f32; T], u: usize) {
    let (a, b) = W::load(w);
    for t in 0..T {
        let p = x[t].add(u * 2 * S::LANES);
        acc[t][0] = S::fma(a, S::load(p), acc[t][0]);
        acc[t][1] = S::fma(b, S::load(p.add(S::LANES)), acc[t][1]);
    }
}

/// One stored row: its whole units, and the rest padded to a unit (null if there is none).
struct Row {
    index: usize,
    w: *const u8,
    tail: *const u8,
}

/// One row by T tokens. `SEG` units share a scale (0: `scales.units` of them, known at run time); without scales one
/// segment holds the whole row.
#[inline(always)]
unsafe fn tile<S: Simd, W: Unit<S>, const SEG: usize, const T: usize>(
    task: &Task<'_>,
    row: &Row,
    token: usize,
    scales: &RowScales,
) {
    let width = 2 * S::LANES;
    let (full, units) = (task.w.cols / width, task.w.cols.div_ceil(width));
    let seg = if SEG == 0 { scales.units } else { SEG };
    let mut x = [std::ptr::null(); T];
    for t in 0..T {
        x[t] = task.x[token + t].values.as_ptr();
    }
    let mut total = [S::zero(); T];
    let (mut u, mut block) = (0, 0);
    while u < units {
        let mut acc: Acc<S, T> = [[S::zero(); 2]; T];
        if SEG != 0 && u + SEG <= full {
            for i in 0..SEG {
                unit::<S, W, T>(&mut acc, row.w.add((u + i) * W::BYTES), &x, u + i);
            }
        } else {
            for i in u..(u + seg).min(full) {
                unit::<S, W, T>(&mut acc, row.w.add(i * W::BYTES), &x, i);
            }
            if u + seg > full && full < units {
                unit::<S, W, T>(&mut acc, row.tail, &x, full);
            }
        }
        let s = S::splat(scales.get(block));
        for t in 0..T {
            total[t] = S::fma(s, S::add(acc[t][0], acc[t][1]), total[t]);
        }
        u += seg;
        block += 1;
    }
    for t in 0..T {
        let v = S::sum(total[t]) * scales.post + task.bias.map_or(0.0, |b| b[row.index]);
        task.y[token + t].write(row.index - task.first_row, v);
    }
}

/// Scales of a row, decoded.
struct RowScales {
    values: Vec<f32>,
    /// Units that share one.
    units: usize,
    /// Factor of every result.
    post: f32,
}

impl RowScales {
    #[inline(always)]
    fn get(&self, block: usize) -> f32 {
        debug_assert!(block < self.values.len());
        // SAFETY: there is a value for every block of `units` units of the row.
        unsafe { *self.values.get_unchecked(block) }
    }

    fn new(w: &Matrix<'_>, width: usize) -> Self {
        let post = if w.format == Format::F8E4m3 {
            super::prep::E4M3_POST
        } else {
            1.0
        };
        let (blocks, units) = match w.scales {
            None => (1, w.cols.div_ceil(width).max(1)),
            Some(s) => (w.cols.div_ceil(s.spec.block_cols), s.spec.block_cols / width),
        };
        Self {
            values: vec![1.0; blocks],
            units,
            post,
        }
    }
}

#[inline(always)]
unsafe fn run<S: Simd, W: Unit<S>, const SEG: usize>(task: &Task<'_>) {
    let mut scales = RowScales::new(task.w, 2 * S::LANES);
    let tokens = task.x.len();
    let bytes = task.w.row_bytes();
    let whole = task.w.cols / (2 * S::LANES) * W::BYTES;
    let mut tail = [0u8; TAIL];
    // One row at a time: the processor fetches a single stream ahead at twice the speed of several at once.
    for index in task.rows.clone() {
        let mut row = Row {
            index,
            w: task.w.data.as_ptr().add(index * bytes),
            tail: std::ptr::null(),
        };
        if whole < bytes {
            tail[..bytes - whole].copy_from_slice(&task.w.row(index)[whole..]);
            row.tail = tail.as_ptr();
        }
        if task.w.scales.is_some() {
            task.w.scales_of_row(index, &mut scales.values);
        }
        let mut t = 0;
        while t < tokens {
            t += match tokens - t {
                1 => {
                    tile::<S, W, SEG, 1>(task, &row, t, &scales);
                    1
                }
                2 => {
                    tile::<S, W, SEG, 2>(task, &row, t, &scales);
                    2
                }
                3 => {
                    tile::<S, W, SEG, 3>(task, &row, t, &scales);
                    3
                }
                _ => {
                    tile::<S, W, SEG, 4>(task, &row, t, &scales);
                    4
                }
            };
        }
    }
}

#[inline(always)]
unsafe fn by_format<S: Simd>(task: &Task<'_>) {
    let width = 2 * S::LANES;
    let seg = task.w.scales.map_or(0, |s| s.spec.block_cols / width);
    match (task.w.format, seg) {
        (Format::F32, _) => run::<S, UnitF32, 0>(task),
        (Format::F16, _) => run::<S, UnitF16, 0>(task),
        (Format::Bf16, _) => run::<S, UnitBf16, 0>(task),
        (Format::Fp4E2m1, 1) => run::<S, UnitE2m1, 1>(task),
        (Format::Fp4E2m1, 2) => run::<S, UnitE2m1, 2>(task),
        (Format::Fp4E2m1, _) => run::<S, UnitE2m1, 0>(task),
        (_, 4) => run::<S, UnitE4m3, 4>(task),
        (_, 8) => run::<S, UnitE4m3, 8>(task),
        _ => run::<S, UnitE4m3, 0>(task),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(task: &Task<'_>) {
    by_format::<Avx2>(task);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn avx512(task: &Task<'_>) {
    by_format::<Avx512>(task);
}

/// Runs a task whose activations were prepared for `isa`.
pub(super) fn run_task(isa: Isa, task: &Task<'_>) {
    // SAFETY: the instruction set comes from detection; the matrix was checked, `x` is padded to whole units, and
    // outputs belong to this task alone.
    unsafe {
        match isa {
            Isa::Avx512 => avx512(task),
            _ => avx2(task),
        }
    }
}
