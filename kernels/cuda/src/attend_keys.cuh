// Attention of one token's heads per block, for one token at a time: teams of G threads take whole keys, each thread the same
// C neighbouring columns of query, key and value, so that nothing but the final sums passes through shared memory. A block
// has up to L query heads that share their keys; keys are split over blocks, and the last block of the heads puts the shares
// together. Where keys lie is worked out once per block, in 32 bits (attend.cuh has the general rules), and two keys per team
// are always on their way.
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
};
static_assert(sizeof(KeySpan) == 72, "SPAN in ../ops/attend.rs");

template <uint32_t L>
struct KeysShared {
    KeySpan spans[kSources];
    HeadShares<L> heads;
};

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

// C neighbouring values of a record: loaded as they lie, turned into values later.
template <uint32_t C>
struct KeyF32 {
    float4 v[C / 4];
    __device__ __forceinline__ void load(const uint8_t* record, const uint8_t*, uint32_t, uint32_t column) {
#pragma unroll
        for (uint32_t i = 0; i < C / 4; i++) v[i] = *(const float4*)(record + 4 * column + 16 * i);
    }
    __device__ __forceinline__ float4 four(uint32_t i) const { return v[i]; }
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
    __device__ __forceinline__ float4 four(uint32_t i) const {
        return make_float4(__uint_as_float(w[2 * i] << 16), __uint_as_float(w[2 * i] & 0xffff0000u),
                           __uint_as_float(w[2 * i + 1] << 16), __uint_as_float(w[2 * i + 1] & 0xffff0000u));
    }
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
    __device__ __forceinline__ float4 four(uint32_t i) const {
        if (plain) {
            return make_float4(__uint_as_float(w[2 * i] << 16), __uint_as_float(w[2 * i] & 0xffff0000u),
                               __uint_as_float(w[2 * i + 1] << 16), __uint_as_float(w[2 * i + 1] & 0xffff0000u));
        }
        const float2 low = e4m3_pair(w[i] & 0xffffu), high = e4m3_pair(w[i] >> 16);
        const float s = ue8m0_to_f32(scale);
        return make_float4(low.x * s, low.y * s, high.x * s, high.y * s);
    }
};

// The same as weight_of for logarithms to base 2, as scores are while keys are looked at.
__device__ __forceinline__ float weight_of_log2(float value, float top) { return power_of_two(value - top); }

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
    if (threadIdx.x < kSources && threadIdx.x < a.n_sources) {
        s.spans[threadIdx.x] = key_span(a, a.sources[threadIdx.x], *a.step, kv);
    }
    s.heads.make_turns(a, a.step->position);
    await_predecessor();
    __syncthreads();
    const uint32_t first = s.spans[0].count, total = first + (a.n_sources > 1 ? s.spans[1].count : 0);
    const uint32_t per = (total + a.splits - 1) / a.splits;
    const uint32_t begin = min(blockIdx.z * per, total), end = min(begin + per, total);

    float4 q[L][F], acc[L][F];
    float top[L], sum[L];
#pragma unroll
    for (uint32_t l = 0; l < L; l++) {
        top[l] = kLowest;
        sum[l] = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            acc[l][i] = q[l][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (l >= a.block_heads) continue;
            const float4 v = *(const float4*)(a.q + (size_t)(at0 + l) * D + column + 4 * i);
            const float f = a.scale * kLog2e;
            q[l][i] = make_float4(v.x * f, v.y * f, v.z * f, v.w * f);
        }
    }
    struct Pair {
        K key, value;
        bool there;
    };
    const auto ask = [&](Pair& to, uint32_t j) {
        const KeySpan& span = s.spans[j >= first && j < end ? 1 : 0];
        to.there = j < end;
        if (j >= first) j -= first;
        uint32_t slot = 0;
        if (to.there) {
            const int32_t row = span.selection != nullptr ? span.selection[j]
                                                           : (int32_t)(j < span.kept ? j : span.start + j - span.kept);
            to.there = row >= 0;
            slot = to.there ? (uint32_t)row : 0;
            if (span.ring != 0 && slot >= span.ring) slot -= span.ring;
        }
        const size_t at = (size_t)slot * span.row_bytes, scale = (size_t)slot * span.scale_row;
        to.key.load(span.keys + at, span.key_scales + scale, span.plain, column);
        if (!SAME) to.value.load(span.values + at, span.value_scales + scale, span.plain, column);
    };
    const auto look = [&](const Pair& now) {
        float z[L] = {};
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            const float4 k = now.key.four(i);
#pragma unroll
            for (uint32_t l = 0; l < L; l++) {
                z[l] += q[l][i].x * k.x + q[l][i].y * k.y + q[l][i].z * k.z + q[l][i].w * k.w;
            }
        }
        float keep[L], e[L];
#pragma unroll
        for (uint32_t l = 0; l < L; l++) {
#pragma unroll
            for (uint32_t m = G / 2; m > 0; m >>= 1) z[l] += __shfl_xor_sync(kAll, z[l], m);
            z[l] = now.there ? z[l] : -INFINITY;
            const float best = fmaxf(top[l], z[l]);
            keep[l] = weight_of_log2(top[l], best);
            e[l] = weight_of_log2(z[l], best);
            top[l] = best;
            sum[l] = sum[l] * keep[l] + e[l];
        }
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            float4 v = SAME ? now.key.four(i) : now.value.four(i);
            // What stands in a slot that is not meant may be anything, NaN too.
            if (!now.there) v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
            for (uint32_t l = 0; l < L; l++) {
                acc[l][i].x = acc[l][i].x * keep[l] + e[l] * v.x;
                acc[l][i].y = acc[l][i].y * keep[l] + e[l] * v.y;
                acc[l][i].z = acc[l][i].z * keep[l] + e[l] * v.z;
                acc[l][i].w = acc[l][i].w * keep[l] + e[l] * v.w;
            }
        }
    };
    if (begin < end) {
        // As many registers as there are decide how many keys are on their way.
        constexpr bool kTwo = (SAME ? sizeof(K) : 2 * sizeof(K) + 4 * L * F) <= 40;
        Pair one = {}, two = {};
        ask(one, begin + team);
        if (kTwo) ask(two, begin + TEAMS + team);
#pragma unroll 1
        for (uint32_t base = begin; base < end; base += (kTwo ? 2 : 1) * TEAMS) {
            const Pair now = one;
            if (kTwo) one = two;
            ask(kTwo ? two : one, base + (kTwo ? 2 : 1) * TEAMS + team);
            look(now);
            if (!kTwo) continue;
            const Pair then = one;
            one = two;
            ask(two, base + 3 * TEAMS + team);
            look(then);
        }
    }

#pragma unroll
    for (uint32_t l = 0; l < L; l++) top[l] = top[l] == kLowest ? kLowest : top[l] * (1.0f / kLog2e);
    finish_heads<L, C, G>(a, pool, s.heads, top, sum, acc, at0, at0, [&](uint32_t i) { return column / 4 + i; });
}
