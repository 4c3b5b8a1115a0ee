//! A recorded run on stage: clients are told what was told then, at the pace it was told, and answered from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use protocol::{ErrorInfo, HostFrame, HostInfo, JobId, JobKind, JobState, Reply, Request, Update, Welcome, encode};

use super::Tape;
use crate::errors::refused;
use crate::hub::{Client, ClientId, Hub, Inner, Model, Seen};

/// The run that all clients of a host are shown instead of its own state.
#[derive(Clone)]
pub(crate) struct Stage {
    tape: Arc<Tape>,
    /// Times a client was begun with; each gets a number of its own, so that it forgets what it was told before.
    shown: u64,
}

/// One client's place in a recorded run.
pub(crate) struct Player {
    tape: Arc<Tape>,
    begin: Instant,
    /// Updates told.
    at: usize,
}

impl Player {
    /// When the next update is due; `None` after the last.
    pub fn due(&self) -> Option<Instant> {
        self.tape.updates.get(self.at).map(|u| self.begin + u.0)
    }

    /// The next update.
    pub fn take(&mut self) -> Option<Update> {
        let update = self.tape.updates.get(self.at)?.2.clone();
        self.at += 1;
        Some(update)
    }
}

/// Reads a recorded run and shows it to everybody. A job says how that went.
pub(crate) fn open(hub: &Arc<Hub>, path: PathBuf) -> JobId {
    let name = crate::models::name_of_path(&path);
    let (job, _) = hub.with(|inner| {
        let job = inner.jobs.add(JobKind::Load, &format!("reading {name}"), "bytes");
        inner.jobs.change(job.0, |j| j.state = JobState::Running);
        job
    });
    let own = hub.clone();
    // Where the pool is closed the host is ending.
    hub.pool.run(move || {
        let read = Tape::read(&path);
        let run = own.run;
        own.with(|inner| {
            inner.jobs.change(job, |j| {
                j.state = match &read {
                    Ok(_) => JobState::Done,
                    Err(e) => JobState::Failed(e.clone()),
                };
            });
            match read {
                Ok(tape) => begin(inner, run, Arc::new(tape)),
                Err(error) => {
                    inner.notice(true, error.what.clone());
                    if inner.loaded().is_none() {
                        inner.model = Model::Failed { name, error };
                    }
                    inner.changed();
                }
            }
        });
    });
    job
}

/// Everybody is shown the run from its beginning.
fn begin(inner: &mut Inner, run: u64, tape: Arc<Tape>) {
    let shown = inner.stage.take().map_or(0, |s| s.shown);
    inner.stage = Some(Stage { tape, shown });
    for id in greeted(inner) {
        join(inner, run, id);
    }
}

fn greeted(inner: &Inner) -> Vec<ClientId> {
    let all = inner.clients.all.iter();
    all.filter(|(_, c)| c.greeted && c.closed.is_none())
        .map(|(id, _)| *id)
        .collect()
}

/// Shows the run to a client from its beginning; false where no run is shown.
pub(crate) fn join(inner: &mut Inner, run: u64, id: ClientId) -> bool {
    let Some(stage) = &mut inner.stage else { return false };
    stage.shown += 1;
    let (tape, shown) = (stage.tape.clone(), stage.shown);
    let settings = inner.settings.clone();
    if let Some(client) = inner.clients.all.get_mut(&id) {
        let mut host = HostInfo::new(&tape.header.program, run ^ shown, client.local, &tape.header.machine);
        host.recorded = tape.about();
        let welcome = Welcome::Accepted {
            host,
            driver: true,
            settings,
        };
        tell(client, welcome);
        client.player = Some(Player {
            tape,
            begin: Instant::now(),
            at: 0,
        });
    }
    true
}

fn tell(client: &mut Client, welcome: Welcome) {
    // A welcome is small: it can always be encoded.
    let bytes = encode(&HostFrame::Welcome(Box::new(welcome))).unwrap_or_default();
    client.unread += bytes.len();
    client.replies.push_back(bytes);
}

/// Everybody is back in the state of this host.
pub(crate) fn leave(inner: &mut Inner, run: u64) {
    if inner.stage.take().is_none() {
        return;
    }
    let (settings, machine) = (inner.settings.clone(), crate::about::machine());
    for id in greeted(inner) {
        let seen = Seen::fresh(inner);
        let driver = inner.clients.driver == Some(id);
        if let Some(client) = inner.clients.all.get_mut(&id) {
            client.player = None;
            client.seen = seen;
            let host = HostInfo::new(env!("CARGO_PKG_VERSION"), run, client.local, &machine);
            let settings = settings.clone();
            tell(client, Welcome::Accepted { host, driver, settings });
        }
    }
    inner.changed();
}

/// The answer to a request of a client that is shown a recorded run; `None` where the host itself answers.
pub(crate) fn answer(hub: &Hub, id: ClientId, request: &Request) -> Option<Result<Reply, ErrorInfo>> {
    use Request as R;
    let (tape, at) = hub.with(|inner| {
        let player = inner.clients.all.get(&id)?.player.as_ref()?;
        Some((player.tape.clone(), player.at))
    })?;
    match request {
        R::TakeOver | R::ListModels | R::ForgetModel(_) | R::FindFont(_) | R::SetSettings(_) | R::LookAtHost { .. } => {
            return None;
        }
        R::OpenModel { source, .. } => {
            if !matches!(source, protocol::ModelSource::Path(p) if super::is_run(p)) {
                hub.with(|inner| leave(inner, hub.run));
            }
            return None;
        }
        R::CloseModel => {
            hub.with(|inner| leave(inner, hub.run));
            return Some(Ok(Reply::Done));
        }
        R::Stop | R::CancelJob(_) => return Some(Ok(Reply::Done)),
        _ => {}
    }
    let mut known = tape.answer(request, at).cloned();
    if let (None, R::ExportComparison { job, folder }) = (&known, request)
        && !folder.is_empty()
    {
        let packed = R::ExportComparison {
            job: *job,
            folder: String::new(),
        };
        known = tape.answer(&packed, at).is_some().then(|| {
            Err(refused(
                "This is a recorded run: its report is kept as one archive.",
                "Leave the folder empty: the archive is saved then.",
            ))
        });
    }
    if known.is_none() && matches!(request, R::PredictMemory { .. }) {
        return None;
    }
    Some(known.unwrap_or_else(|| Err(not_there(request))))
}

fn not_there(request: &Request) -> ErrorInfo {
    if crate::dispatch::changes_things(request) {
        return refused(
            "This is a recorded run: nothing is computed here.",
            "Open a model to do it yourself.",
        );
    }
    refused(
        "This was not looked at when the run was recorded.",
        "Open the model to look at it.",
    )
}
