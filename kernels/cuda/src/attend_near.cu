// Attention of one token with heads of 512 values over one key head, its keys split over eight blocks that see each other's shared
// memory. Two heads per cluster, on tensor cores: a block has its keys in shared memory as they lie in the cache, all on their way at
// once, those that earlier steps left since before the launch before this one has ended. Of scores and of values each of its warps
// has 64 columns, which have one scale each where keys are e4m3. What meets a key, the queries and later the keys' weights, is split
// into three parts, so that products are as good as those of f32: two heads with three parts are the columns of a fragment. Each
// block then puts an eighth of both heads together.
#include "attend_keys.cuh"

#if FROM_HOPPER
#include "barriers.cuh"
#include "cluster.cuh"
#include "each.cuh"
#include "gemv_halves.cuh"
#include "mma.cuh"

// Blocks of a cluster, heads; values of a head, of a warp; keys of a tile, most at a time (NEAR, NEAR_HEADS, NEAR_TILE, MOST_ROWS in
// ../ops/attend/row.rs).
constexpr uint32_t kNear = 8, kNearHeads = 2, kNearDim = 512, kNearColumns = 64, kNearTile = 16, kNearTiles = 5;
constexpr uint32_t kNearWarps = kNearDim / kNearColumns, kNearRows = kNearTiles * kNearTile;

// How a record lies in shared memory, its scales behind it and rows of eight in no bank twice; columns before the bf16 ones, in e4m3
// (the places of scales).
struct NearBf16 {
    static constexpr uint32_t RECORD = 1024, SCALES = 0, BYTES = 1040, NOPE = 0;
};
struct NearFp8 {
    static constexpr uint32_t RECORD = 576, SCALES = 8, BYTES = 592, NOPE = 448;
};

// What the blocks of a cluster push to each other: of the columns that the block puts together a share's sums, neighbours side by
// side, its largest score (a logarithm to base 2) and its denominator.
struct NearShares {
    float2 v[kNear][kNearHeads][kNearColumns / 2];
    float best[kNear][kNearHeads], all[kNear][kNearHeads];
};

struct NearShared {
    NearShares shares;
    KeySpan spans[kSources];
    uint64_t ready[kNearTiles];
    float squares[kNearWarps][kNearHeads];
    float tops[kNearHeads][kNearWarps / kNearHeads];
    float2 turns[256];
    uint32_t there[kNearRows];
};

// Word `part` of those of a pair of numbers, 0 for the fourth.
__device__ __forceinline__ uint32_t near_word(const uint32_t (&words)[3], uint32_t part) {
    return part == 0 ? words[0] : part == 1 ? words[1] : part == 2 ? words[2] : 0u;
}

// Two numbers in three f16 parts.
__device__ __forceinline__ void split_halves(float a, float b, uint32_t (&words)[3]) {
#pragma unroll
    for (uint32_t p = 0; p < 3; p++) {
        words[p] = f16_words(a, b);
        const float2 v = f16_pair(words[p]);
        a -= v.x;
        b -= v.y;
    }
}

// A power of two that brings what is at most about 2^(exponent - 127) to f16's upper end, and its inverse. Exponents as they lie in a
// f32 number.
__device__ __forceinline__ float2 near_range(uint32_t exponent) {
    exponent = max(exponent, 15u);
    return make_float2(__uint_as_float((268u - exponent) << 23), __uint_as_float((exponent - 14u) << 23));
}

// A warp's 64 columns of a block's keys, and what belongs to them. Lane 4 g + t has column g of fragments that meet keys: part g / 2 of
// head g % 2.
template <class K>
struct NearColumns {
    const unsigned char* ring;
    uint32_t warp, lane, at;  // bytes of a record before its columns, of which an e4m3 one is one
    bool half;                // they are e4m3
    uint32_t q[4][2];
    float down;        // of q
    uint32_t largest;  // scale of the keys of a round
    float acc[4][4];

