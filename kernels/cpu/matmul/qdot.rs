//! Products of a few activation rows with block-quantised formats: the activations are int8 blocks of 32
//! ([`super::prep`]), the dot products of a block are exact integers, and one f32 vector per (row, token) sums them.
// Every function: the processor has the instruction set it is compiled for; pointers are valid for whole blocks.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use super::Task;
use super::prep::QRow;
use super::wide;
use crate::cpu::isa::Isa;
use crate::ir::Format;

/// Integer dot products of 32 bytes, summed in groups of four into eight i32.
trait Int: Copy {
    /// init + u * x, u unsigned.
    unsafe fn dot_u(init: __m256i, u: __m256i, x: __m256i) -> __m256i;
    /// w * x, both signed; `init` is `offset(x, 128)`.
    unsafe fn dot_s(init: __m256i, w: __m256i, x: __m256i) -> __m256i;
    /// -by * (sum of each group of x), for weights stored with `by` added.
    unsafe fn offset(x: __m256i, by: u8) -> __m256i;
    /// Bytes of 0x10 where bits are set.
    unsafe fn fifth_bits(bits: u32) -> __m256i;
}

#[derive(Clone, Copy)]
struct Maddubs;
#[derive(Clone, Copy)]
struct Vnni;

impl Int for Maddubs {
    #[inline(always)]
    unsafe fn dot_u(init: __m256i, u: __m256i, x: __m256i) -> __m256i {
        // u <= 63 and |x| <= 127 (or u <= 128 in dot_s): pairs fit i16.
        _mm256_add_epi32(
            init,
            _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1)),
        )
    }
    #[inline(always)]
    unsafe fn dot_s(_init: __m256i, w: __m256i, x: __m256i) -> __m256i {
        Self::dot_u(_mm256_setzero_si256(), _mm256_abs_epi8(w), _mm256_sign_epi8(x, w))
    }
    #[inline(always)]
    unsafe fn offset(x: __m256i, by: u8) -> __m256i {
        let groups = _mm256_madd_epi16(
            _mm256_maddubs_epi16(_mm256_set1_epi8(1), x),
            _mm256_set1_epi16(i16::from(by)),
        );
        _mm256_sub_epi32(_mm256_setzero_si256(), groups)
    }
    #[inline(always)]
    unsafe fn fifth_bits(bits: u32) -> __m256i {
        let order = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
        let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), order);
        let one = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, one), one);
        _mm256_and_si256(set, _mm256_set1_epi8(0x10))
    }
}

impl Int for Vnni {
    #[inline(always)]
    unsafe fn dot_u(init: __m256i, u: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(init, u, x)
    }
    #[inline(always)]
    unsafe fn dot_s(init: __m256i, w: __m256i, x: __m256i) -> __m256i {
        _mm256_dpbusd_epi32(init, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x)
    }
    #[inline(always)]
    unsafe fn offset(x: __m256i, by: u8) -> __m256i {
        let zero = _mm256_setzero_si256();
        _mm256_sub_epi32(zero, _mm256_dpbusd_epi32(zero, _mm256_set1_epi8(by as i8), x))
    }
    #[inline(always)]
    unsafe fn fifth_bits(bits: u32) -> __m256i {
        _mm256_maskz_set1_epi8(bits, 0x10)
    }
}

/// Sums of one (row, token) pair: consecutive blocks take turns, so that additions do not wait for each other.
const CHAINS: usize = 4;
type Acc<const T: usize> = [[__m256; CHAINS]; T];

/// A stored block: `BLOCKS` blocks of 32 in `BYTES` bytes.
trait Block {
    const BYTES: usize;
    const BLOCKS: usize;
    /// Whether [`Block::eight`] exists.
    const EIGHTS: bool = false;
    /// Adds the products of the stored block at `p` with blocks `b..` of T tokens, starting with sum C.
    unsafe fn step<I: Int, const T: usize, const C: usize>(p: *const u8, x: &[QRow; T], b: usize, acc: &mut Acc<T>);
    /// The same for eight stored blocks; scales and sums of activations are handled as vectors.
    unsafe fn eight<I: Int, const T: usize>(_: *const u8, _: &[QRow; T], _: usize, _: &mut Acc<T>) {}
}

