//! Free runs on tiny models.

use protocol::{CompareText, FreeSpec, RecipeRef};

use super::*;
use crate::goldens::{engine, ids};
use crate::session::Cancel;

fn job(engine: &Engine, edits: &[&str], tokens: u64, temperature: f32, mode: FreeMode) -> FreeJob {
    let spec = FreeSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        prompt: CompareText::Current,
        tokens,
        temperature,
        seed: 11,
        mode,
    };
    let a = engine.recipe();
    let mut b = a.clone();
    for e in edits {
        b.set(e, engine.facts(), engine.registry()).unwrap();
    }
    FreeJob::from_parts(engine, spec, a, b, ids(engine, 21)).unwrap()
}

/// The result, and what was told on the way: tokens per side, KL values, splits.
fn run(engine: &Arc<Engine>, job: &FreeJob) -> (FreeView, [Vec<FreeToken>; 2], Vec<f32>, Vec<FreeSplit>) {
    let (mut tokens, mut kls, mut splits) = ([Vec::new(), Vec::new()], Vec::new(), Vec::new());
    let mut ended = [0, 0];
    let mut seen = Vec::new();
    let view = free_run(
        engine,
        job,
        &mut Watch {
            cancel: &Cancel::default(),
            progress: &mut |done, total| seen.push((done, total)),
        },
        &mut |event| match event {
            Written::Token(side, token) => tokens[side].push(token.clone()),
            Written::Kl(v) => kls.push(v),
            Written::Split(s) => splits.push(s.clone()),
            Written::Ended(side, _) => ended[side] += 1,
        },
    )
    .unwrap();
    assert_eq!(ended, [1, 1]);
    assert!(seen.windows(2).all(|w| w[0].0 <= w[1].0));
    (view, tokens, kls, splits)
}

/// What a mode must not change: everything but speeds, the mode itself and the command that names it.
fn figures(view: &FreeView) -> FreeView {
    let mut v = view.clone();
    for s in &mut v.sides {
        s.decode_tokens_per_s = 0.0;
    }
    v.spec.mode = FreeMode::Lockstep;
    v.command.clear();
    v
}

#[test]
fn both_modes_give_the_same_figures_bit_for_bit() {
    for (name, edits) in [
        (
            "tiny-v4",
            vec!["layers.*.kv_cache=fp8_b64", "layers.*.attention=top_k:k=4"],
        ),
        ("tiny-llama", vec!["layers.*.kv_cache=fp4"]),
    ] {
        for temperature in [0.0, 0.9] {
            let engine = engine(name);
            let lock = run(&engine, &job(&engine, &edits, 40, temperature, FreeMode::Lockstep));
            let turn = run(&engine, &job(&engine, &edits, 40, temperature, FreeMode::InTurn));
            assert_eq!(figures(&lock.0), figures(&turn.0), "{name} at {temperature}");
            assert_eq!((&lock.1, &lock.2, &lock.3), (&turn.1, &turn.2, &turn.3));
            // What was told is what came out.
            let v = &lock.0;
            assert_eq!(lock.1, [v.sides[0].tokens.clone(), v.sides[1].tokens.clone()]);
            assert_eq!(lock.2, v.kl);
            assert_eq!(lock.3, v.split.iter().cloned().collect::<Vec<_>>());
            assert!(v.sides.iter().all(|s| !s.tokens.is_empty() && s.kv.total() > 0));
        }
    }
}

