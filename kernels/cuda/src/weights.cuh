// Stored weights: one element at a time (any format, any layout), and 16-byte chunks for the fast paths.
#pragma once

#include "numeric.cuh"

// A weight matrix as stored; `WeightArg` in ../ops/args.rs.
struct WeightRef {
    const uint8_t* data;    // [rows][row_bytes], or [cols][rows] elements where `in_out`
    const uint8_t* scales;  // [ceil(rows / block_rows)][ceil(cols / block_cols)], null = none
    uint32_t rows;          // outputs
    uint32_t cols;          // inputs
    uint32_t format;        // WeightFormat
    uint32_t in_out;        // 1 = stored [in, out]
    uint32_t scale_format;  // WeightScale
    uint32_t block_rows;
    uint32_t block_cols;
    uint32_t row_bytes;
};
static_assert(sizeof(WeightRef) == 48, "WeightRef as in args.rs");

__device__ __forceinline__ uint32_t load16(const uint8_t* p) { return p[0] | (uint32_t)p[1] << 8; }
__device__ __forceinline__ uint32_t load32(const uint8_t* p) { return load16(p) | load16(p + 2) << 16; }

// A scale as it lies, and what that means: apart, so that it can be on its way while something else is computed.
__device__ __forceinline__ uint32_t scale_bits(uint32_t format, const uint8_t* scales, size_t i) {
    switch (format) {
        case kScaleE8m0: return scales[i];
        case kScaleBf16: return ((const uint16_t*)scales)[i];
        default: return ((const uint32_t*)scales)[i];
    }
}

__device__ __forceinline__ float scale_of_bits(uint32_t format, uint32_t bits) {
    switch (format) {
        case kScaleE8m0: return ue8m0_to_f32(bits);
        case kScaleBf16: return bf16_to_f32(bits);
        default: return __uint_as_float(bits);
    }
}

__device__ __forceinline__ float scale_value(uint32_t format, const uint8_t* scales, size_t i) {
    return scale_of_bits(format, scale_bits(format, scales, i));
}

__device__ __forceinline__ float scale_at(const WeightRef& w, uint32_t row, uint32_t col) {
    if (w.scales == nullptr) return 1.0f;
    const uint32_t per_row = (w.cols + w.block_cols - 1) / w.block_cols;
    return scale_value(w.scale_format, w.scales, (size_t)(row / w.block_rows) * per_row + col / w.block_cols);
}

// 6-bit (scale, minimum) of sub-block j of a Q4_K block's 12 packed bytes.
__device__ __forceinline__ void q4_k_scale(const uint8_t* s, uint32_t j, uint32_t* scale, uint32_t* minimum) {
    if (j < 4) {
        *scale = s[j] & 63u;
        *minimum = s[j + 4] & 63u;
    } else {
        *scale = (s[j + 4] & 15u) | (uint32_t)(s[j - 4] >> 6) << 4;
        *minimum = (uint32_t)(s[j + 4] >> 4) | (uint32_t)(s[j] >> 6) << 4;
    }
}

__device__ inline float q4_k_at(const uint8_t* b, uint32_t i) {
    const uint32_t j = i / 32;
    uint32_t s, m;
    q4_k_scale(b + 4, j, &s, &m);
    const uint32_t byte = b[16 + j / 2 * 32 + i % 32];
    const float q = (float)(j % 2 == 0 ? byte & 15u : byte >> 4);
    const float scale = __fmul_rn(f16_to_f32(load16(b)), (float)s);
    return __fsub_rn(__fmul_rn(scale, q), __fmul_rn(f16_to_f32(load16(b + 2)), (float)m));
}

