//! The other end: a process that holds the device, the caches and the weights as the device needs them, and nothing that
//! could not be made again.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use checkpoint::{Checkpoint, Progress, Silent};
use kernels::ir::{
    Backend, CacheId, ExecError, KvBytes, Plan, Snapshot, State, StepOutput, StepRequest, WeightDesc, WeightId,
};

use super::frames::{self, Answer, Call, Failure, Open, RanAnswer, Reader, RunCall, VERSION};
use super::state::key;
use crate::device::OpenGpu;
use crate::engine::on_device;
use crate::error::EngineError;
use crate::model::{Stored, WeightStore, make_variant};
use crate::recipe::{Registry, WeightStorage};
use crate::{families, memory};

/// Which run is to be given up.
#[derive(Default)]
pub(super) struct Stopper {
    numbers: Mutex<Numbers>,
    flag: AtomicBool,
}

#[derive(Default)]
struct Numbers {
    running: u64,
    stopped: u64,
}

impl Stopper {
    fn begin(&self, number: u64) {
        let mut n = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        n.running = number;
        // Number 0 is what nobody can stop.
        self.flag.store(number > 0 && n.stopped == number, Ordering::Relaxed);
    }

    /// Listens to the control stream until it ends.
    pub fn listen(&self, control: &mut impl Read) {
        let mut number = [0; 8];
        while control.read_exact(&mut number).is_ok() {
            let mut n = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
            n.stopped = u64::from_le_bytes(number);
            if n.stopped == n.running {
                self.flag.store(true, Ordering::Relaxed);
            }
        }
    }
}

/// A session's cache here.
struct Held {
    state: Box<dyn State>,
    weights: WeightStore,
    plans: HashMap<u64, Plan>,
    history: Vec<u32>,
    /// Bytes allocated per layer that the other end knows of.
    told: Vec<KvBytes>,
}

impl Held {
    /// Bytes allocated per layer, if the other end does not know.
    fn allocated(&mut self) -> Option<Vec<KvBytes>> {
        let now: Vec<KvBytes> = self.state.kv_bytes(0).into_iter().map(|b| b.1).collect();
        (now != self.told).then(|| {
            self.told.clone_from(&now);
            now
        })
    }

    /// Brings the history to that of a step, and makes room for it.
    fn take(&mut self, run: &RunCall) -> Result<(), ExecError> {
        self.history.truncate(run.kept as usize);
        self.history.extend_from_slice(&run.more);
        self.state.reserve(run.step.context())
    }

    /// What step number `runs` of this process left in `out`.
    fn answer(&mut self, out: &mut StepOutput, runs: u64) -> RanAnswer {
        RanAnswer {
            logits: std::mem::take(&mut out.logits),
            sampled: out.sampled.take(),
            probes: out
                .probes
                .drain(..)
                .map(|(name, width, v)| (name, width as u64, v))
                .collect(),
            layers: out.layers.clone(),
            times: std::mem::take(&mut out.times),
            ahead_nanos: out.ahead_nanos.take(),
            allocated: self.allocated(),
            // As often as the record wants it.
            resident: (runs % 16 == 1).then(memory::resident).flatten(),
        }
    }
}

/// The plan of a step; `wrong` is one that could not be taken, and why.
fn plan_of<'a>(
    plans: &'a HashMap<u64, Plan>,
    run: &RunCall,
    wrong: Option<&(u64, String)>,
) -> Result<&'a Plan, ExecError> {
    plans.get(&run.plan).ok_or_else(|| match wrong {
        Some((number, why)) if *number == run.plan => ExecError::Mismatch {
            what: "state",
            detail: why.clone(),
        },
        _ => unknown("plan of this number"),
    })
}

/// Whether two states would compute the same.
fn alike(a: (&Plan, &WeightStore), b: (&Plan, &WeightStore)) -> bool {
    let n = a.0.weights.len();
    let mut ids = (0..n as u32).map(WeightId);
    // A state may know weights that this plan does not read.
    key(a.0) == key(b.0) && a.1.len().min(b.1.len()) >= n && ids.all(|id| Arc::ptr_eq(a.1.entry(id), b.1.entry(id)))
}

