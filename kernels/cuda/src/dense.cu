// Stored weights as bf16 numbers, one or two for each (the second holds what the first left), for products of many tokens
// whose kernels read nothing else. A weight matrix is read once for hundreds of tokens: this costs little beside them.
#include "gemm_gguf.cuh"

struct DenseArgs {
    WeightRef w;      // [rows, cols]
    uint16_t* out;    // [rows][parts][pitch], zeros behind cols
    uint32_t pitch;   // a multiple of 16
    uint32_t pad;
};

// 16 neighbours per thread. grid (ceil(rows * pitch / 16 / 256))
template <class W, uint32_t PARTS>
__device__ __forceinline__ void dense(const DenseArgs& a) {
    const uint32_t runs = a.pitch / 16, i = blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t row = i / runs, c = i % runs * 16;
    if (row >= a.w.rows) return;
    W ws;
    ws.load(a.w, row, c);
    uint32_t words[PARTS][8];
#pragma unroll
    for (uint32_t j = 0; j < 4; j++) {
        const float4 v = ws.four(j);
        uint32_t first[PARTS], second[PARTS];
        split_pair(v.x, v.y, first);
        split_pair(v.z, v.w, second);
#pragma unroll
        for (uint32_t p = 0; p < PARTS; p++) {
            words[p][2 * j] = first[p];
            words[p][2 * j + 1] = second[p];
        }
    }
#pragma unroll
    for (uint32_t p = 0; p < PARTS; p++) {
        uint4* to = (uint4*)(a.out + ((size_t)row * PARTS + p) * a.pitch + c);
        to[0] = make_uint4(words[p][0], words[p][1], words[p][2], words[p][3]);
        to[1] = make_uint4(words[p][4], words[p][5], words[p][6], words[p][7]);
    }
}

#define DENSE(format, W, parts) \
    KERNEL(dense_##format, DenseArgs, 256) { dense<W, parts>(a); }
#define OF(T, Chunk) T<Chunk, 2>

DENSE(f16, OF(Fast, ChunkF16), 2)
DENSE(f8, OF(Fast, ChunkF8), 1)
DENSE(fp4, OF(Fast, ChunkFp4), 1)
DENSE(q8_0, OF(Integers, ChunkQ8_0), 2)
DENSE(q4_0, OF(Integers, ChunkQ4_0), 2)
DENSE(q4_1, OF(Integers, ChunkQ4_1), 2)
DENSE(q4_k, OF(Integers, ChunkQ4K), 2)
DENSE(q6_k, OF(Integers, ChunkQ6K), 2)
