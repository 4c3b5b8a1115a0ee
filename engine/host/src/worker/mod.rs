//! The engine's thread: the only one that runs the engine. It is fed by commands; while it writes a text it looks at
//! them between steps, so a changed recipe is in force from the next token on.

mod free;
mod load;
mod look;
mod prompt;
mod recipe;
mod sweep;
mod write;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use engine::{Cancel, Engine, EngineError, OpTimer, Session};
use protocol::{
    AttentionSpec, CompareSpec, CompareText, Edit, ErrorInfo, FreeSpec, GenerateSpec, JobId, JobState, LoadedModel,
    ModelSource, Reply, SweepSpec,
};

use crate::errors::{cancelled, internal, no_model, of_engine, refused};
use crate::hub::{Hub, Model, Responder};

/// What the engine said, in the protocol's words.
fn said<T>(result: Result<T, EngineError>) -> Result<T, ErrorInfo> {
    result.map_err(|e| of_engine(&e))
}

/// What the engine's thread is asked to do.
pub(crate) enum Command {
    /// Load a model that is on this machine.
    Load(LoadTask),
    /// Unload.
    Close(Responder),
    /// Write a message.
    Write {
        action: Action,
        spec: GenerateSpec,
        stop: Cancel,
        /// Tells stops apart.
        number: u64,
        to: Responder,
    },
    /// Put another recipe in force.
    Recipe { change: RecipeChange, to: Responder },
    /// Compute the text's cache anew.
    Replay { job: JobId, cancel: Cancel },
    /// Start the engine's process again.
    Restart { job: JobId, cancel: Cancel },
    /// Compare recipes.
    Compare {
        job: JobId,
        cancel: Cancel,
        spec: CompareSpec,
    },
    /// Measure many recipes.
    Sweep {
        job: JobId,
        cancel: Cancel,
        spec: SweepSpec,
    },
    /// Let two recipes write.
    Free { job: JobId, cancel: Cancel, spec: FreeSpec },
    /// Look at the model or at the text.
    Look { what: Look, to: Responder },
    /// Time ops on sampled steps.
    Timing { on: bool, to: Responder },
    /// End the thread.
    Quit,
    /// Panic, as a fault in the engine would.
    #[cfg(test)]
    Break,
}

/// A model to load.
pub(crate) struct LoadTask {
    pub job: JobId,
    pub cancel: Cancel,
    pub source: ModelSource,
    pub path: PathBuf,
    pub name: String,
    pub context: u64,
    pub threads: Option<usize>,
}

/// What to write.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// A user's message after the shown branch, then the answer.
    Send(String),
    /// A sibling of a message of the model.
    Again(u32),
    /// Go on with the shown branch.
    Continue,
    /// A sibling of a message with another text, then the answer (or its continuation).
    Edit { node: u32, text: String },
    /// A sibling that keeps some tokens and takes another one.
    Branch { node: u32, index: u32, token: u32 },
}

/// Another recipe.
pub(crate) enum RecipeChange {
    Edits(Vec<Edit>),
    Json(String),
}

/// What to look at.
pub(crate) enum Look {
    Tree,
    Plan { tokens: u32, context: u64 },
    Baselines,
    Preview(Vec<Edit>),
    Attention(AttentionSpec),
    Rows(u32),
    Router,
    Metric(String),
}

impl Look {
    /// Whether it processes the text again.
    fn replays(&self) -> bool {
        !matches!(
            self,
            Look::Tree | Look::Plan { .. } | Look::Baselines | Look::Preview(_)
        )
    }
}

/// A model with its running text.
pub(super) struct Loaded {
    pub engine: Arc<Engine>,
    pub session: Session,
    pub model: Arc<LoadedModel>,
    /// Hash of the recipe in force.
    pub hash: String,
    /// Number of the vocabulary ([`crate::models::facts::vocabulary`]).
    pub vocabulary: u64,
    /// Most bytes of text one token stands for.
    pub longest_piece: usize,
    /// Positions at which swaps converted rows of the cache.
    pub converted: Vec<u64>,
    /// How often the session had to read its text anew ([`Session::revivals`]).
    pub revivals: u64,
    /// Times of ops, while they are asked for.
    pub timer: Option<OpTimer>,
}

/// The thread's state.
pub(crate) struct Worker {
    hub: Arc<Hub>,
    commands: Receiver<Command>,
    /// Commands that came while something else ran.
    later: VecDeque<Command>,
    loaded: Option<Loaded>,
    /// What runs, for messages; empty while a text is written.
    busy: &'static str,
    quit: bool,
    /// Device models run on.
    device: String,
    /// Whether engines run in processes of their own.
    process: engine::worker::Mode,
    /// Least time from one written token to the next.
    token_time: Duration,
}

impl Worker {
    pub fn new(
        hub: Arc<Hub>,
        commands: Receiver<Command>,
        on: (String, engine::worker::Mode),
        token_time: Duration,
    ) -> Self {
        Self {
            hub,
            commands,
            later: VecDeque::new(),
            loaded: None,
            busy: "",
            quit: false,
            device: on.0,
            process: on.1,
            token_time,
        }
    }