    __device__ __forceinline__ void begin(const unsigned char* memory) {
        ring = memory;
        warp = warp_number();
        lane = threadIdx.x & 31;
        half = false;
        if constexpr (K::NOPE != 0) half = warp * kNearColumns < K::NOPE;
        at = half ? warp * kNearColumns : K::NOPE + 2 * (warp * kNearColumns - K::NOPE);
        down = 1.0f;
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) acc[i / 4][i % 4] = 0.0f;
    }
    __device__ __forceinline__ uint32_t part() const { return lane / 4 / kNearHeads; }
    __device__ __forceinline__ uint32_t head() const { return lane / 4 % kNearHeads; }

    // First of the two columns of word e of q[k].
    __device__ __forceinline__ uint32_t column(uint32_t k, uint32_t e) const {
        return warp * kNearColumns + 16 * k + lane % 4 * (half ? 4 : 2) + e * (half ? 2 : 8);
    }
    __device__ __forceinline__ void ask(const AttendArgs& a, uint32_t at0, float2 (&x)[4][2]) const {
        const float* const from = a.q + (size_t)(at0 + head()) * kNearDim;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) x[i / 2][i % 2] = *(const float2*)(from + column(i / 2, i % 2));
    }
    // Rotates the queries; norm and scale multiply the scores. Returns the squares of the warp's columns.
    __device__ __forceinline__ float prepare(const AttendArgs& a, const float2* turns, float2 (&x)[4][2]) {
        float square = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            float2& v = x[i / 2][i % 2];
            square += v.x * v.x + v.y * v.y;
            if (a.prepare == 0 || !turns_column(a, column(i / 2, i % 2))) continue;
            // The other way round than what comes out.
            const float2 t = turns[(column(i / 2, i % 2) - a.turn_offset) / 2];
            v = make_float2(v.x * t.y + v.y * t.x, v.y * t.y - v.x * t.x);
        }
        float up = 1.0f;
        if (half) {
            uint32_t top = 0;
#pragma unroll
            for (uint32_t i = 0; i < 8; i++) top = max(top, max(magnitude(x[i / 2][i % 2].x), magnitude(x[i / 2][i % 2].y)));
            const float2 range = near_range(warp_reduce(top, Largest()) >> 23);
            up = range.x;
            down = range.y * HalfF8::NUMBER;
        }
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const float2 v = x[i / 2][i % 2];
            uint32_t words[3];
            if (half) split_halves(v.x * up, v.y * up, words);
            else split_pair<3>(v.x, v.y, words);
            q[i / 2][i % 2] = near_word(words, part());
        }
        square += __shfl_xor_sync(kAll, square, 1);
        return square + __shfl_xor_sync(kAll, square, 2);
    }

    // Row of a tile that this lane names for `load_matrices`, whose matrices go first to the tile's lower half where `below` is 0.
    __device__ __forceinline__ const unsigned char* row(uint32_t tile, uint32_t below) const {
        return ring + (size_t)(tile * kNearTile + lane % 8 + 8 * below) * K::BYTES + at;
    }
    // The scores of a tile's keys: of key g, head 0 and head 1, and of key g + 8; sums of all parts, in every lane of four.
    __device__ __forceinline__ float4 scores(uint32_t tile) {
        float d[2][4] = {};
        uint32_t r[4];
        const unsigned char* const from = row(tile, lane / 8 % 2);
        if (half) {
#pragma unroll
            for (uint32_t c = 0; c < 2; c++) {
                load_matrices(r, (const uint32_t*)(from + 32 * c + 16 * (lane / 16)));
#pragma unroll
                for (uint32_t i = 0; i < 2; i++) {
                    uint32_t h[4];
                    HalfF8::halves(r, i, h);
                    const uint32_t keys[4] = {h[0], h[2], h[1], h[3]};
                    mma_f16(d[i], keys, q[2 * c + i]);
                }
            }
        } else {
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                load_matrices(r, (const uint32_t*)(from + 32 * k + 16 * (lane / 16)));
                mma(d[k % 2], r, q[k]);
            }
        }
        float z[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            z[i] = d[0][i] + d[1][i];
            z[i] += __shfl_xor_sync(kAll, z[i], 1);
            z[i] += __shfl_xor_sync(kAll, z[i], 2);
        }
        if (!half) return make_float4(z[0], z[1], z[2], z[3]);
        const unsigned char* const scales = ring + (size_t)(tile * kNearTile + lane / 4) * K::BYTES + K::RECORD + warp;
        const uint32_t one = scales[0], other = scales[8 * K::BYTES];
        largest = max(largest, max(one, other));
        const float f = ue8m0_to_f32(one) * down, g = ue8m0_to_f32(other) * down;
        return make_float4(z[0] * f, z[1] * f, z[2] * g, z[3] * g);
    }

    // The scores of two tiles' keys (the second one may be the first), left at [heads][rows] of the warp's.
    __device__ __forceinline__ void leave_scores(float* to, uint32_t rows, uint32_t tile, uint32_t next) {
        const float4 z[2] = {scores(tile), scores(next)};
        const uint32_t g = lane / 4, t = lane % 4, number[2] = {tile, next};
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            to[t / 2 * rows + number[i] * kNearTile + g + 8 * (t % 2)] = t == 0 ? z[i].x : t == 1 ? z[i].z : t == 2 ? z[i].y : z[i].w;
        }
    }

    // Adds a round's values, weighted by what their scores at [tiles][16] of the lane's head come to above `top`; returns the sum of
    // the lane's weights. `keep`: what multiplies head 0's and head 1's sums so far. A loop: kernels of this size wait for their
    // instructions.
    __device__ __forceinline__ float add(uint32_t tiles, const float* from, float top, float2 keep) {
        float d[4][4] = {}, all = 0.0f;
        const float2 range = near_range(largest);
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile++) {
            uint32_t b[2], words[2][3], r[4];
            // Keys 2t, 2t + 1, 2t + 8 and 2t + 9.
            const float* const z = from + tile * kNearTile + 2 * (lane % 4);
            const float2 low = *(const float2*)z, high = *(const float2*)(z + 8);
            float4 v = make_float4(weight_of_log2(low.x, top), weight_of_log2(low.y, top), weight_of_log2(high.x, top), weight_of_log2(high.y, top));
            all += (v.x + v.y) + (v.z + v.w);
            if (half) {
                const unsigned char* const scales = ring + (size_t)(tile * kNearTile + 2 * (lane % 4)) * K::BYTES + K::RECORD + warp;
                const auto scale = [&](uint32_t key) { return ue8m0_to_f32(scales[key * K::BYTES]) * range.x; };
                v = make_float4(v.x * scale(0), v.y * scale(1), v.z * scale(8), v.w * scale(9));
                split_halves(v.x, v.y, words[0]);
                split_halves(v.z, v.w, words[1]);
            } else {
                split_pair<3>(v.x, v.y, words[0]);
                split_pair<3>(v.z, v.w, words[1]);
            }
            b[0] = near_word(words[0], part());
            b[1] = near_word(words[1], part());
            if (half) {
#pragma unroll
                for (uint32_t c = 0; c < 2; c++) {
                    load_matrices_turned(r, (const uint32_t*)(row(tile, lane / 8 % 2) + 32 * c + 16 * (lane / 16)));
                    // Codes 2g and 2g + 1 of two keys: those of one column side by side.
#pragma unroll
                    for (uint32_t i = 0; i < 4; i++) r[i] = __byte_perm(r[i], 0, 0x3120);
#pragma unroll
                    for (uint32_t i = 0; i < 2; i++) {
                        uint32_t values[4];
                        HalfF8::halves(r, i, values);
                        mma_f16(d[2 * c + i], values, b);
                    }
                }
            } else {
#pragma unroll
                for (uint32_t m = 0; m < 4; m++) {
                    load_matrices_turned(r, (const uint32_t*)(row(tile, lane / 16) + 32 * m + 16 * (lane / 8 % 2)));
                    mma(d[m], r, b);
                }
            }
        }
        const float f = half ? range.y * HalfF8::NUMBER : 1.0f;
