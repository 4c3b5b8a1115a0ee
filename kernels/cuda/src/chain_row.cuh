// Parts of a chain that make a cache row: (pooling,) norm, rotation, (Walsh-Hadamard transform,) record. A thread has two
// neighbouring values from the input to the record, so that the row goes through registers; all that does not hang on the
// launch before is done while that runs, the tokens that a row pools except for the step's own with it.
#pragma once

#include "pool.cuh"
#include "rows.cuh"

enum LinkKind : uint32_t {
    kLinkNorm = 0,
    kLinkRope,
    kLinkCacheWrite,
    kLinkHadamard,
    kLinkRoundTrip,
    kLinkExpertSum,
    kLinkHcMix,
    kLinkHcCollapse,
    kLinkHcExpand,
    kLinkPool,
};

constexpr uint32_t kLinkBytes = 240;

// One op with its parameter struct. `LinkArg` in ../ops/chain.rs.
struct Link {
    uint32_t kind;
    uint32_t rows;  // code
    __align__(8) unsigned char args[kLinkBytes];
};

template <class T>
__device__ __forceinline__ const T& link_args(const Link& l) {
    static_assert(sizeof(T) <= kLinkBytes, "a link has room for every parameter struct");
    return *(const T*)l.args;
}

// Widest row, and most warps of a block that makes one.
constexpr uint32_t kRowWidth = 1024, kRowWarps = 16;

// The ops of such a part; null where there is none.
struct RowOps {
    const PoolArgs* pool;
    const NormArgs* norm;
    const RopeArgs* rope;
    const RunsArgs* hadamard;
    const CacheWriteArgs* write;
    uint32_t rows;  // code
};

// Whether a cache's records can be written two values per thread, a scale's values by neighbours of one warp.
__device__ __forceinline__ bool row_pairs(const CacheRef& c) {
    switch (c.format) {
        case kCacheF32:
        case kCacheBf16: return true;
        case kCacheFp4: return c.width % 32 == 0;
        case kCacheFp8Model1:
        case kCacheFp8B64: return (c.width - c.rope) % 64 == 0 && c.data_bytes % 4 == 0;
        default: return false;
    }
}

// Whether `count` links are such a part, for a block of `threads`; then `ops` are its ops.
__device__ __forceinline__ bool row_ops(const Link* links, uint32_t count, uint32_t threads, RowOps& ops) {
    ops = {};
    uint32_t i = 0;
    if (i < count && links[i].kind == kLinkPool) ops.pool = &link_args<PoolArgs>(links[i++]);
    if (i < count && links[i].kind == kLinkNorm) {
        ops.rows = links[i].rows;
        ops.norm = &link_args<NormArgs>(links[i++]);
    }
    if (i < count && links[i].kind == kLinkRope) ops.rope = &link_args<RopeArgs>(links[i++]);
    if (i < count && links[i].kind == kLinkHadamard) ops.hadamard = &link_args<RunsArgs>(links[i++]);
    if (i < count && links[i].kind == kLinkCacheWrite) ops.write = &link_args<CacheWriteArgs>(links[i++]);
    if (i != count || ops.norm == nullptr || ops.rope == nullptr || ops.write == nullptr) return false;
    const NormArgs& n = *ops.norm;
    const RopeArgs& r = *ops.rope;
    const CacheRef& c = ops.write->cache;
    const uint32_t width = n.group;
    bool fits = n.groups == 1 && n.layer == 0 && n.bias.data == nullptr && width % 2 == 0 && width <= min(2 * threads, kRowWidth);
    fits &= r.x == n.out && r.width == width && r.heads == 1 && r.half == 0 && (r.offset | r.dims) % 2 == 0;
    fits &= ops.write->src == n.out && c.records == 1 && c.width == width && row_pairs(c) && threads <= 32 * kRowWarps;
    if (ops.hadamard != nullptr) {
        const RunsArgs& h = *ops.hadamard;
        fits &= h.x == n.out && h.runs == 1 && h.width == width && width >= 64 && (width & (width - 1)) == 0;
    }
    if (ops.pool != nullptr) {
        const PoolArgs& p = *ops.pool;
        fits &= p.out == n.x && n.out == n.x && p.d == width && (p.c == width || p.c == 2 * width);
    }
    return fits;
}

