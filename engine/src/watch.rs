//! How long computations report progress and are stopped.

use crate::error::EngineError;
use crate::session::Cancel;

/// Told how far a long computation is, and asked whether to go on.
pub struct Watch<'a> {
    /// Stops the computation at its next step.
    pub cancel: &'a Cancel,
    /// (done, total) in tokens processed.
    pub progress: &'a mut dyn FnMut(u64, u64),
}

impl Watch<'_> {
    /// Reports progress.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] if stopping was asked for.
    pub fn report(&mut self, done: u64, total: u64) -> Result<(), EngineError> {
        (self.progress)(done, total);
        if self.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        Ok(())
    }
}
