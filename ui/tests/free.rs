//! Both sides write their own text, in the Compare workspace.

mod common;
mod solo;

use common::{Desk, Look};
use protocol::{
    CompareText, ErrorInfo, ErrorKind, FreeMode, JobId, JobKind, JobState, JobView, RecipeRef, Reply, Request, Update,
};
use solo::solo_as;
use ui::testing::{self, Scene};

fn job(state: JobState, done: u64) -> Update {
    let job = JobView {
        id: JobId(13),
        kind: JobKind::FreeRun,
        what: "letting A and B write".into(),
        done,
        total: 256,
        unit: "tokens".into(),
        state,
    };
    Update {
        jobs: vec![job],
        ..Update::default()
    }
}

fn opened(dark: bool) -> (Desk, std::rc::Rc<std::cell::Cell<usize>>) {
    let scene = Scene::finished();
    let written = std::rc::Rc::new(std::cell::Cell::new(0));
    let own = written.clone();
    scene.answer(move |r| match r {
        Request::GetFreeRun { since, .. } => Some(Ok(Reply::FreeRun(Box::new(testing::free_run(own.get(), *since))))),
        _ => None,
    });
    let look = Look {
        size: [1180.0, 900.0],
        dark,
        ..Look::default()
    };
    let mut d = solo_as(scene, "compare", look);
    d.click("Free-running");
    (d, written)
}

fn theme(dark: bool) -> &'static str {
    if dark { "dark" } else { "light" }
}

#[test]
fn both_sides_write_while_one_watches_and_the_split_is_found() {
    for dark in [true, false] {
        let (mut d, written) = opened(dark);
        d.must_say("Each side writes its own text");
        d.shot(&format!("free-empty-{}", theme(dark)));
        d.click("Let both write");
        match d.scene.last(|r| matches!(r, Request::FreeRun(_))) {
            Some(Request::FreeRun(spec)) => {
                assert_eq!((spec.a, spec.b), (RecipeRef::Own, RecipeRef::Current));
                assert!(matches!(&spec.prompt, CompareText::Given(p) if p.contains("little dragon")));
                assert_eq!(
                    (spec.tokens, spec.temperature, spec.mode),
                    (128, 0.0, FreeMode::Lockstep)
                );
            }
            other => panic!("{other:?}"),
        }
        written.set(20);
        d.scene.push(job(JobState::Running, 40));
        d.frames(8);
        d.must_say("Writing: 40 of at most 256 tokens");
        d.must_say("Text of A: 20 tokens");
        d.must_say("first difference: nowhere");
        written.set(60);
        d.scene.push(job(JobState::Running, 120));
        d.frames(40);
        d.must_say("Text of B: 60 tokens");
        d.must_say("first difference: token 41");
        d.must_say("near tie");
        d.shot(&format!("free-running-{}", theme(dark)));
        let some = |r: &Request| matches!(r, Request::GetFreeRun { since: [20, 20], .. });
        assert_eq!(d.scene.count(some), 1, "only what is new is asked for");
        written.set(usize::MAX);
        d.scene.push(job(JobState::Done, 256));
        d.frames(8);
        d.must_say("join again at token: A 50  B 55");
        d.must_say("in common: 89.1%");
        d.must_say("as many as were asked for");
        d.must_say("free-running, greedy, in lockstep");
        d.harness.check_accessibility();
        d.shot(&format!("free-done-{}", theme(dark)));
        assert!(d.copies("copy the command").contains("--free-run 128"));
    }
}

#[test]
fn prompt_drawing_and_mode_are_chosen() {
    let (mut d, _) = opened(true);
    d.click("drawn");
    d.click("in turn");
    d.must_say("one cache at a time");
    d.click("built-in beginning");
    d.click("Let both write");
    match d.scene.last(|r| matches!(r, Request::FreeRun(_))) {
        Some(Request::FreeRun(spec)) => {
            assert_eq!(
                (spec.prompt, spec.temperature, spec.seed),
                (CompareText::Builtin, 0.8, 1)
            );
            assert_eq!(spec.mode, FreeMode::InTurn);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_was_written_stays_when_it_is_stopped_and_errors_are_said() {
    let (mut d, written) = opened(false);
    d.click("Let both write");
    written.set(30);
    d.scene.push(job(JobState::Running, 60));
    d.frames(8);
    d.click("Stop");
    assert_eq!(d.scene.count(|r| matches!(r, Request::CancelJob(JobId(13)))), 1);
    let error = ErrorInfo::new(ErrorKind::Cancelled, "Stopped on request.");
    d.scene.push(job(JobState::Failed(error), 60));
    d.frames(8);
    d.must_say("Stopped; what was written is below.");
    d.must_say("Text of A: 30 tokens");
    let error = ErrorInfo::new(ErrorKind::Resource, "Not enough memory: 2 caches of 138 tokens.")
        .remedy("Let the sides write in turn.");
    d.click("Let both write");
    d.scene.push(job(JobState::Failed(error), 0));
    d.frames(8);
    d.must_say("Let the sides write in turn.");
}
