//! Text in and out of a model: tokenizers, streaming detokenization, stop strings, chat templates and MODEL1's
//! own prompt format.

pub mod chat;
mod detok;
mod error;
mod gguf;
mod marks;
mod pieces;
mod presplit;
mod prompt;
mod stop;
mod tokenizer;

pub mod model1;
pub use model1 as model1_prompt;

pub use chat::{ChatTemplate, Message, TemplateVars, ToolCall};
pub use detok::Detokenizer;
pub use error::TextError;
pub use gguf::GgufVocab;
pub use prompt::{Prompt, PromptOptions};
pub use stop::{StopOutput, StopStrings};
pub use tokenizer::Tokenizer;
