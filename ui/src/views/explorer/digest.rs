//! A plan added up: parts (layers, and blocks outside of them), their blocks, their ops.

use std::ops::Range;

use protocol::{OpView, PlanView};

/// What something costs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Costs {
    /// Floating-point operations.
    pub flops: u64,
    /// Weight bytes read.
    pub weights: u64,
    /// Cache bytes moved.
    pub cache: u64,
    /// Workspace bytes moved.
    pub activations: u64,
    /// Measured nanoseconds, of the ops that were timed.
    pub nanos: f64,
    /// Steps sampled, the least of all ops; 0 = not timed.
    pub steps: u32,
    /// Ops.
    pub ops: u32,
}

impl Costs {
    /// Bytes moved.
    pub fn bytes(&self) -> u64 {
        self.weights + self.cache + self.activations
    }

    /// Of one op.
    pub fn of(op: &OpView) -> Self {
        Self {
            flops: op.flops,
            weights: op.weight_bytes,
            cache: op.cache_bytes,
            activations: op.activation_bytes,
            nanos: op.time.map_or(0.0, |t| t.nanos),
            steps: op.time.map_or(0, |t| t.steps),
            ops: 1,
        }
    }

    fn add(&mut self, other: &Self) {
        self.flops += other.flops;
        self.weights += other.weights;
        self.cache += other.cache;
        self.activations += other.activations;
        self.nanos += other.nanos;
        self.steps = match (self.steps, other.steps) {
            (0, n) | (n, 0) => n,
            (a, b) => a.min(b),
        };
        self.ops += other.ops;
    }

    /// What bars compare: time where it was measured, else bytes.
    pub fn weight(&self, timed: bool) -> f64 {
        if timed { self.nanos } else { self.bytes() as f64 }
    }
}

/// Consecutive ops of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Block.
    pub block: String,
    /// Places of its ops in the plan.
    pub ops: Range<usize>,
    /// Their costs.
    pub costs: Costs,
}

/// A layer, or a block outside of layers.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Layer.
    pub layer: Option<u32>,
    /// Its blocks, in [`Digest::runs`].
    pub runs: Range<usize>,
    /// Their costs.
    pub costs: Costs,
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Digest {
    /// Parts in order.
    pub parts: Vec<Part>,
    /// Blocks in order.
    pub runs: Vec<Run>,
    /// Everything.
    pub total: Costs,
    /// Largest [`Costs::weight`] of a part.
    pub largest: f64,
    /// Whether ops were timed.
    pub timed: bool,
}

impl Digest {
    /// Adds a plan up.
    pub fn new(plan: &PlanView) -> Self {
        let mut out = Self::default();
        for (i, op) in plan.ops.iter().enumerate() {
            let costs = Costs::of(op);
            out.total.add(&costs);
            let before = i.checked_sub(1).and_then(|b| plan.ops.get(b));
            let same_layer = before.is_some_and(|b| b.layer == op.layer);
            let same_block = same_layer && before.is_some_and(|b| b.block == op.block);
            // Outside of layers every block is a part of its own.
            let same_part = same_layer && (op.layer.is_some() || same_block);
            match out.parts.last_mut().filter(|_| same_part) {
                Some(part) => {
                    part.costs.add(&costs);
                    part.runs.end += usize::from(!same_block);
                }
                None => {
                    let at = out.runs.len();
                    out.parts.push(Part {
                        layer: op.layer,
                        runs: at..at + 1,
                        costs,
                    });
                }
            }
            match out.runs.last_mut().filter(|_| same_block) {
                Some(run) => {
                    run.ops.end = i + 1;
                    run.costs.add(&costs);
                }
                None => out.runs.push(Run {
                    block: op.block.clone(),
                    ops: i..i + 1,
                    costs,
                }),
            }
        }
        out.timed = out.total.steps > 0;
        out.largest = out.parts.iter().map(|p| p.costs.weight(out.timed)).fold(0.0, f64::max);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::OpTimeView;

    fn op(layer: Option<u32>, block: &str, flops: u64, time: Option<u32>) -> OpView {
        OpView {
            id: 0,
            layer,
            block: block.into(),
            name: "op".into(),
            kind: "mat_mul".into(),
            flops,
            weight_bytes: 10,
            cache_bytes: 2,
            activation_bytes: 1,
            fused_with: 1,
            inputs: Vec::new(),
            time: time.map(|steps| OpTimeView { nanos: 100.0, steps }),
        }
    }

    fn plan(ops: Vec<OpView>) -> PlanView {
        PlanView {
            hash: String::new(),
            phase: "decode".into(),
            tokens: 1,
            context: 0,
            ops,
        }
    }

    #[test]
    fn ops_are_added_up_by_layer_and_block() {
        let ops = vec![
            op(None, "embedding", 1, None),
            op(Some(0), "attention", 2, Some(9)),
            op(Some(0), "attention", 4, Some(8)),
            op(Some(0), "ffn", 8, None),
            op(Some(1), "attention", 16, None),
            op(None, "head", 32, None),
            op(None, "head", 64, None),
            op(None, "sampler", 128, None),
        ];
        let d = Digest::new(&plan(ops));
        let parts: Vec<_> = d
            .parts
            .iter()
            .map(|p| (p.layer, p.runs.clone(), p.costs.flops))
            .collect();
        assert_eq!(
            parts,
            [
                (None, 0..1, 1),
                (Some(0), 1..3, 14),
                (Some(1), 3..4, 16),
                (None, 4..5, 96),
                (None, 5..6, 128)
            ]
        );
        let runs: Vec<_> = d.runs.iter().map(|r| (r.block.as_str(), r.ops.clone())).collect();
        assert_eq!(
            runs,
            [
                ("embedding", 0..1),
                ("attention", 1..3),
                ("ffn", 3..4),
                ("attention", 4..5),
                ("head", 5..7),
                ("sampler", 7..8)
            ]
        );
        assert_eq!((d.total.flops, d.total.bytes(), d.total.ops), (255, 8 * 13, 8));
        assert_eq!(
            (d.total.nanos, d.total.steps, d.timed, d.largest),
            (200.0, 8, true, 200.0)
        );
    }

    #[test]
    fn without_times_bytes_are_compared() {
        let d = Digest::new(&plan(vec![op(Some(0), "ffn", 1, None), op(Some(0), "ffn", 1, None)]));
        assert!(!d.timed);
        assert_eq!(d.largest, 26.0);
        assert_eq!(Digest::new(&plan(vec![])), Digest::default());
    }
}
