//! The host over HTTP and WebSocket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use common::toy::Toy;
use common::*;
use futures_util::{SinkExt, StreamExt};
use host::web::{WebOptions, WebServer};
use protocol::*;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

struct Site {
    room: Room,
    web: WebServer,
}

/// Status, head and body of an answer.
struct Answer {
    status: u16,
    head: String,
    body: Vec<u8>,
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|l| l.split_once(": "));
        lines
            .into_iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

impl Site {
    fn new() -> Self {
        let room = Room::new();
        let ui = room.path("ui");
        std::fs::create_dir_all(&ui).unwrap();
        std::fs::write(ui.join("index.html"), "<p>page").unwrap();
        std::fs::write(ui.join("ui_bg.wasm"), [0, 0x61]).unwrap();
        std::fs::write(room.path("secret"), "secret").unwrap();
        let options = WebOptions {
            ui: Some(ui),
            ..WebOptions::default()
        };
        let web = WebServer::start(room.host().clone(), options).unwrap();
        Self { room, web }
    }

    fn address(&self) -> SocketAddr {
        self.web.address()
    }

    fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let host = format!("127.0.0.1:{}", self.address().port());
        let mut head = format!("GET {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(n, _)| *n == "Host") {
            head.push_str(&format!("Host: {host}\r\n"));
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        stream.write_all((head + "\r\n").as_bytes()).unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        let at = bytes.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(bytes[..at].to_vec()).unwrap();
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            head,
            body: bytes[at + 4..].to_vec(),
        }
    }

    /// Opens a new link as a browser does; its cookie.
    fn cookie(&self) -> String {
        let link = self.web.link().unwrap();
        let path = link.strip_prefix(&format!("http://{}", self.address())).unwrap();
        let answer = self.get(path, &[]);
        assert_eq!((answer.status, answer.header("location")), (303, Some("/")));
        let cookie = answer.header("set-cookie").unwrap();
        assert!(
            cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"),
            "{cookie}"
        );
        cookie.split(';').next().unwrap().to_string()
    }

    async fn socket(&self, headers: &[(&str, &str)]) -> Result<Socket, Error> {
        let mut request = format!("ws://{}/ws", self.address()).into_client_request().unwrap();
        for (name, value) in headers {
            let name: tokio_tungstenite::tungstenite::http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let (stream, _) = tokio_tungstenite::connect_async(request).await?;
        Ok(Socket {
            stream,
            tokens: Vec::new(),
            cursor: Cursor::default(),
        })
    }

    async fn browser(&self, cookie: &str) -> Socket {
        let origin = format!("http://{}", self.address());
        self.socket(&[("Origin", &origin), ("Cookie", cookie)]).await.unwrap()
    }
}

struct Socket {
    stream: WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>,
    tokens: Vec<TokenEntry>,
    cursor: Cursor,
}

impl Socket {
    async fn send(&mut self, id: u64, body: ClientBody) {
        let bytes = encode(&ClientFrame { id, body }).unwrap();
        self.stream.send(Message::Binary(bytes.into())).await.unwrap();
    }

    /// The next frame, or the close frame's code and reason.
    async fn next(&mut self) -> Result<HostFrame, (u16, String)> {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.stream.next())
                .await
                .expect("nothing came");
            match next {
                Some(Ok(Message::Binary(bytes))) => {
                    let frame: HostFrame = decode(&bytes).unwrap();
                    if let HostFrame::Update(u) = &frame {
                        self.tokens.extend(u.tokens.iter().cloned());
                        self.cursor.token = self.tokens.last().map_or(self.cursor.token, |t| t.seq);
                        self.cursor.step = self.cursor.step.max(u.last_step);
                    }
                    return Ok(frame);
                }
                Some(Ok(Message::Close(Some(CloseFrame { code, reason })))) => {
                    return Err((code.into(), reason.to_string()));
                }
                Some(Ok(_)) => {}
                other => return Err((0, format!("{other:?}"))),
            }
        }
    }

    async fn closed(&mut self) -> (u16, String) {
        loop {
            if let Err(end) = self.next().await {
                return end;
            }
        }
    }

    async fn greet(&mut self, hello: Hello) -> Welcome {
        self.send(0, ClientBody::Hello(hello)).await;
        match self.next().await {
            Ok(HostFrame::Welcome(w)) => *w,
            other => panic!("{other:?}"),
        }
    }

    async fn ask(&mut self, id: u64, request: Request) -> Result<Reply, ErrorInfo> {
        self.send(id, ClientBody::Request(Box::new(request))).await;
        loop {
            if let HostFrame::Reply { id: i, result } = self.next().await.unwrap()
                && i == id
            {
                return result.map(|r| *r);
            }
        }
    }
}

