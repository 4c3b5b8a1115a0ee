// Two products of one token in one launch, the second of what the first gives: an output projection in groups and the one
// behind it, or chosen experts and the one beside them, gate and up first. What a token costs here are launches that wait
// for each other, so the second product begins without one: blocks exchange the vector between them number by number, with
// marks (resident.cuh), and all of a block's weights, of both products, are on their way into shared memory from its start,
// those of chosen experts from when the choice is there.
//
// A block has rows of one group of each product (of one expert), a tile of 16 rows (8 of gate and of up) at a time, every
// warp an eighth of the columns.
#pragma once

#include "gemv_halves.cuh"
#include "resident_ring.cuh"
#include "rows.cuh"

constexpr uint32_t kPairWarps = kResidentWarps, kPairThreads = kResidentThreads, kPairTile = kResidentTile, kPairTiles = 8;

// Two matrices of a group: gate and up, or one and nothing.
struct PairMatrices {
    DevExpert of[2];
};

// One of the two products. `HalfArg` in ../ops/pair.rs, as all of these records.
struct PairHalf {
    PairMatrices matrices;       // [groups][group_rows][cols]
    PairMatrices beside;         // of the last group, where others are experts: [group_rows][cols]
    const DevExpert* experts[2];  // tables: group g has the matrices of expert chosen[g]; null = those of `matrices`
    const float* x;              // group g: cols values from g * x_step on
    float* out;                  // [groups][group_rows]
    float* beside_out;           // [group_rows] of the group beside, null = in `out` as the others
    uint32_t cols;
    uint32_t row_bytes;
    uint32_t group_rows;
    uint32_t groups;
    uint32_t blocks;             // of a group
    uint32_t each;               // rows of a block of a group, one more if it is one of the first `more`
    uint32_t more;
    uint32_t x_step;
    uint32_t glu;
    uint32_t activation;
    float limit;
    // Scales, as in GemvArgs.
    uint32_t row_shift;
    uint32_t col_shift;
    uint32_t scale_pitch;
    uint32_t scale_format;
    uint32_t weights;            // where they lie in shared memory
    uint32_t scales;             // the same, as f32: [rows of a block][blocks of columns]
    uint32_t pad;
};

struct PairArgs {
    PairHalf halves[2];
    const float* slot_weights;  // [k] multiplies what experts' gates give, null = none
    const int32_t* chosen;      // [k], null = no experts
    uint32_t* uses;             // blocks that are through with this launch, launches so far
    uint32_t k;
    uint32_t settled;           // 1 = `chosen` is there before the predecessor has ended
    uint32_t hold;              // see `await_predecessor`
    uint32_t first;             // halves of this launch: both, or, where blocks run one after the other, one
    uint32_t last;
    uint32_t x;                 // where the vector multiplied lies in shared memory
    uint32_t partial;           // [tiles][16][warps] sums
    uint32_t n_experts;         // of a table
    float* comb;                // [4, 4] coefficients of a site before, unfinished (SiteArgs.raw), null = none
    uint32_t iterations;        // what is left of them
    float eps;
};
static_assert(sizeof(PairHalf) == 176 && sizeof(PairArgs) == 424, "../ops/pair.rs");

// Finishes the coefficients of a site before this launch, for one behind it, by a warp that has time for it.
__device__ __forceinline__ void pair_finish(const PairArgs& a) {
    __shared__ float comb[16];
    const uint32_t lane = threadIdx.x & 31;
    if (lane < 16) comb[lane] = a.comb[lane];
    __syncwarp();
    sinkhorn(comb, 4, a.iterations, a.eps);
    if (lane < 16) a.comb[lane] = comb[lane];
}

// What a block has of a product.
struct PairPart {
    uint32_t group, first, units, tiles;
};

// That of block `number` of those of the product.
__device__ __forceinline__ PairPart pair_part(const PairHalf& h, uint32_t number) {
    const uint32_t group = number / h.blocks, b = number % h.blocks, shift = h.glu != 0 ? 3 : 4;
    const uint32_t units = group < h.groups ? h.each + (b < h.more ? 1 : 0) : 0;
    return {group, h.each * b + min(b, h.more), units, (units + (1u << shift) - 1) >> shift};
}