/// A step as the backend takes it.
fn request<'a>(run: &'a RunCall, history: &'a [u32], stopper: &'a Stopper) -> StepRequest<'a> {
    StepRequest {
        step: run.step,
        ids: &run.ids,
        history,
        sampler: run.sampler.as_ref(),
        trace: run.trace,
        ahead: run.ahead,
        cancel: Some(&stopper.flag),
    }
}

/// A model on a device.
pub(super) struct Model {
    pub backend: Arc<dyn Backend>,
    pub weights: WeightStore,
    pub threads: usize,
    pub warning: Option<String>,
}

/// Opens what is asked for.
pub(super) type Opener<'a> = dyn Fn(&Open, &dyn Progress) -> Result<Model, String> + 'a;

/// A checkpoint on the device that was named; `gpus` opens those.
pub(super) fn open(ask: &Open, progress: &dyn Progress, gpus: &OpenGpu<'_>) -> Result<Model, String> {
    let opened = || -> Result<Model, EngineError> {
        let checkpoint = Checkpoint::open(ask.model.as_ref(), &Silent)?;
        let threads = ask.threads as usize;
        let loaded = families::load(&checkpoint)?;
        let hold = (&ask.planned, ask.context);
        let chosen = on_device(&checkpoint, &ask.device, threads, &Registry::default(), hold, gpus)?;
        if ask.prefault {
            checkpoint.prefault(threads, progress)?;
        }
        Ok(Model {
            backend: chosen.backend,
            weights: loaded.weights,
            threads,
            warning: chosen.warning,
        })
    };
    opened().map_err(|e| e.to_string())
}

/// Answers calls until the other end is gone.
pub(super) struct Child<'a, S: Read + Write> {
    calls: Reader<S>,
    answers: S,
    stopper: &'a Stopper,
    opener: &'a Opener<'a>,
    model: Option<Model>,
    made: HashMap<(WeightId, WeightStorage), Arc<Stored>>,
    states: HashMap<u64, Held>,
    snapshots: HashMap<u64, Snapshot>,
    out: StepOutput,
    runs: u64,
    /// A plan that could not be taken, and why.
    wrong: Option<(u64, String)>,
}

/// Passes progress on.
struct Telling<'a, S>(Mutex<&'a mut S>);

impl<S: Write + Send> Progress for Telling<'_, S> {
    fn report(&self, done: u64, total: u64) {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // An other end that is gone is noticed at the next answer.
        let _ = frames::write(&mut **to, &Answer::Progress { done, total });
    }

    fn cancelled(&self) -> bool {
        false
    }
}

fn unknown(what: &str) -> ExecError {
    ExecError::Mismatch {
        what: "state",
        detail: format!("there is no {what} here"),
    }
}

impl<'a, S: Read + Write + Send> Child<'a, S> {
    pub fn new(calls: S, answers: S, stopper: &'a Stopper, opener: &'a Opener<'a>) -> Self {
        Self {
            calls: Reader::new(calls),
            answers,
            stopper,
            opener,
            model: None,
            made: HashMap::new(),
            states: HashMap::new(),
            snapshots: HashMap::new(),
            out: StepOutput::default(),
            runs: 0,
            wrong: None,
        }
    }

    /// Answers calls until the other end is gone.
    pub fn serve(mut self) -> io::Result<()> {
        frames::write(&mut self.answers, &Answer::Hello { version: VERSION })?;
        loop {
            let Some(call) = self.calls.next::<Call>()? else {
                continue;
            };
            let answer = match self.call(call) {
                Ok(None) => continue,
                Ok(Some(answer)) => answer,
                Err(e) => Answer::Failed(Failure::from(e)),
            };
            frames::write(&mut self.answers, &answer)?;
        }
    }

