//! The process itself: starting it, its pipes, how it ended. Nobody is left behind: it ends when its control stream
//! does, which happens with this process however that ends; and its end is always waited for.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::frames::{self, Answer, Reader, VERSION};
use super::{COMMAND, Notify};

/// A caller that waits looks this often whether it is to give up.
const LOOK: Duration = Duration::from_millis(10);
/// A process that is told to end may take this long.
const GRACE: Duration = Duration::from_secs(2);
/// Last lines of its error output that are kept.
const LINES: usize = 12;

/// How the process ended.
#[derive(Default)]
struct End {
    words: Mutex<Option<String>>,
    told: Condvar,
}

/// What this end knows that the process's status does not say.
#[derive(Default)]
struct Reason {
    /// It is to end: nothing is said.
    wanted: bool,
    /// It was ended because of this.
    failed: Option<String>,
}

/// Why a process does not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// It could not be made.
    #[error(transparent)]
    Failed(#[from] io::Error),
    /// It ended at once; how.
    #[error("it ended at once: {0}")]
    Ended(String),
}

/// A running process.
pub(super) struct Process {
    child: Arc<Mutex<Child>>,
    pid: u32,
    calls: UnixStream,
    answers: Reader<UnixStream>,
    control: UnixStream,
    end: Arc<End>,
    reason: Arc<Mutex<Reason>>,
}

