//! `record`: the app's flow without a window, kept for windows that replay it without an engine.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use host::recorded::Recorder;
use host::{Connection, Host, HostOptions, LinkEvent};
use protocol::{
    AttentionSpec, ClientBody, ClientFrame, CompareResult, CompareSpec, CompareText, ErrorInfo, Event, GenerateSpec,
    Hello, HostFrame, JobId, JobState, JobView, ModelState, RecipeRef, Reply, Request, RunSummary, StateView, decode,
    encode,
};

use crate::args::Record;
use crate::serve::source;
use crate::setup::{self, Interrupted, user};

/// Queries of the attention views of the interface: thumbnails, the map, the row of the last token.
const QUERIES: [u64; 3] = [256, 1024, 1];
/// Tokens after which the recipe is changed.
const BEFORE_SWAP: usize = 48;
/// Tokens of the steps whose plans the interface shows.
const STEPS: [u32; 4] = [1, 8, 32, 128];
/// Contexts of plans in the interface are multiples of this.
const CONTEXT_STEP: u64 = 128;

/// Rung when the host has something to tell.
#[derive(Default)]
struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

/// A window that nobody sees.
struct Client {
    link: Connection,
    bell: Arc<Bell>,
    recorder: Recorder,
    next: u64,
    replies: BTreeMap<u64, Result<Reply, ErrorInfo>>,
    greeted: bool,
    state: Option<StateView>,
    jobs: BTreeMap<JobId, JobView>,
    written: usize,
    finished: Option<RunSummary>,
    /// Revision of the text that was fetched last.
    fetched: u64,
}

fn failed(e: &ErrorInfo) -> anyhow::Error {
    anyhow!("{e}")
}

impl Client {
    fn connect(host: &Host) -> Result<Self> {
        let bell = Arc::new(Bell::default());
        let own = bell.clone();
        let link = host.connect("record", move || {
            *own.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
            own.wake.notify_all();
        })?;
        let mut client = Self {
            link,
            bell,
            recorder: Recorder::default(),
            next: 1,
            replies: BTreeMap::new(),
            greeted: false,
            state: None,
            jobs: BTreeMap::new(),
            written: 0,
            finished: None,
            fetched: 0,
        };
        client.send(0, ClientBody::Hello(Hello::new("record")))?;
        client.until(|c| c.greeted)?;
        Ok(client)
    }

    fn send(&self, id: u64, body: ClientBody) -> Result<()> {
        let frame = encode(&ClientFrame { id, body }).map_err(|e| anyhow!("{e}"))?;
        self.link.send(&frame);
        Ok(())
    }

