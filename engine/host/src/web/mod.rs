//! The host over HTTP: the page's files, a WebSocket that carries protocol frames, a health check.
//!
//! Who may come in: the program prints an address with a one-time link, `http://127.0.0.1:PORT/enter/TOKEN`. The first
//! browser that opens it gets a session cookie (`HttpOnly`, `SameSite=Strict`, sent to the WebSocket alone) that is
//! good until the host ends, so reloads and new tabs of that browser work; the link is worth nothing afterwards.
//! [`WebServer::link`] makes another. The page's files need no session: they are the same for everybody.
//!
//! Against other pages in the same browser: the `Host` header must name this machine (DNS rebinding), the `Origin` of a
//! WebSocket must be the page's own. Without an `Origin` (programs, not browsers) the session's key is taken from
//! `Authorization: Bearer` instead.

mod auth;
mod files;
mod socket;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::host::{Host, StartError};
use auth::{Auth, Entry};
use files::Files;

/// How to serve.
#[derive(Clone, Debug)]
pub struct WebOptions {
    /// Address to listen on. Anything but a loopback address lets other machines in.
    pub listen: IpAddr,
    /// Port; 0 = one that is free.
    pub port: u16,
    /// Folder with index.html, ui.js, ui_bg.wasm, ...; `None` or a folder without them = a page that says how to
    /// build the interface. A folder of the same name with `-gz` behind it may hold gzip copies.
    pub ui: Option<PathBuf>,
    /// Names, besides addresses, by which other machines may reach this one.
    pub names: Vec<String>,
}

impl Default for WebOptions {
    fn default() -> Self {
        Self {
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            ui: None,
            names: Vec::new(),
        }
    }
}

/// Why a server could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// The address cannot be used.
    #[error("cannot listen on {address}: {error}; accepted: a free port (--port 0 picks one)")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// The system's words.
        error: std::io::Error,
    },
    /// No threads for it.
    #[error("the server's threads could not be started: {0}")]
    Runtime(std::io::Error),
    /// No random numbers for its keys.
    #[error(transparent)]
    Random(#[from] StartError),
}

/// What handlers share.
struct Shared {
    host: Arc<Host>,
    auth: Auth,
    files: Files,
    address: SocketAddr,
    /// Names accepted in `Host`, besides loopback ones.
    names: Vec<String>,
}

/// A running server. Dropping it stops it.
pub struct WebServer {
    shared: Arc<Shared>,
    runtime: Mutex<Option<(Runtime, oneshot::Sender<()>)>>,
}