#pragma unroll
        for (uint32_t i = 0; i < 16; i++) acc[i / 4][i % 4] = acc[i / 4][i % 4] * (i % 2 == 0 ? keep.x : keep.y) + d[i / 4][i % 4] * f;
        all += __shfl_xor_sync(kAll, all, 1);
        return all + __shfl_xor_sync(kAll, all, 2);
    }

    // The sums of two neighbouring columns, head 0's and head 1's, and which pair of the warp's they are.
    __device__ __forceinline__ float4 end(uint32_t* pair) const {
        const uint32_t g = lane / 4, t = lane % 4;
        // Over the four lanes of g; lane t keeps fragment t.
        float some[2][4], v[4];
        const bool odd = t % 2 != 0, high = t / 2 != 0;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) {
            const float even_ones = acc[2 * (i / 4)][i % 4], odd_ones = acc[2 * (i / 4) + 1][i % 4];
            some[i / 4][i % 4] = (odd ? odd_ones : even_ones) + __shfl_xor_sync(kAll, odd ? even_ones : odd_ones, 1);
        }
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) v[i] = (high ? some[1][i] : some[0][i]) + __shfl_xor_sync(kAll, high ? some[0][i] : some[1][i], 2);
        *pair = 8 * t + g;
        if (half) return make_float4(v[0], v[2], v[1], v[3]);
        // Columns g and g + 8: the lane of g ^ 1 has their neighbours.
        const bool upper = g % 2 != 0;
        const float x = __shfl_xor_sync(kAll, upper ? v[0] : v[2], 4), y = __shfl_xor_sync(kAll, upper ? v[1] : v[3], 4);
        *pair = 8 * t + g / 2 + (upper ? 4 : 0);
        return upper ? make_float4(x, v[2], y, v[3]) : make_float4(v[0], x, v[1], y);
    }
};

