// Products for many tokens on Hopper (sm_90a): as gemm.cuh, with wgmma. Weights are bf16 as stored; activations are in two or
// three bf16 parts (gemm_split), all of which meet the same tile of weights, which is read once.
//
// One block: 128 tokens x N outputs of one of several matrices that share their input, 64 inputs at a time. Warps 8 to 11
// copy tiles into a ring of buffers in shared memory, warps 0 to 3 and 4 to 7 multiply 64 tokens each. A buffer has two
// barriers: `full` (128 copying threads) and `free` (8 multiplying warps).
#pragma once

#include "wgmma.cuh"

constexpr uint32_t kWgTokens = 128, kWgStep = 64, kMatrices = 8;

// One of the matrices. `Matrix` in ../ops/gemm_wg.rs.
struct WgMatrix {
    WeightRef w;
    WeightRef bias;            // [rows], null data = none
    float* out;                // [tokens, out_stride]
    const DevExpert* experts;  // as in MatMulArgs
    uint32_t out_stride;
    uint32_t first_tile;       // blockIdx.y of its first rows
    uint32_t first_row;        // in `partial`
    uint32_t pad;
};

struct WgArgs {
    WgMatrix matrices[kMatrices];
    const uint16_t* parts;    // as in GemmArgs
    float* partial;           // splits > 1: [splits, token bucket, rows]
    const DevStep* step;
    const ExpertTile* tiles;  // [grid.x], count 0 = none
    const uint32_t* order;    // [tokens * k] slots, grouped by expert
    uint32_t n;               // matrices
    uint32_t rows;            // of all of them
    uint32_t tokens;          // code of x's rows
    uint32_t runs;            // of a row of x, as in SplitArgs
    uint32_t pitch;
    uint32_t group_rows;
    uint32_t k;
    uint32_t per_slot;
    uint32_t splits;
    uint32_t bucket;          // rows of x and of `partial`
};

// Shared memory: the ring, from the next multiple of 1024 on; then two barriers per buffer; then N biases. `shared_bytes`
// in ../ops/gemm_wg.rs.
template <uint32_t XP, uint32_t N>
struct WgRing {
    static constexpr uint32_t kX = kWgTokens * kRowBytes, kBytes = XP * kX + N * kRowBytes;
    static constexpr uint32_t kStages = (200 << 10) / kBytes, kBarriers = kStages * kBytes, kBias = kBarriers + 16 * kStages;
};

// Which matrix has row tile `tile`.
__device__ __forceinline__ uint32_t matrix_of(const WgArgs& a, uint32_t tile) {
    uint32_t m = 0;
    while (m + 1 < a.n && tile >= a.matrices[m + 1].first_tile) m++;
    return m;
}

