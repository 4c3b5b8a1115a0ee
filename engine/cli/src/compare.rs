//! `compare`: two recipes on the same text.

mod details;
mod free;

use std::io::{Read, Write};
use std::path::Path;

use anyhow::Result;
use engine::compare::export::{self, Environment, ExportError};
use engine::compare::{CompareJob, compare as run};
use engine::memory::human;
use engine::{Engine, Recipe, Watch};
use protocol::{CompareResult, CompareSide, CompareSpec, CompareText, RecipeRef};

use crate::args::Compare;
use crate::output::Bar;
use crate::setup::{self, user};

/// `model1 compare`
pub fn compare(args: &Compare) -> Result<()> {
    let cancel = setup::cancel();
    if args.b.is_none() && args.b_sets.is_empty() {
        return Err(user(
            "found no recipe B, accepted: --b FILE, or --b-set SLOT=VARIANT for A with changes",
        ));
    }
    if let Some(folder) = &args.export {
        export::check(folder).map_err(exported)?;
    }
    let loaded = setup::load(&args.on.model())?;
    let (a, b) = recipes(args, &loaded.engine)?;
    let text = text(args)?;
    if let Some(tokens) = args.free_run {
        return free::run(args, &loaded.engine, tokens, (a, b), text);
    }
    let job = job(args, &loaded.engine, (a, b), text)?;
    details::check(args, &job, &loaded.engine)?;
    let bar = Bar::tokens(args.on.quiet, "comparing");
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |done, total| bar.set(done, Some(total)),
    };
    let result = run(&loaded.engine, &job, &mut watch)?;
    bar.finish();
    let out = &mut std::io::stdout().lock();
    if args.json {
        let text = if details::asked(args) {
            details::json(&result, args)?
        } else {
            serde_json::to_string_pretty(&result)?
        };
        writeln!(out, "{text}")?;
    } else {
        print(out, &result, args)?;
    }
    if let Some(folder) = &args.export {
        let program = concat!("model1 ", env!("CARGO_PKG_VERSION"));
        let paths = export::write(&result, &Environment::gather(&loaded.engine, program), folder).map_err(exported)?;
        if !args.on.quiet {
            eprintln!("wrote {} files to {}", paths.len(), folder.display());
        }
    }
    Ok(())
}

/// What is in the way can be mended by the user; a failing disk cannot.
fn exported(e: ExportError) -> anyhow::Error {
    match e {
        ExportError::Exists { .. } => user(format!("--export {e}")),
        other => anyhow::Error::new(other).context("--export"),
    }
}

fn recipes(args: &Compare, engine: &Engine) -> Result<(Recipe, Recipe)> {
    let mut a = recipe(engine, "--a", &args.on.a)?;
    setup::edit(&mut a, "--a-set", &args.on.a_sets, engine)?;
    let mut b = match &args.b {
        Some(b) => recipe(engine, "--b", b)?,
        None => a.clone(),
    };
    setup::edit(&mut b, "--b-set", &args.b_sets, engine)?;
    Ok((a, b))
}

/// The text as a spec names it, and its tokens where those were given.
fn text(args: &Compare) -> Result<(CompareText, Option<Vec<u32>>)> {
    Ok(match (&args.on.text, &args.on.prompt, &args.on.ids) {
        (Some(file), _, _) => (CompareText::Given(read(file)?), None),
        (_, Some(text), _) => (CompareText::Given(text.clone()), None),
        (_, _, Some(list)) => (CompareText::Current, Some(setup::parse_ids(list)?)),
        _ => (CompareText::Builtin, None),
    })
}

fn job(
    args: &Compare,
    engine: &Engine,
    (a, b): (Recipe, Recipe),
    (text, ids): (CompareText, Option<Vec<u32>>),
) -> Result<CompareJob> {
    let own = engine.recipe();
    let reference = |r: &Recipe| -> Result<RecipeRef> {
        Ok(if *r == own {
            RecipeRef::Own
        } else {
            RecipeRef::Json(serde_json::to_string(r)?)
        })
    };
    let spec = CompareSpec {
        a: reference(&a)?,
        b: reference(&b)?,
        text,
        positions: args.on.positions,
        isolate: args.isolate,
    };
    Ok(match ids {
        Some(ids) => CompareJob::from_parts(engine, spec, a, b, ids)?,
        None => CompareJob::resolve(engine, &spec, None)?,
    })
}

/// `own` or a recipe file.
pub fn recipe(engine: &Engine, option: &str, from: &str) -> Result<Recipe> {
    match from {
        "own" => Ok(engine.recipe()),
        file => setup::recipe_file(Path::new(file), option, engine),
    }
}

/// A text file, or standard input for `-`.
pub fn read(file: &Path) -> Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        setup::waiting(|| std::io::stdin().read_to_string(&mut text)).map_err(setup::stdin_failed)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(|e| {
        user(format!(
            "--text {}: {e}; accepted: a text file in UTF-8",
            file.display()
        ))
    })
}

