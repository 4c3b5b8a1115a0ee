//! From the tree of messages to the tokens the model reads.

use std::sync::Arc;

use engine::{Cancel, Engine, EngineError};
use protocol::{DocKind, ErrorInfo, Role, TokenInfo};
use text::{Detokenizer, Message, Prompt as ChatFormat, Tokenizer};

use super::Loaded;
use crate::docs::command::Form;
use crate::docs::{Doc, Node};
use crate::errors::{cancelled, input, of_engine};

/// Texts longer than this are encoded on a thread of their own, so that stopping does not wait for them.
const LONG: usize = 1 << 16;

/// Tokens to read, and how a command line would ask for them.
pub(super) struct Prompt {
    pub ids: Vec<u32>,
    pub form: Form,
}

impl Loaded {
    /// The tokens of a branch, before the message that is to be written.
    pub(super) fn prompt(
        &self,
        doc: &Doc,
        path: &[Arc<Node>],
        thinking: bool,
        stop: &Cancel,
    ) -> Result<Prompt, ErrorInfo> {
        self.refuse_endless(doc, path)?;
        let Ok(tokenizer) = self.engine.tokenizer() else {
            return self.id_prompt(path);
        };
        match doc.kind {
            DocKind::Text => self.text_prompt(tokenizer, path, stop),
            DocKind::Chat => {
                if let Err(why) = &self.model.chat {
                    let what = format!("{} cannot chat: {why}.", self.model.name);
                    return Err(input(what, "Start a new text instead, or open a chat model."));
                }
                self.chat_prompt(tokenizer, doc, path, thinking, stop)
            }
        }
    }

    /// Refuses a text that cannot fit before time is spent on it: a token stands for a bounded number of bytes.
    fn refuse_endless(&self, doc: &Doc, path: &[Arc<Node>]) -> Result<(), ErrorInfo> {
        let system = if doc.kind == DocKind::Chat { doc.system.len() } else { 0 };
        let bytes: usize = system + path.iter().map(|n| n.view.text.len()).sum::<usize>();
        let least = (bytes / self.longest_piece) as u64;
        // Twice, because normalisation may shorten a text.
        if least > 2 * self.session.capacity() {
            return Err(self.too_long(&format!("more than {least}")));
        }
        Ok(())
    }

    /// The text leaves no room for an answer.
    pub(super) fn too_long(&self, tokens: &str) -> ErrorInfo {
        let (context, max) = (self.session.capacity(), self.model.facts.max_context);
        let larger = if context < max {
            format!(", or open the model with a larger context (up to {max})")
        } else {
            String::new()
        };
        input(
            format!("The text has {tokens} tokens; the context holds {context} and leaves no room for an answer."),
            format!("Shorten it, branch from an earlier message, start a new text{larger}."),
        )
    }

    /// Tokens of the shown branch, whether or not the session has read them: a saved text that was just opened can
    /// be looked into before anything is written. `writing` is the message being written, with its text.
    pub(super) fn shown(
        &self,
        doc: Option<&Doc>,
        writing: Option<(u64, u32)>,
        stop: &Cancel,
    ) -> Result<Vec<u32>, ErrorInfo> {
        let Some((doc, leaf)) = doc.and_then(|d| Some((d, d.node(d.leaf?)?))) else {
            return Ok(Vec::new());
        };
        if writing == Some((doc.id, leaf.view.id)) {
            // The session is just reading and writing it.
            return Ok(self.session.tokens().to_vec());
        }
        if leaf.view.role != Role::Assistant {
            return Ok(self.prompt(doc, &doc.path(doc.leaf), false, stop)?.ids);
        }
        let thinking = leaf.view.spec.as_ref().is_some_and(|s| s.thinking);
        let mut ids = self.prompt(doc, &doc.path(leaf.view.parent), thinking, stop)?.ids;
        if leaf.vocabulary == self.vocabulary && !leaf.view.tokens.is_empty() {
            ids.extend(leaf.view.tokens.iter().map(|t| t.token));
        } else {
            ids.extend(self.given(&leaf.view.text, stop)?);
        }
        Ok(ids)
    }

