//! While a text is written: several clients, reconnecting, stopping, swapping.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Instant;

use common::toy::Toy;
use common::*;
use protocol::*;

fn seqs(tokens: &[TokenEntry]) -> Vec<u64> {
    tokens.iter().map(|t| t.seq).collect()
}

#[test]
fn a_client_that_reconnects_in_the_middle_of_a_run_loses_no_token() {
    let room = Room::new();
    let mut a = room.with_toy(&Toy::default());
    let node = a.started(send("go", endless()));
    a.tokens_of(node, 50);
    let hello = a.resume(false);
    let before = a.told.tokens.clone();
    drop(a);
    // The host goes on without the one who asked: a viewer sees that.
    let mut other = room.client();
    other.tokens_of(node, 50);
    drop(other);
    let mut b = Client::greeted(room.host(), hello);
    assert!(
        matches!(b.welcome, Some(Welcome::Accepted { driver: true, .. })),
        "the seat was free"
    );
    b.tokens_of(node, 50);
    b.done(Request::Stop);
    let end = b.ended(node);
    assert_eq!(end.finish, FinishView::Cancelled);
    b.until("all tokens", |b| before.len() + b.told.tokens.len() == end.tokens.len());
    let mut all = before;
    all.extend(b.told.tokens.clone());
    assert_eq!(seqs(&all), (1..=all.len() as u64).collect::<Vec<_>>());
    assert!(
        all.iter()
            .enumerate()
            .all(|(i, t)| t.node == node && t.index as usize == i)
    );
    // Half a character at the very end becomes text only with the end.
    let shown = |t: &TokenInfo| (t.token, t.position, t.logprob.to_bits());
    assert!(all.iter().map(|t| shown(&t.info)).eq(end.tokens.iter().map(shown)));
    let text: String = all.iter().map(|t| t.info.text.as_str()).collect();
    assert!(end.text.starts_with(&text));
    assert_eq!(b.told.steps_lost, 0);
}

#[test]
fn a_fresh_client_gets_the_text_whole_and_goes_on_from_there() {
    let room = Room::new();
    let mut a = room.with_toy(&Toy::default());
    let node = a.started(send("go", endless()));
    a.tokens_of(node, 30);
    let mut b = room.client();
    let doc = b.doc();
    let had = doc.nodes[node as usize].tokens.len();
    assert!(had >= 30 && doc.nodes[node as usize].finish == FinishView::Running);
    b.until("more", |b| b.told.tokens.iter().any(|t| t.seq > doc.token_seq));
    // What comes twice is recognised by its number.
    let first_new = b.told.tokens.iter().find(|t| t.seq > doc.token_seq).unwrap();
    assert_eq!(first_new.index as usize, had);
    // Telemetry from before it came is there, too.
    assert!(b.told.steps.len() >= 30);
    a.done(Request::Stop);
}

#[test]
fn viewers_only_look_on_until_they_take_over() {
    let room = Room::new();
    let mut driver = room.with_toy(&Toy::default());
    let mut viewer = room.client();
    assert!(matches!(viewer.welcome, Some(Welcome::Accepted { driver: false, .. })));
    viewer.until("two", |v| v.told.state.as_ref().is_some_and(|s| s.clients == 2));
    for request in [
        send("x", spec(1)),
        Request::Stop,
        Request::NewDoc(DocKind::Text),
        Request::EditRecipe(Vec::new()),
        Request::CloseModel,
        Request::SetSettings(Box::default()),
        Request::ExportComparison {
            job: JobId(1),
            folder: "/x".into(),
        },
    ] {
        let e = viewer.ask(request).unwrap_err();
        assert_eq!(e.kind, ErrorKind::Refused);
        assert!(e.remedy.contains("Take over"), "{e}");
    }
    // Looking is allowed.
    for request in [
        Request::GetDoc,
        Request::GetTree,
        Request::ListDocs,
        Request::CountTokens("abc".into()),
    ] {
        viewer.ask(request).unwrap();
    }
    viewer.done(Request::TakeOver);
    viewer.until("the seat", |v| v.told.state.as_ref().is_some_and(|s| s.driver));
    driver.until("the loss", |d| d.told.state.as_ref().is_some_and(|s| !s.driver));
    viewer.written(send("x", spec(1)));
    assert!(driver.ask(Request::Stop).is_err());

    // The seat of a driver that left is free for whoever comes next; others stay what they are.
    drop(viewer);
    driver.until("alone", |d| d.told.state.as_ref().is_some_and(|s| s.clients == 1));
    let next = room.client();
    assert!(matches!(next.welcome, Some(Welcome::Accepted { driver: true, .. })));
    let taker = Client::greeted(
        room.host(),
        Hello {
            take_over: true,
            ..Hello::new("test")
        },
    );
    assert!(matches!(taker.welcome, Some(Welcome::Accepted { driver: true, .. })));
}

