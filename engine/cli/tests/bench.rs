//! `model1 bench`: what is in the table, not how fast anything is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use common::{Ran, Toy, command, finish, golden, model1};
use serde_json::Value;

const TESTS: [&str; 4] = ["pp5", "tg2", "pp5 @ d3", "tg2 @ d3"];

/// The bundled model with tiny values.
fn bundled(form: &str) -> Ran {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundled/model1-mini");
    let args = [
        "-p", "5", "-n", "2", "-d", "0,3", "-r", "2", "--device", "cpu", "-t", "1",
    ];
    let mut c = command(&[&["bench", "-o", form][..], &args].concat());
    c.env("MODEL1_BUNDLED", root);
    finish(c, "").ok()
}

/// Cells of a line of CSV.
fn cells(line: &str) -> Vec<String> {
    let (mut out, mut quoted) = (vec![String::new()], false);
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => out.last_mut().unwrap().push(c),
        }
    }
    out
}

fn check(row: &Value, test: &str) {
    let of = |k: &str| row[k].as_u64().unwrap_or_else(|| panic!("{k} in {row}"));
    assert_eq!(row["test"], test);
    assert_eq!(
        (row["model"].as_str(), &row["backend"]),
        (Some("model1-mini"), &"cpu".into())
    );
    assert_eq!((of("n_threads"), of("repetitions"), of("warm_up")), (1, 2, 1));
    assert_eq!(row["random_weights"], false);
    let decodes = test.starts_with("tg");
    assert_eq!((of("n_prompt"), of("n_gen")), if decodes { (0, 2) } else { (5, 0) });
    assert_eq!(of("n_depth"), if test.ends_with("d3") { 3 } else { 0 });
    assert!((16_000_000..18_000_000).contains(&of("model_n_params")));
    assert!(of("flops_per_token_estimated") > 1_000_000 && of("kv_bytes_predicted") > 10_000);
    assert!(of("memory_bytes_predicted") > of("model_size") + of("kv_bytes_predicted"));
    let speeds: Vec<f64> = row["samples_ts"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_f64().unwrap())
        .collect();
    let (mean, sd) = (row["avg_ts"].as_f64().unwrap(), row["stddev_ts"].as_f64().unwrap());
    assert_eq!(speeds.len(), 2);
    assert!((mean - (speeds[0] + speeds[1]) / 2.0).abs() < 1e-6 * mean);
    assert!((sd - (speeds[0] - speeds[1]).abs() / 2f64.sqrt()).abs() < 1e-6 * mean);
    // A token reads less than the whole model: embedding rows and experts are chosen.
    assert_eq!(row["bytes_per_token_estimated"].is_u64(), decodes);
    if decodes {
        let bytes = of("bytes_per_token_estimated");
        assert!(bytes > 1_000_000 && bytes < of("model_size"));
    }
    if let Some(reads) = row["read_bandwidth_bytes_per_s"].as_f64() {
        assert!(reads > 0.0);
        assert_eq!(row["read_share"].is_number(), decodes);
    }
}

#[test]
fn json_has_every_figure() {
    let array: Value = serde_json::from_str(&bundled("json").stdout).unwrap();
    let rows = array.as_array().unwrap();
    assert_eq!(rows.len(), TESTS.len());
    rows.iter().zip(TESTS).for_each(|(row, test)| check(row, test));
    // Deeper contexts hold and read more.
    let of = |i: usize, k: &str| rows[i][k].as_u64().unwrap();
    assert!(of(3, "bytes_per_token_estimated") > of(1, "bytes_per_token_estimated"));
    assert!(of(3, "kv_bytes_predicted") >= of(1, "kv_bytes_predicted"));
}

/// Several sequences: a row each, tokens per second of all and of one.
#[test]
fn several_sequences() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../bundled/model1-mini");
    let run = |form: &str, batches: &str| {
        let args = ["-p", "5", "-n", "2", "-r", "1", "--device", "cpu", "-t", "1"];
        let mut c = command(&[&["bench", "-o", form, "-b", batches][..], &args].concat());
        c.env("MODEL1_BUNDLED", &root);
        finish(c, "")
    };
    let rows: Value = serde_json::from_str(&run("json", "1,3").ok().stdout).unwrap();
    let tests: Vec<&str> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["test"].as_str().unwrap())
        .collect();
    assert_eq!(tests, ["pp5", "tg2", "tg2 b3"]);
    let (one, three) = (&rows[1], &rows[2]);
    assert_eq!((&one["n_sequences"], &three["n_sequences"]), (&1.into(), &3.into()));
    let figure = |row: &Value, k: &str| row[k].as_f64().unwrap();
    assert_eq!(figure(one, "avg_ts"), figure(one, "avg_ts_per_sequence"));
    let each = figure(three, "avg_ts") / 3.0;
    assert!((figure(three, "avg_ts_per_sequence") - each).abs() < 1e-9 * each);
    assert_eq!(
        figure(three, "kv_bytes_predicted"),
        3.0 * figure(one, "kv_bytes_predicted")
    );
    assert!(one["not_in_one_step"].is_null());
    assert!(three["not_in_one_step"].as_str().unwrap().contains("cpu"));
    let text = run("md", "3").ok().stdout;
    for words in [
        "tg2 b3",
        " each) |",
        "tokens/s are of all",
        "tg2 b3: not in one step for all",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let refused = run("md", "2,0");
    assert!(
        refused.stderr.contains("--batch: found 0, accepted: 1 or more"),
        "{}",
        refused.stderr
    );
}