    fn call(&mut self, call: Call) -> Result<Option<Answer>, ExecError> {
        Ok(Some(match call {
            Call::Open(ask) => {
                let telling = Telling(Mutex::new(&mut self.answers));
                match (self.opener)(&ask, &telling) {
                    Ok(model) => {
                        let opened = Answer::Opened {
                            name: model.backend.name().into(),
                            describe: model.backend.describe(),
                            chunk: model.backend.chunk() as u64,
                            batch: model.backend.batch() as u64,
                            warning: model.warning.clone(),
                        };
                        self.model = Some(model);
                        opened
                    }
                    Err(why) => Answer::Refused(why),
                }
            }
            Call::NewState { state, caches, context } => {
                let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
                let fresh = model.backend.new_state(&caches, context)?;
                self.hold(state, fresh)?
            }
            Call::Fork { state, new, position } => {
                let copy = self.held(state)?.state.fork(position)?;
                self.hold(new, copy)?
            }
            Call::DropState(state) => {
                self.states.remove(&state);
                return Ok(None);
            }
            Call::Forget(number) => {
                self.snapshots.remove(&number);
                return Ok(None);
            }
            Call::Plan {
                state,
                number,
                cbor,
                made,
            } => {
                // What is wrong with it is said when it is to run.
                if let Err(e) = self.plan(state, number, &cbor, &made) {
                    self.wrong = Some((number, e.to_string()));
                }
                return Ok(None);
            }
            Call::Make { number, own, desc } => {
                self.stopper.begin(number);
                self.make(WeightId(own), &desc)?;
                Answer::Done(None)
            }
            Call::Keep(named) => {
                let keep = |(own, storage): &(WeightId, WeightStorage), stored: &Arc<Stored>| {
                    let _ = storage;
                    named.iter().any(|(o, d)| *o == own.0 && *d == stored.desc)
                };
                self.made.retain(|k, v| keep(k, v));
                Answer::Done(None)
            }
            Call::Run(run) => Answer::Ran(Box::new(self.run(*run)?)),
            Call::RunTogether(runs) => {
                let (ran, apart) = self.run_together(&runs)?;
                Answer::RanTogether(ran, apart)
            }
            Call::Bandwidth => {
                let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
                Answer::Number(model.backend.read_bandwidth()?)
            }
            Call::DeviceMemory => {
                let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
                Answer::Memory(model.backend.device_memory()?)
            }
            other => return self.of_state(other).map(Some),
        }))
    }

    /// Keeps a state that has had no step here.
    fn hold(&mut self, number: u64, state: Box<dyn State>) -> Result<Answer, ExecError> {
        let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
        let mut held = Held {
            state,
            weights: model.weights.clone(),
            plans: HashMap::new(),
            history: Vec::new(),
            told: Vec::new(),
        };
        let allocated = held.allocated();
        self.states.insert(number, held);
        Ok(Answer::Done(allocated))
    }

    fn held(&mut self, state: u64) -> Result<&mut Held, ExecError> {
        self.states
            .get_mut(&state)
            .ok_or_else(|| unknown("state of this number"))
    }

    fn of_state(&mut self, call: Call) -> Result<Answer, ExecError> {
        match call {
            Call::Expect { state, context } => {
                let held = self.held(state)?;
                held.state.expect(context)?;
                Ok(Answer::Done(held.allocated()))
            }
            Call::Snapshot {
                state,
                number,
                position,
            } => {
                let snapshot = self.held(state)?.state.snapshot(position)?;
                let bytes = snapshot.bytes;
                self.snapshots.insert(number, snapshot);
                Ok(Answer::Kept(bytes))
            }
            Call::Restore { state, number } => {
                let snapshot = self.snapshots.get(&number).cloned();
                let snapshot = snapshot.ok_or_else(|| unknown("checkpoint of this number"))?;
                self.held(state)?.state.restore(&snapshot)?;
                Ok(Answer::Done(None))
            }
            Call::Reformat {
                state,
                cache,
                desc,
                position,
            } => {
                let held = self.held(state)?;
                held.state.reformat(CacheId(cache), desc, position)?;
                held.plans.clear();
                Ok(Answer::Done(held.allocated()))
            }
            Call::ReadRows {
                state,
                cache,
                first,
                count,
            } => {
                let rows = self
                    .held(state)?
                    .state
                    .read_rows(CacheId(cache), first as usize, count as usize)?;
                Ok(Answer::Rows(rows))
            }
            _ => Err(unknown("such call")),
        }
    }

    fn plan(&mut self, state: u64, number: u64, cbor: &[u8], made: &[(u32, u32)]) -> Result<(), ExecError> {
        let plan = frames::plan_from_cbor(cbor)?;
        for &(id, own) in made {
            let desc = plan
                .weights
                .get(id as usize)
                .ok_or_else(|| unknown("weight of this number"))?;
            self.stopper.begin(0);
            let storage = self.make(WeightId(own), desc)?;
            let stored = self.made.get(&(WeightId(own), storage)).cloned();
            let stored = stored.ok_or_else(|| unknown("such weight"))?;
            let held = self.held(state)?;
            if held.weights.add_variant(WeightId(own), storage, stored).0 != id {
                return Err(unknown("weight of this number"));
            }
        }
        self.held(state)?.plans.insert(number, plan);
        Ok(())
    }

