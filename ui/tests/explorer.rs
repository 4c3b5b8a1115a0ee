//! The model explorer against the scripted host: tree, tensor, memory, plan.
#![allow(clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod common;
mod solo;

use common::{Desk, Look, desk};
use egui_kittest::kittest::{NodeT, Queryable};
use protocol::{BlockView, LayerFactsView, PlanView, Reply, Request, TensorView};
use solo::{alone, click, hover, solo, solo_as};
use ui::testing::Scene;

const SIZE: [f32; 2] = [420.0, 760.0];
const WIDE: [f32; 2] = [820.0, 620.0];

/// Names of the rows shown, top to bottom.
fn rows(d: &Desk) -> Vec<String> {
    let mut all: Vec<(i32, String)> = d
        .harness
        .query_all_by_role(egui::Role::TreeItem)
        .filter_map(|n| Some((n.rect().top() as i32, n.accesskit_node().label()?)))
        .collect();
    all.sort();
    all.into_iter().map(|(_, name)| name).collect()
}

/// Clicks the row that starts with this.
fn open(d: &mut Desk, start: &str) {
    let name = rows(d).into_iter().find(|r| r.starts_with(start));
    assert!(name.is_some(), "no row {start} in {:?}", rows(d));
    click(d, &name.unwrap_or_default());
}

fn expanded(d: &Desk, start: &str) -> Option<bool> {
    let rows = d.harness.query_all_by_role(egui::Role::TreeItem);
    let mut rows = rows.filter(|n| n.accesskit_node().label().is_some_and(|l| l.starts_with(start)));
    rows.next().and_then(|n| n.accesskit_node().data().is_expanded())
}

#[test]
fn the_tree_goes_from_the_model_to_its_tensors() {
    let mut d = solo(Scene::live(), "explorer", SIZE, true);
    let all = rows(&d);
    assert_eq!(all.len(), 1 + 1 + 7 + 1, "{all:?}");
    assert!(all[0].starts_with("MODEL1-mini 21.3\u{2009}M parameters"), "{all:?}");
    assert!(all[2].starts_with("layer 0 SWA "), "{all:?}");
    assert!(all[4].starts_with("layer 2 CSA "), "{all:?}");
    assert_eq!(expanded(&d, "layer 2"), Some(false));
    open(&mut d, "layer 2");
    assert_eq!(expanded(&d, "layer 2"), Some(true));
    assert_eq!(d.app().selection.locked().layer, Some(2), "every view shows the layer");
    open(&mut d, "attention");
    let all = rows(&d);
    assert!(all.iter().any(|r| r == "index_cache fp4"), "{all:?}");
    assert!(
        all.iter()
            .any(|r| r.starts_with("layers.2.attn.wkv.weight 512 × 256  fp8")),
        "{all:?}"
    );
    open(&mut d, "layers.2.attn.wkv.weight");
    let asked = d.scene.last(|r| matches!(r, Request::GetTensor(_)));
    assert_eq!(asked, Some(Request::GetTensor("layers.2.attn.wkv.weight".into())));
    let chart = d.said("Histogram: ");
    assert!(
        chart[0].contains("mean 0.000400") && chart[0].contains("standard deviation 0.0520"),
        "{chart:?}"
    );
    d.shot("explorer-tensor-card");
    click(&mut d, "Close the tensor");
    assert!(d.said("Histogram: ").is_empty());
    open(&mut d, "layer 2");
    assert_eq!(rows(&d).len(), 10);
    assert_eq!(d.app().selection.locked().layer, None);
}

#[test]
fn a_changed_slot_is_marked_and_leads_to_the_blocks() {
    let scene = Scene::live();
    scene.edit(|s| {
        if let Some(recipe) = &mut s.state.recipe {
            recipe.changes.push(protocol::Edit {
                selector: "layers.3-4.kv_cache".into(),
                choice: protocol::ChoiceView {
                    variant: "bf16".into(),
                    options: vec![],
                },
            });
        }
    });
    let mut d = solo(scene, "explorer", SIZE, true);
    let changed: Vec<String> = rows(&d).into_iter().filter(|r| r.contains(", changed")).collect();
    assert_eq!(changed.len(), 2, "{changed:?}");
    open(&mut d, "layer 3");
    open(&mut d, "attention");
    open(&mut d, "kv_cache, changed");
    assert!(d.app().layout.has("blocks") || d.app().layout.left_tab == "blocks");
}

