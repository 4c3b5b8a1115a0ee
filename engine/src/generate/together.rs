//! Several texts written at once.

use super::{Finish, Generation, Step};
use crate::error::EngineError;
use crate::session::{Part, Session};

impl Generation {
    /// [`Generation::step`] of several generations whose sessions are of one engine and recipe: those that go on are taken a token
    /// further by [`Session::step_together`]. A step that is stopped by the cancellation of the first one that goes on ends all of
    /// them.
    ///
    /// # Errors
    /// As [`Generation::step`] and [`Session::step_together`]; what was produced stays.
    pub fn step_together(runs: &mut [(Generation, Session)]) -> Result<Vec<Step>, EngineError> {
        let mut steps: Vec<Option<Step>> = Vec::with_capacity(runs.len());
        for (run, session) in runs.iter_mut() {
            steps.push(run.ready(session)?.map(Step::End));
        }
        let mut records = vec![None; runs.len()];
        let (mut parts, mut numbers, mut cancel) = (Vec::new(), Vec::new(), None);
        for (i, (run, session)) in runs.iter_mut().enumerate() {
            if steps[i].is_some() || run.drawn {
                continue;
            }
            cancel.get_or_insert(run.options.cancel.clone());
            numbers.push(i);
            parts.push(Part {
                token: run.tokens.last().copied().unwrap_or_default(),
                sampler: Some(&run.sampler),
                session,
            });
        }
        if let Some(cancel) = cancel {
            let fed = Session::step_together(&mut parts, &cancel, &mut |part, record, _| {
                records[numbers[part]] = Some(record.clone());
            });
            drop(parts);
            let stopped = matches!(fed, Err(EngineError::Cancelled));
            if !stopped {
                fed?;
            }
            for &i in &numbers {
                let (run, session) = &mut runs[i];
                if stopped && session.position() == run.position {
                    run.end = Some(Finish::Cancelled);
                    steps[i] = Some(Step::End(Finish::Cancelled));
                } else {
                    run.fed(session);
                }
            }
        }
        let each = runs.iter_mut().zip(steps).zip(records);
        each.map(|(((run, session), step), record)| match step {
            Some(end) => Ok(end),
            None => {
                run.drawn = false;
                run.take(session, record).map(Step::Token)
            }
        })
        .collect()
    }
}
