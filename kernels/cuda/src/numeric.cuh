// Small number formats. Encoders give the bytes of kernels/cpu/records; decoders are exact. All of it is plain integer
// and f32 arithmetic without contraction, so that the emulator and every GPU give the same bits.
#pragma once

#include "common.cuh"
#ifndef MODEL1_EMULATE
#include <cuda_fp16.h>
#endif

// f16 bits to f32, exact.
__device__ __forceinline__ float f16_to_f32(uint32_t bits) {
#ifndef MODEL1_EMULATE
    return __half2float(__ushort_as_half((unsigned short)bits));
#else
    const uint32_t shifted = (bits & 0x7fffu) << 13;
    // The zeros of the exponents are 112 apart.
    const uint32_t value = __float_as_uint(__fmul_rn(__uint_as_float(shifted), __uint_as_float((127u + 112u) << 23)));
    return __uint_as_float(value | (shifted >= 0x0f800000u ? 0x7f800000u : 0u) | (bits & 0x8000u) << 16);
#endif
}

#ifdef MODEL1_EMULATE
// Nearest f16, ties to even; what is too large becomes infinity.
inline uint32_t f32_to_f16(float v) {
    const uint32_t bits = __float_as_uint(v), sign = bits >> 16 & 0x8000u, m = bits & 0x7fffffffu;
    if (m > 0x7f800000u) return sign | 0x7e00u;
    if (m >= 0x477ff000u) return sign | 0x7c00u;
    // Below 2^-14 in steps of 2^-24: so are the last bits of 0.5 plus the number.
    if (m < 0x38800000u) return sign | (__float_as_uint(__uint_as_float(m) + 0.5f) - 0x3f000000u);
    return sign | ((m + 0xfffu + (m >> 13 & 1u)) - 0x38000000u) >> 13;
}
#endif

__device__ __forceinline__ float bf16_to_f32(uint32_t bits) { return __uint_as_float(bits << 16); }

// Nearest bf16, ties to even; NaN stays NaN.
__device__ __forceinline__ uint32_t f32_to_bf16(float v) {
    const uint32_t b = __float_as_uint(v);
    if ((b & 0x7fffffffu) > 0x7f800000u) return b >> 16 | 0x40u;
    return (b + 0x7fffu + (b >> 16 & 1u)) >> 16;
}

// E4M3 code to f32: exponent and mantissa are moved into an f32's, 120 binades too low.
__device__ __forceinline__ float e4m3_to_f32(uint32_t code) {
    const float v = __fmul_rn(__uint_as_float((code & 0x80u) << 24 | (code & 0x7fu) << 20), 1.329227995784916e36f);
    return (code & 0x7fu) == 0x7fu ? __uint_as_float(0x7fc00000u) : v;
}

// The same for weights and other data known to hold no NaN.
__device__ __forceinline__ float e4m3_finite(uint32_t code) {
    return __fmul_rn(__uint_as_float((code & 0x80u) << 24 | (code & 0x7fu) << 20), 1.329227995784916e36f);
}

// E2M1 code (low 4 bits) to f32: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives.
__device__ __forceinline__ float e2m1_to_f32(uint32_t code) {
    return __fmul_rn(__uint_as_float((code & 8u) << 28 | (code & 7u) << 22), 8.507059173023462e37f);
}

// 2^(byte - 127).
__device__ __forceinline__ float ue8m0_to_f32(uint32_t byte) {
    return __uint_as_float(byte == 0 ? 0x00400000u : byte << 23);
}

// 1 / 2^(byte - 127) for bytes 1 to 253.
__device__ __forceinline__ float ue8m0_inverse(uint32_t byte) { return __uint_as_float((254u - byte) << 23); }

// Scale byte of a block whose largest finite magnitude is `amax`: 2^ceil(log2(max(amax, floor) / M)) on f32 bits.
__device__ __forceinline__ uint32_t ue8m0_from_amax(float amax, float inv_max, float floor) {
    const uint32_t bits = __float_as_uint(__fmul_rn(fmaxf(amax, floor), inv_max));
    return min((bits >> 23 & 0xffu) + ((bits & 0x7fffffu) != 0 ? 1u : 0u), 254u);
}

constexpr float kE4m3Max = 448.0f, kE2m1Max = 6.0f;

