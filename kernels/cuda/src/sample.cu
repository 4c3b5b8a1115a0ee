// Drawing a token: kernels/cpu/sample.rs on the device. Masses are fixed-point sums (2^-44 of the likeliest token's
// weight), so that their order does not matter and the draw has the same bits on every run.
#include "each.cuh"
#include "topk.cuh"

// What a block of sample_scan found in its share of the logits.
struct SampleShare {
    double mass;    // sum of e^(logit - best)
    float best;     // largest logit
    uint32_t id;    // its lowest id
    uint32_t key;   // ordered_key(best)
    uint32_t bad;   // a logit is NaN or +inf
};
constexpr uint32_t kSampleBlocks = 128;

struct SampleArgs {
    const float* logits;        // [rows, vocab]; the last row counts
    float* adjusted;            // [vocab] scratch: logits after penalties
    uint32_t* counts;           // [vocab] scratch: occurrences
    const uint32_t* history;    // [step.history]
    const DevSampler* sampler;
    DevSampled* sampled;
    const DevStep* step;
    SampleShare* shares;        // [kSampleBlocks] scratch
    uint32_t rows;              // code of the logits' rows
    uint32_t vocab;
};

// e^x for x <= 0 as in kernels/cpu/sample.rs: plain multiplications and additions, the same bits.
__device__ __forceinline__ float sample_exp(float x) {
    const float clamped = x > -87.0f ? x : -87.0f;
    const float shifted = __fadd_rn(__fmul_rn(clamped, 1.44269504f), 12582912.0f);
    const float n = __fsub_rn(shifted, 12582912.0f);
    const float r = __fadd_rn(__fsub_rn(clamped, __fmul_rn(n, 0.6933594f)), __fmul_rn(n, 2.1219444e-4f));
    float p = 1.9875692e-4f;
    p = __fadd_rn(__fmul_rn(p, r), 1.3982e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 8.333452e-3f);
    p = __fadd_rn(__fmul_rn(p, r), 4.1665796e-2f);
    p = __fadd_rn(__fmul_rn(p, r), 1.6666665e-1f);
    p = __fadd_rn(__fmul_rn(p, r), 0.5f);
    const float value = __fadd_rn(__fadd_rn(__fmul_rn(__fmul_rn(p, r), r), r), 1.0f);
    const float power = __uint_as_float((__float_as_uint(shifted) + 127u) << 23);
    return x >= -87.0f ? __fmul_rn(value, power) : 0.0f;
}

__device__ __forceinline__ uint64_t fixed_weight(float logit, float best, float scale) {
    return (uint64_t)((double)sample_exp(__fmul_rn(__fsub_rn(logit, best), scale)) * 17592186044416.0);
}

// A number in [0, 1) with 53 random bits: Philox4x32-10 of (seed, position).
__device__ inline double uniform_number(uint64_t seed, uint64_t position) {
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = 0, c3 = 0;
    uint32_t k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);
    for (int i = 0; i < 10; i++) {
        const uint64_t p0 = (uint64_t)c0 * 0xD2511F53u, p1 = (uint64_t)c2 * 0xCD9E8D57u;
        const uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0, n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c0 = n0;
        c1 = (uint32_t)p1;
        c2 = n2;
        c3 = (uint32_t)p0;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    const uint64_t bits = ((uint64_t)c1 << 32 | c0) >> 11;
    return (double)bits * (1.0 / 9007199254740992.0);
}

struct SampleShared {
    TopK top;
    uint64_t masses[256];
    uint64_t scan64[33];
    double sums[32];
    uint32_t keys[32], ids[32];
    float best;
    uint32_t best_id, token;
    uint64_t above;
};

// The number that has this key.
__device__ __forceinline__ float of_key(uint32_t key) { return __uint_as_float((key >> 31) != 0 ? key ^ 0x80000000u : ~key); }

