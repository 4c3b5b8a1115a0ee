//! A connection whatever carries it: the handshake, frames in, frames out.

use std::sync::Arc;
use std::time::Duration;

use protocol::{ClientBody, ClientFrame, Hello, HostFrame, HostInfo, PROTOCOL_VERSION, SCHEMA_HASH, Welcome, encode};

use crate::hub::{ClientId, Hub, Next, Responder, Seen, Wake};
use crate::{dispatch, recorded};

/// What comes out of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkEvent {
    /// A [`protocol::HostFrame`].
    Frame(Vec<u8>),
    /// The connection is over; the sentence says why. Nothing follows.
    Closed(String),
}

/// A client's end of a connection within the process. Dropping it disconnects.
pub struct Connection {
    hub: Arc<Hub>,
    id: ClientId,
}

impl Connection {
    /// A connection to a hub; `None` if there are too many.
    pub(crate) fn open(hub: &Arc<Hub>, name: &str, local: bool, wake: Wake) -> Option<Self> {
        let id = hub.with(|inner| inner.clients.add(name, local, wake))?;
        Some(Self { hub: hub.clone(), id })
    }

    /// Sends a [`protocol::ClientFrame`]. Never waits: what takes time is answered later. A frame that is none ends
    /// the connection with a sentence.
    pub fn send(&self, frame: &[u8]) {
        receive(&self.hub, self.id, frame);
    }

    /// The next thing that is there now. After `None` the wake function is called when there is more.
    pub fn next(&self) -> Option<LinkEvent> {
        match self.hub.next(self.id) {
            Next::Frame(bytes) => Some(LinkEvent::Frame(bytes)),
            Next::Closed(why) => Some(LinkEvent::Closed(why)),
            Next::Idle => None,
        }
    }

    /// Everything that is there now.
    pub fn poll(&self) -> Vec<LinkEvent> {
        let mut all = Vec::new();
        while let Some(event) = self.next() {
            let over = matches!(event, LinkEvent::Closed(_));
            all.push(event);
            if over {
                break;
            }
        }
        all
    }

    /// Ends the connection from the host's side.
    pub(crate) fn close(&self, why: &str) {
        self.hub.close(self.id, why);
    }

    /// Whether the handshake is done.
    pub(crate) fn greeted(&self) -> bool {
        self.hub
            .with(|i| i.clients.all.get(&self.id).is_some_and(|c| c.greeted))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.hub.remove(self.id);
    }
}

/// How long a client may take for its handshake.
pub(crate) const HANDSHAKE: Duration = Duration::from_secs(10);

/// Takes a client's frame.
fn receive(hub: &Arc<Hub>, id: ClientId, bytes: &[u8]) {
    let greeted = hub.with(|inner| {
        inner
            .clients
            .all
            .get(&id)
            .filter(|c| c.closed.is_none())
            .map(|c| c.greeted)
    });
    let Some(greeted) = greeted else { return };
    if !greeted {
        match protocol::decode_first(bytes).map(|f| f.body) {
            Ok(ClientBody::Hello(hello)) => greet(hub, id, &hello),
            Ok(ClientBody::Request(_)) => refuse(
                hub,
                id,
                "The first frame was a request; accepted is a handshake (`Hello`).".to_string(),
            ),
            Err(sentence) => refuse(hub, id, sentence),
        }
        return;
    }
    match protocol::decode::<ClientFrame>(bytes) {
        Ok(frame) => match frame.body {
            ClientBody::Request(request) => request_came(hub, id, frame.id, *request),
            ClientBody::Hello(_) => hub.close(
                id,
                "Closed: a second handshake came; accepted is one, as the first frame.",
            ),
        },
        Err(e) => hub.close(id, &format!("Closed: {e}.")),
    }
}

fn refuse(hub: &Arc<Hub>, id: ClientId, why: String) {
    let frame = HostFrame::Welcome(Box::new(Welcome::Refused(why.clone())));
    let bytes = encode(&frame).unwrap_or_default();
    hub.with(|inner| {
        if let Some(c) = inner.clients.all.get_mut(&id) {
            c.unread += bytes.len();
            c.replies.push_back(bytes);
            c.closed.get_or_insert(why);
        }
    });
}

/// The handshake.
fn greet(hub: &Arc<Hub>, id: ClientId, hello: &Hello) {
    let (theirs, own) = ((hello.version, hello.schema), (PROTOCOL_VERSION, SCHEMA_HASH));
    if let Some(sentence) = protocol::mismatch(&hello.client, theirs, own) {
        refuse(hub, id, sentence);
        return;
    }
    let (run, program, machine) = (hub.run, env!("CARGO_PKG_VERSION"), crate::about::machine());
    hub.with(|inner| {
        let same_run = hello.cursor.run == run;
        let seen = if same_run {
            Seen {
                token: hello.cursor.token.min(inner.log.last()),
                step: hello.cursor.step.min(inner.ring.last()),
                event: inner.events.last(),
                notice: inner.noticed,
                ..Seen::default()
            }
        } else {
            Seen::fresh(inner)
        };
        let driver = inner.clients.seat(id, hello.take_over) || inner.clients.driver == Some(id);
        let settings = inner.settings.clone();
        let Some(client) = inner.clients.all.get_mut(&id) else {
            return;
        };
        client.greeted = true;
        client.seen = seen;
        client.name = hello.client.chars().filter(|c| !c.is_control()).take(40).collect();
        tracing::info!("client {id} ({}) connected", client.name);
        let host = HostInfo::new(program, run, client.local, &machine);
        if !recorded::join(inner, run, id) {
            let welcome = Welcome::Accepted { host, driver, settings };
            let bytes = encode(&HostFrame::Welcome(Box::new(welcome))).unwrap_or_default();
            if let Some(client) = inner.clients.all.get_mut(&id) {
                client.unread += bytes.len();
                client.replies.push_back(bytes);
            }
        }
        inner.changed();
    });
}

fn request_came(hub: &Arc<Hub>, id: ClientId, request_id: u64, request: protocol::Request) {
    let admitted = hub.with(|inner| {
        let driver = inner.clients.driver == Some(id);
        let client = inner.clients.all.get_mut(&id)?;
        client.waiting += 1;
        let crowded = client.waiting > crate::hub::MOST_WAITING;
        Some((driver, crowded, client.gone.clone()))
    });
    let Some((driver, crowded, gone)) = admitted else {
        return;
    };
    let responder = Responder::new(hub.clone(), id, request_id, gone);
    if crowded {
        responder.send(Err(crate::errors::refused(
            format!("More than {} requests of this client wait.", crate::hub::MOST_WAITING),
            "Wait for answers before asking more.",
        )));
        return;
    }
    if !driver && dispatch::changes_things(&request) {
        responder.send(Err(crate::errors::refused(
            "This window only looks on: another one drives this host.",
            "Take over to change things.",
        )));
        return;
    }
    match recorded::answer(hub, id, &request) {
        Some(result) => responder.send(result),
        None => dispatch::request(hub, id, responder, request),
    }
}
