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

// Two neighbours as bf16 in one word per part: part p holds what parts 0 .. p - 1 left.
template <uint32_t P>
__device__ __forceinline__ void split_pair(float a, float b, uint32_t (&words)[P]) {
#pragma unroll
    for (uint32_t p = 0; p < P; p++) {
        const uint32_t ha = f32_to_bf16(a), hb = f32_to_bf16(b);
        words[p] = ha | hb << 16;
        a -= bf16_to_f32(ha);
        b -= bf16_to_f32(hb);
    }
}

// d += a b for fragments of m16n8k16.
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#ifdef MODEL1_EMULATE
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
                x[row][k] = bf16_to_f32(f.a[i] & 0xffffu);
                x[row][k + 1] = bf16_to_f32(f.a[i] >> 16);
                if (i < 2) {
                    w[2 * t + 8 * i][g] = bf16_to_f32(f.b[i] & 0xffffu);
                    w[2 * t + 8 * i + 1][g] = bf16_to_f32(f.b[i] >> 16);
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
#else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}
