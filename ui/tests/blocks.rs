//! The blocks panel against the scripted host.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod solo;

use common::{Desk, Look};
use egui_kittest::kittest::{NodeT, Queryable};
use protocol::{ErrorInfo, ErrorKind, Reply, Request};
use solo::{click, hover, solo, solo_as};
use ui::testing::Scene;

const SIZE: [f32; 2] = [900.0, 520.0];

fn on(d: &Desk, name: &str) -> bool {
    let node = d.harness.get_by_label(name);
    node.accesskit_node().toggled() == Some(egui::accesskit::Toggled::True)
}

fn disabled(d: &Desk, name: &str) -> bool {
    d.harness.get_by_label(name).accesskit_node().is_disabled()
}

/// The edits the host got, as `--set` writes them.
fn edits(d: &Desk) -> Vec<String> {
    let requests = d.scene.requests().into_iter();
    requests
        .filter_map(|r| match r {
            Request::EditRecipe(edits) => Some(edits.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            _ => None,
        })
        .collect()
}

fn set_recipes(d: &Desk) -> Vec<String> {
    let requests = d.scene.requests().into_iter();
    requests
        .filter_map(|r| match r {
            Request::SetRecipe(json) => Some(json),
            _ => None,
        })
        .collect()
}

#[test]
fn the_grid_is_the_validity_table() {
    let d = solo(Scene::live(), "blocks", SIZE, true);
    let cells = d.said("layer ");
    for layer in 0..7 {
        for slot in ["attention: own", "ffn: own", "kv_cache: fp8_model1"] {
            let name = format!("layer {layer} {slot}");
            assert!(cells.contains(&name), "{name} is missing in {cells:?}");
        }
        let indexed = cells.contains(&format!("layer {layer} index_cache: fp4"));
        assert_eq!(indexed, [2, 4, 6].contains(&layer), "index_cache of layer {layer}");
    }
    for weights in ["attention", "ffn", "embedding", "lm_head"] {
        assert!(!disabled(&d, &format!("weights.{weights}: own")));
    }
    assert!(disabled(&d, "residual: mhc"), "a fixed slot cannot be chosen");
}

#[test]
fn clicks_ranges_and_columns_choose_cells() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    let cell = |l: u32| format!("layer {l} kv_cache: fp8_model1");
    let chosen = |d: &Desk| (0..7).filter(|l| on(d, &cell(*l))).collect::<Vec<_>>();
    click(&mut d, &cell(3));
    assert_eq!(chosen(&d), [3]);
    d.harness.get_by_label(&cell(6)).click_modifiers(egui::Modifiers::SHIFT);
    d.frames(4);
    assert_eq!(chosen(&d), [3, 4, 5, 6]);
    d.harness
        .get_by_label(&cell(1))
        .click_modifiers(egui::Modifiers::COMMAND);
    d.frames(4);
    assert_eq!(chosen(&d), [1, 3, 4, 5, 6]);
    d.harness.get_by_label("layers 1, 3–6");
    let column = d
        .harness
        .get_by(|n| n.role() == egui::Role::ColumnHeader && n.label().as_deref() == Some("kv_cache"));
    column.click();
    d.frames(4);
    assert_eq!(chosen(&d), [0, 1, 2, 3, 4, 5, 6]);
    click(&mut d, "Close the editor");
    assert_eq!(chosen(&d), [0_u32; 0]);
}

#[test]
fn dragging_down_a_column_chooses_a_range() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    let at = |d: &Desk, l: u32| {
        d.harness
            .get_by_label(&format!("layer {l} kv_cache: fp8_model1"))
            .rect()
            .center()
    };
    let (from, over, to) = (at(&d, 2), at(&d, 4), at(&d, 5));
    d.harness.drag_at(from);
    d.frames(2);
    for place in [over, to] {
        d.harness.hover_at(place);
        d.frames(2);
    }
    d.harness.drop_at(to);
    d.frames(4);
    d.harness.get_by_label("layers 2–5");
}

