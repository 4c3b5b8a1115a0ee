//! The comparison of two recipes.

mod common;
mod solo;

use common::{Desk, Look};
use egui_kittest::kittest::Queryable;
use protocol::{
    CompareText, ErrorInfo, ErrorKind, JobId, JobKind, JobState, JobView, RecipeRef, Reply, Request, Update,
};
use solo::{click, solo, solo_as};
use ui::testing::{self, Scene};

const SIZE: [f32; 2] = [1100.0, 1240.0];
const RUN: &str = "Compare A and B";

fn job(state: JobState, done: u64) -> Update {
    let job = JobView {
        id: JobId(9),
        kind: JobKind::Compare,
        what: "comparing A with B".into(),
        done,
        total: 768,
        unit: "tokens".into(),
        state,
    };
    Update {
        jobs: vec![job],
        ..Update::default()
    }
}

/// Compares and lets the comparison end.
fn done(scene: Scene, look: Look) -> Desk {
    let mut d = solo_as(scene, "compare", look);
    click(&mut d, RUN);
    d.scene.push(job(JobState::Done, 768));
    d.frames(6);
    d
}

fn has(d: &Desk, part: &str) -> bool {
    d.says(part)
}

fn names(d: &Desk, part: &str) -> Vec<String> {
    d.said(part)
}

