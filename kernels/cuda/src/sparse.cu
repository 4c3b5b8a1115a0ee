// Ops that leave values out.
#include "rows.cuh"

constexpr uint32_t kMostHeads = 256;

// `ZeroHeadsArgs` in ../ops/sparse.rs.
struct ZeroHeadsArgs {
    uint64_t heads[kMostHeads / 64];  // a bit per head that becomes 0
    float* x;                         // [rows, width], in place
    const DevStep* step;
    uint32_t rows;
    uint32_t width;
    uint32_t head_dim;
    uint32_t pad;
};

// grid (ceil(width / 256), rows)
KERNEL(zero_heads, ZeroHeadsArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step_rows(*a.step, a.rows) || c >= a.width) return;
    const uint32_t h = c / a.head_dim;
    if (h < kMostHeads && (a.heads[h / 64] >> (h % 64) & 1) != 0) a.x[(size_t)t * a.width + c] = 0.0f;
}
