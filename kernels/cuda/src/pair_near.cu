// See pair.cuh. grid: a block per multiprocessor, 288 threads (emulated: 256, which copy, too), shared: ../ops/pair.rs. They begin
// while attention runs, whose blocks leave room for so many registers.
#include "pair.cuh"

#if FROM_HOPPER
EARLY_KERNEL(pair_bf16, PairArgs, 288, 1) { pair<PairBf16>(a); }
SMALL_KERNEL(pair_f8, PairArgs, 96) { pair<PairF8>(a); }
#endif
