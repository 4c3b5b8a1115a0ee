//! Plans: a flat list of base ops over typed buffers, weights and cache components.

use serde::{Deserialize, Serialize};

use super::format::{Format, Layout, ScaleSpec};
use super::op::{BaseOp, BufId, CacheId, RopeTable, WeightId};
use super::telemetry::KvBytes;

/// How many rows (or values per row) a buffer has; resolved by the bucket the plan is specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Dim {
    /// A fixed number.
    Const(usize),
    /// The step's tokens (at most the token bucket).
    Tokens,
    /// Rows that produce logits: 1, or all tokens.
    Output,
    /// Rows of this rate that close in the step.
    Closed(usize),
    /// Rows of this rate in the context (at most the context bucket / rate).
    ContextRows(usize),
}

/// Element type of a workspace buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ElemType {
    /// 32-bit float.
    F32,
    /// 32-bit signed integer.
    I32,
}

/// A workspace buffer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct BufferDesc {
    /// Unique name within the plan.
    pub name: String,
    /// Rows.
    pub rows: Dim,
    /// Values per row.
    pub width: Dim,
    /// Element type.
    pub elem: ElemType,
}

/// A weight as stored, with where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightDesc {
    /// Name in the checkpoint (of the tensor or the part of it used).
    pub name: String,
    /// Outputs (rows of W in `y = W x`); vectors have 1 row.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Element format.
    pub format: Format,
    /// Stored orientation.
    pub layout: Layout,
    /// Separate scales, if any.
    pub scales: Option<ScaleSpec>,
}

impl WeightDesc {
    /// Bytes of the elements and scales.
    pub fn bytes(&self) -> u64 {
        let (data, scales) = self.parts();
        (data + scales) as u64
    }

    /// Bytes of the elements, and of the scales that lie apart from them.
    pub fn parts(&self) -> (usize, usize) {
        let data = (self.rows * self.cols).div_ceil(self.format.block_len()) * self.format.block_bytes();
        let scales = self.scales.map_or(0, |s| {
            self.rows.div_ceil(s.block_rows) * self.cols.div_ceil(s.block_cols) * s.format.bytes()
        });
        (data, scales)
    }

    /// Stored elements.
    pub fn elements(&self) -> u64 {
        (self.rows * self.cols) as u64
    }
}

/// How cache rows are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheFormat {
    /// 4 bytes per value.
    F32,
    /// 2 bytes per value.
    Bf16,
    /// The 584-byte record of MODEL1: 448 e4m3 + 64 bf16 + 7 ue8m0 + 1 pad.
    Fp8Model1,
    /// e4m3 with one ue8m0 per 64 values; a rope tail kept apart stays bf16.
    Fp8B64,
    /// V3.2's rule: e4m3 with one f32 (a power of two) per 128 values; a rope tail kept apart stays bf16. 656 bytes for
    /// V3.2's latents (512 + 64), 592 for MODEL1's (448 + 64), 132 for indexer rows of 128.
    Fp8V32,
    /// e2m1 with one ue8m0 per 32 values; indexer rows after a Hadamard transform.
    Fp4,
}

impl CacheFormat {
    /// The name used in recipes.
    pub const fn name(self) -> &'static str {
        match self {
            CacheFormat::F32 => "f32",
            CacheFormat::Bf16 => "bf16",
            CacheFormat::Fp8Model1 => "fp8_model1",
            CacheFormat::Fp8B64 => "fp8_b64",
            CacheFormat::Fp8V32 => "fp8_v32",
            CacheFormat::Fp4 => "fp4",
        }
    }

    /// (data bytes, scale bytes) of one record of `width` values whose last `rope` are the rope part.
    pub const fn record_bytes(self, width: usize, rope: usize) -> (usize, usize) {
        match self {
            CacheFormat::F32 => (4 * width, 0),
            CacheFormat::Bf16 => (2 * width, 0),
            CacheFormat::Fp8Model1 => (576, 8),
            CacheFormat::Fp8B64 => ((width - rope) + 2 * rope, (width - rope).div_ceil(64)),
            // One contiguous record: the scales stand between the codes and the rope part.
            CacheFormat::Fp8V32 => ((width - rope) + 4 * (width - rope).div_ceil(128) + 2 * rope, 0),
            CacheFormat::Fp4 => (width.div_ceil(2), width.div_ceil(32)),
        }
    }
}

/// What a cache component holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Component {
    /// Keys of a dense layer.
    Keys,
    /// Values of a dense layer.
    Values,
    /// MODEL1's raw window (keys and values are one latent).
    Window,
    /// MODEL1's compressed rows.
    Rows,
    /// Indexer keys.
    Index,
    /// Pooling state of the compressor.
    Pooling,
    /// Pooling state of the indexer's compressor.
    IndexPooling,
}

/// How a cache component grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheRows {
    /// One row per `rate` tokens, never evicted.
    Growing {
        /// Tokens per row.
        rate: usize,
    },
    /// A ring; slot = position mod capacity. `live` rows are ever read by one query; the rest is room for a
    /// chunk of new tokens and for rewinding.
    Ring {
        /// Rows allocated.
        capacity: usize,
        /// Rows visible to a query.
        live: usize,
        /// Tokens of a block: when one is full nothing is needed of it, or, where a query sees more than one, no more than the
        /// last of them (1 = a window, of which a query brings the newest row itself).
        block: usize,
    },
}

