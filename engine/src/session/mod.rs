//! A session: token log, cache, host checkpoints, and the recipe it runs under.

mod fork;
mod record;
mod revive;
mod rewind;
mod swap;
mod together;

pub(crate) use record::kv_view;
pub(crate) use rewind::Again;
pub use rewind::Taken;
pub use swap::SwapReport;
pub use together::{EachStep, Part};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use kernels::ir::{
    Backend, CacheRows, ExecError, KvBytes, OpTime, Plan, Sampled, SamplerParams, Snapshot, State, StepOutput,
    StepParams, StepRequest,
};
use protocol::StepRecord;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::families::CHUNK;
use crate::lower::{Bucket, Look, LowerStats, Lowering};
use crate::model::WeightStore;
use crate::recipe::Recipe;
use crate::watch::Watch;

/// Set from outside to stop a long job: between two steps, and between two ops of a step.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks to stop.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// For backends, which look at it between ops.
    pub(crate) fn flag(&self) -> &AtomicBool {
        &self.0
    }

    /// Whether stopping was asked for.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// How a session is set up.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Largest context in tokens; `None` = the checkpoint's.
    pub context: Option<u64>,
    /// Produce logits for every token, not only the last of a step.
    pub all_logits: bool,
    /// Copy the residual after every block to the output.
    pub probes: bool,
    /// What an inspection copies to the output.
    pub look: Look,
    /// Time every executed op.
    pub trace: bool,
    /// Most bytes host checkpoints may take.
    pub checkpoint_budget: u64,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self {
            context: None,
            all_logits: false,
            probes: false,
            look: Look::default(),
            trace: false,
            checkpoint_budget: 256 << 20,
        }
    }
}

/// A running text.
pub struct Session {
    pub(crate) engine: Arc<Engine>,
    pub(crate) recipe: Recipe,
    weights: WeightStore,
    lowering: Lowering,
    state: Box<dyn State>,
    tokens: Vec<u32>,
    schedule: Vec<Taken>,
    snapshots: Vec<Arc<Snapshot>>,
    options: SessionOptions,
    capacity: u64,
    out: StepOutput,
    seq: u64,
    rings: bool,
    revivals: u64,
}

/// How a step draws a token.
#[derive(Clone, Copy)]
pub(crate) struct Draw<'a> {
    /// Settings.
    pub sampler: &'a SamplerParams,
    /// What comes next is probably a step of that token alone ([`StepRequest::ahead`]).
    pub ahead: bool,
}

impl<'a> Draw<'a> {
    /// A token after which anything may come.
    pub fn once(sampler: &'a SamplerParams) -> Self {
        Self { sampler, ahead: false }
    }
}

/// Receives what a feed produces, step by step.
pub trait Observer {
    /// One step is done.
    fn step(&mut self, record: &StepRecord, out: &StepOutput);
}

impl Observer for () {
    fn step(&mut self, _: &StepRecord, _: &StepOutput) {}
}

impl<F: FnMut(&StepRecord, &StepOutput)> Observer for F {
    fn step(&mut self, record: &StepRecord, out: &StepOutput) {
        self(record, out);
    }
}

impl Session {
    pub(crate) fn new(engine: Arc<Engine>, recipe: Recipe, options: SessionOptions) -> Result<Self, EngineError> {
        recipe.check(engine.facts(), engine.registry())?;
        let max = engine.facts().max_context as u64;
        let capacity = options.context.unwrap_or(max);
        if capacity == 0 || capacity > max {
            return Err(EngineError::Invalid(format!(
                "--context: found {capacity}, accepted: 1 to {max}"
            )));
        }
        let caches = engine.caches(&recipe);
        let rings = caches.iter().any(|c| matches!(c.rows, CacheRows::Ring { .. }));
        let state = engine.backend.new_state(&caches, 0);
        let mut session = Self {
            lowering: Lowering::new(engine.family.clone(), &caches),
            weights: engine.weights.clone(),
            state: state.map_err(|e| engine.explained(e))?,
            engine,
            recipe,
            tokens: Vec::new(),
            schedule: Vec::new(),
            snapshots: Vec::new(),
            options,
            capacity,
            out: StepOutput::default(),
            seq: 0,
            rings,
            revivals: 0,
        };
        session.place_variants(&mut Watch {
            cancel: &Cancel::default(),
            progress: &mut |_, _| {},
        })?;
        Ok(session)
    }

