//! The host: starts its threads, lets clients in, ends cleanly.

use std::path::PathBuf;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kernels::ir::Backend;
use protocol::{DeviceView, ErrorInfo, JobId, ModelSource, Settings};

use crate::connection::Connection;
use crate::hub::{Hub, Inner, MOST_CLIENTS};
use crate::paths::{FolderLock, Paths};
use crate::pool::Pool;
use crate::worker::{Command, Worker};
use crate::{dispatch, docs, saver, settings};

/// How a host is set up.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Folder of texts and settings; made if it is not there. `None`: nothing is kept.
    pub data_dir: Option<PathBuf>,
    /// Folder of the bundled model; `None` if there is none.
    pub bundled: Option<PathBuf>,
    /// Folder of fetched models; `None` if nothing can be fetched.
    pub cache_dir: Option<PathBuf>,
    /// Device models run on: `auto`, `cpu`, `cuda` or `cuda:N` ([`engine::device::choose`]).
    pub device: String,
    /// Whether engines run in processes of their own.
    pub worker: engine::worker::Mode,
    /// Threads of the CPU engine; `None` = what the settings say, else all cores.
    pub threads: Option<usize>,
    /// A model to open at once.
    pub open: Option<ModelSource>,
    /// Context for it in tokens; 0 = the settings'.
    pub context: u64,
    /// Address of the Hugging Face Hub or of a mirror.
    pub endpoint: String,
    /// Address of the host of PyPI's files or of a mirror.
    pub packages: String,
    /// How soon something that could not be saved is tried again.
    pub retry: Duration,
    /// Least time from one written token to the next: to watch a text grow. Zero = as fast as the engine is.
    pub token_time: Duration,
}

impl Default for HostOptions {
    fn default() -> Self {
        Self {
            data_dir: crate::default_data_dir(),
            bundled: crate::bundled_model(),
            cache_dir: fetch::default_cache_dir(),
            device: "auto".into(),
            worker: engine::worker::default_mode(),
            threads: None,
            open: None,
            context: 0,
            endpoint: std::env::var("HF_ENDPOINT")
                .ok()
                .filter(|e| !e.is_empty())
                .unwrap_or_else(|| fetch::DEFAULT_ENDPOINT.to_string()),
            packages: fetch::package_host(),
            retry: Duration::from_secs(5),
            token_time: token_time(std::env::var("MODEL1_TOKEN_MS").ok().as_deref()),
        }
    }
}

/// What `MODEL1_TOKEN_MS` says: whole milliseconds, at most a minute; anything else = no limit.
fn token_time(set: Option<&str>) -> Duration {
    let ms = set
        .and_then(|s| s.trim().parse::<u64>().ok())
        .filter(|ms| *ms <= 60_000);
    Duration::from_millis(ms.unwrap_or(0))
}

/// Why a host could not be started or entered.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A thread could not be made.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(String),
    /// No room for another client.
    #[error("{0} clients are connected, which is the most: close one")]
    Crowded(usize),
}

/// A running host. Dropping it stops it.
pub struct Host {
    hub: Arc<Hub>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// Dropping it lets the saver write everything and end.
    save: Mutex<Option<Sender<()>>>,
    _lock: Option<FolderLock>,
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|e| StartError::Random(e.to_string()))?;
    Ok(bytes)
}

impl Host {
    /// Starts a host. Problems with the data folder do not prevent that: nothing is kept then, and a notice says so.
    ///
    /// # Errors
    /// No threads or no random numbers.
    pub fn start(options: HostOptions) -> Result<Self, StartError> {
        let run = u64::from_le_bytes(random()?).max(1);
        let (lock, not_kept) = match options.data_dir.as_deref().map(FolderLock::take) {
            Some(Ok(lock)) => (Some(lock), String::new()),
            Some(Err(why)) => (None, why),
            None => (None, "there is no folder for them (set HOME or MODEL1_DATA)".into()),
        };
        let paths = Paths {
            data: options.data_dir.filter(|_| lock.is_some()),
            not_kept,
            bundled: options.bundled,
            cache: options.cache_dir,
            endpoint: options.endpoint,
            packages: options.packages,
        };
        let (commands, received) = mpsc::channel();
        let inner = start_state(&paths, options.threads);
        let kept = inner.settings.clone();
        let hub = Hub::new(run, inner, paths, Pool::start()?, commands);
        let mut threads = Vec::new();
        let worker = Worker::new(
            hub.clone(),
            received,
            (options.device, options.worker),
            options.token_time,
        );
        let named = |name: &str| std::thread::Builder::new().name(name.into());
        threads.push(named("engine").spawn(move || worker.run())?);
        let own = hub.clone();
        threads.push(named("host-pacer").spawn(move || own.pacer())?);
        let (save, end) = mpsc::channel();
        let own = hub.clone();
        threads.push(named("host-saver").spawn(move || saver::run(own, &end, options.retry, kept))?);
        let host = Self {
            hub,
            threads: Mutex::new(threads),
            save: Mutex::new(Some(save)),
            _lock: lock,
        };
        if let Some(source) = &options.open
            && let Err(e) = host.open(source, options.context)
        {
            host.hub.with(|inner| {
                inner.model = crate::hub::Model::Failed {
                    name: crate::models::name(source),
                    error: e,
                };
                inner.changed();
            });
        }
        Ok(host)
    }

    /// A connection within the process. `wake` is called, from any thread, when something can be polled; it must not
    /// block. The connection begins with the handshake, as all do.
    ///
    /// # Errors
    /// [`StartError::Crowded`].
    pub fn connect(&self, name: &str, wake: impl Fn() + Send + Sync + 'static) -> Result<Connection, StartError> {
        self.enter(name, true, Arc::new(wake))
    }

