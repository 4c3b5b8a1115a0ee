// Attention on tensor cores for heads of up to 128 values (see attend_mma.cuh). Four warps: for many queries each has 16
// rows of them and all keys of a tile; for few (WK = 4) all have the same 16 rows, and a quarter of the keys each. Weights
// stay in registers, where they are what the second product reads.
#include "attend_mma.cuh"

// Keys of a tile for many queries of 128 values: before Hopper the compiler needs a few registers more than 64 leave it.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr uint32_t kMostKeys = 32;
#else
constexpr uint32_t kMostKeys = 64;
#endif

template <uint32_t D, uint32_t P, uint32_t WK>
__device__ __forceinline__ void attend_mma(const AttendArgs& a) {
    constexpr uint32_t WR = 4 / WK, M = 16 * WR, KT = D == 128 && WK == 1 ? kMostKeys : 64, KW = KT / WK;
    using Tiles = KeyTiles<D, KT, 128, M>;
    constexpr uint32_t PITCH = Tiles::PITCH;
    DYNAMIC_SHARED(memory);
    struct __align__(16) Shared {
        typename Tiles::Shared keys;
        RowShares<WK, M> found;
        // Fragments of the queries' smaller parts, each thread's own (or the same for all that share rows): all of them would
        // not leave registers enough.
        uint4 small[P - 1][D / 16][32 * WR];
    };
    Shared& s = *(Shared*)memory;
    uint32_t* data = (uint32_t*)(memory + sizeof(Shared));
    static_assert(2 * 64 * PITCH >= WK * M * D, "the sums fit where tiles were");
    const DevStep step = *a.step;
    const QueryRows q = query_rows(a, step, M);
    if (q.count == 0) return;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t row0 = warp / WK * 16, key0 = warp % WK * KW;
    Tiles tiles(a, s.keys, data, step, q);
    await_predecessor();
    if (tiles.idle()) return;
    uint32_t query[D / 16][4];
    // Where this lane's row of four matrices begins.
    const uint32_t mine = lane % 16 * PITCH + lane / 16 * 4;
    float acc[D / 8][4] = {}, top[2] = {kBelow, kBelow}, sum[2] = {0.0f, 0.0f};

#pragma unroll 1
    for (int32_t n = -1; n < (int32_t)s.keys.tiles; n++) {
        tiles.next(n);
        const uint32_t i = (uint32_t)n;
        if (n < 0) {
#pragma unroll
            for (uint32_t k = 0; k < D / 16; k++) {
                uint32_t parts[P][4];
                load_query(a, q, row0 + g, 16 * k + 2 * t, parts);
#pragma unroll
                for (uint32_t j = 0; j < 4; j++) query[k][j] = parts[0][j];
#pragma unroll
                for (uint32_t p = 1; p < P; p++) {
                    s.small[p - 1][k][2 * row0 + lane] = make_uint4(parts[p][0], parts[p][1], parts[p][2], parts[p][3]);
                }
            }
            continue;
        }
        // Few keys make few sums: those of the parts are kept apart, so that products wait less for each other.
        constexpr uint32_t APART = KW == 16 ? P : 1;
        float apart[APART][KW / 8][4] = {};
        float(&z)[KW / 8][4] = apart[0];
        const uint32_t* keys = tiles.keys(i) + key0 * PITCH + mine;
#pragma unroll
        for (uint32_t k = 0; k < D / 16; k++) {
            uint32_t w[KW / 16][4];
#pragma unroll
            for (uint32_t n = 0; n < KW / 16; n++) load_matrices(w[n], keys + 16 * n * PITCH + 8 * k);
            // Small products first.
#pragma unroll
            for (int p = P - 1; p >= 0; p--) {
                const uint4 part = p > 0 ? s.small[p > 0 ? p - 1 : 0][k][2 * row0 + lane]
                                         : make_uint4(query[k][0], query[k][1], query[k][2], query[k][3]);
                const uint32_t words[4] = {part.x, part.y, part.z, part.w};
#pragma unroll
                for (uint32_t n = 0; n < KW / 16; n++) {
                    mma_two<2>(apart[p % APART][2 * n], apart[p % APART][2 * n + 1], words, w[n]);
                }
            }
        }
#pragma unroll
        for (uint32_t p = 1; p < APART; p++) {
#pragma unroll
            for (uint32_t n = 0; n < KW / 8; n++) {
#pragma unroll
                for (uint32_t e = 0; e < 4; e++) z[n][e] += apart[p][n][e];
            }
        }
        if (!tiles.whole(i)) {
            const int32_t* numbers = tiles.rows(i) + key0 + 2 * t;
            const Sight sights[2] = {tiles.sight(i, row0 + g), tiles.sight(i, row0 + g + 8)};
#pragma unroll
            for (uint32_t n = 0; n < KW / 8; n++) {
                const uint2 pair = *(const uint2*)(numbers + 8 * n);
#pragma unroll
                for (uint32_t h = 0; h < 2; h++) {
                    if (!sights[h].sees((int32_t)pair.x)) z[n][2 * h] = -INFINITY;
                    if (!sights[h].sees((int32_t)pair.y)) z[n][2 * h + 1] = -INFINITY;
                }
            }
        }
        float keep[2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            float best = top[h];
#pragma unroll
            for (uint32_t n = 0; n < KW / 8; n++) best = fmaxf(best, fmaxf(z[n][2 * h], z[n][2 * h + 1]));
            best = fmaxf(best, __shfl_xor_sync(kAll, best, 1));
            best = fmaxf(best, __shfl_xor_sync(kAll, best, 2));
            keep[h] = weight_below(top[h], best);
            top[h] = best;
            sum[h] *= keep[h];
            const float low = best * kLog2e;
#pragma unroll
            for (uint32_t n = 0; n < KW / 8; n++) {
#pragma unroll
                for (uint32_t e = 2 * h; e < 2 * h + 2; e++) {
                    z[n][e] = power_of_two(z[n][e] * kLog2e - low);
                    sum[h] += z[n][e];
                }
            }
        }
        uint32_t weights[KW / 16][P][4];
#pragma unroll
        for (uint32_t k = 0; k < KW / 16; k++) {
#pragma unroll
            for (uint32_t j = 0; j < 4; j++) {
                uint32_t words[P];
                split_pair(z[2 * k + j / 2][j % 2 * 2], z[2 * k + j / 2][j % 2 * 2 + 1], words);
#pragma unroll
                for (uint32_t p = 0; p < P; p++) weights[k][p][j] = words[p];
            }
        }
        const uint32_t* values = tiles.values(i) + key0 * PITCH + mine;
        // A tile's sums of their own: tensor cores cut off what is added to a large sum, thousands of times in a long text.
        float tile[D / 8][4] = {};
#pragma unroll
        for (uint32_t k = 0; k < KW / 16; k++) {
#pragma unroll
            for (uint32_t n = 0; n < D / 8; n += 4) {
                uint32_t w[2][4];
                load_matrices_turned(w[0], values + 16 * k * PITCH + 4 * n);
                load_matrices_turned(w[1], values + 16 * k * PITCH + 4 * n + 8);
#pragma unroll
                for (int p = P - 1; p >= 0; p--) {
                    mma_two<1>(tile[n], tile[n + 1], weights[k][p], w[0]);
                    mma_two<1>(tile[n + 2], tile[n + 3], weights[k][p], w[1]);
                }
            }
        }
#pragma unroll
        for (uint32_t n = 0; n < D / 8; n++) {
#pragma unroll
            for (uint32_t e = 0; e < 4; e++) acc[n][e] = acc[n][e] * keep[e / 2] + tile[n][e];
        }
    }
    __syncthreads();
    // Asked for again: registers are for sums until here.
    const DevStep later = *a.step;
    const QueryRows rows = query_rows(a, later, M);
    float* pool = (float*)data;
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        sum[h] += __shfl_xor_sync(kAll, sum[h], 1);
        sum[h] += __shfl_xor_sync(kAll, sum[h], 2);
        const uint32_t r = row0 + g + 8 * h;
        if (t == 0) {
            s.found.tops[warp % WK][r] = top[h];
            s.found.sums[warp % WK][r] = sum[h];
        }
        float2* to = (float2*)(pool + (warp % WK * M + r) * D + 2 * t);
#pragma unroll
        for (uint32_t n = 0; n < D / 8; n++) to[4 * n] = make_float2(acc[n][2 * h], acc[n][2 * h + 1]);
    }
    __syncthreads();
    finish_rows<D>(a, later, rows, pool, s.found, s.keys.used);
}

// grid (runs of rows, key heads, splits), 128 threads; shared: `shared_bytes` in ../ops/attend_mma.rs
#define ATTEND(name, d, key_warps, blocks) \
    EARLY_KERNEL(name, AttendArgs, 128, blocks) { attend_mma<d, 2, key_warps>(a); }

ATTEND(attend_mma_32, 32, 1, 3)
ATTEND(attend_mma_32_few, 32, 4, 3)
ATTEND(attend_mma_64, 64, 1, 3)
ATTEND(attend_mma_64_few, 64, 4, 3)
ATTEND(attend_mma_128, 128, 1, 2)
ATTEND(attend_mma_128_few, 128, 4, 2)
