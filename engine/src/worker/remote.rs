//! This end: a backend whose work is done by the process.

use std::any::Any;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use checkpoint::Progress;
use kernels::ir::{
    Backend, CacheDesc, CacheId, ExecError, KvBytes, Op, Plan, Snapshot, State, StepOutput, StepRequest, WeightDesc,
    WeightId, WeightSource,
};
use serde_bytes::ByteBuf;

use super::frames::{self, Answer, Call, Open, RunCall};
use super::process::{Process, StartError};
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

struct Inner {
    process: Option<Process>,
    /// How the last one ended.
    ended: String,
    /// Rises with every process: states of another one are gone.
    generation: u64,
    /// When processes ended since the last token.
    ends: Vec<Instant>,
    /// Restarts since the last token that nobody asked for.
    restarted: usize,
    states: u64,
    runs: u64,
}

/// The process and how to start it again.
pub(crate) struct Shared {
    setup: Setup,
    open: Open,
    what: &'static str,
    name: &'static str,
    describe: String,
    inner: Mutex<Inner>,
    resident: AtomicU64,
}

/// A backend in a process of its own; clones are the same one.
#[derive(Clone)]
pub(crate) struct Remote(Arc<Shared>);

/// What a device is called whose process ended.
fn what(device: &str) -> &'static str {
    if device.starts_with("cuda") {
        "The GPU process"
    } else {
        "The engine process"
    }
}

fn astray() -> ExecError {
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
        let (name, describe, warning) = opened(&mut process, &open, progress)?;
        // Another process must run on the same device.
        if open.device == "auto" {
            open.device = name.clone();
        }
        open.prefault = false;
        let shared = Shared {
            setup,
            what: self::what(&open.device),
            open,
            name: known_name(&name),
            describe,
            inner: Mutex::new(Inner {
                process: Some(process),
                ended: String::new(),
                generation: 1,
                ends: Vec::new(),
                restarted: 0,
                states: 0,
                runs: 0,
            }),
            resident: AtomicU64::new(0),
        };
        Ok((Self(Arc::new(shared)), warning))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
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

    fn lost(&self, why: &str) -> ExecError {
        ExecError::Lost(format!("{} ended: {why}", self.0.what))
    }

    /// Notes that the process is gone, if it is.
    fn bury(&self, inner: &mut Inner) {
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
                 itself; accepted: another recipe, a smaller context, or --device cpu",
                inner.ends.len(),
                inner.ended
            )));
        }
        if inner.restarted >= self.0.setup.restarts {
            return Err(ExecError::Device(format!(
                "{what} ended again before it wrote a token: {}. The text is safe; it can be started once more (Restart engine)",
                inner.ended
            )));
        }
        Ok(())
    }

    /// Asks the process that runs and waits for the answer.
    fn ask(&self, inner: &mut Inner, call: &Call) -> Result<Answer, ExecError> {
        self.ask_patiently(inner, call, &mut |_, _| {}, &mut |_| {})
    }

    /// As [`Remote::ask`]; `progress` hears of progress, `look` is called while it takes its time.
    fn ask_patiently(
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
                    let ExecError::Device(why) = &e else { return Err(e) };
                    // What follows in that process cannot be trusted.
                    process.fail(why);
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

/// Opens the model: (name of the backend, its description, a warning).
fn opened(
    process: &mut Process,
    open: &Open,
    progress: &dyn Progress,
) -> Result<(String, String, Option<String>), String> {
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
                warning,
            }) => return Ok((name, describe, warning)),
            Ok(Answer::Refused(why)) => return Err(why),
            Ok(_) => return Err("it answered something else".into()),
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => return Err(super::CANCELLED.into()),
            Err(_) => return Err(gone(process)),
        }
    }
}

/// What tells plans of one state apart: what the hash covers, the bucket, and the probes, which it does not cover.
type PlanKey = (u64, usize, usize, usize, bool, usize, Vec<String>);

