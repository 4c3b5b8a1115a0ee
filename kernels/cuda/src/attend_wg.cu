// Attention of many tokens on Hopper (sm_90a): as attend_mma.cu, with wgmma, for plain causal attention over bf16 caches with
// heads of 64 or 128 values. Queries and weights are in two bf16 parts there as here.
//
// A block has 128 rows of queries of one key head (a row is a head of a token): warps 0 to 3 and 4 to 7 have 64 each, whose
// parts lie in shared memory. Warps 8 to 11 copy keys and values, 128 tokens at a time, into two buffers each; every buffer has
// two barriers, `full` (128 copying threads) and `free` (8 multiplying warps). Both groups go through the same tiles, each at its
// own pace: one multiplies while the other is at its softmax. Weights stay in registers, where they are what the second product
// reads; a tile's sums are added up apart from what came before, as tensor cores cut off what is added to a large sum.
// Blocks with most keys come first.
#include "attend.cuh"
#include "wgmma.cuh"

#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Below every score; finite, so that differences are never NaN.
constexpr float kBelow = -1e30f;
constexpr uint32_t kRows = 64, kGroups = 2, kTokens = 128, kBuffers = 2, kParts = 2;

// Shared memory, from the next multiple of 1024 on; tiles of 64 columns as wgmma.cuh has them. `wg_shared_bytes` in
// ../ops/attend_wg.rs.
template <uint32_t D>
struct Places {
    static constexpr uint32_t kHalves = D / 64;
    static constexpr uint32_t kQueryTile = kRows * kRowBytes, kQueries = kParts * kHalves * kQueryTile;  // of a group
    static constexpr uint32_t kTile = kTokens * kRowBytes, kKeys = kHalves * kTile, kRing = kGroups * kQueries;
    static constexpr uint32_t kBarriers = kRing + kBuffers * 2 * kKeys;

    static __device__ __forceinline__ unsigned char* keys(unsigned char* memory, uint32_t i) {
        return memory + kRing + i % kBuffers * 2 * kKeys;
    }
};

// What a block has to do.
struct Work {
    uint32_t group, kv, first, count;  // heads that share the keys; rows `first` to `first` + count - 1 of (token, head of the group)
    uint32_t begin, end;               // tiles of its share of the keys
    uint32_t position, tokens;

    __device__ __forceinline__ Work(const AttendArgs& a) {
        const DevStep step = *a.step;
        group = a.block_heads;
        kv = blockIdx.x;
        first = (gridDim.y - 1 - blockIdx.y) * kGroups * kRows;
        const uint32_t all = step.tokens * group;
        count = first < all ? min(kGroups * kRows, all - first) : 0;
        position = (uint32_t)step.position;
        tokens = step.tokens;
        const uint32_t tiles = count == 0 ? 0 : (keys_of(count - 1) + kTokens - 1) / kTokens, per = (tiles + a.splits - 1) / a.splits;
        begin = min(blockIdx.z * per, tiles);
        end = min(begin + per, tiles);
    }
    // Keys that row r of the block sees (those behind its last row: what that one sees).
    __device__ __forceinline__ uint32_t keys_of(uint32_t r) const { return position + (first + min(r, count - 1)) / group + 1; }
    // Index of (token, head) in [tokens, heads].
    __device__ __forceinline__ size_t at(const AttendArgs& a, uint32_t r) const {
        const uint32_t row = first + r;
        return (size_t)(row / group) * a.heads + kv * group + row % group;
    }
};

