//! Tokenizers from the vocabulary in a GGUF file.

use std::collections::HashMap;

use serde_json::{Value, json};
use tokenizers::models::bpe::{BPE, Merges, Vocab};
use tokenizers::{AddedToken, Tokenizer as Hf};

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

/// What the two kinds of tokenizer differ in.
struct Rules {
    /// Normalizer, pre-tokenizer and decoder, in the terms of a `tokenizer.json`.
    json: Value,
    merges: Merges,
    unk: Option<String>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    /// Whether texts begin with `bos` where the file does not say.
    add_bos: bool,
}

/// Builds the tokenizer. Vocabulary and merges do not go through JSON: that would take twenty times their memory.
pub(crate) fn build(vocab: &GgufVocab) -> Result<Built, TextError> {
    let fail = |e: tokenizers::Error| TextError::tokenizer(PLACE, e.to_string(), "tokens and merges that fit together");
    let ids = index(vocab)?;
    let mut warnings = Vec::new();
    let rules = match vocab.model.as_str() {
        "gpt2" => byte_level(vocab, &ids, &mut warnings),
        "llama" => sentencepiece(vocab, &ids)?,
        other => {
            let found = format!("tokenizer.ggml.model is {other:?}");
            return Err(TextError::tokenizer(PLACE, found, "\"gpt2\" or \"llama\""));
        }
    };
    drop(ids);
    let mut json = rules.json;
    json["version"] = json!("1.0");
    for none in ["truncation", "padding", "post_processor"] {
        json[none] = Value::Null;
    }
    json["added_tokens"] = json!([]);
    json["model"] = json!({ "type": "BPE", "vocab": {}, "merges": [] });
    let mut hf = Hf::from_bytes(json.to_string()).map_err(fail)?;
    let table: Vocab = vocab.tokens.iter().cloned().zip(0u32..).collect();
    let mut model = BPE::builder()
        .vocab_and_merges(table, rules.merges)
        .fuse_unk(rules.fuse_unk)
        .byte_fallback(rules.byte_fallback)
        .ignore_merges(rules.ignore_merges);
    if let Some(unk) = rules.unk {
        model = model.unk_token(unk);
    }
    hf.with_model(model.build().map_err(fail)?);
    let (special, others): (Vec<_>, Vec<_>) = added_tokens(vocab).partition(|t| t.special);
    hf.add_special_tokens(special).map_err(fail)?;
    hf.add_tokens(others).map_err(fail)?;
    Ok(Built {
        hf,
        add_bos: vocab.add_bos.unwrap_or(rules.add_bos),
        add_eos: vocab.add_eos.unwrap_or(false),
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

/// Tokens that are found in a text before it is split.
fn added_tokens(vocab: &GgufVocab) -> impl Iterator<Item = AddedToken> {
    vocab.tokens.iter().enumerate().filter_map(|(id, token)| {
        let kind = token_type(vocab, id);
        let added = matches!(kind, UNKNOWN | CONTROL | USER_DEFINED) && !token.is_empty();
        added.then(|| AddedToken::from(token.as_str(), kind != USER_DEFINED).normalized(false))
    })
}

fn byte_level(vocab: &GgufVocab, ids: &HashMap<&str, u32>, warnings: &mut Vec<String>) -> Rules {
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
    let merges: Merges = vocab.merges.iter().filter_map(|m| merge(m, ids)).collect();
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
    });
    Rules {
        json,
        merges,
        unk: None,
        fuse_unk: false,
        byte_fallback: false,
        ignore_merges: split.ignore_merges,
        add_bos: split.add_bos,
    }
}

/// The two halves of a merge, if they and their union are tokens.
fn merge(text: &str, ids: &HashMap<&str, u32>) -> Option<(String, String)> {
    // A token may itself begin with a space, hence the search from the second character.
    let from = text.chars().next()?.len_utf8();
    let at = from + text[from..].find(' ')?;
    let (left, right) = (&text[..at], &text[at + 1..]);
    let known = |t: &str| ids.contains_key(t);
    (known(left) && known(right) && known(&[left, right].concat())).then(|| (left.to_string(), right.to_string()))
}

fn sentencepiece(vocab: &GgufVocab, ids: &HashMap<&str, u32>) -> Result<Rules, TextError> {
    let Some(scores) = &vocab.scores else {
        return Err(TextError::tokenizer(
            PLACE,
            "no scores",
            "tokenizer.ggml.scores with one score per token",
        ));
    };
    let prefix = vocab.add_space_prefix.unwrap_or(true);
    let unk = vocab.unk.and_then(|id| vocab.tokens.get(id as usize)).cloned();
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
    });
    Ok(Rules {
        json,
        merges: merges_from_scores(vocab, scores, ids),
        unk,
        fuse_unk: true,
        byte_fallback: bytes,
        ignore_merges: false,
        add_bos: true,
    })
}

/// The merges that a vocabulary with scores implies, in the order of the Hugging Face converter: every way to cut
/// a token into two tokens, by score, then by the lengths of the halves, the larger first; ties keep the order of
/// the ids. Tokens that are not text (control, byte, unknown) are never built by merging.
fn merges_from_scores(vocab: &GgufVocab, scores: &[f32], ids: &HashMap<&str, u32>) -> Merges {
    let mut found: Vec<(f32, usize, usize, (&str, &str))> = Vec::new();
    for (id, (token, &score)) in vocab.tokens.iter().zip(scores).enumerate() {
        if matches!(token_type(vocab, id), UNKNOWN | CONTROL | BYTE) {
            continue;
        }
        let mut cuts = Vec::new();
        let total = token.chars().count();
        for (n, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                cuts.push(((l, r), (score, n, total - n, (left, right))));
            }
        }
        cuts.sort_by_key(|(ids, _)| *ids);
        found.extend(cuts.into_iter().map(|(_, merge)| merge));
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(b.1.cmp(&a.1)).then(b.2.cmp(&a.2)));
    let owned = |(left, right): (&str, &str)| (left.to_string(), right.to_string());
    found.into_iter().map(|(.., merge)| owned(merge)).collect()
}
