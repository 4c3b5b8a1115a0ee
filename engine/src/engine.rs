//! The loaded model: immutable and shared by sessions.

use std::path::Path;
use std::sync::{Arc, Mutex};

use checkpoint::{Checkpoint, Progress};
use kernels::ir::{Backend, CacheDesc, Format, SamplerParams};
use text::{Prompt, Tokenizer};

use crate::device;
use crate::error::EngineError;
use crate::families::{self, Family};
use crate::lower::SharedPlans;
use crate::memory;
use crate::model::WeightStore;
use crate::needs::Planned;
use crate::recipe::{ModelFacts, Recipe, Registry};
use crate::restore::Made;
use crate::session::{Session, SessionOptions};
use crate::tokenizer;
use crate::transplant::Donors;
use crate::worker::{self, Worker};

/// How to load a model.
#[derive(Clone)]
pub struct EngineOptions {
    /// Threads for the CPU backend; `None` = all cores.
    pub threads: Option<usize>,
    /// Device: `auto`, `cpu`, `cuda` or `cuda:N` (see [`crate::device::choose`]).
    pub device: String,
    /// Variants sessions can use.
    pub registry: Registry,
    /// Touch every page of the weights while loading (with progress), so that the first token is not slow.
    pub prefault: bool,
    /// Context in tokens the memory of a GPU is to hold; `None` = a usual one, caches grow.
    pub context: Option<u64>,
    /// The recipe the memory of a GPU is to hold.
    pub planned: Planned,
    /// Whether the backend runs in a process of its own.
    pub worker: worker::Mode,
    /// How often that process is started again by itself until it writes a token.
    pub restarts: usize,
    /// Hears when that process ended and was started again; `None` = the log does.
    pub notify: Option<worker::Notify>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            threads: None,
            device: "auto".into(),
            registry: Registry::default(),
            prefault: false,
            context: None,
            planned: Planned::default(),
            worker: worker::default_mode(),
            restarts: 2,
            notify: None,
        }
    }
}

/// A loaded model.
pub struct Engine {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) family: Arc<dyn Family>,
    pub(crate) weights: WeightStore,
    pub(crate) registry: Registry,
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) worker: Option<Worker>,
    chunk: usize,
    tokenizer: Result<Arc<Tokenizer>, String>,
    prompt: Prompt,
    warnings: Vec<String>,
    pub(crate) variants: Mutex<Made>,
    pub(crate) donors: Mutex<Donors>,
    pub(crate) plans: SharedPlans,
}

impl Engine {
    /// Opens a checkpoint: a Hugging Face folder or a GGUF file.
    pub fn open(path: &Path, options: &EngineOptions, progress: &dyn Progress) -> Result<Arc<Self>, EngineError> {
        let checkpoint = Checkpoint::open(path, progress)?;
        let threads = options.threads.unwrap_or_else(default_threads);
        let registry = options.registry.clone();
        let mut given_up = None;
        if let Some(started) = worker::start(path, options, threads, progress)? {
            if options.worker == worker::Mode::On || started.backend.name() != "cpu" {
                let worker = Some(started.worker);
                return Self::place(checkpoint, (started.backend, worker), registry, started.warning);
            }
            // No GPU after all: the CPU needs no process of its own.
            given_up = Some(started.warning);
        }
        let device = if given_up.is_some() { "cpu" } else { &options.device };
        let chosen = on_device(
            &checkpoint,
            device,
            threads,
            &registry,
            (&options.planned, options.context),
            &kernels::cuda::open,
        )?;
        if options.prefault {
            checkpoint.prefault(threads, progress)?;
        }
        let warning = given_up.unwrap_or(chosen.warning);
        Self::place(checkpoint, (chosen.backend, None), registry, warning)
    }

    /// Places an opened checkpoint on a backend.
    pub fn with_backend(
        checkpoint: Checkpoint,
        backend: Arc<dyn Backend>,
        registry: Registry,
    ) -> Result<Arc<Self>, EngineError> {
        Self::place(checkpoint, (backend, None), registry, None)
    }

