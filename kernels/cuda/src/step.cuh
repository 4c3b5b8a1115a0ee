// Records shared with the host; mirrored in ../cx.rs, where every field is described.
#pragma once

#include <stddef.h>
#include <stdint.h>

struct DevStep {
    uint64_t position;
    uint64_t rng_counter;
    uint32_t tokens;
    uint32_t history;
    uint32_t sample;
    uint32_t mail;
};
static_assert(sizeof(DevStep) == 32 && offsetof(DevStep, mail) == 28, "DevStep as in cx.rs");

struct DevSampler {
    uint64_t seed;
    float temperature;
    float top_p;
    float min_p;
    float repetition_penalty;
    float frequency_penalty;
    float presence_penalty;
    uint32_t top_k;
    uint32_t penalty_window;
};
static_assert(sizeof(DevSampler) == 40 && offsetof(DevSampler, top_k) == 32, "DevSampler as in cx.rs");

struct DevSampled {
    uint32_t token;
    uint32_t status;
    float logprob;
    uint32_t pad;
};
static_assert(sizeof(DevSampled) == 16, "DevSampled as in cx.rs");

struct DevRowStats {
    float sum_sq_err;
    float sum_sq;
    uint32_t saturated;
    uint32_t flushed;
};
static_assert(sizeof(DevRowStats) == 16, "DevRowStats as in cx.rs");

struct DevExpert {
    const uint8_t* data;
    const uint8_t* scales;
};
static_assert(sizeof(DevExpert) == 16, "DevExpert as in cx.rs");

enum WeightFormat : uint32_t {
    kF32 = 0, kF16, kBf16, kF8E4m3, kFp4E2m1, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ4K, kQ6K, kI32, kI64
};
enum WeightScale : uint32_t { kScaleF32 = 0, kScaleBf16, kScaleE8m0, kScaleF16, kScalePair, kScaleQ4K, kScaleQ6K };
enum CacheFormat : uint32_t { kCacheF32 = 0, kCacheBf16, kCacheFp8Model1, kCacheFp8B64, kCacheFp4, kCacheFp8V32 };

// First row of this rate that closes in the step, and how many do.
// Positions fit into 32 bits here (a context of 4 billion tokens would not fit into any memory): 64-bit divisions are
// a hundred instructions each.
__device__ inline uint64_t first_closed(const DevStep& s, uint32_t rate) { return (uint32_t)s.position / rate; }
__device__ inline uint32_t closed_rows(const DevStep& s, uint32_t rate) {
    return ((uint32_t)s.position + s.tokens) / rate - (uint32_t)s.position / rate;
}

// Compressed rows of this rate visible to the step's token `token`.
__device__ inline uint64_t rows_visible(const DevStep& s, uint32_t rate, uint32_t token) {
    return ((uint32_t)s.position + token + 1) / rate;
}

// Rows of a buffer in this step, from the code its DevBuf carries (rows_code in ../cx.rs).
__device__ inline uint32_t step_rows(const DevStep& s, uint32_t code) {
    const uint32_t kind = code >> 28, n = code & 0x0fffffffu;
    return kind == 0 ? n : kind == 1 ? s.tokens : closed_rows(s, n);
}
