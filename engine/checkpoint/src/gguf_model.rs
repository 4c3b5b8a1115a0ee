//! GGUF files of llama and qwen2 models, presented like Hugging Face folders.

use std::collections::BTreeMap;
use std::path::Path;

use kernels::ir::Format;
use serde_json::{Map, json};

use crate::error::CheckpointError;
use crate::gguf::{self, Header, Info, Value, describe};
use crate::{Checkpoint, Kind, Progress, Tensor, TokenizerSource, mmap};

/// The tokenizer section of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufTokenizer {
    /// `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// Name of the pre-tokenizer.
    pub pre: Option<String>,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// Scores (SentencePiece).
    pub scores: Option<Vec<f32>>,
    /// 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// BPE merges, best first.
    pub merges: Vec<String>,
    /// Begin of text.
    pub bos: Option<u32>,
    /// End of text.
    pub eos: Option<u32>,
    /// Unknown.
    pub unk: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Whether to put bos first.
    pub add_bos: Option<bool>,
    /// Whether to put eos last.
    pub add_eos: Option<bool>,
    /// Whether to put a space first (SentencePiece).
    pub add_space_prefix: Option<bool>,
}

/// ggml's type numbers we read.
pub(crate) const TYPES: [(u32, &str, Format); 9] = [
    (0, "F32", Format::F32),
    (1, "F16", Format::F16),
    (2, "Q4_0", Format::Q4_0),
    (3, "Q4_1", Format::Q4_1),
    (6, "Q5_0", Format::Q5_0),
    (8, "Q8_0", Format::Q8_0),
    (12, "Q4_K", Format::Q4K),
    (14, "Q6_K", Format::Q6K),
    (30, "BF16", Format::Bf16),
];

struct Meta<'a> {
    path: &'a Path,
    map: &'a BTreeMap<String, Value>,
    arch: String,
}

impl Meta<'_> {
    fn text(&self, key: &str) -> Option<&str> {
        match self.map.get(key) {
            Some(Value::Text(s)) => Some(s),
            _ => None,
        }
    }

    fn int(&self, key: &str) -> Option<i64> {
        match self.map.get(key) {
            Some(Value::Int(i)) => Some(*i),
            _ => None,
        }
    }

    fn flag(&self, key: &str) -> Option<bool> {
        match self.map.get(key) {
            Some(Value::Bool(b)) => Some(*b),
            _ => None,
        }
    }

    fn id(&self, key: &str) -> Option<u32> {
        self.int(key).and_then(|i| u32::try_from(i).ok())
    }

    fn refuse<T>(&self, key: &str, accepted: &str) -> Result<T, CheckpointError> {
        let found = describe(self.map.get(key));
        Err(CheckpointError::format(
            self.path,
            format!("field `{key}`: found {found}, accepted: {accepted}"),
        ))
    }

    /// A size of the architecture, from 1 to 2^31 - 1; the default when it is absent.
    fn size(&self, key: &str, default: Option<i64>) -> Result<i64, CheckpointError> {
        let key = format!("{}.{key}", self.arch);
        match (self.map.get(&key), default) {
            (Some(Value::Int(i @ 1..=0x7FFF_FFFF)), _) => Ok(*i),
            (None, Some(d)) if d > 0 => Ok(d),
            _ => self.refuse(&key, "a whole number from 1 to 2^31 - 1"),
        }
    }

    /// A positive number of the architecture; the default when it is absent.
    fn float(&self, key: &str, default: Option<f64>) -> Result<f64, CheckpointError> {
        let key = format!("{}.{key}", self.arch);
        let found = match self.map.get(&key) {
            None => default,
            Some(Value::Float(f)) => Some(*f),
            Some(Value::Int(i)) => Some(*i as f64),
            Some(_) => None,
        };
        match found.filter(|f| f.is_finite() && *f > 0.0) {
            Some(f) => Ok(f),
            None => self.refuse(&key, "a positive number"),
        }
    }
}

