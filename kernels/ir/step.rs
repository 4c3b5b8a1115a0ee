//! What changes from step to step. Everything else is fixed in the plan.

use serde::{Deserialize, Serialize};

/// The one record a backend reads at run time. All row counts and ring slots follow from it, so a
/// decode loop never lowers again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepParams {
    /// Absolute position of the first token of the step (0-based).
    pub position: u64,
    /// Number of tokens in the step (at least 1).
    pub tokens: u32,
    /// Counter for the random number generator: the position of the token to be drawn.
    pub rng_counter: u64,
}

impl StepParams {
    /// Parameters of a step of `tokens` tokens starting at `position`.
    pub fn new(position: u64, tokens: usize) -> Self {
        let tokens = tokens as u32;
        Self {
            position,
            tokens,
            rng_counter: position + u64::from(tokens),
        }
    }

    /// Tokens in the context after this step.
    pub fn context(&self) -> u64 {
        self.position + u64::from(self.tokens)
    }

    /// Compressed rows of rate `rate` visible to the query at `position + token`:
    /// row j is visible iff (t + 1) div rate > j (MODEL1.md 2.8).
    pub fn rows_visible(&self, rate: usize, token: usize) -> usize {
        ((self.position + token as u64 + 1) / rate as u64) as usize
    }

    /// Index of the first row of rate `rate` that closes in this step.
    pub fn first_closed(&self, rate: usize) -> usize {
        (self.position / rate as u64) as usize
    }

    /// How many rows of rate `rate` close in this step.
    pub fn closed(&self, rate: usize) -> usize {
        (self.context() / rate as u64) as usize - self.first_closed(rate)
    }

    /// Slot of the step's token `token` in a ring of `capacity` rows.
    pub fn ring_slot(&self, capacity: usize, token: usize) -> usize {
        ((self.position + token as u64) % capacity as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_the_worked_example() {
        // MODEL1.md 2.12: CSA rate 4, HCA rate 16.
        let at = |t| StepParams::new(t, 1);
        assert_eq!(at(9).rows_visible(4, 0), 2);
        assert_eq!(at(11).rows_visible(4, 0), 3);
        assert_eq!(at(11).closed(4), 1);
        assert_eq!(at(10).closed(4), 0);
        assert_eq!(at(15).rows_visible(16, 0), 1);
        assert_eq!(at(16).ring_slot(8, 0), 0);
        assert_eq!(StepParams::new(3, 10).closed(4), 3);
        assert_eq!(StepParams::new(3, 10).first_closed(4), 0);
    }
}
