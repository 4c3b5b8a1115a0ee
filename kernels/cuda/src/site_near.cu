// An mHC site as in site.cu by blocks that see each other's shared memory: every block has its columns at hand when the
// coefficients are known. Blocks meet once: with the products they exchange those of the streams with each other, and the
// collapsed input's length follows from these (the norm of a sum). Where a router follows, it is multiplied by the streams one by
// one, so that its logits follow from the same meeting, and the choice is made here, too: launches of their own would take longer
// than all of the rest.
#include "route.cuh"
#include "site.cuh"

#if FROM_HOPPER
#include "cluster.cuh"

// Blocks; threads with columns; pairs of columns whose coefficients a lane holds; outputs of the mixing matrix per warp;
// products of streams.
constexpr uint32_t kNear = 8, kOthers = 224, kPairs = 3, kOutputs = 3, kGram = 10;

struct NearSiteArgs {
    SiteArgs site;
    WeightRef router;  // [experts, hidden] f32 or bf16, null data = none
    RouteArgs route;   // at most 32 experts; logits unused
};

// Products g of streams j and k: first those with themselves.
__device__ __forceinline__ uint32_t gram_first(uint32_t g) { return g < 4 ? g : g < 7 ? 0 : g < 9 ? 1 : 2; }
__device__ __forceinline__ uint32_t gram_second(uint32_t g) { return g < 4 ? g : g < 7 ? g - 3 : g < 9 ? g - 5 : 3; }

// Elements 2 i and 2 i + 1 of a row of f32 or bf16.
__device__ __forceinline__ float2 row_pair(const WeightRef& w, uint32_t row, uint32_t pair) {
    const uint8_t* p = w.data + (size_t)row * w.row_bytes;
    if (w.format == kF32) return ((const float2*)p)[pair];
    const uint32_t two = ((const uint32_t*)p)[pair];
    return make_float2(__uint_as_float(two << 16), __uint_as_float(two & 0xffff0000u));
}

struct NearSite {
    float v[kSiteStreams][kNear * 64];
    float parts[kNear][40];           // by block: products, then those of the streams; pushed by each block to all
    float4 routed[kNear][32];         // by block: the router's products with each stream, pushed to the first
    float comb[16];
};

// The streams' columns of this block, with what goes into them: into shared memory and back.
__device__ __forceinline__ void near_streams(const SiteArgs& a, NearSite& s, uint32_t t, uint32_t from, uint32_t n) {
    const uint32_t hidden = a.mix.width / kSiteStreams;
    const bool goes_in = a.o != nullptr || a.experts != nullptr;
    float4 comb[kSiteStreams] = {}, post = {};
    if (goes_in) {
        post = *(const float4*)(a.post + t * 4);
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) comb[j] = ((const float4*)(a.comb + t * 16))[j];
    }
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n; i += kOthers) {
        float* x = (float*)a.mix.x + (size_t)t * a.mix.width + from + i;
        const size_t at = (size_t)t * hidden + from + i;
        float old[kSiteStreams], value[kSiteStreams];
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) value[j] = old[j] = x[(size_t)j * hidden];
        if (goes_in) {
            const float* e = a.experts != nullptr ? a.experts + (size_t)t * (a.k - 1) * hidden + at : a.o + at;
            float o = a.shared != nullptr ? a.shared[at] : 0.0f;
#pragma unroll 4
            for (uint32_t k = 0; k < (a.experts != nullptr ? a.k : 1); k++) o += e[(size_t)k * hidden];
            if (a.experts != nullptr) a.sum[at] = o;
            value[0] = post.x * o;
            value[1] = post.y * o;
            value[2] = post.z * o;
            value[3] = post.w * o;
#pragma unroll
            for (uint32_t j = 0; j < kSiteStreams; j++) {
                value[0] += comb[j].x * old[j];
                value[1] += comb[j].y * old[j];
                value[2] += comb[j].z * old[j];
                value[3] += comb[j].w * old[j];
            }
#pragma unroll
            for (uint32_t j = 0; j < kSiteStreams; j++) x[(size_t)j * hidden] = value[j];
        }
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) s.v[j][i] = value[j];
    }
}

