// Attention over cache rows, one softmax over all sources: keys pass through shared memory 32 at a time, the softmax
// is kept online, scores never reach device memory. Keys are split over blocks by a number that depends on the context
// bucket alone; attend_combine puts the shares together.
#include "attend.cuh"

constexpr uint32_t kKeys = 32;

// A tile of keys (and one of values, where they are kept apart) in shared memory, and the rows that go there.
struct Tile {
    float* data;  // [32][ld], twice where separate
    uint32_t ld, fours;
    bool separate;
    const uint32_t *slots, *from;
    const int32_t* rows;
    uint32_t record;
};

// Several loads are on their way before the first is used. Rows that are none read slot 0 and count as 0.
template <class R>
__device__ __forceinline__ void fill_tile(const AttendArgs& a, const Tile& t) {
    constexpr uint32_t U = R::AHEAD;
    const uint32_t count = kKeys * t.fours * (t.separate ? 2 : 1);
    for (uint32_t base = threadIdx.x; base < count; base += U * blockDim.x) {
        R raw[U];
#pragma unroll
        for (uint32_t u = 0; u < U; u++) {
            const uint32_t n = base + u * blockDim.x, r = n / t.fours % kKeys;
            if (n >= count) break;
            const Source& s = a.sources[t.from[r]];
            raw[u].load(n >= kKeys * t.fours ? s.values : s.keys, t.slots[r], t.record, n % t.fours * 4);
        }
#pragma unroll
        for (uint32_t u = 0; u < U; u++) {
            const uint32_t n = base + u * blockDim.x, r = n / t.fours % kKeys, c = n % t.fours * 4;
            if (n >= count) break;
            const float4 v = t.rows[r] >= 0 ? raw[u].value() : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            *(float4*)(t.data + (n >= kKeys * t.fours ? kKeys * t.ld : 0u) + r * t.ld + c) = v;
        }
    }
}