// Heads 2 blockIdx.y and the next of token 0; share blockIdx.z of the keys.
template <class K>
__device__ __forceinline__ void attend_near(const AttendArgs& a) {
    DYNAMIC_SHARED(memory);
    __shared__ NearShared s;
    // Threads that keep blocks apart (`Launch::apart`).
    if (threadIdx.x >= 32 * kNearWarps) return;
    NearColumns<K> mine;
    mine.begin((const unsigned char*)memory);
    const uint32_t warp = mine.warp, lane = mine.lane, at0 = blockIdx.y * kNearHeads, rows = a.rows;
    float* const parts = (float*)((unsigned char*)memory + rows * K::BYTES);  // [warps][heads][rows] scores
    cluster_arrive();
    touch_parameters(a);
    if (threadIdx.x < kSources && threadIdx.x < a.n_sources) s.spans[threadIdx.x] = key_span(a, a.sources[threadIdx.x], *a.step, 0);
    make_turns(a, s.turns, a.step->position);
#ifndef MODEL1_EMULATE
    if (threadIdx.x < kNearTiles) {
        barrier_init(barrier_at(s.ready[threadIdx.x]), kNearTile * (K::SCALES != 0 ? 2 : 1));
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
#endif
    __syncthreads();
    // The cluster's blocks take keys in turns, so that each has as many of the window and of the others.
    const uint32_t first = s.spans[0].count, total = first + (a.n_sources > 1 ? s.spans[1].count : 0);
    const uint32_t count = total > blockIdx.z ? (total - blockIdx.z + kNear - 1) / kNear : 0;

    // Row r of a round is the lane's, r = 8 lane + warp: brings those from row `base` of the block's on, `late` or as far as they are
    // known before the predecessor has ended (not: a choice, and what this step stores). All of a tile's rows arrive; what stands in
    // those without a key must be numbers.
    const uint32_t own = lane * kNearWarps + warp;
    bool asked = false;
    const auto bring = [&](uint32_t base, bool late) {
        const uint32_t left = min(count - base, rows), i = base + own, j = blockIdx.z + i * kNear;
        const KeySpan& span = s.spans[j >= first ? 1 : 0];
        bool now = !asked && own < (left + kNearTile - 1) / kNearTile * kNearTile;
        int32_t slot = -1;
        if (now && own < left) {
            const uint32_t k = j >= first ? j - first : j;
            if (!late && (span.selection != nullptr || k + 1 == span.count)) now = false;
            else slot = span.selection != nullptr ? span.selection[k] : (int32_t)span.nth(k);
        }
        const bool there = now && slot >= 0;
        uint32_t empty = __ballot_sync(kAll, now && !there ? 1 : 0);
        while (empty != 0) {
            const uint32_t r = (uint32_t)(__ffs((int)empty) - 1);
            empty &= empty - 1;
            uint4* const to = (uint4*)((unsigned char*)memory + (size_t)(r * kNearWarps + warp) * K::BYTES);
            for (uint32_t n = lane; n < K::BYTES / 16; n += 32) to[n] = make_uint4(0, 0, 0, 0);
        }
        __syncwarp();
        if (!now) return;
        asked = true;
        s.there[own] = there ? 1 : 0;
        [[maybe_unused]] const uint32_t barrier = barrier_at(s.ready[own / kNearTile]);
        if (!there) {
#ifndef MODEL1_EMULATE
            barrier_arrive(barrier);
            if constexpr (K::SCALES != 0) barrier_arrive(barrier);
#endif
            return;
        }
        const uint32_t at = span.within((uint32_t)slot);
        const uint8_t *record = span.keys + (size_t)at * span.row_bytes, *scales = span.key_scales + (size_t)at * span.scale_row;
        unsigned char* const to = (unsigned char*)memory + (size_t)own * K::BYTES;
#ifdef MODEL1_EMULATE
        memcpy(to, record, K::RECORD);
        memcpy(to + K::RECORD, scales, K::SCALES);
#else
        barrier_expect(barrier, K::RECORD);
        copy_whole(to, record, K::RECORD, barrier);
        if constexpr (K::SCALES != 0) {
            const uint32_t place = (uint32_t)__cvta_generic_to_shared(to + K::RECORD);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(place), "l"(scales) : "memory");
            barrier_arrive_copied(barrier);
        }
#endif
    };
    if (count != 0) bring(0, false);
    const bool ends = warp < kNearHeads;
    const float sink = ends && a.sinks.data != nullptr ? vector_at(a.sinks, at0 + warp) * kLog2e : kLowest;
    cluster_wait();
    await_predecessor();
    float best = kLowest, sum = 0.0f;
#pragma unroll 1
    for (uint32_t base = 0, round = 0; base < count; base += rows, round++) {
        const uint32_t tiles = (min(count - base, rows) + kNearTile - 1) / kNearTile;
        if (round != 0) {
            // Nobody looks at the keys before any more.
            __syncthreads();
#ifndef MODEL1_EMULATE
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
            asked = false;
        }
        bring(base, true);
        if (round == 0) {
            float2 x[4][2];
            mine.ask(a, at0, x);
            const float square = mine.prepare(a, s.turns, x);
            if (lane % 4 == 0 && lane < 4 * kNearHeads) s.squares[warp][lane / 4] = square;
        }
#ifdef MODEL1_EMULATE
        __syncthreads();
#else
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile++) barrier_await(barrier_at(s.ready[tile]), round & 1u);
#endif
        mine.largest = 0;
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile += 2) {
            mine.leave_scores(parts + warp * kNearHeads * rows, rows, tile, min(tile + 1, tiles - 1));
        }
        if (mine.half) {
#pragma unroll
            for (uint32_t m = 4; m < 32; m <<= 1) mine.largest = max(mine.largest, __shfl_xor_sync(kAll, mine.largest, (int)m));
        }
        __syncthreads();
        // A thread per score: the columns' together.
        {
            const uint32_t head = warp / (kNearWarps / kNearHeads), key = threadIdx.x % (32 * kNearWarps / kNearHeads);
            float score = kLowest;
            if (key < tiles * kNearTile) {
                float z = 0.0f, squares = 0.0f;
#pragma unroll
                for (uint32_t w = 0; w < kNearWarps; w++) {
                    z += parts[(w * kNearHeads + head) * rows + key];
                    squares += s.squares[w][head];
                }
                const float f = a.scale * kLog2e * (a.prepare != 0 ? rsqrtf(squares / (float)kNearDim + a.q_eps) : 1.0f);
                const bool there = s.there[key] != 0;
                parts[head * rows + key] = there ? z * f : -INFINITY;
                if (there) score = fmaxf(score, z * f);
            }
            score = warp_max(score);
            if (lane == 0) s.tops[head][warp % (kNearWarps / kNearHeads)] = score;
        }
        __syncthreads();
        float top = best;
