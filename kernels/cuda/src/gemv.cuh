// Products for up to 8 tokens (decode): every weight byte is read once, 16 at a time, and enough loads are in flight to
// hide memory. A warp has R outputs; the lanes of a warp take neighbouring chunks of a row.
#pragma once

#include "chunks.cuh"

constexpr uint32_t kSegments = 8;

// A matrix of the launch; all have the same format and inputs. `SegmentArg` in ../ops/gemv.rs.
struct Segment {
    const uint8_t* data;    // [rows, cols]
    const uint8_t* scales;
    WeightRef bias;         // [rows], null data = none
    float* out;             // [tokens, out_stride]
    uint32_t rows;
    uint32_t out_stride;
    // gemv_mma: its blocks (per group), of which the first `more` have each + 1 outputs and the others `each`.
    uint32_t blocks;
    uint32_t each;
    uint32_t more;
    uint32_t pad;
};

struct GemvArgs {
    Segment segments[kSegments];
    WeightRef w;               // format, cols, scale shape of all segments; data and scales unused
    WeightRef norm;            // weight of an RMSNorm of x, null data = 1
    const float* x;            // [tokens, x_stride]
    const float* residual;     // [tokens, out_stride] added to the first segment's output, null = none; may be out
    const float* slot_weights;  // [tokens, k] multiplies what `glu` gives an expert's slot, null = none
    const DevStep* step;
    const DevExpert* experts;  // as in MatMulArgs: the matrix is the one `chosen` names
    const DevExpert* partners;  // the same for the second segment
    const int32_t* chosen;
    const float* beside;       // [tokens, cols] x of one more slot, whose matrix and output are the second segment; null = none
    uint32_t tokens;           // code of x's rows
    uint32_t x_stride;
    uint32_t n_segments;
    uint32_t rows;             // outputs of all segments (of one where `glu`)
    uint32_t group_rows;
    uint32_t k;
    uint32_t per_slot;
    uint32_t normed;           // 1 = x is normalised (RMS) on the way
    uint32_t glu;              // 1 = two segments, gate and up: out = act(gate) * up
    uint32_t activation;
    float limit;               // of the gate, infinity = none
    float eps;
    uint32_t tile;             // inputs per pass through shared memory, a multiple of 32 * LEN (gemv)
    uint32_t split;            // warps that share a row, a power of two (gemv_one, gemv_mma)
    // gemv_mma alone, so that it divides nothing:
    uint32_t split_shift;      // log2 of `split`
    uint32_t row_shift;        // of the rows and columns of a block of scales
    uint32_t col_shift;
    uint32_t scale_pitch;      // bytes of a row of scales
    uint32_t passes;           // of `tile` inputs
    uint32_t settled;          // 1 = `chosen` is there before the predecessor has ended
    uint32_t hold;             // see `await_predecessor`
    uint32_t blocks;           // of all groups (gemv_one)
    uint32_t slots;            // per token: k, and the one beside the experts'; without experts 1
    uint32_t pad;
};

// The end of `glu`: from the sums of row `row` of gate and of up.
__device__ __forceinline__ float gated(const GemvArgs& a, uint32_t row, float gate, float up, uint32_t token, uint32_t slot) {
    const WeightRef &b = a.segments[0].bias, &c = a.segments[1].bias;
    if (b.data != nullptr) gate += vector_at(b, row);
    if (c.data != nullptr) up += vector_at(c, row);
    float v = activate(a.activation, fminf(gate, a.limit)) * fminf(fmaxf(up, -a.limit), a.limit);
    if (a.slot_weights != nullptr) v *= a.slot_weights[(size_t)token * a.k + slot];
    return v;
}

// Place in shared memory of four values of x: lanes read neighbouring places.
template <uint32_t LEN>
__device__ __forceinline__ uint32_t staged(uint32_t four) {
    constexpr uint32_t PER = LEN / 4;
    const uint32_t chunk = four / PER;
    return (chunk / 32 * PER + four % PER) * 32 + chunk % 32;
}

// A row of a matrix and where its output goes.
template <uint32_t R>
struct GemvRows {
    const uint8_t *data[R], *scales[R];
    uint32_t rows[R], places[R];
};

// The rows of unit `at`: with `glu` the same row of both matrices, else R neighbours; beyond the last: the last one again.
template <class F, uint32_t R>
__device__ __forceinline__ GemvRows<R> gemv_rows(const GemvArgs& a, uint32_t at, uint32_t slot_at) {
    GemvRows<R> g;
#pragma unroll
    for (uint32_t r = 0; r < R; r++) {
        uint32_t row = a.glu != 0 ? at : at * R + r, s = a.glu != 0 ? r : 0;
        const bool there = row < a.rows;
        if (!there) row = a.rows - 1;
        if (a.glu == 0) {
            while (s + 1 < a.n_segments && row >= a.segments[s].rows) row -= a.segments[s++].rows;
        }
        const uint8_t *base = a.segments[s].data, *scale = a.segments[s].scales;
        if (a.experts != nullptr) {
            const DevExpert e = (s == 0 ? a.experts : a.partners)[a.chosen[slot_at]];
            base = e.data;
            scale = e.scales;
        }
        g.data[r] = base + (size_t)row * a.w.row_bytes;
        g.scales[r] = scale == nullptr ? nullptr : F::row_scales(a.w, scale, row);
        g.rows[r] = there ? row : 0xffffffffu;
        g.places[r] = s;
    }
    return g;
}

