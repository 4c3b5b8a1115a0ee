// Attention that leaves out blocks of 32 keys whose share of the softmax is at most a threshold, exact: one pass over the
// scores for the whole softmax, one that keeps the blocks above the threshold. Scores are computed anew in every pass.
#include "attend_tile.cuh"

// `SkipArgs` in ../ops/attend.rs.
struct SkipArgs {
    AttendArgs attend;
    uint32_t* kept;   // [tokens, heads] keys that stay
    float threshold;  // share of the softmax
    uint32_t pad;
};

// grid (heads, tokens), 256 threads, shared 4 * head_dim
KERNEL(attend_skip, SkipArgs, 256) {
    DYNAMIC_SHARED(memory);
    __shared__ KeyTile tile;
    __shared__ float p[kTile];
    const AttendArgs& attend = a.attend;
    float* q = (float*)memory;
    const DevStep step = *attend.step;
    const uint32_t t = blockIdx.y, head = blockIdx.x, kv = head / (attend.heads / attend.kv_heads), d = attend.head_dim;
    if (t >= step.tokens) return;
    const uint32_t lane = threadIdx.x & 31;
    const KeyList list = key_list(attend, step, t);
    const size_t at = ((size_t)t * attend.heads + head) * d;
    for (uint32_t c = threadIdx.x; c < d; c += blockDim.x) q[c] = attend.q[at + c];
    const float sink = attend.sinks.data == nullptr ? -INFINITY : vector_at(attend.sinks, head);

    float best = sink, sum = sink == -INFINITY ? 0.0f : 1.0f;
    for (uint32_t base = 0; base < list.total; base += kTile) {
        score_tile(attend, step, list, tile, q, t, kv, base);
        const float score = tile.rows[lane] >= 0 ? tile.z[lane] : -INFINITY;
        const float reach = fmaxf(best, warp_max(score));
        const float e = score == -INFINITY ? 0.0f : exp2f((score - reach) * kLog2e);
        sum = sum * (best == -INFINITY ? 0.0f : exp2f((best - reach) * kLog2e)) + warp_sum(e);
        best = reach;
    }
    Kept kept = {sink, sink == -INFINITY ? 0.0f : 1.0f, {}};
    uint32_t keys = 0, heaviest = 0;
    float most = -1.0f;
    for (uint32_t base = 0; base < list.total; base += kTile) {
        score_tile(attend, step, list, tile, q, t, kv, base);
        const bool there = tile.rows[lane] >= 0;
        const float e = there && best != -INFINITY ? exp2f((tile.z[lane] - best) * kLog2e) : 0.0f;
        const float mass = warp_sum(e);
        if (mass > most) {
            most = mass;
            heaviest = base;
        }
        if (mass > a.threshold * sum) {
            take(attend, tile, p, kv, kept);
            keys += min(kTile, list.total - base);
        }
    }
    if (keys == 0 && list.total > 0) {
        score_tile(attend, step, list, tile, q, t, kv, heaviest);
        take(attend, tile, p, kv, kept);
        keys = min(kTile, list.total - heaviest);
    }
    if (threadIdx.x == 0) a.kept[(size_t)t * attend.heads + head] = keys;
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = threadIdx.x + i * 256;
        if (c < d) attend.out[at + c] = kept.sum > 0.0f ? kept.acc[i] / kept.sum : 0.0f;
    }
}
