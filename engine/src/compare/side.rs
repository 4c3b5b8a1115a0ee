//! One session of a comparison: it reads the text and keeps its times.

use std::sync::Arc;

use kernels::ir::StepOutput;
use protocol::StepRecord;

use crate::engine::Engine;
use crate::error::EngineError;
use crate::recipe::Recipe;
use crate::session::{Cancel, Session, SessionOptions};

pub(super) struct Side {
    pub session: Session,
    /// Tokens and nanoseconds of chunks with more than one token.
    prefill: (u64, u64),
    /// Nanoseconds of steps of one token.
    decode: Vec<u64>,
}

/// Rows of logits.
#[derive(Clone, Copy)]
pub(super) struct Logits<'a> {
    all: &'a [f32],
    vocab: usize,
}

impl<'a> Logits<'a> {
    /// Row `i`, empty if there is none.
    pub fn row(self, i: usize) -> &'a [f32] {
        self.all.get(i * self.vocab..(i + 1) * self.vocab).unwrap_or(&[])
    }
}

impl Side {
    /// Nothing read yet. `probes`: the residual after every layer is kept, for drift.
    pub fn new(engine: &Arc<Engine>, recipe: &Recipe, probes: bool) -> Result<Self, EngineError> {
        let options = SessionOptions {
            all_logits: true,
            probes,
            // Never rewound.
            checkpoint_budget: 0,
            ..SessionOptions::default()
        };
        Ok(Self {
            session: engine.session(recipe.clone(), options)?,
            prefill: (0, 0),
            decode: Vec::new(),
        })
    }

    /// Reads one chunk.
    pub fn feed(&mut self, ids: &[u32], cancel: &Cancel) -> Result<(), EngineError> {
        // Lowering is not part of the speed.
        self.session.plan(ids.len(), self.session.position());
        let mut nanos = 0;
        let mut keep = |r: &StepRecord, _: &StepOutput| nanos += r.nanos;
        self.session.feed(ids, None, cancel, &mut keep)?;
        if ids.len() == 1 {
            self.decode.push(nanos);
        } else {
            self.prefill.0 += ids.len() as u64;
            self.prefill.1 += nanos;
        }
        Ok(())
    }

    /// Logits of the last chunk.
    pub fn logits(&self) -> Logits<'_> {
        Logits {
            all: &self.session.output().logits,
            vocab: self.session.engine().facts().vocab,
        }
    }

    /// Weight and cache bytes that a decode step moves where the text ends, by the plan.
    pub fn step_bytes(&mut self) -> u64 {
        let at = self.session.position();
        let plan = self.session.plan(1, at.saturating_sub(1));
        let costs = plan.ops.iter().map(|op| op.cost(&plan, 1, at.saturating_sub(1)));
        costs.map(|c| c.weights + c.cache).sum()
    }

    /// Tokens per second of chunks.
    pub fn prefill_speed(&self) -> f64 {
        speed(self.prefill.0 as f64, self.prefill.1 as f64)
    }

    /// Tokens per second of single steps, from the median: one interruption by something else does not count.
    pub fn decode_speed(&self) -> f64 {
        let mut times = self.decode.clone();
        times.sort_unstable();
        speed(1.0, times.get(times.len() / 2).copied().unwrap_or(0) as f64)
    }
}

fn speed(tokens: f64, nanos: f64) -> f64 {
    if nanos > 0.0 { tokens * 1e9 / nanos } else { 0.0 }
}
