//! A whole model at a context of 131,072 tokens: behind made-up records, and read from the first token on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::{Cancel, Engine, Recipe, SessionOptions};
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::Backend;
use model1_tests::goldens::{argmax, engine_with, relative};
use model1_tests::synthetic::{LONG_MODELS, long_model, steps_behind};

use crate::runner::{Bench, Case};

/// Tokens of a long context.
const LONG: usize = 1 << 17;

/// A folder that goes when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn tiny_v4(b: &Bench) -> Self {
        let folder = Self(std::env::temp_dir().join(format!("model1-long-{}", std::process::id())));
        long_model(&b.golden("tiny-v4"), &folder.0, 2 * LONG);
        folder
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Left in the folder for temporary files if it cannot be deleted.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The cases.
pub fn cases() -> Vec<Case> {
    let behind = LONG_MODELS.into_iter().map(|(edits, limit, steps)| {
        Case::new(
            "long",
            format!("tiny-v4 behind 131,070 made-up tokens {}", edits.join(" ")),
            move |b| {
                let folder = Folder::tiny_v4(b);
                let run = |backend: Arc<dyn Backend>| {
                    let engine = open(&folder.0, backend);
                    steps_behind(&engine, edited(&engine, edits), LONG as u64 - 2, steps)
                };
                let (ours, want) = (run(b.cuda()), run(exact()));
                assert_eq!(ours.len(), want.len());
                let mut worst = 0f64;
                for ((what, width, a), (_, _, w)) in ours.iter().zip(&want) {
                    assert_eq!(a.len(), w.len(), "{what}");
                    for (a, w) in a.chunks(*width).zip(w.chunks(*width)) {
                        worst = worst.max(relative(a, w));
                        assert!(relative(a, w) <= limit, "{what} differs by {:.1e}", relative(a, w));
                    }
                }
                assert!(ours == run(b.cuda()), "other bits the second time");
                format!("{} rows of layers and logits: worst {worst:.1e}", ours.len())
            },
        )
    });
    behind
        .chain([Case::new("long", "tiny-v4: a text of 131,072 tokens", read_through)])
        .collect()
}

fn exact() -> Arc<dyn Backend> {
    Arc::new(CpuBackend::with(Cpu::exact(engine::default_threads())))
}

fn open(path: &Path, backend: Arc<dyn Backend>) -> Arc<Engine> {
    engine_with(path, backend).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn edited(engine: &Engine, edits: &[&str]) -> Recipe {
    let mut recipe = engine.recipe();
    for edit in edits {
        recipe
            .set(edit, engine.facts(), engine.registry())
            .unwrap_or_else(|e| panic!("{edit}: {e}"));
    }
    recipe
}

/// Reads a text to a context of 131,072 tokens on both devices, the last 16 tokens one at a time, whose logits are compared.
fn read_through(b: &Bench) -> String {
    const LAST: usize = 16;
    let folder = Folder::tiny_v4(b);
    let n = if b.quick { LONG / 4 } else { LONG };
    let run = |backend: Arc<dyn Backend>| {
        let engine = open(&folder.0, backend);
        let recipe = edited(&engine, &["layers.*.kv_cache=f32", "layers.2,4.index_cache=f32"]);
        let vocab = engine.facts().vocab as u64;
        let ids: Vec<u32> = (0..n as u64)
            .map(|i| (i * i * 7919 / 64 % (vocab - 2) + 2) as u32)
            .collect();
        let mut session = engine.session(recipe, SessionOptions::default()).unwrap();
        let start = Instant::now();
        session
            .feed(&ids[..n - LAST], None, &Cancel::default(), &mut ())
            .unwrap();
        let mut logits = Vec::new();
        for id in &ids[n - LAST..] {
            session.feed(&[*id], None, &Cancel::default(), &mut ()).unwrap();
            logits.push(session.output().logits.clone());
        }
        (logits, start.elapsed().as_secs_f64())
    };
    let (ours, seconds) = run(b.cuda());
    let (again, _) = run(b.cuda());
    assert!(ours == again, "other bits the second time");
    let (want, cpu_seconds) = run(exact());
    let each: Vec<f64> = ours.iter().zip(&want).map(|(a, w)| relative(a, w)).collect();
    let worst = each.iter().copied().fold(0.0, f64::max);
    let same = ours.iter().zip(&want).filter(|(a, w)| argmax(a) == argmax(w)).count();
    let text = format!(
        "logits of the last {LAST} of {n} tokens: worst {worst:.1e}, likeliest token the same for {same}; {seconds:.1} s, \
         on the CPU {cpu_seconds:.1} s"
    );
    assert!(worst <= 1e-3, "{text}");
    text
}
