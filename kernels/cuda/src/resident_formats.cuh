// How stored weights meet x on tensor cores in a resident launch (resident.cuh).
#pragma once

#include "resident_ring.cuh"

// How formats meet x, in runs of 32 columns. Of a run lane t of quad g has the 8 columns from 8 t on, of rows g and g + 8, and of a
// part of x: part g, where g is 2 or more the last one, whose products then stand in columns 2 to 7 of a sum. In shared memory
// x's parts lie `part` bytes apart.
//
// A warp has the same RUNS runs of every place, in registers: while they are multiplied those of the next place take their turn
// one by one, so that no product waits for shared memory. Where a place has fewer columns the last warps have fewer runs: what
// stands in the others' stead is made zero.
//
// The lane, asked for anew: what follows from it would else stay in registers while attention needs them.
__device__ __forceinline__ uint32_t own_lane() {
#ifdef MODEL1_EMULATE
    return threadIdx.x & 31;
#else
    uint32_t lane;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));
    return lane;
#endif
}

struct ResidentBf16 {
    static constexpr uint32_t PAD = 64;  // rows g and g + 1 meet in no bank
    static constexpr bool SCALED = false, SMALL = false;
    static constexpr uint32_t kWhole = 768, RUNS = kWhole / 32 / kResidentWarps;  // columns of a place at most
    static __device__ __forceinline__ uint32_t bytes(uint32_t columns) { return 2 * columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return 2 * cols + 64; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols); }
    static constexpr uint32_t PITCH = 2 * kWhole + PAD, SCALES = 0;

    uint4 w[2][RUNS], x[RUNS];
    float sums[2][4];  // two, so that products need not wait for each other
    const unsigned char* x_from;
    uint32_t from, skipped;  // of a place: bytes before the lane's weights, columns before the warp's
    __device__ __forceinline__ ResidentBf16(const ResidentShared&, const unsigned char* to, uint32_t cols, uint32_t warp) {
        const uint32_t lane = own_lane(), t = lane % 4;
        skipped = 32 * RUNS * warp;
        from = lane / 4 * PITCH + 2 * skipped + 16 * t;
        x_from = to + min(lane / 4, 2u) * part(cols) + 2 * skipped + 16 * t;
    }
    __device__ __forceinline__ void begin() {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sums[i / 4][i % 4] = 0.0f;
    }
    __device__ __forceinline__ void load_weights(const unsigned char* place, uint32_t i) {
        w[0][i] = ((const uint4*)(place + from))[4 * i];
        w[1][i] = ((const uint4*)(place + from))[4 * i + PITCH / 2];
    }
    __device__ __forceinline__ void clear(uint32_t columns) {
        if (columns >= kWhole) return;
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            if (columns <= skipped + 32 * i) w[0][i] = w[1][i] = x[i] = make_uint4(0, 0, 0, 0);
        }
    }
    // A product's first place, and x's columns of it.
    __device__ __forceinline__ void load(const unsigned char* place) {
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) load_weights(place, i);
    }
    __device__ __forceinline__ void load_x(uint32_t columns) {
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) x[i] = ((const uint4*)x_from)[4 * i];
        clear(columns);
    }
    // Multiplies a place and takes the next one, of `columns` from `column` on; `moves`: of x others than now.
    __device__ __forceinline__ void multiply(const unsigned char* place, uint32_t column, uint32_t columns, bool moves) {
        const uint4* next = (const uint4*)(x_from + 2 * column);
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            const uint4 p = w[0][i], q = w[1][i], y = x[i];
            const uint32_t first[4] = {p.x, q.x, p.y, q.y}, second[4] = {p.z, q.z, p.w, q.w}, y0[2] = {y.x, y.y}, y1[2] = {y.z, y.w};
            mma(sums[0], first, y0);
            mma(sums[1], second, y1);
            load_weights(place, i);
            if (moves) x[i] = next[4 * i];
        }
        clear(columns);
    }
    // What row g comes to, in lane 0 of the quad, and row g + 8, in lane 1.
    __device__ __forceinline__ float end() const {
        const uint32_t t = threadIdx.x & 3;
        const float low = t == 0 ? sums[0][1] + sums[1][1] : 0.0f, high = t == 0 ? sums[0][3] + sums[1][3] : 0.0f;
        const float here = (sums[0][0] + sums[1][0]) + low, there = (sums[0][2] + sums[1][2]) + high;
        return (t == 0 ? here : there) + __shfl_xor_sync(kAll, t == 0 ? there : here, 1);
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

// Four of the 8 nibbles of a word of a plane (see `nibbles` in weights.cuh), less 8, times 16, as signed bytes. `flip` is kFlip in a
// register: of two constants one takes an instruction of its own.
__device__ __forceinline__ uint32_t signed_nibbles(uint32_t word, uint32_t half, uint32_t flip) {
    return ((half == 0 ? word << 1 : word << 5 | word >> 27) ^ flip) & 0xf0f0f0f0u;
}

// Integers with a scale per 32: x becomes integers of 22 bits per 32 values, in three signed bytes, and products are exact
// until scales come. Behind the parts lies a scale per 32 values.
// Sums begin at 1.5 * 2^23 in f32's bits, so that as a float they are 1.5 * 2^23 more than they are as a number.
template <bool NIBBLES>
struct ResidentIntegers {
    static constexpr uint32_t PAD = NIBBLES ? 16 : 32;
    static constexpr bool SCALED = true, SMALL = NIBBLES;  // SMALL: few bytes in a place, see `Fillers` and `kPieces`
    static constexpr int kMagic = 0x4b400000;
    static constexpr float kMore = 12582912.0f;
    static constexpr uint32_t kWhole = 1536, RUNS = kWhole / 32 / kResidentWarps;  // columns of a place at most
    static __device__ __forceinline__ constexpr uint32_t bytes(uint32_t columns) { return NIBBLES ? columns / 2 : columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return cols + 32; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols) + 4 * (cols / 32); }
    static constexpr uint32_t PITCH = (NIBBLES ? kWhole / 2 : kWhole) + PAD, SCALES = kWhole / 16 + 16, RUN = NIBBLES ? 16 : 32;

    static_assert(RUNS % 2 == 0, "two scales come at once");
    uint2 w[2][RUNS];  // of nibbles .x
    uint32_t scales[2][RUNS / 2];
    uint2 x[RUNS];
    float2 units[RUNS / 2];  // of x, for two runs
    float sums[2];
    const unsigned char *x_from, *units_from;
    uint32_t from, scales_from, skipped;  // of a place: bytes before the lane's weights and scales, columns before the warp's
    float shift, less;
    uint32_t flip;
    __device__ __forceinline__ ResidentIntegers(const ResidentShared& s, const unsigned char* to, uint32_t cols, uint32_t warp) {
        const uint32_t lane = own_lane(), g = lane / 4, t = lane % 4;
        skipped = 32 * RUNS * warp;
        from = g * PITCH + RUN * RUNS * warp + RUN / 4 * t;
        scales_from = kResidentTile * PITCH + g * SCALES + 2 * RUNS * warp;
        x_from = to + min(lane / 4, 2u) * part(cols) + skipped + 8 * t;
        units_from = to + 3 * part(cols) + skipped / 8;
        shift = t == 0 ? 256.0f : 0.0f;
        less = t == 0 ? -257.0f * kMore : -kMore;
        flip = s.flip;
    }
    __device__ __forceinline__ void begin() { sums[0] = sums[1] = 0.0f; }

    __device__ __forceinline__ void load_weights(const unsigned char* place, uint32_t i) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const unsigned char* at = place + from + (RUN * i + 8 * h * PITCH);
            if (NIBBLES) {
                w[h][i].x = *(const uint32_t*)at;
            } else {
                w[h][i] = *(const uint2*)at;
            }
        }
    }
    __device__ __forceinline__ void load_scales(const unsigned char* place, uint32_t k) {
        scales[0][k] = *(const uint32_t*)(place + scales_from + 4 * k);
        scales[1][k] = *(const uint32_t*)(place + scales_from + (4 * k + 8 * SCALES));
    }
    __device__ __forceinline__ void clear(uint32_t columns) {
        if (columns >= kWhole) return;
#pragma unroll
        for (uint32_t k = 0; k < RUNS / 2; k++) {
            if (columns > skipped + 64 * k) continue;
            scales[0][k] = scales[1][k] = 0;
            units[k] = make_float2(0.0f, 0.0f);
        }
    }
    // A product's first place, and x's columns of it.
    __device__ __forceinline__ void load(const unsigned char* place) {
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) load_weights(place, i);
#pragma unroll
        for (uint32_t k = 0; k < RUNS / 2; k++) load_scales(place, k);
    }
    __device__ __forceinline__ void load_x(uint32_t columns) {
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) x[i] = ((const uint2*)x_from)[4 * i];
#pragma unroll
        for (uint32_t k = 0; k < RUNS / 2; k++) units[k] = ((const float2*)units_from)[k];
        clear(columns);
    }
    // Multiplies a place and takes the next one, of `columns` from `column` on; `moves`: of x others than now.
    //
    // Parts 0 and 1 of x (lane 0) become one number, and part 2 (lane 1) as well: a float of a sum's bits is 1.5 * 2^23 more than
    // the sum. Times 256 or 0, less 257 or 1 times that, it is exact, and so is the end but for one rounding.
    __device__ __forceinline__ void multiply(const unsigned char* place, uint32_t column, uint32_t columns, bool moves) {
        const uint2* x_next = (const uint2*)(x_from + column);
        const float2* units_next = (const float2*)(units_from + column / 8);
        int d[RUNS][4];
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            const uint2 p = w[0][i], q = w[1][i];
            const uint32_t a[4] = {NIBBLES ? signed_nibbles(p.x, 0, flip) : p.x, NIBBLES ? signed_nibbles(q.x, 0, flip) : q.x,
                                   NIBBLES ? signed_nibbles(p.x, 1, flip) : p.y, NIBBLES ? signed_nibbles(q.x, 1, flip) : q.y};
            const uint32_t parts[2] = {x[i].x, x[i].y};
            mma_bytes(d[i], a, parts, kMagic);
            load_weights(place, i);
            if (moves) x[i] = x_next[4 * i];
        }
#pragma unroll
        for (uint32_t k = 0; k < RUNS / 2; k++) {
            const float2 above = f16_both(scales[0][k]), below = f16_both(scales[1][k]), unit = units[k];
            const auto value = [&](uint32_t i, uint32_t h) { return (__int_as_float(d[i][2 * h]) * shift + less) + __int_as_float(d[i][2 * h + 1]); };
            sums[0] += value(2 * k, 0) * (unit.x * above.x);
            sums[1] += value(2 * k, 1) * (unit.x * below.x);
            sums[0] += value(2 * k + 1, 0) * (unit.y * above.y);
            sums[1] += value(2 * k + 1, 1) * (unit.y * below.y);
            load_scales(place, k);
            if (moves) units[k] = units_next[k];
        }
        clear(columns);
    }
    // What row g comes to, in lane 0 of the quad, and row g + 8, in lane 1.
    __device__ __forceinline__ float end() const {
        const bool upper = (threadIdx.x & 3) == 0;
        const float unit = (NIBBLES ? 0.0625f : 1.0f) * (upper ? 256.0f : 1.0f), here = sums[0] * unit, there = sums[1] * unit;
        return (upper ? here : there) + __shfl_xor_sync(kAll, upper ? there : here, 1);
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
