//! Loading a model.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use engine::{Cancel, Engine, EngineOptions, Progress, SessionOptions};
use protocol::{DocKind, ErrorInfo, JobId, JobState, LoadedModel, ModelSource};

use super::{LoadTask, Loaded, Worker};
use crate::errors::{cancelled, of_engine};
use crate::hub::{Hub, Model};
use crate::models::{self, facts};

/// Progress is shown this often.
const EVERY: Duration = Duration::from_millis(30);

/// Passes progress on to the job.
struct JobProgress<'a> {
    hub: &'a Hub,
    job: JobId,
    cancel: &'a Cancel,
    last: Mutex<Option<Instant>>,
}

impl Progress for JobProgress<'_> {
    fn report(&self, done: u64, total: u64) {
        let mut last = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if done < total && last.is_some_and(|t| t.elapsed() < EVERY) {
            return;
        }
        *last = Some(Instant::now());
        self.hub.with(|inner| {
            inner
                .jobs
                .change(self.job, |j| (j.done, j.total) = (done.max(j.done).min(total), total));
        });
    }

    fn cancelled(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

impl Worker {
    /// Loads a model; what was loaded before goes first, because both may not fit.
    pub(super) fn load(&mut self, task: LoadTask) {
        if task.cancel.is_cancelled() {
            self.load_failed(&task, cancelled());
            return;
        }
        self.unload();
        self.hub.with(|inner| {
            inner.model = Model::Loading {
                name: task.name.clone(),
                job: task.job,
            };
            inner.jobs.change(task.job, |j| {
                j.what = format!("loading {}", task.name);
                (j.done, j.total, j.state) = (0, 0, JobState::Running);
            });
            // Whoever cancels it need not wait for the step it is in.
            inner.jobs.detach(task.job, true);
            inner.changed();
        });
        match self.open(&task) {
            Ok(loaded) => self.ready(&task, loaded),
            Err(e) => self.load_failed(&task, e),
        }
    }

    fn open(&self, task: &LoadTask) -> Result<Loaded, ErrorInfo> {
        let started = Instant::now();
        let progress = JobProgress {
            hub: &self.hub,
            job: task.job,
            cancel: &task.cancel,
            last: Mutex::new(None),
        };
        let memory = crate::memory::predict(&task.path, task.context)?;
        if !memory.refusal.is_empty() {
            return Err(crate::memory::refusal(&memory));
        }
        let hub = self.hub.clone();
        let options = EngineOptions {
            threads: task.threads,
            device: self.device.clone(),
            worker: self.process,
            context: Some(memory.context),
            prefault: memory.weights < memory.free || memory.free == 0,
            // Once by itself; then somebody looks at it.
            restarts: 1,
            notify: Some(Arc::new(move |said, runs| {
                hub.with(|inner| inner.engine_said(said, runs))
            })),
            ..EngineOptions::default()
        };
        let engine = Engine::open(&task.path, &options, &progress).map_err(|e| of_engine(&e))?;
        let context = SessionOptions {
            context: Some(memory.context),
            ..SessionOptions::default()
        };
        let session = engine.session(engine.recipe(), context).map_err(|e| of_engine(&e))?;
        if task.cancel.is_cancelled() {
            return Err(cancelled());
        }
        let logprobs = self.hub.with(|inner| inner.settings.logprobs);
        let chat = facts::chat(&engine);
        let model = LoadedModel {
            source: task.source.clone(),
            name: task.name.clone(),
            path: task.path.display().to_string(),
            facts: facts::view(&engine),
            slots: crate::views::slots(&engine),
            starters: facts::starters(&engine, chat.is_ok(), task.source == ModelSource::Bundled),
            chat,
            default_sampling: facts::default_sampling(&engine, logprobs),
            warnings: engine.warnings().to_vec(),
            load_ms: started.elapsed().as_millis() as u64,
            context: session.capacity(),
        };
        Ok(Loaded {
            vocabulary: facts::vocabulary(&engine),
            longest_piece: facts::longest_piece(&engine),
            converted: Vec::new(),
            revivals: 0,
            hash: session.recipe().hash(),
            timer: None,
            model: Arc::new(model),
            engine,
            session,
        })
    }

    fn ready(&mut self, task: &LoadTask, loaded: Loaded) {
        let recipe = crate::views::recipe(&loaded.engine, loaded.session.recipe(), &[]);
        let model = loaded.model.clone();
        let engine = loaded.engine.clone();
        let (device, describe) = (engine.backend().name(), engine.backend().describe());
        let free = engine.backend().device_memory().ok().flatten().map(|m| m.0);
        self.loaded = Some(loaded);
        let taken = self.hub.with(|inner| {
            // Cancelling happens under the same lock: a model that was given up is never shown.
            if task.cancel.is_cancelled() {
                return false;
            }
            inner.engine = Some(engine);
            inner.recipe = Some(Arc::new(recipe));
            inner.position = 0;
            inner.context = model.context;
            inner.device.name = device.into();
            inner.device.describe = describe;
            inner.device.free_bytes = free.or_else(engine::memory::available).unwrap_or(0);
            inner.memory = engine::memory::resident().unwrap_or(0);
            let kind = if model.chat.is_ok() {
                DocKind::Chat
            } else {
                DocKind::Text
            };
            // A text that this model can go on with stays; other models begin a new one.
            let stays = inner.docs.current().is_some_and(|d| {
                d.model == model.name && !d.is_empty() && (d.kind == DocKind::Text || model.chat.is_ok())
            });
            if !stays {
                inner.docs.create(kind, &model.name, crate::docs::now_ms());
            }
            inner.model = Model::Ready(model);
            inner.doc_changed();
            true
        });
        if !taken {
            self.unload();
            self.load_failed(task, cancelled());
            return;
        }
        if !matches!(task.source, ModelSource::Bundled | ModelSource::SmolLm2) {
            models::note(&self.hub.paths, &task.path);
        }
        self.end_job(task.job, Ok(()));
    }

    fn load_failed(&mut self, task: &LoadTask, error: ErrorInfo) {
        self.hub.with(|inner| {
            let ours = matches!(&inner.model, Model::Loading { job, .. } if *job == task.job);
            if ours {
                inner.model = match error.kind {
                    protocol::ErrorKind::Cancelled => Model::None,
                    _ => Model::Failed {
                        name: task.name.clone(),
                        error: error.clone(),
                    },
                };
                inner.changed();
            }
        });
        self.end_job(task.job, Err(error));
    }
}
