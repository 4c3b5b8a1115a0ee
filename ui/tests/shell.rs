//! The window around the views: top bar, scrubber, palette, windows, toasts, tour, connection.

mod common;

use common::{Desk, Look, desk};
use egui::{Key, Modifiers};
use egui_kittest::kittest::Queryable;
use protocol::{ErrorInfo, ErrorKind, ModelState, Notice, Request, ThemeChoice, Update};
use ui::commands::Command;
use ui::layout::Workspace;
use ui::platform::PlatformEvent;
use ui::testing::Scene;

const CTRL: Modifiers = Modifiers::COMMAND;
const NONE: Modifiers = Modifiers::NONE;

fn open(scene: Scene) -> Desk {
    desk(scene, Look::default())
}

fn settings(d: &Desk) -> Option<protocol::Settings> {
    match d.scene.last(|r| matches!(r, Request::SetSettings(_)))? {
        Request::SetSettings(s) => Some(*s),
        _ => None,
    }
}

#[test]
fn a_live_text_stands_in_four_regions() {
    let mut d = open(Scene::live());
    d.must_say("MODEL1-mini");
    d.must_say("recipe #9c41");
    d.must_say("CPU");
    d.must_say("Once upon a time");
    d.scene.write(5);
    d.frames(2);
    assert_eq!(d.app().store.text.as_ref().expect("a text").tokens().count(), 305);
    d.must_say("token 315 / 315");
}

#[test]
fn workspaces_change_by_tab_key_and_palette() {
    let mut d = open(Scene::finished());
    d.click("Compare");
    assert_eq!(d.app().layout.workspace, Workspace::Compare);
    d.key(CTRL, Key::Num2);
    assert_eq!(d.app().layout.workspace, Workspace::Inspect);
    d.key(CTRL, Key::K);
    d.node("Command").type_text("bench wor");
    d.frames(3);
    d.shot("shell-palette");
    d.key(NONE, Key::Enter);
    assert_eq!(d.app().layout.workspace, Workspace::Bench);
    assert!(!d.says("Type a command or a panel"));
    d.key(CTRL, Key::Num1);
    assert_eq!(d.app().layout.workspace, Workspace::Generate);
}

#[test]
fn the_palette_finds_runs_and_refuses_with_the_reason() {
    let mut d = open(Scene::finished());
    d.key(CTRL, Key::K);
    d.node("Command").type_text("zzz");
    d.frames(3);
    d.must_say("No command is called that");
    d.key(NONE, Key::Escape);
    d.key(CTRL, Key::K);
    d.node("Command").type_text("new chat");
    d.frames(3);
    d.key(NONE, Key::Enter);
    d.must_say("Not now: ");
    assert_eq!(d.scene.count(|r| matches!(r, Request::NewDoc(_))), 0);
    d.key(CTRL, Key::K);
    d.node("Command").type_text("keyboard");
    d.frames(3);
    d.key(NONE, Key::Enter);
    d.must_say("Lock what the pointer is on");
    d.shot("shell-keyboard");
    d.key(NONE, Key::Escape);
    assert!(!d.says("Lock what the pointer is on"));
}

#[test]
fn the_scrubber_walks_plays_and_follows() {
    let mut d = open(Scene::finished());
    d.must_say("token 310 / 310");
    d.click("Previous token");
    d.must_say("token 309 / 310");
    d.key(NONE, Key::Home);
    d.must_say("token 11 / 310");
    d.key(NONE, Key::ArrowRight);
    assert_eq!(d.app().selection.locked().token, Some(12));
    d.key(NONE, Key::Space);
    d.frames(12);
    let at = d.app().selection.locked().token.expect("a token");
    assert!(at > 13, "it plays: {at}");
    d.click("Pause");
    let at = d.app().selection.locked().token;
    d.frames(8);
    assert_eq!(d.app().selection.locked().token, at);
    d.key(NONE, Key::End);
    assert_eq!(d.app().selection.locked().token, None);
    let track = d.node("Token").rect();
    let pos = track.left_center() + egui::vec2(track.width() * 0.5, 0.0);
    for pressed in [true, false] {
        d.harness.event(egui::Event::PointerMoved(pos));
        d.harness.event(egui::Event::PointerButton {
            pos,
            button: egui::PointerButton::Primary,
            pressed,
            modifiers: NONE,
        });
    }
    d.frames(3);
    assert_eq!(d.app().selection.locked().token, Some(161));
    d.shot("shell-scrubber");
    d.click("Follow the text");
    assert_eq!(d.app().selection.locked().token, None);
}

