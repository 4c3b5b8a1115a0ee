//! Going back in a text: the steps that were taken, and taking them again as they were.

use kernels::ir::StepOutput;

use super::{Cancel, Draw, Observer, Session};
use crate::error::EngineError;

/// A step that a session took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Position of its first token.
    pub first: u64,
    /// Its tokens.
    pub tokens: u32,
    /// By kernels for several sequences ([`Session::step_together`]), which add up in another order.
    pub together: bool,
}

/// A step to be taken again.
pub(crate) struct Again {
    pub ids: Vec<u32>,
    pub together: bool,
}

impl Again {
    /// That step of a text, as far as the text goes.
    pub(super) fn of(taken: &Taken, text: &[u32]) -> Self {
        let end = (taken.first + u64::from(taken.tokens)).min(text.len() as u64);
        Self {
            ids: text
                .get(taken.first as usize..end as usize)
                .unwrap_or_default()
                .to_vec(),
            together: taken.together,
        }
    }
}

impl Session {
    /// Takes a step as it was taken before. With a `draw`, one that is not of several sessions. A state that was lost is made
    /// anew first.
    pub(crate) fn again(
        &mut self,
        again: &Again,
        draw: Option<Draw<'_>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        self.until_there(cancel, &mut |session| session.step_again(again, draw, cancel, observer))
    }

    /// The same, of a state that is there.
    pub(super) fn step_again(
        &mut self,
        again: &Again,
        draw: Option<Draw<'_>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        match (again.together, again.ids.as_slice()) {
            (true, &[token]) => self.step_as_one_of_several(token, cancel, observer),
            (_, ids) => self.step(ids, draw, cancel, observer),
        }
    }

    /// Goes back to the first `length` tokens: restores the nearest checkpoint before them and replays the rest with
    /// the recorded chunk schedule, so that what follows is bit for bit what a session that never went further does.
    pub fn truncate(&mut self, length: u64, cancel: &Cancel) -> Result<(), EngineError> {
        for again in self.rewind(length)? {
            self.again(&again, None, cancel, &mut ())?;
        }
        Ok(())
    }

    /// The first half of [`Session::truncate`]: restores the nearest checkpoint and returns the steps to take again, in order.
    pub(crate) fn rewind(&mut self, length: u64) -> Result<Vec<Again>, EngineError> {
        if length > self.position() {
            return Err(EngineError::Invalid(format!(
                "truncate: found {length}, accepted: 0 to {}",
                self.position()
            )));
        }
        let lost = self.state.is_lost();
        if length == self.position() && !lost {
            return Ok(Vec::new());
        }
        let tokens = self.tokens.clone();
        let schedule = self.schedule.clone();
        if lost {
            self.renew()?;
        }
        // At least the last token is replayed, so that the logits after it are there again.
        let start = if length == 0 || lost {
            0
        } else if self.rings {
            self.snapshots
                .iter()
                .map(|s| s.position)
                .filter(|&p| p < length)
                .max()
                .unwrap_or(0)
        } else {
            schedule
                .iter()
                .map(|taken| taken.first)
                .filter(|&p| p < length)
                .max()
                .unwrap_or(0)
        };
        if self.rings
            && start > 0
            && let Some(s) = self.snapshots.iter().find(|s| s.position == start)
        {
            self.state.restore(s)?;
        }
        self.snapshots.retain(|s| s.position <= start);
        self.tokens.truncate(start as usize);
        self.schedule.retain(|taken| taken.first < start);
        self.out = StepOutput::default();
        let again = schedule.iter().filter(|t| t.first >= start && t.first < length);
        Ok(again
            .map(|taken| Again::of(taken, &tokens[..length as usize]))
            .collect())
    }
}
