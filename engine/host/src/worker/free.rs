//! Letting two recipes write, each in a session of its own.

use engine::compare::{Current, FreeJob, Written, free_empty, free_run};
use engine::{Cancel, Watch};
use protocol::{ErrorInfo, FreeSpec, JobId, JobState};

use super::{Worker, said};

impl Worker {
    /// Lets both sides write; what they have written stays when it is stopped.
    pub(super) fn free(&mut self, job: JobId, cancel: &Cancel, spec: &FreeSpec) {
        self.long_job(job, cancel, "A free run", |worker| worker.free_now(job, cancel, spec));
    }

    fn free_now(&mut self, job: JobId, cancel: &Cancel, spec: &FreeSpec) -> Result<(), ErrorInfo> {
        let loaded = self.loaded()?;
        let engine = loaded.engine.clone();
        let ids = self.compared(loaded, &spec.prompt)?;
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
