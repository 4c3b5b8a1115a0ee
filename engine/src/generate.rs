//! Generating text: prompt -> tokens -> text, with stop strings and speed figures.

#[cfg(test)]
mod tests;
mod together;

use std::collections::VecDeque;
use std::time::Instant;

use kernels::ir::{SamplerParams, StepOutput};
use protocol::{RunSummary, StepRecord};
use text::{Detokenizer, StopStrings};

use crate::error::EngineError;
use crate::session::{Again, Cancel, Draw, Session};

/// Tokens that memory is asked for beforehand where a text has an open end.
const STRETCH: u64 = 256;

/// What to generate.
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// Most tokens to produce; `None` = until the context is full.
    pub max_tokens: Option<u64>,
    /// Sampler; `None` = the recipe's.
    pub sampler: Option<SamplerParams>,
    /// Strings that end the text (not part of it).
    pub stop: Vec<String>,
    /// Go on past end-of-text tokens.
    pub ignore_eos: bool,
    /// To stop from outside.
    pub cancel: Cancel,
}

/// Why generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// The model ended the text.
    Eos,
    /// A stop string.
    Stop,
    /// The number of tokens asked for.
    MaxTokens,
    /// The context is full.
    ContextFull,
    /// Asked to stop.
    Cancelled,
}

/// One produced token.
#[derive(Clone, Debug)]
pub struct TokenEvent<'a> {
    /// Number within this generation, 0-based.
    pub index: u64,
    /// The token.
    pub token: u32,
    /// Text that became final with it; may be empty, never half a character.
    pub text: &'a str,
    /// Natural-log probability under the model at temperature 1.
    pub logprob: f32,
    /// The most likely tokens, if asked for.
    pub top: &'a [(u32, f32)],
}

