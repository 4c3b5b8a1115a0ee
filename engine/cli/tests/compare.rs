//! `model1 compare`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Toy, finish, golden, model1};
use serde_json::Value;

const TEXT: &str = "the quick brown fox jumps over the lazy dog and runs away";

#[test]
fn the_report_reads_well_and_says_how_to_repeat_it() {
    let toy = Toy::new();
    let args = [
        "--prompt",
        TEXT,
        "--b-set",
        "layers.1-2.kv_cache=fp8_b64",
        "--b-set",
        "weights.lm_head=fp8",
    ];
    let ran = toy.run("compare", &[&args[..], &["--isolate"]].concat()).ok();
    let out = &ran.stdout;
    for part in [
        "57 positions, teacher-forced",
        "layers.1-2.kv_cache=fp8_b64  (A: f32)",
        "KL(A||B), nats      mean ",
        "noise, A against A  mean 0   largest 0",
        "perplexity",
        "B against A",
        "decode, tokens/s",
        "all figures measured",
    ] {
        assert!(out.contains(part), "no `{part}` in:\n{out}");
    }
    // Layer 0 is the same on both sides.
    let layer0 = out.lines().find(|l| l.starts_with("0 ")).unwrap();
    assert_eq!(layer0.split_whitespace().nth(1), Some("0"), "{layer0}");
    let rows = out.lines().skip_while(|l| !l.starts_with("A with")).skip(1);
    assert_eq!(rows.take_while(|l| !l.is_empty()).count(), 2, "{out}");
    // The command at the end gives the same figures again.
    let command = out.lines().last().unwrap();
    let words: Vec<String> = command
        .split('\'')
        .enumerate()
        .fold(Vec::new(), |mut words, (i, part)| {
            match i % 2 {
                0 => words.extend(part.split_whitespace().map(str::to_owned)),
                _ => words.push(part.to_owned()),
            }
            words
        });
    assert_eq!(words[0], "model1");
    let again = model1(&[&words[1..], &["--threads".to_owned(), "1".to_owned()]].concat()).ok();
    let figures = |text: &str| -> Vec<String> {
        let keep = |l: &&str| !l.contains("tokens/s") && !l.contains("figures measured");
        text.lines().filter(keep).map(str::to_owned).collect()
    };
    assert_eq!(figures(out), figures(&again.stdout));
}

