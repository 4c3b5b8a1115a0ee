//! Several texts written at once.

use super::{Finish, GenerateOptions, Generation, STRETCH, Step};
use crate::error::EngineError;
use crate::session::{Part, Session};

impl Generation {
    /// A text for each of `options` behind exactly these tokens, which are read here and once: the other sessions are forks of
    /// `session` ([`Session::fork`]). Each text is the one that [`Generation::begin`] would begin in a session of its own. If
    /// the cancellation of the first one stops the reading, that one is given back alone, and has ended.
    ///
    /// # Errors
    /// As [`Generation::begin`], before anything is read, and as a step. No text at all is asked for.
    pub fn begin_together(
        mut session: Session,
        ids: &[u32],
        options: Vec<GenerateOptions>,
    ) -> Result<Vec<(Generation, Session)>, EngineError> {
        let texts = options.len() as u64;
        let more = options.iter().map(|o| o.max_tokens.unwrap_or(STRETCH)).max();
        let begun = options.into_iter().map(|o| Self::begin(&mut session, ids, o));
        let mut begun = begun.collect::<Result<Vec<_>, _>>()?.into_iter();
        let Some(mut first) = begun.next() else {
            return Err(EngineError::Invalid("texts: found 0, accepted: 1 or more".into()));
        };
        let context = (ids.len() as u64).saturating_add(more.unwrap_or_default());
        session.room_for_texts(texts, context.min(session.capacity()))?;
        while first.end.is_none() && !first.queue.is_empty() {
            first.read_on(&mut session, false)?;
        }
        if first.end.is_some() {
            return Ok(vec![(first, session)]);
        }
        let cancel = first.options.cancel.clone();
        let others = begun.map(|mut run| {
            let mut fork = session.fork(&cancel)?;
            run.queue.clear();
            (run.done, run.total, run.position) = (first.done, first.total, first.position);
            (run.drawn, run.first, run.last) = (true, first.first, first.last);
            fork.draw(&run.sampler)?;
            Ok((run, fork))
        });
        let others = others.collect::<Result<Vec<_>, EngineError>>()?;
        session.draw(&first.sampler)?;
        let mut all = vec![(first, session)];
        all.extend(others);
        Ok(all)
    }

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
