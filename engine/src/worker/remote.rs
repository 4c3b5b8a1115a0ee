//! This end: a backend whose work is done by the process.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use checkpoint::Progress;
use kernels::ir::{
    Backend, CacheDesc, ExecError, Plan, State, StepOutput, StepRequest, WeightDesc, WeightId, WeightSource,
};

use super::frames::{Answer, Call, Open};
use super::process::{Process, StartError};
use super::state::RemoteState;
use super::{Notify, known_name};

/// Ends without a token in between that are too many within [`LOOP_TIME`].
const LOOP: usize = 3;
const LOOP_TIME: Duration = Duration::from_secs(60);

/// How a process is kept.
pub(crate) struct Setup {
    pub program: PathBuf,
    pub notify: Notify,
    /// Restarts without being asked, between two tokens.
    pub restarts: usize,
}

pub(super) struct Inner {
    pub process: Option<Process>,
    /// How the last one ended.
    pub ended: String,
    /// Rises with every process: states of another one are gone.
    pub generation: u64,
    /// When processes ended since the last token.
    pub ends: Vec<Instant>,
    /// Restarts since the last token that nobody asked for.
    pub restarted: usize,
    numbers: u64,
    pub runs: u64,
}

impl Inner {
    /// A number that no state and no checkpoint had before.
    pub fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// The process and how to start it again.
pub(crate) struct Shared {
    setup: Setup,
    open: Open,
    what: &'static str,
    name: &'static str,
    describe: String,
    chunk: usize,
    batch: usize,
    inner: Mutex<Inner>,
    pub(super) resident: AtomicU64,
}

/// A backend in a process of its own; clones are the same one.
#[derive(Clone)]
pub(crate) struct Remote(pub(super) Arc<Shared>);

/// What a device is called whose process ended.
fn what(device: &str) -> &'static str {
    if device.starts_with("cuda") {
        "The GPU process"
    } else {
        "The engine process"
    }
}

pub(super) fn astray() -> ExecError {
    ExecError::Mismatch {
        what: "the engine's process",
        detail: "an answer to another question came".into(),
    }
}

