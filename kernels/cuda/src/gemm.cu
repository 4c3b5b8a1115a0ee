// See gemm.cuh. grid (outputs / 64, tokens / 64 or expert tiles, splits), 128 threads
#include "gemm.cuh"

KERNEL(gemm_f32, GemmArgs, 128) { gemm<Fast<ChunkF32, 3>>(a); }
KERNEL(gemm_f16, GemmArgs, 128) { gemm<Fast<ChunkF16, 2>>(a); }
KERNEL(gemm_f16_all, GemmArgs, 128) { gemm<Fast<ChunkF16, 3>>(a); }
KERNEL(gemm_bf16, GemmArgs, 128) { gemm<Fast<ChunkBf16, 2>>(a); }
KERNEL(gemm_bf16_all, GemmArgs, 128) { gemm<Fast<ChunkBf16, 3>>(a); }
KERNEL(gemm_f8, GemmArgs, 128) { gemm<Fast<ChunkF8, 2>>(a); }
KERNEL(gemm_f8_all, GemmArgs, 128) { gemm<Fast<ChunkF8, 3>>(a); }
KERNEL(gemm_fp4, GemmArgs, 128) { gemm<Fast<ChunkFp4, 2>>(a); }
KERNEL(gemm_fp4_all, GemmArgs, 128) { gemm<Fast<ChunkFp4, 3>>(a); }
KERNEL(gemm_any, GemmArgs, 128) { gemm<Slow>(a); }

// Adds the shares up in order. grid (ceil(outputs / 256), tokens)
KERNEL(gemm_sum, GemmArgs, 256) {
    const uint32_t o = blockIdx.x * blockDim.x + threadIdx.x, t = blockIdx.y;
    if (o >= a.w.rows || t >= step_rows(*a.step, a.tokens)) return;
    float v = a.bias.data == nullptr ? 0.0f : vector_at(a.bias, o);
    for (uint32_t s = 0; s < a.splits; s++) v += a.partial[((size_t)s * a.bucket + t) * a.w.rows + o];
    a.out[(size_t)t * a.out_stride + o] = v;
}

struct ExpertTilesArgs {
    const int32_t* chosen;  // [tokens, k]
    ExpertTile* tiles;      // [n_tiles]
    uint32_t* order;        // [tokens * k]
    const DevStep* step;
    uint32_t tokens;        // code
    uint32_t k;
    uint32_t experts;       // at most 1024
    uint32_t n_tiles;
};

// Groups slots by expert, in order of slots. One block of 1024 threads; shared 4 * (slots + 2 * experts).
KERNEL(expert_tiles, ExpertTilesArgs, 1024) {
    DYNAMIC_SHARED(memory);
    __shared__ uint32_t scan[33];
    const uint32_t slots = step_rows(*a.step, a.tokens) * a.k;
    uint32_t* starts = (uint32_t*)memory;  // [experts]
    uint32_t* counts = starts + a.experts;  // [experts]
    int32_t* picks = (int32_t*)(counts + a.experts);
    for (uint32_t i = threadIdx.x; i < slots; i += blockDim.x) picks[i] = a.chosen[i];
    for (uint32_t i = threadIdx.x; i < a.n_tiles; i += blockDim.x) a.tiles[i].count = 0;
    __syncthreads();
    uint32_t mine = 0, total;
    for (uint32_t i = 0; threadIdx.x < a.experts && i < slots; i++) mine += picks[i] == (int32_t)threadIdx.x;
    const uint32_t begin = block_scan(mine, scan, &total);
    __syncthreads();
    const uint32_t tile = block_scan((mine + 63) / 64, scan, &total);
    if (threadIdx.x < a.experts) {
        starts[threadIdx.x] = begin;
        for (uint32_t i = 0; i * 64 < mine; i++) {
            a.tiles[tile + i] = {threadIdx.x, begin + i * 64, min(64u, mine - i * 64), 0};
        }
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < slots; i += blockDim.x) {
        uint32_t rank = 0;
        for (uint32_t j = 0; j < i; j++) rank += picks[j] == picks[i];
        a.order[starts[picks[i]] + rank] = i;
    }
}