#[test]
fn a_click_sends_the_recipe_and_the_grid_shows_it() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    click(&mut d, "layer 3 kv_cache: fp8_model1");
    d.harness
        .get_by_label("layer 6 kv_cache: fp8_model1")
        .click_modifiers(egui::Modifiers::SHIFT);
    d.frames(4);
    hover(&mut d, "kv_cache bf16");
    let preview = d.scene.last(|r| matches!(r, Request::PreviewRecipe(_)));
    let Some(Request::PreviewRecipe(asked)) = preview else {
        panic!("no preview was asked for")
    };
    assert_eq!(asked[0].to_string(), "layers.3-6.kv_cache=bf16");
    assert!(!d.said("KV cache ").is_empty(), "the effect is shown before the click");
    assert!(edits(&d).is_empty(), "hovering changes nothing");
    click(&mut d, "kv_cache bf16");
    assert_eq!(edits(&d), ["layers.3-6.kv_cache=bf16"]);
    for layer in 3..7 {
        d.harness
            .get_by_label(&format!("layer {layer} kv_cache: bf16, changed"));
    }
    d.harness.get_by_label("layer 2 kv_cache: fp8_model1");
    d.harness.get_by_label("1 change");
    d.harness.get_by_label("converted");
    click(&mut d, "Replay the text");
    assert_eq!(d.scene.count(|r| matches!(r, Request::ReplayText)), 1);
}

#[test]
fn refusals_stand_beside_their_reasons() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    click(&mut d, "layer 0 attention: own");
    d.harness
        .get_by_label("layer 3 attention: own")
        .click_modifiers(egui::Modifiers::SHIFT);
    d.frames(4);
    assert!(disabled(&d, "attention dense"));
    let reasons = d.said("layers 0–1: the layer keeps a ring of 128 tokens");
    assert_eq!(reasons.len(), 1, "{:?}", d.said("ring"));
    d.harness.get_by_label("attention dense").click();
    d.frames(4);
    assert!(edits(&d).is_empty());
    assert!(!disabled(&d, "attention top_k"));
}

#[test]
fn options_are_forms_with_their_defaults() {
    let mut d = solo(Scene::live(), "blocks", [900.0, 700.0], true);
    click(&mut d, "layer 4 attention: own");
    click(&mut d, "attention top_k");
    assert_eq!(edits(&d), ["layers.4.attention=top_k"]);
    let number = |d: &Desk| {
        let spin =
            |n: &egui_kittest::kittest::AccessKitNode<'_>| n.role() == egui::Role::SpinButton && !n.is_disabled();
        d.harness.get_by(spin).value()
    };
    assert_eq!(number(&d).as_deref(), Some("64"));
    let spin = |n: &egui_kittest::kittest::AccessKitNode<'_>| n.role() == egui::Role::SpinButton;
    d.harness.get_by(spin).click();
    d.frames(2);
    d.harness
        .key_combination_modifiers(egui::Modifiers::COMMAND, &[egui::Key::A]);
    d.frames(1);
    d.harness.event(egui::Event::Text("32".into()));
    d.frames(1);
    d.harness.key_press(egui::Key::Enter);
    d.frames(4);
    assert_eq!(
        edits(&d).last().map(String::as_str),
        Some("layers.4.attention=top_k:k=32")
    );
    d.harness.get_by_label("layer 4 attention: top_k:k=32, changed");
    click(&mut d, "k to its default");
    assert_eq!(edits(&d).last().map(String::as_str), Some("layers.4.attention=top_k"));
}

#[test]
fn undo_and_redo_take_the_recipe_back_and_forth() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    let before = ui::testing::recipe().json;
    click(&mut d, "layer 5 kv_cache: fp8_model1");
    click(&mut d, "kv_cache f32");
    d.harness.get_by_label("layer 5 kv_cache: f32, changed");
    let after = d.app().store.recipe().expect("a recipe").json.clone();
    click(&mut d, "Undo");
    assert_eq!(set_recipes(&d).last(), Some(&before));
    d.harness.get_by_label("layer 5 kv_cache: fp8_model1");
    click(&mut d, "Redo");
    assert_eq!(set_recipes(&d), [before, after]);
}

