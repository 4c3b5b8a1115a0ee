//! What the command says when something is wrong: one line that names what, where, and what is accepted.
//! Exit code 2 for what the user can change, 1 for failures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Toy, command, finish, golden, model1};
use serde_json::{Value, json};

/// The message of `generate --prompt once -n 4 ARGS`, which must fail with exit code 2.
#[track_caller]
fn refused(toy: &Toy, args: &[&str]) -> String {
    toy.run("generate", &[&["--prompt", "once", "-n", "4"], args].concat())
        .error(2)
}

#[test]
fn slots_and_variants() {
    let toy = Toy::new();
    let slots = "accepted: layers.N.SLOT, layers.A-B.SLOT or layers.*.SLOT with SLOT one of attention, ffn, kv_cache, \
                 index_cache; weights.attention, weights.ffn, weights.embedding and weights.lm_head";
    let set = |edit: &str| refused(&toy, &["--set", edit]);
    for bad in ["layers.0.cache", "layer.0.kv_cache", "layers.x.kv_cache", "layers.0"] {
        assert_eq!(
            set(&format!("{bad}=bf16")),
            format!("--set {bad}=bf16: `{bad}` names no slot; {slots}")
        );
    }
    let none = "--set layers.0.kv_cache: found no `=`, accepted: SLOT=VARIANT, e.g. layers.3-8.kv_cache=bf16";
    assert_eq!(set("layers.0.kv_cache"), none);
    let range =
        "--set layers.1-7.kv_cache=bf16: `layers.1-7.kv_cache`: layer 7 is out of range, the model has layers 0 to 2";
    assert_eq!(set("layers.1-7.kv_cache=bf16"), range);
    let unknown = "--set layers.0.kv_cache=bf61: layers.0.kv_cache: no variant `bf61`; accepted: f32, bf16, fp8_model1, \
                   fp8_b64, fp8_v32, fp4";
    assert_eq!(set("layers.0.kv_cache=bf61"), unknown);
    let option = "--set layers.0.attention=sliding_window:windows=4: layers.0.attention: `sliding_window` has no option \
                  `windows`; accepted: window, sinks, zero, mean";
    assert_eq!(set("layers.0.attention=sliding_window:windows=4"), option);
    let zero = set("layers.0.attention=sliding_window:window=0");
    assert!(zero.contains("option `window`: found 0, accepted: 1 to "), "{zero}");
    let index = set("layers.*.index_cache=fp4");
    assert_eq!(
        index,
        "--set layers.*.index_cache=fp4: layers.*.index_cache: `fp4` cannot be used here: no layer of this model has an \
         indexer"
    );
    let shape = refused(&toy, &["--kv-cache", "fp8_model1"]);
    assert!(
        shape.starts_with("--kv-cache fp8_model1: layers.0.kv_cache: `fp8_model1` cannot be used here: "),
        "{shape}"
    );
    let format = refused(&toy, &["--kv-cache", "int3"]);
    assert!(
        format.starts_with("--kv-cache int3: layers.0.kv_cache: no variant `int3`; accepted: f32, "),
        "{format}"
    );
}

