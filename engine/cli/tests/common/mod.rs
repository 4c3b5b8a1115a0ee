//! Runs the command and makes small models with a tokenizer.
#![allow(dead_code)] // every test file uses another part

pub mod bytes;

use bytes::tokenizer_json;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use checkpoint::write::{Spec, write_safetensors};
use protocol::StepRecord;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tempfile::TempDir;

/// What a run of the command left behind.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The run, which must have gone well.
    #[track_caller]
    pub fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// The one message of a run that must have failed with this exit code.
    #[track_caller]
    pub fn error(self, code: i32) -> String {
        assert_eq!(
            self.code,
            Some(code),
            "stdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        assert_eq!(self.stdout, "", "stderr: {}", self.stderr);
        let message = self.stderr.strip_prefix("error: ").and_then(|m| m.strip_suffix('\n'));
        let message = message.unwrap_or_else(|| panic!("not one message: {:?}", self.stderr));
        assert!(!message.contains('\n'), "more than one line: {message}");
        assert!(!message.contains("panicked"), "{message}");
        message.to_owned()
    }
}

/// The command with an environment that reaches neither the network nor the user's files.
pub fn command<S: AsRef<OsStr>>(args: &[S]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_model1"));
    c.args(args);
    for name in [
        "MODEL1_MODEL",
        "MODEL1_BUNDLED",
        "HF_ENDPOINT",
        "HF_TOKEN",
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
    ] {
        c.env_remove(name);
    }
    c.env("MODEL1_CACHE", "/nonexistent/cache");
    c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    c
}

/// Runs a command with this standard input.
pub fn finish(mut command: Command, stdin: &str) -> Ran {
    if !stdin.is_empty() {
        command.stdin(Stdio::piped());
    }
    let mut child = command.spawn().unwrap();
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(stdin.as_bytes()).unwrap();
    }
    let out = child.wait_with_output().unwrap();
    Ran {
        code: out.status.code(),
        stdout: String::from_utf8(out.stdout).unwrap(),
        stderr: String::from_utf8(out.stderr).unwrap(),
    }
}

/// Runs `model1` with these arguments.
pub fn model1<S: AsRef<OsStr>>(args: &[S]) -> Ran {
    finish(command(args), "")
}

/// Folder of a committed golden.
pub fn golden(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens");
    root.join(name).to_str().unwrap().to_owned()
}

/// Value of a golden's `golden.json`.
pub fn golden_json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(Path::new(&golden(name)).join("golden.json")).unwrap()).unwrap()
}

/// Shape and values of every f32 tensor in a safetensors file.
pub fn f32_tensors(path: &Path) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut out = BTreeMap::new();
    for (name, t) in file.tensors() {
        if t.dtype() == Dtype::F32 {
            let values = t.data().chunks_exact(4);
            let values = values.map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            out.insert(name, (t.shape().to_vec(), values));
        }
    }
    out
}

/// The header and the step records of a telemetry file.
pub fn telemetry(path: &Path) -> (Value, Vec<StepRecord>) {
    let text = std::fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    let header = serde_json::from_str(lines.next().unwrap()).unwrap();
    (header, lines.map(|l| serde_json::from_str(l).unwrap()).collect())
}

/// A llama of random numbers that writes small letters, with a tokenizer of single bytes and three marks.
pub struct Toy {
    pub dir: TempDir,
}

pub const VOCAB: usize = 260;
pub const LAYERS: usize = 3;
const HIDDEN: usize = 32;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const INNER: usize = 48;
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

impl Toy {
    pub fn new() -> Toy {
        Toy::changed(|_| (), |_| ())
    }

    /// With changes to config.json and to tokenizer.json.
    pub fn changed(config: impl FnOnce(&mut Value), tokenizer: impl FnOnce(&mut Value)) -> Toy {
        let toy = Toy {
            dir: tempfile::tempdir().unwrap(),
        };
        std::fs::create_dir(toy.path("model")).unwrap();
        let (mut c, mut t) = (config_json(), tokenizer_json());
        config(&mut c);
        tokenizer(&mut t);
        toy.write("model/config.json", &c.to_string());
        toy.write("model/tokenizer.json", &t.to_string());
        let named = json!({ "eos_token": "<|im_end|>", "chat_template": TEMPLATE });
        toy.write("model/tokenizer_config.json", &named.to_string());
        write_weights(&toy.path("model/model.safetensors"));
        toy
    }

