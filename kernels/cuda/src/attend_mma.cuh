// Attention on tensor cores: rows of queries (a head of a token each, heads that share their keys side by side) against
// tiles of keys in shared memory as bf16, which holds bf16, e4m3 and e2m1 with their scales exactly. Queries and weights
// are split into P bf16 parts: with two, outputs differ from those of f32 products by 3e-6 of their size, as much as f32 sums
// in another order do. The softmax is kept online, scores never leave the block. A tile has rows of one source.
#pragma once

#include "attend.cuh"
#include "mma.cuh"

// Below every score; finite, so that differences are never NaN.
constexpr float kBelow = -1e30f;
// A row that is none: behind every row a query sees.
constexpr int32_t kNoRow = 0x7fffffff;
constexpr uint32_t kNoSlot = 0xffffffffu;
// Tiles whose rows are remembered; most shares that the last block puts together.
constexpr uint32_t kLists = 4, kFolded = 32;

// The query rows of a block: numbers token * group + head, up to M of them.
struct QueryRows {
    uint32_t group, kv, first, count;

    __device__ __forceinline__ uint32_t token(uint32_t r) const { return (first + min(r, count - 1)) / group; }
    // Index of (token, head) in [tokens, heads].
    __device__ __forceinline__ size_t at(const AttendArgs& a, uint32_t r) const {
        const uint32_t row = first + r;
        return (size_t)(row / group) * a.heads + kv * group + row % group;
    }
};

// grid.x counts runs of `most` rows; of one token each where `block_tokens` is 1; `block_heads` share their keys. Count 0 =
// nothing to do.
__device__ __forceinline__ QueryRows query_rows(const AttendArgs& a, const DevStep& step, uint32_t most) {
    QueryRows q;
    q.group = a.block_heads;
    q.kv = blockIdx.y;
    uint32_t end = step.tokens * q.group;
    q.first = blockIdx.x * most;
    if (a.block_tokens == 1) {
        const uint32_t runs = (q.group + most - 1) / most, token = blockIdx.x / runs;
        q.first = token * q.group + blockIdx.x % runs * most;
        end = min(end, (token + 1) * q.group);
    }
    q.count = q.first < end ? min(most, end - q.first) : 0;
    return q;
}

// Rows of a source that some token of a block sees: `kept` first ones, then all from `start` on; or a token's choice.
struct Span {
    const int32_t* chosen;
    int32_t start, kept, count;
};

// Rows that one token sees: below `end`, and from `start` on or below `kept`.
struct Sight {
    int32_t start, end, kept;

    __device__ __forceinline__ bool sees(int32_t row) const { return row < end && (row >= start || row < kept); }
};

__device__ __forceinline__ Sight sight_of(const AttendArgs& a, const Source& s, const DevStep& step, uint32_t token) {
    const uint64_t t = step.position + token;
    if (s.selection != nullptr) return {0, kNoRow, 0};
    if (s.kind == kCompressed) return {0, (int32_t)rows_visible(step, s.rate, token), 0};
    const bool sliding = s.kind == kCausal && a.mask == kSliding;
    if (!sliding && s.kind == kCausal) return {0, (int32_t)t + 1, 0};
    return {(int32_t)window_start(t, sliding ? a.window : s.window), (int32_t)t + 1, sliding ? (int32_t)a.first : 0};
}

__device__ __forceinline__ Span span_of(const AttendArgs& a, const Source& s, const DevStep& step, uint32_t first,
                                        uint32_t last) {
    if (s.selection != nullptr) {
        const int32_t most = (int32_t)min(rows_visible(step, s.rate, last), (uint64_t)s.k);
        return {s.selection + (size_t)last * s.k, 0, 0, most};
    }
    const Sight one = sight_of(a, s, step, first), other = sight_of(a, s, step, last);
    const int32_t kept = min(one.kept, one.start);
    return {nullptr, one.start, kept, kept + other.end - one.start};
}

