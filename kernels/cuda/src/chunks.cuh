// Stored weights in 16-byte chunks: how the fast paths read them. A chunk is loaded as it lies (`Raw`) and turned into
// values later, so that many loads are in flight before the first is used.
#pragma once

#include "weights.cuh"

// Read-only, used once: not kept in the first-level cache.
__device__ __forceinline__ uint4 load_stream(const uint8_t* p) {
#ifdef MODEL1_EMULATE
    return *(const uint4*)p;
#else
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p));
    return v;
#endif
}

// Two e4m3 codes (low 16 bits) as f32. Hopper and Ada convert them to f16 in one instruction, exactly.
__device__ __forceinline__ float2 e4m3_pair(uint32_t codes) {
#if !defined(MODEL1_EMULATE) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    uint32_t halves;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(halves) : "h"((unsigned short)codes));
    return __half22float2(*(const __half2*)&halves);
#else
    return make_float2(e4m3_finite(codes & 255u), e4m3_finite(codes >> 8 & 255u));
#endif
}

// Formats with rows of whole 16-byte chunks. LEN values per chunk; four(raw, i) are values 4 i to 4 i + 3; SCALED: one
// scale kept apart covers a chunk. EXACT: values (times a power of two) are bf16 numbers.
struct ChunkF32 {
    static constexpr uint32_t LEN = 4;
    static constexpr bool SCALED = false, EXACT = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t) {
        return make_float4(__uint_as_float(w[0]), __uint_as_float(w[1]), __uint_as_float(w[2]), __uint_as_float(w[3]));
    }
};

struct ChunkBf16 {
    static constexpr uint32_t LEN = 8;
    static constexpr bool SCALED = false, EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t a = w[2 * i], b = w[2 * i + 1];
        return make_float4(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u), __uint_as_float(b << 16),
                           __uint_as_float(b & 0xffff0000u));
    }
};

struct ChunkF16 {
    static constexpr uint32_t LEN = 8;
    static constexpr bool SCALED = false, EXACT = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t a = w[2 * i], b = w[2 * i + 1];
        return make_float4(f16_to_f32(a & 0xffffu), f16_to_f32(a >> 16), f16_to_f32(b & 0xffffu), f16_to_f32(b >> 16));
    }
};

struct ChunkF8 {
    static constexpr uint32_t LEN = 16;
    static constexpr bool SCALED = true, EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const float2 low = e4m3_pair(w[i] & 0xffffu), high = e4m3_pair(w[i] >> 16);
        return make_float4(low.x, low.y, high.x, high.y);
    }
};

struct ChunkFp4 {
    static constexpr uint32_t LEN = 32;
    static constexpr bool SCALED = true, EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t b = w[i / 2] >> 16 * (i & 1u);
        return make_float4(e2m1_to_f32(b), e2m1_to_f32(b >> 4), e2m1_to_f32(b >> 8), e2m1_to_f32(b >> 12));
    }
};
