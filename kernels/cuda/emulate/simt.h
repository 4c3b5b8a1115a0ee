// Stands in for the CUDA built-ins when kernels are compiled for the CPU (-DMODEL1_EMULATE -include simt.h).
//
// Every CUDA thread is a fiber, one block runs at a time on the calling OS thread. Fibers change only at barriers and
// warp exchanges, so a missing barrier shows as a wrong result in one of the two orders warps can be run in
// (simt_order), and a barrier that not all threads reach as a deadlock, which is reported with the kernel's name. Blocks of a
// cluster run at once, each on an OS thread of its own.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
// Blocks of one OS thread follow each other, so that static storage is what shared memory is.
#define __shared__ static thread_local

struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; };
struct __align__(8) float2 { float x, y; };
struct __align__(16) float4 { float x, y, z, w; };
struct __align__(8) uint2 { unsigned x, y; };
struct __align__(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace simt {

struct Fiber;
extern thread_local Fiber* current;

// What kernels see of the running thread.
struct Place {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
};
Place& place();
unsigned char* dynamic_shared();
// A barrier of the cluster's blocks, for all of their threads, and where `mine` lies in the shared memory of block `rank`.
void sync_cluster();
void* near(const void* mine, unsigned rank);

void sync_block();
void sync_warp(unsigned mask);
// Gives `value` to the warp and returns what lane `from` gave (own value if it is not in the mask).
uint64_t exchange(unsigned mask, uint64_t value, unsigned from);
// Waits for all lanes of the warp, then the last one calls `run` with what each of the 32 gave (null for lanes that are
// not there), then all go on.
void together(void* mine, void (*run)(void* const* all));
// All 32 values of the last exchange of this lane's warp.
const uint64_t* exchanged();
unsigned lane();
// Sum over the block of a flag.
unsigned count_block(bool flag);

struct Registrar {
    Registrar(const char* name, size_t bytes, void (*call)(const void*), dim3 cluster = {1, 1, 1});
};

template <class T>
inline uint64_t bits(T v) {
    static_assert(sizeof(T) <= 8, "shuffles move up to 8 bytes");
    uint64_t b = 0;
    memcpy(&b, &v, sizeof(T));
    return b;
}
template <class T>
inline T value(uint64_t b) {
    T v;
    memcpy(&v, &b, sizeof(T));
    return v;
}

}  // namespace simt

#define threadIdx (simt::place().thread)
#define blockIdx (simt::place().block)
#define blockDim (simt::place().block_dim)
#define gridDim (simt::place().grid_dim)
constexpr int warpSize = 32;

inline void __syncthreads() { simt::sync_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::sync_warp(mask); }
inline int __syncthreads_or(int p) { return simt::count_block(p != 0) != 0; }
inline int __syncthreads_count(int p) { return (int)simt::count_block(p != 0); }
inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
inline T __shfl_sync(unsigned mask, T v, int src, int = 32) {
    return simt::value<T>(simt::exchange(mask, simt::bits(v), (unsigned)src & 31));
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T v, int m, int = 32) {
    return simt::value<T>(simt::exchange(mask, simt::bits(v), simt::lane() ^ (unsigned)m));
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T v, unsigned d, int = 32) {
    const unsigned from = simt::lane() + d;
    return simt::value<T>(simt::exchange(mask, simt::bits(v), from < 32 ? from : simt::lane()));
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T v, unsigned d, int = 32) {
    const unsigned l = simt::lane();
    return simt::value<T>(simt::exchange(mask, simt::bits(v), l >= d ? l - d : l));
}
inline unsigned __ballot_sync(unsigned mask, int p) {
    simt::exchange(mask, p != 0, simt::lane());
    const uint64_t* all = simt::exchanged();
    unsigned b = 0;
    for (unsigned i = 0; i < 32; i++) {
        if ((mask >> i & 1) && all[i]) b |= 1u << i;
    }
    return b;
}
inline int __any_sync(unsigned mask, int p) { return __ballot_sync(mask, p) != 0; }
inline int __all_sync(unsigned mask, int p) { return __ballot_sync(mask, p) == mask; }

// One OS thread runs all threads of a grid: plain updates are atomic.
template <class T>
inline T atomicAdd(T* p, T v) {
    T old = *p;
    *p = old + v;
    return old;
}
inline unsigned atomicAdd(unsigned* p, int v) { return atomicAdd(p, (unsigned)v); }
template <class T>
inline T atomicMax(T* p, T v) {
    T old = *p;
    if (v > old) *p = v;
    return old;
}
template <class T>
inline T atomicMin(T* p, T v) {
    T old = *p;
    if (v < old) *p = v;
    return old;
}
template <class T>
inline T atomicExch(T* p, T v) {
    T old = *p;
    *p = v;
    return old;
}

template <class T>
inline T __ldg(const T* p) { return *p; }
template <class T>
inline T __ldcg(const T* p) { return *p; }

// Four of the eight bytes of (b, a), one per nibble of the selector; values above 7 are not used here.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
    const uint64_t bytes = (uint64_t)b << 32 | a;
    unsigned out = 0;
    for (unsigned i = 0; i < 4; i++) out |= ((unsigned)(bytes >> 8 * (selector >> 4 * i & 7u)) & 255u) << 8 * i;
    return out;
}
inline int __popc(unsigned v) { return __builtin_popcount(v); }
inline int __clz(int v) { return v == 0 ? 32 : __builtin_clz((unsigned)v); }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __float_as_uint(float f) { return (unsigned)simt::bits(f); }
inline float __uint_as_float(unsigned u) { return simt::value<float>(u); }
inline int __float_as_int(float f) { return (int)simt::bits(f); }
inline float __int_as_float(int i) { return simt::value<float>((unsigned)i); }
// The file is compiled with -ffp-contract=off: these are what they say.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline void sincospi(double x, double* s, double* c) {
    const double r = x - 2.0 * rint(0.5 * x);
    *s = sin(3.14159265358979323846 * r);
    *c = cos(3.14159265358979323846 * r);
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline uint64_t min(uint64_t a, uint64_t b) { return a < b ? a : b; }
inline uint64_t max(uint64_t a, uint64_t b) { return a > b ? a : b; }

#define DYNAMIC_SHARED(name) unsigned char* name = simt::dynamic_shared()

// A kernel with one parameter struct, registered under its name.
#define CLUSTER_KERNEL(name, Args, x, y, z, attribute)                                              \
    static void kernel_##name(const Args a);                                                        \
    static simt::Registrar registrar_##name(                                                        \
        #name, sizeof(Args), [](const void* p) { kernel_##name(*(const Args*)p); }, dim3{x, y, z}); \
    static void kernel_##name(const Args a)
#define KERNEL(name, Args, threads) CLUSTER_KERNEL(name, Args, 1, 1, 1, )
#define EARLY_KERNEL(name, Args, threads, blocks) KERNEL(name, Args, threads)
#define SMALL_KERNEL(name, Args, registers) KERNEL(name, Args, 1024)
inline void await_predecessor(bool = false) {}
