// Products for one token: x lies in registers, `split` warps share out the columns of a row and the teams of a block its
// rows, so that nothing but the rows' sums passes through shared memory. A block has neighbouring rows and reads their
// weights as one stream; the next rows are always on their way while one is multiplied, the first before the launch's
// predecessor has ended.
#pragma once

#include "gemv.cuh"

// Where the weights of a row lie.
struct RowPlace {
    const uint8_t *data, *scales;
};

// Row `unit` of the launch (of both matrices where `glu`), half `half` of it.
__device__ __forceinline__ uint32_t segment_of(const GemvArgs& a, uint32_t unit, uint32_t* row) {
    uint32_t s = 0;
#pragma unroll 1
    while (s + 1 < a.n_segments && unit >= a.segments[s].rows) unit -= a.segments[s++].rows;
    *row = unit;
    return s;
}

template <class F>
__device__ __forceinline__ RowPlace row_place(const GemvArgs& a, uint32_t unit, uint32_t half, const DevExpert& one,
                                              const DevExpert& other) {
    uint32_t row = unit, s = half;
    if (a.glu == 0) s = segment_of(a, unit, &row);
    const uint8_t *base = a.segments[s].data, *scale = a.segments[s].scales;
    if (a.experts != nullptr) {
        base = s == 0 ? one.data : other.data;
        scale = s == 0 ? one.scales : other.scales;
    }
    if (scale != nullptr) scale = F::row_scales(a.w, scale, row);
    return {base + (size_t)row * a.w.row_bytes, scale};
}

// Output of unit `unit`, from the sums of its row (of both rows where `glu`).
template <bool BESIDE>
__device__ __forceinline__ void store_unit(const GemvArgs& a, uint32_t unit, uint32_t token, uint32_t slot, float first,
                                           float second, float bias, float residual) {
    if (a.glu != 0) {
        a.segments[0].out[(size_t)token * a.segments[0].out_stride + (size_t)slot * a.rows + unit] =
            gated(a, unit, first, second, token, slot);
        return;
    }
    if (BESIDE && slot == a.k) {
        a.segments[1].out[(size_t)token * a.segments[1].out_stride + unit] = first;
        return;
    }
    uint32_t row;
    const Segment& s = a.segments[segment_of(a, unit, &row)];
    s.out[(size_t)token * s.out_stride + (size_t)slot * a.rows + row] = first + bias + residual;
}

// Bias and residual of unit `unit`, 0 where there are none (with `glu`, `store_unit` sees to it).
__device__ __forceinline__ void unit_addends(const GemvArgs& a, uint32_t unit, uint32_t token, uint32_t slot,
                                             float* bias, float* residual) {
    *bias = *residual = 0.0f;
    if (a.glu != 0 || slot == a.k) return;
    uint32_t row;
    const uint32_t s = segment_of(a, unit, &row);
    if (a.segments[s].bias.data != nullptr) *bias = vector_at(a.segments[s].bias, row);
    if (a.residual != nullptr && s == 0) {
        *residual = a.residual[(size_t)token * a.segments[0].out_stride + (size_t)slot * a.rows + row];
    }
}

// Whose row of x this block multiplies: found anew where it is needed, since registers are few in between.
struct GemvSlot {
    uint32_t token, slot;  // slot k: the one beside the experts'
};

__device__ __forceinline__ GemvSlot gemv_slot(const GemvArgs& a) {
    uint32_t y = blockIdx.y;
#ifndef MODEL1_EMULATE
    asm volatile("" : "+r"(y));
#endif
    return {y / a.slots, y % a.slots};
}

// The units of a block: neighbours, of one group.
struct GemvBlock {
    uint32_t first, units, group;
};

__device__ __forceinline__ GemvBlock gemv_block(const GemvArgs& a, uint32_t number) {
    const uint32_t units = a.group_rows != 0 ? a.group_rows : a.rows, groups = a.rows / units;
    const uint32_t blocks = a.blocks / groups, group = number / blocks, b = number % blocks;
    const uint32_t each = units / blocks, more = units % blocks;
    return {group * units + each * b + min(b, more), each + (b < more ? 1 : 0), group};
}

// Adds up the shares of every row and gives the units their outputs. `bias` and `residual` are those of unit threadIdx.x of
// the block.
template <bool BESIDE>
__device__ __forceinline__ void store_units(const GemvArgs& a, const GemvBlock& block, uint32_t token, uint32_t slot,
                                            const float* partial, float factor, float bias, float residual) {
    const uint32_t split = a.split, per = a.glu != 0 ? 2 : 1;
    for (uint32_t u = threadIdx.x; u < block.units; u += blockDim.x) {
        float first = 0.0f, second = 0.0f;
        for (uint32_t s = 0; s < split; s++) {
            first += partial[u * per * split + s];
            if (per == 2) second += partial[(u * 2 + 1) * split + s];
        }
        if (u != threadIdx.x) unit_addends(a, block.first + u, token, slot, &bias, &residual);
        store_unit<BESIDE>(a, block.first + u, token, slot, first * factor, second * factor, bias, residual);
    }
}