#[test]
fn ctrl_f_finds_tensors() {
    let mut d = desk(Scene::live(), Look::default());
    d.harness.key_press_modifiers(egui::Modifiers::COMMAND, egui::Key::F);
    d.frames(4);
    assert!(d.harness.get_by_label("Find in the model").is_focused());
    d.harness.event(egui::Event::Text("compressor".into()));
    d.frames(4);
    d.harness.get_by_label("5 tensors");
    let found = rows(&d);
    assert!(
        found
            .iter()
            .any(|r| r.starts_with("layers.6.attn.compressor.wkv.weight")),
        "{found:?}"
    );
    assert!(!found.iter().any(|r| r.starts_with("layer 0")), "{found:?}");
    d.shot("explorer-search");
    click(&mut d, "Clear the search");
    assert!(rows(&d).iter().any(|r| r.starts_with("layer 0")));
    d.harness.get_by_label("Find in the model").focus();
    d.frames(1);
    d.harness.event(egui::Event::Text("no such thing".into()));
    d.frames(4);
    d.harness.get_by_label("0 tensors");
    d.harness.get_by_label("Nothing in this model has that name.");
}

#[test]
fn keys_open_and_close_rows() {
    let mut d = solo(Scene::live(), "explorer", SIZE, true);
    let name = rows(&d).into_iter().find(|r| r.starts_with("layer 1")).expect("a row");
    d.harness.get_by_label(&name).focus();
    d.frames(2);
    d.harness.key_press(egui::Key::Enter);
    d.frames(3);
    assert_eq!(expanded(&d, "layer 1"), Some(true));
    assert!(d.harness.get_by_label(&name).is_focused(), "the focus stays on the row");
    d.harness.key_press(egui::Key::Enter);
    d.frames(3);
    assert_eq!(expanded(&d, "layer 1"), Some(false));
}

#[test]
fn a_layer_chosen_elsewhere_is_scrolled_to() {
    let scene = big(300);
    let mut d = solo(scene, "explorer", SIZE, true);
    assert!(!rows(&d).iter().any(|r| r.starts_with("layer 250 ")));
    let app = d.harness.state_mut().as_mut().expect("an app");
    app.selection.lock(ui::selection::Spot::layer(250));
    d.frames(4);
    assert!(rows(&d).iter().any(|r| r.starts_with("layer 250 ")), "{:?}", rows(&d));
}

#[test]
fn the_memory_bar_tells_every_part() {
    let mut d = solo(Scene::live(), "explorer", SIZE, true);
    let bar = d.said("Memory: ");
    assert_eq!(bar.len(), 1, "{bar:?}");
    for part in [
        "weights 21.4\u{2009}MiB",
        "window ",
        "compressed rows ",
        "indexer keys ",
        "workspace 64.0\u{2009}MiB est.",
        "free 7.40\u{2009}GiB",
    ] {
        assert!(bar[0].contains(part), "{part} is missing in {bar:?}");
    }
    click(&mut d, "Memory, show the parts");
    for part in ["weights", "window", "compressed rows", "pooling state", "workspace"] {
        d.harness.get_by_label(part);
    }
    d.shot("explorer-memory");
    // Before the first step the cache is an estimate, and says so.
    let d = solo(Scene::empty(), "explorer", SIZE, true);
    let bar = d.said("Memory: ");
    assert!(
        bar[0].contains("window") && bar[0].contains("est., workspace"),
        "{bar:?}"
    );
}

