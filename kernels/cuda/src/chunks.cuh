// Stored weights in 16-byte chunks: how the fast paths read them. A chunk is loaded as it lies (`Raw`) and turned into
// values later, so that many loads are in flight before the first is used.
#pragma once

#include "weights.cuh"

// Read-only, used once per step: not kept in the first-level cache, and the first to leave the second-level one, where
// gigabytes of weights would otherwise drive out all that is read again soon, the kernels' instructions too.
__device__ __forceinline__ uint4 load_stream(const uint8_t* p) {
#ifdef MODEL1_EMULATE
    return *(const uint4*)p;
#else
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p), "l"(policy));
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

// A chunk: LEN neighbouring values of a row, loaded as WORDS words; four(raw, i) are values 4 i to 4 i + 3; SCALED: one
// scale kept apart covers a chunk. EXACT: values (times a power of two) are bf16 numbers. First the formats whose rows
// are 16-byte chunks.
struct Sixteen {
    static constexpr uint32_t WORDS = 4;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        const uint4 v = load_stream(row + 16 * (size_t)chunk);
        w[0] = v.x;
        w[1] = v.y;
        w[2] = v.z;
        w[3] = v.w;
    }
};

struct ChunkF32 : Sixteen {
    static constexpr uint32_t LEN = 4;
    static constexpr bool SCALED = false, EXACT = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t) {
        return make_float4(__uint_as_float(w[0]), __uint_as_float(w[1]), __uint_as_float(w[2]), __uint_as_float(w[3]));
    }
};

struct ChunkBf16 : Sixteen {
    static constexpr uint32_t LEN = 8;
    static constexpr bool SCALED = false, EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t a = w[2 * i], b = w[2 * i + 1];
        return make_float4(__uint_as_float(a << 16), __uint_as_float(a & 0xffff0000u), __uint_as_float(b << 16),
                           __uint_as_float(b & 0xffff0000u));
    }
};

struct ChunkF16 : Sixteen {
    static constexpr uint32_t LEN = 8;
    static constexpr bool SCALED = false, EXACT = false;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t a = w[2 * i], b = w[2 * i + 1];
        return make_float4(f16_to_f32(a & 0xffffu), f16_to_f32(a >> 16), f16_to_f32(b & 0xffffu), f16_to_f32(b >> 16));
    }
};

struct ChunkF8 : Sixteen {
    static constexpr uint32_t LEN = 16;
    static constexpr bool SCALED = true, EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const float2 low = e4m3_pair(w[i] & 0xffffu), high = e4m3_pair(w[i] >> 16);
        return make_float4(low.x, low.y, high.x, high.y);
    }
};

struct ChunkFp4 : Sixteen {
    static constexpr uint32_t LEN = 32;
    static constexpr bool SCALED = true, EXACT = true;
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[4], uint32_t i) {
        const uint32_t b = w[i / 2] >> 16 * (i & 1u);
        return make_float4(e2m1_to_f32(b), e2m1_to_f32(b >> 4), e2m1_to_f32(b >> 8), e2m1_to_f32(b >> 12));
    }
};

// GGUF's blocks begin with their scale, so that data is only 2-byte aligned. A chunk is 32 values; its scale and minimum
// are kept as f32 words in front of the quants.
__device__ __forceinline__ uint32_t load_half(const uint8_t* p) { return *(const uint16_t*)p; }
__device__ __forceinline__ uint32_t load_word(const uint8_t* p) { return load_half(p) | load_half(p + 2) << 16; }

struct Scaled32 {
    static constexpr uint32_t LEN = 32;
    static constexpr bool SCALED = false, EXACT = false;
    // scale * q - offset, where `q` has a value per byte.
    static __device__ __forceinline__ float4 bytes(uint32_t q, float scale, float base) {
        return make_float4(scale * (float)(q & 255u) + base, scale * (float)(q >> 8 & 255u) + base,
                           scale * (float)(q >> 16 & 255u) + base, scale * (float)(q >> 24) + base);
    }
};

struct ChunkQ8_0 : Scaled32 {
    static constexpr uint32_t WORDS = 9;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        const uint8_t* b = row + 34 * (size_t)chunk;
        w[0] = load_half(b);
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) w[1 + i] = load_word(b + 2 + 4 * i);
    }
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[WORDS], uint32_t i) {
        const float scale = f16_to_f32(w[0]);
        // Signed bytes as unsigned ones.
        return bytes(w[1 + i] ^ 0x80808080u, scale, -128.0f * scale);
    }
};

