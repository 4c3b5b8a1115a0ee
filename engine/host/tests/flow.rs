//! The flow that must always work, on the model that comes with the program: start, a story streams, figures move,
//! one edit changes the cache of layers 3-6 while it is written, A/B shows KL, bytes and speed, a report is exported;
//! then the rooms for looking inside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::time::Instant;

use common::*;
use host::{Host, HostOptions};
use protocol::*;

fn edit(selector: &str, variant: &str) -> Edit {
    Edit {
        selector: selector.into(),
        choice: ChoiceView {
            variant: variant.into(),
            options: Vec::new(),
        },
    }
}

/// The variant in a slot of a layer.
fn choice(recipe: &RecipeView, layer: usize, slot: &str) -> String {
    let slots = &recipe.layers[layer].slots;
    slots.iter().find(|(name, _)| name == slot).unwrap().1.to_string()
}

#[test]
fn from_start_to_report() {
    let room = Room::new();
    let host = Host::start(HostOptions {
        data_dir: Some(room.path("data2")),
        bundled: host::bundled_model(),
        open: Some(ModelSource::Bundled),
        threads: None,
        ..room.options()
    })
    .unwrap();
    let begin = Instant::now();
    let mut c = Client::greeted(&host, Hello::new("test"));
    start(&mut c);
    let started = begin.elapsed();
    let (story, bytes) = stream_and_swap(&mut c);
    looks_inside(&mut c, &story);
    let compared = Instant::now();
    let (job, result) = compare(&mut c);
    let compared = compared.elapsed();
    // What was measured in the running text agrees: bf16 records are larger by the same bytes.
    assert!(bytes[1] > bytes[0], "{bytes:?}");
    export(&mut c, job, &result, &room.path("report"));
    eprintln!(
        "flow: ready {started:.1?}, whole {:.1?}, comparison with isolated changes {compared:.1?}; KL {:.5} nats, {} -> \
         {} bytes, {:.0} and {:.0} tokens/s",
        begin.elapsed(),
        result.kl.mean,
        result.sides[0].kv.total(),
        result.sides[1].kv.total(),
        result.sides[0].decode_tokens_per_s,
        result.sides[1].decode_tokens_per_s
    );
}

/// The model is loaded at once, with prompts that suit it.
fn start(c: &mut Client) {
    c.until("the model", |c| {
        c.told.state.as_ref().is_some_and(|s| s.loaded().is_some())
    });
    let state = c.state();
    let model = state.loaded().unwrap();
    assert_eq!((model.name.as_str(), model.facts.layers.len()), ("MODEL1-mini", 7));
    let kinds: Vec<&str> = model.facts.layers.iter().map(|l| l.attention.as_str()).collect();
    assert_eq!(kinds, ["sliding", "sliding", "csa", "hca", "csa", "hca", "csa"]);
    let why = model.chat.as_ref().unwrap_err();
    assert!(why.contains("continues stories"), "{why}");
    assert!(model.starters.len() >= 3);
    assert_eq!(state.doc.as_ref().unwrap().kind, DocKind::Text);
    let e = c.ask(Request::NewDoc(DocKind::Chat)).unwrap_err();
    assert!(e.what.contains("base model") && !e.remedy.is_empty(), "{e}");

    let Reply::Models(models) = c.ask(Request::ListModels).unwrap() else {
        panic!()
    };
    let card = models.bundled;
    assert!(
        card.present && card.parameters > 1_000_000 && card.bytes > 1_000_000,
        "{card:?}"
    );
    // What it takes moves with the context.
    let mut kv = |context| {
        let source = ModelSource::Bundled;
        match c.ask(Request::PredictMemory { source, context }).unwrap() {
            Reply::Memory(m) => m.kv.total(),
            other => panic!("{other:?}"),
        }
    };
    assert!(kv(4096) > kv(512));
}

