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

// Tokens of a row that are asked for together.
constexpr uint32_t kPoolAhead = 4;

// One channel of row `n` of those that close; `near`: a second place for it.
__device__ __forceinline__ void pool_row(const PoolArgs& a, const DevStep& s, uint32_t n, uint32_t channel, float* near = nullptr) {
    const bool overlap = a.c != a.d;
    const uint64_t start = (first_closed(s, a.rate) + n) * a.rate;
    const uint32_t before = overlap && start >= a.rate ? a.rate : 0, own = overlap ? a.d : 0;
    // Softmax in one pass: sums are rescaled when the maximum moves. Some tokens are asked for at a time.
    float best = -INFINITY, sum = 0.0f, total = 0.0f;
    const uint32_t all = before + a.rate;
#pragma unroll 1
    for (uint32_t i = 0; i < all; i += kPoolAhead) {
        float value[kPoolAhead], gate[kPoolAhead];
#pragma unroll
        for (uint32_t j = 0; j < kPoolAhead; j++) {
            value[j] = 0.0f;
            gate[j] = -INFINITY;
            if (i + j < all) pool_entry(a, s, start - before + i + j, channel + (i + j < before ? 0 : own), value + j, gate + j);
        }
        float top = best;
#pragma unroll
        for (uint32_t j = 0; j < kPoolAhead; j++) top = fmaxf(top, gate[j]);
        const float keep = best == top ? 1.0f : expf(best - top);
        sum *= keep;
        total *= keep;
        best = top;
#pragma unroll
        for (uint32_t j = 0; j < kPoolAhead; j++) {
            const float e = expf(gate[j] - top);
            sum += e;
            total += e * value[j];
        }
    }
    a.out[(size_t)n * a.d + channel] = total / sum;
    if (near != nullptr) near[channel] = total / sum;
}

// One channel of token t of the step goes into the state.
__device__ __forceinline__ void pool_keep(const PoolArgs& a, const DevStep& s, uint64_t t, uint32_t channel) {
    float* slot = a.state + (size_t)((uint32_t)t % a.slots) * 2 * a.c;
    const size_t i = (size_t)(t - s.position) * a.c + channel;
    slot[channel] = a.kv[i];
    slot[a.c + channel] = a.gate[i] + vector_at(a.ape, (uint32_t)t % a.rate * a.c + channel);
}

// Both for a step of one token: a row's tokens are the last `slots` ones with the new one among them, so that the slot that is
// written anew is none of those the row reads. A row that closes goes to `near`, too.
__device__ __forceinline__ void pool_channel(const PoolArgs& a, const DevStep& s, uint32_t channel, float* near = nullptr) {
    if (channel < a.d && closed_rows(s, a.rate) > 0) pool_row(a, s, 0, channel, near);
    if (channel < a.c) pool_keep(a, s, s.position, channel);
}
