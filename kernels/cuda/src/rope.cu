// Rotary embedding in place. Angles are taken in f64 and reduced to a part of a turn there: exact enough for a million
// tokens, and without the tables in local memory that sin and cos of large numbers need.
#include "common.cuh"

struct RopeArgs {
    float* x;              // [rows, width]
    const double* freqs;   // [dims / 2]
    const DevStep* step;
    uint32_t rows;         // code of x's rows
    uint32_t width;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t offset;       // first rotated value of a head
    uint32_t dims;         // rotated values of a head, at most 512
    uint32_t half;         // 1 = pairs (i, i + dims / 2), 0 = (2i, 2i + 1)
    uint32_t rate;         // rows are closed rows of this rate; 0 = tokens
    uint32_t inverse;
    uint32_t pad;
};

// grid (rows)
KERNEL(rope, RopeArgs, 256) {
    __shared__ float2 turns[256];
    const DevStep step = *a.step;
    const uint32_t row = blockIdx.x, pairs = a.dims / 2;
    if (row >= step_rows(step, a.rows)) return;
    const uint64_t position = a.rate == 0 ? step.position + row : (first_closed(step, a.rate) + row) * a.rate;
    for (uint32_t i = threadIdx.x; i < pairs; i += blockDim.x) {
        const double turn = (double)position * a.freqs[i] * 0.15915494309189533577;
        double sine, cosine;
        sincospi(2.0 * (turn - rint(turn)), &sine, &cosine);
        turns[i] = make_float2((float)(a.inverse != 0 ? -sine : sine), (float)cosine);
    }
    __syncthreads();
    float* x = a.x + (size_t)row * a.width;
    for (uint32_t n = threadIdx.x; n < a.heads * pairs; n += blockDim.x) {
        const uint32_t head = n / pairs, i = n % pairs;
        float* v = x + head * a.head_dim + a.offset;
        const uint32_t first = a.half != 0 ? i : 2 * i, second = a.half != 0 ? i + pairs : 2 * i + 1;
        const float p = v[first], q = v[second];
        v[first] = p * turns[i].y - q * turns[i].x;
        v[second] = p * turns[i].x + q * turns[i].y;
    }
}