// A lane's chunks of a row: every 32 * split-th from `c0` on.
template <class F, uint32_t XI>
struct RowLoad {
    uint32_t raw[XI][F::WORDS];
    uint32_t scale[XI][F::SCALE_WORDS];

    // Nothing where not `there`.
    __device__ __forceinline__ void load(const GemvArgs& a, const RowPlace& p, bool there, uint32_t c0, uint32_t step,
                                         uint32_t chunks) {
#pragma unroll
        for (uint32_t i = 0; i < XI; i++) {
            const uint32_t c = c0 + i * step;
            const bool mine = there && c < chunks;
            F::load_if(p.data, c, mine, raw[i]);
            if (F::SCALED && p.scales != nullptr) F::scale(a.w, p.scales, mine ? c : 0, scale[i]);
        }
    }
};

// Multiplies chunks c0, c0 + step, ... of x by a norm's weights; returns the sum of squares before. Weights are asked for
// many at a time: one after the other they would take as long as the product.
template <uint32_t XI, uint32_t PER>
__device__ __forceinline__ float norm_weights(const GemvArgs& a, float4 (&xs)[XI][PER], uint32_t c0, uint32_t step,
                                              uint32_t chunks) {
    float square = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < XI; i++) {
#pragma unroll
        for (uint32_t p = 0; p < PER; p++) {
            const float4 v = xs[i][p];
            square += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
    }
    if (a.norm.data == nullptr) return square;
    const auto multiply = [](float4& v, float4 w) { v = make_float4(v.x * w.x, v.y * w.y, v.z * w.z, v.w * w.w); };
    if (a.norm.format == kF32) {
#pragma unroll
        for (uint32_t i = 0; i < XI; i++) {
            if (c0 + i * step >= chunks) break;
            constexpr uint32_t SOME = PER < 4 ? PER : 4;
#pragma unroll
            for (uint32_t p0 = 0; p0 < PER; p0 += SOME) {
                float4 w[SOME];
#pragma unroll
                for (uint32_t p = 0; p < SOME; p++) w[p] = ((const float4*)a.norm.data)[(c0 + i * step) * PER + p0 + p];
#pragma unroll
                for (uint32_t p = 0; p < SOME; p++) multiply(xs[i][p0 + p], w[p]);
            }
        }
        return square;
    }
    const bool half = a.norm.format == kF16;
    // Registers are few where x takes 64 of them.
    constexpr uint32_t ALL = XI * PER, AT_ONCE = ALL <= 12 ? ALL : 2;
#pragma unroll
    for (uint32_t from = 0; from < ALL; from += AT_ONCE) {
        uint2 w[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            const uint32_t c = c0 + (from + j) / PER * step;
            w[j] = make_uint2(0, 0);
            if (c < chunks) w[j] = ((const uint2*)a.norm.data)[c * PER + (from + j) % PER];
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            multiply(xs[(from + j) / PER][(from + j) % PER], half ? f16_four(w[j]) : bf16_four(w[j]));
        }
    }
    return square;
}

