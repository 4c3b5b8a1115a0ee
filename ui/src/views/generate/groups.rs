//! Messages of the shown branch, grouped as they are shown: a prompt and its continuation run on in a text, every
//! message stands alone in a chat.

use protocol::{DocKind, NodeView, Role};

use super::prose::{Kind, Prose};
use crate::store::Text;

/// One group.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// The message of the user.
    pub(super) given: Option<u32>,
    /// The message of the model.
    pub(super) written: Option<u32>,
    /// Running text.
    pub(super) prose: Prose,
    /// What the model thought before it answered.
    pub(super) thoughts: Option<Prose>,
    /// Whether the thoughts have ended.
    pub(super) thought: bool,
    /// Thoughts are unfolded.
    pub(super) open: bool,
    /// Width it was last shown at, and its height then; the height is unknown after a change.
    pub(super) height: (f32, f32),
    given_bytes: usize,
    tokens: usize,
    written_bytes: usize,
    last: u32,
}

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

/// All groups of a text.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups {
    pub(super) list: Vec<Group>,
    doc: Option<u64>,
    revision: u64,
}

impl Groups {
    /// Follows the text. What did not change keeps its layout.
    pub(super) fn update(&mut self, text: &Text) {
        let id = text.view().info.id;
        if self.doc == Some(id) && self.revision == text.revision() {
            return;
        }
        if self.doc != Some(id) {
            self.list.clear();
        }
        self.doc = Some(id);
        self.revision = text.revision();
        let flowing = text.view().info.kind == DocKind::Text;
        let mut pairs: Vec<(Option<&NodeView>, Option<&NodeView>)> = Vec::new();
        for node in text.branch().filter(|n| n.role != Role::System) {
            match (node.role, pairs.last_mut()) {
                (Role::Assistant, Some((Some(_), w @ None))) if flowing => *w = Some(node),
                (Role::Assistant, _) => pairs.push((None, Some(node))),
                _ => pairs.push((Some(node), None)),
            }
        }
        self.list.resize_with(pairs.len(), Group::default);
        for (group, (given, written)) in self.list.iter_mut().zip(pairs) {
            group.follow(given, written);
        }
    }
}

impl Group {
    fn follow(&mut self, given: Option<&NodeView>, written: Option<&NodeView>) {
        let ids = (given.map(|n| n.id), written.map(|n| n.id));
        let bytes = given.map_or(0, |n| n.text.len());
        let same = (self.given, self.written) == ids && self.given_bytes == bytes;
        let grown = written.is_none_or(|n| self.extends(n));
        if !(same && grown) {
            let open = self.open && self.written == ids.1;
            *self = Self {
                given: ids.0,
                written: ids.1,
                given_bytes: bytes,
                open,
                ..Self::default()
            };
            if let Some(n) = given {
                self.prose.push(&n.text, Kind::Given);
            }
        }
        if let Some(n) = written {
            self.append(n);
        }
    }

    /// Whether what was taken of the message is still its beginning.
    fn extends(&self, node: &NodeView) -> bool {
        let thoughts_end = self.thoughts.is_some() && !self.thought && node.text.contains(THOUGHT);
        let plain = node.tokens.is_empty() && node.text.len() != self.written_bytes;
        let behind = node.tokens.len() >= self.tokens;
        let last = self.tokens == 0 || node.tokens.get(self.tokens - 1).is_some_and(|t| t.token == self.last);
        let starts = self.tokens == 0 || self.thoughts.is_some() == node.text.starts_with(THINK);
        !thoughts_end && !plain && behind && last && starts
    }

    fn append(&mut self, node: &NodeView) {
        if self.tokens == 0 && self.written_bytes == 0 && node.text.starts_with(THINK) {
            self.thoughts = Some(Prose::quiet());
        }
        // Bytes of the message that are thoughts, tags included.
        let end = node.text.find(THOUGHT).map(|i| i + THOUGHT.len());
        self.thought = end.is_some();
        let thoughts = match (&self.thoughts, end) {
            (Some(_), Some(end)) => end,
            (Some(_), None) => usize::MAX,
            (None, _) => 0,
        };
        if node.tokens.is_empty() {
            if node.text.len() != self.written_bytes {
                let cut = thoughts.min(node.text.len());
                let (thought, rest) = node.text.split_at(cut);
                if let Some(t) = &mut self.thoughts {
                    t.push(strip_tags(thought), Kind::Plain);
                }
                self.prose
                    .push(if cut > 0 { rest.trim_start() } else { rest }, Kind::Plain);
                self.written_bytes = node.text.len();
            }
            return;
        }
        for (i, token) in node.tokens.iter().enumerate().skip(self.tokens) {
            let kind = Kind::Token {
                node: node.id,
                index: i as u32,
                position: token.position,
                logprob: token.logprob,
            };
            let after = self.written_bytes + token.text.len();
            match &mut self.thoughts {
                Some(t) if self.written_bytes < thoughts => {
                    // A tag may share its token with other text; what is left of the tag is not shown.
                    let shown = strip_tags(&token.text);
                    t.push(
                        if t.is_empty() {
                            shown.trim_start_matches('\n')
                        } else {
                            shown
                        },
                        kind,
                    );
                }
                Some(_) if self.prose.is_empty() => self.prose.push(token.text.trim_start_matches('\n'), kind),
                _ => self.prose.push(&token.text, kind),
            }
            self.written_bytes = after;
            self.last = token.token;
        }
        self.tokens = node.tokens.len();
    }
}

fn strip_tags(text: &str) -> &str {
    let text = text.strip_prefix(THINK).map_or(text, |t| t.trim_start_matches('\n'));
    text.strip_suffix(THOUGHT).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    fn chat(answer: &[&str]) -> Text {
        let mut doc = testing::doc(0);
        doc.info.kind = DocKind::Chat;
        let node = doc.nodes.last_mut().unwrap();
        node.tokens = answer
            .iter()
            .enumerate()
            .map(|(i, t)| protocol::TokenInfo {
                text: (*t).into(),
                token: i as u32,
                ..testing::token(i)
            })
            .collect();
        node.text = answer.concat();
        Text::new(doc)
    }

    #[test]
    fn a_text_flows_and_a_chat_does_not() {
        let mut groups = Groups::default();
        groups.update(&Text::new(testing::doc(20)));
        assert_eq!(groups.list.len(), 1);
        assert!(
            groups.list[0]
                .prose
                .text()
                .starts_with("Once upon a time there was a little dragon who lived in")
        );
        let mut groups = Groups::default();
        groups.update(&chat(&["Hello", "."]));
        assert_eq!(groups.list.len(), 2);
        assert_eq!(groups.list[1].prose.text(), "Hello.");
    }

    #[test]
    fn thoughts_are_kept_apart_while_they_are_written_and_after() {
        let pieces = ["<think>", "\n", "The sky", " is", "</think>", "\n\n", "Blue", "."];
        let mut groups = Groups::default();
        for n in 1..=pieces.len() {
            groups.update(&chat(&pieces[..n]));
            groups.revision = 0;
            let g = &groups.list[1];
            assert!(g.thoughts.is_some(), "{n}");
            assert_eq!(g.thought, n >= 5);
            if n <= 6 {
                assert_eq!(g.prose.text(), "", "{n}");
            }
        }
        let g = &groups.list[1];
        assert_eq!(g.thoughts.as_ref().unwrap().text(), "The sky is");
        assert_eq!(g.prose.text(), "Blue.");
        // A text is never folded, whatever it contains.
        let mut groups = Groups::default();
        groups.update(&chat(&["a <think>", " b"]));
        assert!(groups.list[1].thoughts.is_none());
    }
}
