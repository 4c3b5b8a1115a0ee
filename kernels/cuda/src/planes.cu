// GGUF's block formats as planes, which the other kernels read (../planes.rs): integers of all values without gaps, 16 bytes
// at a time, scales apart. Nothing is rounded: values are the same bits before and after.
#include "weights.cuh"

struct PlanesArgs {
    const uint8_t* blocks;  // [runs / runs of a block] as in the file, at any even address
    uint8_t* data;          // [runs][32 or 16]
    uint8_t* scales;        // [blocks][entry]
    uint32_t format;        // of `blocks`, WeightFormat of the file
    uint32_t runs;          // of 32 values
};

__device__ __forceinline__ uint32_t half_at(const uint8_t* p) { return *(const uint16_t*)p; }
__device__ __forceinline__ uint32_t word_at(const uint8_t* p) { return half_at(p) | half_at(p + 2) << 16; }
__device__ __forceinline__ uint32_t nibble_at(const uint8_t* p, uint32_t i) { return p[i % 16] >> 4 * (i / 16) & 15u; }

// 6-bit (scale, minimum) of sub-block j of a Q4_K block's 12 packed bytes.
__device__ __forceinline__ uint32_t q4_k_pair(const uint8_t* s, uint32_t j) {
    if (j < 4) return (s[j] & 63u) | (s[j + 4] & 63u) << 8;
    const uint32_t scale = (s[j + 4] & 15u) | (uint32_t)(s[j - 4] >> 6) << 4;
    return scale | ((uint32_t)(s[j + 4] >> 4) | (uint32_t)(s[j] >> 6) << 4) << 8;
}

// Integer of value i of run r.
__device__ __forceinline__ uint32_t quant(const PlanesArgs& a, uint32_t r, uint32_t i) {
    switch (a.format) {
        case kQ8_0: return a.blocks[34 * (size_t)r + 2 + i];
        case kQ4_0: return nibble_at(a.blocks + 18 * (size_t)r + 2, i);
        case kQ4_1: return nibble_at(a.blocks + 20 * (size_t)r + 4, i);
        case kQ5_0: {
            const uint8_t* b = a.blocks + 22 * (size_t)r;
            return ((nibble_at(b + 6, i) | (word_at(b + 2) >> i & 1u) << 4) - 16u) & 255u;
        }
        case kQ4K: return a.blocks[144 * (size_t)(r / 8) + 16 + r % 8 / 2 * 32 + i] >> 4 * (r % 2) & 15u;
        default: {  // kQ6K
            const uint8_t* b = a.blocks + 210 * (size_t)(r / 8);
            const uint32_t half = r % 8 / 4, k = r % 4;
            const uint32_t low = b[half * 64 + k % 2 * 32 + i], high = b[128 + half * 32 + i];
            return (((k < 2 ? low & 15u : low >> 4) | (high >> 2 * k & 3u) << 4) - 32u) & 255u;
        }
    }
}

// One run per thread. grid (ceil(runs / 256))
KERNEL(planes, PlanesArgs, 256) {
    const uint32_t r = blockIdx.x * blockDim.x + threadIdx.x;
    if (r >= a.runs) return;
    if (a.format == kQ4_0 || a.format == kQ4_1 || a.format == kQ4K) {
        uint32_t* to = (uint32_t*)(a.data + 16 * (size_t)r);
        for (uint32_t w = 0; w < 4; w++) {
            uint32_t first = 0, second = 0;
            for (uint32_t i = 0; i < 4; i++) {
                first |= quant(a, r, 8 * w + i) << 8 * i;
                second |= quant(a, r, 8 * w + 4 + i) << 8 * i;
            }
            // What `nibbles` takes apart: bits 3 to 6 of every byte, and of every byte after a turn by 4.
            to[w] = first << 3 | second >> 1 | second << 31;
        }
    } else {
        uint32_t* to = (uint32_t*)(a.data + 32 * (size_t)r);
        for (uint32_t w = 0; w < 8; w++) {
            uint32_t word = 0;
            for (uint32_t i = 0; i < 4; i++) word |= quant(a, r, 4 * w + i) << 8 * i;
            to[w] = word;
        }
    }
    switch (a.format) {
        case kQ8_0: ((uint16_t*)a.scales)[r] = (uint16_t)half_at(a.blocks + 34 * (size_t)r); break;
        case kQ4_0: ((uint16_t*)a.scales)[r] = (uint16_t)half_at(a.blocks + 18 * (size_t)r); break;
        case kQ5_0: ((uint16_t*)a.scales)[r] = (uint16_t)half_at(a.blocks + 22 * (size_t)r); break;
        case kQ4_1: ((uint32_t*)a.scales)[r] = word_at(a.blocks + 20 * (size_t)r); break;
        case kQ4K: {
            const uint8_t* b = a.blocks + 144 * (size_t)(r / 8);
            uint8_t* record = a.scales + 20 * (size_t)(r / 8);
            if (r % 8 == 0) *(uint32_t*)record = word_at(b);
            *(uint16_t*)(record + 4 + 2 * (r % 8)) = (uint16_t)q4_k_pair(b + 4, r % 8);
            break;
        }
        default: {  // kQ6K
            const uint8_t* b = a.blocks + 210 * (size_t)(r / 8);
            ((uint32_t*)a.scales)[r] = half_at(b + 208) | half_at(b + 192 + 2 * (r % 8)) << 16;
            break;
        }
    }
}
