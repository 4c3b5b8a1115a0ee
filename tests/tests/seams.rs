//! The seams other parts build on: swapping, rewinding, plans, fused ops.

use std::sync::Arc;

use engine::{Cancel, Engine, GenerateOptions, SamplerParams, Session, SessionOptions, TokenEvent};
use kernels::cpu::exec::CpuBackend;
use kernels::ir::Op;
use model1_tests::ahead::readable;
use model1_tests::goldens::{engine, engine_with, relative};
use model1_tests::models::long_gpt2;

fn prompt(engine: &Engine, n: usize) -> Vec<u32> {
    let vocab = engine.facts().vocab as u32;
    (0..n as u32).map(|i| (i * 7919 + 13) % (vocab - 2) + 2).collect()
}

fn options(tokens: u64) -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(tokens),
        sampler: Some(SamplerParams::default()),
        ignore_eos: true,
        ..Default::default()
    }
}

fn generate(session: &mut Session, ids: &[u32], tokens: u64) -> Vec<u32> {
    session
        .generate_ids(ids, &options(tokens), &mut |_: &TokenEvent<'_>| {})
        .unwrap()
        .tokens
}

/// Every architecture, with a context beyond 128.
fn architectures() -> Vec<(&'static str, Arc<Engine>)> {
    let mut all: Vec<(&str, Arc<Engine>)> = ["tiny-llama", "tiny-qwen2", "tiny-v4", "tiny-v4-fp8"]
        .into_iter()
        .map(|n| (n, engine(n, 2)))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    long_gpt2(dir.path(), 512);
    all.push(("gpt2", engine_with(dir.path(), Arc::new(CpuBackend::new(2))).unwrap()));
    all
}

/// (a) One layer's cache is stored otherwise from the middle of a text on.
#[test]
fn a_layers_cache_is_swapped_in_the_middle() {
    for (name, engine) in architectures() {
        let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        session.set("layers.*.kv_cache=f32").unwrap();
        let ids = prompt(&engine, 150);
        let mut text = ids.clone();
        text.extend(generate(&mut session, &ids, 10));
        let before = session.position();
        let blocks = session.lower_stats().blocks;
        let report = session.set("layers.1.kv_cache=bf16").unwrap();
        assert!(report.converted >= 1, "{name}: {report:?}");
        assert_eq!(report.blocks, 1, "{name}");
        assert_eq!(session.position(), before, "{name}: the context is kept");
        // What was stored is now what bf16 holds of it.
        let rows = session.state().read_rows(kernels::ir::CacheId(0), 0, 1).unwrap();
        assert!(rows.iter().any(|v| *v != 0.0), "{name}");
        let next = *text.last().unwrap();
        session.feed(&[next], None, &Cancel::default(), &mut ()).unwrap();
        let swapped = session.output().logits.clone();
        assert_eq!(
            session.lower_stats().blocks,
            blocks + 1,
            "{name}: one block is lowered again, no other"
        );
        // The same text with no swap: near, not equal.
        let mut plain = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        plain.set("layers.*.kv_cache=f32").unwrap();
        assert_eq!(generate(&mut plain, &ids, 10), text[150..], "{name}");
        plain.feed(&[next], None, &Cancel::default(), &mut ()).unwrap();
        let e = relative(&swapped, &plain.output().logits);
        assert!(e > 0.0, "{name}: the swap changed nothing");
        assert!(e < 0.05, "{name}: {e}");
    }
}

/// A refused swap changes nothing.
#[test]
fn a_refused_swap_leaves_the_session_alone() {
    let engine = engine("tiny-v4", 1);
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    let ids = prompt(&engine, 40);
    generate(&mut session, &ids, 3);
    let recipe = session.recipe().clone();
    for edit in [
        "layers.0.index_cache=bf16",
        "layers.99.kv_cache=bf16",
        "layers.0.kv_cache=zip",
        "kv=bf16",
    ] {
        session.set(edit).unwrap_err();
        assert_eq!(session.recipe(), &recipe, "{edit}");
    }
    generate(&mut session, &ids, 3);
}

/// (b) Going back across a multiple of 128 leaves no trace, whatever the architecture and wherever it lands.
#[test]
fn a_rewound_session_equals_one_that_never_went_further() {
    for (name, engine) in architectures() {
        let own = engine.recipe();
        let mut f32 = own.clone();
        f32.set("layers.*.kv_cache=f32", engine.facts(), engine.registry())
            .unwrap();
        for recipe in [own, f32] {
            for keep in [5usize, 127, 128, 131, 201] {
                let session = || engine.session(recipe.clone(), SessionOptions::default()).unwrap();
                let ids = prompt(&engine, keep);
                let (mut far, mut near) = (session(), session());
                near.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
                far.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
                // Decode steps, then a prompt, both across the boundary.
                for next in 2..11u32 {
                    far.feed(&[next], None, &Cancel::default(), &mut ()).unwrap();
                }
                let more: Vec<u32> = prompt(&engine, 290)[..].iter().rev().copied().collect();
                far.feed(&more[..281 - keep], None, &Cancel::default(), &mut ())
                    .unwrap();
                far.truncate(keep as u64, &Cancel::default()).unwrap();
                assert_eq!(far.tokens(), near.tokens(), "{name} {keep}");
                assert_eq!(
                    far.output().logits,
                    near.output().logits,
                    "{name} {keep}: logits after the rewind"
                );
                for next in [3u32, 17, 4, 9] {
                    far.feed(&[next], None, &Cancel::default(), &mut ()).unwrap();
                    near.feed(&[next], None, &Cancel::default(), &mut ()).unwrap();
                    assert_eq!(far.output().logits, near.output().logits, "{name} {keep}: continued");
                }
                let rest = &more[..70];
                far.feed(rest, None, &Cancel::default(), &mut ()).unwrap();
                near.feed(rest, None, &Cancel::default(), &mut ()).unwrap();
                assert_eq!(
                    far.output().logits,
                    near.output().logits,
                    "{name} {keep}: a prompt after it"
                );
                for c in 0..near.state().caches().len() {
                    let id = kernels::ir::CacheId(c as u32);
                    // Other slots of a ring may be left over from further on.
                    for slot in readable(near.state().caches()[c].rows, near.position()) {
                        assert_eq!(
                            far.state().read_rows(id, slot, 1).unwrap(),
                            near.state().read_rows(id, slot, 1).unwrap(),
                            "{name} {keep}: cache {c}, slot {slot}"
                        );
                    }
                }
            }
        }
    }
}

/// A second session of a recipe takes the first one's plans, gives the same logits, and swaps as any other.
#[test]
fn sessions_of_a_recipe_share_plans() {
    for ((name, engine), (_, other)) in architectures().into_iter().zip(architectures()) {
        let ids = prompt(&engine, 40);
        let start = || engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        let (mut first, mut second) = (start(), start());
        let text = generate(&mut first, &ids, 5);
        assert_eq!(generate(&mut second, &ids, 5), text, "{name}");
        assert_eq!(second.output().logits, first.output().logits, "{name}");
        assert!(first.lower_stats().plans > 0, "{name}");
        assert_eq!(
            second.lower_stats(),
            Default::default(),
            "{name}: nothing is lowered again"
        );
        for session in [&mut first, &mut second] {
            session.set("layers.1.kv_cache=f32").unwrap();
            session.feed(&[7], None, &Cancel::default(), &mut ()).unwrap();
        }
        assert_eq!(second.output().logits, first.output().logits, "{name}: after a swap");
        // The plans of the recipe before are not taken for those of another.
        let fresh = |engine: &Arc<Engine>| {
            let mut session = engine
                .session(first.recipe().clone(), SessionOptions::default())
                .unwrap();
            session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
            session.output().logits.clone()
        };
        assert_eq!(fresh(&engine), fresh(&other), "{name}: another recipe");
    }
}

/// (d) A decode loop lowers and plans nothing after its first step.
#[test]
fn a_thousand_steps_lower_nothing() {
    let engine = engine("tiny-v4", 1);
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    session
        .feed(&prompt(&engine, 20), None, &Cancel::default(), &mut ())
        .unwrap();
    session.feed(&[5], None, &Cancel::default(), &mut ()).unwrap();
    let first = session.lower_stats();
    let mut plans = std::collections::BTreeSet::new();
    for i in 0..1000u32 {
        let seen = &mut |r: &protocol::StepRecord, _: &kernels::ir::StepOutput| {
            plans.insert(r.plan);
        };
        session.feed(&[i % 90 + 2], None, &Cancel::default(), seen).unwrap();
    }
    assert_eq!(session.lower_stats(), first);
    assert_eq!(plans.len(), 1, "one plan for all steps");
}

/// (e) Fused ops report time and bytes for each base op they stand for.
#[test]
fn fused_ops_report_per_base_op() {
    for (name, engine) in architectures() {
        let options = SessionOptions {
            trace: true,
            ..SessionOptions::default()
        };
        let mut session = engine.session(engine.recipe(), options).unwrap();
        session
            .feed(&prompt(&engine, 150), None, &Cancel::default(), &mut ())
            .unwrap();
        session.feed(&[5], None, &Cancel::default(), &mut ()).unwrap();
        let times = session.times().to_vec();
        let plan = session.plan(1, 150);
        let counted = plan.ops.iter().filter(|o| !matches!(o.op, Op::Probe { .. })).count();
        assert_eq!(times.len(), counted, "{name}: every base op has its line");
        let mut ops: Vec<u32> = times.iter().map(|t| t.op).collect();
        ops.dedup();
        assert_eq!(ops.len(), times.len(), "{name}: each once, in order");
        let fused: Vec<_> = times.iter().filter(|t| t.fused_with > 1).collect();
        if name != "gpt2" {
            assert!(!fused.is_empty(), "{name}: nothing was fused");
        }
        for t in &fused {
            let base = &plan.ops[t.op as usize];
            assert!(matches!(base.op, Op::MatMul { .. }), "{name}: {}", base.name);
            assert!(t.nanos > 0.0 && t.bytes > 0, "{name}: {}", base.name);
            assert_eq!(t.bytes, base.cost(&plan, 1, 150).bytes(), "{name}: {}", base.name);
        }
        assert!(times.iter().all(|t| t.nanos.is_finite() && t.nanos >= 0.0));
    }
}
