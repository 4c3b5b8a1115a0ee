//! `bench`: prefill and decode speed, a row per combination.

mod table;

use std::sync::Arc;

use anyhow::Result;
use engine::bench::{Bench, RandomModel, Shape, Storage, Test};
use engine::{Checkpoint, Engine, Recipe, Registry, Watch, default_threads};

use crate::args::Bench as Args;
use crate::output::Bar;
use crate::setup::{self, user};
use table::{Subject, Table};

/// `model1 bench`
pub fn bench(args: &Args) -> Result<()> {
    setup::cancel();
    let tests = tests(args)?;
    let shape = shape(args)?;
    let mut table = Table::new(args.output, std::io::stdout().lock());
    let ran = rows(args, &tests, shape, &mut table);
    // What is measured stays, whatever ended the rest.
    table.finish()?;
    if let Err(e) = &ran
        && setup::is_interrupted(e)
        && !args.quiet
    {
        eprintln!("stopped; {} rows are measured", table.rows());
    }
    ran
}

fn tests(args: &Args) -> Result<Vec<Test>> {
    if args.repetitions == 0 {
        return Err(user("--repetitions: found 0, accepted: 1 or more"));
    }
    if args.threads.contains(&0) {
        return Err(user("--threads: found 0, accepted: 1 or more"));
    }
    if args.batch.contains(&0) {
        return Err(user("--batch: found 0, accepted: 1 or more"));
    }
    let tests = Test::all(&args.n_prompt, &args.n_gen, &args.n_depth, &args.batch);
    if tests.is_empty() {
        return Err(user(
            "found nothing to measure, accepted: --n-prompt or --n-gen with at least one number above 0",
        ));
    }
    Ok(tests)
}

fn shape(args: &Args) -> Result<Option<RandomModel>> {
    let Some(name) = &args.shape else { return Ok(None) };
    let Some(shape) = Shape::named(name) else {
        let names: Vec<&str> = Shape::ALL.iter().map(|s| s.name()).collect();
        return Err(user(format!(
            "--shape {name}: no such shape, accepted: {}",
            names.join(", ")
        )));
    };
    let Some(storage) = Storage::named(&args.weights) else {
        let names: Vec<&str> = shape.storages().iter().map(|s| s.name()).collect();
        return Err(user(format!(
            "--weights {}: no such format, accepted for {}: {}",
            args.weights,
            shape.name(),
            names.join(", ")
        )));
    };
    let model = RandomModel::new(shape, storage)?;
    Ok(Some(match args.layers {
        Some(n) => model.cut(n)?,
        None => model,
    }))
}

/// A loaded model, ready to be measured.
struct Ready {
    engine: Arc<Engine>,
    recipe: Recipe,
    label: String,
    weights: String,
}

fn rows<W: std::io::Write>(
    args: &Args,
    tests: &[Test],
    shape: Option<RandomModel>,
    table: &mut Table<W>,
) -> Result<()> {
    let check = |most: u64| tests.iter().try_for_each(|t| t.check(most));
    if let Some(model) = &shape {
        check(model.max_context())?;
    }
    let all = [default_threads()];
    let threads = if args.threads.is_empty() {
        &all
    } else {
        args.threads.as_slice()
    };
    let mut made = None;
    for (i, &n) in threads.iter().enumerate() {
        let ready = match shape {
            Some(model) => random(args, model, n, &mut made)?,
            None => loaded(args, n)?,
        };
        let engine = &ready.engine;
        check(engine.facts().max_context as u64)?;
        let on_device = engine.backend().name() != "cpu";
        if on_device && i > 0 {
            // Threads are the CPU's.
            break;
        }
        let bench = Bench::new(engine, ready.recipe.clone())?;
        let subject = Subject {
            engine,
            recipe: &ready.recipe,
            label: &ready.label,
            weights: &ready.weights,
            random: shape.is_some(),
            threads: (!on_device).then_some(n),
            bench: &bench,
        };
        for test in tests {
            let bar = Bar::tokens(args.quiet, &test.name());
            let mut watch = Watch {
                cancel: &setup::cancel(),
                progress: &mut |done, total| bar.set(done, Some(total)),
            };
            let found = bench.run(*test, args.repetitions, &mut watch);
            bar.finish();
            table.add(&subject, &found?)?;
        }
    }
    Ok(())
}

fn loaded(args: &Args, threads: usize) -> Result<Ready> {
    let loaded = setup::load(&args.model(threads))?;
    let path = &loaded.engine.checkpoint().path;
    let name = path.file_stem().filter(|_| path.is_file()).or(path.file_name());
    Ok(Ready {
        label: name.map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned()),
        weights: loaded.engine.main_format().to_string(),
        recipe: loaded.recipe,
        engine: loaded.engine,
    })
}

/// A shape on a backend; its weights are made once.
fn random(args: &Args, model: RandomModel, threads: usize, made: &mut Option<Checkpoint>) -> Result<Ready> {
    let chosen = engine::device::choose(&args.device, threads, model.bytes())?;
    if let Some(w) = chosen.warning
        && !args.quiet
        && made.is_none()
    {
        eprintln!("warning: {w}");
    }
    let checkpoint = match made {
        Some(c) => c.clone(),
        None => {
            let bar = Bar::new(args.quiet, "making random weights");
            let checkpoint = model.checkpoint(chosen.backend.name() != "cpu", &bar);
            bar.finish();
            made.insert(checkpoint?).clone()
        }
    };
    let engine = Engine::with_backend(checkpoint, chosen.backend, Registry::default())?;
    let recipe = setup::recipe(&args.model(threads), &engine)?;
    Ok(Ready {
        engine,
        recipe,
        label: model.label(),
        weights: model.storage.name().into(),
    })
}
