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

    struct Whole {
        static constexpr uint32_t N = 0;
        __device__ __forceinline__ void load(const ResidentShared&, const unsigned char*, uint32_t, uint32_t) {}
    };

    // Runs `first` to `first + count - 1` of the rows of a place; x's run of the place's first column is `run0`.
    __device__ __forceinline__ void multiply(const ResidentShared& s, const unsigned char* place, uint32_t columns, const unsigned char* x, uint32_t cols,
                                             uint32_t run0, uint32_t first, uint32_t count, const Whole&) {
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, pitch = place_pitch<ResidentBf16>(columns) / 16;
        const uint4 *w = (const uint4*)place + g * pitch + 4 * first + t, *v = w + 8 * pitch;
        const uint4* b = g < 3 ? (const uint4*)(x + g * part(cols)) + 4 * (run0 + first) + t : &s.zero;
        const uint32_t step = g < 3 ? 4 : 0;
#pragma unroll 3
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
        uint32_t words[4][3];
        split_pair<3>(v[0].x, v[0].y, words[0]);
        split_pair<3>(v[0].z, v[0].w, words[1]);
        split_pair<3>(v[1].x, v[1].y, words[2]);
        split_pair<3>(v[1].z, v[1].w, words[3]);
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) ((uint4*)(to + p * part(cols)))[piece] = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
    }
};

// d = a b + c for fragments of m16n8k32 of signed bytes, c the same number everywhere.
#ifdef MODEL1_EMULATE
inline void mma_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int c) {
    for (int& sum : d) sum = c;
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
__device__ __forceinline__ void mma_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], int c) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c));
}
#endif

// The f16 numbers in the lower and the upper half of a word.
#ifdef MODEL1_EMULATE
inline float2 f16_both(uint32_t word) { return make_float2(f16_to_f32(word & 0xffffu), f16_to_f32(word >> 16)); }
#else
__device__ __forceinline__ float2 f16_both(uint32_t word) {
    const __half2 pair = *(const __half2*)&word;
    return make_float2(__low2float(pair), __high2float(pair));
}
#endif

// Four of the 8 nibbles of a word of a plane (see `nibbles` in weights.cuh), less 8, times 16, as signed bytes.
__device__ __forceinline__ uint32_t signed_nibbles(uint32_t word, uint32_t half) {
    return ((half == 0 ? word << 1 : word << 5 | word >> 27) ^ 0x80808080u) & 0xf0f0f0f0u;
}

