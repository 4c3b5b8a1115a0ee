//! `show` and `devices`.

use std::io::Write;

use anyhow::Result;
use engine::SessionOptions;
use engine::memory::human;
use engine::recipe::{Cell, Registry, json_schema, validity};
use protocol::{BlockView, PlanView};

use crate::args::{Devices, Show};
use crate::output::si;
use crate::setup;

/// `model1 show`
pub fn show(args: &Show) -> Result<()> {
    let out = &mut std::io::stdout().lock();
    if args.schema {
        writeln!(
            out,
            "{}",
            serde_json::to_string_pretty(&json_schema(&Registry::default()))?
        )?;
        return Ok(());
    }
    let loaded = setup::load(&args.model)?;
    if args.print_recipe {
        writeln!(out, "{}", serde_json::to_string_pretty(&loaded.recipe)?)?;
        return Ok(());
    }
    let engine = &loaded.engine;
    if args.validity {
        let cells = validity(engine.registry(), &engine.facts().layers);
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&cells)?)?;
        } else {
            print_validity(out, &cells)?;
        }
        return Ok(());
    }
    let mut session = loaded.session(&args.model, SessionOptions::default())?;
    if args.plan {
        let plan = session.plan_view(args.tokens, args.at)?;
        if args.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&plan)?)?;
        } else {
            print_plan(out, &plan)?;
        }
        return Ok(());
    }
    let tree = session.tree();
    if args.json {
        let value = serde_json::json!({ "model": loaded.recipe.model, "facts": engine.facts(), "blocks": tree,
            "recipe": loaded.recipe, "recipe_hash": loaded.recipe.hash(), "weight_bytes": engine.weight_bytes(),
            "restored_bytes": engine.restored_bytes(session.recipe()), "warnings": engine.warnings() });
        writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        return Ok(());
    }
    writeln!(out, "{}", loaded.recipe.model)?;
    writeln!(
        out,
        "checkpoint  {} ({})",
        engine.checkpoint().path.display(),
        human(engine.checkpoint().total_bytes)
    )?;
    let more = match engine.restored_bytes(session.recipe()) {
        0 => String::new(),
        bytes => format!("; beside them {} as the recipe stores them", human(bytes)),
    };
    writeln!(
        out,
        "weights     {}, mostly {}{more}",
        human(engine.weight_bytes()),
        engine.main_format()
    )?;
    writeln!(out, "context     up to {} tokens", engine.facts().max_context)?;
    let at = [1024u64, 4096, 32768, 131_072];
    let mut lengths: Vec<u64> = at.into_iter().filter(|&n| n < session.capacity()).collect();
    lengths.extend((lengths.len() < at.len()).then(|| session.capacity()));
    let fits: Vec<String> = lengths
        .iter()
        .map(|&n| format!("{} at {n}", human(session.predicted_bytes(n))))
        .collect();
    writeln!(out, "KV cache    {} (predicted)", fits.join(", "))?;
    writeln!(out, "recipe      {}", loaded.recipe.hash())?;
    print_tree(out, &tree)
}

fn print_tree(out: &mut impl Write, tree: &[BlockView]) -> Result<()> {
    for b in tree {
        let bytes: u64 = b.tensors.iter().map(|t| t.bytes).sum();
        let place = b.layer.map_or(b.block.clone(), |l| format!("layer {l} {}", b.block));
        let slots: Vec<String> = b.slots.iter().map(|(s, v)| format!("{s}={v}")).collect();
        writeln!(out, "\n{place}: {} ({}) {}", b.kind, human(bytes), slots.join(" "))?;
        // Hundreds of experts would bury the rest: equal shapes are shown as a range.
        let mut i = 0;
        while i < b.tensors.len() {
            let t = &b.tensors[i];
            let same =
                |o: &&protocol::TensorView| o.shape == t.shape && o.format == t.format && o.name.contains("expert");
            let run = if t.name.contains("experts.") {
                b.tensors[i..].iter().take_while(same).count()
            } else {
                1
            };
            let size: u64 = b.tensors[i..i + run].iter().map(|t| t.bytes).sum();
            let name = if run > 1 {
                format!("{} .. {} ({run})", t.name, b.tensors[i + run - 1].name)
            } else {
                t.name.clone()
            };
            writeln!(
                out,
                "  {:<58} {:>7} x {:<7} {:<9} {:>10}",
                name,
                t.shape[0],
                t.shape[1],
                t.format,
                human(size)
            )?;
            i += run;
        }
    }
    Ok(())
}

