//! From arguments to an engine, a recipe and a sampler.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, anyhow};
use checkpoint::CheckpointError;
use engine::recipe::RecipeError;
use engine::{Cancel, Engine, EngineError, EngineOptions, Recipe, SamplerParams, Session, SessionOptions};

use crate::args::{ModelArgs, SamplingArgs};
use crate::output::Bar;
use crate::telemetry::Telemetry;

/// Something the user can mend by changing the command or its files.
#[derive(Debug)]
pub struct UserError(pub String);

impl std::fmt::Display for UserError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UserError {}

/// Stopped by Ctrl-C after everything was written.
#[derive(Debug)]
pub struct Interrupted;

impl std::fmt::Display for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// A user error with this message.
pub fn user(message: impl Into<String>) -> anyhow::Error {
    anyhow!(UserError(message.into()))
}

/// Whether the exit code should be 2.
pub fn is_user_error(e: &anyhow::Error) -> bool {
    if e.downcast_ref::<UserError>().is_some() {
        return true;
    }
    !matches!(
        e.downcast_ref::<EngineError>(),
        None | Some(
            EngineError::Exec(_) | EngineError::Memory { .. } | EngineError::Checkpoint(CheckpointError::Map { .. })
        )
    )
}

/// Whether the run ended because it was asked to.
pub fn is_interrupted(e: &anyhow::Error) -> bool {
    e.downcast_ref::<Interrupted>().is_some()
        || matches!(
            e.downcast_ref::<EngineError>(),
            Some(EngineError::Cancelled | EngineError::Checkpoint(CheckpointError::Cancelled))
        )
}

/// Whether nobody reads standard output any more.
pub fn is_broken_pipe(e: &anyhow::Error) -> bool {
    e.downcast_ref::<std::io::Error>()
        .is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

/// Set while the program waits for standard input.
static WAITING: AtomicBool = AtomicBool::new(false);

/// Reads standard input; Ctrl-C ends the program at once meanwhile.
pub fn waiting<T>(read: impl FnOnce() -> T) -> T {
    WAITING.store(true, Ordering::Relaxed);
    let out = read();
    WAITING.store(false, Ordering::Relaxed);
    out
}

/// Why standard input could not be read.
pub fn stdin_failed(e: std::io::Error) -> anyhow::Error {
    if e.kind() == std::io::ErrorKind::InvalidData {
        return user("standard input: found bytes that are not UTF-8, accepted: UTF-8 text");
    }
    anyhow!(e).context("reading standard input")
}

/// The flag Ctrl-C sets. A second Ctrl-C ends the program at once.
pub fn cancel() -> Cancel {
    static CANCEL: OnceLock<Cancel> = OnceLock::new();
    CANCEL
        .get_or_init(|| {
            let cancel = Cancel::default();
            let inner = cancel.clone();
            let set = ctrlc::set_handler(move || {
                if inner.is_cancelled() || WAITING.load(Ordering::Relaxed) {
                    std::process::exit(130);
                }
                inner.cancel();
            });
            if let Err(e) = set {
                eprintln!("warning: Ctrl-C cannot be caught: {e}");
            }
            cancel
        })
        .clone()
}

/// What a command runs when neither `--model` nor `$MODEL1_MODEL` names a model.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fallback {
    /// The model that comes with the program; where it is missing, SmolLM2.
    Bundled,
    /// SmolLM2: it can hold a conversation.
    Chat,
}

/// The model that comes with the program.
fn bundled(from: &str) -> Result<PathBuf> {
    host::bundled_model().ok_or_else(|| {
        user(format!(
            "{from} bundled: found no model1-mini beside the program, accepted: its folder in $MODEL1_BUNDLED, or \
             --model PATH"
        ))
    })
}

