// Products of one token whose matrices have two formats, of one input: one launch waits for that. Kernels by what both are made
// of (gemv_mma.cuh).
#include "gemv_mma.cuh"

struct GemvMixedArgs {
    GemvArgs products[2];
    uint32_t blocks;  // of the first
    uint32_t pad;
};

// grid (blocks of both, 1), 256 threads, shared: the larger of both
#define GEMV_MIXED(name, first, second)                                                       \
    EARLY_KERNEL(name, GemvMixedArgs, 256, 2) {                                               \
        if (blockIdx.x < a.blocks) {                                                          \
            first(a.products[0], blockIdx.x);                                                 \
        } else {                                                                              \
            second(a.products[1], blockIdx.x - a.blocks);                                     \
        }                                                                                     \
    }

GEMV_MIXED(gemv_f8_m3x1_bf16_m6x1, (gemv_mma<HalfF8, 3, 1, false>), (gemv_mma<PlainBf16, 6, 1, false>))
GEMV_MIXED(gemv_f8_m4x1_bf16_m6x1, (gemv_mma<HalfF8, 4, 1, false>), (gemv_mma<PlainBf16, 6, 1, false>))
