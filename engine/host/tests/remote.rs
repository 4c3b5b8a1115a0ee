//! A window that works on a host of another machine: looking at it, coming in, losing it, coming back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::sync::{Arc, Condvar, Mutex};

use common::toy::Toy;
use common::*;
use host::LinkEvent;
use host::remote::{Remote, RemoteConnection, look};
use host::web::{WebOptions, WebServer};
use protocol::*;

fn serve(room: &Room, port: u16) -> WebServer {
    let options = WebOptions {
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        port,
        ..WebOptions::default()
    };
    WebServer::start(room.host().clone(), options).unwrap()
}

#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

fn connect(remote: &Arc<Remote>) -> (Result<RemoteConnection, String>, Arc<Bell>) {
    let bell = Arc::new(Bell::default());
    let own = bell.clone();
    let connection = remote.connect(move || {
        *own.0.lock().unwrap() = true;
        own.1.notify_all();
    });
    (connection, bell)
}

fn next(connection: &RemoteConnection, bell: &Bell) -> LinkEvent {
    loop {
        let mut rung = bell.0.lock().unwrap();
        if let Some(event) = connection.next() {
            return event;
        }
        while !*rung {
            let (again, waited) = bell.1.wait_timeout(rung, PATIENCE).unwrap();
            assert!(!waited.timed_out(), "nothing came");
            rung = again;
        }
        *rung = false;
    }
}

fn frame(connection: &RemoteConnection, bell: &Bell) -> HostFrame {
    match next(connection, bell) {
        LinkEvent::Frame(bytes) => decode(&bytes).unwrap(),
        LinkEvent::Closed(why) => panic!("closed: {why}"),
    }
}

fn send(connection: &RemoteConnection, id: u64, body: ClientBody) {
    connection.send(&encode(&ClientFrame { id, body }).unwrap());
}

#[test]
fn a_remote_host_is_worked_on_like_the_own_one() {
    let mut there = Room::new();
    let site = serve(&there, 0);
    let link = site.link().unwrap();
    let found = look(&link, "", true).unwrap();
    assert_eq!(found.authority, site.address().to_string());
    // Looking spends nothing; the form asks through the own host.
    let here = Room::new();
    let mut own = here.client();
    let asked = own.ask(Request::LookAtHost {
        address: found.authority.clone(),
        token: found.token.clone(),
        same_build: true,
    });
    assert_eq!(asked, Ok(Reply::RemoteHost(found.clone())));

    let remote = Remote::new(&found.authority, &found.token);
    let (connection, bell) = connect(&remote);
    let connection = connection.unwrap();
    send(&connection, 1, ClientBody::Hello(Hello::new("window")));
    let HostFrame::Welcome(welcome) = frame(&connection, &bell) else {
        panic!()
    };
    assert!(matches!(*welcome, Welcome::Accepted { driver: true, .. }));
    let source = there.toy("toy", &Toy::default());
    let open = Request::OpenModel { source, context: 0 };
    send(&connection, 2, ClientBody::Request(Box::new(open)));
    loop {
        if let HostFrame::Update(u) = frame(&connection, &bell)
            && u.state.is_some_and(|s| s.loaded().is_some())
        {
            break;
        }
    }
    // A lost connection comes back with the session it had, though the link is spent.
    drop(connection);
    let e = look(&link, "", true).unwrap_err();
    assert!(e.what.contains("used already") && e.remedy.contains("new link"), "{e}");
    let (again, bell) = connect(&remote);
    let again = again.unwrap();
    send(&again, 1, ClientBody::Hello(Hello::new("window")));
    assert!(matches!(frame(&again, &bell), HostFrame::Welcome(_)));

    // The host ends: that is said. One that was started anew knows the session no more, and says what to do.
    let port = site.address().port();
    there.stop();
    site.stop();
    let why = loop {
        if let LinkEvent::Closed(why) = next(&again, &bell) {
            break why;
        }
    };
    assert!(!why.is_empty());
    there.start();
    let _site = serve(&there, port);
    let e = connect(&remote).0.err().unwrap();
    assert!(e.contains("started anew") && e.contains("new link"), "{e}");
}

#[tokio::test]
async fn a_caller_on_a_runtime_of_its_own_is_connected_too() {
    let there = Room::new();
    let site = serve(&there, 0);
    let found = look(&site.link().unwrap(), "", true).unwrap();
    let (connection, bell) = connect(&Remote::new(&found.authority, &found.token));
    let connection = connection.unwrap();
    send(&connection, 1, ClientBody::Hello(Hello::new("tauri")));
    assert!(matches!(frame(&connection, &bell), HostFrame::Welcome(_)));
}

#[test]
fn what_cannot_be_connected_to_is_told_apart() {
    let there = Room::new();
    let site = serve(&there, 0);
    let address = site.address().to_string();
    let e = look(&address, &"0".repeat(64), true).unwrap_err();
    assert!(e.what.contains("token is not one of the host at"), "{e}");
    assert_eq!(e.kind, ErrorKind::Refused);
    // A port nobody listens on.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let e = look(&free.to_string(), "0123", true).unwrap_err();
    assert!(
        e.what.contains("cannot be reached") && e.what.contains("nothing listens"),
        "{e}"
    );
    assert!(e.remedy.contains("--listen"), "{e}");
    let e = look("no-such-host.invalid:80", "0123", true).unwrap_err();
    assert!(e.what.contains("no machine of that name"), "{e}");
    // Hosts answer to names they were told only.
    let e = look(
        &format!("localhost.localdomain:{}", site.address().port()),
        "0123",
        true,
    )
    .unwrap_err();
    assert!(
        e.what.contains("does not answer to the name") || e.what.contains("cannot be reached"),
        "{e}"
    );
    // Only the driver may let the host look around.
    let own = Room::new();
    let _driver = own.client();
    let mut viewer = own.client();
    let asked = viewer.ask(Request::LookAtHost {
        address,
        token: "0123".into(),
        same_build: true,
    });
    assert_eq!(asked.unwrap_err().kind, ErrorKind::Refused);
}

/// Something that answers every call with the same words.
fn answering(words: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(words.as_bytes());
        }
    });
    address
}

#[test]
fn other_programs_and_other_builds_are_named() {
    let http = |body: &str| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    for words in [
        "SSH-2.0-OpenSSH_9\r\n".to_string(),
        http("<html>"),
        http("{\"program\":\"other\"}"),
    ] {
        let e = look(&answering(words), "0123", true).unwrap_err();
        assert!(
            e.what.contains("no host of MODEL1 Explorer") || e.what.contains("does not answer as a host"),
            "{e}"
        );
    }
    let body =
        "{\"program\":\"model1\",\"version\":\"9.9\",\"protocol\":7,\"schema\":\"00000000000000ff\",\"link\":\"good\"}";
    let other = answering(http(body));
    let e = look(&other, "0123", true).unwrap_err();
    assert!(
        e.what.contains("different builds") && e.what.contains("protocol 7"),
        "{e}"
    );
    assert!(e.remedy.contains("browser"), "{e}");
    // A browser gets the other host's own page, whatever its build.
    let found = look(&other, "0123", false).unwrap();
    assert_eq!((found.version.as_str(), found.authority), ("9.9", other));
}
