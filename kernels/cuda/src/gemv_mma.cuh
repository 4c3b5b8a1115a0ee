// Products for one token on tensor cores: numbers of 4 and 8 bits become f16 in a few instructions per four, and everything
// else about a weight (its product with x, its sum) costs next to nothing.
//
// mma.sync m16n8k16 multiplies 16 rows of weights by 8 columns made of x. A lane loads whole 16-byte chunks of two rows; of
// the k of one mma every lane of a quad gives 4, each out of its own chunk. Where chunks have scales of their own (APART)
// their sums must stay apart: x has two columns per lane of a quad, zero but where that lane's values lie: its values' first
// 11 bits and the rest. What a lane finds in its accumulators then are the sums of its own chunks in its own two rows. x is
// brought to f16's range by a power of two: its two parts hold 22 bits of a value as large as the largest, and of smaller
// ones as much as counts beside it. Weights without scales meet one column per part of x for all lanes: two of f16, or three
// of bf16, which hold all of its bits.
#pragma once

#include "gemv_halves.cuh"
#include "mma.cuh"

__device__ __forceinline__ uint32_t warp_top(uint32_t v) {
#ifdef MODEL1_EMULATE
    return warp_reduce(v, Largest());
#else
    return __reduce_max_sync(kAll, v);
#endif
}

// Where pieces of 8 values of x lie in shared memory, in units of 16 bytes: per piece of the four chunks of a step PARTS times
// 4 units, part by part; of chunks kept apart every second time the other part first, so that neither reads nor writes meet
// in a bank.
template <class F>
__device__ __forceinline__ uint32_t piece_place(uint32_t piece, uint32_t t, uint32_t part) {
    return (piece * F::PARTS + (F::APART ? part ^ (piece & 1u) : part)) * 4 + t;
}

// M steps of two rows as they lie, with their scales: a step is four chunks, of which a lane has one. Of the words of scales
// lane t of a quad has every fourth, from word t on.
template <class F, uint32_t M>
struct MmaRows {
    static constexpr uint32_t WORDS = F::SCALES == 0 ? 1 : (F::SCALES * M + 3) / 4, FACTORS = F::FACTORS ? (M + 3) / 4 : 1;
    const uint8_t *data[2], *scales[2];
    uint32_t raw[M][2][4];
    uint32_t words[2][WORDS], factors[2][FACTORS];

    // Asks for step `step` of a row as this warp's `m`th, where `there`.
    __device__ __forceinline__ void ask(uint32_t m, uint32_t step, uint32_t t, bool there) {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
            const uint4 v = load_stream_if(data[r] + 16 * (size_t)(4 * step + t), there);
            raw[m][r][0] = v.x;
            raw[m][r][1] = v.y;
            raw[m][r][2] = v.z;
            raw[m][r][3] = v.w;
        }
    }

    // Asks for the scales of `count` steps from `step` on.
    __device__ __forceinline__ void ask_scales(const GemvArgs& a, uint32_t step, uint32_t count, uint32_t t, bool there) {
        if constexpr (F::SCALES != 0) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                const bool mine = there && scales[r] != nullptr;
#pragma unroll
                for (uint32_t k = 0; k < WORDS; k++) {
                    const uint32_t i = 4 * k + t;
                    F::word(a, scales[r], step + min(i / F::SCALES, count - 1), i % F::SCALES, mine, words[r][k]);
                }
                if constexpr (F::FACTORS) {
#pragma unroll
                    for (uint32_t k = 0; k < FACTORS; k++) F::factor(scales[r], step + min(4 * k + t, count - 1), mine, factors[r][k]);
                }
            }
        }
    }

    // Hands over the scales that have come, so that the next can be asked for.
    __device__ __forceinline__ void take_scales(uint32_t (&w)[2][WORDS], uint32_t (&f)[2][FACTORS]) {
#pragma unroll
        for (uint32_t r = 0; r < 2; r++) {
#pragma unroll
            for (uint32_t k = 0; k < WORDS; k++) w[r][k] = words[r][k];
#pragma unroll
            for (uint32_t k = 0; k < FACTORS; k++) f[r][k] = factors[r][k];
        }
    }
};

// The word of step m that says what lane t's chunk is worth.
template <class F, uint32_t WORDS>
__device__ __forceinline__ uint32_t scale_word(const uint32_t (&words)[WORDS], uint32_t m, uint32_t t) {
    const uint32_t mine = words[F::SCALES * m / 4];
    return F::SCALES == 4 ? mine : __shfl_sync(kAll, mine, (int)((threadIdx.x & 28u) + F::SCALES * m % 4 + F::word_of(t)));
}