// A block's share of the keys, in tiles of KT rows that pass through two buffers; with values beside them where they are
// kept apart. What all threads of the block know of it lies in shared memory: registers are for sums.
template <uint32_t D, uint32_t KT, uint32_t THREADS, uint32_t M>
struct KeyTiles {
    // Words per row: rows of a fragment in different banks.
    static constexpr uint32_t PITCH = D / 2 + 4, TILE = KT * PITCH, EIGHTS = D / 8;
    struct Shared {
        int32_t rows[kLists][KT];  // of the last tiles
        uint32_t slots[kLists][KT];
        Sight sights[kSources][M];
        Span spans[kSources];
        uint32_t whole[kLists];
        uint32_t begin, middle, end, tiles0, tiles, separate, used;
    };

    const AttendArgs& a;
    Shared& s;
    uint32_t* data;  // [2][keys, values][KT][PITCH]
    uint32_t kv;
    int32_t coming;  // this thread's row of the tile after the next: what tokens choose is asked for early

    // By all threads of the block; reads nothing that the predecessor writes.
    __device__ __forceinline__ KeyTiles(const AttendArgs& args, Shared& shared, uint32_t* buffers, const DevStep& step,
                                        const QueryRows& q)
        : a(args), s(shared), data(buffers), kv(q.kv), coming(kNoRow) {
        for (uint32_t n = threadIdx.x; n < a.n_sources * M; n += THREADS) {
            s.sights[n / M][n % M] = sight_of(a, a.sources[n / M], step, q.token(n % M));
        }
        if (threadIdx.x == 0) divide(step, q);
        __syncthreads();
    }

    // Waits until tile i is there for all and nobody reads the one before any more; begins to bring tile i + 1. First called
    // for tile -1, which is none, so that this code is there once. (Six buffers instead of two gained nothing in decoding: a
    // block waits for its own instructions.)
    __device__ __forceinline__ void next(int32_t i) {
        const uint32_t ahead = (uint32_t)(i + 1);
        if (ahead == 0) coming = look(0);
        await_copies<0>();
        note(ahead);
        __syncthreads();
        bring(ahead);
        coming = look(ahead + 1);
    }

    // Whether the block has no share, and nobody waits for one.
    __device__ __forceinline__ bool idle() const { return a.fold != 0 && blockIdx.z >= s.used; }
    __device__ __forceinline__ uint32_t source(uint32_t i) const { return i < s.tiles0 ? 0 : 1; }
    __device__ __forceinline__ const Sight& sight(uint32_t i, uint32_t row) const { return s.sights[source(i)][row]; }
    __device__ __forceinline__ const int32_t* rows(uint32_t i) const { return s.rows[i % kLists]; }
    __device__ __forceinline__ uint32_t* keys(uint32_t i) const {
        return data + i % 2 * (s.separate != 0 ? 2 * TILE : TILE);
    }
    __device__ __forceinline__ const uint32_t* values(uint32_t i) const {
        return keys(i) + (s.separate != 0 ? TILE : 0);
    }
    // Whether every query of the block sees all rows of tile i.
    __device__ __forceinline__ bool whole(uint32_t i) const { return s.whole[i % kLists] != 0; }

