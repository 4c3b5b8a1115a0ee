// Products for many tokens (prefill) on tensor cores (mma.sync m16n8k16, bf16 in, f32 sums). Numbers are split into bf16
// parts, each holding what the ones before left: activations into two (16 bits) beside weights that are bf16 numbers
// (three, all of f32, in plans that choose rows or experts by what comes out), both into three where weights are f32 or
// anything else. Activations are split once (gemm_split), weights by the block that reads them.
//
// One block: M tokens x 64 outputs, 32 inputs at a time; 4 warps of M / 2 x 32. Activations pass through three buffers
// that asynchronous copies fill, weights through two, by way of registers.
#pragma once

#include "chunks.cuh"
#include "mma.cuh"

// A run of (token, slot) pairs of one expert, as many as a block of products takes; `expert_tiles` makes them.
struct ExpertTile {
    uint32_t expert, begin, count, pad;
};

// What all products of one input share. `SplitArgs` in ../ops/gemm.rs.
struct SplitArgs {
    const float* x;      // [rows, x_stride]
    uint16_t* parts;     // [number of parts, bucket * runs, pitch] or in tiles, bf16, zeros behind `cols`
    const DevStep* step;
    uint32_t tokens;     // code of x's rows
    uint32_t x_stride;
    uint32_t runs;       // of `cols` inputs in a row of x: groups, or slots of experts; 1 = the row itself
    uint32_t cols;
    uint32_t pitch;      // a multiple of 64
    uint32_t bucket;     // rows of x in the plan's bucket
    uint32_t n_parts;
    uint32_t tiled;      // 1 = as in `tiled_at`: one run per row, pitch a multiple of 64
};

// Where number c of row `row` is that gemm_wg.cuh copies as a whole: tiles of 128 rows x 64 numbers, one behind the other along
// a row of tiles, each as it lies in shared memory (wgmma.cuh).
__device__ __forceinline__ size_t tiled_at(uint32_t row, uint32_t c, uint32_t pitch) {
    const size_t tile = (size_t)(row / 128) * (pitch / 64) + c / 64;
    return tile * 8192 + row % 128 * 64 + ((c % 64 / 8 ^ row % 8) * 8 + c % 8);
}

// The same as the product asks for, and the numbers of a part.
__device__ __forceinline__ size_t split_at(const SplitArgs& a, uint32_t run, uint32_t c) {
    return a.tiled != 0 ? tiled_at(run, c, a.pitch) : (size_t)run * a.pitch + c;
}
__device__ __forceinline__ size_t split_part(const SplitArgs& a) {
    return (size_t)(a.tiled != 0 ? (a.bucket + 127) / 128 * 128 : a.bucket * a.runs) * a.pitch;
}

struct GemmArgs {
    WeightRef w;
    WeightRef bias;             // [rows], null data = none
    const uint16_t* parts;      // x, as gemm_split left it
    float* out;                 // [tokens, out_stride]
    float* partial;             // splits > 1: [splits, token bucket, rows]
    const DevStep* step;
    const DevExpert* experts;   // as in MatMulArgs
    const ExpertTile* tiles;    // [grid.y], count 0 = none
    const uint32_t* order;      // [tokens * k] slots, grouped by expert
    uint32_t tokens;            // code of x's rows
    uint32_t runs;              // of a row of x, as in SplitArgs
    uint32_t pitch;
    uint32_t out_stride;
    uint32_t group_rows;
    uint32_t k;
    uint32_t per_slot;
    uint32_t splits;
    uint32_t bucket;            // rows of x and of `partial`
    uint32_t pad;
};

// Pitch in words: rows of a fragment in different banks.
constexpr uint32_t kTile = 64, kStep = 32, kPitch = 20, kStages = 3;

template <uint32_t XP, uint32_t WP, uint32_t M>
struct GemmShared {
    uint32_t x[kStages][XP][M][kPitch], w[2][WP][kTile][kPitch];
};

// 16 neighbouring weights of a row as they lie, then as values.
template <class F, uint32_t PARTS>
struct Fast {
    static constexpr uint32_t XP = PARTS, WP = F::EXACT ? 1 : PARTS;
    static constexpr uint32_t LOADS = F::LEN >= 16 ? 1 : 16 / F::LEN;
    uint32_t raw[LOADS][4];
    float scale;

