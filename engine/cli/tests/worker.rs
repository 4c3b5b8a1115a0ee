//! The engine in a process of its own: the same bytes, also where that process is killed in the middle of the text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::golden;

const PATIENCE: Duration = Duration::from_secs(60);

fn model1(worker: &str, tokens: u64) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_model1"));
    let n = tokens.to_string();
    c.args(["generate", "--worker", worker, "--model"])
        .arg(golden("tiny-v4"));
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

fn signal(pid: u32, name: &str) {
    let sent = Command::new("kill")
        .args([&format!("-{name}"), &pid.to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
}

/// The process of the engine of a running command: it works on the command's text already.
fn worker_of(command: &Child) -> u32 {
    let mut found = None;
    until("the engine's process", || {
        found = children(command.id()).first().copied();
        found.is_some()
    });
    found.unwrap()
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

/// More tokens than fit into the pipe between the command and this test: the command waits for the test somewhere.
const LONG: u64 = 30_000;

#[test]
fn a_process_of_its_own_writes_the_same_bytes() {
    let inside = model1("off", 300).output().unwrap();
    let apart = model1("on", 300).output().unwrap();
    assert!(inside.status.success() && apart.status.success(), "{}", said(&apart));
    assert!(inside.stdout.len() > 300 && inside.stdout == apart.stdout);
    assert!(!said(&apart).contains("ended"), "{}", said(&apart));
}

#[test]
fn a_text_goes_on_after_its_process_is_killed() {
    let want = model1("off", 1000).output().unwrap();
    for (name, words) in [
        ("KILL", "signal 9 (killed"),
        ("ABRT", "signal 6 (it aborted"),
        ("TERM", "signal 15"),
    ] {
        let mut c = model1("on", 1000)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let text = some_text(&mut c, 40);
        signal(worker_of(&c), name);
        let out = rest(c, text);
        let said = said(&out);
        assert!(out.status.success(), "{said}");
        assert!(out.stdout == want.stdout, "{name}: the text differs");
        // A process that has written all of the text before it was killed is not missed.
        if said.contains("started again") {
            assert!(
                said.contains("The engine process ended:") && said.contains(words),
                "{said}"
            );
        }
    }
}

#[test]
fn a_process_that_always_dies_is_given_up_with_one_error() {
    let mut c = model1("on", LONG)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = some_text(&mut c, 20);
    let mut killed = 0;
    while c.try_wait().unwrap().is_none() && killed < 200 {
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
    let mut c = model1("on", LONG)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    some_text(&mut c, 20);
    let worker = worker_of(&c);
    c.kill().unwrap();
    c.wait().unwrap();
    until("the end of the engine's process", || !is_there(worker));
    // It stops on Ctrl-C with what it wrote, as without a process.
    let mut c = model1("on", LONG)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = some_text(&mut c, 20);
    let worker = worker_of(&c);
    signal(c.id(), "INT");
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
