use super::*;
use crate::testing::Scene;

fn run(scene: &Scene, store: &mut Store, now: f64) {
    let ctx = egui::Context::default();
    for _ in 0..4 {
        store.pump(&ctx, now);
    }
    assert!(scene.connections() > 0);
}

#[test]
fn a_repeated_token_is_ignored_and_a_gap_fetches_the_text() {
    let scene = Scene::live();
    let mut store = Store::new(scene.dialer(), "test");
    run(&scene, &mut store, 0.0);
    let text = store.text.as_ref().unwrap();
    let node = text.branch().last().unwrap();
    let (have, words) = (node.tokens.len() as u32, node.text.len());
    let last = node.tokens.last().unwrap().clone();
    let entry = |index: u32, seq: u64| protocol::TokenEntry {
        seq,
        doc: text.view().info.id,
        node: node.id,
        index,
        info: protocol::TokenInfo {
            position: last.position + 1,
            ..last.clone()
        },
    };
    let (again, next, gap) = (entry(have - 1, 1), entry(have, 1_000), entry(have + 5, 1_005));
    scene.push(Update {
        tokens: vec![again, next.clone()],
        ..Update::default()
    });
    run(&scene, &mut store, 0.1);
    let node = store.text.as_ref().unwrap().branch().last().unwrap();
    assert_eq!(node.tokens.len() as u32, have + 1);
    assert_eq!(node.text.len(), words + next.info.text.len());
    let fetched = scene.count(|r| matches!(r, Request::GetDoc));
    scene.push(Update {
        tokens: vec![gap],
        ..Update::default()
    });
    run(&scene, &mut store, 0.2);
    assert_eq!(scene.count(|r| matches!(r, Request::GetDoc)), fetched + 1);
}

#[test]
fn a_text_that_changes_while_it_is_fetched_is_fetched_again() {
    let scene = Scene::live();
    let mut store = Store::new(scene.dialer(), "test");
    run(&scene, &mut store, 0.0);
    let fetches = || scene.count(|r| matches!(r, Request::GetDoc));
    let before = fetches();
    // Both arrive at once: the answer to the first fetch leaves the host between them.
    scene.change(|s| s.doc_revision += 1);
    scene.change(|s| s.doc_revision += 1);
    run(&scene, &mut store, 0.1);
    assert_eq!(fetches(), before + 2);
    assert_eq!(store.unanswered(), 0);
    run(&scene, &mut store, 0.2);
    assert_eq!(fetches(), before + 2, "nothing changed since");
}

#[test]
fn a_lost_connection_comes_back_with_its_cursor() {
    let scene = Scene::live();
    let mut store = Store::new(scene.dialer(), "test");
    run(&scene, &mut store, 0.0);
    let ticket = Tickets::default().take();
    scene.mute(true);
    store.call(Request::GetTree, ticket);
    run(&scene, &mut store, 0.1);
    assert!(store.outcome(ticket).is_none());
    scene.hang_up("the host was stopped");
    run(&scene, &mut store, 0.2);
    assert!(
        matches!(store.connection(), Connection::Waiting { attempt: 1, .. }),
        "{:?}",
        store.connection()
    );
    assert!(store.outcome(ticket).unwrap().is_err());
    assert!(store.text.is_some(), "what was shown stays");
    scene.mute(false);
    run(&scene, &mut store, 5.0);
    assert_eq!(*store.connection(), Connection::Ready);
    let cursor = scene.hellos().last().unwrap().cursor;
    assert!(cursor.token > 0 && cursor.run == store.host.as_ref().unwrap().run);
}

#[test]
fn a_refusal_is_final_and_keeps_the_sentence() {
    let scene = Scene::live();
    scene.refuse("This window is of another version than the host. Reload it.");
    let mut store = Store::new(scene.dialer(), "test");
    run(&scene, &mut store, 0.0);
    run(&scene, &mut store, 60.0);
    assert!(matches!(store.connection(), Connection::Refused(s) if s.contains("another version")));
    assert_eq!(scene.connections(), 1);
}

#[test]
fn broken_frames_break_the_connection_not_the_program() {
    let scene = Scene::live();
    let mut store = Store::new(scene.dialer(), "test");
    run(&scene, &mut store, 0.0);
    scene.push_bytes(vec![0xff; 40]);
    run(&scene, &mut store, 0.1);
    assert!(matches!(store.connection(), Connection::Waiting { .. }));
}

#[test]
fn answers_are_asked_for_once_and_again_after_a_swap() {
    let scene = Scene::live();
    let mut store = Store::new(scene.dialer(), "test");
    run(&scene, &mut store, 0.0);
    let query = Query::tree();
    for _ in 0..3 {
        let (_, wanted) = store.lookup(&query);
        if wanted {
            store.ask(query.request.clone(), query.scope);
        }
    }
    run(&scene, &mut store, 0.1);
    assert!(matches!(store.lookup(&query), (Fetched::Ready(_), false)));
    assert_eq!(scene.count(|r| matches!(r, Request::GetTree)), 1);
    store.send(Request::EditRecipe(vec![protocol::Edit {
        selector: "layers.3-6.kv_cache".into(),
        choice: protocol::ChoiceView {
            variant: "bf16".into(),
            options: vec![],
        },
    }]));
    run(&scene, &mut store, 0.2);
    assert!(matches!(store.lookup(&query), (Fetched::Stale(_), true)));
}

/// A link that has said all it will ever say.
struct Said(Vec<crate::link::LinkEvent>);

impl crate::link::Link for Said {
    fn send(&mut self, _: Vec<u8>) {}

    fn poll(&mut self) -> Vec<crate::link::LinkEvent> {
        std::mem::take(&mut self.0)
    }
}

#[test]
fn a_host_of_another_build_is_refused_at_this_end_too() {
    let host = protocol::HostInfo {
        schema: 1,
        ..protocol::HostInfo::new("9.9.9", 1, true, "Linux")
    };
    let welcome = Welcome::Accepted {
        host,
        driver: true,
        settings: protocol::Settings::default(),
    };
    let mut bytes = encode(&HostFrame::Welcome(Box::new(welcome))).unwrap();
    // What a newer build added.
    bytes.push(1);
    let dials = std::rc::Rc::new(std::cell::Cell::new(0));
    let count = dials.clone();
    let dialer: crate::link::Dialer = Box::new(move |_| {
        count.set(count.get() + 1);
        let events = vec![
            crate::link::LinkEvent::Open,
            crate::link::LinkEvent::Frame(bytes.clone()),
        ];
        Box::new(Said(events))
    });
    let mut store = Store::new(dialer, "browser");
    let ctx = egui::Context::default();
    for second in 0..60 {
        store.pump(&ctx, f64::from(second));
    }
    let Connection::Refused(sentence) = store.connection() else {
        panic!("{:?}", store.connection());
    };
    assert!(
        sentence.contains("different builds") && sentence.contains("Reload the page"),
        "{sentence}"
    );
    assert_eq!(dials.get(), 1, "dialling again would not help");
    assert!(store.host.is_none());
}