// Nibbles: the first 16 values are the low ones.
template <uint32_t BLOCK, uint32_t QUANTS>
struct Nibbles : Scaled32 {
    static __device__ __forceinline__ const uint8_t* at(const uint8_t* row, uint32_t chunk) {
        return row + BLOCK * (size_t)chunk;
    }
    static __device__ __forceinline__ uint32_t nibbles(const uint32_t* quants, uint32_t i) {
        return quants[i % 4] >> (i < 4 ? 0 : 4) & 0x0f0f0f0fu;
    }
    static __device__ __forceinline__ void quants(const uint8_t* b, uint32_t* w) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) w[i] = load_word(b + QUANTS + 4 * i);
    }
};

struct ChunkQ4_0 : Nibbles<18, 2> {
    static constexpr uint32_t WORDS = 5;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        w[0] = load_half(at(row, chunk));
        quants(at(row, chunk), w + 1);
    }
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[WORDS], uint32_t i) {
        const float scale = f16_to_f32(w[0]);
        return bytes(nibbles(w + 1, i), scale, -8.0f * scale);
    }
};

struct ChunkQ4_1 : Nibbles<20, 4> {
    static constexpr uint32_t WORDS = 5;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        w[0] = load_word(at(row, chunk));
        quants(at(row, chunk), w + 1);
    }
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[WORDS], uint32_t i) {
        return bytes(nibbles(w + 1, i), f16_to_f32(w[0] & 0xffffu), f16_to_f32(w[0] >> 16));
    }
};

struct ChunkQ5_0 : Nibbles<22, 6> {
    static constexpr uint32_t WORDS = 6;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        w[0] = load_half(at(row, chunk));
        w[1] = load_word(at(row, chunk) + 2);
        quants(at(row, chunk), w + 2);
    }
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[WORDS], uint32_t i) {
        const float scale = f16_to_f32(w[0]);
        // Bits 4 i to 4 i + 3 of the high bits, one to each byte's bit 4.
        const uint32_t h = w[1] >> 4 * i;
        const uint32_t high = (h & 1u) << 4 | (h & 2u) << 11 | (h & 4u) << 18 | (h & 8u) << 25;
        return bytes(nibbles(w + 2, i) | high, scale, -16.0f * scale);
    }
};

struct ChunkQ4K : Scaled32 {
    static constexpr uint32_t WORDS = 10;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        // Blocks of 144 bytes: 16-byte aligned.
        const uint8_t* b = row + 144 * (size_t)(chunk / 8);
        const uint32_t j = chunk % 8;
        uint32_t s, m;
        q4_k_scale(b + 4, j, &s, &m);
        const uint32_t d = *(const uint32_t*)b;
        w[0] = __float_as_uint(f16_to_f32(d & 0xffffu) * (float)s);
        w[1] = __float_as_uint(-(f16_to_f32(d >> 16) * (float)m));
        const uint4 low = *(const uint4*)(b + 16 + j / 2 * 32), high = *(const uint4*)(b + 32 + j / 2 * 32);
        const uint32_t q[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) w[2 + i] = q[i] >> (j % 2 == 0 ? 0 : 4) & 0x0f0f0f0fu;
    }
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[WORDS], uint32_t i) {
        return bytes(w[2 + i], __uint_as_float(w[0]), __uint_as_float(w[1]));
    }
};

struct ChunkQ6K : Scaled32 {
    static constexpr uint32_t WORDS = 10;
    static __device__ __forceinline__ void load(const uint8_t* row, uint32_t chunk, uint32_t (&w)[WORDS]) {
        const uint8_t* b = row + 210 * (size_t)(chunk / 8);
        const uint32_t half = chunk % 8 / 4, k = chunk % 4;
        const float d = f16_to_f32(load_half(b + 208));
        // A scale per 16 values.
        w[0] = __float_as_uint(d * (float)(int8_t)b[192 + half * 8 + 2 * k]);
        w[1] = __float_as_uint(d * (float)(int8_t)b[193 + half * 8 + 2 * k]);
        const uint8_t *low = b + half * 64 + (k & 1u) * 32, *high = b + 128 + half * 32;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const uint32_t l = load_word(low + 4 * i), h = load_word(high + 4 * i);
            w[2 + i] = (l >> (k < 2 ? 0 : 4) & 0x0f0f0f0fu) | (h >> 2 * k & 0x03030303u) << 4;
        }
    }
    static __device__ __forceinline__ float4 four(const uint32_t (&w)[WORDS], uint32_t i) {
        const float scale = __uint_as_float(w[i / 4]);
        return bytes(w[2 + i], scale, -32.0f * scale);
    }
};
