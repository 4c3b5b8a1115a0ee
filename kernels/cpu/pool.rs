//! A fork-join thread pool with low latency: workers spin for a moment after a job, then sleep.
//!
//! A job is a number of tasks; which thread runs which task never affects results, because every output element is
//! computed wholly by one task in a fixed order.
//!
//! Where other programs want the processor, threads lose it at any time. So a job waits only for workers that began to
//! work on it, and who waits long sleeps, which leaves its core to the thread it waits for. (Two threads on two cores
//! beside another program of the lowest priority: SmolLM2 at Q4_1 decoded 30 tokens/s when every worker had to report
//! and waiting threads yielded, 120 this way; 260 alone.)

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// The closure of the job in progress, its lifetime erased; valid while workers are inside the job.
#[derive(Clone)]
struct Task {
    call: unsafe fn(*const (), usize),
    data: *const (),
    /// Who waits for the end of the job.
    owner: Thread,
}

// SAFETY: the closure is Sync (required by `run`) and outlives the job (run waits for all workers inside).
unsafe impl Send for Task {}

/// Bits of [`Shared::gate`]: workers inside the job; whether more may enter. The job's number is above them.
const INSIDE: u64 = (1 << 16) - 1;
const OPEN: u64 = 1 << 16;
const JOB: u64 = 1 << 17;

/// The job's number.
fn job(gate: u64) -> u64 {
    gate & !(OPEN | INSIDE)
}

struct Shared {
    gate: AtomicU64,
    task: Mutex<Option<Task>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

impl Shared {
    /// Counts the calling worker among those inside job `number`, if that still takes workers.
    fn enter(&self, number: u64) -> bool {
        let enters = |gate| (job(gate) == number && gate & OPEN != 0).then_some(gate + 1);
        self.gate
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, enters)
            .is_ok()
    }

    /// Ends the job for more workers and waits for those inside.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let inside = || self.gate.load(Ordering::Acquire) & INSIDE != 0;
        let mut clock = Clock::default();
        while inside() {
            if clock.spinning() {
                std::hint::spin_loop();
            } else {
                // The last worker to leave a closed job wakes its owner.
                std::thread::park();
            }
        }
    }
}

/// Tells when a thread has spun long enough, without asking for the time at every turn.
#[derive(Default)]
struct Clock {
    spins: u32,
    start: Option<Instant>,
}

impl Clock {
    fn spinning(&mut self) -> bool {
        self.spins = self.spins.wrapping_add(1);
        !self.spins.is_multiple_of(64) || self.start.get_or_insert_with(Instant::now).elapsed() < SPIN
    }
}

/// The pool. The calling thread works too, so a pool of n threads starts n - 1 workers.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One job at a time.
    busy: Mutex<()>,
}