#[test]
fn stopping_keeps_what_was_written() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let node = c.started(send("go", endless()));
    c.tokens_of(node, 10);
    c.done(Request::Stop);
    let end = c.ended(node);
    assert_eq!(end.finish, FinishView::Cancelled);
    assert!(!end.text.is_empty());
    // The command says how far it came.
    let command = c.doc().command;
    assert!(
        command.contains(&format!("--max-tokens {}", end.tokens.len())),
        "{command}"
    );
    // Stopping nothing is no error, and harms nothing that comes later.
    c.done(Request::Stop);
    assert_eq!(c.written(send("again", spec(3))).tokens.len(), 3);
}

#[test]
fn a_new_message_stops_the_one_being_written() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let first = c.started(send("go", endless()));
    c.tokens_of(first, 5);
    let second = c.written(send("something else", spec(4)));
    assert_eq!(c.ended(first).finish, FinishView::Cancelled);
    assert_eq!(second.tokens.len(), 4);
}

#[test]
fn a_recipe_is_in_force_from_the_next_token_on() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let node = c.started(send("go", endless()));
    c.tokens_of(node, 20);
    let edit = |choice: &str| Edit {
        selector: "layers.1-2.kv_cache".into(),
        choice: ChoiceView {
            variant: choice.into(),
            options: Vec::new(),
        },
    };
    let Reply::Recipe(view) = c.ask(Request::EditRecipe(vec![edit("bf16")])).unwrap() else {
        panic!()
    };
    assert_eq!(view.changes.len(), 1);
    assert_eq!(view.converted_at.len(), 1);
    c.until("the swap", |c| {
        c.told.events.iter().any(|e| matches!(e, Event::Swapped { .. }))
    });
    let swap = c.told.events.iter().find_map(|e| match e {
        Event::Swapped {
            position,
            converted,
            hash,
        } => Some((*position, *converted, hash.clone())),
        _ => None,
    });
    let (position, converted, hash) = swap.unwrap();
    assert!(converted > 0 && hash == view.hash && view.converted_at == [position]);
    c.until("tokens under it", |c| c.told.tokens.iter().any(|t| t.info.recipe == 1));
    c.done(Request::Stop);
    let end = c.ended(node);
    assert_eq!(end.recipes.len(), 2);
    assert_eq!(end.recipes[1], hash);
    for t in &end.tokens {
        assert_eq!(
            t.recipe,
            u16::from(t.position > position),
            "position {} of swap {position}",
            t.position
        );
    }
    assert!(c.doc().command.contains("# the recipe was changed"));

    // All or none, with the reason.
    let e = c
        .ask(Request::EditRecipe(vec![edit("f32"), edit("nonsense")]))
        .unwrap_err();
    assert!(e.what.contains("nonsense"), "{e}");
    assert_eq!(c.state().recipe.unwrap().hash, hash);
    let e = c.ask(Request::SetRecipe("{".into())).unwrap_err();
    assert_eq!(e.kind, ErrorKind::Input);

    // Computed anew, nothing is converted any more.
    assert_eq!(c.job(Request::ReplayText), JobState::Done);
    c.until("a clean recipe", |c| {
        c.told
            .state
            .as_ref()
            .is_some_and(|s| s.recipe.as_ref().is_some_and(|r| r.converted_at.is_empty()))
    });
    let Reply::Recipe(back) = c.ask(Request::SetRecipe("{\"schema\":1}".into())).unwrap() else {
        panic!()
    };
    assert!(back.changes.is_empty());
}

