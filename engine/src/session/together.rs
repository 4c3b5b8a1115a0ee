//! One step of several sessions at once.

use std::sync::Arc;
use std::time::Instant;

use kernels::ir::{Backend, ExecError, Plan, SamplerParams, State, StepOutput, StepParams, StepRequest};
use protocol::StepRecord;

use super::{Cancel, Observer, Session};
use crate::error::EngineError;

/// A session's part of a step of several.
pub struct Part<'a> {
    /// The session.
    pub session: &'a mut Session,
    /// The token that it goes on with.
    pub token: u32,
    /// To draw the next one; `None`: the output holds the logits.
    pub sampler: Option<&'a SamplerParams>,
}

/// Hears of the steps: the part's number, its record, its output.
pub type EachStep<'a> = dyn FnMut(usize, &StepRecord, &StepOutput) + 'a;

impl Session {
    /// Takes each of several sessions of one engine and recipe one token further. A backend that can
    /// ([`Backend::run_batch`]: a GPU, up to [`Backend::batch`] at a time) does that in one step, in which every weight is
    /// read once for all of them. What a session gets depends on none of the others; from what [`Session::feed`] gives it, it may
    /// differ by rounding, since sums are taken in another order there.
    ///
    /// Returns why some were taken after others; `None` if all went together.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for sessions of different engines or recipes, or ids outside the vocabulary, and a context or
    /// memory that is full: nothing has changed then. A step that fails, or [`EngineError::Cancelled`]: sessions taken before
    /// it have their token, those of the step and behind it do not.
    pub fn step_together(
        parts: &mut [Part<'_>],
        cancel: &Cancel,
        observer: &mut EachStep<'_>,
    ) -> Result<Option<String>, EngineError> {
        let Some(first) = parts.first() else {
            return Err(EngineError::Invalid(
                "a step of no sessions: found 0, accepted: 1 or more".into(),
            ));
        };
        let engine = first.session.engine.clone();
        if let Some(i) = (1..parts.len()).find(|&i| !alike(parts[0].session, parts[i].session)) {
            return Err(EngineError::Invalid(format!(
                "a step of several sessions: found session {i} of another model or recipe than session 0, accepted: \
                 sessions of one engine and one recipe ({})",
                parts[0].session.recipe.hash()
            )));
        }
        for part in parts.iter_mut() {
            part.session.check_ids(&[part.token])?;
        }
        // A backend that takes one at a time says so itself.
        let most = Some(engine.backend.batch()).filter(|n| *n > 1).unwrap_or(usize::MAX);
        let mut why = None;
        let groups = groups(parts);
        if groups.len() > 1 {
            why = Some(format!(
                "{} lengths of context that have plans of their own",
                groups.len()
            ));
        }
        for group in &groups {
            if group.len() > most {
                why = Some(format!("{} sessions, at most {most} go together", group.len()));
            }
            for some in group.chunks(most) {
                let of_group = parts.iter_mut().enumerate().filter(|(i, _)| some.contains(i));
                let mut of_group: Vec<(usize, &mut Part<'_>)> = of_group.collect();
                let apart = together(&mut of_group, engine.backend.as_ref(), cancel, observer)?;
                why = apart.or(why);
            }
        }
        Ok(why)
    }

    /// The step that [`Session::step_together`] takes of a session alone: what it gets among others, bit for bit.
    pub(super) fn step_as_one_of_several(
        &mut self,
        token: u32,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        let engine = self.engine.clone();
        let mut part = Part {
            session: self,
            token,
            sampler: None,
        };
        let mut each = |_, record: &StepRecord, out: &StepOutput| observer.step(record, out);
        step(&mut [(0, &mut part)], engine.backend.as_ref(), cancel, &mut each).map(|_| ())
    }

    fn next_plan(&mut self) -> Arc<Plan> {
        self.plan(1, self.position())
    }
}

/// Whether two sessions are of one engine and compute the same. How they draw is another matter.
fn alike(a: &Session, b: &Session) -> bool {
    let (x, y) = (&a.recipe, &b.recipe);
    Arc::ptr_eq(&a.engine, &b.engine) && x.layers == y.layers && x.weights == y.weights
}

/// Numbers of the parts whose steps have the same plan over the same weights.
fn groups(parts: &mut [Part<'_>]) -> Vec<Vec<usize>> {
    let plans: Vec<Arc<Plan>> = parts.iter_mut().map(|p| p.session.next_plan()).collect();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (i, plan) in plans.iter().enumerate() {
        let alike = |g: &&mut Vec<usize>| {
            let other = &plans[g[0]];
            let key = |p: &Plan| (p.hash, p.context_bucket, p.all_logits);
            key(plan) == key(other) && parts[i].session.weights.same(&parts[g[0]].session.weights)
        };
        match groups.iter_mut().find(alike) {
            Some(group) => group.push(i),
            None => groups.push(vec![i]),
        }
    }
    groups
}

/// A step of parts that have the same plan. A state that was lost is made anew first.
fn together(
    parts: &mut [(usize, &mut Part<'_>)],
    backend: &dyn Backend,
    cancel: &Cancel,
    observer: &mut EachStep<'_>,
) -> Result<Option<String>, EngineError> {
    loop {
        for (_, part) in parts.iter_mut() {
            part.session.recover(cancel)?;
        }
        match step(parts, backend, cancel, observer) {
            // Ends: a process that is lost too often is not started again.
            Err(EngineError::Exec(ExecError::Lost(_))) => {}
            other => return other,
        }
    }
}

fn step(
    parts: &mut [(usize, &mut Part<'_>)],
    backend: &dyn Backend,
    cancel: &Cancel,
    observer: &mut EachStep<'_>,
) -> Result<Option<String>, EngineError> {
    if cancel.is_cancelled() {
        return Err(EngineError::Cancelled);
    }
    let start = Instant::now();
    let mut plan = None;
    for (_, part) in parts.iter_mut() {
        let s = &mut *part.session;
        let reserved = s.state.reserve(s.position() + 1);
        reserved.map_err(|e| s.explained(e))?;
        plan.get_or_insert(s.next_plan());
    }
    let Some(plan) = plan else { return Ok(None) };
    let steps: Vec<StepParams> = parts
        .iter()
        .map(|(_, p)| StepParams::new(p.session.position(), 1))
        .collect();
    for (_, part) in parts.iter_mut() {
        part.session.tokens.push(part.token);
    }
    let (mut states, mut requests, mut outs, mut weights) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for ((_, part), step) in parts.iter_mut().zip(&steps) {
        let Part {
            session,
            token,
            sampler,
        } = &mut **part;
        let Session {
            state,
            tokens,
            out,
            weights: own,
            options,
            ..
        } = &mut **session;
        let state: &mut dyn State = state.as_mut();
        states.push(state);
        outs.push(std::mem::take(out));
        weights.push(&*own);
        requests.push(StepRequest {
            step: *step,
            ids: std::slice::from_ref(token),
            history: tokens,
            sampler: *sampler,
            trace: options.trace,
            ahead: false,
            cancel: Some(cancel.flag()),
        });
    }
    let ran = backend.run_batch(&plan, weights[0], &mut states, &requests, &mut outs);
    for ((_, part), out) in parts.iter_mut().zip(outs) {
        part.session.out = out;
    }
    let apart = match ran {
        Ok(apart) => apart,
        Err(e) => {
            // The logs never hold tokens the caches do not.
            for ((_, part), step) in parts.iter_mut().zip(&steps) {
                part.session.tokens.truncate(step.position as usize);
            }
            return Err(match parts.first() {
                Some((_, part)) => part.session.explained(e),
                None => e.into(),
            });
        }
    };
    let nanos = start.elapsed().as_nanos() as u64;
    for ((i, part), step) in parts.iter_mut().zip(&steps) {
        let record = part.session.done(step, plan.hash, nanos, apart.is_none());
        observer(*i, &record, &part.session.out);
    }
    Ok(apart.filter(|_| steps.len() > 1))
}
