// See held.cuh. grid: (parts * slices of the chain + blocks of the products), 288 threads (emulated: 256, which copy, too), shared:
// ../ops/held.rs. Attention begins beside them and needs its registers. Kernels by the formats of both products.
#include "held.cuh"

#if FROM_HOPPER
SMALL_KERNEL(held_bf16, HeldArgs, 80) { held<PairBf16, PairBf16>(a); }
SMALL_KERNEL(held_f8, HeldArgs, 80) { held<PairF8, PairF8>(a); }
SMALL_KERNEL(held_f8_bf16, HeldArgs, 80) { held<PairF8, PairBf16>(a); }
#endif
