// Puts the shares of attend_mma and attend_wide together where their blocks do not, and rotates what comes out.
#include "attend.cuh"

constexpr uint32_t kMostShares = 128;

// Few shares: a warp per head of a token. grid (heads * tokens / 8), 256 threads
KERNEL(attend_shares_few, AttendArgs, 256) {
    const uint32_t lane = threadIdx.x & 31, at = blockIdx.x * 8 + threadIdx.x / 32, head = at % a.heads, d = a.head_dim;
    if (at / a.heads >= a.step->tokens) return;
    const float* shares = a.partial + (size_t)at * a.splits * (d + 4);
    const bool there = lane < a.splits, sunk = a.sinks.data != nullptr;
    const float best = there ? shares[lane * (d + 4) + d] : -INFINITY;
    const float mass = there ? shares[lane * (d + 4) + d + 1] : 0.0f;
    const float sink = sunk ? vector_at(a.sinks, head) : -INFINITY, top = fmaxf(sink, warp_max(best));
    // A share without keys (and a head that sees nothing at all) weighs nothing.
    const float mine = best <= -1e30f ? 0.0f : power_of_two((best - top) * kLog2e);
    const float all = warp_sum(mass * mine) + (sunk ? power_of_two((sink - top) * kLog2e) : 0.0f);
    const float factor = all > 0.0f ? mine / all : 0.0f;
    for (uint32_t base = 0; base < d / 4; base += 32) {
        const uint32_t c = base + lane;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
        for (uint32_t i = 0; i < a.splits; i++) {
            const float f = __shfl_sync(kAll, factor, (int)i);
            const float4 part = c < d / 4 ? *(const float4*)(shares + i * (d + 4) + 4 * c) : v;
            v = make_float4(v.x + part.x * f, v.y + part.y * f, v.z + part.z * f, v.w + part.w * f);
        }
        if (c < d / 4) {
            ((float4*)(a.out + (size_t)at * d))[c] = turned_at(a, a.step->position + at / a.heads, 4 * c, v);
        }
    }
}

// Many shares: a block per head of a token, runs of threads take every few shares. grid (heads, tokens), 512 threads
KERNEL(attend_shares, AttendArgs, 512) {
    __shared__ float factors[kMostShares], largest[16], sums[16];
    __shared__ float4 parts[512];
    if (blockIdx.y >= a.step->tokens) return;
    const uint32_t d = a.head_dim, head = blockIdx.x, s = threadIdx.x;
    const size_t at = (size_t)blockIdx.y * a.heads + head;
    const float* shares = a.partial + at * a.splits * (d + 4);
    const bool there = s < a.splits, sunk = a.sinks.data != nullptr;
    const float best = there ? shares[s * (d + 4) + d] : -INFINITY, mass = there ? shares[s * (d + 4) + d + 1] : 0.0f;
    const float sink = sunk ? vector_at(a.sinks, head) : -INFINITY, top = fmaxf(sink, block_max(best, largest));
    const float factor = best <= -1e30f ? 0.0f : power_of_two((best - top) * kLog2e);
    if (s < kMostShares) factors[s] = factor;
    const float all = block_sum(mass * factor, sums) + (sunk ? power_of_two((sink - top) * kLog2e) : 0.0f);
    const uint32_t fours = d / 4, runs = min(512 / fours, 16u), run = s / fours, c = s % fours;
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    if (run < runs) {
#pragma unroll 8
        for (uint32_t i = run; i < a.splits; i += runs) {
            const float4 part = *(const float4*)(shares + i * (d + 4) + 4 * c);
            const float f = factors[i];
            v = make_float4(v.x + part.x * f, v.y + part.y * f, v.z + part.z * f, v.w + part.w * f);
        }
    }
    parts[s] = v;
    __syncthreads();
    if (run > 0) return;
    for (uint32_t i = 1; i < runs; i++) {
        const float4 part = parts[i * fours + c];
        v = make_float4(v.x + part.x, v.y + part.y, v.z + part.z, v.w + part.w);
    }
    const float f = all > 0.0f ? 1.0f / all : 0.0f;
    v = make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
    ((float4*)(a.out + at * d))[c] = turned_at(a, a.step->position + blockIdx.y, 4 * c, v);
}