fn print(out: &mut impl Write, r: &CompareResult, args: &Compare) -> Result<()> {
    writeln!(
        out,
        "{}, {} positions, teacher-forced\n{}; {}\n",
        r.model,
        r.tokens.len(),
        r.reference,
        r.device
    )?;
    writeln!(out, "A  recipe {}", r.sides[0].hash)?;
    writeln!(
        out,
        "B  recipe {}{}",
        r.sides[1].hash,
        if r.changes.is_empty() { "" } else { ", which is A with" }
    )?;
    for c in &r.changes {
        writeln!(out, "     {}  (A: {})", c.edit, c.from)?;
    }
    let k = &r.kl;
    writeln!(
        out,
        "\nKL(A||B), nats      mean {} +- {:.1e}   median {}   90 % {}   99 % {}   largest {}",
        sci(k.mean),
        k.mean_se,
        sci(k.median),
        sci(k.p90),
        sci(k.p99),
        sci(k.max)
    )?;
    writeln!(
        out,
        "noise, A against A  mean {}   largest {}",
        sci(r.noise_floor[0]),
        sci(r.noise_floor[1])
    )?;
    writeln!(
        out,
        "same likeliest      {:.2} % +- {:.2}",
        100.0 * r.same_top1[0],
        100.0 * r.same_top1[1]
    )?;
    writeln!(out, "greedy texts        {}", parting(r))?;
    writeln!(out, "\n{:<20} {:>20} {:>20}   B against A", "", "A", "B")?;
    sides(out, r)?;
    layers(out, r)?;
    isolate(out, r)?;
    details::print(out, r, args)?;
    for n in &r.notes {
        writeln!(out, "note: {n}")?;
    }
    writeln!(
        out,
        "all figures measured; {:.1} s; to repeat:\n{}",
        r.seconds, r.command
    )?;
    Ok(())
}

/// `1.234e-5`, and `0` for nothing at all.
pub fn sci(v: f64) -> String {
    if v == 0.0 { "0".into() } else { format!("{v:.3e}") }
}

fn parting(r: &CompareResult) -> String {
    let Some(d) = &r.divergence else {
        return "the same likeliest next token at every position".into();
    };
    let tie = if d.near_tie { ": a near tie" } else { "" };
    format!("part after position {} (A's margin {:.4}{tie})", d.position, d.margin)
}

fn sides(out: &mut impl Write, r: &CompareResult) -> Result<()> {
    let [a, b] = &r.sides;
    let mut line = |name: &str, f: &dyn Fn(&CompareSide) -> String, third: String| {
        writeln!(out, "{name:<20} {:>20} {:>20}   {third}", f(a), f(b))
    };
    let ratio = |b: f64, a: f64| {
        if a > 0.0 {
            format!("{:.3}x", b / a)
        } else {
            String::new()
        }
    };
    line(
        "perplexity",
        &|s| format!("{:.4} +- {:.4}", s.perplexity, s.perplexity * s.ln_perplexity_se),
        format!("ln ratio {:+.5} +- {:.5}", r.ln_ppl_ratio[0], r.ln_ppl_ratio[1]),
    )?;
    line(
        "KV cache",
        &|s| human(s.kv.total()),
        ratio(b.kv.total() as f64, a.kv.total() as f64),
    )?;
    for (i, (name, _)) in a.kv.parts().iter().enumerate() {
        if a.kv.parts()[i].1 + b.kv.parts()[i].1 > 0 {
            line(&format!("  {name}"), &|s| human(s.kv.parts()[i].1), String::new())?;
        }
    }
    line(
        "decode, tokens/s",
        &|s| format!("{:.1}", s.decode_tokens_per_s),
        ratio(b.decode_tokens_per_s, a.decode_tokens_per_s),
    )?;
    line(
        "this pass, tokens/s",
        &|s| format!("{:.0}", s.prefill_tokens_per_s),
        ratio(b.prefill_tokens_per_s, a.prefill_tokens_per_s),
    )?;
    Ok(())
}

fn layers(out: &mut impl Write, r: &CompareResult) -> Result<()> {
    let d = &r.drift;
    writeln!(
        out,
        "\n{:<8} {:>12} {:>12} {:>12} {:>10} {:>12} {:>12}",
        "layer", "drift RMS", "1 - cosine", "largest", "SQNR dB", "KV of A", "KV of B"
    )?;
    for l in 0..d.layer_rms.len() {
        let kv = r
            .sides
            .each_ref()
            .map(|s| s.kv_layers.get(l).map_or(0, protocol::KvBytes::total));
        writeln!(
            out,
            "{l:<8} {:>12} {:>12} {:>12} {:>10.1} {:>12} {:>12}",
            sci(d.layer_rms[l].into()),
            sci(d.layer_cosine[l].into()),
            sci(d.layer_max[l].into()),
            d.layer_sqnr_db[l],
            human(kv[0]),
            human(kv[1])
        )?;
    }
    writeln!(out)?;
    Ok(())
}

fn isolate(out: &mut impl Write, r: &CompareResult) -> Result<()> {
    if r.isolate.is_empty() {
        return Ok(());
    }
    let wide = r
        .isolate
        .iter()
        .map(|i| i.change.edit.to_string().len())
        .max()
        .unwrap_or(0)
        .max(10);
    writeln!(
        out,
        "{:<wide$} {:>12} {:>12} {:>10} {:>12}",
        "A with", "mean KL", "largest KL", "same", "KV saved"
    )?;
    for i in &r.isolate {
        let sign = if i.kv_saved < 0 { "-" } else { "" };
        writeln!(
            out,
            "{:<wide$} {:>12} {:>12} {:>8.2} % {:>12}",
            i.change.edit.to_string(),
            sci(i.kl_mean),
            sci(i.kl_max),
            100.0 * i.same_top1,
            format!("{sign}{}", human(i.kv_saved.unsigned_abs()))
        )?;
    }
    writeln!(out)?;
    Ok(())
}
