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

// `TopPArgs` in ../ops/sparse.rs.
struct TopPArgs {
    float* x;        // [rows, width], in place
    uint32_t* kept;  // [rows, width / group] values that stay
    const DevStep* step;
    uint32_t rows;
    uint32_t width;
    uint32_t group;  // values per run
    float p;
};

constexpr float kUnits = 1073741824.0f;

// Keeps, in a run of values, the smallest set of the largest magnitudes that adds up to p of the run: the magnitude where
// the set ends is found eight bits at a time from sums of whole units, which have no order.
// grid (width / group, rows), 256 threads
KERNEL(top_p, TopPArgs, 256) {
    __shared__ unsigned long long masses[256];
    __shared__ unsigned long long wide[33];
    __shared__ uint32_t scan[33];
    __shared__ float largest[32];
    __shared__ uint32_t bin;
    __shared__ unsigned long long reached;
    const uint32_t t = blockIdx.y, runs = a.width / a.group, n = a.group;
    if (t >= step_rows(*a.step, a.rows)) return;
    float* x = a.x + (size_t)t * a.width + (size_t)blockIdx.x * n;
    uint32_t* kept = a.kept + (size_t)t * runs + blockIdx.x;
    float most = 0.0f;
    uint32_t odd = 0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
        const float v = fabsf(x[i]);
        odd |= !(v < INFINITY);
        most = fmaxf(most, v);
    }
    most = block_max(most, largest);
    const uint32_t any_odd = block_sum(odd, scan);
    const float scale = __fdiv_rn(kUnits, most);
    if (any_odd != 0 || !(most > 0.0f) || !(scale < INFINITY)) {
        if (threadIdx.x == 0) *kept = n;
        return;
    }
    auto units = [&](float v) -> uint64_t { return (uint64_t)__fmul_rn(fabsf(v), scale); };
    uint64_t mine = 0;
    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) mine += units(x[i]);
    const uint64_t total = block_sum(mine, (uint64_t*)wide);
    const uint64_t goal = max((uint64_t)ceil((double)a.p * (double)total), (uint64_t)1);
    uint32_t prefix = 0, mask = 0;
    uint64_t above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) masses[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            const uint32_t key = __float_as_uint(fabsf(x[i]));
            if ((key & mask) == prefix) atomicAdd(&masses[key >> shift & 255u], (unsigned long long)units(x[i]));
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t b = 255;
            uint64_t sum = above;
            while (b > 0 && sum + masses[b] < goal) sum += masses[b--];
            bin = b;
            reached = sum;
        }
        __syncthreads();
        prefix |= bin << shift;
        mask |= 255u << shift;
        above = reached;
        __syncthreads();
    }
    // Of the values equal to the last one that stays, the first so many.
    const uint64_t each = units(__uint_as_float(prefix));
    const uint64_t missing = goal - above;
    const uint32_t ties = each == 0 ? n : (uint32_t)min((missing + each - 1) / each, (uint64_t)n);
    const uint32_t per = (n + blockDim.x - 1) / blockDim.x;
    const uint32_t from = min(threadIdx.x * per, n), to = min(from + per, n);
    uint32_t equal = 0, all_equal, stay = 0;
    for (uint32_t i = from; i < to; i++) equal += __float_as_uint(fabsf(x[i])) == prefix;
    uint32_t seen = block_scan(equal, scan, &all_equal);
    for (uint32_t i = from; i < to; i++) {
        const uint32_t key = __float_as_uint(fabsf(x[i]));
        const bool stays = key > prefix || (key == prefix && seen < ties);
        seen += key == prefix;
        if (!stays) x[i] = 0.0f;
        stay += stays;
    }
    __syncthreads();
    stay = block_sum(stay, scan);
    if (threadIdx.x == 0) *kept = stay;
}