#[test]
fn an_empty_panel_names_what_fills_it_and_the_built_in_story_needs_no_text() {
    let mut d = solo(Scene::empty(), "compare", SIZE, true);
    assert!(has(&d, "Press Compare A and B"));
    assert!(has(&d, "A and B are the same recipe"));
    d.shot("compare-empty-dark");
    click(&mut d, RUN);
    match d.scene.last(|r| matches!(r, Request::Compare(_))) {
        Some(Request::Compare(spec)) => {
            assert_eq!((spec.a, spec.b), (RecipeRef::Own, RecipeRef::Current));
            assert_eq!(spec.text, CompareText::Builtin);
            assert_eq!(spec.positions, 512);
            assert!(!spec.isolate);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_running_comparison_says_how_far_it_is_and_stops() {
    let mut d = solo(Scene::finished(), "compare", SIZE, true);
    click(&mut d, RUN);
    d.scene.push(job(JobState::Running, 192));
    d.frames(4);
    assert!(has(&d, "Comparing: 192 of 768 tokens"), "{:?}", names(&d, "Comparing"));
    d.shot("compare-running-dark");
    click(&mut d, "Stop");
    assert_eq!(d.scene.count(|r| matches!(r, Request::CancelJob(JobId(9)))), 1);
    let error = ErrorInfo::new(ErrorKind::Cancelled, "The comparison was cancelled.");
    d.scene.push(job(JobState::Failed(error), 200));
    d.frames(4);
    assert!(has(&d, "was stopped; nothing was changed"));
    assert!(has(&d, RUN), "it can be started again");
}

#[test]
fn a_failed_comparison_says_why_and_the_form_stays() {
    let mut d = solo(Scene::finished(), "compare", SIZE, false);
    click(&mut d, RUN);
    let error = ErrorInfo::new(
        ErrorKind::Resource,
        "4 caches of 512 tokens need 3.1 GiB; 1.2 GiB are free.",
    )
    .remedy("Compare fewer positions.");
    d.scene.push(job(JobState::Failed(error), 0));
    d.frames(4);
    assert!(has(&d, "4 caches of 512 tokens") && has(&d, "Compare fewer positions.") && has(&d, "Copy details"));
    d.harness.get_by_label(RUN);
    d.shot("compare-failed-light");
}

#[test]
fn a_refused_comparison_says_why() {
    let mut d = solo(Scene::failing(), "compare", SIZE, true);
    click(&mut d, RUN);
    assert!(has(&d, "The engine process ended while it computed this."));
    d.harness.get_by_label(RUN);
}

#[test]
fn figures_of_both_sides_and_their_difference() {
    for (dark, zoom, name) in [
        (true, 1.0, "dark"),
        (false, 1.0, "light"),
        (true, 2.0, "dark-zoom2"),
        (false, 2.0, "light-zoom2"),
    ] {
        let mut d = done(Scene::finished(), Look { size: SIZE, dark, zoom });
        let r = testing::comparison();
        let bytes = |i: usize| ui::fmt::bytes(r.sides[i].kv.total()).plain();
        assert!(
            has(&d, &format!("A KV cache: {}", bytes(0))),
            "{:?}",
            names(&d, "KV cache")
        );
        assert!(has(&d, &format!("B KV cache: {}", bytes(1))));
        let more = ui::fmt::signed_bytes(r.sides[1].kv.total() as i64 - r.sides[0].kv.total() as i64).plain();
        assert!(
            has(&d, &format!("Difference KV cache: {more}")),
            "{more} {:?}",
            names(&d, "Difference")
        );
        assert!(has(&d, "A decode: 316\u{2009}tok/s"));
        assert!(
            has(&d, "KL(A||B) mean: 0.000900\u{2009}nats"),
            "{:?}",
            names(&d, "KL(A")
        );
        assert!(has(&d, "same top-1: 99.2%"));
        assert!(has(&d, "first split: token 143"));
        assert!(has(&d, "noise floor A||A: 0\u{2009}nats"));
        assert!(has(&d, "kv_cache bf16 (layers 3–6)"), "{:?}", names(&d, "kv_cache"));
        d.shot(&format!("compare-done-{name}"));
        if zoom == 1.0 {
            for part in [
                "teacher-forced",
                "KL(A||B)",
                "256 positions",
                "fp8 weights, f32 arithmetic on CPU",
                "measured",
            ] {
                assert!(has(&d, part), "{part}");
            }
            d.harness.check_accessibility();
        }
    }
}

#[test]
fn the_worst_token_is_one_click_away_from_its_layers() {
    let mut d = done(
        Scene::finished(),
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    let rows = names(&d, "token 143");
    assert!(rows.iter().any(|r| r.contains("KL 0.08")), "{rows:?}");
    let name = rows.into_iter().find(|r| r.contains("KL 0.08")).unwrap();
    click(&mut d, &name);
    assert!(has(&d, "Layers, at token 143"));
    let drift = names(&d, "Drift of layer 6");
    assert_eq!(drift.len(), 1);
    assert!(drift[0].contains("35.9 dB"), "{drift:?}");
    assert!(names(&d, "Drift of layer 0")[0].contains("equal"));
}

#[test]
fn the_first_split_says_what_each_side_would_write_and_leads_there() {
    let mut d = done(
        Scene::finished(),
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    let said = d.said("margin 0.000600, near tie");
    assert!(
        said.iter()
            .any(|s| s.starts_with("A \" deep\" B ") && !s.contains("B \" deep\"")),
        "{said:?}"
    );
    let rect = d.harness.get_by_label_contains("first split: token 143").rect();
    d.harness.hover_at(rect.center());
    d.frames(2);
    d.harness.drag_at(rect.center());
    d.harness.drop_at(rect.center());
    d.frames(4);
    d.must_say("Layers, at token 143");
}

#[test]
fn text_and_map_say_how_large_they_are() {
    let mut d = done(
        Scene::finished(),
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    assert!(has(&d, "Text coloured by KL: 256 tokens"));
    assert!(has(&d, "Drift by layer and token: 7 layers, 256 positions"));
    let rect = d.harness.get_by_label_contains("Text coloured by KL: 256").rect();
    d.harness.hover_at(egui::pos2(rect.left() + 60.0, rect.top() + 30.0));
    d.frames(12);
    assert!(has(&d, "KL(A||B) after it"), "the tooltip of a token");
    assert!(has(&d, "p of the next"));
    d.shot("compare-hover-dark");
}

#[test]
fn changes_are_isolated_on_request() {
    let scene = Scene::finished();
    scene.answer(|r| match r {
        Request::GetComparison(_) => {
            let mut result = testing::comparison();
            result.isolate.clear();
            result.spec.isolate = false;
            Some(Ok(Reply::Compared(Box::new(result))))
        }
        _ => None,
    });
    let mut d = done(
        scene,
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    assert!(!has(&d, "A with one change alone"));
    click(&mut d, "Isolate one change");
    match d.scene.last(|r| matches!(r, Request::Compare(_))) {
        Some(Request::Compare(spec)) => assert!(spec.isolate),
        other => panic!("{other:?}"),
    }
    let d = done(
        Scene::finished(),
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    assert!(
        has(&d, "kv_cache bf16 (layer 6), was fp8_model1: mean KL 0.000600"),
        "{:?}",
        names(&d, "was fp8")
    );
}

#[test]
fn evidence_goes_to_a_folder_or_into_a_zip() {
    let mut d = done(
        Scene::finished(),
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    click(&mut d, "Export evidence");
    match d.scene.last(|r| matches!(r, Request::ExportComparison { .. })) {
        Some(Request::ExportComparison { job, folder }) => {
            assert_eq!(
                (job, folder.as_str()),
                (JobId(9), "~/model1-evidence/compare-9c41-51b0")
            );
        }
        other => panic!("{other:?}"),
    }
    assert!(has(
        &d,
        "1 file written; open ~/model1-evidence/compare-9c41-51b0/report.html"
    ));
    click(&mut d, "Save as ZIP");
    assert_eq!(
        d.platform.asked().saved,
        [("comparison.zip".to_string(), b"PK".to_vec())]
    );
    d.shot("compare-exported-dark");
}

#[test]
fn a_folder_that_is_taken_is_said_and_another_one_suggested() {
    let scene = Scene::finished();
    scene.answer(|r| match r {
        Request::ExportComparison { .. } => Some(Err(ErrorInfo::new(
            ErrorKind::Input,
            "The folder exists and is not empty.",
        ))),
        _ => None,
    });
    let mut d = done(
        scene,
        Look {
            size: SIZE,
            ..Look::default()
        },
    );
    click(&mut d, "Export evidence");
    d.must_say("The folder exists and is not empty.");
    d.must_say("~/model1-evidence/compare-9c41-51b0-2");
}

#[test]
fn sides_are_chosen_swapped_and_written() {
    let mut d = solo(Scene::finished(), "compare", SIZE, true);
    let b = names(&d, "Recipe B:")[0].clone();
    click(&mut d, &b);
    d.shot("compare-menu-dark");
    click(&mut d, "bf16 cache");
    assert!(has(&d, "Recipe B: preset bf16 cache"), "{:?}", names(&d, "Recipe B"));
    click(&mut d, "Swap A and B");
    assert!(has(&d, "Recipe A: preset bf16 cache"));
    click(&mut d, RUN);
    match d.scene.last(|r| matches!(r, Request::Compare(_))) {
        Some(Request::Compare(spec)) => {
            let json = r#"{"schema":1,"set":{"layers.*.kv_cache":"bf16"}}"#;
            assert_eq!((spec.a, spec.b), (RecipeRef::Json(json.into()), RecipeRef::Own));
            assert_eq!(spec.text, CompareText::Current);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_story_is_written_first_and_then_compared() {
    let mut d = solo(Scene::finished(), "compare", SIZE, true);
    click(&mut d, "new story");
    d.shot("compare-story-dark");
    d.click(&ui::testing::loaded().starters[1]);
    d.scene.answer(|r| match r {
        Request::Send { .. } => Some(Ok(Reply::Started { node: 3 })),
        _ => None,
    });
    d.scene.change(|s| s.writing = None);
    click(&mut d, RUN);
    d.frames(6);
    assert_eq!(
        d.scene.count(|r| matches!(r, Request::NewDoc(protocol::DocKind::Text))),
        1
    );
    match d.scene.last(|r| matches!(r, Request::Send { .. })) {
        Some(Request::Send { text, spec }) => {
            assert_eq!(text, ui::testing::loaded().starters[1]);
            assert_eq!(spec.max_tokens, 512);
        }
        other => panic!("{other:?}"),
    }
    // The scripted text's message 3 is finished: its comparison follows.
    match d.scene.last(|r| matches!(r, Request::Compare(_))) {
        Some(Request::Compare(spec)) => assert_eq!(spec.text, CompareText::Current),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_story_that_cannot_be_written_says_why() {
    let scene = Scene::finished();
    scene.answer(|r| match r {
        Request::Send { .. } => Some(Err(ErrorInfo::new(ErrorKind::Input, "The prompt is too long."))),
        _ => None,
    });
    let mut d = solo(scene, "compare", SIZE, true);
    click(&mut d, "new story");
    click(&mut d, RUN);
    d.frames(6);
    assert!(has(&d, "The prompt is too long."));
    assert_eq!(d.scene.count(|r| matches!(r, Request::Compare(_))), 0);
    d.harness.get_by_label(RUN);
}

#[test]
fn an_edit_is_written_in_place() {
    let mut d = solo(Scene::finished(), "compare", SIZE, true);
    let b = names(&d, "Recipe B:")[0].clone();
    click(&mut d, &b);
    click(&mut d, "edits…");
    let field = "layers of the edit of B";
    d.harness.get_by_label(field).click();
    d.frames(2);
    d.harness.get_by_label(field).type_text("3-6");
    d.frames(3);
    click(&mut d, "Add the edit to B");
    assert!(has(&d, "kv_cache bf16 (layers 3–6)"), "{:?}", names(&d, "kv_cache"));
    d.shot("compare-edit-dark");
    click(&mut d, RUN);
    match d.scene.last(|r| matches!(r, Request::Compare(_))) {
        Some(Request::Compare(spec)) => {
            let json = r#"{"schema":1,"set":{"layers.3-6.kv_cache":"bf16"}}"#;
            assert_eq!(spec.b, RecipeRef::Json(json.into()));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_pasted_text_is_compared_and_a_huge_one_is_cut() {
    let mut d = solo(Scene::finished(), "compare", SIZE, true);
    click(&mut d, "pasted text");
    d.must_say("paste a text");
    d.harness.get_by_label("Text both sides read").focus();
    d.frames(2);
    d.harness.event(egui::Event::Paste("Once upon a time. ".repeat(60_000)));
    d.frames(3);
    click(&mut d, RUN);
    match d.scene.last(|r| matches!(r, Request::Compare(_))) {
        Some(Request::Compare(spec)) => match spec.text {
            CompareText::Given(text) => assert_eq!(text.chars().count(), 200_000),
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_small_window_still_compares() {
    for dark in [true, false] {
        let mut d = done(
            Scene::finished(),
            Look {
                size: [400.0, 700.0],
                dark,
                zoom: 1.0,
            },
        );
        assert!(has(&d, "A KV cache:"));
        d.shot(if dark {
            "compare-narrow-dark"
        } else {
            "compare-narrow-light"
        });
    }
}

#[test]
fn a_viewer_looks_but_does_not_compare() {
    let scene = Scene::finished();
    scene.edit(|s| s.state.driver = false);
    let mut d = solo(scene, "compare", SIZE, true);
    assert!(has(&d, "another window is in control"));
    d.harness.get_by_label(RUN).click();
    d.frames(3);
    assert_eq!(d.scene.count(|r| matches!(r, Request::Compare(_))), 0);
}

#[test]
fn a_reloaded_page_finds_the_comparison_again() {
    let scene = Scene::finished();
    scene.edit(|s| s.jobs.extend(job(JobState::Done, 768).jobs));
    let mut d = solo(scene, "compare", SIZE, true);
    d.frames(4);
    assert!(has(&d, "first split: token 143"));
}

#[test]
fn a_click_on_a_token_shows_where_drift_grows_and_a_click_on_a_layer_its_tokens() {
    for dark in [true, false] {
        let look = Look {
            size: SIZE,
            dark,
            ..Look::default()
        };
        let mut d = done(Scene::finished(), look);
        let r = testing::comparison();
        let worst = names(&d, "token 143")
            .into_iter()
            .find(|r| r.contains("KL 0.08"))
            .unwrap();
        click(&mut d, &worst);
        d.must_say("Layers, at token 143");
        // The layer in which drift grows most comes first.
        let (first, growth) = r.drift.growth(143)[0];
        let layers = names(&d, "Drift of layer");
        let grown = format!("+{}", ui::fmt::sig3(f64::from(growth)));
        assert!(
            layers[0].starts_with(&format!("Drift of layer {first} ")) && layers[0].contains(&grown),
            "{layers:?}"
        );
        click(&mut d, &layers[0]);
        d.must_say(&format!("Most drift after layer {first}"));
        let (top, value) = r.drift.most(first, 1)[0];
        let rows: Vec<String> = names(&d, " drift ")
            .into_iter()
            .filter(|r| r.starts_with("token "))
            .collect();
        let said = format!("drift {}", ui::fmt::sig3(f64::from(value)));
        assert!(
            rows[0].starts_with(&format!("token {top} ")) && rows[0].ends_with(&said),
            "{said}: {:?}",
            rows.first()
        );
        d.shot(&format!("compare-layer-{}", if dark { "dark" } else { "light" }));
        // Back to other lists: first divergences, in the order of the text.
        let list = names(&d, "Order of the worst tokens")[0].clone();
        click(&mut d, &list);
        click(&mut d, "first divergences");
        assert!(names(&d, "token 143").iter().any(|r| r.contains("KL 0.08")));
        assert!(d.copies("copy all statistics").contains("RMS Δp"));
    }
}
