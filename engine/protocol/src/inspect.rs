//! Looking inside: attention, kept rows, routing, tensors. Values come from a replay of the running text and are
//! labelled "instrumented"; the running text is not touched.

use serde::{Deserialize, Serialize};

/// A token of the text with its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenLabel {
    /// Token.
    pub token: u32,
    /// Text.
    pub text: String,
}

/// What to look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttentionSpec {
    /// Layer.
    pub layer: u32,
    /// Head; `None` = mean over heads.
    pub head: Option<u32>,
    /// First query.
    pub from: u64,
    /// One past the last query; at most 1024 queries.
    pub to: u64,
}

/// What a run of key columns stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Segment {
    /// Raw tokens; column i is token `first + i`.
    Tokens {
        /// Token of the first column.
        first: u64,
        /// Columns.
        columns: u32,
    },
    /// Compressed rows; column i is row `first + i`, which pools `rate` tokens from `row * rate` on.
    Rows {
        /// Row of the first column.
        first: u64,
        /// Columns.
        columns: u32,
        /// Tokens per row.
        rate: u32,
        /// Whether a row also pools the `rate` tokens before its own (CSA).
        overlap: bool,
    },
    /// The attention sink: one column.
    Sink,
}

impl Segment {
    /// Columns of the segment.
    pub fn columns(&self) -> u32 {
        match *self {
            Segment::Tokens { columns, .. } | Segment::Rows { columns, .. } => columns,
            Segment::Sink => 1,
        }
    }
}

/// Attention probabilities of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionMap {
    /// What was asked for.
    pub spec: AttentionSpec,
    /// What the columns are, left to right.
    pub segments: Vec<Segment>,
    /// `[to - from, columns]`, row-major, f32; a row adds up to 1 with its sink. -1 = not visible to the query.
    pub values: Vec<f32>,
    /// All tokens of the text up to `to`.
    pub tokens: Vec<TokenLabel>,
    /// Heads of the layer.
    pub heads: u32,
    /// Per head over the queries: (mean entropy in bits, mean sink mass).
    pub head_stats: Vec<(f32, f32)>,
}

/// Tokens a compressed row pools, first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSpan {
    /// First token.
    pub first: u64,
    /// Last token.
    pub last: u64,
}

/// Which compressed rows each query kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeptRows {
    /// Layer.
    pub layer: u32,
    /// Tokens each row pools.
    pub rows: Vec<RowSpan>,
    /// Per query from 0: kept rows, best first.
    pub kept: Vec<Vec<u32>>,
    /// Per query: the share of the dense softmax mass over compressed rows that falls on kept rows; NaN where fewer
    /// than 2 x top-k rows are visible. Mean over heads.
    pub recall: Vec<f32>,
    /// Mean of `recall` where it is defined; NaN if nowhere.
    pub attn_recall: f32,
    /// Smallest `recall`.
    pub attn_recall_min: f32,
    /// Share of judged queries whose heaviest row is kept.
    pub top1_hit: f32,
    /// Share of kept rows that are among the top-k most recent.
    pub select_local_ratio: f32,
    /// Judged queries.
    pub judged: u32,
}

/// Router choices of every layer with experts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouterMap {
    /// Layers, in order.
    pub layers: Vec<u32>,
    /// Experts per layer.
    pub experts: u32,
    /// Experts per token: the most of all layers.
    pub per_token: u32,
    /// `[layers, tokens, per_token]`: (expert, weight). Where a layer sends tokens to fewer experts, its tokens end
    /// with experts that do not exist, of weight 0.
    pub choices: Vec<(u16, f32)>,
    /// The tokens.
    pub tokens: Vec<TokenLabel>,
}

/// A figure per layer and token, e.g. for heatmaps: `[layers, tokens]`, NaN = none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLayerMetric {
    /// Name, e.g. `norm of the residual`.
    pub name: String,
    /// Unit; may be empty.
    pub unit: String,
    /// Layers.
    pub layers: u32,
    /// Tokens.
    pub tokens: u32,
    /// Values.
    pub values: Vec<f32>,
}

/// Statistics of a stored tensor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorStats {
    /// Name in the checkpoint.
    pub name: String,
    /// Values looked at (all of them, or a sample of a large tensor).
    pub counted: u64,
    /// Values there are.
    pub total: u64,
    /// Smallest finite value.
    pub min: f32,
    /// Largest finite value.
    pub max: f32,
    /// Mean.
    pub mean: f32,
    /// Standard deviation.
    pub std: f32,
    /// Zeros.
    pub zeros: u64,
    /// NaN or infinite.
    pub not_finite: u64,
    /// Histogram over `[-limit, limit]` in equal bins; values beyond fall into the outer bins.
    pub limit: f32,
    /// Counts.
    pub histogram: Vec<u64>,
}
