// Attention query by query: a block of threads per head of a token, the query's keys 32 at a time, scores computed by the
// whole block as often as they are needed.
#pragma once

#include "attend.cuh"

constexpr uint32_t kTile = 32;

// Scores of 32 keys of the list, and where they lie. In shared memory.
struct KeyTile {
    float z[kTile];
    int32_t rows[kTile];  // slots, -1 = none
    uint32_t from[kTile];  // sources
    float at[kTile];       // positions (of a compressed row: of its block's first token)
};

// Keys of a query, source by source.
struct KeyList {
    uint32_t counts[kSources];
    uint32_t total;
};

__device__ __forceinline__ KeyList key_list(const AttendArgs& a, const DevStep& step, uint32_t t) {
    KeyList list = {};
#pragma unroll
    for (uint32_t i = 0; i < kSources; i++) {
        list.counts[i] = i < a.n_sources ? key_count(a, a.sources[i], step, t, t) : 0;
        list.total += list.counts[i];
    }
    return list;
}

// Scores of keys base .. base + 32 of token t's list for the query `q` in shared memory. All threads of the block.
__device__ __forceinline__ void score_tile(const AttendArgs& a, const DevStep& step, const KeyList& list, KeyTile& tile,
                                           const float* q, uint32_t t, uint32_t kv, uint32_t base) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, d = a.head_dim;
    __syncthreads();
    if (threadIdx.x < kTile) {
        uint32_t j = base + threadIdx.x, source = 0;
        int64_t row = -1;
        if (j < list.total) {
            if (j >= list.counts[0]) {
                j -= list.counts[0];
                source = 1;
            }
            row = key_row(a, a.sources[source], step, t, t, j);
        }
        tile.rows[threadIdx.x] = row < 0 ? -1 : (int32_t)cache_slot(a.sources[source].keys, (uint64_t)row);
        tile.from[threadIdx.x] = source;
        const Source& s = a.sources[source];
        tile.at[threadIdx.x] = (float)(s.kind == kCompressed ? row * (int64_t)s.rate : row);
    }
    __syncthreads();
    for (uint32_t r = warp; r < kTile; r += blockDim.x / 32) {
        float dot = 0.0f;
        if (tile.rows[r] >= 0) {
            const CacheRef& keys = a.sources[tile.from[r]].keys;
            for (uint32_t c = lane; c < d; c += 32) dot += q[c] * record_value(keys, tile.rows[r], kv, c);
        }
        dot = warp_sum(dot);
        if (lane == 0) tile.z[r] = dot * a.scale;
    }
    __syncthreads();
}

// The softmax of the keys taken along so far, kept online: a largest score, what the rest adds up to, and two columns per
// thread.
struct Kept {
    float best, sum, acc[2];
};

// Takes a tile's keys along. All threads of the block; `p` is shared memory for 32 values.
__device__ __forceinline__ void take(const AttendArgs& a, const KeyTile& tile, float* p, uint32_t kv, Kept& k) {
    const uint32_t lane = threadIdx.x & 31;
    const bool there = tile.rows[lane] >= 0;
    const float score = there ? tile.z[lane] : -INFINITY;
    const float reach = fmaxf(k.best, warp_max(score));
    const float e = there && reach != -INFINITY ? exp2f((score - reach) * kLog2e) : 0.0f;
    const float keep = k.best == -INFINITY ? 0.0f : exp2f((k.best - reach) * kLog2e);
    k.sum = k.sum * keep + warp_sum(e);
    k.best = reach;
    if (threadIdx.x < kTile) p[lane] = e;
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = threadIdx.x + i * 256;
        k.acc[i] *= keep;
        for (uint32_t r = 0; r < kTile && c < a.head_dim; r++) {
            if (p[r] != 0.0f) {
                k.acc[i] += p[r] * record_value(a.sources[tile.from[r]].values, tile.rows[r], kv, c);
            }
        }
    }
}
