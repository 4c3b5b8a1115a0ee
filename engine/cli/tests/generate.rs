//! `model1 generate`, and what all subcommands share: help and version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;

use common::{LAYERS, Toy, command, finish, golden, golden_json, model1, telemetry};

#[test]
fn every_subcommand_explains_itself() {
    let top = model1(&["--help"]).ok().stdout;
    assert!(
        top.contains("Examples:\n  model1 demo\n") && top.contains("Exit codes: 0 done"),
        "{top}"
    );
    for name in ["demo", "generate", "chat", "show", "logits", "devices", "pull"] {
        assert!(top.contains(&format!("\n  {name} ")), "{name} is missing: {top}");
        let help = model1(&[name, "--help"]).ok();
        assert!(
            help.stdout.contains(&format!("Usage: model1 {name}")),
            "{}",
            help.stdout
        );
        assert_eq!(help.stderr, "");
    }
    assert_eq!(
        model1(&["--version"]).ok().stdout,
        concat!("model1 ", env!("CARGO_PKG_VERSION"), "\n")
    );
}

#[test]
fn text_goes_to_stdout_and_figures_to_stderr() {
    let toy = Toy::new();
    let loud = toy.run("generate", &["--prompt", "fox", "-n", "20"]).ok();
    assert!(
        loud.stdout.starts_with("fox") && loud.stdout.ends_with('\n'),
        "{}",
        loud.stdout
    );
    assert_eq!(loud.stdout.len(), 3 + 20 + 1);
    assert!(
        loud.stderr
            .contains("[20 tokens, --max-tokens reached; prompt 3 tokens at "),
        "{}",
        loud.stderr
    );
    assert!(loud.stderr.contains("; recipe "), "{}", loud.stderr);
    let quiet = toy.run("generate", &["--prompt", "fox", "-n", "20", "--quiet"]).ok();
    assert_eq!(quiet.stderr, "");
    assert_eq!(format!("fox{}", quiet.stdout), loud.stdout);
    let piped = toy.command("generate", &["--prompt", "-", "-n", "20"]);
    assert_eq!(
        finish(piped, "fox").ok().stdout,
        quiet.stdout,
        "a prompt from a pipe is not repeated"
    );
}

#[test]
fn the_kv_table_has_a_row_per_layer() {
    let toy = Toy::new();
    let ran = toy.run(
        "generate",
        &[
            "--prompt",
            "fox",
            "-n",
            "4",
            "-q",
            "--kv-table",
            "--set",
            "layers.1.kv_cache=bf16",
        ],
    );
    let table = ran.ok().stderr;
    assert!(table.contains("KV cache per layer after 6 tokens"), "{table}");
    let rows: Vec<&str> = table.lines().filter(|l| l.contains(" % ")).collect();
    assert_eq!(rows.len(), LAYERS, "{table}");
    assert!(rows[0].contains(" f32 ") && rows[0].contains("exact"), "{table}");
    assert!(rows[1].contains(" bf16 ") && !rows[1].contains("exact"), "{table}");
}

#[test]
fn greedy_repeats_itself_and_seeds_decide_draws() {
    let toy = Toy::new();
    let text = |args: &[&str]| {
        let all = [&["--prompt", "once", "-n", "40", "-q"], args].concat();
        toy.run("generate", &all).ok().stdout
    };
    let greedy = text(&[]);
    assert_eq!(greedy, text(&["--greedy"]));
    assert_eq!(greedy, text(&["--temperature", "0", "--seed", "9"]));
    let drawn = text(&["--temperature", "1.5", "--seed", "1"]);
    assert_eq!(drawn, text(&["--temperature", "1.5", "--seed", "1"]));
    assert_ne!(drawn, text(&["--temperature", "1.5", "--seed", "2"]));
    assert_ne!(drawn, greedy);
    assert_ne!(text(&["--seed", "1"]), greedy, "a seed asks for drawing");
    assert_eq!(text(&["--temperature", "1.5", "--top-k", "1"]), greedy, "one candidate");
    assert_eq!(text(&["--set", "layers.*.attention=own"]), greedy);
}

#[test]
fn max_tokens_stop_strings_and_context_end_the_text() {
    let toy = Toy::new();
    let long = toy.run("generate", &["--prompt", "once", "-n", "30", "-q"]).ok().stdout;
    let short = toy.run("generate", &["--prompt", "once", "-n", "12", "-q"]).ok().stdout;
    assert_eq!(short.trim_end(), &long[..12]);
    let stop = &long[6..9];
    let before = &long[..long.find(stop).unwrap()];
    let stopped = toy
        .run(
            "generate",
            &["--prompt", "once", "-n", "30", "--stop", "%", "--stop", stop],
        )
        .ok();
    assert_eq!(stopped.stdout, format!("once{before}\n"));
    assert!(stopped.stderr.contains("tokens, stop string; "), "{}", stopped.stderr);
    let full = toy.run("generate", &["--prompt", "once", "--context", "10"]).ok();
    assert_eq!(full.stdout, format!("once{}\n", &long[..6]));
    assert!(full.stderr.contains("[6 tokens, context full; "), "{}", full.stderr);
    let none = toy.run("generate", &["--prompt", "once", "-n", "0"]).ok();
    assert_eq!(none.stdout, "once\n");
}

