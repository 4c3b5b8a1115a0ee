//! Comparisons on tiny models against slow computations in double precision.

use std::sync::Arc;

use protocol::{CompareResult, CompareSpec, CompareText, RecipeRef};

use super::*;
use crate::goldens::{engine, ids};
use crate::session::{Cancel, SessionOptions};

fn job(engine: &Engine, edits: &[&str], n: usize, isolate: bool) -> CompareJob {
    let spec = CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        text: CompareText::Current,
        positions: n as u64,
        isolate,
    };
    let a = engine.recipe();
    let mut b = a.clone();
    for e in edits {
        b.set(e, engine.facts(), engine.registry()).unwrap();
    }
    CompareJob::from_parts(engine, spec, a, b, ids(engine, n)).unwrap()
}

fn run(engine: &Arc<Engine>, job: &CompareJob) -> CompareResult {
    let mut seen = Vec::new();
    let mut watch = Watch {
        cancel: &Cancel::default(),
        progress: &mut |done, total| seen.push((done, total)),
    };
    let result = compare(engine, job, &mut watch).unwrap();
    assert!(seen.windows(2).all(|w| w[0].0 < w[1].0 && w[0].1 == w[1].1));
    assert_eq!(
        seen.last().map(|s| s.0),
        seen.last().map(|s| s.1),
        "progress ends at its total"
    );
    result
}

/// Log-probabilities `[positions][vocab]` in f64, and every layer's residual `[layers][positions * width]`, of a
/// session that reads the text as the comparison does.
fn slow(engine: &Arc<Engine>, recipe: &Recipe, ids: &[u32]) -> (Vec<Vec<f64>>, Vec<Vec<f32>>) {
    let options = SessionOptions {
        all_logits: true,
        probes: true,
        ..SessionOptions::default()
    };
    let mut session = engine.session(recipe.clone(), options).unwrap();
    let (mut logits, mut layers) = (Vec::new(), vec![Vec::new(); engine.facts().layers.len()]);
    let single = DECODE_POSITIONS.min(ids.len() / 2);
    let mut chunks = vec![ids.len() - single];
    chunks.extend(vec![1; single]);
    session
        .feed_chunks(
            ids,
            &chunks,
            &Cancel::default(),
            &mut |_: &protocol::StepRecord, out: &kernels::ir::StepOutput| {
                logits.extend_from_slice(&out.logits);
                for (all, (_, _, v)) in layers.iter_mut().zip(&out.probes) {
                    all.extend_from_slice(v);
                }
            },
        )
        .unwrap();
    let softmax = |row: &[f32]| -> Vec<f64> {
        let sum: f64 = row.iter().map(|&z| f64::from(z).exp()).sum();
        row.iter().map(|&z| f64::from(z) - sum.ln()).collect()
    };
    (logits.chunks(engine.facts().vocab).map(softmax).collect(), layers)
}

fn argmax(v: &[f64]) -> u32 {
    let mut best = 0;
    for (i, x) in v.iter().enumerate() {
        if *x > v[best] {
            best = i;
        }
    }
    best as u32
}

fn near(a: f64, b: f64, what: &str) {
    assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{what}: {a} against {b}");
}

