// Products for many tokens on Hopper in tiles of 128 tokens x 192 outputs: as gemm_wg.cuh, for matrices whose tiles of 128 outputs
// leave multiprocessors idle (1,536 outputs for 2,048 tokens are 128 wide tiles for 132 of them). Both groups of warps are at one
// tile, each with 64 of its tokens. Where tiles are still too few, the two blocks of a cluster share the inputs of one: at its end
// each sends half of its sums into the other's shared memory, and adds up and stores the other half.
//
// Sums of kWideRun steps are added up apart: a product's sum is cut off, not rounded, to what the sum so far has room for
// (8,960 inputs in one run: 4 times the error).
#pragma once

#include "gemm_wg.cuh"
#ifndef MODEL1_EMULATE
#include "cluster.cuh"
#endif

constexpr uint32_t kWideRows = 192, kWideRun = 32;

// Sums of 64 tokens, N / 4 times 8 outputs from `first` on.
template <uint32_t N>
__device__ __forceinline__ void add_bias(const WgTile& t, float (&sums)[N], uint32_t first) {
    const WeightRef& bias = t.matrix->bias;
    const uint32_t lane = threadIdx.x & 31, pair = lane % 4 * 2;
    if (bias.data == nullptr) return;
#pragma unroll
    for (uint32_t q = 0; q < N / 16; q++) {
        const uint32_t o = first + 32 * q + lane;
        const float b = o < t.matrix->w.rows ? vector_at(bias, o) : 0.0f;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float x = __shfl_sync(kAll, b, 8 * i + pair), y = __shfl_sync(kAll, b, 8 * i + pair + 1);
            sums[16 * q + 4 * i] += x;
            sums[16 * q + 4 * i + 1] += y;
            sums[16 * q + 4 * i + 2] += x;
            sums[16 * q + 4 * i + 3] += y;
        }
    }
}

#ifdef MODEL1_EMULATE
// Those of the tokens from `token` on, with what is added to them.
template <uint32_t N>
inline void store_wide(const WgTile& t, float (&sums)[N], uint32_t token, uint32_t first) {
    const WgMatrix& matrix = *t.matrix;
    add_bias(t, sums, first);
    for (uint32_t i = 0; i < N; i++) {
        const uint32_t r = token + threadIdx.x / 32 % 4 * 16 + simt::lane() / 4 + i % 4 / 2 * 8;
        const uint32_t o = first + i / 4 * 8 + simt::lane() % 4 * 2 + i % 2;
        if (r >= t.count || o >= matrix.w.rows) continue;
        const size_t at = (size_t)(t.first + r) * matrix.out_stride + o;
        matrix.out[at] = matrix.residual != nullptr ? sums[i] + matrix.residual[at] : sums[i];
    }
}
#else
// To shared memory, added to what lies there or in its place.
template <uint32_t N>
__device__ __forceinline__ void put(const float (&sums)[N], unsigned char* to, bool add) {
    constexpr uint32_t kPitchBytes = 8 * N + 32;
#pragma unroll
    for (uint32_t i = 0; i < N / 4; i++) {
#pragma unroll
        for (uint32_t m = 0; m < 2; m++) {
            float2* place = (float2*)(to + 8 * m * kPitchBytes + 32 * i);
            float2 v = make_float2(sums[4 * i + 2 * m], sums[4 * i + 2 * m + 1]);
            if (add) {
                const float2 before = *place;
                v.x += before.x;
                v.y += before.y;
            }
            *place = v;
        }
    }
}
#endif

// What the kernels below share: SHARES blocks have a tile.
template <uint32_t XP, uint32_t SHARES>
struct Wide {
    typedef WgRing<XP, kWideRows> Ring;
    typedef WgSums<kWideRows, 1> Sums;
    // Sums of a thread, those it stores, the columns of a block's, the distance of their rows in shared memory (four rows are in
    // different banks), and the tokens of them that have room in a buffer.
    static constexpr uint32_t N = kWideRows / 2, H = N / SHARES, kColumns = 2 * H, kPitchBytes = 4 * kColumns + 32;
    static constexpr uint32_t kEnd = kWgTokens * kPitchBytes <= Ring::kBytes ? kWgTokens : 64;
    static_assert(kEnd * kPitchBytes <= Ring::kBytes, "what a group stores has room");

