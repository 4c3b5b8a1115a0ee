// Ops that touch every value once: embedding, residuals, gates, stream mixing.
#include "rows.cuh"

struct EmbedArgs {
    WeightRef table;       // [vocabulary, width]
    const DevStep* step;
    const uint32_t* ids;   // [tokens]
    float* out;            // [tokens, copies * width]
    uint32_t width;
    uint32_t copies;
};

// grid (ceil(width / 256), tokens)
KERNEL(embed, EmbedArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= a.step->tokens || c >= a.width) return;
    const float v = weight_at(a.table, a.ids[t], c);
    float* out = a.out + (size_t)t * a.copies * a.width + c;
    for (uint32_t i = 0; i < a.copies; i++) out[(size_t)i * a.width] = v;
}

struct EmbedPositionArgs {
    WeightRef table;  // [positions, width]
    const DevStep* step;
    float* x;         // [tokens, width]
    uint32_t width;
    uint32_t pad;
};

// grid (ceil(width / 256), tokens)
KERNEL(embed_position, EmbedPositionArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= a.step->tokens || c >= a.width) return;
    a.x[(size_t)t * a.width + c] += weight_at(a.table, (uint32_t)a.step->position + t, c);
}

struct RowsArgs {
    const float* x;    // [rows, x_width]
    const float* y;    // [rows, width] (add)
    float* out;        // [rows, width]; may be x where the widths are equal
    const DevStep* step;
    uint32_t rows;     // code of the out buffer's rows
    uint32_t width;
    uint32_t x_width;
    uint32_t offset;   // first column taken (slice)
};

// grid (ceil(width / 256), rows)
KERNEL(add, RowsArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step_rows(*a.step, a.rows) || c >= a.width) return;
    const size_t i = (size_t)t * a.width + c;
    a.out[i] = a.x[i] + a.y[i];
}

// grid (ceil(width / 256), rows)
KERNEL(slice, RowsArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step_rows(*a.step, a.rows) || c >= a.width) return;
    a.out[(size_t)t * a.width + c] = a.x[(size_t)t * a.x_width + a.offset + c];
}

// The last rows of the step's tokens. grid (ceil(width / 256), output rows)
KERNEL(take_output, RowsArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t wanted = step_rows(*a.step, a.rows);
    if (t >= wanted || c >= a.width) return;
    a.out[(size_t)t * a.width + c] = a.x[(size_t)(a.step->tokens - wanted + t) * a.width + c];
}

struct GluArgs {
    const float* gate;         // [rows, width]
    const float* up;           // [rows, width]; null: activation alone
    float* out;                // [rows, width]; may be gate
    const float* row_weights;  // [rows, parts], null = none
    const DevStep* step;
    uint32_t rows;
    uint32_t width;
    uint32_t parts;
    uint32_t activation;
    float limit;               // infinity = none
    uint32_t pad;
};

// grid (ceil(width / 256), rows)
KERNEL(glu, GluArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step_rows(*a.step, a.rows) || c >= a.width) return;
    const size_t i = (size_t)t * a.width + c;
    float v = activate(a.activation, fminf(a.gate[i], a.limit));
    if (a.up != nullptr) v *= fminf(fmaxf(a.up[i], -a.limit), a.limit);
    if (a.row_weights != nullptr) v *= a.row_weights[(size_t)t * a.parts + c / (a.width / a.parts)];
    a.out[i] = v;
}

// grid (ceil(width / 256), tokens)
KERNEL(expert_sum, ExpertSumArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= a.step->tokens || c >= a.width) return;
    const size_t i = (size_t)t * a.width + c;
    float v = a.shared == nullptr ? 0.0f : a.shared[i];
    for (uint32_t s = 0; s < a.k; s++) v += a.x[((size_t)t * a.k + s) * a.width + c];
    a.out[i] = v;
}

// out = sum_i pre_i X_i. grid (ceil(width / 256), rows)
KERNEL(hc_collapse, StreamsArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step_rows(*a.step, a.rows) || c >= a.width) return;
    hc_collapse_at(a, t, c);
}

// X'_k = post_k o + sum_j comb_jk X_j, in place. grid (ceil(width / 256), rows)
KERNEL(hc_expand, StreamsArgs, 256) {
    const uint32_t t = blockIdx.y, c = blockIdx.x * blockDim.x + threadIdx.x;
    if (t >= step_rows(*a.step, a.rows) || c >= a.width) return;
    hc_expand_at(a, t, c);
}
