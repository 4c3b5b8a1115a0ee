//! Which rows the tree has. They are made anew only when the model, the recipe, the search or what is open changes:
//! a model of thousands of layers costs nothing per frame but its visible rows.

use std::collections::BTreeSet;
use std::ops::Range;

use protocol::BlockView;

/// Something in the tree. Numbers are places in the host's list of blocks and in a block's lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Node {
    /// The model.
    Model,
    /// A layer.
    Layer(u32),
    /// A block.
    Block(u32),
    /// A choice of the recipe in a block.
    Slot(u32, u32),
    /// A tensor of a block.
    Tensor(u32, u32),
}

/// A row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRow {
    /// What it stands for.
    pub node: Node,
    /// Level.
    pub depth: u8,
    /// Whether it is open; `None` = it cannot be opened.
    pub open: Option<bool>,
}

/// A layer, or a block outside of layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Layer; `None` for a block outside.
    pub layer: Option<u32>,
    /// Its blocks.
    pub blocks: Range<usize>,
    /// Bytes of its tensors.
    pub bytes: u64,
}

/// What the rows were made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Path of the model.
    pub model: String,
    /// Hash of the recipe.
    pub recipe: String,
    /// Whether the host's answer is for that recipe.
    pub current: bool,
    /// Number of blocks in it.
    pub blocks: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tree {
    key: Option<Key>,
    search: String,
    open: BTreeSet<Node>,
    parts: Vec<Part>,
    rows: Vec<TreeRow>,
    hits: Option<usize>,
    dirty: bool,
}

impl Tree {
    /// Brings the rows up to date.
    pub fn update(&mut self, blocks: &[BlockView], key: Key, search: &str) {
        let same = self.key.as_ref() == Some(&key);
        if same && self.search == search && !self.dirty {
            return;
        }
        if self.key.as_ref().is_none_or(|k| k.model != key.model) {
            self.open = BTreeSet::from([Node::Model]);
        }
        if !same {
            self.parts = parts(blocks);
            self.key = Some(key);
        }
        self.search = search.to_string();
        self.dirty = false;
        self.rows.clear();
        let search = Search::new(search);
        if search.is_empty() {
            self.hits = None;
            self.all(blocks);
        } else {
            let hits = self.found(blocks, &search);
            self.hits = Some(hits);
        }
    }

    /// The rows.
    pub fn rows(&self) -> &[TreeRow] {
        &self.rows
    }

    /// Tensors found; `None` without a search.
    pub fn hits(&self) -> Option<usize> {
        self.hits
    }