// grid (tokens / 128 or expert tiles, row tiles, splits), 384 threads
template <uint32_t XP, uint32_t N>
__device__ __forceinline__ void gemm_wg(const WgArgs& a) {
    typedef WgRing<XP, N> Ring;
    DYNAMIC_SHARED(memory);
    unsigned char* ring = memory;
#ifndef MODEL1_EMULATE
    ring += 1023 & -(uint32_t)__cvta_generic_to_shared(memory);
#endif
    const WgMatrix& matrix = a.matrices[matrix_of(a, blockIdx.y)];
    const uint32_t rows = matrix.w.rows, n0 = (blockIdx.y - matrix.first_tile) * N;
    uint32_t count, first = blockIdx.x * kWgTokens;
    const uint8_t* weights = matrix.w.data;
    if (matrix.experts != nullptr) {
        const ExpertTile tile = a.tiles[blockIdx.x];
        if (tile.count == 0) return;
        count = tile.count;
        first = tile.begin;
        weights = matrix.experts[tile.expert].data;
    } else {
        const uint32_t all = step_rows(*a.step, a.tokens);
        if (first >= all) return;
        count = min(all - first, kWgTokens);
    }
    const uint32_t steps = (matrix.w.cols + kWgStep - 1) / kWgStep, per = (steps + a.splits - 1) / a.splits;
    const uint32_t begin = min(blockIdx.z * per, steps), end = min(begin + per, steps);

    // Before the first barrier of all; a share of the inputs has no bias.
    float* bias = (float*)(ring + Ring::kBias);
    for (uint32_t o = threadIdx.x; o < N; o += blockDim.x) {
        const bool there = matrix.bias.data != nullptr && a.splits == 1 && n0 + o < rows;
        bias[o] = there ? vector_at(matrix.bias, n0 + o) : 0.0f;
    }

    // A copying thread brings chunk `chunk` of every 16th row.
    const uint32_t copier = threadIdx.x - 2 * 128, chunk = copier % 8, row = copier / 8;
    const uint32_t to = swizzled(row, chunk);
    uint32_t from[kWgTokens / 16];
    const auto place = [&]() {
#pragma unroll
        for (uint32_t j = 0; j < kWgTokens / 16; j++) {
            const uint32_t r = row + 16 * j;
            uint32_t run = 0;
            if (r < count && matrix.experts != nullptr) {
                const uint32_t slot = a.order[first + r];
                run = a.per_slot != 0 ? slot : slot / a.k;
            } else if (r < count) {
                run = (first + r) * a.runs + (a.group_rows != 0 ? n0 / a.group_rows : 0);
            }
            from[j] = run * a.pitch;
        }
    };
    const size_t part = (size_t)a.bucket * a.runs * a.pitch;
    const auto copy = [&](uint32_t step, uint32_t stage) {
        unsigned char* buffer = ring + stage * Ring::kBytes + to;
        const uint32_t c = step * kWgStep + 8 * chunk;
#pragma unroll
        for (uint32_t p = 0; p < XP; p++) {
#pragma unroll
            for (uint32_t j = 0; j < kWgTokens / 16; j++) {
                copy_async((uint32_t*)(buffer + p * Ring::kX + 16 * kRowBytes * j), a.parts + p * part + from[j] + c,
                           row + 16 * j < count && c < a.pitch);
            }
        }
        const uint8_t* w = weights + (size_t)(n0 + row) * matrix.w.row_bytes + 2 * c;
#pragma unroll
        for (uint32_t j = 0; j < N / 16; j++) {
            copy_async((uint32_t*)(buffer + XP * Ring::kX + 16 * kRowBytes * j), (const uint16_t*)w,
                       n0 + row + 16 * j < rows && c < matrix.w.cols);
            w += 16 * (size_t)matrix.w.row_bytes;
        }
    };

    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, m0 = warp / 4 * 64;
    float sums[N / 2] = {};
    const auto multiply = [&](uint32_t stage) {
        const unsigned char* buffer = ring + stage * Ring::kBytes;
#pragma unroll
        for (uint32_t k = 0; k < kWgStep / 16; k++) {
            // Small products first.
#pragma unroll
            for (int p = (int)XP - 1; p >= 0; p--) {
                wgmma(sums, operand(buffer + p * Ring::kX + m0 * kRowBytes, k), operand(buffer + XP * Ring::kX, k));
            }
        }
    };

#ifdef MODEL1_EMULATE
    if (warp >= 8) place();
    __syncthreads();
    for (uint32_t step = begin; step < end; step++) {
        if (warp >= 8) copy(step, step % Ring::kStages);
        __syncthreads();
        if (warp < 8) multiply(step % Ring::kStages);
    }
    if (warp >= 8) return;
#else
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(ring) + Ring::kBarriers;
    const uint32_t free = full + 8 * Ring::kStages;
    if (threadIdx.x == 0) {
#pragma unroll
        for (uint32_t i = 0; i < Ring::kStages; i++) {
            barrier_init(full + 8 * i, 128);
            barrier_init(free + 8 * i, 8);
        }
        fence_products();
    }
    __syncthreads();
    uint32_t stage = 0, phase = 0;
    if (warp >= 8) {
        place();
        for (uint32_t step = begin; step < end; step++) {
            // The first round finds all buffers free.
            barrier_await(free + 8 * stage, phase ^ 1);
            copy(step, stage);
            barrier_arrive_copied(full + 8 * stage);
            if (++stage == Ring::kStages) {
                stage = 0;
                phase ^= 1;
            }
        }
        return;
    }
    uint32_t before = 0;
    hold(sums);
    for (uint32_t step = begin; step < end; step++) {
        barrier_await(full + 8 * stage, phase);
        fence_products();
        begin_products();
        multiply(stage);
        close_products();
        // The products of the step before are done, and its buffer is free.
        await_products<1>();
        if (step > begin && lane == 0) barrier_arrive(free + 8 * before);
        before = stage;
        if (++stage == Ring::kStages) {
            stage = 0;
            phase ^= 1;
        }
    }
    await_products<0>();
    hold(sums);
#endif

#pragma unroll
    for (uint32_t half = 0; half < 2; half++) {
        const uint32_t r = m0 + warp % 4 * 16 + lane / 4 + 8 * half;
        if (r >= count) continue;
        float* out = matrix.out;
        if (matrix.experts != nullptr) {
            const uint32_t slot = a.order[first + r];
            out += (size_t)(slot / a.k) * matrix.out_stride + (size_t)(slot % a.k) * rows;
        } else if (a.splits > 1) {
            out = a.partial + ((size_t)blockIdx.z * a.bucket + first + r) * a.rows + matrix.first_row;
        } else {
            out += (size_t)(first + r) * matrix.out_stride;
        }
        // Rows of matrices come in eights.
        const uint32_t eights = min(N, rows - n0) / 8, t = lane % 4 * 2;
#pragma unroll
        for (uint32_t i = 0; i < N / 8; i++) {
            if (i >= eights) break;
            const float2 b = *(const float2*)(bias + 8 * i + t);
            *(float2*)(out + n0 + 8 * i + t) = make_float2(sums[4 * i + 2 * half] + b.x, sums[4 * i + 2 * half + 1] + b.y);
        }
    }
}