#[test]
fn slow_clients_get_larger_updates_and_count_what_they_missed() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    c.done(Request::SetSettings(Box::new(Settings {
        telemetry_steps: 64,
        ..Settings::default()
    })));
    let mut slow = room.client();
    slow.state();
    let seen = slow.told.updates;
    let node = c.written(send("go", spec(1500)));
    assert_eq!(node.tokens.len(), 1500);
    // It looks now for the first time: all tokens, the last steps, few updates.
    slow.until("the end", |s| s.told.tokens.len() == 1500);
    assert!(slow.told.updates - seen <= 4, "{} updates", slow.told.updates - seen);
    slow.until("the steps", |s| s.told.last_step >= 1500);
    assert_eq!(slow.told.steps.len() as u64 + slow.told.steps_lost, slow.told.last_step);
    assert!(slow.told.steps_lost > 0 && slow.told.steps.len() <= 64);
}

#[test]
fn updates_come_at_most_once_a_frame() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let node = c.started(send("go", endless()));
    c.tokens_of(node, 1);
    let (begin, before) = (Instant::now(), c.told.updates);
    // Fetched as fast as can be: there are no more of them than frames have passed, however long that takes.
    c.until("updates", |c| c.told.updates >= before + 12);
    let got = (c.told.updates - before) as u64;
    let frames = begin.elapsed().as_millis() as u64 / FRAME_MS + 2;
    assert!(got <= frames, "{got} updates in {frames} frames");
    c.done(Request::Stop);
}

#[test]
fn telemetry_has_every_step_and_ops_are_timed_on_request() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    c.done(Request::SetOpTiming(true));
    let node = c.written(send("hello", spec(40)));
    c.until("all steps", |c| {
        c.told.steps.iter().filter(|s| s.tokens == 1).count() >= 39
    });
    assert!(c.told.steps.iter().all(|s| s.layers.len() == 3));
    assert_eq!(c.told.steps_lost, 0);
    assert!(c.state().op_timing);
    let context = node.tokens.last().unwrap().position;
    let Reply::Plan(plan) = c.ask(Request::GetPlan { tokens: 1, context }).unwrap() else {
        panic!()
    };
    let timed = plan
        .ops
        .iter()
        .filter(|o| o.time.is_some_and(|t| t.nanos > 0.0 && t.steps > 0))
        .count();
    assert!(timed * 2 > plan.ops.len(), "{timed} of {} ops", plan.ops.len());
    c.done(Request::SetOpTiming(false));
}

#[test]
fn a_model_that_fails_half_way_keeps_what_it_wrote() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy {
        poison: Some(b'q'),
        ..Toy::default()
    });
    // Drawn long enough, the letter comes.
    let node = c.written(send("go", endless()));
    assert_eq!(node.finish, FinishView::Failed);
    assert!(
        node.text.ends_with('q') && node.text.matches('q').count() == 1,
        "{}",
        node.text
    );
    let joined: String = node.tokens.iter().map(|t| t.text.as_str()).collect();
    assert_eq!(joined, node.text);
    let e = node.error.unwrap();
    assert!(e.what.contains("NaN") && !e.details.is_empty(), "{e}");
    // The model is still there, and what is written next is not touched by what went wrong.
    assert!(c.state().loaded().is_some());
    let next = c.written(Request::Generate {
        node: Some(node.id),
        spec: spec(1),
    });
    assert_eq!(next.finish, FinishView::MaxTokens);
    assert!(next.tokens[0].logprob.is_finite());
}
