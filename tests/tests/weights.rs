//! Weights in other storages: against checkpoints that hold the same rounded values, rounded here on their own.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use engine::{Cancel, Engine, Recipe, SessionOptions};
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{Backend, CacheDesc, ExecError, Op, Plan, State, StepOutput, StepRequest, WeightDesc, WeightSource};
use model1_tests::goldens::{engine, engine_with, folder, relative, run};
use model1_tests::models::{Stored, config, tensors_of, write};

const SLOTS: [&str; 4] = [
    "weights.attention",
    "weights.ffn",
    "weights.embedding",
    "weights.lm_head",
];

fn recipe(engine: &Engine, edits: &[&str]) -> Recipe {
    let mut r = engine.recipe();
    for e in edits {
        r.set(e, engine.facts(), engine.registry())
            .unwrap_or_else(|e| panic!("{e}"));
    }
    r
}

fn ids(engine: &Engine, n: u32) -> Vec<u32> {
    let vocab = engine.facts().vocab as u32;
    (0..n).map(|i| (i * 7919 + 13) % (vocab - 2) + 2).collect()
}

/// The nearest of some magnitudes, ascending by code; a tie goes to the even code.
fn nearest(values: &[f64], x: f64) -> f64 {
    let mut best = 0;
    for (code, v) in values.iter().enumerate() {
        let (now, then) = ((v - x.abs()).abs(), (values[best] - x.abs()).abs());
        if now < then || now == then && code % 2 == 0 {
            best = code;
        }
    }
    values[best].copysign(x)
}

/// The smallest power of two under which `most` is at most `top`.
fn scale(most: f64, top: f64) -> f64 {
    (-126..128).map(|e| 2f64.powi(e)).find(|s| most <= top * s).unwrap()
}