#[test]
fn settings_are_kept_at_once() {
    let mut d = open(Scene::finished());
    d.app_mut().invoke(Command::Settings);
    d.frames(3);
    d.must_say("Context of new sessions");
    d.shot("shell-settings");
    d.click("Light");
    assert_eq!(settings(&d).expect("settings").theme, ThemeChoice::Light);
    assert_eq!(d.harness.ctx.theme(), egui::Theme::Light);
    d.shot("shell-settings-light");
    d.click("Larger");
    assert!((settings(&d).expect("settings").zoom - 1.1).abs() < 1e-6);
    d.node("Threads").set_value_accesskit(2.0);
    d.frames(3);
    assert_eq!(settings(&d).expect("settings").threads, 2);
    d.click("All settings back");
    let s = settings(&d).expect("settings");
    assert_eq!((s.threads, s.zoom, s.tour_seen), (0, 1.0, true));
    d.click("Close");
    assert!(!d.says("Context of new sessions"));
    d.key(CTRL, Key::Plus);
    assert!((settings(&d).expect("settings").zoom - 1.1).abs() < 1e-6);
}

#[test]
fn about_has_a_report_to_copy() {
    let mut d = open(Scene::finished());
    d.app_mut().invoke(Command::About);
    d.frames(4);
    d.must_say("Linux 6.1 x86_64");
    d.must_say("SIL Open Font License");
    d.shot("shell-about");
    assert!(d.copies("Copy a report").contains("CPU, 2 threads, AVX-512"));
}

#[test]
fn menus_hold_every_command_with_its_key() {
    let mut d = open(Scene::finished());
    d.click("Menu");
    for group in ["Text", "Model", "Edit", "View", "Tokens", "Help"] {
        d.must_say(group);
    }
    d.harness
        .get_all_by_label_contains("Help")
        .next()
        .expect("a menu")
        .click();
    d.frames(4);
    d.must_say("About");
    d.shot("shell-menu");
}

#[test]
fn errors_stay_until_closed_and_sentences_go() {
    let mut d = open(Scene::finished());
    d.scene.answer(|r| match r {
        Request::EditRecipe(_) => Some(Err(ErrorInfo::new(ErrorKind::Input, "layer 2 refuses kv_cache = bf17")
            .remedy("Accepted: f32, bf16, fp8_model1, fp8_b64.")
            .details("recipe 9c41"))),
        _ => None,
    });
    let json = "{}".to_string();
    d.app_mut().store.send(Request::EditRecipe(Vec::new()));
    d.app_mut().store.send(Request::SetRecipe(json));
    d.scene.push(Update {
        notices: vec![Notice {
            seq: 1,
            text: "The disk is nearly full.".into(),
            warning: true,
        }],
        ..Update::default()
    });
    d.frames(3);
    d.must_say("layer 2 refuses kv_cache = bf17");
    d.must_say("Accepted: f32, bf16");
    d.must_say("The disk is nearly full.");
    d.shot("shell-toasts");
    assert!(d.copies("Copy details").contains("recipe 9c41"));
    d.frames(60);
    assert!(!d.says("The disk is nearly full."));
    d.must_say("layer 2 refuses");
    d.click("Close");
    assert!(!d.says("layer 2 refuses"));
}

#[test]
fn the_tour_has_ten_steps_and_is_offered_once() {
    let scene = Scene::finished();
    scene.edit(|s| s.settings.tour_seen = false);
    let mut d = open(scene);
    d.must_say("New here?");
    d.shot("shell-tour-offer");
    d.click("Start the tour");
    for step in 1..10 {
        d.must_say(&format!("{step} of 10"));
        if step == 1 || step == 7 {
            d.frames(3);
            d.shot(&format!("shell-tour-{step}"));
        }
        d.click("Next");
    }
    d.must_say("10 of 10");
    d.click("Done");
    assert!(settings(&d).expect("settings").tour_seen);
    assert!(!d.says("of 10"));
    assert!(!d.says("New here?"));
}

#[test]
fn a_host_of_another_version_is_refused_with_its_sentence() {
    let scene = Scene::finished();
    let sentence =
        "The host speaks version 2 of the protocol, this window version 1. Reload the window, or start the host again.";
    scene.refuse(sentence);
    let mut d = open(scene);
    d.must_say("The host did not accept this window");
    d.must_say(sentence);
    d.shot("shell-refused");
    assert_eq!(d.copies("Copy the message"), sentence);
    d.click("Reload");
    assert_eq!(d.platform.asked().reloads, 1);
    assert_eq!(d.scene.connections(), 1, "dialling again would not help");
}

#[test]
fn a_lost_host_is_said_and_nothing_is_lost() {
    let mut d = open(Scene::finished());
    d.scene.mute(true);
    d.scene.hang_up("the host was stopped");
    d.frames(1);
    d.must_say("No connection to the host: the host was stopped.");
    d.must_say("lived in a warm cave");
    d.shot("shell-lost");
    assert!(!d.enabled("Continue"));
    d.must_say("Try now");
    d.scene.mute(false);
    d.frames(6);
    assert!(d.scene.connections() >= 2);
    assert!(!d.says("No connection to the host"));
    assert!(d.enabled("Continue"));
    assert!(
        d.scene.hellos().last().expect("a greeting").cursor.step > 0,
        "it goes on where it was"
    );
}

