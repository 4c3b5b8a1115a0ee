//! From requests to whoever answers them: the hub at once, the pool where a disk is involved, the engine's thread for
//! everything that needs a session.

use std::sync::Arc;

use protocol::{DocKind, ErrorInfo, ErrorKind, GenerateSpec, JobKind, ModelSource, Reply, Request, Settings};

use crate::docs::{self, Draft, export};
use crate::errors::{input, no_model, refused};
use crate::hub::{ClientId, Hub, Inner, Model, Responder};
use crate::models::{self, Place, fetching};
use crate::worker::{Action, Command, LoadTask, Look, RecipeChange};

/// Requests that only the driver may make.
pub(crate) fn changes_things(request: &Request) -> bool {
    use Request as R;
    match request {
        R::TakeOver
        | R::ListModels
        | R::PredictMemory { .. }
        | R::ListDocs
        | R::GetDoc
        | R::ExportDoc { .. }
        | R::CountTokens(_)
        | R::ListPresets
        | R::GetTree
        | R::GetPlan { .. }
        | R::GetTensor(_)
        | R::GetBaselines
        | R::PreviewRecipe(_)
        | R::GetComparison(_)
        | R::GetSweep { .. }
        | R::GetSweepRecipe { .. }
        | R::GetFreeRun { .. }
        | R::InspectAttention(_)
        | R::InspectRows(_)
        | R::InspectRouter
        | R::InspectMetric(_)
        | R::ListMetrics
        | R::FindFont(_)
        | R::About => false,
        // Files are written where the driver says.
        R::ExportComparison { folder, .. } => !folder.is_empty(),
        R::OpenModel { .. }
        | R::CloseModel
        | R::ForgetModel(_)
        | R::CancelJob(_)
        | R::NewDoc(_)
        | R::OpenDoc(_)
        | R::RenameDoc { .. }
        | R::DeleteDoc(_)
        | R::UndeleteDoc(_)
        | R::SetSystem(_)
        | R::SelectLeaf(_)
        | R::Send { .. }
        | R::Generate { .. }
        | R::EditMessage { .. }
        | R::BranchAt { .. }
        | R::Stop
        | R::EditRecipe(_)
        | R::SetRecipe(_)
        | R::ReplayText
        | R::SetOpTiming(_)
        | R::Compare(_)
        | R::Sweep(_)
        | R::FreeRun(_)
        | R::SetSettings(_)
        | R::RestartEngine
        | R::LookAtHost { .. } => true,
    }
}

/// Sees to it that a request is answered. Returns at once.
pub(crate) fn request(hub: &Arc<Hub>, client: ClientId, to: Responder, request: Request) {
    use Request as R;
    match request {
        R::TakeOver => {
            hub.with(|inner| {
                if inner.clients.seat(client, true) {
                    inner.changed();
                }
            });
            to.send(Ok(Reply::Done));
        }
        R::CancelJob(id) => to.send(hub.with(|inner| cancel_job(inner, id)).map(|()| Reply::Done)),
        R::Stop => {
            hub.with(Inner::stop_writing);
            to.send(Ok(Reply::Done));
        }
        R::SetSettings(settings) => set_settings(hub, to, *settings),
        R::About => to.send(Ok(Reply::Text(hub.with(|inner| crate::about::text(hub, inner))))),
        R::GetComparison(job) => {
            // Copied and encoded off the lock: results are megabytes.
            let result = hub.with(|inner| find_result(inner, job));
            errand(hub, to, move |_| {
                result.map(|r| Reply::Compared(Box::new((*r).clone())))
            });
        }
        R::GetSweep { job, since } => to.send(hub.with(|inner| crate::views::sweep(inner, job, since))),
        R::GetFreeRun { job, since } => to.send(hub.with(|inner| crate::views::free_run(inner, job, since))),
        r @ (R::ListModels | R::PredictMemory { .. } | R::ForgetModel(_) | R::FindFont(_)) => on_disk(hub, to, r),
        r @ (R::OpenModel { .. } | R::CloseModel) => model(hub, to, r),
        R::LookAtHost {
            address,
            token,
            same_build,
        } => {
            // The network takes its time: not on the pool, where others wait.
            let work = move || to.send(crate::remote::look(&address, &token, same_build).map(Reply::RemoteHost));
            fetching::on_thread(work, |_| {});
        }
        r @ (R::Send { .. } | R::Generate { .. } | R::EditMessage { .. } | R::BranchAt { .. }) => write(hub, to, r),
        R::ListDocs => to.send(Ok(Reply::Docs(hub.with(|inner| inner.docs.list())))),
        r @ (R::NewDoc(_)
        | R::OpenDoc(_)
        | R::GetDoc
        | R::RenameDoc { .. }
        | R::DeleteDoc(_)
        | R::UndeleteDoc(_)
        | R::SetSystem(_)
        | R::SelectLeaf(_)
        | R::ExportDoc { .. }) => text(hub, to, r),
        other => engine(hub, to, other),
    }
}

