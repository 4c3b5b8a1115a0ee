// Attention of one token with heads of 512 values as in attend_keys.cuh, the keys of one or two heads split over eight blocks that
// see each other's shared memory: each of them puts an eighth of the heads together, and nobody goes to memory for what others have
// summed up. Keys lie in shared memory when they are looked at: each warp has places for some of its own, and all of them are on
// their way at once, those that earlier steps left since before the launch before this one has ended.
#include "attend_keys.cuh"

#if FROM_HOPPER
#include "barriers.cuh"
#include "cluster.cuh"
#include "each.cuh"

// Blocks of a cluster; values of a head, of a thread; keys of a warp whose slots its lanes know (MOST_NEAR in
// ../ops/attend/row.rs).
constexpr uint32_t kNear = 8, kNearDim = 512, kNearColumns = 16, kNearSlots = 64;

// A record in shared memory, as it lies in the cache, its scales behind it; places of a warp.
template <class K>
struct NearPlace;
template <>
struct NearPlace<KeyF32<kNearColumns>> {
    static constexpr uint32_t RECORD = 2048, SCALES = 0, PLACES = 4;
};
template <>
struct NearPlace<KeyBf16<kNearColumns>> {
    static constexpr uint32_t RECORD = 1024, SCALES = 0, PLACES = 8;
};
template <>
struct NearPlace<KeyFp8<kNearColumns>> {
    static constexpr uint32_t RECORD = 576, SCALES = 8, PLACES = 12;
};

// What the blocks of a cluster push to the one that puts these four columns together, and to all.
template <uint32_t L>
struct NearShares {
    static constexpr uint32_t FOURS = L * kNearDim / 4 / kNear;
    float4 v[kNear][FOURS];
    float best[kNear][L], all[kNear][L];
};

// Puts the shares of the cluster's blocks together.
template <class H, uint32_t L>
__device__ __forceinline__ void finish_near(const AttendArgs& a, float* pool, HeadShares<L>& s, H& heads, uint32_t at0) {
    constexpr uint32_t PER = kNearDim / 4, FOURS = NearShares<L>::FOURS;
    static_assert(L <= 2, "a thread per four columns");
    __shared__ NearShares<L> near;
    const uint32_t me = threadIdx.x, rank = blockIdx.z, from = me % 32 * kNearColumns / 4;
    leave_warps<L, kNearColumns, 32>(a, pool, s, heads.top, heads.sum, heads.acc, [&](uint32_t i) { return from + i; });
    __syncthreads();
    if (me < L * PER) {
        const HeadShare mine = block_share<L, kNearDim>(pool, s, me / PER, me % PER, kLowest);
        near_store(&near.v[rank][me % FOURS], me / FOURS, mine.v);
        if (me % PER < kNear) {
            near_store(&near.best[rank][me / PER], me % kNear, mine.best);
            near_store(&near.all[rank][me / PER], me % kNear, mine.all);
        }
    }
    // The place of these four among those of all heads.
    const uint32_t n = rank * FOURS + me, l = n / PER, c = n % PER;
    const bool last = me < FOURS, sunk = last && a.sinks.data != nullptr;
    const float sink = sunk ? vector_at(a.sinks, at0 + l) : kLowest;
    cluster_arrive();
    cluster_wait();
    if (!last) return;
    float best = sink;
#pragma unroll
    for (uint32_t b = 0; b < kNear; b++) best = fmaxf(best, near.best[b][l]);
    float4 v = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    float all = sink == kLowest ? 0.0f : weight_of(sink, best);
#pragma unroll
    for (uint32_t b = 0; b < kNear; b++) {
        // A share without keys weighs nothing.
        const float f = weight_of(near.best[b][l], best);
        const float4 part = near.v[b][me];
        all += near.all[b][l] * f;
        v = make_float4(v.x + part.x * f, v.y + part.y * f, v.z + part.z * f, v.w + part.w * f);
    }
    const float f = all > 0.0f ? 1.0f / all : 0.0f;
    v = turned(a, s.turns, 4 * c, make_float4(v.x * f, v.y * f, v.z * f, v.w * f));
    ((float4*)(a.out + (size_t)(at0 + l) * kNearDim))[c] = v;
}