#[test]
fn undo_takes_back_selection_and_layout() {
    let mut d = open(Scene::finished());
    d.key(NONE, Key::Home);
    d.frames(8);
    d.click("Show or hide the model");
    assert!(!d.app().layout.left);
    d.key(CTRL, Key::Z);
    assert!(d.app().layout.left);
    d.must_say("Undone: layout");
    d.key(CTRL, Key::Z);
    assert_eq!(d.app().selection.locked().token, None);
    d.key(Modifiers::COMMAND | Modifiers::SHIFT, Key::Z);
    assert_eq!(d.app().selection.locked().token, Some(11));
}

#[test]
fn a_small_window_shows_one_region_at_a_time() {
    for zoom in [1.0, 2.0] {
        let mut d = desk(
            Scene::finished(),
            Look {
                size: [400.0, 300.0],
                dark: false,
                zoom,
            },
        );
        assert!(d.has("Prompt"), "zoom {zoom}");
        d.click("Inspector");
        assert!(!d.has("Prompt"));
        d.must_say("Layers");
        d.click("Workspace");
        assert!(d.has("Prompt"));
        // Field and button whole in the window, the button with its margin below.
        for name in ["Prompt", "Continue"] {
            let at = d.node(name).rect();
            assert!(
                (at.bottom() + 4.0) * zoom <= 300.0 && (at.right() + 4.0) * zoom <= 400.0,
                "zoom {zoom}: {name} {at:?}"
            );
        }
        d.shot(&format!("shell-small-{zoom}"));
        assert!(!d.says("Tokens per second: "), "one panel at a time");
        d.key(CTRL, Key::K);
        d.node("Command").type_text("show speed");
        d.frames(3);
        d.key(NONE, Key::Enter);
        d.must_say("Tokens per second: ");
        assert!(!d.has("Prompt"));
        d.key(NONE, Key::Escape);
        assert!(d.has("Prompt"));
    }
}

#[test]
fn a_model_of_five_thousand_layers_stays_usable() {
    let scene = Scene::finished();
    scene.edit(|s| {
        if let ModelState::Ready(model) = &mut s.state.model {
            let one = model.facts.layers.clone();
            model.facts.layers = one.iter().cycle().take(5_000).cloned().collect();
        }
        if let Some(recipe) = &mut s.state.recipe {
            let one = recipe.layers.clone();
            recipe.layers = one.iter().cycle().take(5_000).cloned().collect();
        }
        s.steps.truncate(20);
        for step in &mut s.steps {
            let one = step.layers.clone();
            step.layers = one.iter().cycle().take(5_000).cloned().collect();
        }
    });
    let mut d = open(scene);
    d.key(NONE, Key::Home);
    d.must_say("Layers at this token");
    let rows = d.said("Layer ").iter().filter(|s| s.starts_with("Layer ")).count();
    assert!((1..200).contains(&rows), "{rows} rows are made");
    d.shot("shell-5000-layers");
}

#[test]
fn full_screen_and_dropped_files_go_through_the_window() {
    let mut d = open(Scene::finished());
    d.key(NONE, Key::F11);
    assert_eq!(d.platform.asked().dialogs, ["full screen"]);
    d.platform.say(PlatformEvent::Failed(
        "The disk is full: 0 bytes are free on /home.".into(),
    ));
    d.frames(3);
    d.must_say("The disk is full: 0 bytes are free on /home.");
}

#[test]
fn scripts_without_a_font_are_asked_for_once_and_said() {
    let mut d = open(Scene::empty());
    d.harness.ctx.set_missing_glyph_policy(egui::MissingGlyphPolicy::Tofu);
    d.write("Prompt", "日本の竜");
    d.frames(4);
    let asked = |d: &Desk| {
        let all = d.scene.requests().into_iter();
        all.filter(|r| matches!(r, Request::FindFont(_))).count()
    };
    assert_eq!(asked(&d), 2, "ideographs and kana: {:?}", d.scene.requests());
    let hints = d.said("the package fonts-noto-cjk brings one").len();
    assert_eq!(hints, 1, "one package, one sentence: {:?}", d.said("No installed font"));
    d.write("Prompt", "龍とかげ");
    d.frames(4);
    assert_eq!(asked(&d), 2, "what no font has is not asked for again");
}

#[test]
fn warnings_about_a_model_are_said_and_stay_with_it() {
    let scene = Scene::finished();
    let warning = "The checkpoint has no generation_config.json: sampling starts from temperature 1.";
    scene.edit(|s| {
        if let ModelState::Ready(model) = &mut s.state.model {
            model.warnings.push(warning.into());
        }
    });
    let mut d = open(scene);
    d.must_say(warning);
    d.frames(60);
    assert!(!d.says(warning));
    d.click("MODEL1-mini");
    d.must_say(warning);
    d.must_say("Close the model");
    d.shot("shell-model-menu");
}

#[test]
fn an_unread_error_outlives_later_sentences() {
    let mut d = open(Scene::finished());
    let now = d.app().store.now;
    let toasts = &mut d.app_mut().store.toasts;
    toasts.error(ErrorInfo::new(ErrorKind::Resource, "The disk is full."), now);
    for i in 0..6 {
        toasts.info(format!("sentence {i}"), now);
    }
    d.frames(2);
    d.must_say("The disk is full.");
    d.must_say("sentence 5");
    assert!(!d.says("sentence 2"));
}