// Whether a block's matrices are those of a chosen expert.
__device__ __forceinline__ bool pair_chosen(const PairArgs& a, const PairHalf& h, const PairPart& part) {
    return h.experts[0] != nullptr && part.group < a.k;
}

// A matrix of a block's group, from the group's first row on.
__device__ __forceinline__ DevExpert pair_matrix(const PairArgs& a, const PairHalf& h, const PairPart& part, uint32_t i) {
    if (pair_chosen(a, h, part)) return h.experts[i][a.chosen[part.group]];
    if (h.experts[0] != nullptr) return h.beside.of[i];
    return {h.matrices.of[i].data + (size_t)part.group * h.group_rows * h.row_bytes, h.matrices.of[i].scales};
}

// bf16 weights as they are; x in three bf16 parts, which hold all of its bits.
struct PairBf16 {
    static constexpr uint32_t PAD = 64;  // rows g and g + 1 meet in no bank
    static constexpr bool SCALED = false;
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return 2 * cols + 64; }

    float sums[2][4];
    __device__ __forceinline__ void begin() {
#pragma unroll
        for (uint32_t i = 0; i < 8; i++) sums[i / 4][i % 4] = 0.0f;
    }
    // Runs of 32 columns: of a run lane t of quad g has the 8 columns from 8 t on, of rows g (`w`) and g + 8 (`v`).
    __device__ __forceinline__ void multiply(const unsigned char* w, const unsigned char* v, const unsigned char* x, uint32_t cols, const uint4* zero,
                                             uint32_t first, uint32_t count, const float*, const float*, uint32_t) {
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
        const uint4 *p = (const uint4*)w + 4 * first + t, *q = (const uint4*)v + 4 * first + t;
        const uint4* b = g < 3 ? (const uint4*)(x + g * part(cols)) + 4 * first + t : zero;
        const uint32_t step = g < 3 ? 4 : 0;
#pragma unroll 4
        for (uint32_t i = 0; i < count; i++) {
            const uint4 one = p[4 * i], other = q[4 * i], y = b[step * i];
            const uint32_t left[4] = {one.x, other.x, one.y, other.y}, right[4] = {one.z, other.z, one.w, other.w};
            const uint32_t y0[2] = {y.x, y.y}, y1[2] = {y.z, y.w};
            mma(sums[0], left, y0);
            mma(sums[1], right, y1);
        }
    }
    // What rows g and g + 8 come to, in lane 0 of the quad.
    __device__ __forceinline__ float2 end() const {
        const float low = (sums[0][0] + sums[0][1]) + (sums[1][0] + sums[1][1]), high = (sums[0][2] + sums[0][3]) + (sums[1][2] + sums[1][3]);
        return make_float2(low + __shfl_xor_sync(kAll, low, 1), high + __shfl_xor_sync(kAll, high, 1));
    }
    // Four values of x; every lane of a warp is here, `there` or not.
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t quad, float4 v, bool there) {
        uint32_t low[3], high[3];
        split_pair<3>(v.x, v.y, low);
        split_pair<3>(v.z, v.w, high);
        if (!there) return;
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) ((uint2*)(to + p * part(cols)))[quad] = make_uint2(low[p], high[p]);
    }
};

// E4M3 weights as f16; x in two f16 parts, brought to f16's range by a power of two per 32 values, which lies behind them.
// Scales are those of a run's block of columns.
struct PairF8 {
    static constexpr uint32_t PAD = 32;  // rows g to g + 3 meet in no bank
    static constexpr bool SCALED = true;
    static __device__ __forceinline__ uint32_t part(uint32_t cols) { return 2 * cols + 64; }

