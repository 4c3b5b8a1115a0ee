// Blocks that see each other's shared memory (clusters, Hopper and newer). A block may write to another's once all have begun
// and while none has ended: a kernel begins with a barrier (which costs nothing while it waits for its predecessor), and its
// last writes lie before a barrier that all take part in.
#pragma once

#include "common.cuh"

#ifdef MODEL1_EMULATE
// All of it when the wait is over.
inline void cluster_arrive() {}
inline void cluster_wait() { simt::sync_cluster(); }
inline uint32_t near_load(const uint32_t* mine, uint32_t rank) { return *(const uint32_t*)simt::near(mine, rank); }
template <class T>
inline void near_store(T* mine, uint32_t rank, T v) {
    *(T*)simt::near(mine, rank) = v;
}
#else
__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

// Where `mine` lies in the shared memory of block `rank`.
__device__ __forceinline__ uint32_t near_place(const void* mine, uint32_t rank) {
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"((uint32_t)__cvta_generic_to_shared(mine)), "r"(rank));
    return at;
}

__device__ __forceinline__ uint32_t near_load(const uint32_t* mine, uint32_t rank) {
    uint32_t v;
    asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(v) : "r"(near_place(mine, rank)) : "memory");
    return v;
}
__device__ __forceinline__ void near_store(float* mine, uint32_t rank, float v) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(near_place(mine, rank)), "f"(v) : "memory");
}
__device__ __forceinline__ void near_store(uint32_t* mine, uint32_t rank, uint32_t v) {
    asm volatile("st.shared::cluster.u32 [%0], %1;" ::"r"(near_place(mine, rank)), "r"(v) : "memory");
}
__device__ __forceinline__ void near_store(float2* mine, uint32_t rank, float2 v) {
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(near_place(mine, rank)), "f"(v.x), "f"(v.y) : "memory");
}
__device__ __forceinline__ void near_store(float4* mine, uint32_t rank, float4 v) {
    asm volatile("st.shared::cluster.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(near_place(mine, rank)), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
                 : "memory");
}
#endif