    fn place(
        checkpoint: Checkpoint,
        (backend, worker): (Arc<dyn Backend>, Option<Worker>),
        registry: Registry,
        warning: Option<String>,
    ) -> Result<Arc<Self>, EngineError> {
        let loaded = families::load(&checkpoint)?;
        let chunk = loaded.chunk(backend.chunk());
        let mut warnings = loaded.warnings;
        warnings.extend(warning);
        let tokenizer = tokenizer::load(&checkpoint, loaded.family.facts().vocab, &mut warnings)?;
        let prompt = tokenizer::prompt(&checkpoint, loaded.family.facts().family, &mut warnings);
        warnings.extend(memory::warning(loaded.weights.descs().iter().map(|d| d.bytes()).sum()));
        Ok(Arc::new(Self {
            chunk,
            checkpoint,
            family: loaded.family,
            weights: loaded.weights,
            registry,
            backend,
            worker,
            tokenizer,
            prompt,
            warnings,
            variants: Mutex::default(),
            donors: Mutex::default(),
            plans: SharedPlans::default(),
        }))
    }

    /// What the checkpoint says.
    pub fn facts(&self) -> &ModelFacts {
        self.family.facts()
    }

    /// The checkpoint.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// Variants known.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Most tokens in a step ([`families::Loaded::chunk`]).
    pub fn chunk(&self) -> usize {
        self.chunk
    }

    /// Cache components of a session under a recipe.
    pub(crate) fn caches(&self, recipe: &Recipe) -> Vec<CacheDesc> {
        self.family.caches(recipe, &self.registry, self.chunk())
    }

    /// The process the backend runs in, if that is not this one.
    pub fn worker(&self) -> Option<&Worker> {
        self.worker.as_ref()
    }

    /// Things worth saying once.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The tokenizer, or why there is none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>, EngineError> {
        self.tokenizer.as_ref().map_err(|e| EngineError::Invalid(e.clone()))
    }

    /// How conversations become prompts.
    pub fn prompt(&self) -> &Prompt {
        &self.prompt
    }

    /// The weights.
    pub fn weights(&self) -> &WeightStore {
        &self.weights
    }

    /// The checkpoint's own recipe, with the sampler its generation_config asks for.
    pub fn recipe(&self) -> Recipe {
        let mut r = Recipe::own(self.facts(), &self.registry);
        r.sampler = self.default_sampler();
        r
    }

    /// Sampler of generation_config.json; greedy where it says nothing.
    pub fn default_sampler(&self) -> SamplerParams {
        let mut s = SamplerParams::default();
        let Some(g) = &self.checkpoint.generation_config else {
            return s;
        };
        let float = |k: &str| g.get(k).and_then(serde_json::Value::as_f64).map(|v| v as f32);
        if g.get("do_sample").and_then(serde_json::Value::as_bool) == Some(true) {
            s.temperature = float("temperature").unwrap_or(1.0);
            s.top_p = float("top_p").unwrap_or(s.top_p);
            s.top_k = g.get("top_k").and_then(serde_json::Value::as_u64).unwrap_or(0) as u32;
            s.min_p = float("min_p").unwrap_or(s.min_p);
        }
        s.repetition_penalty = float("repetition_penalty").unwrap_or(s.repetition_penalty);
        if s.validate().is_err() {
            SamplerParams::default()
        } else {
            s
        }
    }

    /// Ids that end a text.
    pub fn eos_ids(&self) -> Vec<u32> {
        tokenizer::eos_ids(&self.checkpoint, self.tokenizer.as_ref().ok())
    }

    /// A new session.
    pub fn session(self: &Arc<Self>, recipe: Recipe, options: SessionOptions) -> Result<Session, EngineError> {
        Session::new(self.clone(), recipe, options)
    }

    /// Bytes of all weights as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.weights.descs().iter().map(|d| d.bytes()).sum()
    }

    /// The format most weight bytes are stored in.
    pub fn main_format(&self) -> Format {
        let mut by: std::collections::BTreeMap<Format, u64> = std::collections::BTreeMap::new();
        for d in self.weights.descs() {
            *by.entry(d.format).or_default() += d.bytes();
        }
        by.into_iter().max_by_key(|(_, b)| *b).map_or(Format::F32, |(f, _)| f)
    }
}

/// The backend that a device's name stands for, for a checkpoint whose memory is predicted first.
pub(crate) fn on_device(
    checkpoint: &Checkpoint,
    device: &str,
    threads: usize,
    registry: &Registry,
    (planned, context): (&Planned, Option<u64>),
    gpus: &device::OpenGpu<'_>,
) -> Result<device::Chosen, EngineError> {
    if !device::may_be_gpu(device) {
        return device::choose(device, threads, 0);
    }
    // What cannot be read is said where it is read.
    let loaded = families::load(checkpoint)?;
    let fits = |there: (u64, u64, &str)| crate::needs::check(&loaded, registry, planned, context, there);
    device::choose_if(device, threads, &fits, gpus)
}

/// Cores to use when nothing is said.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}
