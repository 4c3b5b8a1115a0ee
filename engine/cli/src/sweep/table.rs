//! What a sweep prints.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use engine::compare::sweep::{Found, Price, SweepJob, front};
use engine::memory::human;
use protocol::SweepRow;
use serde_json::json;

use crate::compare::sci;

/// Everything as one JSON object.
pub fn json(out: &mut impl Write, job: &SweepJob, found: &Found) -> Result<()> {
    let sweep = job.sweep();
    let refused: Vec<_> = job
        .refused()
        .iter()
        .map(|r| json!({"edits": r.edits, "reason": r.reason}))
        .collect();
    let failed: Vec<_> = found
        .failed
        .iter()
        .map(|(edits, reason)| json!({"edits": edits, "reason": reason}))
        .collect();
    let value = json!({
        "device": sweep.engine().backend().describe(),
        "positions": sweep.ids().len(),
        "front": front(&found.rows, Price::Bytes),
        "rows": found.rows,
        "per_layer": found.singles,
        "refused": refused,
        "failed": failed,
        "recommended": found.recommended.as_ref().map(|r| json!({"row": r.row, "recipe": r.recipe, "tried": r.tried})),
        "notes": sweep.notes(),
    });
    writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
    Ok(())
}

/// For people.
pub fn print(out: &mut impl Write, job: &SweepJob, found: &Found, budget: Option<f64>) -> Result<()> {
    let sweep = job.sweep();
    writeln!(
        out,
        "{} positions, teacher-forced, each recipe against A (recipe {}); {}\n",
        sweep.ids().len(),
        sweep.a().hash(),
        sweep.engine().backend().describe()
    )?;
    let best = front(&found.rows, Price::Bytes);
    head(out)?;
    for (i, row) in found.rows.iter().enumerate() {
        line(out, &i.to_string(), row, best[i])?;
    }
    writeln!(
        out,
        "* = no other recipe here moves as few bytes with as little KL. Bytes per step: weights and cache of one decode \
         step at the end of the text, estimated by the plan; all else measured."
    )?;
    per_layer(out, found)?;
    for r in job.refused() {
        writeln!(out, "refused: {}: {}", r.edits.join(" "), r.reason)?;
    }
    for (edits, reason) in &found.failed {
        writeln!(out, "not measured: {}: {reason}", edits.join(" "))?;
    }
    for n in sweep.notes() {
        writeln!(out, "note: {n}")?;
    }
    match (budget, &found.recommended) {
        (Some(b), Some(r)) => {
            let base = found.rows.first().map_or(0, |a| a.step_bytes);
            let share = 100.0 * (1.0 - r.row.step_bytes as f64 / base.max(1) as f64);
            writeln!(
                out,
                "\nrecommended for a mean KL of at most {}, measured as a whole:\n",
                sci(b)
            )?;
            head(out)?;
            line(out, "", &r.row, true)?;
            writeln!(
                out,
                "{share:.1} % fewer bytes per step than A; {} combinations were measured to find it",
                r.tried.len()
            )?;
        }
        (Some(b), None) => writeln!(
            out,
            "\nno recipe that moves fewer bytes than A keeps the mean KL at or below {}",
            sci(b)
        )?,
        _ => {}
    }
    Ok(())
}

fn head(out: &mut impl Write) -> Result<()> {
    writeln!(
        out,
        "{:>4}  {:>10} {:>10} {:>10} {:>10} {:>11} {:>11} {:>8}   recipe",
        "", "KL mean", "99 %", "same top-1", "perplexity", "KV", "bytes/step", "tok/s"
    )?;
    Ok(())
}

fn line(out: &mut impl Write, number: &str, r: &SweepRow, best: bool) -> Result<()> {
    let name = match (r.name.is_empty(), r.edits.is_empty()) {
        (true, true) => "A".to_string(),
        (true, false) => r.edits.join(" "),
        (false, _) => format!("{} ({})", r.name, r.edits.join(" ")),
    };
    writeln!(
        out,
        "{number:>3}{} {:>11} {:>10} {:>8.2} % {:>10.3} {:>11} {:>11} {:>8.1}   {name}",
        if best { "*" } else { " " },
        sci(r.kl.mean),
        sci(r.kl.p99),
        100.0 * r.same_top1[0],
        r.perplexity,
        human(r.kv),
        human(r.step_bytes),
        r.decode_tokens_per_s
    )?;
    Ok(())
}

/// Mean KL of each choice in each layer alone: layers down, choices across.
fn per_layer(out: &mut impl Write, found: &Found) -> Result<()> {
    if found.singles.is_empty() {
        return Ok(());
    }
    // Rows by place, columns by slot and choice in the order they were tried.
    let mut columns: Vec<String> = Vec::new();
    let mut places: BTreeMap<(u8, usize), Vec<(usize, f64)>> = BTreeMap::new();
    for row in &found.singles {
        let Some((selector, choice)) = row.edits.first().and_then(|e| e.split_once('=')) else {
            continue;
        };
        let mut parts = selector.split('.');
        let layer = match (parts.next(), parts.next()) {
            (Some("layers"), Some(n)) => n.parse().ok(),
            _ => None,
        };
        let slot = selector.rsplit('.').next().unwrap_or(selector);
        let column = format!("{slot}={choice}");
        let at = columns.iter().position(|c| *c == column).unwrap_or_else(|| {
            columns.push(column);
            columns.len() - 1
        });
        let key = layer.map_or((1, 0), |l: usize| (0, l));
        places.entry(key).or_default().push((at, row.kl.mean));
    }
    writeln!(out, "\nmean KL of one change alone, in nats")?;
    let wide = |c: &String| c.len().max(10);
    write!(out, "{:>8}", "layer")?;
    for c in &columns {
        write!(out, "  {c:>w$}", w = wide(c))?;
    }
    writeln!(out)?;
    for ((kind, layer), values) in &places {
        let name = if *kind == 0 { layer.to_string() } else { "model".into() };
        write!(out, "{name:>8}")?;
        for (i, c) in columns.iter().enumerate() {
            let value = values
                .iter()
                .find(|(at, _)| *at == i)
                .map_or("-".into(), |(_, v)| sci(*v));
            write!(out, "  {value:>w$}", w = wide(c))?;
        }
        writeln!(out)?;
    }
    Ok(())
}