/// Receives tokens and telemetry while they are produced.
pub trait Turn {
    /// A token, and the text that became final.
    fn token(&mut self, event: &TokenEvent<'_>);
    /// A step of the engine.
    fn step(&mut self, _record: &StepRecord) {}
    /// Prefill progress in tokens.
    fn prefill(&mut self, _done: u64, _total: u64) {}
}

impl<F: FnMut(&TokenEvent<'_>)> Turn for F {
    fn token(&mut self, event: &TokenEvent<'_>) {
        self(event);
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Generated {
    /// The text, [`Generated::tail`] included.
    pub text: String,
    /// What was held back (half characters, beginnings of stop strings) and became final at the end.
    pub tail: String,
    /// Its tokens (the end-of-text token included, if drawn).
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Speeds.
    pub summary: RunSummary,
}

/// How far the prompt is.
#[derive(Clone, Debug)]
pub struct Prefill {
    /// Tokens processed so far.
    pub done: u64,
    /// Tokens to process: those of the prompt that the session did not hold, and those a rewind replays.
    pub total: u64,
    /// Telemetry of the chunk just processed; `None` if there was nothing left to do, or the run was stopped.
    pub record: Option<StepRecord>,
}

impl Prefill {
    /// Whether tokens can be drawn now.
    pub fn is_done(&self) -> bool {
        self.done == self.total
    }
}

/// One produced token with everything known about it.
#[derive(Clone, Debug)]
pub struct Produced {
    /// Number within this generation, 0-based.
    pub index: u64,
    /// The token.
    pub token: u32,
    /// Position in the context that it has (or will have, once it is fed).
    pub position: u64,
    /// Text that became final with it; may be empty, never half a character.
    pub text: String,
    /// Natural-log probability under the model at temperature 1.
    pub logprob: f32,
    /// The most likely tokens with their log probabilities, if the sampler asks for them, likeliest first.
    pub top: Vec<(u32, f32)>,
    /// Telemetry of the step that drew it; `None` for the first token, which the prompt's last chunk drew.
    pub record: Option<StepRecord>,
}

/// What a call of [`Generation::step`] brought.
#[derive(Clone, Debug)]
pub enum Step {
    /// A token.
    Token(Produced),
    /// The end; further calls say so again.
    End(Finish),
}

/// A generation in progress, driven call by call. The session stays with its owner, who may put another recipe in
/// force ([`Session::apply`]), change the sampler or stop between any two calls, but must not feed or truncate it.
///
/// ```no_run
/// # use engine::{Engine, EngineOptions, Generation, GenerateOptions, SessionOptions, Silent, Step};
/// # fn main() -> Result<(), engine::EngineError> {
/// # let engine = Engine::open("model".as_ref(), &EngineOptions::default(), &Silent)?;
/// let mut session = engine.session(engine.recipe(), SessionOptions::default())?;
/// let mut run = Generation::begin(&mut session, &[5, 9, 2], GenerateOptions::default())?;
/// while !run.prefill_step(&mut session)?.is_done() {}
/// session.set("layers.*.kv_cache=bf16")?; // in force from the next step on
/// while let Step::Token(t) = run.step(&mut session)? {
///     print!("{}", t.text);
/// }
/// let generated = run.finish();
/// # Ok(()) }
/// ```
pub struct Generation {
    options: GenerateOptions,
    sampler: SamplerParams,
    eos: Vec<u32>,
    detok: Option<Detokenizer>,
    stops: StopStrings,
    /// Steps still to be taken before the first token can be drawn; the last one is of the prompt.
    queue: VecDeque<Again>,
    done: u64,
    total: u64,
    /// Most tokens to produce.
    budget: u64,
    /// Where the session must stand at the next call.
    position: u64,
    /// A token was drawn and not yet taken.
    drawn: bool,
    text: String,
    tokens: Vec<u32>,
    end: Option<Finish>,
    start: Instant,
    first: f64,
    last: Instant,
    gaps: Vec<f64>,
}

impl Generation {
    /// Prepares to continue after exactly these tokens. What the session already holds of them is kept; if it holds
    /// more or something else, it is taken back here, and replays that this needs are part of the prefill.
    ///
    /// To branch, give the tokens up to the fork and the one to take instead.
    ///
    /// # Errors
    /// An empty prompt, ids outside the vocabulary, sampler values out of range, too long a text, too little memory.
    /// The session is unchanged then.
    pub fn begin(session: &mut Session, ids: &[u32], options: GenerateOptions) -> Result<Self, EngineError> {
        let sampler = options.sampler.unwrap_or_else(|| session.recipe().sampler);
        sampler.validate().map_err(EngineError::Invalid)?;
        session.check_range(ids)?;
        let common = session.tokens().iter().zip(ids).take_while(|(a, b)| a == b).count();
        // The last prompt token is always processed: its logits start the text.
        let keep = common.min(ids.len() - 1);
        // Check room before anything is thrown away.
        let budget = session.budget(ids.len() as u64, &options)?;
        let start = Instant::now();
        let mut queue: VecDeque<Again> = session.rewind(keep as u64)?.into();
        let chunk = session.chunk_len();
        let mut rest = &ids[keep..];
        while !rest.is_empty() {
            let at = ids.len() - rest.len();
            let (now, later) = rest.split_at(rest.len().min(chunk - at % chunk));
            queue.push_back(Again {
                ids: now.to_vec(),
                together: false,
            });
            rest = later;
        }
        let tokenizer = session.engine().tokenizer().ok().cloned();
        Ok(Self {
            sampler,
            eos: if options.ignore_eos {
                Vec::new()
            } else {
                session.engine().eos_ids()
            },
            detok: tokenizer.map(|t| Detokenizer::after(t, ids)),
            stops: StopStrings::new(&options.stop),
            done: 0,
            total: queue.iter().map(|c| c.ids.len() as u64).sum(),
            queue,
            budget,
            position: session.position(),
            drawn: false,
            text: String::new(),
            tokens: Vec::new(),
            end: None,
            start,
            first: 0.0,
            last: start,
            gaps: Vec::new(),
            options,
        })
    }

    /// Processes the next chunk of the prompt, at most [`Session::chunk_len`] tokens. After the last one, or when stopped, nothing
    /// is done and the counts are those of the end.
    ///
    /// # Errors
    /// A failed step; the session keeps what it held before.
    pub fn prefill_step(&mut self, session: &mut Session) -> Result<Prefill, EngineError> {
        self.read_on(session, true)
    }

    /// The same; unless it `draws`, the last chunk leaves the logits behind it instead of a token.
    fn read_on(&mut self, session: &mut Session, draws: bool) -> Result<Prefill, EngineError> {
        let mut record = None;
        if self.end.is_none()
            && let Some(next) = self.queue.front()
        {
            self.check(session)?;
            let draw = (draws && self.queue.len() == 1).then(|| Draw::once(&self.sampler));
            let fed = session.again(next, draw, &self.options.cancel, &mut keep_record(&mut record));
            match fed {
                Err(EngineError::Cancelled) => self.end = Some(Finish::Cancelled),
                other => {
                    other?;
                    self.done += next.ids.len() as u64;
                    self.queue.pop_front();
                    self.position = session.position();
                }
            }
            if self.queue.is_empty() {
                self.drawn = true;
                self.first = self.start.elapsed().as_secs_f64();
                self.last = Instant::now();
            }
        }
        let total = if self.end.is_some() { self.done } else { self.total };
        Ok(Prefill {
            done: self.done,
            total,
            record,
        })
    }

    /// Produces the next token: takes the one the prompt drew, later feeds the last one and takes what that draws.
    /// Processes what is left of the prompt first.
    ///
    /// # Errors
    /// A failed step. What was produced stays, and [`Generation::finish`] can be called.
    pub fn step(&mut self, session: &mut Session) -> Result<Step, EngineError> {
        if let Some(finish) = self.ready(session)? {
            return Ok(Step::End(finish));
        }
        let mut record = None;
        if !self.drawn {
            let token = self.tokens.last().copied().unwrap_or_default();
            let last = self.tokens.len() as u64 + 1 >= self.budget;
            let fed = session.go_on(
                token,
                &self.sampler,
                last,
                &self.options.cancel,
                &mut keep_record(&mut record),
            );
            match fed {
                Err(EngineError::Cancelled) => {
                    self.end = Some(Finish::Cancelled);
                    return Ok(Step::End(Finish::Cancelled));
                }
                other => other?,
            }
            self.fed(session);
        }
        self.drawn = false;
        self.take(session, record).map(Step::Token)
    }

    /// Processes what is left of the prompt; why no token comes any more, if none does.
    fn ready(&mut self, session: &mut Session) -> Result<Option<Finish>, EngineError> {
        while self.end.is_none() && !self.queue.is_empty() {
            self.prefill_step(session)?;
        }
        if self.end.is_none() && self.tokens.len() as u64 >= self.budget {
            let full = self.options.max_tokens.is_none();
            self.end = Some(if full { Finish::ContextFull } else { Finish::MaxTokens });
        }
        if self.end.is_none() {
            self.check(session)?;
        }
        Ok(self.end)
    }

    /// Notes that the last token was fed.
    fn fed(&mut self, session: &Session) {
        self.position = session.position();
        self.gaps.push(self.last.elapsed().as_secs_f64());
        self.last = Instant::now();
    }

    /// Takes the drawn token: text, stop strings, end of text.
    fn take(&mut self, session: &Session, record: Option<StepRecord>) -> Result<Produced, EngineError> {
        let Some(drawn) = session.sampled() else {
            return Err(EngineError::Invalid("the plan drew no token".into()));
        };
        self.tokens.push(drawn.token);
        let eos = self.eos.contains(&drawn.token);
        let fresh = match &mut self.detok {
            Some(d) if !eos => d.push(drawn.token).unwrap_or_default(),
            _ => String::new(),
        };
        let out = self.stops.push(&fresh);
        self.text.push_str(&out.text);
        if eos {
            self.end = Some(Finish::Eos);
        } else if out.stopped {
            self.end = Some(Finish::Stop);
        }
        Ok(Produced {
            index: self.tokens.len() as u64 - 1,
            token: drawn.token,
            position: session.position(),
            text: out.text,
            logprob: drawn.logprob,
            top: drawn.top.clone(),
            record,
        })
    }

    /// Refuses a session that was fed or truncated by somebody else.
    fn check(&self, session: &Session) -> Result<(), EngineError> {
        if session.position() == self.position {
            return Ok(());
        }
        Err(EngineError::Invalid(format!(
            "the session holds {} tokens, this generation left it at {}: it was fed or truncated in between",
            session.position(),
            self.position
        )))
    }

    /// Ends the text here, as [`Finish::Cancelled`] unless it has ended already.
    pub fn stop(&mut self) {
        self.end.get_or_insert(Finish::Cancelled);
    }

    /// Another sampler from the next draw on.
    ///
    /// # Errors
    /// Values out of range; the old one stays.
    pub fn set_sampler(&mut self, sampler: SamplerParams) -> Result<(), EngineError> {
        sampler.validate().map_err(EngineError::Invalid)?;
        self.sampler = sampler;
        Ok(())
    }

    /// The sampler in force.
    pub fn sampler(&self) -> &SamplerParams {
        &self.sampler
    }

    /// Tokens produced so far.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Final text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Why it ended, once it has.
    pub fn ended(&self) -> Option<Finish> {
        self.end
    }

    /// (processed, to process) tokens of the prompt.
    pub fn prefilled(&self) -> (u64, u64) {
        (self.done, self.total)
    }

    /// Sums up; lets go of text that was held back. A generation that has not ended counts as cancelled.
    pub fn finish(mut self) -> Generated {
        let finish = self.end.unwrap_or(Finish::Cancelled);
        let mut tail = String::new();
        if finish != Finish::Stop
            && let Some(d) = &mut self.detok
        {
            let out = self.stops.push(&d.flush());
            tail.push_str(&out.text);
            if !out.stopped {
                tail.push_str(&self.stops.flush());
            }
        }
        self.text.push_str(&tail);
        Generated {
            summary: self.summary(),
            text: self.text,
            tail,
            tokens: self.tokens,
            finish,
        }
    }

    /// Speeds so far.
    pub fn summary(&self) -> RunSummary {
        let decode: f64 = self.gaps.iter().sum();
        let n = self.gaps.len();
        let mut gaps = self.gaps.clone();
        gaps.sort_by(f64::total_cmp);
        let at = |q: f64| match n {
            0 => 0.0,
            _ => 1e3 * gaps[((n - 1) as f64 * q).round() as usize],
        };
        RunSummary {
            prompt_tokens: self.total,
            tokens: self.tokens.len() as u64,
            first_token_s: self.first,
            prefill_tokens_per_s: if self.first > 0.0 {
                self.total as f64 / self.first
            } else {
                0.0
            },
            decode_tokens_per_s: if decode > 0.0 { n as f64 / decode } else { 0.0 },
            latency_ms: [at(0.5), at(0.95), at(0.99)],
        }
    }
}

/// An observer that keeps the last record.
fn keep_record(slot: &mut Option<StepRecord>) -> impl FnMut(&StepRecord, &StepOutput) + '_ {
    |r, _| *slot = Some(r.clone())
}

impl Session {
    /// Encodes a prompt as plain text with the tokenizer's own special tokens around it, and generates.
    pub fn generate(
        &mut self,
        prompt: &str,
        options: &GenerateOptions,
        turn: &mut dyn Turn,
    ) -> Result<Generated, EngineError> {
        let ids = self.engine().tokenizer()?.encode(prompt, true)?;
        self.generate_ids(&ids, options, turn)
    }

    /// Generates after exactly these tokens. What the session already holds of them is not processed again.
    pub fn generate_ids(
        &mut self,
        ids: &[u32],
        options: &GenerateOptions,
        turn: &mut dyn Turn,
    ) -> Result<Generated, EngineError> {
        let mut run = Generation::begin(self, ids, options.clone())?;
        loop {
            let p = run.prefill_step(self)?;
            if let Some(r) = &p.record {
                turn.step(r);
                turn.prefill(p.done, p.total);
            }
            if p.is_done() {
                break;
            }
        }
        while let Step::Token(t) = run.step(self)? {
            if let Some(r) = &t.record {
                turn.step(r);
            }
            turn.token(&TokenEvent {
                index: t.index,
                token: t.token,
                text: &t.text,
                logprob: t.logprob,
                top: &t.top,
            });
        }
        let out = run.finish();
        if !out.tail.is_empty() {
            turn.token(&TokenEvent {
                index: out.tokens.len() as u64,
                token: out.tokens.last().copied().unwrap_or_default(),
                text: &out.tail,
                logprob: f32::NAN,
                top: &[],
            });
        }
        Ok(out)
    }

    /// Tokens that may be produced after a prompt of `prompt` tokens.
    fn budget(&self, prompt: u64, options: &GenerateOptions) -> Result<u64, EngineError> {
        let capacity = self.capacity();
        let wanted = prompt.saturating_add(options.max_tokens.unwrap_or(1));
        if prompt >= capacity || options.max_tokens.is_some() && wanted > capacity {
            let max = self.engine().facts().max_context;
            return Err(EngineError::ContextOverflow {
                needed: wanted,
                capacity,
                hint: format!(
                    "the prompt has {prompt} tokens; shorten it, lower --max-tokens, or raise --context (at most {max})"
                ),
            });
        }
        let budget = options.max_tokens.unwrap_or(capacity - prompt);
        // Room for the prompt must be there; with an open end only a first stretch is asked for.
        let ahead = (prompt + options.max_tokens.unwrap_or(STRETCH).min(budget)).saturating_sub(self.position());
        self.room_for(ahead)?;
        Ok(budget)
    }
}