impl Remote {
    /// Starts a process and opens a model in it: the backend, and what is worth saying about the device.
    ///
    /// # Errors
    /// In a sentence.
    pub(super) fn start(
        setup: Setup,
        mut open: Open,
        progress: &dyn Progress,
    ) -> Result<(Self, Option<String>), String> {
        let what = what(&open.device);
        let process = Process::start(&setup.program, what, setup.notify.clone());
        let mut process = process.map_err(|e| format!("{what} cannot be started: {}: {e}", setup.program.display()))?;
        let opened = opened(&mut process, &open, progress)?;
        // Another process must run on the same device.
        if open.device == "auto" {
            open.device = opened.name.clone();
        }
        open.prefault = false;
        let shared = Shared {
            setup,
            what: self::what(&open.device),
            open,
            name: known_name(&opened.name),
            describe: opened.describe,
            chunk: opened.chunk,
            batch: opened.batch,
            inner: Mutex::new(Inner {
                process: Some(process),
                ended: String::new(),
                generation: 1,
                ends: Vec::new(),
                restarted: 0,
                numbers: 0,
                runs: 0,
            }),
            resident: AtomicU64::new(0),
        };
        Ok((Self(Arc::new(shared)), opened.warning))
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of the process; `None` where none runs.
    pub fn pid(&self) -> Option<u32> {
        self.inner().process.as_ref().filter(|p| !p.is_over()).map(Process::pid)
    }

    /// Lets the next step start a process again, however often it ended before.
    pub fn allow(&self) {
        let mut inner = self.inner();
        inner.restarted = 0;
        let now = Instant::now();
        // What is older than a loop's time does not count as one.
        inner.ends.retain(|t| now.duration_since(*t) < LOOP_TIME);
    }

    pub(super) fn lost(&self, why: &str) -> ExecError {
        ExecError::Lost(format!("{} ended: {why}", self.0.what))
    }

    /// Notes that the process is gone, if it is.
    pub(super) fn bury(&self, inner: &mut Inner) {
        if inner.process.as_ref().is_some_and(Process::is_over)
            && let Some(process) = inner.process.take()
        {
            inner.ended = process.ended();
            inner.ends.push(Instant::now());
            self.0.resident.store(0, Ordering::Relaxed);
        }
    }

    /// A process that runs, started again if need be.
    fn alive<'a>(&self, inner: &'a mut Inner) -> Result<&'a mut Process, ExecError> {
        self.bury(inner);
        if inner.process.is_none() {
            self.restart(inner)?;
        }
        inner.process.as_mut().ok_or_else(|| self.lost("it is gone"))
    }

    /// Starts a process again, and again where it ends before the model is open, as long as that is allowed.
    fn restart(&self, inner: &mut Inner) -> Result<(), ExecError> {
        let shared = &*self.0;
        let failed = |e: String| ExecError::Device(format!("{} cannot be started again: {e}", shared.what));
        loop {
            self.may_restart(inner)?;
            inner.restarted += 1;
            let started = Process::start(&shared.setup.program, shared.what, shared.setup.notify.clone());
            let mut process = match started {
                Ok(process) => process,
                Err(StartError::Failed(e)) => return Err(failed(e.to_string())),
                Err(StartError::Ended(words)) => {
                    inner.ended = words;
                    inner.ends.push(Instant::now());
                    continue;
                }
            };
            let opened = opened(&mut process, &shared.open, &checkpoint::Silent);
            inner.process = Some(process);
            match opened {
                Ok(_) => break,
                Err(why) => {
                    self.bury(inner);
                    if inner.process.take().is_some() {
                        return Err(failed(why));
                    }
                }
            }
        }
        inner.generation += 1;
        let said = format!(
            "{} was started again with the same recipe; the text is read anew.",
            shared.what
        );
        (shared.setup.notify)(&said, true);
        Ok(())
    }

    /// Refuses to start a process that ended too often.
    fn may_restart(&self, inner: &mut Inner) -> Result<(), ExecError> {
        let (what, now) = (self.0.what, Instant::now());
        inner.ends.retain(|t| now.duration_since(*t) < LOOP_TIME);
        if inner.ends.len() >= LOOP {
            return Err(ExecError::Device(format!(
                "{what} ended {} times within a minute without writing a token, the last time: {}. It is not started again by \
                 itself; accepted: another recipe, a smaller context, another try in a minute, or --device cpu",
                inner.ends.len(),
                inner.ended
            )));
        }
        if inner.restarted >= self.0.setup.restarts {
            return Err(ExecError::Device(format!(
                "{what} ended again before it wrote a token: {}. The text is safe; it can be started once more \
                 (Restart engine in the app, /regenerate in a chat)",
                inner.ended
            )));
        }
        Ok(())
    }

    /// Asks the process that runs and waits for the answer.
    pub(super) fn ask(&self, inner: &mut Inner, call: &Call) -> Result<Answer, ExecError> {
        self.ask_patiently(inner, call, &mut |_, _| {}, &mut |_| {})
    }

    /// As [`Remote::ask`]; `progress` hears of progress, `look` is called while it takes its time.
    pub(super) fn ask_patiently(
        &self,
        inner: &mut Inner,
        call: &Call,
        progress: &mut dyn FnMut(u64, u64),
        look: &mut dyn FnMut(&Process),
    ) -> Result<Answer, ExecError> {
        let Some(process) = inner.process.as_mut() else {
            return Err(self.lost(&inner.ended));
        };
        let mut answered = process.send(call).and_then(|()| process.wait(&mut || true));
        loop {
            match answered {
                Ok(Answer::Progress { done, total }) => progress(done, total),
                // The wait was only interrupted, to look.
                Err(e) if e.kind() == std::io::ErrorKind::TimedOut => look(process),
                Ok(Answer::Failed(e)) => {
                    let e = ExecError::from(e);
                    // What follows in that process cannot be trusted.
                    match &e {
                        ExecError::Fatal(why) => process.fail(&format!("the device failed: {why}")),
                        ExecError::Device(why) => process.fail(why),
                        _ => return Err(e),
                    }
                    break;
                }
                Ok(answer) => return Ok(answer),
                Err(_) => break,
            }
            answered = process.wait(&mut || true);
        }
        let why = process.ended();
        self.bury(inner);
        // One that cannot be ended is let go.
        if inner.process.take().is_some() {
            inner.ended.clone_from(&why);
            inner.ends.push(Instant::now());
        }
        Err(self.lost(&why))
    }

    /// A state of these components that the process makes when it is called with its number.
    pub(super) fn state(
        &self,
        inner: &mut Inner,
        caches: &[CacheDesc],
        call: &dyn Fn(u64) -> Call,
    ) -> Result<Box<dyn State>, ExecError> {
        let number = inner.number();
        let Answer::Done(allocated) = self.ask(inner, &call(number))? else {
            return Err(astray());
        };
        let allocated = allocated.unwrap_or_default();
        let state = RemoteState::new(self.clone(), (number, inner.generation), caches, allocated);
        Ok(Box::new(state))
    }

    /// Stores a loaded weight otherwise, there.
    pub fn make(&self, own: WeightId, desc: &WeightDesc, stop: &AtomicBool) -> Result<(), ExecError> {
        let mut inner = self.inner();
        self.alive(&mut inner)?;
        inner.runs += 1;
        let number = inner.runs;
        let mut look = |process: &Process| {
            if stop.load(Ordering::Relaxed) {
                process.stop(number);
            }
        };
        let call = Call::Make {
            number,
            own: own.0,
            desc: desc.clone(),
        };
        match self.ask_patiently(&mut inner, &call, &mut |_, _| {}, &mut look)? {
            Answer::Done(_) => Ok(()),
            _ => Err(astray()),
        }
    }

    /// Lets the process forget made weights but these.
    pub fn keep(&self, kept: Vec<(u32, WeightDesc)>) {
        let mut inner = self.inner();
        // One that is gone holds none.
        if inner.process.is_some() {
            let _ = self.ask(&mut inner, &Call::Keep(kept));
        }
    }
}

