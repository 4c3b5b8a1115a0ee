//! Batched decode on the emulator: sequences taken through steps together against the same ones alone.

use std::path::Path;
use std::sync::Arc;

use engine::Engine;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::{CacheDesc, ExecError, Plan, State, StepOutput, StepParams, StepRequest};
use model1_tests::batch::{self, Sequence, greedy, read};
use model1_tests::goldens::{engine_with, folder};
use model1_tests::models::one_head_llama;
use model1_tests_cuda::{Emulator, Order};

/// fp32 tolerance of MODEL1.md 10.3.
const TOLERANCE: f32 = 2e-4;

fn open(path: &Path, guarded: bool) -> (Arc<Engine>, Arc<Emulator>) {
    let device = Arc::new(Emulator::new(Order::Ascending, !guarded));
    let options = CudaOptions {
        graphs: !guarded,
        guarded,
        ..CudaOptions::default()
    };
    let engine = engine_with(path, Arc::new(Cuda::on(device.clone(), options)));
    (engine.unwrap_or_else(|e| panic!("{}: {e}", path.display())), device)
}

fn engine(name: &str) -> Arc<Engine> {
    open(&folder(name), false).0
}

/// Through graphs, and with sentinels and poisoned buffers.
fn lengths(name: &str) {
    for (guarded, steps) in [(false, 8), (true, 4)] {
        let said = batch::lengths(&open(&folder(name), guarded).0, steps, TOLERANCE);
        println!("{name}: {said}");
    }
}

#[test]
fn plain_models() {
    lengths("tiny-llama");
}

#[test]
fn plain_models_with_learned_positions() {
    lengths("tiny-gpt2");
}

#[test]
fn plain_models_with_biases() {
    lengths("tiny-qwen2");
}

#[test]
fn model1() {
    lengths("tiny-v4");
}

#[test]
fn sequences_come_and_go() {
    for name in ["tiny-llama", "tiny-v4"] {
        batch::come_and_go(&engine(name), TOLERANCE);
    }
}

#[test]
fn sequences_go_back() {
    for name in ["tiny-llama", "tiny-v4"] {
        batch::go_back(&engine(name));
    }
}

#[test]
fn every_sequence_draws_by_its_own_settings() {
    for name in ["tiny-llama", "tiny-v4"] {
        batch::draws(&engine(name), 12);
    }
}

#[test]
fn refused_and_taken_apart() {
    for name in ["tiny-llama", "tiny-v4"] {
        batch::refused_and_apart(&engine(name), &engine(name));
    }
}

/// Attention of all sequences in one launch.
#[test]
fn heads_that_have_a_kernel_for_several_sequences() {
    let dir = tempfile::tempdir().unwrap();
    one_head_llama(dir.path());
    let (engine, device) = open(dir.path(), false);
    println!("{}", batch::lengths(&engine, 6, TOLERANCE));
    let each = |name: &&&str| name.starts_with("attend_keys_64x1") && name.ends_with("_each");
    let launched = device.launched();
    assert_eq!(launched.keys().filter(each).count(), 1, "{launched:?}");
}

/// Launches of products do not grow with the sequences; those of attention do.
#[test]
fn weights_are_read_once_for_all() {
    let launched = |n: usize| {
        let (engine, device) = open(&folder("tiny-llama"), false);
        let mut all = read(&engine, &vec![6; n]);
        greedy(&mut all, 1);
        let before = device.launched();
        greedy(&mut all, 3);
        let count = |kernel: &str| {
            let of = |all: &std::collections::BTreeMap<&'static str, u64>| -> u64 {
                all.iter().filter(|(k, _)| k.starts_with(kernel)).map(|(_, n)| n).sum()
            };
            of(&device.launched()) - of(&before)
        };
        (count("gemv"), count("attend"))
    };
    let (two, eight) = (launched(2), launched(8));
    assert!(two.0 > 0 && two.1 > 0, "{two:?}");
    assert_eq!(eight, (two.0, 4 * two.1));
}

#[test]
fn sequences_fork() {
    for name in ["tiny-llama", "tiny-v4"] {
        batch::forks(&engine(name), &[5, 150]);
    }
}

/// What the backend is asked for directly.
#[test]
fn states_that_do_not_fit_the_plan() {
    let engine = engine("tiny-llama");
    let mut session = Sequence::read(&engine, 4, 1).session;
    let plan = session.plan(1, 4);
    let backend = engine.backend();
    let state = |caches: &[CacheDesc]| backend.new_state(caches, 8).unwrap();
    let request = StepRequest {
        step: StepParams::new(0, 1),
        ids: &[3],
        history: &[3],
        sampler: None,
        trace: false,
        ahead: false,
        cancel: None,
    };
    let run_plan = |plan: &Plan, states: &mut [&mut dyn State], n: usize, outs: usize| {
        let mut outs = vec![StepOutput::default(); outs];
        backend.run_batch(plan, engine.weights(), states, &vec![request; n], &mut outs)
    };
    let run = |states: &mut [&mut dyn State], n: usize, outs: usize| run_plan(&plan, states, n, outs);
    let (mut a, mut b, mut less) = (state(&plan.caches), state(&plan.caches), state(&plan.caches[1..]));
    let said = |found: Result<Option<String>, ExecError>, words: &str| {
        let e = found.unwrap_err().to_string();
        assert!(e.contains(words), "{e}");
    };
    said(run(&mut [], 0, 0), "batch");
    said(
        run(&mut [a.as_mut(), b.as_mut()], 1, 2),
        "2 states, 1 steps and 2 outputs",
    );
    said(run(&mut [a.as_mut(), less.as_mut()], 2, 2), "cache components");
    assert_eq!(run(&mut [a.as_mut(), b.as_mut()], 2, 2).unwrap(), None);
    let many = session.plan(3, 4);
    let why = run_plan(&many, &mut [a.as_mut(), b.as_mut()], 2, 2).unwrap().unwrap();
    assert!(why.contains("for 8 tokens"), "{why}");
}
