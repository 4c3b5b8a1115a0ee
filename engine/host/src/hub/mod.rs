//! Everything clients can see, behind one lock that is held for microseconds: no disk, no network, no engine in here.

mod clients;
mod free;
mod jobs;
mod pace;
mod streams;
mod sweeps;

use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use engine::{Cancel, Engine};
use protocol::{
    DeviceView, ErrorInfo, Event, JobId, LoadedModel, ModelState, Notice, RecipeView, Reply, Settings, StateView,
    StepRecord, TokenInfo,
};

pub(crate) use clients::{Client, ClientId, Clients, MOST_CLIENTS, MOST_UNREAD, MOST_WAITING, Seen, Wake};
pub(crate) use free::FreeRuns;
pub(crate) use jobs::{Jobs, is_over};
pub(crate) use pace::Next;
pub(crate) use streams::{StepRing, Tail, TokenAt, TokenLog};
pub(crate) use sweeps::Sweeps;

use crate::docs::Docs;
use crate::paths::Paths;
use crate::pool::Pool;
use crate::worker::Command;

/// Most bytes of telemetry held, whatever the number of steps asked for.
const RING_BYTES: usize = 64 << 20;

/// What is loaded.
#[derive(Clone)]
pub(crate) enum Model {
    None,
    Loading { name: String, job: JobId },
    Ready(Arc<LoadedModel>),
    Failed { name: String, error: ErrorInfo },
}

/// The shared state.
pub(crate) struct Inner {
    pub clients: Clients,
    pub docs: Docs,
    pub log: TokenLog,
    pub ring: StepRing,
    pub jobs: Jobs,
    pub sweeps: Sweeps,
    pub free_runs: FreeRuns,
    pub events: Tail<Event>,
    pub notices: Tail<Notice>,
    /// Last notice that reached anybody.
    pub noticed: u64,
    pub settings: Settings,
    pub model: Model,
    /// The loaded engine, for what needs no session (tokenizer, facts, tensors).
    pub engine: Option<Arc<Engine>>,
    pub recipe: Option<Arc<RecipeView>>,
    /// Text and message being written.
    pub writing: Option<(u64, u32)>,
    /// Stops what is being written, with the number of the stop.
    pub stop: Option<(u64, Cancel)>,
    /// Stops replays for looking inside.
    pub look_stop: Cancel,
    pub prefill: Option<(u64, u64)>,
    pub position: u64,
    pub context: u64,
    pub device: DeviceView,
    pub memory: u64,
    pub op_timing: bool,
    /// Bytes of weights that the recipe in force stores otherwise.
    pub restored: u64,
    /// Why the engine's process does not run.
    pub engine_ended: String,
    pub doc_revision: u64,
    /// Rises with every change of the state; `settled` is its value at the last change that is not merely a figure
    /// that moves with every token.
    pub revision: u64,
    pub settled: u64,
    pub closing: bool,
    /// A recorded run that is shown to clients.
    pub stage: Option<crate::recorded::Stage>,
    /// Threads the program was started with; they win over the settings.
    pub fixed_threads: Option<usize>,
    stops: u64,
}

/// The hub.
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    pace: Condvar,
    /// Random number of this run.
    pub run: u64,
    pub paths: Paths,
    pub pool: Pool,
    pub commands: Sender<Command>,
}

impl Inner {
    pub fn new(settings: Settings, device: DeviceView) -> Self {
        Self {
            clients: Clients::default(),
            docs: Docs::default(),
            log: TokenLog::default(),
            ring: StepRing::new(settings.telemetry_steps as usize, RING_BYTES),
            jobs: Jobs::default(),
            sweeps: Sweeps::default(),
            free_runs: FreeRuns::default(),
            events: Tail::new(1024),
            notices: Tail::new(64),
            noticed: 0,
            settings,
            model: Model::None,
            engine: None,
            recipe: None,
            writing: None,
            stop: None,
            look_stop: Cancel::default(),
            prefill: None,
            position: 0,
            context: 0,
            device,
            memory: 0,
            op_timing: false,
            restored: 0,
            engine_ended: String::new(),
            doc_revision: 1,
            revision: 1,
            settled: 1,
            closing: false,
            stage: None,
            fixed_threads: None,
            stops: 0,
        }
    }

    /// The state changed.
    pub fn changed(&mut self) {
        self.revision += 1;
        self.settled = self.revision;
    }

    /// A figure moved that moves with every token.
    pub fn moved(&mut self) {
        self.revision += 1;
    }

    /// The current text changed other than by tokens being appended.
    pub fn doc_changed(&mut self) {
        self.doc_revision += 1;
        self.changed();
    }

    /// Stops what is being written and what is being looked at.
    pub fn stop_writing(&mut self) {
        if let Some((_, stop)) = &self.stop {
            stop.cancel();
        }
        std::mem::take(&mut self.look_stop).cancel();
    }

    /// A stop for a message that is about to be written; the one before is stopped.
    pub fn new_stop(&mut self) -> (u64, Cancel) {
        self.stop_writing();
        self.stops += 1;
        let stop = (self.stops, Cancel::default());
        self.stop = Some(stop.clone());
        stop
    }

    /// The message of this stop has ended.
    pub fn end_stop(&mut self, number: u64) {
        self.stop.take_if(|s| s.0 == number);
    }

    /// Says something once, at the bottom of every window.
    pub fn notice(&mut self, warning: bool, text: impl Into<String>) {
        let text = text.into();
        if warning {
            tracing::warn!("{text}");
        }
        let seq = self.notices.next();
        self.notices.push(Notice { seq, text, warning });
    }

