//! Which prompt format a model uses.

use serde_json::{Map, Value};

use crate::chat::{ChatTemplate, Message, TemplateVars};
use crate::error::TextError;
use crate::model1::{self, Effort, RenderOptions};
use crate::tokenizer::Tokenizer;

/// How conversations become prompts.
#[derive(Clone, Debug)]
pub enum Prompt {
    /// A Jinja template from the checkpoint.
    Template(Box<ChatTemplate>),
    /// MODEL1's own format.
    Model1,
    /// None: a base model.
    None,
}

/// Settings of [`Prompt::render_with`].
#[derive(Clone, Debug, Default)]
pub struct PromptOptions {
    /// End with the markers after which the model writes.
    pub add_generation_prompt: bool,
    /// Thinking. Templates see it as `enable_thinking` and `thinking`.
    pub effort: Effort,
    /// Tool definitions in the OpenAI format.
    pub tools: Vec<Value>,
    /// More variables for templates; they win over the ones above.
    pub extra: Map<String, Value>,
}

impl Prompt {
    /// The format of a model: the checkpoint's template if there is one, otherwise what the model type implies.
    pub fn for_model(model_type: &str, chat_template: Option<&str>) -> Result<Self, TextError> {
        match chat_template.filter(|t| !t.trim().is_empty()) {
            Some(source) => Ok(Self::Template(Box::new(ChatTemplate::new(source)?))),
            None if matches!(model_type, "model1" | "MODEL1" | "deepseek_v4" | "deepseek4") => Ok(Self::Model1),
            None => Ok(Self::None),
        }
    }

    /// The prompt of a conversation in which the model answers at once, as far as that is up to the prompt.
    /// Encode it with [`Tokenizer::encode`] and `add_special` false.
    ///
    /// Markers that the messages spell are broken up ([`Tokenizer::guard`]), so that no message can end its turn.
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        tokenizer: &Tokenizer,
    ) -> Result<String, TextError> {
        self.render_with(
            messages,
            &PromptOptions {
                add_generation_prompt,
                ..Default::default()
            },
            tokenizer,
        )
    }

    /// The prompt of a conversation in which the model thinks before it answers.
    pub fn render_thinking(&self, messages: &[Message], tokenizer: &Tokenizer) -> Result<String, TextError> {
        let options = PromptOptions {
            add_generation_prompt: true,
            effort: Effort::High,
            ..Default::default()
        };
        self.render_with(messages, &options, tokenizer)
    }

    /// The prompt of a conversation.
    pub fn render_with(
        &self,
        messages: &[Message],
        options: &PromptOptions,
        tokenizer: &Tokenizer,
    ) -> Result<String, TextError> {
        let guarded: Vec<Message> = messages.iter().map(|m| guarded(m, tokenizer)).collect();
        match self {
            Self::None => Err(TextError::NoChat(
                "this model has no chat template and is not known to have a prompt format of its own (a base model); \
                 accepted is plain text to continue, or a checkpoint with a chat template"
                    .to_owned(),
            )),
            // The format is implied by the family; a model without its markers was never shown a conversation.
            Self::Model1
                if [model1::USER, model1::ASSISTANT]
                    .iter()
                    .any(|m| tokenizer.id_of(m).is_none()) =>
            {
                Err(TextError::NoChat(format!(
                    "a base model: its tokenizer has no {} and {}, the markers of MODEL1's prompt format, so it was \
                     never shown a conversation; accepted is plain text to continue",
                    model1::USER,
                    model1::ASSISTANT
                )))
            }
            Self::Model1 => {
                let options = RenderOptions {
                    effort: options.effort,
                    drop_reasoning: true,
                    add_generation_prompt: options.add_generation_prompt,
                    tools: options.tools.clone(),
                };
                model1::render(&guarded, &options)
            }
            Self::Template(template) => {
                let piece = |id: Option<u32>| id.and_then(|id| tokenizer.token_piece(id));
                let thinking = Value::Bool(options.effort != Effort::None);
                let mut extra = Map::new();
                extra.insert("enable_thinking".into(), thinking.clone());
                extra.insert("thinking".into(), thinking);
                extra.extend(options.extra.clone());
                let vars = TemplateVars {
                    bos_token: piece(tokenizer.bos_id()),
                    eos_token: piece(tokenizer.eos_id()),
                    tools: options.tools.clone(),
                    now: None,
                    extra,
                };
                template.render(&guarded, options.add_generation_prompt, &vars)
            }
        }
    }

    /// True if there is a format. Whether the tokenizer has its markers is seen when a conversation is rendered.
    pub fn can_chat(&self) -> bool {
        !matches!(self, Self::None)
    }
}

/// The message with the markers it spells broken up. Thinking tags stay in what the assistant said: templates look
/// for them there.
fn guarded(message: &Message, tokenizer: &Tokenizer) -> Message {
    let allowed: &[&str] = if message.role == "assistant" {
        &["<think>", "</think>"]
    } else {
        &[]
    };
    let guard = |text: &str| tokenizer.guard_except(text, allowed).into_owned();
    let mut out = message.clone();
    out.content = guard(&message.content);
    out.reasoning = message.reasoning.as_deref().map(guard);
    for call in &mut out.tool_calls {
        call.name = guard(&call.name);
        guard_value(&mut call.arguments, &guard);
    }
    out
}

fn guard_value(value: &mut Value, guard: &dyn Fn(&str) -> String) {
    match value {
        Value::String(text) => *text = guard(text),
        Value::Array(items) => items.iter_mut().for_each(|item| guard_value(item, guard)),
        Value::Object(fields) => fields.iter_mut().for_each(|(_, item)| guard_value(item, guard)),
        _ => {}
    }
}
