// Products for up to 8 tokens (decode): every weight byte is read once, 16 at a time, and enough loads are in flight to
// hide memory. A warp has R outputs; the lanes of a warp take neighbouring chunks of a row.
#pragma once

#include "chunks.cuh"

constexpr uint32_t kSegments = 8;

// A matrix of the launch; all have the same format and inputs. `SegmentArg` in ../ops/gemv.rs.
struct Segment {
    const uint8_t* data;    // [rows, cols]
    const uint8_t* scales;
    WeightRef bias;         // [rows], null data = none
    float* out;             // [tokens, out_stride]
    uint32_t rows;
    uint32_t out_stride;
};

struct GemvArgs {
    Segment segments[kSegments];
    WeightRef w;               // format, cols, scale shape of all segments; data and scales unused
    WeightRef norm;            // weight of an RMSNorm of x, null data = 1
    const float* x;            // [tokens, x_stride]
    const float* residual;     // [tokens, out_stride] added to the first segment's output, null = none; may be out
    const float* slot_weights;  // [tokens, k] multiplies what `glu` gives an expert's slot, null = none
    const DevStep* step;
    const DevExpert* experts;  // as in MatMulArgs: the matrix is the one `chosen` names
    const DevExpert* partners;  // the same for the second segment
    const int32_t* chosen;
    uint32_t tokens;           // code of x's rows
    uint32_t x_stride;
    uint32_t n_segments;
    uint32_t rows;             // outputs of all segments (of one where `glu`)
    uint32_t group_rows;
    uint32_t k;
    uint32_t per_slot;
    uint32_t normed;           // 1 = x is normalised (RMS) on the way
    uint32_t glu;              // 1 = two segments, gate and up: out = act(gate) * up
    uint32_t activation;
    float limit;               // of the gate, infinity = none
    float eps;
    uint32_t tile;             // inputs per pass through shared memory, a multiple of 32 * LEN
    uint32_t pad;
};

// Place in shared memory of four values of x: lanes read neighbouring places.
template <uint32_t LEN>
__device__ __forceinline__ uint32_t staged(uint32_t four) {
    constexpr uint32_t PER = LEN / 4;
    const uint32_t chunk = four / PER;
    return (chunk / 32 * PER + four % PER) * 32 + chunk % 32;
}

