//! What a backend offers: it makes session state for a list of cache components and runs plans on it.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::format::{Format, Layout};
use super::op::{CacheId, WeightId};
use super::plan::{CacheDesc, Plan, WeightDesc};
use super::sampler::{Sampled, SamplerParams};
use super::step::StepParams;
use super::telemetry::{KvBytes, LayerStats, OpTime};

/// An amount of memory, where it is known.
fn amount(bytes: u64) -> String {
    match bytes {
        0 => "an unknown amount".into(),
        n => format!("{n} bytes"),
    }
}

/// Why a step could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// A plan refers to something the state or the weights do not have.
    #[error("plan and {what} do not fit together: {detail}")]
    Mismatch {
        /// `weights`, `state`, ...
        what: &'static str,
        /// What was found and what was expected.
        detail: String,
    },
    /// The context is full.
    #[error("the context is full: {needed} tokens are needed, {capacity} fit")]
    ContextFull {
        /// Tokens after the step.
        needed: u64,
        /// Tokens the plan was made for.
        capacity: u64,
    },
    /// A token id outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab} tokens")]
    TokenRange {
        /// The id.
        id: u32,
        /// Size of the embedding table.
        vocab: usize,
    },
    /// Memory could not be had.
    #[error("out of memory: {} for {what}", amount(*bytes))]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// How much; 0 = whoever ran out does not tell.
        bytes: u64,
    },
    /// Given up half-way because that was asked for.
    #[error("stopped")]
    Cancelled,
    /// The logits cannot be sampled.
    #[error("sampling failed: {0}")]
    Sample(String),
    /// The device or its driver failed, or there is none.
    #[error("{0}")]
    Device(String),
    /// The device failed in a way that nothing clears within this process (a fault of a kernel, memory that lost bits):
    /// whatever is asked of it from here on fails, too.
    #[error("the device failed: {0}; this program cannot use it any more: start the program again")]
    Fatal(String),
    /// The state is gone with the process that held it. The text can be read anew into another state.
    #[error("{0}")]
    Lost(String),
    /// This backend has no kernel for an op.
    #[error("the {backend} backend does not support {what}")]
    Unsupported {
        /// Backend name.
        backend: &'static str,
        /// The op or option.
        what: String,
    },
}

/// A weight's bytes as stored, borrowed from the loaded model.
#[derive(Clone, Copy, Debug)]
pub struct WeightView<'a> {
    /// What it is.
    pub desc: &'a WeightDesc,
    /// Elements, rows first; not necessarily aligned.
    pub data: &'a [u8],
    /// Separate scales (empty if none).
    pub scales: &'a [u8],
}

impl WeightView<'_> {
    /// Whether the bytes are as many as the description asks for. Kernels rely on it.
    pub fn check(&self) -> Result<(), String> {
        let d = self.desc;
        let (stored_rows, stored_cols) = match d.layout {
            Layout::OutIn => (d.rows, d.cols),
            Layout::InOut => (d.cols, d.rows),
        };
        if d.layout == Layout::InOut && !matches!(d.format, Format::F32 | Format::F16 | Format::Bf16) {
            return Err(format!(
                "format {}: an [in, out] matrix is accepted as f32, f16 or bf16",
                d.format
            ));
        }
        let row = d.format.row_bytes(stored_cols).ok_or_else(|| {
            format!(
                "{stored_cols} columns are not whole blocks of {} ({})",
                d.format.block_len(),
                d.format
            )
        })?;
        let wanted = row.checked_mul(stored_rows).ok_or("shape too large")?;
        if self.data.len() != wanted {
            return Err(format!(
                "found {} bytes, {} {} x {} needs {wanted}",
                self.data.len(),
                d.format,
                d.rows,
                d.cols
            ));
        }
        let scales = match d.scales {
            Some(s) if s.block_rows > 0 && s.block_cols > 0 => {
                d.rows.div_ceil(s.block_rows) * d.cols.div_ceil(s.block_cols) * s.format.bytes()
            }
            Some(_) => return Err("scales with empty blocks".into()),
            None => 0,
        };
        if self.scales.len() != scales {
            return Err(format!(
                "found {} bytes of scales, {scales} are needed",
                self.scales.len()
            ));
        }
        if d.format == Format::Fp4E2m1 && d.scales.is_none() {
            return Err("packed FP4 needs a scale tensor".into());
        }
        Ok(())
    }
}

