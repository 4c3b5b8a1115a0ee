// The lightning indexer: scores of compressed rows, and the rows with the largest ones.
#include "records.cuh"

struct IndexScoreArgs {
    CacheRef keys;         // one record of `dim` values per row
    const float* q;        // [tokens, heads * dim]
    const float* weights;  // [tokens, heads]
    float* out;            // [tokens, width]
    const DevStep* step;
    uint32_t heads;
    uint32_t dim;          // a multiple of 4
    uint32_t rate;
    uint32_t skip;         // queries with at most this many visible rows are not scored
    uint32_t width;
    float scale;
};

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

struct SelectArgs {
    const float* scores;  // [tokens, width]
    int32_t* out;         // [tokens, k]
    const DevStep* step;
    uint32_t width;
    uint32_t k;
    uint32_t rate;
    uint32_t pad;
};

#include "topk.cuh"

// Exact: the key of the k-th largest score by radix selection, then the rows in ascending order. grid (tokens)
KERNEL(select_top_k, SelectArgs, 1024) {
    __shared__ TopK top;
    const DevStep s = *a.step;
    const uint32_t t = blockIdx.x;
    if (t >= s.tokens) return;
    const uint32_t n = (uint32_t)rows_visible(s, a.rate, t);
    const float* scores = a.scores + (size_t)t * a.width;
    int32_t* out = a.out + (size_t)t * a.k;
    if (n <= a.k) {
        for (uint32_t i = threadIdx.x; i < a.k; i += blockDim.x) out[i] = i < n ? (int32_t)i : -1;
        return;
    }
    top_k_threshold(top, n, a.k, [&](uint32_t i) { return ordered_key(scores[i]); });
    const uint32_t key = top.key, ties = top.ties;
    uint32_t kept = 0, equal = 0;
    for (uint32_t base = 0; base < n; base += blockDim.x) {
        const uint32_t i = base + threadIdx.x;
        const uint32_t mine = i < n ? ordered_key(scores[i]) : 0;
        const bool is_equal = i < n && mine == key, above = i < n && mine > key;
        // Both running counts in one scan: equals in the high half.
        uint32_t total;
        const uint32_t before = block_scan((above ? 1u : 0u) + (is_equal ? 1u << 16 : 0u), top.scan, &total);
        const uint32_t equal_before = equal + (before >> 16);
        const bool stays = above || (is_equal && equal_before < ties);
        // Kept rows before this one: those above, and of the equals as many as still fit.
        const uint32_t place = kept + (before & 0xffffu) + min(before >> 16, ties - min(equal, ties));
        if (stays) out[place] = (int32_t)i;
        kept += (total & 0xffffu) + min(total >> 16, ties - min(equal, ties));
        equal += total >> 16;
    }
}
