//! Many recipes against one, in the Compare workspace.

mod common;
mod solo;

use common::{Desk, Look};
use protocol::{
    CompareText, ErrorInfo, ErrorKind, JobId, JobKind, JobState, JobView, RecipeRef, Reply, Request, Update,
};
use solo::{alone, solo_as};
use ui::testing::{self, Scene};

const SIZE: [f32; 2] = [1180.0, 1240.0];

fn job(state: JobState, done: u64) -> Update {
    let job = JobView {
        id: JobId(11),
        kind: JobKind::Sweep,
        what: "measuring recipes".into(),
        done,
        total: 17_408,
        unit: "tokens".into(),
        state,
    };
    Update {
        jobs: vec![job],
        ..Update::default()
    }
}

/// The sweep panel, and how many recipes its host has measured.
fn opened(look: Look) -> (Desk, std::rc::Rc<std::cell::Cell<usize>>) {
    let scene = Scene::finished();
    let measured = std::rc::Rc::new(std::cell::Cell::new(0));
    let own = measured.clone();
    scene.answer(move |r| match r {
        Request::GetSweep { since, .. } => Some(Ok(Reply::Sweep(Box::new(testing::sweep(own.get(), *since))))),
        _ => None,
    });
    let mut d = solo_as(scene, "compare", look);
    d.click("Sweep");
    (d, measured)
}

fn look(dark: bool) -> Look {
    Look {
        size: SIZE,
        dark,
        ..Look::default()
    }
}

fn done(dark: bool) -> Desk {
    let (mut d, measured) = opened(look(dark));
    d.click("Start sweep");
    measured.set(usize::MAX);
    d.scene.push(job(JobState::Done, 17_408));
    d.frames(8);
    d
}