/// What an opened model's process says of its backend.
struct Opened {
    name: String,
    describe: String,
    chunk: usize,
    batch: usize,
    warning: Option<String>,
}

/// Opens the model.
fn opened(process: &mut Process, open: &Open, progress: &dyn Progress) -> Result<Opened, String> {
    let gone = |process: &Process| format!("its process ended: {}", process.ended());
    if process.send(&Call::Open(open.clone())).is_err() {
        return Err(gone(process));
    }
    loop {
        match process.wait(&mut || progress.cancelled()) {
            Ok(Answer::Progress { done, total }) => progress.report(done, total),
            Ok(Answer::Opened {
                name,
                describe,
                chunk,
                batch,
                warning,
            }) => {
                return Ok(Opened {
                    name,
                    describe,
                    chunk: chunk as usize,
                    batch: batch as usize,
                    warning,
                });
            }
            Ok(Answer::Refused(why)) => return Err(why),
            Ok(_) => return Err("it answered something else".into()),
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => return Err(super::CANCELLED.into()),
            Err(_) => return Err(gone(process)),
        }
    }
}

impl Backend for Remote {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn describe(&self) -> String {
        self.0.describe.clone()
    }

    fn chunk(&self) -> usize {
        self.0.chunk
    }

    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        let mut inner = self.inner();
        self.alive(&mut inner)?;
        self.state(&mut inner, caches, &|state| Call::NewState {
            state,
            caches: caches.to_vec(),
            context,
        })
    }

    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        self.step(plan, weights, state, request, out)
    }

    fn batch(&self) -> usize {
        self.0.batch
    }

    fn run_batch(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        states: &mut [&mut dyn State],
        requests: &[StepRequest<'_>],
        outs: &mut [StepOutput],
    ) -> Result<Option<String>, ExecError> {
        self.steps(plan, weights, states, requests, outs)
    }

    fn read_bandwidth(&self) -> Result<Option<f64>, ExecError> {
        let mut inner = self.inner();
        self.alive(&mut inner)?;
        match self.ask(&mut inner, &Call::Bandwidth)? {
            Answer::Number(n) => Ok(n),
            _ => Err(astray()),
        }
    }

    fn device_memory(&self) -> Result<Option<(u64, u64)>, ExecError> {
        let mut inner = self.inner();
        self.alive(&mut inner)?;
        match self.ask(&mut inner, &Call::DeviceMemory)? {
            Answer::Memory(m) => Ok(m),
            _ => Err(astray()),
        }
    }

    fn resident(&self) -> Option<u64> {
        Some(self.0.resident.load(Ordering::Relaxed)).filter(|b| *b > 0)
    }
}
