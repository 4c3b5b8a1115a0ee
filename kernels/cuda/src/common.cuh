// What every kernel file starts with: how kernels are declared, reductions in a fixed order, shared records.
#pragma once

#include "step.cuh"

// Whether this is compiled for a device with what Hopper brought: clusters, and copies that tell a barrier.
#if defined(MODEL1_EMULATE) || !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define FROM_HOPPER 1
#else
#define FROM_HOPPER 0
#endif

#ifndef MODEL1_EMULATE
// Dynamic shared memory, 16-byte aligned. The emulator (simt.h) has its own form of both macros.
#define DYNAMIC_SHARED(name)                                   \
    extern __shared__ __align__(16) unsigned char name##_raw[]; \
    unsigned char* name = name##_raw
// Where the launch allows it (programmatic dependent launch), the next kernel may start at once, and this one waits here
// for what the kernel before it writes; elsewhere both instructions do nothing. With `hold` the next kernel starts when this
// one has waited, and from its start finds what was written before this one.
__device__ __forceinline__ void await_predecessor(bool hold = false) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (!hold) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
    asm volatile("griddepcontrol.wait;" ::: "memory");
    if (hold) asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// A kernel with one parameter struct by value; `threads` is the largest block it is launched with.
#define KERNEL(name, Args, threads)                                                               \
    static __device__ __forceinline__ void name##_body(const Args& a);                            \
    extern "C" __global__ void __launch_bounds__(threads, 1) name(const __grid_constant__ Args a) {   \
        await_predecessor();                                                                      \
        name##_body(a);                                                                           \
    }                                                                                             \
    static __device__ __forceinline__ void name##_body(const Args& a)
// The same for one that calls `await_predecessor` itself, after what it can do without its predecessor; `blocks` of it
// shall find room on a multiprocessor.
#define EARLY_KERNEL(name, Args, threads, blocks)                                                      \
    static __device__ __forceinline__ void name##_body(const Args& a);                                 \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Args a) { \
        name##_body(a);                                                                                \
    }                                                                                                  \
    static __device__ __forceinline__ void name##_body(const Args& a)
// One that calls `await_predecessor` itself and whose blocks come in clusters of x * y * z (cluster.cuh), for FROM_HOPPER;
// `attribute`: what it may take of a multiprocessor.
#define CLUSTER_KERNEL(name, Args, x, y, z, attribute)                                                                   \
    static __device__ __forceinline__ void name##_body(const Args& a);                                                   \
    extern "C" __global__ void __cluster_dims__(x, y, z) attribute name(const __grid_constant__ Args a) { name##_body(a); } \
    static __device__ __forceinline__ void name##_body(const Args& a)
// The same as EARLY_KERNEL with so many registers at most, so that there is room for another launch's blocks beside its own.
#define SMALL_KERNEL(name, Args, registers)                                                            \
    static __device__ __forceinline__ void name##_body(const Args& a);                                 \
    extern "C" __global__ void __maxnreg__(registers) name(const __grid_constant__ Args a) {           \
        name##_body(a);                                                                                \
    }                                                                                                  \
    static __device__ __forceinline__ void name##_body(const Args& a)
#endif

constexpr unsigned kAll = 0xffffffffu;

// Reads a word of each line of a launch's parameters: the first to read one waits for it, and before the predecessor has ended
// nobody does.
template <class T>
__device__ __forceinline__ void touch_parameters([[maybe_unused]] const T& a) {
#if defined(__CUDA_ARCH__)
    uint32_t all = 0;
#pragma unroll
    for (unsigned i = 0; i < sizeof(T) / 4; i += 16) all ^= ((const uint32_t*)&a)[i];
    // So that they are not left out.
    asm volatile("{ .reg .pred p; setp.eq.u32 p, %0, 0x9e3779b9; @p nanosleep.u32 1; }" ::"r"(all));
#endif
}

// Number of this thread's warp, known to be the same in all of its lanes.
__device__ __forceinline__ uint32_t warp_number() {
#ifdef MODEL1_EMULATE
    return threadIdx.x / 32;
#else
    return __shfl_sync(kAll, threadIdx.x / 32, 0);
#endif
}

#ifdef MODEL1_EMULATE
// The last lane to arrive adds up for all, in the same tree.
template <class T, class F>
inline T warp_reduce(T v, F) {
    simt::together(&v, [](void* const* all) {
        T tree[32];
        for (unsigned i = 0; i < 32; i++) tree[i] = all[i] == nullptr ? T(0) : *(T*)all[i];
        for (unsigned m = 16; m > 0; m >>= 1) {
            for (unsigned i = 0; i < m; i++) tree[i] = F::combine(tree[i], tree[i + m]);
        }
        for (unsigned i = 0; i < 32; i++) {
            if (all[i] != nullptr) *(T*)all[i] = tree[0];
        }
    });
    return v;
}
#else
template <class T, class F>
__device__ __forceinline__ T warp_reduce(T v, F) {
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) v = F::combine(v, __shfl_xor_sync(kAll, v, m));
    return v;
}
#endif

