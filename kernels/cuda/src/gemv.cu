// See gemv.cuh. Names: format, tokens, outputs per warp. grid (outputs / (8 * R), tokens / T or tokens * k), 256 threads,
// shared 4 * T * tile.
#include "gemv.cuh"

#define GEMV(format, Chunk)                                                      \
    KERNEL(gemv_##format##_1x1, GemvArgs, 256) { gemv<Chunk, 1, 1>(a); }         \
    KERNEL(gemv_##format##_1x2, GemvArgs, 256) { gemv<Chunk, 1, 2>(a); }         \
    KERNEL(gemv_##format##_8x2, GemvArgs, 256) { gemv<Chunk, 8, 2>(a); }

GEMV(f32, ChunkF32)
GEMV(f16, ChunkF16)
GEMV(bf16, ChunkBf16)
GEMV(f8, ChunkF8)
GEMV(fp4, ChunkFp4)
