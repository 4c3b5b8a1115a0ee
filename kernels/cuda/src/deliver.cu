// The end of a step of one token: its answer goes to memory of the host, and the records become those of the step after it,
// which may run before the host has looked.
#include "common.cuh"

struct DeliverArgs {
    const uint4* output;    // [words]: DevSampled, counters
    DevStep* step;
    uint32_t* ids;          // [1]
    uint32_t* history;      // [room]
    uint4* mail[3];         // [words] each, in memory of the host: MAILS in ../mail.rs
    uint32_t words;         // of 16 bytes
    uint32_t room;          // tokens the history has room for
};

// One block.
KERNEL(deliver, DeliverArgs, 256) {
    const DevStep step = *a.step;
    uint4* mail = a.mail[step.mail];
    for (uint32_t i = threadIdx.x; i < a.words; i += blockDim.x) mail[i] = a.output[i];
    __syncthreads();
    if (threadIdx.x > 0) return;
    const DevSampled drawn = *(const DevSampled*)a.output;
    DevStep next = step;
    next.mail = step.mail == 2 ? 0 : step.mail + 1;
    // Where no token could be drawn, a step that follows unasked is this one again, which changes nothing, and leaves its
    // logits to the host.
    if (step.sample != 0 && drawn.status == 0) {
        next.position = step.position + 1;
        next.rng_counter = step.rng_counter + 1;
        a.ids[0] = drawn.token;
        if (step.history > 0 && step.history < a.room) {
            a.history[step.history] = drawn.token;
            next.history = step.history + 1;
        }
    }
    *a.step = next;
}
