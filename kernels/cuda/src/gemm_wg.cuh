// Products for many tokens on Hopper (sm_90a): as gemm.cuh, with wgmma. Weights are bf16 as stored, or as dense.cu leaves them,
// in one or two parts, one behind the other in a row; activations are in two or three bf16 parts (gemm_split), all of which
// meet the same tile of weights, which is read once.
//
// A block goes through tiles of 128 tokens x 128 outputs of several matrices that share their input, 64 inputs at a time.
// Warps 8 to 11 copy into a ring of buffers in shared memory and run ahead into the next tile; warps 0 to 3 and 4 to 7 take
// tiles in turns, so that one group stores its sums while the other multiplies (with both on one tile, storing and the
// first copies took 4.5 of 20 us). A buffer has two barriers: `full` (128 copying threads, and one for what it has copied as
// a whole) and `free` (4 multiplying warps). A group begins when the other has begun its last step (`turn`): whoever waits
// for a buffer may be one round behind at most.
//
// What limits them is power: an H200 runs them at 1.37 to 1.75 GHz of 1.98. Multiprocessors that idle are what is left to win
// (gemm_wide.cuh). Not kept, at 1,024 and 2,048 tokens: copies of activations shared by a cluster of two (a third less read from
// the second-level cache, the same time; twice the time with barriers of cluster scope); what gate and up give stored as whole
// tiles by way of shared memory (the same time); the next tile's place worked out a step ahead (the same time).
#pragma once

#include "wgmma.cuh"

constexpr uint32_t kWgTokens = 128, kWgRows = 128, kWgStep = 64, kMatrices = 8;

// One of the matrices. `Matrix` in ../ops/gemm_wg.rs.
struct WgMatrix {
    WeightRef w;
    WeightRef bias;            // [rows], null data = none
    float* out;                // [tokens, out_stride]
    const float* residual;     // as out, which it may be: gemm_wg_sum and wide tiles add it, null = none
    const DevExpert* experts;  // as in MatMulArgs
    uint32_t out_stride;
    uint32_t first_tile;       // row tile of its first rows
    uint32_t first_row;        // in `partial`
    uint32_t parts;            // of its weights: of `cols` inputs; with two, zeros follow each up to a multiple of 64
};

struct WgArgs {
    WgMatrix matrices[kMatrices];
    const uint16_t* parts;    // as in GemmArgs
    float* partial;           // splits > 1: [splits, token bucket, rows]
    const DevStep* step;
    const ExpertTile* tiles;  // [token_tiles], count 0 = none
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
    uint32_t token_tiles;     // or tiles of experts
    uint32_t row_tiles;       // of all matrices
    // Where the matrices are gate and up: silu(min(gate, limit)) * clamp(up, -limit, limit) in parts, as gemm_split would leave
    // it for the next product.
    uint16_t* next;           // [parts, bucket * k, next_pitch]
    const float* slot_weights;  // [tokens, k] multiplies it, null = none
    uint32_t next_pitch;
    float limit;              // infinity = none
    uint32_t tiled;           // 1 = `parts` lie as in `tiled_at`
    uint32_t next_tiled;      // 1 = so shall `next`
};

// Shared memory: the ring, from the next multiple of 1024 on; then two barriers per buffer and one per group. `shared_bytes` in
// ../ops/gemm_wg.rs.
template <uint32_t XP, uint32_t ROWS>
struct WgRing {
    static constexpr uint32_t kX = kWgTokens * kRowBytes, kW = ROWS * kRowBytes, kBytes = XP * kX + kW;
    static constexpr uint32_t kStages = (225 << 10) / kBytes;
};

// A tile: up to `count` tokens (or slots of an expert) from `first`, outputs from n0 of a matrix, steps begin to end. With
// gate and up its outputs are 64 of each.
struct WgTile {
    const WgMatrix* matrix;
    const uint8_t* weights;
    const uint8_t* up;
    uint32_t count, first, n0, begin, end, share;
    uint32_t steps;  // of the first part of the weights
};

