//! A host with a toy model, and a client that keeps what it was told.
#![allow(dead_code)] // every test file uses another part

pub mod toy;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use host::{Connection, Host, HostOptions, LinkEvent};
use protocol::*;
use tempfile::TempDir;
use toy::Toy;

/// Nothing in a test takes this long unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Folders of a test and the host in them.
pub struct Room {
    pub dir: TempDir,
    pub host: Option<Arc<Host>>,
}

impl Room {
    /// A host on an empty data folder.
    pub fn new() -> Self {
        engine::worker::set_program(engine_process());
        let mut room = Self {
            dir: tempfile::tempdir().unwrap(),
            host: None,
        };
        room.start();
        room
    }

    pub fn options(&self) -> HostOptions {
        HostOptions {
            data_dir: Some(self.path("data")),
            bundled: None,
            cache_dir: Some(self.path("cache")),
            threads: Some(1),
            retry: Duration::from_millis(200),
            endpoint: "http://127.0.0.1:1".into(),
            packages: "http://127.0.0.1:1".into(),
            ..HostOptions::default()
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the host (anew).
    pub fn start(&mut self) {
        self.stop();
        self.host = Some(Arc::new(Host::start(self.options()).unwrap()));
    }

    pub fn stop(&mut self) {
        if let Some(host) = self.host.take() {
            host.stop();
        }
    }

    pub fn host(&self) -> &Arc<Host> {
        self.host.as_ref().unwrap()
    }

    /// A greeted client.
    pub fn client(&self) -> Client {
        Client::greeted(self.host(), Hello::new("test"))
    }

    /// A toy model in a folder of this name.
    pub fn toy(&self, name: &str, toy: &Toy) -> ModelSource {
        ModelSource::Path(toy.write(&self.path(name)).to_str().unwrap().to_string())
    }

    /// A driver with a toy model loaded.
    pub fn with_toy(&self, toy: &Toy) -> Client {
        let source = self.toy("toy", toy);
        let mut client = self.client();
        client.open(source, 0);
        client
    }
}

/// The program of engines that run in processes of their own (`MODEL1_WORKER=on`): an example of this crate.
fn engine_process() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.parent().unwrap().with_file_name("examples").join("engine_process")
}

/// A golden model of the repository.
pub fn golden(name: &str) -> ModelSource {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/goldens")
        .join(name);
    ModelSource::Path(path.to_str().unwrap().to_string())
}

#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

/// What a client was told.
#[derive(Default)]
pub struct Told {
    pub state: Option<StateView>,
    pub tokens: Vec<TokenEntry>,
    pub steps: Vec<StepRecord>,
    pub last_step: u64,
    pub steps_lost: u64,
    pub jobs: Vec<JobView>,
    pub events: Vec<Event>,
    pub notices: Vec<Notice>,
    pub updates: usize,
    pub closed: Option<String>,
}

/// A client over the in-process link.
pub struct Client {
    pub link: Connection,
    bell: Arc<Bell>,
    next: u64,
    replies: Vec<(u64, Result<Reply, ErrorInfo>)>,
    pub welcome: Option<Welcome>,
    pub told: Told,
}

impl Client {
    /// Connected, nothing sent.
    pub fn raw(host: &Host) -> Self {
        let bell = Arc::new(Bell::default());
        let own = bell.clone();
        let link = host
            .connect("test", move || {
                *own.rung.lock().unwrap() = true;
                own.wake.notify_all();
            })
            .unwrap();
        Self {
            link,
            bell,
            next: 1,
            replies: Vec::new(),
            welcome: None,
            told: Told::default(),
        }
    }

    pub fn hello(host: &Host, hello: Hello) -> Self {
        let mut client = Self::raw(host);
        client.send(0, ClientBody::Hello(hello));
        client.until("a welcome", |c| c.welcome.is_some() || c.told.closed.is_some());
        client
    }

