//! Frames to and from another host, on a thread of their own.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use protocol::MAX_FRAME;
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::http;
use crate::connection::LinkEvent;

/// Frames that may wait to be read here. Past that the other host is not read on, and puts what follows into fewer,
/// larger frames.
const UNREAD: usize = 16;
/// A host says something at least every few seconds (its pings); one that is silent for so long is gone.
const SILENCE: Duration = Duration::from_secs(30);

#[derive(Default)]
struct Inbox {
    events: Mutex<VecDeque<LinkEvent>>,
    /// Something was taken out.
    taken: Notify,
    over: AtomicBool,
}

impl Inbox {
    fn events(&self) -> std::sync::MutexGuard<'_, VecDeque<LinkEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection to another host. Dropping it closes it.
pub struct RemoteConnection {
    frames: mpsc::UnboundedSender<Vec<u8>>,
    inbox: Arc<Inbox>,
}

type Socket = WebSocketStream<tokio::net::TcpStream>;

impl RemoteConnection {
    /// Opens the WebSocket of `authority` for a session.
    ///
    /// # Errors
    /// In a sentence.
    pub(super) fn open(authority: &str, key: &str, wake: impl Fn() + Send + 'static) -> Result<Self, String> {
        let no_thread = |e: std::io::Error| format!("the connection's thread could not be started: {e}");
        let stream = http::dial(authority).map_err(|e| e.what)?;
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(no_thread)?;
        let (frames, outbox) = mpsc::unbounded_channel();
        let inbox = Arc::new(Inbox::default());
        let (own, authority, key) = (inbox.clone(), authority.to_string(), key.to_string());
        let (tell, told) = std::sync::mpsc::channel();
        // All of it on a thread of its own: callers may themselves be on a runtime, which must not be blocked on.
        let live = move || {
            runtime.block_on(async {
                match upgrade(stream, &authority, &key).await {
                    Ok(socket) => {
                        if tell.send(Ok(())).is_ok() {
                            carry(socket, outbox, &own, &wake).await;
                        }
                    }
                    // The caller waits for it.
                    Err(e) => drop(tell.send(Err(e))),
                }
            });
        };
        std::thread::Builder::new()
            .name("remote-host".into())
            .spawn(live)
            .map_err(no_thread)?;
        told.recv().unwrap_or_else(|_| Err("the connection broke".into()))?;
        Ok(Self { frames, inbox })
    }

    /// Sends a frame. Never blocks; after the connection has ended nothing happens.
    pub fn send(&self, frame: &[u8]) {
        // The thread is gone: its last word waits in the inbox.
        let _ = self.frames.send(frame.to_vec());
    }

    /// The next frame or the end, if there is one.
    pub fn next(&self) -> Option<LinkEvent> {
        let event = self.inbox.events().pop_front();
        if event.is_some() {
            self.inbox.taken.notify_one();
        }
        event
    }

    /// All that is there.
    pub fn poll(&self) -> Vec<LinkEvent> {
        std::iter::from_fn(|| self.next()).collect()
    }
}

impl Drop for RemoteConnection {
    fn drop(&mut self) {
        self.inbox.over.store(true, Ordering::Relaxed);
        self.inbox.taken.notify_one();
    }
}

async fn upgrade(stream: std::net::TcpStream, authority: &str, key: &str) -> Result<Socket, String> {
    use tokio_tungstenite::tungstenite::Error;
    let failed = |e: Error| match e {
        Error::Http(answer) if answer.status() == 401 => {
            format!("the host at {authority} knows this session no more: it was started anew. Connect with a new link")
        }
        Error::Http(answer) => format!("the host at {authority} refused: {}", answer.status()),
        e => format!("the host at {authority} did not open a connection: {e}"),
    };
    let mut request = format!("ws://{authority}/ws").into_client_request().map_err(failed)?;
    let bearer = format!("Bearer {key}")
        .parse()
        .map_err(|_| "the key is none".to_string())?;
    request.headers_mut().insert("authorization", bearer);
    let stream = tokio::net::TcpStream::from_std(stream).map_err(|e| e.to_string())?;
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MAX_FRAME))
        .max_frame_size(Some(MAX_FRAME));
    let upgrade = tokio_tungstenite::client_async_with_config(request, stream, Some(limits));
    let upgraded = tokio::time::timeout(Duration::from_secs(10), upgrade).await;
    let (socket, _) = upgraded
        .map_err(|_| format!("{authority} did not answer"))?
        .map_err(failed)?;
    Ok(socket)
}

/// Carries frames until one side ends.
async fn carry(
    mut socket: Socket,
    mut outbox: mpsc::UnboundedReceiver<Vec<u8>>,
    inbox: &Inbox,
    wake: &(dyn Fn() + Send),
) {
    let why = loop {
        let room = inbox.events().len() < UNREAD;
        tokio::select! {
            frame = outbox.recv() => {
                let Some(frame) = frame else { break String::new() };
                if let Err(e) = socket.send(Message::Binary(frame.into())).await {
                    break format!("the other host cannot be reached: {e}");
                }
            }
            heard = tokio::time::timeout(SILENCE, socket.next()), if room => match heard {
                Ok(Some(Ok(Message::Binary(bytes)))) => {
                    inbox.events().push_back(LinkEvent::Frame(bytes.into()));
                    wake();
                }
                Ok(Some(Ok(Message::Close(Some(reason))))) if !reason.reason.is_empty() => break reason.reason.to_string(),
                Ok(Some(Ok(Message::Close(_))) | None) => break "the other host ended".into(),
                Ok(Some(Ok(_))) => {}
                Ok(Some(Err(e))) => break format!("the connection to the other host broke: {e}"),
                Err(_) => break "the other host is silent".into(),
            },
            () = inbox.taken.notified() => {
                if inbox.over.load(Ordering::Relaxed) {
                    break String::new();
                }
            }
        }
    };
    // It may be gone already.
    let _ = tokio::time::timeout(Duration::from_secs(1), socket.close(None)).await;
    if !inbox.over.load(Ordering::Relaxed) {
        inbox.events().push_back(LinkEvent::Closed(why));
        wake();
    }
}
