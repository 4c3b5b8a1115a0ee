// Ops on one row by one block: what kernels/cuda/src/chain.cu strings together. Every function is called by all threads
// of the block and begins where the row's earlier values are visible to all of them. Ops that treat a row's runs (heads)
// alike can be shared out: block `slice` of `slices` takes its share of the runs.
#pragma once

#include "records.cuh"
#include "weights.cuh"

struct NormArgs {
    WeightRef weight;    // [group], null data = 1
    WeightRef bias;      // [group], null data = 0
    const float* x;      // [rows, groups, group]
    float* out;          // the same shape; may be x
    const DevStep* step;
    uint32_t rows;       // code of x's rows
    uint32_t groups;     // per row
    uint32_t group;      // values per run
    uint32_t layer;      // 1 = LayerNorm
    float eps;
    uint32_t pad;
};

struct RopeArgs {
    float* x;              // [rows, width]
    const double* freqs;   // [dims / 2]
    const DevStep* step;
    uint32_t rows;         // code of x's rows
    uint32_t width;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t offset;       // first rotated value of a head
    uint32_t dims;         // rotated values of a head, at most 512
    uint32_t half;         // 1 = pairs (i, i + dims / 2), 0 = (2i, 2i + 1)
    uint32_t rate;         // rows are closed rows of this rate; 0 = tokens
    uint32_t inverse;
    uint32_t pad;
};

struct CacheWriteArgs {
    CacheRef cache;
    const float* src;    // [rows, records * width]
    const DevStep* step;
    DevRowStats* stats;  // [rows], null = none
    uint32_t src_rows;   // code of src's rows
    uint32_t rate;       // rows are closed rows of this rate; 0 = tokens
};

struct RunsArgs {
    float* x;             // [rows, runs, width]
    const DevStep* step;
    uint32_t rows;        // code of x's rows
    uint32_t runs;        // per row
    uint32_t width;       // values per run
    uint32_t format;      // CacheFormat (round_trip)
};

struct ExpertSumArgs {
    const float* x;       // [tokens, k * width]
    const float* shared;  // [tokens, width], null = none
    float* out;           // [tokens, width]
    const DevStep* step;
    uint32_t k;
    uint32_t width;
};

struct StreamsArgs {
    float* x;           // [tokens, n, width]
    const float* o;     // [tokens, width] (expand)
    const float* pre;   // [tokens, n] (collapse)
    const float* post;  // [tokens, n] (expand)
    const float* comb;  // [tokens, n, n] (expand)
    float* out;         // [tokens, width] (collapse)
    const DevStep* step;
    uint32_t rows;
    uint32_t width;
    uint32_t n;         // streams, at most 8
    uint32_t pad;
};

constexpr uint32_t kHcSlice = 256, kHcOutputs = 80;

struct HcMixArgs {
    WeightRef matrix;   // [outputs, width]
    WeightRef base;     // [outputs]
    WeightRef scale;    // [3], or [1]
    const float* x;     // [rows, width], the streams side by side
    float* partial;     // [rows, slices, outputs + 1]: products per slice, then the sum of squares
    float* pre;         // [rows, n]
    float* post;        // [rows, n], null = head form
    float* comb;        // [rows, n, n], null = head form
    const DevStep* step;
    uint32_t rows;      // code of x's rows
    uint32_t width;
    uint32_t n;         // streams, at most 8
    uint32_t outputs;   // n, or (2 + n) n
    uint32_t iterations;
    float eps;
    float norm_eps;
    uint32_t slices;    // of the width, 256 values each
};

// Runs of a slice: from .x on, below .y.
__device__ __forceinline__ uint2 runs_of(uint32_t runs, uint32_t slice, uint32_t slices) {
    const uint32_t per = (runs + slices - 1) / slices;
    return make_uint2(min(slice * per, runs), min((slice + 1) * per, runs));
}

// The rotation of a row, by all threads of a block: (sine, cosine) of every pair.
__device__ __forceinline__ void rope_turns(const RopeArgs& a, const DevStep& step, uint32_t row, float2* turns) {
    const uint64_t position = a.rate == 0 ? step.position + row : (first_closed(step, a.rate) + row) * a.rate;
    for (uint32_t i = threadIdx.x; i < a.dims / 2; i += blockDim.x) {
        turns[i] = turn_at(position, a.freqs[i], a.inverse != 0);
    }
}