// Eight values of x, in f16's range, as they lie in shared memory: first parts and what each part leaves.
template <class F>
__device__ __forceinline__ void split_piece(const float (&y)[8], uint4 (&parts)[F::PARTS]) {
    uint32_t words[4][F::PARTS];
#pragma unroll
    for (uint32_t k = 0; k < 4; k++) {
        const float b = y[F::PLACES >> 8 * k & 7u], c = y[F::PLACES >> (8 * k + 4) & 7u];
        if constexpr (F::HALF) {
            words[k][0] = f16_words(b, c);
            const float2 h = f16_pair(words[k][0]);
            words[k][1] = f16_words(b - h.x, c - h.y);
        } else {
            split_pair<F::PARTS>(b, c, words[k]);
        }
    }
#pragma unroll
    for (uint32_t p = 0; p < F::PARTS; p++) parts[p] = make_uint4(words[0][p], words[1][p], words[2][p], words[3][p]);
}

// Multiplies pieces of x by a norm's weights; piece n is at values `at(n)`, none where that has no place.
template <uint32_t ITEMS, class At>
__device__ __forceinline__ void norm_pieces(const WeightRef& norm, float4 (&v)[ITEMS][2], const At& at) {
    const auto multiply = [](float4& y, float4 w) { y = make_float4(y.x * w.x, y.y * w.y, y.z * w.z, y.w * w.w); };
#pragma unroll
    for (uint32_t n = 0; n < ITEMS; n++) {
        const uint32_t from = at(n);
        if (from == 0xffffffffu) break;
        if (norm.format == kF32) {
            const float4* w = (const float4*)norm.data + from / 4;
            multiply(v[n][0], w[0]);
            multiply(v[n][1], w[1]);
        } else {
            const uint4 w = ((const uint4*)norm.data)[from / 8];
            const bool half = norm.format == kF16;
            const uint2 b = make_uint2(w.x, w.y), c = make_uint2(w.z, w.w);
            multiply(v[n][0], half ? f16_four(b) : bf16_four(b));
            multiply(v[n][1], half ? f16_four(c) : bf16_four(c));
        }
    }
}

__device__ __forceinline__ void clear(float (&c)[2][4]) {
#pragma unroll
    for (uint32_t i = 0; i < 8; i++) c[i / 4][i % 4] = 0.0f;
}

// What a lane's accumulators hold of its row r.
__device__ __forceinline__ float row_sum(const float (&c)[2][4], uint32_t r) {
    return (c[0][2 * r] + c[0][2 * r + 1]) + (c[1][2 * r] + c[1][2 * r + 1]);
}

// What a block computes: outputs `first` to `first + units - 1` of a matrix (of both where GLU).
struct MmaBlock {
    DevExpert matrix[2];
    uint32_t segment, first, units, group;
};

// Blocks go from matrix to matrix, so that none has rows of two. Block b of the launch.
template <bool GLU>
__device__ __forceinline__ MmaBlock mma_block(const GemvArgs& a, uint32_t b) {
    uint32_t s = 0, group = 0;
    if (a.group_rows != 0) {
        group = b / a.segments[0].blocks;
        b -= group * a.segments[0].blocks;
    } else if (!GLU) {
#pragma unroll 1
        while (s + 1 < a.n_segments && b >= a.segments[s].blocks) b -= a.segments[s++].blocks;
    }
    const Segment& of = a.segments[s];
    MmaBlock block;
    block.matrix[0] = {of.data, of.scales};
    block.matrix[1] = GLU ? DevExpert{a.segments[1].data, a.segments[1].scales} : block.matrix[0];
    block.segment = s;
    block.first = group * a.group_rows + of.each * b + min(b, of.more);
    block.units = of.each + (b < of.more ? 1 : 0);
    block.group = group;
    return block;
}

