// What the kernels of one token have in common: which rows a block has, where they lie, what becomes of their sums.
#pragma once

#include "gemv.cuh"

// Where the weights of a row lie.
struct RowPlace {
    const uint8_t *data, *scales;
};

// Row `unit` of the launch (of both matrices where `glu`), half `half` of it.
__device__ __forceinline__ uint32_t segment_of(const GemvArgs& a, uint32_t unit, uint32_t* row) {
    uint32_t s = 0;
#pragma unroll 1
    while (s + 1 < a.n_segments && unit >= a.segments[s].rows) unit -= a.segments[s++].rows;
    *row = unit;
    return s;
}

template <class F>
__device__ __forceinline__ RowPlace row_place(const GemvArgs& a, uint32_t unit, uint32_t half, const DevExpert& one,
                                              const DevExpert& other) {
    uint32_t row = unit, s = half;
    if (a.glu == 0) s = segment_of(a, unit, &row);
    const uint8_t *base = a.segments[s].data, *scale = a.segments[s].scales;
    if (a.experts != nullptr) {
        base = s == 0 ? one.data : other.data;
        scale = s == 0 ? one.scales : other.scales;
    }
    if (scale != nullptr) scale = F::row_scales(a.w, scale, row);
    return {base + (size_t)row * a.w.row_bytes, scale};
}

// Output of unit `unit`, from the sums of its row (of both rows where `glu`).
__device__ __forceinline__ void store_unit(const GemvArgs& a, uint32_t unit, uint32_t token, uint32_t slot, float first,
                                           float second, float bias, float residual) {
    if (a.glu != 0) {
        const WeightRef &b = a.segments[0].bias, &c = a.segments[1].bias;
        if (b.data != nullptr) first += vector_at(b, unit);
        if (c.data != nullptr) second += vector_at(c, unit);
        float v = activate(a.activation, fminf(first, a.limit)) * fminf(fmaxf(second, -a.limit), a.limit);
        if (a.slot_weights != nullptr) v *= a.slot_weights[(size_t)token * a.k + slot];
        a.segments[0].out[(size_t)token * a.segments[0].out_stride + (size_t)slot * a.rows + unit] = v;
        return;
    }
    uint32_t row;
    const Segment& s = a.segments[segment_of(a, unit, &row)];
    s.out[(size_t)token * s.out_stride + (size_t)slot * a.rows + row] = first + bias + residual;
}

// Bias and residual of unit `unit`, 0 where there are none (with `glu`, `store_unit` sees to it).
__device__ __forceinline__ void unit_addends(const GemvArgs& a, uint32_t unit, uint32_t token, uint32_t slot, float* bias,
                                             float* residual) {
    *bias = *residual = 0.0f;
    if (a.glu != 0) return;
    uint32_t row;
    const uint32_t s = segment_of(a, unit, &row);
    if (a.segments[s].bias.data != nullptr) *bias = vector_at(a.segments[s].bias, row);
    if (a.residual != nullptr && s == 0) {
        *residual = a.residual[(size_t)token * a.segments[0].out_stride + (size_t)slot * a.rows + row];
    }
}

// The units of a block: neighbours, of one group.
struct GemvBlock {
    uint32_t first, units, group;
};

__device__ __forceinline__ GemvBlock gemv_block(const GemvArgs& a) {
    const uint32_t units = a.group_rows != 0 ? a.group_rows : a.rows, groups = a.rows / units;
    const uint32_t blocks = gridDim.x / groups, group = blockIdx.x / blocks, b = blockIdx.x % blocks;
    const uint32_t each = units / blocks, more = units % blocks;
    return {group * units + each * b + min(b, more), each + (b < more ? 1 : 0), group};
}

// Adds up the shares of every row and gives the units their outputs. `bias` and `residual` are those of unit threadIdx.x of
// the block.
__device__ __forceinline__ void store_units(const GemvArgs& a, const GemvBlock& block, uint32_t token, uint32_t slot,
                                            const float* partial, float factor, float bias, float residual) {
    const uint32_t split = a.split, per = a.glu != 0 ? 2 : 1;
    for (uint32_t u = threadIdx.x; u < block.units; u += blockDim.x) {
        float first = 0.0f, second = 0.0f;
        for (uint32_t s = 0; s < split; s++) {
            first += partial[u * per * split + s];
            if (per == 2) second += partial[(u * 2 + 1) * split + s];
        }
        if (u != threadIdx.x) unit_addends(a, block.first + u, token, slot, &bias, &residual);
        store_unit(a, block.first + u, token, slot, first * factor, second * factor, bias, residual);
    }
}
