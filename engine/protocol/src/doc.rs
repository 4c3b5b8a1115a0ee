//! Texts: prompts and chats as trees of messages, and the log of produced tokens.

use serde::{Deserialize, Serialize};

/// Who wrote a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Instructions before a chat.
    System,
    /// The user; in a plain text, the prompt.
    User,
    /// The model.
    Assistant,
}

/// What kind of text it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DocKind {
    /// A prompt and its continuation.
    Text,
    /// A conversation.
    Chat,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishView {
    /// Still being written.
    Running,
    /// The model ended the text.
    Eos,
    /// A stop string.
    Stop,
    /// The number of tokens asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// Stopped by the user.
    Cancelled,
    /// An error; what was written stays.
    Failed,
}

/// A token that could have been drawn.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alternative {
    /// Token.
    pub token: u32,
    /// Its text (a token that is half a character shows as `\u{fffd}`).
    pub text: String,
    /// Natural log of its probability at temperature 1.
    pub logprob: f32,
}

/// One token of a message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenInfo {
    /// Token.
    pub token: u32,
    /// Text that became final with it; may be empty, never half a character.
    pub text: String,
    /// Natural log of its probability at temperature 1; NaN for prompt tokens that were not scored.
    pub logprob: f32,
    /// The likeliest tokens at this place, likeliest first.
    pub top: Vec<Alternative>,
    /// Position in the context, 0-based.
    pub position: u64,
    /// Number of the recipe in force when it was drawn (index into [`NodeView::recipes`]).
    pub recipe: u16,
}

/// A produced token in the log of the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// Sequence number in the log, from 1 without gaps.
    pub seq: u64,
    /// Text it belongs to.
    pub doc: u64,
    /// Message it belongs to.
    pub node: u32,
    /// Number within the message, 0-based. A client that already has it ignores the entry.
    pub index: u32,
    /// The token.
    pub info: TokenInfo,
}

/// Sampler settings (the fields of `SamplerParams`).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 = greedy.
    pub temperature: f32,
    /// 0 = all.
    pub top_k: u32,
    /// 1 = all.
    pub top_p: f32,
    /// 0 = all.
    pub min_p: f32,
    /// 1 = off.
    pub repetition_penalty: f32,
    /// 0 = off.
    pub frequency_penalty: f32,
    /// 0 = off.
    pub presence_penalty: f32,
    /// Seed.
    pub seed: u64,
    /// Alternatives reported per token.
    pub logprobs: u32,
}

/// How to generate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateSpec {
    /// Sampler.
    pub sampling: Sampling,
    /// Most tokens; 0 = until the context is full.
    pub max_tokens: u64,
    /// Strings that end the text.
    pub stop: Vec<String>,
    /// Go on past end-of-text tokens.
    pub ignore_eos: bool,
    /// Ask models that can for thinking first.
    pub thinking: bool,
}

/// One message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// Number, unique within the text.
    pub id: u32,
    /// The message before it; `None` at the top.
    pub parent: Option<u32>,
    /// Who wrote it.
    pub role: Role,
    /// The text.
    pub text: String,
    /// Tokens with probabilities, for what the model wrote.
    pub tokens: Vec<TokenInfo>,
    /// Why it ended ([`FinishView::Eos`] for what the user wrote).
    pub finish: FinishView,
    /// How it was made.
    pub spec: Option<GenerateSpec>,
    /// Hashes of the recipes in force while it was written, in order.
    pub recipes: Vec<String>,
    /// Speeds, once it has ended.
    pub summary: Option<crate::RunSummary>,
    /// What went wrong, for [`FinishView::Failed`].
    pub error: Option<crate::ErrorInfo>,
    /// Seconds since 1970.
    pub created: u64,
}

/// A saved text in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DocInfo {
    /// Number, never reused.
    pub id: u64,
    /// Title: given, or the first words.
    pub title: String,
    /// Kind.
    pub kind: DocKind,
    /// Model it was written with.
    pub model: String,
    /// Seconds since 1970 of the last change.
    pub changed: u64,
    /// Messages.
    pub messages: u32,
}

/// A text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DocView {
    /// In the list.
    pub info: DocInfo,
    /// System prompt (chats).
    pub system: String,
    /// All messages of all branches, parents before children.
    pub nodes: Vec<NodeView>,
    /// The last message of the branch that is shown; `None` in an empty text.
    pub leaf: Option<u32>,
    /// Sequence number of the last token contained.
    pub token_seq: u64,
    /// The command line that reproduces the shown branch; empty if there is none yet.
    pub command: String,
}