/// The loaded weights a plan's [`WeightId`]s point into.
pub trait WeightSource: Send + Sync {
    /// The weight `id` stands for.
    fn weight(&self, id: WeightId) -> Result<WeightView<'_>, ExecError>;

    /// The loaded weight that `id` stores otherwise; `None` for a loaded one.
    fn made_from(&self, _id: WeightId) -> Option<WeightId> {
        None
    }
}

/// One step's input.
#[derive(Clone, Copy, Debug)]
pub struct StepRequest<'a> {
    /// Position and counts.
    pub step: StepParams,
    /// The step's token ids, `step.tokens` of them.
    pub ids: &'a [u32],
    /// All tokens up to and with this step, for the sampler's penalties.
    pub history: &'a [u32],
    /// Sampler settings; `None` leaves the sample op out.
    pub sampler: Option<&'a SamplerParams>,
    /// Measure time per executed op.
    pub trace: bool,
    /// What is asked for next is expected to be a step of the token that this one draws, under the same plan and with the
    /// same sampler. A device may begin it before it answers this one, and answers it from there if it is asked for.
    /// Otherwise that step is forgotten. It wrote only what a step of one token at its position writes: rows and slots
    /// that whatever comes to that position writes anew before it reads them.
    pub ahead: bool,
    /// Set from outside to give the step up before its next op: [`ExecError::Cancelled`]. Backends whose steps take
    /// no time may finish instead. What the ops before it wrote into the state stays written.
    pub cancel: Option<&'a AtomicBool>,
}

impl StepRequest<'_> {
    /// Ends the step if that was asked for.
    ///
    /// # Errors
    /// [`ExecError::Cancelled`].
    pub fn go_on(&self) -> Result<(), ExecError> {
        match self.cancel {
            Some(c) if c.load(Ordering::Relaxed) => Err(ExecError::Cancelled),
            _ => Ok(()),
        }
    }
}

/// One step's output. Reused from step to step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// `[output rows, vocabulary]`. Empty where a device drew the token itself and the plan makes no more than the last
    /// row: reading it back would cost more than it is worth.
    pub logits: Vec<f32>,
    /// The drawn token, if a sampler was given.
    pub sampled: Option<Sampled>,
    /// (name, width, values `[rows, width]`) of every probe op.
    pub probes: Vec<(String, usize, Vec<f32>)>,
    /// L0 counters per layer.
    pub layers: Vec<LayerStats>,
    /// Per base op, if traced.
    pub times: Vec<OpTime>,
    /// Where the step was begun before it was asked for ([`StepRequest::ahead`]): nanoseconds it took on the device, from
    /// the end of the step before it.
    pub ahead_nanos: Option<u64>,
}

/// Saved rings and pooling states at one position: what a rewind cannot recompute from growing rows.
#[derive(Clone)]
pub struct Snapshot {
    /// Tokens in the context when it was taken.
    pub position: u64,
    /// Bytes held.
    pub bytes: u64,
    /// What the backend holds, which nobody else understands: any state of the same components on that backend can be restored
    /// from it.
    pub kept: Arc<dyn Any + Send + Sync>,
}

