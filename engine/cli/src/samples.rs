//! `generate --samples`: several texts behind one prompt, written together.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use engine::{Finish, Generation, SamplerParams, SessionOptions, Step};

use crate::args::Generate;
use crate::generate::{options, why};
use crate::setup::{Interrupted, Loaded, user};

/// Most texts: each has a cache of its own.
const MOST: usize = 64;

/// Writes the texts, each with the next seed, and prints them one after the other.
pub fn samples(args: &Generate, loaded: &Loaded, sampler: &SamplerParams, ids: &[u32]) -> Result<()> {
    let n = args.samples;
    if n == 0 || n > MOST {
        return Err(user(format!("--samples: found {n}, accepted: 1 to {MOST}")));
    }
    let mut sampler = *sampler;
    // Asking for several texts means asking for draws.
    if sampler.temperature == 0.0 && args.sampling.temperature.is_none() {
        sampler.temperature = 1.0;
    }
    if sampler.temperature < 1e-5 {
        return Err(user(format!(
            "--samples: {n} times the most likely tokens are the same text, accepted: with --temperature above 0"
        )));
    }
    let seed = |i: usize| sampler.seed.wrapping_add(i as u64);
    let each = (0..n).map(|i| {
        let sampler = SamplerParams {
            seed: seed(i),
            ..sampler
        };
        options(&args.sampling, sampler)
    });
    let session = loaded.session(&args.model, SessionOptions::default())?;
    let start = Instant::now();
    let mut runs = Generation::begin_together(session, ids, each.collect())?;
    loop {
        let steps = Generation::step_together(&mut runs)?;
        if steps.iter().all(|s| matches!(s, Step::End(_))) {
            break;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    let (mut tokens, mut stopped) = (0, false);
    for (i, (run, _)) in runs.into_iter().enumerate() {
        let written = run.finish();
        tokens += written.tokens.len();
        stopped |= written.finish == Finish::Cancelled;
        let text = match loaded.engine.tokenizer() {
            Ok(_) => written.text,
            // Without a tokenizer there is no text; the ids are what was produced.
            Err(_) => written.tokens.iter().map(u32::to_string).collect::<Vec<_>>().join(" "),
        };
        writeln!(
            out,
            "[{} of {n}, seed {}: {}]\n{text}",
            i + 1,
            seed(i),
            why(written.finish)
        )
        .context("writing output")?;
    }
    if !args.model.quiet {
        eprintln!(
            "[{tokens} tokens in {seconds:.2} s, prompt included: {:.1} tokens/s in all; {}]",
            tokens as f64 / seconds.max(1e-9),
            loaded.engine.backend().describe()
        );
    }
    if stopped { Err(Interrupted.into()) } else { Ok(()) }
}