__device__ __forceinline__ void best_of_warp(uint32_t& key, uint32_t& id) {
#pragma unroll
    for (int m = 16; m > 0; m >>= 1) {
        const uint32_t k2 = __shfl_xor_sync(kAll, key, m), i2 = __shfl_xor_sync(kAll, id, m);
        if (k2 > key || (k2 == key && i2 < id)) {
            key = k2;
            id = i2;
        }
    }
}

// The largest key over all threads and the lowest id that has it, in s.best and s.best_id (thread 0 sees them); an id outside
// `from` to `to` - 1 stands for no number at all, and `from` is taken.
__device__ inline void best_of_block(SampleShared& s, const float* logits, uint32_t key, uint32_t id, uint32_t from, uint32_t to) {
    best_of_warp(key, id);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) {
        s.keys[threadIdx.x / 32] = key;
        s.ids[threadIdx.x / 32] = id;
    }
    __syncthreads();
    if (threadIdx.x >= 32) return;
    const bool there = threadIdx.x < blockDim.x / 32;
    key = there ? s.keys[threadIdx.x] : 0;
    id = there ? s.ids[threadIdx.x] : 0xffffffffu;
    best_of_warp(key, id);
    if (threadIdx.x != 0) return;
    s.best_id = id < to ? id : from;
    s.best = id < to ? of_key(key) : logits[from];
}

// Largest of logits `from` to `to` - 1 and its lowest id, in s.best and s.best_id; true if one of them is NaN or +inf.
__device__ inline bool find_best(SampleShared& s, const float* logits, uint32_t from, uint32_t to) {
    uint32_t key = 0, id = 0xffffffffu;
    bool bad = false;
#pragma unroll 4
    for (uint32_t i = from + threadIdx.x; i < to; i += blockDim.x) {
        const float x = logits[i];
        bad |= x != x || x == INFINITY;
        const uint32_t k = ordered_key(x + 0.0f);
        if (k > key) {
            key = k;
            id = i;
        }
    }
    const bool any_bad = __syncthreads_or(bad) != 0;
    best_of_block(s, logits, key, id, from, to);
    __syncthreads();
    return any_bad;
}

// Key T and number m of ties so that {key > T} and the first m of {key == T} are the shortest ranked prefix whose mass
// reaches `goal`; sets top.key and top.ties.
__device__ inline void nucleus(SampleShared& s, const float* logits, uint32_t n, float floor, float best, float scale,
                               uint64_t goal) {
    uint32_t prefix = 0, mask = 0;
    uint64_t above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (uint32_t i = threadIdx.x; i < 256; i += blockDim.x) s.masses[i] = 0;
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            const float x = logits[i];
            if (!(x >= floor) || x == -INFINITY) continue;
            const uint32_t key = ordered_key(x + 0.0f);
            if ((key & mask) == prefix) {
                atomicAdd((unsigned long long*)&s.masses[key >> shift & 255u],
                          (unsigned long long)fixed_weight(x, best, scale));
            }
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            uint32_t bin = 255;
            while (bin > 0 && above + s.masses[bin] < goal) above += s.masses[bin--];
            s.top.key = bin;
            s.above = above;
        }
        __syncthreads();
        prefix |= s.top.key << shift;
        mask |= 255u << shift;
        above = s.above;
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        const uint64_t each = fixed_weight(of_key(prefix), best, scale);
        s.top.key = prefix;
        const uint64_t missing = goal > above ? goal - above : 0;
        s.top.ties = each == 0 ? 0xffffffffu : (uint32_t)min((missing + each - 1) / each, (uint64_t)0xffffffffu);
        if (s.top.ties == 0) s.top.ties = 1;
    }
    __syncthreads();
}

