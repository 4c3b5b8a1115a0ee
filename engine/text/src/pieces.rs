//! The bytes each token stands for, and how they join: what a `tokenizer.json` decoder does, as a table.

use serde_json::Value;
use tokenizers::{Model, Tokenizer as Hf};

use crate::error::TextError;

const ACCEPTED: &str =
    "a decoder made of ByteLevel, Metaspace, Replace (string), ByteFallback, Fuse and a leading Strip";

/// Bytes of every token, in one allocation.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// End of each token's bytes; `None` for ids without a token.
    ends: Vec<usize>,
    known: Vec<bool>,
    /// Leading spaces that decoding takes away from the start of a text.
    pub(crate) strip: usize,
    /// Put between tokens (tokenizers without a decoder).
    pub(crate) joiner: &'static str,
}

/// What the decoder of a `tokenizer.json` does to a token.
#[derive(Debug, Default)]
struct Rules {
    byte_level: bool,
    byte_fallback: bool,
    replace: Vec<(String, String)>,
    strip: usize,
    fused: bool,
}

impl Pieces {
    /// Reads the table out of a tokenizer; refuses decoders it cannot express.
    pub(crate) fn new(hf: &Hf, place: &str) -> Result<Self, TextError> {
        let mut pieces = Self::default();
        let mut rules = Rules::default();
        match hf.get_decoder() {
            None => pieces.joiner = " ",
            Some(decoder) => {
                let json = serde_json::to_value(decoder)
                    .map_err(|e| TextError::tokenizer(place, format!("unreadable decoder: {e}"), ACCEPTED))?;
                rules.read(&json, place)?;
            }
        }
        pieces.strip = rules.strip;
        let added = hf.get_added_vocabulary();
        let model = hf.get_model();
        let last = hf.get_vocab(true).into_values().max();
        for id in 0..last.map_or(0, |last| last + 1) {
            let token = added.simple_id_to_token(id).or_else(|| model.id_to_token(id));
            if let Some(token) = &token {
                rules.append(token, &mut pieces.bytes);
            }
            pieces.known.push(token.is_some());
            pieces.ends.push(pieces.bytes.len());
        }
        Ok(pieces)
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Bytes of a token, if there is one with this id.
    pub(crate) fn get(&self, id: u32) -> Option<&[u8]> {
        let i = id as usize;
        if !*self.known.get(i)? {
            return None;
        }
        let start = if i == 0 { 0 } else { self.ends[i - 1] };
        Some(&self.bytes[start..self.ends[i]])
    }
}

impl Rules {
    fn read(&mut self, decoder: &Value, place: &str) -> Result<(), TextError> {
        let refuse = |what: String| Err(TextError::tokenizer(place, what, ACCEPTED));
        match decoder.get("type").and_then(Value::as_str).unwrap_or("") {
            "Sequence" => {
                for part in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.read(part, place)?;
                }
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => self.fused = true,
            "Metaspace" => {
                let mark = decoder.get("replacement").and_then(Value::as_str).unwrap_or("\u{2581}");
                self.replace.push((mark.to_owned(), " ".to_owned()));
                let never = decoder.get("prepend_scheme").and_then(Value::as_str) == Some("never");
                self.strip = usize::from(!never);
            }
            "Replace" => {
                let from = decoder.pointer("/pattern/String").and_then(Value::as_str);
                let to = decoder.get("content").and_then(Value::as_str);
                match (from, to) {
                    (Some(from), Some(to)) => self.replace.push((from.to_owned(), to.to_owned())),
                    _ => return refuse(format!("decoder step {decoder}")),
                }
            }
            "Strip" => {
                let start = decoder.get("start").and_then(Value::as_u64).unwrap_or(0);
                let stop = decoder.get("stop").and_then(Value::as_u64).unwrap_or(0);
                let space = decoder.get("content").and_then(Value::as_str) == Some(" ");
                if !self.fused || !space || stop != 0 {
                    return refuse(format!("decoder step {decoder}"));
                }
                self.strip = start as usize;
            }
            other => return refuse(format!("decoder type {other:?}")),
        }
        Ok(())
    }

    fn append(&self, token: &str, out: &mut Vec<u8>) {
        if self.byte_level {
            let start = out.len();
            for c in token.chars() {
                match byte_of(c) {
                    Some(b) => out.push(b),
                    None => {
                        // Not written in the byte alphabet: an added token, plain text.
                        out.truncate(start);
                        out.extend_from_slice(token.as_bytes());
                        return;
                    }
                }
            }
            return;
        }
        if self.byte_fallback
            && let Some(b) = fallback_byte(token)
        {
            out.push(b);
            return;
        }
        let mut text = std::borrow::Cow::Borrowed(token);
        for (from, to) in &self.replace {
            if text.contains(from.as_str()) {
                text = text.replace(from.as_str(), to).into();
            }
        }
        out.extend_from_slice(text.as_bytes());
    }
}

/// The byte a `<0xXX>` token stands for.
pub(crate) fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        u8::from_str_radix(hex, 16).ok()
    } else {
        None
    }
}

/// The byte that a character of GPT-2's byte alphabet stands for: printable Latin-1 characters stand for
/// themselves, the 68 other bytes got U+0100 and following in order.
fn byte_of(c: char) -> Option<u8> {
    let code = c as u32;
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121) as u8 + 0x7F),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_alphabet_covers_every_byte_once() {
        let mut seen = [0; 256];
        for c in (0..0x200).filter_map(char::from_u32) {
            if let Some(b) = byte_of(c) {
                seen[b as usize] += 1;
            }
        }
        assert!(seen.iter().all(|&n| n == 1));
        assert_eq!(
            (byte_of('Ġ'), byte_of('Ċ'), byte_of('Ń')),
            (Some(b' '), Some(b'\n'), Some(0xAD))
        );
    }

    #[test]
    fn fallback_tokens() {
        assert_eq!(fallback_byte("<0x0A>"), Some(10));
        assert_eq!(fallback_byte("<0x0>"), None);
        assert_eq!(fallback_byte("<0xéa>"), None);
        assert_eq!(fallback_byte("<0x+1>"), None);
    }
}
