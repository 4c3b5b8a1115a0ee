// How stored weights meet x on tensor cores in a resident launch (resident.cuh).
#pragma once

#include "resident_ring.cuh"

// How formats meet x, in runs of 32 columns. Of a run lane t of quad g has the 8 columns from 8 t on, of rows g and g + 8, and,
// where g is 0, 1 or 2, of part g of x. In shared memory x's parts lie `part` bytes apart.
struct ResidentBf16 {
    static constexpr uint32_t PAD = 64;  // rows g and g + 1 meet in no bank
    static constexpr bool SCALED = false;
    static __device__ __forceinline__ uint32_t bytes(uint32_t columns) { return 2 * columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return 2 * cols + 64; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols); }

    float sums[2][4];  // two, so that products need not wait for each other
    __device__ __forceinline__ void begin() {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sums[i / 4][i % 4] = 0.0f;
    }

    // Runs `first` to `first + count - 1` of the rows of a place; x's run of the place's first column is `run0`.
    __device__ __forceinline__ void multiply(const ResidentShared& s, const unsigned char* place, uint32_t columns, const unsigned char* x, uint32_t cols,
                                             uint32_t run0, uint32_t first, uint32_t count) {
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, pitch = place_pitch<ResidentBf16>(columns) / 16;
        const uint4 *w = (const uint4*)place + g * pitch + 4 * first + t, *v = w + 8 * pitch;
        const uint4* b = g < 3 ? (const uint4*)(x + g * part(cols)) + 4 * (run0 + first) + t : &s.zero;
        const uint32_t step = g < 3 ? 4 : 0;
#pragma unroll 2
        for (uint32_t i = 0; i < count; i++) {
            const uint4 p = w[4 * i], q = v[4 * i], y = b[step * i];
            const uint32_t left[4] = {p.x, q.x, p.y, q.y}, right[4] = {p.z, q.z, p.w, q.w}, y0[2] = {y.x, y.y}, y1[2] = {y.z, y.w};
            mma(sums[0], left, y0);
            mma(sums[1], right, y1);
        }
    }
    // What rows g and g + 8 come to, in lane 0 of the quad.
    __device__ __forceinline__ float2 end() const {
        const float low = (sums[0][0] + sums[0][1]) + (sums[1][0] + sums[1][1]), high = (sums[0][2] + sums[0][3]) + (sums[1][2] + sums[1][3]);
        return make_float2(low + __shfl_xor_sync(kAll, low, 1), high + __shfl_xor_sync(kAll, high, 1));
    }
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t piece, const float4 (&v)[2]) {
        if (8 * piece >= cols) return;
        uint32_t words[4][3];
        split_pair<3>(v[0].x, v[0].y, words[0]);
        split_pair<3>(v[0].z, v[0].w, words[1]);
        split_pair<3>(v[1].x, v[1].y, words[2]);
        split_pair<3>(v[1].z, v[1].w, words[3]);
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) ((uint4*)(to + p * part(cols)))[piece] = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
    }
};

