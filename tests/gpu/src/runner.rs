//! Runs cases in child processes: a kernel that faults takes its process's GPU context with it, and the cases behind it
//! are to run all the same.

use std::io::{BufRead, BufReader, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kernels::cuda::device::Device;
use kernels::cuda::{Cuda, CudaOptions};

/// Exit code of a child whose GPU context is gone.
const LOST: i32 = 86;
/// A case that takes longer is given up.
const LIMIT: Duration = Duration::from_secs(150);

/// What cases work with.
pub struct Bench {
    /// The GPU.
    pub device: Arc<dyn Device>,
    /// Its number.
    pub gpu: usize,
    /// Folder of the repository: goldens and the bundled model are read from it.
    pub root: PathBuf,
    /// Shorter soaks and timings.
    pub quick: bool,
}

impl Bench {
    /// A backend that checks sentinels and poisons working memory; no graphs.
    pub fn guarded(&self) -> Arc<Cuda> {
        let options = CudaOptions {
            graphs: false,
            guarded: true,
            ahead: true,
            counted: true,
            resident: true,
        };
        Arc::new(Cuda::on(self.device.clone(), options))
    }

    /// A backend as users have it.
    pub fn cuda(&self) -> Arc<Cuda> {
        Arc::new(Cuda::on(self.device.clone(), CudaOptions::default()))
    }

    /// A golden's folder.
    pub fn golden(&self, name: &str) -> PathBuf {
        self.root.join("tests/goldens").join(name)
    }
}

/// One case: what it is called, and what it does. A panic is a failure; the text it returns is printed.
pub struct Case {
    /// Section, e.g. `goldens`.
    pub section: &'static str,
    /// What is tested.
    pub name: String,
    /// The test.
    pub run: Box<dyn Fn(&Bench) -> String>,
    /// Afterwards the GPU may not answer this process any more.
    pub fatal: bool,
}

impl Case {
    /// A case.
    pub fn new(section: &'static str, name: impl Into<String>, run: impl Fn(&Bench) -> String + 'static) -> Self {
        Self {
            section,
            name: name.into(),
            run: Box::new(run),
            fatal: false,
        }
    }

    /// One that makes the GPU fail for its process.
    pub fn costs_the_device(mut self) -> Self {
        self.fatal = true;
        self
    }
}

/// In a child: runs cases from number `first` on, a line of JSON for each before and after it.
pub fn child(cases: &[(usize, &Case)], first: usize, bench: &Bench) -> i32 {
    std::panic::set_hook(Box::new(|_| {}));
    for (number, case) in cases.iter().filter(|(n, _)| *n >= first) {
        say(&serde_json::json!({ "begin": number }));
        let start = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| (case.run)(bench)));
        let (ok, text) = match ended {
            Ok(text) => (true, text),
            Err(e) => {
                let text = e.downcast_ref::<String>().cloned();
                let text = text.or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string()));
                (false, text.unwrap_or_else(|| "panicked".into()))
            }
        };
        let lost = bench.device.synchronise().is_err();
        let seconds = start.elapsed().as_secs_f64();
        say(&serde_json::json!({ "end": number, "ok": ok && (case.fatal || !lost), "text": text, "seconds": seconds }));
        if lost {
            return LOST;
        }
    }
    0
}

fn say(value: &serde_json::Value) {
    let out = &mut std::io::stdout().lock();
    // The parent reads it; when it is gone nobody does.
    let _ = writeln!(out, "{value}").and_then(|()| out.flush());
}

/// What became of a case.
pub struct Outcome {
    /// Index into the cases.
    pub case: usize,
    /// Passed.
    pub ok: bool,
    /// What it said.
    pub text: String,
    /// How long it took.
    pub seconds: f64,
}

/// In the parent: starts children until every case has an outcome; `report` gets each as it comes.
pub fn parent(wanted: &[usize], args: &[String], report: &mut dyn FnMut(&Outcome)) -> Result<(), String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let mut next = 0;
    while next < wanted.len() {
        next = one_child(&program, args, wanted, next, report)?;
    }
    Ok(())
}

/// Runs a child from case `wanted[next]` on; returns the index to go on with.
fn one_child(
    program: &Path,
    args: &[String],
    wanted: &[usize],
    mut next: usize,
    report: &mut dyn FnMut(&Outcome),
) -> Result<usize, String> {
    let mut command = Command::new(program);
    command.args(args).arg("--child").arg(wanted[next].to_string());
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|e| e.to_string())?;
    let out = child.stdout.take().ok_or("no output")?;
    let (send, lines) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    let mut running: Option<usize> = None;
    let mut why = String::new();
    loop {
        match lines.recv_timeout(LIMIT) {
            Ok(line) => {
                let Ok(v) = serde_json::from_str::<serde_json::Value>(&line) else {
                    println!("{line}");
                    continue;
                };
                if let Some(n) = v["begin"].as_u64() {
                    running = Some(n as usize);
                } else if let Some(n) = v["end"].as_u64() {
                    running = None;
                    next = wanted
                        .iter()
                        .position(|&w| w == n as usize)
                        .map_or(wanted.len(), |i| i + 1);
                    report(&Outcome {
                        case: n as usize,
                        ok: v["ok"] == true,
                        text: v["text"].as_str().unwrap_or("").into(),
                        seconds: v["seconds"].as_f64().unwrap_or(0.0),
                    });
                }
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                why = format!("given up after {} s", LIMIT.as_secs());
                let _ = child.kill();
                break;
            }
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    let _ = reader.join();
    if let Some(case) = running {
        if why.is_empty() {
            why = format!("the process ended: {status}");
        }
        report(&Outcome {
            case,
            ok: false,
            text: why,
            seconds: 0.0,
        });
        return Ok(wanted.iter().position(|&w| w == case).map_or(wanted.len(), |i| i + 1));
    }
    if status.success() || status.code() == Some(LOST) {
        return Ok(if status.success() { wanted.len() } else { next });
    }
    Err(format!("a process ended before its first case: {status}"))
}