/// Where the model is, and who says so; fetches SmolLM2 if it is asked for.
fn model_path(args: &ModelArgs, fallback: Fallback) -> Result<(PathBuf, &'static str)> {
    let from_env = || std::env::var("MODEL1_MODEL").ok().filter(|m| !m.is_empty());
    let (wanted, from) = match &args.model {
        Some(m) => (Some(m.clone()), "--model"),
        None => (from_env(), "$MODEL1_MODEL"),
    };
    let path = match (wanted.as_deref(), fallback) {
        (Some("bundled"), _) => bundled(from)?,
        (Some("smollm2"), _) | (None, Fallback::Chat) => crate::pull::smollm2(args.quiet)?,
        (Some(path), _) => PathBuf::from(path),
        (None, Fallback::Bundled) => match host::bundled_model() {
            Some(path) => return Ok((path, "the bundled model")),
            None => crate::pull::smollm2(args.quiet)?,
        },
    };
    Ok((path, from))
}

/// A loaded model with the recipe the arguments ask for.
pub struct Loaded {
    pub engine: std::sync::Arc<Engine>,
    pub recipe: Recipe,
}

/// Loads the model and builds the recipe.
pub fn load(args: &ModelArgs) -> Result<Loaded> {
    load_or(args, Fallback::Bundled)
}

/// The same for conversations.
pub fn load_chat(args: &ModelArgs) -> Result<Loaded> {
    load_or(args, Fallback::Chat)
}

fn load_or(args: &ModelArgs, fallback: Fallback) -> Result<Loaded> {
    if args.threads == Some(0) {
        return Err(user("--threads: found 0, accepted: 1 or more"));
    }
    let (path, from) = model_path(args, fallback)?;
    if !path.exists() {
        let hint = "accepted: a folder with config.json and *.safetensors, a .gguf file, bundled, or \
                    smollm2; `model1 pull OWNER/NAME` fetches a model";
        return Err(user(format!(
            "{from} {}: no such file or folder; {hint}",
            path.display()
        )));
    }
    let bar = Bar::new(args.quiet, "loading");
    let options = EngineOptions {
        threads: args.threads,
        device: args.device.clone(),
        context: args.context,
        planned: planned(args),
        ..Default::default()
    };
    let engine = Engine::open(&path, &options, &bar)?;
    bar.finish();
    if !args.quiet {
        for w in engine.warnings() {
            eprintln!("warning: {w}");
        }
    }
    let recipe = recipe(args, &engine)?;
    Ok(Loaded { engine, recipe })
}

/// What the arguments say of the recipe before the model is there.
fn planned(args: &ModelArgs) -> engine::Planned {
    let cache = args.kv_cache.iter().map(|f| format!("layers.*.kv_cache={f}"));
    engine::Planned {
        // A file that cannot be read is said when the recipe is made.
        json: args.recipe.as_ref().and_then(|f| std::fs::read_to_string(f).ok()),
        edits: cache.chain(args.sets.iter().cloned()).collect(),
    }
}

/// The recipe the arguments ask for.
pub fn recipe(args: &ModelArgs, engine: &Engine) -> Result<Recipe> {
    let mut recipe = match &args.recipe {
        Some(file) => recipe_file(file, "--recipe", engine)?,
        None => engine.recipe(),
    };
    if let Some(format) = &args.kv_cache {
        recipe
            .set(
                &format!("layers.*.kv_cache={format}"),
                engine.facts(),
                engine.registry(),
            )
            .map_err(|e| user(format!("--kv-cache {format}: {e}")))?;
    }
    edit(&mut recipe, "--set", &args.sets, engine)?;
    Ok(recipe)
}

/// The recipe in a file that `option` names.
pub fn recipe_file(file: &Path, option: &str, engine: &Engine) -> Result<Recipe> {
    let json = std::fs::read_to_string(file)
        .map_err(|e| user(format!("{option} {}: {e}; accepted: a recipe as JSON", file.display())))?;
    let origin = file.display().to_string();
    Recipe::parse(&json, &origin, engine.facts(), engine.registry()).map_err(|e| match e {
        RecipeError::Parse { .. } => user(e.to_string()),
        _ => user(format!("recipe {origin}: {e}")),
    })
}

