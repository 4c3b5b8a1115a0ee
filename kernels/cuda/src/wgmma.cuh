// The instructions of Hopper (sm_90a) that gemm_wg.cuh, gemm_wide.cuh and attend_wg.cu are made of: products of a group of 128
// threads whose operands lie in shared memory (wgmma; the left one in registers, too).
#pragma once

#include "barriers.cuh"
#include "gemm.cuh"

// Tiles lie as rows of 64 bf16 numbers (128 bytes); chunk c (16 bytes) of row r at c ^ r % 8, so that the same chunk of
// eight rows is in all banks ("128-byte swizzle": bits 4 to 6 of an address are xored with bits 7 to 9). Tiles begin at
// multiples of 1024 bytes.
constexpr uint32_t kRowBytes = 128;

__device__ __forceinline__ uint32_t swizzled(uint32_t row, uint32_t chunk) { return row * kRowBytes + ((chunk ^ row % 8) << 4); }

#ifdef MODEL1_EMULATE
typedef const unsigned char* Operand;

// Columns 16 k to 16 k + 15 of a tile.
inline Operand operand(const unsigned char* tile, uint32_t k) { return tile + 32 * k; }

inline float operand_at(Operand o, uint32_t row, uint32_t col) {
    const uintptr_t at = (uintptr_t)o + row * kRowBytes + 2 * col;
    return bf16_to_f32(*(const uint16_t*)(at ^ (at >> 3 & 0x70)));
}

// d += a b': 64 rows of a, 2 N of b, 16 columns of both. Warp w of the four has rows 16 w to 16 w + 15, as in `mma`.
template <uint32_t N>
inline void wgmma(float (&d)[N], Operand a, Operand b) {
    const uint32_t g = threadIdx.x / 32 % 4 * 16 + simt::lane() / 4, t = simt::lane() % 4;
    for (uint32_t half = 0; half < 2; half++) {
        float row[16];
        for (uint32_t k = 0; k < 16; k++) row[k] = operand_at(a, g + 8 * half, k);
        for (uint32_t i = 0; i < N / 2; i++) {
            const uint32_t col = i / 2 * 8 + 2 * t + i % 2;
            float sum = 0.0f;
            for (uint32_t k = 0; k < 16; k++) sum += row[k] * operand_at(b, col, k);
            d[i / 2 * 4 + 2 * half + i % 2] += sum;
        }
    }
}

// d += a b: 64 rows of a, in fragments as `mma` has them, and 16 rows of b, which lies as its rows do (`value_operand`).
template <uint32_t N>
inline void wgmma_rows(float (&d)[N], const uint32_t (&a)[4], Operand b, uint32_t next) {
    struct Fragments {
        const uint32_t* a;
        float rows[2][16];
    } mine = {a, {}};
    simt::together(&mine, [](void* const* all) {
        for (unsigned lane = 0; lane < 32; lane++) {
            Fragments& to = *(Fragments*)all[lane];
            for (unsigned k = 0; k < 16; k++) {
                const Fragments& from = *(const Fragments*)all[lane / 4 * 4 + k % 8 / 2];
                for (unsigned half = 0; half < 2; half++) {
                    const uint32_t word = from.a[k / 8 * 2 + half];
                    to.rows[half][k] = bf16_to_f32(k % 2 == 0 ? word & 0xffffu : word >> 16);
                }
            }
        }
    });
    for (uint32_t half = 0; half < 2; half++) {
        for (uint32_t i = 0; i < N / 2; i++) {
            const uint32_t col = i / 2 * 8 + 2 * (simt::lane() % 4) + i % 2;
            float sum = 0.0f;
            for (uint32_t k = 0; k < 16; k++) sum += mine.rows[half][k] * operand_at(b + col / 64 * next, k, col % 64);
            d[i / 2 * 4 + 2 * half + i % 2] += sum;
        }
    }
}

// Rows 16 k to 16 k + 15 of a tile of 64 columns; the next 64 columns are a tile of their own, `next` bytes on.
inline Operand value_operand(const unsigned char* tile, uint32_t k, uint32_t) { return tile + 16 * k * kRowBytes; }
#else
typedef uint64_t Operand;

// Columns 16 k to 16 k + 15 of a tile, for the instruction: address and distance of groups of eight rows in units of 16
// bytes, 128-byte swizzle (PTX ISA, "Matrix Descriptor Format").
__device__ __forceinline__ Operand operand(const unsigned char* tile, uint32_t k) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(tile) + 32 * k;
    return (uint64_t)(at >> 4 & 0x3fff) | 1ull << 16 | (uint64_t)(8 * kRowBytes >> 4) << 32 | 1ull << 62;
}

#define SUMS_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SUMS_16(i) SUMS_4(i), SUMS_4(i + 4), SUMS_4(i + 8), SUMS_4(i + 12)
#define SUMS_32(i) SUMS_16(i), SUMS_16(i + 16)

// d += a b': 64 rows of a, 128 or 192 of b, 16 columns of both; done after `await_products`.
__device__ __forceinline__ void wgmma(float (&d)[64], Operand a, Operand b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
        "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,"
        "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "%64, %65, 1, 1, 1, 0, 0;"
        : SUMS_32(0), SUMS_32(32)
        : "l"(a), "l"(b));
}
__device__ __forceinline__ void wgmma(float (&d)[96], Operand a, Operand b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n192k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,"
        "%27,%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,"
        "%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,"
        "%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95}, "
        "%96, %97, 1, 1, 1, 0, 0;"
        : SUMS_32(0), SUMS_32(32), SUMS_32(64)
        : "l"(a), "l"(b));
}

// Rows 16 k to 16 k + 15 of a tile of 64 columns, for the instruction, which turns them over: address, distance of the next 64
// columns, distance of groups of eight rows ("MN-major" there).
__device__ __forceinline__ Operand value_operand(const unsigned char* tile, uint32_t k, uint32_t next) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(tile) + 16 * k * kRowBytes;
    return (uint64_t)(at >> 4 & 0x3fff) | (uint64_t)(next >> 4) << 16 | (uint64_t)(8 * kRowBytes >> 4) << 32 | 1ull << 62;
}

// d += a b: 64 rows of a, in fragments as `mma` has them, and 16 rows of b, 128 or 64 columns wide.
__device__ __forceinline__ void wgmma_rows(float (&d)[64], const uint32_t (&a)[4], Operand b, uint32_t) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
        "%28,%29,%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,"
        "%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63}, "
        "{%64,%65,%66,%67}, %68, 1, 1, 1, 1;"
        : SUMS_32(0), SUMS_32(32)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
__device__ __forceinline__ void wgmma_rows(float (&d)[32], const uint32_t (&a)[4], Operand b, uint32_t) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,"
        "%28,%29,%30,%31}, "
        "{%32,%33,%34,%35}, %36, 1, 1, 1, 1;"
        : SUMS_32(0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
#undef SUMS_4
#undef SUMS_16
#undef SUMS_32

// Before the first product: registers are as they should be.
__device__ __forceinline__ void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void close_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// All groups of products but the last `left` are done.
template <uint32_t left>
__device__ __forceinline__ void await_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(left) : "memory");
}
// The compiler is not to move what reads the sums to before this.
template <uint32_t N>
__device__ __forceinline__ void hold(float (&d)[N]) {
#pragma unroll
    for (uint32_t i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// What was written through ordinary stores and copies is there for products, too.
__device__ __forceinline__ void fence_products() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
#endif
