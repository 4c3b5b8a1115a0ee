//! `model1 show` and `model1 devices`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::{LAYERS, Toy, golden, model1, weights};
use protocol::{BlockView, PlanView};
use serde_json::Value;

const ALL: [&str; 5] = ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-v4", "tiny-v4-fp8"];

fn show(model: &str, args: &[&str]) -> String {
    let ran = model1(&[&["show", "--model", model, "--threads", "1", "-q"], args].concat()).ok();
    assert_eq!(ran.stderr, "");
    ran.stdout
}

fn json(model: &str, args: &[&str]) -> Value {
    serde_json::from_str(&show(model, &[args, &["--json"]].concat())).unwrap()
}

/// Bytes of the tensors in a checkpoint: the file without its header.
fn stored_bytes(model: &str) -> u64 {
    let bytes = std::fs::read(Path::new(model).join("model.safetensors")).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    bytes.len() as u64 - 8 - header
}

#[test]
fn the_tree_accounts_for_every_byte_of_the_checkpoint() {
    for name in ALL {
        let model = golden(name);
        let value = json(&model, &[]);
        let blocks: Vec<BlockView> = serde_json::from_value(value["blocks"].clone()).unwrap();
        let mut seen = std::collections::BTreeSet::new();
        // A tensor that two blocks share (tied output layer) is stored once.
        let tensors = blocks
            .iter()
            .flat_map(|b| &b.tensors)
            .filter(|t| seen.insert(t.name.clone()));
        let sum: u64 = tensors.map(|t| t.bytes).sum();
        assert_eq!(sum, stored_bytes(&model), "{name}");
        assert_eq!(value["weight_bytes"], sum, "{name}");
        assert_eq!(value["warnings"], serde_json::json!([]), "{name}");
        let layers = value["recipe"]["layers"].as_array().unwrap().len() as u32;
        for layer in 0..layers {
            let of: Vec<&str> = blocks
                .iter()
                .filter(|b| b.layer == Some(layer))
                .map(|b| b.block.as_str())
                .collect();
            assert_eq!(of, ["attention", "ffn"], "{name} {layer}");
        }
    }
}

#[test]
fn plans_cost_something_and_their_totals_add_up() {
    for name in ALL {
        let model = golden(name);
        let plan: PlanView = serde_json::from_value(json(&model, &["--plan"])).unwrap();
        assert_eq!(
            (plan.phase.as_str(), plan.tokens, plan.context),
            ("decode", 1, 0),
            "{name}"
        );
        let flops = |p: &PlanView| p.ops.iter().map(|o| o.flops).sum::<u64>();
        assert!(flops(&plan) > 0, "{name}");
        assert!(
            plan.ops
                .iter()
                .enumerate()
                .all(|(i, o)| o.id == i as u32 && o.fused_with >= 1),
            "{name}"
        );
        let long: PlanView = serde_json::from_value(json(&model, &["--plan", "--tokens", "8", "--at", "32"])).unwrap();
        assert_eq!(
            (long.phase.as_str(), long.tokens, long.context),
            ("prefill", 8, 32),
            "{name}"
        );
        assert!(
            flops(&long) > 7 * flops(&plan),
            "{name}: {} {}",
            flops(&long),
            flops(&plan)
        );
        let table = show(&model, &["--plan"]);
        assert!(
            table.starts_with(&format!("plan {} (decode), costs for 1 token(s) after 0", plan.hash)),
            "{table}"
        );
        let rows = table
            .lines()
            .filter(|l| l.trim_start().starts_with(|c: char| c.is_ascii_digit()))
            .count();
        assert_eq!(rows, plan.ops.len(), "{name}");
        assert!(
            table.lines().last().unwrap().trim_start().starts_with("total "),
            "{table}"
        );
    }
}

#[test]
fn the_weights_of_a_plan_are_read_once() {
    let toy = Toy::new();
    let plan: PlanView = serde_json::from_value(json(&toy.model(), &["--plan"])).unwrap();
    let elements: usize = weights().iter().map(|(_, _, v)| v.len()).sum();
    // Of the embedding one row is read.
    let embedding = (common::VOCAB - 1) * 32;
    let read: u64 = plan.ops.iter().map(|o| o.weight_bytes).sum();
    assert_eq!(read, 4 * (elements - embedding) as u64);
    let matrices: usize = weights()
        .iter()
        .filter(|(_, s, _)| s.len() == 2)
        .map(|(_, _, v)| v.len())
        .sum();
    let least = 2 * (matrices - common::VOCAB * 32) as u64;
    let flops: u64 = plan.ops.iter().map(|o| o.flops).sum();
    assert!((least..least * 11 / 10).contains(&flops), "{flops}, at least {least}");
}