/// A session's cache on one backend.
pub trait State: Send {
    /// For the backend to get its own type back.
    fn as_any_mut(&mut self) -> &mut dyn Any;
    /// The components it holds.
    fn caches(&self) -> &[CacheDesc];
    /// Makes room for a context of `context` tokens.
    fn reserve(&mut self, context: u64) -> Result<(), ExecError>;
    /// Steps up to a context of `context` tokens are to follow: a backend for which growing is dear makes room for them at once.
    ///
    /// # Errors
    /// As [`State::reserve`]; steps that fit can still be run.
    fn expect(&mut self, _context: u64) -> Result<(), ExecError> {
        Ok(())
    }
    /// Saves what cannot be recomputed, for a context of `position` tokens. It may still be on its way when this returns: steps
    /// that follow do not change it.
    ///
    /// # Errors
    /// There is no memory to bring it through, or the device failed.
    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError>;
    /// Restores a snapshot, which it waits for. Growing rows beyond it stay allocated and are overwritten later.
    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError>;
    /// Re-stores a component in another format, converting the rows of a context of `position` tokens.
    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError>;
    /// Decoded values of rows `first .. first + count` (ring slots for rings).
    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError>;
    /// (used, allocated) bytes per layer for a context of `context` tokens.
    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)>;
    /// Another state with a copy of what it holds of a context of `position` tokens: steps from there on give the same bits.
    ///
    /// # Errors
    /// There is no memory for it, or the device failed.
    fn fork(&self, position: u64) -> Result<Box<dyn State>, ExecError>;
    /// Whether it is gone with the process that held it: a new state is needed, and the text read into it.
    fn is_lost(&self) -> bool {
        false
    }
}

/// Refuses a batch of no sequences, or of other numbers of states, steps and outputs.
///
/// # Errors
/// [`ExecError::Mismatch`].
pub fn check_batch(states: usize, requests: &[StepRequest<'_>], outs: usize) -> Result<(), ExecError> {
    if states > 0 && states == requests.len() && states == outs {
        return Ok(());
    }
    Err(ExecError::Mismatch {
        what: "batch",
        detail: format!(
            "{states} states, {} steps and {outs} outputs, as many of each are needed, and at least one",
            requests.len()
        ),
    })
}

/// An executor of plans.
pub trait Backend: Send + Sync {
    /// `cpu`, `cuda`, ...
    fn name(&self) -> &'static str;
    /// A line about the device for people.
    fn describe(&self) -> String;
    /// Fresh state for these components with room for `context` tokens.
    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError>;
    /// Runs every op of the plan for one step.
    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError>;

    /// Sequences that [`Backend::run_batch`] takes through a step together at most; 1: it takes them one after the other.
    fn batch(&self) -> usize {
        1
    }

    /// Runs one step of each of several sequences under the same plan, each on its own state. What a sequence gets does not
    /// depend on which others are there, nor on how many. It may differ from what [`Backend::run`] gives it by rounding: the
    /// sums of a product may be taken in another order.
    ///
    /// Returns why they were taken one after the other; `None`: they went together.
    ///
    /// # Errors
    /// As [`Backend::run`], of one of the sequences; none of the steps counts then. What they wrote into states stays
    /// written: rows and slots that a step at the same position writes anew.
    fn run_batch(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        states: &mut [&mut dyn State],
        requests: &[StepRequest<'_>],
        outs: &mut [StepOutput],
    ) -> Result<Option<String>, ExecError> {
        check_batch(states.len(), requests, outs.len())?;
        let all = states.iter_mut().zip(requests).zip(outs);
        all.into_iter()
            .try_for_each(|((state, request), out)| self.run(plan, weights, *state, request, out))?;
        Ok(Some(format!(
            "the {} backend takes one sequence at a time",
            self.name()
        )))
    }

    /// Tokens of a step it is asked to take at most, a multiple of 128: where more at a time run faster per token.
    fn chunk(&self) -> usize {
        128
    }

    /// Bytes per second that reading much of the memory weights and caches lie in reaches, measured now; `None` where
    /// that is not known.
    ///
    /// # Errors
    /// A device that fails.
    fn read_bandwidth(&self) -> Result<Option<f64>, ExecError> {
        Ok(None)
    }

    /// (free, total) bytes of the device's own memory now; `None` where weights and caches lie in the process's memory.
    /// What gives way when something else wants memory counts as free.
    ///
    /// # Errors
    /// A device that fails.
    fn device_memory(&self) -> Result<Option<(u64, u64)>, ExecError> {
        Ok(None)
    }

    /// Resident memory in bytes of the process that does the work, where that is another one and known.
    fn resident(&self) -> Option<u64> {
        None
    }
}
