//! Many recipes against one on the same text: what a sweep measures.

use serde::{Deserialize, Serialize};

use crate::KlStats;

/// One measured recipe of a sweep. Costs and speeds stand beside those of the recipe it is compared with, A.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SweepRow {
    /// Recipe hash.
    pub hash: String,
    /// Name, where it has one: a preset's.
    pub name: String,
    /// Edits that turn A into it; none for A itself.
    pub edits: Vec<String>,
    /// KL(A||it), in nats per token, measured.
    pub kl: KlStats,
    /// Share of positions with the same likeliest token as A, and its standard error.
    pub same_top1: [f64; 2],
    /// ln(its perplexity / A's) and its standard error (paired).
    pub ln_ppl_ratio: [f64; 2],
    /// Perplexity of the text.
    pub perplexity: f64,
    /// Cache bytes in use at the end of the text, measured.
    pub kv: u64,
    /// Weight and cache bytes that one decode step at the end of the text moves: estimated, from the plan.
    pub step_bytes: u64,
    /// Tokens per second of single steps, measured (median).
    pub decode_tokens_per_s: f64,
    /// Tokens per second of chunks, measured.
    pub prefill_tokens_per_s: f64,
}
