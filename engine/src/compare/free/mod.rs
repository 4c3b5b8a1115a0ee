//! Free-running: A and B each write their own text after the same prompt, greedily or with the same random numbers.

mod align;
mod job;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use protocol::{FinishView, FreeMode, FreeSide, FreeSplit, FreeToken, FreeView, KvBytes, Label};

use super::figures::{Row, kl};
use super::{NEAR_TIE, reference};
use crate::engine::Engine;
use crate::error::EngineError;
use crate::generate::{Finish, GenerateOptions, Generation, Step};
use crate::memory;
use crate::recipe::Recipe;
use crate::session::{Session, SessionOptions, kv_view};
use crate::watch::Watch;

pub use align::{REJOIN, blocks};
pub use job::FreeJob;

/// Most bytes of A's distributions that are kept, to compare B's with them when B writes later. The same in both modes,
/// so that both give the same figures.
const KEPT_BYTES: usize = 64 << 20;

/// What happens while the texts are written.
#[derive(Clone, Copy, Debug)]
pub enum Written<'a> {
    /// A side (0 = A) wrote a token.
    Token(usize, &'a FreeToken),
    /// KL(A||B) of the next tokens' distributions, in nats.
    Kl(f32),
    /// The texts part.
    Split(&'a FreeSplit),
    /// A side has ended.
    Ended(usize, FinishView),
}

/// One side while it writes.
struct Writer {
    session: Session,
    run: Option<Generation>,
    tokens: Vec<FreeToken>,
    finish: FinishView,
    /// Nanoseconds of single steps.
    times: Vec<u64>,
}

impl Writer {
    fn new(engine: &Arc<Engine>, recipe: &Recipe, job: &FreeJob, watch: &Watch<'_>) -> Result<Self, EngineError> {
        let options = SessionOptions {
            // The distributions are compared.
            all_logits: true,
            checkpoint_budget: 0,
            ..SessionOptions::default()
        };
        let mut session = engine.session(recipe.clone(), options)?;
        let options = GenerateOptions {
            max_tokens: Some(job.spec.tokens),
            sampler: Some(job.sampler()),
            cancel: watch.cancel.clone(),
            ..GenerateOptions::default()
        };
        let run = Generation::begin(&mut session, &job.prompt, options)?;
        Ok(Self {
            session,
            run: Some(run),
            tokens: Vec::new(),
            finish: FinishView::Running,
            times: Vec::new(),
        })
    }

    /// Writes the next token; false at the end.
    fn step(&mut self) -> Result<bool, EngineError> {
        let Some(run) = &mut self.run else { return Ok(false) };
        match run.step(&mut self.session)? {
            Step::Token(t) => {
                self.times.extend(t.record.map(|r| r.nanos));
                let row = Row::new(self.logits());
                self.tokens.push(FreeToken {
                    token: t.token,
                    text: t.text,
                    logprob: t.logprob,
                    margin: row.margin as f32,
                });
                Ok(true)
            }
            Step::End(Finish::Cancelled) => Err(EngineError::Cancelled),
            Step::End(finish) => {
                self.finish = match finish {
                    Finish::Eos => FinishView::Eos,
                    Finish::Stop => FinishView::Stop,
                    Finish::ContextFull => FinishView::ContextFull,
                    Finish::MaxTokens | Finish::Cancelled => FinishView::MaxTokens,
                };
                // A half character at the end stays away: what was told is what came out.
                self.run = None;
                Ok(false)
            }
        }
    }

    /// The distribution the last token was drawn from.
    fn logits(&self) -> &[f32] {
        let vocab = self.session.engine().facts().vocab;
        let all = &self.session.output().logits;
        &all[all.len().saturating_sub(vocab)..]
    }

    fn side(self, recipe: &Recipe) -> FreeSide {
        let mut kv = KvBytes::default();
        let layers = self.session.kv_bytes();
        layers.iter().for_each(|(used, _)| kv.add(&kv_view(used)));
        let mut times = self.times;
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or(0);
        FreeSide {
            hash: recipe.hash(),
            tokens: self.tokens,
            finish: self.finish,
            kv,
            decode_tokens_per_s: if median > 0 { 1e9 / median as f64 } else { 0.0 },
        }
    }
}

/// What A and B have in common while they write; B is always one step behind A or level with it.
struct Common {
    /// A's distributions from the first token on, while the texts are equal; at most `most`.
    kept: Vec<Vec<f32>>,
    most: usize,
    kl: Vec<f32>,
    /// Tokens that are known to be equal.
    equal: usize,
    split: Option<FreeSplit>,
}

impl Common {
    /// A wrote its token number `i` from this distribution.
    fn a_wrote(&mut self, i: usize, logits: &[f32]) {
        if self.split.is_none() && i == self.kept.len() && i < self.most {
            self.kept.push(logits.to_vec());
        }
    }

    /// B wrote its token number `i`; A has written it, too, or has ended before.
    fn b_wrote(&mut self, i: usize, b: &Writer, a: &[FreeToken], tell: &mut dyn FnMut(Written<'_>)) {
        if self.split.is_some() {
            return;
        }
        if let Some(kept) = self.kept.get_mut(i) {
            let from = std::mem::take(kept);
            let logits = b.logits();
            let value = kl(&from, &Row::new(&from), logits, &Row::new(logits)) as f32;
            self.kl.push(value);
            tell(Written::Kl(value));
        }
        match (a.get(i), b.tokens.get(i)) {
            (Some(x), Some(y)) if x.token == y.token => self.equal = i + 1,
            (x, y) => self.part(i, x, y, tell),
        }
    }

    /// B has ended after `i` tokens; A goes on or not.
    fn b_ended(&mut self, i: usize, a: &[FreeToken], tell: &mut dyn FnMut(Written<'_>)) {
        if self.split.is_none() && a.len() > i {
            self.part(i, a.get(i), None, tell);
        }
    }

    fn part(&mut self, at: usize, a: Option<&FreeToken>, b: Option<&FreeToken>, tell: &mut dyn FnMut(Written<'_>)) {
        let sides = [a, b];
        let margin = sides.map(|t| t.map_or(f32::NAN, |t| t.margin));
        let split = FreeSplit {
            at: at as u64,
            tokens: sides.map(|t| t.map(|t| t.token)),
            texts: sides.map(|t| t.map_or_else(String::new, |t| t.text.clone())),
            margin,
            near_tie: margin[0] < NEAR_TIE,
        };
        tell(Written::Split(&split));
        self.split = Some(split);
        self.kept = Vec::new();
    }
}

/// Lets A and B write. `tell` hears of every token; what it has been told stays true when this is cancelled. Progress
/// counts tokens. Both modes give the same texts and figures, bit for bit, speeds apart.
///
/// # Errors
/// Cancelled, a failed step, too long a text, too little memory for both caches (in turn: for one).
pub fn free_run(
    engine: &Arc<Engine>,
    job: &FreeJob,
    watch: &mut Watch<'_>,
    tell: &mut dyn FnMut(Written<'_>),
) -> Result<FreeView, EngineError> {
    let total = 2 * job.spec.tokens;
    watch.report(0, total)?;
    let vocab = engine.facts().vocab.max(1);
    let mut common = Common {
        kept: Vec::new(),
        most: (KEPT_BYTES / (4 * vocab)).clamp(1, job.spec.tokens.max(1) as usize),
        kl: Vec::new(),
        equal: 0,
        split: None,
    };
    let sides = match job.spec.mode {
        FreeMode::Lockstep => lockstep(engine, job, &mut common, watch, tell)?,
        FreeMode::InTurn => in_turn(engine, job, &mut common, watch, tell)?,
    };
    watch.report(total, total)?;
    let ids = |s: &FreeSide| s.tokens.iter().map(|t| t.token).collect::<Vec<u32>>();
    let (a, b) = (ids(&sides[0]), ids(&sides[1]));
    let found = blocks(&a, &b);
    let covered: u64 = found.iter().map(|x| x.len).sum();
    let share = |n: usize| if n == 0 { 1.0 } else { covered as f64 / n as f64 };
    let after = |at: u64| found.iter().find(|x| x.a + x.b > 2 * at).copied();
    Ok(FreeView {
        rejoin: common.split.as_ref().and_then(|s| after(s.at)),
        shared: [share(a.len()), share(b.len())],
        blocks: found,
        sides,
        kl: common.kl,
        split: common.split,
        ..empty(engine, job)
    })
}

/// The view before anything is written.
pub fn empty(engine: &Arc<Engine>, job: &FreeJob) -> FreeView {
    let side = |recipe: &Recipe| FreeSide {
        hash: recipe.hash(),
        tokens: Vec::new(),
        finish: FinishView::Running,
        kv: KvBytes::default(),
        decode_tokens_per_s: 0.0,
    };
    let vocab = engine.facts().vocab.max(1);
    FreeView {
        revision: 1,
        spec: job.spec.clone(),
        model: job.model.clone(),
        device: engine.backend().describe(),
        reference: reference(engine),
        prompt_tokens: job.prompt.len() as u64,
        prompt: engine.token_texts(&job.prompt).concat(),
        sides: [side(&job.a), side(&job.b)],
        from: [0, 0],
        kl: Vec::new(),
        kl_most: (KEPT_BYTES / (4 * vocab)).max(1) as u64,
        split: None,
        blocks: Vec::new(),
        rejoin: None,
        shared: [0.0, 0.0],
        label: Label::Measured,
        command: job.command(engine),
        notes: job.notes.clone(),
    }
}

fn lockstep(
    engine: &Arc<Engine>,
    job: &FreeJob,
    common: &mut Common,
    watch: &mut Watch<'_>,
    tell: &mut dyn FnMut(Written<'_>),
) -> Result<[FreeSide; 2], EngineError> {
    let mut a = Writer::new(engine, &job.a, job, watch)?;
    let mut b = Writer::new(engine, &job.b, job, watch)?;
    let n = job.prompt.len() as u64 + job.spec.tokens;
    let bytes = a.session.predicted_bytes(n) + b.session.predicted_bytes(n);
    memory::require(bytes, &format!("2 caches of {n} tokens"), "let the sides write in turn")?;
    let mut done = 0;
    loop {
        let i = b.tokens.len();
        let wrote_a = step(&mut a, 0, tell)?;
        if wrote_a {
            common.a_wrote(a.tokens.len() - 1, a.logits());
        }
        let wrote_b = step(&mut b, 1, tell)?;
        if wrote_b {
            common.b_wrote(i, &b, &a.tokens, tell);
        } else {
            common.b_ended(i, &a.tokens, tell);
        }
        if !wrote_a && !wrote_b {
            return Ok([a.side(&job.a), b.side(&job.b)]);
        }
        done += u64::from(wrote_a) + u64::from(wrote_b);
        watch.report(done, 2 * job.spec.tokens)?;
    }
}

fn in_turn(
    engine: &Arc<Engine>,
    job: &FreeJob,
    common: &mut Common,
    watch: &mut Watch<'_>,
    tell: &mut dyn FnMut(Written<'_>),
) -> Result<[FreeSide; 2], EngineError> {
    let mut a = Writer::new(engine, &job.a, job, watch)?;
    let mut done = 0;
    while step(&mut a, 0, tell)? {
        common.a_wrote(a.tokens.len() - 1, a.logits());
        done += 1;
        watch.report(done, 2 * job.spec.tokens)?;
    }
    // A's cache goes before B's comes.
    let a = a.side(&job.a);
    let mut b = Writer::new(engine, &job.b, job, watch)?;
    while step(&mut b, 1, tell)? {
        common.b_wrote(b.tokens.len() - 1, &b, &a.tokens, tell);
        done += 1;
        watch.report(done, 2 * job.spec.tokens)?;
    }
    common.b_ended(b.tokens.len(), &a.tokens, tell);
    Ok([a, b.side(&job.b)])
}

fn step(writer: &mut Writer, side: usize, tell: &mut dyn FnMut(Written<'_>)) -> Result<bool, EngineError> {
    let running = writer.finish == FinishView::Running;
    if writer.step()? {
        if let Some(token) = writer.tokens.last() {
            tell(Written::Token(side, token));
        }
        return Ok(true);
    }
    if running {
        tell(Written::Ended(side, writer.finish));
    }
    Ok(false)
}
