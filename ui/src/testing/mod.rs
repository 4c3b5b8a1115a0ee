//! A scripted host for tests: no engine, ready-made states, every request recorded.
//!
//! `Scene::live()` is a host with the seven-layer MODEL1-mini, a fake story and a few hundred telemetry steps. A test
//! hands [`Scene::dialer`] to [`crate::App::new`], drives the interface, asks which requests came
//! ([`Scene::requests`]) and plays what the host would say ([`Scene::push`], [`Scene::change`]).

mod answers;
mod facts;
mod free;
mod inside;
mod story;
mod sweeps;

use std::cell::RefCell;
use std::rc::Rc;

use protocol::{
    ClientBody, ClientFrame, DocView, ErrorInfo, ErrorKind, Hello, HostFrame, HostInfo, JobId, JobKind, JobState,
    JobView, ModelState, ModelsView, Reply, Request, Settings, StateView, StepRecord, Update, Welcome, decode, encode,
};

use crate::link::{Dialer, Link, LinkEvent};

pub use facts::{baselines, loaded, models, presets, recipe};
pub use free::free_run;
pub use inside::{comparison, plan, router, rows as kept_rows};
pub use story::{WORDS, doc, steps, token};
pub use sweeps::sweep;

type Custom = Box<dyn Fn(&Request) -> Option<Result<Reply, ErrorInfo>>>;

/// What the scripted host knows.
pub struct Script {
    /// The small state.
    pub state: StateView,
    /// The current text.
    pub doc: Option<DocView>,
    /// Telemetry sent on connecting.
    pub steps: Vec<StepRecord>,
    /// Start screen.
    pub models: ModelsView,
    /// Settings.
    pub settings: Settings,
    /// Jobs sent on connecting.
    pub jobs: Vec<JobView>,
    /// Saved texts.
    pub docs: Vec<protocol::DocInfo>,
    custom: Vec<Custom>,
    requests: Vec<Request>,
    hellos: Vec<Hello>,
    outbox: Vec<LinkEvent>,
    connections: usize,
    refusal: Option<String>,
    mute: bool,
    /// What [`HostInfo::recorded`] says.
    pub recorded: String,
    next_seq: u64,
}

/// A scripted host; clones are the same one.
#[derive(Clone)]
pub struct Scene(Rc<RefCell<Script>>);

impl Scene {
    fn with(state: StateView) -> Self {
        Self(Rc::new(RefCell::new(Script {
            state,
            doc: None,
            steps: Vec::new(),
            models: models(),
            // Tests look at what is there, not at the tour.
            settings: Settings {
                tour_seen: true,
                theme: protocol::ThemeChoice::Dark,
                ..Settings::default()
            },
            jobs: Vec::new(),
            docs: Vec::new(),
            custom: Vec::new(),
            requests: Vec::new(),
            hellos: Vec::new(),
            outbox: Vec::new(),
            connections: 0,
            refusal: None,
            mute: false,
            recorded: String::new(),
            next_seq: 10_000,
        })))
    }

    /// No model loaded: the start screen.
    pub fn start() -> Self {
        Self::with(facts::state(ModelState::None))
    }

    /// A model is loaded and nothing has been written: every panel is empty.
    pub fn empty() -> Self {
        let mut state = facts::state(ModelState::Ready(Box::new(loaded())));
        state.recipe = Some(recipe());
        let doc = story::empty_doc();
        state.doc = Some(doc.info.clone());
        let scene = Self::with(state);
        scene.edit(|s| s.doc = Some(doc));
        scene
    }

    /// A model is being loaded, and panels that ask get no answer yet.
    pub fn loading() -> Self {
        let job = JobId(7);
        let scene = Self::with(facts::state(ModelState::Loading {
            name: "SmolLM2-135M-Instruct".into(),
            job,
        }));
        scene.edit(|s| {
            s.jobs.push(JobView {
                id: job,
                kind: JobKind::Load,
                what: "fetching SmolLM2-135M-Instruct".into(),
                done: 41_000_000,
                total: 98_000_000,
                unit: "bytes".into(),
                state: JobState::Running,
            });
        });
        scene
    }

    /// A model is loaded with a text, but the host answers no question: panels show that they load.
    pub fn waiting() -> Self {
        let scene = Self::finished();
        scene.answer(|r| match r {
            Request::GetDoc | Request::ListDocs => None,
            _ => Some(Ok(Reply::Text(NEVER.into()))),
        });
        scene
    }

    /// A text of about 300 tokens, still being written, with telemetry.
    pub fn live() -> Self {
        let (view, state, records) = story::live();
        let scene = Self::with(state);
        scene.edit(|s| {
            s.docs = story::docs(&view);
            s.doc = Some(view);
            s.steps = records;
        });
        scene
    }

    /// As `live`, but finished.
    pub fn finished() -> Self {
        let scene = Self::live();
        scene.edit(|s| story::finish(&mut s.state, s.doc.as_mut()));
        scene
    }

    /// Every question of a panel fails.
    pub fn failing() -> Self {
        let scene = Self::finished();
        scene.answer(|r| match r {
            Request::GetDoc | Request::ListDocs => None,
            _ => Some(Err(ErrorInfo::new(
                ErrorKind::Internal,
                "The engine process ended while it computed this.",
            )
            .remedy("It was started again; ask once more.")
            .details("signal 9 in layer 3\nmodel1 0.1.0, Linux x86_64"))),
        });
        scene
    }

    /// Loading a model failed.
    pub fn broken_model() -> Self {
        let error = ErrorInfo::new(
            ErrorKind::Input,
            "model-00002-of-00003.safetensors: tensor model.layers.7.mlp.up_proj.weight ends at byte 4 831 838 208, the file has 3 221 225 472 bytes.",
        )
        .remedy("The download was cut off: remove the file and fetch it again.")
        .details("loading Qwen3-4B\nshard 2 of 3\nmodel1 0.1.0, Linux x86_64");
        Self::with(facts::state(ModelState::Failed {
            name: "Qwen3-4B".into(),
            error,
        }))
    }

