//! `sweep`: many recipes against one on the same text.

mod store;
mod table;

use anyhow::Result;
use engine::compare::sweep::{self, Axis, Candidate, Measured, Recommended, Refused, Sweep};
use engine::{Engine, EngineError, Watch};
use protocol::SweepRow;
use std::sync::Arc;

use crate::args::Sweep as Args;
use crate::compare;
use crate::output::Bar;
use crate::setup::{self, user};
use store::Store;

/// Everything a sweep found.
struct Found {
    /// A first.
    rows: Vec<SweepRow>,
    /// Rows of changes in one layer alone.
    singles: Vec<SweepRow>,
    refused: Vec<Refused>,
    failed: Vec<(Vec<String>, String)>,
    recommended: Option<Recommended>,
}

/// `model1 sweep`
pub fn sweep(args: &Args) -> Result<()> {
    if let Some(budget) = args.budget
        && !(budget.is_finite() && budget >= 0.0)
    {
        return Err(user(format!("--budget: found {budget}, accepted: 0 or more, in nats")));
    }
    let axes = axes(args)?;
    let loaded = setup::load(&args.on.model())?;
    let engine = &loaded.engine;
    let mut a = compare::recipe(engine, "--a", &args.on.a)?;
    setup::edit(&mut a, "--a-set", &args.on.a_sets, engine)?;
    let mut sweep = Sweep::new(engine, a, ids(args, engine)?, args.on.positions)?;
    let mut store = match &args.out {
        Some(folder) => Some(Store::open(folder, &sweep)?),
        None => None,
    };
    if let Some(store) = &mut store {
        sweep.know(store.take_rows());
    }
    let found = run(args, &axes, &mut sweep, store.as_mut())?;
    let out = &mut std::io::stdout().lock();
    if args.json {
        table::json(out, &sweep, &found)?;
    } else {
        table::print(out, &sweep, &found, args.budget)?;
    }
    if let Some(store) = &store {
        let paths = store.finish(&found, args.budget)?;
        if !args.on.quiet {
            eprintln!("wrote {}", paths.join(", "));
        }
    }
    Ok(())
}

fn run(args: &Args, axes: &[Axis], sweep: &mut Sweep, mut store: Option<&mut Store>) -> Result<Found> {
    let cancel = setup::cancel();
    let engine = sweep.engine().clone();
    let a = sweep.a().clone();
    let (mut grid, mut refused) = made(sweep::grid(&engine, &a, axes))?;
    if args.presets {
        let (presets, not) = made(sweep::from_presets(&engine, &a))?;
        // The checkpoint's own is A, unless A was changed.
        grid.extend(presets.into_iter().filter(|p| !p.edits.is_empty()));
        refused.extend(not);
    }
    let mut singles = Vec::new();
    if args.per_layer || args.budget.is_some() {
        let (some, not) = made(sweep::singles(&engine, &a, axes))?;
        singles = some;
        refused.extend(not.into_iter().filter(|n| !refused_already(n, axes)));
    }
    let base = sweep.base();
    let all: Vec<Candidate> = std::iter::once(base).chain(grid).collect();
    let todo = all.iter().chain(&singles).filter(|c| !sweep.knows(c)).count();
    if !args.on.quiet && todo < all.len() + singles.len() {
        eprintln!(
            "{} of {} recipes are measured already",
            all.len() + singles.len() - todo,
            all.len() + singles.len()
        );
    }
    let bar = Bar::tokens(args.on.quiet, &format!("comparing {todo} recipes"));
    let mut kept = 0;
    let mut keep = |row: &SweepRow| -> Result<(), EngineError> {
        kept += 1;
        match store.as_deref_mut() {
            Some(store) => store.add(row).map_err(|e| EngineError::Invalid(format!("{e:#}"))),
            None => Ok(()),
        }
    };
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |done, total| bar.set(done, Some(total)),
    };
    let ran = (|| -> Result<Found, EngineError> {
        let Measured { rows, mut failed } = sweep.measure(&all, &mut watch, &mut keep)?;
        let single = sweep.measure(&singles, &mut watch, &mut keep)?;
        failed.extend(single.failed);
        let recommended = match (args.budget, rows.first()) {
            (Some(budget), Some(base)) => {
                bar.message("looking for the best combination".into());
                let pair = |c: &[Candidate], r: &[SweepRow]| -> Vec<(Candidate, SweepRow)> {
                    let of = |c: &Candidate| r.iter().find(|r| r.hash == c.recipe.hash()).cloned();
                    c.iter().filter_map(|c| Some((c.clone(), of(c)?))).collect()
                };
                let base = base.clone();
                let (singles, grid) = (pair(&singles, &single.rows), pair(&all, &rows));
                sweep::recommend(sweep, &base, &singles, &grid, budget, &mut watch, &mut keep)?
            }
            _ => None,
        };
        Ok(Found {
            rows,
            singles: single.rows,
            refused: std::mem::take(&mut refused),
            failed,
            recommended,
        })
    })();
    bar.finish();
    match ran {
        Ok(found) => Ok(found),
        Err(EngineError::Cancelled) if args.out.is_some() => {
            eprintln!("stopped; {kept} more recipes are measured and kept: the same command goes on from here");
            Err(setup::Interrupted.into())
        }
        Err(EngineError::Cancelled) => Err(setup::Interrupted.into()),
        Err(e) => Err(e.into()),
    }
}

/// A place that an axis names as it is was refused with the grid.
fn refused_already(refused: &Refused, axes: &[Axis]) -> bool {
    let named = |edit: &String| axes.iter().any(|x| edit.starts_with(&format!("{}=", x.selector)));
    refused.edits.first().is_some_and(named)
}

fn made<T>(result: Result<T, engine::recipe::RecipeError>) -> Result<T> {
    result.map_err(|e| user(format!("--sweep: {e}")))
}

fn axes(args: &Args) -> Result<Vec<Axis>> {
    let read = |text: &String| Axis::parse(text).map_err(|e| user(format!("--sweep {text}: {e}")));
    let axes = args.axes.iter().map(read).collect::<Result<Vec<_>>>()?;
    let total = axes.iter().try_fold(1usize, |n, x| n.checked_mul(x.choices.len()));
    match total {
        Some(n) if n <= sweep::MOST => Ok(axes),
        _ => Err(user(format!(
            "--sweep: found {} combinations, accepted: at most {}",
            total.map_or("far too many".into(), |n| n.to_string()),
            sweep::MOST
        ))),
    }
}

fn ids(args: &Args, engine: &Arc<Engine>) -> Result<Vec<u32>> {
    Ok(match (&args.on.text, &args.on.prompt, &args.on.ids) {
        (Some(file), _, _) => engine.tokenizer()?.encode(&compare::read(file)?, true)?,
        (_, Some(text), _) => engine.tokenizer()?.encode(text, true)?,
        (_, _, Some(list)) => setup::parse_ids(list)?,
        _ => engine.tokenizer()?.encode(engine::compare::BUILTIN, true)?,
    })
}