fn print_plan(out: &mut impl Write, plan: &PlanView) -> Result<()> {
    writeln!(
        out,
        "plan {} ({}), costs for {} token(s) after {} (estimated from shapes)\n",
        plan.hash, plan.phase, plan.tokens, plan.context
    )?;
    writeln!(
        out,
        "{:>5} {:>5} {:<10} {:<20} {:<16} {:>10} {:>11} {:>11} {:>11}  fused",
        "op", "layer", "block", "name", "kind", "FLOPs", "weights", "cache", "workspace"
    )?;
    let mut sum = [0u64; 4];
    for o in &plan.ops {
        let layer = o.layer.map_or("-".to_string(), |l| l.to_string());
        let fused = if o.fused_with > 1 {
            format!("with {}", o.fused_with - 1)
        } else {
            String::new()
        };
        writeln!(
            out,
            "{:>5} {layer:>5} {:<10} {:<20} {:<16} {:>10} {:>11} {:>11} {:>11}  {fused}",
            o.id,
            o.block,
            o.name,
            o.kind,
            si(o.flops),
            human(o.weight_bytes),
            human(o.cache_bytes),
            human(o.activation_bytes)
        )?;
        for (s, v) in sum
            .iter_mut()
            .zip([o.flops, o.weight_bytes, o.cache_bytes, o.activation_bytes])
        {
            *s += v;
        }
    }
    writeln!(
        out,
        "{:>59} {:>10} {:>11} {:>11} {:>11}",
        "total",
        si(sum[0]),
        human(sum[1]),
        human(sum[2]),
        human(sum[3])
    )?;
    Ok(())
}

fn print_validity(out: &mut impl Write, cells: &[Cell]) -> Result<()> {
    writeln!(
        out,
        "{:<12} {:<24} {:<17} {:<15} accepted",
        "family", "attention", "slot", "variant"
    )?;
    for c in cells {
        let answer = c.refused.as_ref().map_or("yes".to_string(), |r| format!("no: {r}"));
        writeln!(
            out,
            "{:<12} {:<24} {:<17} {:<15} {answer}",
            c.family,
            c.attention.name(),
            c.slot.name(),
            c.variant
        )?;
    }
    Ok(())
}

/// `model1 devices`
pub fn devices(args: &Devices) -> Result<()> {
    use kernels::ir::Backend;
    let out = &mut std::io::stdout().lock();
    let threads = engine::default_threads();
    let backend = kernels::cpu::exec::CpuBackend::new(threads);
    let memory = engine::memory::available();
    let gpus = engine::device::list();
    if args.json {
        let mut all = vec![
            serde_json::json!({ "name": backend.name(), "description": backend.describe(),
            "threads": threads, "memory_available": memory, "usable": true }),
        ];
        all.extend(gpus.iter().map(|(name, text, usable)| {
            let key = if *usable { "description" } else { "reason" };
            serde_json::json!({ "name": name, key: text, "usable": usable })
        }));
        writeln!(out, "{}", serde_json::to_string_pretty(&all)?)?;
        return Ok(());
    }
    writeln!(out, "{:<6} {}", backend.name(), backend.describe())?;
    if let Some(m) = memory {
        writeln!(out, "       {} of memory available", human(m))?;
    }
    for (name, text, usable) in gpus {
        writeln!(out, "{name:<6} {}{text}", if usable { "" } else { "not usable: " })?;
    }
    Ok(())
}