/// Does something on the pool.
fn errand(hub: &Arc<Hub>, to: Responder, work: impl FnOnce(&Arc<Hub>) -> Result<Reply, ErrorInfo> + Send + 'static) {
    let own = hub.clone();
    // Without the pool the responder is dropped, which answers.
    hub.pool.run(move || to.send(work(&own)));
}

fn cancel_job(inner: &mut Inner, id: protocol::JobId) -> Result<(), ErrorInfo> {
    inner.jobs.cancel(id)?;
    let over = inner.jobs.get(id).is_none_or(|j| crate::hub::is_over(&j.state));
    if over && matches!(&inner.model, Model::Loading { job, .. } if *job == id) {
        inner.model = Model::None;
        inner.changed();
    }
    Ok(())
}

fn set_settings(hub: &Arc<Hub>, to: Responder, settings: Settings) {
    hub.with(|inner| {
        let settings = crate::settings::within(settings);
        inner.ring.resize(settings.telemetry_steps as usize);
        inner.settings = settings;
    });
    to.send(Ok(Reply::Done));
}

fn find_result(inner: &Inner, job: protocol::JobId) -> Result<Arc<protocol::CompareResult>, ErrorInfo> {
    if let Some(result) = inner.jobs.result(job) {
        return Ok(result);
    }
    Err(match inner.jobs.get(job) {
        Some(j) if !crate::hub::is_over(&j.state) => {
            refused("The comparison is not done yet.", "Wait until its job has ended.")
        }
        Some(_) => input(format!("Job {} left no comparison.", job.0), "Compare again."),
        None => input(format!("There is no comparison {}.", job.0), "Compare again."),
    })
}

fn on_disk(hub: &Arc<Hub>, to: Responder, request: Request) {
    errand(hub, to, move |hub| match request {
        Request::ListModels => Ok(Reply::Models(models::view(hub))),
        Request::PredictMemory { source, context } => {
            let plan = match models::locate(&source, &hub.paths)? {
                Place::Here(path) => crate::memory::predict(&path, context)?,
                Place::SmolLm2(_) => crate::memory::of_smollm2(context),
                Place::Hub { .. } => crate::memory::unknown(context),
            };
            Ok(Reply::Memory(plan))
        }
        Request::ForgetModel(path) => {
            models::forget(&hub.paths, &path);
            Ok(Reply::Done)
        }
        Request::FindFont(c) => Ok(Reply::Font(crate::fonts::find(c))),
        _ => Err(crate::errors::internal("The request went astray.")),
    });
}

/// Stops whatever the engine does for the loaded model.
fn interrupt(inner: &mut Inner) {
    inner.stop_writing();
    inner.jobs.cancel_all();
}

fn model(hub: &Arc<Hub>, to: Responder, request: Request) {
    let (source, context) = match request {
        Request::OpenModel { source, context } => (source, context),
        _ => {
            hub.with(interrupt);
            hub.command(Command::Close(to));
            return;
        }
    };
    match open_model(hub, &source, context) {
        Ok(job) => to.send(Ok(Reply::Job(job))),
        Err(e) => to.send(Err(e)),
    }
}

