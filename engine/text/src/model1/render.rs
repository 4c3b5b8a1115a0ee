//! Conversation to prompt.

use serde_json::{Value, json};

use super::{BOS, DSML, END_THINK, EOS, THINK};
use crate::chat::pyjson::dumps;
use crate::chat::{Message, ToolCall};
use crate::error::TextError;

pub(crate) const USER: &str = "<｜User｜>";
pub(crate) const ASSISTANT: &str = "<｜Assistant｜>";
const REMINDER: &str = "<｜latest_reminder｜>";
const TASKS: [&str; 6] = ["action", "query", "authority", "domain", "title", "read_url"];
const ROLES: &str = "the roles system, developer, user, assistant, tool and latest_reminder";

const MAX_EFFORT: &str = "Reasoning Effort: Absolute maximum with no shortcuts permitted.\n\
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.\n\
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, \
and rejected hypothesis to ensure absolutely no assumption is left unchecked.\n\n";

/// How much the model thinks before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Effort {
    /// Chat mode: it answers at once.
    #[default]
    None,
    /// Thinking mode.
    High,
    /// Thinking mode with the paragraph for maximum effort. Needs a context of 384K tokens or more.
    Max,
}

/// Settings of [`render`].
#[derive(Clone, Debug)]
pub struct RenderOptions {
    /// Chat or thinking mode.
    pub effort: Effort,
    /// Leave out reasoning from before the last user turn. Ignored if any tools are defined.
    pub drop_reasoning: bool,
    /// End with the markers after which the model writes.
    pub add_generation_prompt: bool,
    /// Tool definitions in the OpenAI format, besides those of the messages.
    pub tools: Vec<Value>,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            effort: Effort::None,
            drop_reasoning: true,
            add_generation_prompt: true,
            tools: Vec::new(),
        }
    }
}

/// A turn after tool results have been merged into user turns.
struct Turn<'a> {
    message: &'a Message,
    /// Texts and tool results of a user turn.
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    text: &'a str,
    /// Id of the call, if this is a tool's result.
    result_of: Option<&'a str>,
}

/// The prompt for a conversation.
pub fn render(messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
    check(messages)?;
    let mut messages: Vec<Message> = messages.to_vec();
    if !options.tools.is_empty() {
        if !messages.iter().any(|m| m.role == "system") {
            messages.insert(0, Message::system(""));
        }
        if let Some(system) = messages.iter_mut().find(|m| m.role == "system") {
            system.tools.extend(options.tools.iter().cloned());
        }
    }
    let thinking = options.effort != Effort::None;
    let drop = options.drop_reasoning && messages.iter().all(|m| m.tools.is_empty());
    let mut turns = merge(&messages);
    sort_results(&mut turns);
    if thinking && drop {
        // Developer turns go the way of old reasoning.
        let last = last_user(&turns);
        let mut index = 0;
        turns.retain(|turn| {
            index += 1;
            turn.message.role != "developer" || Some(index - 1) >= last
        });
    }
    let mut out = String::from(BOS);
    if options.effort == Effort::Max {
        out.push_str(MAX_EFFORT);
    }
    let last = last_user(&turns);
    for (index, turn) in turns.iter().enumerate() {
        // Whether the reasoning of this turn, or of the answer to it, is written out.
        let after_last = last.is_none_or(|last| index > last);
        let kept = thinking && (!drop || after_last);
        let asked_task = index > 0 && turns[index - 1].message.task.is_some();
        write_turn(turn, kept && !asked_task, &mut out);
        let next = turns.get(index + 1).map(|t| t.message.role.as_str());
        let goes_on = match next {
            None => options.add_generation_prompt,
            Some(role) => matches!(role, "assistant" | "latest_reminder"),
        };
        if goes_on {
            let think = thinking && (!drop || Some(index) >= last);
            write_transition(turn.message, thinking, think, &mut out);
        }
    }
    Ok(out)
}

fn check(messages: &[Message]) -> Result<(), TextError> {
    let refuse = |index, reason, accepted| {
        Err(TextError::Conversation {
            index,
            reason,
            accepted,
        })
    };
    for (index, message) in messages.iter().enumerate() {
        match message.role.as_str() {
            "system" | "user" | "assistant" | "tool" | "latest_reminder" => {}
            "developer" if !message.content.is_empty() => {}
            "developer" => return refuse(index, "an empty developer message".to_owned(), "a text"),
            other => return refuse(index, format!("role {other:?}"), ROLES),
        }
        if let Some(task) = message.task.as_deref().filter(|t| !TASKS.contains(t)) {
            let accepted = "action, query, authority, domain, title or read_url";
            return refuse(index, format!("task {task:?}"), accepted);
        }
    }
    Ok(())
}

fn last_user(turns: &[Turn<'_>]) -> Option<usize> {
    turns
        .iter()
        .rposition(|t| matches!(t.message.role.as_str(), "user" | "tool" | "developer"))
}

/// Joins runs of user and tool messages into one turn.
fn merge(messages: &[Message]) -> Vec<Turn<'_>> {
    let mut turns: Vec<Turn<'_>> = Vec::new();
    for message in messages {
        let is_tool = message.role == "tool";
        if !is_tool && message.role != "user" {
            turns.push(Turn {
                message,
                parts: Vec::new(),
            });
            continue;
        }
        let result_of = is_tool.then(|| message.tool_call_id.as_deref().unwrap_or(""));
        let part = Part {
            text: &message.content,
            result_of,
        };
        match turns.last_mut() {
            Some(turn) if !turn.parts.is_empty() && (is_tool || turn.message.task.is_none()) => turn.parts.push(part),
            _ => turns.push(Turn {
                message,
                parts: vec![part],
            }),
        }
    }
    turns
}

