// Products of a resident launch (resident.cuh): x laid out as it comes, rows from the ring, what is done with their sums.
#pragma once

#include "resident_formats.cuh"

// Eight of a norm's weights as they lie: asked for before x is there, turned into numbers behind it. Those of f32 are read then.
struct NormPiece {
    uint4 raw;

    __device__ __forceinline__ void ask(const ResidentProduct& p, uint32_t q) {
        if (p.normed != 0 && p.norm != nullptr && p.norm_format != kF32 && 8 * q < p.cols) raw = ((const uint4*)p.norm)[q];
    }
    __device__ __forceinline__ void multiply(const ResidentProduct& p, uint32_t q, float4 (&v)[2]) const {
        if (p.norm == nullptr) return;
        const bool half = p.norm_format == kF16;
        const uint2 a = make_uint2(raw.x, raw.y), b = make_uint2(raw.z, raw.w);
        float4 w[2] = {half ? f16_four(a) : bf16_four(a), half ? f16_four(b) : bf16_four(b)};
        if (p.norm_format == kF32) {
            w[0] = ((const float4*)p.norm)[2 * q];
            w[1] = ((const float4*)p.norm)[2 * q + 1];
        }
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) v[h] = make_float4(v[h].x * w[h].x, v[h].y * w[h].y, v[h].z * w[h].z, v[h].w * w[h].w);
    }
};

// x, normalised but for the factor, as the format wants it; returns this thread's share of the sum of squares. A piece is eight
// values, a warp takes 32 of them at once (columns are a multiple of 256); `weights` are those of the norm for the thread's
// first pieces.
//
// Lanes ask for neighbouring 16 bytes, since nothing of this stays in the first-level cache, and neighbours exchange halves:
// even lanes have the first 16 pieces, odd ones the others. Some pieces come at once, the next ones are on their way while
// these are laid out: two where weights are small (Qwen q4_0: 20.0 instead of 20.5 us a layer), else three.
template <class F>
constexpr uint32_t kPieces = F::SMALL ? 2 : 3;
struct PieceOf {
    uint32_t lane;
    __device__ __forceinline__ uint32_t operator()(uint32_t base) const { return base + lane % 2 * 16 + lane / 2; }
};

template <class F>
__device__ __forceinline__ float lay_out(const ResidentProduct& p, unsigned char* to, NormPiece (&weights)[kPieces<F>], const Uses& uses) {
    const uint32_t lane = threadIdx.x & 31, cols = p.cols, pieces = cols / 8, bit = uses.bit(p.x_kind);
    const bool normed = p.normed != 0, odd = lane % 2 != 0, waits = p.x_kind >= kMarked;
    const uint4* x = (const uint4*)p.x + lane;
    const PieceOf piece = {lane};
    constexpr uint32_t N = kPieces<F>;
    uint4 raw[N][2];
    const auto ask = [&](uint32_t i, uint32_t base) {
        raw[i][0] = raw[i][1] = make_uint4(bit, bit, bit, bit);
        if (base >= pieces) return;
        raw[i][0] = load_shared(x + 2 * base);
        raw[i][1] = load_shared(x + 2 * base + 32);
    };
    float square = 0.0f;
    const uint32_t first = threadIdx.x & ~31u;
#pragma unroll
    for (uint32_t i = 0; i < N; i++) ask(i, first + i * kResidentThreads);
#pragma unroll 1
    for (uint32_t base = first; base < pieces; base += N * kResidentThreads) {
        for (;;) {
            uint32_t any = 0, all = 1;
#pragma unroll
            for (uint32_t i = 0; i < 2 * N; i++) {
                const uint4 r = raw[i / 2][i % 2];
                any |= r.x | r.y | r.z | r.w;
                all &= r.x & r.y & r.z & r.w;
            }
            const uint32_t wrong = bit != 0 ? ~all : any;
            if (!__any_sync(kAll, waits && (wrong & 1u) != 0)) break;
#pragma unroll
            for (uint32_t i = 0; i < N; i++) ask(i, base + i * kResidentThreads);
        }
#pragma unroll
        for (uint32_t i = 0; i < N; i++) {
            const uint32_t now = base + i * kResidentThreads, at = piece(now);
            if (now >= pieces) break;
            const uint4 one = raw[i][0], two = raw[i][1], give = odd ? one : two;
            const uint4 got = make_uint4(__shfl_xor_sync(kAll, give.x, 1), __shfl_xor_sync(kAll, give.y, 1), __shfl_xor_sync(kAll, give.z, 1),
                                         __shfl_xor_sync(kAll, give.w, 1));
            const uint4 low = odd ? got : one, high = odd ? two : got;
            float4 v[2] = {make_float4(cleared(low.x), cleared(low.y), cleared(low.z), cleared(low.w)),
                           make_float4(cleared(high.x), cleared(high.y), cleared(high.z), cleared(high.w))};
            ask(i, now + N * kResidentThreads);
            if (normed) {
#pragma unroll
                for (uint32_t h = 0; h < 2; h++) square += v[h].x * v[h].x + v[h].y * v[h].y + v[h].z * v[h].z + v[h].w * v[h].w;
                if (base != first) weights[i].ask(p, at);
                weights[i].multiply(p, at, v);
            }
            F::store(to, cols, at, v);
        }
    }
    return square;
}

// Where an output goes and what is added to it.
struct UnitEnd {
    float* out;
    const float* residual;
    uint32_t bias, other, format, other_format;  // as they lie
};