fn key(plan: &Plan) -> PlanKey {
    let probes = plan.ops.iter().filter_map(|o| match &o.op {
        Op::Probe { name, .. } => Some(name.clone()),
        _ => None,
    });
    (
        plan.hash,
        plan.ops.len(),
        plan.token_bucket,
        plan.context_bucket,
        plan.all_logits,
        plan.weights.len(),
        probes.collect(),
    )
}

/// A session's cache in the process.
struct RemoteState {
    remote: Remote,
    number: u64,
    generation: u64,
    caches: Vec<CacheDesc>,
    allocated: Vec<KvBytes>,
    /// Tokens of the last step's history that the process holds.
    history: Vec<u32>,
    plans: HashMap<PlanKey, u64>,
    sent: u64,
}

impl RemoteState {
    fn ask(&self, call: &Call) -> Result<Answer, ExecError> {
        let mut inner = self.remote.inner();
        self.remote.bury(&mut inner);
        if inner.process.is_none() || inner.generation != self.generation {
            return Err(self.remote.lost(&inner.ended));
        }
        self.remote.ask(&mut inner, call)
    }

    fn done(&mut self, call: &Call) -> Result<(), ExecError> {
        match self.ask(call)? {
            Answer::Done(allocated) => {
                if let Some(a) = allocated {
                    self.allocated = a;
                }
                Ok(())
            }
            _ => Err(astray()),
        }
    }

    /// Number of a plan, sent if it was not.
    fn plan(&mut self, inner: &mut Inner, plan: &Plan, weights: &dyn WeightSource) -> Result<u64, ExecError> {
        let key = key(plan);
        if let Some(&number) = self.plans.get(&key) {
            return Ok(number);
        }
        let cbor = frames::plan_to_cbor(plan)?;
        let ids = (0..plan.weights.len() as u32).map(WeightId);
        let made = ids.filter_map(|id| Some((id.0, weights.made_from(id)?.0))).collect();
        self.sent += 1;
        let call = Call::Plan {
            state: self.number,
            number: self.sent,
            cbor: ByteBuf::from(cbor),
            made,
        };
        if let Some(process) = &mut inner.process {
            // One that is gone is noticed by the step.
            let _ = process.send(&call);
        }
        self.plans.insert(key, self.sent);
        Ok(self.sent)
    }
}

impl Drop for RemoteState {
    fn drop(&mut self) {
        let mut inner = self.remote.inner();
        if inner.generation == self.generation
            && let Some(process) = &mut inner.process
        {
            // One that is gone holds nothing.
            let _ = process.send(&Call::DropState(self.number));
        }
    }
}

impl State for RemoteState {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }

    fn caches(&self) -> &[CacheDesc] {
        &self.caches
    }

    fn reserve(&mut self, _context: u64) -> Result<(), ExecError> {
        // Every step makes its own room there: one question less per token.
        Ok(())
    }

    fn snapshot(&self, position: u64) -> Snapshot {
        let call = Call::Snapshot {
            state: self.number,
            position,
        };
        let parts = match self.ask(&call) {
            Ok(Answer::Snapshot(parts)) => parts.into_iter().map(ByteBuf::into_vec).collect(),
            // The state is gone with its process: the session notices before it restores anything.
            _ => Vec::new(),
        };
        Snapshot { position, parts }
    }

    fn restore(&mut self, snapshot: &Snapshot) -> Result<(), ExecError> {
        self.history.clear();
        self.done(&Call::Restore {
            state: self.number,
            position: snapshot.position,
            parts: snapshot.parts.iter().map(|p| ByteBuf::from(p.clone())).collect(),
        })
    }

    fn reformat(&mut self, cache: CacheId, desc: CacheDesc, position: u64) -> Result<(), ExecError> {
        self.plans.clear();
        self.done(&Call::Reformat {
            state: self.number,
            cache: cache.0,
            desc: desc.clone(),
            position,
        })?;
        if let Some(c) = self.caches.get_mut(cache.index()) {
            *c = desc;
        }
        Ok(())
    }

    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        let call = Call::ReadRows {
            state: self.number,
            cache: cache.0,
            first: first as u64,
            count: count as u64,
        };
        match self.ask(&call)? {
            Answer::Rows(rows) => Ok(rows),
            _ => Err(astray()),
        }
    }

    fn kv_bytes(&self, context: u64) -> Vec<(KvBytes, KvBytes)> {
        let layers = self.caches.iter().map(|d| d.layer as usize + 1).max().unwrap_or(0);
        let mut out = vec![(KvBytes::default(), KvBytes::default()); layers];
        for d in &self.caches {
            if let Some(slot) = out.get_mut(d.layer as usize) {
                slot.0.add(&d.kv_bytes(d.used_rows(context)));
            }
        }
        for (slot, allocated) in out.iter_mut().zip(&self.allocated) {
            slot.1 = *allocated;
        }
        out
    }

    fn is_lost(&self) -> bool {
        let mut inner = self.remote.inner();
        self.remote.bury(&mut inner);
        inner.process.is_none() || inner.generation != self.generation
    }
}