    /// The part with this layer.
    pub fn layer(&self, layer: u32) -> Option<&Part> {
        self.parts.iter().find(|p| p.layer == Some(layer))
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|p| p.bytes).sum()
    }

    /// The row of something, if it is shown.
    pub fn place(&self, node: Node) -> Option<usize> {
        self.rows.iter().position(|r| r.node == node)
    }

    /// Opens or closes something.
    pub fn turn(&mut self, node: Node, open: bool) {
        if open {
            self.dirty |= self.open.insert(node);
        } else {
            self.dirty |= self.open.remove(&node);
        }
    }

    /// Closes everything but the model.
    pub fn close_all(&mut self) {
        self.open = BTreeSet::from([Node::Model]);
        self.dirty = true;
    }

    fn push(&mut self, node: Node, depth: u8, open: Option<bool>) {
        self.rows.push(TreeRow { node, depth, open });
    }

    fn all(&mut self, blocks: &[BlockView]) {
        let open = self.open.contains(&Node::Model);
        self.push(Node::Model, 0, Some(open));
        if !open {
            return;
        }
        for part in self.parts.clone() {
            match part.layer {
                None => part.blocks.for_each(|b| self.block(blocks, b, 1)),
                Some(layer) => {
                    let open = self.open.contains(&Node::Layer(layer));
                    self.push(Node::Layer(layer), 1, Some(open));
                    if open {
                        part.blocks.for_each(|b| self.block(blocks, b, 2));
                    }
                }
            }
        }
    }

    fn block(&mut self, blocks: &[BlockView], b: usize, depth: u8) {
        let node = Node::Block(b as u32);
        let open = self.open.contains(&node);
        self.push(node, depth, Some(open));
        if open {
            for s in 0..blocks[b].slots.len() {
                self.push(Node::Slot(b as u32, s as u32), depth + 1, None);
            }
            for t in 0..blocks[b].tensors.len() {
                self.push(Node::Tensor(b as u32, t as u32), depth + 1, None);
            }
        }
    }

    /// Rows of what was found with everything above it, all open. Returns how many tensors that are.
    fn found(&mut self, blocks: &[BlockView], search: &Search) -> usize {
        self.push(Node::Model, 0, None);
        let mut hits = 0;
        for part in self.parts.clone() {
            let depth = if part.layer.is_some() { 2 } else { 1 };
            let mut above = part.layer.map(|l| (Node::Layer(l), 1));
            for b in part.blocks {
                let block = &blocks[b];
                if !search.layer_fits(block.layer) {
                    continue;
                }
                let mut head = Some((Node::Block(b as u32), depth));
                let place =
                    |tree: &mut Self, node: Node, head: &mut Option<(Node, u8)>, above: &mut Option<(Node, u8)>| {
                        for (node, depth) in above.take().into_iter().chain(head.take()) {
                            tree.push(node, depth, None);
                        }
                        tree.push(node, depth + 1, None);
                    };
                for (s, (slot, choice)) in block.slots.iter().enumerate() {
                    if search.names_slots() && search.fits(&[slot, choice]) {
                        place(self, Node::Slot(b as u32, s as u32), &mut head, &mut above);
                    }
                }
                for (t, tensor) in block.tensors.iter().enumerate() {
                    if search.fits(&[&tensor.name, &tensor.format, &block.block, &block.kind]) {
                        place(self, Node::Tensor(b as u32, t as u32), &mut head, &mut above);
                        hits += 1;
                    }
                }
            }
        }
        hits
    }
}

fn parts(blocks: &[BlockView]) -> Vec<Part> {
    let mut out: Vec<Part> = Vec::new();
    for (i, block) in blocks.iter().enumerate() {
        let bytes = block.tensors.iter().map(|t| t.bytes).sum::<u64>();
        match out.last_mut() {
            Some(part) if part.layer.is_some() && part.layer == block.layer => {
                part.blocks.end = i + 1;
                part.bytes += bytes;
            }
            _ => out.push(Part {
                layer: block.layer,
                blocks: i..i + 1,
                bytes,
            }),
        }
    }
    out
}

/// What is looked for: words that must all appear, and a layer (`L3`, `layer 3`).
#[derive(Debug, Default, PartialEq, Eq)]
struct Search {
    words: Vec<String>,
    layer: Option<u32>,
}

impl Search {
    fn new(text: &str) -> Self {
        let mut out = Self::default();
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            let lower = word.to_lowercase();
            let after = || word.get(1..).and_then(|n| n.parse().ok());
            let next = words.peek().and_then(|n| n.parse::<u32>().ok());
            if lower == "layer"
                && let Some(layer) = next
            {
                out.layer = Some(layer);
                words.next();
            } else if lower.starts_with('l')
                && let Some(layer) = after()
            {
                out.layer = Some(layer);
            } else {
                out.words.push(lower);
            }
        }
        out
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn layer_fits(&self, layer: Option<u32>) -> bool {
        self.layer.is_none() || self.layer == layer
    }

    /// A search for a layer alone does not list its slots: it means the tensors.
    fn names_slots(&self) -> bool {
        !self.words.is_empty()
    }

    fn fits(&self, texts: &[&str]) -> bool {
        self.words.iter().all(|w| texts.iter().any(|t| contains(t, w)))
    }
}