// Copies what 128 threads bring of keys (or values) of a tile: chunk of 16 bytes of every few tokens. Zeros where no token is.
template <uint32_t D>
__device__ __forceinline__ void bring(const CacheRef& c, const Work& work, uint32_t tile, unsigned char* to) {
    constexpr uint32_t CHUNKS = D / 8, STEP = 128 / CHUNKS, EACH = kTokens / STEP;
    const uint32_t chunk = threadIdx.x % CHUNKS, row = threadIdx.x % 128 / CHUNKS, stride = c.records * c.data_bytes;
    const uint32_t visible = work.position + work.tokens;
    uint32_t token = tile * kTokens + row;
    const uint8_t* from = c.data + (size_t)token * stride + work.kv * c.data_bytes + 16 * chunk;
    // Rows are eights apart or whole numbers of them.
    to += chunk / 8 * Places<D>::kTile + swizzled(row, chunk % 8);
    // Few at once: the copying warps have given their registers away.
#pragma unroll 4
    for (uint32_t j = 0; j < EACH; j++) {
        const bool there = token < visible;
        copy_async((uint32_t*)to, there ? from : c.data, there);
        token += STEP;
        from += (size_t)STEP * stride;
        to += STEP * kRowBytes;
    }
}

// The group's queries, scaled, in parts.
template <uint32_t D>
__device__ __forceinline__ void place_queries(const AttendArgs& a, const Work& work, uint32_t row0, unsigned char* to) {
    constexpr uint32_t CHUNKS = D / 8;
#pragma unroll 4
    for (uint32_t n = threadIdx.x % 128; n < kRows * CHUNKS; n += 128) {
        const uint32_t r = n / CHUNKS, chunk = n % CHUNKS;
        float4 v[2] = {};
        if (row0 + r < work.count) {
            const float4* from = (const float4*)(a.q + work.at(a, row0 + r) * D + 8 * chunk);
            v[0] = from[0];
            v[1] = from[1];
        }
        uint32_t words[4][kParts];
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            split_pair(v[i].x * a.scale, v[i].y * a.scale, words[2 * i]);
            split_pair(v[i].z * a.scale, v[i].w * a.scale, words[2 * i + 1]);
        }
#pragma unroll
        for (uint32_t p = 0; p < kParts; p++) {
            unsigned char* tile = to + (p * Places<D>::kHalves + chunk / 8) * Places<D>::kQueryTile;
            *(uint4*)(tile + swizzled(r, chunk % 8)) = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
        }
    }
}

// The first of a thread's two rows.
__device__ __forceinline__ uint32_t row_of(uint32_t row0) { return row0 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4; }

// What a thread has found about its two rows (g and g + 8 of its warp's 16).
template <uint32_t D>
struct Found {
    float acc[D / 2], top[2], sum[2];

    __device__ __forceinline__ void take(const float (&sums)[D / 2], const float (&keep)[2]) {
#pragma unroll
        for (uint32_t i = 0; i < D / 2; i++) acc[i] = acc[i] * keep[i / 2 % 2] + sums[i];
    }
};
typedef float Scores[kTokens / 2];
typedef uint32_t Weights[kTokens / 16][kParts][4];

template <uint32_t D>
__device__ __forceinline__ void score(Scores& z, const unsigned char* queries, const unsigned char* keys) {
#pragma unroll
    for (uint32_t k = 0; k < D / 16; k++) {
        // Small products first.
#pragma unroll
        for (int p = kParts - 1; p >= 0; p--) {
            const unsigned char* tile = queries + (p * Places<D>::kHalves + k / 4) * Places<D>::kQueryTile;
            wgmma(z, operand(tile, k % 4), operand(keys + k / 4 * Places<D>::kTile, k % 4));
        }
    }
}

// Scores become weights; what was found before is to be multiplied by `keep`.
template <uint32_t D>
__device__ __forceinline__ void weigh(Scores& z, Found<D>& found, const Work& work, uint32_t row0, uint32_t tile,
                                      float (&keep)[2]) {
    // A later row sees no less.
    if (work.keys_of(row0) < (tile + 1) * kTokens) {
        const uint32_t row = row_of(row0);
        const int32_t t = threadIdx.x % 4 * 2, before = (int32_t)(tile * kTokens);
        const int32_t limits[2] = {(int32_t)work.keys_of(row) - before, (int32_t)work.keys_of(row + 8) - before};
#pragma unroll
        for (uint32_t i = 0; i < kTokens / 2; i++) {
            const int32_t key = (int32_t)(i / 4 * 8 + i % 2) + t;
            if (key >= limits[i / 2 % 2]) z[i] = -INFINITY;
        }
    }
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        float best = found.top[h];
#pragma unroll
        for (uint32_t i = 0; i < kTokens / 2; i += 4) best = fmaxf(best, fmaxf(z[i + 2 * h], z[i + 2 * h + 1]));
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 2));
        keep[h] = power_of_two((found.top[h] - best) * kLog2e);
        found.top[h] = best;
        const float low = best * kLog2e;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < kTokens / 2; i += 4) {
#pragma unroll
            for (uint32_t e = 2 * h; e < 2 * h + 2; e++) {
                z[i + e] = power_of_two(z[i + e] * kLog2e - low);
                sum += z[i + e];
            }
        }
        found.sum[h] = found.sum[h] * keep[h] + sum;
    }
}

