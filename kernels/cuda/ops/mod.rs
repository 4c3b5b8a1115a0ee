//! Launching ops: one function per base op, or per group of base ops that one kernel runs.

use super::cx::LaunchCx;
use crate::ir::{ExecError, Op, OpId, Plan};

/// What a group of base ops is run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// One base op as it is.
    Single,
}

/// Base ops that are launched together, in plan order. Every op of a plan is in exactly one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What it is run as.
    pub kind: GroupKind,
    /// The base ops it stands for.
    pub origin: Vec<OpId>,
}

/// The groups of a plan, in order.
pub fn groups(plan: &Plan) -> Vec<Group> {
    (0..plan.ops.len())
        .map(|i| Group {
            kind: GroupKind::Single,
            origin: vec![OpId(i as u32)],
        })
        .collect()
}

/// Working memory the launches of a plan need, bytes (the largest of all groups).
pub fn scratch_bytes(_plan: &Plan) -> usize {
    0
}

/// Enqueues what a group does. Probes are the executor's.
pub fn launch(cx: &LaunchCx<'_>, group: &Group) -> Result<(), ExecError> {
    for id in &group.origin {
        match &cx.plan.ops[id.index()].op {
            Op::Probe { .. } => {}
            op => {
                return Err(ExecError::Unsupported {
                    backend: "cuda",
                    what: format!("{op:?}"),
                });
            }
        }
    }
    Ok(())
}
