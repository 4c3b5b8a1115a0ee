//! The last answer of a replay, kept while the text is being written: a replay at every token would take the engine's
//! time from the text.

use protocol::{AttentionMap, ErrorInfo, KeptRows, RouterMap};

use crate::store::{Fetched, Query};
use crate::views::Context;

/// An answer that can be told from another one without comparing its values.
pub trait Answer: Clone + 'static {
    /// Where its values lie: an answer is decoded while the one before is held, so its values lie elsewhere.
    fn place(&self) -> usize;
}

impl Answer for AttentionMap {
    fn place(&self) -> usize {
        self.values.as_ptr() as usize
    }
}

impl Answer for KeptRows {
    fn place(&self) -> usize {
        self.recall.as_ptr() as usize
    }
}

impl Answer for RouterMap {
    fn place(&self) -> usize {
        self.choices.as_ptr() as usize
    }
}

/// See the module. `K` names what was asked for.
#[derive(Debug)]
pub struct Held<K, T> {
    value: Option<(K, T)>,
    place: usize,
    revision: u64,
}

impl<K, T> Default for Held<K, T> {
    fn default() -> Self {
        Self {
            value: None,
            place: 0,
            revision: 0,
        }
    }
}

/// What can be shown.
pub enum Shown<'a, T> {
    /// Nothing yet.
    Loading,
    /// The host could not answer.
    Failed(ErrorInfo),
    /// A value, and its revision.
    Ready(&'a T, u64),
}

impl<K: PartialEq + Clone, T: Answer> Held<K, T> {
    /// The answer to `query`; the kept one while a text is being written.
    pub fn pull(&mut self, cx: &mut Context<'_>, key: &K, query: &Query<T>) -> Shown<'_, T> {
        let same = self.value.as_ref().is_some_and(|(k, _)| k == key);
        if !(same && cx.store.writing().is_some()) {
            match cx.fetch(query) {
                Fetched::Ready(value) => self.take(key, value),
                Fetched::Stale(value) if !same => self.take(key, value),
                Fetched::Failed(e) => return Shown::Failed(e.clone()),
                Fetched::Stale(_) | Fetched::Loading => {}
            }
        }
        match &self.value {
            Some((k, value)) if k == key => Shown::Ready(value, self.revision),
            _ => Shown::Loading,
        }
    }

    fn take(&mut self, key: &K, value: &T) {
        let same = self.value.as_ref().is_some_and(|(k, _)| k == key) && self.place == value.place();
        if !same {
            self.value = Some((key.clone(), value.clone()));
            self.place = value.place();
            self.revision += 1;
        }
    }

    /// The kept value.
    pub fn value(&self) -> Option<&T> {
        self.value.as_ref().map(|(_, v)| v)
    }
}

/// Up to which token is looked at: all of them, but held still while a text is being written.
#[derive(Clone, Copy, Debug, Default)]
pub struct Upto {
    doc: u64,
    tokens: u64,
}

impl Upto {
    /// Tokens to look at; `now` of them are there.
    pub fn tokens(&mut self, cx: &Context<'_>, now: u64) -> u64 {
        let doc = cx.store.state.as_ref().and_then(|s| s.doc.as_ref()).map_or(0, |d| d.id);
        let hold = cx.store.writing().is_some() && self.doc == doc && self.tokens > 0 && self.tokens <= now;
        if !hold {
            *self = Self { doc, tokens: now };
        }
        self.tokens
    }
}
