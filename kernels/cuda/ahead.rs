//! Run-ahead: the step after the one that was asked for is enqueued before the answer of that one is read, since the token
//! it reads lies on the device. `deliver` (`src/deliver.cu`) ends every step of one token: it writes the answer to memory of
//! the host and makes the step's records those of the step after it.
//!
//! A step that was begun and is not what is asked for next is forgotten. It wrote the row, or the slot of a ring, of its own
//! position, and rows that close there: the next step at that position, of one token or of many, writes all of them anew
//! before it reads them, and what a slot held before (the token one ring's length back) is read by no step from that
//! position on. Where no token could be drawn the step that follows is a repetition of the one before it.

use super::exec::Cuda;
use super::prepared::{PlanKey, Prepared, key};
use super::state::CudaState;
use crate::ir::{Op, Plan, SamplerParams, StepParams, StepRequest};

/// A step that was begun before it was asked for.
pub(super) struct Begun {
    key: PlanKey,
    step: StepParams,
    sampler: SamplerParams,
    /// The tokens penalties look at, its own last; empty where there are none. Without the token until that is known.
    history: Vec<u32>,
    token: u32,
    /// The mail its answer goes to.
    pub mail: usize,
    /// Number of its launch.
    pub launch: u64,
}

impl Begun {
    /// Whether it is what is asked for.
    pub fn is(&self, plan: &Plan, r: &StepRequest<'_>) -> bool {
        !r.trace
            && self.key == key(plan)
            && self.step == r.step
            && r.ids == [self.token]
            && r.sampler == Some(&self.sampler)
            && (!self.sampler.has_penalties() || self.history == r.history)
    }

    /// The token it reads was drawn.
    pub fn reads(mut self, token: u32) -> Self {
        self.token = token;
        if self.sampler.has_penalties() {
            self.history.push(token);
        }
        self
    }
}

impl Cuda {
    /// The step after `request`'s, if it can be run without the host: a recorded graph of one token that draws the next one
    /// here, nothing but counters to read back, and room for it in caches and plan.
    pub(super) fn next_step(
        &self,
        plan: &Plan,
        p: &Prepared,
        state: &CudaState,
        request: &StepRequest<'_>,
    ) -> Option<Begun> {
        let sampler = *request.sampler?;
        let asked = self.options.ahead && request.ahead && !request.trace;
        let draws = plan.ops.iter().any(|o| matches!(o.op, Op::Sample { .. }));
        let alone = !plan.ops.iter().any(|o| matches!(o.op, Op::Probe { .. }));
        let here = draws && alone && !plan.all_logits && sampler.logprobs == 0;
        let step = StepParams::new(request.step.position + 1, 1);
        let follows = request.step == StepParams::new(request.step.position, 1);
        if !(asked && here && follows && p.delivers() && p.graph.is_some() && state.has_room(step.context())) {
            return None;
        }
        let next = StepRequest { step, ..*request };
        super::input::check(plan, &next).ok()?;
        let history = if sampler.has_penalties() {
            request.history.to_vec()
        } else {
            Vec::new()
        };
        // The token is put behind it there.
        if sampler.has_penalties() && history.len() >= plan.context_bucket {
            return None;
        }
        Some(Begun {
            key: key(plan),
            step,
            sampler,
            history,
            token: 0,
            mail: 0,
            launch: 0,
        })
    }
}
