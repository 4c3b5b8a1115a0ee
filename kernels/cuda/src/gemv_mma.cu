// See gemv_mma.cuh. Kernels by steps of a round and pieces of x per thread, of matrices (m) and of gates (g). grid (blocks, a multiple of the groups; 1 or
// tokens * k), 256 or 512 threads, shared as `shared_of` in ../ops/gemv_mma.rs says.
#include "gemv_mma.cuh"

#define GEMV_MMA(format, Half, steps, items) \
    EARLY_KERNEL(gemv_##format##_m##steps##x##items, GemvArgs, 512, 1) { gemv_mma<Half, steps, items, false>(a); } \
    EARLY_KERNEL(gemv_##format##_g##steps##x##items, GemvArgs, 512, 1) { gemv_mma<Half, steps, items, true>(a); }

GEMV_MMA(bf16, PlainBf16, 6, 1)
GEMV_MMA(f16, PlainF16, 6, 1)
GEMV_MMA(f8, HalfF8, 3, 1)
GEMV_MMA(f8, HalfF8, 4, 1)
GEMV_MMA(f8, HalfF8, 4, 3)
GEMV_MMA(fp4, HalfFp4, 3, 1)
GEMV_MMA(fp4, HalfFp4, 4, 3)
GEMV_MMA(q8_0, HalfQ8_0, 3, 1)
GEMV_MMA(q8_0, HalfQ8_0, 4, 1)
GEMV_MMA(q8_0, HalfQ8_0, 4, 3)
GEMV_MMA(q4_0, HalfQ4_0, 3, 1)
GEMV_MMA(q4_0, HalfQ4_0, 3, 3)
GEMV_MMA(q4_1, HalfQ4_1, 3, 1)
GEMV_MMA(q4_1, HalfQ4_1, 3, 3)
GEMV_MMA(q4_k, HalfQ4K, 3, 3)
GEMV_MMA(q6_k, HalfQ6K, 3, 1)
GEMV_MMA(q6_k, HalfQ6K, 3, 3)
