//! The turns of a conversation.

use serde_json::{Map, Value, json};

/// A call of a tool by the model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolCall {
    /// Id that the result refers to.
    pub id: Option<String>,
    /// Name of the tool.
    pub name: String,
    /// Arguments, normally a JSON object.
    pub arguments: Value,
}

/// One turn of a conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, `developer`, or another role the prompt format knows.
    pub role: String,
    /// The text.
    pub content: String,
    /// What the assistant thought before `content`.
    pub reasoning: Option<String>,
    /// Tools the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// For role `tool`: the call this answers.
    pub tool_call_id: Option<String>,
    /// For role `tool`: the tool's name.
    pub name: Option<String>,
    /// Tools defined by this message (MODEL1's format; system and developer turns).
    pub tools: Vec<Value>,
    /// Quick task that follows this turn (MODEL1's format): `action`, `query`, `authority`, `domain`, `title`,
    /// `read_url`.
    pub task: Option<String>,
}

impl Message {
    /// A turn of any role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
            ..Self::default()
        }
    }

    /// Instructions before the conversation.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// What the user says.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// What the model said.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// The result of the tool call with this id.
    pub fn tool(id: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            tool_call_id: Some(id.into()),
            ..Self::new("tool", content)
        }
    }

    /// The message as templates see it; what is not there is not defined.
    pub(super) fn to_json(&self) -> Value {
        let mut out = Map::new();
        out.insert("role".into(), json!(self.role));
        out.insert("content".into(), json!(self.content));
        if let Some(reasoning) = &self.reasoning {
            out.insert("reasoning_content".into(), json!(reasoning));
        }
        if !self.tool_calls.is_empty() {
            let calls = self.tool_calls.iter().map(|call| {
                let mut out = Map::new();
                if let Some(id) = &call.id {
                    out.insert("id".into(), json!(id));
                }
                out.insert("type".into(), json!("function"));
                out.insert(
                    "function".into(),
                    json!({"name": call.name, "arguments": call.arguments}),
                );
                Value::Object(out)
            });
            out.insert("tool_calls".into(), calls.collect());
        }
        if let Some(id) = &self.tool_call_id {
            out.insert("tool_call_id".into(), json!(id));
        }
        if let Some(name) = &self.name {
            out.insert("name".into(), json!(name));
        }
        Value::Object(out)
    }
}
