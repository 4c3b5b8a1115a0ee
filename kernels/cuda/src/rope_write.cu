// What many tokens do to their queries, keys and values before a dense attention: queries and keys are rotated (pairs half a
// head apart, the whole head), keys and values are stored as bf16. The same numbers as row_chain; there a block has one row
// of one of them, and waits for its sines longer than for memory (1,024 tokens of 12 + 2 heads: 18 us). Here a block works
// out the rotation of four tokens once.
#include "rows.cuh"

constexpr uint32_t kTokens = 4, kPairs = 64;

struct RopeWriteArgs {
    RopeArgs q, k;
    CacheWriteArgs keys, values;
};

// Four neighbours of each half, rotated.
__device__ __forceinline__ void rotate(float4& p, float4& q, const float2* turns) {
    float* a = &p.x;
    float* b = &q.x;
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const float x = a[i], y = b[i];
        a[i] = x * turns[i].y - y * turns[i].x;
        b[i] = x * turns[i].x + y * turns[i].y;
    }
}

__device__ __forceinline__ void store_bf16(uint8_t* to, float4 v) {
    *(uint2*)to = make_uint2(f32_to_bf16(v.x) | f32_to_bf16(v.y) << 16, f32_to_bf16(v.z) | f32_to_bf16(v.w) << 16);
}

// grid (tokens / 4), 256 threads
EARLY_KERNEL(rope_write, RopeWriteArgs, 256, 4) {
    __shared__ float2 turns[kTokens][kPairs];
    const DevStep step = *a.q.step;
    const uint32_t first = blockIdx.x * kTokens, pairs = a.q.dims / 2, fours = pairs / 4;
    const uint32_t rows = first < step.tokens ? min(kTokens, step.tokens - first) : 0;
    for (uint32_t n = threadIdx.x; n < rows * pairs; n += blockDim.x) {
        const uint32_t row = n / pairs, i = n % pairs;
        turns[row][i] = turn_at(step.position + first + row, a.q.freqs[i], a.q.inverse != 0);
    }
    await_predecessor();
    __syncthreads();
    const CacheRef &keys = a.keys.cache, &values = a.values.cache;
    const auto record = [&](const CacheRef& c, uint32_t row, uint32_t head) {
        return c.data + ((step.position + first + row) * c.records + head) * c.data_bytes;
    };
    const uint32_t heads = a.q.heads + a.k.heads;
#pragma unroll 2
    for (uint32_t n = threadIdx.x; n < rows * heads * fours; n += blockDim.x) {
        const uint32_t i = n % fours * 4, row = n / fours / heads, at = n / fours % heads;
        const RopeArgs& r = at < a.q.heads ? a.q : a.k;
        const uint32_t head = at < a.q.heads ? at : at - a.q.heads;
        float* x = r.x + (size_t)(first + row) * r.width + head * r.head_dim + i;
        float4 p = *(const float4*)x, q = *(const float4*)(x + pairs);
        rotate(p, q, turns[row] + i);
        *(float4*)x = p;
        *(float4*)(x + pairs) = q;
        if (at >= a.q.heads) {
            uint8_t* to = record(keys, row, head) + 2 * i;
            store_bf16(to, p);
            store_bf16(to + 2 * pairs, q);
        }
    }
    const uint32_t width = values.records * values.width;
    for (uint32_t n = 4 * threadIdx.x; n < rows * width; n += 4 * blockDim.x) {
        const uint32_t row = n / width, c = n % width;
        const float4 v = *(const float4*)(a.values.src + (size_t)(first + row) * width + c);
        store_bf16(record(values, row, 0) + 2 * c, v);
    }
}