/// config.json as the same model would have it.
fn config(m: &Meta<'_>, vocab: usize, tied: bool) -> Result<Map<String, serde_json::Value>, CheckpointError> {
    let heads = m.size("attention.head_count", None)?;
    let hidden = m.size("embedding_length", None)?;
    let kv_heads = m.size("attention.head_count_kv", Some(heads))?;
    let head_dim = m.size("attention.key_length", Some(hidden / heads))?;
    let mut c = json!({
        "model_type": m.arch,
        "hidden_size": hidden,
        "num_hidden_layers": m.size("block_count", None)?,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": m.size("feed_forward_length", None)?,
        "max_position_embeddings": m.size("context_length", None)?,
        "rms_norm_eps": m.float("attention.layer_norm_rms_epsilon", None)?,
        "rope_theta": m.float("rope.freq_base", Some(10000.0))?,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        // llama.cpp's converter permutes q and k rows of llama models for rotary pairs side by side.
        "gguf_rope_interleaved": m.arch == "llama",
    });
    if m.size("rope.dimension_count", Some(head_dim))? != head_dim {
        let key = format!("{}.rope.dimension_count", m.arch);
        return m.refuse(&key, &format!("the head width {head_dim}"));
    }
    let scaling = m.text(&format!("{}.rope.scaling.type", m.arch));
    match scaling {
        None | Some("none") => {}
        Some("linear") => {
            let factor = m.float("rope.scaling.factor", None)?;
            c["rope_scaling"] = json!({ "rope_type": "linear", "factor": factor });
        }
        Some(other) => c["rope_scaling"] = json!({ "rope_type": other }),
    }
    for (ours, theirs) in [("bos_token_id", "bos"), ("eos_token_id", "eos")] {
        if let Some(id) = m.int(&format!("tokenizer.ggml.{theirs}_token_id")) {
            c[ours] = json!(id);
        }
    }
    match c {
        serde_json::Value::Object(map) => Ok(map),
        _ => Ok(Map::new()),
    }
}

fn tokenizer(m: &Meta<'_>) -> TokenizerSource {
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let Some(model) = m.text(&key("model")) else {
        return TokenizerSource::Missing;
    };
    let texts = |k: &str| match m.map.get(&key(k)) {
        Some(Value::Texts(t)) => t.clone(),
        _ => Vec::new(),
    };
    TokenizerSource::Gguf(Box::new(GgufTokenizer {
        model: model.into(),
        pre: m.text(&key("pre")).map(str::to_string),
        tokens: texts("tokens"),
        scores: match m.map.get(&key("scores")) {
            Some(Value::Floats(f)) => Some(f.clone()),
            _ => None,
        },
        token_types: match m.map.get(&key("token_type")) {
            Some(Value::Ints(i)) => Some(i.iter().map(|&i| i as i32).collect()),
            _ => None,
        },
        merges: texts("merges"),
        bos: m.id(&key("bos_token_id")),
        eos: m.id(&key("eos_token_id")),
        unk: m.id(&key("unknown_token_id")),
        pad: m.id(&key("padding_token_id")),
        add_bos: m.flag(&key("add_bos_token")),
        add_eos: m.flag(&key("add_eos_token")),
        add_space_prefix: m.flag(&key("add_space_prefix")),
    }))
}

/// Hugging Face name of a GGUF tensor; names without a counterpart stay.
fn hf_name(name: &str) -> String {
    match name {
        "token_embd.weight" => return "model.embed_tokens.weight".into(),
        "output.weight" => return "lm_head.weight".into(),
        "output_norm.weight" => return "model.norm.weight".into(),
        _ => {}
    }
    let parts = name.strip_prefix("blk.").and_then(|r| r.split_once('.'));
    let Some((layer, (part, suffix))) = parts.and_then(|(l, r)| Some((l, r.rsplit_once('.')?))) else {
        return name.into();
    };
    let part = match part {
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_norm" => "input_layernorm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return name.into(),
    };
    format!("model.layers.{layer}.{part}.{suffix}")
}

