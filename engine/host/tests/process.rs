//! The engine in a process of its own, behind the host: whatever becomes of the process, no text is lost, everybody is told
//! what happened, and the text goes on as if nothing had.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(target_os = "linux")]

mod common;

use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use common::toy::Toy;
use common::*;
use engine::worker::Mode;
use host::{Host, HostOptions};
use protocol::*;

/// One test at a time: processes of engines are told apart by who started them.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Processes of engines that this test started.
fn engines() -> Vec<u32> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of =
        |task: std::io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("children")).ok();
    let all: String = tasks.filter_map(of).collect();
    all.split_whitespace().map(|p| p.parse().unwrap()).collect()
}

fn kill(pid: u32) {
    // It may be gone already.
    let _ = Command::new("kill").args(["-KILL", &pid.to_string()]).output().unwrap();
}

fn room(mode: Mode) -> (Room, Client) {
    let mut room = Room::new();
    room.stop();
    let options = HostOptions {
        worker: mode,
        ..room.options()
    };
    room.host = Some(Arc::new(Host::start(options).unwrap()));
    let client = room.with_toy(&Toy::default());
    (room, client)
}

/// Tokens of a text of so many, written in this process.
fn undisturbed(tokens: u64) -> Vec<u32> {
    let (_room, mut c) = room(Mode::Off);
    let node = c.written(send("go", drawn(tokens)));
    node.tokens.iter().map(|t| t.token).collect()
}

fn drawn(tokens: u64) -> GenerateSpec {
    GenerateSpec {
        max_tokens: tokens,
        ..endless()
    }
}

fn tokens(node: &NodeView) -> Vec<u32> {
    node.tokens.iter().map(|t| t.token).collect()
}

fn was_said(c: &Client, part: &str) -> bool {
    c.told.notices.iter().any(|n| n.text.contains(part))
}

fn ended(c: &Client) -> String {
    c.told.state.as_ref().map_or(String::new(), |s| s.engine_ended.clone())
}

#[test]
fn a_text_goes_on_after_the_process_is_killed() {
    let _turn = turn();
    let (_room, mut c) = room(Mode::On);
    let engine = engines();
    assert_eq!(engine.len(), 1);
    let node = c.started(send("go", endless()));
    c.tokens_of(node, 200);
    kill(engine[0]);
    c.until("the news", |c| was_said(c, "The engine process ended: signal 9"));
    c.until("the restart", |c| was_said(c, "started again with the same recipe"));
    let so_far = c.told.tokens.len();
    c.tokens_of(node, so_far + 50);
    c.done(Request::Stop);
    let node = c.ended(node);
    assert_eq!(node.finish, FinishView::Cancelled);
    c.until("no complaint", |c| ended(c).is_empty());
    let all = tokens(&node);
    assert!(all.len() > 250);
    assert_eq!(all, undisturbed(all.len() as u64), "as if nothing had happened");
    assert!(
        engines() != engine && engines().len() == 1,
        "the old one was waited for"
    );
}

#[test]
fn a_process_that_ends_again_waits_for_somebody_to_start_it() {
    let _turn = turn();
    let (_room, mut c) = room(Mode::On);
    let node = c.started(send("go", endless()));
    c.tokens_of(node, 100);
    // Every process is killed as soon as it is there, until the message is given up.
    let over = |c: &Client| c.told.events.iter().any(|e| matches!(e, Event::Finished { .. }));
    c.until("the end", |c| {
        engines().into_iter().for_each(kill);
        over(c)
    });
    let node = c.ended(node);
    let error = node.error.clone().unwrap();
    assert_eq!(node.finish, FinishView::Failed);
    assert!(
        error.kind == ErrorKind::Resource && error.what.contains("The engine process"),
        "{error}"
    );
    assert!(node.tokens.len() >= 100, "{error}");
    c.until("the reason", |c| ended(c).contains("signal 9"));

    assert_eq!(c.job(Request::RestartEngine), JobState::Done);
    c.until("no complaint", |c| ended(c).is_empty());
    let Reply::Started { node } = c
        .ask(Request::Generate {
            node: None,
            spec: drawn(400),
        })
        .unwrap()
    else {
        panic!()
    };
    let node = c.ended(node);
    let all = tokens(&node);
    assert_eq!(all, undisturbed(all.len() as u64), "as if nothing had happened");
}

