//! The handshake, and frames that are none.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::*;
use proptest::prelude::*;
use protocol::*;

fn refusal(client: &Client) -> &str {
    match &client.welcome {
        Some(Welcome::Refused(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_build_is_refused_with_what_to_do() {
    let room = Room::new();
    for (hello, remedy) in [
        (
            Hello {
                version: 99,
                ..Hello::new("browser")
            },
            "Reload the page",
        ),
        (
            Hello {
                schema: 1,
                ..Hello::new("window")
            },
            "Update the older",
        ),
    ] {
        let mut client = Client::hello(room.host(), hello);
        assert!(refusal(&client).contains(remedy), "{}", refusal(&client));
        client.until("the end", |c| c.told.closed.is_some());
        // Nothing more is taken from it.
        client.send(1, ClientBody::Hello(Hello::new("again")));
        assert!(!client.poll() || client.told.closed.is_some());
    }
    assert_eq!(room.client().state().clients, 1);
}

#[test]
fn the_first_frame_is_a_handshake_and_the_only_one() {
    let room = Room::new();
    let mut client = Client::raw(room.host());
    client.post(Request::GetDoc);
    client.until("a refusal", |c| c.told.closed.is_some());
    assert!(refusal(&client).contains("handshake"));

    let mut client = room.client();
    client.send(5, ClientBody::Hello(Hello::new("twice")));
    client.until("the end", |c| c.told.closed.is_some());
    assert!(client.told.closed.unwrap().contains("second handshake"));
}

#[test]
fn malformed_and_oversized_frames_end_the_connection_and_nothing_else() {
    let room = Room::new();
    let mut bystander = room.client();
    for greeted in [false, true] {
        for bytes in [vec![], vec![0xff; 40], vec![0; MAX_FRAME + 1]] {
            let mut client = if greeted {
                room.client()
            } else {
                Client::raw(room.host())
            };
            client.link.send(&bytes);
            client.until("the end", |c| c.told.closed.is_some());
            let why = client.told.closed.take().unwrap();
            assert!(
                why.contains("accepted") || why.contains("Accepted") || why.contains("protocol"),
                "{why}"
            );
        }
    }
    assert!(bystander.ask(Request::About).is_ok());
}

#[test]
fn crowds_are_kept_out() {
    let room = Room::new();
    let clients: Vec<Client> = (0..32).map(|_| room.client()).collect();
    let e = room.host().connect("one more", || ()).err().unwrap().to_string();
    assert!(e.contains("32 clients"), "{e}");
    drop(clients);
    room.client();
}

#[test]
fn too_many_requests_at_once_are_refused_one_by_one() {
    let room = Room::new();
    let mut client = room.client();
    let ids: Vec<u64> = (0..600).map(|_| client.post(Request::ListModels)).collect();
    let (mut good, mut refused) = (0, 0);
    for id in ids {
        match client.answer(id) {
            Ok(Reply::Models(_)) => good += 1,
            Err(e) if e.kind == ErrorKind::Refused || e.kind == ErrorKind::Internal => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(
        good >= 200 && good + refused == 600,
        "{good} answered, {refused} refused"
    );
    assert!(client.ask(Request::ListModels).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever a client sends, the host stands and says why it hung up.
    #[test]
    fn random_bytes_never_hurt(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 1..6)) {
        use std::sync::OnceLock;
        static ROOM: OnceLock<Room> = OnceLock::new();
        let room = ROOM.get_or_init(Room::new);
        for greeted in [false, true] {
            let mut client = if greeted { room.client() } else { Client::raw(room.host()) };
            for frame in &frames {
                client.link.send(frame);
            }
            client.poll();
            if let Some(why) = &client.told.closed {
                prop_assert!(!why.is_empty());
            }
        }
        prop_assert!(room.client().ask(Request::About).is_ok());
    }
}