    /// Runs until told to quit.
    pub fn run(mut self) {
        while !self.quit {
            let command = match self.later.pop_front() {
                Some(c) => c,
                None => match self.commands.recv() {
                    Ok(c) => c,
                    Err(_) => return,
                },
            };
            if catch_unwind(AssertUnwindSafe(|| self.handle(command))).is_err() {
                self.broke();
            }
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Load(task) => self.load(task),
            Command::Close(to) => {
                self.unload();
                self.hub.with(|inner| {
                    inner.model = Model::None;
                    inner.changed();
                });
                to.send(Ok(Reply::Done));
            }
            Command::Write {
                action,
                spec,
                stop,
                number,
                to,
            } => self.write(&action, spec, (&stop, number), to),
            Command::Replay { job, cancel } => self.replay(job, &cancel),
            Command::Restart { job, cancel } => self.restart(job, &cancel),
            Command::Compare { job, cancel, spec } => self.compare(job, &cancel, &spec),
            Command::Sweep { job, cancel, spec } => self.sweep(job, &cancel, &spec),
            Command::Free { job, cancel, spec } => self.free(job, &cancel, &spec),
            Command::Quit => {
                self.quit = true;
                self.unload();
            }
            #[cfg(test)]
            Command::Break => std::panic::panic_any("on purpose"),
            quick => self.quick(quick),
        }
    }

    /// Commands that are answered at once, also between two tokens.
    fn quick(&mut self, command: Command) {
        match command {
            Command::Recipe { change, to } => {
                let result = self.change_recipe(change);
                to.send(result.map(Reply::Recipe));
            }
            Command::Look { what, to } => {
                let gone = to.gone.clone();
                to.send(self.look(what, &gone));
            }
            Command::Timing { on, to } => {
                to.send(self.set_timing(on).map(|()| Reply::Done));
            }
            other => self.later.push_back(other),
        }
    }

    /// Looks at the commands that came meanwhile. Called between steps, and from within long computations.
    fn between(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                // What was cancelled ends at its next step; a message that comes until then waits for that.
                Command::Write { to, .. } if !self.busy.is_empty() && self.runs() => {
                    to.send(Err(self.is_busy()));
                }
                c @ (Command::Recipe { .. } | Command::Timing { .. }) => self.quick(c),
                Command::Look { what, to } if self.busy.is_empty() || !what.replays() => {
                    self.quick(Command::Look { what, to });
                }
                other => self.later.push_back(other),
            }
        }
    }

    /// Whether a job runs that nobody cancelled.
    fn runs(&self) -> bool {
        self.hub.with(|inner| inner.jobs.running().is_some())
    }

    fn is_busy(&self) -> ErrorInfo {
        let far = self.hub.with(|inner| {
            let job = inner.jobs.running()?;
            (job.total > 0).then(|| format!(" ({} %)", 100 * job.done / job.total))
        });
        refused(
            format!("{} is running{}.", self.busy, far.unwrap_or_default()),
            "Wait for it, or cancel it.",
        )
    }

    fn loaded(&self) -> Result<&Loaded, ErrorInfo> {
        self.loaded.as_ref().ok_or_else(no_model)
    }

    fn loaded_mut(&mut self) -> Result<&mut Loaded, ErrorInfo> {
        self.loaded.as_mut().ok_or_else(no_model)
    }

    /// Lets go of the model.
    fn unload(&mut self) {
        self.loaded = None;
        self.hub.with(|inner| {
            inner.engine = None;
            inner.recipe = None;
            inner.position = 0;
            inner.context = 0;
            inner.prefill = None;
            inner.op_timing = false;
            inner.engine_ended.clear();
            inner.restored = 0;
            inner.device.free_bytes = engine::memory::available().unwrap_or(0);
            inner.changed();
        });
    }

    /// Runs a job with sessions of its own, which the texts wait for; `busy` says what is going on.
    fn long_job(
        &mut self,
        job: JobId,
        cancel: &Cancel,
        busy: &'static str,
        work: impl FnOnce(&mut Self) -> Result<(), ErrorInfo>,
    ) {
        if cancel.is_cancelled() {
            self.end_job(job, Err(cancelled()));
            return;
        }
        self.busy = busy;
        let result = work(self);
        self.busy = "";
        self.end_job(job, result);
        self.between();
    }

    /// The tokens such a job reads, where its text is the one on screen; it makes others itself.
    fn compared(&self, loaded: &Loaded, text: &CompareText) -> Result<Vec<u32>, ErrorInfo> {
        match text {
            CompareText::Current => Ok(self.shown(loaded)?.0),
            CompareText::Given(_) | CompareText::Builtin => Ok(Vec::new()),
        }
    }

    /// Ends a job.
    fn end_job(&self, job: JobId, result: Result<(), ErrorInfo>) {
        self.hub.with(|inner| {
            inner.jobs.change(job, |j| {
                j.state = match result {
                    Ok(()) => {
                        j.done = j.total.max(j.done);
                        JobState::Done
                    }
                    Err(e) => JobState::Failed(e),
                };
            });
        });
    }

    /// Something in the engine panicked. The session cannot be trusted; the texts are in the hub.
    fn broke(&mut self) {
        self.busy = "";
        let error = internal("The engine broke down.").remedy("The texts are safe. Open the model again.");
        tracing::error!("the engine panicked");
        let name = self.loaded.as_ref().map_or(String::new(), |l| l.model.name.clone());
        // Dropping a broken session may panic once more.
        let loaded = self.loaded.take();
        let _ = catch_unwind(AssertUnwindSafe(move || drop(loaded)));
        self.unload();
        self.hub.with(|inner| {
            if let Some((doc, node)) = inner.writing.take() {
                let now = crate::docs::now();
                inner.docs.change(doc, |d| {
                    let end = crate::docs::Ended {
                        finish: protocol::FinishView::Failed,
                        tail: String::new(),
                        summary: None,
                        error: Some(error.clone()),
                        command: String::new(),
                    };
                    d.finish(node, end, now);
                });
            }
            inner.stop = None;
            inner.jobs.fail_running(&error);
            inner.model = Model::Failed { name, error };
            inner.doc_changed();
        });
    }
}
