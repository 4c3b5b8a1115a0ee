//! Who is connected, what each has seen, who may drive.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use engine::Cancel;

/// Number of a client within this run of the host.
pub(crate) type ClientId = u64;

/// Called when something can be pulled; must not block.
pub(crate) type Wake = Arc<dyn Fn() + Send + Sync>;

/// Most clients at a time.
pub(crate) const MOST_CLIENTS: usize = 32;
/// Most requests of one client that are not answered yet.
pub(crate) const MOST_WAITING: usize = 256;
/// Most bytes of answers that one client may leave unread.
pub(crate) const MOST_UNREAD: usize = 128 << 20;

/// How far a client got.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    pub token: u64,
    pub step: u64,
    pub jobs: u64,
    pub event: u64,
    pub notice: u64,
    /// Revision of the state sent last; `None` before the first.
    pub state: Option<u64>,
}

impl Seen {
    /// Of a client that knows nothing yet: texts are fetched whole; jobs that are over concern nobody who was not there.
    pub fn fresh(inner: &mut super::Inner) -> Self {
        let jobs = inner.jobs.revision();
        inner.jobs.touch();
        Self {
            token: inner.log.last(),
            step: inner.ring.start(),
            event: inner.events.last(),
            notice: inner.noticed,
            jobs,
            state: None,
        }
    }
}

/// A connection.
pub(crate) struct Client {
    pub name: String,
    /// Whether it runs on this machine.
    pub local: bool,
    pub wake: Wake,
    /// Told and not yet come.
    pub woken: bool,
    /// After the handshake.
    pub greeted: bool,
    pub seen: Seen,
    pub replies: VecDeque<Vec<u8>>,
    pub unread: usize,
    pub waiting: usize,
    pub last_update: Option<Instant>,
    /// When the state was sent last, and how large it was.
    pub last_state: Option<(Instant, usize)>,
    /// Why it was closed; told after the replies that wait.
    pub closed: Option<String>,
    /// Stops what it asked for and what only it waits for.
    pub gone: Cancel,
    /// Its place in the recorded run that is shown instead of this host's state.
    pub player: Option<crate::recorded::Player>,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Clients {
    pub all: BTreeMap<ClientId, Client>,
    /// Who may change things.
    pub driver: Option<ClientId>,
    next: ClientId,
}

impl Clients {
    /// A new connection before its handshake.
    pub fn add(&mut self, name: &str, local: bool, wake: Wake) -> Option<ClientId> {
        if self.all.len() >= MOST_CLIENTS {
            return None;
        }
        self.next += 1;
        self.all.insert(
            self.next,
            Client {
                name: name.to_string(),
                local,
                wake,
                woken: false,
                greeted: false,
                seen: Seen::default(),
                replies: VecDeque::new(),
                unread: 0,
                waiting: 0,
                last_update: None,
                last_state: None,
                closed: None,
                gone: Cancel::default(),
                player: None,
            },
        );
        Some(self.next)
    }

    /// Greeted clients.
    pub fn count(&self) -> u32 {
        self.all.values().filter(|c| c.greeted && c.closed.is_none()).count() as u32
    }

    /// Gives the seat to a client if it is free or is to be taken over. Whether anything changed.
    pub fn seat(&mut self, id: ClientId, take_over: bool) -> bool {
        if self.driver == Some(id) || (self.driver.is_some() && !take_over) {
            return false;
        }
        self.driver = Some(id);
        true
    }

    /// Frees the seat of a client that left.
    pub fn leave(&mut self, id: ClientId) {
        if self.driver == Some(id) {
            self.driver = None;
        }
        if let Some(c) = self.all.get(&id) {
            c.gone.cancel();
        }
    }
}
