// A token's way through the layers of a dense model in one launch: one block per multiprocessor goes through a list of ops
// (products, attention), and all blocks wait for each other between them. What makes it fast is that weights do not wait: a
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

#include "gemv.cuh"
#include "mma.cuh"
#include "records.cuh"

#ifdef MODEL1_EMULATE
struct int2 { int x, y; };
struct __align__(16) int4 { int x, y, z, w; };
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline int dot_four(uint32_t a, uint32_t b, int sum) {
    for (int i = 0; i < 4; i++) sum += (int)(int8_t)(a >> 8 * i) * (int)(int8_t)(b >> 8 * i);
    return sum;
}
inline int nearest(float v) { return (int)rintf(v); }
#else
#include "wgmma.cuh"
__device__ __forceinline__ int dot_four(uint32_t a, uint32_t b, int sum) { return __dp4a((int)a, (int)b, sum); }
__device__ __forceinline__ int nearest(float v) { return __float2int_rn(v); }
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

// Number of this thread's warp, known to be the same in all of its lanes.
__device__ __forceinline__ uint32_t resident_warp() {
#ifdef MODEL1_EMULATE
    return threadIdx.x / 32;
#else
    return __shfl_sync(kAll, threadIdx.x / 32, 0);
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

// How a vector is read and written: by other launches; between blocks as pairs of numbers and the number of the use; or
// (kMarked) as numbers with marks, kOdd: those of every second use of a launch, kTurns: used an odd number of times in it.
enum ExchangeKind : uint32_t { kPlain = 0, kNumbered = 1, kMarked = 4, kOdd = 1, kTurns = 2 };

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
    uint32_t behind;        // ops since the attention whose number x has
};

// Rotation and storing of a token's key and value, and attention; or the end of it.
struct ResidentAttend {
    CacheRef keys;          // bf16
    CacheRef values;
    const float* q;         // [heads, head_dim], of kind `kind` as key and value
    const float* key;       // [kv_heads, head_dim]
    const float* value;
    uint2* out;             // [heads, head_dim], numbered
    uint2* partial;         // [heads, shares][head_dim + 4], numbered: the sum, then maximum (of logarithms to base 2) and denominator
    uint32_t heads;
    uint32_t kv_heads;
    uint32_t block_heads;   // of a block, at most 8, which share a key head
    uint32_t parts;         // blocks of a key head
    uint32_t shares;        // of the keys, at most
    uint32_t kind;
    float scale;
    uint32_t pad;
};

enum ResidentKind : uint32_t { kResidentProduct = 0, kResidentAttend, kResidentCombine };

struct ResidentOp {
    uint32_t kind;          // ResidentKind
    uint32_t pad;
    union {
        ResidentProduct product;
        ResidentAttend attend;
        unsigned char room[kResidentOp - 8];
    };
};
static_assert(sizeof(ResidentOp) == kResidentOp, "OP in ../ops/resident/records.rs");

static_assert(sizeof(ResidentSegment) == 40 && sizeof(ResidentProduct) == 216 && sizeof(ResidentAttend) == 168, "../ops/resident/records.rs");

struct ResidentArgs {
    const ResidentOp* ops;
    uint32_t* serial;       // launches so far
    const DevStep* step;
    const double* freqs;    // [dims / 2]
    uint64_t* stamps;       // [count + 1] nanoseconds at which ops began and the last ended, null = none
    DevRowStats* stats;     // [n_stats]: of cache rows that are stored without loss
    uint32_t first;         // ops first to first + count - 1
    uint32_t count;
    uint32_t slots;         // places of the ring
    uint32_t slot_bytes;
    uint32_t scratch;       // bytes before the ring
    uint32_t dims;          // rotated values of a head
    uint32_t half;          // 1 = pairs (i, i + dims / 2), 0 = (2i, 2i + 1)
    uint32_t n_stats;
    uint32_t pad;
    uint32_t total;         // ops of all launches of a step
};

// What a block keeps in shared memory: this, then `scratch` bytes (x or attention's sums), then the ring.
struct __align__(128) ResidentShared {
    unsigned char window[kResidentWindow][kResidentOp];
    // Barriers: places of the ring filled and emptied, records of ops that have come.
    uint64_t full[kResidentSlots], empty[kResidentSlots], known[kResidentWindow];
    float partial[kResidentRound * kResidentTile][kResidentWarps];
    float squares[kResidentWarps];
    uint4 zero;
    float2 turns[128];
    uint32_t done;  // ops that all warps are through with
};
static_assert(sizeof(ResidentShared) == 18944, "BLOCK in ../ops/resident/records.rs");

__device__ __forceinline__ uint32_t barrier_at([[maybe_unused]] const uint64_t& barrier) {
#ifdef MODEL1_EMULATE
    return 0;
#else
    return (uint32_t)__cvta_generic_to_shared(&barrier);
#endif
}

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

// A block's outputs of a product, and their tiles: 16 rows, or 8 of each matrix where they are gate and up.
struct BlockRows {
    uint32_t first, count, tiles;
};

__device__ __forceinline__ BlockRows block_rows(const ResidentProduct& p) {
    const uint32_t b = blockIdx.x, n = p.each + (b < p.more ? 1 : 0), of = p.glu != 0 ? kResidentTile / 2 : kResidentTile;
    return {p.each * b + min(b, p.more), n, (n + of - 1) / of};
}

// Rows lie this far apart in a place of the ring, their scales behind all of them.
template <class F>
__device__ __forceinline__ uint32_t place_pitch(uint32_t columns) { return F::bytes(columns) + F::PAD; }
template <class F>
__device__ __forceinline__ uint32_t place_scale_pitch(uint32_t columns) { return columns / 16 + 16; }

// What fills the ring: some warps, of which each has some rows of a tile, a lane one row or its scales.
constexpr uint32_t kFillers = 4, kFillerRows = kResidentTile / kFillers;
template <class F>
struct Filler {
    ResidentShared& s;
    unsigned char* ring;
    uint32_t number;                // of this warp
    uint32_t slots, slot_bytes, end;
    uint32_t next, tile, column;    // what is asked for next is of the op before `next`
    uint32_t to, phase;             // the place filled next, and of which phase of the places' use
    BlockRows rows;                 // of that op

    __device__ __forceinline__ bool through() const { return next == end && tile == rows.tiles; }