    const WgArgs& a;
    unsigned char* ring;
    uint32_t tiles, rank, group;
    WgTile t;

    __device__ __forceinline__ Wide(const WgArgs& args, unsigned char* memory) : a(args), ring(memory) {
        tiles = a.token_tiles * a.row_tiles;
        rank = blockIdx.x % SHARES;
        group = threadIdx.x / 128;
    }
    // A share of tile `number`. False: there is nothing to do.
    __device__ __forceinline__ bool tile(uint32_t number, uint32_t share) {
        return tile_at<kWideRows, false>(a, number + share * tiles, &t);
    }
    // The tiles of this block are first(), first() + next(), ...
    __device__ __forceinline__ uint32_t first() const { return blockIdx.x / SHARES; }
    __device__ __forceinline__ uint32_t next() const { return gridDim.x / SHARES; }
    // Outputs from here on are stored by this block, so many of them.
    __device__ __forceinline__ uint32_t column() const { return t.n0 + rank * kColumns; }
    __device__ __forceinline__ uint32_t columns() const {
        return t.matrix->w.rows > column() ? min(kColumns, t.matrix->w.rows - column()) : 0;
    }

#ifdef MODEL1_EMULATE
    // Blocks follow each other: each works out all shares.
    void run() {
        for (uint32_t number = first(); number < tiles; number += next()) {
            Sums shares[SHARES] = {};
            for (uint32_t share = 0; share < SHARES && tile(number, share); share++) multiply_share(shares[share]);
            if (!tile(number, 0) || group == 2) continue;
            float mine[H];
            for (uint32_t i = 0; i < H; i++) {
                mine[i] = shares[0][0][rank * H + i] + (SHARES > 1 ? shares[SHARES - 1][0][rank * H + i] : 0.0f);
            }
            store_wide(t, mine, 64 * group, column());
        }
    }
    void multiply_share(Sums& sums) {
        WgRows<kWideRows, false> weights;
        weights.place(t, threadIdx.x % 128);
        for (uint32_t step = t.begin; step < t.end; step++) {
            if (group == 2) weights.copy(t, step, ring + XP * Ring::kX);
            for (uint32_t p = 0; p < (step < t.steps ? XP : 1) && group == 2; p++) {
                const uint16_t* from = whole_tile(a, t, step, p);
                for (uint32_t i = threadIdx.x % 128; i < Ring::kX / 16; i += 128) {
                    memcpy(ring + p * Ring::kX + 16 * i, from + 8 * i, 16);
                }
            }
            __syncthreads();
            if (group < 2 && step < t.steps) multiply<XP, XP>(sums, ring, 64 * group);
            if (group < 2 && step >= t.steps) multiply<XP, 1>(sums, ring, 64 * group);
            __syncthreads();
        }
    }
#else
    // Barriers: of each buffer as in gemm_wg.cuh; the other block has room for sums; its sums are here.
    uint32_t full, free, ready, come;
    // Buffers of this block so far: one per step, then those of a tile's end.
    uint32_t done;

    __device__ __forceinline__ unsigned char* buffer() const { return ring + done % Ring::kStages * Ring::kBytes; }
    __device__ __forceinline__ void await_full() const {
        barrier_await(full + 8 * (done % Ring::kStages), done / Ring::kStages & 1);
    }
    // The first round finds all buffers free.
    __device__ __forceinline__ void await_free() const {
        barrier_await(free + 8 * (done % Ring::kStages), (done / Ring::kStages & 1) ^ 1);
    }
    // By every warp that multiplies.
    __device__ __forceinline__ void release(uint32_t number) const {
        if (threadIdx.x % 32 == 0) barrier_arrive(free + 8 * (number % Ring::kStages));
    }
    // All blocks of a tile have begun, or are about to end.
    __device__ __forceinline__ void meet() const {
        if (SHARES == 1) return;
        __syncwarp();
        cluster_arrive();
        cluster_wait();
    }