/// A matrix `[rows, cols]` rounded as a storage rounds it.
fn rounded(storage: &str, w: &[f32], cols: usize) -> Vec<f32> {
    let e2m1: Vec<f64> = vec![0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    // 1.m x 2^(e-7), and multiples of 2^-9 below 2^-6; the last code is NaN.
    let e4m3: Vec<f64> = (0..127)
        .map(|c| match (c / 8, f64::from(c % 8) / 8.0) {
            (0, m) => m * 2f64.powi(-6),
            (e, m) => (1.0 + m) * 2f64.powi(e - 7),
        })
        .collect();
    let (values, top, block_rows, block_cols, floor) = match storage {
        "bf16" => return w.iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect(),
        "fp8" => (e4m3, 448.0, 128, 128, 1e-4),
        _ => (e2m1, 6.0, 1, 32, 0.0),
    };
    let (rows, blocks) = (w.len() / cols, cols.div_ceil(block_cols));
    let mut most = vec![floor; rows.div_ceil(block_rows) * blocks];
    let block = |i: usize| i / cols / block_rows * blocks + i % cols / block_cols;
    for (i, x) in w.iter().enumerate() {
        most[block(i)] = f64::from(x.abs()).max(most[block(i)]);
    }
    let of = |(i, x): (usize, &f32)| {
        let s = scale(most[block(i)], top);
        (nearest(&values, f64::from(*x) / s) * s) as f32
    };
    w.iter().enumerate().map(of).collect()
}

/// Which slot's matrix a tensor is, if any.
fn slot_of(name: &str, shape: &[usize]) -> Option<&'static str> {
    let has = |parts: &[&str]| parts.iter().any(|p| name.contains(p));
    if shape.len() < 2 || has(&["wpe", ".ape", "hc_", ".gate.weight", "tid2eid"]) {
        return None;
    }
    Some(match () {
        () if has(&["wte", "embed_tokens"]) => "weights.embedding",
        () if has(&["lm_head", "head.weight"]) => "weights.lm_head",
        () if has(&["mlp.", ".ffn."]) => "weights.ffn",
        () if has(&["attn"]) => "weights.attention",
        () => panic!("{name}: of which block?"),
    })
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// A tensor as its matrices hold it after rounding.
fn round_tensor(name: &str, (dtype, shape, bytes): &Stored, storage: &str) -> Stored {
    let w = floats(bytes);
    let cols = *shape.last().unwrap();
    let out: Vec<f32> = if name.contains("c_attn") || name.contains("c_fc") || name.contains("c_proj") {
        // [inputs, outputs]: turned, rounded along its inputs, turned back.
        let (n, m) = (shape[0], shape[1]);
        let turned: Vec<f32> = (0..n * m).map(|i| w[i % n * m + i / n]).collect();
        let turned = rounded(storage, &turned, n);
        (0..n * m).map(|i| turned[i % m * n + i / m]).collect()
    } else {
        rounded(storage, &w, cols)
    };
    let bytes = out.iter().flat_map(|x| x.to_le_bytes()).collect();
    (dtype.clone(), shape.clone(), bytes)
}

/// A checkpoint as `name`, with the matrices of some slots rounded.
fn checkpoint(name: &str, dir: &Path, slots: &[&str], storage: &str) -> Arc<Engine> {
    let mut rounded_some = BTreeMap::new();
    let mut tensors = tensors_of(name);
    for (tensor, stored) in &mut tensors {
        let Some(slot) = slot_of(tensor, &stored.1) else {
            continue;
        };
        if slots.contains(&slot) {
            *stored = round_tensor(tensor, stored, storage);
            *rounded_some.entry(slot).or_insert(0) += 1;
        }
    }
    assert!(!rounded_some.is_empty(), "{name} {slots:?}");
    write(dir, &config(name), &tensors);
    engine_with(dir, Arc::new(CpuBackend::with(Cpu::exact(2)))).unwrap()
}

/// Every storage of every slot gives what a checkpoint of the rounded values gives. Only the order of sums differs.
#[test]
fn storages_are_what_rounding_by_hand_gives() {
    for name in ["tiny-llama", "tiny-gpt2", "tiny-v4"] {
        let loaded = engine(name, 2);
        let ids = ids(&loaded, 40);
        let own = run(&loaded, loaded.recipe(), &ids, &[30, 1, 9]).logits;
        for storage in ["bf16", "fp8", "fp4"] {
            for slots in [
                &SLOTS[..1],
                &SLOTS[1..2],
                &SLOTS[2..3],
                &SLOTS[3..],
                &SLOTS[2..],
                &SLOTS[..],
            ] {
                // A tied embedding is rounded with the output layer in a checkpoint, or not at all.
                let tied = loaded.facts().tied;
                if tied && slots.iter().any(|s| SLOTS[2..].contains(s)) && slots.len() == 1 {
                    continue;
                }
                let edits: Vec<String> = slots.iter().map(|s| format!("{s}={storage}")).collect();
                let edits: Vec<&str> = edits.iter().map(String::as_str).collect();
                let ours = run(&loaded, recipe(&loaded, &edits), &ids, &[30, 1, 9]).logits;
                let dir = tempfile::tempdir().unwrap();
                let by_hand = checkpoint(name, dir.path(), slots, storage);
                let want = run(&by_hand, by_hand.recipe(), &ids, &[30, 1, 9]).logits;
                let (e, moved) = (relative(&ours, &want), relative(&own, &want));
                assert!(e < 2e-5, "{name} {edits:?}: {e}");
                assert!(
                    moved > 20.0 * e,
                    "{name} {edits:?}: {moved} away from own, {e} from by hand"
                );
            }
        }
    }
}

/// Where the checkpoint has a storage already, nothing is made and nothing changes.
#[test]
fn what_is_stored_so_already_stays() {
    for name in ["tiny-llama", "tiny-gpt2"] {
        let mut tensors = tensors_of(name);
        for (dtype, _, bytes) in tensors.values_mut() {
            *dtype = "BF16".into();
            let short = |x: f32| half::bf16::from_f32(x).to_le_bytes();
            *bytes = floats(bytes).into_iter().flat_map(short).collect();
        }
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &config(name), &tensors);
        let e = engine_with(dir.path(), Arc::new(CpuBackend::new(2))).unwrap();
        let edits: Vec<String> = SLOTS.iter().map(|s| format!("{s}=bf16")).collect();
        let all = recipe(&e, &edits.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(e.restored_bytes(&all), 0, "{name}");
        let ids = ids(&e, 40);
        let own = run(&e, e.recipe(), &ids, &[30, 1, 9]);
        assert_eq!(run(&e, all, &ids, &[30, 1, 9]).logits, own.logits, "{name}");
    }
    // Experts in FP4, other matrices in FP8 with scales of powers of two: the released form.
    let e = engine("tiny-v4-fp8", 2);
    let kinds = |edit: &str| {
        let mut session = e.session(recipe(&e, &[edit]), SessionOptions::default()).unwrap();
        let plan = session.plan(1, 0);
        plan.weights[e.weights().len()..].to_vec()
    };
    let made = |edit: &str| kinds(edit).into_iter().map(|d: WeightDesc| d.name).collect::<Vec<_>>();
    assert!(
        made("weights.ffn=fp4").iter().all(|n| n.contains("shared")),
        "{:?}",
        made("weights.ffn=fp4")
    );
    assert!(
        !made("weights.attention=fp8").iter().any(|n| n.contains("wq_b")),
        "{:?}",
        made("weights.attention=fp8")
    );
}

/// Storage changes in the middle of a text; going back is going back to the same bits, and makes nothing.
#[test]
fn swaps_in_the_middle_of_a_text_can_be_undone() {
    for name in ["tiny-llama", "tiny-gpt2", "tiny-v4", "tiny-v4-fp8"] {
        let e = engine(name, 2);
        let ids = ids(&e, 40);
        let feed = |s: &mut engine::Session, part: &[u32]| {
            s.feed(part, None, &Cancel::default(), &mut ()).unwrap();
            s.output().logits.clone()
        };
        let mut plain = e.session(e.recipe(), SessionOptions::default()).unwrap();
        feed(&mut plain, &ids[..30]);
        let want = feed(&mut plain, &ids[30..31]);
        let mut s = e.session(e.recipe(), SessionOptions::default()).unwrap();
        feed(&mut s, &ids[..30]);
        let layers = e.facts().layers.len();
        let report = s.set("weights.attention=fp4").unwrap();
        assert_eq!((report.blocks, report.converted), (layers, 0), "{name}");
        assert_eq!(s.set("weights.ffn=fp8").unwrap().blocks, layers, "{name}");
        assert_eq!(s.set("weights.embedding=fp8").unwrap().blocks, 1, "{name}");
        assert_eq!(s.set("weights.lm_head=fp4").unwrap().blocks, 1, "{name}");
        let under = feed(&mut s, &ids[30..31]);
        assert_ne!(under, want, "{name}");
        feed(&mut s, &ids[31..36]);
        let stored = s.plan(1, 0).weights.len();
        assert!(stored > e.weights().len(), "{name}");
        for slot in SLOTS {
            s.set(&format!("{slot}=own")).unwrap();
        }
        s.truncate(30, &Cancel::default()).unwrap();
        assert_eq!(feed(&mut s, &ids[30..31]), want, "{name}: own bits again");
        // There and back once more: the rounded ones are still there.
        s.truncate(30, &Cancel::default()).unwrap();
        for edit in ["attention=fp4", "ffn=fp8", "embedding=fp8", "lm_head=fp4"] {
            s.set(&format!("weights.{edit}")).unwrap();
        }
        assert_eq!(feed(&mut s, &ids[30..31]), under, "{name}");
        assert_eq!(s.plan(1, 0).weights.len(), stored, "{name}: nothing is made twice");
    }
}

/// Every matrix of a block follows its slot, and nothing else does.
#[test]
fn a_slot_has_all_matrices_of_its_blocks() {
    for name in ["tiny-llama", "tiny-gpt2", "tiny-v4"] {
        let e = engine(name, 2);
        let edits = SLOTS.map(|s| format!("{s}=fp4"));
        let r = recipe(&e, &edits.each_ref().map(String::as_str));
        let predicted = e.restored_bytes(&r);
        let mut session = e.session(r, SessionOptions::default()).unwrap();
        let plan = session.plan(1, 0);
        let made: u64 = plan.weights[e.weights().len()..].iter().map(WeightDesc::bytes).sum();
        assert_eq!(predicted, made, "{name}");
        for base in &plan.ops {
            let matrices = match &base.op {
                Op::MatMul { weight, .. } | Op::GroupedMatMul { weight, .. } => vec![*weight],
                Op::Embed { table, .. } => vec![*table],
                Op::ExpertMatMul { weights, .. } => weights.clone(),
                _ => Vec::new(),
            };
            for id in matrices {
                let restored = id.index() >= e.weights().len();
                assert_eq!(restored, base.name != "ffn.router", "{name} {}", base.name);
            }
        }
    }
}

/// A CPU whose memory is said to be a device's own, with so much of it free.
struct Small(CpuBackend, Arc<AtomicU64>);

impl Backend for Small {
    fn name(&self) -> &'static str {
        "small"
    }
    fn describe(&self) -> String {
        "a device with little memory".into()
    }
    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        self.0.new_state(caches, context)
    }
    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        self.0.run(plan, weights, state, request, out)
    }
    fn device_memory(&self) -> Result<Option<(u64, u64)>, ExecError> {
        Ok(Some((self.1.load(Ordering::Relaxed), 1 << 30)))
    }
}

/// What does not fit is refused before it is made, with what it would take; the text goes on as it was.
#[test]
fn storages_that_do_not_fit_are_refused_before_they_are_made() {
    let free = Arc::new(AtomicU64::new(1 << 20));
    let e = engine_with(&folder("tiny-llama"), Arc::new(Small(CpuBackend::new(1), free.clone()))).unwrap();
    let mut s = e.session(e.recipe(), SessionOptions::default()).unwrap();
    let ids = ids(&e, 12);
    s.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
    // The cache is there; little is left.
    free.store(40_000, Ordering::Relaxed);
    let edits = recipe(&e, &["weights.ffn=bf16", "weights.attention=fp8"]);
    let needed = e.restored_bytes(&edits);
    assert!(needed > 40_000);
    let text = s.apply(edits).unwrap_err().to_string();
    for part in [
        "weights.attention=fp8 and weights.ffn=bf16",
        "beside the originals",
        "39.1 KiB",
        "choose own",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(*s.recipe(), e.recipe());
    s.feed(&[5], None, &Cancel::default(), &mut ()).unwrap();
    // One that fits.
    s.set("weights.lm_head=fp4").unwrap();
    s.feed(&[5], None, &Cancel::default(), &mut ()).unwrap();
}
