// Attention of one token's heads per block: teams of threads take whole keys, each thread the same columns of query, key and
// value, so that nothing but the final sums passes through shared memory. One block has up to L query heads of one token
// that share their keys; keys are split over blocks as in attend.cu, and where there are few shares the last block of a
// token's heads puts them together.
#include "attend.cuh"

constexpr uint32_t kRowWarps = 8, kFolded = 32;

__device__ __forceinline__ float dot_four(float4 a, float4 b) { return a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w; }

// Below every score; finite, so that differences are never NaN.
constexpr float kLowest = -1e30f;

__device__ __forceinline__ float weight_of(float value, float top) { return power_of_two((value - top) * kLog2e); }

// What a block keeps in shared memory behind the [8][L][D] sums of its warps.
template <uint32_t L>
struct RowShared {
    float tops[kRowWarps][L], sums[kRowWarps][L];
    float factors[kFolded][L], scale[L];
    float2 turns[256];
    uint32_t last;
};

// Rotates the pairs that four neighbouring values hold.
__device__ __forceinline__ float4 turned(const AttendArgs& a, const float2* turns, uint32_t column, float4 v) {
    if (a.turn_dims == 0 || column < a.turn_offset || column >= a.turn_offset + a.turn_dims) return v;
    const float2 t = turns[(column - a.turn_offset) / 2], u = turns[(column - a.turn_offset) / 2 + 1];
    return make_float4(v.x * t.y - v.y * t.x, v.x * t.x + v.y * t.y, v.z * u.y - v.w * u.x, v.z * u.x + v.w * u.y);
}

// Puts the shares of the block's heads together; called by all threads of the last block to arrive.
template <uint32_t L, uint32_t D>
__device__ __forceinline__ void fold_shares(const AttendArgs& a, RowShared<L>& s, size_t at0) {
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const size_t stride = D + 4;
    if (warp < a.block_heads) {
        const float* tail = a.partial + ((at0 + warp) * a.splits + lane) * stride + D;
        const bool there = lane < a.splits;
        const float best = there ? __ldcg(tail) : kLowest, mass = there ? __ldcg(tail + 1) : 0.0f;
        const float sink = a.sinks.data == nullptr ? kLowest : vector_at(a.sinks, (uint32_t)(at0 % a.heads) + warp);
        const float top = fmaxf(sink, warp_max(best));
        // A share without keys (and a head that sees nothing at all) weighs nothing.
        const float factor = weight_of(best, top);
        const float all = warp_sum(mass * factor) + (a.sinks.data == nullptr ? 0.0f : weight_of(sink, top));
        s.factors[lane][warp] = factor;
        if (lane == 0) s.scale[warp] = all > 0.0f ? 1.0f / all : 0.0f;
    }
    __syncthreads();
    for (uint32_t n = threadIdx.x; n < a.block_heads * (D / 4); n += blockDim.x) {
        const uint32_t l = n / (D / 4), c = n % (D / 4);
        const float* from = a.partial + (at0 + l) * a.splits * stride + 4 * c;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (uint32_t i = 0; i < a.splits; i++) {
            const float4 part = __ldcg((const float4*)(from + i * stride));
            const float f = s.factors[i][l];
            v.x += part.x * f;
            v.y += part.y * f;
            v.z += part.z * f;
            v.w += part.w * f;
        }
        const float f = s.scale[l];
        v = turned(a, s.turns, 4 * c, make_float4(v.x * f, v.y * f, v.z * f, v.w * f));
        ((float4*)(a.out + (at0 + l) * D))[c] = v;
    }
}

