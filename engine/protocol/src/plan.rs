//! Views of a loaded model: tree of blocks and tensors, and the plan with its costs.

use serde::{Deserialize, Serialize};

/// One stored tensor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorView {
    /// Name in the checkpoint.
    pub name: String,
    /// Outputs and inputs.
    pub shape: [usize; 2],
    /// Stored format.
    pub format: String,
    /// Bytes with scales.
    pub bytes: u64,
}

/// One block of a layer (or of the model): attention, ffn, embedding, head.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockView {
    /// Layer, `None` outside layers.
    pub layer: Option<u32>,
    /// Which block.
    pub block: String,
    /// What it is, in words.
    pub kind: String,
    /// Choices of the recipe, slot = variant.
    pub slots: Vec<(String, String)>,
    /// Tensors it reads.
    pub tensors: Vec<TensorView>,
}

/// One base op.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpView {
    /// Number in the plan.
    pub id: u32,
    /// Layer.
    pub layer: Option<u32>,
    /// Block.
    pub block: String,
    /// Name.
    pub name: String,
    /// Kind of op.
    pub kind: String,
    /// Floating-point operations (estimated from shapes).
    pub flops: u64,
    /// Weight bytes read.
    pub weight_bytes: u64,
    /// Cache bytes moved.
    pub cache_bytes: u64,
    /// Workspace bytes moved.
    pub activation_bytes: u64,
    /// Numbers of the ops of this step whose results it reads, ascending: buffers, and what they wrote into the cache.
    pub inputs: Vec<u32>,
    /// Base ops executed together with this one on the current backend (1 = alone).
    pub fused_with: u32,
    /// Measured time; `None` where op timing has not run.
    pub time: Option<OpTimeView>,
}

/// Time of an op over the sampled steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OpTimeView {
    /// Mean in nanoseconds. Shared out by bytes where the op ran inside a fused one.
    pub nanos: f64,
    /// Steps sampled.
    pub steps: u32,
}

/// A plan and its costs at one point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanView {
    /// Plan hash, hex.
    pub hash: String,
    /// `prefill` or `decode`.
    pub phase: String,
    /// Tokens in the step the costs are for.
    pub tokens: u64,
    /// Tokens before the step.
    pub context: u64,
    /// Ops in order.
    pub ops: Vec<OpView>,
}