/// Whether `text` contains `word`, which is in lower case; without making a copy of `text`.
fn contains(text: &str, word: &str) -> bool {
    let (text, word) = (text.as_bytes(), word.as_bytes());
    word.len() <= text.len() && text.windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::TensorView;

    fn model(layers: u32) -> Vec<BlockView> {
        let block = |layer: Option<u32>, block: &str, names: &[&str]| BlockView {
            layer,
            block: block.into(),
            kind: "a kind".into(),
            slots: vec![(block.into(), "own".into())],
            tensors: names
                .iter()
                .map(|n| TensorView {
                    name: layer.map_or(String::new(), |l| format!("layers.{l}.")) + n,
                    shape: [4, 4],
                    format: "bf16".into(),
                    bytes: 32,
                })
                .collect(),
        };
        let mut out = vec![block(None, "embedding", &["embed.weight"])];
        for l in 0..layers {
            out.push(block(Some(l), "attention", &["wq", "wkv"]));
            out.push(block(Some(l), "ffn", &["w1", "w2"]));
        }
        out.push(block(None, "head", &["head.weight"]));
        out
    }

    fn key(recipe: &str) -> Key {
        Key {
            model: "m".into(),
            recipe: recipe.into(),
            current: true,
            blocks: 0,
        }
    }

    #[test]
    fn what_is_open_has_rows() {
        let blocks = model(3);
        let mut tree = Tree::default();
        tree.update(&blocks, key("a"), "");
        assert_eq!(tree.rows().len(), 1 + 1 + 3 + 1);
        assert_eq!(tree.layer(1).unwrap().bytes, 128);
        assert_eq!(tree.bytes(), 32 * (2 + 12));
        tree.turn(Node::Layer(1), true);
        tree.turn(Node::Block(3), true);
        tree.update(&blocks, key("a"), "");
        let nodes: Vec<Node> = tree.rows().iter().map(|r| r.node).collect();
        use Node::{Block, Layer, Slot, Tensor};
        let want = [
            Layer(1),
            Block(3),
            Slot(3, 0),
            Tensor(3, 0),
            Tensor(3, 1),
            Block(4),
            Layer(2),
        ];
        assert_eq!(nodes[3..10], want);
        // A change of the recipe keeps what is open, another model does not.
        tree.update(&blocks, key("b"), "");
        assert_eq!(tree.rows().len(), 6 + 5);
        tree.update(
            &blocks,
            Key {
                model: "n".into(),
                ..key("b")
            },
            "",
        );
        assert_eq!(tree.rows().len(), 6);
    }

    #[test]
    fn a_search_lists_what_it_finds_with_what_stands_above() {
        let blocks = model(12);
        let mut tree = Tree::default();
        let mut found = |text: &str| {
            tree.update(&blocks, key("a"), text);
            (tree.hits(), tree.rows().len())
        };
        assert_eq!(found("WKV"), (Some(12), 1 + 12 * 3));
        assert_eq!(found("l3"), (Some(4), 1 + 1 + 2 + 4));
        assert_eq!(found("layer 3 wq"), (Some(1), 1 + 3));
        assert_eq!(found("layers.11. ffn bf16"), (Some(2), 1 + 2 + 2));
        assert_eq!(found("nothing"), (Some(0), 1));
        assert_eq!(
            found("ffn own"),
            (Some(0), 1 + 12 * 3),
            "slots are found and are no tensors"
        );
        assert_eq!(found(""), (None, 15));
    }

    #[test]
    fn rows_are_made_once() {
        let blocks = model(5000);
        let mut tree = Tree::default();
        tree.update(&blocks, key("a"), "");
        assert_eq!(tree.rows().len(), 5003);
        let at = tree.rows().as_ptr();
        tree.turn(Node::Layer(7), false);
        tree.update(&blocks, key("a"), "");
        assert_eq!(tree.rows().as_ptr(), at);
        assert_eq!(tree.place(Node::Layer(4999)), Some(5001));
    }
}