// Weights in parts, as the left side of the second product.
__device__ __forceinline__ void fragments(const Scores& z, Weights& weights) {
#pragma unroll
    for (uint32_t i = 0; i < kTokens / 4; i++) {
        uint32_t words[kParts];
        split_pair(z[2 * i], z[2 * i + 1], words);
#pragma unroll
        for (uint32_t p = 0; p < kParts; p++) weights[i / 4][p][i % 4] = words[p];
    }
}

#ifndef MODEL1_EMULATE
// As `hold`: weights are in their registers before the products begin, and until they are done.
__device__ __forceinline__ void hold(Weights& weights) {
#pragma unroll
    for (uint32_t i = 0; i < kTokens / 4 * kParts; i++) asm volatile("" : "+r"((&weights[0][0][0])[i])::"memory");
}
#endif

template <uint32_t D>
__device__ __forceinline__ void add_up(float (&sums)[D / 2], const Weights& weights, const unsigned char* values) {
#pragma unroll
    for (uint32_t k = 0; k < kTokens / 16; k++) {
        const Operand rows = value_operand(values, k, Places<D>::kTile);
#pragma unroll
        for (int p = kParts - 1; p >= 0; p--) wgmma_rows(sums, weights[k][p], rows, Places<D>::kTile);
    }
}

// Writes the rows' outputs, or what this share of the keys gives.
template <uint32_t D>
__device__ __forceinline__ void write(const AttendArgs& a, const Work& work, uint32_t row0, Found<D>& found) {
    const uint32_t pair = threadIdx.x % 4 * 2;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        float sum = found.sum[h];
        sum += __shfl_xor_sync(kAll, sum, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        const uint32_t r = row_of(row0) + 8 * h;
        if (r >= work.count) continue;
        const size_t at = work.at(a, r);
        const bool whole = a.splits == 1;
        const float f = whole ? 1.0f / sum : 1.0f;
        float* to = whole ? a.out + at * D : a.partial + (at * a.splits + blockIdx.z) * (D + 4);
#pragma unroll
        for (uint32_t i = 0; i < D / 8; i++) {
            *(float2*)(to + 8 * i + pair) = make_float2(found.acc[4 * i + 2 * h] * f, found.acc[4 * i + 2 * h + 1] * f);
        }
        if (!whole && pair == 0) {
            to[D] = found.top[h];
            to[D + 1] = sum;
        }
    }
}