    // Asks for the next rows of ops below `known`, where there is a place.
    __device__ __forceinline__ bool fill(uint32_t known) {
#ifndef MODEL1_EMULATE
        if (!barrier_ended(barrier_at(s.empty[to]), phase ^ 1u)) return false;
#endif
#pragma unroll 1
        for (; tile == rows.tiles && next < known; next++) {
            tile = rows.tiles = 0;
            if (resident_op(s, next).kind == kResidentProduct) rows = block_rows(resident_op(s, next).product);
        }
        if (tile == rows.tiles) return false;
        const ResidentProduct& p = resident_op(s, next - 1).product;
        const uint32_t lane = threadIdx.x & 31, columns = min(p.chunk, p.cols - column);
        const uint32_t bytes = F::bytes(columns), scale_bytes = F::SCALED ? columns / 16 : 0;
        const bool scales = lane >= kFillerRows;
        const uint32_t r = number * kFillerRows + lane % kFillerRows;
        uint32_t at = 0, unit = tile * kResidentTile + r;
        if (p.glu != 0) {
            at = r / (kResidentTile / 2);
            unit = tile * (kResidentTile / 2) + r % (kResidentTile / 2);
        }
        const bool there = lane < (F::SCALED ? 2 : 1) * kFillerRows && unit < rows.count;
        uint32_t row = rows.first + unit;
        if (p.glu == 0) {
#pragma unroll 1
            while (at + 1 < p.n_segments && row >= p.segments[at].rows) row -= p.segments[at++].rows;
        }
        const ResidentSegment& m = p.segments[at];
        const uint8_t* from = scales ? m.scales + (size_t)row * p.scale_bytes + column / 16 : m.data + (size_t)row * p.row_bytes + F::bytes(column);
        unsigned char* place = ring + to * slot_bytes;
        place += scales ? kResidentTile * place_pitch<F>(columns) + r * place_scale_pitch<F>(columns) : r * place_pitch<F>(columns);
#ifdef MODEL1_EMULATE
        if (there) memcpy(place, from, scales ? scale_bytes : bytes);
#else
        const uint32_t barrier = barrier_at(s.full[to]), all = __popc(__ballot_sync(kAll, there && !scales)) * (bytes + scale_bytes);
        if (lane == 0) barrier_expect(barrier, all);
        __syncwarp();
        if (there) copy_whole(place, (const uint16_t*)from, scales ? scale_bytes : bytes, barrier);
#endif
        column += columns;
        if (column == p.cols) {
            column = 0;
            tile++;
        }
        to++;
        if (to == slots) {
            to = 0;
            phase ^= 1u;
        }
        return true;
    }
};

// The ring as the warps see that multiply: places are emptied in the order in which they are filled.
template <class F>
struct Ring {
    ResidentShared& s;
    unsigned char* base;
    uint32_t slots, slot_bytes;
    uint32_t from, phase;
#ifdef MODEL1_EMULATE
    Filler<F> filler;
#endif

    // Waits for the rows of the place emptied next.
    __device__ __forceinline__ const unsigned char* take() {
#ifdef MODEL1_EMULATE
        __syncthreads();
        if (threadIdx.x < 32 * kFillers) filler.fill(filler.end);
        __syncthreads();
#else
        barrier_await(barrier_at(s.full[from]), phase);
#endif
        return base + from * slot_bytes;
    }
    // All lanes have read it.
    __device__ __forceinline__ void leave() {
        __syncwarp();
#ifndef MODEL1_EMULATE
        if ((threadIdx.x & 31) == 0) barrier_arrive(barrier_at(s.empty[from]));
#endif
        from++;
        if (from == slots) {
            from = 0;
            phase ^= 1u;
        }
    }
};

// How formats meet x, in runs of 32 columns. Of a run lane t of quad g has the 8 columns from 8 t on, of rows g and g + 8, and,
// where g is 0, 1 or 2, of part g of x. In shared memory x's parts lie `part` bytes apart.
struct ResidentBf16 {
    static constexpr uint32_t PAD = 64;  // rows g and g + 1 meet in no bank
    static constexpr bool SCALED = false;
    static __device__ __forceinline__ uint32_t bytes(uint32_t columns) { return 2 * columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return 2 * cols + 64; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols); }

    float sums[2][4];  // two, so that products need not wait for each other
    __device__ __forceinline__ void begin() {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sums[i / 4][i % 4] = 0.0f;
    }

    // Runs `first` to `first + count - 1` of the rows of a place; x's run of the place's first column is `run0`.
    __device__ __forceinline__ void multiply(const ResidentShared& s, const unsigned char* place, uint32_t columns, const unsigned char* x, uint32_t cols,
                                             uint32_t run0, uint32_t first, uint32_t count) {
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, pitch = place_pitch<ResidentBf16>(columns) / 16;
        const uint4 *w = (const uint4*)place + g * pitch + 4 * first + t, *v = w + 8 * pitch;
        const uint4* b = g < 3 ? (const uint4*)(x + g * part(cols)) + 4 * (run0 + first) + t : &s.zero;
        const uint32_t step = g < 3 ? 4 : 0;
#pragma unroll 2
        for (uint32_t i = 0; i < count; i++) {
            const uint4 p = w[4 * i], q = v[4 * i], y = b[step * i];
            const uint32_t left[4] = {p.x, q.x, p.y, q.y}, right[4] = {p.z, q.z, p.w, q.w}, y0[2] = {y.x, y.y}, y1[2] = {y.z, y.w};
            mma(sums[0], left, y0);
            mma(sums[1], right, y1);
        }
    }
    // What rows g and g + 8 come to, in lane 0 of the quad.
    __device__ __forceinline__ float2 end() const {
        const float low = (sums[0][0] + sums[0][1]) + (sums[1][0] + sums[1][1]), high = (sums[0][2] + sums[0][3]) + (sums[1][2] + sums[1][3]);
        return make_float2(low + __shfl_xor_sync(kAll, low, 1), high + __shfl_xor_sync(kAll, high, 1));
    }
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t piece, const float4 (&v)[2]) {
        if (8 * piece >= cols) return;
        uint32_t words[4][3];
        split_pair<3>(v[0].x, v[0].y, words[0]);
        split_pair<3>(v[0].z, v[0].w, words[1]);
        split_pair<3>(v[1].x, v[1].y, words[2]);
        split_pair<3>(v[1].z, v[1].w, words[3]);
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) ((uint4*)(to + p * part(cols)))[piece] = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
    }
};