    #[track_caller]
    pub fn greeted(host: &Host, hello: Hello) -> Self {
        let client = Self::hello(host, hello);
        assert!(
            matches!(client.welcome, Some(Welcome::Accepted { .. })),
            "{:?}",
            client.welcome
        );
        client
    }

    /// What is shown where it is a recorded run; empty where it is none.
    pub fn recorded(&self) -> Option<&str> {
        match &self.welcome {
            Some(Welcome::Accepted { host, .. }) => Some(&host.recorded),
            _ => None,
        }
    }

    pub fn run(&self) -> u64 {
        match &self.welcome {
            Some(Welcome::Accepted { host, .. }) => host.run,
            other => panic!("{other:?}"),
        }
    }

    /// The handshake of a client that was told what this one was told.
    pub fn resume(&self, take_over: bool) -> Hello {
        Hello {
            cursor: Cursor {
                run: self.run(),
                token: self.told.tokens.last().map_or(0, |t| t.seq),
                step: self.told.last_step,
            },
            take_over,
            ..Hello::new("test")
        }
    }

    pub fn send(&self, id: u64, body: ClientBody) {
        self.link.send(&encode(&ClientFrame { id, body }).unwrap());
    }

    /// Takes what is there; whether there was anything.
    pub fn poll(&mut self) -> bool {
        let events = self.link.poll();
        let any = !events.is_empty();
        for event in events {
            match event {
                LinkEvent::Frame(bytes) => self.frame(decode(&bytes).unwrap()),
                LinkEvent::Closed(why) => self.told.closed = Some(why),
            }
        }
        any
    }

    fn frame(&mut self, frame: HostFrame) {
        match frame {
            HostFrame::Welcome(w) => self.welcome = Some(*w),
            HostFrame::Reply { id, result } => self.replies.push((id, result.map(|r| *r))),
            HostFrame::Update(u) => {
                let t = &mut self.told;
                t.updates += 1;
                if let Some(s) = u.state {
                    t.state = Some(*s);
                }
                t.tokens.extend(u.tokens);
                t.steps.extend(u.steps);
                t.last_step = t.last_step.max(u.last_step);
                t.steps_lost += u.steps_lost;
                for job in u.jobs {
                    t.jobs.retain(|j| j.id != job.id);
                    t.jobs.push(job);
                }
                t.events.extend(u.events);
                t.notices.extend(u.notices);
            }
        }
    }

