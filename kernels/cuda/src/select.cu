// The rows with the largest scores (MODEL1.md 2.6), exact, in ascending order.
#include "each.cuh"
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
    if (n <= a.k) {
        for (uint32_t i = threadIdx.x; i < a.k; i += blockDim.x) out[i] = i < n ? (int32_t)i : -1;
        return;
    }
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

// Total of the threads before this one, and of all of them.
__device__ __forceinline__ uint2 scan_block(uint32_t v, uint32_t* shared) {
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const auto upto = [&](uint32_t v) {
#pragma unroll
        for (int d = 1; d < 32; d <<= 1) {
            const uint32_t other = __shfl_up_sync(kAll, v, d);
            if ((int)lane >= d) v += other;
        }
        return v;
    };
    const uint32_t sum = upto(v);
    __syncthreads();
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    const uint32_t warps = upto(shared[lane]);
    const uint32_t before = __shfl_sync(kAll, warps, (int)(warp == 0 ? 0 : warp - 1));
    return make_uint2(sum - v + (warp == 0 ? 0 : before), __shfl_sync(kAll, warps, 31));
}

// The least and the largest of a warp's numbers.
__device__ __forceinline__ uint32_t warp_least(uint32_t v) {
#ifdef MODEL1_EMULATE
    return ~warp_reduce(~v, Largest());
#else
    return __reduce_min_sync(kAll, v);
#endif
}
__device__ __forceinline__ uint32_t warp_largest(uint32_t v) {
#ifdef MODEL1_EMULATE
    return warp_reduce(v, Largest());
#else
    return __reduce_max_sync(kAll, v);
#endif
}

// Where the k-th largest key is known to be: the `left`-th largest of those from lo to hi. The range is cut into kBins parts until
// all keys of one belong to the chosen or all are equal.
struct KeyRange {
    uint32_t lo, hi, left;

    struct __align__(16) Cut {
        uint32_t bin, left, here;
    };

    __device__ __forceinline__ bool holds(uint32_t key) const { return key >= lo && key <= hi; }
    // A part is 2^shift keys wide.
    __device__ __forceinline__ uint32_t shift() const {
        const uint32_t bits = 32 - (uint32_t)__clz((int)(hi - lo));
        return bits > 10 ? bits - 10 : 0;
    }
    // By all threads of a block of kBins; `here`: keys in part `bin_of_mine`. True: that was the last cut.
    __device__ __forceinline__ bool narrow(uint32_t here, Cut& cut, uint32_t* scan) {
        const uint32_t wide = shift(), above = scan_block(here, scan).x;
        if (above < left && left <= above + here) cut = {bin_of_mine(), left - above, here};
        __syncthreads();
        lo += cut.bin << wide;
        hi = lo + min(hi - lo, (1u << wide) - 1);
        left = cut.left;
        return wide == 0 || left == cut.here;
    }
    // The highest part first.
    static __device__ __forceinline__ uint32_t bin_of_mine() { return kBins - 1 - threadIdx.x; }
};

// Keys of `count` neighbouring rows in the registers of kBins threads, up to 4 * FOURS in each, neighbours again.
template <uint32_t FOURS>
struct HeldKeys {
    uint32_t keys[FOURS][4], count, fours, first;

    __device__ __forceinline__ HeldKeys(const float* scores, uint32_t n) : count(n) {
        fours = (count + 4 * kBins - 1) / (4 * kBins);
        first = 4 * fours * threadIdx.x;
#pragma unroll
        for (uint32_t h = 0; h < FOURS; h++) {
            if (h >= fours) break;
            const uint32_t i = first + 4 * h;
            const float4 v = i < count ? *(const float4*)(scores + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) keys[h][j] = ordered_key(four[j]);
        }
    }
    // Calls `f` with every key there is and its row.
    template <class F>
    __device__ __forceinline__ void each(F f) const {
#pragma unroll
        for (uint32_t h = 0; h < FOURS; h++) {
            if (h >= fours) break;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                if (first + 4 * h + j < count) f(keys[h][j], first + 4 * h + j);
            }
        }
    }
    // Leaves the least and the largest key of each warp.
    __device__ __forceinline__ void bounds(uint32_t* lows, uint32_t* highs) const {
        uint32_t lo = 0xffffffffu, hi = 0;
        each([&](uint32_t key, uint32_t) {
            lo = min(lo, key);
            hi = max(hi, key);
        });
        lo = warp_least(lo);
        hi = warp_largest(hi);
        if (threadIdx.x % 32 == 0) {
            lows[threadIdx.x / 32] = lo;
            highs[threadIdx.x / 32] = hi;
        }
    }
    __device__ __forceinline__ void fill(const KeyRange& range, uint32_t* bins) const {
        const uint32_t wide = range.shift();
        each([&](uint32_t key, uint32_t) {
            if (range.holds(key)) atomicAdd(&bins[(key - range.lo) >> wide], 1u);
        });
    }
    // Keys that are above the range, and in the high half those that are in it.
    __device__ __forceinline__ uint32_t counts(const KeyRange& range) const {
        uint32_t all = 0;
        each([&](uint32_t key, uint32_t) { all += key > range.hi ? 1u : key >= range.lo ? 1u << 16 : 0u; });
        return all;
    }
    // Keys above the range stay, and the first `left` of those in it: all of them, or equal ones. `above` and `equal` of them come
    // before this thread's; row 0 is row `from`.
    __device__ __forceinline__ void keep(const KeyRange& range, uint32_t above, uint32_t equal, uint32_t from, int32_t* out) const {
        each([&](uint32_t key, uint32_t i) {
            if (key < range.lo) return;
            if (key > range.hi || equal < range.left) out[above + min(equal, range.left)] = (int32_t)(from + i);
            if (key > range.hi) above++;
            else equal++;
        });
    }
};