// `split` warps share out the steps of a tile (16 rows, or 8 of each matrix where GLU), M at a time: a round. What a warp
// multiplies in its next round is asked for as soon as its place is free. A pass is what of x lies in shared memory at once,
// ITEMS pieces of 8 values per thread. One loop does it all, so that every piece of code stands once: kernels of one token
// wait for their instructions as much as for their weights.
template <class F, uint32_t M, uint32_t ITEMS, bool GLU>
__device__ __forceinline__ void gemv_mma(const GemvArgs& a, uint32_t number = blockIdx.x) {
    DYNAMIC_SHARED(memory);
    __shared__ float squares[16];
    __shared__ uint32_t tops[16];
    constexpr uint32_t LEN = F::LEN, PIECES = LEN / 8, STEP = 4 * LEN, UNITS = GLU ? 8 : 16;
    constexpr uint32_t PIECE = 64 * F::PARTS, ZEROS = PIECE * PIECES * M;  // bytes
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t split = 1u << a.split_shift, teams = (blockDim.x / 32) >> a.split_shift;
    const uint32_t share = warp & (split - 1), team = warp >> a.split_shift;
    uint8_t* const parts = memory + ZEROS;
    float* const chunk_sums = (float*)(parts + 2 * F::PARTS * (size_t)a.tile);
    float* const partial = chunk_sums + (F::SUMS ? a.tile / LEN : 0);  // [rows of the block][split]

    MmaBlock block = mma_block<GLU>(a, number);
    const uint32_t tiles = (block.units + UNITS - 1) / UNITS;
    // Steps of a pass; this warp's are those from `begin` on, `each` of them but at the end.
    const uint32_t most = a.tile / STEP, each = (most + split - 1) >> a.split_shift, begin = share * each;
    MmaRows<F, M> w = {};
    uint32_t token = blockIdx.y, slot = 0;
    const float4* x = nullptr;
    float bias = 0.0f, residual = 0.0f, square = 0.0f, down = 1.0f, sums[2] = {};
    for (uint32_t i = threadIdx.x; i < ZEROS / 16; i += blockDim.x) ((uint4*)memory)[i] = make_uint4(0, 0, 0, 0);

    // What is asked for next; what has been, and is multiplied now: `mine` steps.
    uint32_t pass = 0, tile = team, round = 0;
    uint32_t now_pass = 0, now_tile = 0, now_round = 0, mine = 0;
    const bool routed = a.experts != nullptr, late = routed && a.settled == 0;
    if (routed) {
        slot = blockIdx.y % a.slots;
        token = blockIdx.y / a.slots;
    }
    const bool beside = slot == a.k;
    if (late) await_predecessor(a.hold != 0);
    if (token >= step_rows(*a.step, a.tokens)) return;
    if (beside) {
        block.segment = 1;
        block.matrix[0] = block.matrix[1] = {a.segments[1].data, a.segments[1].scales};
    } else if (routed) {
        const uint32_t e = (uint32_t)a.chosen[token * a.k + slot];
        block.matrix[0] = block.matrix[1] = a.experts[e];
        if (GLU) block.matrix[1] = a.partners[e];
    }
    for (uint32_t n = 0;; n++) {
        if (n == 1) {
            if (!late) await_predecessor(a.hold != 0);
            x = (const float4*)(a.x + (size_t)token * a.x_stride + (size_t)block.group * a.w.cols +
                                (a.per_slot != 0 ? (size_t)slot * a.w.cols : 0));
            if (beside) {
                x = (const float4*)(a.beside + (size_t)token * a.w.cols);
                slot = 0;
            }
            if (!GLU && threadIdx.x < block.units) {
                const Segment& s = a.segments[block.segment];
                const uint32_t row = block.first + threadIdx.x;
                if (s.bias.data != nullptr) bias = vector_at(s.bias, row);
                if (a.residual != nullptr && block.segment == 0) {
                    residual = a.residual[(size_t)token * s.out_stride + (size_t)slot * a.rows + row];
                }
            }
        }
        if (n != 0 && now_round == 0 && now_tile == team) {
            if (now_pass == a.passes) break;
            const uint32_t base = now_pass * a.tile, pieces = min(a.tile, a.w.cols - base) / 8;
            if (now_pass != 0) __syncthreads();
            // Piece q of the pass: those of the four chunks of a step are neighbours.
            const auto from = [&](uint32_t i) {
                const uint32_t q = threadIdx.x + i * blockDim.x;
                return q < pieces ? base + q / (4 * PIECES) * STEP + q % 4 * LEN + q / 4 % PIECES * 8 : 0xffffffffu;
            };
            float4 v[ITEMS][2];
#pragma unroll
            for (uint32_t i = 0; i < ITEMS; i++) {
                v[i][0] = v[i][1] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                const uint32_t at = from(i);
                if (at != 0xffffffffu) {
                    v[i][0] = x[at / 4];
                    v[i][1] = x[at / 4 + 1];
                }
            }
            if (a.normed != 0) {
#pragma unroll
                for (uint32_t i = 0; i < 2 * ITEMS; i++) {
                    const float4 y = v[i / 2][i % 2];
                    square += y.x * y.x + y.y * y.y + y.z * y.z + y.w * y.w;
                }
                if (a.norm.data != nullptr) norm_pieces(a.norm, v, from);
            }
            // A power of two that brings x into f16's range, and its inverse.
            float up = 1.0f;
            if constexpr (F::HALF) {
                uint32_t top = 0;
#pragma unroll
                for (uint32_t i = 0; i < 2 * ITEMS; i++) {
                    const float4 y = v[i / 2][i % 2];
                    top = max(top, max(max(magnitude(y.x), magnitude(y.y)), max(magnitude(y.z), magnitude(y.w))));
                }
                top = warp_top(top);
                if (lane == 0) tops[warp] = top;
                __syncthreads();
                top = warp_top(lane < blockDim.x / 32 ? tops[lane] : 0);
                // 2^e so that the largest lies in [2^14, 2^15), and 2^-e.
                const uint32_t exponent = max(top >> 23, 15u);
                up = __uint_as_float((268u - exponent) << 23);
                down = __uint_as_float((exponent - 14u) << 23);
            }
#pragma unroll
            for (uint32_t i = 0; i < ITEMS; i++) {
                const uint32_t q = threadIdx.x + i * blockDim.x;
                const float y[8] = {v[i][0].x * up, v[i][0].y * up, v[i][0].z * up, v[i][0].w * up,
                                    v[i][1].x * up, v[i][1].y * up, v[i][1].z * up, v[i][1].w * up};
                if (F::SUMS) {
                    float sum = ((y[0] + y[1]) + (y[2] + y[3])) + ((y[4] + y[5]) + (y[6] + y[7]));
#pragma unroll
                    for (uint32_t m = 4; m < 4 * PIECES; m <<= 1) sum += __shfl_xor_sync(kAll, sum, (int)m);
                    if (q < pieces && q / 4 % PIECES == 0) chunk_sums[q / (4 * PIECES) * 4 + q % 4] = sum;
                }
                if (q < pieces) {
                    uint4 piece[F::PARTS];
                    split_piece<F>(y, piece);
#pragma unroll
                    for (uint32_t p = 0; p < F::PARTS; p++) ((uint4*)parts)[piece_place<F>(q / 4, q % 4, p)] = piece[p];
                }
            }
            __syncthreads();
        }

        // Whether there is more to ask for, and how many steps of it.
        uint32_t count = 0;
        const uint32_t first = begin + round * M;
        if (pass < a.passes && tile < tiles) {
            const uint32_t end = min(begin + each, min(most, a.w.cols / STEP - pass * most));
            count = min(M, end - min(end, first));
        }
        uint32_t words[2][MmaRows<F, M>::WORDS], factors[2][MmaRows<F, M>::FACTORS];
        w.take_scales(words, factors);
        if (count != 0) {
#pragma unroll
            for (uint32_t r = 0; r < 2; r++) {
                // Beyond the last row the last one again, so that what is read is there.
                const uint32_t row = block.first + min(tile * UNITS + (GLU ? 0 : 8 * r) + g, block.units - 1);
                w.data[r] = block.matrix[r].data + (size_t)row * a.w.row_bytes;
                w.scales[r] = block.matrix[r].scales;
                if (w.scales[r] != nullptr) w.scales[r] += (size_t)(row >> a.row_shift) * a.scale_pitch;
            }
            w.ask_scales(a, pass * most + first, count, t, true);
        }
        // Lanes whose column of x is another lane's of the quad, or nobody's, read zeros.
        const bool own = F::APART ? g / 2 == t : g < F::PARTS;
        const uint8_t* const zeros = memory + 16 * ((g / 2 + 1) % 4);  // in no bank that is read beside them
        const uint8_t* const place =
            parts + PIECE * PIECES * (begin + now_round * M) + 16 * piece_place<F>(0, t, F::APART ? g % 2 : g);
        // From a part of x to the other one. Shared memory may begin anywhere: a kernel with more beside has more of its own.
        const int32_t other = g % 2 == 0 ? 64 : -64;
        const bool scaled = F::APART && block.matrix[0].scales != nullptr;
        const auto ask = [&](uint32_t m) { w.ask(m, pass * most + first + min(m, count - 1), t, count != 0); };
        if (n == 0) {
#pragma unroll
            for (uint32_t m = 0; m < M; m++) ask(m);
        } else {
            float c[2][4];
#pragma unroll
            for (uint32_t m = 0; m < M; m++) {
                // Steps that are not this warp's read zeros of x, and weights that they have had: without branches, several
                // steps are under way at once.
                const bool real = own && m < mine;
                const uint8_t* const even = real ? place : zeros;
                const uint8_t* const odd = even + (F::APART && real ? other : 0);
                // Sums of tensor cores are cut off, not rounded: no long ones.
                if (F::APART || m == 0) clear(c);
#pragma unroll
                for (uint32_t i = 0; i < PIECES; i++) {
                    const uint4 b = *(const uint4*)((i % 2 == 0 ? even : odd) + PIECE * (PIECES * m + i));
                    uint32_t high[4], low[4];
                    F::halves(w.raw[m][0], i, high);
                    F::halves(w.raw[m][1], i, low);
                    const uint32_t a0[4] = {high[0], low[0], high[1], low[1]}, b0[2] = {b.x, b.y};
                    const uint32_t a1[4] = {high[2], low[2], high[3], low[3]}, b1[2] = {b.z, b.w};
                    if constexpr (F::HALF) {
                        mma_f16(c[0], a0, b0);
                        mma_f16(c[1], a1, b1);
                    } else {
                        mma(c[0], a0, b0);
                        mma(c[1], a1, b1);
                    }
                }
                if constexpr (F::APART) {
                    const float sum = F::SUMS && m < mine ? chunk_sums[4 * (begin + now_round * M + m) + t] : 0.0f;
#pragma unroll
                    for (uint32_t r = 0; r < 2; r++) {
                        const float dot = row_sum(c, r);
                        uint32_t factor = 0;
                        if constexpr (F::FACTORS) {
                            factor = __shfl_sync(kAll, factors[r][m / 4], (int)((threadIdx.x & 28u) + m % 4));
                        }
                        const float value = F::scaled(a.w, scale_word<F>(words[r], m, t), factor, t, dot, sum);
                        sums[r] += scaled ? value : dot;
                    }
                }
                ask(m);
            }
            if constexpr (!F::APART) {
                sums[0] += row_sum(c, 0);
                sums[1] += row_sum(c, 1);
            }
            if ((now_round + 1) * M >= each && now_tile < tiles) {
#pragma unroll
                for (uint32_t r = 0; r < 2; r++) {
                    sums[r] += __shfl_xor_sync(kAll, sums[r], 1);
                    sums[r] += __shfl_xor_sync(kAll, sums[r], 2);
                    const uint32_t u = now_tile * UNITS + (GLU ? 0 : 8 * r) + g;
                    if (t == 0 && u < block.units) {
                        float& to = partial[((GLU ? 2 * u + r : u) << a.split_shift) + share];
                        const float all = sums[r] * (F::NUMBER * down);
                        to = now_pass == 0 ? all : to + all;
                    }
                    sums[r] = 0.0f;
                }
            }
        }
        now_pass = pass;
        now_tile = tile;
        now_round = round;
        mine = count;
        // All warps of a block go the same number of rounds, so that they meet where x is laid out.
        if ((round + 1) * M < each) {
            round++;
        } else {
            round = 0;
            tile += teams;
            if (tile - team >= tiles) {
                tile = team;
                pass++;
            }
        }
    }
    if (a.normed != 0) {
        square = warp_sum(square);
        if (lane == 0) squares[warp] = square;
    }
    __syncthreads();
    float factor = 1.0f;
    if (a.normed != 0) {
        factor = rsqrtf(warp_sum(lane < blockDim.x / 32 ? squares[lane] : 0.0f) / (float)a.w.cols + a.eps);
    }
    const Segment& s = a.segments[block.segment];
    for (uint32_t u = threadIdx.x; u < block.units; u += blockDim.x) {
        float value[2] = {};
#pragma unroll
        for (uint32_t r = 0; r < (GLU ? 2 : 1); r++) {
            for (uint32_t i = 0; i < split; i++) value[r] += partial[((GLU ? 2 * u + r : u) << a.split_shift) + i];
            value[r] *= factor;
        }
        const uint32_t row = block.first + u;
        const size_t to = (size_t)token * s.out_stride + (size_t)slot * a.rows + row;
        if constexpr (GLU) {
            value[0] = gated(a, row, value[0], value[1], token, slot);
        } else {
            if (u != threadIdx.x) {
                bias = s.bias.data != nullptr ? vector_at(s.bias, row) : 0.0f;
                residual = a.residual != nullptr && block.segment == 0 ? a.residual[to] : 0.0f;
            }
            value[0] += bias + residual;
        }
        s.out[to] = value[0];
    }
}
