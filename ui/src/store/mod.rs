//! What the host said, and what was asked of it. Views read it; only [`Store`] talks to the link.
//!
//! Updates are idempotent: a token that is already there is ignored, a gap makes the store fetch the whole text. After
//! a lost connection the store dials again with its cursor and misses nothing the host still holds.

mod answers;
mod connection;
mod jobs;
mod steps;
mod text;
mod toasts;

use std::collections::BTreeMap;

use protocol::{
    ClientBody, ClientFrame, DocInfo, ErrorInfo, ErrorKind, Event, FactsView, HostFrame, HostInfo, LoadedModel,
    ModelState, RecipeView, Reply, Request, Settings, StateView, Update, Welcome, decode, encode,
};

pub use answers::{Fetched, Query, Scope};
pub use connection::Connection;
pub use jobs::Jobs;
pub use steps::{Steps, Swap};
pub use text::{Text, TokenRef};
pub use toasts::{Toast, ToastKind, Toasts};

use crate::link::{Dialer, LinkEvent};
use answers::{Answers, Stamp};
use connection::Wire;

/// A request whose outcome a view wants to see: keep the ticket and ask [`Store::outcome`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

impl Ticket {
    /// A ticket from a range of its own, for the program's own searches.
    pub(crate) fn own(number: u64) -> Self {
        Self(number)
    }
}

/// Who waits for a reply.
enum Waiting {
    /// Nobody; an error becomes a toast. The text says what was attempted, for the toast.
    Toast,
    /// A view, by ticket.
    Ticket(Ticket),
    /// A cached answer, by key.
    Answer(Vec<u8>),
    /// The store itself.
    Own(Own),
}

/// Requests the store sends on its own account.
enum Own {
    Doc,
    Docs,
}

/// Most outcomes kept for views that never ask.
const MAX_OUTCOMES: usize = 128;

/// See the module.
pub struct Store {
    wire: Wire,
    pending: BTreeMap<u64, (Waiting, Request)>,
    outcomes: BTreeMap<Ticket, Result<Reply, ErrorInfo>>,
    answers: Answers,
    generation: u64,
    last_model: Option<(String, String)>,
    fetched_revision: Option<u64>,
    /// The text changed while it was being fetched.
    fetch_again: bool,
    /// About the host, once it accepted us.
    pub host: Option<HostInfo>,
    /// Settings, as the host keeps them.
    pub settings: Settings,
    /// The small state of the host; `None` before the first update.
    pub state: Option<StateView>,
    /// The current text.
    pub text: Option<Text>,
    /// Saved texts, latest first; `None` until the host answered.
    pub docs: Option<Vec<DocInfo>>,
    /// Telemetry steps.
    pub steps: Steps,
    /// Jobs of the host.
    pub jobs: Jobs,
    /// Sentences at the bottom of the window.
    pub toasts: Toasts,
    /// When the first token of the running message was asked for and came, in seconds of [`Store::pump`]'s clock.
    pub first_token: Option<(f64, Option<f64>)>,
    /// When this window last asked for a message.
    asked: Option<f64>,
    /// Seconds of the last pump.
    pub now: f64,
}

impl Store {
    /// A store that dials at its first pump. `client` goes into the host's log.
    pub fn new(dialer: Dialer, client: &str) -> Self {
        Self {
            wire: Wire::new(dialer, client),
            pending: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            answers: Answers::default(),
            generation: 0,
            last_model: None,
            fetched_revision: None,
            fetch_again: false,
            host: None,
            settings: Settings::default(),
            state: None,
            text: None,
            docs: None,
            steps: Steps::default(),
            jobs: Jobs::default(),
            toasts: Toasts::default(),
            first_token: None,
            asked: None,
            now: 0.0,
        }
    }

    /// Where the connection stands.
    pub fn connection(&self) -> &Connection {
        self.wire.connection()
    }

    /// Dials now instead of when the wait is over.
    pub fn reconnect_now(&mut self) {
        self.wire.reconnect_now();
    }

    /// Leaves the host for the one this dialer reaches; the dialer until now. Nothing of the old host is kept.
    pub fn redial(&mut self, dialer: Dialer) -> Dialer {
        let client = self.wire.client().to_string();
        let fresh = Self {
            generation: self.generation + 1,
            now: self.now,
            ..Self::new(dialer, &client)
        };
        std::mem::replace(self, fresh).wire.into_dialer()
    }