#[inline(always)]
unsafe fn half_splat(p: *const u8) -> __m256 {
    _mm256_cvtph_ps(_mm_set1_epi16(p.cast::<i16>().read_unaligned()))
}

#[inline(always)]
unsafe fn half(p: *const u8) -> f32 {
    _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(
        p.cast::<u16>().read_unaligned(),
    ))))
}

/// 16 bytes of nibbles: low ones, then high ones.
#[inline(always)]
unsafe fn nibbles(p: *const u8) -> __m256i {
    let v = _mm_loadu_si128(p.cast());
    let both = _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(v), _mm_srli_epi16::<4>(v));
    _mm256_and_si256(both, _mm256_set1_epi8(15))
}

#[inline(always)]
unsafe fn load(p: *const u8) -> __m256i {
    _mm256_loadu_si256(p.cast())
}

/// Eight f16 numbers, `stride` bytes apart.
#[inline(always)]
unsafe fn halves(p: *const u8, stride: usize) -> __m256 {
    let at = |i: usize| p.add(i * stride).cast::<i16>().read_unaligned();
    _mm256_cvtph_ps(_mm_setr_epi16(at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)))
}

/// The blocks of 32 with one scale: `$offset` was added to the weights, `$u` loads them, `$min` is where the minimum is.
macro_rules! simple {
    ($name:ident, $bytes:expr, $offset:expr, $signed:expr, $min:expr, |$i:ident, $p:ident| $u:expr) => {
        struct $name;
        impl Block for $name {
            const BYTES: usize = $bytes;
            const BLOCKS: usize = 1;
            const EIGHTS: bool = !$signed;
            #[inline(always)]
            unsafe fn step<$i: Int, const T: usize, const C: usize>(
                $p: *const u8,
                x: &[QRow; T],
                b: usize,
                acc: &mut Acc<T>,
            ) {
                let (u, scale) = ($u, half_splat($p));
                for t in 0..T {
                    let q = load(x[t].q.add(32 * b).cast());
                    let init = if $offset != 0 {
                        $i::offset(q, $offset)
                    } else {
                        _mm256_setzero_si256()
                    };
                    let dot = if $signed {
                        $i::dot_s(init, u, q)
                    } else {
                        $i::dot_u(init, u, q)
                    };
                    let factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x[t].d.add(b)));
                    acc[t][C] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, acc[t][C]);
                    if $min != 0 {
                        let s = _mm256_zextps128_ps256(_mm_load_ss(&*x[t].s.add(b)));
                        let at = (C + 2) % CHAINS;
                        acc[t][at] = _mm256_fmadd_ps(half_splat($p.add($min)), s, acc[t][at]);
                    }
                }
            }
            #[inline(always)]
            unsafe fn eight<$i: Int, const T: usize>(p: *const u8, x: &[QRow; T], b: usize, acc: &mut Acc<T>) {
                let scales = halves(p, $bytes);
                // What the sum of a block's activations is multiplied with.
                let shift = if $min != 0 {
                    halves(p.add($min), $bytes)
                } else {
                    _mm256_mul_ps(scales, _mm256_set1_ps(-($offset as f32)))
                };
                let mut factors = [[0.0f32; 8]; T];
                for t in 0..T {
                    let d = _mm256_loadu_ps(x[t].d.add(b));
                    _mm256_storeu_ps(factors[t].as_mut_ptr(), _mm256_mul_ps(scales, d));
                    acc[t][0] = _mm256_fmadd_ps(shift, _mm256_loadu_ps(x[t].s.add(b)), acc[t][0]);
                }
                macro_rules! one {
                    ($k:literal) => {
                        let $p = p.add($k * $bytes);
                        let u = $u;
                        for t in 0..T {
                            let q = load(x[t].q.add(32 * (b + $k)).cast());
                            let dot = _mm256_cvtepi32_ps($i::dot_u(_mm256_setzero_si256(), u, q));
                            let factor = _mm256_broadcast_ss(&factors[t][$k]);
                            acc[t][$k % CHAINS] = _mm256_fmadd_ps(dot, factor, acc[t][$k % CHAINS]);
                        }
                    };
                }
                one!(0);
                one!(1);
                one!(2);
                one!(3);
                one!(4);
                one!(5);
                one!(6);
                one!(7);
            }
        }
    };
}
simple!(Q8_0, 34, 128, true, 0, |I, p| load(p.add(2)));
simple!(Q4_0, 18, 8, false, 0, |I, p| nibbles(p.add(2)));
simple!(Q4_1, 20, 0, false, 2, |I, p| nibbles(p.add(4)));
simple!(Q5_0, 22, 16, false, 0, |I, p| {
    _mm256_or_si256(
        nibbles(p.add(6)),
        I::fifth_bits(p.add(2).cast::<u32>().read_unaligned()),
    )
});

