//! Tokenizers from the vocabulary in a GGUF file.

use std::collections::HashMap;

use serde_json::{Map, Value, json};
use tokenizers::Tokenizer as Hf;

use crate::error::TextError;
use crate::pieces::fallback_byte;
use crate::presplit;

/// Where these vocabularies come from, for messages.
pub(crate) const PLACE: &str = "in the GGUF file (tokenizer.ggml.*)";

const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const BYTE: i32 = 6;

/// The `tokenizer.ggml.*` entries of a GGUF file.
#[derive(Clone, Debug, Default)]
pub struct GgufVocab {
    /// Kind of tokenizer: `gpt2` (byte-level BPE) or `llama` (SentencePiece BPE).
    pub model: String,
    /// Name of the rule that splits text before merging.
    pub pre: Option<String>,
    /// All tokens, by id.
    pub tokens: Vec<String>,
    /// Score per token; higher merges first.
    pub scores: Option<Vec<f32>>,
    /// Type per token: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// Merges, best first, two tokens with a space between.
    pub merges: Vec<String>,
    /// Token that begins a text.
    pub bos: Option<u32>,
    /// Token that ends a text.
    pub eos: Option<u32>,
    /// Token for what cannot be encoded.
    pub unk: Option<u32>,
    /// Filler token.
    pub pad: Option<u32>,
    /// Put `bos` before a text.
    pub add_bos: Option<bool>,
    /// Put `eos` after a text.
    pub add_eos: Option<bool>,
    /// Put a space before a text.
    pub add_space_prefix: Option<bool>,
}

/// A built tokenizer.
pub(crate) struct Built {
    pub(crate) hf: Hf,
    pub(crate) add_bos: bool,
    pub(crate) add_eos: bool,
    pub(crate) warnings: Vec<String>,
}

/// Builds the tokenizer, in the terms of a `tokenizer.json`.
pub(crate) fn build(vocab: &GgufVocab) -> Result<Built, TextError> {
    let ids = index(vocab)?;
    let mut warnings = Vec::new();
    let (mut json, add_bos) = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab, &ids, &mut warnings),
        "llama" => sentencepiece(vocab, &ids)?,
        other => {
            let found = format!("tokenizer.ggml.model is {other:?}");
            return Err(TextError::tokenizer(PLACE, found, "\"gpt2\" or \"llama\""));
        }
    };
    json["version"] = json!("1.0");
    json["truncation"] = Value::Null;
    json["padding"] = Value::Null;
    json["post_processor"] = Value::Null;
    json["added_tokens"] = added_tokens(vocab);
    let mut table = Map::with_capacity(vocab.tokens.len());
    for (id, token) in vocab.tokens.iter().enumerate() {
        table.insert(token.clone(), json!(id));
    }
    json["model"]["vocab"] = Value::Object(table);
    let hf = Hf::from_bytes(json.to_string())
        .map_err(|e| TextError::tokenizer(PLACE, e.to_string(), "tokens and merges that fit together"))?;
    let (add_bos, add_eos) = (vocab.add_bos.unwrap_or(add_bos), vocab.add_eos.unwrap_or(false));
    Ok(Built {
        hf,
        add_bos,
        add_eos,
        warnings,
    })
}

/// Ids by token; refuses duplicates and lists of different lengths.
fn index(vocab: &GgufVocab) -> Result<HashMap<&str, u32>, TextError> {
    let n = vocab.tokens.len();
    let lists = [
        ("scores", vocab.scores.as_ref().map(Vec::len)),
        ("token_type", vocab.token_types.as_ref().map(Vec::len)),
    ];
    for (name, len) in lists {
        if let Some(len) = len.filter(|&len| len != n) {
            let found = format!("{len} entries in {name} for {n} tokens");
            return Err(TextError::tokenizer(PLACE, found, "one entry per token"));
        }
    }
    let mut ids = HashMap::with_capacity(n);
    for (id, token) in vocab.tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token.as_str(), id as u32) {
            let found = format!("token {token:?} has the ids {first} and {id}");
            return Err(TextError::tokenizer(PLACE, found, "tokens that differ from each other"));
        }
    }
    Ok(ids)
}