// Rotates a row; called when all threads see `turns`.
__device__ __forceinline__ void rope_row(const RopeArgs& a, uint32_t row, const float2* turns, uint32_t slice = 0,
                                         uint32_t slices = 1) {
    const uint32_t pairs = a.dims / 2;
    float* const x = a.x + (size_t)row * a.width;
    const uint2 heads = runs_of(a.heads, slice, slices);
    for (uint32_t n = heads.x * pairs + threadIdx.x; n < heads.y * pairs; n += blockDim.x) {
        const uint32_t head = n / pairs, i = n % pairs;
        float* v = x + head * a.head_dim + a.offset;
        const uint32_t first = a.half != 0 ? i : 2 * i, second = a.half != 0 ? i + pairs : 2 * i + 1;
        const float p = v[first], q = v[second];
        v[first] = p * turns[i].y - q * turns[i].x;
        v[second] = p * turns[i].x + q * turns[i].y;
    }
}

// Adds up what the threads of a block noted and stores it.
__device__ inline void write_stats(const RoundTrip& trip, DevRowStats* out) {
    if (out == nullptr) return;
    __shared__ DevRowStats warps[32];
    const uint32_t lane = threadIdx.x & 31;
    const DevRowStats mine = {warp_sum(trip.err), warp_sum(trip.ref), warp_sum(trip.saturated), warp_sum(trip.flushed)};
    if (lane == 0) warps[threadIdx.x / 32] = mine;
    __syncthreads();
    if (threadIdx.x >= 32) return;
    DevRowStats all = {};
    if (lane < (blockDim.x + 31) / 32) all = warps[lane];
    all = {warp_sum(all.sum_sq_err), warp_sum(all.sum_sq), warp_sum(all.saturated), warp_sum(all.flushed)};
    if (lane == 0) *out = all;
}

// Warps take blocks of values that share a scale.
// Plain formats can be shared out by records; others are written by slice 0 of 1.
__device__ inline void cache_write_row(const CacheWriteArgs& a, const DevStep& step, uint32_t row, uint32_t slice = 0,
                                       uint32_t slices = 1) {
    const CacheRef& c = a.cache;
    const uint32_t rows = step_rows(step, a.src_rows);
    const uint64_t index = (a.rate == 0 ? step.position : first_closed(step, a.rate)) + row;
    // A later row of the step takes the same slot: the last one stays.
    const bool hidden = c.ring != 0 && row + c.ring < rows;
    const size_t slot = cache_slot(c, index);
    const float* const values = a.src + (size_t)row * c.records * c.width;
    RoundTrip trip;
    const bool v32 = c.format == kCacheFp8V32;
    const uint32_t nope =
        c.format == kCacheFp8Model1 || c.format == kCacheFp8B64 || v32 ? c.width - c.rope : c.width;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, warps = blockDim.x / 32;
    if (c.format <= kCacheBf16) {
        // Records of a row lie side by side; nothing is lost that would have to be counted.
        const uint2 mine = runs_of(c.records, slice, slices);
        uint8_t* data = c.data + slot * c.records * c.data_bytes;
        if (hidden) return;
#pragma unroll 4
        for (uint32_t i = mine.x * c.width + threadIdx.x; i < mine.y * c.width; i += blockDim.x) {
            if (c.format == kCacheF32) {
                ((float*)data)[i] = values[i];
            } else {
                ((uint16_t*)data)[i] = (uint16_t)f32_to_bf16(values[i]);
            }
        }
        return;
    }
    // Warps take blocks of all records.
    const bool four = c.format == kCacheFp4;
    const uint32_t block = four ? 32 : v32 ? 128 : 64, blocks = (nope + block - 1) / block;
    for (uint32_t n = warp; n < c.records * (blocks + 1) && !hidden; n += warps) {
        const uint32_t r = n / (blocks + 1), b = n % (blocks + 1), from = b * block;
        const float* v = values + r * c.width;
        const size_t at = slot * c.records + r;
        uint8_t *data = c.data + at * c.data_bytes, *scales = c.scales + at * c.scale_bytes;
        if (b == blocks) {
            // The rotated part, by a warp of its own.
            for (uint32_t i = nope + lane; i < c.width; i += 32) {
                const uint32_t bits = f32_to_bf16(v[i]);
                uint8_t* to = data + nope + v32_scale_bytes(c) + 2 * (i - nope);
                to[0] = (uint8_t)bits;
                to[1] = (uint8_t)(bits >> 8);
            }
            // MODEL1's record has one unused scale byte.
            for (uint32_t i = blocks + lane; i < c.scale_bytes; i += 32) scales[i] = 0;
            continue;
        }
        uint8_t* scale = v32 ? data + nope + 4 * b : scales + b;
        encode_block(v + from, min(block, nope - from), four, data + (four ? from / 2 : from), scale, trip);
        if (v32 && lane == 0) {
            // V3.2's scales are floats between the codes and the rope part.
            const uint32_t bits = __float_as_uint(ue8m0_to_f32(*scale));
            for (uint32_t i = 0; i < 4; i++) scale[i] = (uint8_t)(bits >> 8 * i);
        }
    }
    write_stats(trip, a.stats == nullptr ? nullptr : a.stats + row);
}

