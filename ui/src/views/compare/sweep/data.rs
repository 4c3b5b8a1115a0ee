//! A sweep as far as the host has told of it.

use protocol::{
    ErrorInfo, JobId, JobState, Reply, Request, SweepCell, SweepGroup, SweepPick, SweepRow, SweepState, SweepView,
};

use crate::store::Ticket;
use crate::views::Context;
use crate::widgets::plots::{Csv, field};

/// Least time between two questions about a sweep that runs, in seconds.
const AGAIN: f64 = 0.2;

/// What a recipe costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Price {
    /// Weight and cache bytes of one decode step (estimated by the plan).
    #[default]
    Bytes,
    /// Cache bytes at the end of the text (measured).
    Kv,
    /// Seconds per decoded token (measured).
    Time,
}

impl Price {
    /// The price of a row; less is better.
    pub fn of(self, row: &SweepRow) -> f64 {
        match self {
            Price::Bytes => row.step_bytes as f64,
            Price::Kv => row.kv as f64,
            Price::Time => 1e3 / row.decode_tokens_per_s,
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Data {
    job: Option<JobId>,
    head: Option<SweepView>,
    cells: Vec<SweepCell>,
    asked: Option<Ticket>,
    asked_at: f64,
    /// How far the job was when it was asked about last, and whether it was over.
    seen: Option<(u64, bool)>,
    /// Rises when cells change.
    pub revision: u64,
    /// The host could not tell.
    pub error: Option<ErrorInfo>,
}

impl Data {
    /// Asks for what is new, and takes it in.
    pub fn follow(&mut self, cx: &mut Context<'_>, job: JobId) {
        if self.job != Some(job) {
            *self = Self {
                job: Some(job),
                revision: self.revision + 1,
                ..Self::default()
            };
        }
        if let Some(outcome) = self.asked.and_then(|t| cx.outcome(t)) {
            self.asked = None;
            match outcome {
                Ok(Reply::Sweep(view)) => self.take(view),
                Ok(_) => {}
                Err(e) => self.error = Some(e.clone()),
            }
        }
        let Some(view) = cx.store.jobs.get(job) else { return };
        let over = matches!(view.state, JobState::Done | JobState::Failed(_));
        let now = (view.done, over);
        let due = over || cx.now - self.asked_at >= AGAIN;
        if self.asked.is_none() && view.state != JobState::Queued && self.seen != Some(now) && due {
            self.seen = Some(now);
            self.asked_at = cx.now;
            let since = self.head.as_ref().map_or(0, |h| h.revision);
            self.asked = Some(cx.call(Request::GetSweep { job, since }));
        }
    }

    fn take(&mut self, view: &SweepView) {
        self.error = None;
        self.revision += 1;
        for (i, cell) in &view.cells {
            let count = self.cells.len();
            match self.cells.get_mut(*i as usize) {
                Some(old) => *old = cell.clone(),
                None if *i as usize == count => self.cells.push(cell.clone()),
                None => {}
            }
        }
        self.head = Some(SweepView {
            cells: Vec::new(),
            ..view.clone()
        });
    }

    /// About the sweep; its cells are in [`Data::cells`].
    pub fn head(&self) -> Option<&SweepView> {
        self.head.as_ref()
    }

    /// Everything that is or will be measured.
    pub fn cells(&self) -> &[SweepCell] {
        &self.cells
    }

    /// Numbers of the cells of the table: A, combinations, what was tried.
    pub fn main(&self) -> impl Iterator<Item = usize> {
        let main = self
            .cells
            .iter()
            .enumerate()
            .filter(|(_, c)| c.group != SweepGroup::Single);
        main.map(|(i, _)| i)
    }

    /// The recommended cell.
    pub fn pick(&self) -> SweepPick {
        self.head.as_ref().map_or(SweepPick::None, |h| h.pick)
    }

    /// How many are measured, of how many.
    pub fn done(&self) -> (usize, usize) {
        (
            self.cells.iter().filter(|c| c.row().is_some()).count(),
            self.cells.len(),
        )
    }

    /// Which cells no other cell beats: cheaper or equal, with less or equal KL, and better in one of both.
    pub fn front(&self, price: Price) -> Vec<bool> {
        let at = |c: &SweepCell| c.row().map(|r| (price.of(r), r.kl.mean));
        let all: Vec<Option<(f64, f64)>> = self.cells.iter().map(at).collect();
        let beats = |a: (f64, f64), b: (f64, f64)| a.0 <= b.0 && a.1 <= b.1 && (a.0 < b.0 || a.1 < b.1);
        let best = |x: &Option<(f64, f64)>| x.is_some_and(|x| !all.iter().flatten().any(|o| beats(*o, x)));
        all.iter().map(best).collect()
    }
}

/// A cell in words: its preset's name, its edits, or A.
pub fn name(cell: &SweepCell) -> String {
    match (cell.name.is_empty(), cell.edits.is_empty()) {
        (true, true) => "A".into(),
        (true, false) => cell.edits.join(" "),
        (false, _) => format!("{} ({})", cell.name, cell.edits.join(" ")),
    }
}

/// The layer and the change of a cell that changes one place; the layer is `None` for slots of the whole model.
pub fn place(cell: &SweepCell) -> Option<(Option<u32>, String)> {
    let (selector, choice) = cell.edits.first()?.split_once('=')?;
    let layer = selector.strip_prefix("layers.").and_then(|s| s.split('.').next());
    let slot = selector.rsplit('.').next().unwrap_or(selector);
    match layer {
        Some(layer) => Some((Some(layer.parse().ok()?), format!("{slot}={choice}"))),
        None => Some((None, format!("{selector}={choice}"))),
    }
}

/// All cells as a table.
pub fn csv(cells: &[SweepCell]) -> String {
    let mut csv = Csv::new([
        "number",
        "group",
        "recipe",
        "name",
        "edits",
        "state",
        "kl_mean_nats",
        "kl_se",
        "kl_median",
        "kl_p99",
        "kl_max",
        "same_top1",
        "perplexity",
        "ln_ppl_ratio",
        "ln_ppl_ratio_se",
        "kv_bytes",
        "step_bytes_estimated",
        "decode_tokens_per_s",
    ]);
    for (i, c) in cells.iter().enumerate() {
        let group = match c.group {
            SweepGroup::Base => "A",
            SweepGroup::Grid => "combination",
            SweepGroup::Single => "one layer",
            SweepGroup::Tried => "tried",
        };
        let state = match &c.state {
            SweepState::Waiting => "waiting".into(),
            SweepState::Reading { positions, .. } => format!("{positions} positions read"),
            SweepState::Done { .. } => "measured".into(),
            SweepState::Failed(why) => format!("failed: {why}"),
        };
        let head = [
            i.to_string(),
            group.into(),
            c.hash.clone(),
            c.name.clone(),
            c.edits.join(" "),
            state,
        ];
        let figures = match c.row() {
            Some(r) => vec![
                r.kl.mean,
                r.kl.mean_se,
                r.kl.median,
                r.kl.p99,
                r.kl.max,
                r.same_top1[0],
                r.perplexity,
                r.ln_ppl_ratio[0],
                r.ln_ppl_ratio[1],
                r.kv as f64,
                r.step_bytes as f64,
                r.decode_tokens_per_s,
            ],
            None => vec![f64::NAN; 12],
        };
        csv.row(head.into_iter().chain(figures.into_iter().map(field)));
    }
    csv.text()
}