struct Q4K;
impl Block for Q4K {
    const BYTES: usize = 144;
    const BLOCKS: usize = 8;
    #[inline(always)]
    unsafe fn step<I: Int, const T: usize, const C: usize>(p: *const u8, x: &[QRow; T], b: usize, acc: &mut Acc<T>) {
        let low = _mm256_set1_epi8(15);
        // Twelve bytes of 6-bit numbers: eight scales, then eight minimums.
        let word = |i: usize| p.add(4 + 4 * i).cast::<u32>().read_unaligned();
        let (a, m, c) = (word(0), word(1), word(2));
        let s0 = a & 0x3f3f_3f3f;
        let s1 = (c & 0x0f0f_0f0f) | (((a >> 6) & 0x0303_0303) << 4);
        let m0 = m & 0x3f3f_3f3f;
        let m1 = ((c >> 4) & 0x0f0f_0f0f) | (((m >> 6) & 0x0303_0303) << 4);
        let bytes = |a: u32, b: u32| {
            let both = u64::from(a) | (u64::from(b) << 32);
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(both as i64)))
        };
        let scales = _mm256_mul_ps(half_splat(p), bytes(s0, s1));
        let mins = _mm256_mul_ps(half_splat(p.add(2)), bytes(m0, m1));
        for t in 0..T {
            let mut factors = [0.0f32; 8];
            _mm256_storeu_ps(
                factors.as_mut_ptr(),
                _mm256_mul_ps(scales, _mm256_loadu_ps(x[t].d.add(b))),
            );
            let sum = &mut acc[t];
            sum[0] = _mm256_fnmadd_ps(mins, _mm256_loadu_ps(x[t].s.add(b)), sum[0]);
            for j in 0..4 {
                let v = load(p.add(16 + 32 * j));
                let q = x[t].q.add(32 * (b + 2 * j));
                let zero = _mm256_setzero_si256();
                let even = I::dot_u(zero, _mm256_and_si256(v, low), load(q.cast()));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(v), low);
                let odd = I::dot_u(zero, high, load(q.add(32).cast()));
                let (a, c) = (2 * j % CHAINS, (2 * j + 1) % CHAINS);
                sum[a] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(even), _mm256_set1_ps(factors[2 * j]), sum[a]);
                sum[c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(odd), _mm256_set1_ps(factors[2 * j + 1]), sum[c]);
            }
        }
    }
}

