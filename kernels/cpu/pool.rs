//! A fork-join thread pool with low latency: workers spin for a moment after a job, then sleep.
//!
//! A job is a number of tasks; which thread runs which task never affects results, because every output element is
//! computed wholly by one task in a fixed order.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle worker spins before it sleeps.
const SPIN: Duration = Duration::from_micros(100);

/// The closure of the job in progress, its lifetime erased; valid while `active` workers are counted.
#[derive(Clone, Copy)]
struct Task {
    call: unsafe fn(*const (), usize),
    data: *const (),
}

// SAFETY: the closure is Sync (required by `run`) and outlives the job (run waits for all workers).
unsafe impl Send for Task {}

struct Shared {
    /// Job number; odd values never occur. Workers wait for it to change.
    epoch: AtomicU64,
    task: Mutex<Option<Task>>,
    tasks: AtomicUsize,
    next: AtomicUsize,
    /// Workers still to finish the current job.
    active: AtomicUsize,
    panicked: AtomicBool,
    stop: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
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
            epoch: AtomicU64::new(0),
            task: Mutex::new(None),
            tasks: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
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
        };
        *s.task.lock().unwrap_or_else(PoisonError::into_inner) = Some(task);
        s.tasks.store(tasks, Ordering::Relaxed);
        s.next.store(0, Ordering::Relaxed);
        s.active.store(self.workers.len(), Ordering::Relaxed);
        s.panicked.store(false, Ordering::Relaxed);
        s.epoch.fetch_add(2, Ordering::Release);
        if *s.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            s.wake.notify_all();
        }
        let mine = work(s, task);
        // Workers hold a pointer to `f`: wait for every one of them, panic or not.
        let mut spins = 0u32;
        while s.active.load(Ordering::Acquire) != 0 {
            spins += 1;
            if spins < 20_000 {
                std::hint::spin_loop()
            } else {
                std::thread::yield_now()
            }
        }
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

fn work(s: &Shared, task: Task) -> std::thread::Result<()> {
    let tasks = s.tasks.load(Ordering::Relaxed);
    BUSY.with(|b| b.set(true));
    let result = catch_unwind(AssertUnwindSafe(|| {
        loop {
            let i = s.next.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                return;
            }
            // SAFETY: the job's closure is alive until all workers have counted down.
            unsafe { (task.call)(task.data, i) };
        }
    }));
    BUSY.with(|b| b.set(false));
    result
}

fn worker(s: &Shared) {
    let mut seen = 0;
    loop {
        let start = Instant::now();
        let mut spins = 0u32;
        while s.epoch.load(Ordering::Acquire) == seen {
            if s.stop.load(Ordering::Relaxed) {
                return;
            }
            spins += 1;
            if !spins.is_multiple_of(64) || start.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let mut sleepers = s.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
            *sleepers += 1;
            while s.epoch.load(Ordering::Acquire) == seen && !s.stop.load(Ordering::Relaxed) {
                sleepers = s.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
            }
            *sleepers -= 1;
        }
        seen = s.epoch.load(Ordering::Acquire);
        let task = *s.task.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(task) = task
            && work(s, task).is_err()
        {
            s.panicked.store(true, Ordering::Release);
        }
        s.active.fetch_sub(1, Ordering::Release);
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
