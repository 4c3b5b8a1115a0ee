//! What a comparison says on request: statistics by name, positions worth looking at, drift by token and by layer.

use std::io::Write;

use anyhow::Result;
use engine::Engine;
use engine::compare::CompareJob;
use protocol::CompareResult;
use serde_json::{Value, json};

use super::sci;
use crate::args::Compare;
use crate::setup::user;

/// Positions of a list.
const MOST: usize = 8;

/// Whether any of it was asked for.
pub fn asked(args: &Compare) -> bool {
    args.details || !args.at.is_empty() || !args.layer.is_empty()
}

/// Refuses positions and layers that are not there, before the work.
pub fn check(args: &Compare, job: &CompareJob, engine: &Engine) -> Result<()> {
    let (n, layers) = (job.ids.len(), engine.facts().layers.len());
    let all = |option: &str, values: &[usize], count: usize| match values.iter().find(|v| **v >= count) {
        Some(v) => Err(user(format!("{option}: found {v}, accepted: 0 to {}", count - 1))),
        None => Ok(()),
    };
    all("--at", &args.at, n)?;
    all("--layer", &args.layer, layers)
}

/// The same for people.
pub fn print(out: &mut impl Write, r: &CompareResult, args: &Compare) -> Result<()> {
    if args.details {
        writeln!(
            out,
            "statistics, named as llama.cpp's perplexity tool names them (Q is B, base is A)"
        )?;
        for s in r.statistics() {
            writeln!(out, "  {:<32} {}", s.name, s.to_string().replace('±', "+-"))?;
        }
        list(out, r, "positions with the largest KL", &r.by_kl(MOST))?;
        list(
            out,
            r,
            "positions where the likeliest token differs, A surest first",
            &r.flips(MOST),
        )?;
        list(out, r, "the same in the order of the text", &r.first_flips(MOST))?;
    }
    for &position in &args.at {
        let text = r.tokens.get(position).map_or("", |t| t.text.as_str());
        writeln!(
            out,
            "\ndrift at position {position} {}, where it grows most first{}",
            quoted(text),
            pooled(r)
        )?;
        writeln!(out, "{:<8} {:>12} {:>12}", "layer", "growth", "drift RMS")?;
        for (layer, growth) in r.drift.growth(position) {
            let here = r.drift.at(layer, position).unwrap_or(f32::NAN);
            writeln!(out, "{layer:<8} {:>12} {:>12}", signed(growth), sci(here.into()))?;
        }
    }
    for &layer in &args.layer {
        writeln!(out, "\nmost drift after layer {layer}{}", pooled(r))?;
        writeln!(out, "{:<9} {:>12} {:>12}   token", "position", "drift RMS", "KL(A||B)")?;
        for (position, drift) in r.drift.most(layer, MOST) {
            let Some(t) = r.tokens.get(position) else { continue };
            writeln!(
                out,
                "{position:<9} {:>12} {:>12}   {}",
                sci(drift.into()),
                sci(t.kl.into()),
                quoted(&t.text)
            )?;
        }
    }
    if asked(args) {
        writeln!(out)?;
    }
    Ok(())
}

/// The whole result as one JSON object, with the same as further members.
pub fn json(r: &CompareResult, args: &Compare) -> Result<String> {
    let statistics: Vec<Value> = r
        .statistics()
        .iter()
        .map(|s| json!({"name": s.name, "value": s.value, "error": s.error}))
        .collect();
    let at: Vec<Value> = args
        .at
        .iter()
        .map(|&position| {
            let growth = r.drift.growth(position).into_iter();
            let layers: Vec<Value> = growth
                .map(|(l, g)| json!({"layer": l, "growth": g, "drift": r.drift.at(l, position)}))
                .collect();
            json!({"position": position, "layers": layers})
        })
        .collect();
    let most = |layer: usize| -> Value {
        let list = r.drift.most(layer, MOST).into_iter();
        list.map(|(p, v)| json!({"position": p, "drift": v})).collect()
    };
    let layers: Vec<Value> = (0..r.drift.layer_rms.len())
        .map(|layer| json!({"layer": layer, "positions": most(layer)}))
        .collect();
    let more = json!({
        "statistics": statistics,
        "interest": {"kl": r.by_kl(MOST), "flips": r.flips(MOST), "first_flips": r.first_flips(MOST)},
        "at": at,
        "most_drift": layers,
    });
    // Joined as text: single precision keeps its shortest digits, which it loses in a `Value`.
    let mut text = serde_json::to_string_pretty(r)?;
    text.truncate(text.trim_end_matches(['}', '\n']).len());
    text.push(',');
    text.push_str(serde_json::to_string_pretty(&more)?.trim_start_matches('{'));
    Ok(text)
}

fn list(out: &mut impl Write, r: &CompareResult, title: &str, positions: &[usize]) -> Result<()> {
    writeln!(out, "\n{title}")?;
    if positions.is_empty() {
        writeln!(out, "  none")?;
        return Ok(());
    }
    writeln!(
        out,
        "{:<9} {:>12} {:>8} {:>8} {:>10}   {:<14} drift grows most in",
        "position", "KL(A||B)", "p A", "p B", "A's margin", "token"
    )?;
    for &i in positions {
        let Some(t) = r.tokens.get(i) else { continue };
        let p = t.logprob.map(|l| l.exp());
        let layers: Vec<String> = r
            .drift
            .growth(i)
            .into_iter()
            .filter(|(_, g)| *g > 0.0)
            .take(3)
            .map(|(l, g)| format!("layer {l} {}", signed(g)))
            .collect();
        writeln!(
            out,
            "{i:<9} {:>12} {:>8.4} {:>8.4} {:>10.4}   {:<14} {}",
            sci(t.kl.into()),
            p[0],
            p[1],
            t.margin_a,
            quoted(&t.text),
            layers.join(", ")
        )?;
    }
    Ok(())
}

/// What columns of drift stand for, where that is more than one position.
fn pooled(r: &CompareResult) -> String {
    match r.drift.step {
        0 | 1 => String::new(),
        n => format!(" (sampled: each figure is the largest of {n} positions)"),
    }
}

fn signed(v: f32) -> String {
    let sign = if v > 0.0 { "+" } else { "" };
    format!("{sign}{}", sci(v.into()))
}

fn quoted(text: &str) -> String {
    format!("{text:?}")
}