#ifdef MODEL1_EMULATE
template <uint32_t D>
inline void attend_wg(const AttendArgs& a) {
    typedef Places<D> Places;
    DYNAMIC_SHARED(memory);
    const Work work(a);
    if (work.count == 0) return;
    const uint32_t group = warp_number() / 4, row0 = group * kRows;
    unsigned char* queries = memory + group * Places::kQueries;
    Found<D> found = {{}, {kBelow, kBelow}, {0.0f, 0.0f}};
    if (group < kGroups) place_queries<D>(a, work, row0, queries);
    for (uint32_t tile = work.begin; tile < work.end; tile++) {
        unsigned char* buffer = Places::keys(memory, tile);
        if (group == kGroups) {
            bring<D>(a.sources[0].keys, work, tile, buffer);
            bring<D>(a.sources[0].values, work, tile, buffer + Places::kKeys);
        }
        __syncthreads();
        if (group < kGroups) {
            Scores z = {};
            Weights weights;
            float sums[D / 2] = {}, keep[2];
            score<D>(z, queries, buffer);
            weigh<D>(z, found, work, row0, tile, keep);
            fragments(z, weights);
            add_up<D>(sums, weights, buffer + Places::kKeys);
            found.take(sums, keep);
        }
        __syncthreads();
    }
    if (group < kGroups) write<D>(a, work, row0, found);
}
#else
template <uint32_t D>
__device__ __forceinline__ void attend_wg(const AttendArgs& a) {
    typedef Places<D> Places;
    DYNAMIC_SHARED(raw);
    unsigned char* memory = raw + (1023 & -(uint32_t)__cvta_generic_to_shared(raw));
    const uint32_t group = warp_number() / 4;
    // Of keys and of values: full, then free.
    const uint32_t full = (uint32_t)__cvta_generic_to_shared(memory) + Places::kBarriers, free = full + 8 * 2 * kBuffers;
    if (threadIdx.x == 0) {
#pragma unroll
        for (uint32_t i = 0; i < 2 * kBuffers; i++) {
            barrier_init(full + 8 * i, 128);
            barrier_init(free + 8 * i, kGroups * 4);
        }
    }
    __syncthreads();
    if (group == kGroups) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        const Work work(a);
        if (work.count == 0) return;
#pragma unroll 1
        for (uint32_t tile = work.begin; tile < work.end; tile++) {
            const uint32_t n = tile - work.begin, at = n % kBuffers;
            // The first round finds all buffers free.
            const uint32_t phase = (n / kBuffers & 1) ^ 1;
            unsigned char* buffer = Places::keys(memory, n);
            barrier_await(free + 16 * at, phase);
            bring<D>(a.sources[0].keys, work, tile, buffer);
            barrier_arrive_copied(full + 16 * at);
            barrier_await(free + 16 * at + 8, phase);
            bring<D>(a.sources[0].values, work, tile, buffer + Places::kKeys);
            barrier_arrive_copied(full + 16 * at + 8);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const Work work(a);
    if (work.count == 0) return;
    const uint32_t row0 = group * kRows;
    unsigned char* queries = memory + group * Places::kQueries;
    place_queries<D>(a, work, row0, queries);
    fence_products();
    if (group == 0) {
        asm volatile("bar.sync 1, 128;" ::: "memory");
    } else {
        asm volatile("bar.sync 2, 128;" ::: "memory");
    }
    Found<D> found = {{}, {kBelow, kBelow}, {0.0f, 0.0f}};
#pragma unroll 1
    for (uint32_t tile = work.begin; tile < work.end; tile++) {
        const uint32_t n = tile - work.begin, at = n % kBuffers, phase = n / kBuffers & 1;
        const unsigned char* buffer = Places::keys(memory, n);
        Scores z = {};
        barrier_await(full + 16 * at, phase);
        fence_products();
        hold(z);
        begin_products();
        score<D>(z, queries, buffer);
        close_products();
        await_products<0>();
        hold(z);
        if (threadIdx.x % 32 == 0) barrier_arrive(free + 16 * at);
        float keep[2];
        weigh<D>(z, found, work, row0, tile, keep);
        Weights weights;
        fragments(z, weights);
        float sums[D / 2] = {};
        barrier_await(full + 16 * at + 8, phase);
        fence_products();
        hold(sums);
        hold(weights);
        begin_products();
        add_up<D>(sums, weights, buffer + Places::kKeys);
        close_products();
        await_products<0>();
        hold(sums);
        hold(weights);
        if (threadIdx.x % 32 == 0) barrier_arrive(free + 16 * at + 8);
        found.take(sums, keep);
    }
    write<D>(a, work, row0, found);
}
#endif

// grid (key heads, runs of 128 rows, shares of the keys), 384 threads
KERNEL(attend_wg_64, AttendArgs, 384) { attend_wg<64>(a); }
KERNEL(attend_wg_128, AttendArgs, 384) { attend_wg<128>(a); }
#endif
