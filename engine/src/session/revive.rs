//! After the process that held the state is gone: another state, and the text read into it.

use kernels::ir::{ExecError, StepOutput};

use super::{Again, Cancel, Session, Taken};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::memory::human;

const HINT: &str = "use a smaller --context or --kv-cache format, store weights as fp8 or fp4, end other programs on the \
                    device, or use --device cpu";

impl Engine {
    /// A backend's error for people. Memory that ran out on the way is said as memory that was predicted is: what it was
    /// for, how much, how much there is.
    pub(super) fn explained(&self, e: ExecError) -> EngineError {
        let (what, bytes) = match e {
            ExecError::Cancelled => return EngineError::Cancelled,
            ExecError::OutOfMemory { what, bytes } => (what, bytes),
            e => return e.into(),
        };
        let unknown = || "an unknown amount".to_string();
        let there = self.backend.device_memory().ok().flatten();
        let free = there.map(|m| m.0).or_else(crate::memory::available);
        EngineError::Memory {
            what,
            needed: Some(bytes).filter(|b| *b > 0).map_or_else(unknown, human),
            available: free.map_or_else(unknown, human),
            hint: HINT.into(),
        }
    }
}

impl Session {
    /// A step's error for people.
    pub(super) fn explained(&self, e: ExecError) -> EngineError {
        self.engine.explained(e)
    }

    /// How often the text was read anew because the state was lost.
    pub fn revivals(&self) -> u64 {
        self.revivals
    }

    /// Makes a state that was lost anew: under the recipe in force the text is read in the chunks it was read in before,
    /// so that what follows is bit for bit what would have followed. Does nothing to a state that is there.
    ///
    /// # Errors
    /// The process cannot be started, or is not started any more because it ended too often; stopped. The session then
    /// holds as much of the text as was read.
    pub fn recover(&mut self, cancel: &Cancel) -> Result<(), EngineError> {
        if !self.state.is_lost() {
            return Ok(());
        }
        let (tokens, schedule, seq) = (
            std::mem::take(&mut self.tokens),
            std::mem::take(&mut self.schedule),
            self.seq,
        );
        loop {
            match self.read_again(&tokens, &schedule, cancel) {
                Err(EngineError::Exec(ExecError::Lost(_))) => {}
                other => {
                    self.seq = seq;
                    return other;
                }
            }
        }
    }

    fn read_again(&mut self, tokens: &[u32], schedule: &[Taken], cancel: &Cancel) -> Result<(), EngineError> {
        self.renew()?;
        for taken in schedule {
            self.step_again(&Again::of(taken, tokens), None, cancel, &mut ())?;
        }
        Ok(())
    }

    /// An empty state for the recipe in force.
    pub(super) fn renew(&mut self) -> Result<(), EngineError> {
        self.tokens.clear();
        self.schedule.clear();
        self.snapshots.clear();
        self.out = StepOutput::default();
        let caches = self.engine.caches(&self.recipe);
        let state = self.engine.backend.new_state(&caches, 0);
        self.state = state.map_err(|e| self.explained(e))?;
        self.revivals += 1;
        Ok(())
    }
}