  private:
    __device__ __forceinline__ void divide(const DevStep& step, const QueryRows& q) {
        uint32_t total = 0;
        s.separate = 0;
        s.middle = 0;
#pragma unroll 1
        for (uint32_t i = 0; i < a.n_sources; i++) {
            if (a.sources[i].keys.data != a.sources[i].values.data) s.separate = 1;
            const Span span = span_of(a, a.sources[i], step, q.token(0), q.token(q.count - 1));
            s.spans[i] = span;
            total += (uint32_t)span.count;
            if (i == 0) s.middle = total;
        }
        const uint32_t share = (total + a.splits - 1) / a.splits, per = max((share + 15) / 16 * 16, KT);
        const uint32_t begin = min(blockIdx.z * per, total), end = min(begin + per, total), middle = s.middle;
        const uint32_t tiles0 = begin < middle ? (min(end, middle) - begin + KT - 1) / KT : 0;
        s.used = max((total + per - 1) / per, 1u);
        s.begin = begin;
        s.end = end;
        s.tiles0 = tiles0;
        s.tiles = tiles0 + (end > middle ? (end - max(begin, middle) + KT - 1) / KT : 0);
    }
    // Where tile i begins in its source's list, and where its share ends there.
    __device__ __forceinline__ uint2 range(uint32_t i) const {
        if (i < s.tiles0) return make_uint2(s.begin + i * KT, min(s.end, s.middle));
        return make_uint2(max(s.begin, s.middle) - s.middle + (i - s.tiles0) * KT, s.end - s.middle);
    }
    __device__ __forceinline__ static int32_t row(const Span& span, uint32_t j) {
        if (span.chosen != nullptr) return span.chosen[j] < 0 ? kNoRow : span.chosen[j];
        return (int32_t)j < span.kept ? (int32_t)j : span.start + (int32_t)j - span.kept;
    }

    // This thread's row of tile i: asked for long before it is written down.
    __device__ __forceinline__ int32_t look(uint32_t i) const {
        if (i >= s.tiles || threadIdx.x >= KT) return kNoRow;
        const uint2 at = range(i);
        const uint32_t j = at.x + threadIdx.x;
        return j < at.y ? row(s.spans[source(i)], j) : kNoRow;
    }
    // Writes down the rows of tile i.
    __device__ __forceinline__ void note(uint32_t i) {
        if (i >= s.tiles || threadIdx.x >= KT) return;
        s.rows[i % kLists][threadIdx.x] = coming;
        s.slots[i % kLists][threadIdx.x] =
            coming == kNoRow ? kNoSlot : (uint32_t)cache_slot(a.sources[source(i)].keys, (uint64_t)coming);
        if (threadIdx.x > 0) return;
        const Span& span = s.spans[source(i)];
        const uint2 at = range(i);
        const bool all = span.chosen == nullptr && (int32_t)at.x >= span.kept && at.x + KT <= at.y &&
                         coming >= sight(i, M - 1).start && coming + (int32_t)KT <= sight(i, 0).end;
        s.whole[i % kLists] = all ? 1 : 0;
    }

    // Begins to bring tile i, whose rows are written down.
    __device__ __forceinline__ void bring(uint32_t i) {
        if (i < s.tiles) {
            const Source& from = a.sources[source(i)];
            uint32_t* to = keys(i);
#pragma unroll 1
            for (uint32_t part = 0; part <= s.separate; part++) {
                const CacheRef& c = part == 0 ? from.keys : from.values;
                if (c.format == kCacheBf16) {
                    copy(c, i, to + part * TILE, threadIdx.x % EIGHTS * 16);
                } else if (c.format == kCacheFp4) {
                    convert<true>(c, i, to + part * TILE);
                } else {
                    convert<false>(c, i, to + part * TILE);
                }
            }
        }
        close_copies();
    }

    // Every thread has the same eight columns of every ROWS-th row.
    static constexpr uint32_t ROWS = THREADS / EIGHTS;

    // Eight bf16 numbers of every row, `offset` bytes from where a record begins.
    __device__ __forceinline__ void copy(const CacheRef& c, uint32_t i, uint32_t* to, uint32_t offset) {
        const uint32_t* slots = s.slots[i % kLists] + threadIdx.x / EIGHTS;
        const uint8_t* data = c.data + kv * c.data_bytes + offset;
        const uint32_t stride = c.records * c.data_bytes;
        to += threadIdx.x / EIGHTS * PITCH + threadIdx.x % EIGHTS * 4;
#pragma unroll
        for (uint32_t r = 0; r < KT; r += ROWS) {
            const uint32_t slot = slots[r];
            copy_async(to + r * PITCH, data + (size_t)(slot == kNoSlot ? 0 : slot) * stride, slot != kNoSlot);
        }
    }

