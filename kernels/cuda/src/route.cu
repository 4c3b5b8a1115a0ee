// Choosing experts (MODEL1.md 4.1): scores in f32, ties to the lower index.
#include "route.cuh"

// Up to 32 experts: a warp per token. grid (tokens), 32 threads
KERNEL(route_few, RouteArgs, 32) {
    const uint32_t t = blockIdx.x, e = threadIdx.x;
    if (t >= a.step->tokens) return;
    route_warp(a, t, e < a.experts ? a.logits[(size_t)t * a.experts + e] : 0.0f, route_bias(a));
}

// grid (tokens), 128 threads, shared 8 * experts
KERNEL(route, RouteArgs, 128) {
    DYNAMIC_SHARED(memory);
    __shared__ float floats[2][8];
    __shared__ uint32_t keys[4], places[4];
    const uint32_t t = blockIdx.x, n = a.experts;
    if (t >= a.step->tokens) return;
    float* scores = (float*)memory;
    uint32_t* order = (uint32_t*)(scores + n);
    const float* logits = a.logits + (size_t)t * n;
    float best = -INFINITY;
    if (a.scoring == kSoftmax) {
        for (uint32_t e = threadIdx.x; e < n; e += blockDim.x) best = fmaxf(best, logits[e]);
        best = block_max(best, floats[0]);
    }
    float sum = 0.0f;
    for (uint32_t e = threadIdx.x; e < n; e += blockDim.x) {
        const float z = logits[e];
        scores[e] = a.scoring == kSoftmax ? expf(z - best) : score_of(a.scoring, z);
        if (a.scoring == kSoftmax) sum += scores[e];
    }
    if (a.scoring == kSoftmax) {
        sum = block_sum(sum, floats[1]);
        for (uint32_t e = threadIdx.x; e < n; e += blockDim.x) scores[e] /= sum;
    }
    for (uint32_t e = threadIdx.x; e < n; e += blockDim.x) {
        // 0 is below every key: the mark of an expert already chosen.
        const float key = scores[e] + (a.bias.data == nullptr ? 0.0f : vector_at(a.bias, e));
        order[e] = max(ordered_key(key), 1u);
    }
    __syncthreads();
    int32_t* picks = a.out_experts + (size_t)t * a.k;
    for (uint32_t s = 0; s < a.k; s++) {
        uint32_t chosen = 0;
        if (a.table.data != nullptr) {
            const size_t i = (size_t)a.ids[t] * a.table.cols + s;
            const uint8_t* p = a.table.data;
            chosen = a.table.format == kI64 ? (uint32_t)((const int64_t*)p)[i] : (uint32_t)((const int32_t*)p)[i];
        } else {
            uint32_t key = 0, place = 0;
            for (uint32_t e = threadIdx.x; e < n; e += blockDim.x) {
                if (order[e] > key) {
                    key = order[e];
                    place = e;
                }
            }
#pragma unroll
            for (int m = 16; m > 0; m >>= 1) {
                const uint32_t k2 = __shfl_xor_sync(kAll, key, m), p2 = __shfl_xor_sync(kAll, place, m);
                if (k2 > key || (k2 == key && p2 < place)) {
                    key = k2;
                    place = p2;
                }
            }
            if ((threadIdx.x & 31) == 0) {
                keys[threadIdx.x / 32] = key;
                places[threadIdx.x / 32] = place;
            }
            __syncthreads();
            key = keys[0];
            chosen = places[0];
            for (uint32_t w = 1; w < blockDim.x / 32; w++) {
                if (keys[w] > key || (keys[w] == key && places[w] < chosen)) {
                    key = keys[w];
                    chosen = places[w];
                }
            }
        }
        if (threadIdx.x == 0) {
            picks[s] = (int32_t)chosen;
            order[chosen] = 0;
            if (a.copy != nullptr) a.copy[(size_t)t * a.k + s] = (int32_t)chosen;
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        float total = 0.0f;
        for (uint32_t s = 0; s < a.k; s++) total += scores[picks[s]];
        for (uint32_t s = 0; s < a.k; s++) {
            a.out_weights[(size_t)t * a.k + s] = scores[picks[s]] / (a.normalise != 0 ? total : 1.0f) * a.factor;
        }
    }
}