impl Pool {
    /// A pool of `threads` threads (at least 1), the caller included.
    pub fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            task: Mutex::new(None),
            tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let workers = (1..threads.max(1))
            .filter_map(|i| {
                let shared = shared.clone();
                let name = format!("model1-cpu-{i}");
                // A thread that cannot be started leaves a smaller pool; results are the same.
                std::thread::Builder::new()
                    .name(name)
                    .spawn(move || worker(&shared))
                    .ok()
            })
            .collect();
        Self {
            shared,
            workers,
            busy: Mutex::new(()),
        }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0) .. f(tasks - 1)`, each once, and returns when all are done. A panic in a task is passed on.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        let nested = BUSY.with(std::cell::Cell::get);
        if tasks <= 1 || self.workers.is_empty() || nested {
            (0..tasks).for_each(f);
            return;
        }
        let _one = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let s = &*self.shared;
        let call = |data: *const (), i: usize| {
            // SAFETY: data points to `f`, which lives until this function returns.
            let f = unsafe { *data.cast::<&(dyn Fn(usize) + Sync)>() };
            f(i);
        };
        let task = Task {
            call,
            data: std::ptr::from_ref(&f).cast(),
            owner: std::thread::current(),
        };
        *s.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.clone());
        s.tasks.store(tasks, Ordering::Relaxed);
        s.next.store(0, Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        let number = job(s.gate.load(Ordering::Relaxed)).wrapping_add(JOB);
        s.gate.store(number | OPEN, Ordering::Release);
        if *s.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            s.wake.notify_all();
        }
        let mine = work(s, &task);
        // Workers inside hold a pointer to `f`: wait for every one of them, panic or not.
        s.close();
        *s.task.lock().unwrap_or_else(PoisonError::into_inner) = None;
        if let Err(payload) = mine {
            resume_unwind(payload);
        }
        if s.panicked.load(Ordering::Acquire) {
            resume_unwind(Box::new("a task of the thread pool panicked"));
        }
    }

    /// Splits `0..len` into ranges of `step` (the last may be shorter) and runs `f` on each.
    pub fn for_ranges(&self, len: usize, step: usize, f: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
        let step = step.max(1);
        self.run(len.div_ceil(step), &|i| f(i * step..len.min((i + 1) * step)));
    }
}

thread_local! {
    /// Whether this thread is inside a job: a job started from within one runs on this thread alone.
    static BUSY: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn work(s: &Shared, task: &Task) -> std::thread::Result<()> {
    let tasks = s.tasks.load(Ordering::Relaxed);
    BUSY.with(|b| b.set(true));
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let i = s.next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                return;
            }
            // SAFETY: the job's closure is alive until all workers inside have left.
            unsafe { (task.call)(task.data, i) };
        }
    }));
    BUSY.with(|b| b.set(false));
    result
}

fn worker(s: &Shared) {
    let mut seen = 0;
    loop {
        let mut clock = Clock::default();
        while job(s.gate.load(Ordering::Acquire)) == seen {
            if s.stop.load(Ordering::Relaxed) {
                return;
            }
            if clock.spinning() {
                std::hint::spin_loop();
                continue;
            }
            let mut sleepers = s.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            *sleepers += 1;
            while job(s.gate.load(Ordering::Acquire)) == seen && !s.stop.load(Ordering::Relaxed) {
                sleepers = s.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
            }
            *sleepers -= 1;
        }
        seen = job(s.gate.load(Ordering::Acquire));
        if !s.enter(seen) {
            continue;
        }
        let task = s.task.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(task) = &task
            && work(s, task).is_err()
        {
            s.panicked.store(true, Ordering::Release);
        }
        let before = s.gate.fetch_sub(1, Ordering::AcqRel);
        if before & (OPEN | INSIDE) == 1
            && let Some(task) = task
        {
            task.owner.unpark();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _guard = self.shared.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
        self.shared.wake.notify_all();
        drop(_guard);
        for w in self.workers.drain(..) {
            let _ = w.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            for tasks in [0, 1, 2, 7, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            }
        }
    }

    /// More threads than cores and hardly anything to do: workers come late, and jobs end without them.
    #[test]
    fn short_jobs_of_many_threads() {
        let pool = Pool::new(16);
        let sum = AtomicUsize::new(0);
        for round in 0..5000 {
            let tasks = round % 5;
            pool.run(tasks, &|i| {
                sum.fetch_add(i + 1, Ordering::Relaxed);
            });
        }
        assert_eq!(sum.load(Ordering::Relaxed), 1000 * (1 + 3 + 6 + 10));
    }

    /// Whoever waits for a long task sleeps, and is woken.
    #[test]
    fn long_tasks_are_waited_for() {
        let pool = Pool::new(4);
        for _ in 0..20 {
            let done = AtomicUsize::new(0);
            pool.run(4, &|i| {
                std::thread::sleep(Duration::from_millis(i as u64));
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.load(Ordering::Relaxed), 4);
        }
    }

    #[test]
    fn works_after_sleep_and_nested() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            let n = AtomicUsize::new(0);
            pool.run(10, &|_| {
                pool.run(10, &|_| {
                    n.fetch_add(1, Ordering::Relaxed);
                })
            });
            assert_eq!(n.load(Ordering::Relaxed), 100);
            std::thread::sleep(Duration::from_millis(3));
        }
    }

    #[test]
    fn a_panic_is_passed_on_and_the_pool_lives() {
        let pool = Pool::new(2);
        for bad in [0, 5, 99] {
            let run = catch_unwind(AssertUnwindSafe(|| pool.run(100, &|i| assert_ne!(i, bad))));
            assert!(run.is_err());
        }
        let n = AtomicUsize::new(0);
        pool.run(50, &|_| {
            n.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(n.load(Ordering::Relaxed), 50);
    }
}