impl Backend for Remote {
    fn name(&self) -> &'static str {
        self.0.name
    }

    fn describe(&self) -> String {
        self.0.describe.clone()
    }

    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        let mut inner = self.inner();
        self.alive(&mut inner)?;
        inner.states += 1;
        let number = inner.states;
        let call = Call::NewState {
            state: number,
            caches: caches.to_vec(),
            context,
        };
        let Answer::Done(allocated) = self.ask(&mut inner, &call)? else {
            return Err(astray());
        };
        Ok(Box::new(RemoteState {
            remote: self.clone(),
            number,
            generation: inner.generation,
            caches: caches.to_vec(),
            allocated: allocated.unwrap_or_default(),
            history: Vec::new(),
            plans: HashMap::new(),
            sent: 0,
        }))
    }

    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let Some(state) = state.as_any_mut().downcast_mut::<RemoteState>() else {
            return Err(ExecError::Mismatch {
                what: "state",
                detail: "made by another backend".into(),
            });
        };
        request.go_on()?;
        let mut inner = self.inner();
        self.bury(&mut inner);
        if inner.process.is_none() || inner.generation != state.generation {
            return Err(self.lost(&inner.ended));
        }
        let number = state.plan(&mut inner, plan, weights)?;
        let common = state
            .history
            .iter()
            .zip(request.history)
            .take_while(|(a, b)| a == b)
            .count();
        inner.runs += 1;
        let run = inner.runs;
        let call = Call::Run(Box::new(RunCall {
            number: run,
            state: state.number,
            plan: number,
            step: request.step,
            ids: request.ids.to_vec(),
            kept: common as u64,
            more: request.history[common..].to_vec(),
            sampler: request.sampler.copied(),
            trace: request.trace,
        }));
        // Until it is answered it is not known what the process holds.
        let mut history = std::mem::take(&mut state.history);
        let mut stopped = false;
        let mut look = |process: &Process| {
            if !stopped && request.go_on().is_err() {
                stopped = true;
                process.stop(run);
            }
        };
        let Answer::Ran(ran) = self.ask_patiently(&mut inner, &call, &mut |_, _| {}, &mut look)? else {
            return Err(astray());
        };
        history.truncate(common);
        history.extend_from_slice(&request.history[common..]);
        state.history = history;
        if let Some(a) = ran.allocated {
            state.allocated = a;
        }
        if let Some(bytes) = ran.resident {
            self.0.resident.store(bytes, Ordering::Relaxed);
        }
        if ran.sampled.is_some() {
            inner.ends.clear();
            inner.restarted = 0;
        }
        out.logits = ran.logits;
        out.sampled = ran.sampled;
        out.probes = ran.probes.into_iter().map(|(n, w, v)| (n, w as usize, v)).collect();
        out.layers = ran.layers;
        out.times = ran.times;
        Ok(())
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
