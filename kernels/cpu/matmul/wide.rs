//! As [`super::qdot`], for the formats of nibbles, with 512-bit registers: one permutation puts the nibbles of two
//! stored blocks in place, another gathers the scales of four. Two thirds of the instructions of the 256-bit form, which
//! left a decode step waiting for the arithmetic instead of the memory.
// Every function: the processor has the instruction set it is compiled for; pointers are valid for whole blocks.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use super::Task;
use super::simd::{Avx512, Simd};
use crate::ir::Format;

/// A stored block of 32 nibbles.
trait Nibbles {
    const BYTES: usize;
    /// Where the 16 bytes of nibbles are.
    const AT: usize;
    /// Where the minimum is; 0: there is none.
    const MIN: usize;
    /// What was added to the weights.
    const OFFSET: f32;
}

struct Q4_0;
impl Nibbles for Q4_0 {
    const BYTES: usize = 18;
    const AT: usize = 2;
    const MIN: usize = 0;
    const OFFSET: f32 = 8.0;
}

struct Q4_1;
impl Nibbles for Q4_1 {
    const BYTES: usize = 20;
    const AT: usize = 4;
    const MIN: usize = 2;
    const OFFSET: f32 = 0.0;
}

/// Stored blocks taken at once.
const GROUP: usize = 8;

/// Whether a product can be done here: a known format, and rows of whole groups.
pub(super) fn fits(format: Format, cols: usize) -> bool {
    matches!(format, Format::Q4_0 | Format::Q4_1) && cols.is_multiple_of(32 * GROUP)
}

/// Bytes of two blocks' nibbles, each block's twice, where the first block begins `from` bytes into the register.
const fn places(from: usize, bytes: usize, at: usize) -> [u8; 64] {
    let mut out = [0; 64];
    let mut i = 0;
    while i < 64 {
        out[i] = (from + i / 32 * bytes + at + i % 16) as u8;
        i += 1;
    }
    out
}

/// Eight f16 numbers `bytes` apart, the first at `p`; 64 bytes from `p` and from `p + 4 * bytes` are read.
#[inline(always)]
unsafe fn halves(p: *const u8, bytes: usize) -> __m256 {
    let step = (bytes / 2) as i16;
    let (a, b) = (
        _mm512_loadu_si512(p.cast()),
        _mm512_loadu_si512(p.add(4 * bytes).cast()),
    );
    let order = _mm_setr_epi16(0, step, 2 * step, 3 * step, 32, 32 + step, 32 + 2 * step, 32 + 3 * step);
    let both = _mm512_permutex2var_epi16(a, _mm512_castsi128_si512(order), b);
    _mm256_cvtph_ps(_mm512_castsi512_si128(both))
}

/// Sums of one (row, token) pair: two of products, one of what belongs to the activations' sums.
struct Sums {
    dots: [__m512; 2],
    shifts: __m256,
}

/// One row by T tokens.
#[inline(always)]
unsafe fn tile<B: Nibbles, const T: usize>(task: &Task<'_>, row: usize, token: usize) {
    let blocks = task.w.cols / 32;
    let mut p = task.w.data.as_ptr().add(row * blocks * B::BYTES);
    let mut x = [task.x[token].quants(task.w.cols); T];
    for t in 1..T {
        x[t] = task.x[token + t].quants(task.w.cols);
    }
    let places = const { [places(0, B::BYTES, B::AT), places(64 - 2 * B::BYTES, B::BYTES, B::AT)] };
    let first = _mm512_loadu_si512(places[0].as_ptr().cast());
    let last = _mm512_loadu_si512(places[1].as_ptr().cast());
    // Bit offsets of the nibbles in their 8 bytes: a block's low ones, then its high ones.
    let (low, high) = (0x3830_2820_1810_0800, 0x3c34_2c24_1c14_0c04);
    let shifts = _mm512_setr_epi64(low, low, high, high, low, low, high, high);
    let mask = _mm512_set1_epi8(15);
    let mut sums: [Sums; T] = std::array::from_fn(|_| Sums {
        dots: [_mm512_setzero_ps(); 2],
        shifts: _mm256_setzero_ps(),
    });
    for group in 0..blocks / GROUP {
        let b = group * GROUP;
        let scales = halves(p, B::BYTES);
        let shift = if B::MIN != 0 {
            halves(p.add(B::MIN), B::BYTES)
        } else {
            _mm256_mul_ps(scales, _mm256_set1_ps(-B::OFFSET))
        };
        let mut factors = [_mm512_setzero_ps(); T];
        for t in 0..T {
            factors[t] = _mm512_castps256_ps512(_mm256_mul_ps(scales, _mm256_loadu_ps(x[t].d.add(b))));
            sums[t].shifts = _mm256_fmadd_ps(shift, _mm256_loadu_ps(x[t].s.add(b)), sums[t].shifts);
        }
        macro_rules! pair {
            ($j:literal) => {
                // The last pair is read from where 64 bytes end with it.
                let (from, order) = if $j == 3 {
                    (GROUP * B::BYTES - 64, last)
                } else {
                    (2 * $j * B::BYTES, first)
                };
                let v = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(p.add(from).cast()));
                let u = _mm512_and_si512(_mm512_multishift_epi64_epi8(shifts, v), mask);
                let (one, two) = (2 * $j, 2 * $j + 1);
                let of_block = _mm512_setr_epi32(
                    one, one, one, one, one, one, one, one, two, two, two, two, two, two, two, two,
                );
                for t in 0..T {
                    let q = _mm512_loadu_si512(x[t].q.add(32 * (b + 2 * $j)).cast());
                    let dot = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), u, q));
                    let factor = _mm512_permutexvar_ps(of_block, factors[t]);
                    sums[t].dots[$j % 2] = _mm512_fmadd_ps(dot, factor, sums[t].dots[$j % 2]);
                }
            };
        }
        pair!(0);
        pair!(1);
        pair!(2);
        pair!(3);
        p = p.add(GROUP * B::BYTES);
    }
    for t in 0..T {
        let shifts = _mm512_zextps256_ps512(sums[t].shifts);
        let dots = _mm512_add_ps(sums[t].dots[0], sums[t].dots[1]);
        let v = Avx512::sum(_mm512_add_ps(dots, shifts)) + task.bias.map_or(0.0, |b| b[row]);
        task.y[token + t].write(row - task.first_row, v);
    }
}

#[inline(always)]
unsafe fn run<B: Nibbles>(task: &Task<'_>) {
    let tokens = task.x.len();
    for row in task.rows.clone() {
        let mut t = 0;
        while t < tokens {
            t += match tokens - t {
                1 => {
                    tile::<B, 1>(task, row, t);
                    1
                }
                2 => {
                    tile::<B, 2>(task, row, t);
                    2
                }
                3 => {
                    tile::<B, 3>(task, row, t);
                    3
                }
                _ => {
                    tile::<B, 4>(task, row, t);
                    4
                }
            };
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,avx2,fma,f16c")]
pub(super) unsafe fn run_task(task: &Task<'_>) {
    match task.w.format {
        Format::Q4_0 => run::<Q4_0>(task),
        _ => run::<Q4_1>(task),
    }
}
