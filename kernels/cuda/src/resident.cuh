// A token's way through the layers of a dense model and its output layer in one launch: one block per multiprocessor goes through
// a list of ops (products, attention), and all blocks wait for each other between them. What makes it fast is that weights do not wait: a
// warp of its own copies the block's next rows into a ring of places in shared memory, beyond the end of an op, so that memory
// is read without a break while blocks wait for each other, load x and add up.
//
// A product multiplies 16 rows at a time on tensor cores: of a place of the ring, 16 rows of some columns, every warp has an
// eighth of the columns. x lies in three parts of 16 or 8 bits, which are the first three columns of the other operand.
//
// Blocks exchange vectors through memory of their own, number by number: the last bit of a number says of which of two uses
// in turn it is, so that who needs it can wait for it and nothing else; what is read has that bit cleared, which makes it the
// same every time. No number is written again before all have read it, since every block has a part in every product, and
// every product needs all of the one before. What is not written in every step (shares of an attention) has a number of its
// use beside it instead.
//
// Where there are no such copies (the emulator) a launch has a single op.
#pragma once

#include "barriers.cuh"
#include "gemv.cuh"
#include "mma.cuh"
#include "records.cuh"

#ifndef MODEL1_EMULATE
#include "wgmma.cuh"
#endif

// Warps that multiply; one more copies. Records of ops that lie in shared memory, places of the ring at most, rows of a tile,
// tiles whose sums are kept at once.
constexpr uint32_t kResidentWarps = 8, kResidentThreads = 32 * kResidentWarps, kResidentOp = 512, kResidentWindow = 16,
                   kResidentSlots = 16, kResidentSegments = 3, kResidentTile = 16, kResidentRound = 18;

// A barrier of the warps that multiply.
__device__ __forceinline__ void sync_workers() {
#ifdef MODEL1_EMULATE
    __syncthreads();
#else
    asm volatile("bar.sync 1, 256;" ::: "memory");
#endif
}

// A matrix. `SegmentArg` in ../ops/resident/records.rs, as all of these records.
struct ResidentSegment {
    const uint8_t* data;    // [rows][row_bytes]
    const uint8_t* scales;  // [rows][scale_bytes]
    const uint8_t* bias;    // [rows], null = none
    float* out;             // [rows]
    uint32_t rows;
    uint32_t bias_format;
};

// How a vector is read and written: by other launches; or (kMarked) between blocks as numbers with marks, kOdd: those of every
// second use of a launch, kTurns: used an odd number of times in it.
enum ExchangeKind : uint32_t { kPlain = 0, kMarked = 4, kOdd = 1, kTurns = 2 };

// Products of one x: out = W norm(x) + bias + residual, or act(W x) * (V x). Block b has `each` outputs, one more if b < more.
struct ResidentProduct {
    ResidentSegment segments[kResidentSegments];
    const float* x;         // [cols], see `x_kind`
    const float* residual;  // [rows] of the first segment, null = none, of kind `residual_kind`
    const uint8_t* norm;    // [cols] weights of an RMSNorm, null = 1
    uint32_t cols;
    uint32_t row_bytes;
    uint32_t scale_bytes;
    uint32_t n_segments;
    uint32_t each;
    uint32_t more;
    uint32_t norm_format;
    uint32_t normed;
    uint32_t glu;
    uint32_t activation;
    float limit;
    float eps;
    float per_column;       // 1 / cols
    uint32_t x_kind;        // ExchangeKind
    uint32_t out_kind;
    uint32_t residual_kind;
    uint32_t chunk;         // columns of a place of the ring, a multiple of 256
    uint32_t ring_cols;     // `cols` and `chunk` in columns of the launch's format that have as many bytes: what fills the ring
    uint32_t ring_chunk;    // knows no other
    uint32_t pad;
};

// Rotation and storing of a token's key and value, and attention; or the end of it.
struct ResidentAttend {
    CacheRef keys;          // bf16
    CacheRef values;
    const float* q;         // [heads, head_dim], of kind `kind` as key and value
    const float* key;       // [kv_heads, head_dim]
    const float* value;
    float* out;             // [heads, head_dim], of kind `out_kind`
    uint2* partial;         // [heads, shares][head_dim + 4], numbered: the sum, then maximum (of logarithms to base 2) and denominator
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t block_heads;   // of a block, at most 8, which share a key head
    uint32_t parts;         // blocks of a key head
    uint32_t shares;        // of the keys, at most
    uint32_t kind;
    float scale;
    uint32_t out_kind;
};

enum ResidentKind : uint32_t { kResidentProduct = 0, kResidentAttend, kResidentCombine };

struct ResidentOp {
    uint32_t kind;          // ResidentKind
    uint32_t other;         // a product's format: 1 = the one beside the launch's (resident_q6_k.cuh)
    union {
        ResidentProduct product;
        ResidentAttend attend;
        unsigned char room[kResidentOp - 8];
    };
};
static_assert(sizeof(ResidentOp) == kResidentOp, "OP in ../ops/resident/records.rs");

static_assert(sizeof(ResidentSegment) == 40 && sizeof(ResidentProduct) == 224 && sizeof(ResidentAttend) == 168, "../ops/resident/records.rs");

