//! The base ops: what a model is made of, one matrix product, norm, rope, cache write, attend,
//! select, route, reduce, sample or probe each.
//!
//! Buffers are row-major `[rows, width]`, f32 unless said; rows are tokens, output rows or
//! compressed rows that close in this step (see [`crate::ir::Dim`]).

use serde::{Deserialize, Serialize};

use super::plan::CacheFormat;
use super::score::ScoreProgram;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);
        impl $name {
            /// The index this id stands for.
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}
id!(
    /// A workspace buffer of a plan.
    BufId
);
id!(
    /// A weight of the loaded model.
    WeightId
);
id!(
    /// A cache component of a session.
    CacheId
);
id!(
    /// A table of rotary frequencies.
    RopeId
);
id!(
    /// A base op of a plan (its position in the list).
    OpId
);

/// Which part of a layer an op belongs to; the unit of swapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Token (and position) embedding.
    Embedding,
    /// Attention block including its norm and residual.
    Attention,
    /// Feed-forward block including its norm and residual.
    Ffn,
    /// Final norm and output layer.
    Head,
    /// Sampling.
    Sampler,
}

/// Normalisation kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// x / sqrt(mean(x^2) + eps) * w
    Rms,
    /// (x - mean) / sqrt(var + eps) * w + b
    Layer,
}

/// Pointwise activation functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// x * sigmoid(x)
    Silu,
    /// Exact GELU, x * Phi(x).
    Gelu,
    /// Tanh approximation of GELU ("gelu_new").
    GeluTanh,
    /// max(x, 0)
    Relu,
    /// max(x, 0)^2
    Relu2,
    /// x
    Identity,
}

/// How rotary pairs are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeStyle {
    /// Pairs (0,1), (2,3), ... (MODEL1, GGUF llama).
    Interleaved,
    /// Pairs (i, i + d/2) (Hugging Face llama, qwen2).
    Half,
}

/// Frequencies of a rotary embedding: angle of pair i at position t is `t * freqs[i]`, in f64.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RopeTable {
    /// One frequency per pair, radians per position.
    pub freqs: Vec<f64>,
}

/// Where the rotary positions of a buffer's rows come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Row i is the step's token i.
    Tokens,
    /// Row i is the i-th row of this rate that closes in the step; its position is the first
    /// token of its own block, `j * rate`.
    Closed {
        /// Tokens per compressed row.
        rate: usize,
    },
}

/// Which rows of a cache an attention reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KeyRows {
    /// All tokens up to the query (growing cache, row = position).
    Causal,
    /// The last `window` tokens up to and with the query; the cache is a ring, slot = position mod capacity.
    Window {
        /// Tokens visible, the query included.
        window: usize,
    },
    /// Compressed rows: all visible ones, or those a select op listed.
    Compressed {
        /// Tokens per row.
        rate: usize,
        /// i32 buffer `[tokens, k]` of row indices, -1 = none.
        selection: Option<BufId>,
    },
}

/// A set of keys and values for attention. All sources of one op share one softmax.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySource {
    /// Cache holding the keys.
    pub keys: CacheId,
    /// Cache holding the values (the same one where a latent serves as both).
    pub values: CacheId,
    /// Visible rows.
    pub rows: KeyRows,
}

/// Masks laid over what a source shows. They never evict.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mask {
    /// No further mask.
    None,
    /// Only the last `window` tokens and the first `sinks` tokens ([`KeyRows::Causal`] sources only).
    SlidingWindow {
        /// Tokens visible, the query included.
        window: usize,
        /// First tokens that stay visible.
        sinks: usize,
    },
    /// Per head, only the `k` keys with the largest scores (exact; ties to the lower row, earlier source first).
    TopK {
        /// Keys kept.
        k: usize,
    },
    /// Per head, leaves out every block of the query's list of keys (all sources, in order) whose share of the
    /// softmax, the sink included, is at most `threshold`. A block is [`SKIP_BLOCK`] neighbouring keys of the list, the
    /// last one what is left; the heaviest (the earlier of equals) stays in any case. The softmax is over what stays.
    BlockSkip {
        /// Share of the softmax.
        threshold: f32,
    },
}