#[test]
fn the_tree_reads_well() {
    let toy = Toy::new();
    let text = show(&toy.model(), &["--set", "layers.1.kv_cache=bf16"]);
    let head: Vec<&str> = text.lines().take(6).collect();
    assert_eq!(head[0], "llama (3 layers, 32 wide, vocabulary 260)");
    assert!(
        head[1].starts_with("checkpoint  ") && head[1].contains(&toy.model()),
        "{text}"
    );
    assert!(
        head[2].starts_with("weights     ") && head[2].ends_with("KiB, mostly f32"),
        "{text}"
    );
    assert_eq!(head[3], "context     up to 1048576 tokens");
    // Two keys-and-values of 16 numbers: 128 B a token in f32, 64 B in bf16.
    assert_eq!(
        head[4],
        "KV cache    320.0 KiB at 1024, 1.2 MiB at 4096, 10.0 MiB at 32768, 40.0 MiB at 131072 (predicted)"
    );
    assert!(
        text.contains("\nlayer 1 attention: ") && text.contains(" kv_cache=bf16"),
        "{text}"
    );
    assert_eq!(text.matches("self_attn.q_proj.weight").count(), LAYERS);
    let short = show(&golden("tiny-llama"), &[]);
    assert!(
        short
            .lines()
            .any(|l| l.starts_with("KV cache    ") && l.ends_with(" at 512 (predicted)")),
        "{short}"
    );
}

#[test]
fn a_recipe_shown_can_be_used_again() {
    for name in ALL {
        let toy = tempfile::tempdir().unwrap();
        let file = toy.path().join("recipe.json");
        let (file, model) = (file.to_str().unwrap(), golden(name));
        let edit = ["--set", "layers.0.attention=top_k:k=4", "--set", "weights.lm_head=bf16"];
        let edited = json(&model, &edit);
        assert_ne!(edited["recipe_hash"], json(&model, &[])["recipe_hash"], "{name}");
        std::fs::write(file, edited["recipe"].to_string()).unwrap();
        let again = json(&model, &["--recipe", file]);
        assert_eq!(again["recipe_hash"], edited["recipe_hash"], "{name}");
        assert_eq!(again["recipe"], edited["recipe"], "{name}");
        std::fs::write(file, show(&model, &[&edit[..], &["--print-recipe"]].concat())).unwrap();
        assert_eq!(
            json(&model, &["--recipe", file])["recipe_hash"],
            edited["recipe_hash"],
            "{name}"
        );
    }
}

/// What a recipe stores otherwise is told beside what the checkpoint holds.
#[test]
fn restored_weights_are_counted() {
    let model = golden("tiny-llama");
    let own = show(&model, &[]);
    assert!(!own.contains("beside them"), "{own}");
    // 160 x 64 values of 4 bits and a byte per 32: 5,440 bytes.
    let edit = ["--set", "weights.lm_head=fp4"];
    let text = show(&model, &edit);
    assert!(
        text.contains("mostly f32; beside them 5.3 KiB as the recipe stores them"),
        "{text}"
    );
    assert!(text.contains("lm_head.weight as fp4"), "{text}");
    assert_eq!(json(&model, &edit)["restored_bytes"], 5440);
}

#[test]
fn validity_has_reasons_and_the_schema_needs_no_model() {
    let model = golden("tiny-v4");
    let cells = json(&model, &["--validity"]);
    let cells = cells.as_array().unwrap();
    assert!(cells.iter().any(|c| c["refused"].is_null()) && cells.iter().any(|c| c["refused"].is_string()));
    let table = show(&model, &["--validity"]);
    assert_eq!(table.lines().count(), cells.len() + 1);
    let accepted = cells.iter().filter(|c| c["refused"].is_null()).count();
    assert_eq!(table.matches(" yes\n").count(), accepted);
    let schema: Value = serde_json::from_str(&model1(&["show", "--schema"]).ok().stdout).unwrap();
    assert!(schema.to_string().contains("fp8_b64"));
}

#[test]
fn devices_lists_the_cpu_and_what_is_with_gpus() {
    let text = model1(&["devices"]).ok().stdout;
    assert!(text.starts_with("cpu    "), "{text}");
    let list: Value = serde_json::from_str(&model1(&["devices", "--json"]).ok().stdout).unwrap();
    assert_eq!(list[0]["name"], "cpu");
    assert!(list[0]["threads"].as_u64().unwrap() >= 1);
    assert_eq!(
        (list[0]["usable"].as_bool(), list[1]["name"].as_str()),
        (Some(true), Some("cuda"))
    );
    let reason = list[1]["reason"].as_str();
    assert!(
        reason.is_none_or(|r| text.contains(&format!("cuda   not usable: {r}\n"))),
        "{text}"
    );
}