#[test]
fn json_lines_and_csv_have_the_same_rows() {
    let lines = bundled("jsonl").stdout;
    let rows: Vec<Value> = lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len(), TESTS.len());
    rows.iter().zip(TESTS).for_each(|(row, test)| check(row, test));

    let csv = bundled("csv").stdout;
    let mut table = csv.lines().map(cells);
    let names = table.next().unwrap();
    let lists = ["samples_ns", "samples_ts"];
    let wanted = rows[0]
        .as_object()
        .unwrap()
        .keys()
        .filter(|k| !lists.contains(&k.as_str()));
    assert!(wanted.clone().all(|k| names.contains(k)), "{names:?}");
    assert_eq!(names.len(), wanted.count());
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    let mut count = 0;
    for (cells, row) in table.zip(&rows) {
        assert_eq!(cells.len(), names.len(), "{cells:?}");
        for k in ["test", "model", "device", "recipe"] {
            assert_eq!(cells[at(k)], row[k].as_str().unwrap());
        }
        for k in ["n_gen", "model_size", "kv_bytes_predicted", "flops_per_token_estimated"] {
            assert_eq!(cells[at(k)], row[k].to_string());
        }
        let bytes = &row["bytes_per_token_estimated"];
        let text = if bytes.is_null() {
            String::new()
        } else {
            bytes.to_string()
        };
        assert_eq!(cells[at("bytes_per_token_estimated")], text);
        count += 1;
    }
    assert_eq!(count, TESTS.len());
}