    /// The engine's process ended, or runs again.
    pub fn engine_said(&mut self, said: &str, runs: bool) {
        self.notice(!runs, said);
        self.engine_ended = if runs { String::new() } else { said.to_string() };
        self.changed();
    }

    /// A produced token.
    pub fn token(&mut self, doc: u64, node: u32, info: TokenInfo) {
        self.position = info.position + 1;
        if let Some(index) = self.docs.append(doc, node, info) {
            self.log.push(TokenAt { doc, node, index });
        }
        self.moved();
    }

    /// A step of the engine.
    pub fn step(&mut self, step: StepRecord) {
        if let Some(bytes) = step.memory {
            self.memory = bytes;
            self.moved();
        }
        self.ring.push(step);
    }

    /// Threads of the CPU engine; `None` = all cores.
    pub fn threads(&self) -> Option<usize> {
        let set = self.settings.threads as usize;
        self.fixed_threads.or((set > 0).then_some(set))
    }

    /// The loaded model.
    pub fn loaded(&self) -> Option<&Arc<LoadedModel>> {
        match &self.model {
            Model::Ready(m) => Some(m),
            _ => None,
        }
    }

    /// The small state as one client sees it.
    pub fn state(&self, client: ClientId) -> StateView {
        let ready = self.loaded().is_some();
        let current = self.docs.current();
        let writing = self
            .writing
            .filter(|w| Some(w.0) == self.docs.current_id())
            .map(|w| w.1);
        StateView {
            revision: self.revision,
            model: match &self.model {
                Model::None => ModelState::None,
                Model::Loading { name, job } => ModelState::Loading {
                    name: name.clone(),
                    job: *job,
                },
                Model::Ready(m) => ModelState::Ready(Box::new(LoadedModel::clone(m))),
                Model::Failed { name, error } => ModelState::Failed {
                    name: name.clone(),
                    error: error.clone(),
                },
            },
            recipe: self.recipe.as_deref().cloned(),
            doc: current.filter(|_| ready).map(|d| d.info()),
            doc_revision: self.doc_revision,
            writing,
            prefill: self.prefill,
            // Between messages another text than the one in the cache may be shown.
            position: match writing {
                Some(_) => self.position,
                None => current.filter(|_| ready).map_or(0, |d| d.position()),
            },
            context: self.context,
            driver: self.clients.driver == Some(client),
            clients: self.clients.count(),
            device: self.device.clone(),
            memory: self.memory,
            op_timing: self.op_timing,
            engine_ended: self.engine_ended.clone(),
            restored_bytes: self.restored,
        }
    }
}

impl Hub {
    pub fn new(run: u64, inner: Inner, paths: Paths, pool: Pool, commands: Sender<Command>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::new(inner),
            pace: Condvar::new(),
            run,
            paths,
            pool,
            commands,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads or changes the state, then tells the clients that have something to fetch.
    pub fn with<R>(&self, f: impl FnOnce(&mut Inner) -> R) -> R {
        let mut inner = self.lock();
        let out = f(&mut inner);
        let (wakes, later) = inner.wakes(std::time::Instant::now());
        drop(inner);
        wakes.iter().for_each(|wake| wake());
        if later.is_some() {
            self.pace.notify_one();
        }
        out
    }

    /// Hands a command to the engine's thread.
    pub fn command(&self, command: Command) {
        // It only fails after the engine's thread has ended; what was asked for then is answered when it is dropped.
        let _ = self.commands.send(command);
    }

    /// Answers a request.
    pub fn reply(&self, client: ClientId, id: u64, result: Result<Reply, ErrorInfo>) {
        let bytes = pace::encode_reply(id, result);
        self.with(|inner| {
            let Some(c) = inner.clients.all.get_mut(&client) else {
                return;
            };
            c.waiting = c.waiting.saturating_sub(1);
            c.unread += bytes.len();
            c.replies.push_back(bytes);
            if c.unread > MOST_UNREAD && c.replies.len() > 1 {
                c.closed.get_or_insert_with(|| {
                    format!(
                        "Closed: more than {} MiB of answers were not fetched.",
                        MOST_UNREAD >> 20
                    )
                });
            }
        });
    }

    /// Ends a connection from the host's side, with a sentence.
    pub fn close(&self, client: ClientId, why: &str) {
        self.with(|inner| {
            inner.clients.leave(client);
            if let Some(c) = inner.clients.all.get_mut(&client) {
                c.closed.get_or_insert_with(|| why.to_string());
            }
            inner.changed();
        });
    }

    /// A connection is gone.
    pub fn remove(&self, client: ClientId) {
        self.with(|inner| {
            inner.clients.leave(client);
            if inner.clients.all.remove(&client).is_some_and(|c| c.greeted) {
                inner.changed();
            }
        });
    }
}

/// Owes an answer to a request; one that is dropped without an answer says so.
pub(crate) struct Responder {
    hub: Arc<Hub>,
    client: ClientId,
    id: u64,
    open: bool,
    /// Set when the client is gone.
    pub gone: Cancel,
}

impl Responder {
    pub fn new(hub: Arc<Hub>, client: ClientId, id: u64, gone: Cancel) -> Self {
        Self {
            hub,
            client,
            id,
            open: true,
            gone,
        }
    }

    /// The answer.
    pub fn send(mut self, result: Result<Reply, ErrorInfo>) {
        self.open = false;
        self.hub.reply(self.client, self.id, result);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.open {
            let closing = self.hub.lock().closing;
            let error = if closing {
                crate::errors::refused("The host is shutting down.", "Start it again.")
            } else {
                crate::errors::internal("The request was given up.")
            };
            self.hub.reply(self.client, self.id, Err(error));
        }
    }
}
