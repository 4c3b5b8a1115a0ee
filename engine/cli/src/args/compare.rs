//! Options of `compare` and `sweep`.

use std::path::PathBuf;

use clap::Args;

use super::ModelArgs;

/// What recipes are compared on: a model, recipe A and a text.
#[derive(Args, Debug)]
pub struct Against {
    /// Hugging Face folder, GGUF file, `bundled` (the MODEL1 story model that comes with the program), or `smollm2`
    /// (fetched once). Default: $MODEL1_MODEL, else bundled.
    #[arg(long, short, value_name = "PATH")]
    pub model: Option<String>,
    /// Recipe A, which all others are compared with: `own` (the checkpoint's) or a recipe file.
    #[arg(long, value_name = "FILE", default_value = "own")]
    pub a: String,
    /// Change one slot of A. May be repeated.
    #[arg(long = "a-set", value_name = "SLOT=VARIANT")]
    pub a_sets: Vec<String>,
    /// File with the text to read; `-` reads standard input. Default: a story that comes with the program.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// The text itself.
    #[arg(long, short, value_name = "TEXT", conflicts_with = "text")]
    pub prompt: Option<String>,
    /// Token ids instead of text: 5,9,2 or @FILE.
    #[arg(long, value_name = "IDS", conflicts_with_all = ["text", "prompt"])]
    pub ids: Option<String>,
    /// Most positions to compare.
    #[arg(long, value_name = "N", default_value_t = engine::compare::DEFAULT_POSITIONS)]
    pub positions: u64,
    /// Device: auto (the GPU if there is one that can be used and the model fits), cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "NAME")]
    pub device: String,
    /// CPU threads. Default: all cores.
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Do not print progress on stderr.
    #[arg(long, short)]
    pub quiet: bool,
}

impl Against {
    /// The model, without a recipe of its own.
    pub fn model(&self) -> ModelArgs {
        ModelArgs {
            model: self.model.clone(),
            recipe: None,
            kv_cache: None,
            sets: Vec::new(),
            device: self.device.clone(),
            threads: self.threads,
            context: None,
            telemetry: None,
            quiet: self.quiet,
        }
    }
}

/// `model1 compare`
#[derive(Args, Debug)]
#[command(
    after_help = "Both sides read the same tokens from position 0, each with its own cache. KL(A||B) is in nats per \
    token, from logits in 64-bit floats; standard errors are those of llama.cpp's perplexity tool.\n\n\
    Examples:\n  \
    model1 compare --model DIR --b-set layers.*.kv_cache=fp8_b64\n  \
    model1 compare --model DIR --b-set layers.3-6.kv_cache=bf16 --b-set weights.lm_head=fp8 --isolate\n  \
    model1 compare --model DIR --a a.json --b b.json --text story.txt --positions 2000 --json\n  \
    model1 compare --model DIR --b-set layers.*.attention=top_k:k=64 --export report\n  \
    model1 compare --b-set layers.*.kv_cache=bf16 --details --at 126 --layer 6\n  \
    model1 compare --b-set layers.*.kv_cache=bf16 --prompt \"Once upon a time\" --free-run 200"
)]
pub struct Compare {
    #[command(flatten)]
    pub on: Against,
    /// Recipe B: `own` or a recipe file. Default: A.
    #[arg(long, value_name = "FILE")]
    pub b: Option<String>,
    /// Change one slot of B, e.g. layers.3-8.kv_cache=bf16, layers.*.attention=top_k:k=64, weights.lm_head=fp8. May be
    /// repeated.
    #[arg(long = "b-set", value_name = "SLOT=VARIANT")]
    pub b_sets: Vec<String>,
    /// Also compare A with only one of the changes at a time.
    #[arg(long)]
    pub isolate: bool,
    /// Also print the statistics of llama.cpp's perplexity tool under their names there, and the positions worth
    /// looking at: largest KL, other likeliest token.
    #[arg(long)]
    pub details: bool,
    /// Also print in which layers drift grows at this position. May be repeated.
    #[arg(long, value_name = "POSITION")]
    pub at: Vec<usize>,
    /// Also print the positions with most drift after this layer. May be repeated.
    #[arg(long, value_name = "LAYER")]
    pub layer: Vec<usize>,
    /// Instead of reading the text, let both sides write up to N tokens after it, each its own: where they part, and
    /// where they say the same again.
    #[arg(long, value_name = "N", conflicts_with_all = ["isolate", "details", "at", "layer", "export"])]
    pub free_run: Option<u64>,
    /// All of A before all of B, with one cache in memory at a time; else token by token in turns. The same figures.
    #[arg(long, requires = "free_run")]
    pub in_turn: bool,
    /// Draw at this temperature, both sides with the same random numbers (0 = greedy).
    #[arg(
        long,
        value_name = "X",
        requires = "free_run",
        default_value_t = 0.0,
        allow_hyphen_values = true
    )]
    pub temperature: f32,
    /// Seed of the random draws.
    #[arg(long, value_name = "N", requires = "free_run", default_value_t = 0)]
    pub seed: u64,
    /// Machine-readable output: everything, position by position.
    #[arg(long)]
    pub json: bool,
    /// Write a report into this folder, which must not exist or be empty: page, recipes, CSV, PNG.
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
}

/// `model1 sweep`
#[derive(Args, Debug)]
#[command(
    after_help = "Every combination of one choice per --sweep is compared with recipe A on the same tokens, each with its own \
    cache. With --out, what is measured is kept at once: stopped by Ctrl-C, the same command goes on where it was.\n\n\
    Examples:\n  \
    model1 sweep --sweep weights.lm_head=bf16,fp8 --sweep 'layers.*.kv_cache=f32,bf16,fp8_b64'\n  \
    model1 sweep --sweep 'layers.*.kv_cache=bf16,fp8_b64' --per-layer --budget 0.01 --out sweep\n  \
    model1 sweep --sweep 'layers.*.attention=top_k:k=8,top_k:k=32,sliding_window:window=64,sinks=4'\n  \
    model1 sweep --presets"
)]
pub struct Sweep {
    #[command(flatten)]
    pub on: Against,
    /// A slot and the choices to try there, e.g. layers.*.kv_cache=bf16,fp8_b64. May be repeated: all combinations are tried.
    #[arg(long = "sweep", value_name = "SLOT=CHOICE,...", required_unless_present = "presets")]
    pub axes: Vec<String>,
    /// Also try every preset.
    #[arg(long)]
    pub presets: bool,
    /// Also try every choice in one layer alone.
    #[arg(long, requires = "axes")]
    pub per_layer: bool,
    /// Recommend the recipe that moves the fewest bytes per step with a mean KL of at most this, in nats (implies
    /// --per-layer).
    #[arg(long, value_name = "KL", requires = "axes", allow_hyphen_values = true)]
    pub budget: Option<f64>,
    /// Folder for the figures (sweep.jsonl, table.csv, pareto.svg, recommended.json); a sweep that lies there goes on.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Machine-readable output.
    #[arg(long)]
    pub json: bool,
}
