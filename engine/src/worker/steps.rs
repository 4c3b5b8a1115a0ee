//! Steps, from this end: of one state, or one of each of several.

use std::sync::atomic::Ordering;

use kernels::ir::{ExecError, Plan, State, StepOutput, StepRequest, WeightSource, check_batch};

use super::frames::{Answer, Call, RanAnswer, RunCall};
use super::process::Process;
use super::remote::{Inner, Remote, astray};
use super::state::RemoteState;

fn own(state: &mut dyn State) -> Result<&mut RemoteState, ExecError> {
    let foreign = || ExecError::Mismatch {
        what: "state",
        detail: "made by another backend".into(),
    };
    state.as_any_mut().downcast_mut().ok_or_else(foreign)
}

impl Remote {
    /// As [`kernels::ir::Backend::run`].
    pub(super) fn step(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let state = own(state)?;
        request.go_on()?;
        let mut inner = self.inner();
        self.holds(&mut inner, state)?;
        let (run, kept) = self.told(&mut inner, plan, weights, state, request)?;
        let number = run.number;
        let call = Call::Run(Box::new(run));
        let Answer::Ran(ran) = self.ask_for(&mut inner, &call, number, std::slice::from_ref(request))? else {
            return Err(astray());
        };
        state.history = kept;
        self.heard(&mut inner, state, request, *ran, out);
        Ok(())
    }

    /// As [`kernels::ir::Backend::run_batch`]: one question, however many there are.
    pub(super) fn steps(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        states: &mut [&mut dyn State],
        requests: &[StepRequest<'_>],
        outs: &mut [StepOutput],
    ) -> Result<Option<String>, ExecError> {
        check_batch(states.len(), requests, outs.len())?;
        let own = states.iter_mut().map(|s| own(*s));
        let mut own = own.collect::<Result<Vec<_>, _>>()?;
        requests.iter().try_for_each(StepRequest::go_on)?;
        let mut inner = self.inner();
        for state in &own {
            self.holds(&mut inner, state)?;
        }
        let (mut runs, mut kept) = (Vec::new(), Vec::new());
        for (state, request) in own.iter_mut().zip(requests) {
            let (run, history) = self.told(&mut inner, plan, weights, state, request)?;
            runs.push(run);
            kept.push(history);
        }
        let number = runs[0].number;
        let answer = self.ask_for(&mut inner, &Call::RunTogether(runs), number, requests)?;
        let Answer::RanTogether(ran, apart) = answer else {
            return Err(astray());
        };
        if ran.len() != own.len() {
            return Err(astray());
        }
        let each = own.iter_mut().zip(kept).zip(requests);
        for (((state, kept), request), (ran, out)) in each.zip(ran.into_iter().zip(outs)) {
            state.history = kept;
            self.heard(&mut inner, state, request, ran, out);
        }
        Ok(apart)
    }

    /// Fails where the process that held a state is gone.
    fn holds(&self, inner: &mut Inner, state: &RemoteState) -> Result<(), ExecError> {
        self.bury(inner);
        if inner.process.is_none() || inner.generation != state.generation {
            return Err(self.lost(&inner.ended));
        }
        Ok(())
    }

    /// What the process is told of a step, and the tokens of its history that it holds already. Until it answers it is not known
    /// what it holds: the state's history is empty, and all of it would be told anew.
    fn told(
        &self,
        inner: &mut Inner,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut RemoteState,
        request: &StepRequest<'_>,
    ) -> Result<(RunCall, Vec<u32>), ExecError> {
        let plan = state.plan(inner, plan, weights)?;
        let mut kept = std::mem::take(&mut state.history);
        let same = kept.iter().zip(request.history).take_while(|(a, b)| a == b).count();
        kept.truncate(same);
        inner.runs += 1;
        let run = RunCall {
            number: inner.runs,
            state: state.number,
            plan,
            step: request.step,
            ids: request.ids.to_vec(),
            kept: same as u64,
            more: request.history[same..].to_vec(),
            sampler: request.sampler.copied(),
            trace: request.trace,
            ahead: request.ahead,
        };
        Ok((run, kept))
    }

    /// Asks for steps, and passes on that they are to stop.
    fn ask_for(
        &self,
        inner: &mut Inner,
        call: &Call,
        number: u64,
        requests: &[StepRequest<'_>],
    ) -> Result<Answer, ExecError> {
        let mut stopped = false;
        let mut look = |process: &Process| {
            if !stopped && requests.iter().any(|r| r.go_on().is_err()) {
                stopped = true;
                process.stop(number);
            }
        };
        self.ask_patiently(inner, call, &mut |_, _| {}, &mut look)
    }

    /// Takes over what a step gave; the state's history is what was kept of it.
    fn heard(
        &self,
        inner: &mut Inner,
        state: &mut RemoteState,
        request: &StepRequest<'_>,
        ran: RanAnswer,
        out: &mut StepOutput,
    ) {
        let new = &request.history[state.history.len()..];
        state.history.extend_from_slice(new);
        if let Some(a) = ran.allocated {
            state.allocated = a;
        }
        if let Some(bytes) = ran.resident {
            self.0.resident.store(bytes, Ordering::Relaxed);
        }
        if ran.sampled.is_some() {
            inner.ends.clear();
            inner.restarted = 0;
        }
        out.logits = ran.logits;
        out.sampled = ran.sampled;
        out.probes = ran.probes.into_iter().map(|(n, w, v)| (n, w as usize, v)).collect();
        out.layers = ran.layers;
        out.times = ran.times;
        out.ahead_nanos = ran.ahead_nanos;
    }
}
