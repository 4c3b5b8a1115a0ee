//! A whole model behind 131,072 tokens whose records are made up, on the emulator.

use std::sync::Arc;

use engine::{Engine, Recipe};
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::Backend;
use model1_tests::goldens::{engine_with, folder, relative};
use model1_tests::synthetic::{LONG_MODELS, long_model, steps_behind};
use model1_tests_cuda::{Emulator, Order};

fn recipe(engine: &Engine, edits: &[&str]) -> Recipe {
    let mut recipe = engine.recipe();
    for edit in edits {
        recipe
            .set(edit, engine.facts(), engine.registry())
            .unwrap_or_else(|e| panic!("{edit}: {e}"));
    }
    recipe
}

#[test]
fn tiny_v4_at_128k_tokens() {
    let dir = tempfile::tempdir().unwrap();
    long_model(&folder("tiny-v4"), dir.path(), 1 << 18);
    for (edits, limit, steps) in LONG_MODELS {
        let run = |backend: Arc<dyn Backend>| {
            let engine = engine_with(dir.path(), backend).unwrap();
            steps_behind(&engine, recipe(&engine, edits), (1 << 17) - 2, steps)
        };
        let emulator = Arc::new(Emulator::new(Order::Ascending, true));
        let ours = run(Arc::new(Cuda::on(emulator, CudaOptions::default())));
        let want = run(Arc::new(CpuBackend::with(Cpu::exact(2))));
        assert_eq!(ours.len(), want.len());
        let mut worst = 0f64;
        for ((what, width, a), (_, _, b)) in ours.iter().zip(&want) {
            assert_eq!(a.len(), b.len(), "{edits:?}: {what}");
            for (a, b) in a.chunks(*width).zip(b.chunks(*width)) {
                worst = worst.max(relative(a, b));
                assert!(
                    relative(a, b) <= limit,
                    "{edits:?}: {what} differs by {:.1e}",
                    relative(a, b)
                );
            }
        }
        println!("{edits:?}: worst {worst:.1e}");
    }
}
