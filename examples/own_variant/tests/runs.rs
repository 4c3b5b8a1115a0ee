//! The variant in a real (tiny) model, through the engine's public interface alone.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use engine::recipe::validity;
use engine::{Cancel, Engine, EngineOptions, SessionOptions, Silent};

fn engine(name: &str) -> Arc<Engine> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/goldens")
        .join(name);
    let options = EngineOptions {
        registry: own_variant::registry(),
        ..EngineOptions::default()
    };
    Engine::open(&path, &options, &Silent).unwrap()
}

fn logits(engine: &Arc<Engine>, edit: &str) -> Vec<f32> {
    let mut recipe = engine.recipe();
    recipe.set(edit, engine.facts(), engine.registry()).unwrap();
    let mut session = engine.session(recipe, SessionOptions::default()).unwrap();
    let ids: Vec<u32> = (0..60).map(|i| i * 31 % 50 + 2).collect();
    session.feed(&ids, None, &Cancel::default(), &mut ()).unwrap();
    session.output().logits.clone()
}

#[test]
fn it_is_a_variant_like_the_others() {
    let engine = engine("tiny-llama");
    let own = logits(&engine, "layers.*.attention=own");
    // Near enough to see everything: the checkpoint's own.
    assert_eq!(logits(&engine, "layers.*.attention=dilated:near=60"), own);
    assert_ne!(logits(&engine, "layers.*.attention=dilated:near=8,stride=4"), own);
    // A stride beyond the text leaves the first key and the window.
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let window = logits(&engine, "layers.*.attention=sliding_window:window=8,sinks=1");
    let dilated = logits(&engine, "layers.*.attention=dilated:near=8,stride=64");
    assert!(distance(&dilated, &window) < 1e-4 && distance(&window, &own) > 1e-2);
    let cells = validity(engine.registry(), &engine.facts().layers);
    assert!(cells.iter().any(|c| c.variant == "dilated" && c.refused.is_none()));
}

#[test]
fn it_is_checked_like_the_others() {
    let engine = engine("tiny-v4");
    let refused = |edit: &str| {
        let mut recipe = engine.recipe();
        let text = recipe
            .set(edit, engine.facts(), engine.registry())
            .unwrap_err()
            .to_string();
        assert_eq!(recipe, engine.recipe());
        text
    };
    assert!(refused("layers.0.attention=dilated").contains("no key per token"));
    assert!(refused("layers.0.attention=dilated:stride=1").contains("found 1, accepted: 2 to 65536"));
}
