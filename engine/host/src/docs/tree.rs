//! A text: a tree of messages. Messages are shared, so that a snapshot for saving or for a client costs a list of
//! pointers; only the message being written is copied when it changes while a snapshot is still held.

use std::sync::Arc;

use protocol::{
    DocInfo, DocKind, DocView, ErrorInfo, FinishView, GenerateSpec, MAX_FRAME, NodeView, Role, RunSummary, TokenInfo,
};

use crate::errors::input;

/// Most characters of a title made from the first words.
const TITLE: usize = 56;

/// A message with what only the host needs.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// What clients see; `id` is the place in [`Doc::nodes`].
    pub view: NodeView,
    /// Leading tokens that were given, not drawn: kept by a branch, or the tokens of an edited text.
    pub given: u32,
    /// Fingerprint of the vocabulary its tokens belong to; 0 = it has none.
    pub vocabulary: u64,
    /// The command that reproduces the branch up to here; empty if there is none.
    pub command: String,
}

/// A text.
#[derive(Clone, Debug)]
pub(crate) struct Doc {
    pub id: u64,
    pub kind: DocKind,
    /// Given by the user; empty = the first words.
    pub title: String,
    /// Model it was written with last.
    pub model: String,
    pub created: u64,
    pub changed: u64,
    pub system: String,
    pub nodes: Vec<Arc<Node>>,
    pub leaf: Option<u32>,
}

/// What a new message starts with.
#[derive(Clone)]
pub(crate) struct Draft {
    pub parent: Option<u32>,
    pub role: Role,
    pub text: String,
    pub tokens: Vec<TokenInfo>,
    pub vocabulary: u64,
    pub spec: Option<GenerateSpec>,
}

impl Doc {
    /// An empty text.
    pub fn new(id: u64, kind: DocKind, model: &str, now: u64) -> Self {
        Self {
            id,
            kind,
            title: String::new(),
            model: model.to_string(),
            created: now,
            changed: now,
            system: String::new(),
            nodes: Vec::new(),
            leaf: None,
        }
    }