    /// A path in the temporary folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The same as text.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub fn model(&self) -> String {
        self.text("model")
    }

    /// Writes a file and returns its path.
    pub fn write(&self, name: &str, text: &str) -> String {
        std::fs::write(self.path(name), text).unwrap();
        self.text(name)
    }

    /// `COMMAND --model TOY --threads 1 ARGS`
    pub fn command(&self, command: &str, args: &[&str]) -> Command {
        let model = self.model();
        let mut all = vec![command, "--model", &model, "--threads", "1"];
        all.extend(args);
        self::command(&all)
    }

    pub fn run(&self, command: &str, args: &[&str]) -> Ran {
        finish(self.command(command, args), "")
    }

    /// Names in the temporary folder, the model left out.
    pub fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap();
        let names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|n| n != "model").collect();
        names.sort();
        names
    }
}

fn config_json() -> Value {
    json!({
        "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "intermediate_size": INNER, "vocab_size": VOCAB, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "max_position_embeddings": 1 << 20, "tie_word_embeddings": false,
        "hidden_act": "silu", "eos_token_id": 258,
    })
}

/// The weights by their Hugging Face names. Rows of the output layer that are no small letter are zero.
pub fn weights() -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let head_dim = HIDDEN / HEADS;
    let mut all = Vec::new();
    let mut matrix = |name: String, rows: usize, cols: usize| {
        let scale = if name.starts_with("model.embed") {
            1.0
        } else {
            3.0 / (cols as f32).sqrt()
        };
        let values = (0..rows * cols).map(|_| scale * random()).collect();
        all.push((name, vec![rows, cols], values));
    };
    matrix("model.embed_tokens.weight".into(), VOCAB, HIDDEN);
    matrix("lm_head.weight".into(), VOCAB, HIDDEN);
    for layer in 0..LAYERS {
        let p = format!("model.layers.{layer}");
        matrix(format!("{p}.self_attn.q_proj.weight"), HIDDEN, HIDDEN);
        matrix(format!("{p}.self_attn.k_proj.weight"), KV_HEADS * head_dim, HIDDEN);
        matrix(format!("{p}.self_attn.v_proj.weight"), KV_HEADS * head_dim, HIDDEN);
        matrix(format!("{p}.self_attn.o_proj.weight"), HIDDEN, HIDDEN);
        matrix(format!("{p}.mlp.gate_proj.weight"), INNER, HIDDEN);
        matrix(format!("{p}.mlp.up_proj.weight"), INNER, HIDDEN);
        matrix(format!("{p}.mlp.down_proj.weight"), HIDDEN, INNER);
    }
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            all.push((
                format!("model.layers.{layer}.{norm}.weight"),
                vec![HIDDEN],
                vec![1.0; HIDDEN],
            ));
        }
    }
    all.push(("model.norm.weight".into(), vec![HIDDEN], vec![1.0; HIDDEN]));
    for (name, _, values) in &mut all {
        if name == "lm_head.weight" {
            for (i, row) in values.chunks_exact_mut(HIDDEN).enumerate() {
                if !(usize::from(b'a')..=usize::from(b'z')).contains(&i) {
                    row.fill(0.0);
                }
            }
        }
    }
    all
}

fn write_weights(path: &Path) {
    let weights = weights();
    let spec = |(name, shape, values): &(String, Vec<usize>, Vec<f32>)| Spec {
        name: name.clone(),
        dtype: "F32".into(),
        shape: shape.clone(),
        bytes: 4 * values.len() as u64,
    };
    let specs: Vec<Spec> = weights.iter().map(spec).collect();
    write_safetensors(path, &specs, |i| {
        weights[i].2.iter().flat_map(|v| v.to_le_bytes()).collect()
    })
    .unwrap();
}
