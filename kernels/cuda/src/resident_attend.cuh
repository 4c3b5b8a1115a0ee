// Attention of a resident launch (resident.cuh): shares of the keys, and what puts them together.
#pragma once

#include "resident.cuh"

// Two neighbouring values of a row of keys or queries and their rotation: see ResidentArgs::half.
__device__ __forceinline__ void rotate_pair(float& x, float& y, float2 t) {
    const float first = x * t.y - y * t.x;
    y = x * t.x + y * t.y;
    x = first;
}

constexpr uint32_t kAttendTile = 16, kAttendHeads = 8;
constexpr float kNoScore = -1e30f;

// What an attention keeps in the scratch memory.
template <uint32_t D>
struct AttendScratch {
    uint16_t q[3][kAttendHeads][D];  // parts of the queries
    uint16_t key[D], value[D];       // the token's, as they are stored
    float tops[kResidentWarps][kAttendHeads], sums[kResidentWarps][kAttendHeads];
    // Behind it: [warps][block_heads][D] sums.
    static constexpr uint32_t BYTES = 3 * kAttendHeads * D * 2 + 4 * D + 2 * 4 * kResidentWarps * kAttendHeads;

    __device__ __forceinline__ float* pool() { return (float*)((unsigned char*)this + BYTES); }
};

// Attention of one token on tensor cores: a warp takes 16 keys at a time. mma.sync m16n8k16 multiplies 8 heads by 8 keys, two
// bf16 parts of the queries in its 16 rows, the third in a second product; then 16 values of the keys by 8 heads, for each of
// two parts of the weights. Nothing but sums passes through shared memory: lane t of quad g has chunks t, t + 4, ... of keys g
// and g + 8, and of keys 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 chunks g and g + 8 of the values (the columns of a product can be
// any). Keys that were there before are asked for before the token's queries are known; its own key and value go through
// shared memory.
template <uint32_t D>
__device__ __forceinline__ void resident_attend(const ResidentAttend& a, const Uses& uses, const ResidentShared& s,
                                                unsigned char* scratch, const ResidentArgs& args, const DevStep& step) {
    constexpr uint32_t CHUNKS = D / 32, HALVES = D / 64;
    AttendScratch<D>& room = *(AttendScratch<D>*)scratch;
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t total = (uint32_t)step.position + 1;
    const auto [shares, heads] = division(a, total);
    const uint32_t y = blockIdx.x / shares, share = blockIdx.x % shares, head0 = y * heads, group = a.parts * a.block_heads, kv = head0 / group;
    if (kv >= a.kv_heads) return;
    const uint32_t per = ((total + kAttendTile - 1) / kAttendTile + shares - 1) / shares * kAttendTile;
    const uint32_t begin = min(share * per, total), end = min(begin + per, total);
    const size_t pitch = (size_t)a.keys.records * a.keys.data_bytes, record = (size_t)kv * a.keys.data_bytes;
    const uint8_t *keys = a.keys.data + record, *values = a.values.data + record;

    // Not left undefined: they would keep their registers while other ops run.
    uint4 k[2][CHUNKS] = {}, v[4][HALVES] = {};
    // Nothing beyond the end is read; what stands there does not count.
    const auto ask_keys = [&](uint32_t base) {
        if (base >= end) return;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
            const uint8_t* row = keys + min(base + 8 * h + g, end - 1) * pitch;
#pragma unroll
            for (uint32_t i = 0; i < CHUNKS; i++) k[h][i] = ((const uint4*)row)[t + 4 * i];
        }
    };
    const auto ask_values = [&](uint32_t base) {
        if (base >= end) return;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const uint8_t* row = values + min(base + 2 * t + i % 2 + i / 2 * 8, end - 1) * pitch;
#pragma unroll
            for (uint32_t h = 0; h < HALVES; h++) v[i][h] = ((const uint4*)row)[g + 8 * h];
        }
    };
    ask_keys(begin + kAttendTile * warp);
    ask_values(begin + kAttendTile * warp);

    // Queries, rotated, in units of log2, in three parts: a thread has a pair, and another one, and, where the token's own key is
    // needed, a pair of that or a value. All are waited for at once.
    constexpr uint32_t PAIRS = D / 2, SOME = kAttendHeads * PAIRS / kResidentThreads;
    const uint32_t bit = uses.bit(a.kind), pair = threadIdx.x % PAIRS;
    const bool own = end == total, turns = own && threadIdx.x / PAIRS == 1, takes = own && threadIdx.x / D == 1;
    const uint2 at = make_uint2(args.half != 0 ? pair : 2 * pair, args.half != 0 ? pair + PAIRS : 2 * pair + 1);
    const float2 turn = s.turns[pair];
    const float *from[SOME + 1], *other = a.value + (size_t)kv * D + threadIdx.x % D;
    bool there[SOME + 1];
