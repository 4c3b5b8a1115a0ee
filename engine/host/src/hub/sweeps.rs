//! Sweeps as clients see them, and what they measured, for the next one.

use std::collections::{BTreeMap, VecDeque};

use engine::compare::sweep::{Candidate, Event, Recommended, SweepJob};
use protocol::{JobId, SweepCell, SweepGroup, SweepPick, SweepRefusal, SweepRow, SweepState, SweepView};

/// Sweeps that are remembered.
const KEPT: usize = 4;
/// Sets of measured rows (one per model, A and text) that are remembered.
const SETS: usize = 8;

/// One sweep. Cells carry the revision of their last change.
pub(crate) struct SweepLog {
    job: JobId,
    head: SweepView,
    /// A as JSON, to make recipes of cells from their edits.
    a: String,
    key: String,
    cells: Vec<(u64, SweepCell)>,
    by_hash: BTreeMap<String, usize>,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Sweeps {
    list: VecDeque<SweepLog>,
    /// Measured rows by [`SweepJob::key`], the newest set last.
    known: Vec<(String, BTreeMap<String, SweepRow>)>,
}

impl Sweeps {
    /// Begins a sweep. What earlier ones measured under the same conditions is handed to it.
    pub fn begin(&mut self, id: JobId, job: &mut SweepJob) {
        let key = job.key();
        if let Some(at) = self.known.iter().position(|(k, _)| *k == key) {
            let set = self.known.remove(at);
            job.know(set.1.values().cloned());
            self.known.push(set);
        } else {
            self.known.push((key.clone(), BTreeMap::new()));
            self.known.drain(..self.known.len().saturating_sub(SETS));
        }
        self.list.push_back(SweepLog::new(id, key, job));
        if self.list.len() > KEPT {
            self.list.pop_front();
        }
    }

    pub fn get(&self, id: JobId) -> Option<&SweepLog> {
        self.list.iter().find(|s| s.job == id)
    }

    /// Takes in what happened.
    pub fn event(&mut self, id: JobId, event: &Event<'_>) {
        let Some(log) = self.list.iter_mut().find(|s| s.job == id) else {
            return;
        };
        log.event(event);
        if let Event::Row(row) = event
            && let Some((_, rows)) = self.known.iter_mut().find(|(k, _)| *k == log.key)
        {
            rows.insert(row.hash.clone(), (*row).clone());
        }
    }

    /// Takes in the recommendation; `None` = there is none.
    pub fn picked(&mut self, id: JobId, found: Option<&Recommended>) {
        let Some(log) = self.list.iter_mut().find(|s| s.job == id) else {
            return;
        };
        log.head.revision += 1;
        let Some(found) = found else {
            log.head.pick = SweepPick::Nothing;
            return;
        };
        // What an earlier sweep had tried was not read again, and nothing was heard of it.
        for row in found.tried.iter().chain([&found.row]) {
            if !log.by_hash.contains_key(&row.hash) {
                log.add(SweepCell {
                    group: SweepGroup::Tried,
                    name: row.name.clone(),
                    edits: row.edits.clone(),
                    hash: row.hash.clone(),
                    state: SweepState::Done {
                        row: Box::new(row.clone()),
                        known: true,
                    },
                });
            }
        }
        let cell = log.by_hash.get(&found.row.hash);
        log.head.pick = cell.map_or(SweepPick::Nothing, |i| SweepPick::Cell(*i as u32));
    }
}

impl SweepLog {
    fn new(job: JobId, key: String, sweep: &SweepJob) -> Self {
        let refused = sweep.refused().iter();
        let head = SweepView {
            revision: 1,
            spec: sweep.spec.clone(),
            model: sweep.model.clone(),
            device: sweep.sweep().engine().backend().describe(),
            reference: sweep.reference(),
            a: sweep.sweep().a().hash(),
            positions: sweep.sweep().ids().len() as u64,
            total: 0,
            cells: Vec::new(),
            refused: refused
                .map(|r| SweepRefusal {
                    edits: r.edits.clone(),
                    reason: r.reason.clone(),
                })
                .collect(),
            pick: SweepPick::None,
            command: sweep.command(),
            notes: sweep.sweep().notes().to_vec(),
        };
        let mut log = Self {
            job,
            head,
            a: serde_json::to_string(sweep.sweep().a()).unwrap_or_default(),
            key,
            cells: Vec::new(),
            by_hash: BTreeMap::new(),
        };
        for (group, candidate) in sweep.all() {
            let state = match sweep.sweep().row(candidate) {
                Some(row) => SweepState::Done {
                    row: Box::new(row.clone()),
                    known: true,
                },
                None => SweepState::Waiting,
            };
            log.add(cell(*group, candidate, state));
        }
        log
    }

    fn add(&mut self, cell: SweepCell) {
        // A recipe that is here twice is measured once; both cells show it.
        self.by_hash.entry(cell.hash.clone()).or_insert(self.cells.len());
        self.cells.push((self.head.revision, cell));
    }

    fn event(&mut self, event: &Event<'_>) {
        self.head.revision += 1;
        let (hash, state) = match event {
            Event::Reading {
                candidate,
                positions,
                kl_mean,
            } => {
                let hash = candidate.recipe.hash();
                if !self.by_hash.contains_key(&hash) {
                    self.add(cell(SweepGroup::Tried, candidate, SweepState::Waiting));
                }
                let state = SweepState::Reading {
                    positions: *positions,
                    kl_mean: *kl_mean,
                };
                (hash, state)
            }
            Event::Row(row) => {
                let state = SweepState::Done {
                    row: Box::new((*row).clone()),
                    known: false,
                };
                (row.hash.clone(), state)
            }
            Event::Failed { candidate, reason } => (candidate.recipe.hash(), SweepState::Failed((*reason).to_string())),
        };
        let revision = self.head.revision;
        for (changed, cell) in self.cells.iter_mut().filter(|(_, c)| c.hash == hash) {
            cell.state = state.clone();
            *changed = revision;
        }
    }

    /// As it stands, with the cells that changed after a revision.
    pub fn view(&self, since: u64) -> SweepView {
        let changed = self.cells.iter().enumerate().filter(|(_, (r, _))| *r > since);
        SweepView {
            total: self.cells.len() as u32,
            cells: changed.map(|(i, (_, c))| (i as u32, c.clone())).collect(),
            ..self.head.clone()
        }
    }

    /// A as JSON and the edits that turn it into a cell's recipe.
    pub fn recipe(&self, cell: u32) -> Option<(String, Vec<String>)> {
        let (_, cell) = self.cells.get(cell as usize)?;
        Some((self.a.clone(), cell.edits.clone()))
    }
}

fn cell(group: SweepGroup, candidate: &Candidate, state: SweepState) -> SweepCell {
    SweepCell {
        group,
        name: candidate.name.clone(),
        edits: candidate.edits.clone(),
        hash: candidate.recipe.hash(),
        state,
    }
}