struct Sum {
    template <class T>
    static __device__ __forceinline__ T combine(T a, T b) {
        return a + b;
    }
};
struct Largest {
    static __device__ __forceinline__ float combine(float a, float b) { return fmaxf(a, b); }
    static __device__ __forceinline__ uint32_t combine(uint32_t a, uint32_t b) { return max(a, b); }
};

// The same in every lane: each step adds the same two numbers on both sides.
template <class T>
__device__ __forceinline__ T warp_sum(T v) {
    return warp_reduce(v, Sum());
}

__device__ __forceinline__ float warp_max(float v) { return warp_reduce(v, Largest()); }

// Sum over the block, the same in every thread and in every run. `shared` holds one value per warp; it may be reused
// after the next barrier.
template <class T>
__device__ __forceinline__ T block_sum(T v, T* shared) {
    v = warp_sum(v);
    const unsigned warps = (blockDim.x + 31) / 32;
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    T total = 0;
    for (unsigned w = 0; w < warps; w++) total += shared[w];
    return total;
}

__device__ __forceinline__ float block_max(float v, float* shared) {
    v = warp_max(v);
    const unsigned warps = (blockDim.x + 31) / 32;
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    float best = shared[0];
    for (unsigned w = 1; w < warps; w++) best = fmaxf(best, shared[w]);
    return best;
}

// Running total before this thread (exclusive) and, in `total`, of the block. `shared` holds 33 values.
template <class T>
__device__ __forceinline__ T block_scan(T v, T* shared, T* total) {
    const unsigned lane = threadIdx.x & 31, warp = threadIdx.x >> 5, warps = (blockDim.x + 31) / 32;
    T sum = v;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const T other = __shfl_up_sync(kAll, sum, d);
        if ((int)lane >= d) sum += other;
    }
    __syncthreads();
    if (lane == 31) shared[warp] = sum;
    __syncthreads();
    T before = 0, all = 0;
    for (unsigned w = 0; w < warps; w++) {
        if (w < warp) before += shared[w];
        all += shared[w];
    }
    *total = all;
    return before + sum - v;
}

enum Activation : uint32_t { kSilu = 0, kGelu, kGeluTanh, kRelu, kRelu2, kIdentity };

// Divisions and roots that are a few instructions (2 units in the last place off at most): kernels of one token wait for
// their own instructions first.
__device__ __forceinline__ float sigmoid(float z) { return __fdividef(1.0f, 1.0f + expf(-z)); }

// 1 / x for what is neither tiny nor huge.
__device__ __forceinline__ float reciprocal(float x) {
#ifdef MODEL1_EMULATE
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// The square root of what is not tiny.
__device__ __forceinline__ float root(float x) {
#ifdef MODEL1_EMULATE
    return sqrtf(x);
#else
    float y;
    asm("sqrt.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// 2^x, 0 for -infinity.
__device__ __forceinline__ float power_of_two(float x) {
#ifdef MODEL1_EMULATE
    return exp2f(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ __forceinline__ float activate(uint32_t kind, float x) {
    switch (kind) {
        case kSilu: return x * sigmoid(x);
        case kGelu: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
        case kGeluTanh: return 0.5f * x * (1.0f + tanhf(0.7978845608f * (x + 0.044715f * x * x * x)));
        case kRelu: return fmaxf(x, 0.0f);
        case kRelu2: return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
        default: return x;
    }
}
