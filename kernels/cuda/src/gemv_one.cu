// See gemv_one.cuh.
#include "gemv_one.cuh"

GEMV_ONE(f32, ChunkF32, 2, 2)
GEMV_ONE(f32, ChunkF32, 3, 2)
GEMV_ONE(f32, ChunkF32, 6, 2)
GEMV_ONE(f16, ChunkF16, 1, 2)
GEMV_ONE(f16, ChunkF16, 2, 2)
GEMV_ONE(f16, ChunkF16, 3, 2)
GEMV_ONE(f16, ChunkF16, 5, 2)
GEMV_ONE(bf16, ChunkBf16, 1, 2)
GEMV_ONE(bf16, ChunkBf16, 2, 2)
GEMV_ONE(bf16, ChunkBf16, 3, 2)
GEMV_ONE(bf16, ChunkBf16, 5, 2)
GEMV_ONE(f8, ChunkF8, 1, 2)
GEMV_ONE(f8, ChunkF8, 2, 2)
GEMV_ONE(f8, ChunkF8, 3, 2)
GEMV_ONE(fp4, ChunkFp4, 1, 2)
GEMV_ONE(fp4, ChunkFp4, 2, 2)
