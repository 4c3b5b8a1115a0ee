// The scheduler behind simt.h: fibers, barriers, warp exchanges and the table of kernels.
#include "simt.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <condition_variable>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

enum class Status : uint8_t { kReady, kWarp, kBlock, kDone };

struct Warp {
    unsigned live = 0, arrived = 0;
    uint64_t given[32], taken[32];
    void* pointers[32];
};

struct Fiber {
    Status status = Status::kDone;
    bool flag = false;
    unsigned index = 0;
    Warp* warp = nullptr;
    Place place;
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
    unsigned char* stack = nullptr;
};

namespace {

// Kernels keep little on the stack; the guard page below catches those that do not.
constexpr size_t kStack = 128 << 10, kPage = 4096;
constexpr size_t kShared = 256 << 10;

struct Kernel {
    size_t bytes;
    void (*call)(const void*);
    dim3 cluster;
};
std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

// Blocks are run by one scheduler per OS thread.
struct Scheduler {
    std::vector<Fiber*> fibers;
    std::vector<Warp> warps;
    unsigned threads = 0, live = 0, arrived = 0, flags = 0, counted = 0;
    const Kernel* kernel = nullptr;
    const void* args = nullptr;
    unsigned char* shared = nullptr;
#if defined(__x86_64__)
    void* sp = nullptr;
#else
    ucontext_t context;
#endif
};
thread_local Scheduler scheduler;

#if defined(__x86_64__)
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch,.-simt_switch
)");
void to_scheduler(Fiber* f) { simt_switch(&f->sp, scheduler.sp); }
void to_fiber(Fiber* f) { simt_switch(&scheduler.sp, f->sp); }
#else
void to_scheduler(Fiber* f) { swapcontext(&f->context, &scheduler.context); }
void to_fiber(Fiber* f) { swapcontext(&scheduler.context, &f->context); }
#endif

void release_block(Scheduler& s) {
    s.arrived = 0;
    s.counted = s.flags;
    s.flags = 0;
    for (unsigned i = 0; i < s.threads; i++) {
        if (s.fibers[i]->status == Status::kBlock) s.fibers[i]->status = Status::kReady;
    }
}

void release_warp(Scheduler& s, Fiber* f, unsigned mask) {
    Warp& w = *f->warp;
    const unsigned first = f->index & ~31u;
    w.arrived &= ~mask;
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1) || first + i >= s.threads) continue;
        w.taken[i] = w.given[i];
        Fiber* other = s.fibers[first + i];
        if (other->status == Status::kWarp) other->status = Status::kReady;
    }
}

void body() {
    Scheduler& s = scheduler;
    for (;;) {
        s.kernel->call(s.args);
        Fiber* f = current;
        f->status = Status::kDone;
        f->warp->live &= ~(1u << (f->index & 31));
        s.live--;
        if (s.live > 0 && s.arrived == s.live) release_block(s);
        to_scheduler(f);
    }
}

void prepare(Fiber* f) {
    if (f->stack == nullptr) {
        void* m = mmap(nullptr, kStack + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (m == MAP_FAILED || mprotect(m, kPage, PROT_NONE) != 0) {
            perror("emulator: stack of a thread");
            abort();
        }
        f->stack = (unsigned char*)m + kPage;
    }
#if defined(__x86_64__)
    // As if body had been called: the stack is 8 off a multiple of 16 when it begins.
    void** top = (void**)(f->stack + kStack - 64);
    *top = (void*)body;
    for (int i = 1; i <= 6; i++) top[-i] = nullptr;
    f->sp = top - 6;
#else
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = kStack;
    f->context.uc_link = nullptr;
    makecontext(&f->context, body, 0);
#endif
}

bool run_warp(Scheduler& s, unsigned first, bool backwards) {
    const unsigned n = s.threads - first < 32 ? s.threads - first : 32;
    bool ran = false, again = true;
    while (again) {
        again = false;
        for (unsigned i = 0; i < n; i++) {
            Fiber* f = s.fibers[first + (backwards ? n - 1 - i : i)];
            if (f->status != Status::kReady) continue;
            current = f;
            to_fiber(f);
            again = ran = true;
        }
    }
    return ran;
}

thread_local bool backwards_now = false;

const char* run_block(Scheduler& s) {
    const unsigned warps = (s.threads + 31) / 32;
    while (s.live > 0) {
        bool ran = false;
        for (unsigned w = 0; w < warps; w++) {
            ran |= run_warp(s, 32 * (backwards_now ? warps - 1 - w : w), backwards_now);
        }
        if (!ran) return "deadlock: some threads wait at a barrier that others never reach";
    }
    return nullptr;
}

}  // namespace

thread_local Fiber* current = nullptr;