impl WebServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// [`WebError`].
    pub fn start(host: Arc<Host>, options: WebOptions) -> Result<Self, WebError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("host-web")
            .enable_all()
            .build()
            .map_err(WebError::Runtime)?;
        let wanted = SocketAddr::new(options.listen, options.port);
        let failed = |error| WebError::Listen { address: wanted, error };
        // Bound here and not on the runtime, so that callers may themselves be on one.
        let listener = std::net::TcpListener::bind(wanted).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let shared = Arc::new(Shared {
            host,
            auth: Auth::new(address.port()),
            files: Files::new(options.ui),
            address,
            names: options.names.iter().map(|n| n.to_ascii_lowercase()).collect(),
        });
        let (stop, stopped) = oneshot::channel();
        let app = router(shared.clone()).into_make_service_with_connect_info::<SocketAddr>();
        runtime.spawn(async move {
            let end = async {
                // The sender is dropped or used when the server stops.
                let _ = stopped.await;
            };
            let served = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => axum::serve(listener, app).with_graceful_shutdown(end).await,
                Err(e) => Err(e),
            };
            if let Err(e) = served {
                tracing::error!("the server ended: {e}");
            }
        });
        Ok(Self {
            shared,
            runtime: Mutex::new(Some((runtime, stop))),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Whether other machines can reach it.
    pub fn is_open(&self) -> bool {
        !self.shared.address.ip().is_loopback()
    }

    /// A new one-time link.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub fn link(&self) -> Result<String, WebError> {
        let token = self.shared.auth.new_link()?;
        let mut shown = self.shared.address;
        if shown.ip().is_unspecified() {
            // "All addresses" is none to visit; on this machine loopback works.
            shown.set_ip(match shown {
                SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
                SocketAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
            });
        }
        Ok(format!("http://{shown}/enter/{token}"))
    }

    /// Stops listening and ends all connections.
    pub fn stop(&self) {
        let taken = self.runtime.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((runtime, stop)) = taken {
            let _ = stop.send(());
            // On a thread of its own, so that callers may themselves be on a runtime.
            let ended = std::thread::Builder::new()
                .name("host-web-end".into())
                .spawn(move || runtime.shutdown_timeout(Duration::from_secs(1)));
            if let Ok(thread) = ended {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for WebServer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/enter/{token}", get(enter))
        .route("/ws", any(socket::upgrade))
        .fallback(get(file))
        .layer(middleware::from_fn_with_state(shared.clone(), guard))
        .with_state(shared)
}

/// Name of a `Host` header: without the port.
fn host_name(host: &str) -> &str {
    match host.strip_prefix('[') {
        // [::1]:8080
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

impl Shared {
    /// Whether a `Host` header names this machine. Ports do not matter: they change on the way through tunnels.
    fn is_ours(&self, host: &str) -> bool {
        let name = host_name(host).to_ascii_lowercase();
        let open = !self.address.ip().is_loopback();
        match name.parse::<IpAddr>() {
            // Rebinding needs a name: an address in the header is the one the browser connected to.
            Ok(ip) => open || ip.is_loopback(),
            Err(_) => name == "localhost" || self.names.contains(&name),
        }
    }
}

/// Lets requests through that are meant for this machine; adds the headers every answer has.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let host = request
        .headers()
        .get(header::HOST)
        .and_then(|h| h.to_str().ok())
        .unwrap_or_default()
        .to_string();
    if !shared.is_ours(&host) {
        return plain(
            StatusCode::FORBIDDEN,
            "This address does not name this machine. Use the address the host printed, or start it with --name.",
        );
    }
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    for (name, value) in [
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !headers.contains_key(header::CONTENT_SECURITY_POLICY)
        && let Ok(policy) = HeaderValue::from_str(&files::policy(&host))
    {
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn plain(status: StatusCode, text: &'static str) -> Response {
    (status, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// For scripts that wait until the host is up, and for windows that ask whether they could come in: `?link=TOKEN`
/// tells what a link is worth without spending it.
async fn health(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let link = query.as_deref().and_then(|q| q.strip_prefix("link="));
    let body = serde_json::json!({
        "program": "model1", "version": env!("CARGO_PKG_VERSION"), "protocol": protocol::PROTOCOL_VERSION,
        "schema": format!("{:016x}", protocol::SCHEMA_HASH), "clients": shared.host.clients(), "ok": true,
        "link": link.map(|token| shared.auth.worth(token)),
    });
    ([(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}

/// The one-time link.
///
/// What it asks of the page (`?...`) goes along.
async fn enter(
    State(shared): State<Arc<Shared>>,
    Path(token): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    // Browsers look ahead; that must not spend the link.
    let ahead = ["sec-purpose", "purpose", "x-moz"]
        .iter()
        .any(|h| headers.contains_key(*h));
    if ahead {
        return plain(StatusCode::SERVICE_UNAVAILABLE, "Not before it is opened.");
    }
    let page = query.map_or_else(|| "/".to_string(), |q| format!("/?{q}"));
    let home = [
        (header::LOCATION, page),
        (header::CACHE_CONTROL, "no-store".to_string()),
    ];
    match shared.auth.enter(&token) {
        Ok(Entry::Granted(key)) => {
            let mut response = (StatusCode::SEE_OTHER, home).into_response();
            if let Ok(cookie) = HeaderValue::from_str(&shared.auth.cookie(&key)) {
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            response
        }
        // Whoever opened it before has a cookie and may go on; others are told so by the WebSocket.
        Ok(Entry::Spent) => (StatusCode::SEE_OTHER, home).into_response(),
        Ok(Entry::Unknown) => plain(
            StatusCode::FORBIDDEN,
            "This link is not one of this host. Open the address it printed; press Enter in its terminal for a new one.",
        ),
        Err(e) => {
            tracing::error!("{e}");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "The system gives no random numbers.")
        }
    }
}

/// A file of the page.
async fn file(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    let path = request.uri().path().to_string();
    let headers = request.headers().clone();
    let answer = tokio::task::spawn_blocking(move || shared.files.answer(&path, &headers)).await;
    answer.unwrap_or_else(|_| plain(StatusCode::INTERNAL_SERVER_ERROR, "The file could not be read."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_host_headers() {
        for (host, name) in [
            ("127.0.0.1:80", "127.0.0.1"),
            ("localhost", "localhost"),
            ("[::1]:80", "::1"),
            ("[::1]", "::1"),
            ("evil.example:80", "evil.example"),
            ("", ""),
        ] {
            assert_eq!(host_name(host), name, "{host}");
        }
    }
}
