//! `model1 sweep`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Toy, golden, model1};
use serde_json::Value;

const TEXT: &str = "the quick brown fox jumps over the lazy dog and runs away";
const AXES: [&str; 4] = [
    "--sweep",
    "layers.*.kv_cache=f32,bf16,fp8_b64",
    "--sweep",
    "weights.lm_head=own,fp8",
];

#[test]
fn a_table_a_plot_and_a_recommendation() {
    let toy = Toy::new();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sweep");
    let out = out.to_str().unwrap();
    let args = [&["--prompt", TEXT, "--out", out, "--budget", "0.5"][..], &AXES].concat();
    let ran = toy.run("sweep", &args).ok();
    for part in [
        "57 positions, teacher-forced",
        "KL mean",
        "  A\n",
        "layers.*.kv_cache=fp8_b64 weights.lm_head=fp8",
        "mean KL of one change alone, in nats",
        "kv_cache=fp8_b64",
        "recommended for a mean KL of at most",
        "fewer bytes per step than A",
    ] {
        assert!(ran.stdout.contains(part), "no `{part}` in:\n{}", ran.stdout);
    }
    let read = |name: &str| std::fs::read_to_string(format!("{out}/{name}")).unwrap();
    let kept = read("sweep.jsonl");
    let recipes = kept.lines().count() - 1;
    let table = read("table.csv");
    assert_eq!(table.lines().count() - 1, recipes, "{table}");
    for plot in ["pareto.svg", "pareto-time.svg"] {
        assert!(
            read(plot).starts_with("<svg ") && read(plot).contains("budget"),
            "{plot}"
        );
    }
    // The recommended recipe is one that runs, and its figures are those of a comparison.
    let recommended = format!("{out}/recommended.json");
    let alone = toy
        .run("compare", &["--prompt", TEXT, "--b", &recommended, "--json"])
        .ok();
    let alone: Value = serde_json::from_str(&alone.stdout).unwrap();
    let hash = alone["sides"][1]["hash"].as_str().unwrap();
    let row = kept.lines().find(|l| l.contains(hash)).unwrap();
    let row: Value = serde_json::from_str(row).unwrap();
    assert_eq!(row["kl"], alone["kl"]);
    assert!(row["kl"]["mean"].as_f64().unwrap() <= 0.5);
}

#[test]
fn what_is_kept_is_not_measured_again() {
    let toy = Toy::new();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let args = [&["--prompt", TEXT, "--out", out, "--json"][..], &AXES].concat();
    let first: Value = serde_json::from_str(&toy.run("sweep", &args).ok().stdout).unwrap();
    let path = folder.path().join("sweep.jsonl");
    let whole = std::fs::read_to_string(&path).unwrap();
    // As if the program had been ended while it wrote the fourth row.
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    let cut = lines[..4].concat() + &lines[4][..40];
    std::fs::write(&path, &cut).unwrap();
    let ran = toy.run("sweep", &args).ok();
    assert!(
        ran.stderr.contains("3 of 6 recipes are measured already"),
        "{}",
        ran.stderr
    );
    let again: Value = serde_json::from_str(&ran.stdout).unwrap();
    let kls = |v: &Value| -> Vec<Value> { v["rows"].as_array().unwrap().iter().map(|r| r["kl"].clone()).collect() };
    assert_eq!(kls(&first), kls(&again));
    // Rows that were there are kept as they were, speeds included.
    assert_eq!(first["rows"][2], again["rows"][2]);
    let after = std::fs::read_to_string(&path).unwrap();
    assert!(after.starts_with(&lines[..4].concat()) && after.lines().count() == whole.lines().count());
    // Another text is another sweep.
    let other = [&["--prompt", "another text", "--out", out][..], &AXES].concat();
    let message = toy.run("sweep", &other).error(2);
    assert!(
        message.contains("found a sweep with another text") && message.contains("accepted"),
        "{message}"
    );
    assert_eq!(std::fs::read_to_string(&path).unwrap(), after, "nothing is lost");
}

