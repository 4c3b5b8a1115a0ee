//! Cost of a frame under load, at 1280 x 800. Layout, painting and tessellation are counted; the graphics card is not.
//!
//! 1. 60 layers at 2 000 steps/s arriving in 30 updates/s: the Generate workspace with every chart.
//! 2. A model of 5 000 layers with 100 000 ops: the Bench workspace with the tree and the plan.
//!
//! `cargo run --release -p model1-ui --example frame_cost`

use std::time::Instant;

use protocol::{BlockView, ModelState, OpView, PlanView, Reply, Request, StepRecord, TensorView, TokenEntry, Update};
use ui::App;
use ui::layout::Workspace;
use ui::platform::NoPlatform;
use ui::testing::{Scene, steps, token};

const STEPS_PER_FRAME: usize = 2000 / 30;
const FRAMES: usize = 300;
/// Frames before the clock counts: the first ones load fonts and lay tiles out.
const WARM: usize = 30;

fn main() {
    stream(60);
    deep(5000);
}

/// Makes the model as deep as this by repeating its layers.
fn deepen(scene: &Scene, layers: usize) {
    scene.edit(|s| {
        if let ModelState::Ready(m) = &mut s.state.model {
            let own = m.facts.layers.clone();
            m.facts.layers = own.into_iter().cycle().take(layers).collect();
            for slot in m.slots.iter_mut().filter(|s| s.per_layer) {
                slot.layers = (0..layers as u32).collect();
            }
        }
        if let Some(recipe) = &mut s.state.recipe {
            let own = recipe.layers.clone();
            recipe.layers = own.into_iter().cycle().take(layers).collect();
        }
    });
}

fn stream(layers: usize) {
    let scene = Scene::live();
    deepen(&scene, layers);
    let wide = |step: &StepRecord| StepRecord {
        layers: step.layers.iter().cycle().take(layers).cloned().collect(),
        ..step.clone()
    };
    let all: Vec<StepRecord> = steps(300 + STEPS_PER_FRAME * (FRAMES + WARM))
        .iter()
        .map(wide)
        .collect();
    scene.edit(|s| {
        s.steps = all[..301].to_vec();
        s.state.context = 1 << 20;
    });
    let mut at = 301;
    let host = scene.clone();
    measure(
        &format!("{layers} layers, {STEPS_PER_FRAME} steps per frame"),
        &scene,
        Workspace::Generate,
        |frame| {
            if frame < 5 {
                return;
            }
            let batch = all[at..at + STEPS_PER_FRAME].to_vec();
            let tokens = (at - 1..at - 1 + STEPS_PER_FRAME).map(|index| TokenEntry {
                seq: 20_000 + index as u64,
                doc: 1,
                node: 3,
                index: index as u32,
                info: token(index),
            });
            at += STEPS_PER_FRAME;
            host.push(Update {
                last_step: batch.last().map_or(0, |s| s.seq),
                steps: batch,
                tokens: tokens.collect(),
                ..Update::default()
            });
        },
    );
}

fn deep(layers: usize) {
    let scene = Scene::finished();
    deepen(&scene, layers);
    scene.answer(move |r| match r {
        Request::GetTree => Some(Ok(Reply::Tree(tree(layers as u32)))),
        Request::GetPlan { .. } => Some(Ok(Reply::Plan(plan(layers as u32)))),
        _ => None,
    });
    measure(
        &format!("{layers} layers in tree and plan"),
        &scene,
        Workspace::Bench,
        |_| {},
    );
}

fn tree(layers: u32) -> Vec<BlockView> {
    let tensor = |l: u32, b: &str, i: u32| TensorView {
        name: format!("layers.{l}.{b}.w{i}"),
        shape: [64, 64],
        format: "bf16".into(),
        bytes: 8192,
    };
    let block = move |l: u32, b: &str| BlockView {
        layer: Some(l),
        block: b.into(),
        kind: "a block".into(),
        slots: vec![("kv_cache".into(), "bf16".into())],
        tensors: (0..8).map(|i| tensor(l, b, i)).collect(),
    };
    (0..layers)
        .flat_map(|l| ["attention", "ffn"].map(|b| block(l, b)))
        .collect()
}

fn plan(layers: u32) -> PlanView {
    let op = |layer: u32, i: u32| OpView {
        id: layer * 20 + i,
        inputs: (layer * 20 + i).checked_sub(1).into_iter().collect(),
        layer: Some(layer),
        block: if i < 12 { "attention" } else { "ffn" }.into(),
        name: format!("op {i}"),
        kind: "mat_mul".into(),
        flops: 1000,
        weight_bytes: 500,
        cache_bytes: 20,
        activation_bytes: 8,
        fused_with: 1,
        time: None,
    };
    PlanView {
        hash: "deep".into(),
        phase: "decode".into(),
        tokens: 1,
        context: 0,
        ops: (0..layers).flat_map(|l| (0..20).map(move |i| op(l, i))).collect(),
    }
}

/// Runs frames and prints their percentiles; `before` plays the host.
fn measure(what: &str, scene: &Scene, workspace: Workspace, mut before: impl FnMut(usize)) {
    let ctx = egui::Context::default();
    let mut app = App::new(&ctx, scene.dialer(), Box::new(NoPlatform::default()), "bench");
    let rect = egui::Rect::from_min_size(egui::Pos2::ZERO, egui::vec2(1280.0, 800.0));
    let mut costs = Vec::new();
    let mut triangles = 0;
    for frame in 0..FRAMES + WARM {
        before(frame);
        app.layout.workspace = workspace;
        let input = egui::RawInput {
            screen_rect: Some(rect),
            time: Some(frame as f64 / 30.0),
            ..Default::default()
        };
        let begin = Instant::now();
        let mut output = ctx.run_ui(input, |ui| app.frame(ui));
        let drawn = ctx.tessellate(output.shapes, output.pixels_per_point);
        let ms = begin.elapsed().as_secs_f64() * 1e3;
        // Nobody uploads textures here.
        output.textures_delta.clear();
        if frame >= WARM {
            costs.push(ms);
        }
        triangles = drawn.iter().map(|d| triangles_of(&d.primitive)).sum();
    }
    costs.sort_by(f64::total_cmp);
    let place = |share: f64| costs[((costs.len() - 1) as f64 * share) as usize];
    println!(
        "{what}: {} frames of {triangles} triangles, p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        costs.len(),
        place(0.5),
        place(0.95),
        place(0.99),
        place(1.0)
    );
}

fn triangles_of(primitive: &egui::epaint::Primitive) -> usize {
    match primitive {
        egui::epaint::Primitive::Mesh(mesh) => mesh.indices.len() / 3,
        egui::epaint::Primitive::Callback(_) => 0,
    }
}
