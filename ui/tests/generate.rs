//! The Generate view: writing, what the run says of itself, branches, the sampling form.

mod common;

use common::{Desk, Look, desk};
use egui::accesskit::Role;
use egui::{Event, Key, Modifiers};
use egui_kittest::kittest::{NodeT, Queryable};
use protocol::{DocKind, ErrorInfo, ErrorKind, FinishView, GenerateSpec, Reply, Request};
use ui::testing::{Scene, doc};

const WIDE: Look = Look {
    size: [1440.0, 900.0],
    dark: true,
    zoom: 1.0,
};

fn open(scene: Scene) -> Desk {
    let mut d = desk(scene, WIDE);
    d.app_mut().layout.full = Some("generate".into());
    d.frames(4);
    d
}

fn sent(d: &Desk) -> Option<(String, GenerateSpec)> {
    match d.scene.last(|r| matches!(r, Request::Send { .. }))? {
        Request::Send { text, spec } => Some((text, spec)),
        _ => None,
    }
}

fn started(d: &Desk) -> usize {
    d.scene
        .count(|r| matches!(r, Request::Send { .. } | Request::Generate { .. }))
}

/// A chat of one question, with an answer if there are pieces of it.
fn chat(answer: &[&str]) -> Scene {
    let scene = Scene::finished();
    scene.edit(|s| {
        let mut view = doc(0);
        view.info.kind = DocKind::Chat;
        view.info.title = "Why is the sky blue?".into();
        view.system = "You are brief.\nYou never guess.".into();
        view.nodes.remove(1);
        view.nodes[0].text = "Why is the sky blue?".into();
        let node = &mut view.nodes[1];
        node.tokens = answer
            .iter()
            .enumerate()
            .map(|(i, t)| protocol::TokenInfo {
                text: (*t).into(),
                ..ui::testing::token(i)
            })
            .collect();
        node.text = answer.concat();
        node.finish = FinishView::Eos;
        if answer.is_empty() {
            view.nodes.clear();
            view.leaf = None;
            view.system.clear();
        }
        if let protocol::ModelState::Ready(model) = &mut s.state.model {
            model.chat = Ok(());
        }
        s.state.doc = Some(view.info.clone());
        s.doc = Some(view);
    });
    scene
}

#[test]
fn an_empty_text_offers_beginnings_and_says_why_there_is_no_chat() {
    let mut d = open(Scene::empty());
    d.must_say("Begin with");
    d.must_say("it continues stories and knows no chat format");
    assert!(!d.enabled("New chat"));
    d.must_say("0 / 4\u{2009}096");
    let go = d.harness.get_by_role_and_label(Role::Button, "Generate");
    assert!(go.accesskit_node().is_disabled(), "there is nothing to go on from");
    d.click("The old clock on the wall could talk. Every night it");
    let (text, spec) = sent(&d).expect("a run");
    assert_eq!(text, "The old clock on the wall could talk. Every night it");
    assert_eq!(spec.sampling.temperature, 0.8, "the model's own");
    assert_eq!(spec.max_tokens, 400);
}

#[test]
fn what_is_typed_is_counted_and_sent() {
    let mut d = open(Scene::empty());
    d.write("Prompt", "Once upon a time there lived a fox");
    d.frames(4);
    assert!(d.scene.last(|r| matches!(r, Request::CountTokens(_))).is_some());
    d.must_say("+10");
    d.key(Modifiers::COMMAND, Key::Enter);
    assert_eq!(sent(&d).expect("a run").0, "Once upon a time there lived a fox");
    assert_eq!(d.node("Prompt").value().unwrap_or_default(), "");
}

#[test]
fn a_running_text_shows_its_speed_and_stops_with_esc() {
    let mut d = open(Scene::live());
    d.scene.write(20);
    d.frames(3);
    d.must_say("tok/s");
    d.must_say("331 / 4\u{2009}096");
    assert_eq!(d.said("Once upon a time there was a little dragon who lived").len(), 1);
    d.shot("generate-live");
    d.key(Modifiers::NONE, Key::Escape);
    assert_eq!(d.scene.count(|r| matches!(r, Request::Stop)), 1);
    d.must_say("Continue");

    let mut d = open(Scene::live());
    d.click("Stop");
    assert_eq!(d.scene.count(|r| matches!(r, Request::Stop)), 1);
}

#[test]
fn reading_the_prompt_shows_how_far_it_is() {
    let mut d = open(Scene::live());
    d.scene.change(|s| s.prefill = Some((512, 2048)));
    d.frames(3);
    d.must_say("reading the prompt: 512 of 2\u{2009}048 tokens");
    d.shot("generate-prefill");
}