    float sums[2];
    __device__ __forceinline__ void begin() { sums[0] = sums[1] = 0.0f; }
    __device__ __forceinline__ void multiply(const unsigned char* w, const unsigned char* v, const unsigned char* x, uint32_t cols, const uint4* zero,
                                             uint32_t first, uint32_t count, const float* above, const float* below, uint32_t shift) {
        const uint32_t lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
        const uint2 *p = (const uint2*)w + 4 * first + t, *q = (const uint2*)v + 4 * first + t;
        const uint4* b = g < 2 ? (const uint4*)(x + g * part(cols)) + 4 * first + t : zero;
        const uint32_t step = g < 2 ? 4 : 0;
        const float* down = (const float*)(x + 2 * part(cols)) + first;
#pragma unroll 4
        for (uint32_t i = 0; i < count; i++) {
            const uint2 one = p[4 * i], other = q[4 * i];
            const uint4 y = b[step * i];
            const uint32_t raw[2][4] = {{one.x, one.y, 0, 0}, {other.x, other.y, 0, 0}};
            uint32_t high[4], low[4];
            HalfF8::halves(raw[0], 0, high);
            HalfF8::halves(raw[1], 0, low);
            const uint32_t left[4] = {high[0], low[0], high[1], low[1]}, right[4] = {high[2], low[2], high[3], low[3]};
            const uint32_t y0[2] = {y.x, y.y}, y1[2] = {y.z, y.w};
            float c[4] = {}, d[4] = {};
            mma_f16(c, left, y0);
            mma_f16(d, right, y1);
            const uint32_t block = (first + i) * 32 >> shift;
            sums[0] += ((c[0] + c[1]) + (d[0] + d[1])) * (down[i] * above[block]);
            sums[1] += ((c[2] + c[3]) + (d[2] + d[3])) * (down[i] * below[block]);
        }
    }
    __device__ __forceinline__ float2 end() const { return make_float2(sums[0] * HalfF8::NUMBER, sums[1] * HalfF8::NUMBER); }
    static __device__ __forceinline__ void store(unsigned char* to, uint32_t cols, uint32_t quad, float4 v, bool there) {
        uint32_t top = max(max(magnitude(v.x), magnitude(v.y)), max(magnitude(v.z), magnitude(v.w)));
#pragma unroll
        for (int m = 1; m < 8; m <<= 1) top = max(top, __shfl_xor_sync(kAll, top, m));
        // 2^e so that the largest lies in [2^14, 2^15), and 2^-e.
        const uint32_t exponent = max(top >> 23, 15u);
        const float up = __uint_as_float((268u - exponent) << 23), down = __uint_as_float((exponent - 14u) << 23);
        const float4 y = make_float4(v.x * up, v.y * up, v.z * up, v.w * up);
        const uint32_t low = f16_words(y.x, y.y), high = f16_words(y.z, y.w);
        const float2 a = f16_pair(low), b = f16_pair(high);
        if (!there) return;
        ((uint2*)to)[quad] = make_uint2(low, high);
        ((uint2*)(to + part(cols)))[quad] = make_uint2(f16_words(y.x - a.x, y.y - a.y), f16_words(y.z - b.x, y.w - b.y));
        if (quad % 8 == 0) ((float*)(to + 2 * part(cols)))[quad / 8] = down;
    }
};

// Brings a product's vector into shared memory as the format wants it; MARKED: it waits for every number of it.
// `meanwhile` is done once, while the first numbers are on their way.
template <class F, bool MARKED, class M>
__device__ __forceinline__ void pair_lay_out(unsigned char* to, const float* from, uint32_t cols, uint32_t bit, M meanwhile) {
    constexpr uint32_t SOME = 2;
    bool done = false;
    const uint4* const x = (const uint4*)from;
    const uint32_t quads = cols / 4, wrong = bit != 0 ? 0u : 1u;
    uint32_t base = threadIdx.x & ~31u;
    do {
        uint4 raw[SOME];
        uint32_t bad;
        do {
            bad = 0;
#pragma unroll
            for (uint32_t i = 0; i < SOME; i++) {
                const uint32_t quad = base + i * kPairThreads + (threadIdx.x & 31);
                raw[i] = make_uint4(bit, bit, bit, bit);
                if (quad < quads) raw[i] = load_shared(x + quad);
            }
            if (!done) meanwhile();
            done = true;
#pragma unroll
            for (uint32_t i = 0; i < SOME; i++) {
                // A number is there where its last bit is `bit`.
                bad |= wrong != 0 ? raw[i].x | raw[i].y | raw[i].z | raw[i].w : ~(raw[i].x & raw[i].y & raw[i].z & raw[i].w);
            }
        } while (MARKED && __any_sync(kAll, (bad & 1u) != 0));
#pragma unroll
        for (uint32_t i = 0; i < SOME; i++) {
            const uint32_t quad = base + i * kPairThreads + (threadIdx.x & 31), keep = MARKED ? ~1u : ~0u;
            const float4 v = make_float4(__uint_as_float(raw[i].x & keep), __uint_as_float(raw[i].y & keep), __uint_as_float(raw[i].z & keep),
                                         __uint_as_float(raw[i].w & keep));
            F::store(to, cols, quad, v, quad < quads);
        }
        base += SOME * kPairThreads;
    } while (base < quads);
}