fn token_type(vocab: &GgufVocab, id: usize) -> i32 {
    let named = [vocab.bos, vocab.eos, vocab.unk, vocab.pad].contains(&Some(id as u32));
    match &vocab.token_types {
        Some(types) => types.get(id).copied().unwrap_or(1),
        None if named => CONTROL,
        None => 1,
    }
}

fn added_tokens(vocab: &GgufVocab) -> Value {
    let mut added = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate() {
        let kind = token_type(vocab, id);
        if matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty() {
            added.push(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            }));
        }
    }
    Value::Array(added)
}

fn byte_level(vocab: &GgufVocab, ids: &HashMap<&str, u32>, warnings: &mut Vec<String>) -> (Value, bool) {
    let split = match vocab.pre.as_deref() {
        None => {
            warnings.push("the GGUF file names no pre-tokenizer (tokenizer.ggml.pre); using gpt-2's".into());
            presplit::gpt2()
        }
        Some(name) => presplit::named(name).unwrap_or_else(|| {
            warnings.push(format!(
                "pre-tokenizer {name:?} (tokenizer.ggml.pre) is not known; using gpt-2's"
            ));
            presplit::gpt2()
        }),
    };
    let mut steps: Vec<Value> = split
        .patterns
        .iter()
        .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
        .collect();
    steps.push(json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}));
    let merges: Vec<[&str; 2]> = vocab.merges.iter().filter_map(|m| merge(m, ids)).collect();
    if merges.len() < vocab.merges.len() {
        let n = vocab.merges.len() - merges.len();
        warnings.push(format!(
            "{n} merges in the GGUF file name tokens that are not in its vocabulary; left out"
        ));
    }
    let json = json!({
        "normalizer": if split.nfc { json!({"type": "NFC"}) } else { Value::Null },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": split.ignore_merges, "merges": merges,
        },
    });
    (json, split.add_bos)
}

/// The two halves of a merge, if they and their union are tokens.
fn merge<'a>(text: &'a str, ids: &HashMap<&str, u32>) -> Option<[&'a str; 2]> {
    // A token may itself begin with a space, hence the search from the second character.
    let from = text.chars().next()?.len_utf8();
    let at = from + text[from..].find(' ')?;
    let (left, right) = (&text[..at], &text[at + 1..]);
    let known = |t: &str| ids.contains_key(t);
    (known(left) && known(right) && known(&[left, right].concat())).then_some([left, right])
}

fn sentencepiece(vocab: &GgufVocab, ids: &HashMap<&str, u32>) -> Result<(Value, bool), TextError> {
    let Some(scores) = &vocab.scores else {
        return Err(TextError::tokenizer(
            PLACE,
            "no scores",
            "tokenizer.ggml.scores with one score per token",
        ));
    };
    let prefix = vocab.add_space_prefix.unwrap_or(true);
    let unk = vocab.unk.and_then(|id| vocab.tokens.get(id as usize));
    let bytes = vocab.tokens.iter().any(|t| fallback_byte(t).is_some());
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"})];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "\u{2581}"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let json = json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE", "dropout": null, "unk_token": unk, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": bytes, "ignore_merges": false,
            "merges": merges_from_scores(vocab, scores, ids),
        },
    });
    Ok((json, true))
}

/// The merges that a vocabulary with scores implies, in the order of the Hugging Face converter: every way to cut
/// a token into two tokens, by score, then by the lengths of the halves, the larger first; ties keep the order of
/// the ids. Tokens that are not text (control, byte, unknown) are never built by merging.
fn merges_from_scores<'a>(vocab: &'a GgufVocab, scores: &[f32], ids: &HashMap<&str, u32>) -> Vec<[&'a str; 2]> {
    let mut found: Vec<(f32, usize, usize, [&str; 2])> = Vec::new();
    for (id, (token, &score)) in vocab.tokens.iter().zip(scores).enumerate() {
        if matches!(token_type(vocab, id), UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        let mut cuts = Vec::new();
        let total = token.chars().count();
        for (n, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                cuts.push(((l, r), (score, n, total - n, [left, right])));
            }
        }
        cuts.sort_by_key(|(ids, _)| *ids);
        found.extend(cuts.into_iter().map(|(_, merge)| merge));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    found.into_iter().map(|(.., merge)| merge).collect()
}