#[test]
fn presets_side_by_side() {
    let args = [
        "sweep",
        "--model",
        &golden("tiny-v4"),
        "--ids",
        "5,9,2,7,1,3,8,4",
        "--presets",
        "--json",
    ];
    let v: Value = serde_json::from_str(&model1(&args).ok().stdout).unwrap();
    let names: Vec<&str> = v["rows"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|r| r["name"].as_str())
        .collect();
    for preset in ["everything bf16", "MODEL2 preview"] {
        assert!(names.contains(&preset), "{names:?}");
    }
    assert_eq!(v["rows"][0]["kl"]["mean"], 0.0);
}

#[test]
fn bad_input_gets_one_message() {
    let model = golden("tiny-v4");
    let full = tempfile::tempdir().unwrap();
    std::fs::write(full.path().join("notes.txt"), "mine").unwrap();
    let full = full.path().to_str().unwrap();
    for (args, words) in [
        (vec!["--sweep", "layers.*.kv_cache"], "found no `=`"),
        (vec!["--sweep", "weights.lm_head="], "found no choice"),
        (vec!["--sweep", "layers.77.ffn=own"], "out of range"),
        (vec!["--sweep", "layers.*.kv_cache=int3"], "no variant `int3`"),
        (vec!["--sweep", "layers.*.attention=top_k:k=0"], "accepted"),
        (
            vec!["--sweep", "weights.lm_head=fp8", "--budget", "-1"],
            "--budget: found -1",
        ),
        (
            vec!["--sweep", "weights.lm_head=fp8", "--out", full],
            "found other files there",
        ),
    ] {
        let args = [&["sweep", "--model", &model, "--ids", "5,9,2"][..], &args].concat();
        let message = model1(&args).error(2);
        assert!(message.contains(words), "{args:?}: {message}");
    }
}

#[test]
fn ctrl_c_keeps_finished_rows_and_the_same_command_goes_on() {
    let toy = Toy::new();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("sweep");
    let out = out.to_str().unwrap();
    // More recipes than one pass takes, on a text that takes a while.
    let text = "the quick brown fox jumps over the lazy dog and runs away ".repeat(8);
    let axes = [
        "--sweep",
        "layers.*.kv_cache=f32,bf16,fp8_b64",
        "--sweep",
        "weights.lm_head=own,bf16,fp8,fp4",
    ];
    let args = [
        &["--prompt", &text, "--positions", "460", "--out", out, "--per-layer"][..],
        &axes,
    ]
    .concat();
    let child = toy.command("sweep", &args).spawn().unwrap();
    let path = format!("{out}/sweep.jsonl");
    let rows = || std::fs::read_to_string(&path).map_or(0, |t| t.lines().count().saturating_sub(1));
    while rows() == 0 {
        std::thread::yield_now();
    }
    let kill = format!("kill -INT {}", child.id());
    assert!(
        std::process::Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    let ran = child.wait_with_output().unwrap();
    let (stdout, stderr) = (
        String::from_utf8(ran.stdout).unwrap(),
        String::from_utf8(ran.stderr).unwrap(),
    );
    let kept = rows();
    // The machine may be so quick that the sweep was over.
    if ran.status.code() != Some(0) {
        assert_eq!(ran.status.code(), Some(130), "{stderr}");
        assert!(
            stderr.contains("recipes are measured: the same command goes on from here"),
            "{stderr}"
        );
        assert!(
            stdout.contains("KL mean") && stdout.contains("  A\n"),
            "what is there is shown:\n{stdout}"
        );
    }
    let again = toy.run("sweep", &args).ok();
    // A recipe that is a combination and a single change as well is one row.
    assert!(
        again.stderr.contains("recipes are measured already"),
        "{kept}: {}",
        again.stderr
    );
    assert!(rows() >= kept && again.stdout.contains("mean KL of one change alone"));
}