// Draws among {key > T} and the first `ties` of {key == T}, in order of id.
__device__ inline void pick(SampleShared& s, const float* logits, uint32_t n, float floor, float best, float scale,
                            uint32_t threshold, uint32_t ties, double u) {
    const uint32_t per = (n + blockDim.x - 1) / blockDim.x;
    const uint32_t from = min(threadIdx.x * per, n), to = min(from + per, n);
    uint32_t equal = 0, all_equal;
    for (uint32_t i = from; i < to; i++) equal += ordered_key(logits[i] + 0.0f) == threshold;
    const uint32_t rank = block_scan(equal, s.top.scan, &all_equal);
    uint64_t mass = 0, total = 0;
    uint32_t seen = rank;
    auto weight_of = [&](uint32_t i) -> uint64_t {
        const float x = logits[i];
        const uint32_t key = ordered_key(x + 0.0f);
        const bool tie = key == threshold;
        const bool stays = key > threshold || (tie && seen < ties);
        seen += tie;
        return stays && x >= floor && x > -INFINITY ? fixed_weight(x, best, scale) : 0;
    };
    for (uint32_t i = from; i < to; i++) mass += weight_of(i);
    const uint64_t before = block_scan(mass, s.scan64, &total);
    const uint64_t goal = (uint64_t)(u * (double)total);
    if (before <= goal && goal < before + mass) {
        uint64_t sum = before;
        seen = rank;
        for (uint32_t i = from; i < to; i++) {
            sum += weight_of(i);
            if (sum > goal) {
                s.token = i;
                break;
            }
        }
    }
    __syncthreads();
}

// A block's share of the logits.
__device__ __forceinline__ void scan_logits(const SampleArgs& a) {
    __shared__ SampleShared s;
    const DevStep step = *a.step;
    if (step.sample == 0) return;
    const uint32_t n = a.vocab, per = (n + gridDim.x - 1) / gridDim.x;
    const uint32_t from = min(blockIdx.x * per, n), to = min(from + per, n);
    const float* logits = a.logits + (size_t)(step_rows(step, a.rows) - 1) * n;
    SampleShare share = {0.0, -INFINITY, from, 0, 0};
    if (from < to) {
        const bool bad = find_best(s, logits, from, to);
        share.best = s.best;
        share.id = s.best_id;
        share.key = ordered_key(s.best + 0.0f);
        share.bad = bad ? 1u : 0u;
        double mass = 0.0;
        for (uint32_t i = from + threadIdx.x; i < to; i += blockDim.x) {
            if (s.best != -INFINITY) mass += (double)sample_exp(__fsub_rn(logits[i], s.best));
        }
        share.mass = block_sum(mass, s.sums);
    }
    if (threadIdx.x == 0) a.shares[blockIdx.x] = share;
}

