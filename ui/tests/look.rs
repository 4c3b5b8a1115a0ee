//! Pictures of every state, written to the folder that `MODEL1_SHOTS` names. Without it only the structure is checked:
//! every state draws, in both themes and at zoom 1 and 2, and every widget has a name.

mod common;

use common::{Look, desk};
use egui_kittest::kittest::Queryable;
use ui::testing::Scene;

type Make = fn() -> Scene;

const SCENES: [(&str, Make); 8] = [
    ("start", Scene::start),
    ("loading", Scene::loading),
    ("broken", Scene::broken_model),
    ("empty", Scene::empty),
    ("waiting", Scene::waiting),
    ("live", Scene::live),
    ("finished", Scene::finished),
    ("failing", Scene::failing),
];

fn all(dark: bool, zoom: f32, size: [f32; 2], tag: &str) {
    for (name, make) in SCENES {
        let mut d = desk(make(), Look { size, dark, zoom });
        d.frames(4);
        d.harness.check_accessibility();
        assert!(
            d.harness.query_all_by_label_contains("").next().is_some(),
            "{name} drew nothing"
        );
        let theme = if dark { "dark" } else { "light" };
        d.shot(&format!("{name}-{theme}{tag}"));
    }
}

#[test]
fn dark() {
    all(true, 1.0, [1440.0, 900.0], "");
}

#[test]
fn light() {
    all(false, 1.0, [1440.0, 900.0], "");
}

#[test]
fn dark_at_zoom_2() {
    all(true, 2.0, [1440.0, 900.0], "-zoom2");
}

#[test]
fn light_at_zoom_2() {
    all(false, 2.0, [1440.0, 900.0], "-zoom2");
}

#[test]
fn dark_small() {
    all(true, 1.0, [400.0, 300.0], "-small");
}

#[test]
fn light_small_at_zoom_2() {
    all(false, 2.0, [400.0, 300.0], "-small-zoom2");
}