fn check(name: &str, edits: &[&str], n: usize) -> CompareResult {
    let engine = engine(name);
    let job = job(&engine, edits, n, false);
    let r = run(&engine, &job);
    let ((a, la), (b, lb)) = (slow(&engine, &job.a, &job.ids), slow(&engine, &job.b, &job.ids));
    let kl: Vec<f64> = a
        .iter()
        .zip(&b)
        .map(|(a, b)| a.iter().zip(b).map(|(a, b)| a.exp() * (a - b)).sum())
        .collect();
    assert_eq!(r.tokens.len(), n);
    let (mut same, mut first) = (0, None);
    for (i, t) in r.tokens.iter().enumerate() {
        near(f64::from(t.kl), kl[i], "KL");
        assert_eq!((t.token, t.top1), (job.ids[i], [argmax(&a[i]), argmax(&b[i])]));
        same += usize::from(t.top1[0] == t.top1[1]);
        if t.top1[0] != t.top1[1] && first.is_none() {
            first = Some(i as u64);
        }
        let next = job.ids.get(i + 1).map(|&t| t as usize);
        match next {
            Some(t2) => {
                near(f64::from(t.logprob[0]), a[i][t2], "logprob A");
                near(f64::from(t.logprob[1]), b[i][t2], "logprob B");
            }
            None => assert!(t.logprob[0].is_nan()),
        }
    }
    let nll = |p: &[Vec<f64>]| -> Vec<f64> { (0..n - 1).map(|i| -p[i][job.ids[i + 1] as usize]).collect() };
    let (na, nb) = (nll(&a), nll(&b));
    let m = (n - 1) as f64;
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    near(r.sides[0].perplexity.ln(), mean(&na), "perplexity A");
    near(r.sides[1].perplexity.ln(), mean(&nb), "perplexity B");
    near(r.ln_ppl_ratio[0], mean(&nb) - mean(&na), "ln ratio");
    // The paired standard error, by variances and covariance.
    let var = |v: &[f64]| mean(&v.iter().map(|x| x * x).collect::<Vec<_>>()) - mean(v).powi(2);
    let product: Vec<f64> = na.iter().zip(&nb).map(|(x, y)| x * y).collect();
    let cov = mean(&product) - mean(&na) * mean(&nb);
    let se = ((var(&na) + var(&nb) - 2.0 * cov).max(0.0) / (m - 1.0)).sqrt();
    assert!(
        (r.ln_ppl_ratio[1] - se).abs() < 1e-5,
        "{} against {se}",
        r.ln_ppl_ratio[1]
    );
    near(
        r.sides[0].ln_perplexity_se,
        (var(&na) / (m - 1.0)).sqrt(),
        "SE of ln perplexity",
    );
    near(r.kl.mean, mean(&kl), "mean KL");
    near(r.kl.max, kl.iter().copied().fold(0.0, f64::max), "largest KL");
    near(r.same_top1[0], same as f64 / n as f64, "same top-1");
    assert_eq!(r.divergence.map(|d| d.position), first);
    assert_eq!(r.noise_floor, [0.0, 0.0], "two readings of A are bit for bit equal");
    for (l, (x, y)) in la.iter().zip(&lb).enumerate() {
        let sums = |x: &[f32], y: &[f32]| {
            x.iter().zip(y).fold((0.0, 0.0), |(e, s), (a, b)| {
                (e + f64::from(a - b).powi(2), s + f64::from(*a).powi(2))
            })
        };
        let (e, s) = sums(x, y);
        assert!(
            (f64::from(r.drift.layer_rms[l]) - (e / s).sqrt()).abs() < 1e-5,
            "drift of layer {l}"
        );
        let w = x.len() / n;
        let (e, s) = sums(&x[5 * w..6 * w], &y[5 * w..6 * w]);
        let at = f64::from(r.drift.relative_rms[l * n + 5]);
        assert!((at - (e / s).sqrt()).abs() < 1e-5, "drift of layer {l} at 5");
    }
    r
}

#[test]
fn model1_against_fewer_bits_and_keys() {
    let r = check(
        "tiny-v4",
        &["layers.*.kv_cache=fp8_b64", "layers.*.attention=top_k:k=4"],
        200,
    );
    assert!(r.kl.mean > 0.0 && r.divergence.is_some());
    let (a, b) = (&r.sides[0], &r.sides[1]);
    assert!(b.kv.total() < a.kv.total() && b.kv.scales > 0 && a.kv.scales == 0);
    assert!(a.decode_tokens_per_s > 0.0 && b.prefill_tokens_per_s > 0.0);
    assert_eq!(r.changes.len(), 2);
    assert!(
        r.command.contains("--b-set 'layers.*.attention=top_k:k=4'"),
        "{}",
        r.command
    );
}

#[test]
fn a_dense_model_against_rounded_caches() {
    let r = check("tiny-llama", &["layers.1.kv_cache=fp8_b64"], 70);
    assert_eq!(r.drift.layer_rms[0], 0.0, "nothing changed before layer 1");
    assert!(r.drift.layer_sqnr_db[0].is_infinite() && r.drift.layer_rms[1] > 0.0);
    assert_eq!(r.changes[0].edit.to_string(), "layers.1.kv_cache=fp8_b64");
    assert_eq!(r.changes[0].from, "f32");
}