// Integers with a scale per 32: x becomes integers of 22 bits per 32 values, in three signed bytes, and products are exact
// until scales come. Behind the parts lies a scale per 32 values.
// Sums begin at 1.5 * 2^23 in f32's bits, so that as a float they are 1.5 * 2^23 more than they are as a number.
template <bool NIBBLES>
struct ResidentIntegers {
    static constexpr uint32_t PAD = NIBBLES ? 16 : 32;
    static constexpr bool SCALED = true;
    static constexpr uint32_t kWhole = 1536;  // columns of most places
    static __device__ __forceinline__ uint32_t bytes(uint32_t columns) { return NIBBLES ? columns / 2 : columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return cols + 32; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols) + 4 * (cols / 32); }

    float sums[2];
    __device__ __forceinline__ void begin() { sums[0] = sums[1] = 0.0f; }

    // Runs of x as a lane needs them.
    template <uint32_t COUNT>
    struct Runs {
        static constexpr uint32_t N = COUNT;
        // In a whole place two scales come at once.
        static constexpr uint32_t PAIR = 32 * N * kResidentWarps == kWhole ? 2 : 1;
        uint2 parts[N];
        float high[N], low[N];  // what the lane's two sums count, a power of two each

        __device__ __forceinline__ void load(const ResidentShared& s, const unsigned char* x, uint32_t cols, uint32_t run) {
            const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, step = g < 3 ? 4 : 0;
            const uint2* b = g < 3 ? (const uint2*)(x + g * part(cols)) + 4 * run + t : (const uint2*)&s.zero;
            const float* from = (const float*)(x + 3 * part(cols)) + run;
#pragma unroll
            for (uint32_t i = 0; i < N; i++) parts[i] = b[step * i];
            const float above = t == 0 ? 65536.0f : t == 1 ? 1.0f : 0.0f, below = t == 0 ? 256.0f : 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < N; i += PAIR) {
                const float2 two = PAIR == 2 ? *(const float2*)(from + i) : make_float2(from[i], from[i]);
                high[i] = two.x * above;
                low[i] = two.x * below;
                high[i + PAIR - 1] = two.y * above;
                low[i + PAIR - 1] = two.y * below;
            }
        }
    };
    using Whole = Runs<kWhole / 32 / kResidentWarps>;

    // `whole` is what x has in the columns of the first place.
    __device__ __forceinline__ void multiply(const ResidentShared& s, const unsigned char* place, uint32_t columns, const unsigned char* x, uint32_t cols,
                                             uint32_t run0, uint32_t first, uint32_t count, Whole& whole) {
        // Runs of a whole place are one piece of code, so that all of them are on their way at once.
        if (columns == kWhole) {
            if (cols != kWhole) whole.load(s, x, cols, run0 + first);
            some(place, kWhole, first, whole);
            return;
        }
#pragma unroll 1
        for (; count >= 2; count -= 2, first += 2) {
            Runs<2> two;
            two.load(s, x, cols, run0 + first);
            some(place, columns, first, two);
        }
        if (count == 0) return;
        Runs<1> one;
        one.load(s, x, cols, run0 + first);
        some(place, columns, first, one);
    }
    template <uint32_t N>
    __device__ __forceinline__ void some(const unsigned char* place, uint32_t columns, uint32_t first, const Runs<N>& x) {
        using Self = ResidentIntegers;
        constexpr int kMagic = 0x4b400000;
        constexpr float kMore = 12582912.0f;
        constexpr uint32_t PAIR = Runs<N>::PAIR;
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, pitch = place_pitch<Self>(columns), scale_pitch = place_scale_pitch<Self>(columns);
        const unsigned char *w = place + g * pitch + bytes(32 * first) + (NIBBLES ? 4 : 8) * t, *v = w + 8 * pitch;
        const unsigned char* scales = place + kResidentTile * pitch + g * scale_pitch + 2 * first;
        uint2 p[N], q[N];
        float above[N], below[N];
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            if (NIBBLES) {
                p[i].x = *(const uint32_t*)(w + 16 * i);
                q[i].x = *(const uint32_t*)(v + 16 * i);
            } else {
                p[i] = *(const uint2*)(w + 32 * i);
                q[i] = *(const uint2*)(v + 32 * i);
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < N; i += PAIR) {
            const unsigned char *one = scales + 2 * i, *other = one + 8 * scale_pitch;
            const float2 here = f16_both(PAIR == 2 ? *(const uint32_t*)one : *(const uint16_t*)one);
            const float2 there = f16_both(PAIR == 2 ? *(const uint32_t*)other : *(const uint16_t*)other);
            above[i + PAIR - 1] = here.y;
            below[i + PAIR - 1] = there.y;
            above[i] = here.x;
            below[i] = there.x;
        }
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t a[4] = {NIBBLES ? signed_nibbles(p[i].x, 0) : p[i].x, NIBBLES ? signed_nibbles(q[i].x, 0) : q[i].x,
                                   NIBBLES ? signed_nibbles(p[i].x, 1) : p[i].y, NIBBLES ? signed_nibbles(q[i].x, 1) : q[i].y};
            const uint32_t parts[2] = {x.parts[i].x, x.parts[i].y};
            int d[4];
            mma_bytes(d, a, parts, kMagic);
            sums[0] += ((__int_as_float(d[0]) - kMore) * x.high[i] + (__int_as_float(d[1]) - kMore) * x.low[i]) * above[i];
            sums[1] += ((__int_as_float(d[2]) - kMore) * x.high[i] + (__int_as_float(d[3]) - kMore) * x.low[i]) * below[i];
        }
    }
    __device__ __forceinline__ float2 end() const {
        constexpr float unit = NIBBLES ? 0.0625f : 1.0f;
        return make_float2((sums[0] + __shfl_xor_sync(kAll, sums[0], 1)) * unit, (sums[1] + __shfl_xor_sync(kAll, sums[1], 1)) * unit);
    }

    // A thread has values 8 piece to 8 piece + 7; every second of eight lanes have 32.
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t piece, const float4 (&from)[2]) {
        const float v[8] = {from[0].x, from[0].y, from[0].z, from[0].w, from[1].x, from[1].y, from[1].z, from[1].w};
        uint32_t top = 0;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) top = max(top, __float_as_uint(v[i]) & 0x7fffffffu);
        top = max(top, __shfl_xor_sync(kAll, top, 2));
        top = max(top, __shfl_xor_sync(kAll, top, 4));
        // 2^e so that the largest lies in [2^21, 2^22), and 2^-e; what is not finite stays so.
        const uint32_t exponent = max(top >> 23, 22u);
        const float up = __uint_as_float((275u - exponent) << 23);
        const float down = exponent == 255 ? __uint_as_float(0x7fc00000u) : __uint_as_float((exponent - 21u) << 23);
        uint32_t words[3][2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            // q + 128 (1 + 256 + 65536), whose bytes are 128 more than q's three signed ones; q by what it adds to 1.5 * 2^23.
            uint32_t u[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) u[i] = __float_as_uint(v[4 * h + i] * up + 12582912.0f) + (0x808080u - 0x4b400000u);
            const uint32_t low = __byte_perm(u[0], u[1], 0x5140), more = __byte_perm(u[2], u[3], 0x5140);
            const uint32_t high = __byte_perm(u[0], u[1], 0x0062), above = __byte_perm(u[2], u[3], 0x0062);
            words[2][h] = __byte_perm(low, more, 0x5410) ^ 0x80808080u;
            words[1][h] = __byte_perm(low, more, 0x7632) ^ 0x80808080u;
            words[0][h] = __byte_perm(high, above, 0x5410) ^ 0x80808080u;
        }
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) *(uint2*)(to + p * part(cols) + 8 * piece) = make_uint2(words[p][0], words[p][1]);
        if (piece % 4 != 0) return;
        ((float*)(to + 3 * part(cols)))[piece / 4] = down;
    }
};
using ResidentQ8_0 = ResidentIntegers<false>;
using ResidentQ4_0 = ResidentIntegers<true>;