/// Fetches a model if needed and loads it.
///
/// # Errors
/// A source that cannot be one.
pub(crate) fn open_model(hub: &Arc<Hub>, source: &ModelSource, context: u64) -> Result<protocol::JobId, ErrorInfo> {
    if let ModelSource::Path(path) = source
        && crate::recorded::is_run(path)
    {
        return Ok(crate::recorded::open(hub, crate::paths::expand(path.trim())));
    }
    let place = models::locate(source, &hub.paths)?;
    let name = models::name(source);
    let here = matches!(place, Place::Here(_));
    let verb = if here { "loading" } else { "fetching" };
    let (job, cancel, context, threads) = hub.with(|inner| {
        // One model at a time: a load that still runs is given up. A text that is being written goes on while the
        // next model is fetched.
        inner.jobs.cancel_all();
        if here {
            inner.stop_writing();
        }
        let (job, cancel) = inner.jobs.add(JobKind::Load, &format!("{verb} {name}"), "bytes");
        if here || inner.loaded().is_none() {
            inner.model = Model::Loading {
                name: name.clone(),
                job,
            };
            inner.changed();
        }
        let context = if context == 0 { inner.settings.context } else { context };
        (job, cancel, context, inner.threads())
    });
    let task = |path| LoadTask {
        job,
        cancel: cancel.clone(),
        source: source.clone(),
        path,
        name: name.clone(),
        context,
        threads,
    };
    if let Place::Here(path) = place {
        hub.command(Command::Load(task(path)));
        return Ok(job);
    }
    let mut task = task(std::path::PathBuf::new());
    let own = hub.clone();
    let work = move || match fetching::fetch(&own, place, job, &task.cancel) {
        // Given up meanwhile: what came is kept for the next time.
        Ok(_) if task.cancel.is_cancelled() => {}
        Ok(path) => {
            own.with(|inner| {
                inner.jobs.detach(job, false);
                inner.stop_writing();
            });
            task.path = path;
            own.command(Command::Load(task));
        }
        Err(e) => fetch_failed(&own, &task, e),
    };
    hub.with(|inner| {
        inner.jobs.change(job, |j| j.state = protocol::JobState::Running);
        inner.jobs.detach(job, true);
    });
    fetching::on_thread(work, |e| {
        hub.with(|inner| inner.jobs.change(job, |j| j.state = protocol::JobState::Failed(e)));
    });
    Ok(job)
}

fn fetch_failed(hub: &Arc<Hub>, task: &LoadTask, error: ErrorInfo) {
    hub.with(|inner| {
        let ours = matches!(&inner.model, Model::Loading { job, .. } if *job == task.job);
        if ours {
            inner.model = match error.kind {
                ErrorKind::Cancelled => Model::None,
                _ => Model::Failed {
                    name: task.name.clone(),
                    error: error.clone(),
                },
            };
            inner.changed();
        }
        inner
            .jobs
            .change(task.job, |j| j.state = protocol::JobState::Failed(error));
    });
}

fn write(hub: &Arc<Hub>, to: Responder, request: Request) {
    let (action, spec) = match request {
        Request::Send { text, spec } => (Action::Send(text), spec),
        Request::Generate { node: Some(n), spec } => (Action::Again(n), spec),
        Request::Generate { node: None, spec } => (Action::Continue, spec),
        Request::EditMessage { node, text, spec } => match spec {
            Some(spec) => (Action::Edit { node, text }, spec),
            None => return to.send(edit_only(hub, node, text)),
        },
        Request::BranchAt {
            node,
            index,
            token,
            spec,
        } => (Action::Branch { node, index, token }, spec),
        _ => return,
    };
    if let Err(e) = check(&spec) {
        return to.send(Err(e));
    }
    // What is written now is stopped; the new message begins right after.
    let stop = hub.with(|inner| inner.loaded().is_some().then(|| inner.new_stop()));
    let Some((number, stop)) = stop else {
        return to.send(Err(hub.with(|inner| not_ready(inner))));
    };
    hub.command(Command::Write {
        action,
        spec,
        stop,
        number,
        to,
    });
}

fn not_ready(inner: &Inner) -> ErrorInfo {
    match &inner.model {
        Model::Loading { name, .. } => refused(format!("{name} is still being loaded."), "Wait until it is there."),
        _ => no_model(),
    }
}

fn check(spec: &GenerateSpec) -> Result<(), ErrorInfo> {
    if spec.stop.iter().any(String::is_empty) {
        return Err(input("A stop string is empty.", "Accepted: at least one character."));
    }
    Ok(())
}

/// Another text for a message, nothing generated.
fn edit_only(hub: &Arc<Hub>, node: u32, text: String) -> Result<Reply, ErrorInfo> {
    hub.with(|inner| {
        let id = inner.docs.current_id().ok_or_else(no_text)?;
        let edited = inner.docs.change(id, |d| {
            let old = d.require(node)?;
            let draft = Draft {
                parent: old.view.parent,
                role: old.view.role,
                text,
                tokens: Vec::new(),
                vocabulary: 0,
                spec: None,
            };
            d.add(draft, docs::now());
            Ok(())
        });
        edited.ok_or_else(no_text)??;
        inner.doc_changed();
        Ok(Reply::Done)
    })
}

fn no_text() -> ErrorInfo {
    refused("There is no text.", "Open a model, or start a new text.")
}

