// See gemv.cuh. Names: format, tokens, outputs per warp. grid (blocks, a multiple of the groups; tokens / T
// or tokens * k), 256 threads, shared 4 * T * tile.
#include "gemv.cuh"

#define GEMV(format, Chunk, blocks)                                                    \
    EARLY_KERNEL(gemv_##format##_1x1, GemvArgs, 256, blocks) { gemv<Chunk, 1, 1>(a); }    \
    EARLY_KERNEL(gemv_##format##_1x2, GemvArgs, 256, blocks) { gemv<Chunk, 1, 2>(a); }    \
    EARLY_KERNEL(gemv_##format##_8x2, GemvArgs, 256, 1) { gemv<Chunk, 8, 2>(a); }

GEMV(f32, ChunkF32, 2)
GEMV(f16, ChunkF16, 2)
GEMV(bf16, ChunkBf16, 2)
GEMV(f8, ChunkF8, 2)
GEMV(fp4, ChunkFp4, 2)
