// Attention on tensor cores for heads of 256 and 512 values (see attend_mma.cuh): 16 rows of queries per block, 64 columns
// of queries, keys and values per warp. Scores are added up over the warps in shared memory, where a few threads per row
// keep the softmax and leave the weights for all.
#include "attend_mma.cuh"

template <uint32_t D, uint32_t P>
__device__ __forceinline__ void attend_wide(const AttendArgs& a) {
    constexpr uint32_t W = D / 64, THREADS = 32 * W, M = 16, KT = 32, PER = M * KT / THREADS, TEAM = KT / PER;
    using Tiles = KeyTiles<D, KT, THREADS, M>;
    constexpr uint32_t PITCH = Tiles::PITCH;
    DYNAMIC_SHARED(memory);
    struct __align__(16) Shared {
        float scores[W][M][KT + 8];
        uint32_t weights[P][M][KT / 2 + 4];
        float keep[M];
        RowShares<1, M> found;
        typename Tiles::Shared keys;
    };
    Shared& s = *(Shared*)memory;
    uint32_t* data = (uint32_t*)(memory + sizeof(Shared));
    static_assert(2 * Tiles::TILE >= M * D, "the sums fit where tiles were");
    const DevStep step = *a.step;
    const QueryRows q = query_rows(a, step, M);
    if (q.count == 0) return;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    Tiles tiles(a, s.keys, data, step, q);
    await_predecessor();
    if (tiles.idle()) return;
    uint32_t query[4][P][4];
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) load_query(a, q, g, 64 * warp + 16 * k + 2 * t, query[k]);
    float acc[8][4] = {};
    // Where this lane's row of four matrices begins, in the warp's columns of a tile.
    const uint32_t mine = lane % 16 * PITCH + lane / 16 * 4 + 32 * warp;
    // The row and the keys of a tile whose weights this thread makes.
    const uint32_t row = threadIdx.x / TEAM, key = threadIdx.x % TEAM * PER;
    float top = kBelow, sum = 0.0f;

#pragma unroll 1
    for (int32_t n = -1; n < (int32_t)s.keys.tiles; n++) {
        tiles.next(n);
        const uint32_t i = (uint32_t)n;
        if (n < 0) continue;
        float z[KT / 8][4] = {};
        const uint32_t* keys = tiles.keys(i) + mine;
#pragma unroll
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t w[2][4];
            load_matrices(w[0], keys + 8 * k);
            load_matrices(w[1], keys + 16 * PITCH + 8 * k);
            // Small products first.
#pragma unroll
            for (int p = P - 1; p >= 0; p--) {
                mma_two<2>(z[0], z[1], query[k][p], w[0]);
                mma_two<2>(z[2], z[3], query[k][p], w[1]);
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < KT / 8; n++) {
            *(float2*)&s.scores[warp][g][8 * n + 2 * t] = make_float2(z[n][0], z[n][1]);
            *(float2*)&s.scores[warp][g + 8][8 * n + 2 * t] = make_float2(z[n][2], z[n][3]);
        }
        __syncthreads();
        float e[PER] = {}, best = top;
#pragma unroll
        for (uint32_t w = 0; w < W; w++) {
#pragma unroll
            for (uint32_t j = 0; j < PER; j += 2) {
                const float2 v = *(const float2*)&s.scores[w][row][key + j];
                e[j] += v.x;
                e[j + 1] += v.y;
            }
        }
        const bool whole = tiles.whole(i);
#pragma unroll
        for (uint32_t j = 0; j < PER; j++) {
            if (!whole && !tiles.sight(i, row).sees(tiles.rows(i)[key + j])) e[j] = -INFINITY;
            best = fmaxf(best, e[j]);
        }
#pragma unroll
        for (uint32_t m = 1; m < TEAM; m <<= 1) best = fmaxf(best, __shfl_xor_sync(kAll, best, m));
        const float keep = weight_below(top, best), low = best * kLog2e;
        top = best;
        sum *= keep;
        if (key == 0) s.keep[row] = keep;
#pragma unroll
        for (uint32_t j = 0; j < PER; j += 2) {
            e[j] = power_of_two(e[j] * kLog2e - low);
            e[j + 1] = power_of_two(e[j + 1] * kLog2e - low);
            sum += e[j] + e[j + 1];
            uint32_t words[P];
            split_pair(e[j], e[j + 1], words);
#pragma unroll
            for (uint32_t p = 0; p < P; p++) s.weights[p][row][(key + j) / 2] = words[p];
        }
        __syncthreads();
        const float keeps[2] = {s.keep[g], s.keep[g + 8]};
        const uint32_t* values = tiles.values(i) + mine;
        // A tile's sums of their own: tensor cores cut off what is added to a large sum, thousands of times in a long text.
        // Nothing of this is moved up: there are no registers for it.
        __syncwarp();
        float tile[8][4] = {};
#pragma unroll
        for (uint32_t k = 0; k < KT / 16; k++) {
            uint32_t weights[P][4];
#pragma unroll
            for (uint32_t p = 0; p < P; p++) load_matrices(weights[p], &s.weights[p][lane % 16][8 * k + lane / 16 * 4]);
#pragma unroll
            for (uint32_t n = 0; n < 8; n += 4) {
                uint32_t w[2][4];
                load_matrices_turned(w[0], values + 16 * k * PITCH + 4 * n);
                load_matrices_turned(w[1], values + 16 * k * PITCH + 4 * n + 8);
#pragma unroll
                for (int p = P - 1; p >= 0; p--) {
                    mma_two<1>(tile[n], tile[n + 1], weights[p], w[0]);
                    mma_two<1>(tile[n + 2], tile[n + 3], weights[p], w[1]);
                }
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < 8; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) acc[n][e] = acc[n][e] * keeps[e / 2] + tile[n][e];
        }
    }
    __syncthreads();
    // Asked for again: registers are for sums until here.
    const DevStep later = *a.step;
    const QueryRows rows = query_rows(a, later, M);
    float* pool = (float*)data;
#pragma unroll
    for (uint32_t m = 1; m < TEAM; m <<= 1) sum += __shfl_xor_sync(kAll, sum, m);
    if (key == 0) {
        s.found.tops[0][row] = top;
        s.found.sums[0][row] = sum;
    }
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        float2* to = (float2*)(pool + (g + 8 * h) * D + 64 * warp + 2 * t);
#pragma unroll
        for (uint32_t n = 0; n < 8; n++) to[4 * n] = make_float2(acc[n][2 * h], acc[n][2 * h + 1]);
    }
    __syncthreads();
    finish_rows<D>(a, later, rows, pool, s.found, s.keys.used);
}

// grid (runs of rows, key heads, splits), head_dim / 2 threads; shared: `shared_bytes` in ../ops/attend_mma.rs
#define ATTEND(name, d, blocks) \
    EARLY_KERNEL(name, AttendArgs, d / 2, blocks) { attend_wide<d, 2>(a); }

ATTEND(attend_wide_256, 256, 3)
ATTEND(attend_wide_512, 512, 2)
