// Products of one token with a chain of its rows beside them: both read what the launch before them wrote, and one launch waits
// for that.
#include "chain.cuh"
#include "gemv_mma.cuh"
#include "gemv_one.cuh"

struct GemvRowsArgs {
    GemvArgs products;
    ChainArgs chain;
    uint32_t blocks;  // of the products
    uint32_t slices;  // most of a part
};

// grid (parts * slices of the chain + blocks, 1), else as the kernels of the products alone; shared: the larger of both. Those of
// the chain come first: they have most to do before their predecessor has ended.
#define GEMV_ROWS(name, count, product)                                                          \
    EARLY_KERNEL(name##_rows, GemvRowsArgs, 256, count) {                                        \
        const uint32_t b = blockIdx.x, beside = gridDim.x - a.blocks;                            \
        if (b >= beside) {                                                                       \
            product(a.products, b - beside);                                                     \
            return;                                                                              \
        }                                                                                        \
        DYNAMIC_SHARED(memory);                                                                  \
        chain_block(a.chain, 0, b / a.slices, b % a.slices, (float*)memory);                     \
    }

GEMV_ROWS(gemv_f32_x2, 2, (gemv_one<ChunkF32, 2>))
GEMV_ROWS(gemv_bf16_x1, 2, (gemv_one<ChunkBf16, 1>))
GEMV_ROWS(gemv_bf16_x2, 2, (gemv_one<ChunkBf16, 2>))
GEMV_ROWS(gemv_f8_m3x1, 2, (gemv_mma<HalfF8, 3, 1, false>))
GEMV_ROWS(gemv_f8_m4x1, 2, (gemv_mma<HalfF8, 4, 1, false>))
GEMV_ROWS(gemv_fp4_m3x1, 2, (gemv_mma<HalfFp4, 3, 1, false>))
