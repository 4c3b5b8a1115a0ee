//! Measuring many recipes, each in sessions of its own.

use engine::Watch;
use engine::compare::Current;
use engine::compare::sweep::{Event, SweepJob};
use protocol::{ErrorInfo, JobId, JobState, SweepSpec};

use super::{Worker, said};

impl Worker {
    /// Runs a sweep; what it has measured stays when it is stopped.
    pub(super) fn sweep(&mut self, job: JobId, cancel: &engine::Cancel, spec: &SweepSpec) {
        self.long_job(job, cancel, "A sweep", |worker| worker.sweep_now(job, cancel, spec));
    }

    fn sweep_now(&mut self, job: JobId, cancel: &engine::Cancel, spec: &SweepSpec) -> Result<(), ErrorInfo> {
        let loaded = self.loaded()?;
        let engine = loaded.engine.clone();
        let ids = self.compared(loaded, &spec.text)?;
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