// Columns with a scale of their own.
__device__ __forceinline__ uint32_t pair_scale_columns(const PairHalf& h) { return (h.cols + (1u << h.col_shift) - 1) >> h.col_shift; }

// A block's scales of matrix `m` of its group, which lie at `from`, as f32 in the order of its rows.
__device__ __forceinline__ void pair_scales_of(const PairHalf& h, const PairPart& part, uint32_t m, const uint8_t* from, float* to) {
    const uint32_t per = pair_scale_columns(h), row0 = (h.experts[0] == nullptr ? part.group * h.group_rows : 0) + part.first;
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < part.units * per; i += kPairThreads) {
        to[m * part.units * per + i] = scale_value(h.scale_format, from + (size_t)((row0 + i / per) >> h.row_shift) * h.scale_pitch, i % per);
    }
}

__device__ __forceinline__ void pair_scales(const PairArgs& a, const PairHalf& h, const PairPart& part, float* to) {
#pragma unroll 1
    for (uint32_t m = 0; m < (h.glu != 0 ? 2 : 1); m++) pair_scales_of(h, part, m, pair_matrix(a, h, part, m).scales, to);
}

// The scales that a block may need of experts' matrices (gate, up, and the second product's), of all experts, for those are known
// before the choice is: what is asked for with the chosen weights comes behind them.
struct PairTable {
    static constexpr uint32_t ROOM = 1024;
    const uint8_t* places[3][32];
    uint32_t bits[ROOM];  // [matrix][experts][rows of scales][columns], as they lie
    struct Rows {
        uint32_t begin, end, first, rows, per;  // where the matrix's lie in the table; the first row and how many; columns
    } rows[3];
};

// Whether a block has rows of matrix j (0 and 1 of the first product, 2 of the second one) of a chosen expert.
__device__ __forceinline__ bool pair_has(const PairArgs& a, uint32_t j, const PairPart& part) {
    const PairHalf& h = a.halves[j / 2];
    return j / 2 >= a.first && j / 2 <= a.last && pair_chosen(a, h, part) && (j != 1 || h.glu != 0);
}

__device__ __forceinline__ void pair_table_rows(const PairArgs& a, PairTable& table) {
    uint32_t begin = 0;
#pragma unroll 1
    for (uint32_t j = 0; j < 3; j++) {
        const PairHalf& h = a.halves[j / 2];
        const PairPart part = pair_part(h, blockIdx.x);
        PairTable::Rows& r = table.rows[j];
        r = {begin, begin, 0, 0, 0};
        if (!pair_has(a, j, part)) continue;
        r.first = part.first >> h.row_shift;
        r.rows = ((part.first + part.units - 1) >> h.row_shift) - r.first + 1;
        r.per = pair_scale_columns(h);
        begin = r.end = begin + a.n_experts * r.rows * r.per;
    }
}

// Where the rows of tile `tile` lie among the block's rows that lane group g multiplies, the last ones again beyond the end.
__device__ __forceinline__ uint2 pair_rows(const PairHalf& h, const PairPart& part, uint32_t tile, uint32_t g) {
    if (h.glu != 0) {
        const uint32_t unit = min(8 * tile + g, part.units - 1);
        return make_uint2(unit, part.units + unit);
    }
    return make_uint2(min(16 * tile + g, part.units - 1), min(16 * tile + 8 + g, part.units - 1));
}