// Tiles of the same outputs follow each other: their weights are still in the second-level cache. False: there is nothing to do.
template <uint32_t ROWS, bool GLU>
__device__ __forceinline__ bool tile_at(const WgArgs& a, uint32_t number, WgTile* t) {
    const uint32_t x = number % a.token_tiles, y = number / a.token_tiles % a.row_tiles;
    t->share = number / a.token_tiles / a.row_tiles;
    uint32_t m = 0;
    while (!GLU && m + 1 < a.n && y >= a.matrices[m + 1].first_tile) m++;
    const WgMatrix& matrix = a.matrices[m];
    t->matrix = &matrix;
    t->n0 = GLU ? y * (ROWS / 2) : (y - matrix.first_tile) * ROWS;
    t->up = a.matrices[1].w.data;
    if (matrix.experts != nullptr) {
        const ExpertTile tile = a.tiles[x];
        if (tile.count == 0) return false;
        t->count = tile.count;
        t->first = tile.begin;
        t->weights = matrix.experts[tile.expert].data;
        if (GLU) t->up = a.matrices[1].experts[tile.expert].data;
    } else {
        const uint32_t all = step_rows(*a.step, a.tokens);
        t->first = x * kWgTokens;
        if (t->first >= all) return false;
        t->count = min(all - t->first, kWgTokens);
        t->weights = matrix.w.data;
    }
    t->steps = (matrix.w.cols + kWgStep - 1) / kWgStep;
    const uint32_t steps = matrix.parts * t->steps, per = (steps + a.splits - 1) / a.splits;
    t->begin = min(t->share * per, steps);
    t->end = min(t->begin + per, steps);
    return true;
}

// 16 bytes into shared memory, of which the first `bytes` (0 or 16) are copied and the others zeros.
__device__ __forceinline__ void copy_bytes(unsigned char* to, const uint16_t* from, uint32_t bytes) {
#ifdef MODEL1_EMULATE
    memset(to, 0, 16);
    memcpy(to, from, bytes);
#else
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
}

// Copies the weights of a step: a thread brings chunk `chunk` of every 16th row. Where they begin is worked out once per tile, in
// few instructions: meanwhile nothing is copied (with an address for each row of weights and activations 2,048 x 1,536 for 2,048
// tokens took 4 % more).
template <uint32_t ROWS, bool GLU>
struct WgRows {
    static constexpr uint32_t kW = ROWS / 16, kEach = GLU ? kW / 2 : kW;
    const uint8_t *w, *up;
    uint32_t stride;  // bytes between such rows
    uint32_t there;   // bit j: row j is one of the matrix
    uint32_t chunk, row;

    __device__ __forceinline__ void place(const WgTile& t, uint32_t thread) {
        chunk = thread % 8;
        row = thread / 8;
        const WeightRef& m = t.matrix->w;
        // Rows that are not there are not read, wherever they would lie.
        const size_t at = (size_t)(t.n0 + row) * m.row_bytes + 16 * chunk;
        w = t.weights + at;
        up = GLU ? t.up + at : w;
        stride = 16 * m.row_bytes;
        const uint32_t rows = m.rows > t.n0 + row ? (m.rows - t.n0 - row + 15) / 16 : 0;
        there = rows >= kEach ? ~0u : (1u << rows) - 1;
    }

    __device__ __forceinline__ void copy(const WgTile& t, uint32_t step, unsigned char* tile) const {
        // Inputs of the step; the second part of the weights meets the same ones.
        const uint32_t c = (step < t.steps ? step : step - t.steps) * kWgStep;
        const uint32_t mask = c + 8 * chunk < t.matrix->w.cols ? there : 0;
        tile += swizzled(row, chunk);
#pragma unroll
        for (uint32_t j = 0; j < kW; j++) {
            const uint32_t each = j % kEach;
            const uint8_t* from = (j < kEach ? w : up) + (size_t)each * stride + step * (2 * kWgStep);
            copy_bytes(tile + 16 * kRowBytes * j, (const uint16_t*)from, (mask >> each & 1) * 16);
        }
    }
};

// The same for activations that are gathered from the slots of an expert or cut out of longer rows.
template <uint32_t XP, uint32_t ROWS>
struct WgGather {
    static constexpr uint32_t kX = kWgTokens / 16;
    uint32_t chunk, row;
    const uint16_t* x[kX];
    uint32_t bytes[kX];

    __device__ __forceinline__ void place(const WgArgs& a, const WgTile& t, uint32_t thread) {
        chunk = thread % 8;
        row = thread / 8;
#pragma unroll
        for (uint32_t j = 0; j < kX; j++) {
            const uint32_t r = row + 16 * j;
            uint32_t run = 0;
            if (r < t.count && t.matrix->experts != nullptr) {
                const uint32_t slot = a.order[t.first + r];
                run = a.per_slot != 0 ? slot : slot / a.k;
            } else if (r < t.count) {
                run = (t.first + r) * a.runs + (a.group_rows != 0 ? t.n0 / a.group_rows : 0);
            }
            x[j] = a.parts + (size_t)run * a.pitch + 8 * chunk;
            bytes[j] = r < t.count ? 16 : 0;
        }
    }

