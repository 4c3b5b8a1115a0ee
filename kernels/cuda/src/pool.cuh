// The compressor's pooling state and the rows that close (MODEL1.md 2.7), channel by channel: for pool.cu and chain.cu.
#pragma once

#include "weights.cuh"

struct PoolArgs {
    WeightRef ape;       // [rate, c]
    const float* kv;     // [tokens, c]
    const float* gate;   // [tokens, c]
    float* state;        // [slots, 2 * c]: per token slot, kv then gate + ape
    float* out;          // [closed, d]
    const DevStep* step;
    uint32_t c;          // d, or 2 d with overlap
    uint32_t d;
    uint32_t rate;
    uint32_t slots;      // ring: rate, or 2 * rate with overlap
};

// Value and gate of one channel of a token: of this step, or of one before from the state.
__device__ __forceinline__ void pool_entry(const PoolArgs& a, const DevStep& s, uint64_t t, uint32_t channel,
                                           float* value, float* gate) {
    if (t >= s.position) {
        const size_t i = (size_t)(t - s.position) * a.c + channel;
        *value = a.kv[i];
        *gate = a.gate[i] + vector_at(a.ape, (uint32_t)t % a.rate * a.c + channel);
    } else {
        const float* slot = a.state + (size_t)((uint32_t)t % a.slots) * 2 * a.c;
        *value = slot[channel];
        *gate = slot[a.c + channel];
    }
}

// Tokens of a row that are added up together.
constexpr uint32_t kPoolTogether = 4;

// N channels of row `n` of those that close, `channel` and every `stride`th behind it, as long as there are some; AHEAD tokens are
// asked for at a time. `near`: a second place for them.
template <uint32_t N = 1, uint32_t AHEAD = kPoolTogether>
__device__ __forceinline__ void pool_row(const PoolArgs& a, const DevStep& s, uint32_t n, uint32_t channel, uint32_t stride = 0,
                                         float* near = nullptr) {
    static_assert(AHEAD % kPoolTogether == 0, "whole groups");
    const bool overlap = a.c != a.d;
    const uint64_t start = (first_closed(s, a.rate) + n) * a.rate;
    const uint32_t before = overlap && start >= a.rate ? a.rate : 0, own = overlap ? a.d : 0;
    // Softmax in one pass: sums are rescaled when the maximum moves.
    float best[N], sum[N] = {}, total[N] = {};
#pragma unroll
    for (uint32_t m = 0; m < N; m++) best[m] = -INFINITY;
    const uint32_t all = before + a.rate;
#pragma unroll 1
    for (uint32_t i = 0; i < all; i += AHEAD) {
        float value[AHEAD][N], gate[AHEAD][N];
#pragma unroll
        for (uint32_t j = 0; j < AHEAD; j++) {
#pragma unroll
            for (uint32_t m = 0; m < N; m++) {
                const uint32_t c = channel + m * stride;
                value[j][m] = 0.0f;
                gate[j][m] = -INFINITY;
                if (i + j < all && c < a.d) {
                    pool_entry(a, s, start - before + i + j, c + (i + j < before ? 0 : own), &value[j][m], &gate[j][m]);
                }
            }
        }
#pragma unroll
        for (uint32_t j0 = 0; j0 < AHEAD; j0 += kPoolTogether) {
            if (i + j0 >= all) break;
#pragma unroll
            for (uint32_t m = 0; m < N; m++) {
                float top = best[m];
#pragma unroll
                for (uint32_t j = j0; j < j0 + kPoolTogether; j++) top = fmaxf(top, gate[j][m]);
                const float keep = best[m] == top ? 1.0f : expf(best[m] - top);
                sum[m] *= keep;
                total[m] *= keep;
                best[m] = top;
#pragma unroll
                for (uint32_t j = j0; j < j0 + kPoolTogether; j++) {
                    const float e = expf(gate[j][m] - top);
                    sum[m] += e;
                    total[m] += e * value[j][m];
                }
            }
        }
    }
#pragma unroll
    for (uint32_t m = 0; m < N; m++) {
        const uint32_t c = channel + m * stride;
        if (c >= a.d) break;
        const float v = total[m] / sum[m];
        a.out[(size_t)n * a.d + c] = v;
        if (near != nullptr) near[c] = v;
    }
}

// N channels of token t of the step go into the state, `channel` and every `stride`th behind it.
template <uint32_t N = 1>
__device__ __forceinline__ void pool_keep(const PoolArgs& a, const DevStep& s, uint64_t t, uint32_t channel, uint32_t stride = 0) {
    float* slot = a.state + (size_t)((uint32_t)t % a.slots) * 2 * a.c;
    float value[N], gate[N];
#pragma unroll
    for (uint32_t m = 0; m < N; m++) {
        const uint32_t c = channel + m * stride;
        value[m] = gate[m] = 0.0f;
        if (c >= a.c) break;
        const size_t i = (size_t)(t - s.position) * a.c + c;
        value[m] = a.kv[i];
        gate[m] = a.gate[i] + vector_at(a.ape, (uint32_t)t % a.rate * a.c + c);
    }
#pragma unroll
    for (uint32_t m = 0; m < N; m++) {
        const uint32_t c = channel + m * stride;
        if (c >= a.c) break;
        slot[c] = value[m];
        slot[a.c + c] = gate[m];
    }
}

// Both for a step of one token, by all threads of which this is `me`: a row's tokens are the last `slots` ones with the new one
// among them, so that the slot that is written anew is none of those the row reads. A row that closes goes to `near`, too.
__device__ __forceinline__ void pool_token(const PoolArgs& a, const DevStep& s, uint32_t me, uint32_t width, float* near) {
    if (closed_rows(s, a.rate) > 0) {
#pragma unroll 1
        for (uint32_t c = me; c < a.d; c += 2 * width) pool_row<2, 8>(a, s, 0, c, width, near);
    }
#pragma unroll 1
    for (uint32_t c = me; c < a.c; c += 4 * width) pool_keep<4>(a, s, s.position, c, width);
}