#[test]
fn json_has_everything_position_by_position() {
    let args = [
        "--ids",
        "5,9,2,7,1,3,8,4",
        "--b-set",
        "layers.*.attention=top_k:k=2",
        "--json",
    ];
    let model = golden("tiny-v4");
    let ran = model1(&[&["compare", "--model", &model][..], &args].concat()).ok();
    let v: Value = serde_json::from_str(&ran.stdout).unwrap();
    let tokens = v["tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 8);
    let kl: Vec<f64> = tokens.iter().map(|t| t["kl"].as_f64().unwrap()).collect();
    assert_eq!(&kl[..2], [0.0, 0.0], "two keys are all there is at first");
    let mean = kl.iter().sum::<f64>() / 8.0;
    assert!((v["kl"]["mean"].as_f64().unwrap() - mean).abs() < 1e-6 && mean > 0.0);
    assert_eq!(v["drift"]["layer_rms"].as_array().unwrap().len(), 6);
    assert_eq!(v["changes"][0]["edit"]["selector"], "layers.*.attention");
    assert!(tokens[7]["logprob"][0].is_null(), "no token follows the last one");
}

#[test]
fn recipes_and_texts_from_files() {
    let toy = Toy::new();
    let a = toy.write("a.json", r#"{"schema":1,"set":{"layers.*.kv_cache":"bf16"}}"#);
    let text = toy.write("text.txt", TEXT);
    let from_file = toy
        .run("compare", &["--a", &a, "--b", "own", "--text", &text, "--json"])
        .ok();
    let set = [
        "--a-set",
        "layers.*.kv_cache=bf16",
        "--b",
        "own",
        "--text",
        "-",
        "--json",
    ];
    let from_stdin = finish(toy.command("compare", &set), TEXT).ok();
    let figures = |ran: &common::Ran| {
        let v: Value = serde_json::from_str(&ran.stdout).unwrap();
        (v["kl"].clone(), v["tokens"].clone(), v["changes"].clone())
    };
    assert_eq!(figures(&from_file), figures(&from_stdin));
    let (_, _, changes) = figures(&from_file);
    assert_eq!(
        (&changes[0]["from"], &changes[0]["edit"]["choice"]["variant"]),
        (&"bf16".into(), &"f32".into())
    );
    // Without a text, the story that comes with the program; a byte is a token here.
    let story = toy
        .run("compare", &["--b-set", "weights.lm_head=bf16", "--positions", "40"])
        .ok();
    assert!(story.stdout.contains("40 positions") && story.stdout.contains("the first 40 were compared"));
}

#[test]
fn a_report_is_written_once() {
    let toy = Toy::new();
    let folder = toy.text("out/report");
    let args = [
        "--prompt",
        TEXT,
        "--b-set",
        "layers.*.kv_cache=bf16",
        "--export",
        &folder,
    ];
    let ran = toy.run("compare", &args).ok();
    assert!(ran.stderr.contains("wrote 12 files"), "{}", ran.stderr);
    let page = std::fs::read_to_string(toy.path("out/report/report.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && page.contains("KL along the text"));
    // The files beside the page repeat it.
    let file = |name: &str| toy.text(&format!("out/report/{name}"));
    let (a, b, ids) = (file("a.json"), file("b.json"), format!("@{}", file("ids.txt")));
    let again = toy
        .run("compare", &["--a", &a, "--b", &b, "--ids", &ids, "--json"])
        .ok();
    let again: Value = serde_json::from_str(&again.stdout).unwrap();
    let first: Value = serde_json::from_str(&std::fs::read_to_string(file("result.json")).unwrap()).unwrap();
    assert_eq!(
        (&again["kl"], &again["sides"][1]["hash"]),
        (&first["kl"], &first["sides"][1]["hash"])
    );
    // Nothing is overwritten, and that is said before the work.
    let error = toy.run("compare", &args).error(2);
    assert!(
        error.contains("--export") && error.contains("a folder with 12 entries"),
        "{error}"
    );
}

#[test]
fn mistakes_are_named() {
    let toy = Toy::new();
    let refused = |args: &[&str]| toy.run("compare", args).error(2);
    let none = "found no recipe B, accepted: --b FILE, or --b-set SLOT=VARIANT for A with changes";
    assert_eq!(refused(&["--prompt", TEXT]), none);
    let b = ["--b-set", "layers.*.kv_cache=bf16"];
    let with = |more: &[&str]| refused(&[&b[..], more].concat());
    assert!(with(&["--prompt", "x"]).contains("found 1 token(s), accepted: at least 2"));
    assert!(with(&["--a", "nothing.json"]).starts_with("--a nothing.json: "));
    assert!(with(&["--text", "nothing.txt"]).starts_with("--text nothing.txt: "));
    let edit = refused(&["--b-set", "layers.9.kv_cache=bf16"]);
    assert!(
        edit.starts_with("--b-set layers.9.kv_cache=bf16: ") && edit.contains("layer 9 is out of range"),
        "{edit}"
    );
}

#[test]
fn statistics_positions_and_layers_on_request() {
    let model = golden("tiny-v4");
    let ids: Vec<String> = (0..60u32)
        .map(|i| ((i * i * 7919 + 13 * i + 5) % 150).to_string())
        .collect();
    let ids = ids.join(",");
    let base = [
        "compare",
        "--model",
        &model,
        "--ids",
        &ids,
        "--b-set",
        "layers.*.attention=top_k:k=2",
    ];
    let more = ["--details", "--at", "31", "--layer", "4"];
    let ran = model1(&[&base[..], &more].concat()).ok();
    for part in [
        "statistics, named as llama.cpp's perplexity tool names them (Q is B, base is A)",
        "  Mean PPL(Q) ",
        "  Cor(ln(PPL(Q)), ln(PPL(base)))   ",
        "  99.9 % KLD ",
        "  RMS Δp ",
        "  Same top p ",
        "positions with the largest KL",
        "positions where the likeliest token differs, A surest first",
        "drift grows most in",
        "drift at position 31 ",
        "most drift after layer 4",
    ] {
        assert!(ran.stdout.contains(part), "no `{part}` in:\n{}", ran.stdout);
    }
    assert!(
        !model1(&base).ok().stdout.contains("statistics"),
        "only where asked for"
    );
    // The same numbers as JSON, and they are those of the matrix.
    let v: Value = serde_json::from_str(&model1(&[&base[..], &more, &["--json"]].concat()).ok().stdout).unwrap();
    let drift = |layer: usize, position: usize| v["drift"]["relative_rms"][layer * 60 + position].as_f64().unwrap();
    let grown = v["at"][0]["layers"].as_array().unwrap();
    assert_eq!((v["at"][0]["position"].as_u64(), grown.len()), (Some(31), 6));
    let growth = |g: &Value| g["growth"].as_f64().unwrap();
    assert!(grown.windows(2).all(|w| growth(&w[0]) >= growth(&w[1])));
    for g in grown {
        let l = g["layer"].as_u64().unwrap() as usize;
        let before = if l == 0 { 0.0 } else { drift(l - 1, 31) };
        assert!((growth(g) - (drift(l, 31) - before)).abs() < 1e-6, "{g}");
    }
    let most = v["most_drift"][4]["positions"].as_array().unwrap();
    let largest = (0..60).map(|p| drift(4, p)).fold(0.0, f64::max);
    let top = &most[0];
    assert!((top["drift"].as_f64().unwrap() - largest).abs() < 1e-6);
    assert_eq!(drift(4, top["position"].as_u64().unwrap() as usize), largest);
    let kl = |i: usize| v["tokens"][i]["kl"].as_f64().unwrap();
    let worst = v["interest"]["kl"][0].as_u64().unwrap() as usize;
    assert!((0..60).all(|i| kl(i) <= kl(worst)));
    let first = v["interest"]["first_flips"][0].as_u64();
    assert_eq!(first, v["divergence"]["position"].as_u64());
    let named = |name: &str| {
        let all = v["statistics"].as_array().unwrap();
        all.iter().find(|s| s["name"] == name).unwrap()["value"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(named("Mean KLD"), v["kl"]["mean"].as_f64().unwrap());
    assert_eq!(named("RMS Δp"), v["delta_p"]["rms"][0].as_f64().unwrap());
    for (option, value, words) in [
        ("--at", "60", "--at: found 60, accepted: 0 to 59"),
        ("--layer", "6", "--layer: found 6, accepted: 0 to 5"),
    ] {
        assert_eq!(model1(&[&base[..], &[option, value]].concat()).error(2), words);
    }
}

#[test]
fn both_sides_write_and_both_modes_say_the_same() {
    let toy = Toy::new();
    let base = [
        "--prompt",
        "the quick brown",
        "--b-set",
        "layers.*.kv_cache=fp8_b64",
        "--free-run",
        "40",
    ];
    let text = toy.run("compare", &base).ok().stdout;
    for part in [
        "both sides write up to 40 tokens after a prompt of 15, greedily, in lockstep",
        "given the quick brown",
        "KL(A||B), nats      mean ",
        "first difference    ",
        "in common           ",
        "decode, tokens/s",
        "all figures measured",
    ] {
        assert!(text.contains(part), "no `{part}` in:\n{text}");
    }
    let drawn = ["--temperature", "0.8", "--seed", "3", "--json"];
    let figures = |more: &[&str]| {
        let ran = toy.run("compare", &[&base[..], &drawn, more].concat()).ok();
        let mut v: Value = serde_json::from_str(&ran.stdout).unwrap();
        for side in v["sides"].as_array_mut().unwrap() {
            side["decode_tokens_per_s"] = 0.into();
        }
        (
            v["sides"].clone(),
            v["kl"].clone(),
            v["split"].clone(),
            v["blocks"].clone(),
        )
    };
    assert_eq!(figures(&[]), figures(&["--in-turn"]));
    let refused = |more: &[&str]| toy.run("compare", &[&base[..4], more].concat()).error(2);
    for (more, words) in [
        (
            vec!["--free-run", "0"],
            "tokens to write: found 0 after a prompt of 15, accepted: 1 to",
        ),
        (vec!["--free-run", "99999999"], "tokens to write: found 99999999"),
        (vec!["--free-run", "4", "--temperature", "-1"], "temperature"),
    ] {
        let message = refused(&more);
        assert!(message.contains(words), "{more:?}: {message}");
    }
}
