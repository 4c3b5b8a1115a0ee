// See pair.cuh. grid: a block per multiprocessor, 288 threads (emulated: 256, which copy, too), shared: ../ops/pair.rs
#include "pair.cuh"

#if defined(MODEL1_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
EARLY_KERNEL(pair_bf16, PairArgs, 288, 1) { pair<PairBf16>(a); }
EARLY_KERNEL(pair_f8, PairArgs, 288, 1) { pair<PairF8>(a); }
#endif