#[test]
fn files_and_headers_of_the_page() {
    let site = Site::new();
    let page = site.get("/", &[]);
    assert_eq!((page.status, page.text().as_str()), (200, "<p>page"));
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.contains("script-src 'self' 'wasm-unsafe-eval'") && !policy.contains("unsafe-inline"),
        "{policy}"
    );
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(
        site.get("/ui_bg.wasm", &[]).header("content-type"),
        Some("application/wasm")
    );
    for path in [
        "/nope",
        "/../secret",
        "/..%2fsecret",
        "/%2e%2e/secret",
        "//secret",
        "/ui_bg.wasm/",
        "/.hidden",
    ] {
        let answer = site.get(path, &[]);
        assert!(
            answer.status == 404 || answer.status == 400,
            "{path}: {}",
            answer.status
        );
        assert!(!answer.text().contains("secret"), "{path}");
    }
    let health = site.get("/health", &[]);
    let value: serde_json::Value = serde_json::from_slice(&health.body).unwrap();
    assert_eq!(
        (value["ok"].as_bool(), value["protocol"].as_u64()),
        (Some(true), Some(1))
    );
}

#[test]
fn a_missing_interface_says_how_to_build_it() {
    let room = Room::new();
    let web = WebServer::start(room.host().clone(), WebOptions::default()).unwrap();
    let site = Site { room, web };
    let page = site.get("/", &[]);
    assert_eq!(page.status, 200);
    assert!(page.text().contains("./run --browser"));
    assert_eq!(site.get("/ui.js", &[]).status, 404);
}

#[test]
fn other_names_of_this_machine_are_refused() {
    let site = Site::new();
    let port = site.address().port();
    for host in [
        format!("127.0.0.1:{port}"),
        format!("localhost:{port}"),
        "[::1]:9".into(),
        "localhost".into(),
    ] {
        assert_eq!(site.get("/health", &[("Host", &host)]).status, 200, "{host}");
    }
    for host in [
        "evil.example",
        "127.0.0.1.evil.example",
        "192.0.2.1",
        "localhost.evil.example:80",
        "",
    ] {
        let answer = site.get("/health", &[("Host", host)]);
        assert_eq!(answer.status, 403, "{host}");
        assert!(answer.text().contains("address the host printed"), "{}", answer.text());
    }
}

