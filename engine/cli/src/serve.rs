//! `serve`: the host for browsers.

use std::io::{BufRead, IsTerminal, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use host::web::{WebOptions, WebServer};
use host::{Host, HostOptions};
use protocol::ModelSource;

use crate::args::Serve;
use crate::setup::{self, user};

/// What `--model` names.
pub fn source(model: &str) -> ModelSource {
    match model {
        "bundled" | "mini" | "model1-mini" => ModelSource::Bundled,
        "smollm2" => ModelSource::SmolLm2,
        other => {
            let parts: Vec<&str> = other.split('/').collect();
            let repo = parts.len() == 2 && parts.iter().all(|p| !p.is_empty() && !p.starts_with(['.', '~']));
            if repo && !Path::new(other).exists() {
                ModelSource::Hub(other.into())
            } else {
                ModelSource::Path(other.into())
            }
        }
    }
}

/// Where the page is when nothing is said: `$MODEL1_UI`, else `ui` beside the program, else `ui/dist` in the source
/// tree the program was built from.
fn page() -> Option<PathBuf> {
    if let Some(set) = std::env::var_os("MODEL1_UI").filter(|v| !v.is_empty()) {
        return Some(set.into());
    }
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("ui"));
    let source = || {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?.parent()?;
        Some(root.join("ui").join("dist"))
    };
    [beside(), source()]
        .into_iter()
        .flatten()
        .find(|p| p.join("index.html").is_file())
}

/// Opens an address in the browser of the desktop.
fn open(address: &str) -> Result<()> {
    let (program, args): (&str, &[&str]) = if cfg!(target_os = "macos") {
        ("open", &[])
    } else if cfg!(windows) {
        ("rundll32", &["url.dll,FileProtocolHandler"])
    } else {
        ("xdg-open", &[])
    };
    Command::new(program)
        .args(args)
        .arg(address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("no browser could be opened ({program})"))?;
    Ok(())
}

/// `model1 serve`
pub fn serve(args: &Serve) -> Result<()> {
    if args.threads == Some(0) {
        return Err(user("--threads: found 0, accepted: 1 or more"));
    }
    if let Some(ui) = &args.ui
        && !ui.join("index.html").is_file()
    {
        let ui = ui.display();
        return Err(user(format!(
            "--ui {ui}: found no index.html, accepted: a folder with the page"
        )));
    }
    let cancel = setup::cancel();
    let defaults = HostOptions::default();
    let host = Arc::new(Host::start(HostOptions {
        data_dir: args.data.clone().or(defaults.data_dir.clone()),
        device: args.device.clone(),
        threads: args.threads,
        open: args.model.as_deref().map(source),
        context: args.context.unwrap_or(0),
        ..defaults
    })?);
    let web = WebServer::start(
        host.clone(),
        WebOptions {
            listen: args.listen.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)),
            port: args.port,
            ui: args.ui.clone().or_else(page),
            names: args.names.clone(),
        },
    )
    .map_err(|e| user(e.to_string()))?;
    if web.is_open() {
        let address = web.address();
        eprintln!(
            "warning: other machines can reach {address}, and the connection is not encrypted: whoever has the link \
             can use this host and name files on it. An SSH tunnel to 127.0.0.1 is safer."
        );
    }
    let link = web.link()?;
    writeln!(std::io::stdout(), "{link}")?;
    eprintln!("MODEL1 Explorer is served there. The link works for one browser. Ctrl-C ends the host.");
    if args.open
        && !args.no_open
        && let Err(e) = open(&link)
    {
        eprintln!("warning: {e:#}; open the address yourself");
    }
    let web = Arc::new(web);
    if std::io::stdin().is_terminal() {
        eprintln!("Enter makes another link.");
        more_links(web.clone());
    }
    while !cancel.is_cancelled() {
        std::thread::sleep(Duration::from_millis(50));
    }
    host.stop();
    web.stop();
    Ok(())
}

/// Prints a new link for every line from the terminal.
fn more_links(web: Arc<WebServer>) {
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines().map_while(Result::ok) {
            match web.link() {
                Ok(link) => println!("{link}"),
                Err(e) => eprintln!("error: {e}"),
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_model_argument_names() {
        assert_eq!(source("bundled"), ModelSource::Bundled);
        assert_eq!(source("smollm2"), ModelSource::SmolLm2);
        assert_eq!(source("owner/name"), ModelSource::Hub("owner/name".into()));
        for path in ["x.gguf", "/a/b", "./a", "../a", "~/a", "a/b/c", "src/args.rs"] {
            assert_eq!(source(path), ModelSource::Path(path.into()), "{path}");
        }
    }
}
