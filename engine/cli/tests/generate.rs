//! `model1 generate`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use checkpoint::write::{Value as Meta, gguf_spec, write_gguf};
use common::bytes::alphabet;
use common::{LAYERS, Toy, finish, golden, golden_json, model1, telemetry, weights};
use kernels::ir::Format;

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

/// Each of several texts is the one that its seed alone gives.
#[test]
fn samples_are_texts_of_their_seeds() {
    let toy = Toy::new();
    // None of them may end before the others.
    let draw = [
        "--prompt",
        "fox",
        "-n",
        "12",
        "--temperature",
        "1.2",
        "-q",
        "--ignore-eos",
    ];
    let with = |more: &[&str]| toy.run("generate", &[&draw[..], more].concat());
    let all = with(&["--samples", "3", "--seed", "7"]).ok().stdout;
    let mut want = String::new();
    for i in 0..3 {
        let seed = (7 + i).to_string();
        let alone = with(&["--seed", &seed]).ok().stdout;
        want += &format!("[{} of 3, seed {seed}: --max-tokens reached]\n{alone}", i + 1);
    }
    assert_eq!(all, want);
    for (args, words) in [
        (&["--samples", "0"][..], "--samples: found 0, accepted: 1 to 64"),
        (
            &["--samples", "2", "--temperature", "0"],
            "accepted: with --temperature above 0",
        ),
        (&["--samples", "2", "--kv-table"], "cannot be used with"),
    ] {
        let plain = [&["--prompt", "fox", "-n", "2"][..], args].concat();
        let refused = toy.run("generate", &plain);
        assert!(
            refused.code == Some(2) && refused.stderr.contains(words),
            "{}",
            refused.stderr
        );
    }
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
            "--set",
            "layers.2.kv_cache=fp8_b64",
        ],
    );
    let table = ran.ok().stderr;
    assert!(table.contains("KV cache per layer after 6 tokens"), "{table}");
    let rows: Vec<&str> = table.lines().filter(|l| l.contains(" % ")).collect();
    assert_eq!(rows.len(), LAYERS, "{table}");
    assert!(rows[0].contains(" f32 ") && rows[0].contains("exact"), "{table}");
    // Rounding to bf16 is not counted: nothing is claimed about it.
    assert!(rows[1].contains(" bf16 ") && rows[1].ends_with("-  -"), "{table}");
    assert!(
        rows[2].contains(" fp8_b64 ") && rows[2].matches(" % ").count() == 2,
        "{table}"
    );
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
        let list = |key: &str| -> Vec<String> {
            let values = json[key].as_array().unwrap().iter();
            values.map(|v| v.to_string()).collect()
        };
        let wanted = list("greedy_continuation_24");
        let (model, ids) = (golden(name), list("input_ids").join(","));
        let args = ["generate", "-q", "--threads", "1", "-n", "24", "--ignore-eos"];
        let args = [&args[..], &["--model", &model, "--ids", &ids]].concat();
        // These have no tokenizer, so ids come out, too.
        assert_eq!(model1(&args).ok().stdout, format!("{}\n", wanted.join(" ")), "{name}");
        let table = model1(&[&args[..], &["--logprobs", "0"]].concat()).ok().stdout;
        let column: Vec<&str> = table.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
        assert_eq!(column, wanted, "{name}: {table}");
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

/// The toy as a GGUF file. Its rotation is laid out otherwise, so the rows of queries and keys are exchanged.
fn gguf(toy: &Toy) -> String {
    let (heads, kv_heads, width) = (4, 2, 8);
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("lm_head", "output"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let mut specs = Vec::new();
    let mut values = Vec::new();
    for (name, shape, data) in weights() {
        let data = match name.contains("q_proj") || name.contains("k_proj") {
            true => interleaved(
                &data,
                if name.contains("q_proj") { heads } else { kv_heads },
                width,
                shape[1],
            ),
            false => data,
        };
        let name = names.iter().fold(name, |n, (theirs, ours)| n.replace(theirs, ours));
        specs.push(gguf_spec(&name, Format::F32, &shape).unwrap());
        values.push(data);
    }
    let int = |key: &str, value: i64| (format!("llama.{key}"), Meta::Int(value));
    let text = |key: &str, value: &str| (key.to_owned(), Meta::Text(value.to_owned()));
    let mut tokens = alphabet();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unused>"].map(str::to_owned));
    let types = (0..260).map(|i| if i < 256 { 1 } else { 3 }).collect();
    let metadata = [
        text("general.architecture", "llama"),
        int("attention.head_count", heads as i64),
        int("attention.head_count_kv", kv_heads as i64),
        int("embedding_length", 32),
        int("block_count", LAYERS as i64),
        int("feed_forward_length", 48),
        int("context_length", 4096),
        ("llama.attention.layer_norm_rms_epsilon".to_owned(), Meta::Float(1e-5)),
        text("tokenizer.ggml.model", "gpt2"),
        text("tokenizer.ggml.pre", "smollm"),
        ("tokenizer.ggml.tokens".to_owned(), Meta::Texts(tokens)),
        ("tokenizer.ggml.token_type".to_owned(), Meta::Ints(types)),
        ("tokenizer.ggml.merges".to_owned(), Meta::Texts(vec!["# #".to_owned()])),
        ("tokenizer.ggml.eos_token_id".to_owned(), Meta::Int(258)),
    ];
    let bytes = |i: usize| values[i].iter().flat_map(|v| v.to_le_bytes()).collect();
    write_gguf(&toy.path("toy.gguf"), &metadata, &specs, bytes).unwrap();
    toy.text("toy.gguf")
}

/// Rows `i` and `i + width / 2` of each head side by side.
fn interleaved(data: &[f32], heads: usize, width: usize, cols: usize) -> Vec<f32> {
    let row = |head: usize, i: usize| {
        let from = head * width + i / 2 + i % 2 * (width / 2);
        &data[from * cols..(from + 1) * cols]
    };
    (0..heads * width)
        .flat_map(|r| row(r / width, r % width))
        .copied()
        .collect()
}

#[test]
fn a_gguf_file_writes_what_the_folder_writes() {
    let toy = Toy::new();
    let model = gguf(&toy);
    let args = [
        "generate",
        "--model",
        &model,
        "--threads",
        "1",
        "--prompt",
        "fox",
        "-n",
        "40",
        "-q",
    ];
    let folder = toy.run("generate", &["--prompt", "fox", "-n", "40", "-q"]).ok();
    assert_eq!(
        model1(&[&args[..], &["--kv-cache", "f32"]].concat()).ok().stdout,
        folder.stdout
    );
}
