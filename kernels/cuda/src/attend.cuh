// What attention kernels read: sources of keys and the list of keys a query sees.
#pragma once

#include "records.cuh"
#include "weights.cuh"

enum SourceKind : uint32_t { kCausal = 0, kWindow, kCompressed };
enum MaskKind : uint32_t { kNoMask = 0, kSliding, kTopK };

// `SourceArg` in ../ops/attend.rs.
struct Source {
    CacheRef keys;
    CacheRef values;
    const int32_t* selection;  // [tokens, k] rows, -1 = none; null = all visible rows
    uint32_t kind;             // SourceKind
    uint32_t window;           // tokens visible (kWindow)
    uint32_t rate;             // tokens per row (kCompressed)
    uint32_t k;                // width of `selection`
};

constexpr uint32_t kSources = 2;

struct AttendArgs {
    Source sources[kSources];
    WeightRef sinks;      // [heads], null data = none
    const float* q;       // [tokens, heads, head_dim]
    float* out;           // [tokens, heads, head_dim]
    float* partial;       // splits > 1: [tokens, heads, splits][head_dim + 4], the sum, then maximum and denominator
    const DevStep* step;
    uint32_t* arrived;    // fold: shares that are there, [tokens, grid.y]
    const double* turn_freqs;  // [turn_dims / 2], of the rotation of `out` that follows
    uint32_t n_sources;
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t head_dim;
    uint32_t mask;        // MaskKind
    uint32_t window;      // kSliding: tokens visible
    uint32_t first;       // kSliding: first tokens that stay visible
    uint32_t k;           // kTopK: keys kept
    uint32_t splits;      // shares of the keys
    uint32_t block_heads;  // heads per block
    uint32_t block_tokens;  // tokens per block (more than 1 for kCausal alone)
    float scale;
    uint32_t fold;        // 1 = the last block of a token's heads puts the shares together (attend_row)
    uint32_t format;      // CacheFormat of all sources, or a number that is none
    uint32_t turn_offset;  // first rotated value of a head's output
    uint32_t turn_dims;    // rotated values, in pairs (2i, 2i + 1); 0 = none
    uint32_t turn_inverse;
    uint32_t prepare;      // 1 = heads of `q` are normalised (RMS, no weights) and rotated the other way first (attend_keys)
    float q_eps;
    uint32_t rows;         // attend_near: keys of a block at a time, a multiple of 16
};

// First token of the sliding window of token t.
__device__ __forceinline__ uint64_t window_start(uint64_t t, uint32_t window) {
    return t + 1 > window ? t + 1 - window : 0;
}

// Keys that any of the step's tokens first .. last (indices in the step) sees.
__device__ __forceinline__ uint32_t key_count(const AttendArgs& a, const Source& s, const DevStep& step,
                                              uint32_t first, uint32_t last) {
    const uint64_t t = step.position + last;
    switch (s.kind) {
        case kCausal: {
            if (a.mask != kSliding) return (uint32_t)(t + 1);
            const uint64_t start = window_start(step.position + first, a.window);
            return (uint32_t)(min((uint64_t)a.first, start) + t + 1 - start);
        }
        case kWindow: return (uint32_t)min((uint64_t)s.window, t + 1);
        default: {
            const uint64_t visible = rows_visible(step, s.rate, last);
            return (uint32_t)(s.selection == nullptr ? visible : min(visible, (uint64_t)s.k));
        }
    }
}

// Row (token or compressed row) of key `j` of that list, -1 = none.
__device__ __forceinline__ int64_t key_row(const AttendArgs& a, const Source& s, const DevStep& step, uint32_t first,
                                           uint32_t last, uint32_t j) {
    switch (s.kind) {
        case kCausal: {
            if (a.mask != kSliding) return j;
            const uint64_t start = window_start(step.position + first, a.window);
            const uint64_t kept = min((uint64_t)a.first, start);
            return (int64_t)(j < kept ? j : start + (j - kept));
        }
        case kWindow: return (int64_t)(window_start(step.position + last, s.window) + j);
        default: return s.selection == nullptr ? (int64_t)j : s.selection[(size_t)last * s.k + j];
    }
}

// Whether token t (absolute) sees row `row` of a causal source.
__device__ __forceinline__ bool sees(const AttendArgs& a, uint64_t t, uint64_t row) {
    if (row > t) return false;
    return a.mask != kSliding || row + a.window > t || row < a.first;
}

constexpr float kLog2e = 1.4426950408889634f;

// Whether an output's column is among the rotated ones, and the two pairs in four neighbouring values rotated.
__device__ __forceinline__ bool turns_column(const AttendArgs& a, uint32_t column) {
    return a.turn_dims != 0 && column >= a.turn_offset && column < a.turn_offset + a.turn_dims;
}
__device__ __forceinline__ float4 turn_pairs(float4 v, float2 t, float2 u) {
    return make_float4(v.x * t.y - v.y * t.x, v.x * t.x + v.y * t.y, v.z * u.y - v.w * u.x, v.z * u.x + v.w * u.y);
}

// Rotates the two pairs in four neighbouring values of a token's output.
__device__ __forceinline__ float4 turned_at(const AttendArgs& a, uint64_t position, uint32_t column, float4 v) {
    if (!turns_column(a, column)) return v;
    const uint32_t pair = (column - a.turn_offset) / 2;
    const float2 t = turn_at(position, a.turn_freqs[pair], a.turn_inverse != 0);
    return turn_pairs(v, t, turn_at(position, a.turn_freqs[pair + 1], a.turn_inverse != 0));
}