#[test]
fn the_plan_expands_in_place_with_costs() {
    let mut d = solo(Scene::finished(), "explorer.plan", WIDE, true);
    let all = rows(&d);
    assert!(all[0].starts_with("embedding"), "{all:?}");
    assert_eq!(all.len(), 1 + 7 + 1, "{all:?}");
    assert!(all[1].contains("FLOPs") && all[1].contains("iB"), "{all:?}");
    assert!(!all[1].contains("µs"), "nothing was timed: {all:?}");
    open(&mut d, "layer 2");
    open(&mut d, "attention");
    let all = rows(&d);
    assert!(all.iter().any(|r| r.starts_with("indexer scores score: ")), "{all:?}");
    assert!(
        all.iter().any(|r| r.starts_with("q_a matmul  fused with 2 others: ")),
        "{all:?}"
    );
    d.shot("plan-open");
    // The edges are said, too: what an op reads, and what reads it.
    let row = |name: &str| all.iter().find(|r| r.starts_with(name)).expect("a row").clone();
    assert!(
        row("attend ").ends_with("; reads rope, write row, select; read by out"),
        "{}",
        row("attend ")
    );
    assert!(
        row("norm ").ends_with("; reads hc pre; read by q_a, kv, indexer scores"),
        "{}",
        row("norm ")
    );
    let whole = d.said("whole step: ");
    assert!(whole[0].contains("FLOPs"), "{whole:?}");
    hover(&mut d, all.iter().find(|r| r.starts_with("attend ")).expect("a row"));
    d.harness.get_by_label("cache moved");
    d.harness.get_by_label("reads rope, write row, select");
    d.shot("plan-edges");
    let context = d.app().store.state.as_ref().expect("a state").position / 128 * 128;
    let asked = d.scene.last(|r| matches!(r, Request::GetPlan { .. }));
    assert_eq!(asked, Some(Request::GetPlan { tokens: 1, context }));
    click(&mut d, "Step: decode, 1 token");
    click(&mut d, "prefill, 128 tokens");
    click(&mut d, "Context: at the text's end");
    click(&mut d, "full context");
    let asked = d.scene.last(|r| matches!(r, Request::GetPlan { .. }));
    assert_eq!(
        asked,
        Some(Request::GetPlan {
            tokens: 128,
            context: 4096 - 128
        })
    );
    click(&mut d, "Close all");
    assert_eq!(rows(&d).len(), 9);
}

#[test]
fn op_timing_is_switched_on_and_shows_times() {
    let mut d = solo(Scene::finished(), "explorer.plan", WIDE, true);
    click(&mut d, "Time ops on sampled steps");
    assert_eq!(d.scene.count(|r| *r == Request::SetOpTiming(true)), 1);
    d.frames(4);
    let all = rows(&d);
    assert!(all[1].contains("~") && all[1].contains("µs"), "{all:?}");
    open(&mut d, "head");
    let logits = rows(&d).into_iter().find(|r| r.starts_with("logits")).expect("a row");
    hover(&mut d, &logits);
    d.harness.get_by_label("bytes per second");
    d.shot("plan-timed");
    let mut d = {
        let scene = Scene::finished();
        scene.edit(|s| s.state.driver = false);
        solo(scene, "explorer.plan", WIDE, true)
    };
    click(&mut d, "Time ops on sampled steps");
    assert_eq!(
        d.scene.count(|r| matches!(r, Request::SetOpTiming(_))),
        0,
        "a viewer cannot"
    );
}

#[test]
fn a_tensor_in_full() {
    let mut d = solo(Scene::live(), "explorer.tensor", WIDE, true);
    let what = "Statistics and the histogram of a tensor appear here once one is chosen in the model tree.";
    d.harness.get_by_label(what);
    d.shot("tensor-none");
    alone(&mut d, "explorer");
    open(&mut d, "head");
    open(&mut d, "head.weight");
    alone(&mut d, "explorer.tensor");
    d.harness.get_by_label("standard deviation");
    d.harness.get_by_label("0.0520");
    let facts = d.said("bits per value");
    assert!(
        facts[0].contains("4\u{2009}096 × 256") && facts[0].contains("16.0 bits per value"),
        "{facts:?}"
    );
    d.shot("tensor-full");
}

