//! The engine in a process of its own: the same bytes, also where that process is killed in the middle of the text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Toy, golden};

const PATIENCE: Duration = Duration::from_secs(60);

fn model1(model: &str, worker: &str, tokens: u64) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_model1"));
    let n = tokens.to_string();
    c.args(["generate", "--worker", worker, "--model", model]);
    c.args([
        "--ids",
        "5,9,2",
        "-n",
        &n,
        "--temperature",
        "1",
        "--seed",
        "3",
        "--ignore-eos",
        "--threads",
        "1",
    ]);
    c.args(["--device", "cpu"]).stdin(Stdio::null());
    c
}

/// A model whose text is longer than what fits into the pipe between the command and a test: the command waits for the
/// test somewhere in the middle.
fn long(toy: &Toy) -> Command {
    model1(&toy.model(), "on", 200_000)
}

fn toy() -> Toy {
    Toy::changed(|config| config["max_position_embeddings"] = (1 << 20).into(), |_| {})
}

/// Processes that a process started and that still run.
fn children(pid: u32) -> Vec<u32> {
    let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    list.split_whitespace().map(|p| p.parse().unwrap()).collect()
}

fn is_there(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "))
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal to a process, which may be gone.
fn send(pid: u32, name: &str) {
    let pid = pid.to_string();
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid])
        .stderr(Stdio::null())
        .status();
    sent.unwrap();
}

/// The process of the engine of a running command.
fn worker_of(command: &Child) -> u32 {
    *children(command.id()).first().expect("the engine's process")
}

/// Reads until some bytes of the text are there.
fn some_text(command: &mut Child, bytes: usize) -> Vec<u8> {
    let out = command.stdout.as_mut().unwrap();
    let mut text = vec![0; bytes];
    out.read_exact(&mut text).unwrap();
    text
}

fn rest(mut command: Child, text: Vec<u8>) -> Output {
    let mut stdout = text;
    command.stdout.take().unwrap().read_to_end(&mut stdout).unwrap();
    let out = command.wait_with_output().unwrap();
    Output { stdout, ..out }
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&out.stderr).into_owned()
}

#[test]
fn a_process_of_its_own_writes_the_same_bytes() {
    let model = golden("tiny-v4");
    let inside = model1(&model, "off", 1000).output().unwrap();
    let apart = model1(&model, "on", 1000).output().unwrap();
    assert!(inside.status.success() && apart.status.success(), "{}", said(&apart));
    assert!(inside.stdout.len() > 300 && inside.stdout == apart.stdout);
    assert!(!said(&apart).contains("ended"), "{}", said(&apart));
}

#[test]
fn a_text_goes_on_after_its_process_is_killed() {
    let model = golden("tiny-v4");
    let want = model1(&model, "off", 1000).output().unwrap();
    for (name, words) in [
        ("KILL", "signal 9 (killed"),
        ("ABRT", "signal 6 (it aborted"),
        ("TERM", "signal 15"),
    ] {
        // A process that has written all of the text before the signal came is not missed: once more then.
        let seen = (0..20).any(|_| {
            let mut c = model1(&model, "on", 1000);
            let mut c = c.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            let text = some_text(&mut c, 4);
            if let Some(pid) = children(c.id()).first() {
                send(*pid, name);
            }
            let out = rest(c, text);
            let said = said(&out);
            assert!(out.status.success(), "{said}");
            assert!(out.stdout == want.stdout, "{name}: the text differs");
            said.contains("was started again") && said.contains("The engine process ended:") && said.contains(words)
        });
        assert!(seen, "{name}: nobody said what happened");
    }
}

#[test]
fn a_process_that_always_dies_is_given_up_with_one_error() {
    let toy = toy();
    let mut c = long(&toy)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = some_text(&mut c, 20);
    let mut killed = 0;
    while c.try_wait().unwrap().is_none() && killed < 500 {
        // Whoever comes is killed before it has read the text again.
        if let Some(pid) = children(c.id()).first() {
            let _ = Command::new("kill")
                .args(["-KILL", &pid.to_string()])
                .stderr(Stdio::null())
                .status();
            killed += 1;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let out = rest(c, text);
    let said = said(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(
        said.contains("signal 9") && (said.contains("within a minute") || said.contains("cannot be started")),
        "{said}"
    );
}

#[test]
fn no_process_is_left_behind() {
    // The command itself is killed: its engine's process ends with it.
    let toy = toy();
    let mut c = long(&toy).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    some_text(&mut c, 20);
    let worker = worker_of(&c);
    c.kill().unwrap();
    c.wait().unwrap();
    until("the end of the engine's process", || !is_there(worker));
    // It stops on Ctrl-C with what it wrote, as without a process.
    let mut c = long(&toy)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = some_text(&mut c, 20);
    let worker = worker_of(&c);
    send(c.id(), "INT");
    let out = rest(c, text);
    assert_eq!(out.status.code(), Some(130), "{}", said(&out));
    until("the end of the engine's process", || !is_there(worker));
}

#[test]
fn it_is_no_command_for_people() {
    let out = Command::new(env!("CARGO_BIN_EXE_model1"))
        .arg("engine-worker")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(out.status.code(), Some(2));
    assert!(
        said(&out).contains("started by MODEL1 Explorer itself"),
        "{}",
        said(&out)
    );
    let help = Command::new(env!("CARGO_BIN_EXE_model1"))
        .arg("--help")
        .output()
        .unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    assert!(help.contains("--worker") && !help.contains("engine-worker"), "{help}");
}
