// Barriers in shared memory, and the copies that arrive at them (Hopper and newer).
#pragma once

#include "common.cuh"

__device__ __forceinline__ uint32_t barrier_at([[maybe_unused]] const uint64_t& barrier) {
#ifdef MODEL1_EMULATE
    return 0;
#else
    return (uint32_t)__cvta_generic_to_shared(&barrier);
#endif
}

#ifndef MODEL1_EMULATE
// A barrier in shared memory whose phase ends with the `count`th arrival.
__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
// Arrives; the phase ends when `bytes` bytes have come, too.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Copies `bytes` bytes, a multiple of 16, and tells a barrier.
__device__ __forceinline__ void copy_whole(unsigned char* to, const void* from, uint32_t bytes, uint32_t barrier) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(at), "l"(from),
                 "r"(bytes), "r"(barrier)
                 : "memory");
}
// Copies `bytes` bytes out of shared memory (after `fence_products` of who wrote them); `await_stored` of the same thread waits until
// they have been read.
__device__ __forceinline__ void store_whole(void* to, const unsigned char* from, uint32_t bytes) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(from);
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(at), "r"(bytes) : "memory");
}
__device__ __forceinline__ void await_stored() {
    asm volatile("cp.async.bulk.commit_group;\n\tcp.async.bulk.wait_group.read 0;" ::: "memory");
}
// Arrives when this thread's copies so far are there.
__device__ __forceinline__ void barrier_arrive_copied(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
// The same barrier of block `rank` of the cluster.
__device__ __forceinline__ uint32_t barrier_of(uint32_t barrier, uint32_t rank) {
    uint32_t at;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(at) : "r"(barrier), "r"(rank));
    return at;
}
// Arrives at a barrier of any block of the cluster (`barrier_of`); what was written before is seen by who waits with
// `barrier_await_near`.
__device__ __forceinline__ void barrier_arrive_near(uint32_t barrier) {
    asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_await_near(uint32_t barrier, uint32_t phase) {
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n"
        "again:\n\t"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n\t"
        "@!done bra again;\n\t"
        "}" ::"r"(barrier),
        "r"(phase)
        : "memory");
}
// Waits for the end of a phase: 0 of the first, 1 of the second, 0 of the third.
__device__ __forceinline__ void barrier_await(uint32_t barrier, uint32_t phase) {
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n"
        "again:\n\t"
        "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
        "@!done bra again;\n\t"
        "}" ::"r"(barrier),
        "r"(phase)
        : "memory");
}
#endif
