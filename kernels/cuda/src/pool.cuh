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

// A softmax over tokens in one pass, weighting their values: sums are rescaled when the largest gate moves.
struct Pooled {
    float best, sum, total;

    template <uint32_t N, class V>
    __device__ __forceinline__ void add(V value_gate) {
        float top = best;
#pragma unroll
        for (uint32_t j = 0; j < N; j++) top = fmaxf(top, value_gate(j).y);
        const float keep = best == top ? 1.0f : expf(best - top);
        sum *= keep;
        total *= keep;
        best = top;
#pragma unroll
        for (uint32_t j = 0; j < N; j++) {
            const float2 of = value_gate(j);
            const float e = expf(of.y - top);
            sum += e;
            total += e * of.x;
        }
    }
};
__device__ __forceinline__ Pooled no_tokens() { return {-INFINITY, 0.0f, 0.0f}; }

// The tokens of a row: from which on, how many of the row before are among them, how many there are.
struct PoolTokens {
    uint64_t first;
    uint32_t before, all;
};
__device__ __forceinline__ PoolTokens pool_tokens(const PoolArgs& a, const DevStep& s, uint32_t n) {
    const uint64_t start = (first_closed(s, a.rate) + n) * a.rate;
    const uint32_t before = a.c != a.d && start >= a.rate ? a.rate : 0;
    return {start - before, before, before + a.rate};
}

// Tokens of a row that are asked for together.
constexpr uint32_t kPoolAhead = 4;

// One channel of row `n` of those that close.
__device__ __forceinline__ void pool_row(const PoolArgs& a, const DevStep& s, uint32_t n, uint32_t channel) {
    const PoolTokens t = pool_tokens(a, s, n);
    const uint32_t own = a.c - a.d;
    Pooled pooled = no_tokens();
#pragma unroll 1
    for (uint32_t i = 0; i < t.all; i += kPoolAhead) {
        float value[kPoolAhead], gate[kPoolAhead];
#pragma unroll
        for (uint32_t j = 0; j < kPoolAhead; j++) {
            value[j] = 0.0f;
            gate[j] = -INFINITY;
            if (i + j < t.all) pool_entry(a, s, t.first + i + j, channel + (i + j < t.before ? 0 : own), value + j, gate + j);
        }
        pooled.add<kPoolAhead>([&](uint32_t j) { return make_float2(value[j], gate[j]); });
    }
    a.out[(size_t)n * a.d + channel] = pooled.total / pooled.sum;
}

// Two neighbouring channels of the row that closes with a step's one token.
struct PoolPair {
    Pooled x, y;

    template <uint32_t N>
    __device__ __forceinline__ void add(const float2* value, const float2* gate) {
        x.add<N>([&](uint32_t j) { return make_float2(value[j].x, gate[j].x); });
        y.add<N>([&](uint32_t j) { return make_float2(value[j].y, gate[j].y); });
    }
    __device__ __forceinline__ float2 result() const { return make_float2(x.total / x.sum, y.total / y.sum); }
};

// Tokens of a pair that are asked for together.
constexpr uint32_t kPairAhead = 4;

// Of those, all tokens but the step's own: what earlier steps left in the state, which no launch of this one changes before.
__device__ __forceinline__ PoolPair pool_before(const PoolArgs& a, const DevStep& s, uint32_t channel) {
    const PoolTokens t = pool_tokens(a, s, 0);
    const uint32_t own = a.c - a.d, past = t.all - 1;
    PoolPair pooled = {no_tokens(), no_tokens()};
#pragma unroll 1
    for (uint32_t i = 0; i < past; i += kPairAhead) {
        float2 value[kPairAhead], gate[kPairAhead];
#pragma unroll
        for (uint32_t j = 0; j < kPairAhead; j++) {
            // One that is too many weighs nothing.
            const uint32_t k = min(i + j, past - 1);
            const float* slot = a.state + (size_t)((uint32_t)(t.first + k) % a.slots) * 2 * a.c + channel + (k < t.before ? 0 : own);
            value[j] = *(const float2*)slot;
            gate[j] = i + j < past ? *(const float2*)(slot + a.c) : make_float2(-INFINITY, -INFINITY);
        }
        pooled.add<kPairAhead>(value, gate);
    }
    return pooled;
}

// One channel of token t of the step goes into the state.
__device__ __forceinline__ void pool_keep(const PoolArgs& a, const DevStep& s, uint64_t t, uint32_t channel) {
    float* slot = a.state + (size_t)((uint32_t)t % a.slots) * 2 * a.c;
    const size_t i = (size_t)(t - s.position) * a.c + channel;
    slot[channel] = a.kv[i];
    slot[a.c + channel] = a.gate[i] + vector_at(a.ape, (uint32_t)t % a.rate * a.c + channel);
}

// Both for a step of one token: a row's tokens are the last `slots` ones with the new one among them, so that the slot that is
// written anew is none of those the row reads.
__device__ __forceinline__ void pool_channel(const PoolArgs& a, const DevStep& s, uint32_t channel) {
    if (channel < a.d && closed_rows(s, a.rate) > 0) pool_row(a, s, 0, channel);
    if (channel < a.c) pool_keep(a, s, s.position, channel);
}
