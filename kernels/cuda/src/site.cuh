// What the kernels of an mHC site are given: site.cu, and site_near.cu for wide streams on Hopper.
#pragma once

#include "rows.cuh"

constexpr uint32_t kSiteStreams = 4;

struct SiteArgs {
    HcMixArgs mix;          // x: [rows, 4, hidden]; slices: of the hidden width, 64 columns each
    const float* experts;   // [rows, k, hidden] summed up to o, null = o is there already
    const float* shared;    // [rows, hidden] added to that sum, null = none
    float* sum;             // [rows, hidden] where the sum is kept
    const float* o;         // [rows, hidden] goes into the streams, null (and no experts) = they stay as they are
    const float* post;      // [rows, 4] of the site before
    const float* comb;      // [rows, 4, 4] of the site before
    float* out;             // [rows, hidden]
    uint32_t* arrived;      // [rows], 0 before and after
    WeightRef norm;         // [hidden] f32 or bf16, of an RMSNorm of what is collapsed; null data = 1
    uint32_t k;
    uint32_t normed;        // 1 = `out` gets the normalised values
    float norm_eps;
    uint32_t raw;           // 1 = `mix.comb` is left as it is before sinkhorn (site_near): a launch before it is needed finishes it
};

__device__ __forceinline__ float dot_columns(float2 m, const float* v) { return m.x * v[0] + m.y * v[1]; }