// Values of a run per thread whose weights are asked for together with them.
constexpr uint32_t kNormHeld = 8;

// A run by `width` threads of which this is `me`; `sum` adds up over them, `store` gets every value with its place. HELD values and
// weights are on their way before the first is used: a weight is read once per step, from the slowest memory. (A thread with fewer
// goes through less code, which at one token is slow to come, too.)
template <uint32_t HELD = kNormHeld, class F, class S>
__device__ __forceinline__ void norm_values(const NormArgs& a, const float* x, uint32_t me, uint32_t width, F sum, S store) {
    const uint32_t rest = me + HELD * width;
    float v[HELD], w[HELD];
#pragma unroll
    for (uint32_t k = 0; k < HELD; k++) {
        const uint32_t i = me + k * width;
        v[k] = i < a.group ? x[i] : 0.0f;
        w[k] = i < a.group && a.weight.data != nullptr ? vector_at(a.weight, i) : 1.0f;
    }
    float mean = 0.0f;
    if (a.layer != 0) {
        float part = 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < HELD; k++) part += v[k];
        for (uint32_t i = rest; i < a.group; i += width) part += x[i];
        mean = sum(part) / (float)a.group;
    }
    float square = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < HELD; k++) {
        const float d = me + k * width < a.group ? v[k] - mean : 0.0f;
        square += d * d;
    }
#pragma unroll 4
    for (uint32_t i = rest; i < a.group; i += width) square += (x[i] - mean) * (x[i] - mean);
    const float scale = rsqrtf(sum(square) / (float)a.group + a.eps);
#pragma unroll
    for (uint32_t k = 0; k < HELD; k++) {
        const uint32_t i = me + k * width;
        if (i >= a.group) break;
        const float y = (v[k] - mean) * scale * w[k];
        store(i, a.bias.data == nullptr ? y : y + vector_at(a.bias, i));
    }
#pragma unroll 2
    for (uint32_t i = rest; i < a.group; i += width) {
        float y = (x[i] - mean) * scale;
        if (a.weight.data != nullptr) y *= vector_at(a.weight, i);
        if (a.bias.data != nullptr) y += vector_at(a.bias, i);
        store(i, y);
    }
}

template <class F>
__device__ __forceinline__ void norm_run(const NormArgs& a, const float* x, float* out, uint32_t me, uint32_t width, F sum) {
    norm_values(a, x, me, width, sum, [&](uint32_t i, float y) { out[i] = y; });
}

// One warp per run, or the whole block where there is one run.
__device__ inline void norm_row(const NormArgs& a, uint32_t row, uint32_t slice = 0, uint32_t slices = 1) {
    __shared__ float sums[32];
    const size_t at = (size_t)row * a.groups * a.group;
    if (a.groups == 1) {
        const auto sum = [&](float v) {
            v = block_sum(v, sums);
            __syncthreads();
            return v;
        };
        const auto store = [&](uint32_t i, float y) { a.out[at + i] = y; };
        if (a.group <= 2 * blockDim.x) {
            norm_values<2>(a, a.x + at, threadIdx.x, blockDim.x, sum, store);
        } else {
            norm_values(a, a.x + at, threadIdx.x, blockDim.x, sum, store);
        }
        return;
    }
    const uint2 groups = runs_of(a.groups, slice, slices);
    for (uint32_t g = groups.x + threadIdx.x / 32; g < groups.y; g += blockDim.x / 32) {
        const size_t from = at + (size_t)g * a.group;
        norm_run(a, a.x + from, a.out + from, threadIdx.x & 31, 32, [](float v) { return warp_sum(v); });
    }
}

