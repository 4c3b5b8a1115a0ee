//! `compare --free-run`: both sides write their own text.

use std::io::Write;

use anyhow::Result;
use engine::compare::{FreeJob, REJOIN, free_run};
use engine::memory::human;
use engine::{Engine, Recipe, Watch};
use protocol::{CompareText, FinishView, FreeMode, FreeSide, FreeSpec, FreeView, RecipeRef};
use std::sync::Arc;

use super::sci;
use crate::args::Compare;
use crate::output::Bar;
use crate::setup;

/// What `--free-run` asks for; `text` and `ids` as for a comparison.
pub fn run(
    args: &Compare,
    engine: &Arc<Engine>,
    tokens: u64,
    (a, b): (Recipe, Recipe),
    (text, ids): (CompareText, Option<Vec<u32>>),
) -> Result<()> {
    let spec = FreeSpec {
        a: RecipeRef::Json(serde_json::to_string(&a)?),
        b: RecipeRef::Json(serde_json::to_string(&b)?),
        prompt: text,
        tokens,
        temperature: args.temperature,
        seed: args.seed,
        mode: if args.in_turn {
            FreeMode::InTurn
        } else {
            FreeMode::Lockstep
        },
    };
    let job = match ids {
        Some(ids) => FreeJob::from_parts(engine, spec, a.clone(), b.clone(), ids)?,
        None => FreeJob::resolve(engine, &spec, None)?,
    };
    let cancel = setup::cancel();
    let bar = Bar::tokens(args.on.quiet, "writing");
    let mut watch = Watch {
        cancel: &cancel,
        progress: &mut |done, total| bar.set(done, Some(total)),
    };
    let view = free_run(engine, &job, &mut watch, &mut |_| {})?;
    bar.finish();
    let out = &mut std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&view)?)?;
        return Ok(());
    }
    let changes: Vec<String> = b.changes_from(&a).iter().map(ToString::to_string).collect();
    print(out, &view, &changes)
}

fn print(out: &mut impl Write, v: &FreeView, changes: &[String]) -> Result<()> {
    let how = if v.spec.temperature > 0.0 {
        format!("temperature {}, seed {} on both sides", v.spec.temperature, v.spec.seed)
    } else {
        "greedily".into()
    };
    let mode = match v.spec.mode {
        FreeMode::Lockstep => "in lockstep",
        FreeMode::InTurn => "in turn",
    };
    writeln!(
        out,
        "{}, both sides write up to {} tokens after a prompt of {}, {how}, {mode}\n{}; {}\n",
        v.model, v.spec.tokens, v.prompt_tokens, v.reference, v.device
    )?;
    let with = if changes.is_empty() { "" } else { ", which is A with" };
    writeln!(
        out,
        "A  recipe {}\nB  recipe {}{with}",
        v.sides[0].hash, v.sides[1].hash
    )?;
    for c in changes {
        writeln!(out, "     {c}")?;
    }
    writeln!(out)?;
    texts(out, v)?;
    figures(out, v)?;
    writeln!(out, "all figures measured; to repeat:\n{}", v.command)?;
    Ok(())
}

/// Both texts, what they have in common once.
fn texts(out: &mut impl Write, v: &FreeView) -> Result<()> {
    let part = |s: &FreeSide, from: u64, to: u64| -> String {
        let tokens = s.tokens.get(from as usize..to as usize).unwrap_or(&[]);
        tokens.iter().map(|t| t.text.as_str()).collect()
    };
    let mut line = |name: &str, text: &str| -> Result<()> {
        if !text.is_empty() {
            writeln!(out, "{name:<5} {}", text.replace('\n', "\n      "))?;
        }
        Ok(())
    };
    line("given", &v.prompt)?;
    let (mut a, mut b) = (0, 0);
    let ends = v.sides.each_ref().map(|s| s.tokens.len() as u64);
    for block in &v.blocks {
        line("A", &part(&v.sides[0], a, block.a))?;
        line("B", &part(&v.sides[1], b, block.b))?;
        line("both", &part(&v.sides[0], block.a, block.a + block.len))?;
        (a, b) = (block.a + block.len, block.b + block.len);
    }
    line("A", &part(&v.sides[0], a, ends[0]))?;
    line("B", &part(&v.sides[1], b, ends[1]))?;
    writeln!(out)?;
    Ok(())
}

fn figures(out: &mut impl Write, v: &FreeView) -> Result<()> {
    let kl = v.kl.iter().map(|k| f64::from(*k));
    let (n, sum, most) = kl.fold((0, 0.0, 0.0_f64), |(n, s, m), k| (n + 1, s + k, m.max(k)));
    let limit = if v.kl_most as usize <= n {
        ", no further kept"
    } else {
        ""
    };
    writeln!(
        out,
        "KL(A||B), nats      mean {}   largest {}   ({n} tokens{limit}: while the texts are equal, and one further)",
        sci(sum / f64::from(n.max(1) as u32)),
        sci(most)
    )?;
    match &v.split {
        None => writeln!(out, "first difference    nowhere: the same text")?,
        Some(s) => {
            let side = |i: usize| match s.tokens[i] {
                Some(_) => format!("{:?}", s.texts[i]),
                None => "ends".into(),
            };
            let tie = if s.near_tie { ", a near tie" } else { "" };
            writeln!(
                out,
                "first difference    after {} tokens: A {}, B {} (A's margin {:.4}{tie})",
                s.at,
                side(0),
                side(1),
                s.margin[0]
            )?;
        }
    }
    match &v.rejoin {
        Some(j) => writeln!(
            out,
            "join again          after {} tokens of A and {} of B, for {} ({REJOIN} equal tokens in a row count)",
            j.a, j.b, j.len
        )?,
        None if v.split.is_some() => {
            writeln!(
                out,
                "join again          nowhere ({REJOIN} equal tokens in a row would count)"
            )?;
        }
        None => {}
    }
    writeln!(
        out,
        "in common           {:.1} % of A, {:.1} % of B\n",
        100.0 * v.shared[0],
        100.0 * v.shared[1]
    )?;
    writeln!(out, "{:<20} {:>20} {:>20}", "", "A", "B")?;
    let mut line = |name: &str, f: &dyn Fn(&FreeSide) -> String| {
        writeln!(out, "{name:<20} {:>20} {:>20}", f(&v.sides[0]), f(&v.sides[1]))
    };
    line("tokens", &|s| format!("{}, {}", s.tokens.len(), ended(s.finish)))?;
    line("KV cache", &|s| human(s.kv.total()))?;
    line("decode, tokens/s", &|s| format!("{:.1}", s.decode_tokens_per_s))?;
    writeln!(out)?;
    Ok(())
}

fn ended(finish: FinishView) -> &'static str {
    match finish {
        FinishView::Eos => "ended",
        FinishView::ContextFull => "context full",
        FinishView::Stop => "stopped",
        FinishView::Running | FinishView::MaxTokens | FinishView::Cancelled | FinishView::Failed => "cut",
    }
}