#pragma unroll
    for (uint32_t i = 0; i < SOME; i++) {
        const uint32_t head = (threadIdx.x + i * kResidentThreads) / PAIRS;
        from[i] = a.q + (size_t)(head0 + head) * D;
        there[i] = head < heads;
    }
    from[SOME] = a.key + (size_t)kv * D;
    there[SOME] = turns;
    uint32_t raw[SOME + 2][2], wrong;
    do {
        wrong = 0;
#pragma unroll
        for (uint32_t i = 0; i <= SOME; i++) {
            raw[i][0] = there[i] ? load_shared_one(from[i] + at.x) : bit;
            raw[i][1] = there[i] ? load_shared_one(from[i] + at.y) : bit;
        }
        raw[SOME + 1][0] = takes ? load_shared_one(other) : bit;
#pragma unroll
        for (uint32_t i = 0; i <= SOME; i++) wrong |= (raw[i][0] ^ bit) | (raw[i][1] ^ bit);
        wrong |= raw[SOME + 1][0] ^ bit;
    } while ((wrong & 1u) != 0);
    const float unit = a.scale * 1.4426950408889634f;
#pragma unroll
    for (uint32_t i = 0; i < SOME; i++) {
        if (!there[i]) break;
        float x = cleared(raw[i][0]), y = cleared(raw[i][1]);
        rotate_pair(x, y, turn);
        uint32_t words[3];
        split_pair<3>(x * unit, y * unit, words);
        const uint32_t head = (threadIdx.x + i * kResidentThreads) / PAIRS;
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            room.q[p][head][at.x] = (uint16_t)words[p];
            room.q[p][head][at.y] = (uint16_t)(words[p] >> 16);
        }
    }
    const bool stores = head0 % group == 0;
    const size_t row = (size_t)(total - 1) * pitch + record;
    if (turns) {
        float x = cleared(raw[SOME][0]), y = cleared(raw[SOME][1]);
        rotate_pair(x, y, turn);
        const uint32_t words = bf16_pair(x, y);
        room.key[at.x] = (uint16_t)words;
        room.key[at.y] = (uint16_t)(words >> 16);
        if (stores) {
            ((uint16_t*)(a.keys.data + row))[at.x] = (uint16_t)words;
            ((uint16_t*)(a.keys.data + row))[at.y] = (uint16_t)(words >> 16);
        }
    } else if (takes) {
        const uint16_t word = (uint16_t)bf16_pair(cleared(raw[SOME + 1][0]), 0.0f);
        room.value[threadIdx.x % D] = word;
        if (stores) ((uint16_t*)(a.values.data + row))[threadIdx.x % D] = word;
    }
    sync_workers();
    uint32_t parts[CHUNKS][3][4];
#pragma unroll
    for (uint32_t i = 0; i < CHUNKS; i++) {
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (g < heads) v = ((const uint4*)room.q[p][g])[t + 4 * i];
            parts[i][p][0] = v.x;
            parts[i][p][1] = v.y;
            parts[i][p][2] = v.z;
            parts[i][p][3] = v.w;
        }
    }

    float acc[D / 16][4] = {}, top = kNoScore, sum = 0.0f;
