//! What variants do to a model, seen from outside: heads that are switched off.

use std::sync::Arc;

use engine::inspect::Replay;
use engine::{Cancel, Engine, Recipe, Session, SessionOptions, Watch};
use model1_tests::goldens::{engine, relative};
use protocol::AttentionSpec;

fn recipe(engine: &Engine, edits: &[&str]) -> Recipe {
    let mut r = engine.recipe();
    for e in edits {
        r.set(e, engine.facts(), engine.registry())
            .unwrap_or_else(|x| panic!("{e}: {x}"));
    }
    r
}

fn session(engine: &Arc<Engine>, edits: &[&str]) -> Session {
    engine
        .session(recipe(engine, edits), SessionOptions::default())
        .unwrap()
}

fn ids(engine: &Engine, n: usize) -> Vec<u32> {
    let vocab = engine.facts().vocab as u32;
    (0..n as u32).map(|i| (i * 7919 + 13) % (vocab - 2) + 2).collect()
}

/// Logits after `n` tokens, fed in chunks of `chunk`.
fn logits(engine: &Arc<Engine>, edits: &[&str], n: usize, chunk: usize) -> Vec<f32> {
    let mut session = session(engine, edits);
    for part in ids(engine, n).chunks(chunk) {
        session.feed(part, None, &Cancel::default(), &mut ()).unwrap();
    }
    session.output().logits.clone()
}

/// What the recipe was refused with.
fn refusal(engine: &Engine, edit: &str) -> String {
    let (mut r, own) = (engine.recipe(), engine.recipe());
    let text = r.set(edit, engine.facts(), engine.registry()).unwrap_err().to_string();
    assert_eq!(r, own, "{edit}: a refused edit changes nothing");
    text
}

/// With every head of a layer switched off, nothing its attention sees matters; with one left on, it does.
#[test]
fn heads_that_are_off_say_nothing() {
    for (name, layer) in [("tiny-llama", 1), ("tiny-gpt2", 1), ("tiny-v4", 2)] {
        let engine = engine(name, 2);
        let last = engine.facts().layers[layer].heads - 1;
        let with = |variant: &str, heads: &str| {
            let edit = format!("layers.{layer}.attention={variant}zero={heads}");
            logits(&engine, &[&edit], 60, 60)
        };
        let (all, most) = (format!("0-{last}"), format!("1-{last}"));
        assert_eq!(with("heads:", &all), with("top_k:k=1,", &all), "{name}");
        assert_ne!(with("heads:", &most), with("top_k:k=1,", &most), "{name}");
        assert_ne!(with("heads:", &most), with("heads:", &all), "{name}");
        // None named: the checkpoint's own, bit for bit.
        let none = format!("layers.{layer}.attention=heads");
        assert_eq!(
            logits(&engine, &[&none], 60, 60),
            logits(&engine, &[], 60, 60),
            "{name}"
        );
    }
}

/// A head under `mean` gives every key it may see the same weight; its neighbours do not change.
#[test]
fn a_mean_head_looks_at_all_keys_alike() {
    let engine = engine("tiny-llama", 2);
    let text = ids(&engine, 40);
    let map = |edits: &[&str], head: u32| {
        let recipe = recipe(&engine, edits);
        let replay = Replay {
            engine: &engine,
            recipe: &recipe,
            ids: &text,
        };
        let spec = AttentionSpec {
            layer: 1,
            head: Some(head),
            from: 0,
            to: text.len() as u64,
        };
        let mut progress = |_, _| {};
        let mut watch = Watch {
            cancel: &Cancel::default(),
            progress: &mut progress,
        };
        replay.attention(&spec, &mut watch).unwrap().values
    };
    let n = text.len();
    let mean = map(&["layers.1.attention=heads:mean=3"], 3);
    let window = map(&["layers.1.attention=sliding_window:window=8,sinks=0,mean=3"], 3);
    for t in 0..n {
        for (values, seen) in [(&mean, t + 1), (&window, 8.min(t + 1))] {
            for (j, &p) in values[t * n..(t + 1) * n].iter().enumerate() {
                let visible = j <= t && j + seen > t;
                let want = if visible { 1.0 / seen as f32 } else { p.min(0.0) };
                assert!((p - want).abs() < 1e-6, "query {t}, key {j}: {p} for {want}");
            }
        }
    }
    assert_eq!(map(&["layers.1.attention=heads:mean=3"], 4), map(&[], 4));
}

/// Switched-off heads need no state: prefill, token by token and odd chunks agree, and going back leaves no trace.
#[test]
fn switched_off_heads_do_not_depend_on_the_schedule() {
    let edits = ["layers.*.attention=heads:zero=0,mean=1-2"];
    for name in ["tiny-llama", "tiny-v4"] {
        let engine = engine(name, 2);
        let mut edits = edits.to_vec();
        edits.push("layers.*.kv_cache=f32");
        if name == "tiny-v4" {
            edits.push("layers.*.index_cache=f32");
        }
        let whole = logits(&engine, &edits, 70, 70);
        for chunk in [1, 7, 33] {
            let e = relative(&logits(&engine, &edits, 70, chunk), &whole);
            assert!(e < 2e-5, "{name}, chunks of {chunk}: {e}");
        }
        let text = ids(&engine, 70);
        let mut session = session(&engine, &edits);
        session.feed(&text[..50], None, &Cancel::default(), &mut ()).unwrap();
        let there = session.output().logits.clone();
        session.feed(&text[50..], None, &Cancel::default(), &mut ()).unwrap();
        session.truncate(50, &Cancel::default()).unwrap();
        assert_eq!(session.output().logits, there, "{name}");
    }
}

#[test]
fn heads_that_do_not_exist_are_refused() {
    let engine = engine("tiny-llama", 1);
    let cases = [
        ("heads:zero=8", "found head 8, accepted: 0 to 7"),
        ("sliding_window:mean=0,9", "found head 9, accepted: 0 to 7"),
        ("heads:zero=1-3,mean=2", "head 2 is named by both"),
        (
            "heads:zero=3-1",
            "found \"3-1\", accepted: head numbers, for example 0,5-7",
        ),
        ("heads:zero=99999", "accepted: head numbers"),
        ("heads:none=1", "has no option `none`; accepted: zero, mean"),
        ("top_k:mean=1", "has no option `mean`; accepted: k, zero"),
        ("heads:zero", "option `zero`: accepted: NAME=VALUE"),
    ];
    for (choice, want) in cases {
        let text = refusal(&engine, &format!("layers.1.attention={choice}"));
        assert!(text.contains(want), "{choice}: {text}");
    }
    // One computation has one form, however it was written.
    let form = |edit: &str| recipe(&engine, &[edit]).hash();
    let want = form("layers.0.attention=heads:zero=0-2,5");
    assert_eq!(form("layers.0.attention=heads:zero=5,2,1,0,1"), want);
    let json = r#"{"schema":1,"set":{"layers.0.attention":{"heads":{"zero":[5,0,1,2]}}}}"#;
    let read = Recipe::parse(json, "test", engine.facts(), engine.registry()).unwrap();
    assert_eq!(read.hash(), want);
    let again = Recipe::parse(
        &serde_json::to_string(&read).unwrap(),
        "test",
        engine.facts(),
        engine.registry(),
    );
    assert_eq!(again.unwrap(), read);
}