#[test]
fn a_finished_text_says_how_it_went_and_is_written_anew() {
    let mut d = open(Scene::finished());
    d.must_say("300 tokens · 316\u{2009}tok/s · first token 38.0\u{2009}ms · the number of tokens asked for");
    d.click("Regenerate");
    d.click("Regenerate");
    let runs: Vec<GenerateSpec> = d
        .scene
        .requests()
        .into_iter()
        .filter_map(|r| match r {
            Request::Generate { node: Some(3), spec } => Some(spec),
            _ => None,
        })
        .collect();
    assert_eq!(runs.len(), 2);
    assert_ne!(
        runs[0].sampling.seed, runs[1].sampling.seed,
        "each run has its own seed"
    );
    d.click("Continue");
    assert!(
        d.scene
            .last(|r| matches!(r, Request::Generate { node: None, .. }))
            .is_some()
    );
}

#[test]
fn branches_are_switched() {
    let mut d = open(Scene::finished());
    d.must_say("2/2");
    assert!(!d.enabled("Next branch"));
    d.click("Previous branch");
    assert!(d.scene.last(|r| matches!(r, Request::SelectLeaf(2))).is_some());
    d.must_say("1/2");
    d.must_say("12 tokens · stopped");
}

#[test]
fn any_message_is_rewritten() {
    let mut d = open(Scene::finished());
    d.click("Edit the prompt");
    d.frames(3);
    d.node("Message").type_text("!");
    d.frames(3);
    d.shot("generate-rewriting");
    d.click("Answer anew");
    let Some(Request::EditMessage { node: 1, text, spec }) = d.scene.last(|r| matches!(r, Request::EditMessage { .. }))
    else {
        panic!("no edit: {:?}", d.scene.requests());
    };
    assert!(text.contains("little dragon who") && text.contains('!'), "{text}");
    assert!(spec.is_some());

    d.click("Edit the prompt");
    d.frames(3);
    d.key(Modifiers::COMMAND, Key::Enter);
    assert_eq!(
        d.scene.count(|r| matches!(
            r,
            Request::EditMessage {
                node: 1,
                spec: Some(_),
                ..
            }
        )),
        2
    );
    assert_eq!(
        started(&d),
        0,
        "Ctrl+Enter sends what is being rewritten, and only that"
    );

    d.click("Edit this answer");
    d.frames(3);
    d.click("Keep as a branch");
    assert_eq!(
        d.scene.count(|r| matches!(
            r,
            Request::EditMessage {
                node: 3,
                spec: None,
                ..
            }
        )),
        1
    );

    d.click("Edit this answer");
    d.frames(3);
    d.key(Modifiers::NONE, Key::Escape);
    assert!(!d.says("Keep as a branch"));
}

#[test]
fn a_token_shows_what_it_could_have_been_and_branches() {
    let mut d = open(Scene::finished());
    let at = d
        .harness
        .get_by_label_contains("Once upon a time there was a little dragon who lived")
        .rect();
    d.harness.hover_at(at.left_top() + egui::vec2(120.0, 60.0));
    d.frames(4);
    let hovered = d.app().selection.hovered().token.expect("a token is under the pointer");
    d.must_say("click locks · right-click branches");
    d.shot("generate-hover");
    let pos = at.left_top() + egui::vec2(120.0, 60.0);
    for pressed in [true, false] {
        d.harness.event(Event::PointerButton {
            pos,
            button: egui::PointerButton::Primary,
            pressed,
            modifiers: Modifiers::NONE,
        });
    }
    d.frames(3);
    assert_eq!(d.app().selection.locked().token, Some(hovered));
    d.must_say(&format!("token {hovered}  id "));
    d.must_say("probability");
    d.must_say("Layers at this token");
    d.shot("generate-locked");
    let with = d.said("Branch with").first().cloned().expect("alternatives");
    d.click(&with);
    let branch = d.scene.last(|r| matches!(r, Request::BranchAt { .. }));
    let Some(Request::BranchAt {
        node: 3, index, token, ..
    }) = branch
    else {
        panic!("{branch:?}")
    };
    assert_eq!(u64::from(index), hovered - 11);
    assert!(token >= 3000, "an alternative");

    for pressed in [true, false] {
        d.harness.event(Event::PointerButton {
            pos,
            button: egui::PointerButton::Secondary,
            pressed,
            modifiers: Modifiers::NONE,
        });
    }
    d.frames(4);
    d.must_say("Branch here with");
    d.must_say("Copy up to here");
    d.shot("generate-menu");
    d.key(Modifiers::NONE, Key::Escape);
    assert!(!d.says("Branch here with"));
    d.key(Modifiers::NONE, Key::Escape);
    assert_eq!(d.app().layout.full, None, "then what is enlarged");
    d.key(Modifiers::NONE, Key::Escape);
    assert_eq!(d.app().selection.locked().token, None);
}

