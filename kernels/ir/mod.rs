//! The op set: formats, base ops, plans, step parameters and the backend interface. Data only;
//! nothing here computes.

mod backend;
mod cost;
mod format;
mod fuse;
mod op;
mod plan;
mod sampler;
mod score;
mod step;
mod telemetry;

pub use backend::{
    Backend, ExecError, Snapshot, State, StepOutput, StepRequest, WeightSource, WeightView, check_batch,
};
pub use cost::Cost;
pub use format::{Format, Layout, ScaleFormat, ScaleSpec};
pub use fuse::{ExecKind, ExecStep, fuse};
pub use op::{
    Activation, BaseOp, Block, BufId, CacheId, KeyRows, KeySource, Mask, NormKind, Op, OpId, Positions, RopeId,
    RopeStyle, RopeTable, SKIP_BLOCK, Scoring, WeightId,
};
pub use plan::{BufferDesc, CacheDesc, CacheFormat, CacheRows, Component, Dim, ElemType, Phase, Plan, WeightDesc};
pub use sampler::*;
pub use score::{SCORE_DEPTH, SCORE_OPS, ScoreOp, ScoreProgram};
pub use step::StepParams;
pub use telemetry::{KvBytes, LayerStats, OpTime};