    /// Takes what the host tells until something is so.
    fn until(&mut self, so: impl Fn(&Self) -> bool) -> Result<()> {
        loop {
            for event in self.link.poll() {
                match event {
                    LinkEvent::Frame(bytes) => self.take(&bytes)?,
                    LinkEvent::Closed(why) => return Err(anyhow!("the host ended: {why}")),
                }
            }
            if so(self) {
                return Ok(());
            }
            if setup::cancel().is_cancelled() {
                return Err(Interrupted.into());
            }
            let rung = self.bell.rung.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = self
                .bell
                .wake
                .wait_timeout_while(rung, Duration::from_millis(100), |r| !*r);
            *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        let frame: HostFrame = decode(bytes).map_err(|e| anyhow!("the host sent {e}"))?;
        self.recorder.told(&frame).context("recording")?;
        match frame {
            HostFrame::Welcome(_) => self.greeted = true,
            HostFrame::Reply { id, result } => {
                self.replies.insert(id, result.map(|r| *r));
            }
            HostFrame::Update(update) => {
                self.written += update.tokens.len();
                self.jobs.extend(update.jobs.into_iter().map(|j| (j.id, j)));
                for event in update.events {
                    if let Event::Finished { summary, .. } = event {
                        self.finished = Some(summary);
                    }
                }
                if let Some(state) = update.state {
                    self.state = Some(*state);
                }
                self.fetch()?;
            }
        }
        Ok(())
    }

    /// Fetches the text when it changed other than by tokens, as the interface does.
    fn fetch(&mut self) -> Result<()> {
        let Some(revision) = self.state.as_ref().filter(|s| s.doc.is_some()).map(|s| s.doc_revision) else {
            return Ok(());
        };
        if revision != self.fetched {
            self.fetched = revision;
            self.post(Request::GetDoc)?;
        }
        Ok(())
    }

    fn post(&mut self, request: Request) -> Result<u64> {
        let id = self.next;
        self.next += 1;
        self.recorder.asked(id, &request);
        self.send(id, ClientBody::Request(Box::new(request)))?;
        Ok(id)
    }

    fn ask(&mut self, request: Request) -> Result<Result<Reply, ErrorInfo>> {
        let id = self.post(request)?;
        self.until(|c| c.replies.contains_key(&id))?;
        self.replies.remove(&id).ok_or_else(|| anyhow!("an answer got lost"))
    }

    /// The answer, which must be one.
    fn get(&mut self, request: Request) -> Result<Reply> {
        self.ask(request)?.map_err(|e| failed(&e))
    }

    /// Looks that only some models answer.
    fn look(&mut self, requests: impl IntoIterator<Item = Request>) -> Result<()> {
        for request in requests {
            if let Err(e) = self.ask(request)? {
                tracing::info!("not recorded: {e}");
            }
        }
        Ok(())
    }

    /// Waits for a job to end well.
    fn job(&mut self, request: Request) -> Result<JobId> {
        let Reply::Job(id) = self.get(request)? else {
            return Err(anyhow!("the host answered with no job"));
        };
        let over = |j: &JobView| matches!(j.state, JobState::Done | JobState::Failed(_));
        self.until(|c| c.jobs.get(&id).is_some_and(over))?;
        match self.jobs.get(&id).map(|j| &j.state) {
            Some(JobState::Failed(e)) => Err(failed(e)),
            _ => Ok(id),
        }
    }

    fn position(&self) -> u64 {
        self.state.as_ref().map_or(0, |s| s.position)
    }

    /// What the views about the model ask for.
    fn model_views(&mut self) -> Result<()> {
        let (at, full) = self.state.as_ref().map_or((0, 0), |s| (s.position, s.context));
        let mut contexts = vec![at / CONTEXT_STEP * CONTEXT_STEP, 0, full / 2, full];
        contexts.dedup();
        let plans = STEPS.iter().flat_map(|&tokens| {
            let most = full.saturating_sub(u64::from(tokens));
            let all = contexts.iter().map(move |c| (*c).min(most));
            all.map(move |context| Request::GetPlan { tokens, context })
        });
        let plans: Vec<Request> = plans.collect();
        self.look(plans)?;
        self.look([
            Request::GetTree,
            Request::GetBaselines,
            Request::About,
            Request::ListDocs,
        ])
    }

    /// What the views that look inside ask for.
    fn inside(&mut self) -> Result<()> {
        let to = self.position();
        let layers: Vec<(u32, u32, u32)> = match self.state.as_ref().and_then(StateView::loaded) {
            Some(m) => m
                .facts
                .layers
                .iter()
                .zip(0..)
                .map(|(l, i)| (i, l.heads, l.index_topk))
                .collect(),
            None => Vec::new(),
        };
        // The view opens with the first layer that selects; its heads are kept, of the others the mean.
        let first = layers.iter().find(|l| l.2 > 0).or(layers.first()).map(|l| l.0);
        for &(layer, heads, topk) in &layers {
            let spec = |head, queries: u64| {
                Request::InspectAttention(AttentionSpec {
                    layer,
                    head,
                    from: to.saturating_sub(queries),
                    to,
                })
            };
            self.look(QUERIES.map(|q| spec(None, q)))?;
            if Some(layer) == first {
                self.look((0..heads).flat_map(|h| QUERIES.map(|q| spec(Some(h), q))))?;
            }
            if topk > 0 {
                self.look([Request::InspectRows(layer)])?;
            }
        }
        self.look([Request::InspectRouter])?;
        if let Reply::Names(names) = self.get(Request::ListMetrics)? {
            self.look(names.into_iter().map(Request::InspectMetric))?;
        }
        Ok(())
    }
}

/// Texts and settings of the run, which nobody needs afterwards.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Whatever stays is in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `model1 record`
pub fn record(args: &Record) -> Result<()> {
    if args.threads == Some(0) {
        return Err(user("--threads: found 0, accepted: 1 or more"));
    }
    let accepted = args.out.extension().is_some_and(|e| e == host::recorded::EXTENSION);
    if !accepted {
        let out = args.out.display();
        return Err(user(format!("--out {out}: accepted: a name that ends in .m1run")));
    }
    setup::cancel();
    let scratch = Scratch(std::env::temp_dir().join(format!("model1-record-{}", std::process::id())));
    let defaults = HostOptions::default();
    let host = Host::start(HostOptions {
        data_dir: Some(scratch.0.clone()),
        device: args.device.clone(),
        threads: args.threads,
        open: None,
        ..defaults
    })?;
    let mut client = Client::connect(&host)?;
    let compared = flow(&mut client, args)?;
    let (device, model) = client.state.as_ref().map_or_else(Default::default, |s| {
        let model = s.loaded().map_or(String::new(), |m| m.name.clone());
        (s.device.describe.clone(), model)
    });
    let speed = client.finished.as_ref().map_or(0.0, |s| s.decode_tokens_per_s);
    let bytes = std::mem::take(&mut client.recorder)
        .save(&args.out, &device, &model)
        .with_context(|| format!("writing {}", args.out.display()))?;
    drop(client);
    host.stop();
    if !args.quiet {
        eprintln!("device   {device}");
        eprintln!("story    {speed:.0} tokens/s");
        eprintln!(
            "A/B      KL {:.6} nats (mean), {} positions",
            compared.kl.mean,
            compared.tokens.len()
        );
        for (name, side) in ["A", "B"].iter().zip(&compared.sides) {
            eprintln!(
                "         {name}: cache {}, decode {:.0} tokens/s",
                engine::memory::human(side.kv.total()),
                side.decode_tokens_per_s
            );
        }
        eprintln!("recorded {} ({})", args.out.display(), engine::memory::human(bytes));
        eprintln!(
            "Show it: model1 serve --open --model {0}, or model1-window {0}",
            args.out.display()
        );
    }
    Ok(())
}

/// Start, story, swap, looks, comparison, report.
fn flow(c: &mut Client, args: &Record) -> Result<CompareResult> {
    let say = |what: &str| {
        if !args.quiet {
            eprintln!("{what} ...");
        }
    };
    say("opening the model");
    c.job(Request::OpenModel {
        source: source(&args.model),
        context: args.context.unwrap_or(0),
    })?;
    c.until(|c| {
        c.state
            .as_ref()
            .is_some_and(|s| matches!(s.model, ModelState::Ready(_)))
    })?;
    c.get(Request::ListPresets)?;
    c.model_views()?;
    tensors(c)?;
    say("writing");
    let sets = match args.sets.as_slice() {
        [] => vec!["layers.3-6.kv_cache=bf16".to_string()],
        given => given.to_vec(),
    };
    story(c, args, &sets)?;
    say("looking inside");
    c.model_views()?;
    if !args.brief {
        c.inside()?;
    }
    say("comparing");
    let on = |text| {
        Request::Compare(CompareSpec {
            a: RecipeRef::Own,
            b: RecipeRef::Current,
            text,
            positions: args.positions,
            isolate: true,
        })
    };
    let job = match c.job(on(CompareText::Builtin)) {
        Ok(job) => job,
        Err(e) if setup::is_interrupted(&e) => return Err(e),
        // Models without a tokenizer read no text but their own.
        Err(_) => c.job(on(CompareText::Current))?,
    };
    let Reply::Compared(result) = c.get(Request::GetComparison(job))? else {
        return Err(anyhow!("the host answered with no comparison"));
    };
    let report = c.get(Request::ExportComparison {
        job,
        folder: String::new(),
    })?;
    if let (Some(path), Reply::File { bytes, .. }) = (&args.report, &report) {
        std::fs::write(path, bytes).with_context(|| format!("writing {}", path.display()))?;
    }
    c.look([Request::ListDocs, Request::About])?;
    Ok(*result)
}

/// A text, and the change of recipe in the middle of it.
fn story(c: &mut Client, args: &Record, sets: &[String]) -> Result<()> {
    let model = c.state.as_ref().and_then(StateView::loaded).cloned();
    let model = model.ok_or_else(|| anyhow!("there is no model"))?;
    let text = args.prompt.clone().or_else(|| model.starters.first().cloned());
    let mut sampling = model.default_sampling;
    sampling.seed = args.seed;
    if sampling.temperature == 0.0 {
        (sampling.temperature, sampling.top_p) = (0.8, 0.95);
    }
    let spec = GenerateSpec {
        sampling,
        max_tokens: args.max_tokens,
        stop: Vec::new(),
        ignore_eos: true,
        thinking: false,
    };
    c.get(Request::Send {
        text: text.unwrap_or_else(|| "Once upon a time".into()),
        spec,
    })?;
    c.until(|c| c.written >= BEFORE_SWAP || c.finished.is_some())?;
    let edits = sets.iter().map(|s| edit(s)).collect::<Result<Vec<_>>>()?;
    c.get(Request::EditRecipe(edits))?;
    c.until(|c| c.finished.is_some())?;
    // The state that says so, and the text as it ended.
    c.until(|c| c.state.as_ref().is_some_and(|s| s.writing.is_none()))?;
    c.get(Request::GetDoc)?;
    Ok(())
}

/// `SLOT=VARIANT` as the interface sends it.
fn edit(text: &str) -> Result<protocol::Edit> {
    let (selector, choice) = text
        .split_once('=')
        .ok_or_else(|| user(format!("--set {text}: found no `=`, accepted: SLOT=VARIANT")))?;
    let choice = engine::recipe::Choice::parse(choice).map_err(|e| user(format!("--set {text}: {e}")))?;
    Ok(protocol::Edit {
        selector: selector.to_string(),
        choice: (&choice).into(),
    })
}

/// Statistics of the tensors that the explorer shows first.
fn tensors(c: &mut Client) -> Result<()> {
    let Reply::Tree(blocks) = c.get(Request::GetTree)? else {
        return Ok(());
    };
    let names = blocks.into_iter().flat_map(|b| b.tensors).map(|t| t.name);
    let names: Vec<String> = names.take(400).collect();
    c.look(names.into_iter().map(Request::GetTensor))
}