/// Applies the edits that were given with `option`, in order.
pub fn edit(recipe: &mut Recipe, option: &str, edits: &[String], engine: &Engine) -> Result<()> {
    for edit in edits {
        if !edit.contains('=') {
            let accepted = "SLOT=VARIANT, e.g. layers.3-8.kv_cache=bf16";
            return Err(user(format!("{option} {edit}: found no `=`, accepted: {accepted}")));
        }
        recipe
            .set(edit, engine.facts(), engine.registry())
            .map_err(|e| user(format!("{option} {edit}: {e}")))?;
    }
    Ok(())
}

impl Loaded {
    /// A session under the recipe.
    pub fn session(&self, args: &ModelArgs, options: SessionOptions) -> Result<Session> {
        let options = SessionOptions {
            context: args.context,
            ..options
        };
        Ok(self.engine.session(self.recipe.clone(), options)?)
    }
}

/// The recipe's sampler with what the command line overrides.
pub fn sampler(args: &SamplingArgs, base: &SamplerParams) -> Result<SamplerParams> {
    let mut s = *base;
    let draws = args.top_k.is_some() || args.top_p.is_some() || args.min_p.is_some() || args.seed.is_some();
    if args.greedy {
        s.temperature = 0.0;
    } else if let Some(t) = args.temperature {
        s.temperature = t;
    } else if draws && s.temperature == 0.0 {
        // Asking for a way of drawing means asking for drawing.
        s.temperature = 1.0;
    }
    s.top_k = args.top_k.unwrap_or(s.top_k);
    s.top_p = args.top_p.unwrap_or(s.top_p);
    s.min_p = args.min_p.unwrap_or(s.min_p);
    s.repetition_penalty = args.repetition_penalty.unwrap_or(s.repetition_penalty);
    s.frequency_penalty = args.frequency_penalty.unwrap_or(s.frequency_penalty);
    s.presence_penalty = args.presence_penalty.unwrap_or(s.presence_penalty);
    s.seed = args.seed.unwrap_or(s.seed);
    s.logprobs = args.logprobs.unwrap_or(s.logprobs);
    s.validate().map_err(user)?;
    if args.stops.iter().any(String::is_empty) {
        return Err(user("--stop: found an empty text, accepted: at least one character"));
    }
    Ok(s)
}

/// Token ids from `5,9,2` or `@FILE`.
pub fn parse_ids(text: &str) -> Result<Vec<u32>> {
    let (from, list) = match text.strip_prefix('@') {
        Some(file) => {
            let body = std::fs::read_to_string(file)
                .map_err(|e| user(format!("--ids @{file}: {e}; accepted: a text file of token ids")))?;
            (format!("--ids @{file}"), body)
        }
        None => ("--ids".to_string(), text.to_string()),
    };
    let parse = |s: &str| {
        s.parse::<u32>().map_err(|_| {
            user(format!(
                "{from}: found `{s}`, accepted: whole numbers from 0 to 2^32 - 1"
            ))
        })
    };
    let parts = list
        .split(|c: char| c == ',' || c.is_whitespace() || c == '[' || c == ']')
        .filter(|s| !s.is_empty());
    let ids = parts.map(parse).collect::<Result<Vec<u32>>>()?;
    if ids.is_empty() {
        return Err(user(format!("{from}: found no ids, accepted: at least one")));
    }
    Ok(ids)
}

/// The telemetry file, if one is asked for.
pub fn telemetry(args: &ModelArgs, loaded: &Loaded) -> Result<Option<Telemetry>> {
    let Some(path) = &args.telemetry else { return Ok(None) };
    let header = serde_json::json!({
        "telemetry": protocol::TELEMETRY_VERSION,
        "model": loaded.recipe.model,
        "recipe": loaded.recipe.hash(),
        "backend": loaded.engine.backend().describe(),
        "labels": { "nanos": "measured", "kv_used": "measured", "kv_allocated": "measured", "keys_*": "measured",
                    "round_trip_error": "measured", "expert_load": "measured", "memory": "sampled" },
    });
    Telemetry::open(path, &header).map(Some)
}