Place& place() { return current->place; }
unsigned lane() { return current->index & 31; }
unsigned char* dynamic_shared() { return scheduler.shared; }
const uint64_t* exchanged() { return current->warp->taken; }

void sync_block() {
    Scheduler& s = scheduler;
    Fiber* f = current;
    if (f->flag) s.flags++;
    f->flag = false;
    if (++s.arrived == s.live) {
        release_block(s);
        return;
    }
    f->status = Status::kBlock;
    to_scheduler(f);
}

unsigned count_block(bool flag) {
    current->flag = flag;
    sync_block();
    return scheduler.counted;
}

void sync_warp(unsigned mask) {
    Scheduler& s = scheduler;
    Fiber* f = current;
    Warp& w = *f->warp;
    w.arrived |= 1u << (f->index & 31);
    if ((w.arrived & mask) == (mask & w.live)) {
        release_warp(s, f, mask);
        return;
    }
    f->status = Status::kWarp;
    to_scheduler(f);
}

void together(void* mine, void (*run)(void* const* all)) {
    Scheduler& s = scheduler;
    Fiber* f = current;
    Warp& w = *f->warp;
    const unsigned bit = 1u << (f->index & 31);
    if (w.arrived == 0) memset(w.pointers, 0, sizeof w.pointers);
    w.pointers[f->index & 31] = mine;
    w.arrived |= bit;
    if (w.arrived == w.live) {
        run(w.pointers);
        release_warp(s, f, 0xffffffffu);
        return;
    }
    f->status = Status::kWarp;
    to_scheduler(f);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
    Fiber* f = current;
    f->warp->given[f->index & 31] = value;
    sync_warp(mask);
    return (mask >> from & 1) ? f->warp->taken[from] : value;
}

Registrar::Registrar(const char* name, size_t bytes, void (*call)(const void*), dim3 cluster) { kernels()[name] = {bytes, call, cluster}; }

namespace {

// Blocks of a cluster, at most.
constexpr unsigned kCluster = 8;

// A launch, and its order.
struct Launch {
    const Kernel* kernel;
    const void* args;
    dim3 grid, block;
    size_t shared;
    bool backwards;
};

// The blocks of a cluster that run, each on its own OS thread: shared memory is storage of a thread.
struct Cluster {
    std::mutex lock;
    std::condition_variable change;
    unsigned blocks = 0, waiting = 0, ended = 0;
    uint64_t round = 0;
    const char* wrong = nullptr;
    // By block: its dynamic shared memory, and a place in the storage of its thread.
    unsigned char* shared[kCluster];
    char* storage[kCluster];

    void go_on() {
        if (waiting == 0 || waiting < blocks - ended) return;
        waiting = 0;
        round++;
        change.notify_all();
    }
    void meet() {
        std::unique_lock<std::mutex> held(lock);
        const uint64_t now = round;
        waiting++;
        go_on();
        change.wait(held, [&] { return round != now || wrong != nullptr; });
    }
    void end(const char* why) {
        const std::lock_guard<std::mutex> held(lock);
        ended++;
        if (why != nullptr) wrong = why;
        go_on();
        change.notify_all();
    }
};
thread_local Cluster* cluster = nullptr;
thread_local unsigned rank_now = 0;
thread_local char storage;

unsigned char* shared_memory() {
    Scheduler& s = scheduler;
    if (s.shared == nullptr) s.shared = (unsigned char*)aligned_alloc(1024, kShared);
    return s.shared;
}

// Runs one block on this OS thread.
const char* run(const Launch& l, uint3 at) {
    Scheduler& s = scheduler;
    s.threads = l.block.x * l.block.y * l.block.z;
    while (s.fibers.size() < s.threads) s.fibers.push_back(new Fiber());
    s.warps.assign((s.threads + 31) / 32, Warp());
    s.kernel = l.kernel;
    s.args = l.args;
    backwards_now = l.backwards;
    // Bytes of 255 are NaN as floats: what is read before it is written shows.
    memset(shared_memory(), 255, l.shared);
    for (unsigned i = 0; i < s.threads; i++) {
        Fiber* f = s.fibers[i];
        f->index = i;
        f->status = Status::kReady;
        f->warp = &s.warps[i / 32];
        f->warp->live |= 1u << (i & 31);
        f->place.thread = {i % l.block.x, i / l.block.x % l.block.y, i / (l.block.x * l.block.y)};
        f->place.block = at;
        f->place.block_dim = l.block;
        f->place.grid_dim = l.grid;
        prepare(f);
    }
    s.live = s.threads;
    s.arrived = s.flags = 0;
    return run_block(s);
}

// OS threads for all blocks of a cluster but the first; one launch at a time has them.
class Helpers {
  public:
    std::mutex launch;

