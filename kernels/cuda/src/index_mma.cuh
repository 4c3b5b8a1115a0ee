// The lightning indexer's scores on tensor cores: rows of keys lie in registers, as fragments, and meet the heads of one token
// after the other. Values keep no order within a head: any is right that keys and queries share, and so every lane reads keys
// 16 bytes at a time.
#pragma once

#include "index.cuh"
#include "mma.cuh"

constexpr uint32_t kDim = 128, kSteps = kDim / 16, kParts = 2, kWarps = 8;

// A lane's share of one key: VALUES per 16 bytes, of four lanes in turn. `word(s)`: what step s of the product takes, two
// words of two values.
struct IndexBf16 {
    static constexpr uint32_t VALUES = 8;
    uint4 raw[4];
    __device__ __forceinline__ void load(const uint8_t* data, const uint8_t*, uint32_t t) {
#pragma unroll
        for (uint32_t c = 0; c < 4; c++) raw[c] = __ldcg((const uint4*)data + 4 * c + t);
    }
    __device__ __forceinline__ uint2 words(uint32_t s) const {
        const uint4 v = raw[s / 2];
        return s % 2 == 0 ? make_uint2(v.x, v.y) : make_uint2(v.z, v.w);
    }
};

__device__ __forceinline__ uint32_t word_of(uint4 v, uint32_t i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

struct IndexFp8 {
    static constexpr uint32_t VALUES = 16;
    uint4 raw[2];
    uint32_t scales[2];
    __device__ __forceinline__ void load(const uint8_t* data, const uint8_t* scale, uint32_t t) {
#pragma unroll
        for (uint32_t c = 0; c < 2; c++) {
            raw[c] = __ldcg((const uint4*)data + 4 * c + t);
            scales[c] = ue8m0_pair(__ldcg(scale + c));
        }
    }
    __device__ __forceinline__ uint2 words(uint32_t s) const { return e4m3_pairs(word_of(raw[s / 4], s % 4), scales[s / 4]); }
};

struct IndexFp4 {
    static constexpr uint32_t VALUES = 32;
    uint4 raw;
    uint32_t scale;
    __device__ __forceinline__ void load(const uint8_t* data, const uint8_t* scales, uint32_t t) {
        raw = __ldcg((const uint4*)data + t);
        scale = ue8m0_pair(__ldcg(scales + t));
    }
    __device__ __forceinline__ uint2 words(uint32_t s) const {
        const uint32_t two = word_of(raw, s / 2) >> 16 * (s % 2);
        return make_uint2(e2m1_pair(two & 255u, scale), e2m1_pair(two >> 8 & 255u, scale));
    }
};

// Four neighbouring values of a head per lane: rotated, transformed, rounded as the ops between projection and scores would.
__device__ __forceinline__ float4 index_query(const IndexScoreArgs& a, float4 v, const float2* turns) {
    const uint32_t lane = threadIdx.x & 31, column = 4 * lane;
    if (column >= a.turn_offset && column < a.turn_offset + a.turn_dims) {
        const float2 p = turns[(column - a.turn_offset) / 2], q = turns[(column - a.turn_offset) / 2 + 1];
        v = make_float4(v.x * p.y - v.y * p.x, v.x * p.x + v.y * p.y, v.z * q.y - v.w * q.x, v.z * q.x + v.w * q.y);
    }
    if (a.rounded == 0) return v;
    // Strides 1, 2, 4, ... as on the CPU: the same bits.
    v = make_float4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
    v = make_float4(v.x + v.z, v.y + v.w, v.x - v.z, v.y - v.w);
    float four[4] = {v.x, v.y, v.z, v.w};
    const float norm = (float)(1.0 / sqrt((double)kDim));
    float amax = 0.0f;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
#pragma unroll
        for (uint32_t m = 1; m < 32; m *= 2) {
            const float other = __shfl_xor_sync(kAll, four[j], (int)m);
            four[j] = (lane & m) == 0 ? four[j] + other : other - four[j];
        }
        four[j] = __fmul_rn(four[j], norm);
        amax = fmaxf(amax, finite_magnitude(four[j]));
    }
    // Blocks of 32 values, eight lanes.
#pragma unroll
    for (uint32_t m = 1; m < 8; m *= 2) amax = fmaxf(amax, __shfl_xor_sync(kAll, amax, (int)m));
    const uint32_t byte = e2m1_scale_byte(amax);
    RoundTrip trip;
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) e2m1_encode(four[j], byte, &four[j], trip);
    return make_float4(four[0], four[1], four[2], four[3]);
}