fn text(hub: &Arc<Hub>, to: Responder, request: Request) {
    match request {
        Request::GetDoc => {
            let found = hub.with(|inner| inner.docs.current().map(|d| (d.clone(), inner.log.last())));
            // Copied off the lock: a long text is megabytes.
            errand(hub, to, |_| {
                found.map(|(d, seq)| Reply::Doc(d.view(seq))).ok_or_else(no_text)
            });
        }
        Request::ExportDoc { format } => {
            let found = hub.with(|inner| inner.docs.current().cloned());
            errand(hub, to, move |_| export::file(&found.ok_or_else(no_text)?, &format));
        }
        Request::OpenDoc(id) => errand(hub, to, move |hub| open_doc(hub, id).map(Shown::reply)),
        Request::RenameDoc { doc, title } => errand(hub, to, move |hub| rename(hub, doc, &title)),
        other => {
            // Made off the lock, as above.
            let shown = hub.with(|inner| change_text(inner, other));
            to.send(shown.map(Shown::reply));
        }
    }
}

/// What a change of the texts is answered with.
enum Shown {
    Nothing,
    Doc(docs::Doc, u64),
}

impl Shown {
    fn current(inner: &Inner) -> Result<Self, ErrorInfo> {
        let doc = inner.docs.current().ok_or_else(no_text)?;
        Ok(Shown::Doc(doc.clone(), inner.log.last()))
    }

    fn reply(self) -> Reply {
        match self {
            Shown::Nothing => Reply::Done,
            Shown::Doc(doc, seq) => Reply::Doc(doc.view(seq)),
        }
    }
}

fn change_text(inner: &mut Inner, request: Request) -> Result<Shown, ErrorInfo> {
    match request {
        Request::NewDoc(kind) => {
            let model = inner.loaded().cloned().ok_or_else(no_model)?;
            if let (DocKind::Chat, Err(why)) = (kind, &model.chat) {
                let what = format!("{} cannot chat: {why}.", model.name);
                return Err(input(what, "Start a text, or open a chat model."));
            }
            inner.stop_writing();
            inner.docs.create(kind, &model.name, docs::now_ms());
            inner.doc_changed();
            Shown::current(inner)
        }
        Request::DeleteDoc(id) => {
            if inner.docs.current_id() == Some(id) {
                inner.stop_writing();
            }
            let kind = inner.docs.doc(id).map(|d| d.kind);
            if inner.docs.delete(id)?
                && let (Some(kind), Some(name)) = (kind, inner.loaded().map(|m| m.name.clone()))
            {
                // There is always a text to write in.
                inner.docs.create(kind, &name, docs::now_ms());
            }
            inner.doc_changed();
            Ok(Shown::Nothing)
        }
        Request::UndeleteDoc(id) => {
            inner.docs.undelete(id)?;
            inner.changed();
            Ok(Shown::Nothing)
        }
        Request::SetSystem(text) => {
            let id = inner.docs.current_id().ok_or_else(no_text)?;
            inner.docs.change(id, |d| d.system = text);
            inner.doc_changed();
            Ok(Shown::Nothing)
        }
        Request::SelectLeaf(node) => {
            let id = inner.docs.current_id().ok_or_else(no_text)?;
            let selected = inner.docs.change(id, |d| {
                d.require(node)?;
                d.leaf = Some(node);
                Ok(())
            });
            selected.ok_or_else(no_text)??;
            inner.doc_changed();
            Shown::current(inner)
        }
        _ => Err(crate::errors::internal("The request went astray.")),
    }
}

/// A text from the disk, unless it is in memory. One that cannot be read is set aside.
fn read_doc(hub: &Arc<Hub>, id: u64) -> Result<Option<docs::Doc>, ErrorInfo> {
    let in_memory = hub.with(|inner| inner.docs.require(id))?;
    let Some(folder) = hub.paths.texts().filter(|_| !in_memory) else {
        return Ok(None);
    };
    let path = folder.join(docs::file_name(id));
    match docs::read(&path) {
        Ok(doc) if doc.id == id => Ok(Some(doc)),
        Ok(doc) => Err(broken(hub, id, &path, format!("it holds text {}", doc.id))),
        Err(why) => Err(broken(hub, id, &path, why)),
    }
}

fn gone() -> ErrorInfo {
    input("There is no such text any more.", "Choose one of the list.")
}

/// Opens a saved text.
fn open_doc(hub: &Arc<Hub>, id: u64) -> Result<Shown, ErrorInfo> {
    let read = read_doc(hub, id)?;
    hub.with(|inner| {
        inner.stop_writing();
        if !inner.docs.open(id, read) {
            return Err(gone());
        }
        inner.doc_changed();
        Shown::current(inner)
    })
}

