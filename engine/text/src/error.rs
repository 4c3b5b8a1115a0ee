//! Errors of this crate.

/// What went wrong with text. Messages name what, where and what is accepted.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A tokenizer file that cannot be used.
    #[error("tokenizer {place}: {reason}; accepted is {accepted}")]
    Tokenizer {
        /// File or metadata the tokenizer came from.
        place: String,
        /// What was found.
        reason: String,
        /// What would have been fine.
        accepted: &'static str,
    },
    /// Text that cannot be encoded.
    #[error("encoding text: {0}")]
    Encode(String),
    /// An id outside the vocabulary.
    #[error("decoding: token id {id} is not in the vocabulary; accepted are ids 0 to {last}")]
    UnknownId {
        /// The id.
        id: u32,
        /// Largest id of the vocabulary.
        last: u32,
    },
    /// A chat template that does not compile or render.
    #[error("chat template{line}: {reason}")]
    Template {
        /// ` line N`, or nothing.
        line: String,
        /// What the template engine or the template itself says.
        reason: String,
    },
    /// A conversation that the prompt format cannot express.
    #[error("message {index} of the conversation: {reason}; accepted is {accepted}")]
    Conversation {
        /// Number of the message, 0-based.
        index: usize,
        /// What was found.
        reason: String,
        /// What would have been fine.
        accepted: &'static str,
    },
    /// No chat with this model.
    #[error("chat: {0}")]
    NoChat(String),
    /// Model output that is not well formed.
    #[error("model output at byte {offset}: {reason}; accepted is {accepted}")]
    Output {
        /// Where in the output.
        offset: usize,
        /// What was found.
        reason: String,
        /// What would have been fine.
        accepted: &'static str,
    },
}

impl TextError {
    /// A tokenizer that cannot be used.
    pub(crate) fn tokenizer(place: &str, reason: impl Into<String>, accepted: &'static str) -> Self {
        Self::Tokenizer {
            place: place.to_owned(),
            reason: reason.into(),
            accepted,
        }
    }
}