#[test]
fn markdown_is_a_table_with_its_legend() {
    let text = bundled("md").stdout;
    let (table, legend) = text.split_once("\n\n").unwrap();
    let rows: Vec<Vec<&str>> = table
        .lines()
        .map(|l| l.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    assert_eq!(rows.len(), 2 + TESTS.len(), "{text}");
    assert!(rows.iter().all(|r| r.len() == rows[0].len()), "{text}");
    assert_eq!(
        rows[0][..7],
        ["model", "size", "params", "backend", "threads", "test", "tokens/s"]
    );
    assert!(
        rows[1].iter().all(|c| c.trim_matches(':').chars().all(|c| c == '-')),
        "{text}"
    );
    for (row, test) in rows[2..].iter().zip(TESTS) {
        assert_eq!(
            (row[0], row[3], row[4], row[5]),
            ("model1-mini f8_e4m3", "CPU", "1", test)
        );
        assert!(row[2].ends_with(" M") && row[6].contains(" +- "), "{text}");
        assert_eq!(row[7] == "-", test.starts_with("pp"), "{text}");
    }
    let widths: Vec<usize> = table.lines().map(str::len).collect();
    assert!(widths.iter().all(|w| *w == widths[0]), "{text}");
    for part in [
        "CPU, 1 threads",
        "tokens/s measured: mean +- standard deviation",
        "of 2 after a warm-up",
        "estimated",
        "predicted",
    ] {
        assert!(legend.contains(part), "no `{part}` in:\n{legend}");
    }
    assert!(!legend.contains("Random weights"), "{legend}");
}

#[test]
fn a_shape_on_several_numbers_of_threads() {
    let args = [
        "--shape",
        "r1-distill-qwen-1.5b",
        "--weights",
        "q4_0",
        "--layers",
        "1",
        "--device",
        "cpu",
    ];
    let tests = ["-p", "0", "-n", "1", "-r", "1", "-t", "1,2", "-o", "jsonl"];
    let ran = model1(&[&["bench"], &args[..], &tests].concat()).ok();
    let rows: Vec<Value> = ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let threads: Vec<_> = rows.iter().map(|r| r["n_threads"].as_u64().unwrap()).collect();
    assert_eq!(threads, [1, 2]);
    for row in &rows {
        assert_eq!(row["model"], "R1-Distill-Qwen-1.5B (1 of 28 layers)");
        assert_eq!(
            (&row["random_weights"], &row["weights"]),
            (&true.into(), &"q4_0".into())
        );
        assert_eq!(row["stddev_ts"], 0.0);
        // One layer and the output layer are read, the embedding table is not.
        let (read, all) = (&row["bytes_per_token_estimated"], &row["model_size"]);
        let share = read.as_f64().unwrap() / all.as_f64().unwrap();
        assert!((0.5..0.75).contains(&share), "{share}");
    }
}

#[cfg(target_os = "linux")] // limits the address space
#[test]
fn a_shape_that_does_not_fit_is_refused() {
    let limited = "ulimit -v 4000000; exec \"$0\" \"$@\"";
    let program = env!("CARGO_BIN_EXE_model1");
    let args = ["bench", "--shape", "GPT-3-175B", "--weights", "fp4", "--device", "cpu"];
    let mut c = std::process::Command::new("sh");
    c.args([&["-c", limited, program], &args[..]].concat());
    c.stdin(std::process::Stdio::null());
    c.stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let message = finish(c, "").error(1);
    for part in [
        "GPT-3-175B with random fp4 weights needs about 8",
        " GiB",
        " are available; choose",
    ] {
        assert!(message.contains(part), "no `{part}` in {message}");
    }
}

#[test]
fn bad_input_gets_one_message() {
    let model = golden("tiny-v4");
    let shape = ["--shape", "Llama-2-7B"];
    for (args, words) in [
        (
            vec!["--shape", "gpt-5"],
            "accepted: R1-Distill-Qwen-1.5B, Llama-2-7B, model1-1.5b, GPT-3-175B",
        ),
        (
            vec![shape[0], shape[1], "--weights", "int3"],
            "accepted for Llama-2-7B: bf16, fp8, q8_0, q4_0, fp4",
        ),
        (
            vec!["--shape", "model1-1.5b", "--weights", "q8_0"],
            "accepted: bf16, fp8, fp4",
        ),
        (
            vec![shape[0], shape[1], "--layers", "33"],
            "found 33, accepted: 1 to 32",
        ),
        (
            vec!["--shape", "GPT-3-175B", "-d", "2000"],
            "test pp512 @ d2000: found 2512 tokens",
        ),
        (vec!["--model", &model, "-r", "0"], "--repetitions: found 0"),
        (vec!["--model", &model, "-t", "2,0"], "--threads: found 0"),
        (
            vec!["--model", &model, "-p", "0", "-n", "0"],
            "found nothing to measure",
        ),
        (
            vec!["--model", &model, "-n", "18446744073709551615", "-d", "1"],
            "far too many tokens",
        ),
        (vec!["--model", &model, "--device", "tpu"], "--device: found `tpu`"),
        (vec!["--model", &model, "--kv-cache", "int3"], "--kv-cache int3"),
        (vec!["--model", "/nonexistent/model"], "no such file or folder"),
    ] {
        let message = model1(&[&["bench"], &args[..]].concat()).error(2);
        assert!(message.contains(words), "{args:?}: {message}");
    }
    // What the arguments' own grammar refuses.
    for (args, words) in [
        (vec!["-p", "12x"], "invalid value '12x'"),
        (vec!["-o", "xml"], "[possible values: md, csv, json, jsonl]"),
        (vec!["--weights", "fp8"], "--shape <NAME>"),
        (vec!["--model", "a", "--shape", "b"], "cannot be used with"),
    ] {
        let ran = model1(&[&["bench"], &args[..]].concat());
        assert_eq!(ran.code, Some(2), "{args:?}");
        assert!(ran.stderr.contains(words), "{args:?}: {}", ran.stderr);
    }
}

#[test]
fn ctrl_c_keeps_the_rows_that_are_there() {
    let toy = Toy::new();
    for form in ["jsonl", "json"] {
        // The second row takes far longer than any test.
        let mut c = toy.command("bench", &["-p", "0", "-n", "2,1000000", "-r", "1", "-o", form]);
        let mut run = c.spawn().unwrap();
        let mut out = BufReader::new(run.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("figures") {
            assert!(out.read_line(&mut text).unwrap() > 0, "it ended early: {text}");
        }
        let kill = format!("kill -INT {}", run.id());
        assert!(
            std::process::Command::new("sh")
                .args(["-c", &kill])
                .status()
                .unwrap()
                .success()
        );
        out.read_to_string(&mut text).unwrap();
        let mut said = String::new();
        run.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(run.wait().unwrap().code(), Some(130), "{said}");
        assert_eq!(said, "stopped; 1 rows are measured\n");
        let found: Value = serde_json::from_str(&text).unwrap();
        let row = if form == "json" { &found[0] } else { &found };
        assert_eq!(row["test"], "tg2", "{text}");
    }
}