#[test]
fn a_process_that_ends_in_idleness_is_said_and_comes_back_by_itself() {
    let _turn = turn();
    let (_room, mut c) = room(Mode::On);
    c.written(send("go", drawn(40)));
    let names = c.ask(Request::ListMetrics).unwrap();
    let Reply::Names(names) = names else { panic!() };
    assert!(!names.is_empty());
    let look = |c: &mut Client| match c.ask(Request::InspectMetric(names[0].clone())) {
        Ok(Reply::Metric(m)) => m.values,
        other => panic!("{other:?}"),
    };
    let before = look(&mut c);
    engines().into_iter().for_each(kill);
    c.until("the news", |c| ended(c).contains("signal 9"));
    assert_eq!(look(&mut c), before);
    c.until("no complaint", |c| ended(c).is_empty());
    // The text, which the new process never saw, goes on.
    let more = c.written(Request::Generate {
        node: None,
        spec: drawn(60),
    });
    let all = tokens(&more);
    assert_eq!(all, undisturbed(all.len() as u64));
    // Changing the recipe of a text whose process is gone is remembered.
    engines().into_iter().for_each(kill);
    c.until("the news", |c| ended(c).contains("signal 9"));
    let edit = Edit {
        selector: "layers.*.kv_cache".into(),
        choice: ChoiceView {
            variant: "bf16".into(),
            options: Vec::new(),
        },
    };
    let Reply::Recipe(recipe) = c.ask(Request::EditRecipe(vec![edit.clone()])).unwrap() else {
        panic!()
    };
    assert_eq!(recipe.changes, [edit]);
    let more = c.written(Request::Generate {
        node: None,
        spec: drawn(20),
    });
    assert!(more.error.is_none());
}

#[test]
fn an_engine_in_this_program_has_nothing_to_start_again() {
    let _turn = turn();
    let (_room, mut c) = room(Mode::Off);
    assert!(engines().is_empty());
    let JobState::Failed(e) = c.job(Request::RestartEngine) else {
        panic!()
    };
    assert!(
        e.kind == ErrorKind::Refused && e.what.contains("runs in this program"),
        "{e}"
    );
}

#[test]
fn closing_a_model_ends_its_process() {
    let _turn = turn();
    let (room, mut c) = room(Mode::On);
    assert_eq!(engines().len(), 1);
    c.done(Request::CloseModel);
    assert_eq!(engines().len(), 0);
    drop(c);
    drop(room);
}

#[test]
fn weights_are_stored_otherwise_there() {
    let _turn = turn();
    let edit = |slot: &str| Edit {
        selector: slot.into(),
        choice: ChoiceView {
            variant: "fp8".into(),
            options: Vec::new(),
        },
    };
    let texts = [Mode::Off, Mode::On].map(|mode| {
        let (_room, mut c) = room(mode);
        assert_eq!(c.state().restored_bytes, 0);
        c.ask(Request::EditRecipe(vec![edit("weights.ffn"), edit("weights.lm_head")]))
            .unwrap();
        c.until("their bytes", |c| {
            c.told.state.as_ref().is_some_and(|s| s.restored_bytes > 0)
        });
        let job = |c: &Client| c.told.jobs.iter().find(|j| j.kind == JobKind::Store).cloned();
        c.until("the job", |c| job(c).is_some_and(|j| c.job_over(j.id)));
        let job = job(&c).unwrap();
        assert_eq!(
            (job.state, job.done, job.total),
            (JobState::Done, job.total, c.state().restored_bytes)
        );
        // A process that is started anew has to store them once more.
        engines().into_iter().for_each(kill);
        tokens(&c.written(send("go", drawn(40))))
    });
    assert_eq!(texts[0], texts[1]);
}
