//! Looking at the model and the text, comparing recipes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::toy::Toy;
use common::*;
use protocol::*;

#[test]
fn the_model_can_be_looked_at() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let Reply::Tree(tree) = c.ask(Request::GetTree).unwrap() else {
        panic!()
    };
    let tensor = &tree.iter().find(|b| b.block == "ffn").unwrap().tensors[0];
    let Reply::Tensor(stats) = c.ask(Request::GetTensor(tensor.name.clone())).unwrap() else {
        panic!()
    };
    assert_eq!((stats.name.as_str(), stats.not_finite), (tensor.name.as_str(), 0));
    assert!(stats.counted > 0 && stats.histogram.iter().sum::<u64>() == stats.counted);
    assert!(
        c.ask(Request::GetTensor("nope".into()))
            .unwrap_err()
            .what
            .contains("nope")
    );
    let Reply::Presets(presets) = c.ask(Request::ListPresets).unwrap() else {
        panic!()
    };
    assert!(presets.iter().any(|p| p.refused.is_empty() && !p.edits.is_empty()));
    let Reply::Baselines(baselines) = c.ask(Request::GetBaselines).unwrap() else {
        panic!()
    };
    assert!(baselines.fits.len() > 1 && baselines.fits[0].slope > 0.0);
    let Reply::Count(n) = c.ask(Request::CountTokens("hello".into())).unwrap() else {
        panic!()
    };
    assert_eq!(n, 5);
    let e = c.ask(Request::GetPlan { tokens: 0, context: 0 }).unwrap_err();
    assert!(e.what.contains("--tokens") || e.what.contains("tokens"), "{e}");
    let Reply::Text(about) = c.ask(Request::About).unwrap() else {
        panic!()
    };
    for part in ["MODEL1 Explorer", "protocol", "device", "toy", "data"] {
        assert!(about.contains(part), "{part}: {about}");
    }
    // Presets are edits like any other.
    let good = presets
        .into_iter()
        .find(|p| p.refused.is_empty() && !p.edits.is_empty())
        .unwrap();
    let Reply::Recipe(view) = c.ask(Request::EditRecipe(good.edits)).unwrap() else {
        panic!()
    };
    assert!(!view.hash.is_empty());
}

#[test]
fn a_text_can_be_looked_into() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    let spec_of = |layer, to| AttentionSpec {
        layer,
        head: Some(0),
        from: 0,
        to,
    };
    let e = c.ask(Request::InspectAttention(spec_of(0, 4))).unwrap_err();
    assert!(e.what.contains("no text"), "{e}");
    c.written(send("hello there", spec(10)));
    let Reply::Attention(map) = c.ask(Request::InspectAttention(spec_of(1, 8))).unwrap() else {
        panic!()
    };
    let columns: u32 = map.segments.iter().map(Segment::columns).sum();
    assert_eq!(map.values.len(), 8 * columns as usize);
    assert_eq!((map.heads, map.tokens.len()), (2, 8));
    for row in map.values.chunks_exact(columns as usize) {
        let mass: f32 = row.iter().filter(|v| **v >= 0.0).sum();
        assert!((mass - 1.0).abs() < 1e-3, "{row:?}");
    }
    for (request, words) in [
        (Request::InspectAttention(spec_of(3, 4)), "layer"),
        (Request::InspectRows(0), "indexer"),
        (Request::InspectRouter, "experts"),
        (Request::InspectMetric("nope".into()), "nope"),
    ] {
        let e = c.ask(request).unwrap_err();
        assert!(e.to_string().to_lowercase().contains(words), "{words}: {e}");
    }
    let Reply::Names(names) = c.ask(Request::ListMetrics).unwrap() else {
        panic!()
    };
    for name in names {
        let Reply::Metric(m) = c.ask(Request::InspectMetric(name)).unwrap() else {
            panic!()
        };
        assert_eq!(m.values.len(), (m.layers * m.tokens) as usize);
    }
}