template <class F, uint32_t T, uint32_t R>
__device__ __forceinline__ void gemv(const GemvArgs& a) {
    DYNAMIC_SHARED(memory);
    __shared__ float squares[8];
    float4* xs = (float4*)memory;  // [T][tile / 4], see `staged`
    constexpr uint32_t LEN = F::LEN, PER = LEN / 4, U = R > 1 || T > 1 ? 2 : 4;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, cols = a.w.cols;
    const uint32_t all = step_rows(*a.step, a.tokens);

    // Rows of x: of the tokens, of a group, or of an expert's slot.
    uint32_t first = blockIdx.y * T, tokens = 0, slot = 0;
    if (a.experts != nullptr) {
        slot = blockIdx.y % a.k;
        first = blockIdx.y / a.k;
        if (first >= all) return;
        tokens = 1;
    } else {
        if (first >= all) return;
        tokens = min(all - first, T);
    }
    // Outputs of this warp. With `glu` a warp's two rows are the same row of both matrices.
    const uint32_t at = (blockIdx.x * (blockDim.x / 32) + warp) * (a.glu != 0 ? 1 : R);
    const float* x = a.x + (size_t)first * a.x_stride;
    if (a.group_rows != 0) x += (size_t)(blockIdx.x * (blockDim.x / 32) * R / a.group_rows) * cols;
    if (a.per_slot != 0) x += (size_t)slot * cols;

    const uint8_t *data[R], *scales[R];
    uint32_t rows[R], places[R];
#pragma unroll
    for (uint32_t r = 0; r < R; r++) {
        uint32_t row = a.glu != 0 ? at : at + r, s = a.glu != 0 ? r : 0;
        const bool there = row < a.rows;
        if (!there) row = a.rows - 1;
        if (a.glu == 0) {
            while (s + 1 < a.n_segments && row >= a.segments[s].rows) row -= a.segments[s++].rows;
        }
        const uint8_t *base = a.segments[s].data, *scale = a.segments[s].scales;
        if (a.experts != nullptr) {
            const DevExpert e = (s == 0 ? a.experts : a.partners)[a.chosen[blockIdx.y]];
            base = e.data;
            scale = e.scales;
        }
        data[r] = base + (size_t)row * a.w.row_bytes;
        rows[r] = there ? row : 0xffffffffu;
        places[r] = s;
        const uint32_t per_row = (cols + a.w.block_cols - 1) / a.w.block_cols;
        const uint32_t size = a.w.scale_format == kScaleE8m0 ? 1 : a.w.scale_format == kScaleBf16 ? 2 : 4;
        scales[r] = scale == nullptr ? nullptr : scale + (size_t)(row / a.w.block_rows) * per_row * size;
    }

    float sums[R][T] = {}, square[T] = {};
    for (uint32_t base = 0; base < cols; base += a.tile) {
        const uint32_t n = min(a.tile, cols - base), chunks = n / LEN;
        if (base > 0) __syncthreads();
#pragma unroll
        for (uint32_t t = 0; t < T; t++) {
            if (t >= tokens) break;
            const float4* from = (const float4*)(x + (size_t)t * a.x_stride + base);
            for (uint32_t i = threadIdx.x; i < n / 4; i += blockDim.x) {
                float4 v = from[i];
                if (a.normed != 0) {
                    square[t] += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
                    if (a.norm.data != nullptr) {
                        const uint32_t c = base + 4 * i;
                        v.x *= vector_at(a.norm, c);
                        v.y *= vector_at(a.norm, c + 1);
                        v.z *= vector_at(a.norm, c + 2);
                        v.w *= vector_at(a.norm, c + 3);
                    }
                }
                xs[t * (a.tile / 4) + staged<LEN>(i)] = v;
            }
        }
        __syncthreads();
        for (uint32_t c0 = lane; c0 < chunks; c0 += 32 * U) {
            uint32_t raw[U][R][F::WORDS];
#pragma unroll
            for (uint32_t u = 0; u < U; u++) {
#pragma unroll
                for (uint32_t r = 0; r < R; r++) {
                    const uint32_t c = c0 + 32 * u;
                    if (c < chunks) F::load(data[r], base / LEN + c, raw[u][r]);
                }
            }
#pragma unroll
            for (uint32_t u = 0; u < U; u++) {
                const uint32_t c = c0 + 32 * u;
                if (c >= chunks) break;
                float scale[R];
#pragma unroll
                for (uint32_t r = 0; r < R; r++) {
                    scale[r] = !F::SCALED || scales[r] == nullptr
                                   ? 1.0f
                                   : scale_value(a.w.scale_format, scales[r], (base + c * LEN) / a.w.block_cols);
                }
                float parts[R][T] = {};
#pragma unroll
                for (uint32_t i = 0; i < PER; i++) {
                    float4 v[R];
#pragma unroll
                    for (uint32_t r = 0; r < R; r++) v[r] = F::four(raw[u][r], i);
#pragma unroll
                    for (uint32_t t = 0; t < T; t++) {
                        if (t >= tokens) break;
                        const float4 y = xs[t * (a.tile / 4) + (c / 32 * PER + i) * 32 + lane];
#pragma unroll
                        for (uint32_t r = 0; r < R; r++) {
                            parts[r][t] += v[r].x * y.x;
                            parts[r][t] += v[r].y * y.y;
                            parts[r][t] += v[r].z * y.z;
                            parts[r][t] += v[r].w * y.w;
                        }
                    }
                }
#pragma unroll
                for (uint32_t t = 0; t < T; t++) {
#pragma unroll
                    for (uint32_t r = 0; r < R; r++) sums[r][t] += parts[r][t] * scale[r];
                }
            }
        }
    }
#pragma unroll
    for (uint32_t t = 0; t < T; t++) {
        if (t >= tokens) break;
        float factor = 1.0f;
        if (a.normed != 0) {
            __syncthreads();
            factor = 1.0f / sqrtf(block_sum(square[t], squares) / (float)cols + a.eps);
        }
        float result[R];
#pragma unroll
        for (uint32_t r = 0; r < R; r++) {
            result[r] = warp_sum(sums[r][t]) * factor;
            const WeightRef& bias = a.segments[places[r]].bias;
            if (bias.data != nullptr && rows[r] != 0xffffffffu) result[r] += vector_at(bias, rows[r]);
        }
        if (lane != 0) continue;
        if (a.glu != 0) {
            if (R < 2 || rows[0] == 0xffffffffu) continue;
            const float gate = activate(a.activation, fminf(result[0], a.limit));
            const float up = fminf(fmaxf(result[R - 1], -a.limit), a.limit);
            const Segment& s = a.segments[0];
            float v = gate * up;
            if (a.slot_weights != nullptr) v *= a.slot_weights[(size_t)(first + t) * a.k + slot];
            s.out[(size_t)(first + t) * s.out_stride + (size_t)slot * a.rows + rows[0]] = v;
            continue;
        }
#pragma unroll
        for (uint32_t r = 0; r < R; r++) {
            if (rows[r] == 0xffffffffu) continue;
            const Segment& s = a.segments[places[r]];
            const size_t to = (size_t)(first + t) * s.out_stride + (size_t)slot * a.rows + rows[r];
            float v = result[r];
            if (a.residual != nullptr && places[r] == 0) v += a.residual[to];
            s.out[to] = v;
        }
    }
}