/// A story streams; in the middle of it the cache of layers 3-6 becomes bf16. The text, and the cache bytes of those
/// layers before and after.
fn stream_and_swap(c: &mut Client) -> (NodeView, [u64; 2]) {
    let model = c.state().loaded().unwrap().clone();
    let mut drawn = endless();
    drawn.sampling.temperature = model.default_sampling.temperature;
    let node = c.started(send(&model.starters[0], drawn));
    c.tokens_of(node, 60);
    let record = c.told.steps.iter().rfind(|s| s.tokens == 1).unwrap().clone();
    assert_eq!(record.layers.len(), 7);
    assert!(record.nanos > 0 && record.layers.iter().all(|l| l.kv_used.total() > 0));
    assert!(
        record
            .layers
            .iter()
            .any(|l| l.round_trip_error.is_some_and(|e| e > 0.0)),
        "FP8 rows have an error"
    );
    assert!(
        record.layers.iter().any(|l| !l.expert_load.is_empty()),
        "experts are counted"
    );

    let own = c.state().recipe.unwrap();
    assert_eq!(choice(&own, 3, "kv_cache"), "fp8_model1");
    let Reply::Recipe(recipe) = c
        .ask(Request::EditRecipe(vec![edit("layers.3-6.kv_cache", "bf16")]))
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(recipe.changes, [edit("layers.3-6.kv_cache", "bf16")]);
    for (layer, want) in [(2, "fp8_model1"), (3, "bf16"), (6, "bf16")] {
        assert_eq!(choice(&recipe, layer, "kv_cache"), want, "layer {layer}");
    }
    c.until("tokens under it", |c| {
        c.told.tokens.iter().filter(|t| t.info.recipe == 1).count() > 10
    });
    let swap = c.told.events.iter().find_map(|e| match e {
        Event::Swapped { position, .. } => Some(*position),
        Event::Finished { .. } => None,
    });
    let swap = swap.unwrap();
    let last = c.told.steps.last().unwrap().clone();
    let begin = Instant::now();
    c.done(Request::Stop);
    c.until("the end", |c| {
        c.told.events.iter().any(|e| matches!(e, Event::Finished { .. }))
    });
    eprintln!("flow: stopped in {:.1?}", begin.elapsed());
    let story = c.ended(node);
    assert_eq!((story.finish, story.recipes.len()), (FinishView::Cancelled, 2));
    // From the next token on, and not before.
    for t in &story.tokens {
        assert_eq!(
            t.recipe,
            u16::from(t.position > swap),
            "position {} of {swap}",
            t.position
        );
    }
    let words = story.text.split_whitespace().count();
    assert!(words > 30 && story.text.is_ascii(), "{}", story.text);
    // Layers 3-6 as they lie in the records, per token in the cache.
    let bytes = |r: &StepRecord| {
        let all: u64 = r.layers[3..7]
            .iter()
            .map(|l| l.kv_used.window + l.kv_used.rows + l.kv_used.scales)
            .sum();
        all * 1000 / (r.position + 1)
    };
    (story, [bytes(&record), bytes(&last)])
}

/// Attention, kept rows and experts of the story.
fn looks_inside(c: &mut Client, story: &NodeView) {
    let to = story.tokens.last().unwrap().position + 1;
    let tokens = (to as usize).min(200);
    let spec = AttentionSpec {
        layer: 2,
        head: None,
        from: 0,
        to: tokens as u64,
    };
    let Reply::Attention(map) = c.ask(Request::InspectAttention(spec)).unwrap() else {
        panic!()
    };
    assert_eq!(map.tokens.len(), tokens);
    let columns: u32 = map.segments.iter().map(Segment::columns).sum();
    assert_eq!(map.values.len(), tokens * columns as usize);
    let rows = |s: &Segment| matches!(s, Segment::Rows { columns, .. } if *columns > 0);
    assert!(map.segments.iter().any(rows), "a CSA layer sees compressed rows");
    for row in map.values.chunks_exact(columns as usize) {
        let mass: f32 = row.iter().filter(|v| **v >= 0.0).sum();
        assert!((mass - 1.0).abs() < 1e-3, "{mass}");
    }
    let Reply::Rows(kept) = c.ask(Request::InspectRows(2)).unwrap() else {
        panic!()
    };
    assert!(kept.kept.len() as u64 >= to - 1 && !kept.rows.is_empty());
    assert!(
        kept.kept
            .last()
            .unwrap()
            .iter()
            .all(|&r| (r as usize) < kept.rows.len())
    );
    let Reply::Router(router) = c.ask(Request::InspectRouter).unwrap() else {
        panic!()
    };
    let choices = router.layers.len() * router.tokens.len() * router.per_token as usize;
    assert!(choices > 0 && router.choices.len() == choices);
    let Reply::Baselines(then) = c
        .ask(Request::PreviewRecipe(vec![edit("layers.*.kv_cache", "bf16")]))
        .unwrap()
    else {
        panic!()
    };
    assert!(then.fits[1].slope > then.fits[0].slope, "{:?}", then.fits);
}

