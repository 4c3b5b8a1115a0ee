//! The vector operations the product kernels are written in, for AVX2 and AVX-512.
//!
//! Contract of every function in here: the processor has the instruction set, and pointers are valid for the bytes
//! read or written. The functions are inlined into entry points compiled for that instruction set.
// Each function is one or two intrinsics under the contract above.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;

/// f32 vectors and the weight loads that produce them.
pub(super) trait Simd: Copy {
    /// A vector of [`Simd::LANES`] f32.
    type V: Copy;
    /// f32 per vector.
    const LANES: usize;
    unsafe fn zero() -> Self::V;
    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sum(a: Self::V) -> f32;
    /// Two vectors of consecutive f32.
    unsafe fn f32x2(p: *const u8) -> (Self::V, Self::V);
    /// Two vectors of consecutive f16.
    unsafe fn f16x2(p: *const u8) -> (Self::V, Self::V);
    /// Even and odd elements of consecutive bf16.
    unsafe fn bf16x2(p: *const u8) -> (Self::V, Self::V);
    /// Two vectors of consecutive e4m3, times 2^-120.
    unsafe fn e4m3x2(p: *const u8) -> (Self::V, Self::V);
    /// Even and odd elements of packed e2m1.
    unsafe fn e2m1x2(p: *const u8) -> (Self::V, Self::V);
}

#[derive(Clone, Copy)]
pub(super) struct Avx2;

#[derive(Clone, Copy)]
pub(super) struct Avx512;

impl Simd for Avx2 {
    type V = __m256;
    const LANES: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        _mm256_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        _mm256_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        _mm256_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sum(a: __m256) -> f32 {
        let q = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps::<1>(a));
        let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
        _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
    }
    #[inline(always)]
    unsafe fn f32x2(p: *const u8) -> (__m256, __m256) {
        (_mm256_loadu_ps(p.cast()), _mm256_loadu_ps(p.add(32).cast()))
    }
    #[inline(always)]
    unsafe fn f16x2(p: *const u8) -> (__m256, __m256) {
        (
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast())),
            _mm256_cvtph_ps(_mm_loadu_si128(p.add(16).cast())),
        )
    }
    #[inline(always)]
    unsafe fn bf16x2(p: *const u8) -> (__m256, __m256) {
        let v = _mm256_loadu_si256(p.cast());
        let odd = _mm256_and_si256(v, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(v)),
            _mm256_castsi256_ps(odd),
        )
    }
    #[inline(always)]
    unsafe fn e4m3x2(p: *const u8) -> (__m256, __m256) {
        let v = _mm_loadu_si128(p.cast());
        let mask = _mm256_set1_epi32(0x87f0_0000_u32 as i32);
        let lo = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(v));
        let hi = _mm256_slli_epi32::<20>(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(v, v)));
        (
            _mm256_castsi256_ps(_mm256_and_si256(lo, mask)),
            _mm256_castsi256_ps(_mm256_and_si256(hi, mask)),
        )
    }
    #[inline(always)]
    unsafe fn e2m1x2(p: *const u8) -> (__m256, __m256) {
        let v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        let table = _mm256_setr_ps(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0);
        let sign = _mm256_set1_epi32(0x8000_0000_u32 as i32);
        let even = _mm256_permutevar8x32_ps(table, v);
        let even_sign = _mm256_and_si256(_mm256_slli_epi32::<28>(v), sign);
        let odd = _mm256_permutevar8x32_ps(table, _mm256_srli_epi32::<4>(v));
        let odd_sign = _mm256_and_si256(_mm256_slli_epi32::<24>(v), sign);
        (
            _mm256_or_ps(even, _mm256_castsi256_ps(even_sign)),
            _mm256_or_ps(odd, _mm256_castsi256_ps(odd_sign)),
        )
    }
}

impl Simd for Avx512 {
    type V = __m512;
    const LANES: usize = 16;
    #[inline(always)]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        _mm512_set1_ps(x)
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        _mm512_loadu_ps(p)
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        _mm512_add_ps(a, b)
    }
    #[inline(always)]
    unsafe fn sum(a: __m512) -> f32 {
        Avx2::sum(_mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a)))
    }
    #[inline(always)]
    unsafe fn f32x2(p: *const u8) -> (__m512, __m512) {
        (_mm512_loadu_ps(p.cast()), _mm512_loadu_ps(p.add(64).cast()))
    }
    #[inline(always)]
    unsafe fn f16x2(p: *const u8) -> (__m512, __m512) {
        (
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())),
            _mm512_cvtph_ps(_mm256_loadu_si256(p.add(32).cast())),
        )
    }
    #[inline(always)]
    unsafe fn bf16x2(p: *const u8) -> (__m512, __m512) {
        let v = _mm512_loadu_si512(p.cast());
        let odd = _mm512_and_si512(v, _mm512_set1_epi32(0xffff_0000_u32 as i32));
        (
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(v)),
            _mm512_castsi512_ps(odd),
        )
    }
    #[inline(always)]
    unsafe fn e4m3x2(p: *const u8) -> (__m512, __m512) {
        let mask = _mm512_set1_epi32(0x87f0_0000_u32 as i32);
        let lo = _mm512_slli_epi32::<20>(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())));
        let hi = _mm512_slli_epi32::<20>(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.add(16).cast())));
        (
            _mm512_castsi512_ps(_mm512_and_si512(lo, mask)),
            _mm512_castsi512_ps(_mm512_and_si512(hi, mask)),
        )
    }
    #[inline(always)]
    unsafe fn e2m1x2(p: *const u8) -> (__m512, __m512) {
        let v = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
        let table = _mm512_setr_ps(
            0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
        );
        (
            _mm512_permutexvar_ps(v, table),
            _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(v), table),
        )
    }
}