    // Eight codes of every row, of four bits or of eight: all are on their way before the first becomes bf16.
    template <bool FOUR>
    __device__ __forceinline__ void convert(const CacheRef& c, uint32_t i, uint32_t* to) {
        constexpr uint32_t N = KT / ROWS;
        const uint32_t column = threadIdx.x % EIGHTS * 8, plain = c.width - c.rope;
        if (!FOUR && column >= plain) return copy(c, i, to, 2 * column - plain);
        const uint32_t* slots = s.slots[i % kLists] + threadIdx.x / EIGHTS;
        const uint8_t* data = c.data + kv * c.data_bytes + (FOUR ? column / 2 : column);
        const uint8_t* scales = c.scales + kv * c.scale_bytes + column / (FOUR ? 32 : 64);
        const uint32_t stride = c.records * c.data_bytes, scale_stride = c.records * c.scale_bytes;
        to += threadIdx.x / EIGHTS * PITCH + column / 2;
        uint2 codes[N];
        uint32_t factors[N];
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            const uint32_t slot = slots[n * ROWS];
            const size_t row = slot == kNoSlot ? 0 : slot;
            const uint8_t* from = data + row * stride;
            codes[n] = FOUR ? make_uint2(*(const uint32_t*)from, 0) : *(const uint2*)from;
            factors[n] = scales[row * scale_stride];
        }
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            const uint32_t factor = ue8m0_pair(factors[n]), four = codes[n].x;
            uint4 words;
            if (FOUR) {
                words = make_uint4(e2m1_pair(four & 255u, factor), e2m1_pair(four >> 8 & 255u, factor),
                                   e2m1_pair(four >> 16 & 255u, factor), e2m1_pair(four >> 24, factor));
            } else {
                const uint2 first = e4m3_pairs(four, factor), second = e4m3_pairs(codes[n].y, factor);
                words = make_uint4(first.x, first.y, second.x, second.y);
            }
            if (slots[n * ROWS] == kNoSlot) words = make_uint4(0, 0, 0, 0);
            *(uint4*)(to + n * ROWS * PITCH) = words;
        }
    }
};

// Queries r and r + 8 of a fragment, columns from `column` on, in parts.
template <uint32_t P>
__device__ __forceinline__ void load_query(const AttendArgs& a, const QueryRows& q, uint32_t r, uint32_t column,
                                           uint32_t (&parts)[P][4]) {
#pragma unroll
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t row = r + i % 2 * 8;
        float2 v = make_float2(0.0f, 0.0f);
        if (row < q.count) v = *(const float2*)(a.q + q.at(a, row) * a.head_dim + column + i / 2 * 8);
        uint32_t words[P];
        split_pair(v.x * a.scale, v.y * a.scale, words);
#pragma unroll
        for (uint32_t p = 0; p < P; p++) parts[p][i] = words[p];
    }
}

__device__ __forceinline__ float weight_below(float value, float top) { return power_of_two((value - top) * kLog2e); }

// What W groups of warps found about M rows, besides the sums. Blocks of many rows leave shares to attend_combine.
template <uint32_t W, uint32_t M>
struct RowShares {
    static constexpr bool FOLDS = M == 16;
    float tops[W][M], sums[W][M];
    float factors[FOLDS ? kFolded : 1][M], scale[M];
    uint32_t last;
};