#[test]
fn logprobs_lists_tokens_with_alternatives() {
    let toy = Toy::new();
    let text = toy.run("generate", &["--prompt", "once", "-n", "5", "-q"]).ok().stdout;
    let table = toy
        .run("generate", &["--prompt", "once", "-n", "5", "--logprobs", "3"])
        .ok()
        .stdout;
    let lines: Vec<&str> = table.lines().filter(|l| !l.is_empty()).collect();
    assert_eq!(lines.len(), 5, "{table}");
    for (i, (line, letter)) in lines.iter().zip(text.chars()).enumerate() {
        let (left, right) = line.split_once(" | ").unwrap();
        let left: Vec<&str> = left.split_whitespace().collect();
        let id = (letter as u32).to_string();
        assert_eq!(
            left[..3],
            [i.to_string(), id, format!("{letter:?}").replace('\'', "\"")],
            "{line}"
        );
        let top: Vec<&str> = right.split_whitespace().collect();
        assert_eq!(top.len(), 6, "{line}");
        assert_eq!(top[0], format!("\"{letter}\""), "greedy takes the most likely: {line}");
        assert_eq!(
            top[1].parse::<f32>().unwrap(),
            left[3].parse::<f32>().unwrap(),
            "{line}"
        );
        assert!(
            top[1].parse::<f32>().unwrap() >= top[3].parse::<f32>().unwrap(),
            "{line}"
        );
    }
}

#[test]
fn ids_give_the_golden_continuation() {
    for name in ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-v4"] {
        let json = golden_json(name);
        let list = |key: &str| {
            json[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.to_string())
                .collect::<Vec<_>>()
        };
        let wanted = list("greedy_continuation_24");
        let count = wanted.len().to_string();
        let ids = list("input_ids").join(",");
        let model = golden(name);
        let args = [
            "generate",
            "--model",
            &model,
            "--ids",
            &ids,
            "-n",
            &count,
            "--ignore-eos",
            "--logprobs",
            "1",
        ];
        let ran = model1(&[&args[..], &["-q", "--threads", "1"]].concat()).ok();
        let column = |l: &str| l.split_whitespace().nth(1).map(str::to_owned);
        let got: Vec<String> = ran.stdout.lines().filter_map(column).collect();
        assert_eq!(got, wanted, "{name}: {}", ran.stdout);
    }
}

#[test]
fn telemetry_has_a_line_per_step() {
    let toy = Toy::new();
    let file = toy.text("steps.jsonl");
    let ran = toy
        .run("generate", &["--prompt", "once", "-n", "6", "--telemetry", &file])
        .ok();
    let (header, steps) = telemetry(&toy.path("steps.jsonl"));
    assert_eq!(header["telemetry"], protocol::TELEMETRY_VERSION);
    let hash = header["recipe"].as_str().unwrap();
    assert!(ran.stderr.contains(&format!("recipe {hash}]")), "{}", ran.stderr);
    // The prompt, then every token but the last, which nothing comes after.
    let sizes: Vec<(u64, u64, u32)> = steps.iter().map(|s| (s.seq, s.position, s.tokens)).collect();
    assert_eq!(
        sizes,
        [(0, 0, 4), (1, 4, 1), (2, 5, 1), (3, 6, 1), (4, 7, 1), (5, 8, 1)]
    );
    for s in &steps {
        assert_eq!(s.version, protocol::TELEMETRY_VERSION);
        assert_eq!(s.layers.len(), LAYERS);
        assert!(s.nanos > 0 && s.layers[0].kv_used.window > 0, "{s:?}");
    }
    assert!(std::fs::read_to_string(&file).unwrap().ends_with("}\n"));
}

