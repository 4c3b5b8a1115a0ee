//! Panels of block-quantised weights for [`super::gemm`]: 16 rows, unpacked and laid out so that one vector holds four
//! columns of every row.
// Every function: the processor has the instruction set it is compiled for; pointers are valid for what is read there.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

use super::Task;
use super::prep::Aligned;
use crate::cpu::formats::{int_shape, unpack};

/// Weight rows of a panel: the lanes of a vector.
pub(super) const LANES: usize = 16;

/// Parts of a panel, for `cols / sub` blocks.
pub(super) struct IntPanel {
    /// Columns that share a scale.
    pub sub: usize,
    /// Whether there are minimums.
    pub has_mins: bool,
    /// i8 weights: four columns of 16 rows in each 64 bytes.
    pub w: *const i8,
    /// -128 times the sum of a block's weights, `[blocks, 16]` i32: activations are stored with 128 added.
    pub correction: *const i32,
    /// `[blocks, 16]`
    pub scales: *const f32,
    /// `[blocks, 16]`, if the format has minimums.
    pub mins: *const f32,
}

impl IntPanel {
    /// Unpacks up to 16 rows into `space`; rows that are not there are zero.
    ///
    /// # Safety
    /// The processor has AVX-512 F, BW, VL, DQ and VNNI.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    pub(super) unsafe fn new(task: &Task<'_>, space: &mut Aligned) -> Self {
        let (sub, offset, has_mins) = int_shape(task.w.format);
        let cols = task.w.cols;
        let (blocks, words) = (cols / sub, cols / 4);
        // Rows as unpacked, one after the other; not a multiple of 4096 bytes apart, which would share cache sets.
        let stride = cols.next_multiple_of(64) + 64;
        let parts = if has_mins { 3 } else { 2 };
        let floats = (words + parts * blocks) * LANES + parts * blocks;
        space.reserve(floats.next_multiple_of(16) + LANES * stride / 4);
        let (all, rows) = space.as_mut_slice().split_at_mut(floats.next_multiple_of(16));
        let (w, rest) = all.split_at_mut(words * LANES);
        let (correction, rest) = rest.split_at_mut(blocks * LANES);
        let (scales, rest) = rest.split_at_mut(blocks * LANES);
        let (mins, rest) = rest.split_at_mut((parts - 2) * blocks * LANES);
        let (row_scales, rest) = rest.split_at_mut(blocks);
        let row_mins = &mut rest[..(parts - 2) * blocks];
        let rows: &mut [u8] = &mut bytemuck::cast_slice_mut(rows)[..LANES * stride];
        for (r, values) in rows.chunks_exact_mut(stride).enumerate() {
            let o = task.rows.start + r;
            if o < task.rows.end {
                unpack(task.w.format, task.w.row(o), &mut values[..cols], row_scales, row_mins);
            } else {
                values[..cols].fill(offset);
                row_scales.fill(0.0);
                row_mins.fill(0.0);
            }
            scales[r..]
                .iter_mut()
                .step_by(LANES)
                .zip(&*row_scales)
                .for_each(|(o, s)| *o = *s);
            mins.iter_mut()
                .skip(r)
                .step_by(LANES)
                .zip(&*row_mins)
                .for_each(|(o, m)| *o = *m);
        }
        let correction: &mut [i32] = bytemuck::cast_slice_mut(correction);
        interleave(rows, stride, cols, offset, w.as_mut_ptr().cast());
        sum_blocks(w.as_ptr().cast(), sub / 4, correction);
        Self {
            sub,
            has_mins,
            w: w.as_ptr().cast(),
            correction: correction.as_ptr(),
            scales: scales.as_ptr(),
            mins: mins.as_ptr(),
        }
    }
}

/// 16 rows of `cols` bytes, less `offset`, to lines of 4 bytes of each.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
#[inline]
unsafe fn interleave(rows: &[u8], stride: usize, cols: usize, offset: u8, out: *mut u8) {
    let by = _mm512_set1_epi8(offset as i8);
    let mut c = 0;
    while c < cols {
        // Rows are padded, so the last 64 bytes may be read whole; what is beyond the columns is not stored.
        let lines = ((cols - c) / 4).min(LANES);
        let mut v = [_mm512_setzero_si512(); LANES];
        for (r, v) in v.iter_mut().enumerate() {
            *v = _mm512_sub_epi8(_mm512_loadu_si512(rows.as_ptr().add(r * stride + c).cast()), by);
        }
        for (i, line) in transposed(&v).into_iter().enumerate().take(lines) {
            _mm512_storeu_si512(out.add((c / 4 + i) * 64).cast(), line);
        }
        c += 64;
    }
}

/// The 16 x 16 matrix of 32-bit words, transposed.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
#[inline]
unsafe fn transposed(v: &[__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    let (mut pairs, mut fours, mut out) = ([zero; 16], [zero; 16], [zero; 16]);
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
    }
    // Quarter l of fours[4 * i + k]: column 4 * l + k of rows 4 * i to 4 * i + 3.
    for i in 0..4 {
        for k in 0..2 {
            let (a, b) = (pairs[4 * i + k], pairs[4 * i + k + 2]);
            fours[4 * i + 2 * k] = _mm512_unpacklo_epi64(a, b);
            fours[4 * i + 2 * k + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    for k in 0..4 {
        let [a, b, c, d] = [fours[k], fours[4 + k], fours[8 + k], fours[12 + k]];
        let (ab, cd) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0x44>(c, d));
        out[k] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[4 + k] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
        let (ab, cd) = (_mm512_shuffle_i32x4::<0xee>(a, b), _mm512_shuffle_i32x4::<0xee>(c, d));
        out[8 + k] = _mm512_shuffle_i32x4::<0x88>(ab, cd);
        out[12 + k] = _mm512_shuffle_i32x4::<0xdd>(ab, cd);
    }
    out
}

/// -128 times the sums of `quads` lines of weights.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
#[inline]
unsafe fn sum_blocks(w: *const u8, quads: usize, out: &mut [i32]) {
    let by = _mm512_set1_epi8(-128); // 128 as an unsigned byte
    for (b, out) in out.chunks_exact_mut(LANES).enumerate() {
        let mut sum = _mm512_setzero_si512();
        for q in 0..quads {
            sum = _mm512_dpbusd_epi32(sum, by, _mm512_loadu_si512(w.add((b * quads + q) * 64).cast()));
        }
        _mm512_storeu_si512(out.as_mut_ptr().cast(), _mm512_sub_epi32(_mm512_setzero_si512(), sum));
    }
}
