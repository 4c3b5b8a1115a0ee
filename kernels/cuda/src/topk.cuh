// Selection of the k largest of n keys by one block, exact.
#pragma once

#include "numeric.cuh"

struct TopK {
    uint32_t bins[256];
    uint32_t scan[33];
    uint32_t key;   // of the k-th largest
    uint32_t ties;  // how many of the keys equal to it belong to the k largest
};

// Finds the k-th largest of key_of(0 .. n), 0 < k <= n, eight bits at a time. All threads of the block take part; the
// answer is in `top` for all of them.
template <class KeyOf>
__device__ __forceinline__ void top_k_threshold(TopK& top, uint32_t n, uint32_t k, KeyOf key_of) {
    uint32_t prefix = 0, mask = 0, left = k;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) top.bins[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            const uint32_t key = key_of(i);
            if ((key & mask) == prefix) atomicAdd(&top.bins[key >> shift & 255u], 1u);
        }
        __syncthreads();
        if (threadIdx.x < 32) {
            // A lane has eight bins, the highest first.
            const uint32_t high = 255 - 8 * threadIdx.x;
            uint32_t sum = 0;
            for (uint32_t b = 0; b < 8; b++) sum += top.bins[high - b];
            uint32_t upto = sum;
#pragma unroll
            for (int d = 1; d < 32; d <<= 1) {
                const uint32_t other = __shfl_up_sync(kAll, upto, d);
                if ((int)threadIdx.x >= d) upto += other;
            }
            uint32_t above = upto - sum;
            if (above < left && left <= upto) {
                for (uint32_t b = 0; b < 8; b++) {
                    const uint32_t here = top.bins[high - b];
                    if (left <= above + here) {
                        top.key = high - b;
                        top.ties = left - above;
                        break;
                    }
                    above += here;
                }
            }
        }
        __syncthreads();
        prefix |= top.key << shift;
        mask |= 255u << shift;
        left = top.ties;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        top.key = prefix;
        top.ties = left;
    }
    __syncthreads();
}
