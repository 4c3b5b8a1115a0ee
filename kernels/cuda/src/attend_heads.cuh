// What is left to do when the threads of a block have looked at its keys: attend_row.cu and attend_keys.cuh. Teams of G
// threads have taken keys, each thread C columns; the block's sums are put together in a fixed order and written, and where
// keys are split over few blocks the last of them puts the shares together.
#pragma once

#include "attend.cuh"

constexpr uint32_t kRowWarps = 8, kFolded = 32;

// Below every score; finite, so that differences are never NaN.
constexpr float kLowest = -1e30f;

__device__ __forceinline__ float weight_of(float value, float top) { return power_of_two((value - top) * kLog2e); }

// What a block keeps in shared memory behind the [8][L][D] sums of its warps (`heads_bytes` in ../ops/attend.rs).
template <uint32_t L>
struct HeadShares {
    float tops[kRowWarps][L], sums[kRowWarps][L];
    float factors[kFolded][L], scale[L];
    float2 turns[256];
    uint32_t last;
};

// Called by all threads: the rotation of a token's output.
__device__ __forceinline__ void make_turns(const AttendArgs& a, float2* turns, uint64_t position) {
    for (uint32_t i = threadIdx.x; i < a.turn_dims / 2; i += blockDim.x) {
        turns[i] = turn_at(position, a.turn_freqs[i], a.turn_inverse != 0);
    }
}

// Rotates the pairs that four neighbouring values hold.
__device__ __forceinline__ float4 turned(const AttendArgs& a, const float2* turns, uint32_t column, float4 v) {
    if (!turns_column(a, column)) return v;
    const uint32_t pair = (column - a.turn_offset) / 2;
    return turn_pairs(v, turns[pair], turns[pair + 1]);
}

// Puts the shares of the block's heads together; called by all threads of the last block to arrive.
template <uint32_t L, uint32_t D>
__device__ __forceinline__ void fold_shares(const AttendArgs& a, HeadShares<L>& s, size_t at0) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const size_t stride = D + 4;
    if (warp < a.block_heads) {
        const float* tail = a.partial + ((at0 + warp) * a.splits + lane) * stride + D;
        const bool there = lane < a.splits;
        const float best = there ? __ldcg(tail) : kLowest, mass = there ? __ldcg(tail + 1) : 0.0f;
        const float sink = a.sinks.data == nullptr ? kLowest : vector_at(a.sinks, (uint32_t)(at0 % a.heads) + warp);
        const float top = fmaxf(sink, warp_max(best));
        // A share without keys (and a head that sees nothing at all) weighs nothing.
        const float factor = weight_of(best, top);
        const float all = warp_sum(mass * factor) + (a.sinks.data == nullptr ? 0.0f : weight_of(sink, top));
        s.factors[lane][warp] = factor;
        if (lane == 0) s.scale[warp] = all > 0.0f ? 1.0f / all : 0.0f;
    }
    __syncthreads();
    for (uint32_t n = threadIdx.x; n < a.block_heads * (D / 4); n += blockDim.x) {
        const uint32_t l = n / (D / 4), c = n % (D / 4);
        const float* from = a.partial + (at0 + l) * a.splits * stride + 4 * c;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (uint32_t i = 0; i < a.splits; i++) {
            const float4 part = __ldcg((const float4*)(from + i * stride));
            const float f = s.factors[i][l];
            v.x += part.x * f;
            v.y += part.y * f;
            v.z += part.z * f;
            v.w += part.w * f;
        }
        const float f = s.scale[l];
        v = turned(a, s.turns, 4 * c, make_float4(v.x * f, v.y * f, v.z * f, v.w * f));
        ((float4*)(a.out + (at0 + l) * D))[c] = v;
    }
}

