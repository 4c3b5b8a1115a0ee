//! Undo and redo of recipe, layout and selection.

use crate::layout::Layout;
use crate::selection::Spot;

/// Something that can be taken back.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// Recipes as JSON.
    Recipe { before: String, after: String },
    /// Where panels stand.
    Layout { before: Box<Layout>, after: Box<Layout> },
    /// What is locked.
    Selection { before: Spot, after: Spot },
}

impl Step {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Step::Recipe { .. } => "recipe",
            Step::Layout { .. } => "layout",
            Step::Selection { .. } => "selection",
        }
    }
}

/// Most steps kept.
const KEPT: usize = 200;
/// Selections that follow each other so quickly, in seconds, are one step.
const QUICK: f64 = 0.8;

#[derive(Clone, Debug, Default)]
pub(super) struct History {
    past: Vec<Step>,
    future: Vec<Step>,
    last: f64,
}

impl History {
    pub(super) fn push(&mut self, step: Step, now: f64) {
        self.future.clear();
        if let (Step::Selection { after, .. }, Some(Step::Selection { after: kept, .. })) =
            (&step, self.past.last_mut())
            && now - self.last < QUICK
        {
            *kept = *after;
            self.last = now;
            return;
        }
        self.last = now;
        self.past.push(step);
        if self.past.len() > KEPT {
            self.past.remove(0);
        }
    }

    /// The step to take back; it waits to be done again.
    pub(super) fn undo(&mut self) -> Option<Step> {
        let step = self.past.pop()?;
        self.future.push(step.clone());
        Some(step)
    }

    /// The step to do again.
    pub(super) fn redo(&mut self) -> Option<Step> {
        let step = self.future.pop()?;
        self.past.push(step.clone());
        Some(step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(token: u64) -> Step {
        Step::Selection {
            before: Spot::default(),
            after: Spot::token(token),
        }
    }

    #[test]
    fn quick_selections_are_one_step_and_a_new_step_ends_redoing() {
        let mut h = History::default();
        h.push(select(1), 0.0);
        h.push(select(2), 0.3);
        h.push(select(3), 5.0);
        assert_eq!(h.undo(), Some(select(3)));
        assert_eq!(h.undo(), Some(select(2)));
        assert_eq!(h.undo(), None);
        assert_eq!(h.redo(), Some(select(2)));
        h.push(select(9), 9.0);
        assert_eq!(h.redo(), None);
        assert_eq!(h.undo().map(|s| s.name()), Some("selection"));
    }
}
