//! L0 telemetry: one record per step.

use serde::{Deserialize, Serialize};

/// Version of the record form.
pub const TELEMETRY_VERSION: u32 = 1;

/// How a figure came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Label {
    /// Counted or timed.
    Measured,
    /// Measured on some steps, rows or heads.
    Sampled,
    /// Computed from a model of the cost.
    Estimated,
}

/// Bytes of one layer's cache by component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBytes {
    /// Raw rows: the sliding window, or every row of a dense layer.
    pub window: u64,
    /// Compressed rows.
    pub rows: u64,
    /// Indexer keys.
    pub index: u64,
    /// Scales of quantised records.
    pub scales: u64,
    /// Pooling state.
    pub pooling: u64,
    /// Host checkpoints for rewinding.
    pub checkpoints: u64,
}

impl KvBytes {
    /// Sum of all components.
    pub fn total(&self) -> u64 {
        self.window + self.rows + self.index + self.scales + self.pooling + self.checkpoints
    }

    /// The components in their fixed order, with their names.
    pub fn parts(&self) -> [(&'static str, u64); 6] {
        [
            ("window", self.window),
            ("compressed rows", self.rows),
            ("indexer keys", self.index),
            ("scales", self.scales),
            ("pooling state", self.pooling),
            ("checkpoints", self.checkpoints),
        ]
    }

    /// Adds `other` component by component.
    pub fn add(&mut self, other: &KvBytes) {
        self.window += other.window;
        self.rows += other.rows;
        self.index += other.index;
        self.scales += other.scales;
        self.pooling += other.pooling;
        self.checkpoints += other.checkpoints;
    }
}

/// One layer in one step. All figures are measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Cache bytes in use.
    pub kv_used: KvBytes,
    /// Cache bytes allocated.
    pub kv_allocated: KvBytes,
    /// Keys a dense causal attention would score, summed over the step's queries.
    pub keys_context: u64,
    /// Keys scored by core attention.
    pub keys_scored: u64,
    /// Keys that took part in the softmax.
    pub keys_kept: u64,
    /// Keys scored by the indexer.
    pub index_scored: u64,
    /// `||x - q(x)|| / ||x||` over the cache values quantised to 8 bits or fewer in this step; `None` if there were
    /// none (f32 and bf16 are not counted).
    pub round_trip_error: Option<f64>,
    /// Share of stored values that saturated.
    pub saturated: f64,
    /// Share of stored values flushed to zero.
    pub flushed: f64,
    /// Hidden units of the feed-forward block that top-p chose among, summed over the step's tokens; 0 without it.
    #[serde(default)]
    pub ffn_units: u64,
    /// Those of them that stayed.
    #[serde(default)]
    pub ffn_kept: u64,
    /// Tokens per expert (empty without experts).
    #[serde(default)]
    pub expert_load: Vec<u32>,
}

impl LayerRecord {
    /// 1 - keys scored by core attention / keys a dense causal attention scores.
    pub fn sparsity(&self) -> f64 {
        if self.keys_context == 0 {
            0.0
        } else {
            1.0 - self.keys_scored as f64 / self.keys_context as f64
        }
    }
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Form version.
    pub version: u32,
    /// Step number since the session began.
    pub seq: u64,
    /// Position of the step's first token.
    pub position: u64,
    /// Tokens in the step.
    pub tokens: u32,
    /// Wall time of the step in nanoseconds (measured).
    pub nanos: u64,
    /// Plan the step ran on.
    pub plan: u64,
    /// Memory of the process or device in bytes, where known.
    pub memory: Option<u64>,
    /// Per layer.
    pub layers: Vec<LayerRecord>,
}

/// Totals of one generation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunSummary {
    /// Tokens of the prompt that were processed.
    pub prompt_tokens: u64,
    /// Tokens produced.
    pub tokens: u64,
    /// Seconds to the first token, prefill included.
    pub first_token_s: f64,
    /// Prefill speed.
    pub prefill_tokens_per_s: f64,
    /// Decode speed, first token not counted.
    pub decode_tokens_per_s: f64,
    /// Milliseconds between tokens: median, 95th and 99th percentile.
    pub latency_ms: [f64; 3],
}

/// Cache bytes of a layout as fixed part + slope: never bytes per token alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvFit {
    /// Layout, e.g. `this recipe`, `bf16 records`, `DeepSeek-V3 rows`, `R1-Distill-Qwen-1.5B (GQA)`.
    pub name: String,
    /// What it is, one sentence.
    pub about: String,
    /// Bytes at any length.
    pub fixed: f64,
    /// Bytes per token of context.
    pub slope: f64,
    /// Context from which on `this recipe` is the smaller one; 0 = always, `None` = never.
    pub crossover: Option<u64>,
}

/// This recipe's cache beside other layouts of as many layers. Estimated from record sizes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KvBaselines {
    /// The recipe in force first.
    pub fits: Vec<KvFit>,
}