// Puts the sums of a warp's teams together and leaves them in shared memory. `top` (a score), `sum` and `acc` are a thread's;
// `place(i)` is where its four columns `i` lie in a head, in fours.
template <uint32_t L, uint32_t C, uint32_t G, class Place>
__device__ __forceinline__ void leave_warps(const AttendArgs& a, float* pool, HeadShares<L>& s, const float (&top)[L],
                                            float (&sum)[L], const float4 (&acc)[L][C / 4], Place place) {
    constexpr uint32_t D = C * G, F = C / 4;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
#pragma unroll
    for (uint32_t l = 0; l < L; l++) {
        if (l >= a.block_heads) break;
        float best = top[l];
#pragma unroll
        for (uint32_t m = G; m < 32; m <<= 1) best = fmaxf(best, __shfl_xor_sync(kAll, best, m));
        const float factor = weight_of(top[l], best);
        sum[l] *= factor;
#pragma unroll
        for (uint32_t m = G; m < 32; m <<= 1) sum[l] += __shfl_xor_sync(kAll, sum[l], m);
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            float4 v = make_float4(acc[l][i].x * factor, acc[l][i].y * factor, acc[l][i].z * factor, acc[l][i].w * factor);
#pragma unroll
            for (uint32_t m = G; m < 32; m <<= 1) {
                v.x += __shfl_xor_sync(kAll, v.x, m);
                v.y += __shfl_xor_sync(kAll, v.y, m);
                v.z += __shfl_xor_sync(kAll, v.z, m);
                v.w += __shfl_xor_sync(kAll, v.w, m);
            }
            if (lane < G) ((float4*)(pool + (warp * L + l) * D))[place(i)] = v;
        }
        if (lane == 0) {
            s.tops[warp][l] = best;
            s.sums[warp][l] = sum[l];
        }
    }
}

// Four columns `c` of head l, summed over keys: unscaled, with the largest score and the denominator.
struct HeadShare {
    float4 v;
    float best, all;
};

// A block's: of what `leave_warps` left, and of a score that only enlarges the denominator.
template <uint32_t L, uint32_t D>
__device__ __forceinline__ HeadShare block_share(const float* pool, const HeadShares<L>& s, uint32_t l, uint32_t c, float sink) {
    HeadShare h = {make_float4(0.0f, 0.0f, 0.0f, 0.0f), sink, 0.0f};
#pragma unroll
    for (uint32_t w = 0; w < kRowWarps; w++) h.best = fmaxf(h.best, s.tops[w][l]);
    h.all = sink == kLowest ? 0.0f : weight_of(sink, h.best);
#pragma unroll
    for (uint32_t w = 0; w < kRowWarps; w++) {
        const float f = weight_of(s.tops[w][l], h.best);
        const float4 part = ((const float4*)(pool + (w * L + l) * D))[c];
        h.all += s.sums[w][l] * f;
        h.v.x += part.x * f;
        h.v.y += part.y * f;
        h.v.z += part.z * f;
        h.v.w += part.w * f;
    }
    return h;
}

// Heads head0 to head0 + block_heads - 1 of token blockIdx.x, from `at0` on among those of all tokens; share blockIdx.z.
template <uint32_t L, uint32_t C, uint32_t G, class Place>
__device__ __forceinline__ void finish_heads(const AttendArgs& a, float* pool, HeadShares<L>& s, const float (&top)[L],
                                             float (&sum)[L], const float4 (&acc)[L][C / 4], size_t at0, uint32_t head0,
                                             Place place) {
    constexpr uint32_t D = C * G;
    leave_warps<L, C, G>(a, pool, s, top, sum, acc, place);
    __syncthreads();
    for (uint32_t n = threadIdx.x; n < a.block_heads * (D / 4); n += blockDim.x) {
        const uint32_t l = n / (D / 4), c = n % (D / 4);
        const bool sunk = a.splits == 1 && a.sinks.data != nullptr;
        const HeadShare h = block_share<L, D>(pool, s, l, c, sunk ? vector_at(a.sinks, head0 + l) : kLowest);
        float4 v = h.v;
        const float best = h.best, all = h.all;
        if (a.splits == 1) {
            const float f = all > 0.0f ? 1.0f / all : 0.0f;
            v = turned(a, s.turns, 4 * c, make_float4(v.x * f, v.y * f, v.z * f, v.w * f));
            ((float4*)(a.out + (at0 + l) * D))[c] = v;
        } else {
            float* to = a.partial + ((at0 + l) * a.splits + blockIdx.z) * (D + 4);
            ((float4*)to)[c] = v;
            if (c == 0) {
                to[D] = best;
                to[D + 1] = all;
            }
        }
    }
    if (a.fold == 0) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* arrived = a.arrived + blockIdx.x * gridDim.y + blockIdx.y;
        s.last = atomicAdd(arrived, 1u) + 1 == a.splits ? 1u : 0u;
        if (s.last != 0) *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    if (s.last != 0) fold_shares<L, D>(a, s, at0);
}