// Rounds runs of values to a cache format and back.
__device__ inline void round_trip_run(const RunsArgs& a, float* x) {
    if (a.format == kCacheF32) return;
    if (a.format == kCacheBf16) {
        for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
        return;
    }
    const bool four = a.format == kCacheFp4;
    const uint32_t block = four ? 32 : 64, lane = threadIdx.x & 31;
    RoundTrip trip;
    for (uint32_t from = threadIdx.x / 32 * block; from < a.width; from += blockDim.x / 32 * block) {
        const uint32_t n = min(block, a.width - from);
        float amax = 0.0f;
        for (uint32_t k = lane; k < n; k += 32) amax = fmaxf(amax, finite_magnitude(x[from + k]));
        amax = warp_max(amax);
        const uint32_t byte = four ? e2m1_scale_byte(amax) : e4m3_scale_byte(amax);
        for (uint32_t k = lane; k < n; k += 32) {
            float stored;
            if (four) {
                e2m1_encode(x[from + k], byte, &stored, trip);
            } else {
                e4m3_encode(x[from + k], byte, &stored, trip);
            }
            x[from + k] = stored;
        }
    }
}

// Normalised Walsh-Hadamard transform of a run of 2^n values in shared memory, strides 1, 2, 4, ... as on the CPU: the
// same bits.
__device__ inline void hadamard_run(const RunsArgs& a, float* x, float* v) {
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) v[i] = x[i];
    for (uint32_t half = 1; half < a.width; half *= 2) {
        __syncthreads();
        for (uint32_t p = threadIdx.x; p < a.width / 2; p += blockDim.x) {
            const uint32_t i = p / half * 2 * half + p % half;
            const float first = v[i], second = v[i + half];
            v[i] = first + second;
            v[i + half] = first - second;
        }
    }
    __syncthreads();
    const float norm = (float)(1.0 / sqrt((double)a.width));
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) x[i] = __fmul_rn(v[i], norm);
}

__device__ inline void expert_sum_row(const ExpertSumArgs& a, uint32_t t) {
    for (uint32_t c = threadIdx.x; c < a.width; c += blockDim.x) {
        const size_t i = (size_t)t * a.width + c;
        float v = a.shared == nullptr ? 0.0f : a.shared[i];
        for (uint32_t s = 0; s < a.k; s++) v += a.x[((size_t)t * a.k + s) * a.width + c];
        a.out[i] = v;
    }
}

__device__ inline void hc_collapse_at(const StreamsArgs& a, uint32_t t, uint32_t c) {
    const float* x = a.x + (size_t)t * a.n * a.width + c;
    float v = 0.0f;
    for (uint32_t i = 0; i < a.n; i++) v += a.pre[t * a.n + i] * x[(size_t)i * a.width];
    a.out[(size_t)t * a.width + c] = v;
}

__device__ inline void hc_expand_at(const StreamsArgs& a, uint32_t t, uint32_t c) {
    float* x = a.x + (size_t)t * a.n * a.width + c;
    const float o = a.o[(size_t)t * a.width + c];
    const float *post = a.post + t * a.n, *comb = a.comb + t * a.n * a.n;
    float old[8];
#pragma unroll
    for (uint32_t j = 0; j < 8; j++) old[j] = j < a.n ? x[(size_t)j * a.width] : 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < 8; k++) {
        if (k >= a.n) break;
        float v = post[k] * o;
#pragma unroll
        for (uint32_t j = 0; j < 8; j++) {
            if (j < a.n) v += comb[j * a.n + k] * old[j];
        }
        x[(size_t)k * a.width] = v;
    }
}

