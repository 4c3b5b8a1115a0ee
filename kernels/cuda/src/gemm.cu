// See gemm.cuh. grid (outputs / 64, tokens / M or expert tiles, splits), 128 threads, shared `GemmShared`
#include "gemm.cuh"
#include "rows.cuh"

#define GEMM(name, W)                                                  \
    KERNEL(name##_128, GemmArgs, 128) { gemm<W, 128>(a); }             \
    KERNEL(name##_64, GemmArgs, 128) { gemm<W, 64>(a); }

#define FAST(Chunk, parts) Fast<Chunk, parts>
GEMM(gemm_f32, FAST(ChunkF32, 3))
GEMM(gemm_f16, FAST(ChunkF16, 2))
GEMM(gemm_f16_all, FAST(ChunkF16, 3))
GEMM(gemm_bf16, FAST(ChunkBf16, 2))
GEMM(gemm_bf16_all, FAST(ChunkBf16, 3))
GEMM(gemm_f8, FAST(ChunkF8, 2))
GEMM(gemm_f8_all, FAST(ChunkF8, 3))
GEMM(gemm_fp4, FAST(ChunkFp4, 2))
GEMM(gemm_fp4_all, FAST(ChunkFp4, 3))
GEMM(gemm_any, Slow)

// Splits x into its parts, four neighbours per thread. grid (ceil(pitch / 1024), bucket * runs)
KERNEL(gemm_split, SplitArgs, 256) {
    const uint32_t c = 4 * (blockIdx.x * blockDim.x + threadIdx.x), run = blockIdx.y;
    if (c >= a.pitch || run / a.runs >= step_rows(*a.step, a.tokens)) return;
    const float* x = a.x + (size_t)(run / a.runs) * a.x_stride + (size_t)(run % a.runs) * a.cols;
    float4 v;
    if ((a.cols | a.x_stride) % 4 == 0) {
        v = c < a.cols ? *(const float4*)(x + c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    } else {
        v.x = c < a.cols ? x[c] : 0.0f;
        v.y = c + 1 < a.cols ? x[c + 1] : 0.0f;
        v.z = c + 2 < a.cols ? x[c + 2] : 0.0f;
        v.w = c + 3 < a.cols ? x[c + 3] : 0.0f;
    }
    uint32_t left[3], right[3];
    split_pair(v.x, v.y, left);
    split_pair(v.z, v.w, right);
    const size_t part = split_part(a) / 4, at = split_at(a, run, c) / 4;
#pragma unroll
    for (uint32_t p = 0; p < 3; p++) {
        if (p < a.n_parts) ((uint2*)a.parts)[p * part + at] = make_uint2(left[p], right[p]);
    }
}

struct NormSplitArgs {
    NormArgs norm;
    SplitArgs split;  // of what the norm gives, x not used
};

__device__ __forceinline__ float4 times(const float4& a, const float4& b) {
    return make_float4(a.x * b.x, a.y * b.y, a.z * b.z, a.w * b.w);
}
__device__ __forceinline__ float4 less(const float4& a, float b) { return make_float4(a.x - b, a.y - b, a.z - b, a.w - b); }
__device__ __forceinline__ float sum_of(const float4& a) { return (a.x + a.y) + (a.z + a.w); }

// Fours of a row that a thread holds.
constexpr uint32_t kFours = 4;

// The norm of a row of whole fours by a block, four neighbours at a time: values and weights are on their way before anything is
// waited for. Nothing is stored of a row that is not `there`.
template <class F, class S>
__device__ __forceinline__ void norm_fours(const NormArgs& a, const float* x, bool there, F sum, S store) {
    const uint32_t each = 4 * blockDim.x, first = 4 * threadIdx.x, rest = first + kFours * each;
    const auto value = [&](uint32_t i) { return *(const float4*)(x + i); };
    const auto weight = [&](uint32_t i) {
        return a.weight.data != nullptr ? vector_four(a.weight, i) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    };
    float4 v[kFours], w[kFours];
#pragma unroll
    for (uint32_t k = 0; k < kFours; k++) {
        const uint32_t i = first + k * each;
        v[k] = w[k] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i >= a.group) continue;
        v[k] = value(i);
        w[k] = weight(i);
    }
    float mean = 0.0f;
    if (a.layer != 0) {
        float part = 0.0f;
#pragma unroll
        for (uint32_t k = 0; k < kFours; k++) part += sum_of(v[k]);
        for (uint32_t i = rest; i < a.group; i += each) part += sum_of(value(i));
        mean = sum(part) / (float)a.group;
    }
    const auto square = [&](const float4& u) { return sum_of(times(less(u, mean), less(u, mean))); };
    float part = 0.0f;
#pragma unroll
    for (uint32_t k = 0; k < kFours; k++) part += first + k * each < a.group ? square(v[k]) : 0.0f;
    for (uint32_t i = rest; i < a.group; i += each) part += square(value(i));
    const float scale = rsqrtf(sum(part) / (float)a.group + a.eps);
    if (!there) return;
    const auto give = [&](uint32_t i, const float4& u, const float4& weight) {
        float4 y = times(times(less(u, mean), make_float4(scale, scale, scale, scale)), weight);
        if (a.bias.data != nullptr) {
            const float4 b = vector_four(a.bias, i);
            y = make_float4(y.x + b.x, y.y + b.y, y.z + b.z, y.w + b.w);
        }
        store(i, y);
    };
#pragma unroll
    for (uint32_t k = 0; k < kFours; k++) {
        if (first + k * each < a.group) give(first + k * each, v[k], w[k]);
    }
    for (uint32_t i = rest; i < a.group; i += each) give(i, value(i), weight(i));
}

// The norm of a row, split at once. grid (rows of the bucket), up to 256 threads
KERNEL(norm_split, NormSplitArgs, 256) {
    __shared__ float sums[8];
    const uint32_t row = blockIdx.x;
    const bool there = row < step_rows(*a.norm.step, a.norm.rows);
    const float* x = a.norm.x + (size_t)row * a.norm.group;
    const size_t part = split_part(a.split);
    const auto store = [&](uint32_t i, float v) {
        uint16_t* to = a.split.parts + split_at(a.split, row, i);
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            const uint32_t bits = f32_to_bf16(v);
            if (p < a.split.n_parts) to[p * part] = (uint16_t)bits;
            v -= bf16_to_f32(bits);
        }
    };
    const auto store_four = [&](uint32_t i, const float4& v) {
        uint32_t left[3], right[3];
        split_pair(v.x, v.y, left);
        split_pair(v.z, v.w, right);
        uint2* to = (uint2*)(a.split.parts + split_at(a.split, row, i));
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            if (p < a.split.n_parts) to[p * part / 4] = make_uint2(left[p], right[p]);
        }
    };
    const auto sum = [&](float v) {
        v = block_sum(v, sums);
        __syncthreads();
        return v;
    };
    if (a.norm.group % 4 == 0) {
        norm_fours(a.norm, x, there, sum, store_four);
    } else if (there) {
        norm_values(a.norm, x, threadIdx.x, blockDim.x, sum, store);
    }
    if (!there) return;
    for (uint32_t i = a.split.cols + threadIdx.x; i < a.split.pitch; i += blockDim.x) store(i, 0.0f);
}

