// gemm.cu for the block formats of GGUF files, whose planes are read (Q5_0's are Q8_0's). An integer times its scale has up
// to 19 bits: two bf16 parts as for f16, three where every bit counts.
#include "gemm_gguf.cuh"

#define GEMM(name, Chunk)                                                      \
    KERNEL(name##_128, GemmArgs, 128) { gemm<Integers<Chunk, 2>, 128>(a); }    \
    KERNEL(name##_64, GemmArgs, 128) { gemm<Integers<Chunk, 2>, 64>(a); }      \
    KERNEL(name##_all_128, GemmArgs, 128) { gemm<Integers<Chunk, 3>, 128>(a); } \
    KERNEL(name##_all_64, GemmArgs, 128) { gemm<Integers<Chunk, 3>, 64>(a); }

GEMM(gemm_q8_0, ChunkQ8_0)
GEMM(gemm_q4_0, ChunkQ4_0)
GEMM(gemm_q4_1, ChunkQ4_1)
GEMM(gemm_q4_k, ChunkQ4K)
GEMM(gemm_q6_k, ChunkQ6K)
