// The lightning indexer of one token over few rows: their scores as in index_mma.cuh by eight blocks, of which the first gets all of
// them and chooses the best at once (select.cuh): a launch of its own for that would wait longer than it works.
#include "index_mma.cuh"
#include "select.cuh"

#if FROM_HOPPER
#include "cluster.cuh"

constexpr uint32_t kNear = 8, kThreads = 32 * kWarps, kRows = kNear * kWarps * 16;
static_assert(kRows == 4 * kThreads, "a thread of the first block has four rows");

struct IndexSelectArgs {
    IndexScoreArgs score;  // `out` unused; at most kRows rows, `skip` are chosen
    int32_t* out;          // [skip]
};

struct IndexNear {
    float scores[kRows];
    HeldSelect<kThreads> held;
};

template <class K>
__device__ __forceinline__ void index_select(const IndexSelectArgs& args) {
    __shared__ IndexNear s;
    const IndexScoreArgs& a = args.score;
    cluster_arrive();
    s.held.bins[0][threadIdx.x] = 0;
    const uint32_t n = (uint32_t)rows_visible(*a.step, a.rate, 0), k = a.skip;
    index_scores<K>(
        a,
        [&] {
            cluster_wait();
            await_predecessor();
        },
        [&](uint32_t, uint32_t row, float score) { near_store(&s.scores[row], 0, score); });
    cluster_arrive();
    cluster_wait();
    if (blockIdx.x != 0) return;
    if (n <= k) return select_all(args.out, n, k, threadIdx.x, kThreads);
    select_held(s.held, HeldKeys<1, kThreads>(s.scores, n), k, args.out);
}

// grid (8), in clusters of 8, 256 threads, shared: `MMA_SET` of ../ops/index.rs per 16 heads
#define INDEX_NEAR(format, K) \
    CLUSTER_KERNEL(index_near_##format, IndexSelectArgs, kNear, 1, 1, __launch_bounds__(256, 1)) { index_select<K>(a); }

INDEX_NEAR(bf16, IndexBf16)
INDEX_NEAR(fp8, IndexFp8)
INDEX_NEAR(fp4, IndexFp4)
#endif