// Adds the shares up in order. grid (ceil(outputs / 256), tokens)
KERNEL(gemm_sum, GemmArgs, 256) {
    const uint32_t o = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (o >= a.w.rows || t >= step_rows(*a.step, a.tokens)) return;
    float v = a.bias.data == nullptr ? 0.0f : vector_at(a.bias, o);
    for (uint32_t s = 0; s < a.splits; s++) v += a.partial[((size_t)s * a.bucket + t) * a.w.rows + o];
    a.out[(size_t)t * a.out_stride + o] = v;
}

struct ExpertTilesArgs {
    const int32_t* chosen;  // [tokens, k]
    ExpertTile* tiles;      // [n_tiles]
    uint32_t* order;        // [tokens * k]
    const DevStep* step;
    uint32_t tokens;        // code
    uint32_t k;
    uint32_t experts;       // at most 1024
    uint32_t n_tiles;
    uint32_t run;           // slots of a tile at most
    uint32_t pad;
};

// Groups slots by expert, in order of slots; a warp has every 32nd expert. One block of 1024 threads; shared
// 4 * (slots + 2 * experts).
KERNEL(expert_tiles, ExpertTilesArgs, 1024) {
    DYNAMIC_SHARED(memory);
    __shared__ uint32_t scan[33];
    const uint32_t slots = step_rows(*a.step, a.tokens) * a.k, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    uint32_t* starts = (uint32_t*)memory;  // [experts]
    uint32_t* counts = starts + a.experts;  // [experts]
    int32_t* picks = (int32_t*)(counts + a.experts);
    for (uint32_t i = threadIdx.x; i < slots; i += blockDim.x) picks[i] = a.chosen[i];
    for (uint32_t i = threadIdx.x; i < a.n_tiles; i += blockDim.x) a.tiles[i].count = 0;
    __syncthreads();
    for (uint32_t e = warp; e < a.experts; e += 32) {
        uint32_t count = 0;
        for (uint32_t first = 0; first < slots; first += 32) {
            count += __popc(__ballot_sync(kAll, first + lane < slots && picks[first + lane] == (int32_t)e));
        }
        if (lane == 0) counts[e] = count;
    }
    __syncthreads();
    const uint32_t mine = threadIdx.x < a.experts ? counts[threadIdx.x] : 0;
    uint32_t total;
    const uint32_t begin = block_scan(mine, scan, &total);
    __syncthreads();
    const uint32_t tile = block_scan((mine + a.run - 1) / a.run, scan, &total);
    if (threadIdx.x < a.experts) {
        starts[threadIdx.x] = begin;
        for (uint32_t i = 0; i * a.run < mine; i++) {
            a.tiles[tile + i] = {threadIdx.x, begin + i * a.run, min(a.run, mine - i * a.run), 0};
        }
    }
    __syncthreads();
    for (uint32_t e = warp; e < a.experts; e += 32) {
        uint32_t at = starts[e];
        for (uint32_t first = 0; first < slots; first += 32) {
            const bool here = first + lane < slots && picks[first + lane] == (int32_t)e;
            const uint32_t all = __ballot_sync(kAll, here);
            if (here) a.order[at + __popc(all & ((1u << lane) - 1))] = first + lane;
            at += __popc(all);
        }
    }
}
