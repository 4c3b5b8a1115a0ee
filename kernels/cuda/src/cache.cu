// Writing cache rows, and the same rounding without a cache.
#include "records.cuh"

struct CacheWriteArgs {
    CacheRef cache;
    const float* src;    // [rows, records * width]
    const DevStep* step;
    DevRowStats* stats;  // [rows], null = none
    uint32_t src_rows;   // code of src's rows
    uint32_t rate;       // rows are closed rows of this rate; 0 = tokens
};

// Adds up what the threads of a block noted and stores it.
__device__ inline void write_stats(const RoundTrip& trip, DevRowStats* out) {
    __shared__ float floats[2][8];
    __shared__ uint32_t counts[2][8];
    const float err = block_sum(trip.err, floats[0]), ref = block_sum(trip.ref, floats[1]);
    const uint32_t saturated = block_sum(trip.saturated, counts[0]), flushed = block_sum(trip.flushed, counts[1]);
    if (threadIdx.x == 0 && out != nullptr) *out = {err, ref, saturated, flushed};
}

// One block per row. Warps take blocks of values that share a scale. grid (rows)
KERNEL(cache_write, CacheWriteArgs, 256) {
    const DevStep step = *a.step;
    const CacheRef& c = a.cache;
    const uint32_t row = blockIdx.x, rows = step_rows(step, a.src_rows);
    if (row >= rows) return;
    const uint64_t index = (a.rate == 0 ? step.position : first_closed(step, a.rate)) + row;
    // A later row of the step takes the same slot: the last one stays.
    const bool hidden = c.ring != 0 && row + c.ring < rows;
    const size_t slot = cache_slot(c, index);
    RoundTrip trip;
    const uint32_t nope = c.format == kCacheFp8Model1 || c.format == kCacheFp8B64 ? c.width - c.rope : c.width;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, warps = blockDim.x / 32;
    for (uint32_t r = 0; r < c.records && !hidden; r++) {
        const float* v = a.src + ((size_t)row * c.records + r) * c.width;
        const size_t at = slot * c.records + r;
        uint8_t *data = c.data + at * c.data_bytes, *scales = c.scales + at * c.scale_bytes;
        switch (c.format) {
            case kCacheF32:
                for (uint32_t i = threadIdx.x; i < c.width; i += blockDim.x) ((float*)data)[i] = v[i];
                break;
            case kCacheBf16:
                for (uint32_t i = threadIdx.x; i < c.width; i += blockDim.x) {
                    ((uint16_t*)data)[i] = (uint16_t)f32_to_bf16(v[i]);
                }
                break;
            default: {
                const bool four = c.format == kCacheFp4;
                const uint32_t block = four ? 32 : 64, blocks = (nope + block - 1) / block;
                for (uint32_t b = warp; b < blocks; b += warps) {
                    const uint32_t from = b * block, n = min(block, nope - from);
                    encode_block(v + from, n, four, data + (four ? from / 2 : from), scales + b, trip);
                }
                for (uint32_t i = nope + threadIdx.x; i < c.width; i += blockDim.x) {
                    const uint32_t bits = f32_to_bf16(v[i]);
                    data[nope + 2 * (i - nope)] = (uint8_t)bits;
                    data[nope + 2 * (i - nope) + 1] = (uint8_t)(bits >> 8);
                }
                // MODEL1's record has one unused scale byte.
                for (uint32_t i = blocks + lane; warp == 0 && i < c.scale_bytes; i += 32) scales[i] = 0;
            }
        }
    }
    write_stats(trip, a.stats == nullptr ? nullptr : a.stats + row);
}

struct RunsArgs {
    float* x;             // [rows, runs, width]
    const DevStep* step;
    uint32_t rows;        // code of x's rows
    uint32_t runs;        // per row
    uint32_t width;       // values per run
    uint32_t format;      // CacheFormat (round_trip)
};

// Rounds runs of values to a cache format and back. grid (runs, rows)
KERNEL(round_trip, RunsArgs, 128) {
    if (blockIdx.y >= step_rows(*a.step, a.rows)) return;
    float* x = a.x + ((size_t)blockIdx.y * a.runs + blockIdx.x) * a.width;
    if (a.format == kCacheF32) return;
    if (a.format == kCacheBf16) {
        for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) x[i] = bf16_to_f32(f32_to_bf16(x[i]));
        return;
    }
    const bool four = a.format == kCacheFp4;
    const uint32_t block = four ? 32 : 64, lane = threadIdx.x & 31;
    RoundTrip trip;
    for (uint32_t from = threadIdx.x / 32 * block; from < a.width; from += blockDim.x / 32 * block) {
        const uint32_t n = min(block, a.width - from);
        float amax = 0.0f;
        for (uint32_t k = lane; k < n; k += 32) amax = fmaxf(amax, finite_magnitude(x[from + k]));
        amax = warp_max(amax);
        const uint32_t byte = four ? e2m1_scale_byte(amax) : e4m3_scale_byte(amax);
        for (uint32_t k = lane; k < n; k += 32) {
            float stored;
            if (four) {
                e2m1_encode(x[from + k], byte, &stored, trip);
            } else {
                e4m3_encode(x[from + k], byte, &stored, trip);
            }
            x[from + k] = stored;
        }
    }
}

// Normalised Walsh-Hadamard transform of runs of 2^n values, strides 1, 2, 4, ... as on the CPU: the same bits.
// grid (runs, rows), shared 4 * width
KERNEL(hadamard, RunsArgs, 128) {
    DYNAMIC_SHARED(memory);
    float* v = (float*)memory;
    if (blockIdx.y >= step_rows(*a.step, a.rows)) return;
    float* x = a.x + ((size_t)blockIdx.y * a.runs + blockIdx.x) * a.width;
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) v[i] = x[i];
    for (uint32_t half = 1; half < a.width; half *= 2) {
        __syncthreads();
        for (uint32_t p = threadIdx.x; p < a.width / 2; p += blockDim.x) {
            const uint32_t i = p / half * 2 * half + p % half;
            const float first = v[i], second = v[i + half];
            v[i] = first + second;
            v[i + half] = first - second;
        }
    }
    __syncthreads();
    const float norm = (float)(1.0 / sqrt((double)a.width));
    for (uint32_t i = threadIdx.x; i < a.width; i += blockDim.x) x[i] = __fmul_rn(v[i], norm);
}
