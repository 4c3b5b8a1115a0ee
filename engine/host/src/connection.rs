//! A connection whatever carries it: the handshake, frames in, frames out.

use std::sync::Arc;
use std::time::Duration;

use protocol::{
    ClientBody, ClientFrame, Hello, HostFrame, HostInfo, MAX_FRAME, PROTOCOL_VERSION, ProtocolError, SCHEMA_HASH,
    Welcome, encode,
};

use crate::dispatch;
use crate::hub::{ClientId, Hub, Next, Responder, Seen, Wake};

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
    match (protocol::decode::<ClientFrame>(bytes), greeted) {
        (Ok(frame), true) => match frame.body {
            ClientBody::Request(request) => request_came(hub, id, frame.id, *request),
            ClientBody::Hello(_) => hub.close(
                id,
                "Closed: a second handshake came; accepted is one, as the first frame.",
            ),
        },
        (Ok(frame), false) => match frame.body {
            ClientBody::Hello(hello) => greet(hub, id, &hello),
            ClientBody::Request(_) => refuse(
                hub,
                id,
                "The first frame was a request; accepted is a handshake (`Hello`).".to_string(),
            ),
        },
        (Err(e), false) => refuse(hub, id, stranger(bytes, &e)),
        (Err(e), true) => hub.close(id, &format!("Closed: {e}.")),
    }
}

/// What to say to somebody whose first frame cannot be read: builds of other versions still begin with their numbers.
fn stranger(bytes: &[u8], e: &ProtocolError) -> String {
    let head = (bytes.len() <= MAX_FRAME).then(|| take_head(bytes)).flatten();
    match head {
        Some((version, schema)) if (version, schema) != (PROTOCOL_VERSION, SCHEMA_HASH) => {
            mismatch("", version, schema)
        }
        _ => format!("The first frame is not a handshake: {e}. Accepted is a client of MODEL1 Explorer."),
    }
}

/// Version and schema of a frame that begins like a handshake.
fn take_head(bytes: &[u8]) -> Option<(u32, u64)> {
    // The frame's id, the number of the variant (0 = Hello), version, schema.
    match protocol_head(bytes)? {
        (_, 0, version, schema) => Some((version, schema)),
        _ => None,
    }
}

/// Four varints, as postcard writes them.
fn protocol_head(bytes: &[u8]) -> Option<(u64, u32, u32, u64)> {
    let mut rest = bytes;
    let mut next = || -> Option<u64> {
        let mut value = 0u64;
        for i in 0..10 {
            let (&byte, tail) = rest.split_first()?;
            rest = tail;
            value |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    };
    let id = next()?;
    let variant = u32::try_from(next()?).ok()?;
    let version = u32::try_from(next()?).ok()?;
    Some((id, variant, version, next()?))
}

fn mismatch(client: &str, version: u32, schema: u64) -> String {
    let remedy = match client {
        "browser" => "Reload the page; if it stays so, build the interface anew and restart the host (./run)",
        _ => "Update the older of the two, or start both from one build (./run)",
    };
    format!(
        "This interface and the host are of different builds (interface: protocol {version}, {schema:016x}; host {}: \
         protocol {PROTOCOL_VERSION}, {SCHEMA_HASH:016x}). {remedy}.",
        env!("CARGO_PKG_VERSION")
    )
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
    if (hello.version, hello.schema) != (PROTOCOL_VERSION, SCHEMA_HASH) {
        refuse(hub, id, mismatch(&hello.client, hello.version, hello.schema));
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
            // The texts are fetched whole; jobs that are over concern nobody who was not there.
            let jobs = inner.jobs.revision();
            inner.jobs.touch();
            Seen {
                token: inner.log.last(),
                step: inner.ring.start(),
                event: inner.events.last(),
                notice: inner.noticed,
                jobs,
                ..Seen::default()
            }
        };
        let driver = inner.clients.seat(id, hello.take_over) || inner.clients.driver == Some(id);
        let settings = inner.settings.clone();
        let Some(client) = inner.clients.all.get_mut(&id) else {
            return;
        };
        let host = HostInfo {
            program: program.to_string(),
            run,
            local: client.local,
            machine,
        };
        let welcome = Welcome::Accepted { host, driver, settings };
        let bytes = encode(&HostFrame::Welcome(Box::new(welcome))).unwrap_or_default();
        client.greeted = true;
        client.seen = seen;
        client.unread += bytes.len();
        client.replies.push_back(bytes);
        client.name = hello.client.chars().filter(|c| !c.is_control()).take(40).collect();
        tracing::info!("client {id} ({}) connected", client.name);
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
    dispatch::request(hub, id, responder, request);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_of_a_handshake_can_be_read_whatever_follows() {
        let hello = Hello {
            schema: u64::MAX,
            version: 300,
            ..Hello::new("test")
        };
        let frame = ClientFrame {
            id: 1 << 40,
            body: ClientBody::Hello(hello),
        };
        let bytes = encode(&frame).unwrap();
        assert_eq!(take_head(&bytes), Some((300, u64::MAX)));
        let text = stranger(&bytes, &ProtocolError::Trailing(1));
        assert!(text.contains("protocol 300") && text.contains("Update"), "{text}");
        assert_eq!(take_head(&[0x80; 40]), None);
        assert_eq!(take_head(&[]), None);
        assert!(mismatch("browser", 1, 2).contains("Reload the page"));
    }
}