// d = a b + c for fragments of m16n8k32 of signed bytes.
#ifdef MODEL1_EMULATE
inline void mma_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    struct Fragments {
        int* d;
        const uint32_t *a, *b;
    } mine = {d, a, b};
    simt::together(&mine, [](void* const* all) {
        int x[16][32], w[32][8];
        for (unsigned lane = 0; lane < 32; lane++) {
            const Fragments& f = *(const Fragments*)all[lane];
            for (unsigned i = 0; i < 4; i++) {
                for (unsigned e = 0; e < 4; e++) {
                    x[lane / 4 + i % 2 * 8][i / 2 * 16 + lane % 4 * 4 + e] = (int8_t)(f.a[i] >> 8 * e);
                    if (i < 2) w[i * 16 + lane % 4 * 4 + e][lane / 4] = (int8_t)(f.b[i] >> 8 * e);
                }
            }
        }
        for (unsigned lane = 0; lane < 32; lane++) {
            const Fragments& f = *(const Fragments*)all[lane];
            for (unsigned i = 0; i < 4; i++) {
                for (unsigned k = 0; k < 32; k++) f.d[i] += x[lane / 4 + i / 2 * 8][k] * w[k][2 * (lane % 4) + i % 2];
            }
        }
    });
}
#else
__device__ __forceinline__ void mma_bytes(int (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
#endif

// Integers with a scale per 32: x becomes integers of 22 bits per 32 values, in three signed bytes, and products are exact
// until scales come. Behind the parts lie a scale per 32 values and (q4) what their zeros come to, four numbers [parts, 0].
// Sums begin at 1.5 * 2^23 in f32's bits, so that as a float they are 1.5 * 2^23 more than they are as a number.
template <bool NIBBLES>
struct ResidentIntegers {
    static constexpr uint32_t PAD = NIBBLES ? 16 : 32;
    static constexpr bool SCALED = true;
    static __device__ __forceinline__ uint32_t bytes(uint32_t columns) { return NIBBLES ? columns / 2 : columns; }
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return cols + 32; }
    static __device__ __forceinline__ uint32_t room(uint32_t cols) { return 3 * part(cols) + (NIBBLES ? 20 : 4) * (cols / 32); }

    float sums[2];
    __device__ __forceinline__ void begin() { sums[0] = sums[1] = 0.0f; }

    __device__ __forceinline__ void multiply(const ResidentShared& s, const unsigned char* place, uint32_t columns, const unsigned char* x, uint32_t cols,
                                             uint32_t run0, uint32_t first, uint32_t count) {
        using Self = ResidentIntegers;
        constexpr int kMagic = 0x4b400000;
        constexpr float kMore = 12582912.0f;
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4, pitch = place_pitch<Self>(columns), scale_pitch = place_scale_pitch<Self>(columns);
        const unsigned char *w = place + g * pitch + bytes(32 * first) + (NIBBLES ? 4 : 8) * t, *v = w + 8 * pitch;
        const uint16_t* scales = (const uint16_t*)(place + kResidentTile * pitch + g * scale_pitch) + first;
        const uint2* b = g < 3 ? (const uint2*)(x + g * part(cols)) + 4 * (run0 + first) + t : (const uint2*)&s.zero;
        const uint32_t step = g < 3 ? 4 : 0;
        const float* x_scales = (const float*)(x + 3 * part(cols)) + run0 + first;
        const int2* zeros = (const int2*)(x + 3 * part(cols) + cols / 8) + 2 * (run0 + first) + (t & 1);
        const float high = t == 0 ? 65536.0f : t == 1 ? 1.0f : 0.0f, low = t == 0 ? 256.0f : 0.0f;
#pragma unroll 2
        for (uint32_t i = 0; i < count; i++) {
            uint32_t a[4];
            if (NIBBLES) {
                const uint32_t p = *(const uint32_t*)(w + 16 * i), q = *(const uint32_t*)(v + 16 * i);
                a[0] = nibbles(p, 0);
                a[1] = nibbles(q, 0);
                a[2] = nibbles(p, 1);
                a[3] = nibbles(q, 1);
            } else {
                const uint2 p = *(const uint2*)(w + 32 * i), q = *(const uint2*)(v + 32 * i);
                a[0] = p.x;
                a[1] = q.x;
                a[2] = p.y;
                a[3] = q.y;
            }
            const uint2 y = b[step * i];
            const uint32_t parts[2] = {y.x, y.y};
            int d[4] = {kMagic, kMagic, kMagic, kMagic};
            if (NIBBLES) {
                const int2 z = zeros[2 * i];
                d[0] += z.x;
                d[1] += z.y;
                d[2] += z.x;
                d[3] += z.y;
            }
            mma_bytes(d, a, parts);
            const float f = x_scales[i];
            const float above = f16_to_f32(scales[i]) * f, below = f16_to_f32(*(const uint16_t*)((const unsigned char*)(scales + i) + 8 * scale_pitch)) * f;
            sums[0] += ((__int_as_float(d[0]) - kMore) * high + (__int_as_float(d[1]) - kMore) * low) * above;
            sums[1] += ((__int_as_float(d[2]) - kMore) * high + (__int_as_float(d[3]) - kMore) * low) * below;
        }
    }
    __device__ __forceinline__ float2 end() const {
        constexpr float unit = NIBBLES ? 0.125f : 1.0f;
        return make_float2((sums[0] + __shfl_xor_sync(kAll, sums[0], 1)) * unit, (sums[1] + __shfl_xor_sync(kAll, sums[1], 1)) * unit);
    }

    // Thread `piece` of a run of cols / 8 threads has values 8 piece to 8 piece + 7; four of them have 32.
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t piece, const float4 (&from)[2]) {
        const float v[8] = {from[0].x, from[0].y, from[0].z, from[0].w, from[1].x, from[1].y, from[1].z, from[1].w};
        uint32_t top = 0;
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) top = max(top, __float_as_uint(v[i]) & 0x7fffffffu);
        top = max(top, __shfl_xor_sync(kAll, top, 1));
        top = max(top, __shfl_xor_sync(kAll, top, 2));
        // 2^e so that the largest lies in [2^21, 2^22), and 2^-e; what is not finite stays so.
        const uint32_t exponent = max(top >> 23, 22u);
        const float up = __uint_as_float((275u - exponent) << 23);
        const float down = exponent == 255 ? __uint_as_float(0x7fc00000u) : __uint_as_float((exponent - 21u) << 23);
        uint32_t words[3][2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            int q[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) q[i] = nearest(v[4 * h + i] * up);
            // The lowest bytes first, as signed numbers; what they leave is a multiple of 256.
#pragma unroll
            for (int p = 2; p >= 0; p--) {
                const uint32_t low = __byte_perm((uint32_t)q[0], (uint32_t)q[1], 0x0040), high = __byte_perm((uint32_t)q[2], (uint32_t)q[3], 0x0040);
                words[p][h] = __byte_perm(low, high, 0x5410);
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) q[i] = (q[i] + 128) >> 8;
            }
        }
        int sums[3] = {};
        if (NIBBLES) {
#pragma unroll
            for (uint32_t p = 0; p < 3; p++) {
                sums[p] = dot_four(words[p][1], 0x01010101u, dot_four(words[p][0], 0x01010101u, 0));
                sums[p] += __shfl_xor_sync(kAll, sums[p], 1);
                sums[p] += __shfl_xor_sync(kAll, sums[p], 2);
            }
        }
        if (8 * piece >= cols) return;
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) *(uint2*)(to + p * part(cols) + 8 * piece) = make_uint2(words[p][0], words[p][1]);
        if (piece % 4 != 0) return;
        ((float*)(to + 3 * part(cols)))[piece / 4] = down;
        // 8 (q - 8) x: nibbles lie there times 8.
        if (NIBBLES) ((int4*)(to + 3 * part(cols) + cols / 8))[piece / 4] = make_int4(-64 * sums[0], -64 * sums[1], -64 * sums[2], 0);
    }
};
using ResidentQ8_0 = ResidentIntegers<false>;
using ResidentQ4_0 = ResidentIntegers<true>;

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
__device__ __forceinline__ void store_numbered(uint2* p, float v, uint32_t number) {
#ifdef MODEL1_EMULATE
    *p = make_uint2(__float_as_uint(v), number);
#else
    asm volatile("st.relaxed.gpu.global.v2.u32 [%0], {%1, %2};" ::"l"(p), "r"(__float_as_uint(v)), "r"(number) : "memory");
#endif
}

