// Attention of one token's heads per block, for one token at a time: teams of G threads take whole keys, each thread the same
// C neighbouring columns of query, key and value, so that nothing but the final sums passes through shared memory. A block
// has up to L query heads that share their keys; keys are split over blocks, and the last block of the heads puts the shares
// together. Where keys lie is worked out once per block, in 32 bits (attend.cuh has the general rules), and the next keys of a
// team are always on their way.
#pragma once

#include "attend_heads.cuh"
#include "chunks.cuh"

// The keys of a source that a token sees: key j has the slot selection[j], or j below `kept` and start + j - kept from there
// on, less `ring` where that is beyond it.
struct KeySpan {
    const uint8_t *keys, *values;                // of slot 0, this key head's record
    const uint8_t *key_scales, *value_scales;
    const int32_t* selection;
    uint32_t row_bytes, scale_row, plain, count;  // bytes of a slot; values before the part kept for rotation; keys
    uint32_t kept, start, ring, pad;

    // Key j's slot where none are selected, and any slot within the ring.
    __device__ __forceinline__ uint32_t nth(uint32_t j) const { return j < kept ? j : start + j - kept; }
    __device__ __forceinline__ uint32_t within(uint32_t slot) const { return ring != 0 && slot >= ring ? slot - ring : slot; }
};
static_assert(sizeof(KeySpan) == 72, "SPAN in ../ops/attend.rs");

template <uint32_t L>
struct KeysShared {
    KeySpan spans[kSources];
    HeadShares<L> heads;
};

// Normalises a head's queries (the squares of all their columns are summed up in `square`) and rotates them, the other way
// round than what comes out.
template <uint32_t C>
__device__ __forceinline__ void prepare_query(const AttendArgs& a, const float2* turns, uint32_t column, float square,
                                              float4 (&q)[C / 4]) {
    const float f = rsqrtf(square / (float)a.head_dim + a.q_eps);
#pragma unroll
    for (uint32_t i = 0; i < C / 4; i++) {
        q[i] = make_float4(q[i].x * f, q[i].y * f, q[i].z * f, q[i].w * f);
        if (!turns_column(a, column + 4 * i)) continue;
        const uint32_t pair = (column + 4 * i - a.turn_offset) / 2;
        const float2 t = turns[pair], u = turns[pair + 1];
        q[i] = turn_pairs(q[i], make_float2(-t.x, t.y), make_float2(-u.x, u.y));
    }
}

__device__ __forceinline__ KeySpan key_span(const AttendArgs& a, const Source& from, const DevStep& step, uint32_t kv) {
    const CacheRef& c = from.keys;
    KeySpan s = {};
    s.keys = c.data + (size_t)kv * c.data_bytes;
    s.values = from.values.data + (size_t)kv * c.data_bytes;
    s.key_scales = c.scales + (size_t)kv * c.scale_bytes;
    s.value_scales = from.values.scales + (size_t)kv * c.scale_bytes;
    s.row_bytes = c.records * c.data_bytes;
    s.scale_row = c.records * c.scale_bytes;
    s.plain = c.width - c.rope;
    s.count = key_count(a, from, step, 0, 0);
    s.kept = 0xffffffffu;
    s.ring = c.ring;
    const uint64_t t = step.position;
    if (from.kind == kCausal && a.mask == kSliding) {
        s.start = (uint32_t)window_start(t, a.window);
        s.kept = min(a.first, s.start);
    } else if (from.kind == kWindow) {
        s.kept = 0;
        s.start = (uint32_t)cache_slot(c, window_start(t, from.window));
    } else if (from.kind == kCompressed) {
        s.selection = from.selection;
    }
    return s;
}