#[test]
fn cache_formats_come_from_flags_and_recipes_alike() {
    let toy = Toy::new();
    let bytes = |args: &[&str]| -> Vec<u64> {
        let file = toy.text("t.jsonl");
        let all = [&["--prompt", "once upon", "-n", "2", "-q", "--telemetry", &file], args].concat();
        toy.run("generate", &all).ok();
        let (_, steps) = telemetry(&toy.path("t.jsonl"));
        steps.last().unwrap().layers.iter().map(|l| l.kv_used.total()).collect()
    };
    let own = bytes(&[]);
    assert!(own.iter().all(|&b| b == own[0]) && own.len() == LAYERS, "{own:?}");
    let half = own[0] / 2;
    assert_eq!(bytes(&["--kv-cache", "bf16"]), [half; LAYERS]);
    assert_eq!(bytes(&["--set", "layers.1.kv_cache=bf16"]), [own[0], half, own[0]]);
    let last_wins = [
        "--kv-cache",
        "bf16",
        "--set",
        "layers.0-1.kv_cache=f32",
        "--set",
        "layers.0.kv_cache=bf16",
    ];
    assert_eq!(bytes(&last_wins), [half, own[0], half]);
    let short = toy.write("short.json", r#"{"schema":1,"set":{"layers.1-2.kv_cache":"bf16"}}"#);
    assert_eq!(bytes(&["--recipe", &short]), [own[0], half, half]);
    assert_eq!(
        bytes(&["--recipe", &short, "--set", "layers.2.kv_cache=f32"]),
        [own[0], half, own[0]]
    );
    let full = toy.run("show", &["--print-recipe", "--recipe", &short]).ok().stdout;
    let full = toy.write("full.json", &full);
    assert_eq!(bytes(&["--recipe", &full]), [own[0], half, half]);
    let sampler = toy.write("s.json", r#"{"schema":1,"sampler":{"temperature":1.5,"seed":1}}"#);
    let text = |args: &[&str]| {
        toy.run("generate", &[&["--prompt", "a", "-n", "30", "-q"], args].concat())
            .ok()
            .stdout
    };
    assert_eq!(
        text(&["--recipe", &sampler]),
        text(&["--temperature", "1.5", "--seed", "1"])
    );
    assert_eq!(text(&["--recipe", &sampler, "--greedy"]), text(&[]));
}

#[test]
fn fp8_blocks_run_where_the_rows_fit() {
    let (toy, model) = (Toy::new(), golden("tiny-v4-fp8"));
    let ids: Vec<String> = (0..40).map(|i| (i * 7 % 100).to_string()).collect();
    let args = [
        "generate",
        "--model",
        &model,
        "--ids",
        &ids.join(" "),
        "-n",
        "3",
        "-q",
        "--threads",
        "1",
    ];
    let (a, b) = (toy.text("a.jsonl"), toy.text("b.jsonl"));
    model1(&[&args[..], &["--kv-cache", "fp8_b64", "--telemetry", &a]].concat()).ok();
    model1(&[&args[..], &["--kv-cache", "f32", "--telemetry", &b]].concat()).ok();
    let used = |f: &str| telemetry(&toy.path(f)).1.pop().unwrap().layers[0].kv_used;
    assert!(
        used("a.jsonl").total() * 3 < used("b.jsonl").total(),
        "{:?} {:?}",
        used("a.jsonl"),
        used("b.jsonl")
    );
}

#[test]
fn ctrl_c_ends_with_130_and_keeps_the_text() {
    let toy = Toy::new();
    let file = toy.text("steps.jsonl");
    let mut child = toy
        .command("generate", &["--prompt", "once", "--ignore-eos", "--telemetry", &file])
        .spawn()
        .unwrap();
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let mut text = vec![0; 50];
    out.read_exact(&mut text).unwrap();
    let kill = format!("kill -INT {}", child.id());
    assert!(
        std::process::Command::new("sh")
            .args(["-c", &kill])
            .status()
            .unwrap()
            .success()
    );
    out.read_to_end(&mut text).unwrap();
    let mut figures = String::new();
    err.read_to_string(&mut figures).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{figures}");
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("once") && text.ends_with('\n'), "{text}");
    assert!(figures.contains(" tokens, stopped; prompt 4 tokens"), "{figures}");
    let produced: usize = figures
        .trim_start()
        .trim_start_matches('[')
        .split(' ')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!(text.trim_end().len() >= 4 + produced, "{produced} of {}", text.len());
    assert_eq!(telemetry(&toy.path("steps.jsonl")).1.len(), produced);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let toy = Toy::new();
    let (model, tree) = (toy.model(), golden("tiny-v4"));
    for args in [
        vec!["generate", "--model", &model, "--prompt", "once", "--ignore-eos"],
        vec!["show", "--model", &tree, "--plan"],
        vec!["show", "--schema"],
    ] {
        let mut child = command(&args).spawn().unwrap();
        drop(child.stdout.take());
        let mut err = String::new();
        child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        let code = child.wait().unwrap().code();
        assert!(!err.contains("panicked") && !err.contains("error:"), "{args:?}: {err}");
        assert!(matches!(code, Some(0 | 130)), "{args:?}: {code:?}");
    }
}
