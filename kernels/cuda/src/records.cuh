// Rows of a cache: the records of kernels/cpu/records, data and scales in two regions.
#pragma once

#include "numeric.cuh"

// A cache component; `CacheArg` in ../ops/args.rs.
struct CacheRef {
    uint8_t* data;         // [rows][records][data_bytes]
    uint8_t* scales;       // [rows][records][scale_bytes]
    uint32_t data_bytes;
    uint32_t scale_bytes;
    uint32_t records;      // per row
    uint32_t width;        // values per record
    uint32_t rope;         // of which the last are the rotated part
    uint32_t format;       // CacheFormat
    uint32_t ring;         // modulus of slots, 0 = row index
    uint32_t rows;         // allocated
};
static_assert(sizeof(CacheRef) == 48, "CacheRef as in args.rs");

__device__ __forceinline__ size_t cache_slot(const CacheRef& c, uint64_t index) {
    return c.ring == 0 ? index : (uint32_t)index % c.ring;
}

// Bytes of scales between the codes and the rope part of a record: V3.2's alone has them there.
__device__ __forceinline__ uint32_t v32_scale_bytes(const CacheRef& c) {
    return c.format == kCacheFp8V32 ? (c.width - c.rope + 127) / 128 * 4 : 0;
}

// Scale of value `i` of V3.2's record: an f32, which may lie anywhere.
__device__ __forceinline__ float v32_scale(const uint8_t* scales, uint32_t i) {
    const uint8_t* p = scales + i / 128 * 4;
    return __uint_as_float(p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
}

// Value `i` of a record.
__device__ inline float record_value(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
    const size_t at = slot * c.records + record;
    const uint8_t* data = c.data + at * c.data_bytes;
    const uint8_t* scales = c.scales + at * c.scale_bytes;
    switch (c.format) {
        case kCacheF32: return ((const float*)data)[i];
        case kCacheBf16: return bf16_to_f32(((const uint16_t*)data)[i]);
        case kCacheFp4: return __fmul_rn(e2m1_to_f32(data[i / 2] >> 4 * (i & 1u)), ue8m0_to_f32(scales[i / 32]));
        default: {
            const uint32_t nope = c.width - c.rope, between = v32_scale_bytes(c);
            if (i >= nope) {
                const uint8_t* p = data + nope + between + 2 * (i - nope);
                return bf16_to_f32(p[0] | (uint32_t)p[1] << 8);
            }
            const float s = between > 0 ? v32_scale(data + nope, i) : ue8m0_to_f32(scales[i / 64]);
            return __fmul_rn(e4m3_to_f32(data[i]), s);
        }
    }
}

// Four values of a record from `i` on, in two steps for loops that have several (AHEAD) on their way: `load` without a branch,
// `value` later. i, width and rope are multiples of 4 (`records_by_four`).
struct RecordF32 {
    static constexpr uint32_t AHEAD = 2;
    float4 v;
    __device__ __forceinline__ void load(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
        v = *(const float4*)(c.data + (slot * c.records + record) * c.data_bytes + 4 * i);
    }
    __device__ __forceinline__ float4 value() const { return v; }
};

struct RecordBf16 {
    static constexpr uint32_t AHEAD = 4;
    uint2 b;
    __device__ __forceinline__ void load(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
        b = *(const uint2*)(c.data + (slot * c.records + record) * c.data_bytes + 2 * i);
    }
    __device__ __forceinline__ float4 value() const {
        return make_float4(__uint_as_float(b.x << 16), __uint_as_float(b.x & 0xffff0000u), __uint_as_float(b.y << 16),
                           __uint_as_float(b.y & 0xffff0000u));
    }
};

struct RecordFp4 {
    static constexpr uint32_t AHEAD = 4;
    uint32_t b, scale;
    __device__ __forceinline__ void load(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
        const size_t at = slot * c.records + record;
        b = *(const uint16_t*)(c.data + at * c.data_bytes + i / 2);
        scale = c.scales[at * c.scale_bytes + i / 32];
    }
    __device__ __forceinline__ float4 value() const {
        const float s = ue8m0_to_f32(scale);
        return make_float4(__fmul_rn(e2m1_to_f32(b), s), __fmul_rn(e2m1_to_f32(b >> 4), s),
                           __fmul_rn(e2m1_to_f32(b >> 8), s), __fmul_rn(e2m1_to_f32(b >> 12), s));
    }
};

// Four e4m3 values with their scale, or four bf16 ones of the part kept for rotation. V32: an f32 scale per 128 values.
template <bool V32>
struct RecordE4m3 {
    static constexpr uint32_t AHEAD = 3;
    uint32_t low, high, scale;
    bool plain;
    __device__ __forceinline__ void load(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
        const size_t at = slot * c.records + record;
        const uint32_t nope = c.width - c.rope;
        plain = i >= nope;
        const uint8_t* record_at = c.data + at * c.data_bytes;
        const uint8_t* p = record_at + (plain ? nope + (V32 ? v32_scale_bytes(c) : 0u) + 2 * (i - nope) : i);
        low = *(const uint32_t*)p;
        high = plain ? *(const uint32_t*)(p + 4) : 0;
        if (V32) {
            scale = *(const uint32_t*)(record_at + nope + (plain ? 0 : i / 128 * 4));
        } else {
            scale = c.scales[at * c.scale_bytes + (plain ? 0 : i / 64)];
        }
    }
    __device__ __forceinline__ float4 value() const {
        if (plain) {
            return make_float4(__uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u),
                               __uint_as_float(high << 16), __uint_as_float(high & 0xffff0000u));
        }
        const float s = V32 ? __uint_as_float(scale) : ue8m0_to_f32(scale);
        return make_float4(__fmul_rn(e4m3_to_f32(low & 255u), s), __fmul_rn(e4m3_to_f32(low >> 8 & 255u), s),
                           __fmul_rn(e4m3_to_f32(low >> 16 & 255u), s), __fmul_rn(e4m3_to_f32(low >> 24), s));
    }
};

