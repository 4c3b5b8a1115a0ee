// Attention of one token with heads of 512 values as in attend_keys.cuh, the keys of one or two heads split over eight blocks that
// see each other's shared memory: each of them puts an eighth of the heads together, and nobody goes to memory for what others have
// summed up.
#include "attend_keys.cuh"

#if FROM_HOPPER
#include "cluster.cuh"
#include "each.cuh"

constexpr uint32_t kNear = 8, kNearDim = 512;

// What the blocks of a cluster push to the one that puts these four columns together, and to all.
template <uint32_t L>
struct NearShares {
    static constexpr uint32_t FOURS = L * kNearDim / 4 / kNear;
    float4 v[kNear][FOURS];
    float best[kNear][L], all[kNear][L];
};

struct FinishNear {
    static constexpr bool NEAR = true;
    static __device__ __forceinline__ void begin(const AttendArgs&) {
        cluster_arrive();
        cluster_wait();
        await_predecessor();
    }
    template <uint32_t L, uint32_t C, uint32_t G>
    static __device__ __forceinline__ void finish(const AttendArgs& a, float* pool, HeadShares<L>& s, const float (&top)[L],
                                                  float (&sum)[L], const float4 (&acc)[L][C / 4], uint32_t at0) {
        static_assert(L <= 2 && C * G == kNearDim, "a thread per four columns");
        constexpr uint32_t PER = kNearDim / 4, FOURS = NearShares<L>::FOURS;
        __shared__ NearShares<L> near;
        const uint32_t me = threadIdx.x, rank = blockIdx.z, first = me % G * C / 4;
        leave_warps<L, C, G>(a, pool, s, top, sum, acc, [&](uint32_t i) { return first + i; });
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
};

// grid (1, query heads / L, 8), in clusters of 8 shares, 256 threads, or (sequences, ...) for `_each`; shared: `KeysShape` in
// ../ops/attend/row.rs. One head where keys take long to become numbers, two where they share what is read. They begin beside blocks
// of products (held.cu), which leave room for so many registers.
#define ATTEND_NEAR(shape, Key, L)                                                                              \
    CLUSTER_KERNEL(attend_near_##shape, AttendArgs, 1, 1, kNear, __maxnreg__(136)) {                            \
        attend_keys<Key<16>, L, 16, 32, true, FinishNear>(a);                                                   \
    }                                                                                                           \
    CLUSTER_KERNEL(attend_near_##shape##_each, Each<AttendArgs>, 1, 1, kNear, __launch_bounds__(256, 1)) {      \
        attend_keys<Key<16>, L, 16, 32, true, FinishNear>(a.of[blockIdx.x]);                                    \
    }

ATTEND_NEAR(512x2_f32, KeyF32, 2)
ATTEND_NEAR(512x2_bf16, KeyBf16, 2)
ATTEND_NEAR(512x1_fp8, KeyFp8, 1)
#endif
