// Attention to the k keys with the largest scores of each head, exact: the k-th score is found by radix selection over
// scores that are computed anew in every pass, so that none of them is stored.
#include "attend_tile.cuh"
#include "topk.cuh"

// grid (heads, tokens), 256 threads, shared 4 * head_dim
KERNEL(attend_top_k, AttendArgs, 256) {
    DYNAMIC_SHARED(memory);
    __shared__ TopK top;
    __shared__ KeyTile tile;
    __shared__ float p[32];
    float* q = (float*)memory;
    const DevStep step = *a.step;
    const uint32_t t = blockIdx.y, head = blockIdx.x, kv = head / (a.heads / a.kv_heads), d = a.head_dim;
    if (t >= step.tokens) return;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const KeyList list = key_list(a, step, t);
    const uint32_t total = list.total;
    const size_t at = ((size_t)t * a.heads + head) * d;
    for (uint32_t c = threadIdx.x; c < d; c += blockDim.x) q[c] = a.q[at + c];

    auto scores = [&](uint32_t base) { score_tile(a, step, list, tile, q, t, kv, base); };
    const float* z = tile.z;
    const int32_t* rows = tile.rows;
    const uint32_t* from = tile.from;
    uint32_t key = 0, ties = 0;
    const bool all = total <= a.k;
    if (!all && a.k > 0) {
        uint32_t prefix = 0, mask = 0, left = a.k;
        for (int shift = 24; shift >= 0; shift -= 8) {
            __syncthreads();
            for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) top.bins[i] = 0;
            for (uint32_t base = 0; base < total; base += 32) {
                scores(base);
                if (threadIdx.x < 32 && base + lane < total && rows[lane] >= 0) {
                    const uint32_t mine = ordered_key(z[lane]);
                    if ((mine & mask) == prefix) atomicAdd(&top.bins[mine >> shift & 255u], 1u);
                }
            }
            __syncthreads();
            if (threadIdx.x == 0) {
                uint32_t above = 0, bin = 255;
                while (bin > 0 && above + top.bins[bin] < left) above += top.bins[bin--];
                top.key = bin;
                top.ties = left - above;
            }
            __syncthreads();
            prefix |= top.key << shift;
            mask |= 255u << shift;
            left = top.ties;
        }
        key = prefix;
        ties = left;
    }
    // Softmax over what stays; the thread has columns threadIdx.x and + 256.
    const float sink = a.sinks.data == nullptr ? -INFINITY : vector_at(a.sinks, head);
    float best = sink, sum = sink == -INFINITY ? 0.0f : 1.0f, acc[2] = {};
    uint32_t equal = 0;
    for (uint32_t base = 0; base < total; base += 32) {
        scores(base);
        const bool there = base + lane < total && rows[lane] >= 0;
        const uint32_t mine = there ? ordered_key(z[lane]) : 0;
        const bool is_equal = there && !all && mine == key;
        const uint32_t equals = __ballot_sync(kAll, is_equal);
        const uint32_t rank = equal + (uint32_t)__popc(equals & ((1u << lane) - 1));
        equal += (uint32_t)__popc(equals);
        const bool stays = there && (all || (a.k > 0 && (mine > key || (is_equal && rank < ties))));
        const float score = stays ? z[lane] : -INFINITY;
        const float reach = fmaxf(best, warp_max(score));
        const float e = stays ? exp2f((score - reach) * kLog2e) : 0.0f;
        const float keep = best == -INFINITY ? 0.0f : exp2f((best - reach) * kLog2e);
        sum = sum * keep + warp_sum(e);
        best = reach;
        if (warp == 0) p[lane] = e;
        __syncthreads();
#pragma unroll
        for (uint32_t i = 0; i < 2; i++) {
            const uint32_t c = threadIdx.x + i * 256;
            acc[i] *= keep;
            for (uint32_t r = 0; r < 32 && c < d; r++) {
                if (p[r] != 0.0f) acc[i] += p[r] * record_value(a.sources[from[r]].values, rows[r], kv, c);
            }
        }
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = threadIdx.x + i * 256;
        if (c < d) a.out[at + c] = sum > 0.0f ? acc[i] / sum : 0.0f;
    }
}
