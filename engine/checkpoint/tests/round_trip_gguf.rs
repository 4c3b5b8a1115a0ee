//! What the GGUF writer writes comes back bit for bit: tensors of every format, names, configuration and tokenizer.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use checkpoint::write::{Spec, Value, gguf_spec, write_gguf, write_safetensors};
use checkpoint::{Kind, Silent, TokenizerSource};
use common::{check, data, open, spec};
use kernels::ir::Format;

/// The least metadata of a llama, and `more`.
fn llama(more: Vec<(&str, Value)>) -> Vec<(String, Value)> {
    let mut pairs = vec![
        ("general.architecture", Value::Text("llama".into())),
        ("llama.block_count", Value::Int(1)),
        ("llama.embedding_length", Value::Int(32)),
        ("llama.feed_forward_length", Value::Int(64)),
        ("llama.attention.head_count", Value::Int(2)),
        ("llama.context_length", Value::Int(128)),
        ("llama.attention.layer_norm_rms_epsilon", Value::Float(1e-6)),
    ];
    pairs.extend(more);
    pairs.into_iter().map(|(k, v)| (k.to_string(), v)).collect()
}

fn write_llama(path: &Path, more: Vec<(&str, Value)>, specs: &[Spec]) {
    write_gguf(path, &llama(more), specs, |i| data(specs, i)).unwrap();
}

