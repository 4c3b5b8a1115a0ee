// mHC coefficients (MODEL1.md 3): the products of the streams with the mixing matrix, in slices of the width so that the
// whole device takes part. The rest is hc_finish_row (rows.cuh), a link of a chain.
#include "rows.cuh"

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