    __device__ __forceinline__ void load(const WeightRef& w, uint32_t row, uint32_t c) {
        const uint8_t* at = w.data + (size_t)row * w.row_bytes;
        const bool there = row < w.rows && c < w.cols;
        scale = F::UNIT * (!F::SCALED || w.scales == nullptr || !there ? 1.0f : scale_at(w, row, c));
        if constexpr (F::LEN == 32) {
            const uint2 v = there ? *(const uint2*)(at + c / 2) : make_uint2(0, 0);
            raw[0][0] = v.x;
            raw[0][1] = v.y;
        } else {
#pragma unroll
            for (uint32_t i = 0; i < LOADS; i++) {
                const uint4 v = there ? *(const uint4*)(at + (c / F::LEN + i) * 16) : make_uint4(0, 0, 0, 0);
                raw[i][0] = v.x;
                raw[i][1] = v.y;
                raw[i][2] = v.z;
                raw[i][3] = v.w;
            }
        }
    }
    __device__ __forceinline__ float4 four(uint32_t i) const {
        constexpr uint32_t PER = F::LEN / 4;
        float4 v = LOADS == 1 ? F::four(raw[0], i) : F::four(raw[i / PER < LOADS ? i / PER : 0], i % PER);
        if (F::SCALED) {
            v.x *= scale;
            v.y *= scale;
            v.z *= scale;
            v.w *= scale;
        }
        return v;
    }
};

// Any format, layout and alignment.
struct Slow {
    static constexpr uint32_t XP = 3, WP = 3;
    float v[16];

    __device__ __forceinline__ void load(const WeightRef& w, uint32_t row, uint32_t c) {
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) v[i] = row < w.rows && c + i < w.cols ? weight_at(w, row, c + i) : 0.0f;
    }
    __device__ __forceinline__ float4 four(uint32_t i) const {
        return make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    }
};

template <class W, uint32_t M>
__device__ __forceinline__ void gemm(const GemmArgs& a) {
    constexpr uint32_t XP = W::XP, WP = W::WP, MT = M / 32;
    DYNAMIC_SHARED(memory);
    GemmShared<XP, WP, M>& s = *(GemmShared<XP, WP, M>*)memory;
    const uint32_t all = step_rows(*a.step, a.tokens);
    WeightRef w = a.w;
    uint32_t count, first = blockIdx.y * M;
    if (a.experts != nullptr) {
        const ExpertTile tile = a.tiles[blockIdx.y];
        if (tile.count == 0) return;
        count = tile.count;
        first = tile.begin;
        w.data = a.experts[tile.expert].data;
        w.scales = a.experts[tile.expert].scales;
    } else {
        if (first >= all) return;
        count = min(all - first, M);
    }
    const uint32_t n0 = blockIdx.x * kTile;
    // A thread copies a quarter of a step of every 32nd row of x, and brings 16 inputs of one output row.
    const uint32_t quarter = threadIdx.x % 4, row = threadIdx.x / 2, half = threadIdx.x % 2 * 16;
    size_t from[MT];
#pragma unroll
    for (uint32_t j = 0; j < MT; j++) {
        const uint32_t r = threadIdx.x / 4 + 32 * j;
        uint32_t run = 0;
        if (r < count && a.experts != nullptr) {
            const uint32_t slot = a.order[first + r];
            run = a.per_slot != 0 ? slot : slot / a.k;
        } else if (r < count) {
            run = (first + r) * a.runs + (a.group_rows != 0 ? n0 / a.group_rows : 0);
        }
        from[j] = (size_t)run * a.pitch + 8 * quarter;
    }
    const size_t part = (size_t)a.bucket * a.runs * a.pitch;
    const uint32_t steps = (w.cols + kStep - 1) / kStep, per = (steps + a.splits - 1) / a.splits;
    const uint32_t begin = min(blockIdx.z * per, steps), end = min(begin + per, steps);

    W ws;
    const auto copy_x = [&](uint32_t step) {
        if (step < end) {
#pragma unroll
            for (uint32_t p = 0; p < XP; p++) {
#pragma unroll
                for (uint32_t j = 0; j < MT; j++) {
                    const uint32_t r = threadIdx.x / 4 + 32 * j;
                    copy_async(&s.x[step % kStages][p][r][4 * quarter], a.parts + p * part + from[j] + step * kStep, r < count);
                }
            }
        }
        close_copies();
    };
    const auto store_w = [&](uint32_t buffer) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float4 v = ws.four(i);
            uint32_t left[WP], right[WP];
            if (WP == 1) {
                // bf16 numbers: the upper halves are all there is.
                left[0] = __float_as_uint(v.x) >> 16 | (__float_as_uint(v.y) & 0xffff0000u);
                right[0] = __float_as_uint(v.z) >> 16 | (__float_as_uint(v.w) & 0xffff0000u);
            } else {
                split_pair(v.x, v.y, left);
                split_pair(v.z, v.w, right);
            }
#pragma unroll
            for (uint32_t p = 0; p < WP; p++) {
                s.w[buffer][p][row][half / 2 + 2 * i] = left[p];
                s.w[buffer][p][row][half / 2 + 2 * i + 1] = right[p];
            }
        }
    };

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t m0 = warp / 2 * (M / 2), c0 = warp % 2 * 32;
    float acc[MT][4][4] = {};
    if (begin < end) ws.load(w, n0 + row, begin * kStep + half);
