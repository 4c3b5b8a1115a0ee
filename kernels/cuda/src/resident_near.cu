// See resident.cuh. A kernel per format of weights: what a token waits for is instructions, too.
#include "resident_attend.cuh"
#include "resident_product.cuh"
#include "resident_q6_k.cuh"

// F: the format of all weights, but for what `OtherFormat` is about; D: values of a head.
template <class F, uint32_t D>
__device__ __forceinline__ void resident(const ResidentArgs& a) {
    DYNAMIC_SHARED(memory);
    ResidentShared& s = *(ResidentShared*)memory;
    unsigned char* const scratch = memory + sizeof(ResidentShared);
    const uint32_t warp = warp_number();
    unsigned char* const places = scratch + a.scratch;
#ifdef MODEL1_EMULATE
    for (uint32_t i = threadIdx.x; i < kResidentOp / 4; i += kResidentThreads) ((uint32_t*)s.window[a.first % kResidentWindow])[i] = ((const uint32_t*)(a.ops + a.first))[i];
    __syncthreads();
#else
    if (threadIdx.x < kResidentSlots) {
        static_assert(kResidentSlots == kResidentWindow, "a thread inits one of each");
        barrier_init(barrier_at(s.full[threadIdx.x]), Fillers<F>::APART ? 1 : kFillers);
        barrier_init(barrier_at(s.empty[threadIdx.x]), kResidentWarps);
        barrier_init(barrier_at(s.known[threadIdx.x]), 1);
        if (threadIdx.x == 0) {
            s.done = a.first;
            s.keys = 0;
            s.flip = kFlip;
        }
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    // Registers go from those that copy to those that multiply: 12 warps begin with 168 each.
    if (warp >= kResidentWarps) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 56;");
        const Cursor begin = {a.first, 0, 0, {}};
        constexpr bool APART = Fillers<F>::APART;
        const uint32_t number = warp - kResidentWarps, first = APART ? number : 0;
        Filler<F> f = {s, places, APART ? 0 : number, APART ? kFillers : 1, a.slots, a.slot_bytes, a.end, begin, first, first, 0, begin, first, 0};
        // Records that have been asked for, and that have come.
        uint32_t asked = a.first, known = a.first;
#pragma unroll 1
        while (!f.through()) {
            const uint32_t done = *(volatile uint32_t*)&s.done;
            if (asked < a.end && asked < done + kResidentWindow) {
                if (warp == kResidentWarps && (threadIdx.x & 31) == 0) {
                    const uint32_t barrier = barrier_at(s.known[(asked - a.first) % kResidentWindow]);
                    barrier_expect(barrier, kResidentOp);
                    copy_whole(s.window[asked % kResidentWindow], a.ops + asked, kResidentOp, barrier);
                }
                asked++;
            }
            const uint32_t n = known - a.first;
            if (known < asked && barrier_ended(barrier_at(s.known[n % kResidentWindow]), n / kResidentWindow & 1u)) known++;
            if (f.fill(known)) continue;
            if (*(volatile uint32_t*)&s.keys > kAheadKeys || !f.prefetch(known)) __nanosleep(20);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 224;");
#endif
#ifdef MODEL1_EMULATE
    Ring<F> ring = {s, places, a.slots, a.slot_bytes, 0, 0, {s, places, Fillers<F>::APART ? 0 : warp, 1, a.slots, a.slot_bytes, a.end, {a.first, 0, 0, {}}, 0, 0, 0, {}, 0, 0}};
    s.flip = kFlip;
#else
    Ring<F> ring = {s, places, a.slots, a.slot_bytes, 0, 0};
#endif
    await_predecessor();
    const DevStep step = *a.step;
    const uint32_t keys = (uint32_t)step.position + 1;
    if (threadIdx.x < D / 2 && a.freqs != nullptr) s.turns[threadIdx.x] = turn_at(step.position, a.freqs[threadIdx.x], false);
    if (threadIdx.x == 0) *(volatile uint32_t*)&s.keys = keys;
    const uint32_t serial = load_shared_one(a.serial);
    Uses uses = {serial, 0};
    sync_workers();
    const auto stamp = [&]([[maybe_unused]] uint32_t i) {
#ifndef MODEL1_EMULATE
        if (a.stamps == nullptr || blockIdx.x != 0 || threadIdx.x != 0) return;
        uint64_t now;
        asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
        a.stamps[i] = now;
#endif
    };
#pragma unroll 1
    for (uint32_t i = a.first; i < a.end; i++) {
        stamp(i);
#ifndef MODEL1_EMULATE
        barrier_await(barrier_at(s.known[(i - a.first) % kResidentWindow]), (i - a.first) / kResidentWindow & 1u);
#endif
        const ResidentOp& op = resident_op(s, i);
        // Attention and what follows it have one number. Zero is what memory begins with.
        uses.number = serial * a.total + i + (op.kind == kResidentCombine ? 0 : 1);
        if (op.kind == kResidentProduct) {
            if constexpr (OtherFormat<F>::THERE) {
                if (op.other != 0) {
                    resident_product<typename OtherFormat<F>::Type>(op.product, ring, uses, s, scratch, i);
                    continue;
                }
            }
            resident_product<F>(op.product, ring, uses, s, scratch, i);
        } else if (op.kind == kResidentAttend) {
            resident_attend<D>(op.attend, uses, s, scratch, a, step);
        } else {
            resident_combine<D>(op.attend, uses, scratch, division(op.attend, keys).shares);
        }
    }
    stamp(a.end);
    // By the last block: where they run one after the other (the emulator) all have read it by then.
    if (blockIdx.x + 1 == gridDim.x && threadIdx.x == 0 && a.end == a.total) *a.serial = serial + 1;
}

#if FROM_HOPPER
// grid: a block per multiprocessor, 384 threads (emulated: 256, which copy, too), shared: ../ops/resident/records.rs
#define RESIDENT(weights, Weights, dim) \
    EARLY_KERNEL(resident_##weights##_##dim, ResidentArgs, 384, 1) { resident<Weights, dim>(a); }

RESIDENT(bf16, ResidentBf16, 64)
RESIDENT(bf16, ResidentBf16, 128)
RESIDENT(q8_0, ResidentQ8_0, 64)
RESIDENT(q8_0, ResidentQ8_0, 128)
RESIDENT(q4_0, ResidentQ4_0, 64)
RESIDENT(q4_0, ResidentQ4_0, 128)
#endif