    /// Messages one after the other. Tokens the model wrote are taken as they are.
    fn text_prompt(&self, tokenizer: &Arc<Tokenizer>, path: &[Arc<Node>], stop: &Cancel) -> Result<Prompt, ErrorInfo> {
        let (mut ids, mut pending) = (Vec::new(), String::new());
        let eos = self.engine.eos_ids();
        for (i, node) in path.iter().enumerate() {
            if node.vocabulary != self.vocabulary || node.view.tokens.is_empty() {
                pending.push_str(&node.view.text);
                continue;
            }
            self.flush(tokenizer, &mut ids, &mut pending, stop)?;
            ids.extend(node.view.tokens.iter().map(|t| t.token));
            // Whoever writes on after the end of a text means to go on with it.
            if i + 1 < path.len() && ids.last().is_some_and(|id| eos.contains(id)) {
                ids.pop();
            }
        }
        self.flush(tokenizer, &mut ids, &mut pending, stop)?;
        let form = match path {
            [only] if only.view.tokens.is_empty() && !only.view.text.is_empty() => Form::Text(only.view.text.clone()),
            _ => Form::Ids,
        };
        Ok(Prompt { ids, form })
    }

    fn flush(
        &self,
        tokenizer: &Arc<Tokenizer>,
        ids: &mut Vec<u32>,
        pending: &mut String,
        stop: &Cancel,
    ) -> Result<(), ErrorInfo> {
        let first = ids.is_empty();
        if first || !pending.is_empty() {
            ids.extend(encode(tokenizer, std::mem::take(pending), first, stop)?);
        }
        Ok(())
    }

    fn chat_prompt(
        &self,
        tokenizer: &Arc<Tokenizer>,
        doc: &Doc,
        path: &[Arc<Node>],
        thinking: bool,
        stop: &Cancel,
    ) -> Result<Prompt, ErrorInfo> {
        let prompt = self.engine.prompt();
        let own_format = matches!(prompt, ChatFormat::Model1);
        let mut messages = Vec::new();
        if !doc.system.trim().is_empty() {
            messages.push(Message::system(&doc.system));
        }
        messages.extend(path.iter().map(|n| message(n, own_format)));
        let rendered = if thinking {
            prompt.render_thinking(&messages, tokenizer)
        } else {
            prompt.render(&messages, true, tokenizer)
        };
        let rendered = rendered.map_err(|e| of_engine(&EngineError::from(e)))?;
        let form = match path {
            [only] if doc.system.trim().is_empty() && !thinking => Form::Chat(only.view.text.clone()),
            _ => Form::Ids,
        };
        let ids = encode(tokenizer, rendered, false, stop)?;
        Ok(Prompt { ids, form })
    }

    /// Models without a tokenizer read numbers.
    fn id_prompt(&self, path: &[Arc<Node>]) -> Result<Prompt, ErrorInfo> {
        let mut ids = Vec::new();
        for node in path {
            if node.vocabulary == self.vocabulary && !node.view.tokens.is_empty() {
                ids.extend(node.view.tokens.iter().map(|t| t.token));
            } else {
                ids.extend(numbers(&node.view.text)?);
            }
        }
        Ok(Prompt { ids, form: Form::Ids })
    }

    /// Tokens of a text that the model is to have written itself.
    pub(super) fn given(&self, text: &str, stop: &Cancel) -> Result<Vec<u32>, ErrorInfo> {
        let Ok(tokenizer) = self.engine.tokenizer() else {
            return numbers(text);
        };
        let tokenizer = tokenizer.clone();
        let text = text.to_string();
        patiently(text.len(), stop, move || tokenizer.encode_plain(&text))
    }

    /// Token entries for tokens that were not drawn, after a prompt.
    pub(super) fn infos(&self, prompt: &[u32], ids: &[u32]) -> Vec<TokenInfo> {
        let mut detok = self
            .engine
            .tokenizer()
            .ok()
            .map(|t| Detokenizer::after(t.clone(), prompt));
        let mut out: Vec<TokenInfo> = Vec::with_capacity(ids.len());
        for (i, &token) in ids.iter().enumerate() {
            let text = match &mut detok {
                Some(d) => d.push(token).unwrap_or_default(),
                None => number_text(token, i == 0),
            };
            out.push(TokenInfo {
                token,
                text,
                logprob: f32::NAN,
                top: Vec::new(),
                position: (prompt.len() + i) as u64,
                recipe: 0,
            });
        }
        out
    }
}