// Asks for the rows of tile `tile`, by one warp; they arrive at `barrier`.
template <class F>
__device__ __forceinline__ void pair_copy(const PairHalf& h, const PairPart& part, DevExpert one, DevExpert other, unsigned char* weights, uint32_t tile,
                                          [[maybe_unused]] uint64_t& barrier) {
    const uint32_t lane = threadIdx.x & 31, pitch = h.row_bytes + F::PAD, units = h.glu != 0 ? 8 : 16;
    const uint32_t some = min(units, part.units - units * tile), rows = h.glu != 0 ? 2 * some : some;
#ifndef MODEL1_EMULATE
    if (lane == 0) barrier_expect(barrier_at(barrier), rows * h.row_bytes);
    __syncwarp();
#endif
    if (lane >= rows) return;
    const uint32_t m = lane / some, unit = units * tile + lane % some;
    unsigned char* const to = weights + (size_t)(m * part.units + unit) * pitch;
    const uint8_t* const from = (m == 0 ? one.data : other.data) + (size_t)(part.first + unit) * h.row_bytes;
#ifdef MODEL1_EMULATE
    memcpy(to, from, h.row_bytes);
#else
    copy_once(to, from, h.row_bytes, barrier_at(barrier));
#endif
}

// A block's tiles times the vector at `x`, as they arrive: an eighth of the columns per warp, whose sums go to `partial`.
template <class F>
__device__ __forceinline__ void pair_tiles(const PairHalf& h, const PairPart& part, const unsigned char* memory, const unsigned char* x,
                                           float* partial, [[maybe_unused]] uint64_t* ready, const uint4& zero) {
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t runs = h.cols / 32, share = (runs + kPairWarps - 1) / kPairWarps, first = min(warp * share, runs);
    const uint32_t count = min(share, runs - first), pitch = h.row_bytes + F::PAD;
    const uint32_t per = F::SCALED ? pair_scale_columns(h) : 0;
    const float* const factors = (const float*)(memory + h.scales);
#pragma unroll 1
    for (uint32_t tile = 0; tile < part.tiles; tile++) {
        const uint2 rows = pair_rows(h, part, tile, g);
        F product;
        product.begin();
#ifndef MODEL1_EMULATE
        barrier_await(barrier_at(ready[tile]), 0);
#endif
        const unsigned char* const weights = memory + h.weights;
        product.multiply(weights + rows.x * pitch, weights + rows.y * pitch, x, h.cols, &zero, first, count, factors + rows.x * per,
                         factors + rows.y * per, h.col_shift);
        const float2 sums = product.end();
        if (t == 0) {
            partial[(tile * kPairTile + g) * kPairWarps + warp] = sums.x;
            partial[(tile * kPairTile + 8 + g) * kPairWarps + warp] = sums.y;
        }
    }
}

// What the warps' sums of a row come to.
__device__ __forceinline__ float pair_sum(const float* partial, uint32_t row) {
    const float4 *p = (const float4*)(partial + row * kPairWarps), v = p[0], w = p[1];
    return ((v.x + v.y) + (v.z + v.w)) + ((w.x + w.y) + (w.z + w.w));
}