    /// Stores a loaded weight as `desc` says, unless that was done.
    fn make(&mut self, own: WeightId, desc: &WeightDesc) -> Result<WeightStorage, ExecError> {
        let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
        if own.index() >= model.weights.len() {
            return Err(unknown("weight of this number"));
        }
        let is = |s: &WeightStorage| s.of(model.weights.desc(own)).as_ref() == Some(desc);
        let storage = WeightStorage::ALL.into_iter().find(is);
        let storage = storage.ok_or_else(|| unknown("such storage"))?;
        if let std::collections::hash_map::Entry::Vacant(slot) = self.made.entry((own, storage)) {
            let view = kernels::ir::WeightSource::weight(&model.weights, own)?;
            let stored = make_variant(view, storage, desc.clone(), model.threads, &self.stopper.flag);
            let stored = stored.map_err(|e| match e {
                EngineError::Cancelled => ExecError::Cancelled,
                e => ExecError::Mismatch {
                    what: "weights",
                    detail: e.to_string(),
                },
            })?;
            slot.insert(Arc::new(stored));
        }
        Ok(storage)
    }

    fn run(&mut self, run: RunCall) -> Result<RanAnswer, ExecError> {
        let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
        let held = self
            .states
            .get_mut(&run.state)
            .ok_or_else(|| unknown("state of this number"))?;
        held.take(&run)?;
        let plan = plan_of(&held.plans, &run, self.wrong.as_ref())?;
        self.stopper.begin(run.number);
        let request = request(&run, &held.history, self.stopper);
        let out = &mut self.out;
        model
            .backend
            .run(plan, &held.weights, held.state.as_mut(), &request, out)?;
        self.runs += 1;
        Ok(held.answer(out, self.runs))
    }

    /// A step of each of several states, and why they were taken one after the other.
    fn run_together(&mut self, runs: &[RunCall]) -> Result<(Vec<RanAnswer>, Option<String>), ExecError> {
        let mut all = Vec::with_capacity(runs.len());
        for run in runs {
            // Out of the map: several are changed at once.
            let held = self.states.remove_entry(&run.state);
            all.extend(held);
        }
        let ran = if all.len() == runs.len() {
            self.run_held(runs, &mut all)
        } else {
            Err(unknown("state of this number"))
        };
        self.states.extend(all);
        ran
    }

    fn run_held(
        &mut self,
        runs: &[RunCall],
        all: &mut [(u64, Held)],
    ) -> Result<(Vec<RanAnswer>, Option<String>), ExecError> {
        let model = self.model.as_ref().ok_or_else(|| unknown("model"))?;
        for (run, (_, held)) in runs.iter().zip(all.iter_mut()) {
            held.take(run)?;
        }
        let mut first = None;
        let (mut states, mut requests): (Vec<&mut dyn State>, Vec<_>) = (Vec::new(), Vec::new());
        for (run, (_, held)) in runs.iter().zip(all.iter_mut()) {
            let plan = plan_of(&held.plans, run, self.wrong.as_ref())?;
            let own = (plan, &held.weights);
            if !alike(*first.get_or_insert(own), own) {
                return Err(ExecError::Mismatch {
                    what: "state",
                    detail: "another plan or other weights than those of the first that goes along".into(),
                });
            }
            states.push(held.state.as_mut());
            requests.push(request(run, &held.history, self.stopper));
        }
        let Some((plan, weights)) = first else {
            return Err(unknown("step to take"));
        };
        self.stopper.begin(runs[0].number);
        let mut outs = vec![StepOutput::default(); runs.len()];
        let apart = model
            .backend
            .run_batch(plan, weights, &mut states, &requests, &mut outs)?;
        self.runs += 1;
        let answers = all.iter_mut().zip(&mut outs);
        let answers = answers.map(|((_, held), out)| held.answer(out, self.runs));
        Ok((answers.collect(), apart))
    }
}