using RecordFp8 = RecordE4m3<false>;

template <class R>
__device__ __forceinline__ float4 record_four_of(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
    R r;
    r.load(c, slot, record, i);
    return r.value();
}

// The same at once, in any format.
__device__ inline float4 record_four(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
    switch (c.format) {
        case kCacheF32: return record_four_of<RecordF32>(c, slot, record, i);
        case kCacheBf16: return record_four_of<RecordBf16>(c, slot, record, i);
        case kCacheFp4: return record_four_of<RecordFp4>(c, slot, record, i);
        case kCacheFp8V32: return record_four_of<RecordE4m3<true>>(c, slot, record, i);
        default: return record_four_of<RecordFp8>(c, slot, record, i);
    }
}

struct RecordAny {
    static constexpr uint32_t AHEAD = 1;
    float4 v;
    __device__ __forceinline__ void load(const CacheRef& c, size_t slot, uint32_t record, uint32_t i) {
        v = record_four(c, slot, record, i);
    }
    __device__ __forceinline__ float4 value() const { return v; }
};

// Whether four values at a time are aligned in every format.
__device__ __forceinline__ bool records_by_four(const CacheRef& c) { return ((c.width | c.rope) & 3u) == 0; }

// Stores one block (up to 64 values of e4m3, 32 of e2m1) by one warp: value k of the block is values[k]. Codes go to
// `data`, the scale byte to `scale`.
__device__ inline void encode_block(const float* values, uint32_t n, bool four_bit, uint8_t* data, uint8_t* scale,
                                    RoundTrip& trip) {
    const uint32_t lane = threadIdx.x & 31;
    float amax = 0.0f;
    for (uint32_t k = lane; k < n; k += 32) amax = fmaxf(amax, finite_magnitude(values[k]));
    amax = warp_max(amax);
    const uint32_t byte = four_bit ? e2m1_scale_byte(amax) : e4m3_scale_byte(amax);
    if (lane == 0) *scale = (uint8_t)byte;
    float stored;
    if (four_bit) {
        for (uint32_t k = 2 * lane; k < n; k += 64) {
            const uint32_t low = e2m1_encode(values[k], byte, &stored, trip);
            const uint32_t high = k + 1 < n ? e2m1_encode(values[k + 1], byte, &stored, trip) : 0u;
            data[k / 2] = (uint8_t)(low | high << 4);
        }
    } else {
        for (uint32_t k = lane; k < n; k += 32) data[k] = (uint8_t)e4m3_encode(values[k], byte, &stored, trip);
    }
}