/// A tensor from its info, or the name of its type if we do not read that.
fn tensor(path: &Path, h: &Header, info: &Info) -> Result<Result<Tensor, String>, CheckpointError> {
    let fail = |detail: String| CheckpointError::tensor(path, &info.name, detail);
    let Some((_, _, format)) = TYPES.iter().find(|(k, _, _)| *k == info.kind) else {
        return Ok(Err(format!("ggml type {}", info.kind)));
    };
    if !info.offset.is_multiple_of(h.align) {
        return Err(fail(format!(
            "offset: found {}, accepted: a multiple of the alignment {}",
            info.offset, h.align
        )));
    }
    // GGUF lists the innermost dimension first.
    let shape: Vec<usize> = info
        .dims
        .iter()
        .rev()
        .map(|&d| usize::try_from(d).unwrap_or(usize::MAX))
        .collect();
    let cols = shape.last().copied().unwrap_or(1);
    let rows = shape[..shape.len().saturating_sub(1)]
        .iter()
        .try_fold(1usize, |n, &d| n.checked_mul(d));
    let bytes = rows
        .zip(format.row_bytes(cols))
        .and_then(|(r, b)| r.checked_mul(b))
        .ok_or_else(|| {
            fail(format!(
                "shape: found {shape:?} in {format}, accepted: rows of whole blocks, fewer than 2^64 bytes in all"
            ))
        })?;
    let start = usize::try_from(info.offset).unwrap_or(usize::MAX);
    if start.checked_add(bytes).is_none_or(|end| end > h.data.len()) {
        return Err(fail(format!(
            "found {bytes} bytes at offset {start}, accepted: within the file's {} bytes of data (is it truncated?)",
            h.data.len()
        )));
    }
    Ok(Ok(Tensor {
        name: hf_name(&info.name),
        format: *format,
        shape,
        bytes: h.data.slice(start..start + bytes),
        scales: None,
        file: path.into(),
    }))
}

pub(crate) fn open(path: &Path, progress: &dyn Progress) -> Result<Checkpoint, CheckpointError> {
    let map = mmap::map(path)?;
    let header = gguf::read(path, &map)?;
    let meta = &header.metadata;
    let arch = match meta.get("general.architecture") {
        Some(Value::Text(a)) if a == "llama" || a == "qwen2" => a.clone(),
        other => {
            let found = describe(other);
            return Err(CheckpointError::format(
                path,
                format!("field `general.architecture`: found {found}, accepted: llama, qwen2"),
            ));
        }
    };
    let m = Meta { path, map: meta, arch };
    let (mut tensors, mut unsupported) = (BTreeMap::new(), BTreeMap::new());
    let mut spans: Vec<(u64, u64, String)> = Vec::new();
    for info in &header.tensors {
        let name = hf_name(&info.name);
        if tensors.contains_key(&name) || unsupported.contains_key(&name) {
            return Err(CheckpointError::tensor(path, &info.name, "found twice, accepted: once"));
        }
        match tensor(path, &header, info)? {
            Ok(t) => {
                spans.push((info.offset, info.offset + t.bytes.len() as u64, info.name.clone()));
                tensors.insert(name, t);
            }
            Err(kind) => {
                unsupported.insert(name, (kind, path.into()));
            }
        }
    }
    spans.sort();
    for pair in spans.windows(2) {
        if pair[1].0 < pair[0].1 {
            return Err(CheckpointError::tensor(
                path,
                &pair[1].2,
                format!(
                    "overlaps `{}`: found offset {}, accepted: from {} on",
                    pair[0].2, pair[1].0, pair[0].1
                ),
            ));
        }
    }
    let vocab = tensors
        .get("model.embed_tokens.weight")
        .and_then(|t: &Tensor| t.shape.first().copied());
    let vocab = vocab.unwrap_or(0);
    let tied = !tensors.contains_key("lm_head.weight") && !unsupported.contains_key("lm_head.weight");
    let config = config(&m, vocab, tied)?;
    progress.report(map.len() as u64, map.len() as u64);
    Ok(Checkpoint {
        path: path.into(),
        kind: Kind::Gguf,
        generation_config: None,
        tokenizer: tokenizer(&m),
        tokenizer_config: None,
        chat_template: m.text("tokenizer.chat_template").map(str::to_string),
        config,
        warnings: Vec::new(),
        total_bytes: map.len() as u64,
        tensors,
        unsupported,
        maps: vec![map],
    })
}