// C neighbouring values of a record: loaded as they lie, turned into values later, which `factor` multiplies. What stands in a slot
// that is not meant may be anything, NaN too: `clear` makes it 0.
template <uint32_t C>
struct KeyF32 {
    float4 v[C / 4];
    __device__ __forceinline__ void load(const uint8_t* record, const uint8_t*, uint32_t, uint32_t column) {
#pragma unroll
        for (uint32_t i = 0; i < C / 4; i++) v[i] = *(const float4*)(record + 4 * column + 16 * i);
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (uint32_t i = 0; i < C / 4; i++) v[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    }
    __device__ __forceinline__ float4 four(uint32_t i) const { return v[i]; }
    __device__ __forceinline__ float factor() const { return 1.0f; }
};

template <uint32_t C>
struct KeyBf16 {
    uint32_t w[C / 2];
    __device__ __forceinline__ void load(const uint8_t* record, const uint8_t*, uint32_t, uint32_t column) {
#pragma unroll
        for (uint32_t i = 0; i < C / 8; i++) {
            const uint4 v = *(const uint4*)(record + 2 * column + 16 * i);
            w[4 * i] = v.x;
            w[4 * i + 1] = v.y;
            w[4 * i + 2] = v.z;
            w[4 * i + 3] = v.w;
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (uint32_t i = 0; i < C / 2; i++) w[i] = 0;
    }
    __device__ __forceinline__ float4 four(uint32_t i) const {
        return make_float4(__uint_as_float(w[2 * i] << 16), __uint_as_float(w[2 * i] & 0xffff0000u),
                           __uint_as_float(w[2 * i + 1] << 16), __uint_as_float(w[2 * i + 1] & 0xffff0000u));
    }
    __device__ __forceinline__ float factor() const { return 1.0f; }
};

// e4m3 with a scale per 64 values, the last values bf16: a thread's columns are of one kind (`fits_keys` in ../ops/attend.rs).
template <uint32_t C>
struct KeyFp8 {
    uint32_t w[C / 2], scale;
    bool plain;
    __device__ __forceinline__ void load(const uint8_t* record, const uint8_t* scales, uint32_t nope, uint32_t column) {
        plain = column >= nope;
        const uint8_t* p = record + (plain ? 2 * column - nope : column);
        scale = scales[plain ? 0 : column / 64];
#pragma unroll
        for (uint32_t i = 0; i < C / 8; i++) {
            const uint2 v = *(const uint2*)(p + 8 * i);
            w[2 * i] = v.x;
            w[2 * i + 1] = v.y;
        }
        if (!plain) return;
#pragma unroll
        for (uint32_t i = C / 8; i < C / 4; i++) {
            const uint2 v = *(const uint2*)(p + 8 * i);
            w[2 * i] = v.x;
            w[2 * i + 1] = v.y;
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (uint32_t i = 0; i < C / 2; i++) w[i] = 0;
        scale = 127;
    }
    // Both ways without a branch: some lanes of every warp go the other one.
    __device__ __forceinline__ float4 four(uint32_t i) const {
        const float2 low = e4m3_pair(w[i] & 0xffffu), high = e4m3_pair(w[i] >> 16);
        const uint32_t one = w[2 * i], other = w[2 * i + 1];
        return make_float4(plain ? __uint_as_float(one << 16) : low.x, plain ? __uint_as_float(one & 0xffff0000u) : low.y,
                           plain ? __uint_as_float(other << 16) : high.x, plain ? __uint_as_float(other & 0xffff0000u) : high.y);
    }
    __device__ __forceinline__ float factor() const { return plain ? 1.0f : ue8m0_to_f32(scale); }
};

// The same as weight_of for logarithms to base 2, as scores are while keys are looked at.
__device__ __forceinline__ float weight_of_log2(float value, float top) { return power_of_two(value - top); }

// The heads of a block: a thread's columns of their queries and of what they have summed up so far. SAME: keys are values.
template <class K, uint32_t L, uint32_t C, uint32_t G, bool SAME>
struct KeyHeads {
    static constexpr uint32_t F = C / 4;
    // A key on its way, or there.
    struct Pair {
        K key, value;
        bool there;
    };

    float4 q[L][F], acc[L][F];
    float top[L], sum[L];

