// The ring of a resident launch (resident.cuh): who fills it, and who empties it.
#pragma once

#include "resident.cuh"

// A block's outputs of a product, and their tiles: 16 rows, or 8 of each matrix where they are gate and up.
struct BlockRows {
    uint32_t first, count, tiles;
};

__device__ __forceinline__ BlockRows block_rows(const ResidentProduct& p) {
    const uint32_t b = blockIdx.x, n = p.each + (b < p.more ? 1 : 0), shift = p.glu != 0 ? 3 : 4;
    return {p.each * b + min(b, p.more), n, (n + (1u << shift) - 1) >> shift};
}

// What fills the ring: some warps, of which each has a share of every place (a lane a row or its scales), or, for formats with
// small places, every fourth place: a warp takes some 750 ns for one, which is more than the memory does (Q6_K rows: 2.4
// instead of 4.1 TB/s). Large places come later that way (Qwen bf16: 1.13 instead of 1.05 ms a token).
constexpr uint32_t kFillers = 4;
template <class F>
struct Fillers {
    static constexpr bool APART = F::SMALL;
    static constexpr uint32_t ROWS = APART ? kResidentTile : kResidentTile / kFillers;
};
// Where places are a warp's own, they are at least as many as warps (SLOTS in ../ops/resident/records.rs): a warp never waits for
// a phase but the last one.
static_assert(2 * kResidentTile == 32, "a lane per row and per row of scales");

// Where a warp that copies stands: at some columns of a tile of the op before `next`.
struct Cursor {
    uint32_t next, tile, column;
    BlockRows rows;  // of that op

    __device__ __forceinline__ bool at_end() const { return tile == rows.tiles; }
    // Goes on to an op below `known` that has rows.
    __device__ __forceinline__ void settle(const ResidentShared& s, uint32_t known) {
#pragma unroll 1
        for (; at_end() && next < known; next++) {
            tile = rows.tiles = 0;
            if (resident_op(s, next).kind == kResidentProduct) rows = block_rows(resident_op(s, next).product);
        }
    }
    __device__ __forceinline__ void advance(const ResidentProduct& p, uint32_t columns) {
        column += columns;
        if (column == p.ring_cols) {
            column = 0;
            tile++;
        }
    }
};

// What a lane copies: a row of a tile, some columns of it, or its scales.
struct Piece {
    const uint8_t* from;
    uint32_t bytes, r, columns;
    bool there, scales;
};