struct ResidentArgs {
    const ResidentOp* ops;
    uint32_t* serial;       // launches so far
    const DevStep* step;
    const double* freqs;    // [dims / 2]
    uint64_t* stamps;       // [total + 1] nanoseconds at which ops began and the last ended, null = none
    uint32_t first;         // ops first to end - 1
    uint32_t end;
    uint32_t slots;         // places of the ring
    uint32_t slot_bytes;
    uint32_t scratch;       // bytes before the ring
    uint32_t dims;          // rotated values of a head
    uint32_t half;          // 1 = pairs (i, i + dims / 2), 0 = (2i, 2i + 1)
    uint32_t total;         // ops of all launches of a step
};

// The signs of four bytes.
constexpr uint32_t kFlip = 0x80808080u;

// What a block keeps in shared memory: this, then `scratch` bytes (x or attention's sums), then the ring.
struct __align__(128) ResidentShared {
    unsigned char window[kResidentWindow][kResidentOp];
    // Barriers: places of the ring filled and emptied, records of ops that have come.
    uint64_t full[kResidentSlots], empty[kResidentSlots], known[kResidentWindow];
    float partial[kResidentRound * kResidentTile][kResidentWarps];
    float squares[kResidentWarps];
    uint32_t flip, pad[3];  // kFlip: the compiler shall not know it
    float2 turns[128];
    uint32_t done;  // ops that all warps are through with
    uint32_t keys;  // that the token sees; 0 = not known yet
};
static_assert(sizeof(ResidentShared) == 18944, "BLOCK in ../ops/resident/records.rs");

// Whether a phase has ended; see barrier_await.
__device__ __forceinline__ bool barrier_ended([[maybe_unused]] uint32_t barrier, [[maybe_unused]] uint32_t phase) {
#ifdef MODEL1_EMULATE
    return true;
#else
    uint32_t ended;
    asm volatile(
        "{\n\t"
        ".reg .pred done;\n\t"
        "mbarrier.test_wait.parity.shared::cta.b64 done, [%1], %2;\n\t"
        "selp.u32 %0, 1, 0, done;\n\t"
        "}"
        : "=r"(ended)
        : "r"(barrier), "r"(phase)
        : "memory");
    return ended != 0;
#endif
}

__device__ __forceinline__ const ResidentOp& resident_op(const ResidentShared& s, uint32_t i) {
    return *(const ResidentOp*)s.window[i % kResidentWindow];
}

// A number of f32, f16 or bf16 as it lies, 0 where there are none, and what it is: apart, so that it can be on its way.
__device__ __forceinline__ uint32_t bits_at(const uint8_t* data, uint32_t format, uint32_t i) {
    if (data == nullptr) return 0;
    return format == kF32 ? ((const uint32_t*)data)[i] : ((const uint16_t*)data)[i];
}
__device__ __forceinline__ float number_of(uint32_t bits, uint32_t format) {
    return format == kF32 ? __uint_as_float(bits) : format == kBf16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

// Up to so many keys an attention is not shared out: what puts shares together costs more than some tiles.
constexpr uint32_t kUnshared = 128;

// How an attention over `keys` keys is shared out: shares of the keys, each of some tiles of 16, and heads of a block.
struct Division {
    uint32_t shares, heads;
};

__device__ __forceinline__ Division division(const ResidentAttend& a, uint32_t keys) {
    if (keys <= kUnshared) return {1, a.heads <= gridDim.x ? 1 : a.block_heads};
    return {min((keys + 63) / 64, a.shares), a.block_heads};
}

// What tells the uses of the exchanged vectors apart.
struct Uses {
    uint32_t serial, number;  // of the launch; of this op's use

    // Memory begins with zeros, which are no mark of a first use.
    __device__ __forceinline__ uint32_t bit(uint32_t kind) const { return (kind ^ (kind >> 1 & serial) ^ 1u) & 1u; }
};

__device__ __forceinline__ uint4 load_shared(const void* p) {
#ifdef MODEL1_EMULATE
    return *(const uint4*)p;
#else
    uint4 v;
    asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p) : "memory");
    return v;
#endif
}
__device__ __forceinline__ uint2 load_shared_two(const void* p) {
#ifdef MODEL1_EMULATE
    return *(const uint2*)p;
#else
    uint2 v;
    asm volatile("ld.relaxed.gpu.global.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p) : "memory");
    return v;
#endif
}
__device__ __forceinline__ uint32_t load_shared_one(const void* p) {
#ifdef MODEL1_EMULATE
    return *(const uint32_t*)p;
#else
    uint32_t v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
#endif
}
__device__ __forceinline__ void store_shared(float* p, uint32_t bits) {
#ifdef MODEL1_EMULATE
    *(uint32_t*)p = bits;
#else
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(bits) : "memory");
#endif
}
__device__ __forceinline__ void store_shared(void* p, uint4 v) {
#ifdef MODEL1_EMULATE
    *(uint4*)p = v;
#else
    asm volatile("st.relaxed.gpu.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(p), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
#endif
}
// Two numbers with the number of their use.
__device__ __forceinline__ void store_numbered(uint2* p, float a, float b, uint32_t number) {
    store_shared(p, make_uint4(__float_as_uint(a), number, __float_as_uint(b), number));
}

// The same number with its last bit cleared, or set to `bit`.
__device__ __forceinline__ float cleared(uint32_t bits) { return __uint_as_float(bits & ~1u); }
__device__ __forceinline__ uint32_t marked(float v, uint32_t bit) { return (__float_as_uint(v) & ~1u) | bit; }