// The same number with its last bit cleared, or set to `bit`.
__device__ __forceinline__ float cleared(uint32_t bits) { return __uint_as_float(bits & ~1u); }
__device__ __forceinline__ uint32_t marked(float v, uint32_t bit) { return (__float_as_uint(v) & ~1u) | bit; }

// Waits for a number of this use.
__device__ __forceinline__ float await_one(const float* p, uint32_t bit) {
    uint32_t v;
    do v = load_shared_one(p);
    while ((v & 1u) != bit);
    return cleared(v);
}
__device__ __forceinline__ float await_numbered(const uint2* p, uint32_t number) {
    uint2 v;
    do v = load_shared_two(p);
    while (v.y != number);
    return __uint_as_float(v.x);
}

// Eight of a norm's weights as they lie: asked for before x is there, turned into numbers behind it.
struct NormPiece {
    uint4 raw[2];

    __device__ __forceinline__ void ask(const ResidentProduct& p, uint32_t q) {
        if (p.normed == 0 || p.norm == nullptr || 8 * q >= p.cols) return;
        const uint4* from = (const uint4*)p.norm;
        if (p.norm_format == kF32) {
            raw[0] = from[2 * q];
            raw[1] = from[2 * q + 1];
        } else {
            raw[0] = from[q];
        }
    }
    __device__ __forceinline__ void multiply(const ResidentProduct& p, float4 (&v)[2]) const {
        if (p.norm == nullptr) return;
        float4 w[2];
        if (p.norm_format == kF32) {
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                w[h] = make_float4(__uint_as_float(raw[h].x), __uint_as_float(raw[h].y), __uint_as_float(raw[h].z), __uint_as_float(raw[h].w));
            }
        } else {
            const bool half = p.norm_format == kF16;
            const uint2 a = make_uint2(raw[0].x, raw[0].y), b = make_uint2(raw[0].z, raw[0].w);
            w[0] = half ? f16_four(a) : bf16_four(a);
            w[1] = half ? f16_four(b) : bf16_four(b);
        }
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) v[h] = make_float4(v[h].x * w[h].x, v[h].y * w[h].y, v[h].z * w[h].z, v[h].w * w[h].w);
    }
};

// Shares of the keys for a token that sees `keys`, each of some tiles of 16.
__device__ __forceinline__ uint32_t shares_now(uint32_t keys, uint32_t most) { return min((keys + 63) / 64, most); }

// Eight neighbours of a numbered vector.
__device__ __forceinline__ void await_eight(const uint2* from, uint32_t number, float4 (&v)[2]) {
    bool ready;
    do {
        uint4 r[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) r[i] = load_shared((const uint4*)from + i);
        ready = true;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) ready = ready && r[i].y == number && r[i].w == number;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            v[h] = make_float4(__uint_as_float(r[2 * h].x), __uint_as_float(r[2 * h].z), __uint_as_float(r[2 * h + 1].x), __uint_as_float(r[2 * h + 1].z));
        }
    } while (!ready);
}

// Eight values of x, as soon as they are there: N pieces at once.
template <uint32_t N>
__device__ __forceinline__ void await_pieces(const ResidentProduct& p, const Uses& uses, uint32_t q0, float4 (&v)[N][2]) {
    const uint32_t bit = uses.bit(p.x_kind);
    bool ready;
    do {
        uint4 raw[N][2];
        ready = true;
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t q = q0 + i * kResidentThreads;
            raw[i][0] = raw[i][1] = make_uint4(bit, bit, bit, bit);
            if (8 * q >= p.cols) continue;
            raw[i][0] = load_shared((const float4*)p.x + 2 * q);
            raw[i][1] = load_shared((const float4*)p.x + 2 * q + 1);
        }
        uint32_t wrong = 0;
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                const uint4 r = raw[i][h];
                wrong |= (r.x ^ bit) | (r.y ^ bit) | (r.z ^ bit) | (r.w ^ bit);
                v[i][h] = make_float4(cleared(r.x), cleared(r.y), cleared(r.z), cleared(r.w));
            }
        }
        ready = p.x_kind < kMarked || (wrong & 1u) == 0;
    } while (!ready);
}

