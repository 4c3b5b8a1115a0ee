//! Decoding of e4m3 and e2m1 blocks: plain Rust, AVX2 and AVX-512 forms that give the same bits.
//!
//! The vector form of e4m3 needs no table: sign, exponent and mantissa moved to their f32 places give the value
//! times 2^-120 (subnormals included), one exact multiply undoes that and a second applies the scale.

use super::fp8::Blocks;
use crate::cpu::formats::{e2m1_to_f32, e4m3_to_f32, ue8m0_to_f32};
use crate::cpu::isa::Isa;

/// Decodes e4m3 codes: `out[i] = e4m3(codes[i]) * scale of its block`; NaN codes give [`f32::NAN`].
/// Where the CPU lacks `isa`, plain Rust runs.
pub fn decode_e4m3_blocks(isa: Isa, codes: &[u8], blocks: Blocks<'_>, out: &mut [f32]) {
    let len = blocks.block_len().max(1);
    for (i, (codes, out)) in codes.chunks(len).zip(out.chunks_mut(len)).enumerate() {
        e4m3_block(isa, codes, blocks.scale(i), out);
    }
}

#[inline]
fn e4m3_block(isa: Isa, codes: &[u8], scale: f32, out: &mut [f32]) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 if std::arch::is_x86_feature_detected!("avx512f") => {
            // SAFETY: the CPU has AVX-512F.
            unsafe { x86::e4m3_avx512(codes, scale, out) }
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 if std::arch::is_x86_feature_detected!("avx2") => {
            // SAFETY: the CPU has AVX2.
            unsafe { x86::e4m3_avx2(codes, scale, out) }
        }
        _ => e4m3_plain(codes, scale, out),
    }
}

fn e4m3_plain(codes: &[u8], scale: f32, out: &mut [f32]) {
    for (&c, o) in codes.iter().zip(out) {
        *o = if c & 0x7f == 0x7f {
            f32::NAN
        } else {
            e4m3_to_f32(c) * scale
        };
    }
}

/// Decodes e2m1 pairs (low nibble first) in blocks of 32 with ue8m0 scales; `out` may end within a block.
/// Where the CPU lacks `isa`, plain Rust runs.
pub fn decode_fp4_blocks(isa: Isa, codes: &[u8], scales: &[u8], out: &mut [f32]) {
    let table: [f32; 16] = std::array::from_fn(|c| e2m1_to_f32(c as u8));
    for ((codes, out), &byte) in codes.chunks(16).zip(out.chunks_mut(32)).zip(scales) {
        let scale = ue8m0_to_f32(byte);
        match (isa, <&[u8; 16]>::try_from(codes), <&mut [f32; 32]>::try_from(&mut *out)) {
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx512, Ok(codes), Ok(out)) if std::arch::is_x86_feature_detected!("avx512f") => {
                // SAFETY: the CPU has AVX-512F.
                unsafe { x86::fp4_avx512(&table, codes, scale, out) }
            }
            #[cfg(target_arch = "x86_64")]
            (Isa::Avx2, Ok(codes), Ok(out)) if std::arch::is_x86_feature_detected!("avx2") => {
                // SAFETY: the CPU has AVX2.
                unsafe { x86::fp4_avx2(&table, codes, scale, out) }
            }
            _ => fp4_plain(&table, codes, scale, out),
        }
    }
}

