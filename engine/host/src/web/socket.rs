//! The WebSocket: protocol frames as binary messages, one to one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use protocol::{HostFrame, MAX_FRAME, Welcome};
use tokio::sync::Notify;

use super::{Shared, plain};
use crate::connection::{Connection, HANDSHAKE, LinkEvent};

/// A ping goes out this often; browsers answer by themselves, also for pages in the background.
const PING: Duration = Duration::from_secs(5);
/// A connection that sent nothing for so long is dead: a driver that lost its network leaves the seat by then.
const SILENCE: Duration = Duration::from_secs(20);
/// A client that takes longer than this for one frame is dead, not slow.
const SEND: Duration = Duration::from_secs(60);

const NOT_IN: &str = "This page is not signed in to the host. Open the address that the host printed; if it was used in \
                      another browser, press Enter in the host's terminal for a new one.";

/// Close codes of RFC 6455.
const POLICY: u16 = 1008;
const TOO_BIG: u16 = 1009;
const GOING_AWAY: u16 = 1001;

/// `/ws`
pub(super) async fn upgrade(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    ws: WebSocketUpgrade,
) -> Response {
    let text = |name| headers.get(name).and_then(|h| h.to_str().ok());
    let origin = headers.get(header::ORIGIN);
    let host = text(header::HOST).unwrap_or_default();
    if origin.is_some_and(|o| !is_own(o.to_str().unwrap_or_default(), host)) {
        return plain(StatusCode::FORBIDDEN, "Another page may not speak with this host.");
    }
    let admitted = shared.auth.admits(&headers, origin.is_some());
    if !admitted && origin.is_none() {
        return plain(
            StatusCode::UNAUTHORIZED,
            "Accepted: Authorization: Bearer KEY, the key that the link gave.",
        );
    }
    let ws = ws.max_message_size(MAX_FRAME).max_frame_size(MAX_FRAME);
    // An answer of 401 reaches no page: it is told why over the socket.
    ws.on_upgrade(move |socket| async move {
        if admitted {
            serve(shared, socket, peer).await;
        } else {
            turn_away(socket, NOT_IN).await;
        }
    })
}

/// Whether an origin is the page served here.
fn is_own(origin: &str, host: &str) -> bool {
    let rest = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    !host.is_empty() && rest.is_some_and(|r| r.eq_ignore_ascii_case(host))
}

/// The reason of a close frame has at most 123 bytes.
fn close(code: u16, why: &str) -> Message {
    let mut end = why.len().min(123);
    while !why.is_char_boundary(end) {
        end -= 1;
    }
    Message::Close(Some(CloseFrame {
        code,
        reason: why[..end].into(),
    }))
}

async fn turn_away(mut socket: WebSocket, why: &str) {
    let refused = HostFrame::Welcome(Box::new(Welcome::Refused(why.to_string())));
    if let Ok(bytes) = protocol::encode(&refused) {
        let _ = socket.send(Message::Binary(bytes.into())).await;
    }
    let _ = socket.send(close(POLICY, why)).await;
}

/// Milliseconds since the connection began at which the client was last heard.
struct Heard {
    begin: Instant,
    last: AtomicU64,
}

impl Heard {
    fn now(&self) {
        self.last
            .store(self.begin.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn silence(&self) -> Duration {
        self.begin
            .elapsed()
            .saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }
}

async fn serve(shared: Arc<Shared>, socket: WebSocket, peer: SocketAddr) {
    let notify = Arc::new(Notify::new());
    let waker = notify.clone();
    let wake = Arc::new(move || waker.notify_one());
    let connection = match shared.host.enter("browser", peer.ip().is_loopback(), wake) {
        Ok(c) => Arc::new(c),
        Err(e) => return turn_away(socket, &format!("The host is full: {e}.")).await,
    };
    let heard = Arc::new(Heard {
        begin: Instant::now(),
        last: AtomicU64::new(0),
    });
    let (sink, stream) = socket.split();
    let reader = tokio::spawn(read(stream, connection.clone(), heard.clone()));
    write(sink, &connection, &notify, &heard).await;
    reader.abort();
}

/// Frames from the client. Ends with the socket, and closes the connection then.
async fn read(mut stream: SplitStream<WebSocket>, connection: Arc<Connection>, heard: Arc<Heard>) {
    while let Some(message) = stream.next().await {
        heard.now();
        match message {
            Ok(Message::Binary(bytes)) => connection.send(&bytes),
            Ok(Message::Text(_)) => {
                connection.close("Closed: a text message came; accepted are binary frames.");
                return;
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Close(_)) => break,
            Err(e) => {
                tracing::debug!("a socket failed: {e}");
                let limit = MAX_FRAME >> 20;
                connection.close(&format!(
                    "Closed: the message could not be read; accepted are whole frames of at most {limit} MiB."
                ));
                return;
            }
        }
    }
    connection.close("");
}

/// Frames to the client, as fast as it takes them.
async fn write(mut sink: SplitSink<WebSocket, Message>, connection: &Connection, notify: &Notify, heard: &Heard) {
    let mut ping = tokio::time::interval_at(tokio::time::Instant::now() + PING, PING);
    let handshake = tokio::time::sleep(HANDSHAKE);
    tokio::pin!(handshake);
    let mut waiting = true;
    loop {
        while let Some(event) = connection.next() {
            let message = match event {
                LinkEvent::Frame(bytes) => Message::Binary(bytes.into()),
                LinkEvent::Closed(why) => {
                    let code = match why.as_str() {
                        w if w.contains("MiB") => TOO_BIG,
                        w if w.contains("ended") => GOING_AWAY,
                        _ => POLICY,
                    };
                    let _ = tokio::time::timeout(Duration::from_secs(1), sink.send(close(code, &why))).await;
                    return;
                }
            };
            match tokio::time::timeout(SEND, sink.send(message)).await {
                Ok(Ok(())) => {}
                _ => return,
            }
        }
        tokio::select! {
            () = notify.notified() => {}
            _ = ping.tick() => {
                if heard.silence() > SILENCE {
                    return;
                }
                if sink.send(Message::Ping(Vec::new().into())).await.is_err() {
                    return;
                }
            }
            () = &mut handshake, if waiting => {
                waiting = false;
                if !connection.greeted() {
                    connection.close("Closed: no handshake came.");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_page_itself_is_own() {
        assert!(is_own("http://127.0.0.1:80", "127.0.0.1:80"));
        assert!(is_own("https://Host:80", "host:80"));
        for (origin, host) in [
            ("http://evil.example", "127.0.0.1:80"),
            ("http://127.0.0.1:81", "127.0.0.1:80"),
            ("null", "127.0.0.1:80"),
            ("", ""),
            ("http://", ""),
            ("http://127.0.0.1:80.evil.example", "127.0.0.1:80"),
        ] {
            assert!(!is_own(origin, host), "{origin}");
        }
    }

    #[test]
    fn reasons_are_cut_between_characters() {
        let Message::Close(Some(frame)) = close(POLICY, &"ä".repeat(100)) else {
            panic!("no close frame");
        };
        assert!(frame.reason.len() <= 123 && frame.reason.chars().all(|c| c == 'ä'));
    }
}
