//! The engine's backend in a process of its own. A device error that cannot be cleared, a kill, an abort or a lack of
//! memory ends that process and nothing else: this one keeps the text, the recipe and the model's headers, starts another
//! and reads the text anew in the chunks it was read in, so that what follows is bit for bit what would have followed.
//!
//! The cut is the [`Backend`](kernels::ir::Backend) trait: plans, steps and cache states go over, tokens come back. The
//! weights are mapped by both from the same files. The process is this program again, with [`COMMAND`] as its argument:
//! a program that wants to use it calls [`enter`] first.

#[cfg(unix)]
mod child;
#[cfg(unix)]
mod frames;
#[cfg(unix)]
mod process;
#[cfg(unix)]
mod remote;
#[cfg(unix)]
mod state;
mod steps;
#[cfg(all(test, unix))]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

use checkpoint::Progress;
use kernels::ir::{Backend, ExecError, WeightDesc, WeightId};

use crate::device;
use crate::engine::EngineOptions;
use crate::error::EngineError;
use crate::session::Cancel;

/// The argument that makes a program the engine's process.
pub const COMMAND: &str = "engine-worker";
/// What a start that was given up says.
const CANCELLED: &str = "cancelled";

/// Hears a sentence when the process ended unasked, and when it was started again, and whether it runs now. Called from
/// any thread.
pub type Notify = Arc<dyn Fn(&str, bool) + Send + Sync>;

/// Whether the backend runs in a process of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// It does where it runs on a GPU.
    #[default]
    Auto,
    /// It does.
    On,
    /// It does not.
    Off,
}

impl Mode {
    /// From `auto`, `on` or `off`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Mode::Auto),
            "on" => Some(Mode::On),
            "off" => Some(Mode::Off),
            _ => None,
        }
    }
}

static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
/// 0 = as `MODEL1_WORKER` says, else the mode + 1.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

/// The mode of engines that are asked for none: what [`set_default`] said, else `MODEL1_WORKER`, else auto.
pub fn default_mode() -> Mode {
    match CHOSEN.load(Ordering::Relaxed) {
        1 => Mode::Auto,
        2 => Mode::On,
        3 => Mode::Off,
        _ => std::env::var("MODEL1_WORKER")
            .ok()
            .and_then(|m| Mode::parse(m.trim()))
            .unwrap_or_default(),
    }
}

/// Sets the mode of engines that are asked for none.
pub fn set_default(mode: Mode) {
    let number = match mode {
        Mode::Auto => 1,
        Mode::On => 2,
        Mode::Off => 3,
    };
    CHOSEN.store(number, Ordering::Relaxed);
}

/// To be called first by programs whose engines may run in processes of their own. In such a process it does the work
/// and returns the exit code; else it returns `None`.
pub fn enter() -> Option<u8> {
    enter_on(&kernels::cuda::open)
}

/// As [`enter`], on GPUs that are opened otherwise: tests have emulated ones.
pub fn enter_on(gpus: &device::OpenGpu<'_>) -> Option<u8> {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|a| a == COMMAND) && args.next().is_none() {
        return Some(serve(gpus));
    }
    if let Ok(own) = std::env::current_exe() {
        set_program(own);
    }
    None
}

/// The program to start, where it is another one than this: it calls [`enter`]. Only the first call counts.
pub fn set_program(program: PathBuf) {
    let _ = PROGRAM.set(program);
}

#[cfg(unix)]
fn serve(gpus: &device::OpenGpu<'_>) -> u8 {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    let stream = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned().map(UnixStream::from);
    let streams = stream(std::io::stdin().as_fd()).and_then(|calls| {
        let answers = calls.try_clone()?;
        Ok((calls, answers, stream(std::io::stdout().as_fd())?))
    });
    // A terminal or a file is no socket.
    let streams = streams.and_then(|s| s.0.peer_addr().map(|_| s));
    let Ok((calls, answers, mut control)) = streams else {
        eprintln!("error: {COMMAND} is started by MODEL1 Explorer itself");
        return 2;
    };
    let stopper = Arc::new(child::Stopper::default());
    let own = stopper.clone();
    let listening = std::thread::Builder::new().name("control".into()).spawn(move || {
        own.listen(&mut control);
        // Whoever started this process is gone, whatever it is doing.
        std::process::exit(0);
    });
    if listening.is_err() {
        return 1;
    }
    // Ends with an error when the other end is gone.
    let open = |ask: &frames::Open, progress: &dyn Progress| child::open(ask, progress, gpus);
    let _ = child::Child::new(calls, answers, &stopper, &open).serve();
    0
}

