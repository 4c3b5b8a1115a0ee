// Attention of a resident launch (resident.cuh): shares of the keys, and what puts them together.
#pragma once

#include "resident.cuh"

// Shares of the keys for a token that sees `keys`, each of some tiles of 16.
__device__ __forceinline__ uint32_t shares_now(uint32_t keys, uint32_t most) { return min((keys + 63) / 64, most); }

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

// Attention of one token on tensor cores: a warp takes 16 keys at a time; mma.sync m16n8k16 multiplies 8 heads by 8 keys, two
// bf16 parts of the queries in its 16 rows, the third in a second product; likewise two parts of weights, and values. Nothing but sums
// passes through shared memory: lane t of quad g has chunks t, t + 4, ... of keys g and g + 8, and of keys 2 t, 2 t + 1, 2 t + 8
// and 2 t + 9 chunks g and g + 8 of the values (the columns of a product can be any). Keys that were there before are asked for
// before the token's queries are known; its own key and value go through shared memory.
template <uint32_t D>
__device__ __forceinline__ void resident_attend(const ResidentAttend& a, const Uses& uses, const ResidentShared& s,
                                                unsigned char* scratch, const ResidentArgs& args, const DevStep& step) {
    constexpr uint32_t CHUNKS = D / 32, HALVES = D / 64;
    AttendScratch<D>& room = *(AttendScratch<D>*)scratch;
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31, g = lane / 4, t = lane % 4;
    const uint32_t total = (uint32_t)step.position + 1, shares = shares_now(total, a.shares);
    const uint32_t y = blockIdx.x / shares, share = blockIdx.x % shares, kv = y / a.parts, head0 = y * a.block_heads;
    if (kv >= a.kv_heads) return;
    const uint32_t per = ((total + kAttendTile - 1) / kAttendTile + shares - 1) / shares * kAttendTile;
    const uint32_t begin = min(share * per, total), end = min(begin + per, total);
    const size_t pitch = (size_t)a.keys.records * a.keys.data_bytes, record = (size_t)kv * a.keys.data_bytes;
    const uint8_t *keys = a.keys.data + record, *values = a.values.data + record;

    uint4 k[2][CHUNKS], v[4][HALVES];
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

    // Queries, rotated, in units of log2, in three parts: a thread has a pair, and another one.
    constexpr uint32_t PAIRS = D / 2, SOME = kAttendHeads * PAIRS / kResidentThreads;
    const uint32_t bit = uses.bit(a.kind);
    const auto places = [&](uint32_t pair) { return make_uint2(args.half != 0 ? pair : 2 * pair, args.half != 0 ? pair + PAIRS : 2 * pair + 1); };
    float2 q[SOME] = {};
#pragma unroll
    for (uint32_t i = 0; i < SOME; i++) {
        const uint32_t n = threadIdx.x + i * kResidentThreads, head = n / PAIRS;
        if (head >= a.block_heads) break;
        const uint2 at = places(n % PAIRS);
        const float* from = a.q + (size_t)(head0 + head) * D;
        uint32_t x, y;
        do {
            x = load_shared_one(from + at.x);
            y = load_shared_one(from + at.y);
        } while (((x ^ bit) | (y ^ bit)) & 1u);
        q[i] = make_float2(cleared(x), cleared(y));
    }
    const float unit = a.scale * 1.4426950408889634f;
#pragma unroll
    for (uint32_t i = 0; i < SOME; i++) {
        const uint32_t n = threadIdx.x + i * kResidentThreads, head = n / PAIRS;
        if (head >= a.block_heads) break;
        const uint2 at = places(n % PAIRS);
        rotate_pair(q[i].x, q[i].y, s.turns[n % PAIRS]);
        uint32_t words[3];
        split_pair<3>(q[i].x * unit, q[i].y * unit, words);
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            room.q[p][head][at.x] = (uint16_t)words[p];
            room.q[p][head][at.y] = (uint16_t)(words[p] >> 16);
        }
    }
    if (end == total && threadIdx.x < PAIRS + D) {
        const bool stores = y % a.parts == 0;
        const size_t at = (size_t)(total - 1) * pitch + record;
        if (threadIdx.x < PAIRS) {
            const uint2 i = places(threadIdx.x);
            float x = await_one(a.key + (size_t)kv * D + i.x, bit), other = await_one(a.key + (size_t)kv * D + i.y, bit);
            rotate_pair(x, other, s.turns[threadIdx.x]);
            room.key[i.x] = (uint16_t)f32_to_bf16(x);
            room.key[i.y] = (uint16_t)f32_to_bf16(other);
            if (stores) {
                ((uint16_t*)(a.keys.data + at))[i.x] = room.key[i.x];
                ((uint16_t*)(a.keys.data + at))[i.y] = room.key[i.y];
            }
        } else {
            const uint32_t i = threadIdx.x - PAIRS;
            room.value[i] = (uint16_t)f32_to_bf16(await_one(a.value + (size_t)kv * D + i, bit));
            if (stores) ((uint16_t*)(a.values.data + at))[i] = room.value[i];
        }
    }
    sync_workers();
    uint32_t parts[CHUNKS][3][4];
