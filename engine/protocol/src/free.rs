//! Recipe A and recipe B each write their own text after the same prompt.

use serde::{Deserialize, Serialize};

use crate::{CompareText, FinishView, KvBytes, Label, RecipeRef};

/// Which side writes when. Both give the same texts and figures, bit for bit; only speeds differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FreeMode {
    /// Token by token in turns: both caches are in memory, and figures arrive while the texts are written.
    Lockstep,
    /// All of A, then all of B: one cache at a time.
    InTurn,
}

/// What to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreeSpec {
    /// Side A.
    pub a: RecipeRef,
    /// Side B.
    pub b: RecipeRef,
    /// What both go on from: a given prompt, the current text, or the beginning of the built-in story.
    pub prompt: CompareText,
    /// Most tokens each side writes.
    pub tokens: u64,
    /// 0 = greedy; else both sides draw with the same random numbers.
    pub temperature: f32,
    /// Seed of the random numbers.
    pub seed: u64,
    /// Which side writes when.
    pub mode: FreeMode,
}

/// A token that a side wrote.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreeToken {
    /// Token.
    pub token: u32,
    /// Text that became final with it; may be empty, never half a character.
    pub text: String,
    /// Natural log of its probability under its own side, at temperature 1.
    pub logprob: f32,
    /// Probability of its side's likeliest token there minus that of the second.
    pub margin: f32,
}

/// One side.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreeSide {
    /// Recipe hash.
    pub hash: String,
    /// What it wrote, from [`FreeView::from`] on.
    pub tokens: Vec<FreeToken>,
    /// Why it ended.
    pub finish: FinishView,
    /// Cache bytes in use at the end.
    pub kv: KvBytes,
    /// Median speed of single steps, in tokens per second.
    pub decode_tokens_per_s: f64,
}

/// Where the texts part.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreeSplit {
    /// Number of the first token that differs; so many are equal before it.
    pub at: u64,
    /// What A and B wrote there; `None` where a side had ended.
    pub tokens: [Option<u32>; 2],
    /// The same as text.
    pub texts: [String; 2],
    /// Probability of each side's likeliest token there minus that of its second.
    pub margin: [f32; 2],
    /// A's margin is under 1e-3: rounding alone could have decided.
    pub near_tie: bool,
}

/// Tokens that both sides wrote: `len` of them, from `a` on in A's text and from `b` on in B's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreeBlock {
    /// First token in A's text.
    pub a: u64,
    /// First token in B's text.
    pub b: u64,
    /// Tokens.
    pub len: u64,
}

/// Both texts as they stand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FreeView {
    /// Rises with every change.
    pub revision: u64,
    /// What was asked for.
    pub spec: FreeSpec,
    /// Model name.
    pub model: String,
    /// Device line.
    pub device: String,
    /// Precision of A's arithmetic in words.
    pub reference: String,
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// The prompt as text.
    pub prompt: String,
    /// The sides, A and B.
    pub sides: [FreeSide; 2],
    /// Number of the first token in each side's list: a client asks for what it has not got.
    pub from: [u64; 2],
    /// KL(A||B) in nats of the distributions the tokens were drawn from, while the texts are equal and one further, at
    /// most for [`FreeView::kl_most`] tokens.
    pub kl: Vec<f32>,
    /// Most values of [`FreeView::kl`]: A's distributions are kept for so many tokens.
    pub kl_most: u64,
    /// Where they part; `None` = nowhere yet.
    pub split: Option<FreeSplit>,
    /// What both have in common, in order; the first block is what stands before the split. Known at the end.
    pub blocks: Vec<FreeBlock>,
    /// The first block after the split.
    pub rejoin: Option<FreeBlock>,
    /// Share of each side's tokens that lie in blocks.
    pub shared: [f64; 2],
    /// How the figures came to be.
    pub label: Label,
    /// The command that repeats it.
    pub command: String,
    /// One sentence each.
    pub notes: Vec<String>,
}
