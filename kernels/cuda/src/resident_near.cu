// See resident.cuh. A kernel per format of weights: what a token waits for is instructions, too.
#include "resident.cuh"

#if defined(MODEL1_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
// grid: a block per multiprocessor, 384 threads (emulated: 256, which copy, too), shared: ../ops/resident/records.rs
#define RESIDENT(weights, Weights, dim) \
    EARLY_KERNEL(resident_##weights##_##dim, ResidentArgs, 384, 1) { resident<Weights, dim>(a); }

RESIDENT(bf16, ResidentBf16, 64)
RESIDENT(bf16, ResidentBf16, 128)
RESIDENT(q8_0, ResidentQ8_0, 64)
RESIDENT(q8_0, ResidentQ8_0, 128)
RESIDENT(q4_0, ResidentQ4_0, 64)
RESIDENT(q4_0, ResidentQ4_0, 128)
#endif
