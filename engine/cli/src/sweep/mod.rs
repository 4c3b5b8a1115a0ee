//! `sweep`: many recipes against one on the same text.

mod store;
mod table;

use anyhow::Result;
use engine::compare::sweep::{Event, Found, SweepJob};
use engine::{Engine, EngineError, Watch};
use protocol::{CompareText, RecipeRef, SweepSpec};
use std::sync::Arc;

use crate::args::Sweep as Args;
use crate::compare;
use crate::output::Bar;
use crate::setup::{self, user};
use store::Store;

/// `model1 sweep`
pub fn sweep(args: &Args) -> Result<()> {
    if let Some(budget) = args.budget
        && !(budget.is_finite() && budget >= 0.0)
    {
        return Err(user(format!("--budget: found {budget}, accepted: 0 or more, in nats")));
    }
    let loaded = setup::load(&args.on.model())?;
    let mut job = job(args, &loaded.engine)?;
    let mut store = match &args.out {
        Some(folder) => Some(Store::open(folder, job.sweep())?),
        None => None,
    };
    if let Some(store) = &mut store {
        job.know(store.take_rows());
    }
    let (found, stopped) = run(args, &mut job, store.as_mut())?;
    if stopped && (args.json || found.rows.is_empty()) {
        return Err(setup::Interrupted.into());
    }
    let out = &mut std::io::stdout().lock();
    if args.json {
        table::json(out, &job, &found)?;
    } else {
        table::print(out, &job, &found, args.budget.filter(|_| !stopped))?;
    }
    if stopped {
        return Err(setup::Interrupted.into());
    }
    if let Some(store) = &store {
        let paths = store.finish(&found, args.budget)?;
        if !args.on.quiet {
            eprintln!("wrote {}", paths.join(", "));
        }
    }
    Ok(())
}

/// What was found, and whether it was stopped before its end.
fn run(args: &Args, job: &mut SweepJob, mut store: Option<&mut Store>) -> Result<(Found, bool)> {
    let cancel = setup::cancel();
    let all = job.all().len();
    let todo = job.all().iter().filter(|(_, c)| !job.sweep().knows(c)).count();
    if !args.on.quiet && todo < all {
        eprintln!("{} of {all} recipes are measured already", all - todo);
    }
    let bar = Bar::tokens(args.on.quiet, &format!("comparing {todo} recipes"));
    let mut kept = 0;
    let mut tell = |event: Event<'_>| -> Result<(), EngineError> {
        let Event::Row(row) = event else { return Ok(()) };
        kept += 1;
        if kept > todo {
            bar.message("looking for the best combination".into());
        }
        match store.as_deref_mut() {
            Some(store) => store.add(row).map_err(|e| EngineError::Invalid(format!("{e:#}"))),
            None => Ok(()),
        }
    };
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |done, total| bar.set(done, Some(total)),
    };
    let ran = job.run(&mut watch, &mut tell);
    bar.finish();
    match ran {
        Ok(found) => Ok((found, false)),
        Err(EngineError::Cancelled) => {
            let found = job.so_far();
            let measured = found.rows.len() + found.singles.len();
            let on = match args.out {
                Some(_) => "the same command goes on from here",
                None => "with --out DIR the same command would go on from there",
            };
            eprintln!("stopped; {measured} of {all} recipes are measured: {on}");
            Ok((found, true))
        }
        Err(e) => Err(e.into()),
    }
}

fn job(args: &Args, engine: &Arc<Engine>) -> Result<SweepJob> {
    let mut a = compare::recipe(engine, "--a", &args.on.a)?;
    setup::edit(&mut a, "--a-set", &args.on.a_sets, engine)?;
    let (text, ids) = match (&args.on.text, &args.on.prompt, &args.on.ids) {
        (Some(file), _, _) => encoded(engine, compare::read(file)?)?,
        (_, Some(text), _) => encoded(engine, text.clone())?,
        (_, _, Some(list)) => (CompareText::Current, setup::parse_ids(list)?),
        _ => {
            let ids = engine.tokenizer()?.encode(engine::compare::BUILTIN, true)?;
            (CompareText::Builtin, ids)
        }
    };
    let spec = SweepSpec {
        a: RecipeRef::Json(serde_json::to_string(&a)?),
        text,
        positions: args.on.positions,
        axes: args.axes.clone(),
        presets: args.presets,
        per_layer: args.per_layer,
        budget: args.budget,
    };
    Ok(SweepJob::from_parts(engine, spec, a, ids)?)
}

fn encoded(engine: &Engine, text: String) -> Result<(CompareText, Vec<u32>)> {
    let ids = engine.tokenizer()?.encode(&text, true)?;
    Ok((CompareText::Given(text), ids))
}
