//! Fusion: groups of base ops a backend runs as one. Every fused op keeps the ids of the base ops it came from,
//! so time, bytes and errors map back to the base plan.

use super::op::{BufId, Op, OpId};
use super::plan::Plan;
use super::telemetry::OpTime;

/// What an executed step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecKind {
    /// One base op as it is.
    Single,
    /// Several matrix products that share their input.
    SharedInput,
}

/// One executed step and its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecStep {
    /// What it does.
    pub kind: ExecKind,
    /// The base ops it stands for, in plan order.
    pub origin: Vec<OpId>,
}

impl ExecStep {
    /// Shares `nanos` of this step out to its base ops by the bytes each has to move.
    pub fn attribute(&self, plan: &Plan, nanos: f64, tokens: u64, position: u64, times: &mut Vec<OpTime>) {
        let bytes: Vec<u64> = self
            .origin
            .iter()
            .map(|id| plan.ops[id.index()].cost(plan, tokens, position).bytes())
            .collect();
        let total: u64 = bytes.iter().sum();
        for (id, &bytes) in self.origin.iter().zip(&bytes) {
            let share = if total == 0 {
                1.0 / self.origin.len() as f64
            } else {
                bytes as f64 / total as f64
            };
            times.push(OpTime {
                op: id.0,
                nanos: nanos * share,
                bytes,
                fused_with: self.origin.len() as u32,
            });
        }
    }
}

/// Groups consecutive matrix products that read the same buffer and do not write it.
pub fn fuse(plan: &Plan) -> Vec<ExecStep> {
    let mut steps: Vec<ExecStep> = Vec::with_capacity(plan.ops.len());
    let mut shared: Option<BufId> = None;
    for (i, base) in plan.ops.iter().enumerate() {
        let id = OpId(i as u32);
        let input = match base.op {
            Op::MatMul { x, out, .. } if x != out => Some(x),
            _ => None,
        };
        let overwrites = |x: BufId, steps: &[ExecStep]| {
            let Some(last) = steps.last() else { return true };
            last.origin
                .iter()
                .any(|o| matches!(plan.ops[o.index()].op, Op::MatMul { out, .. } if out == x))
        };
        match (input, shared) {
            (Some(x), Some(y)) if x == y && !overwrites(x, &steps) => {
                if let Some(last) = steps.last_mut() {
                    last.kind = ExecKind::SharedInput;
                    last.origin.push(id);
                }
            }
            _ => steps.push(ExecStep {
                kind: ExecKind::Single,
                origin: vec![id],
            }),
        }
        shared = input;
    }
    steps
}
