// The rows with the largest scores (MODEL1.md 2.6), exact, in ascending order.
#include "each.cuh"
#include "select.cuh"
#include "topk.cuh"

struct SelectArgs {
    const float* scores;  // [tokens, width]
    int32_t* out;         // [tokens, k]
    const DevStep* step;
    uint32_t width;
    uint32_t k;
    uint32_t rate;
    uint32_t pad;
};

// The key of the k-th largest score by radix selection, then the rows.
__device__ __forceinline__ void select_rows(const SelectArgs& a) {
    __shared__ TopK top;
    const DevStep s = *a.step;
    const uint32_t t = blockIdx.x;
    if (t >= s.tokens) return;
    const uint32_t n = (uint32_t)rows_visible(s, a.rate, t);
    const float* scores = a.scores + (size_t)t * a.width;
    int32_t* out = a.out + (size_t)t * a.k;
    if (n <= a.k) return select_all(out, n, a.k, threadIdx.x, blockDim.x);
    top_k_threshold(top, n, a.k, [&](uint32_t i) { return ordered_key(scores[i]); });
    const uint32_t key = top.key, ties = top.ties;
    uint32_t kept = 0, equal = 0;
    for (uint32_t base = 0; base < n; base += blockDim.x) {
        const uint32_t i = base + threadIdx.x;
        const uint32_t mine = i < n ? ordered_key(scores[i]) : 0;
        const bool is_equal = i < n && mine == key, above = i < n && mine > key;
        // Both running counts in one scan: equals in the high half.
        uint32_t total;
        const uint32_t before = block_scan((above ? 1u : 0u) + (is_equal ? 1u << 16 : 0u), top.scan, &total);
        const uint32_t equal_before = equal + (before >> 16);
        const bool stays = above || (is_equal && equal_before < ties);
        // Kept rows before this one: those above, and of the equals as many as still fit.
        const uint32_t place = kept + (before & 0xffffu) + min(before >> 16, ties - min(equal, ties));
        if (stays) out[place] = (int32_t)i;
        kept += (total & 0xffffu) + min(total >> 16, ties - min(equal, ties));
        equal += total >> 16;
    }
}

// Parts that the range the k-th largest is known to be in is cut into.
constexpr uint32_t kBins = 1024;

// The same where a block's threads hold all keys. A block of 1024; width: a multiple of 4, at most 1024 * 4 * 2
__device__ __forceinline__ void select_held_rows(const SelectArgs& a) {
    __shared__ HeldSelect<kBins> sh;
    const uint32_t me = threadIdx.x, t = blockIdx.x;
    sh.bins[0][me] = 0;
    const DevStep s = *a.step;
    if (t >= s.tokens) return;
    const uint32_t n = (uint32_t)rows_visible(s, a.rate, t);
    int32_t* out = a.out + (size_t)t * a.k;
    if (n <= a.k) return select_all(out, n, a.k, me, blockDim.x);
    select_held(sh, HeldKeys<2, kBins>(a.scores + (size_t)t * a.width, n), a.k, out);
}

#if FROM_HOPPER
#include "cluster.cuh"

// The same for few tokens by eight blocks that see each other's shared memory.
constexpr uint32_t kNear = 8;

struct NearSelect {
    uint32_t bins[3][kBins];  // of three rounds: others may still read those of the last one
    uint32_t scan[32], lows[32], highs[32];
    uint32_t low[kNear], high[kNear], above[kNear], equal[kNear];  // by block, pushed by each of them
    KeyRange<kBins>::Cut cut;
};

// A cluster of 8; width: a multiple of 4, at most 8 * 4 * 4096
__device__ __forceinline__ void select_near_rows(const SelectArgs& a) {
    __shared__ NearSelect sh;
    const uint32_t me = threadIdx.x, lane = me & 31, warp = me / 32, rank = blockIdx.x, t = blockIdx.y;
    cluster_arrive();
    sh.bins[0][me] = 0;
    cluster_wait();
    await_predecessor();
    const DevStep s = *a.step;
    if (t >= s.tokens) return;
    const uint32_t n = (uint32_t)rows_visible(s, a.rate, t);
    int32_t* out = a.out + (size_t)t * a.k;
    if (n <= a.k) return select_all(out, n, a.k, rank * blockDim.x + me, kNear * blockDim.x);
    const uint32_t share = (n + 4 * kNear - 1) / (4 * kNear) * 4, from = min(rank * share, n), mine = min(share, n - from);
    const HeldKeys<4, kBins> keys(a.scores + (size_t)t * a.width + from, mine);
    keys.bounds(sh.lows, sh.highs);
    __syncthreads();
    if (warp == 0) {
        const uint32_t lo = warp_least(sh.lows[lane]), hi = warp_largest(sh.highs[lane]);
        if (lane < kNear) {
            near_store(&sh.low[rank], lane, lo);
            near_store(&sh.high[rank], lane, hi);
        }
    }
    cluster_arrive();
    cluster_wait();
    KeyRange<kBins> range = {warp_least(sh.low[lane % kNear]), warp_largest(sh.high[lane % kNear]), a.k};
    for (uint32_t round = 0;; round++) {
        uint32_t* bins = sh.bins[round % 3];
        sh.bins[(round + 1) % 3][me] = 0;
        keys.fill(range, bins);
        cluster_arrive();
        cluster_wait();
        uint32_t here = 0;
#pragma unroll
        for (uint32_t r = 0; r < kNear; r++) here += near_load(&bins[range.bin_of_mine()], r);
        if (range.narrow(here, sh.cut, sh.scan)) break;
    }
    const uint2 counts = scan_block<kBins>(keys.counts(range), sh.scan);
    if (me < kNear) {
        near_store(&sh.above[rank], me, counts.y & 0xffffu);
        near_store(&sh.equal[rank], me, counts.y >> 16);
    }
    cluster_arrive();
    cluster_wait();
    uint32_t above = counts.x & 0xffffu, equal = counts.x >> 16;
    for (uint32_t r = 0; r < rank; r++) {
        above += sh.above[r];
        equal += sh.equal[r];
    }
    keys.keep(range, above, equal, from, out);
}

// grid (8, tokens), or (8, 1, sequences), in clusters of 8, 1024 threads
CLUSTER_KERNEL(select_near, SelectArgs, kNear, 1, 1, __launch_bounds__(1024, 1)) { select_near_rows(a); }
CLUSTER_KERNEL(select_near_each, Each<SelectArgs>, kNear, 1, 1, __launch_bounds__(1024, 1)) { select_near_rows(a.of[blockIdx.z]); }
#endif

// grid (tokens), or (1, 1, sequences)
KERNEL(select_top_k, SelectArgs, 1024) { select_rows(a); }
KERNEL(select_top_k_each, Each<SelectArgs>, 1024) { select_rows(a.of[blockIdx.z]); }
// The same with 1024 threads.
KERNEL(select_held, SelectArgs, 1024) { select_held_rows(a); }
KERNEL(select_held_each, Each<SelectArgs>, 1024) { select_held_rows(a.of[blockIdx.z]); }