#pragma unroll
        for (uint32_t i = 0; i < kNearWarps / kNearHeads; i++) top = fmaxf(top, s.tops[mine.head()][i]);
        const float keep = weight_of_log2(best, top);
        best = top;
        const float other = __shfl_xor_sync(kAll, keep, 4);
        const float2 both = mine.head() == 0 ? make_float2(keep, other) : make_float2(other, keep);
        sum = sum * keep + mine.add(tiles, parts + mine.head() * rows, top, both);
    }
    uint32_t pair;
    const float4 share = mine.end(&pair);
    near_store(&s.shares.v[blockIdx.z][0][pair], warp, make_float2(share.x, share.y));
    near_store(&s.shares.v[blockIdx.z][1][pair], warp, make_float2(share.z, share.w));
    if (lane % 4 == 0 && lane < 4 * kNearHeads) {
        near_store(&s.shares.best[blockIdx.z][lane / 4], warp, best);
        near_store(&s.shares.all[blockIdx.z][lane / 4], warp, sum);
    }
    cluster_arrive();
    cluster_wait();
    if (!ends) return;
    // A warp per head, a lane per pair of columns.
    float largest = sink;
#pragma unroll
    for (uint32_t b = 0; b < kNear; b++) largest = fmaxf(largest, s.shares.best[b][warp]);
    float2 v = make_float2(0.0f, 0.0f);
    float all = sink == kLowest ? 0.0f : weight_of_log2(sink, largest);
