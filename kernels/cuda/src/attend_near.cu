// Attention of one token with heads of 512 values as in attend_keys.cuh, its keys split over eight blocks that see each other's
// shared memory: each of them puts an eighth of two heads together, and nobody goes to memory for what others have summed up.
#include "attend_keys.cuh"

#if !defined(MODEL1_EMULATE) && (!defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900)
#include "cluster.cuh"
#include "each.cuh"

constexpr uint32_t kNear = 8, kNearHeads = 2, kNearDim = 512, kNearFours = kNearHeads * kNearDim / 4 / kNear;

// What the blocks of a cluster push to the one that puts these four columns together, and to all.
struct NearShares {
    float4 v[kNear][kNearFours];
    float best[kNear][kNearHeads], all[kNear][kNearHeads];
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
        static_assert(L == kNearHeads && C * G == kNearDim && L * C * G / 4 == 256, "a thread per four columns");
        __shared__ NearShares near;
        const uint32_t me = threadIdx.x, rank = blockIdx.z, first = me % G * C / 4;
        leave_warps<L, C, G>(a, pool, s, top, sum, acc, [&](uint32_t i) { return first + i; });
        __syncthreads();
        const HeadShare mine = block_share<L, kNearDim>(pool, s, me / (kNearDim / 4), me % (kNearDim / 4), kLowest);
        near_store(&near.v[rank][me % kNearFours], me / kNearFours, mine.v);
        if (me % (kNearDim / 4) < kNear) {
            near_store(&near.best[rank][me / (kNearDim / 4)], me % kNear, mine.best);
            near_store(&near.all[rank][me / (kNearDim / 4)], me % kNear, mine.all);
        }
        // The place of these four among those of both heads.
        const uint32_t n = rank * kNearFours + me, l = n / (kNearDim / 4), c = n % (kNearDim / 4);
        const bool last = me < kNearFours, sunk = last && a.sinks.data != nullptr;
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

// grid (1, query heads / 2, 8), in clusters of 8 shares, 256 threads, or (sequences, ...) for `_each`; shared: `KeysShape::shared` in ../ops/attend/row.rs
#define ATTEND_NEAR(format, Key)                                                                              \
    extern "C" __global__ void __cluster_dims__(1, 1, kNear) __launch_bounds__(256, 1)                        \
        attend_near_512x2_##format(const __grid_constant__ AttendArgs a) {                                    \
        attend_keys<Key<16>, kNearHeads, 16, 32, true, FinishNear>(a);                                        \
    }                                                                                                         \
    extern "C" __global__ void __cluster_dims__(1, 1, kNear) __launch_bounds__(256, 1)                        \
        attend_near_512x2_##format##_each(const __grid_constant__ Each<AttendArgs> a) {                       \
        attend_keys<Key<16>, kNearHeads, 16, 32, true, FinishNear>(a.of[blockIdx.x]);                         \
    }

ATTEND_NEAR(f32, KeyF32)
ATTEND_NEAR(bf16, KeyBf16)
ATTEND_NEAR(fp8, KeyFp8)
#endif
