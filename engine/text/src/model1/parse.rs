//! What the model wrote, taken apart.

use serde_json::{Map, Value};

use super::{DSML, END_THINK, EOS, THINK};
use crate::chat::ToolCall;
use crate::error::TextError;

/// An answer of the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parsed {
    /// What it thought; `None` in chat mode.
    pub reasoning: Option<String>,
    /// What it said.
    pub content: String,
    /// Tools it called, without ids.
    pub tool_calls: Vec<ToolCall>,
    /// False if the text ends inside the reasoning or inside the tool calls.
    pub complete: bool,
}

/// Takes the text after the prompt apart. `thinking` says that the prompt ended with `<think>`.
///
/// The end-of-text marker may be there or not; what follows it is ignored. A text cut off inside the reasoning or
/// inside the tool calls gives what is there, with `complete` false. Tool calls that are whole but malformed are an
/// error.
pub fn parse(text: &str, thinking: bool) -> Result<Parsed, TextError> {
    let body = text.find(EOS).map_or(text, |end| &text[..end]);
    let mut parsed = Parsed {
        complete: true,
        ..Parsed::default()
    };
    let mut at = 0;
    if thinking {
        if body.starts_with(THINK) {
            at = THINK.len();
        }
        let Some(end) = body[at..].find(END_THINK) else {
            parsed.reasoning = Some(body[at..].to_owned());
            parsed.complete = false;
            return Ok(parsed);
        };
        parsed.reasoning = Some(body[at..at + end].to_owned());
        at += end + END_THINK.len();
    }
    let start = format!("\n\n<{DSML}tool_calls");
    match body[at..].find(&start) {
        None => parsed.content = body[at..].to_owned(),
        Some(len) => {
            parsed.content = body[at..at + len].to_owned();
            let mut reader = Reader {
                text: body,
                at: at + len + start.len(),
            };
            parsed.complete = reader.calls(&mut parsed.tool_calls)?;
        }
    }
    Ok(parsed)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// Steps over `expected` and white space around it.
    fn take(&mut self, expected: &str) -> bool {
        let rest = self.rest();
        let trimmed = rest.trim_start();
        match trimmed.strip_prefix(expected) {
            Some(after) => {
                self.at += rest.len() - after.len();
                true
            }
            None => false,
        }
    }

    /// Steps over everything up to and including `end`; `None` if the text ends first.
    fn until(&mut self, end: &str) -> Option<&'a str> {
        let rest = self.rest();
        let len = rest.find(end)?;
        self.at += len + end.len();
        Some(&rest[..len])
    }

    /// True if what is left could still become `expected`.
    fn cut_off(&self, expected: &str) -> bool {
        expected.starts_with(self.rest().trim_start())
    }

    fn refuse<T>(&self, what: &str, accepted: &'static str) -> Result<T, TextError> {
        let found: String = self.rest().chars().take(40).collect();
        Err(TextError::Output {
            offset: self.at,
            reason: format!("{what}, found {found:?}"),
            accepted,
        })
    }

    /// All calls; false if the text ends before they do.
    fn calls(&mut self, out: &mut Vec<ToolCall>) -> Result<bool, TextError> {
        let invoke = format!("<{DSML}invoke name=\"");
        let end = format!("</{DSML}tool_calls>");
        if !self.take(">") {
            return if self.cut_off(">") {
                Ok(false)
            } else {
                self.refuse("the tag tool_calls goes on", "\">\"")
            };
        }
        loop {
            if self.take(&end) {
                let rest = self.rest().trim();
                return if rest.is_empty() {
                    Ok(true)
                } else {
                    self.refuse("text after the tool calls", "the end of the text")
                };
            }
            if !self.take(&invoke) {
                if self.cut_off(&invoke) || self.cut_off(&end) {
                    return Ok(false);
                }
                return self.refuse(
                    "no call in the tool calls",
                    "an invoke tag with a name, or the closing tag",
                );
            }
            match self.call()? {
                Some(call) => out.push(call),
                None => return Ok(false),
            }
        }
    }

    /// One call after `<invoke name="`; `None` if the text ends inside it.
    fn call(&mut self) -> Result<Option<ToolCall>, TextError> {
        let Some(name) = self.until("\">") else { return Ok(None) };
        let parameter = format!("<{DSML}parameter name=\"");
        let end = format!("</{DSML}invoke>");
        let mut arguments = Map::new();
        loop {
            if self.take(&end) {
                return Ok(Some(ToolCall {
                    id: None,
                    name: name.to_owned(),
                    arguments: Value::Object(arguments),
                }));
            }
            if !self.take(&parameter) {
                if self.cut_off(&parameter) || self.cut_off(&end) {
                    return Ok(None);
                }
                return self.refuse(
                    "no parameter in the call",
                    "a parameter tag with a name, or the closing tag",
                );
            }
            let at = self.at;
            let Some(key) = self.until("\"") else { return Ok(None) };
            let Some(value) = self.value(key)? else { return Ok(None) };
            if arguments.insert(key.to_owned(), value).is_some() {
                self.at = at;
                return self.refuse(&format!("parameter {key:?} twice"), "each parameter once");
            }
        }
    }

    /// The rest of a parameter after its name; `None` if the text ends inside it.
    fn value(&mut self, key: &str) -> Result<Option<Value>, TextError> {
        let (yes, no) = (" string=\"true\">", " string=\"false\">");
        let string = self.rest().starts_with(yes);
        if !string && !self.rest().starts_with(no) {
            if yes.starts_with(self.rest()) || no.starts_with(self.rest()) {
                return Ok(None);
            }
            return self.refuse(&format!("parameter {key:?}"), "string=\"true\" or string=\"false\"");
        }
        self.at += if string { yes.len() } else { no.len() };
        let at = self.at;
        let Some(text) = self.until(&format!("</{DSML}parameter>")) else {
            return Ok(None);
        };
        if string {
            return Ok(Some(Value::String(text.to_owned())));
        }
        match serde_json::from_str(text) {
            Ok(value) => Ok(Some(value)),
            Err(e) => {
                self.at = at;
                self.refuse(
                    &format!("parameter {key:?} is not JSON ({e})"),
                    "JSON, or string=\"true\"",
                )
            }
        }
    }
}