    pub(crate) fn enter(&self, name: &str, local: bool, wake: crate::hub::Wake) -> Result<Connection, StartError> {
        Connection::open(&self.hub, name, local, wake).ok_or(StartError::Crowded(MOST_CLIENTS))
    }

    /// Opens a model as a client would; the job that does it.
    ///
    /// # Errors
    /// A source that cannot be one.
    pub fn open(&self, source: &ModelSource, context: u64) -> Result<JobId, ErrorInfo> {
        dispatch::open_model(&self.hub, source, context)
    }

    /// Clients connected, those before their handshake not counted.
    pub fn clients(&self) -> u32 {
        self.hub.with(|inner| inner.clients.count())
    }

    /// Stops what runs, saves everything, ends all threads. Connections see a sentence. Does nothing the second time.
    pub fn stop(&self) {
        self.hub.shut();
        self.hub.command(Command::Quit);
        self.hub.pool.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let (engine, rest): (Vec<_>, Vec<_>) = threads.into_iter().partition(|t| t.thread().name() == Some("engine"));
        // The engine's last words belong into the text before it is saved.
        for thread in engine {
            let _ = thread.join();
        }
        self.save.lock().unwrap_or_else(PoisonError::into_inner).take();
        for thread in rest {
            let _ = thread.join();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the disk knows.
fn start_state(paths: &Paths, threads: Option<usize>) -> Inner {
    let mut notices = Vec::new();
    if !paths.not_kept.is_empty() {
        notices.push(format!("Texts and settings are not kept: {}.", paths.not_kept));
    }
    let settings = match paths.settings().map(|p| settings::read(&p)) {
        Some(Ok(s)) => s,
        Some(Err(e)) => {
            notices.push(format!("The settings cannot be read, the defaults are in force: {e}."));
            Settings::default()
        }
        None => Settings::default(),
    };
    let mut inner = Inner::new(
        settings,
        DeviceView {
            name: "cpu".into(),
            describe: String::new(),
            free_bytes: engine::memory::available().unwrap_or(0),
            why_not: "This build has no CUDA kernels: it runs on the CPU.".into(),
        },
    );
    inner.fixed_threads = threads;
    let n = inner.threads().unwrap_or_else(engine::default_threads);
    inner.device.describe = kernels::cpu::exec::CpuBackend::new(n).describe();
    if let (Some(folder), Some(deleted), Some(broken)) = (paths.texts(), paths.deleted(), paths.broken()) {
        saver::purge(&deleted);
        match docs::scan(&folder) {
            Ok(found) => {
                inner.docs.adopt(found.infos);
                notices.extend(saver::set_aside(&broken, &found.broken));
            }
            Err(e) => notices.push(format!("Saved texts cannot be listed: {}: {e}.", folder.display())),
        }
    }
    notices.into_iter().for_each(|n| inner.notice(true, n));
    inner
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use protocol::{DocKind, FinishView, GenerateSpec, JobKind, JobState, Role, Sampling};

    use super::*;
    use crate::docs::Draft;
    use crate::hub::Model;

    #[test]
    fn a_fault_in_the_engine_costs_the_model_and_no_text() {
        let host = Host::start(HostOptions {
            data_dir: None,
            bundled: None,
            cache_dir: None,
            threads: Some(1),
            ..HostOptions::default()
        })
        .unwrap();
        let (id, node, job) = host.hub.with(|inner| {
            let id = inner.docs.create(DocKind::Text, "m", 1000);
            let draft = Draft {
                parent: None,
                role: Role::Assistant,
                text: "so far".into(),
                tokens: Vec::new(),
                vocabulary: 0,
                spec: Some(GenerateSpec {
                    sampling: Sampling {
                        temperature: 0.0,
                        top_k: 0,
                        top_p: 1.0,
                        min_p: 0.0,
                        repetition_penalty: 1.0,
                        frequency_penalty: 0.0,
                        presence_penalty: 0.0,
                        seed: 0,
                        logprobs: 0,
                    },
                    max_tokens: 0,
                    stop: Vec::new(),
                    ignore_eos: false,
                    thinking: false,
                }),
            };
            let node = inner.docs.change(id, |d| d.add(draft, 1)).unwrap();
            inner.writing = Some((id, node));
            let (job, _) = inner.jobs.add(JobKind::Compare, "comparing", "tokens");
            inner.jobs.change(job, |j| j.state = JobState::Running);
            (id, node, job)
        });
        host.hub.command(Command::Break);
        let end = Instant::now() + Duration::from_secs(60);
        while !host.hub.with(|inner| matches!(inner.model, Model::Failed { .. })) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        host.hub.with(|inner| {
            let view = &inner.docs.doc(id).unwrap().node(node).unwrap().view;
            assert_eq!((view.text.as_str(), view.finish), ("so far", FinishView::Failed));
            let e = view.error.as_ref().unwrap();
            assert!(
                e.remedy.contains("texts are safe") && e.details.contains("protocol"),
                "{e}"
            );
            assert!(matches!(&inner.jobs.get(job).unwrap().state, JobState::Failed(e) if e.what.contains("broke")));
            assert!(inner.writing.is_none());
        });
        // The thread goes on: the next model fails for its own reason.
        let job = host.open(&ModelSource::Path("/nonexistent".into()), 0).unwrap();
        let over = |inner: &mut Inner| inner.jobs.get(job).is_some_and(|j| crate::hub::is_over(&j.state));
        while !host.hub.with(over) {
            assert!(Instant::now() < end);
            std::thread::sleep(Duration::from_millis(5));
        }
        host.stop();
    }
}