// The same where a block's threads hold all keys, as select_near below: barriers between blocks cost more than what they share
// (8,192 rows: 8 us instead of 11, 514 rows: 6 instead of 10; 32,768 rows would take 18 instead of 11).
struct HeldSelect {
    uint32_t bins[2][kBins];  // of two rounds: while one is read the other is emptied
    uint32_t scan[32], lows[32], highs[32];
    KeyRange::Cut cut;
};

// A block of 1024; width: a multiple of 4, at most 1024 * 4 * 2
__device__ __forceinline__ void select_held_rows(const SelectArgs& a) {
    __shared__ HeldSelect sh;
    const uint32_t me = threadIdx.x, lane = me & 31, t = blockIdx.x;
    sh.bins[0][me] = 0;
    const DevStep s = *a.step;
    if (t >= s.tokens) return;
    const uint32_t n = (uint32_t)rows_visible(s, a.rate, t);
    int32_t* out = a.out + (size_t)t * a.k;
    if (n <= a.k) {
        for (uint32_t i = me; i < a.k; i += blockDim.x) out[i] = i < n ? (int32_t)i : -1;
        return;
    }
    const HeldKeys<2> keys(a.scores + (size_t)t * a.width, n);
    keys.bounds(sh.lows, sh.highs);
    __syncthreads();
    KeyRange range = {warp_least(sh.lows[lane]), warp_largest(sh.highs[lane]), a.k};
    for (uint32_t round = 0;; round++) {
        uint32_t* bins = sh.bins[round % 2];
        keys.fill(range, bins);
        __syncthreads();
        const uint32_t here = bins[KeyRange::bin_of_mine()];
        sh.bins[(round + 1) % 2][me] = 0;
        if (range.narrow(here, sh.cut, sh.scan)) break;
    }
    const uint2 counts = scan_block(keys.counts(range), sh.scan);
    keys.keep(range, counts.x & 0xffffu, counts.x >> 16, 0, out);
}

#if !defined(MODEL1_EMULATE) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#include "cluster.cuh"

// The same for few tokens by eight blocks that see each other's shared memory.
constexpr uint32_t kNear = 8;

struct NearSelect {
    uint32_t bins[3][kBins];  // of three rounds: others may still read those of the last one
    uint32_t scan[32], lows[32], highs[32];
    uint32_t low[kNear], high[kNear], above[kNear], equal[kNear];  // by block, pushed by each of them
    KeyRange::Cut cut;
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
    if (n <= a.k) {
        for (uint32_t i = rank * blockDim.x + me; i < a.k; i += kNear * blockDim.x) out[i] = i < n ? (int32_t)i : -1;
        return;
    }
    const uint32_t share = (n + 4 * kNear - 1) / (4 * kNear) * 4, from = min(rank * share, n), mine = min(share, n - from);
    const HeldKeys<4> keys(a.scores + (size_t)t * a.width + from, mine);
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
    KeyRange range = {warp_least(sh.low[lane % kNear]), warp_largest(sh.high[lane % kNear]), a.k};
    for (uint32_t round = 0;; round++) {
        uint32_t* bins = sh.bins[round % 3];
        sh.bins[(round + 1) % 3][me] = 0;
        keys.fill(range, bins);
        cluster_arrive();
        cluster_wait();
        uint32_t here = 0;
#pragma unroll
        for (uint32_t r = 0; r < kNear; r++) here += near_load(&bins[KeyRange::bin_of_mine()], r);
        if (range.narrow(here, sh.cut, sh.scan)) break;
    }
    const uint2 counts = scan_block(keys.counts(range), sh.scan);
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
extern "C" __global__ void __cluster_dims__(kNear, 1, 1) __launch_bounds__(1024, 1)
    select_near(const __grid_constant__ SelectArgs a) {
    select_near_rows(a);
}
extern "C" __global__ void __cluster_dims__(kNear, 1, 1) __launch_bounds__(1024, 1)
    select_near_each(const __grid_constant__ Each<SelectArgs> a) {
    select_near_rows(a.of[blockIdx.z]);
}
#endif

// grid (tokens), or (1, 1, sequences)
KERNEL(select_top_k, SelectArgs, 1024) { select_rows(a); }
KERNEL(select_top_k_each, Each<SelectArgs>, 1024) { select_rows(a.of[blockIdx.z]); }
// The same with 1024 threads.
KERNEL(select_held, SelectArgs, 1024) { select_held_rows(a); }
KERNEL(select_held_each, Each<SelectArgs>, 1024) { select_held_rows(a.of[blockIdx.z]); }
