//! Run-ahead: stories of `model1_tests::ahead` with and without, and what it gains.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use engine::bench::{RandomModel, Shape, Storage};
use engine::{
    Engine, Finish, GenerateOptions, Generated, Generation, SamplerParams, Session, SessionOptions, Silent, Step,
    TokenEvent,
};
use kernels::cuda::{Cuda, CudaOptions};
use model1_tests::ahead::{self, Writer, samplers};
use model1_tests::goldens::engine_with;

use crate::runner::{Bench, Case};

/// Tokens of a timed text, and those before it, which make the graphs.
const TIMED: usize = 256;
const WARM: usize = 8;
/// Turns of each of both.
const TURNS: usize = 6;

fn cuda(b: &Bench, ahead: bool) -> Arc<Cuda> {
    let options = CudaOptions {
        ahead,
        ..CudaOptions::default()
    };
    Arc::new(Cuda::on(b.device.clone(), options))
}

fn open(b: &Bench, path: &Path, ahead: bool) -> Arc<Engine> {
    engine_with(path, cuda(b, ahead)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn bundled(b: &Bench) -> PathBuf {
    b.root.join("engine/bundled/model1-mini")
}

fn story(b: &Bench, name: &str, sampler: usize, story: &dyn Fn(&mut Writer)) -> String {
    let path = b.golden(name);
    let (steps, ahead) = ahead::same(&|ahead| open(b, &path, ahead), samplers()[sampler], story);
    assert!(ahead > 0);
    format!("{ahead} of {steps} steps were begun before they were asked for")
}

/// The same bits with and without, whatever is done with a text.
pub fn sessions() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |name: &'static str, sampler: usize, what: &str, run: fn(&mut Writer)| {
        all.push(Case::new(
            "sessions",
            format!("run-ahead, {name} {sampler}: {what}"),
            move |b| story(b, name, sampler, &run),
        ));
    };
    for (name, sampler) in [
        ("tiny-v4", 1),
        ("tiny-v4", 2),
        ("tiny-v4-fp8", 0),
        ("tiny-llama", 0),
        ("tiny-qwen2", 1),
        ("tiny-gpt2", 2),
    ] {
        add(name, sampler, "stops and edits", ahead::conversation);
    }
    for name in ["tiny-v4", "tiny-llama"] {
        add(name, 1, "changes in the middle of a text", ahead::changes);
        add(name, 1, "told to stop", ahead::cancelled);
        add(name, 0, "other tokens than those drawn", ahead::surprises);
    }
    for name in ["tiny-v4", "tiny-llama"] {
        all.push(Case::new(
            "sessions",
            format!("run-ahead, {name}: a token that cannot be drawn"),
            move |b| undrawn(b, name),
        ));
    }
    all.push(Case::new(
        "sessions",
        "run-ahead, bundled model: stop strings",
        stop_strings,
    ));
    all.push(Case::new(
        "sessions",
        "run-ahead, model1-1.5b bf16: into another bucket of contexts",
        another_bucket,
    ));
    all
}