// x, normalised but for the factor, as the format wants it; returns this thread's share of the sum of squares. `weights` are
// those of the norm for the thread's first piece.
template <class F>
__device__ __forceinline__ float lay_out(const ResidentProduct& p, unsigned char* to, NormPiece& weights, const Uses& uses) {
    const uint32_t pieces = p.cols / 8;
    float square = 0.0f;
    if (p.normed == 0 && p.x_kind != kNumbered) {
        constexpr uint32_t SOME = 6;
#pragma unroll 1
        for (uint32_t q0 = 0; q0 < pieces; q0 += SOME * kResidentThreads) {
            // All lanes of a warp go on together.
            float4 v[SOME][2];
            await_pieces<SOME>(p, uses, q0 + threadIdx.x, v);
#pragma unroll
            for (uint32_t i = 0; i < SOME; i++) {
                if (q0 + i * kResidentThreads >= pieces) break;
                F::store(to, p.cols, q0 + threadIdx.x + i * kResidentThreads, v[i]);
            }
        }
        return square;
    }
#pragma unroll 1
    for (uint32_t q0 = 0; q0 < pieces; q0 += kResidentThreads) {
        const uint32_t q = q0 + threadIdx.x;
        float4 w[1][2] = {};
        float4(&v)[2] = w[0];
        if (p.x_kind == kNumbered) {
            if (q < pieces) await_eight((const uint2*)p.x + 8 * q, uses.number, v);
        } else {
            await_pieces<1>(p, uses, q, w);
        }
        if (p.normed != 0) {
#pragma unroll
            for (uint32_t h = 0; h < 2; h++) {
                square += v[h].x * v[h].x + v[h].y * v[h].y + v[h].z * v[h].z + v[h].w * v[h].w;
            }
            if (q0 != 0) weights.ask(p, q);
            weights.multiply(p, v);
        }
        F::store(to, p.cols, q, v);
    }
    return square;
}

// Where an output goes and what is added to it.
struct UnitEnd {
    float* out;
    const float* residual;
    uint32_t bias, other, format;  // as they lie
};

__device__ __forceinline__ UnitEnd unit_end(const ResidentProduct& p, uint32_t row) {
    uint32_t at = 0;
    UnitEnd e = {};
    if (p.glu == 0) {
#pragma unroll 1
        while (at + 1 < p.n_segments && row >= p.segments[at].rows) row -= p.segments[at++].rows;
    } else {
        e.other = bits_at(p.segments[1].bias, p.segments[1].bias_format, row);
    }
    const ResidentSegment& m = p.segments[at];
    e.out = m.out + row;
    e.bias = bits_at(m.bias, m.bias_format, row);
    e.format = m.bias_format;
    if (p.residual != nullptr && at == 0) e.residual = p.residual + row;
    return e;
}

template <class F>
__device__ __forceinline__ void resident_product(const ResidentProduct& p, Ring<F>& ring, const Uses& uses, ResidentShared& s,
                                                 unsigned char* x, uint32_t number) {
    const uint32_t warp = resident_warp(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const BlockRows rows = block_rows(p);
    const uint32_t units = p.glu != 0 ? kResidentTile / 2 : kResidentTile;
    NormPiece weights = {};
    weights.ask(p, threadIdx.x);
    const UnitEnd mine = unit_end(p, rows.first + min(threadIdx.x, max(rows.count, 1u) - 1));
    float square = lay_out<F>(p, x, weights, uses);
    // What was there before x.
    const auto added = [&](const float* from) {
        if (from == nullptr) return 0.0f;
        const uint32_t v = load_shared_one(from);
        return p.residual_kind >= kMarked ? cleared(v) : __uint_as_float(v);
    };
    const float residual = added(mine.residual);
    if (p.normed != 0) {
        square = warp_sum(square);
        if (lane == 0) s.squares[warp] = square;
    }
    sync_workers();
    if (threadIdx.x == 0) *(volatile uint32_t*)&s.done = number;
#pragma unroll 1
    for (uint32_t tile0 = 0; tile0 < rows.tiles; tile0 += kResidentRound) {
        const uint32_t tiles = min(kResidentRound, rows.tiles - tile0);
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile++) {
            F product;
            product.begin();
#pragma unroll 1
            for (uint32_t column = 0; column < p.cols; column += p.chunk) {
                const uint32_t columns = min(p.chunk, p.cols - column), runs = columns / 32 / kResidentWarps;
                const unsigned char* place = ring.take();
                product.multiply(s, place, columns, x, p.cols, column / 32, warp * runs, runs);
                ring.leave();
            }
            const float2 sums = product.end();
            if (t == 0) {
                s.partial[tile * kResidentTile + g][warp] = sums.x;
                s.partial[tile * kResidentTile + 8 + g][warp] = sums.y;
            }
        }
        sync_workers();
        float factor = 1.0f;
        if (p.normed != 0) {
            const float4 a = ((const float4*)s.squares)[0], b = ((const float4*)s.squares)[1];
            factor = rsqrtf(((a.x + a.y) + (a.z + a.w) + ((b.x + b.y) + (b.z + b.w))) * p.per_column + p.eps);
        }
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < tiles * units; i += kResidentThreads) {
            const uint32_t unit = tile0 * units + i;
            if (unit >= rows.count) break;
            const uint32_t at = i / units * kResidentTile + i % units;
            const auto sum = [&](uint32_t row) {
                const float4 a = ((const float4*)s.partial[row])[0], b = ((const float4*)s.partial[row])[1];
                return ((a.x + a.y) + (a.z + a.w) + ((b.x + b.y) + (b.z + b.w))) * factor;
            };
            UnitEnd end = mine;
            float more = residual;
            if (unit != threadIdx.x) {
                end = unit_end(p, rows.first + unit);
                more = added(end.residual);
            }
            float value = sum(at) + number_of(end.bias, end.format);
            if (p.glu != 0) {
                const float other = sum(at + units) + number_of(end.other, p.segments[1].bias_format);
                value = activate(p.activation, fminf(value, p.limit)) * fminf(fmaxf(other, -p.limit), p.limit);
            }
            value += more;
            store_shared(end.out, p.out_kind < kMarked ? __float_as_uint(value) : marked(value, uses.bit(p.out_kind)));
        }
        if (tile0 + kResidentRound < rows.tiles) sync_workers();
    }
}

