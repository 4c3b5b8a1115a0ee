// See gemv.cuh. Names: format, tokens, outputs per warp. grid (blocks, a multiple of the groups; tokens / T), 256 threads,
// shared 4 * T * tile.
#include "gemv.cuh"

#define GEMV(format, Chunk) \
    EARLY_KERNEL(gemv_##format##_8x2, GemvArgs, 256, 1) { gemv<Chunk, 8, 2>(a); }

GEMV(f32, ChunkF32)
GEMV(f16, ChunkF16)
GEMV(bf16, ChunkBf16)
GEMV(f8, ChunkF8)
GEMV(fp4, ChunkFp4)