/// Puts tool results in the order of the calls they answer; texts between them keep their places.
fn sort_results(turns: &mut [Turn<'_>]) {
    let mut order: Vec<&str> = Vec::new();
    for turn in turns {
        if turn.message.role == "assistant" && !turn.message.tool_calls.is_empty() {
            order = turn
                .message
                .tool_calls
                .iter()
                .map(|c| c.id.as_deref().unwrap_or(""))
                .collect();
        }
        let places: Vec<usize> = (0..turn.parts.len())
            .filter(|&i| turn.parts[i].result_of.is_some())
            .collect();
        if places.len() < 2 || order.iter().all(|id| id.is_empty()) {
            continue;
        }
        let rank = |part: &Part<'_>| {
            let id = part.result_of.filter(|id| !id.is_empty());
            id.and_then(|id| order.iter().position(|&o| o == id)).unwrap_or(0)
        };
        let mut results: Vec<Part<'_>> = places
            .iter()
            .map(|&i| Part {
                text: turn.parts[i].text,
                result_of: turn.parts[i].result_of,
            })
            .collect();
        results.sort_by_key(rank);
        for (&place, result) in places.iter().zip(results) {
            turn.parts[place] = result;
        }
    }
}

fn write_turn(turn: &Turn<'_>, reasoning_kept: bool, out: &mut String) {
    let message = turn.message;
    match message.role.as_str() {
        "system" | "developer" => {
            if message.role == "developer" {
                out.push_str(USER);
            }
            out.push_str(&message.content);
            if !message.tools.is_empty() {
                out.push_str("\n\n");
                write_tools(&message.tools, out);
            }
        }
        "latest_reminder" => {
            out.push_str(REMINDER);
            out.push_str(&message.content);
        }
        "assistant" => {
            if reasoning_kept {
                out.push_str(message.reasoning.as_deref().unwrap_or(""));
                out.push_str(END_THINK);
            }
            out.push_str(&message.content);
            write_calls(&message.tool_calls, out);
            out.push_str(EOS);
        }
        _ => {
            out.push_str(USER);
            for (i, part) in turn.parts.iter().enumerate() {
                if i > 0 {
                    out.push_str("\n\n");
                }
                match part.result_of {
                    Some(_) => out.extend(["<tool_result>", part.text, "</tool_result>"]),
                    None => out.push_str(part.text),
                }
            }
        }
    }
}

/// What stands between a turn and the model's answer to it.
fn write_transition(message: &Message, thinking: bool, think: bool, out: &mut String) {
    let marker = |think: bool| if think { THINK } else { END_THINK };
    match message.task.as_deref() {
        Some("action") => out.extend([ASSISTANT, marker(thinking), "<｜action｜>"]),
        Some(task) => out.extend(["<｜", task, "｜>"]),
        None if matches!(message.role.as_str(), "user" | "tool" | "developer") => {
            out.extend([ASSISTANT, marker(think)]);
        }
        None => {}
    }
}

fn write_calls(calls: &[ToolCall], out: &mut String) {
    if calls.is_empty() {
        return;
    }
    out.push_str(&format!("\n\n<{DSML}tool_calls>\n"));
    for call in calls {
        out.push_str(&format!("<{DSML}invoke name=\"{}\">\n", call.name));
        let parsed;
        let arguments = match &call.arguments {
            Value::String(text) => {
                parsed = serde_json::from_str(text).ok().filter(Value::is_object);
                parsed.unwrap_or_else(|| json!({"arguments": text}))
            }
            other => other.clone(),
        };
        let lines: Vec<String> = match arguments {
            Value::Object(fields) => fields.iter().map(|(name, value)| parameter(name, value)).collect(),
            Value::Null => Vec::new(),
            other => vec![parameter("arguments", &other)],
        };
        out.push_str(&lines.join("\n"));
        out.push_str(&format!("\n</{DSML}invoke>\n"));
    }
    out.push_str(&format!("</{DSML}tool_calls>"));
}

fn parameter(name: &str, value: &Value) -> String {
    let (string, text) = match value {
        Value::String(text) => (true, text.clone()),
        other => (false, dumps(other, None)),
    };
    format!("<{DSML}parameter name=\"{name}\" string=\"{string}\">{text}</{DSML}parameter>")
}

fn write_tools(tools: &[Value], out: &mut String) {
    let schemas: Vec<String> = tools
        .iter()
        .map(|tool| dumps(tool.get("function").unwrap_or(tool), None))
        .collect();
    out.push_str(&format!(
        "## Tools\n\n\
         You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
         \"<{DSML}tool_calls>\" block like the following:\n\n\
         <{DSML}tool_calls>\n\
         <{DSML}invoke name=\"$TOOL_NAME\">\n\
         <{DSML}parameter name=\"$PARAMETER_NAME\" string=\"true|false\">$PARAMETER_VALUE</{DSML}parameter>\n\
         ...\n\
         </{DSML}invoke>\n\
         <{DSML}invoke name=\"$TOOL_NAME2\">\n\
         ...\n\
         </{DSML}invoke>\n\
         </{DSML}tool_calls>\n\n\
         String parameters should be specified as is and set `string=\"true\"`. For all other types (numbers, \
         booleans, arrays, objects), pass the value in JSON format and set `string=\"false\"`.\n\n\
         If thinking_mode is enabled (triggered by {THINK}), you MUST output your complete reasoning inside \
         {THINK}...{END_THINK} BEFORE any tool calls or final response.\n\n\
         Otherwise, output directly after {END_THINK} with tool calls or final response.\n\n\
         ### Available Tool Schemas\n\n{}\n\n\
         You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.\n",
        schemas.join("\n")
    ));
}
