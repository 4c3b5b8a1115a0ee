//! Several texts behind one: the text is read once, the other sessions begin with a copy of what it left.

use kernels::cpu::sample::sample;
use kernels::ir::{ExecError, SamplerParams, StepOutput, StepParams};

use super::{Cancel, Session};
use crate::error::EngineError;
use crate::lower::Lowering;

impl Session {
    /// Another session that holds the same text, under the same recipe: what follows there is bit for bit what would follow
    /// here. A state that was lost is made anew first.
    ///
    /// # Errors
    /// There is no memory for another cache, or the device failed; this session holds what it held.
    pub fn fork(&mut self, cancel: &Cancel) -> Result<Self, EngineError> {
        self.room_for_texts(2, self.position())?;
        self.until_there(cancel, &mut |session| session.copy())
    }

    fn copy(&mut self) -> Result<Self, EngineError> {
        let state = self.state.fork(self.position()).map_err(|e| self.explained(e))?;
        Ok(Self {
            engine: self.engine.clone(),
            recipe: self.recipe.clone(),
            weights: self.weights.clone(),
            lowering: Lowering::new(self.engine.family.clone(), state.caches()),
            state,
            tokens: self.tokens.clone(),
            schedule: self.schedule.clone(),
            snapshots: self.snapshots.clone(),
            options: self.options.clone(),
            capacity: self.capacity,
            out: self.out.clone(),
            seq: self.seq,
            rings: self.rings,
            revivals: 0,
        })
    }

    /// Draws the token behind the text from the logits that the last step left, where that drew none: the token that it would
    /// have drawn with this sampler.
    pub(crate) fn draw(&mut self, sampler: &SamplerParams) -> Result<(), EngineError> {
        let StepOutput { logits, sampled, .. } = &mut self.out;
        let (Some(last), Some(at)) = (
            self.schedule.last(),
            logits.len().checked_sub(self.engine.facts().vocab),
        ) else {
            return Err(EngineError::Invalid("there are no logits to draw from".into()));
        };
        let counter = StepParams::new(last.first, last.tokens as usize).rng_counter;
        let drawn = sample(&logits[at..], sampler, &self.tokens, counter);
        *sampled = Some(drawn.map_err(|e| ExecError::Sample(e.to_string()))?);
        Ok(())
    }
}
