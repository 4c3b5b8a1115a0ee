// Stored weights: one element at a time (any format, any layout), and 16-byte chunks for the fast paths.
#pragma once

#include "numeric.cuh"

// A weight matrix as it lies; `WeightArg` in ../ops/args.rs. Formats from kQ8_0 to kQ6K are planes of integers here, with
// their scales apart (../planes.rs).
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

// What no kernel changes while it is read.
template <class T>
__device__ __forceinline__ T constant(const T* p) {
#ifdef MODEL1_EMULATE
    return *p;
#else
    return __ldg(p);
#endif
}

// A scale as it lies, and what that means: apart, so that it can be on its way while something else is computed.
__device__ __forceinline__ uint32_t scale_bits(uint32_t format, const uint8_t* scales, size_t i) {
    switch (format) {
        case kScaleE8m0: return constant(scales + i);
        case kScaleBf16: return constant((const uint16_t*)scales + i);
        default: return constant((const uint32_t*)scales + i);
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

// Bytes of one entry of a row of scales.
__device__ __forceinline__ uint32_t scale_bytes(uint32_t format) {
    constexpr uint64_t sizes = 4ull | 2ull << 8 | 1ull << 16 | 2ull << 24 | 4ull << 32 | 20ull << 40 | 4ull << 48;
    return (uint32_t)(sizes >> 8 * format) & 255u;
}

// n / d, in two instructions where d is a power of two, as blocks are: kernels of one token look scales up for every row.
__device__ __forceinline__ uint32_t divided(uint32_t n, uint32_t d) {
    return (d & (d - 1)) == 0 ? n >> (31 - __clz((int)d)) : n / d;
}

// Scales of stored row `row`.
__device__ __forceinline__ const uint8_t* scale_row(const WeightRef& w, const uint8_t* scales, uint32_t row) {
    const uint32_t per_row = divided(w.cols + w.block_cols - 1, w.block_cols);
    return scales + (size_t)divided(row, w.block_rows) * per_row * scale_bytes(w.scale_format);
}

// Four of the 8 nibbles of a word of a plane, each times 8 in a byte: values 0 to 3 (`half` 0) or 4 to 7 of the word.
__device__ __forceinline__ uint32_t nibbles(uint32_t word, uint32_t half) {
    return (half == 0 ? word : word << 4 | word >> 28) & 0x78787878u;
}

// (scale, minimum) of 32 values of Q4_K: f16 factors of 256 values in one word, 6 bits each of these 32 in the other.
__device__ __forceinline__ float2 q4_k_scales(uint32_t factors, uint32_t own) {
    return make_float2(__fmul_rn(f16_to_f32(factors & 0xffffu), (float)(own & 63u)),
                       __fmul_rn(f16_to_f32(factors >> 16), (float)(own >> 8)));
}

// Scale of the 16 values `run` of Q6_K, out of the word of 32: the f16 factor of 256 values, a signed byte for each 16.
__device__ __forceinline__ float q6_k_scale(uint32_t word, uint32_t run) {
    return __fmul_rn(f16_to_f32(word & 0xffffu), (float)(int8_t)(word >> (run % 2 == 0 ? 16 : 24)));
}

// Element `col` of a stored row, scales kept apart not applied: in planes the integer it is made of.
__device__ inline float element_at(uint32_t format, const uint8_t* row, uint32_t col) {
    switch (format) {
        case kF32: return ((const float*)row)[col];
        case kF16: return f16_to_f32(((const uint16_t*)row)[col]);
        case kBf16: return bf16_to_f32(((const uint16_t*)row)[col]);
        case kF8E4m3: return e4m3_to_f32(row[col]);
        case kFp4E2m1: return e2m1_to_f32(row[col / 2] >> 4 * (col & 1u));
        case kQ8_0:
        case kQ6K: return (float)(int8_t)row[col];
        case kQ4_0:
        case kQ4_1:
        case kQ4K: {
            const uint32_t eight = nibbles(((const uint32_t*)row)[col / 8], col / 4 % 2) >> 8 * (col % 4) & 0x78u;
            return (float)(eight >> 3) - (format == kQ4_0 ? 8.0f : 0.0f);
        }
        default: return 0.0f;
    }
}

// Value of the integer `q` of column `col` in a row of a plane with these scales.
__device__ inline float plane_value(uint32_t scale_format, const uint8_t* scales, uint32_t col, float q) {
    switch (scale_format) {
        case kScaleF16: return __fmul_rn(f16_to_f32(((const uint16_t*)scales)[col / 32]), q);
        case kScalePair: {
            const uint32_t pair = ((const uint32_t*)scales)[col / 32];
            return __fadd_rn(__fmul_rn(f16_to_f32(pair & 0xffffu), q), f16_to_f32(pair >> 16));
        }
        case kScaleQ4K: {
            const uint8_t* record = scales + 20 * (size_t)(col / 256);
            const float2 v = q4_k_scales(*(const uint32_t*)record, *(const uint16_t*)(record + 4 + 2 * (col % 256 / 32)));
            return __fsub_rn(__fmul_rn(v.x, q), v.y);
        }
        default: return __fmul_rn(q6_k_scale(((const uint32_t*)scales)[col / 32], col / 16), q);
    }
}

// Weight of input `col` for output `row`.
__device__ inline float weight_at(const WeightRef& w, uint32_t row, uint32_t col) {
    const bool turned = w.in_out != 0;
    const uint32_t r = turned ? col : row, c = turned ? row : col;
    const float v = element_at(w.format, w.data + (size_t)r * w.row_bytes, c);
    if (w.scales == nullptr) return v;
    if (w.scale_format < kScaleF16) return __fmul_rn(v, scale_at(w, row, col));
    return plane_value(w.scale_format, w.scales + (size_t)r * ((turned ? w.rows : w.cols) / w.block_cols) * scale_bytes(w.scale_format), c, v);
}

// Element `i` of a small weight (norms, biases, sinks) in stored order: f32, f16 or bf16, which `Weights::of_plan` sees to.
// No other formats on purpose: this stands in unrolled loops, and kernels of hundreds of kilobytes wait for their own
// instructions.
__device__ __forceinline__ float vector_at(const WeightRef& w, uint32_t i) {
    if (w.format == kF32) return ((const float*)w.data)[i];
    const uint32_t bits = ((const uint16_t*)w.data)[i];
    return w.format == kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// Four f16 or bf16 numbers.
__device__ __forceinline__ float4 f16_four(uint2 v) {
    return make_float4(f16_to_f32(v.x & 0xffffu), f16_to_f32(v.x >> 16), f16_to_f32(v.y & 0xffffu), f16_to_f32(v.y >> 16));
}
__device__ __forceinline__ float4 bf16_four(uint2 v) {
    return make_float4(__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
                       __uint_as_float(v.y & 0xffff0000u));
}

// Elements `i` to `i + 3` (i a multiple of 4) of one, in one load.
__device__ __forceinline__ float4 vector_four(const WeightRef& w, uint32_t i) {
    if (w.format == kF32) return ((const float4*)w.data)[i / 4];
    const uint2 v = ((const uint2*)w.data)[i / 4];
    return w.format == kF16 ? f16_four(v) : bf16_four(v);
}