#[test]
fn gguf_formats() {
    let formats = [
        ("F32", Format::F32),
        ("F16", Format::F16),
        ("BF16", Format::Bf16),
        ("Q8_0", Format::Q8_0),
        ("Q4_0", Format::Q4_0),
        ("Q4_1", Format::Q4_1),
        ("Q5_0", Format::Q5_0),
        ("Q4_K", Format::Q4K),
        ("Q6_K", Format::Q6K),
    ];
    let mut specs = Vec::new();
    for (name, format) in formats {
        for shape in [&[256][..], &[3, 512], &[2, 3, 256], &[1, 2, 1, 256]] {
            let s = gguf_spec(&format!("{name}{shape:?}"), format, shape).unwrap();
            assert_eq!(s.dtype, name);
            specs.push(s);
        }
    }
    // Sizes that are no multiple of the alignment.
    specs.push(gguf_spec("odd", Format::F16, &[3, 1]).unwrap());
    specs.push(gguf_spec("after", Format::F32, &[1]).unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write_llama(&path, Vec::new(), &specs);
    let c = open(&path);
    assert_eq!((c.kind, c.tensors().count()), (Kind::Gguf, specs.len()));
    assert_eq!(c.total_bytes, std::fs::metadata(&path).unwrap().len());
    for (i, s) in specs.iter().enumerate() {
        let format = c.tensor(&s.name).unwrap().format;
        let expected = formats.iter().find(|f| f.0 == s.dtype).unwrap().1;
        assert_eq!(format, expected);
        check(&c, s, expected, &s.shape, &data(&specs, i));
    }
    c.prefault(1, &Silent).unwrap();
}

#[test]
fn gguf_names_and_configuration() {
    let names = [
        ("token_embd.weight", "model.embed_tokens.weight"),
        ("output_norm.weight", "model.norm.weight"),
        ("output.weight", "lm_head.weight"),
        ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
        ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"),
        ("blk.12.attn_k.bias", "model.layers.12.self_attn.k_proj.bias"),
        ("blk.12.attn_v.weight", "model.layers.12.self_attn.v_proj.weight"),
        ("blk.0.attn_output.weight", "model.layers.0.self_attn.o_proj.weight"),
        (
            "blk.0.ffn_norm.weight",
            "model.layers.0.post_attention_layernorm.weight",
        ),
        ("blk.0.ffn_gate.weight", "model.layers.0.mlp.gate_proj.weight"),
        ("blk.0.ffn_up.weight", "model.layers.0.mlp.up_proj.weight"),
        ("blk.0.ffn_down.weight", "model.layers.0.mlp.down_proj.weight"),
        ("rope_freqs.weight", "rope_freqs.weight"),
        ("blk.0.other.weight", "blk.0.other.weight"),
    ];
    let specs: Vec<Spec> = names
        .iter()
        .map(|(n, _)| gguf_spec(n, Format::F32, &[7, 4]).unwrap())
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let more = vec![
        ("llama.attention.head_count_kv", Value::Int(1)),
        ("llama.rope.freq_base", Value::Float(500_000.5)),
        ("llama.rope.scaling.type", Value::Text("linear".into())),
        ("llama.rope.scaling.factor", Value::Float(4.0)),
        ("tokenizer.ggml.eos_token_id", Value::Int(2)),
    ];
    write_llama(&path, more, &specs);
    let c = open(&path);
    for (i, (_, hf)) in names.iter().enumerate() {
        assert_eq!(c.tensor(hf).unwrap().bytes[..], data(&specs, i));
    }
    let config = serde_json::json!({
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 16, "intermediate_size": 64, "max_position_embeddings": 128,
        "rms_norm_eps": f64::from(1e-6f32), "rope_theta": 500_000.5, "vocab_size": 7, "tie_word_embeddings": false,
        "hidden_act": "silu", "gguf_rope_interleaved": true, "eos_token_id": 2,
        "rope_scaling": { "rope_type": "linear", "factor": 4.0 },
    });
    assert_eq!(serde_json::Value::Object(c.config.clone()), config);
}

#[test]
fn gguf_tokenizers() {
    let texts = |list: &[&str]| Value::Texts(list.iter().map(|s| s.to_string()).collect());
    let more = vec![
        ("tokenizer.ggml.model", Value::Text("gpt2".into())),
        ("tokenizer.ggml.pre", Value::Text("qwen2".into())),
        ("tokenizer.ggml.tokens", texts(&["a", "", "ü\n"])),
        ("tokenizer.ggml.merges", texts(&["a b"])),
        (
            "tokenizer.ggml.scores",
            Value::Floats(vec![0.1, -2.5, f32::MIN_POSITIVE]),
        ),
        ("tokenizer.ggml.token_type", Value::Ints(vec![1, 3, -6])),
        ("tokenizer.ggml.bos_token_id", Value::Int(i64::from(u32::MAX))),
        ("tokenizer.ggml.padding_token_id", Value::Int(-1)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(true)),
        ("tokenizer.ggml.add_eos_token", Value::Bool(false)),
        ("tokenizer.chat_template", Value::Text("{{ messages }}".into())),
        ("other.wide", Value::Ints(vec![1 << 40, -1])),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    write_llama(&path, more, &[]);
    let c = open(&path);
    assert_eq!(c.chat_template.as_deref(), Some("{{ messages }}"));
    let TokenizerSource::Gguf(t) = c.tokenizer else {
        panic!("found {:?}", c.tokenizer);
    };
    assert_eq!((t.model.as_str(), t.pre.as_deref()), ("gpt2", Some("qwen2")));
    assert_eq!(
        (t.tokens, t.merges),
        (vec!["a".into(), String::new(), "ü\n".into()], vec!["a b".to_string()])
    );
    assert_eq!(t.scores, Some(vec![0.1, -2.5, f32::MIN_POSITIVE]));
    assert_eq!(t.token_types, Some(vec![1, 3, -6]));
    assert_eq!((t.bos, t.eos, t.pad), (Some(u32::MAX), None, None));
    assert_eq!(
        (t.add_bos, t.add_eos, t.add_space_prefix),
        (Some(true), Some(false), None)
    );
}

#[test]
fn writers_refuse_what_was_not_announced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let specs = [spec("a", "F32", &[1], 4)];
    let said = "tensor `a`: 5 bytes were made, 4 were announced";
    let error = write_safetensors(&path, &specs, |_| vec![0; 5]).unwrap_err();
    assert_eq!(error.to_string(), said);
    let error = write_gguf(&path, &[], &specs, |_| vec![0; 5]).unwrap_err();
    assert_eq!(error.to_string(), said);
    let error = write_gguf(&path, &[], &[spec("a", "Q9", &[1], 4)], |_| vec![0; 4]).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("tensor `a`: found dtype Q9, accepted: F32, F16, "),
        "{error}"
    );
    let twice = [specs[0].clone(), specs[0].clone()];
    for error in [
        write_safetensors(&path, &twice, |_| vec![0; 4]).unwrap_err(),
        write_gguf(&path, &[], &twice, |_| vec![0; 4]).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "tensor `a`: found twice, accepted: once");
    }
    assert!(gguf_spec("a", Format::Q4K, &[2, 100]).is_none());
    assert!(gguf_spec("a", Format::I64, &[1]).is_none());
    assert!(gguf_spec("a", Format::F32, &[]).is_none());
    assert!(gguf_spec("a", Format::F32, &[usize::MAX, 2, 2]).is_none());
}