#pragma unroll
    for (uint32_t b = 0; b < kNear; b++) {
        // A share without keys weighs nothing.
        const float f = weight_of_log2(s.shares.best[b][warp], largest);
        const float2 part = s.shares.v[b][warp][lane];
        all += s.shares.all[b][warp] * f;
        v = make_float2(v.x + part.x * f, v.y + part.y * f);
    }
    const float f = all > 0.0f ? 1.0f / all : 0.0f;
    v = make_float2(v.x * f, v.y * f);
    const uint32_t column = blockIdx.z * kNearColumns + 2 * lane;
    if (turns_column(a, column)) {
        const float2 t = s.turns[(column - a.turn_offset) / 2];
        v = make_float2(v.x * t.y - v.y * t.x, v.x * t.x + v.y * t.y);
    }
    *(float2*)(a.out + (size_t)(at0 + warp) * kNearDim + column) = v;
}

// grid (1, query heads / 2, 8), in clusters of 8 shares, 256 threads (and more that end at once), or (sequences, ...) for `_each`;
// shared: `NearShape::bytes` in ../ops/attend/row.rs. They begin beside blocks of products (held_near.cu), and those of the next launch
// (pair_near.cu) begin beside them: as few registers as do without local memory.
#define ATTEND_NEAR(format, Record, attribute)                                                                    \
    CLUSTER_KERNEL(attend_near_512x2_##format, AttendArgs, 1, 1, kNear, attribute) { attend_near<Record>(a); }    \
    CLUSTER_KERNEL(attend_near_512x2_##format##_each, Each<AttendArgs>, 1, 1, kNear, __launch_bounds__(256, 1)) { \
        attend_near<Record>(a.of[blockIdx.x]);                                                                    \
    }

ATTEND_NEAR(bf16, NearBf16, __launch_bounds__(512, 1))
ATTEND_NEAR(fp8, NearFp8, __maxnreg__(104))
#endif
