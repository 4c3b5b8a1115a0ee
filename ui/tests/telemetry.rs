//! The charts of telemetry against the scripted host.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod solo;

use common::{Desk, Look, desk};
use egui_kittest::kittest::Queryable;
use protocol::{Event, KvBytes, Request, StepRecord, Update};
use solo::{alone, click, solo, solo_as};
use ui::fmt;
use ui::testing::{Scene, steps};

const SIZE: [f32; 2] = [560.0, 360.0];

/// Views with what they say while empty and the name of the picture they show.
const VIEWS: [(&str, &str, &str); 7] = [
    (
        "telemetry.speed",
        "Tokens per second and latency appear here",
        "Tokens per second: ",
    ),
    ("telemetry.kv", "appear", "KV bytes by layer: "),
    ("telemetry.sparsity", "appear", "Sparsity ratio: "),
    ("telemetry.error", "appear", "FP8 round-trip error: "),
    (
        "telemetry.experts",
        "Which experts the tokens go to appears here",
        "Expert load: ",
    ),
    ("telemetry.heatmap", "appear", "Layers x tokens: "),
    ("telemetry.memory", "Memory in use appears here", "Memory: "),
];

/// What the picture of this name says.
fn said(d: &Desk, name: &str) -> String {
    let all = d.said(name);
    let all: Vec<&String> = all.iter().filter(|l| l.starts_with(name)).collect();
    assert_eq!(all.len(), 1, "pictures named {name}: {all:?}");
    all[0].clone()
}

fn last_step(tokens: usize) -> StepRecord {
    steps(tokens).pop().expect("a step")
}

fn kv_of(step: &StepRecord) -> u64 {
    let mut sum = KvBytes::default();
    step.layers.iter().for_each(|l| sum.add(&l.kv_used));
    sum.total()
}

#[test]
fn empty_charts_say_what_fills_them() {
    for (view, empty, _) in VIEWS {
        let mut d = solo(Scene::empty(), view, SIZE, true);
        assert!(!d.said(empty).is_empty(), "{view}: {:?}", d.said(""));
        d.shot(&format!("{view}-empty"));
        click(&mut d, "Go to the text");
        assert!(d.app().layout.has("generate"), "{view}");
    }
}

#[test]
fn live_charts_say_the_newest_values() {
    let d = solo(Scene::live(), "telemetry.kv", SIZE, true);
    let total = fmt::bytes(kv_of(&last_step(300))).plain();
    assert_eq!(
        said(&d, "KV bytes by layer: "),
        format!("KV bytes by layer: at token 310: all layers {total}")
    );
    let d = solo(Scene::live(), "telemetry.sparsity", SIZE, true);
    let step = last_step(300);
    let (scored, context) = step
        .layers
        .iter()
        .fold((0, 0), |(s, c), l| (s + l.keys_scored, c + l.keys_context));
    let share = fmt::percent(1.0 - scored as f64 / context as f64).plain();
    assert!(
        said(&d, "Sparsity ratio: ").ends_with(&share),
        "{} {share}",
        said(&d, "Sparsity ratio: ")
    );
    let d = solo(Scene::live(), "telemetry.memory", SIZE, true);
    let memory = fmt::bytes(step.memory.unwrap_or(0)).plain();
    assert_eq!(said(&d, "Memory: "), format!("Memory: process {memory}"));
    let d = solo(Scene::live(), "telemetry.experts", SIZE, true);
    assert!(said(&d, "Expert load: ").contains("busiest: layer "));
    let d = solo(Scene::live(), "telemetry.heatmap", [900.0, 360.0], true);
    assert!(said(&d, "Layers x tokens: ").contains("7 layers over 311 tokens"));
    let d = solo(Scene::live(), "telemetry.speed", [560.0, 500.0], true);
    let speed = said(&d, "Tokens per second: ");
    assert!(
        speed.contains("decode ") && speed.contains("prefill ") && speed.contains("tok/s"),
        "{speed}"
    );
    let latency = said(&d, "Time between tokens: ");
    assert!(
        latency.contains("p50 ") && latency.contains("p95 ") && latency.contains("p99 "),
        "{latency}"
    );
}

#[test]
fn charts_move_with_the_text() {
    let mut d = solo(Scene::live(), "telemetry.kv", SIZE, true);
    d.scene.write(25);
    d.frames(3);
    let total = fmt::bytes(kv_of(&last_step(325))).plain();
    assert_eq!(
        said(&d, "KV bytes by layer: "),
        format!("KV bytes by layer: at token 335: all layers {total}")
    );
}

#[test]
fn paused_charts_hold_still_until_resumed() {
    let mut d = solo(Scene::live(), "telemetry.kv", SIZE, true);
    click(&mut d, "Pause charts");
    d.scene.write(40);
    d.frames(3);
    assert!(said(&d, "KV bytes by layer: ").contains("at token 310"));
    // The other charts share the pause.
    alone(&mut d, "telemetry.sparsity");
    assert!(said(&d, "Sparsity ratio: ").contains("at token 310"));
    d.shot("telemetry-paused");
    click(&mut d, "Resume charts");
    assert!(said(&d, "Sparsity ratio: ").contains("at token 350"));
}

#[test]
fn a_chosen_token_moves_every_chart() {
    let mut d = solo(Scene::finished(), "telemetry.kv", SIZE, true);
    let app = d.harness.state_mut().as_mut().expect("an app");
    app.selection.lock(ui::selection::Spot::token(100));
    d.frames(3);
    let step = &steps(300)[100 - 11 + 1];
    assert_eq!(step.position, 100);
    let total = fmt::bytes(kv_of(step)).plain();
    assert_eq!(
        said(&d, "KV bytes by layer: "),
        format!("KV bytes by layer: at token 100: all layers {total}")
    );
}

