//! The tokenizer of a model.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{Model, NormalizedString, OffsetType, PreTokenizer, Token, Tokenizer as Hf};

use crate::detok::Joint;
use crate::error::TextError;
use crate::gguf::{self, GgufVocab};
use crate::marks::{self, GUARD};
use crate::pieces::Pieces;

/// Names of end-of-text tokens, for checkpoints that do not say which token that is.
const KNOWN_ENDS: [&str; 8] = [
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|endoftext|>",
    "<\u{FF5C}end\u{2581}of\u{2581}sentence\u{FF5C}>",
    "<|end|>",
    "<end_of_turn>",
    "</s>",
];

/// Encodes text to token ids and back.
#[derive(Debug)]
pub struct Tokenizer {
    hf: Hf,
    pieces: Pieces,
    special: Vec<bool>,
    /// Put around a text by `encode(_, true)`.
    before: Vec<u32>,
    after: Vec<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    ends: Vec<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`, and what `tokenizer_config.json` says about bos and eos.
    pub fn from_hf_json(path: &Path, tokenizer_config: Option<&Map<String, Value>>) -> Result<Self, TextError> {
        const ACCEPTED: &str = "a tokenizer.json as written by the Hugging Face tokenizers library";
        let place = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|e| TextError::tokenizer(&place, e.to_string(), ACCEPTED))?;
        let hf = Hf::from_bytes(&bytes).map_err(|e| TextError::tokenizer(&place, e.to_string(), ACCEPTED))?;
        let mut tokenizer = Self::new(hf, &place)?;
        tokenizer.read_template();
        tokenizer.read_config(tokenizer_config);
        Ok(tokenizer)
    }

    /// Builds the tokenizer that a GGUF file describes; the strings are warnings to show.
    pub fn from_gguf(vocab: GgufVocab) -> Result<(Self, Vec<String>), TextError> {
        let built = gguf::build(&vocab)?;
        let mut tokenizer = Self::new(built.hf, gguf::PLACE)?;
        let known = |id: Option<u32>| id.filter(|&id| tokenizer.pieces.get(id).is_some());
        (tokenizer.bos, tokenizer.eos) = (known(vocab.bos), known(vocab.eos));
        tokenizer.before.extend(tokenizer.bos.filter(|_| built.add_bos));
        tokenizer.after.extend(tokenizer.eos.filter(|_| built.add_eos));
        // A GGUF file names one end token; chat models have several.
        let known = KNOWN_ENDS.iter().filter_map(|name| tokenizer.id_of(name));
        let known: Vec<u32> = known.filter(|&id| tokenizer.is_special(id)).collect();
        tokenizer.add_eos_ids(vocab.eos.into_iter().chain(known));
        Ok((tokenizer, built.warnings))
    }

    fn new(hf: Hf, place: &str) -> Result<Self, TextError> {
        let pieces = Pieces::new(&hf, place)?;
        if pieces.len() == 0 {
            return Err(TextError::tokenizer(
                place,
                "the vocabulary is empty",
                "at least one token",
            ));
        }
        let mut special = vec![false; pieces.len()];
        for (id, token) in hf.get_added_tokens_decoder() {
            if let Some(flag) = special.get_mut(id as usize) {
                *flag = token.special;
            }
        }
        let (before, after, ends) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self {
            hf,
            pieces,
            special,
            before,
            after,
            bos: None,
            eos: None,
            ends,
        })
    }

    /// Asks the post-processor what it puts around a text.
    fn read_template(&mut self) {
        let ids = |special: bool| {
            self.hf
                .encode_fast("a", special)
                .map(|e| e.get_ids().to_vec())
                .unwrap_or_default()
        };
        let (plain, full) = (ids(false), ids(true));
        if plain.is_empty() || full.len() <= plain.len() {
            return;
        }
        if let Some(at) = full.windows(plain.len()).position(|w| w == plain) {
            self.before = full[..at].to_vec();
            self.after = full[at + plain.len()..].to_vec();
        }
    }

    fn read_config(&mut self, config: Option<&Map<String, Value>>) {
        let field = |name: &str| config.and_then(|c| c.get(name));
        let token = |name: &str| {
            let value = field(name)?;
            value.as_str().or_else(|| value.get("content")?.as_str())
        };
        let named = |name: &str| token(name).and_then(|t| self.id_of(t));
        let bos = named("bos_token").or_else(|| self.before.first().copied().filter(|&id| self.is_special(id)));
        let known = || {
            KNOWN_ENDS
                .iter()
                .filter_map(|t| self.id_of(t))
                .find(|&id| self.is_special(id))
        };
        let eos = named("eos_token").or_else(known);
        let asked = |name: &str| field(name).and_then(Value::as_bool) == Some(true);
        let (add_bos, add_eos) = (asked("add_bos_token"), asked("add_eos_token"));
        if let Some(id) = bos.filter(|id| add_bos && !self.before.contains(id)) {
            self.before.insert(0, id);
        }
        if let Some(id) = eos.filter(|id| add_eos && !self.after.contains(id)) {
            self.after.push(id);
        }
        (self.bos, self.eos) = (bos, eos);
        self.add_eos_ids(eos);
    }

    /// Adds end-of-text ids, such as those of `generation_config.json`. Ids without a token are ignored.
    pub fn add_eos_ids(&mut self, ids: impl IntoIterator<Item = u32>) {
        for id in ids {
            if self.pieces.get(id).is_some() && !self.ends.contains(&id) {
                self.ends.push(id);
            }
        }
    }

    /// Encodes text in which the names of special tokens mean these tokens, as in a rendered prompt. `add_special`
    /// puts the tokenizer's own tokens around it (bos for most models).
    ///
    /// Text guarded by [`Self::guard`] is encoded as ordinary characters. U+FDD0 is dropped.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        let mut ids = Vec::new();
        if add_special {
            ids.extend_from_slice(&self.before);
        }
        self.encode_into(text, &mut ids)
            .map_err(|e| TextError::Encode(e.to_string()))?;
        if add_special {
            ids.extend_from_slice(&self.after);
        }
        Ok(ids)
    }

    /// Encodes text in which nothing is special: no input can produce a marker token.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.encode(&self.guard(text), false)
    }

    /// Makes text from outside safe to put into a prompt: the markers it spells are broken up with U+FDD0, which
    /// [`Self::encode`] drops again after it has looked for markers.
    pub fn guard<'a>(&self, text: &'a str) -> Cow<'a, str> {
        marks::guard(&self.hf, text, &[])
    }

    /// Like [`Self::guard`], but leaves the markers in `allowed`.
    pub fn guard_except<'a>(&self, text: &'a str, allowed: &[&str]) -> Cow<'a, str> {
        marks::guard(&self.hf, text, allowed)
    }

    fn encode_into(&self, text: &str, ids: &mut Vec<u32>) -> tokenizers::Result<()> {
        let mut parts = self
            .hf
            .get_added_vocabulary()
            .extract_and_normalize(self.hf.get_normalizer(), text);
        if text.contains(GUARD) {
            parts.normalize(|part: &mut NormalizedString| {
                part.filter(|c| c != GUARD);
                Ok(())
            })?;
        }
        if let Some(splitter) = self.hf.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut parts)?;
        }
        parts.tokenize(|part| self.tokenize_plain(part.get()))?;
        ids.extend_from_slice(parts.into_encoding(None, 0, OffsetType::None)?.get_ids());
        Ok(())
    }

    /// Merges that spell a control token out of ordinary text are undone.
    fn tokenize_plain(&self, text: &str) -> tokenizers::Result<Vec<Token>> {
        let model = self.hf.get_model();
        let tokens = model.tokenize(text)?;
        let spelled = |t: &Token| self.is_special(t.id) && t.value.chars().nth(1).is_some() && text.contains(&t.value);
        if !tokens.iter().any(spelled) {
            return Ok(tokens);
        }
        let mut out = Vec::with_capacity(tokens.len() + 8);
        for token in tokens {
            if spelled(&token) {
                for c in token.value.chars() {
                    out.extend(model.tokenize(c.encode_utf8(&mut [0; 4]))?);
                }
            } else {
                out.push(token);
            }
        }
        Ok(out)
    }

    /// The text of `ids`; `skip_special` leaves control tokens out. Bytes that are no character become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let mut out = String::new();
        let mut joint = Joint::new(&self.pieces);
        for &id in ids {
            if self.pieces.get(id).is_none() {
                return Err(TextError::UnknownId {
                    id,
                    last: self.pieces.len() as u32 - 1,
                });
            }
            if !(skip_special && self.is_special(id)) {
                joint.push(&self.pieces, id, &mut out);
            }
        }
        joint.flush(&mut out);
        Ok(out)
    }

    /// One more than the largest token id, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// A token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token_piece(&self, id: u32) -> Option<String> {
        self.hf.id_to_token(id)
    }

    /// The bytes a token adds to a text; they need not be whole characters.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.pieces.get(id)
    }

    /// Id of the token spelled like this in the vocabulary.
    pub fn id_of(&self, piece: &str) -> Option<u32> {
        self.hf.token_to_id(piece)
    }

    /// True for control tokens, which are not part of the text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.get(id as usize).copied().unwrap_or(false)
    }

    /// The token that begins a text.
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// The token that ends a text.
    pub fn eos_id(&self) -> Option<u32> {
        self.eos
    }

    /// All tokens that end a text.
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends
    }

    pub(crate) fn pieces(&self) -> &Pieces {
        &self.pieces
    }
}

#[cfg(test)]
#[path = "tokenizer_tests.rs"]
mod tests;
