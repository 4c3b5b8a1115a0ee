//! `examples/demo.rs`, which embeds the engine, as a program.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use common::{Toy, finish};

/// Cargo puts examples beside the folder of the test programs.
fn demo() -> Command {
    let tests = std::env::current_exe().unwrap();
    let folder: PathBuf = tests.parent().unwrap().parent().unwrap().join("examples");
    let mut command = Command::new(folder.join("demo"));
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn the_example_streams_text() {
    let toy = Toy::new();
    let mut command = demo();
    command.args([toy.model().as_str(), "fox"]);
    let out = finish(command, "").ok();
    let text = toy
        .run("generate", &["--prompt", "fox", "-n", "64", "--quiet"])
        .ok()
        .stdout;
    let (ours, figures) = out.stdout.trim_end().rsplit_once('\n').unwrap();
    assert_eq!(ours, text.trim_end_matches('\n'));
    assert!(
        figures.starts_with("[64 tokens, ") && figures.contains("KV cache "),
        "{figures}"
    );
}

#[test]
fn the_example_is_short() {
    let lines = include_str!("../../../examples/demo.rs").lines().count();
    assert!(lines <= 30, "{lines} lines");
}

#[test]
fn the_example_says_what_is_wrong() {
    let mut command = demo();
    command.args(["/nowhere/at/all", "fox"]);
    let out = finish(command, "");
    assert!(out.stderr.starts_with("error: /nowhere/at/all: "), "{}", out.stderr);
}
