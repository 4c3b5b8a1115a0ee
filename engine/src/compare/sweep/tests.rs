//! Sweeps on tiny models against single comparisons.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::cpu::exec::CpuBackend;
use kernels::ir::{
    Backend, CacheDesc, CacheId, ExecError, KvBytes, Plan, Snapshot, State, StepOutput, StepRequest, WeightSource,
};
use protocol::{CompareSpec, CompareText, RecipeRef};

use super::*;
use crate::compare::{CompareJob, compare};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::goldens::{engine, ids};
use crate::recipe::Recipe;
use crate::session::Cancel;
use crate::watch::Watch;

fn axes(list: &[&str]) -> Vec<Axis> {
    list.iter().map(|t| Axis::parse(t).unwrap()).collect()
}

fn measure(sweep: &mut Sweep, candidates: &[Candidate]) -> (Measured, usize) {
    let mut kept = 0;
    let mut seen = Vec::new();
    let measured = sweep
        .measure(
            candidates,
            &mut Watch {
                cancel: &Cancel::default(),
                progress: &mut |done, total| seen.push((done, total)),
            },
            &mut |event| {
                kept += usize::from(matches!(event, Event::Row(_)));
                Ok(())
            },
        )
        .unwrap();
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0 && w[0].1 == w[1].1));
    assert_eq!(seen.last().map(|s| s.0), seen.last().map(|s| s.1));
    (measured, kept)
}

fn alone(engine: &Arc<Engine>, b: &Recipe, n: usize) -> protocol::CompareResult {
    let spec = CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        text: CompareText::Current,
        positions: n as u64,
        isolate: false,
    };
    let job = CompareJob::from_parts(engine, spec, engine.recipe(), b.clone(), ids(engine, n)).unwrap();
    let mut watch = Watch {
        cancel: &Cancel::default(),
        progress: &mut |_, _| {},
    };
    compare(engine, &job, &mut watch).unwrap()
}

#[test]
fn axes_are_read() {
    let a = Axis::parse("layers.*.attention=dense,sliding_window:window=64,sinks=4,top_k:k=8").unwrap();
    let words: Vec<String> = a.choices.iter().map(ToString::to_string).collect();
    assert_eq!(words, ["dense", "sliding_window:sinks=4,window=64", "top_k:k=8"]);
    for bad in [
        "layers.*.kv_cache",
        "weights.lm_head=",
        "weights.lm_head= , ",
        "x=top_k:k",
    ] {
        assert!(Axis::parse(bad).unwrap_err().contains("accepted"), "{bad}");
    }
}

#[test]
fn every_combination_comes_once_and_refusals_are_told() {
    let engine = engine("tiny-v4");
    let a = engine.recipe();
    let two = axes(&["layers.*.kv_cache=bf16,f32", "weights.lm_head=own,bf16,fp8"]);
    let (some, refused) = grid(&engine, &a, &two).unwrap();
    let hashes: std::collections::BTreeSet<String> = some.iter().map(|c| c.recipe.hash()).collect();
    assert_eq!((hashes.len(), refused.len()), (some.len(), 0));
    // One of the six is A itself where A has bf16 or f32 caches throughout.
    assert!(
        (5..=6).contains(&some.len()) && !hashes.contains(&a.hash()),
        "{}",
        some.len()
    );
    // This model's rows are too narrow for the 584-byte record.
    let (none, refused) = grid(&engine, &a, &axes(&["layers.*.kv_cache=fp8_model1"])).unwrap();
    assert!(
        none.is_empty() && refused.len() == 1 && !refused[0].reason.is_empty(),
        "{refused:?}"
    );
    // Layers without an indexer are left out of `layers.*`.
    let (one, _) = singles(&engine, &a, &axes(&["layers.*.index_cache=bf16,f32"])).unwrap();
    let with = a.layers.iter().filter(|l| l.index_cache.is_some()).count();
    assert!(
        with > 0 && one.len() >= with && one.len() <= 2 * with,
        "{} for {with}",
        one.len()
    );
    assert!(one.iter().all(|c| c.edits.len() == 1));
    assert!(grid(&engine, &a, &axes(&["layers.99.ffn=own"])).is_err());
}

