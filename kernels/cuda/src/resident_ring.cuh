// The ring of a resident launch (resident.cuh): who fills it, and who empties it.
#pragma once

#include "resident.cuh"

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