// Draws, or tells the host that it must.
__device__ __forceinline__ void draw_token(const SampleArgs& a) {
    __shared__ SampleShared s;
    const DevStep step = *a.step;
    if (step.sample == 0) return;
    const DevSampler p = *a.sampler;
    const uint32_t n = a.vocab;
    const float* model = a.logits + (size_t)(step_rows(step, a.rows) - 1) * n;
    const float* logits = model;
    SampleShare share = {0.0, -INFINITY, 0xffffffffu, 0, 0};
    if (threadIdx.x < kSampleBlocks) share = a.shares[threadIdx.x];
    bool wrong = __syncthreads_or(share.bad != 0) != 0;
    best_of_block(s, model, share.key, share.id, 0, n);
    __syncthreads();
    wrong |= s.best == -INFINITY;
    const float model_best = s.best;
    double mass = warp_sum(share.mass == 0.0 ? 0.0 : share.mass * exp((double)share.best - (double)model_best));
    if ((threadIdx.x & 31) == 0) s.sums[threadIdx.x / 32] = mass;
    __syncthreads();
    mass = 0.0;
#pragma unroll
    for (uint32_t w = 0; w < kSampleBlocks / 32; w++) mass += s.sums[w];
    const bool penalties = p.repetition_penalty != 1.0f || p.frequency_penalty != 0.0f || p.presence_penalty != 0.0f;
    if (penalties && step.history > 0) {
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) a.counts[i] = 0;
        __syncthreads();
        const uint32_t window = p.penalty_window == 0 ? step.history : min(p.penalty_window, step.history);
        for (uint32_t i = step.history - window + threadIdx.x; i < step.history; i += blockDim.x) {
            if (a.history[i] < n) atomicAdd(&a.counts[a.history[i]], 1u);
        }
        __syncthreads();
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
            float x = model[i];
            if (a.counts[i] > 0) {
                x = x > 0.0f ? __fdiv_rn(x, p.repetition_penalty) : __fmul_rn(x, p.repetition_penalty);
                x = __fsub_rn(x, __fadd_rn(__fmul_rn((float)a.counts[i], p.frequency_penalty), p.presence_penalty));
            }
            a.adjusted[i] = x;
        }
        __syncthreads();
        logits = a.adjusted;
        wrong |= find_best(s, logits, 0, n);
        wrong |= s.best == -INFINITY;
    }
    const float best = s.best;
    if (threadIdx.x == 0) s.token = s.best_id;
    __syncthreads();
    const bool greedy = p.temperature < 1e-5f || p.top_k == 1;
    if (!wrong && !greedy) {
        const float scale = 1.0f / p.temperature;
        float floor = -INFINITY;
        if (p.min_p > 0.0f) floor = fminf(__fadd_rn(best, __fmul_rn(p.temperature, logf(p.min_p))), best);
        uint32_t threshold = 0, ties = 0;
        uint32_t there = 0;
        for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) there += logits[i] >= floor && logits[i] > -INFINITY;
        uint32_t kept;
        block_scan(there, s.top.scan, &kept);
        const bool has_top_k = p.top_k > 0 && p.top_k < n && p.top_k < kept;
        auto key_of = [&](uint32_t i) {
            const float x = logits[i];
            return x >= floor && x > -INFINITY ? ordered_key(x + 0.0f) : 0u;
        };
        __syncthreads();
        if (has_top_k) {
            top_k_threshold(s.top, n, p.top_k, key_of);
            threshold = s.top.key;
            ties = s.top.ties;
        }
        if (p.top_p < 1.0f) {
            uint64_t mine = 0, total;
            for (uint32_t i = threadIdx.x; i < n; i += blockDim.x) {
                const uint32_t key = key_of(i);
                if (key > threshold) mine += fixed_weight(logits[i], best, scale);
            }
            block_scan(mine, s.scan64, &total);
            if (has_top_k) {
                total += (uint64_t)ties * fixed_weight(of_key(threshold), best, scale);
            }
            const uint64_t goal = (uint64_t)ceil((double)p.top_p * (double)total);
            __syncthreads();
            nucleus(s, logits, n, floor, best, scale, goal);
            threshold = s.top.key;
            ties = s.top.ties;
        }
        __syncthreads();
        pick(s, logits, n, floor, best, scale, threshold, ties, uniform_number(p.seed, step.rng_counter));
    }
    if (threadIdx.x == 0) {
        DevSampled out;
        out.token = s.token;
        out.status = wrong ? 1u : 0u;
        out.logprob = model[s.token] - model_best - (float)log(mass);
        out.pad = 0;
        *a.sampled = out;
    }
}

// The whole device reads the logits once: each block its share. grid (kSampleBlocks), or (kSampleBlocks, 1, sequences)
KERNEL(sample_scan, SampleArgs, 256) { scan_logits(a); }
KERNEL(sample_scan_each, Each<SampleArgs>, 256) { scan_logits(a.of[blockIdx.z]); }

// One block of at least kSampleBlocks threads, or (1, 1, sequences).
KERNEL(sample_token, SampleArgs, 1024) { draw_token(a); }
KERNEL(sample_token_each, Each<SampleArgs>, 1024) { draw_token(a.of[blockIdx.z]); }