__device__ __forceinline__ void near_site(const NearSiteArgs& args) {
    DYNAMIC_SHARED(memory);
    __shared__ NearSite s;
    float2* router = (float2*)memory;  // [experts][pairs of columns of this block], times the norm's weights
    const SiteArgs& a = args.site;
    const HcMixArgs& m = a.mix;
    const RouteArgs& r = args.route;
    const uint32_t t = blockIdx.y, rank = blockIdx.x, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const uint32_t hidden = m.width / kSiteStreams, per = (hidden + 2 * kNear - 1) / (2 * kNear) * 2;
    const uint32_t from = min(rank * per, hidden), n = min(per, hidden - from);
    const bool routed = args.router.data != nullptr, weighted = a.normed != 0 && a.norm.data != nullptr;
    const float* matrix = (const float*)m.matrix.data + from;
    const auto coefficient = [&](uint32_t output, uint32_t stream, uint32_t pair) {
        const uint32_t at = output * m.width + stream * hidden + 2 * pair;
        return 2 * pair < n && output < m.outputs ? *(const float2*)(matrix + at) : make_float2(0.0f, 0.0f);
    };
    // What the predecessor does not change.
    cluster_arrive();
    touch_parameters(args);
    float2 held[kOutputs][kSiteStreams][kPairs];
#pragma unroll
    for (uint32_t k = 0; k < kPairs; k++) {
#pragma unroll
        for (uint32_t i = 0; i < kOutputs; i++) {
#pragma unroll
            for (uint32_t j = 0; j < kSiteStreams; j++) held[i][j][k] = coefficient(warp + 8 * i, j, lane + 32 * k);
        }
    }
    if (routed) {
#pragma unroll 4
        for (uint32_t i = threadIdx.x; i < r.experts * (n / 2); i += blockDim.x) {
            const uint32_t pair = i % (n / 2);
            const float2 w = row_pair(args.router, i / (n / 2), from / 2 + pair);
            const float2 by = weighted ? row_pair(a.norm, 0, from / 2 + pair) : make_float2(1.0f, 1.0f);
            router[i] = make_float2(w.x * by.x, w.y * by.y);
        }
    }
    float weight = weighted && threadIdx.x < n && warp < 7 ? vector_at(a.norm, from + threadIdx.x) : 1.0f;
    const float base = lane < m.outputs ? vector_at(m.base, lane) : 0.0f;
    const float scale = lane < m.outputs ? vector_at(m.scale, lane < 4 ? 0 : lane < 8 ? 1 : 2) : 0.0f;
    const float bias = routed ? route_bias(r) : 0.0f;
    cluster_wait();
    await_predecessor();
    if (t >= step_rows(*m.step, m.rows)) return;

    if (warp < 7) near_streams(a, s, t, from, n);
    __syncthreads();
    float sums[kOutputs + 2] = {};
    const uint32_t grams[2] = {warp, warp + 8};
#pragma unroll
    for (uint32_t k = 0; k < kPairs; k++) {
        const uint32_t pair = lane + 32 * k;
        if (2 * pair >= n) break;
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) {
            const float2 v = ((const float2*)s.v[j])[pair];
#pragma unroll
            for (uint32_t i = 0; i < kOutputs; i++) sums[i] += held[i][j][k].x * v.x + held[i][j][k].y * v.y;
        }
    }