#[test]
fn a_click_on_a_chart_chooses_a_token_and_drags_zoom() {
    let mut d = solo(Scene::finished(), "telemetry.memory", SIZE, true);
    let name = said(&d, "Memory: ");
    let plot = d.harness.get_by_label(&name).rect();
    d.harness.hover_at(plot.center());
    d.frames(2);
    let hovered = d.app().selection.hovered().token.expect("a hovered token");
    assert!((60..250).contains(&hovered), "{hovered}");
    d.harness.drag_at(plot.center());
    d.frames(1);
    d.harness.drop_at(plot.center());
    d.frames(2);
    let locked = d.app().selection.locked().token.expect("a locked token");
    assert!(locked.abs_diff(hovered) <= 1, "{locked} {hovered}");
    let right = plot.center() + egui::vec2(80.0, 0.0);
    d.harness.drag_at(plot.center());
    d.frames(1);
    d.harness.hover_at(right);
    d.frames(2);
    d.harness.drop_at(right);
    d.frames(3);
    click(&mut d, "Show all tokens");
    assert!(d.harness.query_by_label("Show all tokens").is_none());
}

#[test]
fn overwritten_steps_and_swaps_are_told() {
    let mut d = solo(Scene::live(), "telemetry.memory", SIZE, true);
    let mut step = last_step(300);
    (step.seq, step.position) = (step.seq + 18, step.position + 18);
    d.scene.push(Update {
        last_step: step.seq,
        steps: vec![step],
        steps_lost: 17,
        events: vec![Event::Swapped {
            position: 250,
            converted: 4,
            hash: "3f2a".into(),
        }],
        ..Update::default()
    });
    d.frames(3);
    d.harness.get_by_label("17 steps are missing").hover();
    d.frames(8);
    assert_eq!(d.said("17 steps were overwritten at the host").len(), 1);
    d.shot("telemetry-lost");
}

#[test]
fn figures_are_exported_as_tables() {
    let mut d = solo(Scene::finished(), "telemetry.memory", SIZE, true);
    let name = said(&d, "Memory: ");
    d.harness.get_by_label(&name).click_secondary();
    d.frames(4);
    d.harness.get_by_label_contains("Save CSV").click();
    d.frames(4);
    let saved = d.platform.asked().saved;
    assert_eq!(saved[0].0, "memory.csv");
    let text = String::from_utf8(saved[0].1.clone()).expect("text");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[0], "token,memory bytes,kv bytes");
    assert_eq!(lines.len(), 1 + 301, "a line per step");
    assert_eq!(lines[301].split(',').next(), Some("310"));
}

#[test]
fn a_failed_question_says_why() {
    let mut d = solo(Scene::failing(), "telemetry.kv", SIZE, true);
    click(&mut d, "Chart: by layer");
    d.harness.get_by_label("beside others").click();
    d.frames(4);
    assert!(!d.said("The engine process ended while it computed this.").is_empty());
    d.shot("telemetry-failed");
    let mut d = solo(Scene::waiting(), "telemetry.kv", SIZE, true);
    click(&mut d, "Chart: by layer");
    d.harness.get_by_label("beside others").click();
    d.frames(4);
    d.harness.get_by_label("Other layouts are being computed");
}

#[test]
fn other_layouts_stand_beside_with_their_crossover() {
    let mut d = solo(Scene::finished(), "telemetry.kv", [760.0, 360.0], true);
    click(&mut d, "Chart: by layer");
    d.harness.get_by_label("beside others").click();
    d.frames(4);
    assert_eq!(d.scene.count(|r| matches!(r, Request::GetBaselines)), 1);
    let chart = said(&d, "KV bytes beside other layouts: ");
    assert!(chart.contains("76") && chart.contains("87"), "{chart}");
    d.shot("telemetry-baselines");
}

/// Time until the next frame the interface wants by itself.
fn next_frame(d: &Desk) -> std::time::Duration {
    let outputs = &d.harness.output().viewport_output;
    outputs
        .values()
        .map(|o| o.repaint_delay)
        .min()
        .unwrap_or(std::time::Duration::MAX)
}

#[test]
fn nothing_is_drawn_while_nothing_changes() {
    for (scene, what) in [
        (Scene::finished(), "a finished text"),
        (Scene::live(), "a text that waits for its next token"),
    ] {
        let mut d = desk(scene, Look::default());
        // The harness moves a quarter of a second per frame: fades and saved layouts come to rest.
        d.frames(60);
        assert_eq!(
            next_frame(&d),
            std::time::Duration::MAX,
            "{what} is drawn again and again"
        );
        d.scene.write(1);
        d.frames(60);
        assert_eq!(next_frame(&d), std::time::Duration::MAX, "{what}, after a token");
    }
}

#[test]
fn both_themes_both_zooms() {
    for (dark, theme) in [(true, "dark"), (false, "light")] {
        for zoom in [1.0, 2.0] {
            for (view, _, picture) in VIEWS {
                let look = Look { size: SIZE, dark, zoom };
                let mut d = solo_as(Scene::live(), view, look);
                d.harness.check_accessibility();
                said(&d, picture);
                d.shot(&format!("{view}-{theme}-{zoom}"));
            }
        }
    }
}