#[test]
fn the_first_offer_can_be_swept_as_it_is() {
    for dark in [true, false] {
        let (mut d, _) = opened(look(dark));
        d.must_say("Press Start sweep to see what each costs");
        d.shot(&format!("sweep-empty-{}", if dark { "dark" } else { "light" }));
        d.harness.check_accessibility();
        d.click("Start sweep");
        match d.scene.last(|r| matches!(r, Request::Sweep(_))) {
            Some(Request::Sweep(spec)) => {
                assert_eq!(
                    (spec.a, spec.text, spec.positions),
                    (RecipeRef::Own, CompareText::Current, 512)
                );
                assert!(spec.axes[0].starts_with("layers.*.kv_cache="), "{:?}", spec.axes);
                assert!(spec.axes[1].starts_with("weights.lm_head="), "{:?}", spec.axes);
                assert_eq!((spec.presets, spec.per_layer, spec.budget), (false, true, Some(0.01)));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn axes_are_completed_and_checked_while_they_are_typed() {
    let (mut d, _) = opened(look(true));
    d.click("Remove axis 2");
    d.click("another axis");
    d.must_say("layers.*.attention");
    d.write("Axis 2", "layers.*.ffn=nonsense");
    d.must_say("ffn has no variant nonsense");
    assert!(!d.enabled("Start sweep"));
    d.shot("sweep-wrong-axis-dark");
    d.click("Remove axis 2");
    assert!(d.enabled("Start sweep"));
    d.click("another axis");
    d.click("layers.*.attention");
    d.must_say("choices are missing");
    d.click("dense");
    d.click("Start sweep");
    match d.scene.last(|r| matches!(r, Request::Sweep(_))) {
        Some(Request::Sweep(spec)) => assert_eq!(spec.axes[1], "layers.*.attention=dense"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn figures_arrive_while_it_runs_and_it_stops_and_goes_on() {
    for dark in [true, false] {
        let theme = if dark { "dark" } else { "light" };
        let (mut d, measured) = opened(look(dark));
        d.click("Start sweep");
        measured.set(4);
        d.scene.push(job(JobState::Running, 2_600));
        d.frames(8);
        d.must_say("Sweeping: 4 of 34 recipes");
        d.must_say("Recipe 3: layers.*.kv_cache=fp8_b64 weights.lm_head=bf16: mean KL 0.000900");
        d.must_say("208 of 512 positions read, KL so far");
        d.shot(&format!("sweep-running-{theme}"));
        let asked = |d: &Desk| d.scene.count(|r| matches!(r, Request::GetSweep { .. }));
        let before = asked(&d);
        d.frames(8);
        assert_eq!(asked(&d), before, "nothing new is asked for while nothing happens");
        measured.set(12);
        d.click("Stop");
        assert_eq!(d.scene.count(|r| matches!(r, Request::CancelJob(JobId(11)))), 1);
        let error = ErrorInfo::new(ErrorKind::Cancelled, "Stopped on request.");
        d.scene.push(job(JobState::Failed(error), 7_000));
        d.frames(8);
        // The sixth did not fit into memory.
        d.must_say("what was measured is kept. 11 of 34 recipes are there.");
        let since = |r: &Request| matches!(r, Request::GetSweep { since, .. } if *since > 0);
        assert!(d.scene.count(since) > 0, "only what changed is asked for");
        d.shot(&format!("sweep-stopped-{theme}"));
        d.click("Go on");
        let sweeps: Vec<Request> = d.scene.requests();
        let sweeps: Vec<&Request> = sweeps.iter().filter(|r| matches!(r, Request::Sweep(_))).collect();
        assert_eq!(sweeps.len(), 2);
    }
}

#[test]
fn a_finished_sweep_recommends_and_its_recipe_becomes_b_with_one_click() {
    for dark in [true, false] {
        let mut d = done(dark);
        d.must_say("Recommended within 0.0100 nats");
        d.must_say("KL against cost: 34 recipes");
        d.must_say("KL of one change by layer: kv_cache=bf16 costs most in layer");
        d.must_say("could not be measured: not enough memory");
        d.must_say("refused: layers.0.index_cache=fp4: layer 0 has no indexer");
        d.must_say("estimated by the plan");
        d.harness.check_accessibility();
        d.shot(&format!("sweep-done-{}", if dark { "dark" } else { "light" }));
        let name = d.said("Recipe 6: ")[0].clone();
        d.click(&name);
        d.must_say("Use as B");
        d.shot(&format!("sweep-chosen-{}", if dark { "dark" } else { "light" }));
        d.click("Use the recommended recipe as B");
        assert_eq!(
            d.scene.last(|r| matches!(r, Request::GetSweepRecipe { .. })),
            Some(Request::GetSweepRecipe {
                job: JobId(11),
                cell: 34
            })
        );
        d.frames(4);
        d.must_say("Recipe B: of a sweep: layers.0-3.kv_cache=fp4 weights.lm_head=fp8");
        d.click("Compare A and B");
        match d.scene.last(|r| matches!(r, Request::Compare(_))) {
            Some(Request::Compare(spec)) => assert_eq!(spec.b, RecipeRef::Json("{\"schema\":1}".into())),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_table_is_saved_and_the_command_copied() {
    let mut d = done(true);
    d.click("save the table");
    let saved = d.platform.asked().saved.clone();
    let (name, bytes) = &saved[0];
    let text = String::from_utf8(bytes.clone()).unwrap();
    assert_eq!((name.as_str(), text.lines().count()), ("sweep.csv", 36));
    assert!(
        text.lines()
            .any(|l| l.contains("one layer") && l.contains("layers.6.kv_cache=fp4")),
        "{text}"
    );
    assert!(
        d.copies("copy the command")
            .starts_with("model1 sweep --model bundled --sweep")
    );
}

#[test]
fn a_refused_sweep_says_why() {
    let mut d = solo_as(Scene::failing(), "compare", look(false));
    d.click("Sweep");
    d.click("Start sweep");
    d.must_say("The engine process ended while it computed this.");
    // Small windows and large letters keep everything in reach.
    let (mut d, _) = opened(Look {
        size: [720.0, 900.0],
        dark: true,
        zoom: 1.5,
    });
    alone(&mut d, "compare");
    d.shot("sweep-narrow-dark-zoom");
    assert!(d.has("Start sweep"));
}
