//! The three name spaces of deepseek_v4 hold the same model: bit for bit the same results.

use std::collections::BTreeMap;
use std::sync::Arc;

use kernels::cpu::exec::CpuBackend;
use model1_tests::goldens::{engine, engine_with, folder, run};
use model1_tests::models::{Stored, config, tensors_of, write};

fn map(which: &str) -> serde_json::Map<String, serde_json::Value> {
    let text = std::fs::read(folder("tiny-v4-orig").join("names.json")).unwrap();
    let all: serde_json::Value = serde_json::from_slice(&text).unwrap();
    all[which].as_object().unwrap().clone()
}

fn same_as_tiny_v4(config: &serde_json::Value, tensors: &BTreeMap<String, Stored>) {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), config, tensors);
    let other = engine_with(dir.path(), Arc::new(CpuBackend::new(2))).unwrap();
    assert!(other.warnings().is_empty(), "{:?}", other.warnings());
    let own = engine("tiny-v4", 2);
    let ids: Vec<u32> = (0..77).map(|i| (i * 37 % 90) as u32 + 2).collect();
    let (a, b) = (
        run(&own, own.recipe(), &ids, &[50, 27]),
        run(&other, other.recipe(), &ids, &[50, 27]),
    );
    assert!(a.layers == b.layers && a.logits == b.logits, "results differ");
}

#[test]
fn original_names() {
    let source = tensors_of("tiny-v4");
    let tensors = map("original")
        .into_iter()
        .map(|(name, from)| (name, source[from.as_str().unwrap()].clone()));
    same_as_tiny_v4(&config("tiny-v4-orig"), &tensors.collect());
}

/// transformers' names in memory; experts are stacked.
#[test]
fn in_memory_names() {
    let source = tensors_of("tiny-v4");
    let experts = 8;
    let mut tensors = BTreeMap::new();
    for (name, from) in map("in_memory") {
        let parts: Vec<&Stored> = from
            .as_array()
            .unwrap()
            .iter()
            .map(|f| &source[f.as_str().unwrap()])
            .collect();
        let (dtype, mut shape, _) = parts[0].clone();
        if parts.len() > 1 {
            // [experts, rows of all parts of one expert, columns]
            shape = vec![experts, shape[0] * parts.len() / experts, shape[1]];
        }
        let bytes = parts.iter().flat_map(|p| p.2.iter().copied()).collect();
        tensors.insert(name, (dtype, shape, bytes));
    }
    same_as_tiny_v4(&config("tiny-v4"), &tensors);
}

/// Multi-token-prediction tensors are recognised, reported as not used yet, and change nothing.
#[test]
fn mtp_tensors_are_reported() {
    let source = tensors_of("tiny-v4");
    let mut tensors: BTreeMap<String, Stored> = map("original")
        .iter()
        .map(|(name, from)| (name.clone(), source[from.as_str().unwrap()].clone()))
        .collect();
    tensors.insert("mtp.0.norm.weight".into(), ("F32".into(), vec![64], vec![0; 256]));
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &config("tiny-v4-orig"), &tensors);
    let engine = engine_with(dir.path(), Arc::new(CpuBackend::new(1))).unwrap();
    let text = engine.warnings().join("\n");
    assert!(
        text.contains("multi-token-prediction") && text.contains("not used yet"),
        "{text}"
    );
}
