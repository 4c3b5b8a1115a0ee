// What kernels that score compressed rows are given.
#pragma once

#include "records.cuh"

struct IndexScoreArgs {
    CacheRef keys;         // one record of `dim` values per row
    const float* q;        // [tokens, heads * dim]
    const float* weights;  // [tokens, heads]
    float* out;            // [tokens, width]
    const DevStep* step;
    const double* turn_freqs;  // [turn_dims / 2], of a rotation of the queries in neighbouring pairs on the way (index_mma)
    uint32_t heads;
    uint32_t dim;          // a multiple of 4
    uint32_t rate;
    uint32_t skip;         // queries with at most this many visible rows are not scored
    uint32_t width;
    float scale;
    uint32_t turn_offset;  // first rotated value of a head
    uint32_t turn_dims;    // rotated values; 0 = none
    uint32_t rounded;      // 1 = queries go through a Hadamard transform and FP4, after the rotation
    uint32_t pad;
};