    __device__ __forceinline__ void copy(const WgArgs& a, const WgTile& t, uint32_t step, unsigned char* buffer) const {
        const size_t part = (size_t)a.bucket * a.runs * a.pitch;
        const uint32_t c = (step < t.steps ? step : step - t.steps) * kWgStep, there = c + 8 * chunk < a.pitch ? 16 : 0;
        buffer += swizzled(row, chunk);
#pragma unroll
        for (uint32_t p = 0; p < XP; p++) {
            if (p > 0 && step >= t.steps) break;
#pragma unroll
            for (uint32_t j = 0; j < kX; j++) {
                copy_bytes(buffer + p * WgRing<XP, ROWS>::kX + 16 * kRowBytes * j, x[j] + p * part + c, bytes[j] & there);
            }
        }
    }
};

// Where the activations of a step lie that are copied as a whole.
__device__ __forceinline__ const uint16_t* whole_tile(const WgArgs& a, const WgTile& t, uint32_t step, uint32_t p) {
    const uint32_t k = step < t.steps ? step : step - t.steps;
    const size_t part = (size_t)a.token_tiles * kWgTokens * a.pitch;
    return a.parts + p * part + tiled_at(t.first, k * kWgStep, a.pitch);
}

// The sums of a group: M times 64 tokens of a tile.
template <uint32_t ROWS, uint32_t M>
using WgSums = float[M][ROWS / 2];

template <uint32_t P>
struct WgParts {
    static constexpr uint32_t value = P;
};

// A step with P parts of the activations, from token `first` of the tile on.
template <uint32_t XP, uint32_t P, uint32_t ROWS, uint32_t M>
__device__ __forceinline__ void multiply(float (&sums)[M][ROWS], const unsigned char* buffer, uint32_t first) {
    typedef WgRing<XP, 2 * ROWS> Ring;
    const unsigned char* x = buffer + first * kRowBytes;
#pragma unroll
    for (uint32_t k = 0; k < kWgStep / 16; k++) {
        // Small products first.
#pragma unroll
        for (int p = (int)P - 1; p >= 0; p--) {
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                wgmma(sums[m], operand(x + p * Ring::kX + m * 64 * kRowBytes, k), operand(buffer + XP * Ring::kX, k));
            }
        }
    }
}

__device__ __forceinline__ void store(const WgArgs& a, const WgTile& t, WgSums<kWgRows, 2>& sums) {
    const WgMatrix& matrix = *t.matrix;
    const uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31, pair = lane % 4 * 2, rows = matrix.w.rows;
    // A share of the inputs has no bias.
    if (a.splits == 1 && matrix.bias.data != nullptr) {
#pragma unroll
        for (uint32_t q = 0; q < kWgRows / 32; q++) {
            const uint32_t o = t.n0 + 32 * q + lane;
            const float bias = o < rows ? vector_at(matrix.bias, o) : 0.0f;
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                const float x = __shfl_sync(kAll, bias, 8 * i + pair), y = __shfl_sync(kAll, bias, 8 * i + pair + 1);
#pragma unroll
                for (uint32_t m = 0; m < 4; m++) {
                    sums[m / 2][16 * q + 4 * i + m % 2 * 2] += x;
                    sums[m / 2][16 * q + 4 * i + m % 2 * 2 + 1] += y;
                }
            }
        }
    }
    // Rows of matrices come in eights.
    const uint32_t eights = min(kWgRows, rows - t.n0) / 8;
#pragma unroll
    for (uint32_t m = 0; m < 4; m++) {
        const uint32_t r = m / 2 * 64 + warp * 16 + lane / 4 + m % 2 * 8;
        if (r >= t.count) continue;
        float* out = matrix.out;
        if (matrix.experts != nullptr) {
            const uint32_t slot = a.order[t.first + r];
            out += (size_t)(slot / a.k) * matrix.out_stride + (size_t)(slot % a.k) * rows;
        } else if (a.splits > 1) {
            out = a.partial + ((size_t)t.share * a.bucket + t.first + r) * a.rows + matrix.first_row;
        } else {
            out += (size_t)(t.first + r) * matrix.out_stride;
        }
        out += t.n0 + pair;
#pragma unroll
        for (uint32_t i = 0; i < kWgRows / 8; i++) {
            if (i >= eights) break;
            *(float2*)(out + 8 * i) = make_float2(sums[m / 2][4 * i + m % 2 * 2], sums[m / 2][4 * i + m % 2 * 2 + 1]);
        }
    }
}

