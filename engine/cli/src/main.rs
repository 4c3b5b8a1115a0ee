//! The `model1` command.

mod args;
mod bench;
mod chat;
mod compare;
mod generate;
mod logits;
mod output;
mod pull;
mod record;
mod samples;
mod serve;
mod setup;
mod show;
mod sweep;
mod telemetry;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use setup::{is_broken_pipe, is_interrupted, is_user_error};

fn main() -> ExitCode {
    if let Some(code) = engine::worker::enter() {
        return ExitCode::from(code);
    }
    let cli = Cli::parse();
    log();
    match (cli.worker, &cli.command) {
        (Some(mode), _) => engine::worker::set_default(mode.into()),
        // What is timed is the engine, not the way to its process.
        (None, Command::Bench(_)) => engine::worker::set_default(engine::worker::Mode::Off),
        // Steps of several texts at once do not go through that process.
        (None, Command::Generate(a)) if a.samples > 1 => engine::worker::set_default(engine::worker::Mode::Off),
        (None, _) => {}
    }
    let result = match cli.command {
        Command::Demo(a) => generate::demo(&a),
        Command::Generate(a) => generate::generate(&a),
        Command::Chat(a) => chat::chat(&a),
        Command::Show(a) => show::show(&a),
        Command::Compare(a) => compare::compare(&a),
        Command::Sweep(a) => sweep::sweep(&a),
        Command::Bench(a) => bench::bench(&a),
        Command::Logits(a) => logits::logits(&a),
        Command::Devices(a) => show::devices(&a),
        Command::Pull(a) => pull::pull(&a),
        Command::Serve(a) => serve::serve(&a),
        Command::Record(a) => record::record(&a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) if is_interrupted(&e) => ExitCode::from(130),
        // Whoever read the output has seen enough.
        Err(e) if is_broken_pipe(&e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {}", message(&e));
            ExitCode::from(if is_user_error(&e) { 2 } else { 1 })
        }
    }
}

/// Warnings of the libraries go to stderr. `MODEL1_LOG` (error, info, debug, trace) shows less or more.
fn log() {
    use std::io::IsTerminal;
    let level = std::env::var("MODEL1_LOG").ok().and_then(|l| l.parse().ok());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .with_max_level(level.unwrap_or(tracing::Level::WARN))
        .init();
}

/// The error and its causes in one line; causes that the words before already end with are left out.
fn message(e: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in e.chain().map(ToString::to_string) {
        if out.is_empty() {
            out = cause;
        } else if !out.ends_with(&cause) {
            out = format!("{out}: {cause}");
        }
    }
    out
}
