// Attention of one token's heads per block: teams of threads take whole keys, each thread the same columns of query, key and
// value, so that nothing but the final sums passes through shared memory. One block has up to L query heads of one token
// that share their keys; keys are split over blocks as in attend.cu, and where there are few shares the last block of a
// token's heads puts them together.
#include "attend_heads.cuh"

__device__ __forceinline__ float dot_four(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// G threads per key, C columns each: heads of C * G values.
template <class R, uint32_t L, uint32_t C, uint32_t G>
__device__ __forceinline__ void attend_row(const AttendArgs& a) {
    constexpr uint32_t D = C * G, F = C / 4, TEAMS = 256 / G;
    DYNAMIC_SHARED(memory);
    float* pool = (float*)memory;  // [8][L][D]
    HeadShares<L>& s = *(HeadShares<L>*)(pool + kRowWarps * L * D);
    const DevStep step = *a.step;
    const uint32_t token = blockIdx.x, split = blockIdx.z;
    if (token >= step.tokens) return;
    const uint32_t group = a.heads / a.kv_heads, parts = group / a.block_heads;
    const uint32_t kv = blockIdx.y / parts, head0 = kv * group + blockIdx.y % parts * a.block_heads;
    const size_t at0 = (size_t)token * a.heads + head0;
    const uint32_t team = threadIdx.x / G, g = threadIdx.x % G;
    make_turns(a, s.turns, step.position + token);
    await_predecessor();

    bool separate = false;
    uint32_t counts[kSources], total = 0;
#pragma unroll
    for (uint32_t i = 0; i < kSources; i++) {
        separate |= i < a.n_sources && a.sources[i].keys.data != a.sources[i].values.data;
        counts[i] = i < a.n_sources ? key_count(a, a.sources[i], step, token, token) : 0;
        total += counts[i];
    }
    const uint32_t per = (total + a.splits - 1) / a.splits;
    const uint32_t begin = min(split * per, total), end = min(begin + per, total);

    float4 q[L][F], acc[L][F];
    float top[L], sum[L];
#pragma unroll
    for (uint32_t l = 0; l < L; l++) {
        top[l] = kLowest;
        sum[l] = 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            acc[l][i] = q[l][i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (l < a.block_heads) q[l][i] = ((const float4*)(a.q + (at0 + l) * D))[g + G * i];
        }
    }
    // A team's key and value, the next of which is on its way while one is looked at.
    struct Pair {
        R keys[F], values[F];
        bool there;
    } next;
    const auto ask = [&](uint32_t j) {
        next.there = j < end;
        const bool second = j >= counts[0] && next.there;
        const Source& from = a.sources[second ? 1 : 0];
        if (second) j -= counts[0];
        const int64_t row = next.there ? key_row(a, from, step, token, token, j) : -1;
        next.there = row >= 0;
        const size_t slot = next.there ? cache_slot(from.keys, (uint64_t)row) : 0;
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            next.keys[i].load(from.keys, slot, kv, 4 * (g + G * i));
            if (separate) next.values[i].load(from.values, slot, kv, 4 * (g + G * i));
        }
    };
    if (begin < end) ask(begin + team);
    for (uint32_t base = begin; base < end; base += TEAMS) {
        const Pair now = next;
        if (base + TEAMS < end) ask(base + TEAMS + team);
        float4 v[F];
        float z[L] = {};
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            v[i] = now.keys[i].value();
#pragma unroll
            for (uint32_t l = 0; l < L; l++) z[l] += dot_four(q[l][i], v[i]);
            if (separate) v[i] = now.values[i].value();
            // What stands in a slot that is not meant may be anything, NaN too.
            if (!now.there) v[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        }
#pragma unroll
        for (uint32_t l = 0; l < L; l++) {
#pragma unroll
            for (uint32_t m = G / 2; m > 0; m >>= 1) z[l] += __shfl_xor_sync(kAll, z[l], m);
            z[l] = now.there ? z[l] * a.scale : -INFINITY;
            const float best = fmaxf(top[l], z[l]), keep = weight_of(top[l], best), e = weight_of(z[l], best);
            top[l] = best;
            sum[l] = sum[l] * keep + e;
#pragma unroll
            for (uint32_t i = 0; i < F; i++) {
                acc[l][i].x = acc[l][i].x * keep + e * v[i].x;
                acc[l][i].y = acc[l][i].y * keep + e * v[i].y;
                acc[l][i].z = acc[l][i].z * keep + e * v[i].z;
                acc[l][i].w = acc[l][i].w * keep + e * v[i].w;
            }
        }
    }

    finish_heads<L, C, G>(a, pool, s, top, sum, acc, at0, head0, [&](uint32_t i) { return g + G * i; });
}

template <uint32_t L, uint32_t C, uint32_t G>
__device__ __forceinline__ void attend_row_any(const AttendArgs& a) {
    switch (a.format) {
        case kCacheF32: attend_row<RecordF32, L, C, G>(a); break;
        case kCacheBf16: attend_row<RecordBf16, L, C, G>(a); break;
        case kCacheFp8Model1:
        case kCacheFp8B64: attend_row<RecordFp8, L, C, G>(a); break;
        default: attend_row<RecordAny, L, C, G>(a);
    }
}

// grid (tokens, key heads * parts, splits), 256 threads; shared: `row_shared` in ../ops/attend.rs
#define ATTEND_ROW(name, lanes, columns, team, blocks) \
    EARLY_KERNEL(name, AttendArgs, 256, blocks) { attend_row_any<lanes, columns, team>(a); }

// Blocks per multiprocessor; before Hopper the compiler needs a few registers more than two leave it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define PER_UNIT 1
#else
#define PER_UNIT 2
#endif

ATTEND_ROW(attend_row_32x4, 4, 4, 8, 2)
ATTEND_ROW(attend_row_64x1, 1, 8, 8, 2)
ATTEND_ROW(attend_row_64x4, 4, 8, 8, 2)
ATTEND_ROW(attend_row_128x1, 1, 8, 16, 2)
ATTEND_ROW(attend_row_128x4, 4, 8, 16, PER_UNIT)
ATTEND_ROW(attend_row_256x4, 4, 8, 32, PER_UNIT)
ATTEND_ROW(attend_row_512x4, 4, 16, 32, 1)