fn compare(c: &mut Client) -> (JobId, CompareResult) {
    let compare = Request::Compare(CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Current,
        text: CompareText::Builtin,
        positions: 256,
        isolate: true,
    });
    let Reply::Job(job) = c.ask(compare).unwrap() else {
        panic!()
    };
    c.until("the comparison", |c| c.job_over(job));
    let Reply::Compared(r) = c.ask(Request::GetComparison(job)).unwrap() else {
        panic!()
    };
    assert!(r.kl.mean > 0.0 && r.kl.mean < 0.5 && r.kl.max >= r.kl.p99, "{:?}", r.kl);
    assert_eq!(r.noise_floor, [0.0, 0.0]);
    assert_eq!(r.tokens.len(), 256);
    assert!(r.same_top1[0] > 0.5 && r.same_top1[0] <= 1.0);
    let (a, b) = (&r.sides[0], &r.sides[1]);
    assert!(b.kv.total() > a.kv.total(), "bf16 rows are larger");
    for layer in 0..7 {
        let grown = b.kv_layers[layer].total() > a.kv_layers[layer].total();
        assert_eq!(grown, (3..=6).contains(&layer), "layer {layer}");
    }
    assert!(
        r.sides
            .iter()
            .all(|s| s.decode_tokens_per_s > 0.0 && s.perplexity > 1.0)
    );
    // Layers before the first change do not differ at all.
    assert!(
        r.drift.layer_rms[..3].iter().all(|&d| d == 0.0),
        "{:?}",
        r.drift.layer_rms
    );
    assert!(r.drift.layer_rms[6] > 0.0);
    assert!(!r.isolate.is_empty() && r.isolate.iter().all(|i| i.kl_mean >= 0.0 && i.kv_saved < 0));
    (job, *r)
}

/// Everything that is promised lies in the folder, and is what it says.
fn export(c: &mut Client, job: JobId, result: &CompareResult, folder: &Path) {
    let export = Request::ExportComparison {
        job,
        folder: folder.to_str().unwrap().into(),
    };
    let Reply::Written(files) = c.ask(export.clone()).unwrap() else {
        panic!()
    };
    let mut names: Vec<&str> = files.iter().map(|f| f.rsplit('/').next().unwrap()).collect();
    names.sort_unstable();
    let want = [
        "a.json",
        "b.json",
        "drift.csv",
        "drift.png",
        "environment.json",
        "ids.txt",
        "isolate.csv",
        "isolate.png",
        "kl.png",
        "kv.png",
        "layers.csv",
        "report.html",
        "result.json",
        "tokens.csv",
    ];
    assert_eq!(names, want);
    let read = |name: &str| std::fs::read(folder.join(name)).unwrap();
    let text = |name: &str| String::from_utf8(read(name)).unwrap();
    for name in names.iter().filter(|n| n.ends_with(".png")) {
        assert!(read(name).starts_with(b"\x89PNG\r\n\x1a\n"), "{name}");
    }
    // Tokens that are line ends stand in quotes, so records and lines differ.
    let records = text("tokens.csv")
        .lines()
        .filter(|l| l.starts_with(|c: char| c.is_ascii_digit()))
        .count();
    assert_eq!(records, 256);
    assert_eq!(text("layers.csv").lines().count(), 1 + 7);
    assert_eq!(text("ids.txt").trim().split(',').count(), 256);
    let environment: serde_json::Value = serde_json::from_str(&text("environment.json")).unwrap();
    for key in ["program", "created", "machine", "device", "model_path"] {
        assert!(environment[key].as_str().is_some_and(|v| !v.is_empty()), "{key}");
    }
    // The page needs nothing else: no script, nothing fetched.
    let page = text("report.html");
    for part in ["<svg", "KL", "tokens/s", "layers.3-6.kv_cache", "model1 compare"] {
        assert!(page.contains(part), "{part}");
    }
    for bad in ["<script", "src=\"http", "href=\"http", "@import", "url("] {
        assert!(!page.contains(bad), "{bad}");
    }
    // The recipes can be put in force again.
    let Reply::Recipe(back) = c.ask(Request::SetRecipe(text("a.json"))).unwrap() else {
        panic!()
    };
    assert_eq!(back.hash, result.sides[0].hash);
    let Reply::Recipe(back) = c.ask(Request::SetRecipe(text("b.json"))).unwrap() else {
        panic!()
    };
    assert_eq!(
        (&back.hash, back.changes),
        (&result.sides[1].hash, vec![edit("layers.3-6.kv_cache", "bf16")])
    );
    // A folder that is in use is not written over.
    let e = c.ask(export).unwrap_err();
    assert!(e.kind == ErrorKind::Input && e.remedy.contains("another folder"), "{e}");
}
