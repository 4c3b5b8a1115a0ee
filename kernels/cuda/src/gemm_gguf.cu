// gemm.cu for the block formats of GGUF files, whose planes are read (Q5_0's are Q8_0's). An integer times its scale has up
// to 19 bits: two bf16 parts as for f16, three where every bit counts.
#include "gemm.cuh"

template <class F, uint32_t PARTS>
struct Integers {
    static constexpr uint32_t XP = PARTS, WP = PARTS;
    uint32_t raw[4];
    float2 factor;

    __device__ __forceinline__ void load(const WeightRef& w, uint32_t row, uint32_t c) {
        uint4 v = make_uint4(0, 0, 0, 0);
        uint32_t s[F::SCALE_WORDS] = {};
        if (row < w.rows && c < w.cols) {
            const uint8_t* at = w.data + (size_t)row * w.row_bytes;
            if constexpr (F::LEN == 32) {
                const uint2 half = *(const uint2*)(at + c / 2);
                v.x = half.x;
                v.y = half.y;
            } else {
                v = *(const uint4*)(at + c);
            }
            F::scale(w, F::row_scales(w, w.scales, row), c / F::LEN, s);
        }
        raw[0] = v.x;
        raw[1] = v.y;
        raw[2] = v.z;
        raw[3] = v.w;
        factor = F::affine(w, s, c / F::LEN);
    }
    __device__ __forceinline__ float4 four(uint32_t i) const {
        const float4 n = F::four(raw, i);
        return make_float4(n.x * factor.x + factor.y, n.y * factor.x + factor.y, n.z * factor.x + factor.y, n.w * factor.x + factor.y);
    }
};

#define GEMM(name, Chunk)                                                      \
    KERNEL(name##_128, GemmArgs, 128) { gemm<Integers<Chunk, 2>, 128>(a); }    \
    KERNEL(name##_64, GemmArgs, 128) { gemm<Integers<Chunk, 2>, 64>(a); }      \
    KERNEL(name##_all_128, GemmArgs, 128) { gemm<Integers<Chunk, 3>, 128>(a); } \
    KERNEL(name##_all_64, GemmArgs, 128) { gemm<Integers<Chunk, 3>, 64>(a); }

GEMM(gemm_q8_0, ChunkQ8_0)
GEMM(gemm_q4_0, ChunkQ4_0)
GEMM(gemm_q4_1, ChunkQ4_1)
GEMM(gemm_q4_k, ChunkQ4K)
GEMM(gemm_q6_k, ChunkQ6K)
