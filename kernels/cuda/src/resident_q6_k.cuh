// Q6_K matrices among Q4_0 ones in a resident launch (resident.cuh): output layers of such models.
#pragma once

#include "resident_formats.cuh"

// Signed bytes with a scale per 16 (`q6_k_scale` in weights.cuh). A row lies in the ring as a Q4_0 row of twice as many columns:
// 32 columns have as many bytes as 64 there, and so have their scales. x lies as for Q4_0, too.
//
// Of a run of 32 columns lane t of quad g has columns 4 t on, and 16 + 4 t on, of rows g and g + 8. The other operand's first
// four columns are x's parts for the run's first half, with zeros for the other one; the last four are those for the second
// half: a single product keeps what two scales count apart, and lanes 2 and 3 of a quad have the second half's sums.
struct ResidentQ6K {
    using Lies = ResidentQ4_0;
    static constexpr bool SMALL = true;
    static constexpr uint32_t kWhole = 768, RUNS = kWhole / 32 / kResidentWarps;  // columns of a place at most
    static constexpr int kMagic = 0x4b400000;
    static constexpr float kMore = 12582912.0f;

    // As in ResidentIntegers.
    uint32_t w[RUNS][4], scales[2][RUNS], x[RUNS];
    float units[RUNS], sums[2];
    const unsigned char *x_from, *units_from;
    uint32_t from, scales_from, skipped, byte;
    float shift, less;
    bool second;

    __device__ __forceinline__ ResidentQ6K(const ResidentShared&, const unsigned char* to, uint32_t cols, uint32_t warp) {
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, part = Lies::part(cols);
        skipped = 32 * RUNS * warp;
        from = g * Lies::PITCH + skipped + 4 * t;
        scales_from = kResidentTile * Lies::PITCH + g * Lies::SCALES + 4 * RUNS * warp;
        second = g >= 4;
        x_from = to + min(g % 4, 2u) * part + skipped + (second ? 16 : 0) + 4 * t;
        units_from = to + 3 * part + skipped / 8;
        byte = t < 2 ? 0x7442u : 0x7443u;
        shift = t % 2 == 0 ? 256.0f : 0.0f;
        less = t % 2 == 0 ? -257.0f * kMore : -kMore;
    }
    __device__ __forceinline__ void begin() { sums[0] = sums[1] = 0.0f; }

    __device__ __forceinline__ void load_run(const unsigned char* place, uint32_t i) {
#pragma unroll
        for (uint32_t h = 0; h < 4; h++) w[i][h] = *(const uint32_t*)(place + from + (32 * i + h / 2 * 16 + h % 2 * 8 * Lies::PITCH));
    }
    __device__ __forceinline__ void load_scales(const unsigned char* place, uint32_t i) {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) scales[h][i] = *(const uint32_t*)(place + scales_from + (4 * i + h * 8 * Lies::SCALES));
    }
    __device__ __forceinline__ void clear(uint32_t columns) {
        if (columns >= kWhole) return;
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            if (columns > skipped + 32 * i) continue;
            scales[0][i] = scales[1][i] = 0;
            units[i] = 0.0f;
        }
    }
    __device__ __forceinline__ void load(const unsigned char* place) {
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            load_run(place, i);
            load_scales(place, i);
        }
    }
    __device__ __forceinline__ void load_x(uint32_t columns) {
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            x[i] = *(const uint32_t*)(x_from + 32 * i);
            units[i] = ((const float*)units_from)[i];
        }
        clear(columns);
    }
    __device__ __forceinline__ void multiply(const unsigned char* place, uint32_t column, uint32_t columns, bool moves) {
        int d[RUNS][4];
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            const uint32_t parts[2] = {second ? 0 : x[i], second ? x[i] : 0};
            mma_bytes(d[i], w[i], parts, kMagic);
            load_run(place, i);
            if (moves) x[i] = *(const uint32_t*)(x_from + column + 32 * i);
        }
#pragma unroll
        for (uint32_t i = 0; i < RUNS; i++) {
            const auto value = [&](uint32_t h) { return (__int_as_float(d[i][2 * h]) * shift + less) + __int_as_float(d[i][2 * h + 1]); };
            sums[0] += value(0) * (units[i] * scale(scales[0][i], byte));
            sums[1] += value(1) * (units[i] * scale(scales[1][i], byte));
            load_scales(place, i);
            if (moves) units[i] = ((const float*)(units_from + column / 8))[i];
        }
        clear(columns);
    }
    // `q6_k_scale`, the signed byte as what it adds to 2^23 + 128.
    static __device__ __forceinline__ float scale(uint32_t word, uint32_t byte) {
        return f16_both(word).x * (__uint_as_float(__byte_perm(word ^ 0x80800000u, 0x4b000000u, byte)) - 8388736.0f);
    }
    // What row g comes to, in lane 0 of the quad, and row g + 8, in lane 1.
    __device__ __forceinline__ float end() const {
        const uint32_t t = threadIdx.x & 3;
        const float unit = t % 2 == 0 ? 256.0f : 1.0f;
        float low = sums[0] * unit, high = sums[1] * unit;
        low += __shfl_xor_sync(kAll, low, 1);
        high += __shfl_xor_sync(kAll, high, 1);
        low += __shfl_xor_sync(kAll, low, 2);
        high += __shfl_xor_sync(kAll, high, 2);
        return t == 0 ? low : high;
    }
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t piece, const float4 (&v)[2]) { Lies::store(to, cols, piece, v); }
};

// The format that matrices can have beside the launch's.
template <class F>
struct OtherFormat {
    static constexpr bool THERE = false;
    using Type = F;
};
template <>
struct OtherFormat<ResidentQ4_0> {
    static constexpr bool THERE = true;
    using Type = ResidentQ6K;
};
