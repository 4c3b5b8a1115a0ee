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

type Acc<S, const R: usize, const T: usize> = [[[<S as Simd>::V; 2]; T]; R];

#[inline(always)]
unsafe fn unit<S: Simd, W: Unit<S>, const R: usize, const T: usize>(
    acc: &mut Acc<S, R, T>,
    w: &[*const u8; R],
    at: usize,
    x: &[*const f32; T],
    u: usize,
) {
    let mut xs = [[S::zero(); 2]; T];
    for t in 0..T {
        let p = x[t].add(u * 2 * S::LANES);
        xs[t] = [S::load(p), S::load(p.add(S::LANES))];
    }
    for r in 0..R {
        let p = w[r].add(at);
        let (a, b) = W::load(p);
        for t in 0..T {
            acc[r][t][0] = S::fma(a, xs[t][0], acc[r][t][0]);
            acc[r][t][1] = S::fma(b, xs[t][1], acc[r][t][1]);
        }
    }
}

/// R rows by T tokens. `SEG` units share a scale (0: `seg` of them, known at run time); without scales one segment
/// holds the whole row and `scales` is null.
#[inline(always)]
unsafe fn tile<S: Simd, W: Unit<S>, const SEG: usize, const R: usize, const T: usize>(
    task: &Task<'_>,
    row: usize,
    token: usize,
    scales: &RowScales,
) {
    let cols = task.w.cols;
    let width = 2 * S::LANES;
    let (full, units) = (cols / width, cols.div_ceil(width));
    let seg = if SEG == 0 { scales.units } else { SEG };
    let (mut w, mut tails, mut x) = ([std::ptr::null(); R], [[0u8; TAIL]; R], [std::ptr::null(); T]);
    for r in 0..R {
        let bytes = task.w.row(row + r);
        w[r] = bytes.as_ptr();
        if full < units {
            let rest = &bytes[full * W::BYTES..];
            tails[r][..rest.len()].copy_from_slice(rest);
        }
    }
    for t in 0..T {
        x[t] = task.x[token + t].values.as_ptr();
    }
    let mut total = [[S::zero(); T]; R];
    let mut u = 0;
    let mut block = 0;
    while u < units {
        let end = (u + seg).min(full);
        let mut acc: Acc<S, R, T> = [[[S::zero(); 2]; T]; R];
        if SEG != 0 && u + SEG <= full {
            for i in 0..SEG {
                unit::<S, W, R, T>(&mut acc, &w, (u + i) * W::BYTES, &x, u + i);
            }
        } else {
            for i in u..end {
                unit::<S, W, R, T>(&mut acc, &w, i * W::BYTES, &x, i);
            }
            if end == full && full < units && u + seg > full {
                let mut rest = [std::ptr::null(); R];
                for r in 0..R {
                    rest[r] = tails[r].as_ptr();
                }
                unit::<S, W, R, T>(&mut acc, &rest, 0, &x, full);
            }
        }
        for r in 0..R {
            let s = S::splat(scales.get(r, block));
            for t in 0..T {
                total[r][t] = S::fma(s, S::add(acc[r][t][0], acc[r][t][1]), total[r][t]);
            }
        }
        u += seg;
        block += 1;
    }
    for r in 0..R {
        let o = row + r;
        for t in 0..T {
            let v = S::sum(total[r][t]) * scales.post + task.bias.map_or(0.0, |b| b[o]);
            task.y[token + t].write(o - task.first_row, v);
        }
    }
}

/// Scales of up to four rows, decoded.
struct RowScales {
    values: Vec<f32>,
    per_row: usize,
    /// Units that share one.
    units: usize,
    /// Factor of every result.
    post: f32,
}

impl RowScales {
    #[inline(always)]
    fn get(&self, r: usize, block: usize) -> f32 {
        // SAFETY: `fill` sized `values` for four rows of `per_row` scales; r < 4 and block < per_row.
        unsafe { *self.values.get_unchecked(r * self.per_row + block) }
    }

    fn new(w: &Matrix<'_>, width: usize) -> Self {
        let post = if w.format == Format::F8E4m3 {
            super::prep::E4M3_POST
        } else {
            1.0
        };
        match w.scales {
            None => Self {
                values: vec![1.0; 4],
                per_row: 1,
                units: w.cols.div_ceil(width).max(1),
                post,
            },
            Some(s) => {
                let per_row = w.cols.div_ceil(s.spec.block_cols);
                Self {
                    values: vec![0.0; 4 * per_row],
                    per_row,
                    units: s.spec.block_cols / width,
                    post,
                }
            }
        }
    }

    fn fill(&mut self, w: &Matrix<'_>, row: usize, rows: usize) {
        if w.scales.is_some() {
            for r in 0..rows {
                w.scales_of_row(row + r, &mut self.values[r * self.per_row..(r + 1) * self.per_row]);
            }
        }
    }
}

#[inline(always)]
unsafe fn run<S: Simd, W: Unit<S>, const SEG: usize>(task: &Task<'_>) {
    let mut scales = RowScales::new(task.w, 2 * S::LANES);
    let tokens = task.x.len();
    // One row at a time: the processor fetches a single stream ahead at twice the speed of several at once.
    for row in task.rows.clone() {
        scales.fill(task.w, row, 1);
        let mut t = 0;
        while t < tokens {
            t += match tokens - t {
                1 => {
                    tile::<S, W, SEG, 1, 1>(task, row, t, &scales);
                    1
                }
                2 => {
                    tile::<S, W, SEG, 1, 2>(task, row, t, &scales);
                    2
                }
                3 => {
                    tile::<S, W, SEG, 1, 3>(task, row, t, &scales);
                    3
                }
                _ => {
                    tile::<S, W, SEG, 1, 4>(task, row, t, &scales);
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
