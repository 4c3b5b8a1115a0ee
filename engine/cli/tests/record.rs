//! The app's flow, recorded without a window.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{golden, model1};

#[test]
fn a_flow_is_recorded_with_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (out, report, model) = (path("flow.m1run"), path("report.zip"), golden("tiny-v4"));
    let mut args = vec![
        "record", "--model", &model, "--out", &out, "--report", &report, "--device", "cpu",
    ];
    args.extend([
        "--prompt",
        "1 2 3",
        "-n",
        "60",
        "--positions",
        "20",
        "--set",
        "layers.*.kv_cache=bf16",
        "--threads",
        "1",
    ]);
    let said = model1(&args).ok().stderr;
    for part in [
        "device   CPU",
        "tokens/s",
        "KL ",
        "20 positions",
        "model1 serve --open --model",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let bytes = std::fs::read(&out).unwrap();
    let line = bytes.split(|b| *b == b'\n').next().unwrap();
    let header: serde_json::Value = serde_json::from_slice(line).unwrap();
    assert_eq!(
        (&header["format"], &header["version"]),
        (&"model1-run".into(), &1.into())
    );
    assert_eq!(header["model"], "tiny-v4");
    assert!(std::fs::read(&report).unwrap().starts_with(b"PK"));
}

#[test]
fn what_cannot_be_recorded_is_said_before_anything_is_done() {
    let said = model1(&["record", "--out", "flow.zip"]).error(2);
    assert!(said.contains("ends in .m1run"), "{said}");
    let said = model1(&[
        "record",
        "--out",
        "x.m1run",
        "--model",
        "/nonexistent",
        "--quiet",
        "--device",
        "cpu",
    ])
    .error(1);
    assert!(said.contains("/nonexistent"), "{said}");
    assert!(!std::path::Path::new("x.m1run").exists());
}