impl CacheRows {
    /// Rows of a ring that steps behind `position` tokens may still read: the last ones. What grows keeps all, and this is 0.
    pub fn kept(&self, position: u64) -> usize {
        match *self {
            Self::Growing { .. } => 0,
            Self::Ring { capacity, live, block } => {
                let last = live - block + (position % block as u64) as usize;
                last.min(capacity).min(position as usize)
            }
        }
    }

    /// Their slots, the oldest first.
    pub fn kept_slots(&self, position: u64) -> Vec<usize> {
        match *self {
            Self::Growing { .. } => Vec::new(),
            Self::Ring { capacity, .. } => (position - self.kept(position) as u64..position)
                .map(|t| (t % capacity as u64) as usize)
                .collect(),
        }
    }
}

/// One component of one layer's cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheDesc {
    /// Layer.
    pub layer: u32,
    /// What it holds.
    pub component: Component,
    /// Growth.
    pub rows: CacheRows,
    /// Records per row (key heads; 1 for latents).
    pub records: usize,
    /// Values per record.
    pub width: usize,
    /// Values at the end of a record that are the rope part (0 = not kept apart).
    pub rope: usize,
    /// Storage.
    pub format: CacheFormat,
}

impl CacheDesc {
    /// (data bytes, scale bytes) per row.
    pub fn row_bytes(&self) -> (usize, usize) {
        let (d, s) = self.format.record_bytes(self.width, self.rope);
        (d * self.records, s * self.records)
    }

    /// Bytes by component of `rows` rows.
    pub fn kv_bytes(&self, rows: u64) -> KvBytes {
        let (data, scales) = self.row_bytes();
        let mut k = KvBytes {
            scales: rows * scales as u64,
            ..KvBytes::default()
        };
        let bytes = rows * data as u64;
        match self.component {
            Component::Keys | Component::Values | Component::Window => k.window = bytes,
            Component::Rows => k.rows = bytes,
            Component::Index => k.index = bytes,
            Component::Pooling | Component::IndexPooling => k.pooling = bytes,
        }
        k
    }

    /// Rows in use after `context` tokens.
    pub fn used_rows(&self, context: u64) -> u64 {
        match self.rows {
            CacheRows::Growing { rate } => context / rate as u64,
            CacheRows::Ring { live, .. } => context.min(live as u64),
        }
    }
}

/// What a plan is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Many tokens at once.
    Prefill,
    /// One token.
    Decode,
}

/// A lowered model: recipe + weights as a flat list of ops. Everything a backend needs to run it and everything
/// the explorer draws.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What it is for.
    pub phase: Phase,
    /// Largest number of tokens in a step.
    pub token_bucket: usize,
    /// Largest context.
    pub context_bucket: usize,
    /// Whether every token's logits are produced, or the last one's only.
    pub all_logits: bool,
    /// The ops in order.
    pub ops: Vec<BaseOp>,
    /// Workspace.
    pub buffers: Vec<BufferDesc>,
    /// Weights referred to by the ops.
    pub weights: Vec<WeightDesc>,
    /// Cache components referred to by the ops.
    pub caches: Vec<CacheDesc>,
    /// Rotary tables.
    pub ropes: Vec<RopeTable>,
    /// Number of layers.
    pub layers: usize,
    /// Experts per layer (0 = none), for load counters.
    pub experts: usize,
    /// Buffer holding the logits.
    pub logits: BufId,
    /// Hash of everything above that affects values.
    pub hash: u64,
}

impl Plan {
    /// Resolves a dimension for a step of `tokens` tokens and a context of `context` tokens.
    pub fn dim(&self, dim: Dim, tokens: usize, context: usize) -> usize {
        match dim {
            Dim::Const(n) => n,
            Dim::Tokens => tokens,
            Dim::Output => {
                if self.all_logits {
                    tokens
                } else {
                    1
                }
            }
            // A chunk that does not start on a block boundary can close one row more than tokens / rate.
            Dim::Closed(rate) => tokens / rate + 1,
            Dim::ContextRows(rate) => context / rate,
        }
    }

    /// Elements a buffer needs in the plan's bucket.
    pub fn buffer_len(&self, id: BufId) -> usize {
        let b = &self.buffers[id.index()];
        self.dim(b.rows, self.token_bucket, self.context_bucket)
            * self.dim(b.width, self.token_bucket, self.context_bucket)
    }

    /// Values per row of a buffer in the plan's bucket.
    pub fn width(&self, id: BufId) -> usize {
        self.dim(self.buffers[id.index()].width, self.token_bucket, self.context_bucket)
    }

    /// Workspace bytes in the plan's bucket.
    pub fn workspace_bytes(&self) -> u64 {
        (0..self.buffers.len())
            .map(|i| 4 * self.buffer_len(BufId(i as u32)) as u64)
            .sum()
    }

    /// The description of a weight.
    pub fn weight(&self, id: WeightId) -> &WeightDesc {
        &self.weights[id.index()]
    }

    /// The description of a cache component.
    pub fn cache(&self, id: CacheId) -> &CacheDesc {
        &self.caches[id.index()]
    }
}
