//! MODEL1 Explorer: the desktop shell. A window with the web interface, the host in this process, and the few things
//! only a desktop program can do for the page: dialogs, dropped files, the window's form. No model code.

// No console window beside ours on Windows.
#![cfg_attr(all(not(debug_assertions), target_os = "windows"), windows_subsystem = "windows")]

mod commands;
mod link;
#[cfg(target_os = "linux")]
mod webkit;
mod window;

use std::process::ExitCode;
use std::sync::mpsc;

use anyhow::{Context, Result};
use desktop::{Message, Seat};
use tauri::Manager;

use commands::Shell;
use link::Link;

const USAGE: &str = "\
usage: model1-explorer [PATH]

Opens MODEL1 Explorer. PATH is a model to open: a Hugging Face folder or a GGUF file; or a recorded run (.m1run), which
is shown without an engine. Without one the bundled model is loaded. If MODEL1 Explorer is open already, its window comes to the front.

Linux with NVIDIA's driver: WebKitGTK's windows stay blank or freeze there unless WEBKIT_DISABLE_DMABUF_RENDERER=1 (X11)
or __NV_DISABLE_EXPLICIT_SYNC=1 (Wayland) is set. This program sets it where it is needed; set one of them yourself, to
any value, and it changes nothing. model1-window needs no WebKitGTK.";

fn main() -> ExitCode {
    if let Some(code) = host::engine_process() {
        return ExitCode::from(code);
    }
    let open = match std::env::args().skip(1).collect::<Vec<_>>().as_slice() {
        [] => None,
        [one] if one == "--help" || one == "-h" => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        [one] if one == "--version" || one == "-V" => {
            println!("model1-explorer {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        [one] if !one.starts_with('-') => Some(one.clone()),
        _ => {
            eprintln!("error: arguments not understood\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match start(open) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(open: Option<String>) -> Result<()> {
    desktop::install_panic_hook("model1-explorer", desktop::state_dir());
    #[cfg(target_os = "linux")]
    webkit::prepare();
    desktop::display()?;

    let (tell, told) = mpsc::channel();
    let open = open.map(absolute);
    let seat = match desktop::take_seat(&desktop::seat_dir(), &Message { open: open.clone() }, move |m| {
        // The receiver lives as long as the program.
        let _ = tell.send(m);
    })? {
        Seat::First(seat) => seat,
        Seat::Second => {
            eprintln!("MODEL1 Explorer is open already; its window was asked to come to the front.");
            return Ok(());
        }
    };

    let link = Link::start(open)?;
    let app = tauri::Builder::default()
        .manage(link)
        .manage(Shell::new(seat))
        .invoke_handler(commands::handler())
        .setup(|app| {
            window::open(app)?;
            let handle = app.handle().clone();
            std::thread::Builder::new().name("shell".into()).spawn(move || {
                for message in told {
                    window::to_front(&handle);
                    handle.state::<Shell>().opened_elsewhere(message);
                }
            })?;
            Ok(())
        })
        .build(tauri::generate_context!())
        .context("the window could not be opened")?;
    app.run(|app, event| {
        if let tauri::RunEvent::Exit = event {
            app.state::<Link>().stop();
        }
    });
    Ok(())
}

/// The path as another process would have to name it.
fn absolute(path: String) -> String {
    std::path::absolute(&path).map_or(path, |p| p.to_string_lossy().into_owned())
}