#pragma unroll 1
    for (uint32_t pair = lane + 32 * kPairs; 2 * pair < n; pair += 32) {
#pragma unroll 1
        for (uint32_t j = 0; j < kSiteStreams; j++) {
#pragma unroll
            for (uint32_t i = 0; i < kOutputs; i++) sums[i] += dot_columns(coefficient(warp + 8 * i, j, pair), &s.v[j][2 * pair]);
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        if (grams[i] >= kGram) break;
        const float2 *p = (const float2*)s.v[gram_first(grams[i])], *q = (const float2*)s.v[gram_second(grams[i])];
#pragma unroll 4
        for (uint32_t pair = lane; 2 * pair < n; pair += 32) sums[kOutputs + i] += p[pair].x * q[pair].x + p[pair].y * q[pair].y;
    }
#pragma unroll
    for (uint32_t i = 0; i < kOutputs + 2; i++) sums[i] = warp_sum(sums[i]);
    if (lane < kNear) {
#pragma unroll
        for (uint32_t i = 0; i < kOutputs; i++) near_store(&s.parts[rank][warp + 8 * i], lane, sums[i]);
        near_store(&s.parts[rank][24 + grams[0]], lane, sums[kOutputs]);
        if (grams[1] < kGram) near_store(&s.parts[rank][24 + grams[1]], lane, sums[kOutputs + 1]);
    }
    if (routed) {
#pragma unroll 1
        for (uint32_t e = warp; e < r.experts; e += 8) {
            float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 3
            for (uint32_t pair = lane; 2 * pair < n; pair += 32) {
                const float2 w = router[e * (n / 2) + pair];
                sum.x += dot_columns(w, &s.v[0][2 * pair]);
                sum.y += dot_columns(w, &s.v[1][2 * pair]);
                sum.z += dot_columns(w, &s.v[2][2 * pair]);
                sum.w += dot_columns(w, &s.v[3][2 * pair]);
            }
            sum = make_float4(warp_sum(sum.x), warp_sum(sum.y), warp_sum(sum.z), warp_sum(sum.w));
            if (lane == 0) near_store(&s.routed[rank][e], 0, sum);
        }
    }
    cluster_arrive();
    cluster_wait();

    // Every warp adds up the blocks' parts, always in the same order: a lane per output, a lane per product of streams.
    float mixed = 0.0f, gram = 0.0f;
#pragma unroll
    for (uint32_t b = 0; b < kNear; b++) {
        mixed += s.parts[b][lane];
        if (lane < kGram) gram += s.parts[b][24 + lane];
    }
    float square = 0.0f;
#pragma unroll
    for (uint32_t j = 0; j < kSiteStreams; j++) square += __shfl_sync(kAll, gram, (int)j);
    const float rho = rsqrtf(__fdividef(square, (float)m.width) + m.norm_eps), z = mixed * rho * scale + base;
    const float gate = sigmoid(z), mine = gate + m.eps;
    if (warp < 7) {
        float pre[kSiteStreams];
#pragma unroll
        for (uint32_t j = 0; j < kSiteStreams; j++) pre[j] = __shfl_sync(kAll, mine, (int)j);
        float factor = 1.0f;
        if (a.normed != 0) {
            const float both = __shfl_sync(kAll, mine, (int)gram_first(lane % kGram)) * __shfl_sync(kAll, mine, (int)gram_second(lane % kGram));
            const float length = warp_sum(lane < kGram ? gram * both * (lane < 4 ? 1.0f : 2.0f) : 0.0f);
            factor = rsqrtf(__fdividef(fmaxf(length, 0.0f), (float)hidden) + a.norm_eps);
        }
        float* out = a.out + (size_t)t * hidden + from;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < n; i += kOthers) {
            if (i != threadIdx.x && weighted) weight = vector_at(a.norm, from + i);
            const float one = (pre[0] * s.v[0][i] + pre[1] * s.v[1][i]) + (pre[2] * s.v[2][i] + pre[3] * s.v[3][i]);
            out[i] = one * factor * weight;
        }
        if (!routed || rank != 0 || warp != 6) return;
        float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (uint32_t b = 0; b < kNear; b++) {
            const float4 part = s.routed[b][lane];
            sum = make_float4(sum.x + part.x, sum.y + part.y, sum.z + part.z, sum.w + part.w);
        }
        const float logit = ((pre[0] * sum.x + pre[1] * sum.y) + (pre[2] * sum.z + pre[3] * sum.w)) * factor;
        route_warp(r, t, logit, bias);
        return;
    }
    // The last warp of the last block makes the coefficients for later.
    if (rank == kNear - 1) {
        if (lane < 4) m.pre[t * 4 + lane] = mine;
        else if (lane < 8 && m.post != nullptr) m.post[t * 4 + lane - 4] = 2.0f * gate;
        if (m.comb != nullptr) {
            if (lane >= 8 && lane < 24) s.comb[lane - 8] = z;
            __syncwarp();
            if (a.raw == 0) sinkhorn(s.comb, kSiteStreams, m.iterations, m.eps);
            if (lane < 16) m.comb[(size_t)t * 16 + lane] = s.comb[lane];
        }
    }
}

// grid (8, rows), in clusters of 8, shared: 4 * experts * columns of a block; blocks share out the columns, an even number
// each, at most 512. At most 24 outputs: what four streams have.
CLUSTER_KERNEL(hc_site_near, NearSiteArgs, kNear, 1, 1, __launch_bounds__(256, 1)) { near_site(a); }
#endif
