// Choosing among up to 32 experts (MODEL1.md 4.1) by a warp: for route.cu, and for sites that make the router's products, too.
#pragma once

#include "weights.cuh"

enum Scoring : uint32_t { kSqrtSoftplus = 0, kSigmoid, kSoftmax };

struct RouteArgs {
    WeightRef bias;         // [experts], null data = none
    WeightRef table;        // [vocabulary, k or more] i32 or i64, null data = none
    const float* logits;    // [tokens, experts]
    int32_t* out_experts;   // [tokens, k]
    int32_t* copy;          // [tokens, k] for telemetry, null = none
    float* out_weights;     // [tokens, k]
    const uint32_t* ids;    // [tokens]
    const DevStep* step;
    uint32_t experts;       // at most 1024
    uint32_t k;
    uint32_t scoring;
    uint32_t normalise;
    float factor;
    uint32_t pad;
};

__device__ __forceinline__ float score_of(uint32_t scoring, float z) {
    return scoring == kSqrtSoftplus ? root(log1pf(expf(-fabsf(z))) + fmaxf(z, 0.0f)) : sigmoid(z);
}

// What is added to the score of this lane's expert for the choice alone.
__device__ __forceinline__ float route_bias(const RouteArgs& a) {
    const uint32_t e = threadIdx.x & 31;
    return e < a.experts && a.bias.data != nullptr ? vector_at(a.bias, e) : 0.0f;
}

// A lane per expert, with its logit and bias; each finds its own rank. Row t.
__device__ __forceinline__ void route_warp(const RouteArgs& a, uint32_t t, float z, float bias) {
    const uint32_t n = a.experts, e = threadIdx.x & 31;
    if (e >= n) z = -INFINITY;
    float score = 0.0f;
    if (a.scoring == kSoftmax) {
        const float best = warp_max(z), part = e < n ? expf(z - best) : 0.0f;
        score = __fdividef(part, warp_sum(part));
    } else if (e < n) {
        score = score_of(a.scoring, z);
    }
    // The place among the largest, ties to the lower index; places beyond k mean nothing.
    const uint32_t key = e < n ? max(ordered_key(score + bias), 1u) : 0u;
    uint32_t place = 0;
    if (a.table.data != nullptr) {
        place = 32;
        const uint8_t* p = a.table.data;
#pragma unroll 1
        for (uint32_t s = 0; s < a.k; s++) {
            const size_t i = (size_t)a.ids[t] * a.table.cols + s;
            const uint32_t named = a.table.format == kI64 ? (uint32_t)((const int64_t*)p)[i] : (uint32_t)((const int32_t*)p)[i];
            // The same expert may be named twice.
            if (e == s) place = named;
        }
    } else {
#pragma unroll 4
        for (uint32_t j = 0; j < n; j++) {
            const uint32_t other = __shfl_sync(kAll, key, (int)j);
            if (other > key || (other == key && j < e)) place++;
        }
    }
    // From here on lane s stands for the s-th choice.
    uint32_t chosen = 0;
    if (a.table.data != nullptr) {
        chosen = place;
    } else {
#pragma unroll 1
        for (uint32_t s = 0; s < a.k; s++) {
            const uint32_t who = (uint32_t)__ffs((int)__ballot_sync(kAll, place == s)) - 1;
            if (e == s) chosen = who;
        }
    }
    const float mine = __shfl_sync(kAll, score, (int)(e < a.k ? chosen : 0));
    float total = 0.0f;
#pragma unroll 2
    for (uint32_t s = 0; s < a.k; s++) total += __shfl_sync(kAll, mine, (int)s);
    if (e >= a.k) return;
    a.out_experts[(size_t)t * a.k + e] = (int32_t)chosen;
    if (a.copy != nullptr) a.copy[(size_t)t * a.k + e] = (int32_t)chosen;
    a.out_weights[(size_t)t * a.k + e] = __fdividef(mine, a.normalise != 0 ? total : 1.0f) * a.factor;
}
