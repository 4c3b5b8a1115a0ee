// One mHC site in one launch, for few tokens and four streams (MODEL1.md 3): what the block before gave is summed up and
// goes into the streams, the coefficients of the next block are made from them, and its input is collapsed out of them and
// normalised. Blocks share out the columns; the last one to arrive has all products and does the rest.
#include "rows.cuh"

constexpr uint32_t kSiteColumns = 64, kSiteStreams = 4, kSiteHeld = 3, kSitePairs = 4;

struct SiteArgs {
    HcMixArgs mix;          // x: [rows, 4, hidden]; slices: of the hidden width, 64 columns each
    const float* experts;   // [rows, k, hidden] summed up to o, null = o is there already
    const float* shared;    // [rows, hidden] added to that sum, null = none
    float* sum;             // [rows, hidden] where the sum is kept
    const float* o;         // [rows, hidden] goes into the streams, null (and no experts) = they stay as they are
    const float* post;      // [rows, 4] of the site before
    const float* comb;      // [rows, 4, 4] of the site before
    float* out;             // [rows, hidden]
    uint32_t* arrived;      // [rows], 0 before and after
    WeightRef norm;         // [hidden] f32 or bf16, of an RMSNorm of what is collapsed; null data = 1
    uint32_t k;
    uint32_t normed;        // 1 = `out` gets the normalised values
    float norm_eps;
    uint32_t pad;
};

// A warp makes the coefficients of row t that are wanted later, of the products `mixed` scaled by `rho`.
__device__ __forceinline__ void site_coefficients(const HcMixArgs& m, uint32_t t, const float* mixed, float rho, float* comb) {
    const uint32_t lane = threadIdx.x & 31;
    if (lane < kSiteStreams) {
        m.pre[t * 4 + lane] = sigmoid(mixed[lane] * rho * vector_at(m.scale, 0) + vector_at(m.base, lane)) + m.eps;
        if (m.post != nullptr) {
            m.post[t * 4 + lane] = 2.0f * sigmoid(mixed[4 + lane] * rho * vector_at(m.scale, 1) + vector_at(m.base, 4 + lane));
        }
    }
    if (m.comb == nullptr) return;
    if (lane < 16) comb[lane] = mixed[8 + lane] * rho * vector_at(m.scale, 2) + vector_at(m.base, 8 + lane);
    __syncwarp();
    sinkhorn(comb, kSiteStreams, m.iterations, m.eps);
    if (lane < 16) m.comb[(size_t)t * 16 + lane] = comb[lane];
}

__device__ __forceinline__ float dot_columns(float2 m, const float* v) { return m.x * v[0] + m.y * v[1]; }

