// What all matrix products take.
#pragma once

#include "weights.cuh"

struct MatMulArgs {
    WeightRef w;
    WeightRef bias;            // [rows], null data = none
    const float* x;            // [tokens, x_stride]
    float* out;                // [tokens, out_stride]
    const DevStep* step;
    const DevExpert* experts;  // [experts]: the matrix is the one `chosen` names; null = w itself
    const int32_t* chosen;     // [tokens, k]
    uint32_t tokens;           // code of x's rows
    uint32_t x_stride;
    uint32_t out_stride;
    uint32_t group_rows;       // block-diagonal: outputs per group, each with its own cols of x; 0 = none
    uint32_t k;                // experts per token
    uint32_t per_slot;         // 1 = x's row has k parts, one per chosen expert
};

// Which rows block `y` of `per` tokens works on: token rows from `first`, or one (token, expert) slot. Moves x and out
// there. False if there is nothing to do.
__device__ __forceinline__ bool place_rows(const MatMulArgs& a, uint32_t row, uint32_t y, uint32_t per, WeightRef* w,
                                           uint32_t* first, uint32_t* tokens, const float** x, float** out) {
    const uint32_t all = step_rows(*a.step, a.tokens);
    if (a.experts != nullptr) {
        const uint32_t t = y / a.k, slot = y % a.k;
        if (t >= all) return false;
        const DevExpert e = a.experts[a.chosen[y]];
        w->data = e.data;
        w->scales = e.scales;
        *first = t;
        *tokens = 1;
        *x = a.x + (size_t)t * a.x_stride + (a.per_slot != 0 ? (size_t)slot * w->cols : 0);
        *out = a.out + (size_t)t * a.out_stride + (size_t)slot * w->rows;
        return true;
    }
    *first = y * per;
    if (*first >= all) return false;
    *tokens = min(all - *first, per);
    *x = a.x + (size_t)*first * a.x_stride + (a.group_rows != 0 ? (size_t)(row / a.group_rows) * w->cols : 0);
    *out = a.out + (size_t)*first * a.out_stride;
    return true;
}

__device__ __forceinline__ float bias_at(const MatMulArgs& a, uint32_t row) {
    return a.bias.data == nullptr ? 0.0f : vector_at(a.bias, row);
}
