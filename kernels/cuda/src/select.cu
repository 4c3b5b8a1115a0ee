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

// The same where a block's threads have room for all keys in their registers, as select_near below: barriers between blocks cost
// more than what they share (8,192 rows: 8 us instead of 11, 514 rows: 6 instead of 10; 32,768 rows would take 18 instead of 11).
constexpr uint32_t kHeldFours = 2;

struct HeldSelect {
    uint32_t bins[2][kBins];  // of two rounds: while one is read the other is emptied
    uint32_t scan[33], lows[32], highs[32];
    uint32_t bin, left, here;
};

// A block of 1024; width: a multiple of 4, at most 1024 * 4 * kHeldFours
__device__ __forceinline__ void select_held_rows(const SelectArgs& a) {
    __shared__ HeldSelect sh;
    const uint32_t me = threadIdx.x, lane = me & 31, warp = me / 32, t = blockIdx.x;
    sh.bins[0][me] = 0;
    const DevStep s = *a.step;
    if (t >= s.tokens) return;
    const uint32_t n = (uint32_t)rows_visible(s, a.rate, t);
    int32_t* out = a.out + (size_t)t * a.k;
    if (n <= a.k) {
        for (uint32_t i = me; i < a.k; i += blockDim.x) out[i] = i < n ? (int32_t)i : -1;
        return;
    }
    // A thread has neighbouring rows.
    const uint32_t fours = (n + 4 * kBins - 1) / (4 * kBins), first = 4 * fours * me;
    const float* scores = a.scores + (size_t)t * a.width;
    uint32_t keys[kHeldFours][4], lo = 0xffffffffu, hi = 0;
#pragma unroll
    for (uint32_t h = 0; h < kHeldFours; h++) {
        if (h >= fours) break;
        const uint32_t i = first + 4 * h;
        const float4 v = i < n ? *(const float4*)(scores + i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            keys[h][j] = ordered_key(four[j]);
            if (i + j >= n) continue;
            lo = min(lo, keys[h][j]);
            hi = max(hi, keys[h][j]);
        }
    }
    // Calls `f` with every key there is and its row.
    const auto each = [&](auto f) {
#pragma unroll
        for (uint32_t h = 0; h < kHeldFours; h++) {
            if (h >= fours) break;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                if (first + 4 * h + j < n) f(keys[h][j], first + 4 * h + j);
            }
        }
    };
    lo = ~warp_reduce(~lo, Largest());
    hi = warp_reduce(hi, Largest());
    if (lane == 0) {
        sh.lows[warp] = lo;
        sh.highs[warp] = hi;
    }
    __syncthreads();
    lo = ~warp_reduce(~sh.lows[lane], Largest());
    hi = warp_reduce(sh.highs[lane], Largest());

    // The k-th largest is the `left`-th largest of the keys from lo to hi.
    uint32_t left = a.k;
    for (uint32_t round = 0;; round++) {
        uint32_t* bins = sh.bins[round % 2];
        const uint32_t span = hi - lo, bits = 32 - (uint32_t)__clz((int)span), shift = bits > 10 ? bits - 10 : 0;
        each([&](uint32_t key, uint32_t) {
            if (key >= lo && key <= hi) atomicAdd(&bins[(key - lo) >> shift], 1u);
        });
        __syncthreads();
        // The highest bin first.
        const uint32_t bin = kBins - 1 - me, here = bins[bin];
        sh.bins[(round + 1) % 2][me] = 0;
        const uint32_t above = scan_block(here, sh.scan).x;
        if (above < left && left <= above + here) {
            sh.bin = bin;
            sh.left = left - above;
            sh.here = here;
        }
        __syncthreads();
        lo += sh.bin << shift;
        hi = lo + min(hi - lo, (1u << shift) - 1);
        left = sh.left;
        if (shift == 0 || left == sh.here) break;
    }
    // Keys above `hi` stay, and the first `left` of those from lo to hi: all of them, or equal ones.
    uint32_t count = 0;
    each([&](uint32_t key, uint32_t) { count += key > hi ? 1u : key >= lo ? 1u << 16 : 0u; });
    // Both counts in one scan: equals in the high half.
    const uint2 counts = scan_block(count, sh.scan);
    uint32_t above = counts.x & 0xffffu, equal = counts.x >> 16;
    each([&](uint32_t key, uint32_t i) {
        if (key < lo) return;
        if (key > hi || equal < left) out[above + min(equal, left)] = (int32_t)i;
        if (key > hi) above++;
        else equal++;
    });
}

