// How the formats of gemv_mma.cuh become f16, and where their scales are.
#pragma once

#include "gemv.cuh"

// Bits of a number without its sign: their order is that of the magnitudes, NaN above all.
__device__ __forceinline__ uint32_t magnitude(float v) { return __float_as_uint(v) & 0x7fffffffu; }

// Two numbers as f16, the first in the lower half.
__device__ __forceinline__ uint32_t f16_words(float a, float b) {
#ifdef MODEL1_EMULATE
    return f32_to_f16(a) | f32_to_f16(b) << 16;
#else
    const __half2 h = __floats2half2_rn(a, b);
    return *(const uint32_t*)&h;
#endif
}

// Sums of two pairs of f16.
__device__ __forceinline__ uint32_t f16_sums(uint32_t a, uint32_t b) {
#ifdef MODEL1_EMULATE
    const float2 x = f16_pair(a), y = f16_pair(b);
    return f16_words(x.x + y.x, x.y + y.y);
#else
    const __half2 h = __hadd2(*(const __half2*)&a, *(const __half2*)&b);
    return *(const uint32_t*)&h;
#endif
}

// What nobody writes, where `there`; else `to` stays what it is. No branch: what is around it can be put in any order.
#ifdef MODEL1_EMULATE
#define READ_IF(Type, width) \
    inline void read_if(const Type* p, bool there, uint32_t& to) { \
        if (there) to = *p; \
    }
#else
#define READ_IF(Type, width)                                                                                               \
    __device__ __forceinline__ void read_if(const Type* p, bool there, uint32_t& to) {                                      \
        asm volatile("{\n\t.reg .pred there;\n\tsetp.ne.u32 there, %2, 0;\n\t@there ld.global.nc." width " %0, [%1];\n\t}" \
                     : "+r"(to)                                                                                            \
                     : "l"(p), "r"(there ? 1u : 0u));                                                                      \
    }
#endif
READ_IF(uint8_t, "u8")
READ_IF(uint16_t, "u16")
READ_IF(uint32_t, "u32")
#undef READ_IF

// How a format's chunks become f16: `halves` gives values 8 i to 8 i + 7 of a chunk, in the order PLACES (nibble p: which
// value has place p), each a number n of which NUMBER n is the integer or code.
//
// A row's scales are read as words of 32 bits, SCALES of them per step of four chunks: `word` asks for one, `word_of` says
// which of a step is that of a quad's lane t. FACTORS: a further word per step, which `factor` asks for. `scaled` gives what
// a chunk comes to, out of the sums of n x and of x. HALF: f16, else bf16; x has PARTS of that.
struct Apart {
    static constexpr bool APART = true, HALF = true, FACTORS = false;
    static constexpr uint32_t PARTS = 2;
};

// Weights as they are.
template <class F, bool H, uint32_t P>
struct Plain : F {
    static constexpr bool APART = false, HALF = H, FACTORS = false;
    static constexpr uint32_t PARTS = P, PLACES = 0x76543210u, SCALES = 0;
    static constexpr float NUMBER = 1.0f;
    static __device__ __forceinline__ void halves(const uint32_t (&raw)[4], uint32_t, uint32_t (&h)[4]) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) h[j] = raw[j];
    }
};
using PlainBf16 = Plain<ChunkBf16, false, 3>;
using PlainF16 = Plain<ChunkF16, true, 2>;

struct HalfF8 : ChunkF8, Apart {
    static constexpr uint32_t PLACES = 0x76543210u, SCALES = 1;
#if !defined(MODEL1_EMULATE) && defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
    static constexpr float NUMBER = 1.0f;
    static __device__ __forceinline__ void halves(const uint32_t (&raw)[4], uint32_t i, uint32_t (&h)[4]) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t codes = raw[2 * i + j / 2] >> 16 * (j % 2);
            asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(h[j]) : "h"((unsigned short)codes));
        }
    }
#else
    // Exponents and mantissas are moved into an f16's, 8 binades too low.
    static constexpr float NUMBER = 256.0f;
    static __device__ __forceinline__ void halves(const uint32_t (&raw)[4], uint32_t i, uint32_t (&h)[4]) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t wide = __byte_perm(raw[2 * i + j / 2], 0, j % 2 == 0 ? 0x1404 : 0x3424);
            h[j] = (wide & 0x80008000u) | (wide >> 1 & 0x3f803f80u);
        }
    }
#endif
    // Blocks of at least a step's 64 columns.
    static __device__ __forceinline__ void word(const GemvArgs& a, const uint8_t* scales, uint32_t step, uint32_t, bool there,
                                                uint32_t& w) {
        const uint32_t i = step * 64 >> a.col_shift, format = a.w.scale_format;
        read_if(scales + i, there && format == kScaleE8m0, w);
        read_if((const uint16_t*)scales + i, there && format == kScaleBf16, w);
        read_if((const uint32_t*)scales + i, there && format == kScaleF32, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t) { return 0; }
    static __device__ __forceinline__ float scaled(const WeightRef& w, uint32_t word, uint32_t, uint32_t, float dot, float) {
        // Without branches, unlike `scale_of_bits`.
        const float power = ue8m0_to_f32(word), other = __uint_as_float(w.scale_format == kScaleBf16 ? word << 16 : word);
        return dot * (w.scale_format == kScaleE8m0 ? power : other);
    }
};