#pragma unroll
    for (uint32_t i = 0; i < CHUNKS; i++) {
#pragma unroll
        for (uint32_t p = 0; p < 3; p++) {
            uint4 v = make_uint4(0, 0, 0, 0);
            if (g < a.block_heads) v = ((const uint4*)room.q[p][g])[t + 4 * i];
            parts[i][p][0] = v.x;
            parts[i][p][1] = v.y;
            parts[i][p][2] = v.z;
            parts[i][p][3] = v.w;
        }
    }

    float acc[HALVES][8][4] = {}, top = kNoScore, sum = 0.0f;
#pragma unroll 1
    for (uint32_t base = begin + kAttendTile * warp; base < end; base += kAttendTile * kResidentWarps) {
        const bool tail = base + kAttendTile >= total;
        // Third parts have sums of their own, so that products need not wait for each other.
        float z[2][4] = {}, small[2][4] = {};
#pragma unroll
        for (uint32_t h = 0; h < 2; h++) {
#pragma unroll
            for (uint32_t i = 0; i < CHUNKS; i++) {
                if (tail && base + 8 * h + g >= total - 1) k[h][i] = ((const uint4*)room.key)[t + 4 * i];
                const uint32_t words[4] = {k[h][i].x, k[h][i].y, k[h][i].z, k[h][i].w};
#pragma unroll
                for (uint32_t j = 0; j < 4; j += 2) {
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
#pragma unroll
            for (uint32_t h = 0; h < HALVES; h++) {
#pragma unroll
                for (uint32_t i = 0; i < 32; i++) acc[h][i / 4][i % 4] *= keep;
            }
        }
        const uint32_t two[4] = {words[0][0], words[0][1], words[1][0], words[1][1]};
#pragma unroll
        for (uint32_t h = 0; h < HALVES; h++) {
            if (tail) {
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) {
                    if (base + 2 * t + i % 2 + i / 2 * 8 >= total - 1) v[i][h] = ((const uint4*)room.value)[g + 8 * h];
                }
            }
#pragma unroll
            for (uint32_t j = 0; j < 8; j++) {
                uint32_t word[4];
#pragma unroll
                for (uint32_t i = 0; i < 4; i++) word[i] = j / 2 == 0 ? v[i][h].x : j / 2 == 1 ? v[i][h].y : j / 2 == 2 ? v[i][h].z : v[i][h].w;
                const uint32_t from = j % 2 == 0 ? 0x5410 : 0x7632;
                const uint32_t b[2] = {__byte_perm(word[0], word[1], from), __byte_perm(word[2], word[3], from)};
                mma(acc[h][j], two, b);
            }
        }
        ask_values(base + kAttendTile * kResidentWarps);
    }
    sum += __shfl_xor_sync(kAll, sum, 1);
    sum += __shfl_xor_sync(kAll, sum, 2);
    if (g < a.block_heads) {
        if (t == 0) {
            room.tops[warp][g] = top;
            room.sums[warp][g] = sum;
        }
#pragma unroll
        for (uint32_t h = 0; h < HALVES; h++) {
#pragma unroll
            for (uint32_t e = 0; e < 2; e++) {
                float4* to = (float4*)(room.pool() + (warp * a.block_heads + g) * D + 8 * (2 * t + e + 8 * h));
#pragma unroll
                for (uint32_t j = 0; j < 8; j += 4) {
                    to[j / 4] = make_float4(acc[h][j][e] + acc[h][j][2 + e], acc[h][j + 1][e] + acc[h][j + 1][2 + e],
                                            acc[h][j + 2][e] + acc[h][j + 2][2 + e], acc[h][j + 3][e] + acc[h][j + 3][2 + e]);
                }
            }
        }
    }
    sync_workers();
#pragma unroll 1
    for (uint32_t n = threadIdx.x; n < a.block_heads * (D / 4); n += kResidentThreads) {
        const uint32_t head = n / (D / 4), c = n % (D / 4);
        float best = kNoScore, all = 0.0f;
#pragma unroll
        for (uint32_t w = 0; w < kResidentWarps; w++) best = fmaxf(best, room.tops[w][head]);
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (uint32_t w = 0; w < kResidentWarps; w++) {
            const float f = power_of_two(room.tops[w][head] - best);
            const float4 part = ((const float4*)(room.pool() + (w * a.block_heads + head) * D))[c];
            all += room.sums[w][head] * f;
            x.x += part.x * f;
            x.y += part.y * f;
            x.z += part.z * f;
            x.w += part.w * f;
        }
        uint2* to = a.partial + ((size_t)(head0 + head) * a.shares + share) * (D + 4);
        store_numbered(to + 4 * c, x.x, uses.number);
        store_numbered(to + 4 * c + 1, x.y, uses.number);
        store_numbered(to + 4 * c + 2, x.z, uses.number);
        store_numbered(to + 4 * c + 3, x.w, uses.number);
        if (c == 0) {
            store_numbered(to + D, best, uses.number);
            store_numbered(to + D + 1, all, uses.number);
        }
    }
    // What comes next takes the room.
    sync_workers();
}