__device__ inline float q6_k_at(const uint8_t* b, uint32_t i) {
    const uint32_t half = i / 128, k = i % 128 / 32, r = i % 32;
    const uint32_t low = b[half * 64 + (k & 1u) * 32 + r], high = b[128 + half * 32 + r];
    const uint32_t q = (k < 2 ? low & 15u : low >> 4) | (high >> 2 * k & 3u) << 4;
    const float scale = __fmul_rn(f16_to_f32(load16(b + 208)), (float)(int8_t)b[192 + half * 8 + 2 * k + r / 16]);
    return __fmul_rn(scale, (float)q - 32.0f);
}

// Element `col` of a stored row (scales kept apart not applied).
__device__ inline float element_at(uint32_t format, const uint8_t* row, uint32_t col) {
    switch (format) {
        case kF32: return ((const float*)row)[col];
        case kF16: return f16_to_f32(((const uint16_t*)row)[col]);
        case kBf16: return bf16_to_f32(((const uint16_t*)row)[col]);
        case kF8E4m3: return e4m3_to_f32(row[col]);
        case kFp4E2m1: return e2m1_to_f32(row[col / 2] >> 4 * (col & 1u));
        default: break;
    }
    const uint32_t i = col % 32;
    switch (format) {
        case kQ8_0: {
            const uint8_t* b = row + (size_t)(col / 32) * 34;
            return __fmul_rn(f16_to_f32(load16(b)), (float)(int8_t)b[2 + i]);
        }
        case kQ4_0: {
            const uint8_t* b = row + (size_t)(col / 32) * 18;
            return __fmul_rn(f16_to_f32(load16(b)), (float)(b[2 + i % 16] >> 4 * (i / 16) & 15u) - 8.0f);
        }
        case kQ4_1: {
            const uint8_t* b = row + (size_t)(col / 32) * 20;
            const float q = (float)(b[4 + i % 16] >> 4 * (i / 16) & 15u);
            return __fadd_rn(__fmul_rn(f16_to_f32(load16(b)), q), f16_to_f32(load16(b + 2)));
        }
        case kQ5_0: {
            const uint8_t* b = row + (size_t)(col / 32) * 22;
            const uint32_t q = (b[6 + i % 16] >> 4 * (i / 16) & 15u) | (load32(b + 2) >> i & 1u) << 4;
            return __fmul_rn(f16_to_f32(load16(b)), (float)q - 16.0f);
        }
        case kQ4K: return q4_k_at(row + (size_t)(col / 256) * 144, col % 256);
        case kQ6K: return q6_k_at(row + (size_t)(col / 256) * 210, col % 256);
        default: return 0.0f;
    }
}

// Weight of input `col` for output `row`.
__device__ inline float weight_at(const WeightRef& w, uint32_t row, uint32_t col) {
    if (w.in_out != 0) return element_at(w.format, w.data, col * w.rows + row);
    const float v = element_at(w.format, w.data + (size_t)row * w.row_bytes, col);
    return w.scales == nullptr ? v : __fmul_rn(v, scale_at(w, row, col));
}

// Element `i` of a small weight (norms, biases, sinks) in stored order: f32, f16 or bf16, which `Weights::of_plan` sees to.
// No other formats on purpose: this stands in unrolled loops, and kernels of hundreds of kilobytes wait for their own
// instructions.
__device__ __forceinline__ float vector_at(const WeightRef& w, uint32_t i) {
    if (w.format == kF32) return ((const float*)w.data)[i];
    const uint32_t bits = ((const uint16_t*)w.data)[i];
    return w.format == kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// Elements `i` to `i + 3` (i a multiple of 4) of one, in one load.
__device__ __forceinline__ float4 vector_four(const WeightRef& w, uint32_t i) {
    if (w.format == kF32) return ((const float4*)w.data)[i / 4];
    const uint2 v = ((const uint2*)w.data)[i / 4];
    if (w.format == kF16) {
        return make_float4(f16_to_f32(v.x & 0xffffu), f16_to_f32(v.x >> 16), f16_to_f32(v.y & 0xffffu), f16_to_f32(v.y >> 16));
    }
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                       __uint_as_float(v.y & 0xffff0000u));
}
