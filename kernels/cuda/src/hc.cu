// mHC coefficients (MODEL1.md 3): project, normalise, Sinkhorn.
#include "weights.cuh"

struct HcMixArgs {
    WeightRef matrix;   // [outputs, width]
    WeightRef base;     // [outputs]
    WeightRef scale;    // [3], or [1]
    const float* x;     // [rows, width], the streams side by side
    float* pre;         // [rows, n]
    float* post;        // [rows, n], null = head form
    float* comb;        // [rows, n, n], null = head form
    const DevStep* step;
    uint32_t rows;      // code of x's rows
    uint32_t width;
    uint32_t n;         // streams, at most 8
    uint32_t outputs;   // n, or (2 + n) n
    uint32_t iterations;
    float eps;
    float norm_eps;
    uint32_t pad;
};

// Softmax over rows, then columns and rows in turn, ending on columns. Thread i < n has row i, then column i.
__device__ inline void sinkhorn(float* c, uint32_t n, uint32_t iterations, float eps) {
    const uint32_t i = threadIdx.x;
    if (i < n) {
        float best = -INFINITY, sum = 0.0f;
        for (uint32_t k = 0; k < n; k++) best = fmaxf(best, c[i * n + k]);
        for (uint32_t k = 0; k < n; k++) {
            c[i * n + k] = expf(c[i * n + k] - best);
            sum += c[i * n + k];
        }
        for (uint32_t k = 0; k < n; k++) c[i * n + k] = c[i * n + k] / sum + eps;
    }
    for (uint32_t round = 0; round < iterations; round++) {
        __syncwarp();
        if (round > 0 && i < n) {
            float sum = 0.0f;
            for (uint32_t k = 0; k < n; k++) sum += c[i * n + k];
            for (uint32_t k = 0; k < n; k++) c[i * n + k] /= sum + eps;
        }
        __syncwarp();
        if (i < n) {
            float sum = 0.0f;
            for (uint32_t j = 0; j < n; j++) sum += c[j * n + i];
            for (uint32_t j = 0; j < n; j++) c[j * n + i] /= sum + eps;
        }
    }
    __syncwarp();
}

// grid (rows), 256 threads
KERNEL(hc_mix, HcMixArgs, 256) {
    __shared__ float mixed[80], squares[8], c[64];
    const uint32_t t = blockIdx.x, n = a.n, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (t >= step_rows(*a.step, a.rows)) return;
    const float* x = a.x + (size_t)t * a.width;
    float square = 0.0f;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) square += x[i] * x[i];
    square = block_sum(square, squares);
    const float rho = 1.0f / sqrtf(square / (float)a.width + a.norm_eps);
    for (uint32_t o = warp; o < a.outputs; o += blockDim.x / 32) {
        float sum = 0.0f;
        for (uint32_t i = lane; i < a.width; i += 32) sum += weight_at(a.matrix, o, i) * x[i];
        sum = warp_sum(sum);
        if (lane == 0) mixed[o] = sum * rho;
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    if (lane < n) {
        a.pre[t * n + lane] = sigmoid(mixed[lane] * vector_at(a.scale, 0) + vector_at(a.base, lane)) + a.eps;
        if (a.post != nullptr) {
            a.post[t * n + lane] =
                2.0f * sigmoid(mixed[n + lane] * vector_at(a.scale, 1) + vector_at(a.base, n + lane));
        }
    }
    if (a.comb == nullptr) return;
    for (uint32_t i = lane; i < n * n; i += 32) {
        c[i] = mixed[2 * n + i] * vector_at(a.scale, 2) + vector_at(a.base, 2 * n + i);
    }
    __syncwarp();
    sinkhorn(c, n, a.iterations, a.eps);
    for (uint32_t i = lane; i < n * n; i += 32) a.comb[(size_t)t * n * n + i] = c[i];
}