#[test]
fn empty_waiting_and_failing() {
    for view in ["explorer", "explorer.plan"] {
        let d = solo(Scene::waiting(), view, SIZE, true);
        let said = if view == "explorer" {
            "The model's tensors are being listed"
        } else {
            "The plan is being made"
        };
        d.harness.get_by_label(said);
        let mut d = solo(Scene::failing(), view, SIZE, true);
        d.harness
            .get_by_label("The engine process ended while it computed this.");
        d.shot(&format!("{view}-failing"));
        click(&mut d, "Copy details");
        d.harness.get_by_label("Copied");
    }
}

/// A fake model of many layers with eight tensors each.
fn big(layers: u32) -> Scene {
    let scene = Scene::live();
    scene.edit(|s| {
        if let protocol::ModelState::Ready(m) = &mut s.state.model {
            let facts: LayerFactsView = m.facts.layers[0].clone();
            m.facts.layers = vec![facts; layers as usize];
        }
    });
    scene.answer(move |r| match r {
        Request::GetTree => Some(Ok(Reply::Tree(
            (0..layers)
                .flat_map(|l| ["attention", "ffn"].map(|b| block(l, b)))
                .collect(),
        ))),
        Request::GetPlan { tokens, context } => Some(Ok(Reply::Plan(plan(layers, *tokens, *context)))),
        _ => None,
    });
    scene
}

fn block(layer: u32, block: &str) -> BlockView {
    BlockView {
        layer: Some(layer),
        block: block.into(),
        kind: "of a fake model".into(),
        slots: vec![("kv_cache".into(), "bf16".into())],
        tensors: (0..4)
            .map(|i| TensorView {
                name: format!("layers.{layer}.{block}.w{i}"),
                shape: [64, 64],
                format: "bf16".into(),
                bytes: 8192,
            })
            .collect(),
    }
}

fn plan(layers: u32, tokens: u32, context: u64) -> PlanView {
    let op = |layer: u32, i: u32, block: &str| protocol::OpView {
        id: layer * 20 + i,
        inputs: (layer * 20 + i).checked_sub(1).into_iter().collect(),
        layer: Some(layer),
        block: block.into(),
        name: format!("op {i}"),
        kind: "mat_mul".into(),
        flops: 1000,
        weight_bytes: 500,
        cache_bytes: 0,
        activation_bytes: 8,
        fused_with: 1,
        time: None,
    };
    let of = |l: u32| (0..20).map(move |i| op(l, i, if i < 12 { "attention" } else { "ffn" }));
    PlanView {
        hash: "big".into(),
        phase: "decode".into(),
        tokens: u64::from(tokens),
        context,
        ops: (0..layers).flat_map(of).collect(),
    }
}

#[test]
fn five_thousand_layers_are_rows_that_are_seen() {
    let mut d = solo(big(5000), "explorer", SIZE, true);
    assert!((10..60).contains(&rows(&d).len()), "{} rows are made", rows(&d).len());
    alone(&mut d, "explorer.plan");
    assert!((10..60).contains(&rows(&d).len()), "{} rows are made", rows(&d).len());
    click(&mut d, "Open all layers");
    assert!((10..60).contains(&rows(&d).len()), "{} rows are made", rows(&d).len());
    assert!(
        rows(&d)[1].starts_with("attention 12 ops: 12.0\u{2009}k FLOPs"),
        "{:?}",
        rows(&d)
    );
    let whole = d.said("whole step: ");
    assert!(whole[0].contains("100\u{2009}M FLOPs"), "{whole:?}");
}

#[test]
fn both_themes_both_zooms() {
    for dark in [true, false] {
        for zoom in [1.0, 2.0] {
            let theme = if dark { "dark" } else { "light" };
            for (view, size) in [("explorer", SIZE), ("explorer.plan", WIDE)] {
                let look = Look { size, dark, zoom };
                let mut d = solo_as(Scene::live(), view, look);
                d.scene.change(|s| s.op_timing = view == "explorer.plan" && zoom == 1.0);
                d.frames(4);
                open(&mut d, "layer 2");
                open(&mut d, "attention");
                d.harness.check_accessibility();
                d.shot(&format!("{view}-{theme}-{zoom}"));
            }
        }
    }
}