fn locked<T>(of: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Starts it. `what` is what it is called in sentences; `notify` hears when it ends unasked.
    ///
    /// # Errors
    /// It cannot be started, or is of another build.
    pub fn start(program: &std::path::Path, what: &'static str, notify: Notify) -> Result<Self, StartError> {
        let (here, there) = UnixStream::pair()?;
        let (control, controlled) = UnixStream::pair()?;
        let mut child = Command::new(program)
            .arg(COMMAND)
            .stdin(Stdio::from(OwnedFd::from(there)))
            .stdout(Stdio::from(OwnedFd::from(controlled)))
            .stderr(Stdio::piped())
            // Ctrl-C is for this process, which tells that one to stop.
            .process_group(0)
            .spawn()?;
        let (pid, stderr) = (child.id(), child.stderr.take());
        here.set_read_timeout(Some(LOOK))?;
        let child = Arc::new(Mutex::new(child));
        let (end, reason) = (Arc::new(End::default()), Arc::new(Mutex::new(Reason::default())));
        let watch = Watch {
            child: child.clone(),
            end: end.clone(),
            reason: reason.clone(),
            what,
            notify,
        };
        std::thread::Builder::new()
            .name("engine-process".into())
            .spawn(move || watch.run(stderr))?;
        let mut process = Self {
            child,
            pid,
            calls: here.try_clone()?,
            answers: Reader::new(here),
            control,
            end,
            reason,
        };
        match process.wait(&mut || false) {
            Ok(Answer::Hello { version: VERSION }) => Ok(process),
            Ok(_) => Err(io::Error::other("it is of another build than this program").into()),
            Err(_) => Err(StartError::Ended(process.ended())),
        }
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a call.
    pub fn send(&mut self, call: &impl Serialize) -> io::Result<()> {
        frames::write(&mut self.calls, call)
    }

    /// Waits for the next answer. `look` is called often meanwhile; where it says so, the wait is over, and the answer
    /// is still to come.
    pub fn wait<T: DeserializeOwned>(&mut self, look: &mut dyn FnMut() -> bool) -> io::Result<T> {
        loop {
            if let Some(answer) = self.answers.next()? {
                return Ok(answer);
            }
            if look() {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    /// Asks it to give a run up.
    pub fn stop(&self, run: u64) {
        // One that is gone has stopped.
        let _ = (&self.control).write_all(&run.to_le_bytes());
    }

    /// Whether it has ended.
    pub fn is_over(&self) -> bool {
        locked(&self.end.words).is_some()
    }

    /// How it ended, in words. Waits for the end, which is under way.
    pub fn ended(&self) -> String {
        let words = locked(&self.end.words);
        let waited = self.end.told.wait_timeout_while(words, GRACE, |w| w.is_none());
        let (words, _) = waited.unwrap_or_else(PoisonError::into_inner);
        words.clone().unwrap_or_else(|| "its pipes broke".into())
    }

    /// Ends it because of an error that cannot be cleared within it.
    pub fn fail(&self, why: &str) {
        locked(&self.reason).failed = Some(why.to_string());
        self.kill();
    }

    fn kill(&self) {
        // It may have ended by itself.
        let _ = locked(&self.child).kill();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        locked(&self.reason).wanted = true;
        // It ends when its control stream does.
        let _ = self.control.shutdown(std::net::Shutdown::Both);
        let _ = self.calls.shutdown(std::net::Shutdown::Both);
        let words = locked(&self.end.words);
        let waited = self.end.told.wait_timeout_while(words, GRACE, |w| w.is_none());
        let over = waited.unwrap_or_else(PoisonError::into_inner).0.is_some();
        if !over {
            self.kill();
        }
    }
}

/// Sees to the end of a process.
struct Watch {
    child: Arc<Mutex<Child>>,
    end: Arc<End>,
    reason: Arc<Mutex<Reason>>,
    what: &'static str,
    notify: Notify,
}

impl Watch {
    fn run(self, stderr: Option<ChildStderr>) {
        let mut lines = VecDeque::new();
        for line in stderr
            .into_iter()
            .flat_map(|s| BufReader::new(s).lines())
            .map_while(Result::ok)
        {
            tracing::debug!("engine process: {line}");
            lines.push_back(line);
            if lines.len() > LINES {
                lines.pop_front();
            }
        }
        let status = self.status();
        let (wanted, failed) = {
            let reason = locked(&self.reason);
            (reason.wanted, reason.failed.clone())
        };
        let words = failed.unwrap_or_else(|| words(status, lines.make_contiguous()));
        *locked(&self.end.words) = Some(words.clone());
        self.end.told.notify_all();
        if !wanted {
            (self.notify)(&format!("{} ended: {words}.", self.what), false);
        }
    }

    /// Its error output is closed: it ends now.
    fn status(&self) -> Option<ExitStatus> {
        let begin = Instant::now();
        loop {
            match locked(&self.child).try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if begin.elapsed() > 5 * GRACE => return None,
                Ok(None) => {}
                Err(_) => return None,
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// How it ended, for people.
fn words(status: Option<ExitStatus>, lines: &[String]) -> String {
    let Some(status) = status else {
        return "it closed its pipes".into();
    };
    // What a Rust program says when it panics or aborts.
    let said = lines
        .iter()
        .rposition(|l| l.contains("panicked at") || l.contains("memory allocation of"));
    let said = said.map(|at| {
        lines[at..]
            .iter()
            .take(2)
            .map(|l| l.trim())
            .collect::<Vec<_>>()
            .join(" ")
    });
    let said = said.map_or(String::new(), |s| format!("; it said: {s}"));
    match (status.signal(), status.code()) {
        (Some(9), _) => "signal 9 (killed from outside, or by the system because memory ran out)".into(),
        (Some(6), _) => format!("signal 6 (it aborted{said})"),
        (Some(11), _) => "signal 11 (it touched memory that is not its own)".into(),
        (Some(7), _) => "signal 7 (a file that it had mapped could not be read)".into(),
        (Some(15), _) => "signal 15 (it was asked to end)".into(),
        (Some(n), _) => format!("signal {n}"),
        (None, Some(code)) => format!("exit code {code}{said}"),
        (None, None) => "without a reason".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_words() {
        let of = |raw, lines: &[&str]| {
            let lines: Vec<String> = lines.iter().map(|l| l.to_string()).collect();
            words(Some(ExitStatus::from_raw(raw)), &lines)
        };
        assert!(of(9, &[]).starts_with("signal 9 (killed"));
        assert_eq!(of(3, &["noise"]), "signal 3");
        let said = of(
            101 << 8,
            &[
                "noise",
                "thread 'main' panicked at x.rs:1:2:",
                "index out of bounds",
                "note: run",
            ],
        );
        assert_eq!(
            said,
            "exit code 101; it said: thread 'main' panicked at x.rs:1:2: index out of bounds"
        );
        assert!(of(6, &["memory allocation of 99 bytes failed"]).contains("99 bytes failed"));
    }
}
