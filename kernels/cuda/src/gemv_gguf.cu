// gemv.cu for the block formats of GGUF files, whose planes are read (Q5_0's are Q8_0's).
#include "gemv.cuh"

#define GEMV(format, Chunk) \
    EARLY_KERNEL(gemv_##format##_8x2, GemvArgs, 256, 1) { gemv<Chunk, 8, 2>(a); }

GEMV(q8_0, ChunkQ8_0)
GEMV(q4_0, ChunkQ4_0)
GEMV(q4_1, ChunkQ4_1)
GEMV(q4_k, ChunkQ4K)
GEMV(q6_k, ChunkQ6K)
