// RMSNorm and LayerNorm of runs of values, statistics in f32.
#include "rows.cuh"

// One block per run; every thread writes only what it read itself, so out may be x. grid (groups, rows)
KERNEL(norm_rows, NormArgs, 256) {
    __shared__ float sums[2][8];
    if (blockIdx.y >= step_rows(*a.step, a.rows)) return;
    const size_t at = ((size_t)blockIdx.y * a.groups + blockIdx.x) * a.group;
    const float* x = a.x + at;
    float mean = 0.0f;
    if (a.layer != 0) {
        float sum = 0.0f;
        for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) sum += x[i];
        mean = block_sum(sum, sums[0]) / (float)a.group;
    }
    float square = 0.0f;
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) {
        const float v = x[i] - mean;
        square += v * v;
    }
    const float scale = 1.0f / sqrtf(block_sum(square, sums[1]) / (float)a.group + a.eps);
#pragma unroll 8
    for (uint32_t i = threadIdx.x; i < a.group; i += blockDim.x) {
        float v = (x[i] - mean) * scale;
        if (a.weight.data != nullptr) v *= vector_at(a.weight, i);
        if (a.bias.data != nullptr) v += vector_at(a.bias, i);
        a.out[at + i] = v;
    }
}