    /// Takes what comes until something is so.
    #[track_caller]
    pub fn until(&mut self, what: &str, mut so: impl FnMut(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        loop {
            self.poll();
            if so(self) {
                return;
            }
            let rung = self.bell.rung.lock().unwrap();
            let (mut rung, _) = self
                .bell
                .wake
                .wait_timeout_while(rung, Duration::from_millis(200), |r| !*r)
                .unwrap();
            *rung = false;
            drop(rung);
            assert!(
                Instant::now() < end,
                "waited in vain for {what}; closed: {:?}, model: {:?}, notices: {:?}",
                self.told.closed,
                self.told.state.as_ref().map(|s| format!("{:.300?}", s.model)),
                self.told.notices
            );
        }
    }

    /// Sends a request and waits for its answer.
    #[track_caller]
    pub fn ask(&mut self, request: Request) -> Result<Reply, ErrorInfo> {
        let id = self.post(request);
        self.answer(id)
    }

    /// Sends a request.
    pub fn post(&mut self, request: Request) -> u64 {
        let id = self.next;
        self.next += 1;
        self.send(id, ClientBody::Request(Box::new(request)));
        id
    }

    /// Waits for an answer.
    #[track_caller]
    pub fn answer(&mut self, id: u64) -> Result<Reply, ErrorInfo> {
        self.until("an answer", |c| {
            c.replies.iter().any(|(i, _)| *i == id) || c.told.closed.is_some()
        });
        let at = self.replies.iter().position(|(i, _)| *i == id);
        let at = at.unwrap_or_else(|| panic!("closed: {:?}", self.told.closed));
        self.replies.swap_remove(at).1
    }

    #[track_caller]
    pub fn done(&mut self, request: Request) {
        let what = format!("{request:.100?}");
        match self.ask(request) {
            Ok(Reply::Done) => {}
            other => panic!("{what}: {other:?}"),
        }
    }

    /// Opens a model and waits until it is ready.
    #[track_caller]
    pub fn open(&mut self, source: ModelSource, context: u64) {
        let job = self.ask(Request::OpenModel { source, context }).unwrap();
        let Reply::Job(job) = job else { panic!("{job:?}") };
        self.until("the model", |c| c.job_over(job));
        let job = self.told.jobs.iter().find(|j| j.id == job).unwrap().clone();
        assert_eq!(job.state, JobState::Done, "{job:?}");
        self.until("the state", |c| {
            c.told.state.as_ref().is_some_and(|s| s.loaded().is_some())
        });
    }

    pub fn job_over(&self, id: JobId) -> bool {
        let job = self.told.jobs.iter().find(|j| j.id == id);
        job.is_some_and(|j| matches!(j.state, JobState::Done | JobState::Failed(_)))
    }

    /// Waits until a job is over; its end.
    #[track_caller]
    pub fn job(&mut self, request: Request) -> JobState {
        let reply = self.ask(request).unwrap();
        let Reply::Job(id) = reply else { panic!("{reply:?}") };
        self.until("the job", |c| c.job_over(id));
        self.told.jobs.iter().find(|j| j.id == id).unwrap().state.clone()
    }

    #[track_caller]
    pub fn started(&mut self, request: Request) -> u32 {
        let what = format!("{request:.100?}");
        match self.ask(request) {
            Ok(Reply::Started { node }) => node,
            other => panic!("{what}: {other:?}"),
        }
    }

    /// Starts writing and waits until the message has ended.
    #[track_caller]
    pub fn written(&mut self, request: Request) -> NodeView {
        let node = self.started(request);
        self.ended(node)
    }

    /// Waits until a message has ended.
    #[track_caller]
    pub fn ended(&mut self, node: u32) -> NodeView {
        let is = |e: &Event| matches!(e, Event::Finished { node: n, .. } if *n == node);
        self.until("the end of the message", |c| c.told.events.iter().any(is));
        self.told.events.retain(|e| !is(e));
        self.doc().nodes[node as usize].clone()
    }

    /// How the message ended that was written when another model was opened.
    #[track_caller]
    pub fn ended_in_other_text(&mut self) -> FinishView {
        self.until("the end of the message", |c| !c.told.events.is_empty());
        match self.told.events.remove(0) {
            Event::Finished { finish, .. } => finish,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn doc(&mut self) -> DocView {
        match self.ask(Request::GetDoc) {
            Ok(Reply::Doc(d)) => d,
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    pub fn state(&mut self) -> StateView {
        self.until("a state", |c| c.told.state.is_some());
        self.told.state.clone().unwrap()
    }

    /// Waits for a number of tokens of a message.
    #[track_caller]
    pub fn tokens_of(&mut self, node: u32, most: usize) {
        self.until("tokens", |c| {
            c.told.tokens.iter().filter(|t| t.node == node).count() >= most
        });
    }
}

/// Greedy, a number of tokens.
pub fn spec(max_tokens: u64) -> GenerateSpec {
    GenerateSpec {
        sampling: Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 7,
            logprobs: 2,
        },
        max_tokens,
        stop: Vec::new(),
        ignore_eos: false,
        thinking: false,
    }
}

/// Drawn, without an end: goes on until the (large) context is full.
pub fn endless() -> GenerateSpec {
    let mut s = spec(0);
    s.sampling.temperature = 1.0;
    s.ignore_eos = true;
    s
}

pub fn send(text: &str, spec: GenerateSpec) -> Request {
    Request::Send {
        text: text.into(),
        spec,
    }
}