struct Q6K;
impl Block for Q6K {
    const BYTES: usize = 210;
    const BLOCKS: usize = 8;
    #[inline(always)]
    unsafe fn step<I: Int, const T: usize, const C: usize>(p: *const u8, x: &[QRow; T], b: usize, acc: &mut Acc<T>) {
        let (low, two) = (_mm256_set1_epi8(15), _mm256_set1_epi8(0x30));
        // One scale for each half of a block of 32.
        let halves = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
        let d = _mm256_set1_ps(half(p.add(208)));
        let mut scales = [0.0f32; 16];
        for k in 0..2 {
            let s = _mm256_cvtepi8_epi32(_mm_loadl_epi64(p.add(192 + 8 * k).cast()));
            _mm256_storeu_ps(scales.as_mut_ptr().add(8 * k), _mm256_mul_ps(d, _mm256_cvtepi32_ps(s)));
        }
        for h in 0..2 {
            let (l0, l1) = (load(p.add(64 * h)), load(p.add(64 * h + 32)));
            let q = load(p.add(128 + 32 * h));
            let u = [
                _mm256_or_si256(
                    _mm256_and_si256(l0, low),
                    _mm256_and_si256(_mm256_slli_epi16::<4>(q), two),
                ),
                _mm256_or_si256(
                    _mm256_and_si256(l1, low),
                    _mm256_and_si256(_mm256_slli_epi16::<2>(q), two),
                ),
                _mm256_or_si256(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(l0), low),
                    _mm256_and_si256(q, two),
                ),
                _mm256_or_si256(
                    _mm256_and_si256(_mm256_srli_epi16::<4>(l1), low),
                    _mm256_and_si256(_mm256_srli_epi16::<2>(q), two),
                ),
            ];
            for (k, u) in u.into_iter().enumerate() {
                let j = 4 * h + k;
                let pair = _mm_loadl_epi64(scales.as_ptr().add(2 * j).cast());
                let scale = _mm256_permutevar8x32_ps(_mm256_castsi256_ps(_mm256_zextsi128_si256(pair)), halves);
                for t in 0..T {
                    let xq = load(x[t].q.add(32 * (b + j)).cast());
                    let dot = I::dot_u(I::offset(xq, 32), u, xq);
                    let factor = _mm256_mul_ps(scale, _mm256_broadcast_ss(&*x[t].d.add(b + j)));
                    acc[t][k] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot), factor, acc[t][k]);
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<I: Int, B: Block, const T: usize>(task: &Task<'_>, row: usize, token: usize) {
    let blocks = task.w.cols / (32 * B::BLOCKS);
    let mut p = task.w.data.as_ptr().add(row * blocks * B::BYTES);
    let mut x = [task.x[token].quants(task.w.cols); T];
    for t in 1..T {
        x[t] = task.x[token + t].quants(task.w.cols);
    }
    let mut acc: Acc<T> = [[_mm256_setzero_ps(); CHAINS]; T];
    let mut i = 0;
    if B::EIGHTS {
        while i + 8 <= blocks {
            B::eight::<I, T>(p, &x, i, &mut acc);
            p = p.add(8 * B::BYTES);
            i += 8;
        }
    }
    macro_rules! step {
        ($c:literal) => {
            B::step::<I, T, $c>(p, &x, i * B::BLOCKS, &mut acc);
            p = p.add(B::BYTES);
            i += 1;
        };
    }
    while i + CHAINS <= blocks {
        step!(0);
        step!(1);
        step!(2);
        step!(3);
    }
    while i < blocks {
        step!(0);
    }
    for t in 0..T {
        let [a, b, c, d] = acc[t];
        let sum = _mm256_add_ps(_mm256_add_ps(a, c), _mm256_add_ps(b, d));
        let v = <super::simd::Avx2 as super::simd::Simd>::sum(sum) + task.bias.map_or(0.0, |b| b[row]);
        task.y[token + t].write(row - task.first_row, v);
    }
}

#[inline(always)]
unsafe fn run<I: Int, B: Block>(task: &Task<'_>) {
    let tokens = task.x.len();
    // One row at a time: the processor fetches a single stream ahead at twice the speed of several at once.
    for row in task.rows.clone() {
        let mut t = 0;
        while t < tokens {
            t += match tokens - t {
                1 => {
                    tile::<I, B, 1>(task, row, t);
                    1
                }
                2 => {
                    tile::<I, B, 2>(task, row, t);
                    2
                }
                3 => {
                    tile::<I, B, 3>(task, row, t);
                    3
                }
                _ => {
                    tile::<I, B, 4>(task, row, t);
                    4
                }
            };
        }
    }
}

#[inline(always)]
unsafe fn by_format<I: Int>(task: &Task<'_>) {
    match task.w.format {
        Format::Q8_0 => run::<I, Q8_0>(task),
        Format::Q4_0 => run::<I, Q4_0>(task),
        Format::Q4_1 => run::<I, Q4_1>(task),
        Format::Q5_0 => run::<I, Q5_0>(task),
        Format::Q4K => run::<I, Q4K>(task),
        _ => run::<I, Q6K>(task),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2(task: &Task<'_>) {
    by_format::<Maddubs>(task);
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn vnni(task: &Task<'_>) {
    by_format::<Vnni>(task);
}

/// Runs a task whose activations were quantised.
pub(super) fn run_task(isa: Isa, task: &Task<'_>) {
    // SAFETY: the instruction set comes from detection; the matrix was checked to hold whole blocks, the activations
    // have as many, and outputs belong to this task alone.
    unsafe {
        if isa.has_vnni() && isa.has_vbmi() && wide::fits(task.w.format, task.w.cols) {
            wide::run_task(task);
        } else if isa.has_vnni() {
            vnni(task);
        } else {
            avx2(task);
        }
    }
}
