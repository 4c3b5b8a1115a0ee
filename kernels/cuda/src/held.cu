// See held.cuh. grid: (parts * slices of the chain + a block per multiprocessor that is left), 288 threads (emulated: 256, which
// copy, too), shared: ../ops/held.rs. Half of a multiprocessor's registers are left to what comes before.
#include "held.cuh"

#define HELD(format, Format)                                                                  \
    EARLY_KERNEL(held_##format, HeldArgs, 288, 2) {                                           \
        const uint32_t b = blockIdx.x;                                                        \
        if (b >= a.beside) {                                                                  \
            held_products<Format>(a, b - a.beside);                                           \
            return;                                                                           \
        }                                                                                     \
        DYNAMIC_SHARED(memory);                                                               \
        chain_block(a.chain, 0, b / a.slices, b % a.slices, (float*)memory);                  \
    }

#if defined(MODEL1_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
HELD(bf16, PairBf16)
HELD(f8, PairF8)
#endif
