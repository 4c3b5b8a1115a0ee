//! Measuring many recipes, each in sessions of its own.

use engine::compare::Current;
use engine::compare::sweep::{Event, SweepJob};
use engine::{EngineError, Watch};
use protocol::{CompareText, ErrorInfo, JobId, JobState, SweepSpec};

use super::Worker;
use crate::errors::{cancelled, of_engine};

fn said<T>(result: Result<T, EngineError>) -> Result<T, ErrorInfo> {
    result.map_err(|e| of_engine(&e))
}

impl Worker {
    /// Runs a sweep; what it has measured stays when it is stopped.
    pub(super) fn sweep(&mut self, job: JobId, cancel: &engine::Cancel, spec: &SweepSpec) {
        if cancel.is_cancelled() {
            self.end_job(job, Err(cancelled()));
            return;
        }
        self.busy = "A sweep";
        let result = self.sweep_now(job, cancel, spec);
        self.busy = "";
        self.end_job(job, result);
        self.between();
    }

    fn sweep_now(&mut self, job: JobId, cancel: &engine::Cancel, spec: &SweepSpec) -> Result<(), ErrorInfo> {
        let loaded = self.loaded()?;
        let engine = loaded.engine.clone();
        let ids = match spec.text {
            CompareText::Current => self.shown(loaded)?.0,
            CompareText::Given(_) | CompareText::Builtin => Vec::new(),
        };
        let current = Current {
            recipe: loaded.session.recipe(),
            ids: &ids,
        };
        let mut sweep = said(SweepJob::resolve(&engine, spec, Some(current)))?;
        sweep.model = loaded.model.name.clone();
        self.hub.with(|inner| {
            inner.sweeps.begin(job, &mut sweep);
            inner.jobs.change(job, |j| j.state = JobState::Running);
            inner.jobs.detach(job, true);
        });
        let hub = self.hub.clone();
        let mut tell = |event: Event<'_>| {
            hub.with(|inner| inner.sweeps.event(job, &event));
            Ok(())
        };
        let hub = self.hub.clone();
        let mut progress = |done, total| {
            hub.with(|inner| inner.jobs.change(job, |j| (j.done, j.total) = (done, total)));
            self.between();
        };
        let mut watch = Watch {
            cancel,
            progress: &mut progress,
        };
        let found = said(sweep.run(&mut watch, &mut tell))?;
        if spec.budget.is_some() {
            self.hub
                .with(|inner| inner.sweeps.picked(job, found.recommended.as_ref()));
        }
        Ok(())
    }
}
