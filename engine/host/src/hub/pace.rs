//! When a client is told to fetch, and what it fetches. Clients pull: an update is made when the transport has room
//! for it, so a slow client gets fewer and larger updates and costs no memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use protocol::{ErrorInfo, ErrorKind, FRAME_MS, HostFrame, ProtocolError, Reply, TokenEntry, Update, encode};

use super::{Client, ClientId, Hub, Inner, Wake};

const FRAME: Duration = Duration::from_millis(FRAME_MS);
/// Most tokens in an update. The rest follows in the next one.
const MOST_TOKENS: usize = 4096;
/// Most bytes of telemetry in an update, as they lie in memory (about half of that on the wire): 67 steps of 60
/// layers, which is one frame at 2,000 steps/s, are 1 MiB.
const MOST_STEP_BYTES: usize = 8 << 20;
/// A state that only moved with a token is sent so rarely that it takes no more than this many bytes per second.
const STATE_BYTES_PER_S: f64 = 2e6;

/// What a transport gets.
pub(crate) enum Next {
    /// A frame to send.
    Frame(Vec<u8>),
    /// Nothing now; the wake function will be called.
    Idle,
    /// The connection is over; why.
    Closed(String),
}

/// An answer as a frame. One that is too large becomes an error that says so.
pub(super) fn encode_reply(id: u64, result: Result<Reply, ErrorInfo>) -> Vec<u8> {
    let frame = |result| HostFrame::Reply { id, result };
    let bytes = match encode(&frame(result.map(Box::new))) {
        Ok(bytes) => return bytes,
        Err(ProtocolError::TooLarge(n)) => {
            let error = ErrorInfo::new(
                ErrorKind::Resource,
                format!(
                    "The answer has {} MiB, more than a connection carries at once.",
                    n >> 20
                ),
            );
            encode(&frame(Err(error.remedy("Ask for less of it."))))
        }
        Err(e) => encode(&frame(Err(crate::errors::internal(e.to_string())))),
    };
    // A short error always fits.
    bytes.unwrap_or_default()
}

impl Inner {
    /// Clients to be told now, and when the next one is to be told.
    pub(super) fn wakes(&mut self, now: Instant) -> (Vec<Wake>, Option<Instant>) {
        let ids: Vec<ClientId> = self.clients.all.keys().copied().collect();
        let (mut wakes, mut next): (Vec<Wake>, Option<Instant>) = (Vec::new(), None);
        for id in ids {
            let Some(client) = self.clients.all.get(&id).filter(|c| !c.woken) else {
                continue;
            };
            let due = if client.closed.is_some() || !client.replies.is_empty() {
                Some(now)
            } else {
                self.due(client, now)
            };
            match due {
                Some(t) if t <= now => {
                    if let Some(client) = self.clients.all.get_mut(&id) {
                        client.woken = true;
                        wakes.push(client.wake.clone());
                    }
                }
                Some(t) => next = Some(next.map_or(t, |n| n.min(t))),
                None => {}
            }
        }
        (wakes, next)
    }

    /// When the next update to a client is due; `None` if there is nothing to say.
    fn due(&self, client: &Client, now: Instant) -> Option<Instant> {
        if !client.greeted {
            return None;
        }
        let frame = client.last_update.map_or(now, |t| t + FRAME);
        if let Some(player) = &client.player {
            return player.due().map(|t| t.max(frame));
        }
        let seen = &client.seen;
        let streams = seen.token < self.log.last()
            || seen.step < self.ring.last()
            || seen.jobs < self.jobs.revision()
            || seen.event < self.events.last()
            || seen.notice < self.notices.last();
        if streams || seen.state.is_none_or(|s| s < self.settled) {
            return Some(frame);
        }
        (seen.state != Some(self.revision)).then(|| frame.max(self.state_due(client, now)))
    }

    /// When a state that merely moved may be sent again.
    fn state_due(&self, client: &Client, now: Instant) -> Instant {
        client.last_state.map_or(now, |(at, size)| {
            at + FRAME.max(Duration::from_secs_f64(size as f64 / STATE_BYTES_PER_S))
        })
    }

