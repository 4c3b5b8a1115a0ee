//! The bundled model: its files are the ones that were made, and the engine computes what the training framework does.

use std::path::PathBuf;

use checkpoint::Silent;
use engine::{Engine, EngineOptions, Recipe};
use model1_tests::goldens::{self, argmax, max_abs, relative, tensors};
use sha2::{Digest, Sha256};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../engine/bundled")
}

/// Whether the weights are there; they are not while they are being trained.
fn present() -> bool {
    let there = folder().join("model1-mini/config.json").exists();
    if !there {
        println!("SKIPPED: engine/bundled/model1-mini is not there");
    }
    there
}

#[test]
fn checksums() {
    if !present() {
        return;
    }
    let model = folder().join("model1-mini");
    let sums = std::fs::read_to_string(model.join("SHA256SUMS")).unwrap();
    let mut files = 0;
    for line in sums.lines() {
        let (want, name) = line.split_once("  ").unwrap();
        let digest = Sha256::digest(std::fs::read(model.join(name)).unwrap());
        let found: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(found, want, "{name}");
        files += 1;
    }
    assert!(files >= 5, "{files} files");
}

/// Logits at the golden's positions: (ours, the framework's) per position.
fn logits(edits: &[&str], name: &str) -> Vec<(Vec<f32>, Vec<f32>)> {
    let golden = tensors(&folder().join("golden.safetensors"));
    let ids: Vec<u32> = golden["ids"].data.iter().map(|&v| v as u32).collect();
    let positions: Vec<usize> = golden["positions"].data.iter().map(|&v| v as usize).collect();
    let options = EngineOptions {
        threads: Some(2),
        ..Default::default()
    };
    let engine = Engine::open(&folder().join("model1-mini"), &options, &Silent).unwrap();
    let mut recipe: Recipe = engine.recipe();
    for edit in edits {
        recipe.set(edit, engine.facts(), engine.registry()).unwrap();
    }
    let ran = goldens::run(&engine, recipe, &ids, &[ids.len()]);
    let vocab = ran.logits.len() / ids.len();
    let want = &golden[name].data;
    let pairs = positions.iter().enumerate().map(|(i, &p)| {
        (
            ran.logits[p * vocab..(p + 1) * vocab].to_vec(),
            want[i * vocab..(i + 1) * vocab].to_vec(),
        )
    });
    pairs.collect()
}

#[test]
fn logits_without_cache_rounding() {
    if !present() {
        return;
    }
    for (ours, want) in logits(&["layers.*.kv_cache=f32", "layers.*.index_cache=f32"], "exact") {
        let e = max_abs(&ours, &want);
        println!("largest logit difference {e:.2e}");
        assert!(e <= 5e-3, "logits differ by {e}");
        assert_eq!(argmax(&ours), argmax(&want));
    }
}

#[test]
fn logits_with_the_released_cache_formats() {
    if !present() {
        return;
    }
    // Values that lie on a rounding boundary can fall on either side of it; what is left is far below the rounding itself.
    for (ours, want) in logits(&[], "rounded") {
        let e = relative(&ours, &want);
        println!("relative difference {e:.2e}");
        assert!(e <= 2e-2, "logits differ by {e} (relative)");
        assert_eq!(argmax(&ours), argmax(&want));
    }
}
