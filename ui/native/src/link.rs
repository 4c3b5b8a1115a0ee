//! The host in this process, and the interface's connection to it.

use std::sync::Arc;

use anyhow::{Context, Result};
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
        events.extend(connection.poll().into_iter().map(|e| match e {
            host::LinkEvent::Frame(bytes) => LinkEvent::Frame(bytes),
            host::LinkEvent::Closed(why) => LinkEvent::Closed(why),
        }));
        if matches!(events.last(), Some(LinkEvent::Closed(_))) {
            self.connection = None;
        }
        events
    }
}