#[test]
fn presets_apply_to_the_checkpoints_own_recipe() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    click(&mut d, "Presets");
    assert!(disabled(&d, "smallest cache"));
    d.harness.get_by_label("the 4-bit record is made for indexer keys only");
    d.shot("blocks-presets");
    click(&mut d, "bf16 cache");
    assert_eq!(set_recipes(&d), [r#"{"schema":1,"set":{"layers.*.kv_cache":"bf16"}}"#]);
}

#[test]
fn recipes_are_saved_copied_and_loaded() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    click(&mut d, "layer 2 index_cache: fp4");
    click(&mut d, "index_cache bf16");
    let recipe = d.app().store.recipe().expect("a recipe").clone();
    let item = |d: &mut Desk, part: &str| {
        click(d, "Recipe menu");
        d.harness.get_by_label_contains(part).click();
        d.frames(4);
    };
    item(&mut d, "Save recipe");
    let saved = d.platform.asked().saved;
    assert_eq!(saved.len(), 1);
    assert_eq!(saved[0].0, format!("recipe-{}.json", &recipe.hash[..8]));
    assert_eq!(saved[0].1, recipe.json.as_bytes());
    item(&mut d, "Load or edit as JSON");
    let field = d.harness.get_by_label("Recipe as JSON");
    assert_eq!(field.value().as_deref(), Some(recipe.json.as_str()));
    field.focus();
    d.frames(2);
    d.harness
        .key_combination_modifiers(egui::Modifiers::COMMAND, &[egui::Key::A]);
    d.harness.event(egui::Event::Paste("{\"schema\":1,".into()));
    d.frames(3);
    assert!(disabled(&d, "Put in force"), "half a file is not sent");
    assert_eq!(d.said("not JSON").len(), 1);
    let text = r#"{"schema":1,"set":{"layers.3-6.kv_cache":"bf16"}}"#;
    d.harness
        .key_combination_modifiers(egui::Modifiers::COMMAND, &[egui::Key::A]);
    d.harness.event(egui::Event::Paste(text.into()));
    d.frames(3);
    click(&mut d, "Put in force");
    assert_eq!(set_recipes(&d), [text]);
    d.frames(4);
    d.harness.get_by_label("layer 3 kv_cache: fp8_model1");
    item(&mut d, "Load or edit as JSON");
    click(&mut d, "Cancel");
    assert!(d.harness.query_by_label("Recipe as JSON").is_none());
}

#[test]
fn a_recipe_the_host_refuses_stays_for_another_try() {
    let scene = Scene::live();
    scene.answer(|r| match r {
        Request::SetRecipe(_) => Some(Err(ErrorInfo::new(
            ErrorKind::Input,
            "layers.0.attention: dense does not fit, the layer keeps a ring of 128 tokens.",
        ))),
        _ => None,
    });
    let mut d = solo(scene, "blocks", SIZE, true);
    click(&mut d, "Recipe menu");
    d.harness.get_by_label_contains("Load or edit as JSON").click();
    d.frames(4);
    click(&mut d, "Put in force");
    assert!(!d.said("layers.0.attention: dense does not fit").is_empty());
    d.harness.get_by_label("Recipe as JSON");
}

#[test]
fn a_viewer_looks_and_changes_nothing() {
    let scene = Scene::live();
    scene.edit(|s| s.state.driver = false);
    let mut d = solo(scene, "blocks", SIZE, true);
    click(&mut d, "layer 3 kv_cache: fp8_model1");
    assert!(disabled(&d, "kv_cache bf16"));
    d.harness
        .get_by_label("Another window is in control; this one only looks.");
    d.harness.get_by_label("kv_cache bf16").click();
    d.frames(4);
    assert!(edits(&d).is_empty());
}

#[test]
fn failures_and_waiting_leave_the_grid_alone() {
    for scene in [Scene::failing(), Scene::waiting()] {
        let mut d = solo(scene, "blocks", SIZE, true);
        click(&mut d, "layer 3 kv_cache: fp8_model1");
        hover(&mut d, "kv_cache bf16");
        assert!(d.said("KV cache ").is_empty(), "no effect is made up");
        click(&mut d, "Presets");
        d.harness.get_by_label("none for this model");
    }
}

#[test]
fn thousands_of_layers_are_rows_that_are_seen() {
    let scene = Scene::live();
    scene.edit(|s| {
        if let protocol::ModelState::Ready(m) = &mut s.state.model {
            let facts = m.facts.layers[0].clone();
            m.facts.layers = vec![facts; 5000];
            m.slots
                .iter_mut()
                .filter(|s| s.per_layer)
                .for_each(|s| s.layers = (0..5000).collect());
        }
        if let Some(recipe) = &mut s.state.recipe {
            let layer = recipe.layers[0].clone();
            recipe.layers = vec![layer; 5000];
        }
    });
    let mut d = solo(scene, "blocks", SIZE, true);
    let rows = d.harness.query_all_by_role(egui::Role::RowHeader).count();
    assert!((5..40).contains(&rows), "{rows} rows are made");
    let column = d
        .harness
        .get_by(|n| n.role() == egui::Role::ColumnHeader && n.label().as_deref() == Some("kv_cache"));
    column.click();
    d.frames(4);
    click(&mut d, "kv_cache bf16");
    assert_eq!(edits(&d), ["layers.*.kv_cache=bf16"]);
}