    /// Reads what arrived and keeps the connection alive. `now` in seconds from any start.
    pub fn pump(&mut self, ctx: &egui::Context, now: f64) {
        self.now = now;
        self.toasts.expire(now);
        for event in self.wire.poll(ctx, now) {
            match event {
                LinkEvent::Open => {
                    let cursor = self.wire.cursor;
                    self.wire.hello(cursor);
                }
                LinkEvent::Frame(bytes) if !self.wire.is_ready() => {
                    match protocol::decode_welcome(self.wire.client(), &bytes) {
                        Ok(welcome) => self.welcome(welcome),
                        Err(sentence) => self.wire.refused(sentence),
                    }
                }
                LinkEvent::Frame(bytes) => match decode::<HostFrame>(&bytes) {
                    Ok(frame) => self.frame(frame),
                    Err(e) => self.wire.break_off(&format!("the host sent {e}"), now),
                },
                LinkEvent::Closed(reason) => self.lost(&reason),
            }
        }
        if let Some(wait) = self
            .wire
            .wake_in(now)
            .into_iter()
            .chain(self.toasts.wake_in(now))
            .reduce(f64::min)
        {
            ctx.request_repaint_after_secs(wait as f32);
        }
    }

    fn lost(&mut self, reason: &str) {
        self.wire.lost(reason, self.now);
        let error = ErrorInfo::new(
            ErrorKind::Resource,
            format!("The connection to the host was lost: {reason}"),
        )
        .remedy("It is tried again by itself.");
        for (_, (waiting, _)) in std::mem::take(&mut self.pending) {
            match waiting {
                Waiting::Ticket(t) => self.keep_outcome(t, Err(error.clone())),
                Waiting::Answer(key) => self.answers.forget(&key),
                Waiting::Toast | Waiting::Own(_) => {}
            }
        }
    }

    fn frame(&mut self, frame: HostFrame) {
        match frame {
            HostFrame::Welcome(welcome) => self.welcome(*welcome),
            HostFrame::Reply { id, result } => self.reply(id, result.map(|r| *r)),
            HostFrame::Update(update) => self.update(*update),
        }
    }

    fn welcome(&mut self, welcome: Welcome) {
        match welcome {
            Welcome::Accepted {
                host,
                driver: _,
                settings,
            } => {
                if self.wire.cursor.run != host.run {
                    self.wire.cursor = protocol::Cursor {
                        run: host.run,
                        ..Default::default()
                    };
                    self.steps.clear();
                    self.jobs = Jobs::default();
                    self.state = None;
                }
                self.host = Some(host);
                self.settings = settings;
                self.answers.clear();
                self.generation += 1;
                self.fetched_revision = None;
                self.fetch_again = false;
                self.wire.accepted();
                self.send_own(Own::Docs);
            }
            Welcome::Refused(sentence) => self.wire.refused(sentence),
        }
    }

    fn reply(&mut self, id: u64, result: Result<Reply, ErrorInfo>) {
        let Some((waiting, request)) = self.pending.remove(&id) else {
            return;
        };
        // Texts that come back go into the store, whoever asked.
        if let Ok(Reply::Doc(view)) = &result {
            self.take_doc(view.clone());
        }
        if let (Ok(Reply::Recipe(recipe)), Some(state)) = (&result, &mut self.state) {
            state.recipe = Some(recipe.clone());
        }
        match waiting {
            Waiting::Toast => {
                if let Err(e) = result {
                    self.toasts.error(e, self.now);
                }
            }
            Waiting::Ticket(t) => self.keep_outcome(t, result),
            Waiting::Answer(key) => self.answers.arrived(&key, result),
            Waiting::Own(own) => match (own, result) {
                (Own::Docs, Ok(Reply::Docs(docs))) => self.docs = Some(docs),
                (_, Err(e)) if e.kind != ErrorKind::Refused => self.toasts.error(e, self.now),
                _ => {}
            },
        }
        if matches!(request, Request::GetDoc) && std::mem::take(&mut self.fetch_again) {
            self.fetch_doc();
        }
        if changes_docs(&request) {
            self.send_own(Own::Docs);
        }
    }