__device__ __forceinline__ uint32_t e4m3_scale_byte(float amax) {
    return ue8m0_from_amax(amax, 1.0f / 448.0f, 1e-4f);
}
__device__ __forceinline__ uint32_t e2m1_scale_byte(float amax) {
    return ue8m0_from_amax(amax, 1.0f / 6.0f, 6.0f * 1.17549435e-38f);
}

// |v| where finite, else 0: what a block's largest magnitude is taken over.
__device__ __forceinline__ float finite_magnitude(float v) {
    const uint32_t b = __float_as_uint(v) & 0x7fffffffu;
    return __uint_as_float(b < 0x7f800000u ? b : 0u);
}

struct Rounded {
    uint32_t code;
    float value;
};

// Nearest value of a small float format, ties to even; `lowest` is the f32 exponent field of its smallest normal
// value. Adding 2^23 steps leaves the number of steps in the low bits of the sum.
template <uint32_t MANTISSA, uint32_t LOWEST>
__device__ __forceinline__ Rounded round_magnitude(float a) {
    const uint32_t e = max(__float_as_uint(a) >> 23, LOWEST);
    const uint32_t steps = __float_as_uint(__fadd_rn(a, __uint_as_float((e + 23 - MANTISSA) << 23))) & 0x7fffffu;
    return {((e - LOWEST) << MANTISSA) + steps, __fmul_rn((float)steps, __uint_as_float((e - MANTISSA) << 23))};
}

// What storing values did to them; see DevRowStats.
struct RoundTrip {
    float err = 0.0f, ref = 0.0f;
    uint32_t saturated = 0, flushed = 0;

    __device__ __forceinline__ void note(float value, float stored, bool clamped) {
        const bool finite = (__float_as_uint(value) & 0x7fffffffu) < 0x7f800000u;
        const float v = finite ? value : 0.0f, s = finite ? stored : 0.0f;
        err += (v - s) * (v - s);
        ref += v * v;
        flushed += v != 0.0f && s == 0.0f;
        saturated += clamped;
    }
};

// Code of a value in a block with this scale byte; `stored` is what it decodes to.
__device__ __forceinline__ uint32_t e4m3_encode(float v, uint32_t byte, float* stored, RoundTrip& trip) {
    const float scaled = __fmul_rn(v, ue8m0_inverse(byte));
    const bool nan = v != v;
    const Rounded r = round_magnitude<3, 121>(nan ? 0.0f : fminf(fabsf(scaled), kE4m3Max));
    const float back = copysignf(__fmul_rn(r.value, ue8m0_to_f32(byte)), v);
    trip.note(v, back, nan || fabsf(scaled) > kE4m3Max);
    *stored = nan ? __uint_as_float(0x7fc00000u) : back;
    return nan ? 0x7fu : (__float_as_uint(v) >> 24 & 0x80u) | r.code;
}

__device__ __forceinline__ uint32_t e2m1_encode(float v, uint32_t byte, float* stored, RoundTrip& trip) {
    const float scaled = __fmul_rn(v, ue8m0_inverse(byte));
    const bool nan = v != v;
    const Rounded r = round_magnitude<1, 127>(nan ? 0.0f : fminf(fabsf(scaled), kE2m1Max));
    const float back = copysignf(__fmul_rn(r.value, ue8m0_to_f32(byte)), v);
    trip.note(v, back, nan || fabsf(scaled) > kE2m1Max);
    *stored = nan ? 0.0f : back;
    return nan ? 0u : (__float_as_uint(v) >> 28 & 8u) | r.code;
}

// Unsigned key in the order of f32's total order (-NaN lowest, NaN highest, -0 below 0).
__device__ __forceinline__ uint32_t ordered_key(float v) {
    const uint32_t b = __float_as_uint(v);
    return b ^ ((b >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}

// (sine, cosine) of `position` turns of `freq` radians, in double precision up to the end.
__device__ inline float2 turn_at(uint64_t position, double freq, bool inverse) {
    const double turn = (double)position * freq * 0.15915494309189533577;
    double sine, cosine;
    sincospi(2.0 * (turn - rint(turn)), &sine, &cosine);
    return make_float2((float)(inverse ? -sine : sine), (float)cosine);
}