#pragma unroll 1
    for (uint32_t base = begin + kAttendTile * warp; base < end; base += kAttendTile * kResidentWarps) {
        const bool tail = base + kAttendTile >= total;
        // Third parts have sums of their own, so that products need not wait for each other.
        float z[2][4] = {}, small[2][4] = {};
        if (tail) {
#pragma unroll
            for (uint32_t i = 0; i < 2 * CHUNKS; i++) {
                const uint32_t h = i / CHUNKS;
                if (base + 8 * h + g >= total - 1) k[h][i % CHUNKS] = ((const uint4*)room.key)[t + 4 * (i % CHUNKS)];
            }
        }
#pragma unroll
        for (uint32_t i = 0; i < CHUNKS; i++) {
#pragma unroll
            for (uint32_t j = 0; j < 4; j += 2) {
#pragma unroll
                for (uint32_t h = 0; h < 2; h++) {
                    const uint32_t words[4] = {k[h][i].x, k[h][i].y, k[h][i].z, k[h][i].w};
                    const uint32_t(&q)[3][4] = parts[i];
                    const uint32_t b[2] = {words[j], words[j + 1]};
                    const uint32_t two[4] = {q[0][j], q[1][j], q[0][j + 1], q[1][j + 1]}, third[4] = {q[2][j], 0, q[2][j + 1], 0};
                    mma(small[h], third, b);
                    mma(z[h], two, b);
                }
            }
        }
        ask_keys(base + kAttendTile * kResidentWarps);
        float p[2][2], best = top;
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) {
                p[h][e] = z[h][e] + (z[h][2 + e] + small[h][e]);
                if (tail && base + 8 * h + 2 * t + e >= total) p[h][e] = -INFINITY;
                best = fmaxf(best, p[h][e]);
            }
        }
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 1));
        best = fmaxf(best, __shfl_xor_sync(kAll, best, 2));
        const float keep = power_of_two(top - best);
        top = best;
        sum *= keep;
        uint32_t words[2][2];
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) sum += p[h][e] = power_of_two(p[h][e] - best);
            split_pair<2>(p[h][0], p[h][1], words[h]);
        }
        if (__any_sync(kAll, keep != 1.0f)) {
            const float keeps[2] = {__shfl_sync(kAll, keep, 8 * t), __shfl_sync(kAll, keep, 8 * t + 4)};
#pragma unroll
            for (uint32_t i = 0; i < D / 4; i++) acc[i / 4][i % 4] *= keeps[i % 2];
        }
        if (tail) {
#pragma unroll
            for (uint32_t i = 0; i < 4 * HALVES; i++) {
                const uint32_t n = i / HALVES, h = i % HALVES;
                if (base + 2 * t + n % 2 + n / 2 * 8 >= total - 1) v[n][h] = ((const uint4*)room.value)[g + 8 * h];
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < D / 16; j++) {
            uint32_t b[4];
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) {
                const uint32_t h = HALVES == 2 ? e : 0, n = HALVES == 2 ? j : 2 * j + e, from = n % 2 == 0 ? 0x5410 : 0x7632;
                uint32_t word[4];
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) word[i] = n / 2 == 0 ? v[i][h].x : n / 2 == 1 ? v[i][h].y : n / 2 == 2 ? v[i][h].z : v[i][h].w;
                b[e] = __byte_perm(word[0], word[1], from);
                b[2 + e] = __byte_perm(word[2], word[3], from);
            }
            const uint32_t one[2] = {words[0][0], words[1][0]}, two[2] = {words[0][1], words[1][1]};
            mma(acc[j], b, two);
            mma(acc[j], b, one);
        }
        ask_values(base + kAttendTile * kResidentWarps);
    }
    sum += __shfl_xor_sync(kAll, sum, 1);
    sum += __shfl_xor_sync(kAll, sum, 2);
    if (g < heads && t == 0) {
        room.tops[warp][g] = top;
        room.sums[warp][g] = sum;
    }