#[test]
fn the_host_is_asked_for_presets_once() {
    let mut d = solo(Scene::live(), "blocks", SIZE, true);
    d.frames(20);
    assert_eq!(d.scene.count(|r| matches!(r, Request::ListPresets)), 1);
    assert!(d.scene.count(|r| matches!(r, Request::PreviewRecipe(_))) == 0);
    let answered = |r: &Request| matches!(r, Request::ListPresets).then(|| Ok(Reply::Presets(Vec::new())));
    d.scene.answer(answered);
}

#[test]
fn both_themes_both_zooms_and_narrow() {
    for dark in [true, false] {
        for zoom in [1.0, 2.0] {
            let look = Look {
                size: [900.0, 520.0],
                dark,
                zoom,
            };
            let mut d = solo_as(Scene::live(), "blocks", look);
            click(&mut d, "layer 2 attention: own");
            d.harness.check_accessibility();
            hover(&mut d, "attention own");
            let theme = if dark { "dark" } else { "light" };
            d.shot(&format!("blocks-{theme}-{zoom}"));
        }
    }
    let mut d = solo(Scene::live(), "blocks", [300.0, 640.0], true);
    click(&mut d, "layer 1 attention: own");
    d.shot("blocks-narrow");
}

/// The panel enlarged in the window that has all the others, too.
fn enlarged(size: [f32; 2], dark: bool, zoom: f32) -> Desk {
    let mut d = common::desk(Scene::live(), Look { size, dark, zoom });
    d.app_mut().layout.show("blocks");
    d.app_mut().layout.full = Some("blocks".into());
    d.frames(6);
    d
}

#[test]
fn every_slots_cells_are_chosen_and_changed_in_a_wide_panel() {
    for (size, dark, zoom) in [
        ([1440.0, 900.0], true, 1.0),
        ([1440.0, 900.0], false, 2.0),
        ([2560.0, 1200.0], false, 1.0),
    ] {
        let mut d = enlarged(size, dark, zoom);
        // Cells of a layer: each opens the editor of its slot beside the grid, with the form of its options.
        for (slot, own) in [
            ("attention", "own"),
            ("ffn", "own"),
            ("kv_cache", "fp8_model1"),
            ("index_cache", "fp4"),
        ] {
            let cell = format!("layer 2 {slot}: {own}");
            click(&mut d, &cell);
            assert!(!d.says("broke"), "{slot}: {:#?}", d.said("broke"));
            assert!(on(&d, &cell), "{slot} at {size:?}, zoom {zoom}");
            let (at, editor) = (d.harness.get_by_label(&cell).rect(), d.node("Close the editor").rect());
            assert!(editor.left() > at.right(), "{slot}: the editor stands beside the grid");
            assert!(d.says(&format!("{slot} {own}")), "{slot}: its variants are there");
            // Everything of it is in the window.
            let right = d.said(&format!("{slot} {own}")).len();
            assert!(right > 0 && editor.right() * zoom <= size[0], "{slot}: {editor:?}");
        }
        // Slots of the model as a whole, too.
        click(&mut d, "weights.lm_head: own");
        assert!(!d.says("broke") && on(&d, "weights.lm_head: own"));
        d.harness
            .get_by_label("layer 3 kv_cache: fp8_model1")
            .click_modifiers(egui::Modifiers::default());
        d.frames(4);
        d.harness
            .get_by_label("layer 6 kv_cache: fp8_model1")
            .click_modifiers(egui::Modifiers::SHIFT);
        d.frames(4);
        click(&mut d, "kv_cache bf16");
        assert_eq!(edits(&d), ["layers.3-6.kv_cache=bf16"]);
        for layer in 3..7 {
            let cell = format!("layer {layer} kv_cache: bf16, changed");
            assert!(on(&d, &cell), "{cell} stays chosen");
        }
        d.shot(&format!(
            "blocks-enlarged-{}-{}-{zoom}",
            size[0],
            if dark { "dark" } else { "light" }
        ));
    }
}