    /// Nothing that would be worth keeping.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.title.is_empty() && self.system.is_empty()
    }

    /// Its line in the list.
    pub fn info(&self) -> DocInfo {
        DocInfo {
            id: self.id,
            title: self.shown_title(),
            kind: self.kind,
            model: self.model.clone(),
            changed: self.changed,
            messages: self.nodes.len() as u32,
        }
    }

    fn shown_title(&self) -> String {
        if !self.title.is_empty() {
            return self.title.clone();
        }
        let mut lines = self.nodes.iter().map(|n| one_line(&n.view.text, TITLE));
        match (lines.find(|l| !l.is_empty()), self.kind) {
            (Some(line), _) => line,
            (None, DocKind::Text) => "New text".into(),
            (None, DocKind::Chat) => "New chat".into(),
        }
    }

    /// Everything a client sees. Where that would not fit into a frame, the alternatives of tokens stay behind: first
    /// those of branches that are not shown, then all.
    pub fn view(&self, token_seq: u64) -> DocView {
        self.view_within(token_seq, MAX_FRAME / 4 * 3)
    }

    fn view_within(&self, token_seq: u64, most: usize) -> DocView {
        let leaf = self.leaf.and_then(|l| self.nodes.get(l as usize));
        let mut nodes: Vec<NodeView> = self.nodes.iter().map(|n| n.view.clone()).collect();
        let shown: Vec<u32> = self.path(self.leaf).iter().map(|n| n.view.id).collect();
        for keep in [shown, Vec::new()] {
            if nodes.iter().map(bytes_of).sum::<usize>() <= most {
                break;
            }
            let thinned = nodes.iter_mut().filter(|n| !keep.contains(&n.id));
            thinned
                .flat_map(|n| n.tokens.iter_mut())
                .for_each(|t| t.top = Vec::new());
        }
        DocView {
            info: self.info(),
            system: self.system.clone(),
            nodes,
            leaf: self.leaf,
            token_seq,
            command: leaf.map(|n| n.command.clone()).unwrap_or_default(),
        }
    }

    /// A message by number.
    pub fn node(&self, id: u32) -> Option<&Node> {
        self.nodes.get(id as usize).map(Arc::as_ref)
    }

    /// A message to change. Copies it first if a snapshot still holds it.
    pub fn node_mut(&mut self, id: u32) -> Option<&mut Node> {
        self.nodes.get_mut(id as usize).map(Arc::make_mut)
    }

    /// A message that must be there.
    ///
    /// # Errors
    /// A number that is not in the tree.
    pub fn require(&self, id: u32) -> Result<&Node, ErrorInfo> {
        self.node(id).ok_or_else(|| {
            input(
                format!("The text has no message {id}."),
                format!("Accepted: 0 to {}.", self.nodes.len().saturating_sub(1)),
            )
        })
    }

    /// A message of the model that must be there.
    ///
    /// # Errors
    /// No such message, or one that somebody else wrote.
    pub fn require_model(&self, id: u32) -> Result<&Node, ErrorInfo> {
        let node = self.require(id)?;
        if node.view.role == Role::Assistant {
            return Ok(node);
        }
        Err(input(
            format!("Message {id} was not written by the model."),
            "Choose a message of the model.",
        ))
    }

    /// Messages from the top to `leaf`.
    pub fn path(&self, leaf: Option<u32>) -> Vec<Arc<Node>> {
        let mut path = Vec::new();
        let mut at = leaf;
        // Parents come before children, so this ends.
        while let Some(node) = at.and_then(|id| self.nodes.get(id as usize)) {
            path.push(node.clone());
            at = node.view.parent;
        }
        path.reverse();
        path
    }

    /// Tokens of the context that the shown branch takes up, as far as the model has read it.
    pub fn position(&self) -> u64 {
        let path = self.path(self.leaf);
        let last = path.iter().rev().find_map(|n| n.view.tokens.last());
        last.map_or(0, |t| t.position + 1)
    }

    /// Adds a message and shows the branch that ends with it.
    pub fn add(&mut self, draft: Draft, now: u64) -> u32 {
        let id = self.nodes.len() as u32;
        let written = draft.role == Role::Assistant && draft.spec.is_some();
        let node = Node {
            given: draft.tokens.len() as u32,
            vocabulary: draft.vocabulary,
            command: String::new(),
            view: NodeView {
                id,
                parent: draft.parent,
                role: draft.role,
                text: draft.text,
                tokens: draft.tokens,
                finish: if written { FinishView::Running } else { FinishView::Eos },
                spec: draft.spec,
                recipes: Vec::new(),
                summary: None,
                error: None,
                created: now,
            },
        };
        self.nodes.push(Arc::new(node));
        self.leaf = Some(id);
        self.changed = now;
        id
    }

    /// Appends a produced token; its number within the message.
    pub fn append(&mut self, id: u32, info: TokenInfo) -> Option<u32> {
        let node = self.node_mut(id)?;
        node.view.text.push_str(&info.text);
        node.view.tokens.push(info);
        Some(node.view.tokens.len() as u32 - 1)
    }

    /// Ends a message that was being written. `tail` is text that became final with the end.
    pub fn finish(&mut self, id: u32, end: Ended, now: u64) {
        self.changed = now;
        let Some(node) = self.node_mut(id) else { return };
        node.view.text.push_str(&end.tail);
        if let Some(last) = node.view.tokens.last_mut() {
            last.text.push_str(&end.tail);
        }
        node.view.finish = end.finish;
        node.view.summary = end.summary;
        node.view.error = end.error;
        node.command = end.command;
    }

    /// Number of the recipe with this hash within a message, added if it is new.
    pub fn recipe_number(&mut self, id: u32, hash: &str) -> u16 {
        let Some(node) = self.node_mut(id) else { return 0 };
        if node.view.recipes.last().is_none_or(|h| h != hash) {
            node.view.recipes.push(hash.to_string());
        }
        (node.view.recipes.len() - 1).min(usize::from(u16::MAX)) as u16
    }
}

/// Most bytes of a message in a frame.
fn bytes_of(node: &NodeView) -> usize {
    let one = |text: &str| 16 + text.len();
    let token = |t: &TokenInfo| 16 + one(&t.text) + t.top.iter().map(|a| one(&a.text)).sum::<usize>();
    let error = node
        .error
        .as_ref()
        .map_or(0, |e| e.what.len() + e.remedy.len() + e.details.len());
    512 + error + node.text.len() + node.tokens.iter().map(token).sum::<usize>() + 32 * node.recipes.len()
}

/// How a message ended.
pub(crate) struct Ended {
    pub finish: FinishView,
    pub tail: String,
    pub summary: Option<RunSummary>,
    pub error: Option<ErrorInfo>,
    pub command: String,
}