// Softmax over rows, then columns and rows in turn, ending on columns. Called by a warp; c: [n, n] in shared memory.
__device__ inline void sinkhorn(float* c, uint32_t n, uint32_t iterations, float eps) {
    const uint32_t i = threadIdx.x & 31;
    if (n == 4) {
        // A lane has an element, then every lane the whole matrix in registers: no exchanges, and a reciprocal per row or column.
        const float mine = c[i % 16];
        float best = fmaxf(mine, __shfl_xor_sync(kAll, mine, 1));
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 2));
        const float e = expf(mine - best);
        float sum = e + __shfl_xor_sync(kAll, e, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        __syncwarp();
        if (i < 16) c[i] = __fdividef(e, sum) + eps;
        __syncwarp();
        float v[4][4];
#pragma unroll
        for (uint32_t k = 0; k < 16; k++) v[k / 4][k % 4] = c[k];
#pragma unroll 1
        for (uint32_t round = 0; round < iterations; round++) {
#pragma unroll
            for (uint32_t r = 0; r < 4; r++) {
                if (round == 0) break;
                const float f = reciprocal((v[r][0] + v[r][1]) + (v[r][2] + v[r][3]) + eps);
#pragma unroll
                for (uint32_t k = 0; k < 4; k++) v[r][k] *= f;
            }
#pragma unroll
            for (uint32_t k = 0; k < 4; k++) {
                const float f = reciprocal((v[0][k] + v[1][k]) + (v[2][k] + v[3][k]) + eps);
#pragma unroll
                for (uint32_t r = 0; r < 4; r++) v[r][k] *= f;
            }
        }
        __syncwarp();
#pragma unroll
        for (uint32_t k = 0; k < 16; k++) {
            if (i == k) c[k] = v[k / 4][k % 4];
        }
        __syncwarp();
        return;
    }
    if (i < n) {
        float best = -INFINITY, sum = 0.0f;
        for (uint32_t k = 0; k < n; k++) best = fmaxf(best, c[i * n + k]);
        for (uint32_t k = 0; k < n; k++) {
            c[i * n + k] = expf(c[i * n + k] - best);
            sum += c[i * n + k];
        }
        for (uint32_t k = 0; k < n; k++) c[i * n + k] = c[i * n + k] / sum + eps;
    }
    for (uint32_t round = 0; round < iterations; round++) {
        __syncwarp();
        if (round > 0 && i < n) {
            float sum = 0.0f;
            for (uint32_t k = 0; k < n; k++) sum += c[i * n + k];
            for (uint32_t k = 0; k < n; k++) c[i * n + k] /= sum + eps;
        }
        __syncwarp();
        if (i < n) {
            float sum = 0.0f;
            for (uint32_t j = 0; j < n; j++) sum += c[j * n + i];
            for (uint32_t j = 0; j < n; j++) c[j * n + i] /= sum + eps;
        }
    }
    __syncwarp();
}

// Adds up the slices of hc_partial and makes the coefficients of a row.
__device__ inline void hc_finish_row(const HcMixArgs& a, uint32_t t) {
    __shared__ float mixed[kHcOutputs + 1], c[64];
    const float* parts = a.partial + (size_t)t * a.slices * (a.outputs + 1);
    for (uint32_t o = threadIdx.x; o <= a.outputs; o += blockDim.x) {
        float sum = 0.0f;
        for (uint32_t s = 0; s < a.slices; s++) sum += parts[s * (a.outputs + 1) + o];
        mixed[o] = sum;
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    const uint32_t n = a.n, lane = threadIdx.x;
    const float rho = rsqrtf(mixed[a.outputs] / (float)a.width + a.norm_eps);
    for (uint32_t o = lane; o < a.outputs; o += 32) mixed[o] *= rho;
    __syncwarp();
    if (lane < n) {
        a.pre[t * n + lane] = sigmoid(mixed[lane] * vector_at(a.scale, 0) + vector_at(a.base, lane)) + a.eps;
        if (a.post != nullptr) {
            a.post[t * n + lane] =
                2.0f * sigmoid(mixed[n + lane] * vector_at(a.scale, 1) + vector_at(a.base, n + lane));
        }
    }
    if (a.comb == nullptr) return;
    for (uint32_t i = lane; i < n * n; i += 32) {
        c[i] = mixed[2 * n + i] * vector_at(a.scale, 2) + vector_at(a.base, 2 * n + i);
    }
    __syncwarp();
    sinkhorn(c, n, a.iterations, a.eps);
    for (uint32_t i = lane; i < n * n; i += 32) a.comb[(size_t)t * n * n + i] = c[i];
}
