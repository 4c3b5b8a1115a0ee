// Rotary embedding in place. Angles are taken in f64 and reduced to a part of a turn there: exact enough for a million
// tokens, and without the tables in local memory that sin and cos of large numbers need.
#include "rows.cuh"

// grid (rows)
KERNEL(rope, RopeArgs, 256) {
    __shared__ float2 turns[256];
    const DevStep step = *a.step;
    if (blockIdx.x >= step_rows(step, a.rows)) return;
    rope_turns(a, step, blockIdx.x, turns);
    __syncthreads();
    rope_row(a, blockIdx.x, turns);
}