#[test]
fn the_link_works_for_one_browser() {
    let site = Site::new();
    let link = site.web.link().unwrap();
    let path = link
        .strip_prefix(&format!("http://{}", site.address()))
        .unwrap()
        .to_string();
    // Looking ahead does not spend it.
    assert_eq!(site.get(&path, &[("Sec-Purpose", "prefetch")]).status, 503);
    let first = site.get(&path, &[]);
    assert!(first.header("set-cookie").is_some());
    let second = site.get(&path, &[]);
    assert_eq!((second.status, second.header("set-cookie")), (303, None));
    assert_eq!(second.header("location"), Some("/"));
    // What it asks of the page goes along.
    let asked = site.get(&format!("{path}?test"), &[]);
    assert_eq!(asked.header("location"), Some("/?test"));
    let wrong = site.get("/enter/0123", &[]);
    assert_eq!(wrong.status, 403);
    assert!(wrong.text().contains("press Enter"), "{}", wrong.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_page_itself_with_its_cookie_comes_in() {
    let site = Site::new();
    let cookie = site.cookie();
    let own = format!("http://{}", site.address());
    let status = |r: Result<Socket, Error>| match r {
        Err(Error::Http(response)) => response.status().as_u16(),
        Err(e) => panic!("{e}"),
        Ok(_) => 101,
    };
    for origin in ["http://evil.example", "null", "http://127.0.0.1:1"] {
        assert_eq!(
            status(site.socket(&[("Origin", origin), ("Cookie", &cookie)]).await),
            403,
            "{origin}"
        );
    }
    // Without an origin a cookie is worth nothing; a key is.
    assert_eq!(status(site.socket(&[("Cookie", &cookie)]).await), 401);
    let key = format!("Bearer {}", cookie.split_once('=').unwrap().1);
    assert_eq!(status(site.socket(&[("Authorization", &key)]).await), 101);
    // A page without a cookie is told why.
    for headers in [
        vec![("Origin", own.as_str())],
        vec![("Origin", own.as_str()), ("Cookie", "model1_1=00")],
    ] {
        let mut socket = site.socket(&headers).await.unwrap();
        match socket.next().await {
            Ok(HostFrame::Welcome(w)) => {
                assert!(
                    matches!(&*w, Welcome::Refused(why) if why.contains("not signed in")),
                    "{w:?}"
                );
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(socket.closed().await.0, 1008);
    }
    assert!(matches!(
        site.browser(&cookie).await.greet(Hello::new("browser")).await,
        Welcome::Accepted { .. }
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_is_loaded_anew_in_the_middle_of_a_run_loses_nothing() {
    let site = Site::new();
    let source = site.room.toy("toy", &Toy::default());
    let cookie = site.cookie();
    let mut page = site.browser(&cookie).await;
    let Welcome::Accepted { host, driver, .. } = page.greet(Hello::new("browser")).await else {
        panic!()
    };
    assert!(driver && host.local);
    page.ask(1, Request::OpenModel { source, context: 0 }).await.unwrap();
    loop {
        let HostFrame::Update(u) = page.next().await.unwrap() else {
            continue;
        };
        if u.state.is_some_and(|s| s.loaded().is_some()) {
            break;
        }
    }
    page.ask(2, send("go", endless())).await.unwrap();
    while page.tokens.len() < 40 {
        page.next().await.unwrap();
    }
    let (mut all, cursor) = (
        page.tokens.clone(),
        Cursor {
            run: host.run,
            ..page.cursor
        },
    );
    drop(page);

    tokio::time::sleep(Duration::from_millis(100)).await;
    let mut page = site.browser(&cookie).await;
    let hello = Hello {
        cursor,
        take_over: true,
        ..Hello::new("browser")
    };
    let Welcome::Accepted { driver, .. } = page.greet(hello).await else {
        panic!()
    };
    assert!(driver);
    while page.tokens.len() < 40 {
        page.next().await.unwrap();
    }
    page.ask(1, Request::Stop).await.unwrap();
    let doc = loop {
        let Reply::Doc(doc) = page.ask(2, Request::GetDoc).await.unwrap() else {
            panic!()
        };
        if doc.nodes[1].finish != FinishView::Running {
            break doc;
        }
    };
    while all.len() + page.tokens.len() < doc.nodes[1].tokens.len() {
        page.next().await.unwrap();
    }
    all.extend(page.tokens.clone());
    assert!(
        all.iter()
            .enumerate()
            .all(|(i, t)| t.seq == i as u64 + 1 && t.index as usize == i)
    );
    // Half a character at the very end becomes text only with the end.
    let shown = |t: &TokenInfo| (t.token, t.position, t.logprob.to_bits());
    assert!(
        all.iter()
            .map(|t| shown(&t.info))
            .eq(doc.nodes[1].tokens.iter().map(shown))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_frame_ends_the_socket_with_a_sentence() {
    let site = Site::new();
    let cookie = site.cookie();
    let mut page = site.browser(&cookie).await;
    page.stream.send(Message::Text("hello".into())).await.unwrap();
    let (code, why) = page.closed().await;
    assert!(code == 1008 && why.contains("binary frames"), "{code} {why}");

    let mut page = site.browser(&cookie).await;
    page.greet(Hello::new("browser")).await;
    page.stream.send(Message::Binary(vec![7; 30].into())).await.unwrap();
    let (code, why) = page.closed().await;
    assert!(code == 1008 && why.contains("frame"), "{code} {why}");

    // Larger than a frame may be: the host hangs up before it has it all.
    let mut page = site.browser(&cookie).await;
    page.greet(Hello::new("browser")).await;
    let sent = page.stream.send(Message::Binary(vec![0; MAX_FRAME + 1].into())).await;
    if sent.is_ok() {
        let (code, why) = page.closed().await;
        assert!(code == 1009 || code == 0, "{code} {why}");
    }
    let mut page = site.browser(&cookie).await;
    assert!(matches!(
        page.greet(Hello::new("browser")).await,
        Welcome::Accepted { .. }
    ));
    // The host says goodbye.
    site.room.host().stop();
    let (code, why) = page.closed().await;
    assert!(code == 1001 && why.contains("ended"), "{code} {why}");
}

#[test]
fn a_port_in_use_is_said() {
    let site = Site::new();
    let options = WebOptions {
        port: site.address().port(),
        ..WebOptions::default()
    };
    let e = WebServer::start(Arc::clone(site.room.host()), options)
        .err()
        .unwrap()
        .to_string();
    assert!(
        e.contains("cannot listen on 127.0.0.1:") && e.contains("--port 0"),
        "{e}"
    );
}