// Two neighbouring values of a row of keys or queries and their rotation: see ResidentArgs::half.
__device__ __forceinline__ void rotate_pair(float& x, float& y, float2 t) {
    const float first = x * t.y - y * t.x;
    y = x * t.x + y * t.y;
    x = first;
}

constexpr uint32_t kAttendTile = 16, kAttendHeads = 8;
constexpr float kNoScore = -1e30f;

// What an attention keeps in the scratch memory.
template <uint32_t D>
struct AttendScratch {
    uint16_t q[3][kAttendHeads][D];  // parts of the queries
    uint16_t key[D], value[D];       // the token's, as they are stored
    float tops[kResidentWarps][kAttendHeads], sums[kResidentWarps][kAttendHeads];
    // Behind it: [warps][block_heads][D] sums.
    static constexpr uint32_t BYTES = 3 * kAttendHeads * D * 2 + 4 * D + 2 * 4 * kResidentWarps * kAttendHeads;

    __device__ __forceinline__ float* pool() { return (float*)((unsigned char*)this + BYTES); }
};

// Attention of one token on tensor cores: a warp takes 16 keys at a time; mma.sync m16n8k16 multiplies 8 heads by 8 keys, two
// bf16 parts of the queries in its 16 rows, the third in a second product; likewise two parts of weights, and values. Nothing but sums
// passes through shared memory: lane t of quad g has chunks t, t + 4, ... of keys g and g + 8, and of keys 2 t, 2 t + 1, 2 t + 8
// and 2 t + 9 chunks g and g + 8 of the values (the columns of a product can be any). Keys that were there before are asked for
// before the token's queries are known; its own key and value go through shared memory.
template <uint32_t D>
__device__ __forceinline__ void resident_attend(const ResidentAttend& a, const Uses& uses, const ResidentShared& s,
                                                unsigned char* scratch, const ResidentArgs& args, const DevStep& step) {
    constexpr uint32_t CHUNKS = D / 32, HALVES = D / 64;
    AttendScratch<D>& room = *(AttendScratch<D>*)scratch;
    const uint32_t warp = resident_warp(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t total = (uint32_t)step.position + 1, shares = shares_now(total, a.shares);
    const uint32_t y = blockIdx.x / shares, share = blockIdx.x % shares, kv = y / a.parts, head0 = y * a.block_heads;
    if (kv >= a.kv_heads) return;
    const uint32_t per = ((total + kAttendTile - 1) / kAttendTile + shares - 1) / shares * kAttendTile;
    const uint32_t begin = min(share * per, total), end = min(begin + per, total);
    const size_t pitch = (size_t)a.keys.records * a.keys.data_bytes, record = (size_t)kv * a.keys.data_bytes;
    const uint8_t *keys = a.keys.data + record, *values = a.values.data + record;

    uint4 k[2][CHUNKS], v[4][HALVES];
    // Nothing beyond the end is read; what stands there does not count.
    const auto ask_keys = [&](uint32_t base) {
        if (base >= end) return;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint8_t* row = keys + min(base + 8 * h + g, end - 1) * pitch;
#pragma unroll
            for (uint32_t i = 0; i < CHUNKS; i++) k[h][i] = ((const uint4*)row)[t + 4 * i];
        }
    };
    const auto ask_values = [&](uint32_t base) {
        if (base >= end) return;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint8_t* row = values + min(base + 2 * t + i % 2 + i / 2 * 8, end - 1) * pitch;
#pragma unroll
            for (uint32_t h = 0; h < HALVES; h++) v[i][h] = ((const uint4*)row)[g + 8 * h];
        }
    };
    ask_keys(begin + kAttendTile * warp);
    ask_values(begin + kAttendTile * warp);

    // Queries, rotated, in units of log2, in three parts: a thread has a pair, and another one.
    constexpr uint32_t PAIRS = D / 2, SOME = kAttendHeads * PAIRS / kResidentThreads;
    const uint32_t bit = uses.bit(a.kind);
    const auto places = [&](uint32_t pair) { return make_uint2(args.half != 0 ? pair : 2 * pair, args.half != 0 ? pair + PAIRS : 2 * pair + 1); };
    float2 q[SOME] = {};
#pragma unroll
    for (uint32_t i = 0; i < SOME; i++) {
        const uint32_t n = threadIdx.x + i * kResidentThreads, head = n / PAIRS;
        if (head >= a.block_heads) break;
        const uint2 at = places(n % PAIRS);
        const float* from = a.q + (size_t)(head0 + head) * D;
        uint32_t x, y;
        do {
            x = load_shared_one(from + at.x);
            y = load_shared_one(from + at.y);
        } while (((x ^ bit) | (y ^ bit)) & 1u);
        q[i] = make_float2(cleared(x), cleared(y));
    }
    const float unit = a.scale * 1.4426950408889634f;
#pragma unroll
    for (uint32_t i = 0; i < SOME; i++) {
        const uint32_t n = threadIdx.x + i * kResidentThreads, head = n / PAIRS;
        if (head >= a.block_heads) break;
        const uint2 at = places(n % PAIRS);
        rotate_pair(q[i].x, q[i].y, s.turns[n % PAIRS]);
        uint32_t words[3];
        split_pair<3>(q[i].x * unit, q[i].y * unit, words);
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            room.q[p][head][at.x] = (uint16_t)words[p];
            room.q[p][head][at.y] = (uint16_t)(words[p] >> 16);
        }
    }
    if (end == total && threadIdx.x < PAIRS + D) {
        const bool stores = y % a.parts == 0;
        const size_t at = (size_t)(total - 1) * pitch + record;
        if (threadIdx.x < PAIRS) {
            const uint2 i = places(threadIdx.x);
            float x = await_one(a.key + (size_t)kv * D + i.x, bit), other = await_one(a.key + (size_t)kv * D + i.y, bit);
            rotate_pair(x, other, s.turns[threadIdx.x]);
            room.key[i.x] = (uint16_t)f32_to_bf16(x);
            room.key[i.y] = (uint16_t)f32_to_bf16(other);
            if (stores) {
                ((uint16_t*)(a.keys.data + at))[i.x] = room.key[i.x];
                ((uint16_t*)(a.keys.data + at))[i.y] = room.key[i.y];
            }
        } else {
            const uint32_t i = threadIdx.x - PAIRS;
            room.value[i] = (uint16_t)f32_to_bf16(await_one(a.value + (size_t)kv * D + i, bit));
            if (stores) ((uint16_t*)(a.values.data + at))[i] = room.value[i];
        }
    }
    sync_workers();
    uint32_t parts[CHUNKS][3][4];
