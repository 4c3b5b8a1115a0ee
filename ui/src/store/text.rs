//! The current text: the host's view of it, kept up to date by the tokens that arrive.

use std::collections::BTreeMap;

use protocol::{DocView, FinishView, NodeView, Role, RunSummary, TokenEntry, TokenInfo};

/// A token of the shown branch.
#[derive(Clone, Copy, Debug)]
pub struct TokenRef<'a> {
    /// The message.
    pub node: &'a NodeView,
    /// Number within the message.
    pub index: usize,
    /// The token.
    pub info: &'a TokenInfo,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Text {
    view: DocView,
    /// Message number -> place in `view.nodes`.
    places: BTreeMap<u32, usize>,
    /// Places of the shown branch, first message first.
    branch: Vec<usize>,
    revision: u64,
}

impl Text {
    pub(crate) fn new(view: DocView) -> Self {
        let mut text = Self {
            view,
            places: BTreeMap::new(),
            branch: Vec::new(),
            revision: 0,
        };
        text.index();
        text
    }

    pub(super) fn replace(&mut self, view: DocView) {
        // A reply may have been overtaken by tokens: those it lacks are kept.
        let old = std::mem::replace(&mut self.view, view);
        if old.info.id == self.view.info.id && old.token_seq > self.view.token_seq {
            for node in &mut self.view.nodes {
                if let Some(before) = old.nodes.iter().find(|n| n.id == node.id)
                    && before.tokens.len() > node.tokens.len()
                    && node.finish == FinishView::Running
                {
                    node.tokens.clone_from(&before.tokens);
                    node.text.clone_from(&before.text);
                }
            }
            self.view.token_seq = old.token_seq;
        }
        self.index();
    }

    fn index(&mut self) {
        self.revision += 1;
        self.places = self.view.nodes.iter().enumerate().map(|(i, n)| (n.id, i)).collect();
        self.branch.clear();
        let mut at = self.view.leaf;
        // Parents come before children; a broken view must not loop for ever.
        while let Some(place) = at.and_then(|id| self.places.get(&id).copied()) {
            if self.branch.len() > self.view.nodes.len() {
                break;
            }
            self.branch.push(place);
            at = self.view.nodes[place].parent;
        }
        self.branch.reverse();
    }

    /// Takes a token of the log. False if one before it is missing: then the text must be fetched anew.
    pub(super) fn append(&mut self, entry: TokenEntry) -> bool {
        if entry.doc != self.view.info.id {
            return true;
        }
        let Some(place) = self.places.get(&entry.node).copied() else {
            return false;
        };
        let node = &mut self.view.nodes[place];
        let have = node.tokens.len();
        match (entry.index as usize).cmp(&have) {
            std::cmp::Ordering::Less => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Equal => {
                node.text.push_str(&entry.info.text);
                node.tokens.push(entry.info);
                self.view.token_seq = self.view.token_seq.max(entry.seq);
                self.revision += 1;
                true
            }
        }
    }

    pub(super) fn finished(&mut self, doc: u64, node: u32, finish: FinishView, summary: RunSummary) {
        if doc == self.view.info.id
            && let Some(place) = self.places.get(&node).copied()
        {
            let node = &mut self.view.nodes[place];
            node.finish = finish;
            node.summary = Some(summary);
            self.revision += 1;
        }
    }

    /// The host's view.
    pub fn view(&self) -> &DocView {
        &self.view
    }

    /// Changes with every token and every change of the text.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Messages of the shown branch, first one first.
    pub fn branch(&self) -> impl DoubleEndedIterator<Item = &NodeView> + ExactSizeIterator {
        self.branch.iter().map(|i| &self.view.nodes[*i])
    }

    /// A message.
    pub fn node(&self, id: u32) -> Option<&NodeView> {
        self.places.get(&id).map(|i| &self.view.nodes[*i])
    }

    /// The siblings of a message (itself included) in order of number, and its place among them.
    pub fn siblings(&self, id: u32) -> (Vec<u32>, usize) {
        let parent = self.node(id).and_then(|n| n.parent);
        let mut ids: Vec<u32> = self
            .view
            .nodes
            .iter()
            .filter(|n| n.parent == parent)
            .map(|n| n.id)
            .collect();
        ids.sort_unstable();
        let at = ids.iter().position(|s| *s == id).unwrap_or(0);
        (ids, at)
    }

    /// The last message of the newest branch below a message.
    pub fn newest_leaf(&self, id: u32) -> u32 {
        let mut at = id;
        for _ in 0..self.view.nodes.len() {
            match self
                .view
                .nodes
                .iter()
                .filter(|n| n.parent == Some(at))
                .map(|n| n.id)
                .max()
            {
                Some(child) => at = child,
                None => break,
            }
        }
        at
    }

    /// Tokens the model wrote in the shown branch, in order.
    pub fn tokens(&self) -> impl DoubleEndedIterator<Item = TokenRef<'_>> {
        self.branch().filter(|n| n.role == Role::Assistant).flat_map(|node| {
            node.tokens
                .iter()
                .enumerate()
                .map(move |(index, info)| TokenRef { node, index, info })
        })
    }

    /// The token the model wrote at a position of the context.
    pub fn token_at(&self, position: u64) -> Option<TokenRef<'_>> {
        let node = self
            .branch()
            .rev()
            .find(|n| n.tokens.first().is_some_and(|t| t.position <= position))?;
        let index = node.tokens.partition_point(|t| t.position < position);
        let info = node.tokens.get(index).filter(|t| t.position == position)?;
        Some(TokenRef { node, index, info })
    }

    /// First and last position that has a token of the model.
    pub fn span(&self) -> Option<(u64, u64)> {
        let first = self.branch().find_map(|n| n.tokens.first())?.position;
        Some((first, self.last_position()?))
    }

    /// Position of the last token.
    pub fn last_position(&self) -> Option<u64> {
        self.branch().rev().find_map(|n| n.tokens.last()).map(|t| t.position)
    }
}
