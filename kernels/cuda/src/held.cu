// See held.cuh. grid: (parts * slices of the chain + blocks of the products), 288 threads (emulated: 256, which copy, too), shared:
// ../ops/held.rs. Half of a multiprocessor's registers are left to what comes before. Kernels by the formats of both products.
#include "held.cuh"

#if defined(MODEL1_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
EARLY_KERNEL(held_bf16, HeldArgs, 288, 2) { held<PairBf16, PairBf16>(a); }
EARLY_KERNEL(held_f8, HeldArgs, 288, 2) { held<PairF8, PairF8>(a); }
EARLY_KERNEL(held_f8_bf16, HeldArgs, 288, 2) { held<PairF8, PairBf16>(a); }
#endif