#pragma unroll
    for (uint32_t i = 0; i < CHUNKS; i++) {
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (g < a.block_heads) v = ((const uint4*)room.q[p][g])[t + 4 * i];
            parts[i][p][0] = v.x;
            parts[i][p][1] = v.y;
            parts[i][p][2] = v.z;
            parts[i][p][3] = v.w;
        }
    }

    float acc[HALVES][8][4] = {}, top = kNoScore, sum = 0.0f;
#pragma unroll 1
    for (uint32_t base = begin + kAttendTile * warp; base < end; base += kAttendTile * kResidentWarps) {
        const bool tail = base + kAttendTile >= total;
        // Third parts have sums of their own, so that products need not wait for each other.
        float z[2][4] = {}, small[2][4] = {};
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t i = 0; i < CHUNKS; i++) {
                if (tail && base + 8 * h + g >= total - 1) k[h][i] = ((const uint4*)room.key)[t + 4 * i];
                const uint32_t words[4] = {k[h][i].x, k[h][i].y, k[h][i].z, k[h][i].w};
#pragma unroll
                for (uint32_t j = 0; j < 4; j += 2) {
                    const uint32_t(&q)[3][4] = parts[i];
                    const uint32_t b[2] = {words[j], words[j + 1]};
                    const uint32_t two[4] = {q[0][j], q[1][j], q[0][j + 1], q[1][j + 1]}, third[4] = {q[2][j], 0, q[2][j + 1], 0};
                    mma(small[h], third, b);
                    mma(z[h], two, b);
                }
            }
        }
        ask_keys(base + kAttendTile * kResidentWarps);
        float p[2][2], best = top;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) {
                p[h][e] = z[h][e] + (z[h][2 + e] + small[h][e]);
                if (tail && base + 8 * h + 2 * t + e >= total) p[h][e] = -INFINITY;
                best = fmaxf(best, p[h][e]);
            }
        }
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 2));
        const float keep = power_of_two(top - best);
        top = best;
        sum *= keep;
        uint32_t words[2][2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) sum += p[h][e] = power_of_two(p[h][e] - best);
            split_pair<2>(p[h][0], p[h][1], words[h]);
        }
        if (__any_sync(kAll, keep != 1.0f)) {
#pragma unroll
            for (uint32_t h = 0; h < HALVES; h++) {
#pragma unroll
                for (uint32_t i = 0; i < 32; i++) acc[h][i / 4][i % 4] *= keep;
            }
        }
        const uint32_t two[4] = {words[0][0], words[0][1], words[1][0], words[1][1]};
#pragma unroll
        for (uint32_t h = 0; h < HALVES; h++) {
            if (tail) {
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    if (base + 2 * t + i % 2 + i / 2 * 8 >= total - 1) v[i][h] = ((const uint4*)room.value)[g + 8 * h];
                }
            }
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                uint32_t word[4];
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) word[i] = j / 2 == 0 ? v[i][h].x : j / 2 == 1 ? v[i][h].y : j / 2 == 2 ? v[i][h].z : v[i][h].w;
                const uint32_t from = j % 2 == 0 ? 0x5410 : 0x7632;
                const uint32_t b[2] = {__byte_perm(word[0], word[1], from), __byte_perm(word[2], word[3], from)};
                mma(acc[h][j], two, b);
            }
        }
        ask_values(base + kAttendTile * kResidentWarps);
    }
    sum += __shfl_xor_sync(kAll, sum, 1);
    sum += __shfl_xor_sync(kAll, sum, 2);
    if (g < a.block_heads) {
        if (t == 0) {
            room.tops[warp][g] = top;
            room.sums[warp][g] = sum;
        }
#pragma unroll
        for (uint32_t h = 0; h < HALVES; h++) {
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) {
                float4* to = (float4*)(room.pool() + (warp * a.block_heads + g) * D + 8 * (2 * t + e + 8 * h));
#pragma unroll
                for (uint32_t j = 0; j < 8; j += 4) {
                    to[j / 4] = make_float4(acc[h][j][e] + acc[h][j][2 + e], acc[h][j + 1][e] + acc[h][j + 1][2 + e],
                                            acc[h][j + 2][e] + acc[h][j + 2][2 + e], acc[h][j + 3][e] + acc[h][j + 3][2 + e]);
                }
            }
        }
    }
    sync_workers();
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < a.block_heads * (D / 4); n += kResidentThreads) {
        const uint32_t head = n / (D / 4), c = n % (D / 4);
        float best = kNoScore, all = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < kResidentWarps; w++) best = fmaxf(best, room.tops[w][head]);
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (uint32_t w = 0; w < kResidentWarps; w++) {
            const float f = power_of_two(room.tops[w][head] - best);
            const float4 part = ((const float4*)(room.pool() + (w * a.block_heads + head) * D))[c];
            all += room.sums[w][head] * f;
            x.x += part.x * f;
            x.y += part.y * f;
            x.z += part.z * f;
            x.w += part.w * f;
        }
        uint2* to = a.partial + ((size_t)(head0 + head) * a.shares + share) * (D + 4);
        store_numbered(to + 4 * c, x.x, uses.number);
        store_numbered(to + 4 * c + 1, x.y, uses.number);
        store_numbered(to + 4 * c + 2, x.z, uses.number);
        store_numbered(to + 4 * c + 3, x.w, uses.number);
        if (c == 0) {
            store_numbered(to + D, best, uses.number);
            store_numbered(to + D + 1, all, uses.number);
        }
    }
    // What comes next takes the room.
    sync_workers();
}