// Copies `bytes` bytes and tells a barrier. Weights are read once a token: in the second-level cache they make room first, for
// what blocks exchange, keys and values (Llama-2-7B q8_0: 71.8 instead of 73.6 us a layer at 128 tokens).
#ifndef MODEL1_EMULATE
__device__ __forceinline__ void copy_once(unsigned char* to, const uint8_t* from, uint32_t bytes, uint32_t barrier) {
    const uint32_t at = (uint32_t)__cvta_generic_to_shared(to);
    uint64_t policy;
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(at), "l"(from),
        "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}
#endif

// So many places of the ring come into the second-level cache beforehand, where a token sees no more than so many keys: beyond,
// these take the memory's time (Qwen bf16: 31.6 instead of 32.4 us a layer at 64 keys, 43.7 instead of 43.3 at 30,000). Of a
// warp's own, small places, more (Qwen q4_0: 19.2 instead of 19.9 us at 64 keys, 20.4 instead of 20.8 at 128).
template <class F>
constexpr uint32_t kAhead = F::SMALL ? 8 : 1;
constexpr uint32_t kAheadKeys = 1024;

template <class F>
struct Filler {
    static constexpr uint32_t ROWS = Fillers<F>::ROWS;

    ResidentShared& s;
    unsigned char* ring;
    uint32_t number, stride;     // of this warp's rows; it has every so many places
    uint32_t slots, slot_bytes, end;
    Cursor now;                  // what is asked for next, behind `skip` places of other warps
    uint32_t skip;
    uint32_t to, phase;          // the place filled next, and of which phase of the places' use
    Cursor ahead;                // what comes into the second-level cache next, likewise,
    uint32_t ahead_skip;
    uint32_t distance;           // so many of its places before what is asked for

    __device__ __forceinline__ bool through() const { return now.next == end && now.at_end(); }

    // Goes to the next of its own places, as far as ops are known; false: it is not there yet.
    __device__ __forceinline__ bool reach(Cursor& c, uint32_t& left, uint32_t known) const {
        for (;;) {
            c.settle(s, known);
            if (c.at_end()) return false;
            if (left == 0) return true;
            const ResidentProduct& p = resident_op(s, c.next - 1).product;
            c.advance(p, min(p.ring_chunk, p.ring_cols - c.column));
            left--;
        }
    }

    __device__ __forceinline__ Piece piece(const ResidentProduct& p, const Cursor& c) const {
        const uint32_t lane = threadIdx.x & 31;
        Piece o;
        o.columns = min(p.ring_chunk, p.ring_cols - c.column);
        o.scales = lane >= ROWS;
        o.r = number * ROWS + lane % ROWS;
        uint32_t at = 0, unit = c.tile * kResidentTile + o.r;
        if (p.glu != 0) {
            at = o.r / (kResidentTile / 2);
            unit = c.tile * (kResidentTile / 2) + o.r % (kResidentTile / 2);
        }
        o.there = lane < (F::SCALED ? 2 : 1) * ROWS && unit < c.rows.count;
        uint32_t row = c.rows.first + unit;
        if (p.glu == 0) {
#pragma unroll 1
            while (at + 1 < p.n_segments && row >= p.segments[at].rows) row -= p.segments[at++].rows;
        }
        const ResidentSegment& m = p.segments[at];
        o.from = o.scales ? m.scales + (size_t)row * p.scale_bytes + c.column / 16 : m.data + (size_t)row * p.row_bytes + F::bytes(c.column);
        o.bytes = o.scales ? o.columns / 16 : F::bytes(o.columns);
        return o;
    }

    // Brings what will be asked for later into the second-level cache: places are full while blocks wait for each other.
    __device__ __forceinline__ bool prefetch([[maybe_unused]] uint32_t known) {
#ifdef MODEL1_EMULATE
        return false;
#else
        if (distance == kAhead<F> || !reach(ahead, ahead_skip, known)) return false;
        const ResidentProduct& p = resident_op(s, ahead.next - 1).product;
        const Piece o = piece(p, ahead);
        if (o.there) asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(o.from), "r"(o.bytes) : "memory");
        ahead.advance(p, o.columns);
        ahead_skip = stride - 1;
        distance++;
        return true;
#endif
    }

    // Asks for the next rows of ops below `known`, where there is a place.
    __device__ __forceinline__ bool fill(uint32_t known) {
#ifndef MODEL1_EMULATE
        if (!barrier_ended(barrier_at(s.empty[to]), phase ^ 1u)) return false;
#endif
        if (!reach(now, skip, known)) return false;
        const ResidentProduct& p = resident_op(s, now.next - 1).product;
        const Piece o = piece(p, now);
        unsigned char* place = ring + to * slot_bytes;
        // Rows lie F::PITCH apart, their scales behind all of them.
        place += o.scales ? kResidentTile * F::PITCH + o.r * F::SCALES : o.r * F::PITCH;
#ifdef MODEL1_EMULATE
        if (o.there) memcpy(place, o.from, o.bytes);
#else
        const uint32_t row_bytes = F::bytes(o.columns) + (F::SCALED ? o.columns / 16 : 0);
        const uint32_t barrier = barrier_at(s.full[to]), all = __popc(__ballot_sync(kAll, o.there && !o.scales)) * row_bytes;
        if ((threadIdx.x & 31) == 0) barrier_expect(barrier, all);
        __syncwarp();
        if (o.there) copy_once(place, o.from, o.bytes, barrier);
#endif
        now.advance(p, o.columns);
        skip = stride - 1;
        if (distance == 0) {
            ahead = now;
            ahead_skip = skip;
        } else {
            distance--;
        }
        to += stride;
        if (to >= slots) {  // which are not fewer than `stride`
            to -= slots;
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

    // Whether the place emptied next is there.
    __device__ __forceinline__ bool ready() const { return barrier_ended(barrier_at(s.full[from]), phase); }
    // Waits for the rows of the place emptied next, unless they are known to be there.
    __device__ __forceinline__ const unsigned char* take([[maybe_unused]] bool there = false) {
#ifdef MODEL1_EMULATE
        __syncthreads();
        if (threadIdx.x < 32 * kFillers) filler.fill(filler.end);
        __syncthreads();
#else
        if (!there) barrier_await(barrier_at(s.full[from]), phase);
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
