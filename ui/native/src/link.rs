//! The host in this process, and the interface's connection to it.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};

use anyhow::{Context, Result};
use host::remote::{Remote, RemoteConnection};
use host::{Connection, Host, HostOptions};
use protocol::ModelSource;
use ui::link::{Dialer, Link, LinkEvent};

/// Starts the host and lets it load the model: the one asked for, else the bundled one.
pub fn start_host(open: Option<String>) -> Result<Arc<Host>> {
    let mut options = HostOptions::default();
    options.open = match open {
        Some(path) => Some(ModelSource::Path(path)),
        None => options
            .bundled
            .as_deref()
            .filter(|p| p.is_dir())
            .map(|_| ModelSource::Bundled),
    };
    Ok(Arc::new(Host::start(options).context("the host could not be started")?))
}

/// A dialer that reaches it.
pub fn dialer(host: Arc<Host>) -> Dialer {
    Box::new(move |ctx| {
        let ctx = ctx.clone();
        Box::new(match host.connect("window", move || ctx.request_repaint()) {
            Ok(connection) => HostLink {
                connection: Some(connection),
                before: vec![LinkEvent::Open],
            },
            Err(e) => HostLink {
                connection: None,
                before: vec![LinkEvent::Closed(e.to_string())],
            },
        })
    })
}

struct HostLink {
    connection: Option<Connection>,
    before: Vec<LinkEvent>,
}

impl Link for HostLink {
    fn send(&mut self, frame: Vec<u8>) {
        if let Some(connection) = &self.connection {
            connection.send(&frame);
        }
    }

    fn poll(&mut self) -> Vec<LinkEvent> {
        let mut events = std::mem::take(&mut self.before);
        let Some(connection) = &self.connection else {
            return events;
        };
        events.extend(connection.poll().into_iter().map(said));
        if matches!(events.last(), Some(LinkEvent::Closed(_))) {
            self.connection = None;
        }
        events
    }
}

fn said(event: host::LinkEvent) -> LinkEvent {
    match event {
        host::LinkEvent::Frame(bytes) => LinkEvent::Frame(bytes),
        host::LinkEvent::Closed(why) => LinkEvent::Closed(why),
    }
}

/// A dialer that reaches a host on another machine.
pub fn remote_dialer(authority: &str, token: &str) -> Dialer {
    let remote = Remote::new(authority, token);
    Box::new(move |ctx| {
        let (tell, told) = channel();
        let (remote, ctx) = (remote.clone(), ctx.clone());
        // Networks take their time: the window goes on meanwhile.
        let dialling = std::thread::Builder::new().name("dial".into()).spawn(move || {
            let woken = ctx.clone();
            // A window that gave up meanwhile needs no connection.
            let _ = tell.send(remote.connect(move || woken.request_repaint()));
            ctx.request_repaint();
        });
        Box::new(match dialling {
            Ok(_) => RemoteLink::Dialling(told),
            Err(e) => RemoteLink::Failed(e.to_string()),
        })
    })
}

enum RemoteLink {
    Dialling(Receiver<Result<RemoteConnection, String>>),
    Open(RemoteConnection),
    /// What is still to be said.
    Failed(String),
    Over,
}

impl Link for RemoteLink {
    fn send(&mut self, frame: Vec<u8>) {
        if let RemoteLink::Open(connection) = self {
            connection.send(&frame);
        }
    }

    fn poll(&mut self) -> Vec<LinkEvent> {
        let mut events = Vec::new();
        if let RemoteLink::Dialling(told) = self {
            match told.try_recv() {
                Ok(Ok(connection)) => {
                    *self = RemoteLink::Open(connection);
                    events.push(LinkEvent::Open);
                }
                Ok(Err(why)) => *self = RemoteLink::Failed(why),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => *self = RemoteLink::Failed("the connection broke".into()),
            }
        }
        match self {
            RemoteLink::Open(connection) => events.extend(connection.poll().into_iter().map(said)),
            RemoteLink::Failed(why) => {
                events.push(LinkEvent::Closed(std::mem::take(why)));
                *self = RemoteLink::Over;
            }
            RemoteLink::Dialling(_) | RemoteLink::Over => {}
        }
        events
    }
}
