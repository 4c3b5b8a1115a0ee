// Choosing the rows with the largest scores by threads that hold their keys, exact, in ascending order: for select.cu, and for
// index_near.cu, which has the scores at hand.
#pragma once

#include "numeric.cuh"

// All of n rows where there is nothing to choose, and -1 behind them: by thread `first` of `threads`.
__device__ __forceinline__ void select_all(int32_t* out, uint32_t n, uint32_t k, uint32_t first, uint32_t threads) {
    for (uint32_t i = first; i < k; i += threads) out[i] = i < n ? (int32_t)i : -1;
}

// Total of the threads before this one, and of all BINS of them.
template <uint32_t BINS>
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
    const uint32_t warps = upto(lane < BINS / 32 ? shared[lane] : 0);
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

// Where the k-th largest key is known to be: the `left`-th largest of those from lo to hi. The range is cut into BINS parts until
// all keys of one belong to the chosen or all are equal.
template <uint32_t BINS>
struct KeyRange {
    uint32_t lo, hi, left;

    struct __align__(16) Cut {
        uint32_t bin, left, here;
    };

    __device__ __forceinline__ bool holds(uint32_t key) const { return key >= lo && key <= hi; }
    // A part is 2^shift keys wide.
    __device__ __forceinline__ uint32_t shift() const {
        constexpr uint32_t CUTS = BINS == 1024 ? 10 : 8;
        static_assert(BINS == 1 << CUTS);
        const uint32_t bits = 32 - (uint32_t)__clz((int)(hi - lo));
        return bits > CUTS ? bits - CUTS : 0;
    }
    // By all threads of a block of BINS; `here`: keys in part `bin_of_mine`. True: that was the last cut.
    __device__ __forceinline__ bool narrow(uint32_t here, Cut& cut, uint32_t* scan) {
        const uint32_t wide = shift(), above = scan_block<BINS>(here, scan).x;
        if (above < left && left <= above + here) cut = {bin_of_mine(), left - above, here};
        __syncthreads();
        lo += cut.bin << wide;
        hi = lo + min(hi - lo, (1u << wide) - 1);
        left = cut.left;
        return wide == 0 || left == cut.here;
    }
    // The highest part first.
    static __device__ __forceinline__ uint32_t bin_of_mine() { return BINS - 1 - threadIdx.x; }
};

// Keys of `count` neighbouring rows in the registers of BINS threads, up to 4 * FOURS in each, neighbours again.
template <uint32_t FOURS, uint32_t BINS>
struct HeldKeys {
    using Range = KeyRange<BINS>;

    uint32_t keys[FOURS][4], count, fours, first;

    __device__ __forceinline__ HeldKeys(const float* scores, uint32_t n) : count(n) {
        fours = (count + 4 * BINS - 1) / (4 * BINS);
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
    __device__ __forceinline__ void fill(const Range& range, uint32_t* bins) const {
        const uint32_t wide = range.shift();
        each([&](uint32_t key, uint32_t) {
            if (range.holds(key)) atomicAdd(&bins[(key - range.lo) >> wide], 1u);
        });
    }
    // Keys that are above the range, and in the high half those that are in it.
    __device__ __forceinline__ uint32_t counts(const Range& range) const {
        uint32_t all = 0;
        each([&](uint32_t key, uint32_t) { all += key > range.hi ? 1u : key >= range.lo ? 1u << 16 : 0u; });
        return all;
    }
    // Keys above the range stay, and the first `left` of those in it: all of them, or equal ones. `above` and `equal` of them come
    // before this thread's; row 0 is row `from`.
    __device__ __forceinline__ void keep(const Range& range, uint32_t above, uint32_t equal, uint32_t from, int32_t* out) const {
        each([&](uint32_t key, uint32_t i) {
            if (key < range.lo) return;
            if (key > range.hi || equal < range.left) out[above + min(equal, range.left)] = (int32_t)(from + i);
            if (key > range.hi) above++;
            else equal++;
        });
    }
};

// What a block needs whose threads hold all keys: barriers between blocks cost more than what they share (8,192 rows: 8 us instead of
// 11, 514 rows: 6 instead of 10; 32,768 rows would take 18 instead of 11).
template <uint32_t BINS>
struct HeldSelect {
    uint32_t bins[2][BINS];  // of two rounds: while one is read the other is emptied
    uint32_t scan[32], lows[32], highs[32];
    typename KeyRange<BINS>::Cut cut;
};

// The k rows with the largest keys; the first bins are empty, which all threads see behind the next barrier.
template <uint32_t FOURS, uint32_t BINS>
__device__ __forceinline__ void select_held(HeldSelect<BINS>& sh, const HeldKeys<FOURS, BINS>& keys, uint32_t k, int32_t* out) {
    const uint32_t me = threadIdx.x, lane = me & 31;
    const bool warp = lane < BINS / 32;
    keys.bounds(sh.lows, sh.highs);
    __syncthreads();
    KeyRange<BINS> range = {warp_least(warp ? sh.lows[lane] : 0xffffffffu), warp_largest(warp ? sh.highs[lane] : 0), k};
    for (uint32_t round = 0;; round++) {
        uint32_t* bins = sh.bins[round % 2];
        keys.fill(range, bins);
        __syncthreads();
        const uint32_t here = bins[range.bin_of_mine()];
        sh.bins[(round + 1) % 2][me] = 0;
        if (range.narrow(here, sh.cut, sh.scan)) break;
    }
    const uint2 counts = scan_block<BINS>(keys.counts(range), sh.scan);
    keys.keep(range, counts.x & 0xffffu, counts.x >> 16, 0, out);
}