#pragma unroll
    for (uint32_t e = 0; e < 2; e++) {
        if (2 * t + e >= heads) break;
        // Value i of chunk g + 8 h.
        const auto value = [&](uint32_t h, uint32_t i) { return HALVES == 2 ? acc[i][2 * h + e] : acc[i / 2][i % 2 * 2 + e]; };
#pragma unroll
        for (uint32_t h = 0; h < HALVES; h++) {
            float4* to = (float4*)(room.pool() + (warp * heads + 2 * t + e) * D + 8 * (g + 8 * h));
#pragma unroll
            for (uint32_t i = 0; i < 8; i += 4) to[i / 4] = make_float4(value(h, i), value(h, i + 1), value(h, i + 2), value(h, i + 3));
        }
    }
    sync_workers();
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < heads * (D / 4); n += kResidentThreads) {
        const uint32_t head = n / (D / 4), c = n % (D / 4);
        float best = kNoScore, all = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < kResidentWarps; w++) best = fmaxf(best, room.tops[w][head]);
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (uint32_t w = 0; w < kResidentWarps; w++) {
            const float f = power_of_two(room.tops[w][head] - best);
            const float4 part = ((const float4*)(room.pool() + (w * heads + head) * D))[c];
            all += room.sums[w][head] * f;
            x.x += part.x * f;
            x.y += part.y * f;
            x.z += part.z * f;
            x.w += part.w * f;
        }
        if (shares == 1) {
            const float one = 1.0f / all;
            const uint32_t out_bit = uses.bit(a.out_kind);
            const uint4 words = make_uint4(marked(x.x * one, out_bit), marked(x.y * one, out_bit), marked(x.z * one, out_bit), marked(x.w * one, out_bit));
            store_shared(a.out + (size_t)(head0 + head) * D + 4 * c, words);
            continue;
        }
        uint2* to = a.partial + ((size_t)(head0 + head) * a.shares + share) * (D + 4);
        store_numbered(to + 4 * c, x.x, x.y, uses.number);
        store_numbered(to + 4 * c + 2, x.z, x.w, uses.number);
        if (c == 0) store_numbered(to + D, best, all, uses.number);
    }
    // What comes next takes the room.
    sync_workers();
}

// Puts an attention's shares together: a block has 32 columns of a head, a warp every eighth share.
template <uint32_t D>
__device__ __forceinline__ void resident_combine(const ResidentAttend& a, const Uses& uses, unsigned char* scratch, uint32_t shares) {
    constexpr uint32_t PER = D / 32, SOME = 9;
    if (shares == 1) return;
    float(&pool)[kResidentWarps][32] = *(float(*)[kResidentWarps][32])scratch;
    float2(&ends)[kResidentWarps] = *(float2(*)[kResidentWarps])(scratch + sizeof(pool));
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31;
#pragma unroll 1
    for (uint32_t n = blockIdx.x; n < a.heads * PER; n += gridDim.x) {
        const uint2* from = a.partial + (size_t)(n / PER) * a.shares * (D + 4);
        float best = kNoScore, mass = 0.0f, sum = 0.0f;
#pragma unroll 1
        for (uint32_t i0 = warp; i0 < shares; i0 += kResidentWarps * SOME) {
            // All at once: one way to memory and back.
            uint2 v[SOME];
            uint4 ends[SOME];
            bool ready;
            do {
                ready = true;
#pragma unroll
                for (uint32_t i = 0; i < SOME; i++) {
                    const uint32_t at = i0 + i * kResidentWarps;
                    const uint2* share = from + (size_t)at * (D + 4);
                    v[i] = make_uint2(0, uses.number);
                    ends[i] = make_uint4(__float_as_uint(kNoScore), uses.number, 0, uses.number);
                    if (at >= shares) continue;
                    v[i] = load_shared_two(share + n % PER * 32 + lane);
                    ends[i] = load_shared(share + D);
                }
#pragma unroll
                for (uint32_t i = 0; i < SOME; i++) ready = ready && v[i].y == uses.number && ends[i].y == uses.number && ends[i].w == uses.number;
            } while (!ready);
            float now = best;
#pragma unroll
            for (uint32_t i = 0; i < SOME; i++) now = fmaxf(now, __uint_as_float(ends[i].x));
            const float keep = power_of_two(best - now);
            best = now;
            mass *= keep;
            sum *= keep;
#pragma unroll
            for (uint32_t i = 0; i < SOME; i++) {
                const float f = power_of_two(__uint_as_float(ends[i].x) - best);
                mass += f * __uint_as_float(ends[i].z);
                sum += f * __uint_as_float(v[i].x);
            }
        }
        pool[warp][lane] = sum;
        if (lane == 0) ends[warp] = make_float2(best, mass);
        sync_workers();
        if (warp == 0) {
            best = kNoScore;
#pragma unroll
            for (uint32_t w = 0; w < kResidentWarps; w++) best = fmaxf(best, ends[w].x);
            sum = mass = 0.0f;
#pragma unroll
            for (uint32_t w = 0; w < kResidentWarps; w++) {
                const float f = power_of_two(ends[w].x - best);
                sum += f * pool[w][lane];
                mass += f * ends[w].y;
            }
            store_shared(a.out + (size_t)(n / PER) * D + n % PER * 32 + lane, marked(sum / mass, uses.bit(a.out_kind)));
        }
        sync_workers();
    }
}