// Powers of two for every chunk.
struct HalfFp4 : ChunkFp4, Apart {
    static constexpr uint32_t PLACES = 0x73625140u, SCALES = 1;
    static constexpr float NUMBER = UNIT;
    static __device__ __forceinline__ void halves(const uint32_t (&raw)[4], uint32_t i, uint32_t (&h)[4]) {
        h[0] = codes<0>(raw[i]);
        h[1] = codes<1>(raw[i]);
        h[2] = codes<2>(raw[i]);
        h[3] = codes<3>(raw[i]);
    }
    static __device__ __forceinline__ void word(const GemvArgs&, const uint8_t* scales, uint32_t step, uint32_t, bool there, uint32_t& w) {
        read_if((const uint32_t*)scales + step, there, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t) { return 0; }
    static __device__ __forceinline__ float scaled(const WeightRef&, uint32_t word, uint32_t, uint32_t t, float dot, float) {
        return dot * ue8m0_to_f32(word >> 8 * t & 255u);
    }
};

// Signed bytes: 1024 + (q + 128) is exact in f16, and so is the rest after 1152 is taken off.
template <class F>
struct HalfBytes : F, Apart {
    static constexpr uint32_t PLACES = 0x76543210u;
    static constexpr float NUMBER = 1.0f;
    static __device__ __forceinline__ void halves(const uint32_t (&raw)[4], uint32_t i, uint32_t (&h)[4]) {
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint32_t q = raw[2 * i + j / 2] ^ 0x80808080u;
            h[j] = f16_sums(__byte_perm(q, 0x64646464u, j % 2 == 0 ? 0x4140 : 0x4342), 0xe480e480u);
        }
    }
};

struct HalfQ8_0 : HalfBytes<ChunkQ8_0> {
    static constexpr uint32_t SCALES = 1;
    static __device__ __forceinline__ void word(const GemvArgs&, const uint8_t* scales, uint32_t step, uint32_t, bool there, uint32_t& w) {
        read_if((const uint32_t*)scales + step, there, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t) { return 0; }
    static __device__ __forceinline__ float scaled(const WeightRef&, uint32_t word, uint32_t, uint32_t t, float dot, float) {
        return dot * f16_to_f32(word >> 16 * (t / 2) & 0xffffu);
    }
};

struct HalfQ6K : HalfBytes<ChunkQ6K> {
    static constexpr uint32_t SCALES = 2;
    static __device__ __forceinline__ void word(const GemvArgs&, const uint8_t* scales, uint32_t step, uint32_t e, bool there, uint32_t& w) {
        read_if((const uint32_t*)scales + 2 * step + e, there, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t t) { return t / 2; }
    static __device__ __forceinline__ float scaled(const WeightRef&, uint32_t word, uint32_t, uint32_t t, float dot, float) {
        return dot * q6_k_scale(word, t);
    }
};

// Nibbles: 8 q in an f16's last bits, less ZERO.
template <class F, uint32_t ZERO>
struct HalfNibbles : F, Apart {
    static constexpr uint32_t PLACES = 0x75643120u;
    static constexpr float NUMBER = 0.125f;
    static __device__ __forceinline__ void halves(const uint32_t (&raw)[4], uint32_t i, uint32_t (&h)[4]) {
        const uint32_t word = raw[i], turned = word << 4 | word >> 28;
        h[0] = number(word);
        h[1] = number(word >> 8);
        h[2] = number(turned);
        h[3] = number(turned >> 8);
    }
    static __device__ __forceinline__ uint32_t number(uint32_t word) {
        return f16_sums((word & 0x00780078u) | 0x64006400u, ZERO * 0x00010001u);
    }
};

struct HalfQ4_0 : HalfNibbles<ChunkQ4_0, 0xe440> {
    static constexpr uint32_t SCALES = 2;
    static constexpr bool SUMS = false;
    static __device__ __forceinline__ void word(const GemvArgs&, const uint8_t* scales, uint32_t step, uint32_t e, bool there, uint32_t& w) {
        read_if((const uint32_t*)scales + 2 * step + e, there, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t t) { return t / 2; }
    static __device__ __forceinline__ float scaled(const WeightRef&, uint32_t word, uint32_t, uint32_t t, float dot, float) {
        return dot * f16_to_f32(word >> 16 * (t % 2) & 0xffffu);
    }
};

// What has an addend multiplies the sum of x by it, and by 8 where sums of 8 q become sums of q.
struct HalfQ4_1 : HalfNibbles<ChunkQ4_1, 0xe400> {
    static constexpr uint32_t SCALES = 4;
    static __device__ __forceinline__ void word(const GemvArgs&, const uint8_t* scales, uint32_t step, uint32_t e, bool there, uint32_t& w) {
        read_if((const uint32_t*)scales + 4 * step + e, there, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t t) { return t; }
    static __device__ __forceinline__ float scaled(const WeightRef&, uint32_t word, uint32_t, uint32_t, float dot, float sum) {
        return dot * f16_to_f32(word & 0xffffu) + 8.0f * sum * f16_to_f32(word >> 16);
    }
};

struct HalfQ4K : HalfNibbles<ChunkQ4K, 0xe400> {
    static constexpr uint32_t SCALES = 2;
    static constexpr bool FACTORS = true;
    static __device__ __forceinline__ void word(const GemvArgs&, const uint8_t* scales, uint32_t step, uint32_t e, bool there, uint32_t& w) {
        read_if((const uint32_t*)(scales + 20 * (size_t)(step / 2) + 4 + 8 * (step % 2) + 4 * e), there, w);
    }
    static __device__ __forceinline__ void factor(const uint8_t* scales, uint32_t step, bool there, uint32_t& w) {
        read_if((const uint32_t*)(scales + 20 * (size_t)(step / 2)), there, w);
    }
    static __device__ __forceinline__ uint32_t word_of(uint32_t t) { return t / 2; }
    static __device__ __forceinline__ float scaled(const WeightRef&, uint32_t word, uint32_t factor, uint32_t t, float dot, float sum) {
        const float2 v = q4_k_scales(factor, word >> 16 * (t % 2) & 0xffffu);
        return dot * v.x - 8.0f * sum * v.y;
    }
};