__device__ __forceinline__ UnitEnd unit_end(const ResidentProduct& p, uint32_t row) {
    uint32_t at = 0;
    UnitEnd e = {};
    if (p.glu == 0) {
#pragma unroll 1
        while (at + 1 < p.n_segments && row >= p.segments[at].rows) row -= p.segments[at++].rows;
    } else {
        e.other_format = p.segments[1].bias_format;
        e.other = bits_at(p.segments[1].bias, e.other_format, row);
    }
    const ResidentSegment& m = p.segments[at];
    e.out = m.out + row;
    e.bias = bits_at(m.bias, m.bias_format, row);
    e.format = m.bias_format;
    if (p.residual != nullptr && at == 0) e.residual = p.residual + row;
    return e;
}

// R: the ring, which is of the launch's format.
template <class F, class R>
__device__ __forceinline__ void resident_product(const ResidentProduct& p, R& ring, const Uses& uses, ResidentShared& s,
                                                 unsigned char* x, uint32_t number) {
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const BlockRows rows = block_rows(p);
    const uint32_t shift = p.glu != 0 ? 3 : 4, units = 1u << shift;
    static_assert(kResidentTile == 16, "shift");
    NormPiece weights[kPieces<F>] = {};
#pragma unroll
    for (uint32_t i = 0; i < kPieces<F>; i++) weights[i].ask(p, PieceOf{lane}((threadIdx.x & ~31u) + i * kResidentThreads));
    const UnitEnd mine = unit_end(p, rows.first + min(threadIdx.x, max(rows.count, 1u) - 1));
    // It is most likely there: this block has waited for it before. What is not is read again behind x, which comes after it.
    const bool marks = p.residual_kind >= kMarked;
    const uint32_t residual_bit = uses.bit(p.residual_kind);
    const auto missing = [&](uint32_t bits) { return marks && ((bits ^ residual_bit) & 1u) != 0; };
    const auto number_added = [&](uint32_t bits) { return marks ? cleared(bits) : __uint_as_float(bits); };
    uint32_t residual = mine.residual != nullptr ? load_shared_one(mine.residual) : 0;
    F product(s, x, p.cols, warp);
    product.begin();
    const unsigned char* place = nullptr;
    if (rows.tiles != 0) {
        product.load(place = ring.take());
        ring.leave();
    }
    float square = lay_out<F>(p, x, weights, uses);
    if (mine.residual != nullptr && missing(residual)) residual = load_shared_one(mine.residual);
    const float bias = number_of(mine.bias, mine.format), other_bias = number_of(mine.other, mine.other_format);
    if (p.normed != 0) {
        square = warp_sum(square);
        if (lane == 0) s.squares[warp] = square;
    }
    sync_workers();
    if (threadIdx.x == 0) *(volatile uint32_t*)&s.done = number;
    const bool normed = p.normed != 0, glu = p.glu != 0;
    const uint32_t out_kind = p.out_kind, out_bit = uses.bit(out_kind), cols = p.cols, chunk = p.chunk;
    // Without branches, so that nothing waits for anything else.
    const float4 low = ((const float4*)s.squares)[0], high = ((const float4*)s.squares)[1];
    const float root = rsqrtf(((low.x + low.y) + (low.z + low.w) + ((high.x + high.y) + (high.z + high.w))) * p.per_column + p.eps);
    const float factor = normed ? root : 1.0f;
    product.load_x(min(chunk, cols));
    bool there = ring.ready();
#pragma unroll 1
    for (uint32_t tile0 = 0; tile0 < rows.tiles; tile0 += kResidentRound) {
        const uint32_t tiles = min(kResidentRound, rows.tiles - tile0);
#pragma unroll 1
        for (uint32_t tile = 0; tile < tiles; tile++) {
            uint32_t column = 0;
#pragma unroll 1
            do {
                column += chunk;
                // Behind the last place the same one is read again, for nothing.
                const bool more = column < cols || tile0 + tile + 1 < rows.tiles;
                const uint32_t next = column < cols ? column : 0;
                if (more) place = ring.take(there);
                product.multiply(place, next, min(chunk, cols - next), chunk < cols);
                if (more) {
                    ring.leave();
                    there = ring.ready();
                }
            } while (column < cols);
            const float sum = product.end();
            product.begin();
            if (t < 2) s.partial[tile * kResidentTile + 8 * t + g][warp] = sum;
        }
        sync_workers();
        const uint32_t activation = p.activation;
        const float limit = p.limit;
#pragma unroll 1
        for (uint32_t i = threadIdx.x; i < tiles << shift; i += kResidentThreads) {
            const uint32_t unit = (tile0 << shift) + i;
            if (unit >= rows.count) break;
            const uint32_t at = (i >> shift) * kResidentTile + (i & (units - 1));
            const auto sum = [&](uint32_t row) {
                const float4 a = ((const float4*)s.partial[row])[0], b = ((const float4*)s.partial[row])[1];
                return ((a.x + a.y) + (a.z + a.w) + ((b.x + b.y) + (b.z + b.w))) * factor;
            };
            float* out = mine.out;
            float more = number_added(residual), add = bias, add_other = other_bias;
            if (unit != threadIdx.x) {
                const UnitEnd end = unit_end(p, rows.first + unit);
                out = end.out;
                more = end.residual != nullptr ? number_added(load_shared_one(end.residual)) : 0.0f;
                add = number_of(end.bias, end.format);
                add_other = number_of(end.other, end.other_format);
            }
            float value = sum(at) + add;
            if (glu) {
                const float other = sum(at + units) + add_other;
                value = fminf(value, limit);
                value = activation == kSilu ? value * sigmoid(value) : activate(activation, value);
                value *= fminf(fmaxf(other, -limit), limit);
            }
            value += more;
            store_shared(out, out_kind < kMarked ? __float_as_uint(value) : marked(value, out_bit));
        }
        if (tile0 + kResidentRound < rows.tiles) sync_workers();
    }
}