// Scores of the rows of a block, 16 of each warp, for tokens in turn: `store(token, row, score)` of those that are seen. `begin` is
// what waits for the predecessor.
template <class K, class B, class S>
__device__ __forceinline__ void index_scores(const IndexScoreArgs& a, const B& begin, const S& store) {
    DYNAMIC_SHARED(memory);
    __shared__ float2 turns[kDim / 2];
    const uint32_t sets = (a.heads + 15) / 16;
    uint2* queries = (uint2*)memory;  // [sets][kSteps][kParts][32 lanes][2 fragments]
    float* factors = (float*)(queries + sets * kSteps * kParts * 64);  // [16 sets]
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, t4 = lane % 4;
    const DevStep s = *a.step;
    const uint32_t row0 = (blockIdx.x * kWarps + warp) * 16;
    const uint32_t most = (uint32_t)rows_visible(s, a.rate, s.tokens - 1);
    const bool idle = most <= a.skip || most <= blockIdx.x * kWarps * 16;
    K keys[2];
    const auto load = [&] {
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const size_t row = min(row0 + g + 8 * h, most - 1);
            keys[h].load(a.keys.data + row * a.keys.data_bytes, a.keys.scales + row * a.keys.scale_bytes, t4);
        }
    };
    // Rows of earlier steps are there before the predecessor ends.
    const bool old = row0 + 16 <= first_closed(s, a.rate);
    if (!idle && old) load();
    if (!idle && s.tokens == 1 && threadIdx.x < a.turn_dims / 2) {
        turns[threadIdx.x] = turn_at(s.position, a.turn_freqs[threadIdx.x], false);
    }
    begin();
    if (idle) return;
    if (!old) load();

    constexpr uint32_t M = K::VALUES / 4;
    for (uint32_t t = blockIdx.y; t < s.tokens; t += gridDim.y) {
        const uint64_t visible = rows_visible(s, a.rate, t);
        if (visible <= a.skip || visible <= blockIdx.x * kWarps * 16) continue;
        if (s.tokens > 1 && threadIdx.x < a.turn_dims / 2) {
            turns[threadIdx.x] = turn_at(s.position + t, a.turn_freqs[threadIdx.x], false);
        }
        // All are through with the token before.
        __syncthreads();
        // What comes from memory is asked for together: heads two at a time, and the weights of all of them before.
        const float factor = threadIdx.x < a.heads ? a.scale * a.weights[(size_t)t * a.heads + threadIdx.x] : 0.0f;
#pragma unroll 1
        for (uint32_t h0 = warp; h0 < 16 * sets; h0 += 2 * kWarps) {
            float4 v[2];
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                const uint32_t h = h0 + j * kWarps;
                v[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (h < a.heads) v[j] = ((const float4*)(a.q + ((size_t)t * a.heads + h) * kDim))[lane];
            }
            const uint32_t chunk = lane / M, step = chunk / 4 * M + lane % M;
#pragma unroll
            for (uint32_t j = 0; j < 2; j++) {
                const uint32_t h = h0 + j * kWarps;
                v[j] = index_query(a, v[j], turns);
                uint32_t low[kParts], high[kParts];
                split_pair(v[j].x, v[j].y, low);
                split_pair(v[j].z, v[j].w, high);
#pragma unroll
                for (uint32_t p = 0; p < kParts; p++) {
                    uint2* to = queries + (((h / 16 * kSteps + step) * kParts + p) * 32 + h % 8 * 4 + chunk % 4) * 2 + h / 8 % 2;
                    *to = make_uint2(low[p], high[p]);
                }
            }
        }
        if (threadIdx.x < 16 * sets) factors[threadIdx.x] = factor;
        __syncthreads();
        float sums[2] = {};
#pragma unroll 1
        for (uint32_t set = 0; set < sets; set++) {
            float acc[kParts][2][4] = {};
            const uint4* from = (const uint4*)queries + set * kSteps * kParts * 32 + lane;
#pragma unroll
            for (uint32_t k = 0; k < kSteps; k++) {
                const uint2 upper = keys[0].words(k), lower = keys[1].words(k);
                const uint32_t w[4] = {upper.x, lower.x, upper.y, lower.y};
#pragma unroll
                for (uint32_t p = 0; p < kParts; p++) {
                    const uint4 q = from[(k * kParts + p) * 32];
                    const uint32_t b[4] = {q.x, q.y, q.z, q.w};
                    mma_two<1>(acc[p][0], acc[p][1], w, b);
                }
            }
#pragma unroll
            for (uint32_t n = 0; n < 2; n++) {
#pragma unroll
                for (uint32_t e = 0; e < 4; e++) {
                    const float f = factors[16 * set + 8 * n + 2 * t4 + e % 2];
                    sums[e / 2] += f * fmaxf(acc[1][n][e] + acc[0][n][e], 0.0f);
                }
            }
        }
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            sums[h] += __shfl_xor_sync(kAll, sums[h], 1);
            sums[h] += __shfl_xor_sync(kAll, sums[h], 2);
            const uint32_t row = row0 + g + 8 * h;
            if (t4 == h && row < visible) store(t, row, sums[h]);
        }
    }
}
