//! Conversations, and the Jinja templates that turn them into prompts.

mod clock;
mod message;
pub mod pyjson;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value as Jinja};
use minijinja_contrib::pycompat;
use serde_json::{Map, Value, json};

use crate::error::TextError;

pub use message::{Message, ToolCall};

/// Work a template may do: far above any real template, far below a hang.
const FUEL: u64 = 50_000_000;

/// What a template sees besides the messages.
#[derive(Clone, Debug, Default)]
pub struct TemplateVars {
    /// Spelling of the token that begins a text.
    pub bos_token: Option<String>,
    /// Spelling of the token that ends a text.
    pub eos_token: Option<String>,
    /// Tool definitions, in the OpenAI format.
    pub tools: Vec<Value>,
    /// Seconds since 1970 that `strftime_now` shows, in UTC; `None` is now.
    pub now: Option<i64>,
    /// Anything else the template understands, such as `enable_thinking`.
    pub extra: Map<String, Value>,
}

/// A compiled chat template, run the way transformers runs it: blocks trimmed, Python's string methods, JSON and
/// printing as Python does them, `raise_exception` and `strftime_now`.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
}

impl ChatTemplate {
    /// Checks that the template compiles.
    pub fn new(source: &str) -> Result<Self, TextError> {
        let template = Self {
            source: without_generation_tags(source),
        };
        environment(None)?.template_from_str(&template.source).map_err(failed)?;
        Ok(template)
    }

    /// The prompt for a conversation.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        vars: &TemplateVars,
    ) -> Result<String, TextError> {
        let mut context = vars.extra.clone();
        let messages: Vec<Value> = messages.iter().map(Message::to_json).collect();
        context.insert("messages".into(), Value::Array(messages));
        context.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        context.insert("bos_token".into(), json!(vars.bos_token.as_deref().unwrap_or("")));
        context.insert("eos_token".into(), json!(vars.eos_token.as_deref().unwrap_or("")));
        let tools = if vars.tools.is_empty() {
            Value::Null
        } else {
            json!(vars.tools)
        };
        context.insert("tools".into(), tools);
        context.entry("documents").or_insert(Value::Null);
        let env = environment(vars.now)?;
        let template = env.template_from_str(&self.source).map_err(failed)?;
        template.render(Jinja::from(Serde(context))).map_err(failed)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn failed(error: Error) -> TextError {
    let line = error.line().map_or_else(String::new, |n| format!(" line {n}"));
    let reason = match (error.kind(), error.detail()) {
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    TextError::Template { line, reason }
}

fn environment(now: Option<i64>) -> Result<Environment<'static>, TextError> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
        .map_err(failed)?;
    env.set_syntax(syntax);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(pycompat::unknown_method_callback);
    env.set_formatter(print_like_python);
    env.add_filter("tojson", to_json);
    env.add_function("raise_exception", |reason: String| -> Result<Jinja, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, reason))
    });
    env.add_function("strftime_now", move |format: String| {
        clock::strftime(&format, now.unwrap_or_else(clock::now))
    });
    Ok(env)
}

fn plain(value: &Jinja) -> Result<Value, Error> {
    serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
}

/// The `tojson` of transformers: `json.dumps` with `ensure_ascii=False`.
fn to_json(value: &Jinja, options: Kwargs) -> Result<Jinja, Error> {
    let indent: Option<usize> = options.get("indent")?;
    for known in ["ensure_ascii", "separators", "sort_keys"] {
        let _: Option<Jinja> = options.get(known)?;
    }
    options.assert_all_used()?;
    Ok(Jinja::from_safe_string(pyjson::dumps(&plain(value)?, indent)))
}

/// `{{ value }}` as Python prints it.
fn print_like_python(out: &mut Output, _state: &mut State, value: &Jinja) -> Result<(), Error> {
    let mut text = String::new();
    match value.kind() {
        ValueKind::Undefined => {}
        ValueKind::String => text.push_str(value.as_str().unwrap_or_default()),
        ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::Seq | ValueKind::Map => {
            pyjson::python(&plain(value)?, false, &mut text);
        }
        _ => text = value.to_string(),
    }
    out.write_str(&text).map_err(Error::from)
}

/// Turns `{% generation %}` ... `{% endgeneration %}`, which marks text for training, into plain blocks.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(len) = rest[start..].find("%}") else { break };
        let tag = &rest[start + 2..start + len];
        let word = tag.trim_matches(['-', '+', ' ', '\t', '\n']);
        let instead = match word {
            "generation" => "if true",
            "endgeneration" => "endif",
            _ => word,
        };
        out.push_str(&rest[..start + 2]);
        if instead == word {
            out.push_str(tag)
        } else {
            out.push_str(&tag.replace(word, instead))
        }
        rest = &rest[start + len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
