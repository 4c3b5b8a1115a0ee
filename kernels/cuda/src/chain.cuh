// Ops that work on rows one by one, several of them in one launch: a block takes a row through all of them. Saves what a
// launch costs, which at one token is more than most of these ops.
#pragma once

#include "chain_row.cuh"

constexpr uint32_t kLinks = 12;

struct ChainArgs {
    Link links[kLinks];
    const DevStep* step;
    uint32_t parts;
    uint32_t pad;
    uint32_t first[kLinks + 1];  // part p: links first[p] to first[p + 1] - 1; parts have nothing to do with each other
    uint32_t slices[kLinks];     // blocks that share out the runs of a part's rows
    uint32_t pad2;
};

// Block (row, part, slice) of a chain; `memory`: the widest Hadamard run.
__device__ __forceinline__ void chain_block(const ChainArgs& a, uint32_t row, uint32_t part, uint32_t slice, float* memory) {
    __shared__ float2 turns[256];
    __shared__ Link links[kLinks];
    __shared__ __align__(16) float values[kRowWidth];
    const DevStep step = *a.step;
    const uint32_t slices = a.slices[part], count = a.first[part + 1] - a.first[part];
    if (slice >= slices) return;
    // Parameters of a launch are slow to read one by one: all of them before the first row is there.
    const uint64_t* from = (const uint64_t*)(a.links + a.first[part]);
    for (uint32_t i = threadIdx.x; i < count * (sizeof(Link) / 8); i += blockDim.x) ((uint64_t*)links)[i] = from[i];
    __syncthreads();
    RowOps ops;
    if (slices == 1 && row_ops(links, count, blockDim.x, ops)) {
        chain_row(ops, step, row, values);
        return;
    }
    // The first rotation of a part is worked out before what it rotates is there.
    uint32_t rope = 0;
    while (rope < count && links[rope].kind != kLinkRope) rope++;
    if (rope < count) rope_turns(link_args<RopeArgs>(links[rope]), step, row, turns);
    await_predecessor();
    __syncthreads();
    for (uint32_t i = 0; i < count; i++) {
        const Link& l = links[i];
        if (row >= step_rows(step, l.rows)) continue;
        // The row as the link before left it.
        if (i > 0) __syncthreads();
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
            case kLinkPool: {
                const PoolArgs& p = link_args<PoolArgs>(l);
                for (uint32_t c = threadIdx.x; c < p.c; c += blockDim.x) pool_channel(p, step, c);
                break;
            }
            default: {
                const StreamsArgs& s = link_args<StreamsArgs>(l);
                const bool collapse = l.kind == kLinkHcCollapse;
                for (uint32_t c = threadIdx.x; c < s.width; c += blockDim.x) collapse ? hc_collapse_at(s, row, c) : hc_expand_at(s, row, c);
            }
        }
    }
}
