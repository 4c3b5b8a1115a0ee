//! Goldens of every family on the whole CUDA backend, its kernels emulated: by prefill, token by token and in odd chunks,
//! directly and through recorded graphs.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::recipe::Recipe;
use engine::{Cancel, Engine, GenerateOptions, SamplerParams, Session, SessionOptions, TokenEvent};
use kernels::cuda::{Cuda, CudaOptions};
use model1_tests::goldens::{Ran, argmax, engine_with, folder, max_abs, relative, run, schedules, tensors};
use model1_tests_cuda::{Emulator, Order};

/// fp32 tolerance of MODEL1.md 10.3.
const TOLERANCE: f32 = 2e-4;

fn cuda(guarded: bool) -> Arc<Cuda> {
    let options = CudaOptions {
        graphs: !guarded,
        guarded,
        ahead: true,
        counted: true,
        resident: true,
    };
    Arc::new(Cuda::on(Arc::new(Emulator::new(Order::Ascending, !guarded)), options))
}

fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("golden.json")).unwrap()).unwrap()
}

fn numbers(v: &serde_json::Value) -> Vec<u32> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

fn engine(name: &str, guarded: bool) -> Arc<Engine> {
    engine_with(&folder(name), cuda(guarded)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Every layer and the logits by each schedule, then the recorded continuation.
fn check(name: &str) {
    let golden = tensors(&folder(name).join("golden.safetensors"));
    let ids = numbers(&json(name)["input_ids"]);
    for (i, chunks) in schedules(ids.len()).into_iter().enumerate() {
        // One schedule with sentinels and poisoned buffers, the others through graphs.
        let engine = engine(name, i == 2);
        let ran = run(&engine, engine.recipe(), &ids, &chunks);
        for (i, layer) in ran.layers.iter().enumerate() {
            let want = &golden[&format!("layer_out.{i}")].data;
            let scale = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let e = max_abs(layer, want);
            assert!(e <= TOLERANCE * scale, "{name} {chunks:?}: layer {i} differs by {e}");
        }
        let e = max_abs(&ran.logits, &golden["logits"].data);
        assert!(e <= TOLERANCE, "{name} {chunks:?}: logits differ by {e}");
        println!("{name}, {} steps: largest logit difference {e:.2e}", chunks.len());
        let again = run(&engine, engine.recipe(), &ids, &chunks);
        assert!(
            again.logits == ran.logits && again.layers == ran.layers,
            "{name}: other bits the second time"
        );
    }
    let engine = engine(name, false);
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    let options = GenerateOptions {
        max_tokens: Some(24),
        sampler: Some(SamplerParams::default()),
        ignore_eos: true,
        ..Default::default()
    };
    let out = session
        .generate_ids(&ids, &options, &mut |_: &TokenEvent<'_>| {})
        .unwrap();
    assert_eq!(out.tokens, numbers(&json(name)["greedy_continuation_24"]), "{name}");
}

#[test]
fn tiny_llama() {
    check("tiny-llama");
}

#[test]
fn tiny_qwen2() {
    check("tiny-qwen2");
}

#[test]
fn tiny_gpt2() {
    check("tiny-gpt2");
}

#[test]
fn tiny_v4() {
    check("tiny-v4");
}

/// Steps of more tokens than the CPU takes at once, longer than the rings of windows are there: the same logits, and after
/// going back and reading on the bits of a text that was read so from the start.
#[test]
fn long_chunks() {
    for name in ["tiny-llama", "tiny-v4"] {
        let gpu = engine(name, false);
        let cpu = model1_tests::goldens::engine(name, 2);
        let vocab = gpu.facts().vocab as u32;
        let ids: Vec<u32> = (0..300).map(|i| (i * 37 + i / 7) % vocab).collect();
        let read = |engine: &Arc<Engine>, parts: &[&[u32]]| {
            let mut s = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
            for part in parts {
                s.feed(part, None, &Cancel::default(), &mut ()).unwrap();
            }
            s
        };
        let mut whole = read(&gpu, &[&ids]);
        let steps = |s: &Session| -> Vec<(u64, u32)> { s.schedule().iter().map(|t| (t.first, t.tokens)).collect() };
        assert_eq!(steps(&whole), [(0, 300)], "{name}");
        let want = read(&cpu, &[&ids]);
        assert!(want.schedule().len() > 1, "{name}");
        let e = max_abs(&whole.output().logits, &want.output().logits);
        assert!(e <= TOLERANCE, "{name}: logits differ by {e}");
        whole.truncate(140, &Cancel::default()).unwrap();
        whole.feed(&ids[140..], None, &Cancel::default(), &mut ()).unwrap();
        let apart = read(&gpu, &[&ids[..140], &ids[140..]]);
        assert!(whole.output().logits == apart.output().logits, "{name}: other bits");
        assert_eq!(whole.schedule(), apart.schedule(), "{name}");
    }
}

fn recipe(engine: &Engine, edits: &[String]) -> Recipe {
    let mut recipe = engine.recipe();
    for edit in edits {
        recipe
            .set(edit, engine.facts(), engine.registry())
            .unwrap_or_else(|e| panic!("{edit}: {e}"));
    }
    recipe
}

/// Rows a trimmed golden holds, as in the CPU's parity test.
fn check_rows(name: &str, ran: &Ran, golden: &BTreeMap<String, model1_tests::goldens::Values>, quantised: bool) {
    let positions: Vec<usize> = golden["positions"].data.iter().map(|&p| p as usize).collect();
    let want = &golden["logits"];
    let w = want.width();
    for (k, &p) in positions.iter().enumerate() {
        if (p + 1) * w > ran.logits.len() {
            continue;
        }
        let (a, b) = (&ran.logits[p * w..(p + 1) * w], want.row(k));
        if quantised {
            assert!(
                relative(a, b) <= 1e-2,
                "{name}: logits at {p} differ by {}",
                relative(a, b)
            );
        } else {
            assert!(
                max_abs(a, b) <= TOLERANCE,
                "{name}: logits at {p} differ by {}",
                max_abs(a, b)
            );
        }
        assert_eq!(argmax(a), argmax(b), "{name}: argmax at {p}");
    }
}

/// The real record shapes, with fp8 and fp4 records and without.
#[test]
fn records() {
    let name = "tiny-v4-fp8";
    let path = folder(name);
    let ids = numbers(&json(name)["input_ids"]);
    for (file, kv, index) in [("golden", "f32", "f32"), ("golden_qat", "fp8_model1", "fp4")] {
        let golden = tensors(&path.join(format!("{file}.safetensors")));
        let edits = [
            format!("layers.*.kv_cache={kv}"),
            format!("layers.*.index_cache={index}"),
        ];
        for chunks in [schedules(ids.len())[0].clone(), schedules(ids.len())[2].clone()] {
            let engine = engine(name, false);
            let ran = run(&engine, recipe(&engine, &edits), &ids, &chunks);
            check_rows(&format!("{name} {file}"), &ran, &golden, kv != "f32");
        }
    }
}

/// Every kind of op is run by some plan here, and every kernel there is by something in this crate. Held to the CPU as people
/// run it, integer products included, so the bounds are not those of `model1_tests::plans`, which hold to exact arithmetic.
#[test]
fn other_recipes() {
    let cases: [(&str, &[&str], f64); 25] = [
        (
            "tiny-llama",
            &[
                "layers.*.kv_cache=bf16",
                "layers.*.attention=sliding_window:window=9,sinks=2",
            ],
            2e-3,
        ),
        (
            "tiny-llama",
            &["layers.*.attention=top_k:k=5", "weights.lm_head=fp8"],
            5e-5,
        ),
        (
            "tiny-qwen2",
            &["layers.*.kv_cache=fp8_b64", "weights.lm_head=bf16"],
            1e-2,
        ),
        (
            "tiny-v4",
            &["layers.*.kv_cache=bf16", "layers.2,4.index_cache=bf16"],
            1e-2,
        ),
        (
            "tiny-qwen2",
            &["weights.attention=fp4", "weights.ffn=fp8", "weights.embedding=fp4"],
            5e-5,
        ),
        (
            "tiny-gpt2",
            &["weights.attention=fp8", "weights.ffn=fp4", "weights.lm_head=fp4"],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "weights.attention=fp4",
                "weights.ffn=fp4",
                "weights.embedding=fp8",
                "weights.lm_head=fp4",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            1e-4,
        ),
        ("tiny-llama", &["layers.*.kv_cache=fp4"], 2e-2),
        (
            "tiny-v4",
            &["layers.*.kv_cache=fp4", "layers.2,4.index_cache=fp4"],
            2e-2,
        ),
        (
            "tiny-v4",
            &[
                "layers.2,4.attention=index_top_k:k=3",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        ("tiny-gpt2", &["layers.0.ffn=silu", "layers.1-3.ffn=relu2"], 5e-5),
        (
            "tiny-gpt2",
            &[
                "layers.*.attention=score:\"score - (q-k)*2^(-8*(head+1)/heads)\"",
                "layers.1.attention=score:\"if(q-k<9 || k<2, score, -inf)\",zero=1",
            ],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.*.attention=score:\"score - 0.02*(q-k)*(layer+1)\"",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-llama",
            &["layers.0.ffn=top_p", "layers.1.ffn=relu:top_p=0.5"],
            5e-5,
        ),
        (
            "tiny-gpt2",
            &["layers.0.ffn=silu:top_p=0.8", "layers.1-3.ffn=top_p:p=0.7"],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.0.ffn=experts:k=1,top_p=0.6",
                "layers.3.ffn=relu:experts=5,top_p=0.4",
                "layers.4.ffn=top_p",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-llama",
            &[
                "layers.0.attention=heads:zero=0,2,mean=1",
                "layers.1.attention=top_k:k=4,zero=3",
            ],
            5e-5,
        ),
        (
            "tiny-qwen2",
            &[
                "layers.*.kv_cache=f32",
                "layers.0.attention=block_skip:threshold=0.4",
                "layers.1.attention=block_skip:threshold=0.2,zero=1",
            ],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.2-5.attention=block_skip:threshold=0.3",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.0,3.attention=heads:zero=0,mean=1",
                "layers.2.attention=dense:mean=0,zero=1",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.0.ffn=experts:k=1",
                "layers.1.ffn=gelu",
                "layers.3.ffn=experts:k=5",
                "layers.4.ffn=experts:k=8",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.2-5.attention=top_k:k=6",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-v4",
            &[
                "layers.2-5.attention=dense",
                "layers.*.kv_cache=f32",
                "layers.2,4.index_cache=f32",
            ],
            5e-5,
        ),
        (
            "tiny-v4-fp8",
            &["layers.*.kv_cache=fp8_b64", "layers.1.index_cache=fp8_b64"],
            2e-2,
        ),
        (
            "tiny-v4-fp8",
            &["layers.*.kv_cache=fp8_v32", "layers.1.index_cache=fp8_v32"],
            2e-2,
        ),
    ];
    for (name, edits, limit) in cases {
        let edits: Vec<String> = edits.iter().map(|e| (*e).into()).collect();
        let ids: Vec<u32> = (0..60u32).map(|i| (i * 7919 + 13) % 120 + 2).collect();
        let of = |engine: Arc<Engine>| run(&engine, recipe(&engine, &edits), &ids, &[33, 1, 1, 5, 20]);
        let ours = of(engine(name, true));
        let want = of(model1_tests::goldens::engine(name, 2));
        let w = want.logits.len() / ids.len();
        let mut rows: Vec<f64> = ours
            .logits
            .chunks_exact(w)
            .zip(want.logits.chunks_exact(w))
            .map(|(a, b)| relative(a, b))
            .collect();
        rows.sort_by(f64::total_cmp);
        let beyond = rows.iter().filter(|e| **e > limit).count();
        println!(
            "{name} {edits:?}: median {:.1e}, worst {:.1e}",
            rows[rows.len() / 2],
            rows[rows.len() - 1]
        );
        // Storage in 8 bits turns a last-bit difference into a step, which can change what the indexer keeps.
        assert!(
            rows[rows.len() / 2] <= limit / 4.0 && beyond * 20 <= rows.len(),
            "{name} {edits:?}: {rows:?}"
        );
        // What is counted is counted alike.
        for (a, b) in ours.records.iter().zip(&want.records) {
            for (a, b) in a.layers.iter().zip(&b.layers) {
                assert_eq!(
                    (a.keys_kept, a.ffn_units, a.ffn_kept),
                    (b.keys_kept, b.ffn_units, b.ffn_kept),
                    "{name} {edits:?}"
                );
                // The CPU leaves out keys whose blocks it can bound; here every key is scored.
                let skips = edits.iter().any(|e| e.contains("block_skip"));
                assert!(
                    a.keys_scored == b.keys_scored || skips && a.keys_scored > b.keys_scored,
                    "{name} {edits:?}"
                );
                let errors = (a.round_trip_error.unwrap_or(0.0), b.round_trip_error.unwrap_or(0.0));
                assert!(
                    (errors.0 - errors.1).abs() <= 0.05 * errors.1,
                    "{name} {edits:?}: {errors:?}"
                );
                let sums = (a.expert_load.iter().sum::<u32>(), b.expert_load.iter().sum::<u32>());
                assert_eq!(sums.0, sums.1, "{name} {edits:?}");
            }
        }
    }
}

/// A rewound session equals one that never went further; a swapped cache is converted.
#[test]
fn rewinding_and_swapping() {
    for name in ["tiny-llama", "tiny-v4"] {
        let engine = engine(name, false);
        let session = || engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        let ids: Vec<u32> = (0..150u32).map(|i| (i * 7919 + 13) % 120 + 2).collect();
        let none = Cancel::default();
        for keep in [127, 131] {
            let (mut far, mut near) = (session(), session());
            near.feed(&ids[..keep], None, &none, &mut ()).unwrap();
            far.feed(&ids[..keep], None, &none, &mut ()).unwrap();
            for next in 2..8u32 {
                far.feed(&[next], None, &none, &mut ()).unwrap();
            }
            far.truncate(keep as u64, &none).unwrap();
            for next in [3u32, 17, 4] {
                far.feed(&[next], None, &none, &mut ()).unwrap();
                near.feed(&[next], None, &none, &mut ()).unwrap();
                assert_eq!(far.output().logits, near.output().logits, "{name} {keep}");
            }
        }
        let mut swapped = session();
        swapped.set("layers.*.kv_cache=f32").unwrap();
        swapped.feed(&ids, None, &none, &mut ()).unwrap();
        let before = swapped.output().logits.clone();
        let report = swapped.set("layers.1.kv_cache=bf16").unwrap();
        assert!(report.converted >= 1, "{name}: {report:?}");
        swapped.feed(&[5], None, &none, &mut ()).unwrap();
        assert!(swapped.output().logits.iter().all(|v| v.is_finite()) && before != swapped.output().logits);
    }
}