// A transform of the block's row, a pair of neighbours per thread: strides 1, 2, 4, ... as on the CPU, the same bits.
__device__ __forceinline__ float2 row_hadamard(float2 v, uint32_t width, float norm, float* shared) {
    const uint32_t at = 2 * threadIdx.x;
    const auto turned = [&](float2 mine, float2 other, uint32_t half) {
        const bool upper = (at & half) != 0;
        return upper ? make_float2(other.x - mine.x, other.y - mine.y) : make_float2(mine.x + other.x, mine.y + other.y);
    };
    v = make_float2(v.x + v.y, v.x - v.y);
#pragma unroll
    for (uint32_t half = 2; half < 64; half *= 2) {
        v = turned(v, make_float2(__shfl_xor_sync(kAll, v.x, (int)half / 2), __shfl_xor_sync(kAll, v.y, (int)half / 2)), half);
    }
#pragma unroll 1
    for (uint32_t half = 64; half < width; half *= 2) {
        if (at < width) *(float2*)(shared + at) = v;
        __syncthreads();
        if (at < width) v = turned(v, *(const float2*)(shared + (at ^ half)), half);
        __syncthreads();
    }
    return make_float2(__fmul_rn(v.x, norm), __fmul_rn(v.y, norm));
}

// This thread's two values of a record; `data` and `scales` are the record's.
__device__ __forceinline__ void row_store(const CacheRef& c, uint8_t* data, uint8_t* scales, float2 v, bool stores, RoundTrip& trip) {
    const uint32_t at = 2 * threadIdx.x, lane = threadIdx.x & 31;
    if (c.format == kCacheF32) {
        if (stores) *(float2*)(data + 4 * at) = v;
        return;
    }
    const uint32_t plain = f32_to_bf16(v.x) | f32_to_bf16(v.y) << 16;
    if (c.format == kCacheBf16) {
        if (stores) *(uint32_t*)(data + 2 * at) = plain;
        return;
    }
    const bool four = c.format == kCacheFp4;
    const uint32_t rounded = four ? c.width : c.width - c.rope, scaled = rounded / (four ? 32 : 64);
    float largest = at < rounded ? fmaxf(finite_magnitude(v.x), finite_magnitude(v.y)) : 0.0f;
    // 16 lanes have 32 values, 32 have 64.
#pragma unroll
    for (int m = 8; m > 0; m >>= 1) largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, m));
    const float beside = __shfl_xor_sync(kAll, largest, 16);
    float stored;
    if (four) {
        if (!stores) return;
        const uint32_t byte = e2m1_scale_byte(largest);
        const uint32_t low = e2m1_encode(v.x, byte, &stored, trip), high = e2m1_encode(v.y, byte, &stored, trip);
        data[at / 2] = (uint8_t)(low | high << 4);
        if (lane % 16 == 0) scales[at / 32] = (uint8_t)byte;
    } else if (stores && at < rounded) {
        const uint32_t byte = e4m3_scale_byte(fmaxf(largest, beside));
        const uint32_t low = e4m3_encode(v.x, byte, &stored, trip), high = e4m3_encode(v.y, byte, &stored, trip);
        *(uint16_t*)(data + at) = (uint16_t)(low | high << 8);
        if (lane == 0) scales[at / 64] = (uint8_t)byte;
    } else if (stores) {
        *(uint32_t*)(data + rounded + 2 * (at - rounded)) = plain;
    }
    // MODEL1's record has one unused scale byte.
    if (stores && threadIdx.x >= scaled && threadIdx.x < c.scale_bytes) scales[threadIdx.x] = 0;
}

