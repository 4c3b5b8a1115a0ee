//! Long jobs and where they stand.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use engine::Cancel;
use protocol::{CompareResult, ErrorInfo, ErrorKind, JobId, JobKind, JobState, JobView};

/// Finished jobs that are remembered.
const KEPT: usize = 32;
/// Comparison results that are remembered; each may be megabytes.
const RESULTS: usize = 8;

struct Job {
    view: JobView,
    revision: u64,
    cancel: Cancel,
    /// Nobody waits for what runs: when it is cancelled it is over, whatever its thread still does.
    detached: bool,
}

/// All jobs of this run.
#[derive(Default)]
pub(crate) struct Jobs {
    all: BTreeMap<JobId, Job>,
    next: u64,
    revision: u64,
    results: VecDeque<(JobId, Arc<CompareResult>)>,
}

/// Whether nothing more will happen to it.
pub(crate) fn is_over(state: &JobState) -> bool {
    matches!(state, JobState::Done | JobState::Failed(_))
}

impl Jobs {
    /// A new job, queued.
    pub fn add(&mut self, kind: JobKind, what: &str, unit: &str) -> (JobId, Cancel) {
        self.next += 1;
        let id = JobId(self.next);
        let cancel = Cancel::default();
        let view = JobView {
            id,
            kind,
            what: what.to_string(),
            done: 0,
            total: 0,
            unit: unit.to_string(),
            state: JobState::Queued,
        };
        self.revision += 1;
        let revision = self.revision;
        let job = Job {
            view,
            revision,
            cancel: cancel.clone(),
            detached: false,
        };
        self.all.insert(id, job);
        let over: Vec<JobId> = self
            .all
            .values()
            .filter(|j| is_over(&j.view.state))
            .map(|j| j.view.id)
            .collect();
        for old in over.iter().take(over.len().saturating_sub(KEPT)) {
            self.all.remove(old);
        }
        (id, cancel)
    }

    /// Changes a job that is not over.
    pub fn change(&mut self, id: JobId, f: impl FnOnce(&mut JobView)) {
        if let Some(job) = self.all.get_mut(&id)
            && !is_over(&job.view.state)
        {
            f(&mut job.view);
            self.revision += 1;
            job.revision = self.revision;
        }
    }

    pub fn get(&self, id: JobId) -> Option<&JobView> {
        self.all.get(&id).map(|j| &j.view)
    }

    /// Lets a job be over as soon as it is cancelled, or not.
    pub fn detach(&mut self, id: JobId, detached: bool) {
        if let Some(job) = self.all.get_mut(&id) {
            job.detached = detached;
        }
    }

    /// Asks a job to stop; one that still waits, or that nobody waits for, ends here.
    ///
    /// # Errors
    /// A job that is unknown.
    pub fn cancel(&mut self, id: JobId) -> Result<(), ErrorInfo> {
        let Some(job) = self.all.get(&id) else {
            let what = format!("There is no job {}.", id.0);
            return Err(ErrorInfo::new(ErrorKind::Input, what).remedy("It may have ended long ago."));
        };
        job.cancel.cancel();
        if job.detached || job.view.state == JobState::Queued {
            self.change(id, |j| j.state = JobState::Failed(crate::errors::cancelled()));
        }
        Ok(())
    }

    /// Ends what runs with an error.
    pub fn fail_running(&mut self, error: &ErrorInfo) {
        let running = self.all.values().filter(|j| j.view.state == JobState::Running);
        let ids: Vec<JobId> = running.map(|j| j.view.id).collect();
        for id in ids {
            self.change(id, |j| j.state = JobState::Failed(error.clone()));
        }
    }

    /// Stops everything.
    pub fn cancel_all(&mut self) {
        let open: Vec<JobId> = self
            .all
            .values()
            .filter(|j| !is_over(&j.view.state))
            .map(|j| j.view.id)
            .collect();
        for id in open {
            // They are all known.
            let _ = self.cancel(id);
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Jobs changed after a revision, in order of their numbers.
    pub fn changed(&self, after: u64) -> Vec<JobView> {
        let changed = self.all.values().filter(|j| j.revision > after);
        changed.map(|j| j.view.clone()).collect()
    }

    /// Tells everybody anew about jobs that are not over.
    pub fn touch(&mut self) {
        for job in self.all.values_mut().filter(|j| !is_over(&j.view.state)) {
            self.revision += 1;
            job.revision = self.revision;
        }
    }

    /// The running job, for messages.
    pub fn running(&self) -> Option<&JobView> {
        self.all
            .values()
            .map(|j| &j.view)
            .find(|j| j.state == JobState::Running)
    }

    pub fn keep_result(&mut self, id: JobId, result: CompareResult) {
        self.results.push_back((id, Arc::new(result)));
        if self.results.len() > RESULTS {
            self.results.pop_front();
        }
    }

    pub fn result(&self, id: JobId) -> Option<Arc<CompareResult>> {
        self.results.iter().find(|(i, _)| *i == id).map(|(_, r)| r.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queued_job_ends_when_cancelled_and_stays_ended() {
        let mut jobs = Jobs::default();
        let (id, cancel) = jobs.add(JobKind::Load, "loading", "bytes");
        let seen = jobs.revision();
        jobs.cancel(id).unwrap();
        assert!(cancel.is_cancelled());
        assert!(matches!(&jobs.get(id).unwrap().state, JobState::Failed(e) if e.kind == ErrorKind::Cancelled));
        assert_eq!(jobs.changed(seen).len(), 1);
        let seen = jobs.revision();
        jobs.change(id, |j| j.state = JobState::Done);
        assert_eq!(jobs.changed(seen).len(), 0);
        assert!(jobs.cancel(JobId(99)).is_err());
    }

    #[test]
    fn old_jobs_are_forgotten_running_ones_are_not() {
        let mut jobs = Jobs::default();
        let (first, _) = jobs.add(JobKind::Compare, "comparing", "tokens");
        for _ in 0..100 {
            let (id, _) = jobs.add(JobKind::Compare, "comparing", "tokens");
            jobs.change(id, |j| j.state = JobState::Done);
        }
        assert!(jobs.get(first).is_some());
        assert!(jobs.all.len() <= KEPT + 2, "{}", jobs.all.len());
        let seen = jobs.revision();
        jobs.touch();
        assert_eq!(jobs.changed(seen).len(), 1);
    }
}
