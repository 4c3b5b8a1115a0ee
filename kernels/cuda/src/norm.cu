// RMSNorm and LayerNorm of runs of values, statistics in f32.
#include "rows.cuh"

// One block per run; every thread writes only what it read itself, so out may be x. grid (groups, rows)
KERNEL(norm_rows, NormArgs, 1024) {
    __shared__ float sums[32];
    if (blockIdx.y >= step_rows(*a.step, a.rows)) return;
    const size_t at = ((size_t)blockIdx.y * a.groups + blockIdx.x) * a.group;
    norm_run(a, a.x + at, a.out + at, threadIdx.x, blockDim.x, [&](float v) {
        v = block_sum(v, sums);
        __syncthreads();
        return v;
    });
}
