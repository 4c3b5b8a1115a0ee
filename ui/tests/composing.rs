//! Input methods in the field for prompts: what they compose is shown, arrives once, and their keys are their own.

mod common;

use common::{Desk, Look, desk};
use egui::{Event, Key, Modifiers};
use protocol::Request;
use ui::testing::Scene;

/// A scene with the field for prompts in use.
fn open(scene: Scene) -> Desk {
    let look = Look {
        size: [1440.0, 900.0],
        dark: true,
        zoom: 1.0,
    };
    let mut d = desk(scene, look);
    d.app_mut().layout.full = Some("generate".into());
    d.frames(4);
    // What a composition looks like without a font for it does not matter here.
    d.harness.ctx.set_missing_glyph_policy(egui::MissingGlyphPolicy::Tofu);
    d.node("Prompt").focus();
    d.frames(2);
    d
}

fn prompt(d: &Desk) -> String {
    d.node("Prompt").value().unwrap_or_default()
}

fn started(d: &Desk) -> usize {
    d.scene
        .count(|r| matches!(r, Request::Send { .. } | Request::Generate { .. }))
}

/// What an input method says of its composition, its cursor at the end.
fn preedit(text: &str) -> Event {
    let end = text.chars().count();
    Event::Ime(egui::ImeEvent::Preedit {
        text: text.into(),
        active_range_chars: Some(end..end),
    })
}

#[test]
fn what_an_input_method_composes_is_shown_and_arrives_once() {
    let mut d = open(Scene::empty());
    let say = |d: &mut Desk, event: Event, shown: &str| {
        d.harness.event(event.clone());
        d.frames(3);
        assert_eq!(prompt(d), shown, "{event:?}");
    };
    let commit = |text: &str| Event::Ime(egui::ImeEvent::Commit(text.into()));
    // Window systems end a composition in different ways; each of them brings its text once.
    for (ways, before) in [
        (vec![(preedit(""), ""), (commit("你好"), "你好")], ""),
        (vec![(commit("世界"), "你好世界"), (preedit(""), "你好世界")], "你好"),
        (
            vec![
                (preedit("竜"), "你好世界竜"),
                (preedit(""), "你好世界"),
                (commit("龍"), "你好世界龍"),
            ],
            "你好世界",
        ),
        // Given up.
        (
            vec![(preedit(""), "你好世界龍"), (commit(""), "你好世界龍")],
            "你好世界龍",
        ),
    ] {
        for composed in ["n", "ni", "你", "你h"] {
            say(&mut d, preedit(composed), &format!("{before}{composed}"));
        }
        for (modifiers, key) in [
            (Modifiers::NONE, Key::Enter),
            (Modifiers::COMMAND, Key::Enter),
            (Modifiers::NONE, Key::Escape),
        ] {
            d.key(modifiers, key);
            assert_eq!(prompt(&d), format!("{before}你h"), "{modifiers:?} {key:?}");
        }
        for (event, shown) in ways {
            say(&mut d, event, shown);
        }
        assert_eq!(started(&d), 0);
    }
    d.key(Modifiers::COMMAND, Key::Enter);
    let sent = d.scene.last(|r| matches!(r, Request::Send { .. }));
    assert!(matches!(sent, Some(Request::Send { text, .. }) if text == "你好世界龍"));
    assert_eq!(started(&d), 1);
    assert_eq!(prompt(&d), "");
}

#[test]
fn esc_of_an_input_method_stops_no_text() {
    let mut d = open(Scene::live());
    d.scene.write(20);
    d.harness.event(preedit("に"));
    d.frames(2);
    d.key(Modifiers::NONE, Key::Escape);
    assert_eq!(d.scene.count(|r| matches!(r, Request::Stop)), 0);
    d.harness.event(preedit(""));
    d.frames(2);
    d.key(Modifiers::NONE, Key::Escape);
    assert_eq!(d.scene.count(|r| matches!(r, Request::Stop)), 1);
}
