//! What variants do to a model, seen from outside: heads that are switched off, hidden units that are left out,
//! scores written by the user, weights from another checkpoint.

use std::sync::Arc;

use engine::inspect::Replay;
use engine::{Cancel, Engine, Recipe, Session, SessionOptions, Watch};
use model1_tests::goldens::{engine, engine_with, folder, relative};
use model1_tests::models::{config, tensors_of, write};
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

/// All hidden units are the checkpoint's own block; fewer are less, and telemetry says how many stayed. Experts,
/// activation and top-p go together.
#[test]
fn hidden_units_are_left_out() {
    for name in ["tiny-llama", "tiny-gpt2", "tiny-v4"] {
        let engine = engine(name, 2);
        let own = logits(&engine, &[], 40, 40);
        assert_eq!(logits(&engine, &["layers.*.ffn=top_p:p=1"], 40, 40), own, "{name}");
        let mut distances = Vec::new();
        let mut shares = Vec::new();
        for p in ["0.99", "0.8", "0.3"] {
            let edit = format!("layers.*.ffn=top_p:p={p}");
            distances.push(relative(&logits(&engine, &[&edit], 40, 40), &own));
            let mut session = session(&engine, &[&edit]);
            let mut layers = Vec::new();
            let mut see = |r: &protocol::StepRecord, _: &kernels::ir::StepOutput| layers.extend(r.layers.clone());
            session
                .feed(&ids(&engine, 40), None, &Cancel::default(), &mut see)
                .unwrap();
            let sum = |f: fn(&protocol::LayerRecord) -> u64| layers.iter().map(f).sum::<u64>();
            shares.push(sum(|l| l.ffn_kept) as f64 / sum(|l| l.ffn_units) as f64);
        }
        assert!(distances.is_sorted() && distances[0] > 0.0, "{name}: {distances:?}");
        assert!(shares[0] < 1.0 && shares[2] > 0.0, "{name}: {shares:?}");
        assert!(shares.windows(2).all(|w| w[1] < w[0]), "{name}: {shares:?}");
    }
}

#[test]
fn experts_activation_and_top_p_go_together() {
    let engine = engine("tiny-v4", 2);
    let with = |choice: &str| logits(&engine, &[&format!("layers.4.ffn={choice}")], 40, 40);
    // What an option does alone and together with one that changes nothing.
    assert_eq!(with("experts:k=3,top_p=1"), with("experts:k=3"));
    assert_eq!(with("relu:experts=2"), with("relu"));
    assert_ne!(with("relu:experts=3"), with("relu"));
    assert_ne!(with("relu:experts=3"), with("experts:k=3"));
    assert_ne!(with("relu:experts=3,top_p=0.5"), with("relu:experts=3"));
    assert_ne!(with("experts:k=3,top_p=0.5"), with("experts:k=3"));
    let refused = |choice: &str| refusal(&engine, &format!("layers.0.ffn={choice}"));
    assert!(refused("relu:experts=3").contains("accepted: 1 to 2"), "hash routing");
    assert!(
        refused("top_p:p=0").contains("found 0, accepted: 0.01 to 1"),
        "nothing would stay"
    );
    assert!(refused("top_p:p=1.5").contains("found 1.5, accepted: 0.01 to 1"));
    let dense = model1_tests::goldens::engine("tiny-llama", 1);
    let text = refusal(&dense, "layers.0.ffn=relu:experts=2");
    assert!(text.contains("has no experts"), "{text}");
}

/// What an expression can say of the masks there are, it says bit for bit alike or as close as another order of sums.
#[test]
fn expressions_stand_in_for_masks() {
    for name in ["tiny-llama", "tiny-gpt2"] {
        let engine = engine(name, 2);
        let with = |choice: &str| logits(&engine, &[&format!("layers.1.attention={choice}")], 60, 60);
        assert_eq!(with("score"), with("own"), "{name}");
        assert_eq!(with("score:\"score + 0*k\""), with("own"), "{name}");
        let window = with("sliding_window:window=9,sinks=2");
        let written = with("score:\"if(q-k<9 || k<2, score, -inf)\"");
        assert!(relative(&written, &window) < 1e-6, "{name}");
        assert!(relative(&with("own"), &window) > 1e-4, "{name}");
        // All alike is the mean.
        let mean = with("heads:mean=0-7");
        assert!(relative(&with("score:\"0\""), &mean) < 1e-6, "{name}");
        // ALiBi is another thing, and does not depend on the schedule.
        let alibi = "layers.*.attention=score:\"score - (q-k)*2^(-8*(head+1)/heads)\"";
        let whole = logits(&engine, &[alibi], 60, 60);
        assert!(relative(&whole, &with("own")) > 1e-4, "{name}");
        for chunk in [1, 7, 33] {
            assert!(
                relative(&logits(&engine, &[alibi], 60, chunk), &whole) < 2e-5,
                "{name} {chunk}"
            );
        }
    }
}