fn undrawn(b: &Bench, name: &str) -> String {
    let to = std::env::temp_dir().join(format!("model1-gpu-tests-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&to).unwrap();
    let prompt = ahead::undrawable(&b.golden(name), &to, &|path| open(b, path, false));
    let make = |ahead| open(b, &to, ahead);
    let (steps, ran) = ahead::same(&make, samplers()[0], &|w| ahead::undrawn(w, &prompt));
    std::fs::remove_dir_all(&to).unwrap();
    assert!(ran > 5);
    format!("{ran} of {steps} steps were begun before they were asked for")
}

/// From plans for contexts of 4,096 tokens to those for 8,192, where caches grow, too.
fn another_bucket(b: &Bench) -> String {
    let model = RandomModel::new(Shape::Model15, Storage::Bf16).unwrap();
    let make = |ahead| model.engine(cuda(b, ahead), &Silent).unwrap();
    let (steps, ahead) = ahead::same(&make, samplers()[1], &|w| {
        let engine = w.session.engine().clone();
        w.write(&ahead::ids(&engine, 4089, 1), 14);
        w.write(&ahead::ids(&engine, 3, 2), 5);
        w.rows();
    });
    assert!(ahead > 5 && ahead < steps);
    format!("{ahead} of {steps} steps were begun before they were asked for")
}

/// Texts that end at a stop string, at any token of it, and go on behind it.
fn stop_strings(b: &Bench) -> String {
    let run = |ahead: bool| {
        let engine = open(b, &bundled(b), ahead);
        let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        let tokenizer = engine.tokenizer().unwrap();
        let mut text = tokenizer
            .encode("Once upon a time there was a little dragon", true)
            .unwrap();
        let mut all = Vec::new();
        for (i, stop) in [". ", "he", "the ", "\n", "and", ", "]
            .into_iter()
            .cycle()
            .take(24)
            .enumerate()
        {
            let options = GenerateOptions {
                max_tokens: Some(60),
                sampler: Some(SamplerParams {
                    temperature: 0.7,
                    seed: i as u64,
                    ..SamplerParams::default()
                }),
                stop: vec![stop.into()],
                ignore_eos: true,
                ..GenerateOptions::default()
            };
            let out: Generated = session
                .generate_ids(&text, &options, &mut |_: &TokenEvent<'_>| {})
                .unwrap();
            text.extend(&out.tokens);
            text.extend(
                tokenizer
                    .encode(["Then", "But the", "One day a big"][i % 3], false)
                    .unwrap(),
            );
            all.push((out.text, out.tokens, out.finish));
        }
        (all, session.position())
    };
    let (waits, runs) = (run(false), run(true));
    assert_eq!(waits, runs);
    let stopped = runs.0.iter().filter(|r| r.2 == Finish::Stop).count();
    assert!(stopped > 12, "{stopped}");
    format!("{stopped} of {} texts stopped, {} tokens", runs.0.len(), runs.1)
}

/// Decoding with and without, by turns.
pub fn timing() -> Vec<Case> {
    let mut all = vec![Case::new("timing", "run-ahead on and off, bundled model", |b| {
        by_turns(b, &|ahead| open(b, &bundled(b), ahead))
    })];
    for (shape, storage) in [
        (Shape::Qwen15, Storage::Bf16),
        (Shape::Model15, Storage::Bf16),
        (Shape::Model15, Storage::Fp8),
    ] {
        let name = format!("run-ahead on and off, {} {}", shape.name(), storage.name());
        all.push(Case::new("timing", name, move |b| {
            let model = RandomModel::new(shape, storage).unwrap();
            by_turns(b, &|ahead| model.engine(cuda(b, ahead), &Silent).unwrap())
        }));
    }
    all
}

fn median(v: &[f64]) -> f64 {
    let mut v = v.to_vec();
    v.sort_by(f64::total_cmp);
    v.get(v.len() / 2).copied().unwrap_or(f64::NAN)
}

fn by_turns(b: &Bench, make: &dyn Fn(bool) -> Arc<Engine>) -> String {
    let engines = [false, true].map(make);
    let turns = if b.quick { TURNS / 2 } else { TURNS };
    let (mut walls, mut device) = ([Vec::new(), Vec::new()], Vec::new());
    for _ in 0..turns {
        for (engine, walls) in engines.iter().zip(&mut walls) {
            let options = SessionOptions {
                context: Some(1024),
                ..SessionOptions::default()
            };
            let mut session = engine.session(engine.recipe(), options).unwrap();
            let (wall, ahead) = text(&mut session);
            walls.extend(wall);
            device.extend(ahead);
        }
    }
    let [wait, run] = [median(&walls[0]), median(&walls[1])];
    let step = median(&device) * 1e-9;
    let us = 1e6;
    format!(
        "median of {} tokens each: waiting {:.1} us ({:.0} tokens/s), running ahead {:.1} us ({:.0} tokens/s): {:+.1} %\n\
         a step right behind another takes the GPU {:.1} us: while it is waited for, the GPU idles {:.1} us a token",
        walls[0].len(),
        wait * us,
        1.0 / wait,
        run * us,
        1.0 / run,
        (wait / run - 1.0) * 100.0,
        step * us,
        (wait - step) * us
    )
}

/// Seconds of each token of a text, and nanoseconds on the device of those begun before they were asked for.
fn text(session: &mut Session) -> (Vec<f64>, Vec<f64>) {
    let options = GenerateOptions {
        sampler: Some(SamplerParams::default()),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let mut run = Generation::begin(session, &[5, 9, 2, 7], options).unwrap();
    let (mut walls, mut device) = (Vec::new(), Vec::new());
    let mut last = Instant::now();
    for i in 0..WARM + TIMED {
        let Step::Token(_) = run.step(session).unwrap() else {
            panic!("the text ended");
        };
        let now = Instant::now();
        if i >= WARM {
            walls.push((now - last).as_secs_f64());
            device.extend(session.output().ahead_nanos.map(|n| n as f64));
        }
        last = now;
    }
    (walls, device)
}
