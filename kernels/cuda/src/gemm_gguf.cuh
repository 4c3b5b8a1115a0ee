// How products of many tokens read the planes of GGUF's block formats: 16 neighbouring weights, in the place of Fast in
// gemm.cuh.
#pragma once

#include "gemm.cuh"

template <class F, uint32_t PARTS>
struct Integers {
    static constexpr uint32_t XP = PARTS, WP = PARTS;
    uint32_t raw[4];
    float2 factor;

    __device__ __forceinline__ void load(const WeightRef& w, uint32_t row, uint32_t c) {
        uint4 v = make_uint4(0, 0, 0, 0);
        uint32_t s[F::SCALE_WORDS] = {};
        if (row < w.rows && c < w.cols) {
            const uint8_t* at = w.data + (size_t)row * w.row_bytes;
            if constexpr (F::LEN == 32) {
                const uint2 half = *(const uint2*)(at + c / 2);
                v.x = half.x;
                v.y = half.y;
            } else {
                v = *(const uint4*)(at + c);
            }
            F::scale(w, F::row_scales(w, w.scales, row), c / F::LEN, s);
        }
        raw[0] = v.x;
        raw[1] = v.y;
        raw[2] = v.z;
        raw[3] = v.w;
        factor = F::affine(w, s, c / F::LEN);
    }
    __device__ __forceinline__ float4 four(uint32_t i) const {
        const float4 n = F::four(raw, i);
        return make_float4(n.x * factor.x + factor.y, n.y * factor.x + factor.y, n.z * factor.x + factor.y, n.w * factor.x + factor.y);
    }
};