// Heads `block_heads` of token 0, of blocks blockIdx.y; the keys of one key head.
template <class K, uint32_t L>
__device__ __forceinline__ void attend_near(const AttendArgs& a) {
    using Place = NearPlace<K>;
    using Heads = KeyHeads<K, L, kNearColumns, 32, true>;
    using Pair = typename Heads::Pair;
    constexpr uint32_t BYTES = (Place::RECORD + Place::SCALES + 15) / 16 * 16, PLACES = Place::PLACES;
    constexpr uint32_t HEAD = 4 * kRowWarps * L * kNearDim + sizeof(KeysShared<L>), RING = (HEAD + 127) / 128 * 128;
    DYNAMIC_SHARED(memory);
    [[maybe_unused]] __shared__ uint64_t ready[kRowWarps][PLACES];
    float* pool = (float*)memory;  // [8][L][512]
    KeysShared<L>& s = *(KeysShared<L>*)(pool + kRowWarps * L * kNearDim);
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, column = lane * kNearColumns, at0 = blockIdx.y * a.block_heads;
    unsigned char* const ring = memory + RING + (size_t)warp * PLACES * BYTES;
    cluster_arrive();
    touch_parameters(a);
    if (threadIdx.x < kSources && threadIdx.x < a.n_sources) {
        s.spans[threadIdx.x] = key_span(a, a.sources[threadIdx.x], *a.step, 0);
    }
    s.heads.make_turns(a, a.step->position);
#ifndef MODEL1_EMULATE
    if (lane < PLACES) {
        barrier_init(barrier_at(ready[warp][lane]), Place::SCALES != 0 ? 2 : 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
#endif
    __syncthreads();
    // The cluster's warps take keys in turns, so that each has as many of the window and of the others.
    const uint32_t first = s.spans[0].count, total = first + (a.n_sources > 1 ? s.spans[1].count : 0);
    const uint32_t start = blockIdx.z + kNear * warp, step = kNear * kRowWarps;
    const uint32_t count = min(total > start ? (total - start + step - 1) / step : 0, kNearSlots);
    // Where key i of the warp lies; a choice and what this step stores are known when the predecessor has ended, -2 until then.
    const auto slot_of = [&](uint32_t i, bool late) {
        const uint32_t j = start + i * step;
        if (i >= count) return -1;
        const KeySpan& span = s.spans[j >= first ? 1 : 0];
        const uint32_t k = j >= first ? j - first : j;
        if (!late && (span.selection != nullptr || k + 1 == span.count)) return -2;
        return span.selection != nullptr ? span.selection[k] : (int32_t)span.nth(k);
    };
    int32_t slots[2] = {slot_of(lane, false), slot_of(32 + lane, false)};
    const auto slot_at = [&](uint32_t i) { return __shfl_sync(kAll, i < 32 ? slots[0] : slots[1], (int)(i % 32)); };
    const auto place = [&](uint32_t i) { return ring + (i % PLACES) * BYTES; };
    // By all lanes of the warp.
    const auto ask = [&](uint32_t i, int32_t at) {
        const KeySpan& span = s.spans[start + i * step >= first ? 1 : 0];
        const uint32_t slot = span.within(at >= 0 ? (uint32_t)at : 0);
        if (lane != 0) return;
        const uint8_t *record = span.keys + (size_t)slot * span.row_bytes, *scales = span.key_scales + (size_t)slot * span.scale_row;
#ifdef MODEL1_EMULATE
        memcpy(place(i), record, Place::RECORD);
        memcpy(place(i) + Place::RECORD, scales, Place::SCALES);
#else
        const uint32_t barrier = barrier_at(ready[warp][i % PLACES]);
        barrier_expect(barrier, Place::RECORD);
        copy_whole(place(i), record, Place::RECORD, barrier);
        if constexpr (Place::SCALES != 0) {
            const uint32_t to = (uint32_t)__cvta_generic_to_shared(place(i) + Place::RECORD);
            asm volatile("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(to), "l"(scales) : "memory");
            barrier_arrive_copied(barrier);
        }
#endif
    };
    const uint32_t begun = min(count, PLACES);
    uint32_t asked = 0;  // by place
#pragma unroll 1
    for (uint32_t i = 0; i < begun; i++) {
        const int32_t at = slot_at(i);
        if (at == -2) continue;
        ask(i, at);
        asked |= 1u << i;
    }
    cluster_wait();
    await_predecessor();
    Heads heads;
    heads.ask(a, at0, column);
    if (slots[0] == -2) slots[0] = slot_of(lane, true);
    if (slots[1] == -2) slots[1] = slot_of(32 + lane, true);
#pragma unroll 1
    for (uint32_t i = 0; i < begun; i++) {
        const int32_t at = slot_at(i);
        if ((asked >> i & 1u) == 0) ask(i, at);
    }
    heads.prepare(a, s.heads.turns, column);
    const auto take = [&](Pair& to, uint32_t i) {
        const int32_t at = slot_at(min(i, kNearSlots - 1));
        to.there = i < count && at >= 0;
        if (i >= count) return;
#ifndef MODEL1_EMULATE
        barrier_await(barrier_at(ready[warp][i % PLACES]), i / PLACES & 1u);
#else
        __syncwarp();
#endif
        to.key.load(place(i), place(i) + Place::RECORD, s.spans[0].plain, column);
    };
    const auto refill = [&](uint32_t i) {
        const int32_t at = slot_at(min(i, kNearSlots - 1));
        if (i < count) ask(i, at);
    };
#pragma unroll 1
    for (uint32_t i = 0; i < count; i += 2) {
        Pair one = {}, two = {};
        take(one, i);
        take(two, i + 1);
        // All lanes have what was there.
        __syncwarp();
        refill(i + PLACES);
        refill(i + 1 + PLACES);
        heads.look(one, two);
    }
    heads.end();
    finish_near<Heads, L>(a, pool, s.heads, heads, at0);
}

// grid (1, query heads / L, 8), in clusters of 8 shares, 256 threads, or (sequences, ...) for `_each`; shared: `near_bytes` in
// ../ops/attend/row.rs. One head where keys take long to become numbers, two where they share what is read. They begin beside blocks
// of products (held_near.cu), which leave room for so many registers.
#define ATTEND_NEAR(shape, Key, L)                                                                         \
    CLUSTER_KERNEL(attend_near_##shape, AttendArgs, 1, 1, kNear, __maxnreg__(136)) {                       \
        attend_near<Key<kNearColumns>, L>(a);                                                              \
    }                                                                                                      \
    CLUSTER_KERNEL(attend_near_##shape##_each, Each<AttendArgs>, 1, 1, kNear, __launch_bounds__(256, 1)) { \
        attend_near<Key<kNearColumns>, L>(a.of[blockIdx.x]);                                               \
    }

ATTEND_NEAR(512x2_f32, KeyF32, 2)
ATTEND_NEAR(512x2_bf16, KeyBf16, 2)
ATTEND_NEAR(512x1_fp8, KeyFp8, 1)
#endif
