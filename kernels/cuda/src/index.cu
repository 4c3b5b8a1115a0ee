// The lightning indexer's scores of compressed rows (select.cu chooses the rows with the largest ones).
#include "index.cuh"

constexpr uint32_t kIndexRows = 64, kIndexHeads = 16;

// 64 rows per block are decoded once and meet every token of the block's share. A thread has one row and a quarter of
// the heads, four at a time. shared: 4 * (64 * (dim + 4) + 16 * dim + 16 + 256). grid (ceil(rows / 64), token shares)
KERNEL(index_score, IndexScoreArgs, 256) {
    DYNAMIC_SHARED(memory);
    const uint32_t ld = a.dim + 4;
    float* keys = (float*)memory;                 // [64][ld]
    float* queries = keys + kIndexRows * ld;      // [16][dim]
    float* factors = queries + kIndexHeads * a.dim;  // [16]
    float* parts = factors + kIndexHeads;         // [4][64]
    const DevStep s = *a.step;
    const uint32_t from = blockIdx.x * kIndexRows;
    const uint64_t most = rows_visible(s, a.rate, s.tokens - 1);
    if (most <= a.skip || most <= from) return;
    const uint32_t quarter_dim = a.dim / 4;
    for (uint32_t n = threadIdx.x; n < kIndexRows * quarter_dim; n += blockDim.x) {
        const uint32_t r = n / quarter_dim, c = n % quarter_dim * 4;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (from + r < most) v = record_four(a.keys, from + r, 0, c);
        *(float4*)(keys + r * ld + c) = v;
    }
    const uint32_t row = threadIdx.x & 63, share = threadIdx.x / 64;
    for (uint32_t t = blockIdx.y; t < s.tokens; t += gridDim.y) {
        const uint64_t visible = rows_visible(s, a.rate, t);
        if (visible <= a.skip || visible <= from) continue;
        float sum = 0.0f;
        for (uint32_t h0 = 0; h0 < a.heads; h0 += kIndexHeads) {
            const uint32_t n = min(kIndexHeads, a.heads - h0);
            __syncthreads();
            const float* q = a.q + ((size_t)t * a.heads + h0) * a.dim;
            for (uint32_t i = threadIdx.x; i < kIndexHeads * a.dim; i += blockDim.x) {
                queries[i] = i < n * a.dim ? q[i] : 0.0f;
            }
            if (threadIdx.x < kIndexHeads) {
                factors[threadIdx.x] = threadIdx.x < n ? a.scale * a.weights[(size_t)t * a.heads + h0 + threadIdx.x] : 0.0f;
            }
            __syncthreads();
            float dots[4] = {};
            const float* k = keys + row * ld;
            for (uint32_t c = 0; c < a.dim; c += 4) {
                const float4 kv = *(const float4*)(k + c);
#pragma unroll
                for (uint32_t h = 0; h < 4; h++) {
                    const float4 qv = *(const float4*)(queries + (share * 4 + h) * a.dim + c);
                    dots[h] += kv.x * qv.x + kv.y * qv.y + kv.z * qv.z + kv.w * qv.w;
                }
            }
#pragma unroll
            for (uint32_t h = 0; h < 4; h++) sum += factors[share * 4 + h] * fmaxf(dots[h], 0.0f);
        }
        parts[share * kIndexRows + row] = sum;
        __syncthreads();
        if (threadIdx.x < kIndexRows && from + row < visible) {
            a.out[(size_t)t * a.width + from + row] =
                parts[row] + parts[kIndexRows + row] + parts[2 * kIndexRows + row] + parts[3 * kIndexRows + row];
        }
    }
}
