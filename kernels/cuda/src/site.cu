// One mHC site in one launch, for few tokens and four streams (MODEL1.md 3): what the block before gave is summed up and
// goes into the streams, the coefficients of the next block are made from them, and its input is collapsed out of them and
// normalised. Blocks share out the columns; the last one to arrive has all products and does the rest.
#include "site.cuh"

constexpr uint32_t kSiteColumns = 64, kSiteHeld = 3, kSitePairs = 4;

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