#[test]
fn rows_equal_single_comparisons_bit_for_bit() {
    let engine = engine("tiny-v4");
    let n = 150;
    let mut sweep = Sweep::new(&engine, engine.recipe(), ids(&engine, n), 1000).unwrap();
    let three = axes(&[
        "layers.*.kv_cache=f32,bf16,fp8_b64",
        "weights.lm_head=own,fp8",
        "layers.*.attention=own,top_k:k=4",
    ]);
    let (some, _) = grid(&engine, sweep.a(), &three).unwrap();
    // More than one pass.
    assert!(some.len() > 8, "{}", some.len());
    let all: Vec<Candidate> = std::iter::once(sweep.base()).chain(some).collect();
    let (measured, kept) = measure(&mut sweep, &all);
    assert_eq!(
        (measured.rows.len(), kept, measured.failed.len()),
        (all.len(), all.len(), 0)
    );
    assert_eq!((measured.rows[0].kl.mean, measured.rows[0].kl.max), (0.0, 0.0));
    assert_eq!(measured.rows[0].same_top1[0], 1.0);
    for i in [1, 4, all.len() - 1] {
        let (row, single) = (&measured.rows[i], alone(&engine, &all[i].recipe, n));
        assert_eq!(row.hash, single.sides[1].hash);
        assert_eq!(row.kl, single.kl);
        assert_eq!(row.same_top1, single.same_top1);
        assert_eq!(row.ln_ppl_ratio, single.ln_ppl_ratio);
        assert_eq!(row.perplexity, single.sides[1].perplexity);
        assert_eq!(row.kv, single.sides[1].kv.total());
        assert!(row.decode_tokens_per_s > 0.0 && row.step_bytes > 0);
    }
    // Known rows are not measured again, and rows made elsewhere are taken as they are.
    assert_eq!(measure(&mut sweep, &all).1, 0);
    let mut again = Sweep::new(&engine, engine.recipe(), ids(&engine, n), 1000).unwrap();
    again.know(measured.rows[..5].to_vec());
    let (same, kept) = measure(&mut again, &all);
    assert_eq!(kept, all.len() - 5);
    for (x, y) in same.rows.iter().zip(&measured.rows) {
        assert_eq!((&x.hash, x.kl, x.step_bytes), (&y.hash, y.kl, y.step_bytes));
    }
}

#[test]
fn what_was_measured_before_a_stop_stays() {
    let engine = engine("tiny-v4");
    let mut sweep = Sweep::new(&engine, engine.recipe(), ids(&engine, 60), 60).unwrap();
    let (singles, _) = singles(&engine, sweep.a(), &axes(&["layers.*.kv_cache=f32,bf16,fp8_b64"])).unwrap();
    assert!(singles.len() > 8);
    let cancel = Cancel::default();
    let mut kept = Vec::new();
    let stopped = sweep.measure(
        &singles,
        &mut Watch {
            cancel: &cancel,
            progress: &mut |_, _| {},
        },
        &mut |event| {
            if let Event::Row(row) = event {
                kept.push(row.hash.clone());
            }
            if kept.len() == 8 {
                cancel.cancel();
            }
            Ok(())
        },
    );
    assert!(matches!(stopped, Err(EngineError::Cancelled)));
    assert_eq!(kept.len(), 8);
    assert_eq!(measure(&mut sweep, &singles).1, singles.len() - 8);
}

#[test]
fn the_front_is_what_nothing_beats() {
    let engine = engine("tiny-v4");
    let mut sweep = Sweep::new(&engine, engine.recipe(), ids(&engine, 40), 40).unwrap();
    let base = sweep.base();
    let row = measure(&mut sweep, &[base]).0.rows.remove(0);
    let make = |bytes: u64, kl: f64| {
        let mut r = row.clone();
        r.step_bytes = bytes;
        r.kl.mean = kl;
        r
    };
    let rows = [
        make(100, 0.0),
        make(80, 0.2),
        make(80, 0.1),
        make(90, 0.3),
        make(50, 0.5),
        make(50, 0.5),
    ];
    assert_eq!(front(&rows, Price::Bytes), [true, false, true, false, true, true]);
}

#[test]
fn the_recommendation_keeps_its_budget() {
    let engine = engine("tiny-v4");
    let n = 120;
    // A with f32 caches: every other format saves bytes.
    let mut a = engine.recipe();
    a.set("layers.*.kv_cache=f32", engine.facts(), engine.registry())
        .unwrap();
    let mut sweep = Sweep::new(&engine, a.clone(), ids(&engine, n), 1000).unwrap();
    let places = axes(&["layers.*.kv_cache=bf16,fp8_b64", "weights.lm_head=fp8"]);
    let (candidates, _) = singles(&engine, &a, &places).unwrap();
    let start = sweep.base();
    let base = measure(&mut sweep, &[start]).0.rows.remove(0);
    let (measured, _) = measure(&mut sweep, &candidates);
    let pairs: Vec<_> = candidates.iter().cloned().zip(measured.rows.clone()).collect();
    let worst = measured.rows.iter().map(|r| r.kl.mean).fold(0.0, f64::max);
    assert!(worst > 0.0);
    let mut watch = Watch {
        cancel: &Cancel::default(),
        progress: &mut |_, _| {},
    };
    let mut ask = |budget: f64, sweep: &mut Sweep| {
        recommend(sweep, &base, &pairs, &[], budget, &mut watch, &mut |_| Ok(())).unwrap()
    };
    // Everything at once is within a budget that has no end.
    let all = ask(f64::INFINITY, &mut sweep).unwrap();
    let cheapest = measured.rows.iter().map(|r| r.step_bytes).min().unwrap();
    assert!(all.row.step_bytes < cheapest, "several changes save more than one");
    // Half of what that costs: within the budget, cheaper than A, and true when measured again.
    let budget = 0.5 * all.row.kl.mean;
    let some = ask(budget, &mut sweep).unwrap();
    assert!(some.row.kl.mean <= budget && some.row.step_bytes < base.step_bytes);
    assert!(some.row.step_bytes > all.row.step_bytes);
    assert_eq!(some.recipe.hash(), some.row.hash);
    let mut fresh = Sweep::new(&engine, a.clone(), ids(&engine, n), 1000).unwrap();
    let again = measure(&mut fresh, &[Candidate::new(&a, some.recipe.clone())])
        .0
        .rows
        .remove(0);
    assert_eq!(again.kl, some.row.kl);
    // No budget, no change: every one of these formats rounds.
    let exact = ask(0.0, &mut sweep);
    assert!(exact.is_none_or(|r| r.row.kl.mean == 0.0));
}

