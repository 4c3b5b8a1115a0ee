//! The start screen: three cards, what fits, loading and why it failed.

mod common;

use common::{Desk, Look, desk};
use egui::{Key, Modifiers};
use egui_kittest::kittest::Queryable;
use protocol::{ErrorInfo, ErrorKind, JobId, JobState, JobView, ModelSource, Request, Update};
use ui::platform::PlatformEvent;
use ui::testing::Scene;

fn start() -> Desk {
    desk(Scene::start(), Look::default())
}

fn opened(d: &Desk) -> Option<Request> {
    d.scene.last(|r| matches!(r, Request::OpenModel { .. }))
}

#[test]
fn cards_say_what_they_hold_and_open_with_one_click() {
    let mut d = start();
    for words in [
        "MODEL1-mini",
        "bundled",
        "tells stories",
        "21.3\u{2009}M",
        "SmolLM2-135M-Instruct",
        "Apache-2.0",
        "93.5\u{2009}MiB",
        "Your own",
        "Hugging Face cache (1)",
        "CPU, 2 threads, AVX-512",
        "no NVIDIA driver found",
    ] {
        d.must_say(words);
    }
    assert_eq!(d.said("fits: ").len(), 2, "{:?}", d.said("fits: "));
    assert!(d.enabled("Fetch and chat"));
    d.click("why?");
    d.must_say("libcuda.so.1 is not on this machine");
    d.click("Tell a story");
    assert_eq!(
        opened(&d),
        Some(Request::OpenModel {
            source: ModelSource::Bundled,
            context: 0
        })
    );
}

#[test]
fn the_context_slider_moves_the_prediction() {
    let mut d = start();
    let asked = |d: &Desk| {
        d.scene
            .last(|r| matches!(r, Request::PredictMemory { context, .. } if *context > 0))
    };
    assert_eq!(asked(&d), None);
    let before = d.said("fits: ")[0].clone();
    d.harness.get_all_by_label("Context").next().expect("a slider").focus();
    d.frames(2);
    for _ in 0..8 {
        d.key(Modifiers::NONE, Key::ArrowLeft);
    }
    assert_eq!(
        asked(&d),
        Some(Request::PredictMemory {
            source: ModelSource::Bundled,
            context: 1024
        })
    );
    assert_ne!(d.said("fits: ")[0], before);
    d.must_say("1\u{2009}024");
    d.click("Tell a story");
    assert_eq!(
        opened(&d),
        Some(Request::OpenModel {
            source: ModelSource::Bundled,
            context: 1024
        })
    );
}

#[test]
fn what_does_not_fit_is_not_opened_and_says_why() {
    let mut d = start();
    d.click("Qwen3-4B");
    d.must_say("/home/ada/models/Qwen3-4B");
    d.must_say("does not fit: it needs ");
    assert!(!d.enabled("Open"));
    d.shot("start-does-not-fit");
    d.click("Another one");
    assert!(!d.says("does not fit"));
    d.click("Forget Qwen3-4B");
    assert!(
        d.scene
            .last(|r| matches!(r, Request::ForgetModel(p) if p == "/home/ada/models/Qwen3-4B"))
            .is_some()
    );
}

#[test]
fn own_models_come_by_dialog_path_name_and_drop() {
    let mut d = start();
    d.click("Folder");
    d.click("GGUF file");
    assert_eq!(d.platform.asked().dialogs, ["folder", "model"]);
    d.write("Repository", "Qwen/Qwen2.5-1.5B");
    d.click("Look at this repository");
    d.must_say("https://huggingface.co/Qwen/Qwen2.5-1.5B");
    d.click("Fetch and open");
    let hub = ModelSource::Hub("Qwen/Qwen2.5-1.5B".into());
    assert_eq!(
        opened(&d),
        Some(Request::OpenModel {
            source: hub,
            context: 0
        })
    );

    d.platform.say(PlatformEvent::Hover(vec!["/models/tiny".into()]));
    d.frames(2);
    d.shot("start-hover");
    d.platform.say(PlatformEvent::Dropped(vec!["/models/tiny".into()]));
    d.frames(4);
    d.must_say("/models/tiny");
    d.click("Another one");

    d.platform.say(PlatformEvent::Dropped(vec!["tiny.gguf".into()]));
    d.frames(4);
    d.must_say("A browser does not tell where a dropped file lies");
    d.write("Path of a model", "/models/other.gguf");
    d.key(Modifiers::NONE, Key::Enter);
    d.must_say("other.gguf");
}

#[test]
fn loading_shows_progress_and_is_cancelled() {
    let mut d = desk(Scene::loading(), Look::default());
    d.must_say("Fetching SmolLM2-135M-Instruct");
    d.must_say("39.1\u{2009}MiB of 93.5\u{2009}MiB");
    assert!(!d.enabled("Tell a story"));
    d.scene.push(Update {
        jobs: vec![JobView {
            id: JobId(7),
            kind: protocol::JobKind::Load,
            what: "loading SmolLM2-135M-Instruct".into(),
            done: 90,
            total: 272,
            unit: "tensors".into(),
            state: JobState::Running,
        }],
        ..Update::default()
    });
    d.frames(2);
    d.must_say("90 of 272 tensors");
    d.click("Cancel");
    assert!(d.scene.last(|r| matches!(r, Request::CancelJob(JobId(7)))).is_some());
}

#[test]
fn a_failed_model_speaks_in_the_words_of_the_engine() {
    let mut d = desk(Scene::broken_model(), Look::default());
    d.must_say("Qwen3-4B could not be loaded");
    d.must_say("ends at byte 4 831 838 208, the file has 3 221 225 472 bytes");
    d.must_say("remove the file and fetch it again");
    assert!(d.enabled("Tell a story"), "another model can be opened");
    assert!(d.copies("Copy details").contains("shard 2 of 3"));
}

#[test]
fn a_model_that_is_not_here_yet_has_its_memory_told_from_its_shape() {
    let mut d = start();
    // Weights, the cache of its whole context and the workspace: a slider moves it as for any other model.
    d.must_say("fits: est. 337\u{2009}MiB of 7.40\u{2009}GiB free");
    assert_eq!(d.harness.query_all_by_label("Context").count(), 2);
    d.click("Fetch and chat");
    assert_eq!(
        opened(&d),
        Some(Request::OpenModel {
            source: ModelSource::SmolLm2,
            context: 0
        })
    );
}

#[test]
fn a_list_that_fails_and_a_card_that_cannot_be_fetched_say_so() {
    let scene = Scene::start();
    scene.answer(|r| match r {
        Request::ListModels => Some(Err(ErrorInfo::new(
            ErrorKind::Resource,
            "The list of models could not be read.",
        )
        .remedy("Free some space on the disk."))),
        _ => None,
    });
    let d = desk(scene, Look::default());
    d.must_say("The list of models could not be read.");
    d.must_say("Free some space on the disk.");

    let scene = Scene::start();
    scene.edit(|s| s.models.chat.missing = "PyPI cannot be reached: no route to host".into());
    let d = desk(scene, Look::default());
    d.must_say("PyPI cannot be reached");
    assert!(!d.enabled("Fetch and chat"));
}

#[test]
fn an_open_model_can_be_left_for_another_and_gone_back_to() {
    let mut d = desk(Scene::finished(), Look::default());
    d.key(Modifiers::COMMAND, Key::O);
    d.must_say("Your own");
    d.key(Modifiers::NONE, Key::Escape);
    assert!(!d.says("Your own"));
    d.key(Modifiers::COMMAND, Key::O);
    d.click("Back to the text");
    assert!(!d.says("Your own"));
}