template <class F>
__device__ __forceinline__ void pair(const PairArgs& a) {
    DYNAMIC_SHARED(memory);
    __shared__ uint64_t ready[2][kPairTiles];
    __shared__ uint4 zero;
    [[maybe_unused]] const uint32_t warp = warp_number(), lane = threadIdx.x & 31;
    const bool late = a.chosen != nullptr && a.settled == 0;
    float* const partial = (float*)(memory + a.partial);
    if (threadIdx.x == 0) zero = make_uint4(0, 0, 0, 0);
#ifndef MODEL1_EMULATE
    if (threadIdx.x < 2 * kPairTiles) {
        barrier_init(barrier_at(ready[threadIdx.x / kPairTiles][threadIdx.x % kPairTiles]), 1);
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    // The launch before this one of the same plan has ended: between them lies the begin of a step, which waits for all of the last.
    const uint32_t serial = load_shared_one(a.uses + 1);
    if (warp == kPairWarps) {
        // A lane has an entry of each table before the choice is there.
        const bool known = late && a.n_experts <= 32;
        const DevExpert none = {nullptr, nullptr}, gate = known && lane < a.n_experts ? a.halves[0].experts[0][lane] : none;
        const DevExpert up = known && lane < a.n_experts ? a.halves[0].experts[1][lane] : none;
        const DevExpert down = known && lane < a.n_experts ? a.halves[1].experts[0][lane] : none;
        const auto entry = [&](const uint8_t* in_first, const uint8_t* in_second, bool second, int i) {
            return DevExpert{(const uint8_t*)__shfl_sync(kAll, (uint64_t)(second ? in_second : in_first), i), nullptr};
        };
        bool waited = false;
#pragma unroll 1
        for (uint32_t i = a.first; i <= a.last; i++) {
            const PairHalf& h = a.halves[i];
            const PairPart part = pair_part(h, blockIdx.x);
            if (part.units == 0) continue;
            const bool chosen = pair_chosen(a, h, part);
            if (late && !waited && chosen) {
                await_predecessor(a.hold != 0);
                waited = true;
            }
            // The halves' groups are a block's own each.
            const int expert = known && chosen ? a.chosen[part.group] : 0;
            DevExpert one, other;
            if (known && chosen) {
                one = entry(gate.data, down.data, i != 0, expert);
                other = entry(up.data, down.data, i != 0, expert);
            } else {
                one = pair_matrix(a, h, part, 0);
                other = h.glu != 0 ? pair_matrix(a, h, part, 1) : one;
            }
#pragma unroll 1
            for (uint32_t tile = 0; tile < part.tiles; tile++) pair_copy<F>(h, part, one, other, memory + h.weights, tile, ready[i][tile]);
        }
        // The last block whose threads have read the launch's number counts it.
        asm volatile("bar.sync 2, 288;" ::: "memory");
        if (lane == 0 && atomicAdd(a.uses, 1u) + 1 == gridDim.x) {
            a.uses[0] = 0;
            a.uses[1] = serial + 1;
        }
        if (a.comb == nullptr || blockIdx.x + 1 != gridDim.x) return;
        if (!waited) await_predecessor(a.hold != 0);
        pair_finish(a);
        return;
    }
#else
    const uint32_t serial = a.uses[1];
#endif
    const uint32_t bit = (serial & 1u) ^ 1u;
    touch_parameters(a);
    __shared__ PairTable table;
    bool tabled = false;
    if constexpr (F::SCALED) {
#pragma unroll 1
        for (uint32_t i = a.first; i <= a.last; i++) {
            const PairHalf& h = a.halves[i];
            const PairPart part = pair_part(h, blockIdx.x);
            if (!late || !pair_chosen(a, h, part)) pair_scales(a, h, part, (float*)(memory + h.scales));
        }
        if (late && a.n_experts <= 32) {
            if (threadIdx.x == 0) pair_table_rows(a, table);
            if (threadIdx.x < a.n_experts) {
                table.places[0][threadIdx.x] = a.halves[0].experts[0][threadIdx.x].scales;
                table.places[1][threadIdx.x] = a.halves[0].glu != 0 ? a.halves[0].experts[1][threadIdx.x].scales : nullptr;
                table.places[2][threadIdx.x] = a.halves[1].experts[0][threadIdx.x].scales;
            }
            sync_workers();
            const uint32_t all = table.rows[2].end;
            tabled = all <= PairTable::ROOM;
#pragma unroll 3
            for (uint32_t n = threadIdx.x; n < all && tabled; n += kPairThreads) {
                const uint32_t j = n < table.rows[0].end ? 0 : n < table.rows[1].end ? 1 : 2;
                const PairTable::Rows& r = table.rows[j];
                const PairHalf& h = a.halves[j / 2];
                const uint32_t each = r.rows * r.per, e = (n - r.begin) / each, at = (n - r.begin) % each;
                table.bits[n] = scale_bits(h.scale_format, table.places[j][e] + (size_t)(r.first + at / r.per) * h.scale_pitch, at % r.per);
            }
            sync_workers();
        }
    }
#ifndef MODEL1_EMULATE
    // With the number at hand.
    asm volatile("{ .reg .pred p; setp.lt.u32 p, %0, 2; @p bar.arrive 2, 288; }" ::"r"(bit) : "memory");
#endif
    await_predecessor(a.hold != 0);
    // Scales of chosen experts, when the choice is there.
    const auto late_scales = [&] {
        if constexpr (F::SCALED) {
            if (!late) return;
#pragma unroll 1
            for (uint32_t j = 0; j < 3; j++) {
                const PairHalf& h = a.halves[j / 2];
                const PairPart part = pair_part(h, blockIdx.x);
                if (!pair_has(a, j, part)) continue;
                float* const to = (float*)(memory + h.scales);
                const uint32_t expert = (uint32_t)a.chosen[part.group];
                if (!tabled) {
                    pair_scales_of(h, part, j % 2, h.experts[j % 2][expert].scales, to);
                    continue;
                }
                const PairTable::Rows& r = table.rows[j];
                const uint32_t* const bits = table.bits + r.begin + expert * r.rows * r.per;
#pragma unroll 1
                for (uint32_t i = threadIdx.x; i < part.units * r.per; i += kPairThreads) {
                    const uint32_t row = ((part.first + i / r.per) >> h.row_shift) - r.first;
                    to[j % 2 * part.units * r.per + i] = scale_of_bits(h.scale_format, bits[row * r.per + i % r.per]);
                }
            }
        }
    };
#pragma unroll 1
    for (uint32_t i = a.first; i <= a.last; i++) {
        const PairHalf& h = a.halves[i];
        const PairPart part = pair_part(h, blockIdx.x);
        const bool idle = part.units == 0;
#ifdef MODEL1_EMULATE
        if (!idle && threadIdx.x < 32) {
            const DevExpert one = pair_matrix(a, h, part, 0), other = h.glu != 0 ? pair_matrix(a, h, part, 1) : one;
            for (uint32_t tile = 0; tile < part.tiles; tile++) pair_copy<F>(h, part, one, other, memory + h.weights, tile, ready[i][tile]);
        }
#endif
        float slot_weight = 1.0f;
        if (a.slot_weights != nullptr && h.glu != 0 && part.group < a.k) slot_weight = a.slot_weights[part.group];
        unsigned char* const x = memory + a.x;
        const float* const from = h.x + (size_t)part.group * h.x_step;
        const auto meanwhile = [&] {
            if (i == a.first) late_scales();
        };
        if (idle) {
            meanwhile();
        } else if (i == 0) {
            pair_lay_out<F, false>(x, from, h.cols, 0, meanwhile);
        } else {
            pair_lay_out<F, true>(x, from, h.cols, bit, meanwhile);
        }
        sync_workers();
        if (idle) continue;
        pair_tiles<F>(h, part, memory, x, partial, ready[i], zero);
        sync_workers();
#pragma unroll 1
        for (uint32_t u = threadIdx.x; u < part.units; u += kPairThreads) {
            float value = pair_sum(partial, h.glu != 0 ? u / 8 * kPairTile + u % 8 : u);
            if (h.glu != 0) {
                const float other = pair_sum(partial, u / 8 * kPairTile + 8 + u % 8);
                value = activate(h.activation, fminf(value, h.limit)) * fminf(fmaxf(other, -h.limit), h.limit) * slot_weight;
            }
            const bool beside = h.beside_out != nullptr && part.group == a.k;
            float* const to = beside ? h.beside_out : h.out + (size_t)part.group * h.group_rows;
            store_shared(to + part.first + u, i == 0 ? marked(value, bit) : __float_as_uint(value));
        }
    }
#ifdef MODEL1_EMULATE
    // Blocks one after the other: the last one counts the launch.
    if (a.last == 1 && threadIdx.x == 0 && atomicAdd(a.uses, 1u) + 1 == gridDim.x) {
        a.uses[0] = 0;
        a.uses[1] = serial + 1;
    }
#endif
}