    __device__ __forceinline__ void run() {
        full = (uint32_t)__cvta_generic_to_shared(ring) + Ring::kStages * Ring::kBytes;
        free = full + 8 * Ring::kStages;
        ready = free + 8 * Ring::kStages;
        come = ready + 8;
        done = 0;
        if (threadIdx.x == 0) {
            for (uint32_t i = 0; i < Ring::kStages; i++) {
                barrier_init(full + 8 * i, 129);
                barrier_init(free + 8 * i, 8);
            }
            barrier_init(ready, 1);
            barrier_init(come, 8);
        }
        __syncthreads();
        meet();
        // 168 registers each were allotted; copies need few, two sets of sums many.
        if (group == 2) {
            asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
            for (uint32_t number = first(); number < tiles; number += next()) {
                if (tile(number, rank)) bring();
            }
        } else {
            asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
            uint32_t taken = 0;
            for (uint32_t number = first(); number < tiles; number += next()) {
                if (tile(number, rank)) work_out(taken++);
            }
        }
        meet();
    }

    // Copies what a tile needs.
    __device__ __forceinline__ void bring() {
        const bool leads = threadIdx.x == 256;
        WgRows<kWideRows, false> weights;
        weights.place(t, threadIdx.x - 256);
#pragma unroll 1
        for (uint32_t step = t.begin; step < t.end; step++, done++) {
            const uint32_t barrier = full + 8 * (done % Ring::kStages);
            await_free();
            if (leads) {
                const uint32_t parts = step < t.steps ? XP : 1;
                barrier_expect(barrier, parts * Ring::kX);
#pragma unroll
                for (uint32_t p = 0; p < XP; p++) {
                    if (p < parts) copy_whole(buffer() + p * Ring::kX, whole_tile(a, t, step, p), Ring::kX, barrier);
                }
            }
            weights.copy(t, step, buffer() + XP * Ring::kX);
            barrier_arrive_copied(barrier);
        }
        if (SHARES > 1) {
            await_free();
            if (leads) {
                barrier_arrive_near(barrier_of(ready, rank ^ 1));
                barrier_arrive(full + 8 * (done % Ring::kStages));
            }
            barrier_arrive(full + 8 * (done % Ring::kStages));
            done++;
        }
        // What is added, a row per thread; without it, room for what is stored.
        const uint32_t bytes = t.matrix->residual == nullptr ? 0 : 4 * columns();
        for (uint32_t from = 0; from < kWgTokens; from += kEnd, done++) {
            const uint32_t barrier = full + 8 * (done % Ring::kStages), r = threadIdx.x - 256;
            const uint32_t rows = min(kEnd, max(t.count, from) - from);
            await_free();
            if (leads) barrier_expect(barrier, rows * bytes);
            if (r < rows && bytes != 0) {
                const float* before = t.matrix->residual + (size_t)(t.first + from + r) * t.matrix->out_stride + column();
                copy_whole(buffer() + r * kPitchBytes, (const uint16_t*)before, bytes, barrier);
            }
            barrier_arrive(barrier);
        }
    }

    // A group's part of a tile.
    __device__ __forceinline__ void work_out(uint32_t taken) {
        Sums sums = {};
        const uint32_t middle = min(t.end, t.steps);
#pragma unroll 1
        for (uint32_t step = t.begin; step < middle; step += kWideRun) multiply_run<XP>(sums, min(kWideRun, middle - step));
        // What the second parts of weights and activations give together is below the last bit that is looked at.
#pragma unroll 1
        for (uint32_t step = max(t.begin, t.steps); step < t.end; step += kWideRun) {
            multiply_run<1>(sums, min(kWideRun, t.end - step));
        }
        if constexpr (SHARES == 1) {
            finish(sums[0]);
        } else {
            float mine[H];
            exchange(sums[0], mine, taken);
            finish(mine);
        }
    }