/// Keys per block of [`Mask::BlockSkip`].
pub const SKIP_BLOCK: usize = 32;

/// Router scoring functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scoring {
    /// sqrt(softplus(x)), MODEL1.
    SqrtSoftplus,
    /// 1 / (1 + e^-x), DeepSeek-V3.
    Sigmoid,
    /// Softmax over all experts.
    Softmax,
}

/// One base op. Shapes are `[rows, width]` of the named buffers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
#[expect(missing_docs, reason = "each variant's text describes its fields together")]
pub enum Op {
    /// out[t] = table[id_t], repeated `copies` times side by side (mHC streams start equal).
    Embed { table: WeightId, out: BufId, copies: usize },
    /// x[t] += table[position + t] (learned positions).
    EmbedPosition { table: WeightId, x: BufId },
    /// Normalises each run of `group` values of every row of x; weight and bias have `group` values
    /// (None = 1 and 0). out may be x.
    Norm {
        kind: NormKind,
        x: BufId,
        weight: Option<WeightId>,
        bias: Option<WeightId>,
        out: BufId,
        group: usize,
        eps: f32,
    },
    /// out = x W^T (+ bias); W is `[out width, x width]` (or `[in, out]`, see the weight's layout).
    MatMul {
        x: BufId,
        weight: WeightId,
        bias: Option<WeightId>,
        out: BufId,
    },
    /// Block-diagonal product: x is cut in `groups` equal parts, part g meets the g-th run of
    /// `out width / groups` rows of the weight `[out width, x width / groups]`.
    GroupedMatMul {
        x: BufId,
        weight: WeightId,
        groups: usize,
        out: BufId,
    },
    /// Rotates in place, per head of `head_dim` values, the `dims` values from `offset` on.
    /// `inverse` turns by the negative angle.
    Rope {
        x: BufId,
        heads: usize,
        head_dim: usize,
        offset: usize,
        dims: usize,
        style: RopeStyle,
        table: RopeId,
        positions: Positions,
        inverse: bool,
    },
    /// Stores the rows of src: tokens at their position (growing) or ring slot, closed rows at their index.
    CacheWrite {
        src: BufId,
        cache: CacheId,
        rows: Positions,
    },
    /// Compressor (MODEL1.md 2.7). kv and gate are `[tokens, c]`, c = d (or 2d with overlap), ape is `[rate, c]`.
    /// Adds ape[t mod rate] to the gate, keeps both in the pooling state, and for every row that closes
    /// writes the channel-wise softmax pool `[closed, d]`.
    Pool {
        kv: BufId,
        gate: BufId,
        ape: WeightId,
        state: CacheId,
        out: BufId,
        rate: usize,
        overlap: bool,
    },
    /// Normalised Walsh-Hadamard transform (Sylvester order) of each run of `width` values, in place.
    Hadamard { x: BufId, width: usize, rows: Positions },
    /// Stores and reads back each run of `width` values in `format`, in place (simulated rounding).
    RoundTrip {
        x: BufId,
        width: usize,
        format: CacheFormat,
    },
    /// Indexer scores (MODEL1.md 2.9): out[t, j] = sum_h scale * w[t,h] * max(0, q[t,h] . k[j]) for visible j;
    /// entries of rows not visible are left undefined. Queries with at most `skip` visible rows are not scored.
    IndexScore {
        q: BufId,
        weights: BufId,
        keys: CacheId,
        heads: usize,
        dim: usize,
        rate: usize,
        scale: f32,
        skip: usize,
        out: BufId,
    },
    /// out[t] = indices of the k largest visible scores (ties to the lower index), ascending, padded with -1.
    /// With at most k visible rows: all of them, scores not read.
    SelectTopK {
        scores: BufId,
        k: usize,
        rate: usize,
        out: BufId,
    },
    /// Attention of `heads` query heads of `head_dim` over the sources (one softmax), with `kv_heads` key heads
    /// (query head h uses key head h / (heads / kv_heads)). sinks: one f32 logit per head that only enlarges the
    /// denominator. score: what every score becomes before the mask chooses by it; the causal order stays on top.
    Attend {
        q: BufId,
        out: BufId,
        heads: usize,
        kv_heads: usize,
        head_dim: usize,
        scale: f32,
        sources: Vec<KeySource>,
        sinks: Option<WeightId>,
        mask: Mask,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        score: Option<ScoreProgram>,
    },
    /// x[t] = 0 in place in the named heads of `head_dim` values each (numbers ascending, each once).
    ZeroHeads { x: BufId, head_dim: usize, heads: Vec<u32> },
    /// out[t] = the `out width` values of x's row from `offset` on.
    Slice { x: BufId, offset: usize, out: BufId },
    /// out = x + y. out may be x.
    Add { x: BufId, y: BufId, out: BufId },
    /// out = act(min(gate, limit)) * clamp(up, -limit, limit) (no clamping without limit), then, with
    /// row_weights `[tokens, n]`, each of the n equal parts of a row is multiplied by its weight. out may be gate.
    Glu {
        gate: BufId,
        up: BufId,
        out: BufId,
        activation: Activation,
        limit: Option<f32>,
        row_weights: Option<BufId>,
    },
    /// x = act(x) in place.
    Activate { x: BufId, activation: Activation },
    /// In each run of `group` values of every row of x, keeps the smallest set of the largest magnitudes whose sum is at
    /// least `p` of the run's (ties to the lower index); the rest becomes 0. Magnitudes are counted in whole units of
    /// 2^-30 of the run's largest, so that sums have no order. Runs without a finite largest magnitude above 0 stay.
    TopP { x: BufId, group: usize, p: f32 },
    /// Chooses `k` experts from router logits `[tokens, experts]`: the k largest of score + bias (ties to the lower
    /// index), or the first k of the table's row for the token id. out_weights = score / sum of chosen scores (if normalise) * factor.
    Route {
        logits: BufId,
        bias: Option<WeightId>,
        table: Option<WeightId>,
        scoring: Scoring,
        k: usize,
        normalise: bool,
        factor: f32,
        out_experts: BufId,
        out_weights: BufId,
    },
    /// Per token and chosen expert: out part s = W[expert_s] x, x being the whole row, or its part s when
    /// `per_slot` (x then has k parts). weights[e] is expert e's matrix.
    ExpertMatMul {
        x: BufId,
        experts: BufId,
        k: usize,
        weights: Vec<WeightId>,
        per_slot: bool,
        out: BufId,
    },
    /// out[t] = sum of the k parts of x's row + shared[t].
    ExpertSum {
        x: BufId,
        k: usize,
        shared: Option<BufId>,
        out: BufId,
    },
    /// mHC coefficients (MODEL1.md 3) from the streams x `[tokens, n*D]`: pre `[tokens, n]`, post `[tokens, n]`,
    /// comb `[tokens, n*n]`. The head form has no post and comb.
    HcMix {
        x: BufId,
        matrix: WeightId,
        base: WeightId,
        scale: WeightId,
        pre: BufId,
        post: Option<BufId>,
        comb: Option<BufId>,
        streams: usize,
        iterations: usize,
        eps: f32,
        norm_eps: f32,
    },
    /// out = sum_i pre_i X_i.
    HcCollapse {
        x: BufId,
        pre: BufId,
        streams: usize,
        out: BufId,
    },
    /// X'_k = post_k o + sum_j comb_jk X_j, in place on x.
    HcExpand {
        o: BufId,
        x: BufId,
        post: BufId,
        comb: BufId,
        streams: usize,
    },
    /// Copies the rows that produce logits (the last token, or all) from token rows to output rows.
    TakeOutput { x: BufId, out: BufId },
    /// Copies a buffer to the step's output under a name (integers as floats, exact below 2^24). Never changes values.
    Probe { x: BufId, name: String },
    /// Draws the next token from the last row of logits with the session's sampler.
    Sample { logits: BufId },
}

/// An op in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BaseOp {
    /// The op.
    #[serde(flatten)]
    pub op: Op,
    /// Short name for people, e.g. `q_proj`.
    pub name: String,
    /// Layer, `None` outside layers.
    pub layer: Option<u32>,
    /// Part of the layer.
    pub block: Block,
}
