//! Checkpoints made from the goldens: other names, other shapes.

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::write::{Spec, write_safetensors};
use checkpoint::{Checkpoint, Silent};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;

use crate::goldens::folder;

/// A tensor to be written: dtype, shape, bytes.
pub type Stored = (String, Vec<usize>, Vec<u8>);

/// All tensors of a golden (plain formats only).
pub fn tensors_of(name: &str) -> BTreeMap<String, Stored> {
    let checkpoint = Checkpoint::open(&folder(name), &Silent).unwrap();
    checkpoint
        .tensors()
        .map(|t| {
            let dtype = match t.format {
                kernels::ir::Format::F32 => "F32",
                kernels::ir::Format::I64 => "I64",
                kernels::ir::Format::I32 => "I32",
                other => panic!("{}: {other}", t.name),
            };
            (t.name.clone(), (dtype.into(), t.shape.clone(), t.bytes.to_vec()))
        })
        .collect()
}

/// Writes a checkpoint folder.
pub fn write(dir: &Path, config: &serde_json::Value, tensors: &BTreeMap<String, Stored>) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let specs: Vec<Spec> = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| Spec {
            name: name.clone(),
            dtype: dtype.clone(),
            shape: shape.clone(),
            bytes: bytes.len() as u64,
        })
        .collect();
    let all: Vec<&Vec<u8>> = tensors.values().map(|t| &t.2).collect();
    write_safetensors(&dir.join("model.safetensors"), &specs, |i| all[i].clone()).unwrap();
}

/// config.json of a golden.
pub fn config(name: &str) -> serde_json::Value {
    serde_json::from_slice(&std::fs::read(folder(name).join("config.json")).unwrap()).unwrap()
}

/// tiny-gpt2 with room for `context` positions: its learned positions, repeated.
pub fn long_gpt2(dir: &Path, context: usize) {
    let mut config = config("tiny-gpt2");
    config["n_positions"] = context.into();
    config["n_ctx"] = context.into();
    let mut tensors = tensors_of("tiny-gpt2");
    for (name, (_, shape, bytes)) in &mut tensors {
        if name.ends_with("wpe.weight") {
            *bytes = bytes
                .iter()
                .copied()
                .cycle()
                .take(bytes.len() / shape[0] * context)
                .collect();
            shape[0] = context;
        }
    }
    write(dir, &config, &tensors);
}

/// tiny-llama with one head of 64 values: its query and output matrices as those of keys and values.
pub fn one_head_llama(dir: &Path) {
    let mut config = config("tiny-llama");
    for (name, n) in [("num_attention_heads", 1), ("num_key_value_heads", 1), ("head_dim", 64)] {
        config[name] = n.into();
    }
    let mut tensors = tensors_of("tiny-llama");
    for (from, to) in [("q_proj", "k_proj"), ("o_proj", "v_proj")] {
        let names: Vec<String> = tensors.keys().filter(|n| n.contains(from)).cloned().collect();
        for name in names {
            let mut stored = tensors[&name].clone();
            // Not the same as the queries.
            stored.2.rotate_left(4 * 64 * 16);
            tensors.insert(name.replace(from, to), stored);
        }
    }
    write(dir, &config, &tensors);
}

/// Tensors of a golden as its file has them, scales among them.
fn stored(name: &str) -> BTreeMap<String, Stored> {
    let file = std::fs::read(folder(name).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&file).unwrap();
    let stored = |(name, t): (&str, TensorView<'_>)| {
        let parts = (t.dtype().to_string(), t.shape().to_vec(), t.data().to_vec());
        (name.to_string(), parts)
    };
    file.iter().map(stored).collect()
}

/// tiny-v4-fp8 with queries that come out of 128 values instead of 24: the kernels of whole blocks take their product.
pub fn wide_v4_fp8(dir: &Path) {
    const WIDE: usize = 128;
    let mut config = config("tiny-v4-fp8");
    config["q_lora_rank"] = WIDE.into();
    let mut tensors = stored("tiny-v4-fp8");
    for (name, (_, shape, bytes)) in &mut tensors {
        let ends = |ends: &[&str]| ends.iter().any(|e| name.ends_with(e));
        let before: usize = shape.iter().product();
        match shape.as_mut_slice() {
            [rows, _] if ends(&["wq_a.weight"]) => *rows = WIDE,
            [.., cols] if ends(&["wq_b.weight", "q_norm.weight"]) => *cols = WIDE,
            _ => continue,
        }
        let all = bytes.len() / before * shape.iter().product::<usize>();
        *bytes = bytes.iter().copied().cycle().take(all).collect();
    }
    write(dir, &config, &tensors);
}
