//! Messages between the interface of MODEL1 Explorer and its host. Plain data: no crate of ours is used here, so that
//! everything, the web interface included, can depend on it.

mod plan;
mod telemetry;

pub use plan::{BlockView, OpView, PlanView, TensorView};
pub use telemetry::{KvBytes, Label, LayerRecord, RunSummary, StepRecord, TELEMETRY_VERSION};
