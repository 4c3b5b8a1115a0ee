//! A few threads for what waits for disk or network, so that neither clients nor the engine do.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

/// Threads. Three, so that a long scan of fonts and a slow disk leave one for the rest.
const THREADS: usize = 3;
/// Most errands that wait. More are refused: somebody asks faster than the disk answers.
const MOST: usize = 256;

type Errand = Box<dyn FnOnce() + Send>;

struct Queue {
    errands: VecDeque<Errand>,
    closed: bool,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// The threads' end that gives them work.
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts the threads.
    ///
    /// # Errors
    /// No thread could be made.
    pub fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue {
                errands: VecDeque::new(),
                closed: false,
            }),
            wake: Condvar::new(),
        });
        for i in 0..THREADS {
            let shared = shared.clone();
            let name = format!("host-errand-{i}");
            std::thread::Builder::new().name(name).spawn(move || run(&shared))?;
        }
        Ok(Self { shared })
    }

    /// Gives an errand; false if there are too many or the pool is closed (the errand is dropped).
    pub fn run(&self, errand: impl FnOnce() + Send + 'static) -> bool {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        if queue.closed || queue.errands.len() >= MOST {
            return false;
        }
        queue.errands.push_back(Box::new(errand));
        drop(queue);
        self.shared.wake.notify_one();
        true
    }

    /// Lets the threads end; errands that wait are dropped.
    pub fn close(&self) {
        let mut queue = self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.closed = true;
        let dropped = std::mem::take(&mut queue.errands);
        drop(queue);
        drop(dropped);
        self.shared.wake.notify_all();
    }
}

fn run(shared: &Shared) {
    loop {
        let errand = {
            let mut queue = shared.queue.lock().unwrap_or_else(PoisonError::into_inner);
            loop {
                if queue.closed {
                    return;
                }
                match queue.errands.pop_front() {
                    Some(errand) => break errand,
                    None => queue = shared.wake.wait(queue).unwrap_or_else(PoisonError::into_inner),
                }
            }
        };
        // A fault in one errand must not take the thread along; whoever waits is answered when it is dropped.
        if catch_unwind(AssertUnwindSafe(errand)).is_err() {
            tracing::error!("an errand panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_panic_costs_one_errand_only() {
        let pool = Pool::start().unwrap();
        let (tell, told) = mpsc::channel();
        for _ in 0..2 * THREADS {
            assert!(pool.run(|| panic!("on purpose")));
        }
        assert!(pool.run(move || tell.send(5).unwrap()));
        assert_eq!(told.recv().unwrap(), 5);
        pool.close();
        assert!(!pool.run(|| ()));
    }
}