// XI chunks of x per lane; columns beyond 32 * split * XI chunks take another pass over the rows.
template <class F, uint32_t XI, bool BESIDE = true>
__device__ __forceinline__ void gemv_one(const GemvArgs& a, uint32_t number = blockIdx.x) {
    DYNAMIC_SHARED(memory);
    __shared__ float squares[8];
    float* partial = (float*)memory;  // [rows of the block][split]
    constexpr uint32_t PER = F::LEN / 4;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, split = a.split, teams = blockDim.x / 32 / split;
    const uint32_t share = warp % split, team = warp / split, step = 32 * split, mine = share * 32 + lane;
    const uint32_t chunks = a.w.cols / F::LEN, passes = (chunks + step * XI - 1) / (step * XI);

    const GemvBlock block = gemv_block(a, number);
    const uint32_t two = a.glu != 0 ? 1 : 0, per = 1 + two, rows = block.units * per, unit0 = block.first;

    DevExpert one = {}, other = {};
    // The rows that are on their way: more of them where a row has little.
    constexpr uint32_t WORDS = XI * F::WORDS, DEPTH = WORDS <= 4 ? 4 : WORDS <= 12 && XI * F::LEN <= 32 ? 2 : 1;
    RowLoad<F, XI> ahead[DEPTH];
    const auto ask = [&](RowLoad<F, XI>& to, uint32_t v, uint32_t pass) {
        const uint32_t row = min(v, rows - 1);
        to.load(a, row_place<F>(a, unit0 + (row >> two), row & two, one, other), v < rows, mine + pass * step * XI, step, chunks);
    };
    const auto ask_first = [&](uint32_t pass) {
#pragma unroll
        for (uint32_t d = 0; d < DEPTH; d++) ask(ahead[d], team + d * teams, pass);
    };
    const bool late = a.experts != nullptr && a.settled == 0;
    if (late) await_predecessor(a.hold != 0);
    const GemvSlot at = gemv_slot(a);
    if (at.token >= step_rows(*a.step, a.tokens)) return;
    if (BESIDE && at.slot == a.k) {
        one = {a.segments[1].data, a.segments[1].scales};
    } else if (a.experts != nullptr) {
        const uint32_t e = (uint32_t)a.chosen[at.token * a.k + at.slot];
        one = a.experts[e];
        if (a.partners != nullptr) other = a.partners[e];
    }
    ask_first(0);
    if (!late) await_predecessor(a.hold != 0);
    const float4* x = (const float4*)(a.x + (size_t)at.token * a.x_stride + (size_t)block.group * a.w.cols +
                                      (a.per_slot != 0 ? (size_t)at.slot * a.w.cols : 0));
    if (BESIDE && at.slot == a.k) x = (const float4*)(a.beside + (size_t)at.token * a.w.cols);
    // Both say the same; which costs fewer registers is the compiler's secret.
    const bool scaled = F::SCALED && (XI < 3 && a.experts != nullptr ? one.scales : a.segments[0].scales) != nullptr;
    float bias = 0.0f, residual = 0.0f, square = 0.0f;
    if (threadIdx.x < block.units) unit_addends(a, unit0 + threadIdx.x, at.token, at.slot, &bias, &residual);

    for (uint32_t pass = 0; pass < passes; pass++) {
        float4 xs[XI][PER];
#pragma unroll
        for (uint32_t i = 0; i < XI; i++) {
            const uint32_t c = mine + (pass * XI + i) * step;
#pragma unroll
            for (uint32_t p = 0; p < PER; p++) {
                xs[i][p] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (c < chunks) xs[i][p] = x[c * PER + p];
            }
        }
        if (a.normed != 0) square += norm_weights(a, xs, mine + pass * XI * step, step, chunks);
        float sums[XI] = {};
        if (F::SUMS) {
#pragma unroll
            for (uint32_t i = 0; i < XI; i++) {
#pragma unroll
                for (uint32_t p = 0; p < PER; p++) sums[i] += (xs[i][p].x + xs[i][p].y) + (xs[i][p].z + xs[i][p].w);
            }
        }
        if (pass > 0) ask_first(pass);
        for (uint32_t v0 = team; v0 < rows; v0 += DEPTH * teams) {
#pragma unroll
            for (uint32_t d = 0; d < DEPTH; d++) {
                const uint32_t v = v0 + d * teams;
                if (v >= rows) break;
                const RowLoad<F, XI> now = ahead[d];
                ask(ahead[d], v + DEPTH * teams, pass);
                float sum = 0.0f;
#pragma unroll
                for (uint32_t i = 0; i < XI; i++) {
                    if (mine + (pass * XI + i) * step >= chunks) break;
                    float4 part = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
                    for (uint32_t p = 0; p < PER; p++) {
                        const float4 w = F::four(now.raw[i], p);
                        part.x += w.x * xs[i][p].x;
                        part.y += w.y * xs[i][p].y;
                        part.z += w.z * xs[i][p].z;
                        part.w += w.w * xs[i][p].w;
                    }
                    const float all = (part.x + part.y) + (part.z + part.w);
                    sum += scaled ? F::combine(a.w, now.scale[i], mine + (pass * XI + i) * step, all, sums[i]) : all * F::UNIT;
                }
                sum = warp_sum(sum);
                if (lane == 0) partial[v * split + share] = pass == 0 ? sum : partial[v * split + share] + sum;
            }
        }
    }
    if (a.normed != 0 && team == 0) {
        square = warp_sum(square);
        if (lane == 0) squares[share] = square;
    }
    __syncthreads();
    float factor = 1.0f;
    if (a.normed != 0) {
        float all = 0.0f;
        for (uint32_t s = 0; s < split; s++) all += squares[s];
        factor = rsqrtf(all / (float)a.w.cols + a.eps);
    }
    const GemvSlot to = BESIDE ? gemv_slot(a) : at;
    store_units<BESIDE>(a, block, to.token, to.slot, partial, factor, bias, residual);
}

// Kernels by chunks of x per lane. grid (blocks, a multiple of the groups; 1 or tokens * k), 256 threads, shared
// 4 * split * rows of a block.
#define GEMV_ONE(format, Chunk, chunks, blocks) \
    EARLY_KERNEL(gemv_##format##_x##chunks, GemvArgs, 256, blocks) { gemv_one<Chunk, chunks>(a); }
// The same without a slot beside the experts': no register is left for it.
#define GEMV_ALONE(format, Chunk, chunks, blocks) \
    EARLY_KERNEL(gemv_##format##_x##chunks, GemvArgs, 256, blocks) { gemv_one<Chunk, chunks, false>(a); }