#if !defined(MODEL1_EMULATE) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#include "cluster.cuh"

// The same for few tokens by eight blocks that see each other's shared memory: every thread has its keys in registers, and the
// range that the k-th largest is known to be in is cut into 1,024 parts until all keys of one belong to the chosen or all are
// equal.
constexpr uint32_t kNear = 8, kHeld = 4;

struct NearSelect {
    uint32_t bins[3][kBins];  // of three rounds: others may still read those of the last one
    uint32_t scan[33], lows[32], highs[32];
    uint32_t low[kNear], high[kNear], above[kNear], equal[kNear];  // by block, pushed by each of them
    uint32_t bin, left, here;
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
    // A block has neighbouring rows, and so has a thread.
    const uint32_t share = (n + 4 * kNear - 1) / (4 * kNear) * 4, from = min(rank * share, n), mine = min(share, n - from);
    const uint32_t fours = (mine + 4 * kBins - 1) / (4 * kBins), first = 4 * fours * me;
    const float* scores = a.scores + (size_t)t * a.width + from;
    uint32_t keys[kHeld][4], lo = 0xffffffffu, hi = 0;
#pragma unroll
    for (uint32_t h = 0; h < kHeld; h++) {
        const uint32_t i = h < fours ? first + 4 * h : mine;
        float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i < mine) v = *(const float4*)(scores + i);
        const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            keys[h][j] = ordered_key(four[j]);
            if (i + j >= mine) continue;
            lo = min(lo, keys[h][j]);
            hi = max(hi, keys[h][j]);
        }
    }
    // Calls `f` with every key there is and its row.
    const auto each = [&](auto f) {
#pragma unroll
        for (uint32_t h = 0; h < kHeld; h++) {
            if (h >= fours) break;
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                if (first + 4 * h + j < mine) f(keys[h][j], first + 4 * h + j);
            }
        }
    };
    lo = __reduce_min_sync(kAll, lo);
    hi = __reduce_max_sync(kAll, hi);
    if (lane == 0) {
        sh.lows[warp] = lo;
        sh.highs[warp] = hi;
    }
    __syncthreads();
    if (warp == 0) {
        lo = __reduce_min_sync(kAll, sh.lows[lane]);
        hi = __reduce_max_sync(kAll, sh.highs[lane]);
        if (lane < kNear) {
            near_store(&sh.low[rank], lane, lo);
            near_store(&sh.high[rank], lane, hi);
        }
    }
    cluster_arrive();
    cluster_wait();
    lo = __reduce_min_sync(kAll, sh.low[lane % kNear]);
    hi = __reduce_max_sync(kAll, sh.high[lane % kNear]);

    // The k-th largest is the `left`-th largest of the keys from lo to hi.
    uint32_t left = a.k;
    for (uint32_t round = 0;; round++) {
        uint32_t* bins = sh.bins[round % 3];
        const uint32_t span = hi - lo, bits = 32 - (uint32_t)__clz((int)span), shift = bits > 10 ? bits - 10 : 0;
        sh.bins[(round + 1) % 3][me] = 0;
        each([&](uint32_t key, uint32_t) {
            if (key >= lo && key <= hi) atomicAdd(&bins[(key - lo) >> shift], 1u);
        });
        cluster_arrive();
        cluster_wait();
        // The highest bin first.
        const uint32_t bin = kBins - 1 - me;
        uint32_t here = 0;
#pragma unroll
        for (uint32_t r = 0; r < kNear; r++) here += near_load(&bins[bin], r);
        const uint32_t above = scan_block(here, sh.scan).x;
        if (above < left && left <= above + here) {
            sh.bin = bin;
            sh.left = left - above;
            sh.here = here;
        }
        __syncthreads();
        lo += sh.bin << shift;
        hi = lo + min(hi - lo, (1u << shift) - 1);
        left = sh.left;
        if (shift == 0 || left == sh.here) break;
    }
    // Keys above `hi` stay, and the first `left` of those from lo to hi: all of them, or equal ones.
    uint32_t count = 0;
    each([&](uint32_t key, uint32_t) { count += key > hi ? 1u : key >= lo ? 1u << 16 : 0u; });
    // Both counts in one scan: equals in the high half.
    const uint2 counts = scan_block(count, sh.scan);
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
    each([&](uint32_t key, uint32_t i) {
        if (key < lo) return;
        if (key > hi || equal < left) out[above + min(equal, left)] = (int32_t)(from + i);
        if (key > hi) above++;
        else equal++;
    });
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