// d = a b + c for fragments of m16n8k32 of signed bytes.
#ifdef MODEL1_EMULATE
inline void mma_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragments {
        int* d;
        const uint32_t *a, *b;
    } mine = {d, a, b};
    simt::together(&mine, [](void* const* all) {
        int x[16][32], w[32][8];
        for (unsigned lane = 0; lane < 32; lane++) {
            const Fragments& f = *(const Fragments*)all[lane];
            for (unsigned i = 0; i < 4; i++) {
                for (unsigned e = 0; e < 4; e++) {
                    x[lane / 4 + i % 2 * 8][i / 2 * 16 + lane % 4 * 4 + e] = (int8_t)(f.a[i] >> 8 * e);
                    if (i < 2) w[i * 16 + lane % 4 * 4 + e][lane / 4] = (int8_t)(f.b[i] >> 8 * e);
                }
            }
        }
        for (unsigned lane = 0; lane < 32; lane++) {
            const Fragments& f = *(const Fragments*)all[lane];
            for (unsigned i = 0; i < 4; i++) {
                for (unsigned k = 0; k < 32; k++) f.d[i] += x[lane / 4 + i / 2 * 8][k] * w[k][2 * (lane % 4) + i % 2];
            }
        }
    });
}
#else
__device__ __forceinline__ void mma_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Integers with a scale per 32: x becomes integers of 22 bits per 32 values, in three signed bytes, and products are exact
// until scales come. Behind the parts lie a scale per 32 values and (q4) what their zeros come to, four numbers [parts, 0].
// Sums begin at 1.5 * 2^23 in f32's bits, so that as a float they are 1.5 * 2^23 more than they are as a number.
template <bool NIBBLES>
struct ResidentIntegers {
    static constexpr uint32_t PAD = NIBBLES ? 16 : 32;
    static constexpr bool SCALED = true;
    static __device__ __forceinline__ uint32_t bytes(uint32_t columns) { return NIBBLES ? columns / 2 : columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return cols + 32; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols) + (NIBBLES ? 20 : 4) * (cols / 32); }

    float sums[2];
    __device__ __forceinline__ void begin() { sums[0] = sums[1] = 0.0f; }

    __device__ __forceinline__ void multiply(const ResidentShared& s, const unsigned char* place, uint32_t columns, const unsigned char* x, uint32_t cols,
                                             uint32_t run0, uint32_t first, uint32_t count) {
        using Self = ResidentIntegers;
        constexpr int kMagic = 0x4b400000;
        constexpr float kMore = 12582912.0f;
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, pitch = place_pitch<Self>(columns), scale_pitch = place_scale_pitch<Self>(columns);
        const unsigned char *w = place + g * pitch + bytes(32 * first) + (NIBBLES ? 4 : 8) * t, *v = w + 8 * pitch;
        const uint16_t* scales = (const uint16_t*)(place + kResidentTile * pitch + g * scale_pitch) + first;
        const uint2* b = g < 3 ? (const uint2*)(x + g * part(cols)) + 4 * (run0 + first) + t : (const uint2*)&s.zero;
        const uint32_t step = g < 3 ? 4 : 0;
        const float* x_scales = (const float*)(x + 3 * part(cols)) + run0 + first;
        const int2* zeros = (const int2*)(x + 3 * part(cols) + cols / 8) + 2 * (run0 + first) + (t & 1);
        const float high = t == 0 ? 65536.0f : t == 1 ? 1.0f : 0.0f, low = t == 0 ? 256.0f : 0.0f;
#pragma unroll 2
        for (uint32_t i = 0; i < count; i++) {
            uint32_t a[4];
            if (NIBBLES) {
                const uint32_t p = *(const uint32_t*)(w + 16 * i), q = *(const uint32_t*)(v + 16 * i);
                a[0] = nibbles(p, 0);
                a[1] = nibbles(q, 0);
                a[2] = nibbles(p, 1);
                a[3] = nibbles(q, 1);
            } else {
                const uint2 p = *(const uint2*)(w + 32 * i), q = *(const uint2*)(v + 32 * i);
                a[0] = p.x;
                a[1] = q.x;
                a[2] = p.y;
                a[3] = q.y;
            }
            const uint2 y = b[step * i];
            const uint32_t parts[2] = {y.x, y.y};
            int d[4] = {kMagic, kMagic, kMagic, kMagic};
            if (NIBBLES) {
                const int2 z = zeros[2 * i];
                d[0] += z.x;
                d[1] += z.y;
                d[2] += z.x;
                d[3] += z.y;
            }
            mma_bytes(d, a, parts);
            const float f = x_scales[i];
            const float above = f16_to_f32(scales[i]) * f, below = f16_to_f32(*(const uint16_t*)((const unsigned char*)(scales + i) + 8 * scale_pitch)) * f;
            sums[0] += ((__int_as_float(d[0]) - kMore) * high + (__int_as_float(d[1]) - kMore) * low) * above;
            sums[1] += ((__int_as_float(d[2]) - kMore) * high + (__int_as_float(d[3]) - kMore) * low) * below;
        }
    }
    __device__ __forceinline__ float2 end() const {
        constexpr float unit = NIBBLES ? 0.125f : 1.0f;
        return make_float2((sums[0] + __shfl_xor_sync(kAll, sums[0], 1)) * unit, (sums[1] + __shfl_xor_sync(kAll, sums[1], 1)) * unit);
    }

    // Thread `piece` of a run of cols / 8 threads has values 8 piece to 8 piece + 7; four of them have 32.
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t piece, const float4 (&from)[2]) {
        const float v[8] = {from[0].x, from[0].y, from[0].z, from[0].w, from[1].x, from[1].y, from[1].z, from[1].w};
        uint32_t top = 0;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) top = max(top, __float_as_uint(v[i]) & 0x7fffffffu);
        top = max(top, __shfl_xor_sync(kAll, top, 1));
        top = max(top, __shfl_xor_sync(kAll, top, 2));
        // 2^e so that the largest lies in [2^21, 2^22), and 2^-e; what is not finite stays so.
        const uint32_t exponent = max(top >> 23, 22u);
        const float up = __uint_as_float((275u - exponent) << 23);
        const float down = exponent == 255 ? __uint_as_float(0x7fc00000u) : __uint_as_float((exponent - 21u) << 23);
        uint32_t words[3][2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            int q[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) q[i] = nearest(v[4 * h + i] * up);
            // The lowest bytes first, as signed numbers; what they leave is a multiple of 256.
#pragma unroll
            for (int p = 2; p >= 0; p--) {
                const uint32_t low = __byte_perm((uint32_t)q[0], (uint32_t)q[1], 0x0040), high = __byte_perm((uint32_t)q[2], (uint32_t)q[3], 0x0040);
                words[p][h] = __byte_perm(low, high, 0x5410);
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) q[i] = (q[i] + 128) >> 8;
            }
        }
        int sums[3] = {};
        if (NIBBLES) {
#pragma unroll
            for (uint32_t p = 0; p < 3; p++) {
                sums[p] = dot_four(words[p][1], 0x01010101u, dot_four(words[p][0], 0x01010101u, 0));
                sums[p] += __shfl_xor_sync(kAll, sums[p], 1);
                sums[p] += __shfl_xor_sync(kAll, sums[p], 2);
            }
        }
        if (8 * piece >= cols) return;
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) *(uint2*)(to + p * part(cols) + 8 * piece) = make_uint2(words[p][0], words[p][1]);
        if (piece % 4 != 0) return;
        ((float*)(to + 3 * part(cols)))[piece / 4] = down;
        // 8 (q - 8) x: nibbles lie there times 8.
        if (NIBBLES) ((int4*)(to + 3 * part(cols) + cols / 8))[piece / 4] = make_int4(-64 * sums[0], -64 * sums[1], -64 * sums[2], 0);
    }
};
using ResidentQ8_0 = ResidentIntegers<false>;
using ResidentQ4_0 = ResidentIntegers<true>;