// grid (slices, rows)
EARLY_KERNEL(hc_site, SiteArgs, 256, 2) {
    __shared__ float v[kSiteStreams][kSiteColumns], mixed[32], comb[16], sums[8];
    __shared__ uint32_t last;
    const HcMixArgs& m = a.mix;
    const uint32_t t = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x & 31, hidden = m.width / kSiteStreams;
    const uint32_t from = blockIdx.x * kSiteColumns, pair = from + 2 * lane;
    // hidden is even: a pair is inside or outside.
    const bool inside = pair < hidden;
    const float* matrix = (const float*)m.matrix.data;
    const auto coefficient = [&](uint32_t output, uint32_t stream) {
        const size_t at = (size_t)output * m.width + (size_t)stream * hidden + pair;
        return inside && output < m.outputs ? *(const float2*)(matrix + at) : make_float2(0.0f, 0.0f);
    };
    float2 held[kSiteHeld][kSiteStreams];
#pragma unroll
    for (uint32_t i = 0; i < kSiteHeld; i++) {
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) held[i][j] = coefficient(warp + 8 * i, j);
    }
    await_predecessor();
    if (t >= step_rows(*m.step, m.rows)) return;

    // A thread has a column of a stream.
    const uint32_t mine = threadIdx.x / kSiteColumns, c = threadIdx.x % kSiteColumns, column = from + c;
    float* x = (float*)m.x + (size_t)t * m.width;
    float value = 0.0f;
    const bool goes_in = a.o != nullptr || a.experts != nullptr;
    if (column < hidden) {
        if (goes_in) {
            const float* p = a.comb + t * 16 + mine;
            float old[kSiteStreams], share[kSiteStreams];
#pragma unroll
            for (uint32_t j = 0; j < kSiteStreams; j++) {
                old[j] = x[(size_t)j * hidden + column];
                share[j] = p[4 * j];
            }
            const float post = a.post[t * 4 + mine];
            float o;
            if (a.experts != nullptr) {
                o = a.shared == nullptr ? 0.0f : a.shared[(size_t)t * hidden + column];
                const float* e = a.experts + (size_t)t * a.k * hidden + column;
#pragma unroll 8
                for (uint32_t s = 0; s < a.k; s++) o += e[(size_t)s * hidden];
                if (mine == 0) a.sum[(size_t)t * hidden + column] = o;
            } else {
                o = a.o[(size_t)t * hidden + column];
            }
            value = post * o;
#pragma unroll
            for (uint32_t j = 0; j < kSiteStreams; j++) value += share[j] * old[j];
        } else {
            value = x[(size_t)mine * hidden + column];
        }
    }
    v[mine][c] = value;
    // All have read the column before one of them writes to it.
    __syncthreads();
    if (goes_in && column < hidden) x[(size_t)mine * hidden + column] = value;

    float* parts = m.partial + ((size_t)t * m.slices + blockIdx.x) * (m.outputs + 1);
    for (uint32_t o = warp, i = 0; o < m.outputs; o += 8, i++) {
        float sum = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
            float2 w = held[0][j];
#pragma unroll
            for (uint32_t h = 1; h < kSiteHeld; h++) {
                if (i == h) w = held[h][j];
            }
            if (i >= kSiteHeld) w = coefficient(o, j);
            sum += dot_columns(w, &v[j][2 * lane]);
        }
        sum = warp_sum(sum);
        if (lane == 0) parts[o] = sum;
    }
    if (warp == 7) {
        float square = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
            square += v[j][2 * lane] * v[j][2 * lane] + v[j][2 * lane + 1] * v[j][2 * lane + 1];
        }
        square = warp_sum(square);
        if (lane == 0) parts[m.outputs] = square;
    }
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(a.arrived + t, 1u) + 1 == m.slices ? 1u : 0u;
        if (last != 0) a.arrived[t] = 0;
        __threadfence();
    }
    __syncthreads();
    if (last == 0) return;

    // The first warp will make the coefficients for later, the others collapse: pairs of columns each, the first of which
    // stay in registers.
    const uint32_t pairs = hidden / 2, others = blockDim.x - 32, me = threadIdx.x - 32;
    float2 weight[kSitePairs];
#pragma unroll
    for (uint32_t k = 0; k < kSitePairs; k++) {
        const uint32_t i = me + k * others;
        weight[k] = make_float2(1.0f, 1.0f);
        if (warp == 0 || i >= pairs || a.normed == 0) continue;
        if (a.norm.data != nullptr) weight[k] = make_float2(vector_at(a.norm, 2 * i), vector_at(a.norm, 2 * i + 1));
    }
    // Eight threads per product add up its slices, always in the same order.
    const float* all = m.partial + (size_t)t * m.slices * (m.outputs + 1);
    for (uint32_t o = threadIdx.x / 8; o < (m.outputs + 1 + 31) / 32 * 32; o += 32) {
        float sum = 0.0f;
        if (o <= m.outputs) {
#pragma unroll 4
            for (uint32_t s = threadIdx.x % 8; s < m.slices; s += 8) sum += __ldcg(all + s * (m.outputs + 1) + o);
        }
        sum += __shfl_xor_sync(kAll, sum, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        sum += __shfl_xor_sync(kAll, sum, 4);
        if (o <= m.outputs && threadIdx.x % 8 == 0) mixed[o] = sum;
    }
    __syncthreads();
    const float rho = rsqrtf(mixed[m.outputs] / (float)m.width + m.norm_eps);
    float pre[kSiteStreams];
    const float scale = vector_at(m.scale, 0);
#pragma unroll
    for (uint32_t i = 0; i < kSiteStreams; i++) pre[i] = sigmoid(mixed[i] * rho * scale + vector_at(m.base, i)) + m.eps;
    const auto collapsed = [&](uint32_t i) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
            const float2 one = __ldcg((const float2*)(x + (size_t)j * hidden) + i);
            sum.x += pre[j] * one.x;
            sum.y += pre[j] * one.y;
        }
        return sum;
    };
    float2* out = (float2*)(a.out + (size_t)t * hidden);
    float2 kept[kSitePairs];
    float square = 0.0f;
    if (warp == 0) {
        site_coefficients(m, t, mixed, rho, comb);
    } else {
#pragma unroll
        for (uint32_t k = 0; k < kSitePairs; k++) {
            const uint32_t i = me + k * others;
            kept[k] = make_float2(0.0f, 0.0f);
            if (i < pairs) kept[k] = collapsed(i);
            square += kept[k].x * kept[k].x + kept[k].y * kept[k].y;
            if (i < pairs && a.normed == 0) out[i] = kept[k];
        }
        for (uint32_t i = me + kSitePairs * others; i < pairs; i += others) {
            const float2 v = collapsed(i);
            square += v.x * v.x + v.y * v.y;
            out[i] = v;
        }
    }
    if (a.normed == 0) return;
    const float factor = rsqrtf(block_sum(square, sums) / (float)hidden + a.norm_eps);
    if (warp == 0) return;
