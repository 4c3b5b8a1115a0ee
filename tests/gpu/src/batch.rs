//! Batched decode: stories of `model1_tests::batch`, and what a step of several sequences takes.

use std::sync::Arc;
use std::time::Instant;

use engine::bench::{RandomModel, Shape, Storage};
use engine::{Cancel, Engine, Part, SamplerParams, Session, SessionOptions, Silent};
use model1_tests::ahead::ids;
use model1_tests::batch;
use model1_tests::goldens::engine_with;

use crate::runner::{Bench, Case};
use crate::timing::groups_of;

/// fp32 tolerance of MODEL1.md 10.3.
const TOLERANCE: f32 = 2e-4;
/// The same relative to the largest logit, where caches hold bf16.
const RELATIVE: f32 = 1e-2;
/// Timed steps, and those before them, which make the graphs.
const TIMED: usize = 64;
const WARM: usize = 6;

fn golden(b: &Bench, name: &str, guarded: bool) -> Arc<Engine> {
    let cuda = if guarded { b.guarded() } else { b.cuda() };
    engine_with(&b.golden(name), cuda).unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn random(b: &Bench, shape: Shape, storage: Storage, layers: Option<usize>) -> Arc<Engine> {
    let model = RandomModel::new(shape, storage).unwrap();
    let model = layers.map_or(model, |n| model.cut(n).unwrap());
    model.engine(b.cuda(), &Silent).unwrap()
}

/// Sequences together are what each is alone, whoever the others are.
pub fn sessions() -> Vec<Case> {
    let mut all = Vec::new();
    for name in ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-v4"] {
        all.push(Case::new("sessions", format!("batch, {name}: as alone"), move |b| {
            let said = [false, true].map(|guarded| batch::lengths(&golden(b, name, guarded), 16, TOLERANCE));
            said.join("\n")
        }));
    }
    for name in ["tiny-llama", "tiny-v4"] {
        all.push(Case::new(
            "sessions",
            format!("batch, {name}: come and go, fork, draw, refuse"),
            move |b| {
                batch::forks(&golden(b, name, false), &[5, 150]);
                batch::come_and_go(&golden(b, name, false), TOLERANCE);
                batch::go_back(&golden(b, name, false));
                batch::draws(&golden(b, name, false), 24);
                batch::refused_and_apart(&golden(b, name, false), &golden(b, name, false));
                String::new()
            },
        ));
    }
    all.push(Case::new(
        "sessions",
        "batch, layers of R1-Distill-Qwen-1.5B: as alone",
        |b| {
            let engine = random(b, Shape::Qwen15, Storage::Bf16, Some(6));
            let first = batch::Sequence::read(&engine, 5, 1);
            let largest = first.logits[0].iter().fold(0f32, |m, v| m.max(v.abs()));
            let said = batch::lengths(&engine, 8, RELATIVE * largest);
            format!("largest logit {largest:.2}; {said}")
        },
    ));
    // Where experts and rows are chosen a rounding can choose others; the bits are the same all the same.
    all.push(Case::new(
        "sessions",
        "batch, layers of model1-1.5b: the same bits",
        |b| {
            for storage in [Storage::Bf16, Storage::Fp8] {
                batch::same_bits(&random(b, Shape::Model15, storage, Some(6)), 8);
            }
            String::new()
        },
    ));
    all
}

/// Tokens per second of 1 to 8 sequences.
pub fn timing() -> Vec<Case> {
    let models = [
        (Shape::Qwen15, Storage::Bf16),
        (Shape::Qwen15, Storage::Q4_0),
        (Shape::Model15, Storage::Fp8),
    ];
    let case = |(shape, storage): (Shape, Storage)| {
        let name = format!("batched decode, {} {}", shape.name(), storage.name());
        Case::new("timing", name, move |b| {
            let engine = random(b, shape, storage, None);
            let depths: &[usize] = if b.quick { &[64] } else { &[64, 2048] };
            let mut text = String::new();
            for &depth in depths {
                for n in [0, 1, 2, 4, 8] {
                    let ms = step_ms(&engine, n, depth);
                    let sequences = n.max(1);
                    let what = if n == 0 {
                        "alone".into()
                    } else {
                        format!("batch of {n}")
                    };
                    text += &format!(
                        "at {depth}, {what}: {:.0} tokens/s in all, {:.0} each ({ms:.3} ms a step)\n",
                        sequences as f64 * 1e3 / ms,
                        1e3 / ms
                    );
                }
            }
            // The same products, with eight tokens of one sequence.
            let mut s = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
            s.feed(&ids(&engine, 64, 1), None, &Cancel::default(), &mut ()).unwrap();
            text + &groups_of(&engine, &mut s, "8 tokens at 64", 8, 4, 8)
        })
    };
    models.into_iter().map(case).collect()
}

/// Median milliseconds of a step of `n` sequences behind `depth` tokens each; 0 = one sequence, by itself.
fn step_ms(engine: &Arc<Engine>, n: usize, depth: usize) -> f64 {
    let options = SessionOptions {
        context: Some(4096),
        ..SessionOptions::default()
    };
    let read = |i: usize| {
        let mut s = engine.session(engine.recipe(), options.clone()).unwrap();
        s.feed(&ids(engine, depth, i), None, &Cancel::default(), &mut ())
            .unwrap();
        s
    };
    let mut sessions: Vec<Session> = (0..n.max(1)).map(read).collect();
    let sampler = SamplerParams::default();
    let vocab = engine.facts().vocab;
    let mut times = Vec::new();
    for step in 0..WARM + TIMED {
        // Experts vary.
        let token = |i: usize| ((step * 7919 + 31 * i) % (vocab - 2) + 2) as u32;
        let start = Instant::now();
        if n == 0 {
            sessions[0]
                .feed(&[token(0)], Some(&sampler), &Cancel::default(), &mut ())
                .unwrap();
        } else {
            let each = sessions.iter_mut().enumerate();
            let mut parts: Vec<Part<'_>> = each
                .map(|(i, session)| Part {
                    session,
                    token: token(i),
                    sampler: Some(&sampler),
                })
                .collect();
            let apart = Session::step_together(&mut parts, &Cancel::default(), &mut |_, _, _| ()).unwrap();
            assert_eq!(apart, None);
        }
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    let mut timed = times.split_off(WARM);
    timed.sort_by(f64::total_cmp);
    timed[TIMED / 2]
}
