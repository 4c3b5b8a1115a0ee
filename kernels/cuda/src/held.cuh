// Products of one token whose weights all lie in shared memory before their input is there (pair.cuh says how), with a norm of
// that input on the way and a chain of rows beside them: matrices of the same input, each with blocks of its own, in one format
// or two.
#pragma once

#include <type_traits>

#include "chain.cuh"
#include "pair.cuh"

constexpr uint32_t kHeldMatrices = 8;

struct HeldMatrix {
    DevExpert of;
    float* out;      // [rows]
    uint32_t blocks;
    uint32_t each;   // rows of a block, one more if it is one of the first `more`
    uint32_t more;
    uint32_t pad;
};

// Matrices of a format.
struct HeldProducts {
    PairHalf half;                         // what they share; of one group
    HeldMatrix matrices[kHeldMatrices];
    uint32_t count;
    uint32_t blocks;                       // of all
    uint32_t partial;                      // where [tiles][16][warps] sums lie in shared memory, behind the vector multiplied
    uint32_t pad;
};

// `HeldArgs` in ../ops/held.rs, as all of these records.
struct HeldArgs {
    HeldProducts products[2];
    WeightRef norm;      // [cols] of an RMSNorm of x; null data = 1
    ChainArgs chain;
    uint32_t normed;     // 1 = x is normalised
    float eps;
    uint32_t hold;       // see `await_predecessor`
    uint32_t beside;     // blocks of the chain
    uint32_t slices;     // most of a part of it
    uint32_t pad;
};
static_assert(sizeof(HeldProducts) == 176 + 40 * kHeldMatrices + 16, "../ops/held.rs");
static_assert(sizeof(HeldArgs) == 2 * sizeof(HeldProducts) + sizeof(WeightRef) + sizeof(ChainArgs) + 24, "../ops/held.rs");

// Brings x times the norm's weights into shared memory as the format wants it, and returns this thread's squares of x. `mine`:
// the weights of the thread's first four.
template <class F, class W>
__device__ __forceinline__ float held_lay_out(unsigned char* to, const float* from, uint32_t cols, float4 mine, W weights) {
    float square = 0.0f;
#pragma unroll 1
    for (uint32_t base = threadIdx.x & ~31u; base < cols / 4; base += kPairThreads) {
        const uint32_t quad = base + (threadIdx.x & 31);
        const bool there = quad < cols / 4;
        const float4 v = there ? ((const float4*)from)[quad] : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float4 w = quad == threadIdx.x ? mine : weights(quad);
        square += (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
        F::store(to, cols, quad, make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w), there);
    }
    return square;
}

// Block `number` of the products of a format.
template <class F>
__device__ __forceinline__ void held_products(const HeldArgs& args, const HeldProducts& a, uint32_t number) {
    DYNAMIC_SHARED(memory);
    __shared__ uint64_t ready[kPairTiles];
    __shared__ uint4 zero;
    __shared__ float squares[kPairWarps];
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31;
    uint32_t m = 0;
#pragma unroll 1
    while (m + 1 < a.count && number >= a.matrices[m].blocks) number -= a.matrices[m++].blocks;
    PairHalf h = a.half;
    h.matrices.of[0] = a.matrices[m].of;
    h.out = a.matrices[m].out;
    h.blocks = a.matrices[m].blocks;
    h.each = a.matrices[m].each;
    h.more = a.matrices[m].more;
    const PairPart part = pair_part(h, number);
    if (threadIdx.x == 0) zero = make_uint4(0, 0, 0, 0);
    const DevExpert one = h.matrices.of[0];
#ifdef MODEL1_EMULATE
    if (threadIdx.x < 32) {
        for (uint32_t tile = 0; tile < part.tiles; tile++) pair_copy<F>(h, part, one, one, memory + h.weights, tile, ready[tile]);
    }
#else
    if (threadIdx.x < kPairTiles) {
        barrier_init(barrier_at(ready[threadIdx.x]), 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (warp == kPairWarps) {
#pragma unroll 1
        for (uint32_t tile = 0; tile < part.tiles; tile++) pair_copy<F>(h, part, one, one, memory + h.weights, tile, ready[tile]);
        return;
    }
#endif
    if constexpr (F::SCALED) pair_scales_of(h, part, 0, one.scales, (float*)(memory + h.scales));
    const auto weights = [&](uint32_t quad) {
        return args.norm.data != nullptr && quad < h.cols / 4 ? vector_four(args.norm, 4 * quad) : make_float4(1.0f, 1.0f, 1.0f, 1.0f);
    };
    const float4 mine = weights(threadIdx.x);
    await_predecessor(args.hold != 0);
    float square = held_lay_out<F>(memory, h.x, h.cols, mine, weights);
    square = warp_sum(square);
    if (lane == 0) squares[warp] = square;
    sync_workers();
    float* const partial = (float*)(memory + a.partial);
    pair_tiles<F>(h, part, memory, memory, partial, ready, zero);
    float factor = 1.0f;
    if (args.normed != 0) {
        float all = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < kPairWarps; w++) all += squares[w];
        factor = rsqrtf(all / (float)h.cols + args.eps);
    }
    sync_workers();
#pragma unroll 1
    for (uint32_t u = threadIdx.x; u < part.units; u += kPairThreads) h.out[part.first + u] = pair_sum(partial, u) * factor;
}

// The chain comes first: it has most to do before its predecessor has ended.
template <class First, class Second>
__device__ __forceinline__ void held(const HeldArgs& a) {
    // Threads that keep blocks apart (`Launch::apart`).
    if (threadIdx.x >= kPairThreads + 32) return;
    uint32_t b = blockIdx.x;
    if (b < a.beside) {
        DYNAMIC_SHARED(memory);
        chain_block(a.chain, 0, b / a.slices, b % a.slices, (float*)memory);
        return;
    }
    b -= a.beside;
    if (std::is_same<First, Second>::value || b < a.products[0].blocks) {
        held_products<First>(a, a.products[0], b);
    } else {
        held_products<Second>(a, a.products[1], b - a.products[0].blocks);
    }
}
