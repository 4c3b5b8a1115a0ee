//! What the kernels that touch the data count while they touch it (level L0).

use serde::{Deserialize, Serialize};

/// Per layer, per step. Counts are measured, never estimated.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerStats {
    /// Keys a dense causal attention would score, summed over the step's queries.
    pub keys_context: u64,
    /// Keys scored by core attention, summed over the step's queries.
    pub keys_scored: u64,
    /// Keys that took part in the softmax, summed over the step's queries (per head, mean rounded down).
    pub keys_kept: u64,
    /// Keys scored by the indexer, summed over the step's queries.
    pub index_scored: u64,
    /// Sum of squared differences between cache rows written in this step and their stored form.
    pub round_trip_err: f64,
    /// Sum of squares of the same values before storing.
    pub round_trip_ref: f64,
    /// Values that saturated when stored.
    pub saturated: u64,
    /// Non-zero values that became zero when stored.
    pub flushed: u64,
    /// Values behind the four figures above.
    pub stored_values: u64,
    /// Hidden units of feed-forward blocks that were given the choice to stay (top-p), summed over the step's tokens.
    pub ffn_units: u64,
    /// Those of them that stayed.
    pub ffn_kept: u64,
    /// Tokens sent to each expert (empty for layers without experts).
    pub expert_load: Vec<u32>,
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
    /// Scale bytes (part of the records above, counted apart and not in them).
    pub scales: u64,
    /// Pooling state (f32).
    pub pooling: u64,
    /// Host checkpoints for rewinding.
    pub checkpoints: u64,
}

impl KvBytes {
    /// Sum of all components.
    pub fn total(&self) -> u64 {
        self.window + self.rows + self.index + self.scales + self.pooling + self.checkpoints
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

/// Time and bytes of one base op in one traced step.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpTime {
    /// The base op.
    pub op: u32,
    /// Nanoseconds. Measured when the op ran alone; shared out by bytes when it ran inside a fused op.
    pub nanos: f64,
    /// Bytes it had to move, from its cost function.
    pub bytes: u64,
    /// Number of base ops in the executed step this time was measured on (1 = ran alone).
    pub fused_with: u32,
}
