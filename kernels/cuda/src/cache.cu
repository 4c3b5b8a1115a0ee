// Writing cache rows, and the same rounding without a cache.
#include "rows.cuh"

// One block per row. grid (rows)
KERNEL(cache_write, CacheWriteArgs, 256) {
    const DevStep step = *a.step;
    if (blockIdx.x < step_rows(step, a.src_rows)) cache_write_row(a, step, blockIdx.x);
}

// grid (runs, rows)
KERNEL(round_trip, RunsArgs, 128) {
    if (blockIdx.y >= step_rows(*a.step, a.rows)) return;
    round_trip_run(a, a.x + ((size_t)blockIdx.y * a.runs + blockIdx.x) * a.width);
}

// grid (runs, rows), shared 4 * width
KERNEL(hadamard, RunsArgs, 128) {
    DYNAMIC_SHARED(memory);
    if (blockIdx.y >= step_rows(*a.step, a.rows)) return;
    hadamard_run(a, a.x + ((size_t)blockIdx.y * a.runs + blockIdx.x) * a.width, (float*)memory);
}
