//! MODEL1 Explorer in a native window: the same interface as in the desktop shell, drawn by OpenGL without a webview,
//! with the host in this process.

// No console window beside ours on Windows.
#![cfg_attr(all(not(debug_assertions), target_os = "windows"), windows_subsystem = "windows")]

mod crash;
mod link;
mod platform;
mod window;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::mpsc;

use anyhow::{Context, Result, anyhow};
use desktop::{Message, Seat};

const USAGE: &str = "\
usage: model1-window [PATH]

Opens MODEL1 Explorer in a native window. PATH is a model to open: a Hugging Face folder or a GGUF file; or a
recorded run (.m1run), which is shown without an engine. Without one the bundled model is loaded. If MODEL1 Explorer is open already, its window comes to the front.";

/// The program's picture, for the window's frame and the task bar.
const ICON: &[u8] = include_bytes!("../../../src-tauri/icons/128x128.png");

/// Shows the page about a fault instead of the interface; followed by the report's file.
const CRASH_REPORT: &str = "--crash-report";

fn main() -> ExitCode {
    if let Some(code) = host::engine_process() {
        return ExitCode::from(code);
    }
    let result = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => start(None),
        [one] if one == "--help" || one == "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [one] if one == "--version" || one == "-V" => {
            println!("model1-window {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [flag, file] if flag == CRASH_REPORT => crash::show(&PathBuf::from(file)),
        [one] if !one.starts_with('-') => start(Some(one.clone())),
        _ => {
            eprintln!("error: arguments not understood\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(open: Option<String>) -> Result<()> {
    desktop::install_panic_hook("model1-window", desktop::state_dir());
    desktop::display()?;
    let open = open.map(|p| std::path::absolute(&p).map_or(p, |a| a.to_string_lossy().into_owned()));
    let (tell, told) = mpsc::channel();
    let own = tell.clone();
    // The receiver lives as long as the window.
    let heard = move |m| drop(own.send(platform::Heard::Elsewhere(m)));
    let seat = match desktop::take_seat(&desktop::seat_dir(), &Message { open: open.clone() }, heard)? {
        Seat::First(seat) => seat,
        Seat::Second => {
            eprintln!("MODEL1 Explorer is open already; its window was asked to come to the front.");
            return Ok(());
        }
    };
    // A fault in the interface must not take the texts with it: the host is stopped properly, which saves them, and a
    // page about the fault is shown by a new process (a toolkit starts once in each).
    let host = link::start_host(open)?;
    let run = std::panic::AssertUnwindSafe(|| window::run(host.clone(), tell, told));
    let outcome = std::panic::catch_unwind(run);
    host.stop();
    drop(seat);
    match outcome {
        Ok(result) => result,
        Err(_) => crashed(),
    }
}

/// Lets another process show what happened.
fn crashed() -> Result<()> {
    let report = desktop::last_report().ok_or_else(|| anyhow!("the interface stopped working, without a report"))?;
    let Some(file) = report.file else {
        return Err(anyhow!("the interface stopped working: {}", report.message));
    };
    let own = std::env::current_exe().context("this program's own file")?;
    Command::new(own)
        .arg(CRASH_REPORT)
        .arg(file)
        .spawn()
        .context("the page about the fault")?;
    Err(anyhow!("the interface stopped working: {}", report.message))
}