fn fp4_plain(table: &[f32; 16], codes: &[u8], scale: f32, out: &mut [f32]) {
    for (&c, pair) in codes.iter().zip(out.chunks_mut(2)) {
        pair[0] = table[usize::from(c & 15)] * scale;
        if let Some(high) = pair.get_mut(1) {
            *high = table[usize::from(c >> 4)] * scale;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    /// 2^120, which turns the moved bits into the e4m3 value.
    const LIFT: f32 = f32::from_bits((120 + 127) << 23);

    #[target_feature(enable = "avx512f")]
    pub fn e4m3_avx512(codes: &[u8], scale: f32, out: &mut [f32]) {
        let n = codes.len().min(out.len());
        let (lift, scale16) = (_mm512_set1_ps(LIFT), _mm512_set1_ps(scale));
        let (low7, nan) = (_mm512_set1_epi32(0x7f), _mm512_set1_ps(f32::NAN));
        for (codes, out) in codes[..n].chunks_exact(16).zip(out[..n].chunks_exact_mut(16)) {
            // SAFETY: 16 bytes are there.
            let c = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
            let low = _mm512_and_si512(c, low7);
            let sign = _mm512_slli_epi32::<24>(_mm512_andnot_si512(low7, c));
            let moved = _mm512_castsi512_ps(_mm512_or_si512(sign, _mm512_slli_epi32::<20>(low)));
            let v = _mm512_mul_ps(_mm512_mul_ps(moved, lift), scale16);
            let v = _mm512_mask_blend_ps(_mm512_cmpeq_epi32_mask(low, low7), v, nan);
            // SAFETY: 16 floats are there.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), v) };
        }
        let done = n - n % 16;
        super::e4m3_plain(&codes[done..n], scale, &mut out[done..n]);
    }

    #[target_feature(enable = "avx2")]
    pub fn e4m3_avx2(codes: &[u8], scale: f32, out: &mut [f32]) {
        let n = codes.len().min(out.len());
        let (lift, scale8) = (_mm256_set1_ps(LIFT), _mm256_set1_ps(scale));
        let (low7, nan) = (_mm256_set1_epi32(0x7f), _mm256_set1_ps(f32::NAN));
        for (codes, out) in codes[..n].chunks_exact(8).zip(out[..n].chunks_exact_mut(8)) {
            // SAFETY: 8 bytes are there.
            let c = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) });
            let low = _mm256_and_si256(c, low7);
            let sign = _mm256_slli_epi32::<24>(_mm256_andnot_si256(low7, c));
            let moved = _mm256_castsi256_ps(_mm256_or_si256(sign, _mm256_slli_epi32::<20>(low)));
            let v = _mm256_mul_ps(_mm256_mul_ps(moved, lift), scale8);
            let v = _mm256_blendv_ps(v, nan, _mm256_castsi256_ps(_mm256_cmpeq_epi32(low, low7)));
            // SAFETY: 8 floats are there.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), v) };
        }
        let done = n - n % 8;
        super::e4m3_plain(&codes[done..n], scale, &mut out[done..n]);
    }

    #[target_feature(enable = "avx512f")]
    pub fn fp4_avx512(table: &[f32; 16], codes: &[u8; 16], scale: f32, out: &mut [f32; 32]) {
        // SAFETY: 16 floats and 16 bytes are there.
        let (table, c) = unsafe { (_mm512_loadu_ps(table.as_ptr()), _mm_loadu_si128(codes.as_ptr().cast())) };
        let (c, scale) = (_mm512_cvtepu8_epi32(c), _mm512_set1_ps(scale));
        // The permutation looks at the low four bits of every index only.
        let low = _mm512_mul_ps(_mm512_permutexvar_ps(c, table), scale);
        let high = _mm512_mul_ps(_mm512_permutexvar_ps(_mm512_srli_epi32::<4>(c), table), scale);
        let first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        let second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
        // SAFETY: 32 floats are there.
        unsafe {
            _mm512_storeu_ps(out.as_mut_ptr(), _mm512_permutex2var_ps(low, first, high));
            _mm512_storeu_ps(out.as_mut_ptr().add(16), _mm512_permutex2var_ps(low, second, high));
        }
    }

    #[target_feature(enable = "avx2")]
    pub fn fp4_avx2(table: &[f32; 16], codes: &[u8; 16], scale: f32, out: &mut [f32; 32]) {
        // SAFETY: 8 floats are there; the upper half of the table is the lower one with the sign set.
        let table = unsafe { _mm256_loadu_ps(table.as_ptr()) };
        let (scale, sign) = (_mm256_set1_ps(scale), _mm256_set1_epi32(8));
        let value = |c: __m256i| {
            let s = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(_mm256_and_si256(c, sign)));
            _mm256_mul_ps(_mm256_or_ps(_mm256_permutevar8x32_ps(table, c), s), scale)
        };
        for (codes, out) in codes.chunks_exact(8).zip(out.chunks_exact_mut(16)) {
            // SAFETY: 8 bytes are there.
            let c = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(codes.as_ptr().cast()) });
            let (low, high) = (value(c), value(_mm256_srli_epi32::<4>(c)));
            let (a, b) = (_mm256_unpacklo_ps(low, high), _mm256_unpackhi_ps(low, high));
            // SAFETY: 16 floats are there.
            unsafe {
                _mm256_storeu_ps(out.as_mut_ptr(), _mm256_permute2f128_ps::<0x20>(a, b));
                _mm256_storeu_ps(out.as_mut_ptr().add(8), _mm256_permute2f128_ps::<0x31>(a, b));
            }
        }
    }
}