// Gate and up: what they give together, in parts. Neighbours exchange words, so that each stores eight bytes and four of them
// a whole sector.
template <uint32_t XP>
__device__ __forceinline__ void store_glu(const WgArgs& a, const WgTile& t, const WgSums<kWgRows, 2>& sums) {
    const uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31, odd = lane & 1;
    const bool tiled = a.next_tiled != 0;
    const size_t part = (size_t)(tiled ? a.token_tiles * kWgTokens : a.bucket * a.k) * a.next_pitch;
#pragma unroll
    for (uint32_t m = 0; m < 4; m++) {
        const uint32_t r = m / 2 * 64 + warp * 16 + lane / 4 + m % 2 * 8;
        const bool there = r < t.count;
        uint32_t run = t.first + r;
        if (t.matrix->experts != nullptr) run = there ? a.order[run] : 0;
        const float factor = a.slot_weights != nullptr && there ? a.slot_weights[run] : 1.0f;
        // Chunks of eight: the tile's are a row of eight of them, either way.
        uint16_t* to = a.next + (tiled ? tiled_at(run, t.n0, a.next_pitch) & ~63ull : (size_t)run * a.next_pitch + t.n0);
        const uint32_t turn = tiled ? run % 8 : 0;
        to += lane % 4 / 2 * 4;
#pragma unroll
        for (uint32_t i = 0; i < kWgRows / 16; i += 2) {
            uint32_t words[2][XP];
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                float v[2];
#pragma unroll
                for (uint32_t e = 0; e < 2; e++) {
                    const uint32_t at = 4 * (i + j) + m % 2 * 2 + e;
                    const float gate = fminf(sums[m / 2][at], a.limit), up = sums[m / 2][kWgRows / 4 + at];
                    v[e] = gate * sigmoid(gate) * fminf(fmaxf(up, -a.limit), a.limit) * factor;
                }
                split_pair(v[0], v[1], words[j]);
            }
#pragma unroll
            for (uint32_t p = 0; p < XP; p++) {
                const uint32_t other = __shfl_xor_sync(kAll, odd ? words[0][p] : words[1][p], 1);
                const uint2 both = odd ? make_uint2(other, words[1][p]) : make_uint2(words[0][p], other);
                if (there) *(uint2*)(to + p * part + 8 * ((i + odd) ^ turn)) = both;
            }
        }
    }
}