    __device__ __forceinline__ void ask(const AttendArgs& a, uint32_t at0, uint32_t column) {
#pragma unroll
        for (uint32_t l = 0; l < L; l++) {
#pragma unroll
            for (uint32_t i = 0; i < F; i++) {
                acc[l][i] = q[l][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (l < a.block_heads) q[l][i] = *(const float4*)(a.q + (size_t)(at0 + l) * C * G + column + 4 * i);
            }
        }
    }
    __device__ __forceinline__ void prepare(const AttendArgs& a, const float2* turns, uint32_t column) {
#pragma unroll
        for (uint32_t l = 0; l < L; l++) {
            top[l] = kLowest;
            sum[l] = 0.0f;
            if (SAME && a.prepare != 0) {
                float square = 0.0f;
#pragma unroll
                for (uint32_t i = 0; i < F; i++) {
                    square += q[l][i].x * q[l][i].x + q[l][i].y * q[l][i].y + q[l][i].z * q[l][i].z + q[l][i].w * q[l][i].w;
                }
#pragma unroll
                for (uint32_t m = G / 2; m > 0; m >>= 1) square += __shfl_xor_sync(kAll, square, m);
                prepare_query<C>(a, turns, column, square, q[l]);
            }
#pragma unroll
            for (uint32_t i = 0; i < F; i++) {
                const float f = a.scale * kLog2e;
                q[l][i] = make_float4(q[l][i].x * f, q[l][i].y * f, q[l][i].z * f, q[l][i].w * f);
            }
        }
    }
    // Scores and sums of N keys at once: what they wait for, they wait for together.
    template <class... P>
    __device__ __forceinline__ void look(P... now) {
        constexpr uint32_t N = sizeof...(now);
        Pair* const keys[N] = {&now...};
        float z[N][L] = {}, keep[L], e[N][L];
#pragma unroll
        for (uint32_t n = 0; n < N; n++) {
            if (!keys[n]->there) {
                keys[n]->key.clear();
                if (!SAME) keys[n]->value.clear();
            }
#pragma unroll
            for (uint32_t i = 0; i < F; i++) {
                const float4 k = keys[n]->key.four(i);
#pragma unroll
                for (uint32_t l = 0; l < L; l++) {
                    z[n][l] += q[l][i].x * k.x + q[l][i].y * k.y + q[l][i].z * k.z + q[l][i].w * k.w;
                }
            }
#pragma unroll
            for (uint32_t l = 0; l < L; l++) z[n][l] *= keys[n]->key.factor();
        }
#pragma unroll
        for (uint32_t m = G / 2; m > 0; m >>= 1) {
#pragma unroll
            for (uint32_t n = 0; n < N; n++) {
#pragma unroll
                for (uint32_t l = 0; l < L; l++) z[n][l] += __shfl_xor_sync(kAll, z[n][l], m);
            }
        }
#pragma unroll
        for (uint32_t l = 0; l < L; l++) {
            float best = top[l];
#pragma unroll
            for (uint32_t n = 0; n < N; n++) best = fmaxf(best, z[n][l] = keys[n]->there ? z[n][l] : -INFINITY);
            keep[l] = weight_of_log2(top[l], best);
            top[l] = best;
            sum[l] *= keep[l];
#pragma unroll
            for (uint32_t n = 0; n < N; n++) sum[l] += e[n][l] = weight_of_log2(z[n][l], best);
#pragma unroll
            for (uint32_t n = 0; n < N; n++) e[n][l] *= SAME ? keys[n]->key.factor() : keys[n]->value.factor();
        }
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
#pragma unroll
            for (uint32_t n = 0; n < N; n++) {
                const float4 v = SAME ? keys[n]->key.four(i) : keys[n]->value.four(i);
#pragma unroll
                for (uint32_t l = 0; l < L; l++) {
                    const float f = n == 0 ? keep[l] : 1.0f;
                    acc[l][i].x = acc[l][i].x * f + e[n][l] * v.x;
                    acc[l][i].y = acc[l][i].y * f + e[n][l] * v.y;
                    acc[l][i].z = acc[l][i].z * f + e[n][l] * v.z;
                    acc[l][i].w = acc[l][i].w * f + e[n][l] * v.w;
                }
            }
        }
    }
    // Largest scores as logarithms to base e.
    __device__ __forceinline__ void end() {
#pragma unroll
        for (uint32_t l = 0; l < L; l++) top[l] = top[l] == kLowest ? kLowest : top[l] * (1.0f / kLog2e);
    }
};

// One block: heads `block_heads` of token 0, share blockIdx.z of the keys. SAME: keys are values.
template <class K, uint32_t L, uint32_t C, uint32_t G, bool SAME>
__device__ __forceinline__ void attend_keys(const AttendArgs& a) {
    constexpr uint32_t D = C * G, F = C / 4, TEAMS = 256 / G;
    DYNAMIC_SHARED(memory);
    float* pool = (float*)memory;  // [8][L][D]
    KeysShared<L>& s = *(KeysShared<L>*)(pool + kRowWarps * L * D);
    const uint32_t parts = a.heads / a.kv_heads / a.block_heads, kv = blockIdx.y / parts;
    const uint32_t at0 = kv * (a.heads / a.kv_heads) + blockIdx.y % parts * a.block_heads;
    const uint32_t team = threadIdx.x / G, column = threadIdx.x % G * C;
    using Heads = KeyHeads<K, L, C, G, SAME>;
    using Pair = typename Heads::Pair;
    Heads heads;
    if (threadIdx.x < kSources && threadIdx.x < a.n_sources) {
        s.spans[threadIdx.x] = key_span(a, a.sources[threadIdx.x], *a.step, kv);
    }
    make_turns(a, s.heads.turns, a.step->position);
    __syncthreads();
    const uint32_t first = s.spans[0].count, total = first + (a.n_sources > 1 ? s.spans[1].count : 0);
    const uint32_t per = (total + a.splits - 1) / a.splits;
    const uint32_t begin = min(blockIdx.z * per, total), end = min(begin + per, total);
    await_predecessor();

    // Where key j lies. Chosen rows are asked for ahead of the keys.
    struct Place {
        const KeySpan* span;
        uint32_t slot;
        bool there;
    };
    const auto find = [&](uint32_t j) {
        Place p = {&s.spans[j >= first && j < end ? 1 : 0], 0, j < end};
        if (j >= first) j -= first;
        if (p.there) p.slot = p.span->selection != nullptr ? (uint32_t)p.span->selection[j] : p.span->nth(j);
        return p;
    };
    const auto ask = [&](Pair& to, const Place& p) {
        const KeySpan& span = *p.span;
        to.there = p.there && (int32_t)p.slot >= 0;
        const uint32_t slot = span.within(to.there ? p.slot : 0);
        const size_t at = (size_t)slot * span.row_bytes, scale = (size_t)slot * span.scale_row;
        to.key.load(span.keys + at, span.key_scales + scale, span.plain, column);
        if (!SAME) to.value.load(span.values + at, span.value_scales + scale, span.plain, column);
    };
    // As many registers as there are decide how many keys are on their way.
    constexpr bool kTwo = (SAME ? sizeof(K) : 2 * sizeof(K) + 4 * L * F) <= 40;
    constexpr uint32_t STEP = (kTwo ? 2 : 1) * TEAMS;
    Pair one = {}, two = {};
    Place next[2];
    const auto find_both = [&](uint32_t j) {
        next[0] = find(j);
        if (kTwo) next[1] = find(j + TEAMS);
    };
    const auto ask_both = [&] {
        ask(one, next[0]);
        if (kTwo) ask(two, next[1]);
    };
    find_both(begin + team);
    heads.ask(a, at0, column);
    ask_both();
    find_both(begin + STEP + team);
    heads.prepare(a, s.heads.turns, column);
#pragma unroll 1
    for (uint32_t base = begin; base < end; base += STEP) {
        const Pair now = one, then = two;
        ask_both();
        find_both(base + 2 * STEP + team);
        if constexpr (kTwo) heads.look(now, then);
        else heads.look(now);
    }
    heads.end();
    const uint32_t from = threadIdx.x % G * F;
    finish_heads<L, C, G>(a, pool, s.heads, heads.top, heads.sum, heads.acc, at0, at0, [&](uint32_t i) { return from + i; });
}
