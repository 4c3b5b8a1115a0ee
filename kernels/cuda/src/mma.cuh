// Tensor cores and what feeds them: fragments of mma.sync m16n8k16 (bf16 in, f32 sums), numbers in bf16 parts, copies
// into shared memory that run on their own. Each has a form for the emulator that does the same arithmetic.
#pragma once

#include "numeric.cuh"

// 16 bytes into shared memory, zeros where `there` is false; begun by `copy_async`, there after `await_copies`.
__device__ __forceinline__ void copy_async(uint32_t* to, const void* from, bool there) {
#ifdef MODEL1_EMULATE
    if (there) {
        memcpy(to, from, 16);
    } else {
        memset(to, 0, 16);
    }
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to), bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
}

__device__ __forceinline__ void close_copies() {
#ifndef MODEL1_EMULATE
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for all groups of copies but the last N.
template <uint32_t N>
__device__ __forceinline__ void await_copies() {
#ifndef MODEL1_EMULATE
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// Four 8 x 8 matrices of bf16 pairs: lane 8 i + j names row j of matrix i, and gets of matrix i the word at row lane / 4,
// column lane % 4.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const uint32_t* row) {
#ifdef MODEL1_EMULATE
    for (unsigned i = 0; i < 4; i++) {
        const uint32_t* from = (const uint32_t*)__shfl_sync(kAll, (uint64_t)row, (int)(8 * i + simt::lane() / 4));
        r[i] = from[simt::lane() % 4];
    }
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#endif
}

// The same with every matrix turned over: lane gets of matrix i the values at rows 2 (lane % 4) and the next, column lane / 4.
__device__ __forceinline__ void load_matrices_turned(uint32_t (&r)[4], const uint32_t* row) {
#ifdef MODEL1_EMULATE
    for (unsigned i = 0; i < 4; i++) {
        uint32_t pair = 0;
        for (unsigned e = 0; e < 2; e++) {
            const int from = (int)(8 * i + 2 * (simt::lane() % 4) + e);
            const uint16_t* values = (const uint16_t*)__shfl_sync(kAll, (uint64_t)row, from);
            pair |= (uint32_t)values[simt::lane() / 4] << 16 * e;
        }
        r[i] = pair;
    }
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
#endif
}

// Two neighbours rounded to bf16, the first in the lower half.
__device__ __forceinline__ uint32_t bf16_pair(float a, float b) {
#ifdef MODEL1_EMULATE
    return f32_to_bf16(a) | f32_to_bf16(b) << 16;
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(b), "f"(a));
    return pair;
#endif
}

// Products of two pairs of bf16.
__device__ __forceinline__ uint32_t bf16_products(uint32_t a, uint32_t b) {
#ifdef MODEL1_EMULATE
    return bf16_pair(bf16_to_f32(a & 0xffffu) * bf16_to_f32(b & 0xffffu), bf16_to_f32(a >> 16) * bf16_to_f32(b >> 16));
#else
    uint32_t pair;
    // a b - 0: products alone are Hopper's.
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(0x80008000u));
    return pair;
#endif
}

// 2^(byte - 127) twice as bf16.
__device__ __forceinline__ uint32_t ue8m0_pair(uint32_t byte) { return byte == 0 ? 0x00400040u : byte * 0x00800080u; }

// Four E4M3 codes with their scale as bf16, exact. Exponents and mantissas are moved into a bf16's, 120 binades too low.
__device__ __forceinline__ uint2 e4m3_pairs(uint32_t codes, uint32_t scale) {
    uint32_t words[2];
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t wide = __byte_perm(codes, 0, i == 0 ? 0x1404 : 0x3424);
        words[i] = bf16_products(bf16_products((wide & 0x80008000u) | (wide >> 4 & 0x07f007f0u), 0x7b807b80u), scale);
    }
    const uint32_t nan = ((codes & 0x7f7f7f7fu) + 0x01010101u) & 0x80808080u;
    if (nan != 0) {
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t marks = __byte_perm(nan, 0, i == 0 ? 0x1404 : 0x3424);
            words[i] |= marks - (marks >> 15);
        }
    }
    return make_uint2(words[0], words[1]);
}

// Two E2M1 codes (a byte), likewise: 126 binades.
__device__ __forceinline__ uint32_t e2m1_pair(uint32_t byte, uint32_t scale) {
    const uint32_t wide = (byte & 7u) << 6 | (byte & 8u) << 12 | (byte & 0x70u) << 18 | (byte & 0x80u) << 24;
    return bf16_products(bf16_products(wide, 0x7e807e80u), scale);
}

// Two neighbours as bf16 in one word per part: part p holds what parts 0 .. p - 1 left.
template <uint32_t P>
__device__ __forceinline__ void split_pair(float a, float b, uint32_t (&words)[P]) {
#pragma unroll
    for (uint32_t p = 0; p < P; p++) {
        words[p] = bf16_pair(a, b);
        a -= __uint_as_float(words[p] << 16);
        b -= __uint_as_float(words[p] & 0xffff0000u);
    }
}

#ifdef MODEL1_EMULATE
// d += a b for fragments of m16n8k16 of numbers that NUMBER makes of 16 bits.
template <float (*NUMBER)(uint32_t)>
inline void mma_emulated(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragments {
        float* d;
        const uint32_t *a, *b;
    } mine = {d, a, b};
    simt::together(&mine, [](void* const* all) {
        float x[16][16], w[16][8];
        for (unsigned lane = 0; lane < 32; lane++) {
            const Fragments& f = *(const Fragments*)all[lane];
            const unsigned g = lane / 4, t = lane % 4;
            for (unsigned i = 0; i < 4; i++) {
                const unsigned row = g + i % 2 * 8, k = 2 * t + i / 2 * 8;
                x[row][k] = NUMBER(f.a[i] & 0xffffu);
                x[row][k + 1] = NUMBER(f.a[i] >> 16);
                if (i < 2) {
                    w[2 * t + 8 * i][g] = NUMBER(f.b[i] & 0xffffu);
                    w[2 * t + 8 * i + 1][g] = NUMBER(f.b[i] >> 16);
                }
            }
        }
        float sums[16][8] = {};
        for (unsigned r = 0; r < 16; r++) {
            for (unsigned k = 0; k < 16; k++) {
                for (unsigned c = 0; c < 8; c++) sums[r][c] += x[r][k] * w[k][c];
            }
        }
        for (unsigned lane = 0; lane < 32; lane++) {
            const Fragments& f = *(const Fragments*)all[lane];
            for (unsigned i = 0; i < 4; i++) f.d[i] += sums[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
        }
    });
}
#endif

// d += a b for fragments of m16n8k16, of bf16 or f16.
#ifdef MODEL1_EMULATE
inline void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_emulated<bf16_to_f32>(d, a, b); }
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { mma_emulated<f16_to_f32>(d, a, b); }
#else
#define MMA(name, type)                                                                                                  \
    __device__ __forceinline__ void name(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {                 \
        asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                                       \
            ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"                                                 \
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                             \
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                                         \
    }
MMA(mma, "bf16")
MMA(mma_f16, "f16")
#undef MMA
#endif

// The same with two neighbouring fragments of b: the two halves of each lie NEXT matrices apart.
template <uint32_t NEXT>
__device__ __forceinline__ void mma_two(float (&left)[4], float (&right)[4], const uint32_t (&a)[4], const uint32_t (&b)[4]) {
    const uint32_t first[2] = {b[0], b[NEXT]}, second[2] = {b[3 - NEXT], b[3]};
    mma(left, a, first);
    mma(right, a, second);
}
