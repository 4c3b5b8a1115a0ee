//! `model1 logits`, against the goldens.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{Toy, f32_tensors, golden, golden_json, model1, telemetry};

fn ids(name: &str) -> Vec<String> {
    let json = golden_json(name);
    json["input_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.to_string())
        .collect()
}

/// `logits` on a golden; the file and what was said on stderr.
fn logits(out: &Path, name: &str, args: &[&str]) -> String {
    let (model, out) = (golden(name), out.to_str().unwrap());
    let common = ["logits", "--model", &model, "--threads", "1", "--out", out];
    let ran = model1(&[&common, args].concat()).ok();
    assert_eq!(ran.stdout, "");
    ran.stderr
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn every_family_gives_the_golden_logits_and_residuals() {
    for (name, layers) in [("tiny-llama", 4), ("tiny-qwen2", 4), ("tiny-gpt2", 4), ("tiny-v4", 6)] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out.safetensors");
        let ids = ids(name);
        let said = logits(&out, name, &["--ids", &ids.join(",")]);
        let tensors = layers + 2;
        assert!(
            said.contains(&format!(
                "out.safetensors: {tensors} tensors, {} tokens, recipe ",
                ids.len()
            )),
            "{said}"
        );
        let (got, want) = (
            f32_tensors(&out),
            f32_tensors(&Path::new(&golden(name)).join("golden.safetensors")),
        );
        assert_eq!(got.len(), layers + 1, "{:?}", got.keys());
        for key in std::iter::once("logits".to_owned()).chain((0..layers).map(|i| format!("layer_out.{i}"))) {
            let (g, w) = (&got[&key], &want[&key]);
            // The golden of one text may carry a batch axis.
            assert_eq!(g.0, w.0[w.0.len() - g.0.len()..], "{name} {key}");
            let scale = w.1.iter().fold(1.0f32, |m, v| m.max(v.abs()));
            assert!(largest_difference(&g.1, &w.1) < 2e-4 * scale, "{name} {key}");
        }
    }
}

#[test]
fn a_release_gives_the_golden_logits_at_its_positions() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("o.safetensors");
    let name = "tiny-v4-fp8";
    let exact = ["--set", "layers.*.kv_cache=f32", "--set", "layers.*.index_cache=f32"];
    logits(&out, name, &[&["--ids", &ids(name).join(" ")][..], &exact].concat());
    let (shape, got) = f32_tensors(&out).remove("logits").unwrap();
    let argmax = golden_json(name)["argmax"].clone();
    assert_eq!(shape[0], argmax.as_array().unwrap().len());
    for (row, want) in got.chunks_exact(shape[1]).zip(argmax.as_array().unwrap()) {
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        assert_eq!(best as u64, want.as_u64().unwrap());
    }
}

#[test]
fn files_tokens_and_chunks_agree() {
    let toy = Toy::new();
    let name = "tiny-v4";
    let ids = &ids(name)[..24];
    let whole = toy.path("whole.safetensors");
    logits(&whole, name, &["--ids", &ids.join(",")]);
    let whole_values = f32_tensors(&whole);
    let file = toy.write("ids.txt", &format!("[{}]\n", ids.join(",\n ")));
    let at = format!("@{file}");
    let steps = toy.text("steps.jsonl");
    for (args, sizes) in [
        (vec!["--ids", &at], vec![24]),
        (vec!["--ids", &at, "--chunks", "5,3,16"], vec![5, 3, 16]),
        (vec!["--ids", &at, "--decode"], vec![1; 24]),
    ] {
        let out = toy.path("o.safetensors");
        logits(&out, name, &[&args[..], &["--telemetry", &steps]].concat());
        let (_, records) = telemetry(Path::new(&steps));
        assert_eq!(records.iter().map(|r| r.tokens).collect::<Vec<_>>(), sizes);
        let got = f32_tensors(&out);
        assert_eq!(got.keys().collect::<Vec<_>>(), whole_values.keys().collect::<Vec<_>>());
        for (key, (shape, values)) in &got {
            assert_eq!(*shape, whole_values[key].0);
            assert!(
                largest_difference(values, &whole_values[key].1) < 1e-3,
                "{args:?} {key}"
            );
        }
    }
    assert_eq!(
        toy.files(),
        ["ids.txt", "o.safetensors", "steps.jsonl", "whole.safetensors"]
    );
}

#[test]
fn text_is_its_ids_and_the_file_says_which() {
    let toy = Toy::new();
    let (a, b) = (toy.text("a"), toy.text("b"));
    toy.run("logits", &["--text", "fox", "--out", &a]).ok();
    let quiet = toy
        .run("logits", &["--ids", "102,111,120", "--out", &b, "--quiet"])
        .ok();
    assert_eq!(quiet.stderr, "");
    let (a, b) = (std::fs::read(a).unwrap(), std::fs::read(b).unwrap());
    assert!(a == b, "the files differ");
    let file = safetensors::SafeTensors::deserialize(&a).unwrap();
    let ids = file.tensor("input_ids").unwrap();
    assert_eq!((ids.shape(), ids.dtype()), (&[3][..], safetensors::Dtype::I64));
    let values: Vec<i64> = ids
        .data()
        .chunks_exact(8)
        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
        .collect();
    assert_eq!(values, [102, 111, 120]);
    assert_eq!(toy.files(), ["a", "b"]);
}

#[test]
fn a_file_there_is_replaced_only_by_a_whole_one() {
    let toy = Toy::new();
    let out = toy.write("out.safetensors", "old");
    toy.run("logits", &["--ids", "5,9,999", "--out", &out]).error(2);
    assert_eq!(std::fs::read_to_string(&out).unwrap(), "old");
    toy.run("logits", &["--ids", "5,9,2", "--out", &out]).ok();
    assert_eq!(f32_tensors(Path::new(&out))["logits"].0, [3, common::VOCAB]);
    let link = toy.text("link");
    std::os::unix::fs::symlink(&out, &link).unwrap();
    toy.run("logits", &["--ids", "5,9", "--out", &link]).ok();
    assert_eq!(
        f32_tensors(Path::new(&out))["logits"].0,
        [2, common::VOCAB],
        "written through the link"
    );
    assert_eq!(toy.files(), ["link", "out.safetensors"]);
}