#[test]
fn the_split_is_where_plain_generation_parts_and_kl_is_that_of_the_common_text() {
    let engine = engine("tiny-v4");
    let job = job(&engine, &["layers.*.attention=top_k:k=2"], 48, 0.0, FreeMode::Lockstep);
    let (view, ..) = run(&engine, &job);
    // Each side alone, written by the ordinary means.
    let alone = |recipe: &Recipe| {
        let mut session = engine.session(recipe.clone(), SessionOptions::default()).unwrap();
        let options = GenerateOptions {
            max_tokens: Some(48),
            sampler: Some(job.sampler()),
            ..GenerateOptions::default()
        };
        session
            .generate_ids(&job.prompt, &options, &mut |_: &crate::TokenEvent<'_>| {})
            .unwrap()
            .tokens
    };
    let (a, b) = (alone(&job.a), alone(&job.b));
    let ids = |i: usize| view.sides[i].tokens.iter().map(|t| t.token).collect::<Vec<u32>>();
    assert_eq!((ids(0), ids(1)), (a.clone(), b.clone()));
    let at = a.iter().zip(&b).position(|(x, y)| x != y).unwrap();
    let split = view.split.clone().unwrap();
    assert_eq!((split.at as usize, split.tokens), (at, [Some(a[at]), Some(b[at])]));
    assert_eq!(split.near_tie, split.margin[0] < 1e-3);
    assert_eq!(view.blocks, blocks(&a, &b));
    assert_eq!(view.kl.len(), at + 1, "up to the distributions that chose differently");
    // KL of the last of them, slowly.
    let text: Vec<u32> = job.prompt.iter().chain(&a[..at]).copied().collect();
    let last = |recipe: &Recipe| -> Vec<f64> {
        let mut session = engine.session(recipe.clone(), SessionOptions::default()).unwrap();
        session
            .feed(&text[..job.prompt.len()], None, &Cancel::default(), &mut ())
            .unwrap();
        for id in &text[job.prompt.len()..] {
            session.feed(&[*id], None, &Cancel::default(), &mut ()).unwrap();
        }
        let logits = &session.output().logits;
        let row = &logits[logits.len() - engine.facts().vocab..];
        let sum: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
        row.iter().map(|&z| f64::from(z) - sum.ln()).collect()
    };
    let (p, q) = (last(&job.a), last(&job.b));
    let slow: f64 = p.iter().zip(&q).map(|(x, y)| x.exp() * (x - y)).sum();
    let found = f64::from(view.kl[at]);
    assert!((found - slow).abs() <= 1e-5 * (1.0 + slow), "{found} against {slow}");
}

#[test]
fn equal_recipes_write_the_same_text() {
    let engine = engine("tiny-llama");
    let (view, ..) = run(&engine, &job(&engine, &[], 30, 1.0, FreeMode::InTurn));
    assert!(view.split.is_none() && view.rejoin.is_none());
    assert_eq!(view.shared, [1.0, 1.0]);
    assert_eq!(view.blocks.len(), 1);
    assert!(view.kl.len() == view.sides[0].tokens.len() && view.kl.iter().all(|k| *k == 0.0));
    assert!(
        view.command
            .contains("--free-run 30 --in-turn --temperature 1 --seed 11"),
        "{}",
        view.command
    );
}

#[test]
fn bad_input_and_stopping() {
    let engine = engine("tiny-llama");
    let good = job(&engine, &[], 10, 0.0, FreeMode::Lockstep);
    let with = |f: &dyn Fn(&mut FreeSpec), prompt: usize| {
        let mut spec = good.spec.clone();
        f(&mut spec);
        let made = FreeJob::from_parts(&engine, spec, good.a.clone(), good.b.clone(), ids(&engine, prompt));
        made.map(|_| ()).unwrap_err().to_string()
    };
    assert!(with(&|_| {}, 0).contains("at least 1"));
    assert!(with(&|s| s.tokens = 0, 5).contains("accepted: 1 to"));
    assert!(with(&|s| s.tokens = u64::MAX, 5).contains("accepted: 1 to"));
    assert!(with(&|s| s.temperature = -1.0, 5).contains("temperature"));
    assert!(with(&|s| s.temperature = f32::NAN, 5).contains("temperature"));
    let cancel = Cancel::default();
    let mut told = 0;
    let stopped = free_run(
        &engine,
        &good,
        &mut Watch {
            cancel: &cancel,
            progress: &mut |done, _| {
                if done >= 4 {
                    cancel.cancel();
                }
            },
        },
        &mut |event| told += usize::from(matches!(event, Written::Token(..))),
    );
    assert!(matches!(stopped, Err(EngineError::Cancelled)));
    assert_eq!(told, 4, "what was written before was told");
}
