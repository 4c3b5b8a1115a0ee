// Stored weights in 16-byte chunks: how the fast paths read them. A chunk is loaded as it lies (`Raw`) and turned into
// values later, so that many loads are in flight before the first is used.
#pragma once

#include "weights.cuh"

#ifndef MODEL1_EMULATE
// The cache policy of what is the first to leave the second-level cache.
__device__ __forceinline__ uint64_t first_to_leave() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 900
    // What the instruction below gives on Hopper: as a constant it takes no registers.
    return 0x12f0000000000000ull;
#else
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
#endif
}
#endif

// Read-only, used once per step: not kept in the first-level cache, and the first to leave the second-level one, where
// gigabytes of weights would otherwise drive out all that is read again soon, the kernels' instructions too.
__device__ __forceinline__ uint4 load_stream(const uint8_t* p) {
#ifdef MODEL1_EMULATE
    return *(const uint4*)p;
#else
    const uint64_t policy = first_to_leave();
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(policy));
    return v;
#endif
}

// The same where `there`; else nothing is read, and what comes back means nothing: no branch, and no copies to keep what was.
__device__ __forceinline__ uint4 load_stream_if(const uint8_t* p, bool there) {
#ifdef MODEL1_EMULATE
    return there ? *(const uint4*)p : make_uint4(0, 0, 0, 0);
#else
    const uint64_t policy = first_to_leave();
    uint4 v;
    asm volatile(
        "{\n\t"
        ".reg .pred there;\n\t"
        "setp.ne.u32 there, %6, 0;\n\t"
        "@there ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;\n\t"
        "}"
        : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
        : "l"(p), "l"(policy), "r"(there ? 1u : 0u));
    return v;
#endif
}

// Two f16 numbers as f32.
__device__ __forceinline__ float2 f16_pair(uint32_t halves) {
#ifdef MODEL1_EMULATE
    return make_float2(f16_to_f32(halves & 0xffffu), f16_to_f32(halves >> 16));
#else
    return __half22float2(*(const __half2*)&halves);
#endif
}

// Two e4m3 codes (low 16 bits) as f32. Hopper and Ada convert them to f16 in one instruction, exactly.
__device__ __forceinline__ float2 e4m3_pair(uint32_t codes) {
#if !defined(MODEL1_EMULATE) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((unsigned short)codes));
    return f16_pair(halves);
#else
    return make_float2(e4m3_finite(codes & 255u), e4m3_finite(codes >> 8 & 255u));
#endif
}

// A chunk: LEN neighbouring values of a row in its 16 bytes at 16 * chunk, loaded as WORDS words. four(raw, i) are values
// 4 i to 4 i + 3, each as a number `n` that is cheap to make. A value is n * UNIT, and in formats that are SCALED, where
// scales are there, what SCALE_WORDS words `s` say: `scale` loads the chunk's from a row of scales, which `row_scales` finds,
//   combine(w, s, chunk, dot, sum) = sum of value * x,  dot = sum of n * x,  sum = sum of x (looked at where SUMS),
//   affine(w, s, chunk) = (f, a) with value = n * f + a.
// EXACT: values (times a power of two) are bf16 numbers.
struct Sixteen {
    static constexpr uint32_t WORDS = 4;
    static constexpr float UNIT = 1.0f;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        take(load_stream(row + 16 * (size_t)chunk), w);
    }
    static __device__ __forceinline__ void load_if(const uint8_t* row, uint32_t chunk, bool there, uint32_t (&w)[WORDS]) {
        take(load_stream_if(row + 16 * (size_t)chunk, there), w);
    }
    static __device__ __forceinline__ void take(uint4 v, uint32_t (&w)[WORDS]) {
        w[0] = v.x;
        w[1] = v.y;
        w[2] = v.z;
        w[3] = v.w;
    }
};

// Without scales of its own.
struct Unscaled : Sixteen {
    static constexpr uint32_t SCALE_WORDS = 1;
    static constexpr bool SCALED = false, SUMS = false;
    static __device__ __forceinline__ const uint8_t* row_scales(const WeightRef&, const uint8_t* scales, uint32_t) { return scales; }
    static __device__ __forceinline__ void scale(const WeightRef&, const uint8_t*, uint32_t, uint32_t (&)[1]) {}
    static __device__ __forceinline__ float combine(const WeightRef&, const uint32_t (&)[1], uint32_t, float dot, float) {
        return dot;
    }
    static __device__ __forceinline__ float2 affine(const WeightRef&, const uint32_t (&)[1], uint32_t) {
        return make_float2(1.0f, 0.0f);
    }
};

struct ChunkF32 : Unscaled {
    static constexpr uint32_t LEN = 4;
    static constexpr bool EXACT = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t) {
        return make_float4(__uint_as_float(w[0]), __uint_as_float(w[1]), __uint_as_float(w[2]), __uint_as_float(w[3]));
    }
};