// Puts the first `used` shares of the block's rows together, the same in whichever block comes last.
template <uint32_t D, uint32_t W, uint32_t M>
__device__ __forceinline__ void fold_rows(const AttendArgs& a, const DevStep& step, const QueryRows& q,
                                          RowShares<W, M>& s, uint32_t used) {
    const uint32_t lane = threadIdx.x & 31;
    constexpr uint32_t STRIDE = D + 4;
#pragma unroll 1
    for (uint32_t r = threadIdx.x / 32; r < q.count; r += blockDim.x / 32) {
        const size_t at = q.at(a, r);
        const float* tail = a.partial + (at * a.splits + lane) * STRIDE + D;
        const float best = lane < used ? __ldcg(tail) : kBelow, mass = lane < used ? __ldcg(tail + 1) : 0.0f;
        const bool sunk = a.sinks.data != nullptr;
        const float sink = sunk ? vector_at(a.sinks, (uint32_t)(at % a.heads)) : kBelow;
        const float top = fmaxf(sink, warp_max(best)), factor = weight_below(best, top);
        const float all = warp_sum(mass * factor) + (sunk ? weight_below(sink, top) : 0.0f);
        s.factors[lane][r] = factor;
        if (lane == 0) s.scale[r] = all > 0.0f ? 1.0f / all : 0.0f;
    }
    __syncthreads();
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < q.count * (D / 4); n += blockDim.x) {
        const uint32_t r = n / (D / 4), c = n % (D / 4);
        const size_t at = q.at(a, r);
        const float* from = a.partial + at * a.splits * STRIDE + 4 * c;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
        for (uint32_t i = 0; i < used; i++) {
            const float4 part = __ldcg((const float4*)(from + i * STRIDE));
            const float f = s.factors[i][r];
            v = make_float4(v.x + part.x * f, v.y + part.y * f, v.z + part.z * f, v.w + part.w * f);
        }
        const float f = s.scale[r];
        v = make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
        ((float4*)(a.out + at * D))[c] = turned_at(a, step.position + at / a.heads, 4 * c, v);
    }
}

// Puts together what the block's warps found (sums [W][M][D] in `pool`) and writes it: the result, or its share of it. Of
// `used` blocks with shares of the same rows the last one to arrive puts those together, where `fold` says so.
template <uint32_t D, uint32_t W, uint32_t M>
__device__ __forceinline__ void finish_rows(const AttendArgs& a, const DevStep& step, const QueryRows& q,
                                            const float* pool, RowShares<W, M>& s, uint32_t used) {
    const bool whole = a.splits == 1 || (a.fold != 0 && used == 1);
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < q.count * (D / 4); n += blockDim.x) {
        const uint32_t r = n / (D / 4), c = n % (D / 4);
        const size_t at = q.at(a, r);
        const bool sunk = whole && a.sinks.data != nullptr;
        const float sink = sunk ? vector_at(a.sinks, (uint32_t)(at % a.heads)) : kBelow;
        float best = sink;
#pragma unroll
        for (uint32_t w = 0; w < W; w++) best = fmaxf(best, s.tops[w][r]);
        // The sink only enlarges the denominator.
        float all = sunk ? weight_below(sink, best) : 0.0f;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (uint32_t w = 0; w < W; w++) {
            const float f = weight_below(s.tops[w][r], best);
            const float4 part = ((const float4*)(pool + (w * M + r) * D))[c];
            all += s.sums[w][r] * f;
            v = make_float4(v.x + part.x * f, v.y + part.y * f, v.z + part.z * f, v.w + part.w * f);
        }
        if (whole) {
            const float f = all > 0.0f ? 1.0f / all : 0.0f;
            v = make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
            ((float4*)(a.out + at * D))[c] = turned_at(a, step.position + at / a.heads, 4 * c, v);
        } else {
            float* to = a.partial + (at * a.splits + blockIdx.z) * (D + 4);
            ((float4*)to)[c] = v;
            if (c == 0) {
                to[D] = best;
                to[D + 1] = all;
            }
        }
    }
    if (!RowShares<W, M>::FOLDS || whole || a.fold == 0) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* arrived = a.arrived + blockIdx.y * gridDim.x + blockIdx.x;
        s.last = atomicAdd(arrived, 1u) + 1 == used ? 1u : 0u;
        if (s.last != 0) *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    if constexpr (RowShares<W, M>::FOLDS) {
        if (s.last != 0) fold_rows<D>(a, step, q, s, used);
    }
}