// grid (blocks), 384 threads: block b has tiles b, b + blocks, ...
template <uint32_t XP, bool GLU>
__device__ __forceinline__ void products_wg(const WgArgs& a) {
    typedef WgRing<XP, kWgRows> Ring;
    DYNAMIC_SHARED(memory);
    unsigned char* ring = memory;
#ifndef MODEL1_EMULATE
    ring += 1023 & -(uint32_t)__cvta_generic_to_shared(memory);
#endif
    const uint32_t tiles = a.token_tiles * a.row_tiles * a.splits, group = threadIdx.x / 128;
    WgTile t;
    WgRows<kWgRows, GLU> rows;
    WgGather<XP, kWgRows> gather;
    const auto finish = [&](WgSums<kWgRows, 2>& sums) {
        if constexpr (GLU) {
            store_glu<XP>(a, t, sums);
        } else {
            store(a, t, sums);
        }
    };
#ifdef MODEL1_EMULATE
    uint32_t taken = 0;
    for (uint32_t number = blockIdx.x; number < tiles; number += gridDim.x) {
        if (!tile_at<kWgRows, GLU>(a, number, &t)) continue;
        WgSums<kWgRows, 2> sums = {};
        const bool mine = taken++ % 2 == group;
        rows.place(t, threadIdx.x % 128);
        if (a.tiled == 0) gather.place(a, t, threadIdx.x % 128);
        for (uint32_t step = t.begin; step < t.end; step++) {
            unsigned char* buffer = ring + step % Ring::kStages * Ring::kBytes;
            if (group == 2) rows.copy(t, step, buffer + XP * Ring::kX);
            if (group == 2 && a.tiled == 0) gather.copy(a, t, step, buffer);
            for (uint32_t p = 0; p < (step < t.steps ? XP : 1) && group == 2 && a.tiled != 0; p++) {
                const uint16_t* from = whole_tile(a, t, step, p);
                for (uint32_t i = threadIdx.x % 128; i < Ring::kX / 16; i += 128) {
                    memcpy(buffer + p * Ring::kX + 16 * i, from + 8 * i, 16);
                }
            }
            __syncthreads();
            if (mine && step < t.steps) multiply<XP, XP>(sums, buffer, 0);
            if (mine && step >= t.steps) multiply<XP, 1>(sums, buffer, 0);
        }
        if (mine) finish(sums);
        __syncthreads();
    }
#else
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(ring) + Ring::kStages * Ring::kBytes;
    const uint32_t free = full + 8 * Ring::kStages, turn = free + 8 * Ring::kStages;
    if (threadIdx.x == 0) {
#pragma unroll
        for (uint32_t i = 0; i < Ring::kStages; i++) {
            barrier_init(full + 8 * i, 129);
            barrier_init(free + 8 * i, 4);
        }
        barrier_init(turn, 4);
        barrier_init(turn + 8, 4);
    }
    __syncthreads();
    // Steps of this block so far: their buffers are used in order.
    uint32_t done = 0;
    if (group == 2) {
        const auto bring = [&](auto whole) {
            for (uint32_t number = blockIdx.x; number < tiles; number += gridDim.x) {
                if (!tile_at<kWgRows, GLU>(a, number, &t)) continue;
                rows.place(t, threadIdx.x - 256);
                if (!whole.value) gather.place(a, t, threadIdx.x - 256);
#pragma unroll 1
                for (uint32_t step = t.begin; step < t.end; step++, done++) {
                    const uint32_t stage = done % Ring::kStages;
                    unsigned char* buffer = ring + stage * Ring::kBytes;
                    // The first round finds all buffers free.
                    barrier_await(free + 8 * stage, (done / Ring::kStages & 1) ^ 1);
                    if (whole.value && threadIdx.x == 256) {
                        const uint32_t parts = step < t.steps ? XP : 1;
                        barrier_expect(full + 8 * stage, parts * Ring::kX);
#pragma unroll
                        for (uint32_t p = 0; p < XP; p++) {
                            if (p >= parts) break;
                            copy_whole(buffer + p * Ring::kX, whole_tile(a, t, step, p), Ring::kX, full + 8 * stage);
                        }
                    } else if (threadIdx.x == 256) {
                        barrier_arrive(full + 8 * stage);
                    }
                    rows.copy(t, step, buffer + XP * Ring::kX);
                    if (!whole.value) gather.copy(a, t, step, buffer);
                    barrier_arrive_copied(full + 8 * stage);
                }
            }
        };
        if (a.tiled != 0) {
            bring(WgParts<1>());
        } else {
            bring(WgParts<0>());
        }
        return;
    }
    uint32_t taken = 0;
    for (uint32_t number = blockIdx.x; number < tiles; number += gridDim.x) {
        if (!tile_at<kWgRows, GLU>(a, number, &t)) continue;
        if (taken++ % 2 != group) {
            done += t.end - t.begin;
            continue;
        }
        // Of tile n (from 0 on) after tile n - 1; the first begins at once.
        if (taken > 1) barrier_await(turn + 8 * group, (taken - 2) / 2 & 1);
        WgSums<kWgRows, 2> sums = {};
        hold(sums[0]);
        hold(sums[1]);
        uint32_t before = 0;
        const auto go_through = [&](auto parts, uint32_t begin, uint32_t end) {
#pragma unroll 1
            for (uint32_t step = begin; step < end; step++, done++) {
                const uint32_t stage = done % Ring::kStages;
                barrier_await(full + 8 * stage, done / Ring::kStages & 1);
                fence_products();
                begin_products();
                multiply<XP, decltype(parts)::value>(sums, ring + stage * Ring::kBytes, 0);
                close_products();
                if (step + 1 == t.end && threadIdx.x % 32 == 0) barrier_arrive(turn + 8 * (group ^ 1));
                // The products of the step before are done, and its buffer is free.
                await_products<1>();
                if (step > t.begin && threadIdx.x % 32 == 0) barrier_arrive(free + 8 * before);
                before = stage;
            }
        };
        go_through(WgParts<XP>(), t.begin, min(t.end, t.steps));
        // What the second parts of weights and activations give together is below the last bit that is looked at.
        go_through(WgParts<1>(), max(t.begin, t.steps), t.end);
        await_products<0>();
        if (t.begin < t.end && threadIdx.x % 32 == 0) barrier_arrive(free + 8 * before);
        hold(sums[0]);
        hold(sums[1]);
        finish(sums);
    }
#endif
}
