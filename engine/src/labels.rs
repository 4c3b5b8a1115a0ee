//! Texts of single tokens, for charts and tables.

use protocol::TokenLabel;
use text::Detokenizer;

use crate::engine::Engine;

impl Engine {
    /// The text of each token of a text. A character that several tokens spell stands at the last of them; control
    /// tokens show their names. Models without a tokenizer have the ids in angle brackets.
    pub fn token_texts(&self, ids: &[u32]) -> Vec<String> {
        let Ok(tokenizer) = self.tokenizer() else {
            return ids.iter().map(|id| format!("<{id}>")).collect();
        };
        let mut detok = Detokenizer::new(tokenizer.clone(), false);
        ids.iter().map(|&id| detok.push(id).unwrap_or_default()).collect()
    }

    /// The same as labels.
    pub fn token_labels(&self, ids: &[u32]) -> Vec<TokenLabel> {
        let texts = self.token_texts(ids);
        ids.iter()
            .zip(texts)
            .map(|(&token, text)| TokenLabel { token, text })
            .collect()
    }
}
