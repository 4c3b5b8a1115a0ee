//! From a checkpoint's tokenizer files to the text crate.

use std::sync::Arc;

use checkpoint::{Checkpoint, TokenizerSource};
use serde_json::Value;
use text::{GgufVocab, Prompt, Tokenizer};

use crate::error::EngineError;

/// Loads the tokenizer; the inner error says why there is none (models without one still run on token ids).
pub(crate) fn load(
    ckpt: &Checkpoint,
    vocab: usize,
    warnings: &mut Vec<String>,
) -> Result<Result<Arc<Tokenizer>, String>, EngineError> {
    let tokenizer = match &ckpt.tokenizer {
        TokenizerSource::Missing => {
            return Ok(Err(format!(
                "{}: no tokenizer (tokenizer.json) in this checkpoint; give token ids instead of text",
                ckpt.path.display()
            )));
        }
        TokenizerSource::HfJson(path) => Tokenizer::from_hf_json(path, ckpt.tokenizer_config.as_ref())?,
        TokenizerSource::Gguf(g) => {
            let (t, w) = Tokenizer::from_gguf(GgufVocab {
                model: g.model.clone(),
                pre: g.pre.clone(),
                tokens: g.tokens.clone(),
                scores: g.scores.clone(),
                token_types: g.token_types.clone(),
                merges: g.merges.clone(),
                bos: g.bos,
                eos: g.eos,
                unk: g.unk,
                pad: g.pad,
                add_bos: g.add_bos,
                add_eos: g.add_eos,
                add_space_prefix: g.add_space_prefix,
            })?;
            warnings.extend(w);
            t
        }
    };
    if tokenizer.vocab_size() > vocab {
        return Err(EngineError::Invalid(format!(
            "{}: the tokenizer has {} tokens, the embedding only {vocab} rows: accepted is a tokenizer no larger than \
             the embedding",
            ckpt.path.display(),
            tokenizer.vocab_size()
        )));
    }
    Ok(Ok(Arc::new(tokenizer)))
}

/// How conversations become prompts for this model.
pub(crate) fn prompt(ckpt: &Checkpoint, family: &str, warnings: &mut Vec<String>) -> Prompt {
    match Prompt::for_model(family, ckpt.chat_template.as_deref()) {
        Ok(p) => p,
        Err(e) => {
            warnings.push(format!("chat template: {e}"));
            Prompt::None
        }
    }
}

/// End-of-text ids: generation_config, config, tokenizer.
pub(crate) fn eos_ids(ckpt: &Checkpoint, tokenizer: Option<&Arc<Tokenizer>>) -> Vec<u32> {
    let list = |v: Option<&Value>| -> Vec<u32> {
        match v {
            Some(Value::Number(n)) => n.as_u64().map(|x| x as u32).into_iter().collect(),
            Some(Value::Array(a)) => a.iter().filter_map(Value::as_u64).map(|x| x as u32).collect(),
            _ => Vec::new(),
        }
    };
    let mut ids = list(ckpt.generation_config.as_ref().and_then(|g| g.get("eos_token_id")));
    ids.extend(list(ckpt.config.get("eos_token_id")));
    ids.extend(tokenizer.map(|t| t.eos_ids().to_vec()).unwrap_or_default());
    ids.sort_unstable();
    ids.dedup();
    ids
}
