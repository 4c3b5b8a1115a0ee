//! Golden parity: layer by layer and in logits, by prefill, token by token and in odd chunks.

use std::path::{Path, PathBuf};

use model1_tests::goldens::{self, Ran, argmax, max_abs, relative, run, schedules, tensors};

/// fp32 tolerance of MODEL1.md 10.3, relative to the logits' own size where that is large (tiny-gpt2).
const TOLERANCE: f32 = 2e-4;

fn ids(path: &Path) -> Vec<u32> {
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path.join("golden.json")).unwrap()).unwrap();
    json["input_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect()
}

fn check(name: &str) {
    let path = goldens::folder(name);
    let golden = tensors(&path.join("golden.safetensors"));
    let ids = ids(&path);
    let engine = goldens::engine(name, 2);
    for chunks in schedules(ids.len()) {
        let ran = run(&engine, engine.recipe(), &ids, &chunks);
        for (i, layer) in ran.layers.iter().enumerate() {
            let want = &golden[&format!("layer_out.{i}")].data;
            let scale = want.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            let e = max_abs(layer, want);
            assert!(
                e <= TOLERANCE * scale.max(1.0),
                "{name} {chunks:?}: layer {i} differs by {e}"
            );
        }
        let e = max_abs(&ran.logits, &golden["logits"].data);
        assert!(e <= TOLERANCE, "{name} {chunks:?}: logits differ by {e}");
        println!("{name}, {} steps: largest logit difference {e:.2e}", chunks.len());
    }
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

/// Greedy continuations as recorded.
#[test]
fn greedy_continuations() {
    for name in ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-v4"] {
        let path = goldens::folder(name);
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(path.join("golden.json")).unwrap()).unwrap();
        let want: Vec<u32> = json["greedy_continuation_24"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_u64().unwrap() as u32)
            .collect();
        let engine = goldens::engine(name, 2);
        let mut session = engine
            .session(engine.recipe(), engine::SessionOptions::default())
            .unwrap();
        let options = engine::GenerateOptions {
            max_tokens: Some(24),
            sampler: Some(engine::SamplerParams::default()),
            ignore_eos: true,
            ..Default::default()
        };
        let out = session
            .generate_ids(&ids(&path), &options, &mut |_: &engine::TokenEvent<'_>| {})
            .unwrap();
        assert_eq!(out.tokens, want, "{name}");
    }
}

/// Positions of the rows a trimmed golden holds.
fn positions(golden: &std::collections::BTreeMap<String, goldens::Values>) -> Vec<usize> {
    golden["positions"].data.iter().map(|&p| p as usize).collect()
}

fn check_rows(name: &str, ran: &Ran, golden: &std::collections::BTreeMap<String, goldens::Values>, quantised: bool) {
    let rows = positions(golden);
    let mut tensors = vec![("logits".to_string(), &ran.logits)];
    tensors.extend(
        ran.layers
            .iter()
            .enumerate()
            .map(|(i, l)| (format!("layer_out.{i}"), l)),
    );
    for (key, ours) in tensors {
        let Some(want) = golden.get(&key) else { continue };
        let w = want.width();
        for (k, &p) in rows.iter().enumerate() {
            let (a, b) = (&ours[p * w..(p + 1) * w], want.row(k));
            if quantised {
                let e = relative(a, b);
                assert!(e <= 1e-2, "{name}: {key} row {p}: relative difference {e}");
            } else {
                let scale = b.iter().fold(1.0f32, |m, v| m.max(v.abs()));
                let e = max_abs(a, b);
                assert!(e <= TOLERANCE * scale, "{name}: {key} row {p} differs by {e}");
            }
            if key == "logits" {
                assert_eq!(argmax(a), argmax(b), "{name}: argmax at {p}");
            }
        }
    }
}

/// The released number formats: FP8 128x128 with ue8m0 scales, FP4 experts; plain and with cache rounding.
#[test]
fn tiny_v4_fp8() {
    let path = goldens::folder("tiny-v4-fp8");
    let ids = ids(&path);
    let engine = goldens::engine("tiny-v4-fp8", 2);
    assert!(engine.facts().quantised);
    for (file, kv, index) in [("golden", "f32", "f32"), ("golden_qat", "fp8_model1", "fp4")] {
        let golden = tensors(&path.join(format!("{file}.safetensors")));
        let mut recipe = engine.recipe();
        // The checkpoint's own choice is the official rounding.
        assert_eq!(recipe.layers[1].kv_cache.variant, "fp8_model1");
        assert_eq!(recipe.layers[1].index_cache.as_ref().unwrap().variant, "fp4");
        recipe
            .set(&format!("layers.*.kv_cache={kv}"), engine.facts(), engine.registry())
            .unwrap();
        recipe
            .set(
                &format!("layers.*.index_cache={index}"),
                engine.facts(),
                engine.registry(),
            )
            .unwrap();
        for chunks in schedules(ids.len()) {
            let ran = run(&engine, recipe.clone(), &ids, &chunks);
            check_rows(&format!("tiny-v4-fp8 {file}"), &ran, &golden, kv != "f32");
        }
    }
}