struct ChunkBf16 : Unscaled {
    static constexpr uint32_t LEN = 8;
    static constexpr bool EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t a = w[2 * i], b = w[2 * i + 1];
        return make_float4(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u), __uint_as_float(b << 16),
                           __uint_as_float(b & 0xffff0000u));
    }
};

struct ChunkF16 : Unscaled {
    static constexpr uint32_t LEN = 8;
    static constexpr bool EXACT = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t a = w[2 * i], b = w[2 * i + 1];
        return make_float4(f16_to_f32(a & 0xffffu), f16_to_f32(a >> 16), f16_to_f32(b & 0xffffu), f16_to_f32(b >> 16));
    }
};

// One factor per block of columns, kept in a tensor of its own (WeightRef::scales).
template <uint32_t L>
struct Factors : Sixteen {
    static constexpr uint32_t LEN = L, SCALE_WORDS = 1;
    static constexpr bool SCALED = true, SUMS = false, EXACT = true;
    static __device__ __forceinline__ const uint8_t* row_scales(const WeightRef& w, const uint8_t* scales, uint32_t row) {
        return scale_row(w, scales, row);
    }
    static __device__ __forceinline__ void scale(const WeightRef& w, const uint8_t* scales, uint32_t chunk, uint32_t (&s)[1]) {
        s[0] = scale_bits(w.scale_format, scales, divided(chunk * LEN, w.block_cols));
    }
};

struct ChunkF8 : Factors<16> {
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const float2 low = e4m3_pair(w[i] & 0xffffu), high = e4m3_pair(w[i] >> 16);
        return make_float4(low.x, low.y, high.x, high.y);
    }
    static __device__ __forceinline__ float combine(const WeightRef& w, const uint32_t (&s)[1], uint32_t, float dot, float) {
        return dot * scale_of_bits(w.scale_format, s[0]);
    }
    static __device__ __forceinline__ float2 affine(const WeightRef& w, const uint32_t (&s)[1], uint32_t) {
        return make_float2(scale_of_bits(w.scale_format, s[0]), 0.0f);
    }
};

struct ChunkFp4 : Factors<32> {
    static constexpr float UNIT = 16384.0f;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const float2 a = pair<0>(w[i / 2]), b = pair<1>(w[i / 2]), c = pair<2>(w[i / 2]), d = pair<3>(w[i / 2]);
        return i % 2 == 0 ? make_float4(a.x, b.x, c.x, d.x) : make_float4(a.y, b.y, c.y, d.y);
    }
    template <uint32_t J>
    static __device__ __forceinline__ float2 pair(uint32_t word) {
        return f16_pair(codes<J>(word));
    }
    // Codes J and J + 4 of a word in the places of f16's sign, last two bits of the exponent and first of the mantissa: the
    // values, 14 binades too low.
    template <uint32_t J>
    static __device__ __forceinline__ uint32_t codes(uint32_t word) {
        constexpr uint32_t at = 4 * J;
        const uint32_t number = at <= 9 ? word << ((9 - at) & 31) : word >> ((at - 9) & 31);
        return (number & 0x0e000e00u) | (word << (12 - at) & 0x80008000u);
    }
    static __device__ __forceinline__ float combine(const WeightRef& w, const uint32_t (&s)[1], uint32_t, float dot, float) {
        return dot * (UNIT * scale_of_bits(w.scale_format, s[0]));
    }
    static __device__ __forceinline__ float2 affine(const WeightRef& w, const uint32_t (&s)[1], uint32_t) {
        return make_float2(UNIT * scale_of_bits(w.scale_format, s[0]), 0.0f);
    }
};

// The planes of GGUF's block formats (../planes.rs). Integers become floats by one byte permutation each: there is no
// time for conversions, which are a quarter as fast.

// BYTES of scales for every ENTRY values, in rows of their own.
template <uint32_t L, uint32_t W, uint32_t ENTRY, uint32_t BYTES>
struct Plane : Sixteen {
    static constexpr uint32_t LEN = L, SCALE_WORDS = W;
    static constexpr bool SCALED = true, EXACT = false;
    static __device__ __forceinline__ const uint8_t* row_scales(const WeightRef& w, const uint8_t* scales, uint32_t row) {
        return scales + (size_t)row * (w.cols / ENTRY * BYTES);
    }
};

// Signed bytes: 2^23 + (q + 128) is exact, and so is the rest after 2^23 + 128 is taken off.
template <uint32_t BYTES>
struct Bytes : Plane<16, 1, 32, BYTES> {
    static constexpr bool SUMS = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t q = w[i] ^ 0x80808080u;
        return make_float4(number(q, 0x7650), number(q, 0x7651), number(q, 0x7652), number(q, 0x7653));
    }
    static __device__ __forceinline__ float number(uint32_t bytes, uint32_t selector) {
        return __uint_as_float(__byte_perm(bytes, 0x4b000000u, selector)) - 8388736.0f;
    }
};

