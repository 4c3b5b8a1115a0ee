// Products of a resident launch (resident.cuh): x laid out as it comes, rows from the ring, what is done with their sums.
#pragma once

#include "resident_formats.cuh"

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
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
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