    // Adds what `steps` steps give, with P parts of the activations.
    template <uint32_t P>
    __device__ __forceinline__ void multiply_run(Sums& sums, uint32_t steps) {
        Sums some = {};
        hold(some[0]);
#pragma unroll 1
        for (uint32_t step = 0; step < steps; step++, done++) {
            await_full();
            fence_products();
            begin_products();
            multiply<XP, P>(some, buffer(), 64 * group);
            close_products();
            // The products of the step before are done, and its buffer is free.
            await_products<1>();
            if (step > 0) release(done - 1);
        }
        await_products<0>();
        if (steps > 0) release(done - 1);
        hold(some[0]);
#pragma unroll
        for (uint32_t i = 0; i < N; i++) sums[0][i] += some[0][i];
    }

    // Gives the other block the sums it stores, and adds its sums to those that stay.
    __device__ __forceinline__ void exchange(const float (&sums)[N], float (&mine)[H], uint32_t taken) {
        float4* place = (float4*)buffer() + threadIdx.x;
        barrier_await_near(ready, taken & 1);
#pragma unroll
        for (uint32_t i = 0; i < H; i += 4) {
            float4 v;
            v.x = rank == 0 ? sums[H + i] : sums[i];
            v.y = rank == 0 ? sums[H + i + 1] : sums[i + 1];
            v.z = rank == 0 ? sums[H + i + 2] : sums[i + 2];
            v.w = rank == 0 ? sums[H + i + 3] : sums[i + 3];
            near_store(place + 64 * i, rank ^ 1, v);
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive_near(barrier_of(come, rank ^ 1));
        barrier_await_near(come, taken & 1);
#pragma unroll
        for (uint32_t i = 0; i < H; i += 4) {
            const float4 v = place[64 * i];
            mine[i] = (rank == 0 ? sums[i] : sums[H + i]) + v.x;
            mine[i + 1] = (rank == 0 ? sums[i + 1] : sums[H + i + 1]) + v.y;
            mine[i + 2] = (rank == 0 ? sums[i + 2] : sums[H + i + 2]) + v.z;
            mine[i + 3] = (rank == 0 ? sums[i + 3] : sums[H + i + 3]) + v.w;
        }
        fence_products();
        __syncwarp();
        release(done++);
    }

    // Sums are added to what lies in a buffer and copied from there, by each warp its own 16 tokens.
    __device__ __forceinline__ void finish(float (&sums)[H]) {
        const uint32_t warp = threadIdx.x / 32 % 4, lane = threadIdx.x & 31, bytes = 4 * columns();
        add_bias(t, sums, column());
        for (uint32_t from = 0; from < kWgTokens; from += kEnd, done++) {
            await_full();
            if (kEnd == kWgTokens || from == 64 * group) {
                const uint32_t begin = 64 * group - from + 16 * warp, r = from + begin + lane;
                unsigned char* rows = buffer() + begin * kPitchBytes;
                put(sums, rows + lane / 4 * kPitchBytes + lane % 4 * 8, t.matrix->residual != nullptr);
                fence_products();
                __syncwarp();
                if (lane < 16 && r < t.count && bytes != 0) {
                    float* to = t.matrix->out + (size_t)(t.first + r) * t.matrix->out_stride + column();
                    store_whole(to, rows + lane * kPitchBytes, bytes);
                }
                await_stored();
                __syncwarp();
            }
            release(done);
        }
    }
#endif
};

// grid (blocks, SHARES for each tile), 384 threads; the activations lie in tiles, and there are no experts.
template <uint32_t XP, uint32_t SHARES>
__device__ __forceinline__ void products_wide(const WgArgs& a) {
    DYNAMIC_SHARED(memory);
#ifndef MODEL1_EMULATE
    memory += 1023 & -(uint32_t)__cvta_generic_to_shared(memory);
#endif
    Wide<XP, SHARES>(a, memory).run();
}