#pragma unroll
    for (uint32_t k = 0; k < kSitePairs; k++) {
        const uint32_t i = me + k * others;
        if (i < pairs) out[i] = make_float2(kept[k].x * factor * weight[k].x, kept[k].y * factor * weight[k].y);
    }
    for (uint32_t i = me + kSitePairs * others; i < pairs; i += others) {
        const float2 v = out[i];
        const bool weighted = a.norm.data != nullptr;
        const float w0 = weighted ? vector_at(a.norm, 2 * i) : 1.0f, w1 = weighted ? vector_at(a.norm, 2 * i + 1) : 1.0f;
        out[i] = make_float2(v.x * factor * w0, v.y * factor * w1);
    }
}

#if !defined(MODEL1_EMULATE) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
// The same by blocks that see each other's shared memory (a cluster): nobody goes to memory for what others have made, and
// every block has its columns at hand when the coefficients are known.
constexpr uint32_t kNear = 8, kNearColumns = 512, kNearPairs = 3, kNearOthers = 224;

__device__ __forceinline__ void near_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void near_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// A float of another block's shared memory.
__device__ __forceinline__ float near_load(const float* mine, uint32_t rank) {
    uint32_t at;
    float v;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((uint32_t)__cvta_generic_to_shared(mine)), "r"(rank));
    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(v) : "r"(at) : "memory");
    return v;
}

// grid (8, rows), in clusters of 8; blocks share out the columns. At most 24 outputs: what four streams have.
extern "C" __global__ void __cluster_dims__(kNear, 1, 1) __launch_bounds__(256, 1)
    hc_site_near(const __grid_constant__ SiteArgs a) {
    __shared__ float v[kSiteStreams][kNearColumns], parts[32], mixed[32], comb[16], squares[8];
    const HcMixArgs& m = a.mix;
    const uint32_t t = blockIdx.y, rank = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const uint32_t hidden = m.width / kSiteStreams, per = (hidden + 2 * kNear - 1) / (2 * kNear) * 2;
    const uint32_t from = min(rank * per, hidden), n = min(per, hidden - from);
    const float* matrix = (const float*)m.matrix.data;
    const auto coefficient = [&](uint32_t output, uint32_t stream, uint32_t pair) {
        const size_t at = (size_t)output * m.width + (size_t)stream * hidden + from + 2 * pair;
        return 2 * pair < n && output < m.outputs ? *(const float2*)(matrix + at) : make_float2(0.0f, 0.0f);
    };
    float2 held[kSiteHeld][kSiteStreams][kNearPairs];
#pragma unroll
    for (uint32_t i = 0; i < kSiteHeld; i++) {
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
#pragma unroll
            for (uint32_t k = 0; k < kNearPairs; k++) held[i][j][k] = coefficient(warp + 8 * i, j, lane + 32 * k);
        }
    }
    const bool weighted = a.normed != 0 && a.norm.data != nullptr;
    float weight = weighted && threadIdx.x < n && warp < 7 ? vector_at(a.norm, from + threadIdx.x) : 1.0f;
    await_predecessor();
    if (t >= step_rows(*m.step, m.rows)) return;

    float* x = (float*)m.x + (size_t)t * m.width + from;
    const bool goes_in = a.o != nullptr || a.experts != nullptr;
    if (goes_in) {
        // A thread has a column of all streams.
        const float *c = a.comb + t * 16, *p = a.post + t * 4;
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            float old[kSiteStreams], o;
#pragma unroll
            for (uint32_t j = 0; j < kSiteStreams; j++) old[j] = x[(size_t)j * hidden + i];
            if (a.experts != nullptr) {
                o = a.shared == nullptr ? 0.0f : a.shared[(size_t)t * hidden + from + i];
                const float* e = a.experts + (size_t)t * a.k * hidden + from + i;
#pragma unroll 4
                for (uint32_t s = 0; s < a.k; s++) o += e[(size_t)s * hidden];
                a.sum[(size_t)t * hidden + from + i] = o;
            } else {
                o = a.o[(size_t)t * hidden + from + i];
            }
#pragma unroll
            for (uint32_t k = 0; k < kSiteStreams; k++) {
                float value = p[k] * o;
#pragma unroll
                for (uint32_t j = 0; j < kSiteStreams; j++) value += c[4 * j + k] * old[j];
                x[(size_t)k * hidden + i] = v[k][i] = value;
            }
        }
    } else {
        for (uint32_t i = threadIdx.x; i < kSiteStreams * n; i += blockDim.x) {
            v[i / n][i % n] = x[(size_t)(i / n) * hidden + i % n];
        }
    }
    __syncthreads();