#[cfg(not(unix))]
fn serve(_: &device::OpenGpu<'_>) -> u8 {
    eprintln!("error: {COMMAND} is not there on this system");
    2
}

/// The program to start: `MODEL1_WORKER_PROGRAM`, else this one, if it called [`enter`].
fn program() -> Option<PathBuf> {
    if !cfg!(unix) {
        return None;
    }
    let set = std::env::var_os("MODEL1_WORKER_PROGRAM").filter(|p| !p.is_empty());
    set.map(PathBuf::from).or_else(|| PROGRAM.get().cloned())
}

/// The names of backends.
#[cfg(unix)]
fn known_name(name: &str) -> &'static str {
    match name {
        "cuda" => "cuda",
        "cpu" => "cpu",
        _ => "other",
    }
}

/// A backend in a process.
pub(crate) struct Started {
    pub worker: Worker,
    pub backend: Arc<dyn Backend>,
    pub warning: Option<String>,
}

/// Starts a process for a model if the options ask for one; `None` where the backend is to run in this one.
///
/// # Errors
/// It cannot be started, or the model cannot be opened there.
pub(crate) fn start(
    path: &Path,
    options: &EngineOptions,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Option<Started>, EngineError> {
    let program = match options.worker {
        Mode::Off => return Ok(None),
        Mode::Auto if !device::may_be_gpu(&options.device) => return Ok(None),
        Mode::Auto => match program() {
            Some(p) => p,
            None => return Ok(None),
        },
        Mode::On => program().ok_or_else(|| {
            EngineError::Invalid(
                "--worker on: this program cannot run its engine in a process of its own; accepted: off".into(),
            )
        })?,
    };
    start_with(program, path, options, threads, progress).map(Some)
}

#[cfg(unix)]
fn start_with(
    program: PathBuf,
    path: &Path,
    options: &EngineOptions,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Started, EngineError> {
    let notify = options.notify.clone();
    let setup = remote::Setup {
        program,
        notify: notify.unwrap_or_else(|| Arc::new(|said, _| tracing::warn!("{said}"))),
        restarts: options.restarts,
    };
    let open = frames::Open {
        model: path.to_string_lossy().into_owned(),
        device: options.device.clone(),
        threads: threads as u32,
        prefault: options.prefault,
        context: options.context,
        planned: options.planned.clone(),
    };
    let (remote, warning) = remote::Remote::start(setup, open, progress).map_err(|why| match why.as_str() {
        CANCELLED => EngineError::Cancelled,
        _ => EngineError::Invalid(why),
    })?;
    Ok(Started {
        backend: Arc::new(remote.clone()),
        worker: Worker(remote),
        warning,
    })
}

#[cfg(not(unix))]
fn start_with(_: PathBuf, _: &Path, _: &EngineOptions, _: usize, _: &dyn Progress) -> Result<Started, EngineError> {
    Err(EngineError::Invalid(
        "there are no processes of this kind on this system".into(),
    ))
}

/// The process of an engine.
#[derive(Clone)]
pub struct Worker(#[cfg(unix)] remote::Remote);

#[cfg(unix)]
impl Worker {
    /// Number of the process; `None` where none runs now.
    pub fn pid(&self) -> Option<u32> {
        self.0.pid()
    }

    /// Lets the next step start the process again, however often it ended before.
    pub fn allow_restart(&self) {
        self.0.allow();
    }

    pub(crate) fn make(&self, own: WeightId, desc: &WeightDesc, cancel: &Cancel) -> Result<(), EngineError> {
        loop {
            return match self.0.make(own, desc, cancel.flag()) {
                // Ends: a process that is lost too often is not started again.
                Err(ExecError::Lost(_)) => continue,
                Err(ExecError::Cancelled) => Err(EngineError::Cancelled),
                made => Ok(made?),
            };
        }
    }

    pub(crate) fn keep(&self, kept: Vec<(u32, WeightDesc)>) {
        self.0.keep(kept);
    }
}

#[cfg(not(unix))]
impl Worker {
    /// There is none on this system.
    pub fn pid(&self) -> Option<u32> {
        None
    }

    /// There is none on this system.
    pub fn allow_restart(&self) {}

    pub(crate) fn make(&self, _: WeightId, _: &WeightDesc, _: &Cancel) -> Result<(), EngineError> {
        Ok(())
    }

    pub(crate) fn keep(&self, _: Vec<(u32, WeightDesc)>) {}
}