// Puts an attention's shares together: a block has 32 columns of a head, a warp every eighth share.
template <uint32_t D>
__device__ __forceinline__ void resident_combine(const ResidentAttend& a, const Uses& uses, unsigned char* scratch, uint32_t shares) {
    constexpr uint32_t PER = D / 32;
    float(&pool)[kResidentWarps][32] = *(float(*)[kResidentWarps][32])scratch;
    float2(&ends)[kResidentWarps] = *(float2(*)[kResidentWarps])(scratch + sizeof(pool));
    const uint32_t warp = resident_warp(), lane = threadIdx.x & 31;
#pragma unroll 1
    for (uint32_t n = blockIdx.x; n < a.heads * PER; n += gridDim.x) {
        const uint2* from = a.partial + (size_t)(n / PER) * a.shares * (D + 4);
        float best = kNoScore, mass = 0.0f, sum = 0.0f;
#pragma unroll 1
        for (uint32_t i = warp; i < shares; i += kResidentWarps) {
            const uint2* share = from + (size_t)i * (D + 4);
            const float top = await_numbered(share + D, uses.number), all = await_numbered(share + D + 1, uses.number);
            const float v = await_numbered(share + n % PER * 32 + lane, uses.number);
            const float now = fmaxf(best, top), keep = power_of_two(best - now), f = power_of_two(top - now);
            best = now;
            mass = mass * keep + f * all;
            sum = sum * keep + f * v;
        }
        pool[warp][lane] = sum;
        if (lane == 0) ends[warp] = make_float2(best, mass);
        sync_workers();
        if (warp == 0) {
            best = kNoScore;
#pragma unroll
            for (uint32_t w = 0; w < kResidentWarps; w++) best = fmaxf(best, ends[w].x);
            sum = mass = 0.0f;
#pragma unroll
            for (uint32_t w = 0; w < kResidentWarps; w++) {
                const float f = power_of_two(ends[w].x - best);
                sum += f * pool[w][lane];
                mass += f * ends[w].y;
            }
            store_numbered(a.out + (size_t)(n / PER) * D + n % PER * 32 + lane, sum / mass, uses.number);
        }
        sync_workers();
    }
}

// F: the format of all weights; D: values of a head.
template <class F, uint32_t D>
__device__ __forceinline__ void resident(const ResidentArgs& a) {
    DYNAMIC_SHARED(memory);
    ResidentShared& s = *(ResidentShared*)memory;
    unsigned char* const scratch = memory + sizeof(ResidentShared);
    const uint32_t warp = resident_warp(), end = a.first + a.count;
    unsigned char* const places = scratch + a.scratch;
#ifdef MODEL1_EMULATE
    for (uint32_t i = threadIdx.x; i < kResidentOp / 4; i += kResidentThreads) ((uint32_t*)s.window[a.first % kResidentWindow])[i] = ((const uint32_t*)(a.ops + a.first))[i];
    __syncthreads();
#else
    if (threadIdx.x < kResidentSlots) {
        static_assert(kResidentSlots == kResidentWindow, "a thread inits one of each");
        barrier_init(barrier_at(s.full[threadIdx.x]), kFillers);
        barrier_init(barrier_at(s.empty[threadIdx.x]), kResidentWarps);
        barrier_init(barrier_at(s.known[threadIdx.x]), 1);
        if (threadIdx.x == 0) {
            s.done = a.first;
            s.zero = make_uint4(0, 0, 0, 0);
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    // Registers go from those that copy to those that multiply: 12 warps begin with 168 each.
    if (warp >= kResidentWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        Filler<F> f = {s, places, warp - kResidentWarps, a.slots, a.slot_bytes, end, a.first};
        // Records that have been asked for, and that have come.
        uint32_t asked = a.first, known = a.first;
#pragma unroll 1
        while (!f.through()) {
            const uint32_t done = *(volatile uint32_t*)&s.done;
            if (asked < end && asked < done + kResidentWindow) {
                if (f.number == 0 && (threadIdx.x & 31) == 0) {
                    const uint32_t barrier = barrier_at(s.known[(asked - a.first) % kResidentWindow]);
                    barrier_expect(barrier, kResidentOp);
                    copy_whole(s.window[asked % kResidentWindow], (const uint16_t*)(a.ops + asked), kResidentOp, barrier);
                }
                asked++;
            }
            const uint32_t n = known - a.first;
            if (known < asked && barrier_ended(barrier_at(s.known[n % kResidentWindow]), n / kResidentWindow & 1u)) known++;
            if (!f.fill(known)) __nanosleep(20);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
#endif
#ifdef MODEL1_EMULATE
    Ring<F> ring = {s, places, a.slots, a.slot_bytes, 0, 0, {s, places, warp, a.slots, a.slot_bytes, end, a.first, 0, 0, 0, 0, {}}};
    s.zero = make_uint4(0, 0, 0, 0);
#else
    Ring<F> ring = {s, places, a.slots, a.slot_bytes, 0, 0};
#endif
    await_predecessor();
    const DevStep step = *a.step;
    const uint32_t keys = (uint32_t)step.position + 1;
    if (threadIdx.x < D / 2 && a.freqs != nullptr) s.turns[threadIdx.x] = turn_at(step.position, a.freqs[threadIdx.x], false);
    // Rows of these caches lose nothing that would have to be counted.
    for (uint32_t i = threadIdx.x; blockIdx.x == 0 && i < a.n_stats; i += kResidentThreads) a.stats[i] = {0.0f, 0.0f, 0, 0};
    const uint32_t serial = load_shared_one(a.serial);
    Uses uses = {serial, 0};
    sync_workers();
    const auto stamp = [&]([[maybe_unused]] uint32_t i) {
#ifndef MODEL1_EMULATE
        if (a.stamps == nullptr || blockIdx.x != 0 || threadIdx.x != 0) return;
        uint64_t now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        a.stamps[i] = now;
#endif
    };
#pragma unroll 1
    for (uint32_t i = a.first; i < end; i++) {
        stamp(i);
#ifndef MODEL1_EMULATE
        barrier_await(barrier_at(s.known[(i - a.first) % kResidentWindow]), (i - a.first) / kResidentWindow & 1u);
#endif
        const ResidentOp& op = resident_op(s, i);
        // Attention and what follows it have one number. Zero is what memory begins with.
        uses.number = serial * a.total + i + 1 - (op.kind == kResidentProduct ? op.product.behind : op.kind == kResidentCombine ? 1 : 0);
        if (op.kind == kResidentProduct) {
            resident_product<F>(op.product, ring, uses, s, scratch, i);
        } else if (op.kind == kResidentAttend) {
            resident_attend<D>(op.attend, uses, s, scratch, a, step);
        } else {
            resident_combine<D>(op.attend, uses, scratch, shares_now(keys, op.attend.shares));
        }
    }
    stamp(end);
    // By the last block: where they run one after the other (the emulator) all have read it by then.
    if (blockIdx.x + 1 == gridDim.x && threadIdx.x == 0 && end == a.total) *a.serial = serial + 1;
}
