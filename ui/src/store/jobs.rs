//! Long jobs of the host.

use protocol::{JobId, JobKind, JobState, JobView};

/// Most finished jobs kept.
const KEPT: usize = 32;

/// All jobs this client heard of, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Jobs {
    list: Vec<JobView>,
}

impl Jobs {
    pub(super) fn update(&mut self, changed: Vec<JobView>) {
        for job in changed {
            match self.list.iter_mut().find(|j| j.id == job.id) {
                Some(j) => *j = job,
                None => self.list.push(job),
            }
        }
        while self.list.len() > KEPT {
            let Some(i) = self.list.iter().position(ended) else {
                break;
            };
            self.list.remove(i);
        }
    }

    /// A job by number.
    pub fn get(&self, id: JobId) -> Option<&JobView> {
        self.list.iter().find(|j| j.id == id)
    }

    /// Jobs that wait or run.
    pub fn running(&self) -> impl Iterator<Item = &JobView> {
        self.list.iter().filter(|j| !ended(j))
    }

    /// The newest job of a kind.
    pub fn latest(&self, kind: &JobKind) -> Option<&JobView> {
        self.list.iter().rev().find(|j| j.kind == *kind)
    }
}

fn ended(job: &JobView) -> bool {
    matches!(job.state, JobState::Done | JobState::Failed(_))
}
