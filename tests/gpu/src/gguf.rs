//! A GGUF file that the caller names: its greedy text as on the CPU, matrices as they are stored.
//!
//! The CPU side is [`Cpu::exact`](kernels::cpu::Cpu::exact). The CPU that users have rounds activations to 8 bits beside
//! blocks of GGUF, which moves logits far beyond what a near tie is: its texts part from a GPU's.

use std::path::Path;
use std::sync::Arc;

use engine::{Cancel, Engine, SamplerParams, SessionOptions, TokenEvent};
use model1_tests::goldens::{argmax, max_abs, relative};

use crate::checks::{MARGIN, TOLERANCE, edited, exact, greedy, open};
use crate::runner::{Bench, Case};

/// What the text goes on from.
const PROMPT: &str = "The lighthouse on the coast of Maine was built after";
/// Allowed differences of logits, in parts of the largest, where caches hold bf16: a last bit of a key can move the number
/// that is stored by a 256th (1.3e-3 in 40 tokens of a model of 15 M parameters).
const ROUNDED: f32 = 5e-3;

/// The cases for a file; `tokens` of the text are looked at.
pub fn cases(path: &Path, tokens: Option<usize>) -> Vec<Case> {
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let case = |(cache, limit): (&'static str, f32)| {
        let path = path.to_path_buf();
        let name = format!("{file}: greedy text as on the CPU, caches in {cache}");
        Case::new("gguf", name, move |b| {
            let n = tokens.unwrap_or(if b.quick { 64 } else { 300 });
            text_as_cpu(b, &path, n, Rule { cache, limit })
        })
    };
    [("f32", TOLERANCE), ("bf16", ROUNDED)].into_iter().map(case).collect()
}

/// A step's logits, and the token it drew.
struct Step {
    logits: Vec<f32>,
    drawn: u32,
}

impl Step {
    /// The largest logit less the second.
    fn margin(&self) -> f32 {
        let best = self.drawn as usize;
        let rest = self.logits.iter().enumerate().filter(|(i, _)| *i != best);
        self.logits[best] - rest.map(|(_, v)| *v).fold(f32::NEG_INFINITY, f32::max)
    }
}

fn prompt(engine: &Engine) -> Vec<u32> {
    engine.tokenizer().unwrap().encode(PROMPT, true).unwrap()
}

fn cached(engine: &Engine, cache: &str) -> engine::Recipe {
    edited(engine, &[&format!("layers.*.kv_cache={cache}")])
}

/// `n` greedy steps behind the prompt. Each reads the token of `given` before it, or else the one that was drawn.
fn steps(engine: &Arc<Engine>, cache: &str, n: usize, given: Option<&[Step]>) -> Vec<Step> {
    let options = SessionOptions {
        all_logits: true,
        ..SessionOptions::default()
    };
    let mut session = engine.session(cached(engine, cache), options).unwrap();
    let sampler = SamplerParams::default();
    let mut out: Vec<Step> = Vec::new();
    let mut next = prompt(engine);
    for i in 0..n {
        session
            .feed(&next, Some(&sampler), &Cancel::default(), &mut ())
            .unwrap();
        let all = &session.output().logits;
        let logits = all[all.len() - engine.facts().vocab..].to_vec();
        assert!(
            logits.iter().all(|v| v.is_finite()),
            "logits that are not finite at {i}"
        );
        let drawn = session.sampled().unwrap().token;
        let best = logits[argmax(&logits)];
        assert!(logits[drawn as usize] == best, "token {i} is not the likeliest");
        out.push(Step { logits, drawn });
        next = vec![given.map_or(drawn, |g| g[i].drawn)];
    }
    out
}

/// What is a near tie and what logits may differ by.
#[derive(Clone, Copy)]
struct Rule {
    cache: &'static str,
    /// Of the largest logit, where that is above 1.
    limit: f32,
}

impl Rule {
    fn allowed(&self, s: &Step) -> f32 {
        self.limit * s.logits.iter().fold(1f32, |m, v| m.max(v.abs()))
    }

    /// Whether a step's two likeliest tokens are closer than [`MARGIN`], with rounded caches closer than logits may differ.
    fn near(&self, s: &Step) -> bool {
        let bound = if self.cache == "f32" { MARGIN } else { self.allowed(s) };
        s.margin() < bound
    }
}

