//! Reports of a real (tiny) comparison.

use std::path::Path;

use protocol::{CompareResult, CompareSpec, CompareText, RecipeRef};

use super::*;
use crate::compare::{CompareJob, compare};
use crate::session::Cancel;
use crate::{EngineOptions, Silent, Watch};

fn result(isolate: bool) -> (CompareResult, Environment) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tiny-v4");
    let engine = Engine::open(&path, &EngineOptions::default(), &Silent).unwrap();
    let spec = CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        text: CompareText::Current,
        positions: 100,
        isolate,
    };
    let (a, mut b) = (engine.recipe(), engine.recipe());
    for edit in ["layers.2-3.kv_cache=fp8_b64", "layers.*.attention=top_k:k=6"] {
        b.set(edit, engine.facts(), engine.registry()).unwrap();
    }
    let ids = (0..100).map(|i| (i * i * 31 + 7) % 160).collect();
    let job = CompareJob::from_parts(&engine, spec, a, b, ids).unwrap();
    let mut watch = Watch {
        cancel: &Cancel::default(),
        progress: &mut |_, _| {},
    };
    let mut r = compare(&engine, &job, &mut watch).unwrap();
    r.tokens[3].text = "a <b> & \"c\",\n\u{1}".into();
    (r, Environment::gather(&engine, "model1 test"))
}

#[test]
fn a_report_has_everything_and_its_tables_can_be_read_back() {
    let (r, env) = result(true);
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("reports/one");
    let paths = write(&r, &env, &folder).unwrap();
    let names: Vec<String> = paths
        .iter()
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let want = [
        "report.html",
        "a.json",
        "b.json",
        "environment.json",
        "result.json",
        "ids.txt",
        "tokens.csv",
        "drift.csv",
        "layers.csv",
        "isolate.csv",
        "kl.png",
        "drift.png",
        "kv.png",
        "isolate.png",
    ];
    assert_eq!(names, want);
    assert!(paths.iter().all(|p| p.metadata().unwrap().len() > 0));
    assert_eq!(
        std::fs::read_dir(dir.path().join("reports")).unwrap().count(),
        1,
        "nothing is left beside it"
    );
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    // The same bits come back; the odd text is one field.
    let tokens = read("tokens.csv");
    let kl: Vec<f32> = tokens
        .lines()
        .filter(|l| {
            l.split(',')
                .next()
                .is_some_and(|p| p.parse::<u32>().is_ok_and(|p| p > 3))
        })
        .map(|l| l.split(',').nth(3).unwrap().parse().unwrap())
        .collect();
    assert_eq!(kl.len(), 96);
    assert!(kl.iter().zip(&r.tokens[4..]).all(|(a, t)| *a == t.kl));
    assert!(tokens.contains(",\"a <b> & \"\"c\"\",\n\u{1}\","));
    assert!(
        tokens.lines().last().unwrap().contains(",,"),
        "no next token after the last one"
    );
    assert_eq!(read("drift.csv").lines().count(), 101);
    let layers = read("layers.csv");
    assert!(layers.lines().nth(3).unwrap().contains("own,f32,f32") && layers.contains("top_k:k=6,fp8_b64,"));
    assert_eq!(read("isolate.csv").lines().count(), 3);
    assert_eq!(read("ids.txt").trim().split(',').count(), 100);
    let value: serde_json::Value = serde_json::from_str(&read("result.json")).unwrap();
    assert_eq!(value["kl"]["mean"].as_f64(), Some(r.kl.mean));
    let recipe: serde_json::Value = serde_json::from_str(&read("b.json")).unwrap();
    assert_eq!(recipe["layers"][2]["kv_cache"], "fp8_b64");
    let page = read("report.html");
    assert!(page.contains("a &lt;b&gt; &amp; &quot;c&quot;,\n\u{fffd}</span>"));
    assert!(
        !page.contains("<script") && !page.contains("href=") && !page.contains("src="),
        "it needs nothing else"
    );
    assert_eq!(page.matches("<svg").count(), 4);
}

#[test]
fn pictures_are_png_of_the_drawn_size() {
    let (r, _) = result(false);
    let charts = charts::all(&r);
    assert_eq!(charts.len(), 3);
    for c in charts {
        let png = picture::png(&c.svg).unwrap();
        assert_eq!(&png[..8], b"\x89PNG\r\n\x1a\n", "{}", c.name);
        let width = u32::from_be_bytes(png[16..20].try_into().unwrap());
        assert_eq!(width, 1920);
        assert!(png.len() > 4000, "{}: something is drawn", c.name);
    }
}

#[test]
fn nothing_is_overwritten_and_nothing_half_done_is_left() {
    let (r, env) = result(false);
    let dir = tempfile::tempdir().unwrap();
    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::fs::write(full.join("mine"), "x").unwrap();
    let e = write(&r, &env, &full).unwrap_err().to_string();
    assert!(e.contains("a folder with 1 entries") && e.contains("is empty"), "{e}");
    assert_eq!(std::fs::read_dir(&full).unwrap().count(), 1);
    let e = write(&r, &env, &full.join("mine")).unwrap_err().to_string();
    assert!(e.contains("found a file"), "{e}");
    // An empty folder is taken.
    let empty = dir.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert!(!write(&r, &env, &empty).unwrap().is_empty());
    assert_eq!(std::fs::read(full.join("mine")).unwrap(), b"x");
    // A write that fails in the middle, as on a full disk: the second file cannot be made.
    let target = folder::Target::new(&dir.path().join("broken")).unwrap();
    let files = [("one".into(), vec![1]), ("no/such/folder".into(), vec![2])];
    let e = target.fill(&files).unwrap_err().to_string();
    assert!(e.contains("nothing was left behind"), "{e}");
    let left: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    assert!(!left.iter().any(|n| n.contains("broken")), "{left:?}");
}

#[test]
fn dates() {
    assert_eq!(utc(0), "1970-01-01T00:00:00Z");
    assert_eq!(utc(951_782_400), "2000-02-29T00:00:00Z");
    assert_eq!(utc(1_764_101_368), "2025-11-25T20:09:28Z");
    assert_eq!(utc(4_107_542_399), "2100-02-28T23:59:59Z");
}