// L lanes per block (a lane is a query head of a token), C columns of the output per thread.
template <uint32_t L, uint32_t C>
__device__ __forceinline__ void attend_tile(const AttendArgs& a) {
    DYNAMIC_SHARED(memory);
    const uint32_t d = a.head_dim, ld = d + 4;
    float* q = (float*)memory;              // [L][d]
    float* tile = q + L * d;                // [32][ld], at the end [row groups][L][columns]
    // Columns are spread over threads; with fewer columns than threads, groups of threads share out the keys.
    const uint32_t columns = blockDim.x / (blockDim.x / min(blockDim.x, (d + 31) / 32 * 32));
    const uint32_t row_groups = blockDim.x / columns;
    bool separate = false, alike = true;
#pragma unroll
    for (uint32_t i = 0; i < kSources; i++) {
        separate |= i < a.n_sources && a.sources[i].keys.data != a.sources[i].values.data;
        const uint32_t format = a.sources[0].keys.format;
        alike &= i >= a.n_sources || (a.sources[i].keys.format == format && a.sources[i].values.format == format);
    }
    // Values that are not the keys have a tile of their own, so that both are loaded at once.
    const uint32_t tiles_size = max(kKeys * ld * (separate ? 2 : 1), row_groups > 1 ? row_groups * L * columns : 0u);
    const float* values = separate ? tile + kKeys * ld : tile;
    float* p = tile + tiles_size;           // [L][32]
    float* alpha = p + L * kKeys;           // [L]
    float* best = alpha + L;                // [L]
    float* sum = best + L;                  // [L]
    uint32_t* slots = (uint32_t*)(sum + L);  // [32], then sources, then rows
    uint32_t* from = slots + kKeys;
    int32_t* rows = (int32_t*)(from + kKeys);

    const DevStep step = *a.step;
    const uint32_t group = a.heads / a.kv_heads, parts = group / a.block_heads;
    const uint32_t kv = blockIdx.y / parts, head0 = kv * group + blockIdx.y % parts * a.block_heads;
    const uint32_t token0 = blockIdx.x * a.block_tokens, split = blockIdx.z;
    if (token0 >= step.tokens) return;
    const uint32_t tokens = min(a.block_tokens, step.tokens - token0), lanes = tokens * a.block_heads;
    const uint32_t last = token0 + tokens - 1;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, warps = blockDim.x / 32;

    uint32_t counts[kSources], total = 0;
#pragma unroll
    for (uint32_t i = 0; i < kSources; i++) {
        counts[i] = i < a.n_sources ? key_count(a, a.sources[i], step, token0, last) : 0;
        total += counts[i];
    }
    const uint32_t tiles = (total + kKeys - 1) / kKeys, per = (tiles + a.splits - 1) / a.splits;
    const uint32_t begin = min(split * per * kKeys, total), end = min((split + 1) * per * kKeys, total);

    const uint32_t fours = d / 4;
#pragma unroll 4
    for (uint32_t n = threadIdx.x; n < L * fours; n += blockDim.x) {
        const uint32_t l = n / fours, c = n % fours;
        const size_t at = (size_t)(token0 + l / a.block_heads) * a.heads + head0 + l % a.block_heads;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (l < lanes) v = ((const float4*)(a.q + at * d))[c];
        ((float4*)q)[n] = make_float4(v.x * a.scale, v.y * a.scale, v.z * a.scale, v.w * a.scale);
    }
    if (threadIdx.x < L) {
        best[threadIdx.x] = -INFINITY;
        sum[threadIdx.x] = 0.0f;
    }
    const uint32_t column = threadIdx.x % columns, row_group = threadIdx.x / columns;
    float acc[L][C] = {};

    for (uint32_t base = begin; base < end; base += kKeys) {
        __syncthreads();
        if (threadIdx.x < kKeys) {
            uint32_t j = base + threadIdx.x, source = 0;
            int64_t row = -1;
            if (j < end) {
                if (j >= counts[0]) {
                    j -= counts[0];
                    source = 1;
                }
                row = key_row(a, a.sources[source], step, token0, last, j);
            }
            slots[threadIdx.x] = row < 0 ? 0u : (uint32_t)cache_slot(a.sources[source].keys, (uint64_t)row);
            from[threadIdx.x] = source;
            rows[threadIdx.x] = (int32_t)row;
        }
        __syncthreads();
        const Tile t = {tile, ld, fours, separate, slots, from, rows, kv};
        switch (alike ? a.sources[0].keys.format : 0xffffffffu) {
            case kCacheF32: fill_tile<RecordF32>(a, t); break;
            case kCacheBf16: fill_tile<RecordBf16>(a, t); break;
            case kCacheFp4: fill_tile<RecordFp4>(a, t); break;
            case kCacheFp8Model1:
            case kCacheFp8B64: fill_tile<RecordFp8>(a, t); break;
            default: fill_tile<RecordAny>(a, t);
        }
        __syncthreads();
        // A warp has every eighth lane of queries, its threads one key each.
        for (uint32_t l = warp; l < lanes; l += warps) {
            float z = 0.0f;
            const float *k = tile + lane * ld, *query = q + l * d;
            for (uint32_t c = 0; c < d; c += 4) {
                const float4 x = *(const float4*)(k + c), y = *(const float4*)(query + c);
                z += x.x * y.x + x.y * y.y + x.z * y.z + x.w * y.w;
            }
            bool seen = rows[lane] >= 0;
            if (seen && a.sources[from[lane]].kind == kCausal) {
                seen = sees(a, step.position + token0 + l / a.block_heads, (uint64_t)rows[lane]);
            }
            z = seen ? z : -INFINITY;
            const float old = best[l], top = fmaxf(old, warp_max(z));
            const float e = seen ? exp2f((z - top) * kLog2e) : 0.0f;
            const float keep = old == -INFINITY ? 0.0f : exp2f((old - top) * kLog2e);
            const float mass = warp_sum(e);
            p[l * kKeys + lane] = e;
            __syncwarp();
            if (lane == 0) {
                alpha[l] = keep;
                best[l] = top;
                sum[l] = sum[l] * keep + mass;
            }
        }
        __syncthreads();
#pragma unroll
        for (uint32_t l = 0; l < L; l++) {
            if (l >= lanes) break;
#pragma unroll
            for (uint32_t c = 0; c < C; c++) acc[l][c] *= alpha[l];
        }
        for (uint32_t r = row_group; r < kKeys; r += row_groups) {
#pragma unroll
            for (uint32_t c = 0; c < C; c++) {
                if (column + c * columns >= d) break;
                const float v = values[r * ld + column + c * columns];
#pragma unroll
                for (uint32_t l = 0; l < L; l++) {
                    if (l >= lanes) break;
                    acc[l][c] += p[l * kKeys + r] * v;
                }
            }
        }
    }
    __syncthreads();
    if (row_groups > 1) {
#pragma unroll
        for (uint32_t l = 0; l < L; l++) tile[(row_group * L + l) * columns + column] = acc[l][0];
        __syncthreads();
    }
#pragma unroll
    for (uint32_t l = 0; l < L; l++) {
        if (l >= lanes || row_group != 0) break;
        const uint32_t head = head0 + l % a.block_heads;
        const size_t at = (size_t)(token0 + l / a.block_heads) * a.heads + head;
        float factor = 1.0f;
        if (a.splits == 1) {
            // The sink only enlarges the denominator.
            const float sink = a.sinks.data == nullptr ? -INFINITY : vector_at(a.sinks, head);
            const float top = fmaxf(best[l], sink);
            const float mine = best[l] == -INFINITY ? 0.0f : exp2f((best[l] - top) * kLog2e);
            const float all = sum[l] * mine + (sink == -INFINITY ? 0.0f : exp2f((sink - top) * kLog2e));
            factor = all > 0.0f ? mine / all : 0.0f;
        }
#pragma unroll
        for (uint32_t c = 0; c < C; c++) {
            const uint32_t at_column = column + c * columns;
            if (at_column >= d) break;
            float v = acc[l][c];
            for (uint32_t g = 1; g < row_groups; g++) v += tile[(g * L + l) * columns + column];
            if (a.splits == 1) {
                a.out[at * d + at_column] = v * factor;
            } else {
                a.partial[(at * a.splits + split) * (d + 4) + at_column] = v;
            }
        }
        if (a.splits > 1 && column == 0) {
            float* tail = a.partial + (at * a.splits + split) * (d + 4) + d;
            tail[0] = best[l];
            tail[1] = sum[l];
        }
    }
}

