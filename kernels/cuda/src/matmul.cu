// Matrix products in any stored format and layout: one warp per output and up to 8 tokens, one element at a time. The
// way for shapes and formats that the fast paths (gemv.cu, gemm.cu) do not take.
#include "matmul.cuh"

// grid (ceil(rows / 8), ceil(tokens / 8)), or (ceil(rows / 8), tokens * k) with experts
KERNEL(matmul_any, MatMulArgs, 256) {
    const uint32_t row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x & 31;
    if (row >= a.w.rows) return;
    WeightRef w = a.w;
    uint32_t first = blockIdx.y * 8, tokens = step_rows(*a.step, a.tokens);
    const float* x;
    float* out;
    if (!place_rows(a, row, blockIdx.y, 8, &w, &first, &tokens, &x, &out)) return;
    float sums[8] = {};
    for (uint32_t c = lane; c < w.cols; c += 32) {
        const float v = weight_at(w, row, c);
#pragma unroll
        for (uint32_t t = 0; t < 8; t++) {
            if (t < tokens) sums[t] += v * x[(size_t)t * a.x_stride + c];
        }
    }
#pragma unroll
    for (uint32_t t = 0; t < 8; t++) {
        if (t >= tokens) break;
        const float sum = warp_sum(sums[t]);
        if (lane == 0) out[(size_t)t * a.out_stride + row] = sum + bias_at(a, row);
    }
}

// [in, out] matrices: a warp has 32 neighbouring outputs, the 8 warps of a block share the inputs.
// grid (ceil(rows / 32), ceil(tokens / 8))
KERNEL(matmul_in_out, MatMulArgs, 256) {
    __shared__ float parts[8][8][32];
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32, row = blockIdx.x * 32 + lane;
    const uint32_t tokens = step_rows(*a.step, a.tokens), first = blockIdx.y * 8;
    if (first >= tokens) return;
    float sums[8] = {};
    if (row < a.w.rows) {
        for (uint32_t c = warp; c < a.w.cols; c += 8) {
            const float v = weight_at(a.w, row, c);
#pragma unroll
            for (uint32_t t = 0; t < 8; t++) {
                if (first + t < tokens) sums[t] += v * a.x[(size_t)(first + t) * a.x_stride + c];
            }
        }
    }
#pragma unroll
    for (uint32_t t = 0; t < 8; t++) parts[warp][t][lane] = sums[t];
    __syncthreads();
    // Warp t adds up token t.
    if (row >= a.w.rows || first + warp >= tokens) return;
    float sum = 0.0f;
    for (uint32_t i = 0; i < 8; i++) sum += parts[i][warp][lane];
    a.out[(size_t)(first + warp) * a.out_stride + row] = sum + bias_at(a, row);
}
