//! Keeping marker tokens out of text that must not contain any.
//!
//! A marker is a token with meaning beyond its characters: control tokens, and added tokens that look like tags
//! (`<think>`, `[INST]`, `｜DSML｜`). Guarded text has the noncharacter U+FDD0 between the characters of every
//! marker it spells, so that the marker is neither found by the tokenizer nor seen by a chat template. The
//! tokenizer drops U+FDD0 after it has looked for markers; what is left is encoded as ordinary characters.

use std::borrow::Cow;

use tokenizers::tokenizer::normalizer::OffsetReferential;
use tokenizers::{AddedToken, OffsetType, Tokenizer as Hf};

/// Splits spelled markers. Unicode reserves it for uses like this one; it never appears in exchanged text.
pub(crate) const GUARD: char = '\u{FDD0}';

/// True if the token means more than its characters.
pub(crate) fn is_marker(token: &AddedToken) -> bool {
    const TAG: [char; 8] = ['<', '>', '[', ']', '{', '}', '|', '｜'];
    token.special || (token.content.chars().count() > 2 && token.content.contains(TAG))
}

/// Byte ranges of the markers that the tokenizer would find in `text`.
fn spelled(hf: &Hf, text: &str, allowed: &[&str]) -> Vec<(usize, usize)> {
    let added = hf.get_added_vocabulary();
    let found = added.extract_and_normalize(hf.get_normalizer(), text);
    let splits = found.get_splits(OffsetReferential::Original, OffsetType::Byte);
    let markers = splits.into_iter().filter(|(_, _, tokens)| {
        let ids = tokens.iter().flatten().map(|t| t.id);
        let mut tokens = ids.filter_map(|id| added.get_added_tokens_decoder().get(&id));
        tokens.any(|t| is_marker(t) && !allowed.contains(&t.content.as_str()))
    });
    markers.map(|(_, range, _)| range).collect()
}

/// `text` with every marker except `allowed` broken up.
pub(crate) fn guard<'a>(hf: &Hf, text: &'a str, allowed: &[&str]) -> Cow<'a, str> {
    let mut text = if text.contains(GUARD) {
        Cow::Owned(text.replace(GUARD, ""))
    } else {
        Cow::Borrowed(text)
    };
    // Breaking one marker up may uncover another around it.
    for round in 0..8 {
        let ranges = spelled(hf, &text, allowed);
        if ranges.is_empty() {
            return text;
        }
        let everywhere = round >= 4;
        let mut out = String::with_capacity(text.len() + 64);
        for (at, c) in text.char_indices() {
            out.push(c);
            if c != GUARD && (everywhere || ranges.iter().any(|&(start, end)| at >= start && at < end)) {
                out.push(GUARD);
            }
        }
        text = Cow::Owned(out);
    }
    text
}