// G threads per key, C columns each: heads of C * G values.
template <class R, uint32_t L, uint32_t C, uint32_t G>
__device__ __forceinline__ void attend_row(const AttendArgs& a) {
    constexpr uint32_t D = C * G, F = C / 4, TEAMS = 256 / G;
    DYNAMIC_SHARED(memory);
    float* pool = (float*)memory;  // [8][L][D]
    RowShared<L>& s = *(RowShared<L>*)(pool + kRowWarps * L * D);
    const DevStep step = *a.step;
    const uint32_t token = blockIdx.x, split = blockIdx.z;
    if (token >= step.tokens) return;
    const uint32_t group = a.heads / a.kv_heads, parts = group / a.block_heads;
    const uint32_t kv = blockIdx.y / parts, head0 = kv * group + blockIdx.y % parts * a.block_heads;
    const size_t at0 = (size_t)token * a.heads + head0;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, team = threadIdx.x / G, g = threadIdx.x % G;
    for (uint32_t i = threadIdx.x; i < a.turn_dims / 2; i += blockDim.x) {
        s.turns[i] = turn_at(step.position + token, a.turn_freqs[i], a.turn_inverse != 0);
    }
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

    // The teams of a warp, then the warps.
#pragma unroll
    for (uint32_t l = 0; l < L; l++) {
        if (l >= a.block_heads) break;
        float best = top[l];
#pragma unroll
        for (uint32_t m = G; m < 32; m <<= 1) best = fmaxf(best, __shfl_xor_sync(kAll, best, m));
        const float factor = weight_of(top[l], best);
        sum[l] *= factor;
#pragma unroll
        for (uint32_t m = G; m < 32; m <<= 1) sum[l] += __shfl_xor_sync(kAll, sum[l], m);
#pragma unroll
        for (uint32_t i = 0; i < F; i++) {
            float4 v = make_float4(acc[l][i].x * factor, acc[l][i].y * factor, acc[l][i].z * factor, acc[l][i].w * factor);
#pragma unroll
            for (uint32_t m = G; m < 32; m <<= 1) {
                v.x += __shfl_xor_sync(kAll, v.x, m);
                v.y += __shfl_xor_sync(kAll, v.y, m);
                v.z += __shfl_xor_sync(kAll, v.z, m);
                v.w += __shfl_xor_sync(kAll, v.w, m);
            }
            if (lane < G) ((float4*)(pool + (warp * L + l) * D))[g + G * i] = v;
        }
        if (lane == 0) {
            s.tops[warp][l] = best;
            s.sums[warp][l] = sum[l];
        }
    }
    __syncthreads();
    for (uint32_t n = threadIdx.x; n < a.block_heads * (D / 4); n += blockDim.x) {
        const uint32_t l = n / (D / 4), c = n % (D / 4);
        const float sink = a.splits > 1 || a.sinks.data == nullptr ? kLowest : vector_at(a.sinks, head0 + l);
        float best = sink;
#pragma unroll
        for (uint32_t w = 0; w < kRowWarps; w++) best = fmaxf(best, s.tops[w][l]);
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        // The sink only enlarges the denominator.
        float all = sink == kLowest ? 0.0f : weight_of(sink, best);
#pragma unroll
        for (uint32_t w = 0; w < kRowWarps; w++) {
            const float f = weight_of(s.tops[w][l], best);
            const float4 part = ((const float4*)(pool + (w * L + l) * D))[c];
            all += s.sums[w][l] * f;
            v.x += part.x * f;
            v.y += part.y * f;
            v.z += part.z * f;
            v.w += part.w * f;
        }
        if (a.splits == 1) {
            const float f = all > 0.0f ? 1.0f / all : 0.0f;
            v = turned(a, s.turns, 4 * c, make_float4(v.x * f, v.y * f, v.z * f, v.w * f));
            ((float4*)(a.out + (at0 + l) * D))[c] = v;
        } else {
            float* to = a.partial + ((at0 + l) * a.splits + split) * (D + 4);
            ((float4*)to)[c] = v;
            if (c == 0) {
                to[D] = best;
                to[D + 1] = all;
            }
        }
    }
    if (a.fold == 0) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        uint32_t* arrived = a.arrived + token * gridDim.y + blockIdx.y;
        s.last = atomicAdd(arrived, 1u) + 1 == a.splits ? 1u : 0u;
        if (s.last != 0) *arrived = 0;
        __threadfence();
    }
    __syncthreads();
    if (s.last != 0) fold_shares<L, D>(a, s, at0);
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
