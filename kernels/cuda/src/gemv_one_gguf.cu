// gemv_one.cu for the block formats of GGUF files, whose planes are read (Q5_0's are Q8_0's).
#include "gemv_one.cuh"

GEMV_ONE(q8_0, ChunkQ8_0, 1, 2)
GEMV_ONE(q8_0, ChunkQ8_0, 2, 2)
GEMV_ALONE(q8_0, ChunkQ8_0, 3, 2)
GEMV_ONE(q4_0, ChunkQ4_0, 1, 1)
GEMV_ONE(q4_0, ChunkQ4_0, 2, 2)
GEMV_ONE(q4_1, ChunkQ4_1, 1, 1)
GEMV_ONE(q4_1, ChunkQ4_1, 2, 2)
GEMV_ONE(q4_k, ChunkQ4K, 1, 2)
GEMV_ONE(q4_k, ChunkQ4K, 2, 1)
GEMV_ONE(q6_k, ChunkQ6K, 1, 2)
GEMV_ONE(q6_k, ChunkQ6K, 2, 2)
GEMV_ALONE(q6_k, ChunkQ6K, 3, 2)