    fn take_doc(&mut self, view: protocol::DocView) {
        self.wire.cursor.token = self.wire.cursor.token.max(view.token_seq);
        match &mut self.text {
            Some(text) => text.replace(view),
            None => self.text = Some(Text::new(view)),
        }
    }

    fn update(&mut self, update: Update) {
        let mut gap = false;
        if let Some(state) = update.state {
            self.state_changed(*state);
        }
        for entry in update.tokens {
            self.wire.cursor.token = self.wire.cursor.token.max(entry.seq);
            if let Some((_, first @ None)) = &mut self.first_token {
                *first = Some(self.now);
            }
            if let Some(text) = &mut self.text {
                gap |= !text.append(entry);
            }
        }
        if !update.steps.is_empty() || update.steps_lost > 0 {
            self.wire.cursor.step = update.last_step;
            self.steps
                .push(update.steps, update.steps_lost, self.settings.telemetry_steps as usize);
        }
        for event in update.events {
            match event {
                Event::Finished {
                    doc,
                    node,
                    finish,
                    summary,
                } => {
                    if let Some(text) = &mut self.text {
                        text.finished(doc, node, finish, summary);
                    }
                    self.send_own(Own::Docs);
                }
                Event::Swapped {
                    position,
                    converted,
                    hash,
                } => self.steps.swapped(Swap {
                    position,
                    converted,
                    hash,
                }),
            }
        }
        self.jobs.update(update.jobs);
        for notice in update.notices {
            self.toasts.notice(notice, self.now);
        }
        if gap {
            self.fetch_doc();
        }
    }

    fn state_changed(&mut self, state: StateView) {
        let model = state.loaded().map(|m| (m.name.clone(), m.path.clone()));
        if model != self.last_model {
            self.last_model = model;
            self.generation += 1;
            self.steps.clear();
            for warning in state.loaded().into_iter().flat_map(|m| &m.warnings) {
                self.toasts.warning(warning.clone(), self.now);
            }
        }
        let fetch = state.doc.is_some() && self.fetched_revision != Some(state.doc_revision);
        if state.doc.is_none() {
            self.text = None;
        }
        let writing = state.writing;
        if writing.is_some() && self.state.as_ref().and_then(|s| s.writing) != writing {
            // What another window asked for is timed by the host, once it is written.
            self.first_token = self.asked.take().map(|asked| (asked, None));
        }
        let revision = state.doc_revision;
        self.state = Some(state);
        if fetch {
            self.fetched_revision = Some(revision);
            self.fetch_doc();
        }
    }

    fn fetch_doc(&mut self) {
        // What is on the way may have left the host before this change.
        self.fetch_again = self.pending.values().any(|(w, _)| matches!(w, Waiting::Own(Own::Doc)));
        if !self.fetch_again {
            self.send_own(Own::Doc);
        }
    }

    fn send_own(&mut self, own: Own) {
        let request = match own {
            Own::Doc => Request::GetDoc,
            Own::Docs => Request::ListDocs,
        };
        self.dispatch(request, Waiting::Own(own));
    }

    fn dispatch(&mut self, request: Request, waiting: Waiting) {
        if let Request::Send { .. }
        | Request::Generate { .. }
        | Request::EditMessage { .. }
        | Request::BranchAt { .. } = &request
        {
            self.asked = Some(self.now);
        }
        let id = self.wire.next_id();
        let frame = ClientFrame {
            id,
            body: ClientBody::Request(Box::new(request.clone())),
        };
        let problem = if self.wire.is_ready() {
            match encode(&frame) {
                Ok(bytes) => {
                    self.wire.send(bytes);
                    self.pending.insert(id, (waiting, request));
                    return;
                }
                Err(e) => ErrorInfo::new(ErrorKind::Input, format!("This cannot be sent to the host: {e}")),
            }
        } else {
            ErrorInfo::new(ErrorKind::Resource, "There is no connection to the host.")
                .remedy("It is tried again by itself; nothing is lost.")
        };
        match waiting {
            Waiting::Toast => self.toasts.error(problem, self.now),
            Waiting::Ticket(t) => self.keep_outcome(t, Err(problem)),
            Waiting::Answer(key) => self.answers.forget(&key),
            Waiting::Own(_) => {}
        }
    }

    /// Sends a request; an error becomes a toast.
    pub fn send(&mut self, request: Request) {
        self.dispatch(request, Waiting::Toast);
    }