    /// What changed since the last update to a client; its cursors move on.
    fn take_update(&mut self, id: ClientId, now: Instant) -> Option<Update> {
        let client = self.clients.all.get_mut(&id)?;
        if let Some(player) = &mut client.player {
            client.last_update = Some(now);
            return player.take();
        }
        let client = self.clients.all.get(&id)?;
        let seen = client.seen;
        let send_state = seen.state.is_none_or(|s| s < self.settled)
            || (seen.state != Some(self.revision) && self.state_due(client, now) <= now);
        let state = send_state.then(|| Box::new(self.state(id)));
        let mut last_token = seen.token;
        let mut tokens = Vec::new();
        for (seq, at) in self.log.after(seen.token, MOST_TOKENS) {
            last_token = seq;
            let node = self.docs.doc(at.doc).and_then(|d| d.node(at.node));
            if let Some(info) = node.and_then(|n| n.view.tokens.get(at.index as usize)) {
                tokens.push(TokenEntry {
                    seq,
                    doc: at.doc,
                    node: at.node,
                    index: at.index,
                    info: info.clone(),
                });
            }
        }
        let steps = self.ring.after(seen.step, MOST_STEP_BYTES);
        let update = Update {
            state,
            tokens,
            steps: steps.steps,
            last_step: steps.last,
            steps_lost: steps.lost,
            jobs: self.jobs.changed(seen.jobs),
            events: self.events.after(seen.event),
            notices: self.notices.after(seen.notice),
        };
        self.noticed = self.noticed.max(self.notices.last());
        let (jobs, event, notice, revision) = (
            self.jobs.revision(),
            self.events.last(),
            self.notices.last(),
            self.revision,
        );
        let client = self.clients.all.get_mut(&id)?;
        client.seen.token = last_token;
        client.seen.step = steps.last;
        client.seen.jobs = jobs;
        client.seen.event = event;
        client.seen.notice = notice;
        if update.state.is_some() {
            client.seen.state = Some(revision);
        }
        client.last_update = Some(now);
        Some(update)
    }
}

impl Hub {
    /// The next frame for a client: answers first, then an update if one is due.
    pub fn next(&self, id: ClientId) -> Next {
        let now = Instant::now();
        let update = {
            let mut inner = self.lock();
            let Some(client) = inner.clients.all.get_mut(&id) else {
                return Next::Closed("The host has ended.".into());
            };
            client.woken = false;
            if let Some(bytes) = client.replies.pop_front() {
                client.unread -= bytes.len();
                return Next::Frame(bytes);
            }
            if let Some(why) = client.closed.clone() {
                return Next::Closed(why);
            }
            let due = inner.clients.all.get(&id).and_then(|c| inner.due(c, now));
            match due {
                Some(t) if t <= now => inner.take_update(id, now),
                Some(_) => {
                    self.pace.notify_one();
                    return Next::Idle;
                }
                None => return Next::Idle,
            }
        };
        let Some(update) = update else { return Next::Idle };
        let with_state = update.state.is_some();
        match encode(&HostFrame::Update(Box::new(update))) {
            Ok(bytes) => {
                if with_state && let Some(c) = self.lock().clients.all.get_mut(&id) {
                    c.last_state = Some((now, bytes.len()));
                }
                Next::Frame(bytes)
            }
            Err(e) => {
                let why = format!("Closed: an update could not be sent: {e}.");
                self.close(id, &why);
                Next::Closed(why)
            }
        }
    }

    /// Tells clients whose update was put off; runs until the host closes.
    pub fn pacer(self: &Arc<Self>) {
        let mut inner = self.lock();
        while !inner.closing {
            let now = Instant::now();
            let (wakes, next) = inner.wakes(now);
            if !wakes.is_empty() {
                drop(inner);
                wakes.iter().for_each(|wake| wake());
                inner = self.lock();
                continue;
            }
            inner = match next {
                Some(t) => {
                    let waited = self.pace.wait_timeout(inner, t.saturating_duration_since(now));
                    waited.unwrap_or_else(std::sync::PoisonError::into_inner).0
                }
                None => self.pace.wait(inner).unwrap_or_else(std::sync::PoisonError::into_inner),
            };
        }
    }

    /// Ends the pacer.
    pub fn shut(&self) {
        self.with(|inner| {
            inner.closing = true;
            inner.jobs.cancel_all();
            inner.stop_writing();
            let why = "The host has ended.".to_string();
            for c in inner.clients.all.values_mut() {
                c.closed.get_or_insert_with(|| why.clone());
            }
        });
        self.pace.notify_all();
    }
}