/// A token of a model without tokenizer as text.
pub(super) fn number_text(token: u32, first: bool) -> String {
    if first { token.to_string() } else { format!(" {token}") }
}

/// How a token reads on its own.
pub(super) fn piece(engine: &Engine, token: u32) -> String {
    let Ok(tokenizer) = engine.tokenizer() else {
        return token.to_string();
    };
    if tokenizer.is_special(token) {
        return tokenizer.token_piece(token).unwrap_or_default();
    }
    tokenizer
        .token_bytes(token)
        .map_or_else(|| format!("<{token}>"), |b| String::from_utf8_lossy(b).into_owned())
}

fn message(node: &Node, own_format: bool) -> Message {
    let text = node.view.text.as_str();
    match node.view.role {
        Role::System => Message::system(text),
        Role::User => Message::user(text),
        Role::Assistant => {
            // Templates take thinking out of the text themselves; MODEL1's format wants it apart.
            let split = text.split_once("</think>").filter(|_| own_format);
            match split {
                Some((thought, said)) => Message {
                    reasoning: Some(thought.trim_start().trim_start_matches("<think>").to_string()),
                    ..Message::assistant(said.trim())
                },
                None => Message::assistant(text.trim_end()),
            }
        }
    }
}

/// Token ids separated by commas or white space.
fn numbers(text: &str) -> Result<Vec<u32>, ErrorInfo> {
    let parts = text
        .split(|c: char| c == ',' || c.is_whitespace())
        .filter(|p| !p.is_empty());
    let parsed: Result<Vec<u32>, _> = parts.map(str::parse).collect();
    parsed.map_err(|_| {
        input(
            "This model has no tokenizer: it reads token ids, not text.",
            "Accepted: whole numbers separated by commas or spaces, e.g. 5, 9, 2.",
        )
    })
}

fn encode(tokenizer: &Arc<Tokenizer>, text: String, special: bool, stop: &Cancel) -> Result<Vec<u32>, ErrorInfo> {
    let tokenizer = tokenizer.clone();
    patiently(text.len(), stop, move || tokenizer.encode(&text, special))
}

/// Runs `work` here if it is short, else on a thread of its own that is left alone when stopping is asked for.
fn patiently<T: Send + 'static>(
    size: usize,
    stop: &Cancel,
    work: impl FnOnce() -> Result<T, text::TextError> + Send + 'static,
) -> Result<T, ErrorInfo> {
    let failed = |e| of_engine(&EngineError::from(e));
    if size <= LONG {
        return work().map_err(failed);
    }
    let (tell, told) = std::sync::mpsc::channel();
    let spawned = std::thread::Builder::new().name("encode".into()).spawn(move || {
        // Nobody listens after a stop.
        let _ = tell.send(work());
    });
    spawned.map_err(|e| crate::errors::internal(format!("No thread could be started: {e}.")))?;
    loop {
        match told.recv_timeout(std::time::Duration::from_millis(20)) {
            Ok(result) => return result.map_err(failed),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) if stop.is_cancelled() => return Err(cancelled()),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                return Err(crate::errors::internal("The tokenizer broke down."));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_as_people_write_them() {
        assert_eq!(numbers(" 5, 9\n2 ").unwrap(), [5, 9, 2]);
        assert_eq!(numbers("").unwrap(), [0u32; 0]);
        for bad in ["5, x", "-1", "4294967296", "hello"] {
            let e = numbers(bad).unwrap_err();
            assert!(e.what.contains("no tokenizer") && e.remedy.contains("5, 9, 2"), "{e}");
        }
    }

    #[test]
    fn stopping_does_not_wait_for_a_long_text() {
        let stop = Cancel::default();
        stop.cancel();
        // Work that ends only after it was left alone.
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let slow = move || {
            let _ = ended.recv();
            Ok(1)
        };
        let e = patiently(LONG + 1, &stop, slow).unwrap_err();
        assert_eq!(e.kind, protocol::ErrorKind::Cancelled);
        drop(end);
        assert_eq!(patiently(1, &stop, || Ok(2)).unwrap(), 2);
    }
}