#[test]
fn a_saved_text_is_looked_into_and_compared_as_soon_as_it_is_opened() {
    let mut room = Room::new();
    let mut c = room.with_toy(&Toy::default());
    c.written(send("remember", spec(12)));
    let map = |c: &mut Client| {
        let spec = AttentionSpec {
            layer: 0,
            head: None,
            from: 0,
            to: 20,
        };
        match c.ask(Request::InspectAttention(spec)).unwrap() {
            Reply::Attention(m) => (m.tokens, m.values),
            other => panic!("{other:?}"),
        }
    };
    let before = map(&mut c);
    let (id, used) = (c.doc().info.id, c.doc().nodes[1].tokens[11].position + 1);
    let position = |at: u64| move |c: &Client| c.told.state.as_ref().is_some_and(|s| s.position == at);
    c.until("the gauge", position(used));
    // Another text is shown: it is the one that is looked into, and that the gauge tells of.
    c.ask(Request::NewDoc(DocKind::Text)).unwrap();
    c.until("an empty gauge", position(0));
    assert!(
        c.ask(Request::InspectMetric("x".into()))
            .unwrap_err()
            .what
            .contains("no text")
    );
    room.start();
    let mut c = room.with_toy(&Toy::default());
    c.ask(Request::OpenDoc(id)).unwrap();
    c.until("the gauge", position(used));
    assert_eq!(map(&mut c), before);
    let compare = Request::Compare(CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Current,
        text: CompareText::Current,
        positions: 1000,
        isolate: false,
    });
    let Reply::Job(job) = c.ask(compare).unwrap() else {
        panic!()
    };
    c.until("the end", |c| c.job_over(job));
    let Reply::Compared(result) = c.ask(Request::GetComparison(job)).unwrap() else {
        panic!()
    };
    let shown: String = result.tokens.iter().map(|t| t.text.as_str()).collect();
    let written = &c.doc().nodes[1].text;
    assert!(shown.contains("remember") && shown.ends_with(written), "{shown}");
    assert_eq!(
        (result.kl.max, result.same_top1[0]),
        (0.0, 1.0),
        "a recipe against itself"
    );
}

#[test]
fn recipes_are_compared_while_the_host_goes_on() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy {
        chat: false,
        ..Toy::default()
    });
    c.written(send("a text to compare on", spec(60)));
    let compare = |text, positions| {
        Request::Compare(CompareSpec {
            a: RecipeRef::Own,
            b: RecipeRef::Json("{\"schema\":1,\"set\":{\"layers.*.kv_cache\":\"bf16\"}}".into()),
            text,
            positions,
            isolate: false,
        })
    };
    let Reply::Job(job) = c.ask(compare(CompareText::Current, 64)).unwrap() else {
        panic!()
    };
    c.until("the end", |c| c.job_over(job));
    let Reply::Compared(result) = c.ask(Request::GetComparison(job)).unwrap() else {
        panic!()
    };
    assert_eq!(result.model, "toy");
    assert_eq!(result.changes.len(), 1);
    assert!(result.kl.mean >= 0.0 && result.noise_floor == [0.0, 0.0]);
    assert!(result.sides[0].kv.total() > result.sides[1].kv.total());

    let Reply::File { name, bytes } = c
        .ask(Request::ExportComparison {
            job,
            folder: String::new(),
        })
        .unwrap()
    else {
        panic!()
    };
    assert!(name.ends_with(".zip") && bytes.starts_with(b"PK"));
    let folder = room.path("report").to_str().unwrap().to_string();
    let export = Request::ExportComparison { job, folder };
    let Reply::Written(files) = c.ask(export).unwrap() else {
        panic!()
    };
    assert!(files.iter().any(|f| f.ends_with("report.html")), "{files:?}");

    // One that would take minutes: what is quick is answered meanwhile, what writes is refused, and it stops.
    let long = "a long text to read again and again ".repeat(6000);
    let Reply::Job(job) = c.ask(compare(CompareText::Given(long), 200_000)).unwrap() else {
        panic!()
    };
    c.until("progress", |c| {
        c.told.jobs.iter().any(|j| j.id == job && j.done > 0 && j.total > 0)
    });
    c.ask(Request::GetPlan { tokens: 1, context: 0 }).unwrap();
    let e = c.ask(send("now", spec(1))).unwrap_err();
    assert!(
        e.what.contains("comparison is running") && e.remedy.contains("cancel"),
        "{e}"
    );
    assert!(
        c.ask(Request::GetComparison(job))
            .unwrap_err()
            .what
            .contains("not done")
    );
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    assert!(
        c.ask(Request::GetComparison(job))
            .unwrap_err()
            .what
            .contains("left no comparison")
    );
    c.written(send("now", spec(1)));
}

#[test]
fn fonts_are_found_or_named() {
    let room = Room::new();
    let mut viewer = room.client();
    let Reply::Font(font) = viewer.ask(Request::FindFont('中')).unwrap() else {
        panic!()
    };
    assert!(
        font.bytes.len() > 1000 || font.missing.contains("fonts-noto-cjk"),
        "{}",
        font.missing
    );
}