/// Text as one line of plain words, cut to `most` characters: no control characters, and none that turn the direction
/// of what stands around them.
pub(crate) fn one_line(text: &str, most: usize) -> String {
    let turns = |c: char| matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut out = String::new();
    let mut length = 0;
    for word in text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|w| !w.is_empty())
    {
        if length > most {
            break;
        }
        if !out.is_empty() {
            out.push(' ');
            length += 1;
        }
        for c in word.chars().filter(|&c| !turns(c)).take(most + 1) {
            out.push(c);
            length += 1;
        }
    }
    if length <= most {
        return out;
    }
    let cut: String = out.chars().take(most).collect();
    format!("{}…", cut.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draft(parent: Option<u32>, role: Role, text: &str) -> Draft {
        Draft {
            parent,
            role,
            text: text.into(),
            tokens: Vec::new(),
            vocabulary: 0,
            spec: None,
        }
    }

    #[test]
    fn branches_share_their_beginning() {
        let mut doc = Doc::new(1, DocKind::Chat, "m", 5);
        assert!(doc.is_empty());
        let a = doc.add(draft(None, Role::User, "hello"), 6);
        let b = doc.add(draft(Some(a), Role::Assistant, "hi"), 7);
        let c = doc.add(draft(Some(a), Role::Assistant, "hey"), 8);
        let texts = |leaf| {
            let path = doc.path(leaf);
            path.iter().map(|n| n.view.text.clone()).collect::<Vec<_>>()
        };
        assert_eq!(texts(Some(b)), ["hello", "hi"]);
        assert_eq!(texts(Some(c)), ["hello", "hey"]);
        assert!(texts(None).is_empty() && texts(Some(99)).is_empty());
        assert_eq!(doc.leaf, Some(c));
        assert!(doc.require_model(a).is_err() && doc.require_model(b).is_ok() && doc.require(9).is_err());
        assert_eq!((doc.info().messages, doc.info().changed), (3, 8));
    }

    #[test]
    fn titles_are_the_first_words_on_one_line() {
        let mut doc = Doc::new(1, DocKind::Text, "m", 0);
        assert_eq!(doc.info().title, "New text");
        doc.add(draft(None, Role::User, "Once\n upon\u{0} a time"), 0);
        assert_eq!(doc.info().title, "Once upon a time");
        doc.title = "Mine".into();
        assert_eq!(doc.info().title, "Mine");
        let long = one_line(&"多".repeat(500), TITLE);
        assert_eq!(long.chars().count(), TITLE + 1);
        assert_eq!(one_line("\u{202e}a\u{2066}b \u{1b}[1m c", 50), "ab [1m c");
        assert_eq!((one_line("abc", 3), one_line("abcd", 3)), ("abc".into(), "abc…".into()));
        let many = "word ".repeat(100);
        assert_eq!(one_line(&many, 9), "word word…");
        // Nothing but control characters makes no title.
        let mut doc = Doc::new(1, DocKind::Chat, "m", 0);
        doc.add(draft(None, Role::User, "\u{0}\u{202e}"), 0);
        assert_eq!(doc.info().title, "New chat");
        doc.add(draft(Some(0), Role::Assistant, "hello"), 0);
        assert_eq!(doc.info().title, "hello");
    }

    #[test]
    fn a_text_too_large_for_a_frame_comes_without_alternatives() {
        let token = |token| TokenInfo {
            token,
            text: "abc".into(),
            logprob: -1.0,
            top: vec![
                protocol::Alternative {
                    token,
                    text: "abc".into(),
                    logprob: -1.0,
                };
                8
            ],
            position: 3,
            recipe: 0,
        };
        let mut doc = Doc::new(1, DocKind::Text, "m", 0);
        let (hidden, shown) = (
            doc.add(draft(None, Role::Assistant, ""), 0),
            doc.add(draft(None, Role::Assistant, ""), 0),
        );
        for node in [hidden, shown] {
            (0..100).for_each(|i| assert_eq!(doc.append(node, token(i)), Some(i)));
        }
        let one = bytes_of(&doc.nodes[0].view);
        let frame = |view: &NodeView| protocol::encode(view).unwrap().len();
        assert!(one >= frame(&doc.nodes[0].view), "{one}");
        let tops = |most| {
            let view = doc.view_within(0, most);
            let count = |n: &NodeView| n.tokens.iter().map(|t| t.top.len()).sum::<usize>();
            assert!(view.nodes.iter().all(|n| n.tokens.len() == 100 && n.text.len() == 300));
            (count(&view.nodes[0]), count(&view.nodes[1]))
        };
        assert_eq!(tops(2 * one), (800, 800));
        assert_eq!(tops(2 * one - 1), (0, 800));
        assert_eq!(tops(one), (0, 0));
        assert_eq!(doc.view(0).nodes[0].tokens[0].top.len(), 8);
    }

    #[test]
    fn a_snapshot_does_not_change() {
        let mut doc = Doc::new(1, DocKind::Text, "m", 0);
        let id = doc.add(draft(None, Role::Assistant, ""), 0);
        let before = doc.clone();
        let token = TokenInfo {
            token: 1,
            text: "a".into(),
            logprob: 0.0,
            top: Vec::new(),
            position: 0,
            recipe: 0,
        };
        assert_eq!(doc.append(id, token.clone()), Some(0));
        assert_eq!(doc.append(id, token.clone()), Some(1));
        assert_eq!(doc.append(7, token), None);
        assert_eq!(before.nodes[0].view.tokens.len(), 0);
        assert_eq!(doc.nodes[0].view.text, "aa");
        assert_eq!((doc.recipe_number(id, "x"), doc.recipe_number(id, "x")), (0, 0));
        assert_eq!(doc.recipe_number(id, "y"), 1);
    }
}
