// See pool.cuh.
#include "pool.cuh"

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

// Both for a step of one token. grid (ceil(c / 64))
KERNEL(pool_one, PoolArgs, 64) { pool_channel(a, *a.step, blockIdx.x * blockDim.x + threadIdx.x); }
