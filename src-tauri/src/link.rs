//! The host in this process, and the page's connection to it.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use host::remote::{Remote, RemoteConnection};
use host::{Connection, Host, HostOptions, LinkEvent};
use protocol::ModelSource;
use tauri::ipc::{Channel, InvokeResponseBody};

/// Frames a page may have received and not yet acknowledged. Past that the host keeps what follows and puts it into
/// fewer, larger frames, as it does for every slow client.
const UNREAD: u64 = 8;
/// A page that is behind for so long is taken to have read everything: a word of it may have been lost.
const PATIENCE: Duration = Duration::from_secs(2);

/// A host here, or on another machine.
enum Reach {
    Here(Connection),
    There(RemoteConnection),
}

impl Reach {
    fn send(&self, frame: &[u8]) {
        match self {
            Reach::Here(c) => c.send(frame),
            Reach::There(c) => c.send(frame),
        }
    }

    fn next(&self) -> Option<LinkEvent> {
        match self {
            Reach::Here(c) => c.next(),
            Reach::There(c) => c.next(),
        }
    }
}

/// One page's connection.
struct Wire {
    connection: Reach,
    /// Frames the page said it has read. Stays 0 for a page that never says so; such a page gets everything at once.
    read: AtomicU64,
    wake: SyncSender<()>,
}

/// The host and the connection of the page that is open now.
pub struct Link {
    host: Host,
    wire: Mutex<Option<Arc<Wire>>>,
    /// The other host that was last connected to, with the key that lets in again.
    remote: Mutex<Option<Arc<Remote>>>,
}

impl Link {
    /// Starts the host and lets it load the model: the one asked for, else the bundled one.
    pub fn start(open: Option<String>) -> Result<Self> {
        let mut options = HostOptions::default();
        options.open = match open {
            Some(path) => Some(ModelSource::Path(path)),
            None => options
                .bundled
                .as_deref()
                .filter(|p| Path::new(p).is_dir())
                .map(|_| ModelSource::Bundled),
        };
        let host = Host::start(options).context("the host could not be started")?;
        Ok(Self {
            host,
            wire: Mutex::new(None),
            remote: Mutex::new(None),
        })
    }

    /// Opens a connection whose frames go into `frames`, to the host here or to another one (address, token). The
    /// reason why it ended arrives as a JSON string. Another machine may take seconds to answer.
    pub fn connect(&self, frames: Channel<InvokeResponseBody>, remote: Option<(&str, &str)>) -> Result<()> {
        let (wake, woken) = sync_channel(1);
        let waker = wake.clone();
        let connection = match remote {
            None => Reach::Here(self.host.connect("tauri", move || ring(&waker))?),
            Some((authority, token)) => {
                let remote = self.remote(authority, token);
                Reach::There(remote.connect(move || ring(&waker)).map_err(anyhow::Error::msg)?)
            }
        };
        let wire = Arc::new(Wire {
            connection,
            read: AtomicU64::new(0),
            wake,
        });
        let weak = Arc::downgrade(&wire);
        // The wire of a page that is gone ends here.
        *self.wire.lock().unwrap_or_else(PoisonError::into_inner) = Some(wire);
        std::thread::Builder::new()
            .name("page".into())
            .spawn(move || pump(&weak, &woken, &frames))
            .context("the connection's thread could not be started")?;
        Ok(())
    }

    fn remote(&self, authority: &str, token: &str) -> Arc<Remote> {
        let mut kept = self.remote.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept.take().filter(|r| r.is(authority, token));
        kept.insert(known.unwrap_or_else(|| Remote::new(authority, token)))
            .clone()
    }

    /// Sends a frame of the page; an empty one says that the page has read a frame of the host.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let Some(wire) = self.wire.lock().unwrap_or_else(PoisonError::into_inner).clone() else {
            bail!("not connected: host_connect comes first");
        };
        if frame.is_empty() {
            wire.read.fetch_add(1, Ordering::Relaxed);
            ring(&wire.wake);
        } else {
            wire.connection.send(frame);
        }
        Ok(())
    }

    /// Ends the host: everything is saved, and the connection is closed.
    pub fn stop(&self) {
        self.host.stop();
    }
}

/// Wakes the pump. A wake that is on its way already is enough.
fn ring(wake: &SyncSender<()>) {
    // Full: it is woken already. Disconnected: the pump has ended, nobody is left to wake.
    let _ = wake.try_send(());
}

/// Carries frames from the host to the page until one of the two is gone.
fn pump(wire: &Weak<Wire>, woken: &Receiver<()>, frames: &Channel<InvokeResponseBody>) {
    let mut sent = 0;
    let mut behind_since = None;
    loop {
        match forward(wire, frames, &mut sent, &mut behind_since) {
            Forwarded::Over => return,
            // What wakes next is a frame of the host, or the page's word that it has read one.
            Forwarded::All if woken.recv().is_err() => return,
            Forwarded::All => {}
            Forwarded::Behind => match woken.recv_timeout(PATIENCE) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            },
        }
    }
}

/// How far [`forward`] came.
enum Forwarded {
    /// Nothing is left for now.
    All,
    /// The page has to read first.
    Behind,
    /// One of the two is gone.
    Over,
}

/// Sends what is there, as far as the page keeps up.
fn forward(
    wire: &Weak<Wire>,
    frames: &Channel<InvokeResponseBody>,
    sent: &mut u64,
    behind_since: &mut Option<Instant>,
) -> Forwarded {
    let Some(wire) = wire.upgrade() else {
        return Forwarded::Over;
    };
    loop {
        let read = wire.read.load(Ordering::Relaxed);
        if read > 0 && sent.saturating_sub(read) >= UNREAD {
            if behind_since.get_or_insert_with(Instant::now).elapsed() < PATIENCE {
                return Forwarded::Behind;
            }
            wire.read.store(*sent, Ordering::Relaxed);
        }
        *behind_since = None;
        let message = match wire.connection.next() {
            None => return Forwarded::All,
            Some(LinkEvent::Frame(bytes)) => InvokeResponseBody::Raw(bytes),
            Some(LinkEvent::Closed(why)) => {
                // Nothing follows, and a page that is gone needs no reason.
                let _ = frames.send(InvokeResponseBody::Json(serde_json::Value::String(why).to_string()));
                return Forwarded::Over;
            }
        };
        *sent += 1;
        if frames.send(message).is_err() {
            return Forwarded::Over;
        }
    }
}
