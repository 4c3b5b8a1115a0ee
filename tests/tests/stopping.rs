//! A step that is given up half-way leaves the session as it was before it: what follows is bit for bit what a session
//! that was never stopped computes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use engine::{Cancel, Engine, EngineError, SessionOptions};
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{
    Backend, CacheDesc, ExecError, Plan, State, StepOutput, StepRequest, WeightId, WeightSource, WeightView,
};
use model1_tests::goldens::{engine_with, folder};

/// The CPU, with a hand on the switch: the step is stopped when it asks for its n-th weight.
struct Switch {
    cpu: CpuBackend,
    /// Look-ups until then; 0 = never.
    left: AtomicUsize,
}

/// Weights that count how often they are asked for.
struct Counted<'a> {
    weights: &'a dyn WeightSource,
    left: &'a AtomicUsize,
    flag: &'a AtomicBool,
}

impl WeightSource for Counted<'_> {
    fn weight(&self, id: WeightId) -> Result<WeightView<'_>, ExecError> {
        let counted = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if counted == Ok(1) {
            self.flag.store(true, Ordering::Relaxed);
        }
        self.weights.weight(id)
    }
}

impl Backend for Switch {
    fn name(&self) -> &'static str {
        self.cpu.name()
    }

    fn describe(&self) -> String {
        self.cpu.describe()
    }

    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        self.cpu.new_state(caches, context)
    }

    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let flag = AtomicBool::new(false);
        let counted = Counted {
            weights,
            left: &self.left,
            flag: &flag,
        };
        let request = StepRequest {
            cancel: Some(&flag),
            ..*request
        };
        self.cpu.run(plan, &counted, state, &request, out)
    }
}

fn ids(engine: &Engine, n: usize, salt: u32) -> Vec<u32> {
    let vocab = engine.facts().vocab as u32;
    (0..n as u32)
        .map(|i| (i * 7919 + 13 * salt) % (vocab - 2) + 2)
        .collect()
}

#[test]
fn a_step_given_up_half_way_leaves_no_trace() {
    for name in ["tiny-llama", "tiny-v4", "tiny-v4-fp8"] {
        let backend = Arc::new(Switch {
            cpu: CpuBackend::new(2),
            left: AtomicUsize::new(0),
        });
        let engine = engine_with(&folder(name), backend.clone()).unwrap();
        let (given_up, taken) = (ids(&engine, 90, 3), ids(&engine, 90, 5));
        // Before a text, within a block of rows, at a checkpoint.
        for before in [0, 37, 128] {
            let start = ids(&engine, before, 1);
            let none = Cancel::default();
            let fresh = || {
                let mut s = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
                if before > 0 {
                    s.feed(&start, None, &none, &mut ()).unwrap();
                }
                s
            };
            let mut plain = fresh();
            plain.feed(&taken, None, &none, &mut ()).unwrap();
            // At several places of the plan, the last ones included.
            let mut stopped = 0;
            for at in [1, 4, 9, 17, 23, 30, 41] {
                let mut session = fresh();
                backend.left.store(at, Ordering::Relaxed);
                let end = session.feed(&given_up, None, &none, &mut ());
                if backend.left.swap(0, Ordering::Relaxed) > 0 {
                    continue; // the plan asks for fewer weights
                }
                stopped += 1;
                assert!(
                    matches!(end, Err(EngineError::Cancelled)),
                    "{name} {before} {at}: {end:?}"
                );
                // Whole chunks before the one given up stay.
                let kept = session.position() as usize;
                assert!(
                    kept >= before && (kept == before || kept.is_multiple_of(128)),
                    "{name} {before} {at}: {kept}"
                );
                session.truncate(before as u64, &none).unwrap();
                session.feed(&taken, None, &none, &mut ()).unwrap();
                assert_eq!(session.output().logits, plain.output().logits, "{name} {before} {at}");
            }
            assert!(stopped >= 5, "{name} {before}: stopped {stopped} times");
        }
    }
}
