// See index_mma.cuh.
#include "each.cuh"
#include "index_mma.cuh"

template <class K>
__device__ __forceinline__ void index_mma(const IndexScoreArgs& a) {
    index_scores<K>(a, [] { await_predecessor(); }, [&](uint32_t t, uint32_t row, float score) { a.out[(size_t)t * a.width + row] = score; });
}

// grid (ceil(rows / 128), token shares), or (..., sequences) for `_each`, 256 threads, shared: `MMA_SET` of ../ops/index.rs per 16 heads
#define INDEX_MMA(format, K, blocks) \
    EARLY_KERNEL(index_mma_##format, IndexScoreArgs, 256, blocks) { index_mma<K>(a); } \
    EARLY_KERNEL(index_mma_##format##_each, Each<IndexScoreArgs>, 256, blocks) { index_mma<K>(a.of[blockIdx.z]); }

INDEX_MMA(bf16, IndexBf16, 2)
INDEX_MMA(fp8, IndexFp8, 1)
INDEX_MMA(fp4, IndexFp4, 1)
