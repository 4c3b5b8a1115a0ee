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

// Values of a row that a block keeps in shared memory from op to op.
constexpr uint32_t kNearRow = 1024;

// Brings `n` elements of a small weight from `first` on near, by a block: each is read once per step, from the slowest memory.
__device__ __forceinline__ void bring_near(const WeightRef& w, size_t first, uint32_t n) {
    if (w.data == nullptr) return;
    const uint32_t each = w.format == kF32 ? 4 : 2;
    for (uint32_t at = 128 * threadIdx.x; at < n * each; at += 128 * blockDim.x) bring_line_near(w.data + first * each + at);
}

// Block (row, part, slice) of a chain; `memory`: the widest Hadamard run.
__device__ __forceinline__ void chain_block(const ChainArgs& a, uint32_t row, uint32_t part, uint32_t slice, float* memory) {
    __shared__ float2 turns[256];
    __shared__ Link links[kLinks];
    __shared__ __align__(16) float near[kNearRow];
    const DevStep step = *a.step;
    const uint32_t slices = a.slices[part], count = a.first[part + 1] - a.first[part];
    if (slice >= slices) return;
    // What can be done before the first row is there: parameters of a launch are slow to read one by one, and so are weights; the
    // first rotation of a part is worked out.
    const uint64_t* from = (const uint64_t*)(a.links + a.first[part]);
    for (uint32_t i = threadIdx.x; i < count * (sizeof(Link) / 8); i += blockDim.x) ((uint64_t*)links)[i] = from[i];
    __syncthreads();
    uint32_t rope = count;
    for (uint32_t i = count; i-- > 0;) {
        const Link& l = links[i];
        if (l.kind == kLinkRope) rope = i;
        if (l.kind == kLinkNorm) bring_near(link_args<NormArgs>(l).weight, 0, link_args<NormArgs>(l).group);
        if (l.kind == kLinkPool) {
            const PoolArgs& p = link_args<PoolArgs>(l);
            bring_near(p.ape, (size_t)((uint32_t)step.position % p.rate) * p.c, p.c);
        }
    }
    if (rope < count) rope_turns(link_args<RopeArgs>(links[rope]), step, row, turns);
    await_predecessor();
    __syncthreads();
    // The row whose values lie in `near`, too.
    const float* held = nullptr;
    const auto near_of = [&](const float* x) { return slices == 1 && x == held ? near : nullptr; };
    for (uint32_t i = 0; i < count; i++) {
        const Link& l = links[i];
        if (row >= step_rows(step, l.rows)) continue;
        // The row as the link before left it.
        if (i > 0) __syncthreads();
        switch (l.kind) {
            case kLinkNorm: {
                const NormArgs& n = link_args<NormArgs>(l);
                const size_t at = (size_t)row * n.groups * n.group;
                const bool fits = slices == 1 && n.groups == 1 && n.group <= kNearRow;
                norm_row(n, row, slice, slices, fits ? near : nullptr, fits && near_of(n.x + at) != nullptr);
                held = fits ? n.out + at : nullptr;
                break;
            }
            case kLinkRope: {
                const RopeArgs& r = link_args<RopeArgs>(l);
                if (i != rope) {
                    rope_turns(r, step, row, turns);
                    __syncthreads();
                }
                rope_row(r, row, turns, slice, slices, near_of(r.x + (size_t)row * r.width));
                break;
            }
            case kLinkCacheWrite: {
                const CacheWriteArgs& w = link_args<CacheWriteArgs>(l);
                cache_write_row(w, step, row, slice, slices, near_of(w.src + (size_t)row * w.cache.records * w.cache.width));
                break;
            }
            case kLinkHadamard:
            case kLinkRoundTrip: {
                const RunsArgs& r = link_args<RunsArgs>(l);
                const uint2 runs = runs_of(r.runs, slice, slices);
                float *x = r.x + (size_t)row * r.runs * r.width, *here = near_of(x);
                for (uint32_t run = runs.x; run < runs.y; run++) {
                    float* also = here != nullptr ? here + run * r.width : nullptr;
                    if (l.kind == kLinkHadamard) {
                        __syncthreads();
                        hadamard_run(r, x + run * r.width, memory, also);
                    } else {
                        round_trip_run(r, x + run * r.width, also);
                    }
                }
                break;
            }
            case kLinkPool: {
                const PoolArgs& p = link_args<PoolArgs>(l);
                const bool fits = slices == 1 && p.d <= kNearRow;
                for (uint32_t c = threadIdx.x; c < p.c; c += blockDim.x) pool_channel(p, step, c, fits ? near : nullptr);
                held = fits ? p.out : nullptr;
                break;
            }
            default: {
                held = nullptr;
                if (l.kind == kLinkExpertSum) {
                    expert_sum_row(link_args<ExpertSumArgs>(l), row);
                } else if (l.kind == kLinkHcMix) {
                    hc_finish_row(link_args<HcMixArgs>(l), row);
                } else {
                    const StreamsArgs& s = link_args<StreamsArgs>(l);
                    const bool collapse = l.kind == kLinkHcCollapse;
                    for (uint32_t c = threadIdx.x; c < s.width; c += blockDim.x) collapse ? hc_collapse_at(s, row, c) : hc_expand_at(s, row, c);
                }
            }
        }
    }
}
