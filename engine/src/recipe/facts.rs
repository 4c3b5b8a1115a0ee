//! What a checkpoint says about a model, in the words variants need to accept or refuse it.

use kernels::ir::Activation;
use serde::Serialize;

/// How a layer attends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionKind {
    /// Causal attention over every token (MHA or GQA).
    Dense,
    /// MODEL1: raw window only.
    Sliding,
    /// MODEL1: window and indexer-selected compressed rows.
    Csa,
    /// MODEL1: window and all heavily compressed rows.
    Hca,
}

impl AttentionKind {
    /// Whether old keys are gone for good outside a ring.
    pub fn evicts(self) -> bool {
        self != AttentionKind::Dense
    }

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            AttentionKind::Dense => "dense",
            AttentionKind::Sliding => "sliding window",
            AttentionKind::Csa => "compressed sparse (CSA)",
            AttentionKind::Hca => "heavily compressed (HCA)",
        }
    }
}

/// What a layer computes between its attention and the next layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FfnKind {
    /// down(silu(gate x) * up x)
    SwiGlu,
    /// proj(gelu(fc x))
    GeluMlp,
    /// Routed experts and shared ones.
    Moe,
}

impl FfnKind {
    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            FfnKind::SwiGlu => "SwiGLU",
            FfnKind::GeluMlp => "GELU MLP",
            FfnKind::Moe => "mixture of experts",
        }
    }
}

/// How many inputs the matrices have that storage of weights can change.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct MatrixInputs {
    /// Of the layer's attention block.
    pub attention: Vec<usize>,
    /// Of its feed-forward block.
    pub ffn: Vec<usize>,
    /// Of the model's embedding and output layer: the residual's width.
    pub hidden: usize,
}

/// Facts of one layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LayerFacts {
    /// `llama`, `deepseek_v4`, ...
    pub family: &'static str,
    /// Layer number, 0-based.
    pub layer: usize,
    /// How it attends.
    pub attention: AttentionKind,
    /// What follows.
    pub ffn: FfnKind,
    /// The activation it was trained with.
    pub activation: Activation,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Values per head (and per cache record).
    pub head_dim: usize,
    /// Values at the end of a cache record that carry rotary positions and are kept apart (0 = not apart).
    pub rope_tail: usize,
    /// Raw window, for kinds that have one.
    pub window: usize,
    /// Tokens per compressed row (0 = none).
    pub rate: usize,
    /// Rows the indexer keeps (0 = no indexer).
    pub index_topk: usize,
    /// Width of an indexer row.
    pub index_dim: usize,
    /// Experts (0 = none).
    pub experts: usize,
    /// Experts chosen per token.
    pub experts_per_token: usize,
    /// A table names the experts of every token id; else the router's scores choose.
    pub hash_routed: bool,
    /// Inputs of matrices.
    pub inputs: MatrixInputs,
}

impl LayerFacts {
    /// Whether a compressed row also pools the tokens of the block before its own.
    pub fn overlaps(&self) -> bool {
        self.attention == AttentionKind::Csa
    }
}

/// Facts of the whole model.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ModelFacts {
    /// `llama`, `deepseek_v4`, ...
    pub family: &'static str,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Residual width.
    pub hidden: usize,
    /// Largest context the checkpoint was made for.
    pub max_context: usize,
    /// Residual streams (1 = plain residual).
    pub streams: usize,
    /// Whether the output layer is the embedding.
    pub tied: bool,
    /// Layers in order.
    pub layers: Vec<LayerFacts>,
    /// The precision the checkpoint was stored in asks for quantised caches (released MODEL1).
    pub quantised: bool,
    /// Weights are stored in 32-bit floats, so caches are too.
    pub full_precision: bool,
}