struct ChunkQ8_0 : Bytes<2> {
    using Scale = uint16_t;
    static __device__ __forceinline__ void scale(const WeightRef&, const uint8_t* scales, uint32_t chunk, uint32_t (&s)[1]) {
        s[0] = constant((const uint16_t*)scales + chunk / 2);
    }
    static __device__ __forceinline__ float2 affine(const WeightRef&, const uint32_t (&s)[1], uint32_t) {
        return make_float2(f16_to_f32(s[0] & 0xffffu), 0.0f);
    }
    static __device__ __forceinline__ float combine(const WeightRef& w, const uint32_t (&s)[1], uint32_t chunk, float dot, float) {
        return dot * affine(w, s, chunk).x;
    }
};

struct ChunkQ6K : Bytes<4> {
    using Scale = uint32_t;
    // f16 of 256 values, signed bytes of 16 values each
    static __device__ __forceinline__ void scale(const WeightRef&, const uint8_t* scales, uint32_t chunk, uint32_t (&s)[1]) {
        s[0] = constant((const uint32_t*)scales + chunk / 2);
    }
    static __device__ __forceinline__ float2 affine(const WeightRef&, const uint32_t (&s)[1], uint32_t chunk) {
        return make_float2(q6_k_scale(s[0], chunk), 0.0f);
    }
    static __device__ __forceinline__ float combine(const WeightRef& w, const uint32_t (&s)[1], uint32_t chunk, float dot, float) {
        return dot * affine(w, s, chunk).x;
    }
};

// Nibbles: n = 128 + 8 q, as bytes 8 q that are the third byte of a float with exponent 7. A word holds 8 values; see
// `nibbles` in weights.cuh.
template <uint32_t W, uint32_t ENTRY, uint32_t BYTES>
struct Nibbles : Plane<32, W, ENTRY, BYTES> {
    static constexpr bool SUMS = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t q = nibbles(w[i / 2], i % 2);
        return make_float4(number(q, 0x7044), number(q, 0x7144), number(q, 0x7244), number(q, 0x7344));
    }
    static __device__ __forceinline__ float number(uint32_t bytes, uint32_t selector) {
        return __uint_as_float(__byte_perm(bytes, 0x43000000u, selector));
    }
    // Sum of q * x.
    static __device__ __forceinline__ float quants(float dot, float sum) { return (dot - 128.0f * sum) * 0.125f; }
};

struct ChunkQ4_0 : Nibbles<1, 32, 2> {
    static __device__ __forceinline__ void scale(const WeightRef&, const uint8_t* scales, uint32_t chunk, uint32_t (&s)[1]) {
        s[0] = constant((const uint16_t*)scales + chunk);
    }
    static __device__ __forceinline__ float combine(const WeightRef&, const uint32_t (&s)[1], uint32_t, float dot, float sum) {
        return (dot - 192.0f * sum) * (0.125f * f16_to_f32(s[0] & 0xffffu));
    }
    static __device__ __forceinline__ float2 affine(const WeightRef&, const uint32_t (&s)[1], uint32_t) {
        const float d = f16_to_f32(s[0] & 0xffffu);
        return make_float2(0.125f * d, -24.0f * d);
    }
};

struct ChunkQ4_1 : Nibbles<1, 32, 4> {
    static __device__ __forceinline__ void scale(const WeightRef&, const uint8_t* scales, uint32_t chunk, uint32_t (&s)[1]) {
        s[0] = constant((const uint32_t*)scales + chunk);
    }
    static __device__ __forceinline__ float combine(const WeightRef&, const uint32_t (&s)[1], uint32_t, float dot, float sum) {
        return quants(dot, sum) * f16_to_f32(s[0] & 0xffffu) + sum * f16_to_f32(s[0] >> 16);
    }
    static __device__ __forceinline__ float2 affine(const WeightRef&, const uint32_t (&s)[1], uint32_t) {
        const float d = f16_to_f32(s[0] & 0xffffu);
        return make_float2(0.125f * d, f16_to_f32(s[0] >> 16) - 16.0f * d);
    }
};

struct ChunkQ4K : Nibbles<2, 256, 20> {
    // (f16 of 256 scales, f16 of 256 minimums), (scale, minimum) of 32 values, 6 bits each
    static __device__ __forceinline__ void scale(const WeightRef&, const uint8_t* scales, uint32_t chunk, uint32_t (&s)[2]) {
        const uint8_t* record = scales + 20 * (size_t)(chunk / 8);
        s[0] = constant((const uint32_t*)record);
        s[1] = constant((const uint16_t*)(record + 4 + 2 * (chunk % 8)));
    }
    static __device__ __forceinline__ float2 both(const uint32_t (&s)[2]) { return q4_k_scales(s[0], s[1]); }
    static __device__ __forceinline__ float combine(const WeightRef&, const uint32_t (&s)[2], uint32_t, float dot, float sum) {
        const float2 v = both(s);
        return quants(dot, sum) * v.x - sum * v.y;
    }
    static __device__ __forceinline__ float2 affine(const WeightRef&, const uint32_t (&s)[2], uint32_t) {
        const float2 v = both(s);
        return make_float2(0.125f * v.x, -16.0f * v.x - v.y);
    }
};