// Row `row` of such a part, by all threads of a block; `shared`: kRowWidth values.
__device__ __forceinline__ void chain_row(const RowOps& ops, const DevStep& step, uint32_t row, float* shared) {
    __shared__ float squares[kRowWarps];
    const NormArgs& n = *ops.norm;
    const RopeArgs& r = *ops.rope;
    const CacheRef& c = ops.write->cache;
    const uint32_t at = 2 * threadIdx.x, width = n.group, rows = step_rows(step, ops.rows);
    const bool mine = at < width, there = row < rows;
    // What does not hang on the launch before.
    float2 weight = make_float2(1.0f, 1.0f), turn = make_float2(0.0f, 1.0f);
    if (mine && there) {
        if (n.weight.data != nullptr) weight = make_float2(vector_at(n.weight, at), vector_at(n.weight, at + 1));
        if (at >= r.offset && at < r.offset + r.dims) {
            const uint64_t position = r.rate == 0 ? step.position + row : (first_closed(step, r.rate) + row) * r.rate;
            turn = turn_at(position, r.freqs[(at - r.offset) / 2], r.inverse != 0);
        }
    }
    const size_t slot = cache_slot(c, (ops.write->rate == 0 ? step.position : first_closed(step, ops.write->rate)) + row);
    // A later row of the step takes the same slot: the last one stays.
    const bool stores = mine && !(c.ring != 0 && row + c.ring < rows);
    const float norm = ops.hadamard != nullptr ? (float)(1.0 / sqrt((double)width)) : 1.0f;
    PoolPair pooled;
    float2 ape[2];
    float* kept = nullptr;
    if (ops.pool != nullptr && mine) {
        const PoolArgs& p = *ops.pool;
        if (there) pooled = pool_before(p, step, at);
        const uint32_t first = (uint32_t)step.position % p.rate * p.c + at;
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t i = first + (k * width < p.c ? k * width : 0);
            ape[k] = make_float2(vector_at(p.ape, i), vector_at(p.ape, i + 1));
        }
        kept = p.state + (size_t)((uint32_t)step.position % p.slots) * 2 * p.c + at;
    }
    await_predecessor();
    float2 v = make_float2(0.0f, 0.0f);
    if (ops.pool == nullptr) {
        if (mine && there) v = *(const float2*)(n.x + (size_t)row * width + at);
    } else if (mine) {
        const PoolArgs& p = *ops.pool;
        float2 value[2], gate[2];
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            const uint32_t i = at + (k * width < p.c ? k * width : 0);
            value[k] = *(const float2*)(p.kv + i);
            gate[k] = *(const float2*)(p.gate + i);
            gate[k] = make_float2(gate[k].x + ape[k].x, gate[k].y + ape[k].y);
        }
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            if (k * width >= p.c) break;
            *(float2*)(kept + k * width) = value[k];
            *(float2*)(kept + p.c + k * width) = gate[k];
        }
        if (there) {
            // The second half is the token's own part where rows overlap; elsewhere it repeats the first.
            pooled.add<1>(value + 1, gate + 1);
            v = pooled.result();
        }
    }
    if (!there) return;
    const float square = warp_sum(v.x * v.x + v.y * v.y);
    if ((threadIdx.x & 31) == 0) squares[threadIdx.x / 32] = square;
    __syncthreads();
    float all = 0.0f;
#pragma unroll
    for (uint32_t w = 0; w < kRowWarps; w++) all += 32 * w < blockDim.x ? squares[w] : 0.0f;
    const float scale = rsqrtf(all / (float)width + n.eps);
    v = make_float2(v.x * scale * weight.x, v.y * scale * weight.y);
    v = make_float2(v.x * turn.y - v.y * turn.x, v.x * turn.x + v.y * turn.y);
    if (ops.hadamard != nullptr) v = row_hadamard(v, width, norm, shared);
    if (mine) *(float2*)(n.out + (size_t)row * width + at) = v;
    RoundTrip trip;
    row_store(c, c.data + slot * c.data_bytes, c.scales + slot * c.scale_bytes, v, stores, trip);
    if (c.format > kCacheBf16) write_stats(trip, ops.write->stats == nullptr ? nullptr : ops.write->stats + row);
}
