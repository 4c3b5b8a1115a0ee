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