#[test]
fn recipes() {
    let toy = Toy::new();
    let try_with = |text: &str| {
        let file = toy.write("r.json", text);
        let message = refused(&toy, &["--recipe", &file]);
        message
            .strip_prefix(&format!("recipe {file}: "))
            .map(str::to_owned)
            .unwrap_or(message)
    };
    assert_eq!(try_with("{"), "EOF while parsing an object at line 1 column 1");
    assert_eq!(try_with("[]"), "field `schema`: found nothing, accepted: 1");
    assert_eq!(try_with(r#"{"schema":2}"#), "field `schema`: found 2, accepted: 1");
    assert_eq!(
        try_with(r#"{"schema":1,"sets":{}}"#),
        "unknown field `sets`, expected one of `schema`, `set`, `sampler`"
    );
    let variant = try_with(r#"{"schema":1,"set":{"layers.0.kv_cache":"int3"}}"#);
    assert!(
        variant.starts_with("layers.0.kv_cache: no variant `int3`; accepted: f32, bf16, "),
        "{variant}"
    );
    let missing = toy.text("none.json");
    let message = refused(&toy, &["--recipe", &missing]);
    let wanted = format!("--recipe {missing}: No such file or directory (os error 2); accepted: a recipe as JSON");
    assert_eq!(message, wanted);
    let other = model1(&["show", "--print-recipe", "--model", &golden("tiny-llama")])
        .ok()
        .stdout;
    assert_eq!(
        try_with(&other),
        "the recipe is for llama (4 layers, 64 wide, vocabulary 160), the loaded model is llama (3 layers, 32 wide, \
         vocabulary 260)"
    );
}

#[test]
fn models_that_are_not_there() {
    let toy = Toy::new();
    let missing = toy.text("none");
    let say = |path: &str| model1(&["generate", "--prompt", "x", "--model", path]).error(2);
    let wanted = format!(
        "--model {missing}: no such file or folder; accepted: a folder with config.json and *.safetensors, a .gguf file, \
         bundled, or smollm2; `model1 pull OWNER/NAME` fetches a model"
    );
    assert_eq!(say(&missing), wanted);
    let mut from_env = command(&["show"]);
    from_env.env("MODEL1_MODEL", &missing);
    assert_eq!(
        finish(from_env, "").error(2),
        wanted.replace("--model", "$MODEL1_MODEL")
    );
    let accepted = "accepted: a folder with config.json and *.safetensors, or a .gguf file";
    let text = toy.write("notes.txt", "x");
    assert_eq!(say(&text), format!("{text}: found a file of another kind; {accepted}"));
    let folder = toy.dir.path().to_str().unwrap();
    assert_eq!(
        say(folder),
        format!("{folder}: found a folder without config.json; {accepted}")
    );
    std::fs::remove_file(toy.path("model/model.safetensors")).unwrap();
    let model = toy.model();
    assert_eq!(
        say(&model),
        format!("{model}: found a folder with config.json but no *.safetensors; {accepted}")
    );
    let config = toy.path("model/config.json");
    std::fs::write(&config, [0xFF]).unwrap();
    assert_eq!(
        say(&model),
        format!(
            "{}: found no JSON (expected value at line 1 column 1), accepted: a JSON object",
            config.display()
        ),
        "the cause is said once"
    );
    let gguf = toy.write("broken.gguf", "GGUF");
    let broken = say(&gguf);
    assert!(
        broken.starts_with(&format!("{gguf}: ")) && broken.len() > gguf.len() + 10,
        "{broken}"
    );
}

/// The message about a model whose config was changed, without the path before it.
#[track_caller]
fn config(change: impl FnOnce(&mut Value)) -> String {
    let toy = Toy::changed(change, |_| ());
    let message = refused(&toy, &[]);
    let path = toy.text("model/config.json");
    message
        .strip_prefix(&format!("{path}: "))
        .map_or(message.replace(&toy.model(), "MODEL"), str::to_owned)
}

#[test]
fn configs_and_weights_that_do_not_fit() {
    let types = "accepted: deepseek_v4, llama, qwen2, gpt2";
    assert_eq!(
        config(|c| c["model_type"] = json!("mamba")),
        format!("field `model_type`: found \"mamba\", {types}")
    );
    assert_eq!(
        config(|c| c["model_type"] = Value::Null),
        format!("field `model_type`: found null, {types}")
    );
    let rope = "field `rope_parameters.rope_type`: found \"spiral\", accepted: default, linear, llama3";
    assert_eq!(
        config(|c| c["rope_parameters"] = json!({ "rope_type": "spiral" })),
        rope
    );
    let old = "field `rope_scaling.type`: found \"spiral\", accepted: default, linear, llama3";
    assert_eq!(
        config(|c| c["rope_scaling"] = json!({ "type": "spiral", "factor": 2.0 })),
        old
    );
    assert_eq!(
        config(|c| c["hidden_size"] = json!("wide")),
        "field `hidden_size`: found \"wide\", accepted: a whole number from 1 to 2^32"
    );
    assert_eq!(
        config(|c| c["intermediate_size"] = json!(50)),
        "MODEL/model.safetensors: tensor `model.layers.0.mlp.gate_proj.weight`: found shape [48, 32], accepted: [50, 32]"
    );
    assert_eq!(
        config(|c| c["num_hidden_layers"] = json!(4)),
        "MODEL: tensor `model.layers.3.input_layernorm.weight`: found nothing, accepted: a tensor of shape [32]"
    );
}

#[test]
fn tokenizers_that_do_not_fit() {
    let toy = Toy::changed(
        |_| (),
        |t| {
            t["added_tokens"].as_array_mut().unwrap().extend((0..3).map(|i| {
            json!({ "id": 259 + i, "content": format!("<{i}>"), "special": true, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false })
        }))
        },
    );
    assert_eq!(
        refused(&toy, &[]),
        format!(
            "{}: the tokenizer has 262 tokens, the embedding only 260 rows: accepted is a tokenizer no larger than the \
             embedding",
            toy.model()
        )
    );
    let file = toy.write("model/tokenizer.json", "{}");
    let broken = refused(&toy, &[]);
    assert!(broken.starts_with(&format!("tokenizer {file}: ")), "{broken}");
    assert!(
        broken.ends_with("; accepted is a tokenizer.json as written by the Hugging Face tokenizers library"),
        "{broken}"
    );
    std::fs::remove_file(&file).unwrap();
    let none = format!(
        "{}: no tokenizer (tokenizer.json) in this checkpoint; give token ids instead of text",
        toy.model()
    );
    assert_eq!(refused(&toy, &[]), none);
    assert_eq!(
        toy.run("logits", &["--text", "x", "--out", &toy.text("o")]).error(2),
        none
    );
    assert_eq!(toy.run("chat", &[]).error(2), none);
}

#[test]
fn prompts_and_ids() {
    let toy = Toy::new();
    let say = |args: &[&str]| toy.run("generate", args).error(2);
    let empty = "--prompt: found an empty text, accepted: at least one character";
    assert_eq!(say(&["--prompt", ""]), empty);
    assert_eq!(say(&["--prompt", "-"]), empty, "an empty pipe");
    assert_eq!(
        say(&["--prompt", "once upon", "--context", "5"]),
        "context overflow: 10 tokens are needed, the context holds 5 (the prompt has 9 tokens; shorten it, lower \
         --max-tokens, or raise --context (at most 1048576))"
    );
    let outside = "token id 260 (number 1) is outside the vocabulary: accepted 0 to 259";
    assert_eq!(say(&["--ids", "5,260"]), outside);
    assert_eq!(
        say(&["--ids", "5,x"]),
        "--ids: found `x`, accepted: whole numbers from 0 to 2^32 - 1"
    );
    assert_eq!(say(&["--ids", " , "]), "--ids: found no ids, accepted: at least one");
    let file = toy.text("none.txt");
    let at = format!("@{file}");
    let missing = format!("--ids {at}: No such file or directory (os error 2); accepted: a text file of token ids");
    assert_eq!(say(&["--ids", &at]), missing);
    let out = toy.text("o");
    let logits = |args: &[&str]| toy.run("logits", &[&["--out", &out], args].concat()).error(2);
    assert_eq!(logits(&["--ids", "5,260"]), outside);
    assert_eq!(
        logits(&["--text", ""]),
        "--text: found an empty text, accepted: at least one character"
    );
    let sizes = "--chunks: found sizes adding up to 4, accepted: positive sizes adding up to the 3 tokens";
    assert_eq!(logits(&["--ids", "1,2,3", "--chunks", "1,3"]), sizes);
    let zero = "--chunks: found a size of 0, accepted: positive sizes adding up to the 3 tokens";
    assert_eq!(logits(&["--ids", "1,2,3", "--chunks", "0,3"]), zero);
    assert_eq!(toy.files(), [""; 0], "nothing is left behind");
}

#[test]
fn devices_threads_context_and_sampling() {
    let toy = Toy::new();
    let device = "--device: found `tpu`, accepted: auto, cpu, cuda, cuda:N (see `model1 devices`)";
    assert_eq!(refused(&toy, &["--device", "tpu"]), device);
    assert_eq!(
        refused(&toy, &["--context", "0"]),
        "--context: found 0, accepted: 1 to 1048576"
    );
    assert_eq!(
        refused(&toy, &["--context", "2000000"]),
        "--context: found 2000000, accepted: 1 to 1048576"
    );
    let model = toy.model();
    for command in ["generate", "show", "chat", "logits"] {
        let more: &[&str] = match command {
            "generate" => &["--prompt", "x"],
            "logits" => &["--ids", "1", "--out", "o"],
            _ => &[],
        };
        let ran = model1(&[&[command, "--model", &model, "--threads", "0"], more].concat());
        assert_eq!(ran.error(2), "--threads: found 0, accepted: 1 or more");
    }
    for (flag, value) in [
        ("--temperature", "nan"),
        ("--temperature", "-3"),
        ("--top-p", "1.5"),
        ("--min-p", "2"),
        ("--repetition-penalty", "0"),
    ] {
        let message = refused(&toy, &[flag, value]);
        let field = flag.trim_start_matches("--").replace('-', "_");
        assert!(message.starts_with(&format!("sampler field {field} is ")), "{message}");
        assert!(message.contains("; accepted is a number from "), "{message}");
    }
    let none = toy.run("generate", &["--prompt", "x", "--stop", ""]).error(2);
    assert_eq!(none, "--stop: found an empty text, accepted: at least one character");
    let most = u64::MAX.to_string();
    let overflow = toy.run("generate", &["--prompt", "x", "-n", &most]).error(2);
    assert!(
        overflow.starts_with(&format!("context overflow: {most} tokens are needed")),
        "{overflow}"
    );
    let far = toy.run("show", &["--plan", "--at", &most]).error(2);
    assert!(
        far.starts_with(&format!("context overflow: {most} tokens are needed")),
        "{far}"
    );
    let step = toy.run("show", &["--plan", "--tokens", "0"]).error(2);
    assert_eq!(step, "--tokens: found 0, accepted: 1 to 128");
}

#[test]
fn arguments() {
    let ran = model1(&["generate", "--model", "x"]);
    assert_eq!(ran.code, Some(2));
    assert!(
        ran.stderr
            .starts_with("error: the following required arguments were not provided"),
        "{}",
        ran.stderr
    );
    for args in [
        vec!["generate", "--prompt", "x", "--ids", "1"],
        vec!["generate", "--prompt", "x", "--greedy", "--temperature", "1"],
        vec!["logits", "--ids", "1", "--out", "o", "--decode", "--chunks", "1"],
        vec!["logits", "--ids", "1"],
        vec!["show", "--plan", "--schema"],
        vec!["sing"],
    ] {
        let ran = model1(&args);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{args:?}");
        assert!(ran.stderr.starts_with("error: "), "{}", ran.stderr);
    }
}

#[test]
fn files_that_cannot_be_written_are_failures() {
    let toy = Toy::new();
    let bad = toy.text("none/file");
    let no_folder = "No such file or directory (os error 2)";
    let out = toy.run("logits", &["--ids", "1,2", "--out", &bad]).error(1);
    assert_eq!(out, format!("--out {bad}: {no_folder}"));
    let folder = toy.model();
    let taken = toy.run("logits", &["--ids", "1,2", "--out", &folder]).error(2);
    assert_eq!(
        taken,
        format!("--out {folder}: found a folder, accepted: a file to write")
    );
    let socket = toy.text("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let taken = toy.run("logits", &["--ids", "1,2", "--out", &socket]).error(2);
    assert_eq!(
        taken,
        format!("--out {socket}: found no plain file, accepted: a file to write")
    );
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    let telemetry = toy
        .run("generate", &["--prompt", "x", "-n", "2", "--telemetry", &bad])
        .error(1);
    assert_eq!(telemetry, format!("--telemetry {bad}: {no_folder}"));
    // A full disk shows late: after the text.
    let full = toy.run(
        "generate",
        &["--prompt", "x", "-n", "2", "-q", "--telemetry", "/dev/full"],
    );
    assert_eq!((full.code, full.stdout.len()), (Some(1), 3));
    assert_eq!(
        full.stderr,
        "error: --telemetry /dev/full: No space left on device (os error 28)\n"
    );
    assert_eq!(toy.files(), [""; 0], "nothing is left behind");
}

#[test]
fn a_refused_run_keeps_the_telemetry_of_the_last_one() {
    let toy = Toy::new();
    let (old, new) = (toy.write("old.jsonl", "old\n"), toy.text("new.jsonl"));
    for file in [&old, &new] {
        toy.run("generate", &["--ids", "5,260", "--telemetry", file]).error(2);
    }
    assert_eq!(std::fs::read_to_string(&old).unwrap(), "old\n");
    assert_eq!(toy.files(), ["old.jsonl"]);
    toy.run("generate", &["--ids", "5", "-n", "2", "--telemetry", &old])
        .ok();
    assert_eq!(common::telemetry(&toy.path("old.jsonl")).1.len(), 2);
}
