//! Going through a text again, chunk by chunk, with probes.

use std::ops::Range;
use std::sync::Arc;

use kernels::ir::{CacheDesc, CacheId, CacheRows, Plan};

use super::Replay;
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::Look;
use crate::session::{Session, SessionOptions};
use crate::watch::Watch;

/// A session that reads a text, and what it copied out of the last chunk.
pub(super) struct Walk<'a> {
    ids: &'a [u32],
    session: Session,
    chunk: usize,
    at: usize,
    /// The plan of the last chunk.
    plan: Option<Arc<Plan>>,
}

/// Probes of one name: rows of `width` values.
#[derive(Clone, Copy)]
pub(super) struct Probe<'a> {
    pub width: usize,
    pub values: &'a [f32],
}

impl<'a> Probe<'a> {
    pub fn row(self, i: usize) -> &'a [f32] {
        self.values.get(i * self.width..(i + 1) * self.width).unwrap_or(&[])
    }

    pub fn rows(self) -> usize {
        self.values.len().checked_div(self.width).unwrap_or(0)
    }
}

impl<'a> Walk<'a> {
    /// Before the first of `ids`. `residuals`: the residual after every layer is copied out as `layer_out.N`;
    /// `chunk`: most tokens in a step.
    pub fn new(
        replay: &Replay<'a>,
        ids: &'a [u32],
        look: Look,
        residuals: bool,
        chunk: usize,
    ) -> Result<Self, EngineError> {
        let options = SessionOptions {
            all_logits: look.lens,
            probes: residuals,
            look,
            checkpoint_budget: 0,
            ..SessionOptions::default()
        };
        Ok(Self {
            ids,
            session: replay.engine.session(replay.recipe.clone(), options)?,
            chunk: chunk.clamp(1, CHUNK),
            at: 0,
            plan: None,
        })
    }

    /// Reads the next chunk; `None` at the end. Returns its positions.
    pub fn step(&mut self, watch: &mut Watch<'_>) -> Result<Option<Range<usize>>, EngineError> {
        watch.report(self.at as u64, self.ids.len() as u64)?;
        if self.at == self.ids.len() {
            return Ok(None);
        }
        let end = (self.at + self.chunk.min(CHUNK - self.at % CHUNK)).min(self.ids.len());
        let range = self.at..end;
        self.plan = Some(self.session.plan(range.len(), self.at as u64));
        self.session
            .feed(&self.ids[range.clone()], None, watch.cancel, &mut ())?;
        self.at = end;
        Ok(Some(range))
    }

    /// The plan of the last chunk.
    pub fn plan(&self) -> Result<&Arc<Plan>, EngineError> {
        self.plan.as_ref().ok_or_else(|| missing("plan"))
    }

    /// What the last chunk copied out under a name; `None` if its plan has no such probe.
    pub fn find(&self, name: &str) -> Option<Probe<'_>> {
        let (_, width, values) = self.session.output().probes.iter().find(|(n, _, _)| n == name)?;
        Some(Probe { width: *width, values })
    }

    /// The same, where it must be there.
    pub fn probe(&self, name: &str) -> Result<Probe<'_>, EngineError> {
        self.find(name).ok_or_else(|| missing(&format!("probe `{name}`")))
    }

    /// The description of a cache component.
    pub fn cache(&self, cache: CacheId) -> Result<&CacheDesc, EngineError> {
        self.session
            .state()
            .caches()
            .get(cache.index())
            .ok_or_else(|| missing("cache component"))
    }

    /// Rows `first .. end` of a cache component as stored, by their absolute numbers. Of a ring, rows of the last
    /// chunk and of the window before it are there.
    pub fn rows(&self, cache: CacheId, range: Range<usize>) -> Result<Vec<f32>, EngineError> {
        let state = self.session.state();
        let CacheRows::Ring { capacity, .. } = self.cache(cache)?.rows else {
            return Ok(state.read_rows(cache, range.start, range.len())?);
        };
        let mut out = Vec::new();
        let mut at = range.start;
        while at < range.end {
            // Up to the end of the ring, then from its beginning.
            let slot = at % capacity;
            let n = (range.end - at).min(capacity - slot);
            out.extend(state.read_rows(cache, slot, n)?);
            at += n;
        }
        Ok(out)
    }
}

fn missing(what: &str) -> EngineError {
    EngineError::Invalid(format!("the inspected plan has no such {what}"))
}