    /// Sends a request whose outcome is kept under the ticket.
    pub fn call(&mut self, request: Request, ticket: Ticket) {
        self.dispatch(request, Waiting::Ticket(ticket));
    }

    fn keep_outcome(&mut self, ticket: Ticket, outcome: Result<Reply, ErrorInfo>) {
        self.outcomes.insert(ticket, outcome);
        while self.outcomes.len() > MAX_OUTCOMES {
            self.outcomes.pop_first();
        }
    }

    /// The outcome of a call; `None` while it is on the way.
    pub fn outcome(&self, ticket: Ticket) -> Option<&Result<Reply, ErrorInfo>> {
        self.outcomes.get(&ticket)
    }

    /// The cached answer to a query and whether it must be asked for.
    pub(crate) fn lookup<'a, T>(&'a self, query: &Query<T>) -> (Fetched<'a, T>, bool) {
        let (fetched, wanted) = self.answers.get(query, &self.stamp(query.scope));
        (fetched, wanted && self.wire.is_ready())
    }

    /// Asks for an answer that [`Store::lookup`] found missing or stale.
    pub(crate) fn ask(&mut self, request: Request, scope: Scope) {
        let key = answers::key_of(&request);
        let stamp = self.stamp(scope);
        if self.answers.begin(&key, stamp, self.now) {
            self.dispatch(request, Waiting::Answer(key));
        }
    }

    fn stamp(&self, scope: Scope) -> Stamp {
        let model = self.generation;
        let (recipe, timing) = self.state.as_ref().map_or((None, false), |s| {
            (s.recipe.as_ref().map(|r| r.hash.clone()), s.op_timing)
        });
        match scope {
            Scope::Host => Stamp {
                model,
                ..Stamp::default()
            },
            Scope::Recipe => Stamp {
                model,
                recipe,
                timing,
                ..Stamp::default()
            },
            Scope::Text => {
                let s = self.state.as_ref();
                Stamp {
                    model,
                    recipe,
                    text: s.map(|s| (s.doc.as_ref().map_or(0, |d| d.id), s.doc_revision, s.position)),
                    busy: s.is_some_and(|s| s.writing.is_some()),
                    ..Stamp::default()
                }
            }
        }
    }

    /// Requests that have not been answered.
    pub fn unanswered(&self) -> usize {
        self.pending.len()
    }

    /// The loaded model.
    pub fn model(&self) -> Option<&LoadedModel> {
        self.state.as_ref().and_then(StateView::loaded)
    }

    /// What is loaded, being loaded or failed.
    pub fn model_state(&self) -> &ModelState {
        self.state.as_ref().map_or(&ModelState::None, |s| &s.model)
    }

    /// Facts of the loaded model.
    pub fn facts(&self) -> Option<&FactsView> {
        self.model().map(|m| &m.facts)
    }

    /// The recipe in force.
    pub fn recipe(&self) -> Option<&RecipeView> {
        self.state.as_ref().and_then(|s| s.recipe.as_ref())
    }

    /// Whether this client may change things. False for viewers and before the first state.
    pub fn is_driver(&self) -> bool {
        self.wire.is_ready() && self.state.as_ref().is_some_and(|s| s.driver)
    }

    /// The message being written.
    pub fn writing(&self) -> Option<u32> {
        self.state.as_ref().and_then(|s| s.writing)
    }

    /// Position of the newest token of the current text.
    pub fn latest_token(&self) -> Option<u64> {
        let shown = self.text.as_ref().and_then(Text::last_position);
        shown.or_else(|| self.state.as_ref().and_then(|s| s.position.checked_sub(1)))
    }
}

/// Requests after which the list of texts is different.
fn changes_docs(request: &Request) -> bool {
    matches!(
        request,
        Request::NewDoc(_)
            | Request::RenameDoc { .. }
            | Request::DeleteDoc(_)
            | Request::UndeleteDoc(_)
            | Request::OpenDoc(_)
            | Request::Send { .. }
    )
}

/// Makes tickets that differ from each other.
#[derive(Debug, Default)]
pub struct Tickets(u64);

impl Tickets {
    /// A fresh one.
    pub fn take(&mut self) -> Ticket {
        self.0 += 1;
        Ticket(self.0)
    }
}

#[cfg(test)]
mod tests;