/// A device whose memory is full when more than so many caches hold more than 30 tokens.
struct Small {
    cpu: CpuBackend,
    caches: Arc<AtomicUsize>,
    most: usize,
}

struct Held(Box<dyn State>, Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.1.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State for Held {
    fn as_any_mut(&mut self) -> &mut dyn std::any::Any {
        self.0.as_any_mut()
    }
    fn caches(&self) -> &[CacheDesc] {
        self.0.caches()
    }
    fn reserve(&mut self, context: u64) -> Result<(), ExecError> {
        self.0.reserve(context)
    }
    fn expect(&mut self, context: u64) -> Result<(), ExecError> {
        self.0.expect(context)
    }
    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError> {
        self.0.snapshot(position)
    }
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError> {
        self.0.restore(snapshot)
    }
    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError> {
        self.0.reformat(cache, desc, position)
    }
    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        self.0.read_rows(cache, first, count)
    }
    fn fork(&self, position: u64) -> Result<Box<dyn State>, ExecError> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Held(self.0.fork(position)?, self.1.clone())))
    }
    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)> {
        self.0.kv_bytes(context)
    }
}

impl Backend for Small {
    fn name(&self) -> &'static str {
        self.cpu.name()
    }
    fn describe(&self) -> String {
        self.cpu.describe()
    }
    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        self.caches.fetch_add(1, Ordering::Relaxed);
        Ok(Box::new(Held(
            self.cpu.new_state(caches, context)?,
            self.caches.clone(),
        )))
    }
    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        if request.step.position > 30 && self.caches.load(Ordering::Relaxed) > self.most {
            return Err(ExecError::OutOfMemory {
                what: "the KV cache".into(),
                bytes: 1 << 20,
            });
        }
        self.cpu.run(plan, weights, state, request, out)
    }
}

fn small(most: usize) -> Arc<Engine> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tiny-v4");
    let backend = Small {
        cpu: CpuBackend::new(2),
        caches: Arc::default(),
        most,
    };
    let checkpoint = checkpoint::Checkpoint::open(&path, &crate::Silent).unwrap();
    Engine::with_backend(checkpoint, Arc::new(backend), crate::Registry::default()).unwrap()
}

#[test]
fn memory_that_runs_out_half_way_costs_time_or_single_recipes_and_nothing_that_is_done() {
    let edits = axes(&["layers.*.kv_cache=f32,bf16,fp8_b64"]);
    let roomy = engine("tiny-v4");
    let mut sweep = Sweep::new(&roomy, roomy.recipe(), ids(&roomy, 60), 60).unwrap();
    let (candidates, _) = singles(&roomy, sweep.a(), &edits).unwrap();
    assert!(candidates.len() > 8);
    let whole = measure(&mut sweep, &candidates).0.rows;

    // Three caches fit: eight at a time fail in the middle of the text, and two at a time beside A do not.
    let engine = small(3);
    let mut sweep = Sweep::new(&engine, engine.recipe(), ids(&engine, 60), 60).unwrap();
    let (measured, kept) = measure(&mut sweep, &candidates);
    assert_eq!((kept, measured.failed.len()), (candidates.len(), 0));
    for (x, y) in measured.rows.iter().zip(&whole) {
        assert_eq!((&x.hash, x.kl, x.kv), (&y.hash, y.kl, y.kv));
    }

    // A alone fits: what was measured before stays, and every other recipe says what it lacked.
    let engine = small(1);
    let mut sweep = Sweep::new(&engine, engine.recipe(), ids(&engine, 60), 60).unwrap();
    sweep.know(whole[..3].to_vec());
    let mut told = Vec::new();
    let measured = sweep
        .measure(
            &candidates,
            &mut Watch {
                cancel: &Cancel::default(),
                progress: &mut |_, _| {},
            },
            &mut |event| {
                if let Event::Failed { candidate, reason } = event {
                    told.push((candidate.edits.clone(), reason.to_string()));
                }
                Ok(())
            },
        )
        .unwrap();
    assert_eq!(measured.rows, whole[..3]);
    assert_eq!(measured.failed.len(), candidates.len() - 3);
    assert_eq!(measured.failed, told);
    assert!(
        told[0].1.contains("not enough memory") && told[0].1.contains("the KV cache"),
        "{told:?}"
    );
    assert_eq!(told[0].0, candidates[3].edits);
}