#[test]
fn expressions_keep_their_text_and_errors_point_at_it() {
    let engine = engine("tiny-llama", 1);
    let edit = "layers.0.attention=score:\"if(q-k<=2, score, -inf)\"";
    let written = recipe(&engine, &[edit]);
    let json = serde_json::to_string(&written).unwrap();
    assert!(
        json.contains(r#"{"score":{"expr":"if(q-k<=2, score, -inf)"}}"#),
        "{json}"
    );
    let again = Recipe::parse(&json, "test", engine.facts(), engine.registry()).unwrap();
    assert_eq!((again.hash(), &again), (written.hash(), &written));
    assert_eq!(
        written.changes_from(&engine.recipe())[0].to_string(),
        edit.replace(":\"", ":expr=\"")
    );
    let text = refusal(&engine, "layers.0.attention=score:\"score - 0.1*(q-kk)\"");
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].contains("column 16: no name `kk`; accepted: q, k, head"),
        "{text}"
    );
    assert_eq!(lines[1].find("kk"), lines[2].find('^'), "{text}");
    let text = refusal(&engine, "layers.0.attention=score:expr=1+");
    assert!(text.contains("column 3: found the end"), "{text}");
}

/// tiny-llama with every value of its layers halved, and with `inner` hidden units.
fn donor(dir: &std::path::Path, inner: usize) {
    let mut config = config("tiny-llama");
    let width = config["intermediate_size"].as_u64().unwrap() as usize;
    config["intermediate_size"] = inner.into();
    let mut tensors = tensors_of("tiny-llama");
    for (name, (_, shape, bytes)) in &mut tensors {
        if name.contains(".layers.") {
            for v in bytes.chunks_exact_mut(4) {
                let half = f32::from_le_bytes([v[0], v[1], v[2], v[3]]) / 2.0;
                v.copy_from_slice(&half.to_le_bytes());
            }
        }
        if name.contains(".mlp.") {
            let count = bytes.len() / width * inner;
            *bytes = bytes.iter().copied().cycle().take(count).collect();
            shape.iter_mut().filter(|n| **n == width).for_each(|n| *n = inner);
        }
    }
    write(dir, &config, &tensors);
}

/// A block with a donor's weights is the donor's block; the rest of the model is not touched, and going back is exact.
#[test]
fn a_block_runs_with_the_weights_of_another_checkpoint() {
    let engine = engine("tiny-llama", 2);
    let dir = tempfile::tempdir().unwrap();
    let width = config("tiny-llama")["intermediate_size"].as_u64().unwrap() as usize;
    donor(dir.path(), width);
    let from = dir.path().display();
    let own = logits(&engine, &[], 40, 40);
    // Every block from the donor, which shares what lies outside of layers: the donor itself.
    let all = [
        format!("layers.*.attention=transplant:from=\"{from}\""),
        format!("layers.*.ffn=transplant:from=\"{from}\""),
    ];
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let whole = engine_with(dir.path(), engine.backend().clone()).unwrap();
    assert_eq!(logits(&engine, &all, 40, 40), logits(&whole, &[], 40, 40));
    let one = logits(&engine, &all[1..], 40, 40);
    assert!(relative(&one, &own) > 1e-3 && relative(&one, &logits(&whole, &[], 40, 40)) > 1e-3);
    // From itself: nothing changes.
    let itself = format!("layers.2.ffn=transplant:from=\"{}\"", folder("tiny-llama").display());
    assert_eq!(logits(&engine, &[&itself], 40, 40), own);
    // In the middle of a text, there and back.
    let mut session = session(&engine, &[]);
    let text = ids(&engine, 41);
    session.feed(&text[..40], None, &Cancel::default(), &mut ()).unwrap();
    session.set(all[1]).unwrap();
    session.set("layers.*.ffn=own").unwrap();
    session.feed(&text[40..], None, &Cancel::default(), &mut ()).unwrap();
    assert_eq!(session.output().logits, logits(&engine, &[], 41, 40));
}

#[test]
fn a_donor_that_does_not_fit_is_refused() {
    let engine = engine("tiny-llama", 1);
    let dir = tempfile::tempdir().unwrap();
    let width = config("tiny-llama")["intermediate_size"].as_u64().unwrap() as usize;
    donor(dir.path(), 2 * width);
    let mut session = session(&engine, &[]);
    let before = session.recipe().clone();
    let mut refused = |slot: &str, path: &std::path::Path| {
        let edit = format!("layers.1.{slot}=transplant:from=\"{}\"", path.display());
        let text = session.set(&edit).unwrap_err().to_string();
        assert_eq!(session.recipe(), &before, "{edit}");
        text
    };
    let text = refused("ffn", dir.path());
    let want = format!(
        "layers.1.ffn: `transplant` cannot be used here: {}: tensor `model.layers.1.mlp.",
        dir.path().display()
    );
    assert!(
        text.starts_with(&want) && text.contains("as in the loaded model"),
        "{text}"
    );
    let text = refused("attention", &folder("tiny-gpt2"));
    assert!(text.contains("found a layer of gpt2 dense attention"), "{text}");
    let text = refused("ffn", &folder("tiny-v4"));
    assert!(text.contains("accepted: llama SwiGLU with 0 experts"), "{text}");
    let text = refused("ffn", std::path::Path::new("/nowhere/at-all"));
    assert!(text.contains("/nowhere/at-all"), "{text}");
    // Of the same attention, from a model whose other block differs.
    refused("ffn", dir.path());
    session
        .set(&format!(
            "layers.1.attention=transplant:from=\"{}\"",
            dir.path().display()
        ))
        .unwrap();
}
