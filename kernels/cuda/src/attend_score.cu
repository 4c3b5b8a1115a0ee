// Attention whose scores go through an expression of the user's before the softmax: a small program for a stack machine.
#include "attend_tile.cuh"

enum ScoreOp : uint32_t {
    kConst = 0, kInfinity, kQuery, kKey, kHead, kScore,
    kNeg, kNot, kAbs, kExp, kLog, kSqrt, kFloor, kTanh,
    kAdd, kSub, kMul, kDiv, kMod, kPow, kMin, kMax, kLess, kLessEqual, kEqual, kAnd, kOr,
    kIf
};
constexpr uint32_t kScoreOps = 64, kScoreDepth = 16;

// `ScoreArgs` in ../ops/score.rs.
struct ScoreArgs {
    AttendArgs attend;
    uint32_t ops[kScoreOps];    // ScoreOp
    float values[kScoreOps];    // of kConst
    uint32_t count;
    uint32_t pad;
};

// A score through the program; the stack's column of this lane is stack[.][lane].
__device__ __forceinline__ float rescored(const ScoreArgs& a, float (*stack)[32], uint32_t lane, float score, float query,
                                          float key, float head) {
    uint32_t n = 0;
    for (uint32_t i = 0; i < a.count; i++) {
        const uint32_t op = a.ops[i];
        const uint32_t takes = op <= kScore ? 0 : op <= kTanh ? 1 : op == kIf ? 3 : 2;
        n -= takes;
        const float x = takes > 0 ? stack[n][lane] : 0.0f, y = takes > 1 ? stack[n + 1][lane] : 0.0f;
        float v = 0.0f;
        switch (op) {
            case kConst: v = a.values[i]; break;
            case kInfinity: v = INFINITY; break;
            case kQuery: v = query; break;
            case kKey: v = key; break;
            case kHead: v = head; break;
            case kScore: v = score; break;
            case kNeg: v = -x; break;
            case kNot: v = x == 0.0f ? 1.0f : 0.0f; break;
            case kAbs: v = fabsf(x); break;
            case kExp: v = expf(x); break;
            case kLog: v = logf(x); break;
            case kSqrt: v = sqrtf(x); break;
            case kFloor: v = floorf(x); break;
            case kTanh: v = tanhf(x); break;
            case kAdd: v = __fadd_rn(x, y); break;
            case kSub: v = __fsub_rn(x, y); break;
            case kMul: v = __fmul_rn(x, y); break;
            case kDiv: v = __fdiv_rn(x, y); break;
            case kMod: v = fmodf(x, y); break;
            case kPow: v = powf(x, y); break;
            case kMin: v = fminf(x, y); break;
            case kMax: v = fmaxf(x, y); break;
            case kLess: v = x < y ? 1.0f : 0.0f; break;
            case kLessEqual: v = x <= y ? 1.0f : 0.0f; break;
            case kEqual: v = x == y ? 1.0f : 0.0f; break;
            case kAnd: v = x != 0.0f && y != 0.0f ? 1.0f : 0.0f; break;
            case kOr: v = x != 0.0f || y != 0.0f ? 1.0f : 0.0f; break;
            default: v = x != 0.0f ? y : stack[n + 2][lane];
        }
        stack[n++][lane] = v;
    }
    const float v = stack[0][lane];
    return fabsf(v) < INFINITY ? v : -INFINITY;
}

// grid (heads, tokens), 256 threads, shared 4 * head_dim
KERNEL(attend_score, ScoreArgs, 256) {
    DYNAMIC_SHARED(memory);
    __shared__ KeyTile tile;
    __shared__ float p[kTile];
    __shared__ float stack[kScoreDepth][32];
    const AttendArgs& attend = a.attend;
    float* q = (float*)memory;
    const DevStep step = *attend.step;
    const uint32_t t = blockIdx.y, head = blockIdx.x, kv = head / (attend.heads / attend.kv_heads), d = attend.head_dim;
    if (t >= step.tokens) return;
    const KeyList list = key_list(attend, step, t);
    const size_t at = ((size_t)t * attend.heads + head) * d;
    for (uint32_t c = threadIdx.x; c < d; c += blockDim.x) q[c] = attend.q[at + c];
    const float sink = attend.sinks.data == nullptr ? -INFINITY : vector_at(attend.sinks, head);
    Kept kept = {sink, sink == -INFINITY ? 0.0f : 1.0f, {}};
    for (uint32_t base = 0; base < list.total; base += kTile) {
        score_tile(attend, step, list, tile, q, t, kv, base);
        if (threadIdx.x < kTile) {
            const float v = rescored(a, stack, threadIdx.x, tile.z[threadIdx.x], (float)(step.position + t),
                                     tile.at[threadIdx.x], (float)head);
            if (v == -INFINITY) tile.rows[threadIdx.x] = -1;
            tile.z[threadIdx.x] = v;
        }
        __syncthreads();
        take(attend, tile, p, kv, kept);
    }
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t c = threadIdx.x + i * 256;
        if (c < d) attend.out[at + c] = kept.sum > 0.0f ? kept.acc[i] / kept.sum : 0.0f;
    }
}
