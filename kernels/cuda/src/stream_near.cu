// A product of one token whose matrix is larger than what the shared memories of all blocks hold (held.cuh), an output layer: tiles
// of 16 rows go through a ring of places there, and what finds room is on its way before the input is there. How x and
// weights meet, pair.cuh says.
#include "pair.cuh"

#if FROM_HOPPER
constexpr uint32_t kStreamPlaces = 12;

// `StreamArgs` in ../ops/stream.rs.
struct StreamArgs {
    PairHalf half;     // of one group; `weights`: where the ring lies, `scales`: those of all of a block's rows
    uint32_t tiles;    // of a block, one more if it is one of the first `more`: neighbours
    uint32_t more;
    uint32_t places;   // of the ring, at most kStreamPlaces
    uint32_t partial;  // where two times [16][warps] sums lie, behind the vector multiplied
    uint32_t hold;     // see `await_predecessor`
    uint32_t pad;
};
static_assert(sizeof(StreamArgs) == 176 + 24, "../ops/stream.rs");

template <class F>
__device__ __forceinline__ void stream(const StreamArgs& a) {
    DYNAMIC_SHARED(memory);
    [[maybe_unused]] __shared__ uint64_t ready[kStreamPlaces], empty[kStreamPlaces];
    __shared__ uint4 zero;
    const PairHalf& h = a.half;
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, b = blockIdx.x;
    const uint32_t first = a.tiles * b + min(b, a.more), count = a.tiles + (b < a.more ? 1 : 0), pitch = h.row_bytes + F::PAD;
    const DevExpert one = h.matrices.of[0];
    const auto rows_of = [&](uint32_t n) { return min(kPairTile, h.group_rows - kPairTile * (first + n)); };
    const auto place = [&](uint32_t n) { return memory + h.weights + (size_t)(n % a.places) * kPairTile * pitch; };
    const auto copy = [&](uint32_t n) {
        const uint32_t rows = rows_of(n);
        const uint8_t* const from = one.data + (size_t)(kPairTile * (first + n) + lane) * h.row_bytes;
#ifdef MODEL1_EMULATE
        if (lane < rows) memcpy(place(n) + lane * pitch, from, h.row_bytes);
#else
        const uint32_t barrier = barrier_at(ready[n % a.places]);
        if (lane == 0) barrier_expect(barrier, rows * h.row_bytes);
        __syncwarp();
        if (lane < rows) copy_once(place(n) + lane * pitch, from, h.row_bytes, barrier);
#endif
    };
    if (threadIdx.x == 0) zero = make_uint4(0, 0, 0, 0);
#ifndef MODEL1_EMULATE
    if (threadIdx.x < kStreamPlaces) {
        barrier_init(barrier_at(ready[threadIdx.x]), 1);
        barrier_init(barrier_at(empty[threadIdx.x]), 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    if (warp == kPairWarps) {
#pragma unroll 1
        for (uint32_t n = 0; n < count; n++) {
            // The place was emptied once less than it was filled.
            if (n >= a.places) barrier_await(barrier_at(empty[n % a.places]), (n / a.places - 1) & 1u);
            copy(n);
        }
        return;
    }
#endif
    // A tile has one row of scales, since blocks of scales have whole tiles.
    const uint32_t per = F::SCALED ? pair_scale_columns(h) : 0, top = kPairTile * first >> h.row_shift;
    float* const factors = (float*)(memory + h.scales);
    if constexpr (F::SCALED) {
        const uint32_t rows = (kPairTile * (first + count - 1) >> h.row_shift) - top + 1;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < rows * per; i += kPairThreads) {
            factors[i] = scale_value(h.scale_format, one.scales + (size_t)(top + i / per) * h.scale_pitch, i % per);
        }
    }
    await_predecessor(a.hold != 0);
    pair_lay_out<F, false>(memory, h.x, h.cols, 0, [] {});
    sync_workers();
    const uint32_t runs = h.cols / 32, share = (runs + kPairWarps - 1) / kPairWarps, from = min(warp * share, runs);
    float* const partial = (float*)(memory + a.partial);
#pragma unroll 1
    for (uint32_t n = 0; n < count; n++) {
        const uint32_t last = rows_of(n) - 1;
#ifdef MODEL1_EMULATE
        if (warp == 0) copy(n);
        sync_workers();
#else
        barrier_await(barrier_at(ready[n % a.places]), (n / a.places) & 1u);
#endif
        const unsigned char* const weights = place(n);
        const float* const scales = factors + ((kPairTile * (first + n) >> h.row_shift) - top) * per;
        F product;
        product.begin();
        product.multiply(weights + min(g, last) * pitch, weights + min(8 + g, last) * pitch, memory, h.cols, &zero, from, min(share, runs - from),
                         scales, scales, h.col_shift);
        const float2 sums = product.end();
        // Who reads the sums of the tile before is at the barrier of this one when those of the next are written.
        float* const here = partial + (n & 1u) * kPairTile * kPairWarps;
        if (t == 0) {
            here[g * kPairWarps + warp] = sums.x;
            here[(8 + g) * kPairWarps + warp] = sums.y;
        }
        sync_workers();
#ifndef MODEL1_EMULATE
        if (threadIdx.x == kPairThreads - 1) barrier_arrive(barrier_at(empty[n % a.places]));
#endif
        if (threadIdx.x <= last) h.out[kPairTile * (first + n) + threadIdx.x] = pair_sum(here, threadIdx.x);
    }
}

// grid: (blocks), 288 threads (emulated: 256, which copy, too), shared: ../ops/stream.rs
EARLY_KERNEL(stream_f8, StreamArgs, 288, 1) { stream<PairF8>(a); }
#endif
