//! From tokens to text while they are produced.

use std::sync::Arc;

use crate::pieces::Pieces;
use crate::tokenizer::Tokenizer;

/// Turns tokens into text one by one. Never emits half a character; the pieces joined equal
/// [`Tokenizer::decode`] of all tokens. The work per token does not grow with the text.
#[derive(Clone, Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    joint: Joint,
}

impl Detokenizer {
    /// At the start of a text. `skip_special` leaves control tokens out.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let joint = Joint::new(tokenizer.pieces());
        Self {
            tokenizer,
            skip_special,
            joint,
        }
    }

    /// After a prompt, control tokens left out: where the prompt has text, a leading space of the first word
    /// stays, because it is part of the text.
    pub fn after(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Self {
        let mut detok = Self::new(tokenizer, true);
        let visible = |&id: &u32| !detok.tokenizer.is_special(id) && detok.tokenizer.pieces().get(id).is_some();
        if prompt.iter().any(visible) {
            detok.joint.strip = 0;
            detok.joint.first = false;
        }
        detok
    }

    /// Takes a token; returns the text that is complete now, if any. Ids without a token add nothing.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if self.skip_special && self.tokenizer.is_special(id) {
            return None;
        }
        let mut out = String::new();
        self.joint.push(self.tokenizer.pieces(), id, &mut out);
        Some(out).filter(|text| !text.is_empty())
    }

    /// Lets go of an unfinished character as U+FFFD; empty if there is none.
    pub fn flush(&mut self) -> String {
        let mut out = String::new();
        self.joint.flush(&mut out);
        out
    }
}

/// The state between two tokens.
#[derive(Clone, Debug)]
pub(crate) struct Joint {
    /// Bytes of an unfinished character, at most three.
    held: Vec<u8>,
    strip: usize,
    first: bool,
}

impl Joint {
    pub(crate) fn new(pieces: &Pieces) -> Self {
        Self {
            held: Vec::new(),
            strip: pieces.strip,
            first: true,
        }
    }

    pub(crate) fn push(&mut self, pieces: &Pieces, id: u32, out: &mut String) {
        let Some(bytes) = pieces.get(id) else { return };
        if !std::mem::take(&mut self.first) {
            self.held.extend_from_slice(pieces.joiner.as_bytes());
        }
        self.held.extend_from_slice(bytes);
        while self.strip > 0 && !self.held.is_empty() {
            if self.held[0] != b' ' {
                self.strip = 0;
                break;
            }
            self.held.remove(0);
            self.strip -= 1;
        }
        self.drain(out);
    }

    /// Moves everything that is decided to `out`: characters, and U+FFFD for bytes that can never become one.
    fn drain(&mut self, out: &mut String) {
        let mut rest = self.held.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    self.held.clear();
                    return;
                }
                Err(e) => {
                    let (good, bad) = rest.split_at(e.valid_up_to());
                    out.push_str(&String::from_utf8_lossy(good));
                    match e.error_len() {
                        Some(n) => {
                            out.push(char::REPLACEMENT_CHARACTER);
                            rest = &bad[n..];
                        }
                        None => {
                            let bad = bad.to_vec();
                            self.held = bad;
                            return;
                        }
                    }
                }
            }
        }
    }

    pub(crate) fn flush(&mut self, out: &mut String) {
        out.push_str(&String::from_utf8_lossy(&self.held));
        self.held.clear();
    }
}