#pragma unroll
    for (uint32_t i = 0; i < kSiteHeld; i++) {
        const uint32_t o = warp + 8 * i;
        float sum = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
#pragma unroll
            for (uint32_t k = 0; k < kNearPairs; k++) {
                const uint32_t pair = lane + 32 * k;
                if (2 * pair < n) sum += dot_columns(held[i][j][k], &v[j][2 * pair]);
            }
#pragma unroll 1
            for (uint32_t pair = lane + 32 * kNearPairs; 2 * pair < n; pair += 32) {
                sum += dot_columns(coefficient(o, j, pair), &v[j][2 * pair]);
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) parts[o] = sum;
    }
    __syncthreads();
    if (warp == 7) {
        float square = 0.0f;
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
#pragma unroll 1
            for (uint32_t i = lane; i < n; i += 32) square += v[j][i] * v[j][i];
        }
        square = warp_sum(square);
        if (lane == 0) parts[m.outputs] = square;
    }
    near_arrive();
    near_wait();
    // Eight threads per product add up the blocks' parts, always in the same order.
    {
        const uint32_t o = threadIdx.x / 8;
        float sum = o <= m.outputs ? near_load(&parts[o], threadIdx.x % 8) : 0.0f;
        sum += __shfl_xor_sync(kAll, sum, 1);
        sum += __shfl_xor_sync(kAll, sum, 2);
        sum += __shfl_xor_sync(kAll, sum, 4);
        if (threadIdx.x % 8 == 0) mixed[o] = sum;
    }
    __syncthreads();
    const float rho = rsqrtf(__fdividef(mixed[m.outputs], (float)m.width) + m.norm_eps);
    if (warp == 7) {
        // The last warp of the first block makes the coefficients for later.
        if (a.normed != 0) near_arrive();
        if (rank == 0) site_coefficients(m, t, mixed, rho, comb);
        if (a.normed != 0) near_wait();
    } else {
        float pre[kSiteStreams];
        const float scale = vector_at(m.scale, 0);
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) pre[j] = sigmoid(mixed[j] * rho * scale + vector_at(m.base, j)) + m.eps;
        float* out = a.out + (size_t)t * hidden + from;
        const auto collapsed = [&](uint32_t i) {
            return (pre[0] * v[0][i] + pre[1] * v[1][i]) + (pre[2] * v[2][i] + pre[3] * v[3][i]);
        };
        float square = 0.0f;
        for (uint32_t i = threadIdx.x; i < n; i += kNearOthers) {
            const float one = collapsed(i);
            square += one * one;
            if (a.normed == 0) out[i] = one;
        }
        if (a.normed != 0) {
            square = warp_sum(square);
            if (lane == 0) squares[warp] = square;
            near_arrive();
            near_wait();
            // 7 warps of 8 blocks: two numbers per lane.
            float all = lane < 28 ? near_load(&squares[lane % 7], lane / 7) + near_load(&squares[lane % 7], lane / 7 + 4) : 0.0f;
            all = warp_sum(all);
            const float factor = rsqrtf(__fdividef(all, (float)hidden) + a.norm_eps);
            for (uint32_t i = threadIdx.x; i < n; i += kNearOthers) {
                if (i != threadIdx.x && weighted) weight = vector_at(a.norm, from + i);
                out[i] = collapsed(i) * factor * weight;
            }
        }
    }
    // Nobody leaves while others read what is theirs.
    near_arrive();
    near_wait();
}
#endif
