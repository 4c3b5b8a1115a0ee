// Ops that work on rows one by one, several of them in one launch: a block takes a row through all of them. Saves what a
// launch costs, which at one token is more than most of these ops.
#pragma once

#include "pool.cuh"
#include "rows.cuh"

enum LinkKind : uint32_t {
    kLinkNorm = 0,
    kLinkRope,
    kLinkCacheWrite,
    kLinkHadamard,
    kLinkRoundTrip,
    kLinkExpertSum,
    kLinkHcMix,
    kLinkHcCollapse,
    kLinkHcExpand,
    kLinkPool,
};

constexpr uint32_t kLinks = 12, kLinkBytes = 240;

// One op with its parameter struct. `LinkArg` in ../ops/chain.rs.
struct Link {
    uint32_t kind;
    uint32_t rows;  // code
    __align__(8) unsigned char args[kLinkBytes];
};

struct ChainArgs {
    Link links[kLinks];
    const DevStep* step;
    uint32_t parts;
    uint32_t pad;
    uint32_t first[kLinks + 1];  // part p: links first[p] to first[p + 1] - 1; parts have nothing to do with each other
    uint32_t slices[kLinks];     // blocks that share out the runs of a part's rows
    uint32_t pad2;
};

template <class T>
__device__ __forceinline__ const T& link_args(const Link& l) {
    static_assert(sizeof(T) <= kLinkBytes, "a link has room for every parameter struct");
    return *(const T*)l.args;
}

// Block (row, part, slice) of a chain; `memory`: the widest Hadamard run.
__device__ __forceinline__ void chain_block(const ChainArgs& a, uint32_t row, uint32_t part, uint32_t slice, float* memory) {
    __shared__ float2 turns[256];
    const DevStep step = *a.step;
    const uint32_t slices = a.slices[part];
    if (slice >= slices) return;
    // The first rotation of a part is worked out before what it rotates is there.
    uint32_t rope = a.first[part];
    while (rope < a.first[part + 1] && a.links[rope].kind != kLinkRope) rope++;
    if (rope < a.first[part + 1]) rope_turns(link_args<RopeArgs>(a.links[rope]), step, row, turns);
    await_predecessor();
    __syncthreads();
    for (uint32_t i = a.first[part]; i < a.first[part + 1]; i++) {
        const Link& l = a.links[i];
        if (row >= step_rows(step, l.rows)) continue;
        // The row as the link before left it.
        if (i > a.first[part]) __syncthreads();
        switch (l.kind) {
            case kLinkNorm: norm_row(link_args<NormArgs>(l), row, slice, slices); break;
            case kLinkRope: {
                const RopeArgs& r = link_args<RopeArgs>(l);
                if (i != rope) {
                    rope_turns(r, step, row, turns);
                    __syncthreads();
                }
                rope_row(r, row, turns, slice, slices);
                break;
            }
            case kLinkCacheWrite: cache_write_row(link_args<CacheWriteArgs>(l), step, row, slice, slices); break;
            case kLinkHadamard:
            case kLinkRoundTrip: {
                const RunsArgs& r = link_args<RunsArgs>(l);
                const uint2 runs = runs_of(r.runs, slice, slices);
                for (uint32_t run = runs.x; run < runs.y; run++) {
                    float* x = r.x + ((size_t)row * r.runs + run) * r.width;
                    if (l.kind == kLinkHadamard) {
                        __syncthreads();
                        hadamard_run(r, x, memory);
                    } else {
                        round_trip_run(r, x);
                    }
                }
                break;
            }
            case kLinkExpertSum: expert_sum_row(link_args<ExpertSumArgs>(l), row); break;
            case kLinkHcMix: hc_finish_row(link_args<HcMixArgs>(l), row); break;
            case kLinkHcCollapse: {
                const StreamsArgs& s = link_args<StreamsArgs>(l);
                for (uint32_t c = threadIdx.x; c < s.width; c += blockDim.x) hc_collapse_at(s, row, c);
                break;
            }
            case kLinkPool: {
                const PoolArgs& p = link_args<PoolArgs>(l);
                for (uint32_t c = threadIdx.x; c < p.c; c += blockDim.x) pool_channel(p, step, c);
                break;
            }
            default: {
                const StreamsArgs& s = link_args<StreamsArgs>(l);
                for (uint32_t c = threadIdx.x; c < s.width; c += blockDim.x) hc_expand_at(s, row, c);
            }
        }
    }
}