// grid (token tiles, key heads * parts, splits), 256 threads; shared: see `shared_bytes` in ../ops/attend.rs
#define ATTEND(name, lanes, columns, blocks)      \
    EARLY_KERNEL(name, AttendArgs, 256, blocks) { \
        await_predecessor();                      \
        attend_tile<lanes, columns>(a);           \
    }

ATTEND(attend_4, 4, 1, 2)
ATTEND(attend_4_wide, 4, 2, 2)
ATTEND(attend_8, 8, 1, 2)
ATTEND(attend_8_wide, 8, 2, 1)
ATTEND(attend_16, 16, 1, 1)

constexpr uint32_t kMostSplits = 128;

// Puts the shares of one query head together. grid (heads, tokens), 128 to 512 threads
KERNEL(attend_combine, AttendArgs, 512) {
    __shared__ float factors[kMostSplits], largest[16], sums[16];
    if (blockIdx.y >= a.step->tokens) return;
    const uint32_t d = a.head_dim, head = blockIdx.x, s = threadIdx.x;
    const size_t at = (size_t)blockIdx.y * a.heads + head;
    const float* shares = a.partial + at * a.splits * (d + 4);
    const float sink = a.sinks.data == nullptr ? -INFINITY : vector_at(a.sinks, head);
    const float best = s < a.splits ? shares[s * (d + 4) + d] : -INFINITY;
    const float top = fmaxf(sink, block_max(best, largest));
    // A share without keys (and a head that sees nothing at all) weighs nothing.
    // (attend_row marks it by a number below every score.)
    const float factor = best <= -1e30f ? 0.0f : exp2f((best - top) * kLog2e);
    if (s < kMostSplits) factors[s] = factor;
    float all = block_sum(s < a.splits ? shares[s * (d + 4) + d + 1] * factor : 0.0f, sums);
    all += sink == -INFINITY ? 0.0f : exp2f((sink - top) * kLog2e);
    for (uint32_t c = threadIdx.x; c < d; c += blockDim.x) {
        float v = 0.0f;
        // Without a branch, so that many shares are on their way at once. Shares without keys are 0.
#pragma unroll 16
        for (uint32_t i = 0; i < a.splits; i++) v += shares[i * (d + 4) + c] * factors[i];
        a.out[at * d + c] = all > 0.0f ? v / all : 0.0f;
    }
}