    // Runs block `rank` of each cluster as `run_rank` says, all ranks at once.
    template <class F>
    void together(unsigned blocks, const F& run_rank) {
        while (threads.size() + 1 < blocks) {
            const unsigned rank = (unsigned)threads.size() + 1;
            threads.emplace_back([this, rank] { serve(rank); });
            threads.back().detach();
        }
        {
            const std::lock_guard<std::mutex> held(lock);
            job = [](const void* f, unsigned rank) { (*(const F*)f)(rank); };
            data = &run_rank;
            taking = blocks;
            busy = blocks - 1;
            number++;
        }
        change.notify_all();
        run_rank(0);
        std::unique_lock<std::mutex> held(lock);
        change.wait(held, [&] { return busy == 0; });
    }

  private:
    std::mutex lock;
    std::condition_variable change;
    std::vector<std::thread> threads;
    void (*job)(const void*, unsigned) = nullptr;
    const void* data = nullptr;
    unsigned taking = 0, busy = 0;
    uint64_t number = 0;

    void serve(unsigned rank) {
        uint64_t seen = 0;
        std::unique_lock<std::mutex> held(lock);
        for (;;) {
            change.wait(held, [&] { return number != seen; });
            seen = number;
            if (rank >= taking) continue;
            held.unlock();
            job(data, rank);
            held.lock();
            if (--busy == 0) change.notify_all();
        }
    }
};

Helpers& helpers() {
    // Never destroyed: its threads run to the end of the process.
    static Helpers& all = *new Helpers();
    return all;
}

const char* run_clusters(const Launch& l) {
    const dim3 c = l.kernel->cluster;
    const unsigned blocks = c.x * c.y * c.z;
    if (blocks > kCluster || l.grid.x % c.x != 0 || l.grid.y % c.y != 0 || l.grid.z % c.z != 0) return "the grid is not of whole clusters";
    const dim3 n = {l.grid.x / c.x, l.grid.y / c.y, l.grid.z / c.z};
    Helpers& threads = helpers();
    const std::lock_guard<std::mutex> one(threads.launch);
    for (unsigned i = 0; i < n.x * n.y * n.z; i++) {
        Cluster now;
        now.blocks = blocks;
        // Where each block's memory lies is known to all before the first begins.
        threads.together(blocks, [&](unsigned rank) {
            now.shared[rank] = shared_memory();
            now.storage[rank] = &storage;
        });
        threads.together(blocks, [&](unsigned rank) {
            cluster = &now;
            rank_now = rank;
            const uint3 in = {rank % c.x, rank / c.x % c.y, rank / (c.x * c.y)};
            now.end(run(l, {i % n.x * c.x + in.x, i / n.x % n.y * c.y + in.y, i / (n.x * n.y) * c.z + in.z}));
            cluster = nullptr;
        });
        if (now.wrong != nullptr) return now.wrong;
    }
    return nullptr;
}

}  // namespace

void sync_cluster() {
    sync_block();
    if (current->index == 0 && cluster != nullptr) cluster->meet();
    sync_block();
}

void* near(const void* mine, unsigned rank) {
    const unsigned char* p = (const unsigned char*)mine;
    const unsigned char* own = scheduler.shared;
    if (p >= own && p < own + kShared) return cluster->shared[rank] + (p - own);
    return cluster->storage[rank] + ((const char*)mine - cluster->storage[rank_now]);
}

}  // namespace simt

using namespace simt;

// Order in which warps and lanes take turns from here on: 0 = ascending, 1 = descending.
extern "C" void simt_order(int backwards) { backwards_now = backwards != 0; }

// Runs a grid. Null on success, else what is wrong (a text that stays valid).
extern "C" const char* simt_launch(const char* name, const unsigned grid[3], const unsigned block[3], size_t shared,
                                   const void* args, size_t bytes) {
    auto found = kernels().find(name);
    if (found == kernels().end()) return "there is no kernel of this name";
    if (found->second.bytes != bytes) return "the parameter struct has another size on the other side";
    const unsigned threads = block[0] * block[1] * block[2];
    if (threads == 0 || threads > 1024) return "a block has 1 to 1024 threads";
    if (shared > kShared) return "too much shared memory";
    const Launch l = {&found->second, args, {grid[0], grid[1], grid[2]}, {block[0], block[1], block[2]}, shared, backwards_now};
    const dim3 c = l.kernel->cluster;
    if (c.x * c.y * c.z > 1) return run_clusters(l);
    for (unsigned b = 0; b < grid[0] * grid[1] * grid[2]; b++) {
        if (const char* wrong = run(l, {b % grid[0], b / grid[0] % grid[1], b / (grid[0] * grid[1])})) return wrong;
    }
    return nullptr;
}