/// The CPU writes a text; the GPU reads that, and writes one by itself. Behind the CPU's text the GPU must draw the same
/// token at every step that is no near tie on the CPU; its own text is the CPU's up to the first near tie.
fn text_as_cpu(b: &Bench, path: &Path, n: usize, rule: Rule) -> String {
    let gpu = open(path, b.cuda());
    let n = n.min(gpu.facts().max_context - prompt(&gpu).len());
    let want = steps(&open(path, exact()), rule.cache, n, None);
    let ours = steps(&gpu, rule.cache, n, Some(&want));
    let again = steps(&gpu, rule.cache, n, Some(&want));
    let same = |(a, b): (&Step, &Step)| a.logits.iter().zip(&b.logits).all(|(x, y)| x.to_bits() == y.to_bits());
    assert!(ours.iter().zip(&again).all(same), "other bits the second time");
    let along = compare(&ours, &want, rule);
    let free = write(&gpu, rule.cache, n);
    let parts = (0..n).find(|&i| free[i] != want[i].drawn);
    let tie = (0..n).find(|&i| rule.near(&want[i]));
    if let Some(i) = parts.filter(|&i| tie.is_none_or(|t| i < t)) {
        let [c, g] = [&want, &ours].map(|s| s[i].margin());
        panic!("texts part at token {i}, with a margin of {c:.1e} (CPU) and {g:.1e} (GPU)");
    }
    let text = |ids: &[u32]| gpu.tokenizer().unwrap().decode(ids, true).unwrap_or_default();
    let theirs = text(&want.iter().map(|s| s.drawn).collect::<Vec<_>>());
    let own = text(&free);
    let equal = own.bytes().zip(theirs.bytes()).take_while(|(x, y)| x == y);
    let place = |at: Option<usize>| at.map_or("nowhere".into(), |i| format!("at token {i}"));
    format!(
        "{n} tokens: texts part {}, {} of {} bytes are equal; first near tie {}\n{along}; the same bits twice\n{}",
        place(parts),
        equal.count(),
        theirs.len(),
        place(tie),
        theirs.chars().take(300).collect::<String>().replace('\n', " ")
    )
}

/// The GPU's steps behind the CPU's text beside the CPU's.
fn compare(ours: &[Step], want: &[Step], rule: Rule) -> String {
    let (mut worst, mut share, mut moved, mut mean) = (0f32, 0f32, 0f32, 0f64);
    for (i, (a, w)) in ours.iter().zip(want).enumerate() {
        let (e, allowed) = (max_abs(&a.logits, &w.logits), rule.allowed(w));
        assert!(
            e <= allowed,
            "logits of step {i} differ by {e:.1e}, allowed: {allowed:.1e}"
        );
        let (ours, theirs) = (a.margin(), w.margin());
        assert!(
            a.drawn == w.drawn || rule.near(w),
            "token {i} differs behind the same text, with a margin of {theirs:.1e} (CPU) and {ours:.1e} (GPU)"
        );
        if a.drawn == w.drawn {
            moved = moved.max((ours - theirs).abs());
        }
        (worst, share) = (worst.max(e), share.max(e / allowed));
        mean += relative(&a.logits, &w.logits) / want.len() as f64;
    }
    let least = want.iter().map(Step::margin).fold(f32::INFINITY, f32::min);
    format!(
        "behind the CPU's text the same token at {} of {} steps, logits differ by {worst:.1e} at most ({:.0} % of what is \
         allowed; mean relative {mean:.1e}), margins by {moved:.1e}; least margin on the CPU {least:.1e}",
        ours.iter().zip(want).filter(|(a, w)| a.drawn == w.drawn).count(),
        want.len(),
        100.0 * share
    )
}

/// The text as users get it: with graphs, the next step begun before a token is read.
fn write(engine: &Arc<Engine>, cache: &str, n: usize) -> Vec<u32> {
    let mut session = engine
        .session(cached(engine, cache), SessionOptions::default())
        .unwrap();
    let out = session
        .generate_ids(&prompt(engine), &greedy(n as u64), &mut |_: &TokenEvent<'_>| {})
        .unwrap();
    out.tokens
}