/// As shipped (activations may be rounded to bf16 in prefill, to int8 for block-quantised weights) on every
/// instruction set.
#[test]
fn shipped_settings_stay_near_the_goldens() {
    for isa in kernels::cpu::isa::Isa::available() {
        for (name, file) in [("tiny-llama", "golden"), ("tiny-gpt2", "golden"), ("tiny-v4", "golden")] {
            let path = goldens::folder(name);
            let golden = tensors(&path.join(format!("{file}.safetensors")));
            let ids = ids(&path);
            let cpu = kernels::cpu::Cpu {
                isa,
                ..kernels::cpu::Cpu::new(2)
            };
            let engine = goldens::engine_on(name, cpu);
            for chunks in schedules(ids.len()) {
                let ran = run(&engine, engine.recipe(), &ids, &chunks);
                let e = max_abs(&ran.logits, &golden["logits"].data);
                assert!(e <= TOLERANCE, "{name} {isa:?} {chunks:?}: logits differ by {e}");
            }
        }
        let path = goldens::folder("tiny-v4-fp8");
        let golden = tensors(&path.join("golden_qat.safetensors"));
        let cpu = kernels::cpu::Cpu {
            isa,
            ..kernels::cpu::Cpu::new(2)
        };
        let engine = goldens::engine_on("tiny-v4-fp8", cpu);
        let ids = ids(&path);
        for chunks in schedules(ids.len()) {
            let ran = run(&engine, engine.recipe(), &ids, &chunks);
            check_rows(&format!("tiny-v4-fp8 {isa:?}"), &ran, &golden, true);
        }
    }
}

/// The full-size record model, when its folder is named: too big for the repository.
#[test]
fn tiny_v4_record() {
    let Some(root) = std::env::var_os("MODEL1_GOLDENS").map(PathBuf::from) else {
        println!("SKIPPED: tiny_v4_record: set MODEL1_GOLDENS to the folder holding tiny-v4-record/ (11.7 MB model)");
        return;
    };
    let path = root.join("tiny-v4-record");
    let ids = ids(&path);
    let backend = std::sync::Arc::new(kernels::cpu::exec::CpuBackend::new(2));
    let engine = goldens::engine_with(&path, backend).unwrap();
    for (file, kv, index) in [("golden", "f32", "f32"), ("golden_qat", "fp8_model1", "fp4")] {
        let golden = tensors(&path.join(format!("{file}.safetensors")));
        let mut recipe = engine.recipe();
        recipe
            .set(&format!("layers.*.kv_cache={kv}"), engine.facts(), engine.registry())
            .unwrap();
        recipe
            .set(
                &format!("layers.*.index_cache={index}"),
                engine.facts(),
                engine.registry(),
            )
            .unwrap();
        for chunks in schedules(ids.len()) {
            let ran = run(&engine, recipe.clone(), &ids, &chunks);
            let v = engine.facts().vocab;
            let (mut worst, mut rows) = (0.0f32, Vec::new());
            for (p, want) in golden["logits"].data.chunks_exact(v).enumerate() {
                let ours = &ran.logits[p * v..(p + 1) * v];
                worst = worst.max(max_abs(ours, want));
                rows.push(relative(ours, want));
                let mut sorted = want.to_vec();
                sorted.sort_by(f32::total_cmp);
                let margin = sorted[v - 1] - sorted[v - 2];
                if kv == "f32" || margin > 0.05 {
                    assert_eq!(argmax(ours), argmax(want), "{file}: argmax at {p}, margin {margin}");
                }
            }
            rows.sort_by(f64::total_cmp);
            let (median, most) = (rows[rows.len() / 2], rows[rows.len() - 1]);
            let beyond = rows.iter().filter(|e| **e > 1e-2).count();
            println!(
                "tiny-v4-record {file}: max abs {worst:.2e}; relative per row: median {median:.1e}, worst {most:.1e}, \
                 {beyond} of {} beyond 1e-2",
                rows.len()
            );
            if kv == "f32" {
                assert!(worst <= TOLERANCE, "{worst}");
            } else {
                // This golden leaves the rotated values unrounded, the 584-byte record stores them as bf16: a few codes
                // and, near ties, a few of the indexer's choices fall the other way. `tiny-v4-fp8` rounds as the record
                // does, and is held to 1e-2 in every row.
                assert!(median <= 2e-3 && most <= 3e-2 && beyond * 20 <= rows.len());
            }
        }
    }
}

/// Results do not depend on the number of threads.
#[test]
fn threads_do_not_change_bits() {
    for name in ["tiny-llama", "tiny-gpt2", "tiny-v4", "tiny-v4-fp8"] {
        let ids = ids(&goldens::folder(name));
        let odd = &schedules(ids.len())[2];
        let one = {
            let e = goldens::engine(name, 1);
            run(&e, e.recipe(), &ids, odd)
        };
        for threads in [2, 3, 5] {
            let e = goldens::engine(name, threads);
            let other = run(&e, e.recipe(), &ids, odd);
            assert!(
                one.logits == other.logits && one.layers == other.layers,
                "{name} on {threads} threads"
            );
        }
    }
}
