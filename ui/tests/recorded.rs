//! What stands at the top of the window: a recorded run and the way out of it, an engine that ended and the way back.

mod common;

use common::{Look, desk};
use protocol::{ModelSource, Request};
use ui::platform::PlatformEvent;
use ui::testing::Scene;

const WORDS: &str = "A recorded run: MODEL1-mini on NVIDIA H100, 79 GiB, CUDA 13.0, 2026-11-26 08:15 (UTC).";

fn opened(scene: &Scene) -> Option<Request> {
    scene.last(|r| matches!(r, Request::OpenModel { .. }))
}

#[test]
fn it_is_said_and_can_be_left() {
    let scene = Scene::finished();
    scene.edit(|s| s.recorded = WORDS.into());
    let mut d = desk(scene.clone(), Look::default());
    d.must_say(WORDS);
    d.shot("recorded-dark");
    d.click("Leave it");
    assert_eq!(
        scene.last(|r| matches!(r, Request::CloseModel)),
        Some(Request::CloseModel)
    );
}

#[test]
fn an_engine_that_ended_is_said_and_started_again() {
    let scene = Scene::finished();
    scene.edit(|s| s.state.engine_ended = "The GPU process ended: signal 9.".into());
    let mut d = desk(scene.clone(), Look::default());
    d.must_say("The GPU process ended: signal 9. The text is safe.");
    d.shot("engine-ended-dark");
    d.click("Restart engine");
    assert_eq!(
        scene.last(|r| matches!(r, Request::RestartEngine)),
        Some(Request::RestartEngine)
    );
}

#[test]
fn a_run_is_shown_at_once() {
    let scene = Scene::start();
    let mut d = desk(scene.clone(), Look::default());
    assert!(!d.says("recorded run"));
    let run = |path: &str| {
        Some(Request::OpenModel {
            source: ModelSource::Path(path.into()),
            context: 0,
        })
    };
    d.platform.say(PlatformEvent::Dropped(vec!["/runs/flow.m1run".into()]));
    d.frames(3);
    assert_eq!(opened(&scene), run("/runs/flow.m1run"));
    d.write("Path of a model", "/runs/other.M1RUN");
    d.click("Look at this path");
    d.frames(3);
    assert_eq!(opened(&scene), run("/runs/other.M1RUN"));
    // A model's card first says what it takes.
    d.platform.say(PlatformEvent::Picked("/models/tiny".into()));
    d.frames(3);
    assert_eq!(opened(&scene), run("/runs/other.M1RUN"));
}