    /// Changes the script before or between connections (nothing is sent).
    pub fn edit(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.0.borrow_mut());
    }

    /// Changes the state and sends it.
    pub fn change(&self, change: impl FnOnce(&mut StateView)) {
        let state = {
            let mut s = self.0.borrow_mut();
            change(&mut s.state);
            s.state.revision += 1;
            s.state.clone()
        };
        self.push(Update {
            state: Some(Box::new(state)),
            ..Update::default()
        });
    }

    /// Answers some requests otherwise than the script does; the last one added is asked first.
    pub fn answer(&self, custom: impl Fn(&Request) -> Option<Result<Reply, ErrorInfo>> + 'static) {
        self.0.borrow_mut().custom.push(Box::new(custom));
    }

    /// Sends an update.
    pub fn push(&self, update: Update) {
        self.push_frame(&HostFrame::Update(Box::new(update)));
    }

    /// Writes `n` more tokens with their telemetry, as the engine would.
    pub fn write(&self, n: usize) {
        let update = story::write_more(&mut self.0.borrow_mut(), n);
        self.push(update);
    }

    fn push_frame(&self, frame: &HostFrame) {
        if let Ok(bytes) = encode(frame) {
            self.push_bytes(bytes);
        }
    }

    /// Sends raw bytes as a frame.
    pub fn push_bytes(&self, bytes: Vec<u8>) {
        self.0.borrow_mut().outbox.push(LinkEvent::Frame(bytes));
    }

    /// Closes the connection.
    pub fn hang_up(&self, reason: &str) {
        self.0.borrow_mut().outbox.push(LinkEvent::Closed(reason.into()));
    }

    /// Answers nothing while set.
    pub fn mute(&self, mute: bool) {
        self.0.borrow_mut().mute = mute;
    }

    /// Refuses every handshake with this sentence.
    pub fn refuse(&self, sentence: &str) {
        self.0.borrow_mut().refusal = Some(sentence.into());
    }

    /// Requests so far, in order.
    pub fn requests(&self) -> Vec<Request> {
        self.0.borrow().requests.clone()
    }

    /// How many requests so far are like this.
    pub fn count(&self, like: impl Fn(&Request) -> bool) -> usize {
        self.0.borrow().requests.iter().filter(|r| like(r)).count()
    }

    /// The newest request that is like this.
    pub fn last(&self, like: impl Fn(&Request) -> bool) -> Option<Request> {
        self.0.borrow().requests.iter().rev().find(|r| like(r)).cloned()
    }

    /// Handshakes so far.
    pub fn hellos(&self) -> Vec<Hello> {
        self.0.borrow().hellos.clone()
    }

    /// Connections made so far.
    pub fn connections(&self) -> usize {
        self.0.borrow().connections
    }

    /// For [`crate::App::new`].
    pub fn dialer(&self) -> Dialer {
        let scene = self.clone();
        Box::new(move |_| {
            let mut s = scene.0.borrow_mut();
            s.connections += 1;
            s.outbox = vec![LinkEvent::Open];
            Box::new(ScriptedLink(scene.clone()))
        })
    }

    fn receive(&self, frame: &[u8]) {
        let Ok(frame) = decode::<ClientFrame>(frame) else {
            return;
        };
        match frame.body {
            ClientBody::Hello(hello) => self.greet(hello),
            ClientBody::Request(request) => {
                self.0.borrow_mut().requests.push((*request).clone());
                if self.0.borrow().mute {
                    return;
                }
                let result = answers::answer(&mut self.0.borrow_mut(), &request);
                if matches!(&result, Ok(Reply::Text(t)) if t == NEVER) {
                    return;
                }
                self.push_frame(&HostFrame::Reply {
                    id: frame.id,
                    result: result.map(Box::new),
                });
                let after = answers::after(&mut self.0.borrow_mut(), &request);
                if let Some(update) = after {
                    self.push(update);
                }
            }
        }
    }

    fn greet(&self, hello: Hello) {
        let (welcome, update) = {
            let mut s = self.0.borrow_mut();
            let cursor = hello.cursor;
            s.hellos.push(hello);
            if let Some(sentence) = s.refusal.clone() {
                (Welcome::Refused(sentence), None)
            } else {
                let host = HostInfo {
                    recorded: s.recorded.clone(),
                    ..HostInfo::new("0.1.0", 4711, true, "Linux x86_64")
                };
                let steps: Vec<StepRecord> = s.steps.iter().filter(|r| r.seq > cursor.step).cloned().collect();
                let update = Update {
                    state: Some(Box::new(s.state.clone())),
                    last_step: s.steps.last().map_or(0, |r| r.seq),
                    steps,
                    jobs: s.jobs.clone(),
                    ..Update::default()
                };
                let settings = s.settings.clone();
                (
                    Welcome::Accepted {
                        host,
                        driver: s.state.driver,
                        settings,
                    },
                    Some(update),
                )
            }
        };
        self.push_frame(&HostFrame::Welcome(Box::new(welcome)));
        if let Some(update) = update {
            self.push(update);
        }
    }
}

/// A reply that is never sent.
const NEVER: &str = "\u{0}never";

struct ScriptedLink(Scene);

impl Link for ScriptedLink {
    fn send(&mut self, frame: Vec<u8>) {
        self.0.receive(&frame);
    }

    fn poll(&mut self) -> Vec<LinkEvent> {
        std::mem::take(&mut self.0.0.borrow_mut().outbox)
    }
}