#[test]
fn equal_recipes_do_not_differ() {
    let engine = engine("tiny-llama");
    let r = run(&engine, &job(&engine, &[], 9, true));
    assert_eq!((r.kl.max, r.same_top1, r.divergence), (0.0, [1.0, 0.0], None));
    assert!(r.drift.layer_max.iter().all(|&d| d == 0.0));
    assert!(r.isolate.is_empty() && r.notes.iter().any(|n| n.contains("same choices")));
}

#[test]
fn single_changes_are_what_they_are_alone() {
    let engine = engine("tiny-v4");
    let edits = [
        "layers.*.kv_cache=bf16",
        "layers.*.index_cache=fp4",
        "weights.lm_head=fp8",
    ];
    let all = run(&engine, &job(&engine, &edits, 60, true));
    assert_eq!(all.isolate.len(), 3);
    for (edit, row) in edits.iter().zip(&all.isolate) {
        assert_eq!(row.change.edit.to_string(), *edit);
        let one = run(&engine, &job(&engine, &[edit], 60, true));
        let alone = &one.isolate[0];
        assert_eq!(
            (row.kl_mean, row.kl_max, row.same_top1),
            (one.kl.mean, one.kl.max, one.same_top1[0])
        );
        assert_eq!(alone, row, "with one change, alone is B");
        let saved = one.sides[0].kv.total() as i64 - one.sides[1].kv.total() as i64;
        assert_eq!(row.kv_saved, saved);
    }
    assert!(all.isolate[0].kv_saved > 0 && all.isolate[2].kv_saved == 0);
}

#[test]
fn many_changes_take_several_passes() {
    let engine = engine("tiny-v4");
    let layers = engine.facts().layers.len();
    // Every layer another way, in three slots: more changes than fit one pass.
    let mut edits = Vec::new();
    for l in 0..layers {
        edits.push(format!("layers.{l}.attention=top_k:k={}", 2 + l));
        edits.push(format!("layers.{l}.kv_cache={}", ["bf16", "fp8_b64"][l % 2]));
    }
    edits.push("weights.lm_head=bf16".into());
    let edits: Vec<&str> = edits.iter().map(String::as_str).collect();
    let r = run(&engine, &job(&engine, &edits, 24, true));
    assert_eq!(r.isolate.len(), r.changes.len());
    assert!(r.changes.iter().zip(&r.isolate).all(|(c, i)| *c == i.change));
    assert!(r.changes.len() > SIDES && r.isolate.iter().any(|i| i.kl_max > 0.0));
}

#[test]
fn stopping_and_refusals() {
    let engine = engine("tiny-llama");
    let job = job(&engine, &["layers.*.kv_cache=bf16"], 60, false);
    let cancel = Cancel::default();
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |done, _| {
            if done > 0 {
                cancel.cancel();
            }
        },
    };
    assert!(matches!(
        compare(&engine, &job, &mut watch),
        Err(EngineError::Cancelled)
    ));
    let spec = |positions| CompareSpec {
        positions,
        ..job.spec.clone()
    };
    let parts =
        |positions, n| CompareJob::from_parts(&engine, spec(positions), job.a.clone(), job.b.clone(), ids(&engine, n));
    let e = parts(1, 20).unwrap_err().to_string();
    assert!(e.contains("at least 2"), "{e}");
    assert!(parts(10, 20).unwrap().notes[0].contains("has 20 tokens; the first 10"));
    let long = parts(100_000, 600).unwrap();
    assert_eq!(long.ids.len(), engine.facts().max_context);
    assert_eq!(long.notes.len(), 2);
    let e = CompareJob::resolve(&engine, &job.spec, None).unwrap_err().to_string();
    assert!(e.contains("there is none"), "{e}");
}

#[test]
fn schedules_cover_the_text_without_crossing_multiples() {
    for n in [2, 3, 95, 96, 128, 176, 177, 512, 1000] {
        let chunks = schedule(n);
        assert_eq!(chunks[0].start, 0);
        assert_eq!(chunks.last().map(|c| c.end), Some(n));
        assert!(chunks.windows(2).all(|w| w[0].end == w[1].start));
        assert!(chunks.iter().all(|c| c.start / CHUNK == (c.end - 1) / CHUNK));
        let singles = chunks.iter().rev().take_while(|c| c.len() == 1).count();
        assert!(singles >= DECODE_POSITIONS.min(n / 2), "{n}");
    }
}
