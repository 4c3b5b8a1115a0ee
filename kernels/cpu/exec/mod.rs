//! The CPU executor: runs a plan step by step, and is the oracle other backends are compared with.

mod attend;
mod mixing;
mod run;
mod score;
mod select;
mod skip;
mod sparse;
mod store;
mod workspace;

use std::sync::{Arc, Mutex};

use super::{Cpu, measure};
use crate::ir::{
    Backend, CacheDesc, ExecError, ExecStep, Op, Plan, State, StepOutput, StepRequest, WeightSource, fuse,
};
pub use score::rescore;
pub use store::{CpuState, row_format};
pub use workspace::Shared;

/// Plans whose fused form is kept.
const KEPT: usize = 32;

/// The fused form of a plan.
struct Fused {
    /// Hash and number of ops of the plan.
    plan: (u64, usize),
    steps: Arc<Vec<ExecStep>>,
}

/// The CPU backend.
pub struct CpuBackend {
    cpu: Cpu,
    /// The same without rounding activations to bf16.
    careful: Cpu,
    fused: Mutex<Vec<Fused>>,
}

impl CpuBackend {
    /// A backend on `threads` threads with the best instruction set the processor has.
    pub fn new(threads: usize) -> Self {
        Self::with(Cpu::new(threads))
    }

    /// A backend with explicit settings.
    pub fn with(cpu: Cpu) -> Self {
        let careful = Cpu {
            bf16_activations: false,
            ..cpu.clone()
        };
        Self {
            cpu,
            careful,
            fused: Mutex::new(Vec::new()),
        }
    }

    /// Its settings.
    pub fn cpu(&self) -> &Cpu {
        &self.cpu
    }

    /// The settings a plan runs with: where it chooses (experts, rows), activations keep their bits, since a rounding
    /// could change the choice.
    fn cpu_for(&self, plan: &Plan) -> &Cpu {
        let chooses = |op: &Op| matches!(op, Op::Route { .. } | Op::SelectTopK { .. } | Op::RoundTrip { .. });
        if plan.ops.iter().any(|o| chooses(&o.op)) {
            &self.careful
        } else {
            &self.cpu
        }
    }

    /// The executed steps of a plan: base ops grouped into fused ones.
    pub fn steps(&self, plan: &Plan) -> Arc<Vec<ExecStep>> {
        let key = (plan.hash, plan.ops.len());
        let mut kept = self.fused.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(f) = kept.iter().find(|f| f.plan == key) {
            return f.steps.clone();
        }
        let steps = Arc::new(fuse(plan));
        if kept.len() == KEPT {
            kept.remove(0);
        }
        kept.push(Fused {
            plan: key,
            steps: steps.clone(),
        });
        steps
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        "cpu"
    }

    fn describe(&self) -> String {
        self.cpu.describe()
    }

    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        Ok(Box::new(CpuState::new(caches, context)?))
    }

    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let Some(state) = state.as_any_mut().downcast_mut::<CpuState>() else {
            return Err(ExecError::Mismatch {
                what: "state",
                detail: "made by another backend".into(),
            });
        };
        state.check(plan)?;
        run::run(self, plan, weights, state, request, out)
    }

    fn read_bandwidth(&self) -> Result<Option<f64>, ExecError> {
        let bytes = measure::read_bytes();
        Ok(Some(measure::read_bandwidth(&self.cpu.pool, bytes)))
    }
}