// Puts an attention's shares together: a block has 32 columns of a head, a warp every eighth share.
template <uint32_t D>
__device__ __forceinline__ void resident_combine(const ResidentAttend& a, const Uses& uses, unsigned char* scratch, uint32_t shares) {
    constexpr uint32_t PER = D / 32;
    float(&pool)[kResidentWarps][32] = *(float(*)[kResidentWarps][32])scratch;
    float2(&ends)[kResidentWarps] = *(float2(*)[kResidentWarps])(scratch + sizeof(pool));
    const uint32_t warp = warp_number(), lane = threadIdx.x & 31;
#pragma unroll 1
    for (uint32_t n = blockIdx.x; n < a.heads * PER; n += gridDim.x) {
        const uint2* from = a.partial + (size_t)(n / PER) * a.shares * (D + 4);
        float best = kNoScore, mass = 0.0f, sum = 0.0f;
#pragma unroll 1
        for (uint32_t i = warp; i < shares; i += kResidentWarps) {
            const uint2* share = from + (size_t)i * (D + 4);
            const float top = await_numbered(share + D, uses.number), all = await_numbered(share + D + 1, uses.number);
            const float v = await_numbered(share + n % PER * 32 + lane, uses.number);
            const float now = fmaxf(best, top), keep = power_of_two(best - now), f = power_of_two(top - now);
            best = now;
            mass = mass * keep + f * all;
            sum = sum * keep + f * v;
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
            store_numbered(a.out + (size_t)(n / PER) * D + n % PER * 32 + lane, sum / mass, uses.number);
        }
        sync_workers();
    }
}
