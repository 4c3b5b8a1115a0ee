//! Letting two recipes write, each in a session of its own.

use engine::compare::{Current, FreeJob, Written, free_empty, free_run};
use engine::{Cancel, EngineError, Watch};
use protocol::{CompareText, ErrorInfo, FreeSpec, JobId, JobState};

use super::Worker;
use crate::errors::{cancelled, of_engine};

fn said<T>(result: Result<T, EngineError>) -> Result<T, ErrorInfo> {
    result.map_err(|e| of_engine(&e))
}

impl Worker {
    /// Lets both sides write; what they have written stays when it is stopped.
    pub(super) fn free(&mut self, job: JobId, cancel: &Cancel, spec: &FreeSpec) {
        if cancel.is_cancelled() {
            self.end_job(job, Err(cancelled()));
            return;
        }
        self.busy = "A free run";
        let result = self.free_now(job, cancel, spec);
        self.busy = "";
        self.end_job(job, result);
        self.between();
    }

    fn free_now(&mut self, job: JobId, cancel: &Cancel, spec: &FreeSpec) -> Result<(), ErrorInfo> {
        let loaded = self.loaded()?;
        let engine = loaded.engine.clone();
        let ids = match spec.prompt {
            CompareText::Current => self.shown(loaded)?.0,
            CompareText::Given(_) | CompareText::Builtin => Vec::new(),
        };
        let current = Current {
            recipe: loaded.session.recipe(),
            ids: &ids,
        };
        let mut resolved = said(FreeJob::resolve(&engine, spec, Some(current)))?;
        resolved.model = loaded.model.name.clone();
        self.hub.with(|inner| {
            inner.free_runs.begin(job, free_empty(&engine, &resolved));
            inner.jobs.change(job, |j| j.state = JobState::Running);
            inner.jobs.detach(job, true);
        });
        let hub = self.hub.clone();
        let mut tell = |event: Written<'_>| hub.with(|inner| inner.free_runs.event(job, event));
        let hub = self.hub.clone();
        let mut progress = |done, total| {
            hub.with(|inner| inner.jobs.change(job, |j| (j.done, j.total) = (done, total)));
            self.between();
        };
        let mut watch = Watch {
            cancel,
            progress: &mut progress,
        };
        let result = said(free_run(&engine, &resolved, &mut watch, &mut tell))?;
        self.hub.with(|inner| inner.free_runs.end(job, result));
        Ok(())
    }
}