#[test]
fn a_full_context_says_what_to_do() {
    let scene = Scene::finished();
    scene.edit(|s| {
        s.state.position = s.state.context;
        if let Some(node) = s.doc.as_mut().and_then(|d| d.nodes.last_mut()) {
            node.finish = FinishView::ContextFull;
        }
    });
    let mut d = open(scene);
    d.must_say("the context is full: start a new text, or open the model with a longer context");
    d.must_say("4\u{2009}096 / 4\u{2009}096");
    assert!(!d.enabled("Continue"));
    d.write("Prompt", "and then");
    d.must_say("the context is full");
    d.shot("generate-full");
    d.key(Modifiers::COMMAND, Key::Enter);
    assert_eq!(started(&d), 0);
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_its_size() {
    let scene = Scene::finished();
    scene.answer(|r| match r {
        Request::CountTokens(text) => Some(Ok(Reply::Count(text.len() as u64 / 4))),
        _ => None,
    });
    let mut d = open(scene);
    d.write("Prompt", &"many words ".repeat(4_000));
    d.frames(4);
    d.must_say("11\u{2009}000 tokens do not fit: 3\u{2009}785 of 4\u{2009}096 are left");
    d.key(Modifiers::COMMAND, Key::Enter);
    assert_eq!(started(&d), 0);

    // Ten megabytes are held beside the field, counted by the host, and refused with the reason.
    d.key(Modifiers::COMMAND, Key::A);
    d.key(Modifiers::NONE, Key::Delete);
    d.harness.event(Event::Paste("Once upon a time. ".repeat(600_000)));
    d.frames(6);
    d.must_say("Pasted text, 10.3\u{2009}MiB");
    d.must_say("2\u{2009}700\u{2009}000 tokens do not fit: 3\u{2009}785 of 4\u{2009}096 are left");
    d.shot("generate-large");
    d.key(Modifiers::COMMAND, Key::Enter);
    assert_eq!(started(&d), 0);
    d.click("Remove the pasted text");
    assert!(!d.says("do not fit"));

    // What no frame can carry is refused before it is sent.
    d.node("Prompt").focus();
    d.frames(2);
    d.harness.event(Event::Paste("x".repeat(protocol::MAX_FRAME + 1)));
    d.frames(6);
    d.must_say("This cannot be sent to the host: a frame of ");
    assert!(!d.says("Pasted text"));
}

#[test]
fn a_chat_has_a_system_prompt_and_folds_its_thoughts() {
    let mut d = open(chat(&[
        "<think>",
        "\n",
        "Light",
        " scatters",
        ".",
        "</think>",
        "\n\n",
        "Blue",
        " scatters",
        " most",
        ".",
    ]));
    d.must_say("You");
    d.must_say("Model");
    d.must_say("Thoughts (2 words)");
    d.must_say("Blue scatters most.");
    assert!(!d.says("<think>"));
    d.shot("generate-chat-folded");
    d.click("Thoughts (2 words)");
    d.click("System prompt");
    d.shot("generate-chat-open");
    d.node("Text of the system prompt").focus();
    d.frames(2);
    d.node("Text of the system prompt").type_text("Be kind. ");
    d.frames(2);
    d.node("Prompt").focus();
    d.frames(3);
    let Some(Request::SetSystem(system)) = d.scene.last(|r| matches!(r, Request::SetSystem(_))) else {
        panic!("the system prompt was not kept");
    };
    assert!(
        system.contains("Be kind. ") && system.contains("You never guess."),
        "{system}"
    );
    d.write("Prompt", "And at night?");
    d.click("Send");
    assert_eq!(sent(&d).expect("a question").0, "And at night?");
}

#[test]
fn a_chat_without_messages_takes_a_system_prompt_first() {
    let mut d = open(chat(&[]));
    d.must_say("Ask something");
    d.click("System prompt");
    d.write("Text of the system prompt", "You are a pirate.");
    d.write("Prompt", "Who are you?");
    d.key(Modifiers::COMMAND, Key::Enter);
    let requests = d.scene.requests();
    let set = requests
        .iter()
        .position(|r| matches!(r, Request::SetSystem(s) if s == "You are a pirate."));
    let send = requests.iter().position(|r| matches!(r, Request::Send { .. }));
    assert!(set.is_some() && set < send, "{requests:?}");
}

#[test]
fn the_sampling_form_marks_what_differs_from_the_model() {
    let mut d = open(Scene::empty());
    d.click("Sampling");
    d.shot("generate-sampling");
    d.node("Temperature").set_value_accesskit(0.25);
    d.frames(3);
    d.must_say("Sampling (1 changed)");
    d.write("New stop string", "The end.\\n");
    d.key(Modifiers::NONE, Key::Enter);
    d.must_say("Sampling (2 changed)");
    d.click("New seed for every run");
    d.node("Seed").set_value_accesskit(42.0);
    d.frames(3);
    d.shot("generate-sampling-changed");
    d.click("Lily and her brother found a tiny door in the garden.");
    let (_, spec) = sent(&d).expect("a run");
    assert_eq!(spec.sampling.temperature, 0.25);
    assert_eq!(spec.sampling.seed, 42);
    assert_eq!(spec.stop, ["The end.\n"]);
    assert_eq!(spec.sampling.logprobs, 8, "as the settings say");
    d.click("Put Temperature back");
    d.must_say("Sampling (1 changed)");
    d.click("Remove this stop string");
    d.must_say("Sampling");
    assert!(!d.says("changed)"));
}

#[test]
fn saved_texts_are_opened_renamed_and_deleted_undoably() {
    let mut d = open(Scene::finished());
    d.click("Saved texts");
    d.shot("generate-shelf");
    d.click("Why is the sky blue?");
    assert!(d.scene.last(|r| matches!(r, Request::OpenDoc(4))).is_some());
    d.click("Rename Lily and her brother found a tiny door");
    d.key(Modifiers::COMMAND, Key::A);
    d.node("Title").type_text("The door");
    d.frames(2);
    d.key(Modifiers::NONE, Key::Enter);
    let renamed = d.scene.last(|r| matches!(r, Request::RenameDoc { .. }));
    assert_eq!(
        renamed,
        Some(Request::RenameDoc {
            doc: 3,
            title: "The door".into()
        })
    );
    d.click("Delete The old clock on the wall could talk");
    assert!(d.scene.last(|r| matches!(r, Request::DeleteDoc(5))).is_some());
    d.click("Undo");
    assert!(d.scene.last(|r| matches!(r, Request::UndeleteDoc(5))).is_some());
}

#[test]
fn a_text_is_exported_and_its_command_copied() {
    let mut d = open(Scene::finished());
    d.click("Copy and export");
    d.must_say("model1 generate --model bundled --seed 7");
    d.shot("generate-export");
    d.click("Export as Markdown");
    assert_eq!(
        d.platform.asked().saved,
        [("story.md".to_string(), b"Once upon a time".to_vec())]
    );
    d.must_say("Saved story.md");
    d.click("Copy and export");
    assert!(
        d.copies("Copy the command that repeats this run")
            .starts_with("model1 generate --model bundled")
    );
    d.click("Copy and export");
    let text = d.copies("Copy the text");
    assert!(
        text.starts_with("Once upon a time there was a little dragon who lived in a warm cave"),
        "{text}"
    );
}

#[test]
fn a_failed_run_keeps_its_text_and_says_why() {
    let scene = Scene::finished();
    scene.edit(|s| {
        if let Some(node) = s.doc.as_mut().and_then(|d| d.nodes.last_mut()) {
            node.finish = FinishView::Failed;
            node.error = Some(
                ErrorInfo::new(ErrorKind::Resource, "The engine ran out of memory in layer 4.")
                    .remedy("Close other programs, or open the model with a shorter context.")
                    .details("mmap: ENOMEM"),
            );
        }
    });
    let mut d = open(scene);
    d.must_say("failed; what was written stays");
    d.must_say("The engine ran out of memory in layer 4.");
    d.must_say("open the model with a shorter context");
    d.must_say("lived in a warm cave");
    d.shot("generate-failed");
    assert!(d.copies("Copy details").contains("ENOMEM"));
}

#[test]
fn control_characters_are_seen_and_do_nothing() {
    let scene = Scene::finished();
    scene.edit(|s| {
        if let Some(node) = s.doc.as_mut().and_then(|d| d.nodes.last_mut()) {
            let text = "\u{1b}[2J\u{202e}gnp.exe\u{7}\r\n";
            node.tokens.truncate(1);
            node.tokens[0].text = text.into();
            node.text = text.into();
        }
    });
    let mut d = open(scene);
    d.must_say("\u{241b}[2J\u{fffd}gnp.exe\u{2407}");
    d.shot("generate-control");
}

#[test]
fn a_viewer_reads_and_changes_nothing() {
    let scene = Scene::finished();
    scene.edit(|s| s.state.driver = false);
    let mut d = open(scene);
    d.must_say("Read-only: another window is in control.");
    assert!(!d.enabled("Continue"));
    assert!(d.node("Prompt").accesskit_node().is_disabled());
    d.click("Take over");
    assert!(d.scene.last(|r| matches!(r, Request::TakeOver)).is_some());
    assert!(d.enabled("Continue"));
}

#[test]
fn a_text_on_its_way_says_so() {
    let scene = Scene::finished();
    scene.edit(|s| s.doc = None);
    scene.answer(|r| matches!(r, Request::GetDoc).then(|| Err(ErrorInfo::new(ErrorKind::Refused, "not yet"))));
    let mut d = open(scene);
    d.must_say("Fetching the text");
    d.shot("generate-loading");
}
