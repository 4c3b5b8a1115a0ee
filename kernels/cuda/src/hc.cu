// mHC coefficients (MODEL1.md 3): the products of the streams with the mixing matrix, in slices of the width so that the
// whole device takes part. The rest is hc_finish_row (rows.cuh), a link of a chain.
#include "rows.cuh"

constexpr uint32_t kHcTokens = 16;

// For many tokens: the slice of the matrix is brought once for 16 of them (a block per token read it 1,024 times from the
// second-level cache), and 16 threads have a token, each four times four neighbouring values. grid (slices, rows / 16), 256
// threads, shared 4 * outputs * kHcSlice
KERNEL(hc_partial_many, HcMixArgs, 256) {
    DYNAMIC_SHARED(memory);
    float* m = (float*)memory;
    const uint32_t from = blockIdx.x * kHcSlice, rows = step_rows(*a.step, a.rows);
    if (blockIdx.y * kHcTokens >= rows) return;
    for (uint32_t i = threadIdx.x; i < a.outputs * kHcSlice; i += blockDim.x) {
        const uint32_t c = from + i % kHcSlice;
        m[i] = c < a.width ? weight_at(a.matrix, i / kHcSlice, c) : 0.0f;
    }
    const uint32_t t = blockIdx.y * kHcTokens + threadIdx.x / 16, sub = threadIdx.x % 16;
    const bool there = t < rows;
    const float* x = a.x + (size_t)t * a.width + from + 4 * sub;
    float4 v[kHcSlice / 64];
#pragma unroll
    for (uint32_t q = 0; q < kHcSlice / 64; q++) {
        const uint32_t c = from + 64 * q + 4 * sub;
        v[q] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!there) continue;
        if (a.width % 4 == 0) {
            if (c < a.width) v[q] = *(const float4*)(x + 64 * q);
        } else {
            if (c < a.width) v[q].x = x[64 * q];
            if (c + 1 < a.width) v[q].y = x[64 * q + 1];
            if (c + 2 < a.width) v[q].z = x[64 * q + 2];
            if (c + 3 < a.width) v[q].w = x[64 * q + 3];
        }
    }
    __syncthreads();
    float* parts = a.partial + ((size_t)t * a.slices + blockIdx.x) * (a.outputs + 1);
#pragma unroll 4
    for (uint32_t o = 0; o <= a.outputs; o++) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t q = 0; q < kHcSlice / 64; q++) {
            const float4 w = o < a.outputs ? ((const float4*)(m + o * kHcSlice + 64 * q))[sub] : v[q];
            sum += w.x * v[q].x + w.y * v[q].y + w.z * v[q].z + w.w * v[q].w;
        }
#pragma unroll
        for (int d = 8; d > 0; d >>= 1) sum += __shfl_xor_sync(kAll, sum, d);
        if (sub == 0 && there) parts[o] = sum;
    }
}

// Warps share out the outputs; a lane has eight neighbouring values of the slice. grid (slices, rows), 256 threads
KERNEL(hc_partial, HcMixArgs, 256) {
    const uint32_t t = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    if (t >= step_rows(*a.step, a.rows)) return;
    const uint32_t from = blockIdx.x * kHcSlice + 8 * lane;
    const float* x = a.x + (size_t)t * a.width;
    float v[8];
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) v[i] = from + i < a.width ? x[from + i] : 0.0f;
    float* parts = a.partial + ((size_t)t * a.slices + blockIdx.x) * (a.outputs + 1);
    const bool whole = a.matrix.format == kF32 && (a.width & 3) == 0 && from + 8 <= a.width;
    for (uint32_t o = warp; o < a.outputs; o += blockDim.x / 32) {
        float sum = 0.0f;
        if (whole) {
            const float4* m = (const float4*)((const float*)a.matrix.data + (size_t)o * a.width + from);
            const float4 p = m[0], q = m[1];
            sum = p.x * v[0] + p.y * v[1] + p.z * v[2] + p.w * v[3] + q.x * v[4] + q.y * v[5] + q.z * v[6] + q.w * v[7];
        } else {
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) {
                if (from + i < a.width) sum += weight_at(a.matrix, o, from + i) * v[i];
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) parts[o] = sum;
    }
    if (warp == 0) {
        float square = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) square += v[i] * v[i];
        square = warp_sum(square);
        if (lane == 0) parts[a.outputs] = square;
    }
}
