//! `peers`: our engine and llama.cpp on the same files, in one run, alternating, with the same number of threads.

mod llama;
mod machine;
mod ours;
mod report;
mod runner;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use machine::Meter;
use report::{Report, Row, median};
use runner::{ENGINES, Load, Result, Runner};

const USAGE: &str = "usage: peers [--engines NAME,NAME] [--threads N] [--repetitions N] [--prefill N] [--decode N]
             [--json FILE] MODEL.gguf...
       peers --agree TEXT MODEL.gguf...    compare token ids and greedy continuations instead of speeds

The table goes to standard output. Models: see bench/README.md.";

struct Options {
    models: Vec<PathBuf>,
    engines: Vec<(&'static str, Load)>,
    threads: usize,
    repetitions: usize,
    prefill: usize,
    decode: usize,
    json: Option<PathBuf>,
    agree: Option<String>,
}

fn options(mut arguments: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        models: Vec::new(),
        engines: ENGINES.to_vec(),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        repetitions: 5,
        prefill: 512,
        decode: 128,
        json: None,
        agree: None,
    };
    while let Some(argument) = arguments.next() {
        if !argument.starts_with("--") {
            options.models.push(argument.into());
            continue;
        }
        let value = arguments
            .next()
            .ok_or_else(|| format!("{argument} needs a value\n{USAGE}"))?;
        let number = || match value.parse::<usize>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("{argument} {value}: not a number above 0")),
        };
        match argument.as_str() {
            "--engines" => options.engines = engines(&value)?,
            "--threads" => options.threads = number()?,
            "--repetitions" => options.repetitions = number()?,
            "--prefill" => options.prefill = number()?,
            "--decode" => options.decode = number()?,
            "--agree" => options.agree = Some(value),
            "--json" => options.json = Some(value.into()),
            _ => return Err(format!("{argument}: unknown\n{USAGE}")),
        }
    }
    if options.models.is_empty() {
        Err(USAGE.into())
    } else {
        Ok(options)
    }
}

fn engines(names: &str) -> Result<Vec<(&'static str, Load)>> {
    let find = |name: &str| {
        let known = || ENGINES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let found = ENGINES.iter().find(|(known, _)| *known == name);
        found
            .copied()
            .ok_or_else(|| format!("engine {name}: not one of {}", known()))
    };
    names.split(',').map(find).collect()
}

/// Token ids that differ from position to position and are the same in every run.
fn prompt(length: usize, vocabulary: u32) -> Vec<u32> {
    let mut state = 20_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % vocabulary
    };
    (0..length).map(|_| next()).collect()
}

/// Measures all engines on one model. The engines take turns within each repetition, so that whatever else the machine
/// does hits them alike; the pause before each lets the other engine's waiting threads go to sleep.
fn measure(path: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let context = options.prefill.max(options.decode) + 1;
    let mut runners = Vec::new();
    for (name, load) in &options.engines {
        eprintln!("{}: {name} loads", path.display());
        runners.push(load(path, options.threads, context)?);
    }
    let model = path
        .file_stem()
        .map(|stem| stem.to_string_lossy().into_owned())
        .unwrap_or_default();
    let model_bytes = std::fs::metadata(path)
        .map_err(|e| format!("{}: {e}", path.display()))?
        .len();
    for (test, tokens) in [("prefill", options.prefill), ("decode", options.decode)] {
        let mut speeds = vec![Vec::new(); runners.len()];
        // Round 0 warms up: pages, caches, threads, clock.
        for round in 0..=options.repetitions {
            for (runner, speeds) in runners.iter_mut().zip(&mut speeds) {
                let (seconds, others) = undisturbed(|| once(runner.as_mut(), test, tokens))?;
                let speed = tokens as f64 / seconds;
                if round > 0 {
                    eprintln!(
                        "  {test} {tokens}: {} {speed:.2} tokens/s, others {:.0} %",
                        runner.name(),
                        others * 100.0
                    );
                    speeds.push(speed);
                    report.worst_disturbance = report.worst_disturbance.max(others);
                }
            }
        }
        for (runner, tokens_per_s) in runners.iter().zip(speeds) {
            let engine = runner.name();
            report.features.insert(engine.clone(), runner.features());
            let median = median(&tokens_per_s);
            report.rows.push(Row {
                model: model.clone(),
                model_bytes,
                test,
                tokens,
                engine,
                tokens_per_s,
                median,
            });
        }
    }
    Ok(())
}

/// Other processes may have this part of the cores' time during a measurement. Beyond it the two engines would be
/// measured under different conditions: threads that wait by spinning lose far more than that part.
const DISTURBANCE: f64 = 0.04;

/// Waits until the machine is quiet, measures, and measures again (up to 30 times) where it did not stay so. Returns the
/// seconds and what others took of the machine meanwhile.
fn undisturbed(mut measure: impl FnMut() -> Result<f64>) -> Result<(f64, f64)> {
    let mut best = (f64::NAN, f64::INFINITY);
    for _ in 0..30 {
        for _ in 0..120 {
            let meter = Meter::start();
            std::thread::sleep(Duration::from_millis(500));
            if meter.others() <= DISTURBANCE {
                break;
            }
        }
        let meter = Meter::start();
        let seconds = measure()?;
        let others = meter.others();
        if others < best.1 {
            best = (seconds, others);
        }
        if others <= DISTURBANCE {
            break;
        }
    }
    Ok(best)
}

fn once(runner: &mut dyn Runner, test: &str, tokens: usize) -> Result<f64> {
    let vocabulary = runner.vocabulary();
    match test {
        "prefill" => runner.prefill(&prompt(tokens, vocabulary)),
        _ => runner.decode(prompt(1, vocabulary)[0], tokens),
    }
}

/// Greedy tokens that are compared.
const AGREE: usize = 48;

/// Prints each engine's token ids of a text and its greedy continuation.
fn agree(path: &Path, text: &str, options: &Options) -> Result<()> {
    let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
    for (name, load) in &options.engines {
        let mut runner = load(path, options.threads, 2048)?;
        let ids = runner.tokenize(text)?;
        let out = runner.greedy(&ids, AGREE)?;
        println!("{}: {name}: {} prompt tokens {ids:?}, then {out:?}", path.display(), ids.len());
        match &first {
            None => first = Some((ids, out)),
            Some((theirs, continued)) => {
                let same = continued.iter().zip(&out).take_while(|(a, b)| a == b).count();
                let tokens = if *theirs == ids { "the same" } else { "DIFFERENT" };
                println!("{tokens} prompt tokens; the first {same} of {AGREE} continuation tokens agree");
            }
        }
    }
    Ok(())
}

fn run() -> Result<()> {
    let options = options(std::env::args().skip(1))?;
    if let Some(text) = &options.agree {
        return options.models.iter().try_for_each(|m| agree(m, text, &options));
    }
    let mut report = Report {
        machine: machine::describe(),
        threads: options.threads,
        repetitions: options.repetitions,
        worst_disturbance: 0.0,
        features: BTreeMap::new(),
        rows: Vec::new(),
    };
    for model in &options.models {
        measure(model, &options, &mut report)?;
    }
    print!("{}", report.markdown());
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report).map_err(|e| e.to_string())?;
        std::fs::write(path, text + "\n").map_err(|e| format!("{}: {e}", path.display()))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