// U chunks of each of R rows, as they lie, with their scales.
template <class F, uint32_t U, uint32_t R>
struct GemvLoad {
    uint32_t raw[U][R][F::WORDS];
    uint32_t scale[U][R][F::SCALE_WORDS];

    __device__ __forceinline__ void load(const GemvArgs& a, const GemvRows<R>& g, uint32_t first, uint32_t c0, uint32_t chunks) {
#pragma unroll
        for (uint32_t u = 0; u < U; u++) {
            const uint32_t c = c0 + 32 * u;
            if (c >= chunks) break;
#pragma unroll
            for (uint32_t r = 0; r < R; r++) {
                F::load(g.data[r], first + c, raw[u][r]);
                if (F::SCALED && g.scales[r] != nullptr) F::scale(a.w, g.scales[r], first + c, scale[u][r]);
            }
        }
    }
};

// A block takes every gridDim.x-th unit (of its group), a warp every eighth of those, so that all multiprocessors have
// the same to do. What a warp multiplies next is always on its way while it multiplies; the first weights are asked for
// before the launch's predecessor has ended. A warp lays out one token of x, and a lane ends one: code that stands once for
// eight tokens is read eight times faster.
template <class F, uint32_t T, uint32_t R>
__device__ __forceinline__ void gemv(const GemvArgs& a) {
    static_assert(T == 8, "a warp per token");
    DYNAMIC_SHARED(memory);
    __shared__ float squares[T];
    float4* xs = (float4*)memory;  // [T][tile / 4], see `staged`
    constexpr uint32_t LEN = F::LEN, PER = LEN / 4, U = F::WORDS > 4 ? 1 : 2;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, warps = blockDim.x / 32, cols = a.w.cols;

    // Units of this block: all, or those of its group.
    const uint32_t per_unit = a.glu != 0 ? 1 : R;
    const uint32_t in_group = (a.group_rows != 0 ? a.group_rows : a.rows) + per_unit - 1;
    const uint32_t units = in_group / per_unit, groups = a.group_rows != 0 ? a.rows / a.group_rows : 1;
    const uint32_t blocks = gridDim.x / groups, group = blockIdx.x / blocks, offset = group * units;
    uint32_t unit = blockIdx.x % blocks + blocks * warp;
    const uint32_t tiles = (cols + a.tile - 1) / a.tile;

    GemvRows<R> g;
    GemvLoad<F, U, R> next;
    if (unit < units) {
        g = gemv_rows<F, R>(a, offset + unit, 0);
        next.load(a, g, 0, lane, min(a.tile, cols) / LEN);
    }
    await_predecessor(a.hold != 0);
    const uint32_t all = step_rows(*a.step, a.tokens), first = blockIdx.y * T;
    if (first >= all) return;
    const uint32_t tokens = min(all - first, T);
    const float* x = a.x + (size_t)(first + warp) * a.x_stride + (size_t)group * cols;

    float square = 0.0f;
    const auto stage = [&](uint32_t base, uint32_t n) {
        if (warp >= tokens) return;
        const float4* from = (const float4*)(x + base);
        float4* to = xs + warp * (a.tile / 4);
        // Several loads are on their way before the first is used.
        constexpr uint32_t S = 4;
#pragma unroll 1
        for (uint32_t i0 = lane; i0 < n / 4; i0 += 32 * S) {
            float4 v[S], w[S];
#pragma unroll
            for (uint32_t u = 0; u < S; u++) {
                const uint32_t i = i0 + 32 * u;
                if (i >= n / 4) break;
                v[u] = from[i];
                if (a.normed != 0 && a.norm.data != nullptr) w[u] = vector_four(a.norm, base + 4 * i);
            }
#pragma unroll
            for (uint32_t u = 0; u < S; u++) {
                const uint32_t i = i0 + 32 * u;
                if (i >= n / 4) break;
                float4 y = v[u];
                if (a.normed != 0) {
                    square += y.x * y.x + y.y * y.y + y.z * y.z + y.w * y.w;
                    if (a.norm.data != nullptr) y = make_float4(y.x * w[u].x, y.y * w[u].y, y.z * w[u].z, y.w * w[u].w);
                }
                to[staged<LEN>(i)] = y;
            }
        }
    };

    // With several tiles a warp has one unit at most, and all warps go through the tiles together.
    bool began = false;
    do {
        float sums[R][T] = {};
        const GemvRows<R> mine = g;
        float residual[R], bias[R];
        const bool busy = unit < units;
        const uint32_t after = unit + blocks * warps;
#pragma unroll
        for (uint32_t r = 0; r < R; r++) {
            residual[r] = bias[r] = 0.0f;
            if (!busy || lane >= tokens || mine.rows[r] == 0xffffffffu || a.glu != 0) continue;
            const WeightRef& b = a.segments[mine.places[r]].bias;
            if (b.data != nullptr) bias[r] = vector_at(b, mine.rows[r]);
            if (a.residual == nullptr || mine.places[r] != 0) continue;
            residual[r] = a.residual[(size_t)(first + lane) * a.segments[0].out_stride + mine.rows[r]];
        }
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile++) {
            const uint32_t base = tile * a.tile, n = min(a.tile, cols - base), chunks = n / LEN;
            if (!began) {
                if (tile > 0) __syncthreads();
                stage(base, n);
                if (tile + 1 == tiles && a.normed != 0) {
                    square = warp_sum(square);
                    if (lane == 0) squares[warp] = square;
                }
                __syncthreads();
            }
            if (!busy) continue;
#pragma unroll 1
            for (uint32_t c0 = lane; c0 < (chunks + 31) / 32 * 32; c0 += 32 * U) {
                const GemvLoad<F, U, R> now = next;
                uint32_t ahead = c0 + 32 * U, from = base;
                bool more = ahead < (chunks + 31) / 32 * 32;
                if (!more) {
                    ahead = lane;
                    if (tile + 1 < tiles) {
                        more = true;
                        from = base + a.tile;
                    } else if (after < units) {
                        more = true;
                        from = 0;
                        g = gemv_rows<F, R>(a, offset + after, 0);
                    }
                }
                if (more) next.load(a, g, from / LEN, ahead, min(a.tile, cols - from) / LEN);
#pragma unroll
                for (uint32_t u = 0; u < U; u++) {
                    const uint32_t c = c0 + 32 * u;
                    if (c >= chunks) break;
                    float parts[R][T] = {};
                    float2 factor[R];
#pragma unroll
                    for (uint32_t r = 0; r < R; r++) {
                        const bool scaled = F::SCALED && mine.scales[r] != nullptr;
                        factor[r] = scaled ? F::affine(a.w, now.scale[u][r], base / LEN + c) : make_float2(F::UNIT, 0.0f);
                    }
                    const float4* const mine_x = xs + c / 32 * PER * 32 + lane;
#pragma unroll
                    for (uint32_t i = 0; i < PER; i++) {
                        float4 v[R];
#pragma unroll
                        for (uint32_t r = 0; r < R; r++) {
                            v[r] = F::four(now.raw[u][r], i);
                            // Without an addend factors wait for the chunk's sum.
                            if (F::SUMS) {
                                const float2 f = factor[r];
                                v[r] = make_float4(v[r].x * f.x + f.y, v[r].y * f.x + f.y, v[r].z * f.x + f.y, v[r].w * f.x + f.y);
                            }
                        }
                        // Four tokens at a time, without a question for each: what stands where there is none is not used.
#pragma unroll
                        for (uint32_t t0 = 0; t0 < T; t0 += 4) {
                            if (t0 >= tokens) break;
#pragma unroll
                            for (uint32_t t = t0; t < t0 + 4; t++) {
                                const float4 y = mine_x[t * (a.tile / 4) + i * 32];
#pragma unroll
                                for (uint32_t r = 0; r < R; r++) {
                                    parts[r][t] += v[r].x * y.x;
                                    parts[r][t] += v[r].y * y.y;
                                    parts[r][t] += v[r].z * y.z;
                                    parts[r][t] += v[r].w * y.w;
                                }
                            }
                        }
                    }
#pragma unroll
                    for (uint32_t t = 0; t < T; t++) {
#pragma unroll
                        for (uint32_t r = 0; r < R; r++) sums[r][t] += F::SUMS ? parts[r][t] : parts[r][t] * factor[r].x;
                    }
                }
            }
        }
        if (!busy) return;
        // Lane t ends token t.
        float result[R];
#pragma unroll
        for (uint32_t r = 0; r < R; r++) {
            result[r] = 0.0f;
#pragma unroll
            for (uint32_t t = 0; t < T; t++) {
                const float sum = warp_sum(sums[r][t]);
                if (lane == t) result[r] = sum;
            }
        }
        if (lane < tokens) {
            const uint32_t t = first + lane;
            const float factor = a.normed != 0 ? rsqrtf(squares[lane] / (float)cols + a.eps) : 1.0f;
#pragma unroll
            for (uint32_t r = 0; r < R; r++) result[r] = result[r] * factor + bias[r];
            if (a.glu != 0) {
                if (mine.rows[0] != 0xffffffffu) {
                    const Segment& s = a.segments[0];
                    s.out[(size_t)t * s.out_stride + mine.rows[0]] = gated(a, mine.rows[0], result[0], result[R - 1], t, 0);
                }
            } else {
#pragma unroll
                for (uint32_t r = 0; r < R; r++) {
                    if (mine.rows[r] == 0xffffffffu) continue;
                    const Segment& s = a.segments[mine.places[r]];
                    s.out[(size_t)t * s.out_stride + mine.rows[r]] = result[r] + residual[r];
                }
            }
        }
        unit = after;
        began = true;
    } while (tiles == 1 && unit < units);
}
