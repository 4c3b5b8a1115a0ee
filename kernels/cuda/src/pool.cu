// The compressor's pooling state and the rows that close (MODEL1.md 2.7).
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

// One channel of row `n` of those that close.
__device__ __forceinline__ void pool_row(const PoolArgs& a, const DevStep& s, uint32_t n, uint32_t channel) {
    const bool overlap = a.c != a.d;
    const uint64_t start = (first_closed(s, a.rate) + n) * a.rate;
    const uint32_t before = overlap && start >= a.rate ? a.rate : 0, own = overlap ? a.d : 0;
    // Softmax in one pass: sums are rescaled when the maximum moves.
    float best = -INFINITY, sum = 0.0f, total = 0.0f;
    for (uint32_t i = 0; i < before + a.rate; i++) {
        float value, gate;
        pool_entry(a, s, start - before + i, channel + (i < before ? 0 : own), &value, &gate);
        const float top = fmaxf(best, gate);
        const float keep = best == top ? 1.0f : expf(best - top), e = expf(gate - top);
        sum = sum * keep + e;
        total = total * keep + e * value;
        best = top;
    }
    a.out[(size_t)n * a.d + channel] = total / sum;
}

// One channel of token t of the step goes into the state.
__device__ __forceinline__ void pool_keep(const PoolArgs& a, const DevStep& s, uint64_t t, uint32_t channel) {
    float* slot = a.state + (size_t)((uint32_t)t % a.slots) * 2 * a.c;
    const size_t i = (size_t)(t - s.position) * a.c + channel;
    slot[channel] = a.kv[i];
    slot[a.c + channel] = a.gate[i] + vector_at(a.ape, (uint32_t)t % a.rate * a.c + channel);
}

// Rows that close. One thread per channel. grid (ceil(d / 64), closed rows)
KERNEL(pool_rows, PoolArgs, 64) {
    const DevStep s = *a.step;
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (blockIdx.y >= closed_rows(s, a.rate) || channel >= a.d) return;
    pool_row(a, s, blockIdx.y, channel);
}

// The last `slots` tokens of the step go into the state. Runs after pool_rows. grid (ceil(c / 256), slots)
KERNEL(pool_state, PoolArgs, 256) {
    const DevStep s = *a.step;
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel >= a.c || blockIdx.y >= s.tokens) return;
    pool_keep(a, s, s.position + s.tokens - 1 - blockIdx.y, channel);
}

// Both for a step of one token: a row's tokens are the last `slots` ones with the new one among them, so that the slot
// that is written anew is none of those the row reads. grid (ceil(c / 64))
KERNEL(pool_one, PoolArgs, 64) {
    const DevStep s = *a.step;
    const uint32_t channel = blockIdx.x * blockDim.x + threadIdx.x;
    if (channel < a.d && closed_rows(s, a.rate) > 0) pool_row(a, s, 0, channel);
    if (channel < a.c) pool_keep(a, s, s.position, channel);
}