/// Gives a text another title, whether it is open or not.
fn rename(hub: &Arc<Hub>, id: u64, title: &str) -> Result<Reply, ErrorInfo> {
    let read = read_doc(hub, id)?;
    let title = docs::one_line(title, 200);
    hub.with(|inner| {
        inner.docs.hold(id, read);
        inner.docs.change(id, |d| d.title = title).ok_or_else(gone)?;
        inner.changed();
        Ok(Reply::Done)
    })
}

fn broken(hub: &Arc<Hub>, id: u64, path: &std::path::Path, why: String) -> ErrorInfo {
    // A file that cannot be read now may be readable later; only one with wrong contents is moved.
    let there = path.exists();
    let said = match (there, hub.paths.broken()) {
        (true, Some(folder)) => crate::saver::set_aside(&folder, &[(path.to_path_buf(), why)]).join(" "),
        _ => format!("{} cannot be read: {why}.", path.display()),
    };
    hub.with(|inner| {
        inner.docs.forget(id);
        inner.changed();
    });
    ErrorInfo::new(ErrorKind::Resource, said).remedy("The other texts are not affected.")
}

/// What needs the loaded model.
fn engine(hub: &Arc<Hub>, to: Responder, request: Request) {
    use Request as R;
    let Some(engine) = hub.with(|inner| inner.engine.clone()) else {
        return to.send(Err(hub.with(|inner| not_ready(inner))));
    };
    let look = |what, to| hub.command(Command::Look { what, to });
    match request {
        R::CountTokens(text) => errand(hub, to, move |_| crate::views::count(&engine, &text)),
        R::GetTensor(name) => errand(hub, to, move |_| crate::views::tensor(&engine, &name)),
        R::ListPresets => errand(hub, to, move |_| Ok(Reply::Presets(crate::views::presets(&engine)))),
        R::ListMetrics => to.send(Ok(Reply::Names(engine::inspect::metric_names(engine.facts())))),
        R::EditRecipe(edits) => hub.command(Command::Recipe {
            change: RecipeChange::Edits(edits),
            to,
        }),
        R::SetRecipe(json) => hub.command(Command::Recipe {
            change: RecipeChange::Json(json),
            to,
        }),
        R::SetOpTiming(on) => hub.command(Command::Timing { on, to }),
        R::GetTree => look(Look::Tree, to),
        R::GetPlan { tokens, context } => look(Look::Plan { tokens, context }, to),
        R::GetBaselines => look(Look::Baselines, to),
        R::PreviewRecipe(edits) => look(Look::Preview(edits), to),
        R::InspectAttention(spec) => look(Look::Attention(spec), to),
        R::InspectRows(layer) => look(Look::Rows(layer), to),
        R::InspectRouter => look(Look::Router, to),
        R::InspectMetric(name) => look(Look::Metric(name), to),
        R::ReplayText => job(hub, to, JobKind::Replay, "processing the text anew", |job, cancel| {
            Command::Replay { job, cancel }
        }),
        R::RestartEngine => {
            let what = "starting the engine again and reading the text";
            job(hub, to, JobKind::Replay, what, |job, cancel| Command::Restart {
                job,
                cancel,
            });
        }
        R::Compare(spec) => job(hub, to, JobKind::Compare, "comparing A with B", |job, cancel| {
            Command::Compare { job, cancel, spec }
        }),
        R::Sweep(spec) => job(hub, to, JobKind::Sweep, "measuring recipes", |job, cancel| {
            Command::Sweep { job, cancel, spec }
        }),
        R::FreeRun(spec) => job(hub, to, JobKind::FreeRun, "letting A and B write", |job, cancel| {
            Command::Free { job, cancel, spec }
        }),
        R::GetSweepRecipe { job, cell } => {
            let found = hub.with(|inner| crate::views::sweep_cell(inner, job, cell));
            errand(hub, to, move |_| {
                let (a, edits) = found?;
                crate::views::edited(&engine, &a, &edits)
            });
        }
        R::ExportComparison { job, folder } => {
            let result = hub.with(|inner| find_result(inner, job));
            errand(hub, to, move |_| export::comparison(&engine, &*result?, &folder));
        }
        _ => {}
    }
}

fn job(
    hub: &Arc<Hub>,
    to: Responder,
    kind: JobKind,
    what: &str,
    command: impl FnOnce(protocol::JobId, engine::Cancel) -> Command,
) {
    let (id, cancel) = hub.with(|inner| inner.jobs.add(kind, what, "tokens"));
    hub.command(command(id, cancel));
    to.send(Ok(Reply::Job(id)));
}