#pragma unroll
    for (uint32_t i = 0; i + 1 < kStages; i++) copy_x(begin + i);
    for (uint32_t step = begin; step < end; step++) {
        const uint32_t buffer = step & 1, stage = step % kStages;
        store_w(buffer);
        await_copies<kStages - 2>();
        // What is there is seen by all, and nobody reads the buffers of the step before any more.
        __syncthreads();
        if (step + 1 < end) ws.load(w, n0 + row, (step + 1) * kStep + half);
        copy_x(step + kStages - 1);
#pragma unroll
        for (uint32_t k = 0; k < kStep / 2; k += 8) {
            uint32_t wf[WP][2][4];
#pragma unroll
            for (uint32_t q = 0; q < WP; q++) {
#pragma unroll
                for (uint32_t n = 0; n < 2; n++) {
                    load_matrices(wf[q][n], &s.w[buffer][q][c0 + 16 * n + lane / 16 * 8 + lane % 8][k + lane / 8 % 2 * 4]);
                }
            }
#pragma unroll
            for (uint32_t m = 0; m < MT; m++) {
                uint32_t xf[XP][4];
#pragma unroll
                for (uint32_t p = 0; p < XP; p++) {
                    load_matrices(xf[p], &s.x[stage][p][m0 + 16 * m + lane % 16][k + lane / 16 * 4]);
                }
                // Small products first. Those of parts i and j with i + j >= 3 are below f32's last bit.
#pragma unroll
                for (int sum = (int)(XP > WP ? XP : WP) - 1; sum >= 0; sum--) {
#pragma unroll
                    for (uint32_t q = 0; q < WP; q++) {
                        const int p = sum - (int)q;
                        if (p < 0 || p >= (int)XP) continue;
#pragma unroll
                        for (uint32_t n = 0; n < 4; n++) {
                            const uint32_t pair[2] = {wf[q][n / 2][n % 2 * 2], wf[q][n / 2][n % 2 * 2 + 1]};
                            mma(acc[m][n], xf[p], pair);
                        }
                    }
                }
            }
        }
    }
#pragma unroll
    for (uint32_t m = 0; m < MT; m++) {
#pragma unroll
        for (uint32_t i = 0; i < 4; i += 2) {
            const uint32_t r = m0 + 16 * m + g + i / 2 * 8;
            if (r >= count) continue;
            float* out = a.out;
            if (a.experts != nullptr) {
                const uint32_t slot = a.order[first + r];
                out += (size_t)(slot / a.k) * a.out_stride + (size_t)(slot % a.k) * w.rows;
            } else if (a.splits > 1) {
                out = a.partial + ((size_t)blockIdx.z * a.bucket + first + r) * w.rows;
            } else {
                out += (size_t)(first + r) * a.out_stride;
            }
#pragma unroll
            for (uint32_t n = 0; n < 4; n++) {
#pragma unroll
                for (uint32_t e = 0; e < 2; e++) {
                    const uint32_t o = n0 + c0 + 8 * n + 2 * t + e;
                    if (o >= w.rows) continue;
                    float v = acc[m][n][i + e];
                    if (a.splits == 1 && a.bias.data != nullptr) v += vector_at(a.bias, o);
                    out[o] = v;
                }
            }
        }
    }
}