    /// Tokens so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Number of tokens in the cache.
    pub fn position(&self) -> u64 {
        self.tokens.len() as u64
    }

    /// Largest context.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// The recipe in force.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Switches the timing of every executed op on or off ([`Session::times`]).
    pub fn set_trace(&mut self, on: bool) {
        self.options.trace = on;
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Output of the last step.
    pub fn output(&self) -> &StepOutput {
        &self.out
    }

    /// Lowering counters.
    pub fn lower_stats(&self) -> LowerStats {
        self.lowering.stats()
    }

    /// Every step so far.
    pub fn schedule(&self) -> &[Taken] {
        &self.schedule
    }

    /// Times of the last step's base ops (only with [`SessionOptions::trace`]).
    pub fn times(&self) -> &[OpTime] {
        &self.out.times
    }

    /// (used, allocated) cache bytes per layer. Host checkpoints are in the model's total only ([`Self::checkpoint_bytes`]).
    pub fn kv_bytes(&self) -> Vec<(KvBytes, KvBytes)> {
        self.state.kv_bytes(self.position())
    }

    /// Bytes held by host checkpoints.
    pub fn checkpoint_bytes(&self) -> u64 {
        self.snapshots.iter().map(|s| s.bytes).sum()
    }

    /// The session's cache.
    pub fn state(&self) -> &dyn State {
        self.state.as_ref()
    }

    /// The plan a step of `tokens` tokens after `context` tokens runs on.
    pub fn plan(&mut self, tokens: usize, context: u64) -> Arc<Plan> {
        let context = context + tokens as u64;
        let mut bucket = Bucket::for_step(tokens, context, self.options.all_logits, self.options.probes);
        bucket.look = self.options.look;
        let of = (&self.recipe, &self.engine.registry, &self.weights);
        self.lowering.plan_shared(&self.engine.plans, of, bucket)
    }

    /// Refuses token ids outside the vocabulary, an empty feed and a context that would overflow. Nothing changes.
    fn check_ids(&mut self, ids: &[u32]) -> Result<(), EngineError> {
        self.check_range(ids)?;
        // The first step makes the buffers that later ones use.
        let buffers = match self.position() {
            0 => self.plan(ids.len().min(self.chunk_len()), 0).workspace_bytes(),
            _ => 0,
        };
        self.room(ids.len() as u64, buffers)
    }

    /// Refuses token ids outside the vocabulary and an empty feed.
    pub(crate) fn check_range(&self, ids: &[u32]) -> Result<(), EngineError> {
        if ids.is_empty() {
            return Err(EngineError::Invalid(
                "the prompt is empty: at least one token is needed".into(),
            ));
        }
        let vocab = self.engine.facts().vocab;
        if let Some((i, id)) = ids.iter().enumerate().find(|(_, id)| **id as usize >= vocab) {
            return Err(EngineError::Invalid(format!(
                "token id {id} (number {i}) is outside the vocabulary: accepted 0 to {}",
                vocab - 1
            )));
        }
        Ok(())
    }

    /// Whether `more` tokens fit the context and the memory.
    pub fn room_for(&self, more: u64) -> Result<(), EngineError> {
        self.room(more, 0)
    }

    /// As [`Session::room_for`], with `buffers` bytes beside the cache.
    fn room(&self, more: u64, buffers: u64) -> Result<(), EngineError> {
        let needed = self.position() + more;
        if needed > self.capacity {
            let max = self.engine.facts().max_context as u64;
            let hint = if self.capacity < max {
                format!("raise --context, up to {max}, or shorten the prompt")
            } else {
                "the checkpoint was made for no more; shorten the prompt".into()
            };
            return Err(EngineError::ContextOverflow {
                needed,
                capacity: self.capacity,
                hint,
            });
        }
        let now: u64 = self.kv_bytes().iter().map(|(_, a)| a.total()).sum();
        let missing = self.predicted_bytes(needed).saturating_sub(now) + buffers;
        // Most steps need none, and asking how much there is takes longer than all else the host does for a token.
        if missing == 0 {
            return Ok(());
        }
        self.engine.require(
            missing,
            &format!("the KV cache of {needed} tokens"),
            "use a smaller --context or --max-tokens, or a smaller --kv-cache format",
        )
    }

    /// Whether there is memory for this session and forks of it, `texts` in all, of `context` tokens each.
    pub(crate) fn room_for_texts(&self, texts: u64, context: u64) -> Result<(), EngineError> {
        let now: u64 = self.kv_bytes().iter().map(|(_, a)| a.total()).sum();
        let each = self.predicted_bytes(context);
        self.engine.require(
            each.saturating_sub(now) + texts.saturating_sub(1) * each,
            &format!("the KV caches of {texts} texts of {context} tokens"),
            "ask for fewer texts, use a smaller --max-tokens, or a smaller --kv-cache format",
        )
    }

    /// Predicted cache bytes for a context of `context` tokens.
    pub fn predicted_bytes(&self, context: u64) -> u64 {
        let rows = |d: &kernels::ir::CacheDesc| match d.rows {
            CacheRows::Growing { rate } => context / rate as u64,
            CacheRows::Ring { capacity, .. } => capacity as u64,
        };
        self.state
            .caches()
            .iter()
            .map(|d| {
                rows(d) * {
                    let (a, b) = d.row_bytes();
                    (a + b) as u64
                }
            })
            .sum()
    }

    /// Most tokens in a step of this session: the engine's, or [`CHUNK`] where a step gives something for every token.
    pub fn chunk_len(&self) -> usize {
        let o = &self.options;
        if o.all_logits || o.probes || o.look != Look::default() {
            CHUNK
        } else {
            self.engine.chunk()
        }
    }

    /// Processes tokens in chunks of at most [`Session::chunk_len`], never across a multiple of it. With a sampler, the
    /// last step's output holds the token drawn after them.
    pub fn feed(
        &mut self,
        ids: &[u32],
        sampler: Option<&SamplerParams>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        self.check_ids(ids)?;
        if ids.len() > self.chunk_len() {
            // Where the whole does not fit, the first step that does not says so.
            let _ = self.state.expect(self.position() + ids.len() as u64);
        }
        let mut rest = ids;
        while !rest.is_empty() {
            let room = self.chunk_len() - self.tokens.len() % self.chunk_len();
            let (now, later) = rest.split_at(rest.len().min(room));
            let draw = sampler.filter(|_| later.is_empty()).map(Draw::once);
            self.chunk(now, draw, cancel, observer)?;
            rest = later;
        }
        Ok(())
    }

    /// Processes one token and draws the next, which is expected to come to this function again unless `last` says otherwise:
    /// a GPU then goes on with it before it is read here. What is done next instead finds the session as if it had not.
    pub fn go_on(
        &mut self,
        token: u32,
        sampler: &SamplerParams,
        last: bool,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        self.check_ids(&[token])?;
        let draw = Draw { sampler, ahead: !last };
        self.chunk(&[token], Some(draw), cancel, observer)
    }

    /// As [`Session::feed`], with chunk sizes given (each is cut further at multiples of [`Session::chunk_len`]).
    pub fn feed_chunks(
        &mut self,
        ids: &[u32],
        chunks: &[usize],
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        if chunks.contains(&0) || chunks.iter().sum::<usize>() != ids.len() {
            return Err(EngineError::Invalid(format!(
                "chunks: found sizes adding up to {}, accepted: positive sizes adding up to the {} tokens",
                chunks.iter().sum::<usize>(),
                ids.len()
            )));
        }
        self.check_ids(ids)?;
        let mut rest = ids;
        for &n in chunks {
            let (now, later) = rest.split_at(n);
            self.feed(now, None, cancel, observer)?;
            rest = later;
        }
        Ok(())
    }

    /// One step of at most [`Session::chunk_len`] tokens that do not cross a multiple of it and were checked. A state that was lost
    /// is made anew first.
    pub(crate) fn chunk(
        &mut self,
        ids: &[u32],
        draw: Option<Draw<'_>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        self.until_there(cancel, &mut |session| session.step(ids, draw, cancel, observer))
    }

    /// Takes a step, and again where the state was lost and is there anew.
    fn until_there<T>(
        &mut self,
        cancel: &Cancel,
        step: &mut dyn FnMut(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        loop {
            self.recover(cancel)?;
            match step(self) {
                // Ends: a process that is lost too often is not started again.
                Err(EngineError::Exec(ExecError::Lost(_))) => {}
                other => return other,
            }
        }
    }

    /// One step.
    fn step(
        &mut self,
        ids: &[u32],
        draw: Option<Draw<'_>>,
        cancel: &Cancel,
        observer: &mut dyn Observer,
    ) -> Result<(), EngineError> {
        if cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        let start = Instant::now();
        let position = self.position();
        let step = StepParams::new(position, ids.len());
        let reserved = self.state.reserve(step.context());
        reserved.map_err(|e| self.explained(e))?;
        let plan = self.plan(ids.len(), position);
        let guard = self.guard(ids.len()).map_err(|e| self.explained(e))?;
        self.tokens.extend_from_slice(ids);
        let request = StepRequest {
            step,
            ids,
            history: &self.tokens,
            sampler: draw.map(|d| d.sampler),
            trace: self.options.trace,
            // A checkpoint holds what a step behind it would not have touched yet.
            ahead: draw.is_some_and(|d| d.ahead) && !self.checkpoints_at(step.context()),
            cancel: Some(cancel.flag()),
        };
        let backend: &dyn Backend = self.engine.backend.as_ref();
        let ran = backend.run(&plan, &self.weights, self.state.as_mut(), &request, &mut self.out);
        if let Err(e) = ran {
            // The log never holds tokens the cache does not. What the step wrote into rows is overwritten later.
            self.tokens.truncate(position as usize);
            let kept = || self.snapshots.iter().find(|s| s.position == position);
            let before = guard.as_ref().or_else(|| kept().map(Arc::as_ref));
            if let Some(before) = before
                && let Err(lost @ ExecError::Lost(_)) = self.state.restore(before)
            {
                return Err(lost.into());
            }
            // A device that does not take it back has failed, and the step's error says how.
            return Err(self.explained(e));
        }
        let nanos = self.out.ahead_nanos.unwrap_or(start.elapsed().as_nanos() as u64);
        let record = self.done(&step, plan.hash, nanos, false);
        observer.step(&record, &self.out);
        Ok(())
    }

    /// Notes that a step was run whose tokens are in the log: its record.
    fn done(&mut self, step: &StepParams, plan: u64, nanos: u64, together: bool) -> StepRecord {
        self.schedule.push(Taken {
            first: step.position,
            tokens: step.tokens,
            together,
        });
        self.checkpoint();
        let record = self.record(step, plan, nanos);
        self.seq += 1;
        record
    }

    /// What is needed to undo a step of `tokens` tokens that fails or is given up half-way; `None` where nothing is.
    /// A single token overwrites in rings and pooling states only what no later token reads; several do more than
    /// that. Where chunks begin a checkpoint is there already, and at the start of a text nothing is read.
    fn guard(&self, tokens: usize) -> Result<Option<Snapshot>, ExecError> {
        let position = self.position();
        let needed = self.rings && tokens > 1 && position > 0 && self.snapshots.iter().all(|s| s.position != position);
        needed.then(|| self.state.snapshot(position)).transpose()
    }

    /// The token drawn in the last step, if a sampler was given.
    pub fn sampled(&self) -> Option<&Sampled> {
        self.out.sampled.as_ref()
    }

    /// Whether a step that ends there is followed by a host checkpoint.
    fn checkpoints_at(&self, position: u64) -> bool {
        self.rings && position.is_multiple_of(CHUNK as u64) && self.snapshots.iter().all(|s| s.position != position)
    }

    /// Takes a host checkpoint after a step that ends at a multiple of [`CHUNK`]; thins old ones when the budget is used up.
    fn checkpoint(&mut self) {
        let position = self.position();
        if !self.checkpoints_at(position) {
            return;
        }
        match self.state.snapshot(position) {
            Ok(snapshot) => self.snapshots.push(Arc::new(snapshot)),
            // The step is done. Without this one a rewind replays from an earlier one; what is wrong with the device is
            // said by the next step.
            Err(e) => {
                tracing::debug!("no checkpoint at {position}: {e}");
                return;
            }
        }
        while self.checkpoint_bytes() > self.options.checkpoint_budget && self.snapshots.len() > 2 {
            // Drop the one whose neighbours are closest: old ones get sparse, recent ones stay.
            let gap = |i: usize| self.snapshots[i + 1].position - self.snapshots[i - 1].position;
            let at = (1..self.snapshots.len() - 1).min_by_key(|&i| (gap(i), i)).unwrap_or(1);
            self.snapshots.remove(at);
        }
    }
}
