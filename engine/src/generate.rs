//! Generating text: prompt -> tokens -> text, with stop strings and speed figures.

use std::time::Instant;

use kernels::ir::{SamplerParams, StepOutput};
use protocol::{RunSummary, StepRecord};
use text::{Detokenizer, StopStrings};

use crate::error::EngineError;
use crate::session::{Cancel, Session};

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
    /// The text.
    pub text: String,
    /// Its tokens (the end-of-text token included, if drawn).
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub finish: Finish,
    /// Speeds.
    pub summary: RunSummary,
}

struct Run<'a> {
    options: &'a GenerateOptions,
    sampler: SamplerParams,
    eos: Vec<u32>,
    detok: Option<Detokenizer>,
    stops: StopStrings,
    text: String,
    tokens: Vec<u32>,
    gaps: Vec<f64>,
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
        let sampler = options.sampler.unwrap_or_else(|| self.recipe().sampler);
        sampler.validate().map_err(EngineError::Invalid)?;
        if ids.is_empty() {
            return Err(EngineError::Invalid(
                "the prompt is empty: at least one token is needed".into(),
            ));
        }
        let common = self.tokens().iter().zip(ids).take_while(|(a, b)| a == b).count();
        // The last prompt token is always processed: its logits start the text.
        let keep = common.min(ids.len() - 1);
        // Check room before anything is thrown away.
        let budget = self.budget(ids.len() as u64, options)?;
        self.truncate(keep as u64, &options.cancel)?;
        let tokenizer = self.engine().tokenizer().ok().cloned();
        let run = Run {
            options,
            sampler,
            eos: if options.ignore_eos {
                Vec::new()
            } else {
                self.engine().eos_ids()
            },
            detok: tokenizer.map(|t| Detokenizer::after(t, ids)),
            stops: StopStrings::new(&options.stop),
            text: String::new(),
            tokens: Vec::new(),
            gaps: Vec::new(),
        };
        run.go(self, &ids[keep..], budget, turn)
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
        let ahead = (prompt + options.max_tokens.unwrap_or(256).min(budget)).saturating_sub(self.position());
        self.room_for(ahead)?;
        Ok(budget)
    }
}

impl Run<'_> {
    fn go(
        mut self,
        session: &mut Session,
        prompt: &[u32],
        budget: u64,
        turn: &mut dyn Turn,
    ) -> Result<Generated, EngineError> {
        let start = Instant::now();
        let (mut done, total) = (0u64, prompt.len() as u64);
        let sampler = self.sampler;
        let fed = session.feed(
            prompt,
            Some(&sampler),
            &self.options.cancel,
            &mut |r: &StepRecord, _: &StepOutput| {
                done += u64::from(r.tokens);
                turn.step(r);
                turn.prefill(done, total);
            },
        );
        match fed {
            Err(EngineError::Cancelled) => return Ok(self.finish(Finish::Cancelled, start, 0.0, total)),
            other => other?,
        }
        let first = start.elapsed().as_secs_f64();
        let mut last = Instant::now();
        loop {
            if self.tokens.len() as u64 >= budget {
                let full = self.options.max_tokens.is_none();
                let why = if full { Finish::ContextFull } else { Finish::MaxTokens };
                return Ok(self.finish_flushed(why, start, first, total, turn));
            }
            if let Some(finish) = self.take(session, turn)? {
                return Ok(self.finish_flushed(finish, start, first, total, turn));
            }
            if self.tokens.len() as u64 >= budget {
                continue;
            }
            let token = self.tokens.last().copied().unwrap_or_default();
            let step = session.feed(
                &[token],
                Some(&sampler),
                &self.options.cancel,
                &mut |r: &StepRecord, _: &StepOutput| {
                    turn.step(r);
                },
            );
            match step {
                Err(EngineError::Cancelled) => {
                    return Ok(self.finish_flushed(Finish::Cancelled, start, first, total, turn));
                }
                other => other?,
            }
            self.gaps.push(last.elapsed().as_secs_f64());
            last = Instant::now();
        }
    }

    /// Takes the drawn token: text, stop strings, end of text.
    fn take(&mut self, session: &Session, turn: &mut dyn Turn) -> Result<Option<Finish>, EngineError> {
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
        turn.token(&TokenEvent {
            index: self.tokens.len() as u64 - 1,
            token: drawn.token,
            text: &out.text,
            logprob: drawn.logprob,
            top: &drawn.top,
        });
        Ok(if eos {
            Some(Finish::Eos)
        } else if out.stopped {
            Some(Finish::Stop)
        } else {
            None
        })
    }

    /// Lets go of text held back, then sums up.
    fn finish_flushed(
        mut self,
        finish: Finish,
        start: Instant,
        first: f64,
        prompt: u64,
        turn: &mut dyn Turn,
    ) -> Generated {
        if finish != Finish::Stop {
            let mut rest = String::new();
            if let Some(d) = &mut self.detok {
                let out = self.stops.push(&d.flush());
                rest.push_str(&out.text);
                if !out.stopped {
                    rest.push_str(&self.stops.flush());
                }
            }
            if !rest.is_empty() {
                self.text.push_str(&rest);
                let (index, token) = (
                    self.tokens.len() as u64,
                    self.tokens.last().copied().unwrap_or_default(),
                );
                turn.token(&TokenEvent {
                    index,
                    token,
                    text: &rest,
                    logprob: f32::NAN,
                    top: &[],
                });
            }
        }
        self.finish(finish, start, first, prompt)
    }

    fn finish(mut self, finish: Finish, _start: Instant, first: f64, prompt: u64) -> Generated {
        let decode: f64 = self.gaps.iter().sum();
        let n = self.gaps.len();
        self.gaps.sort_by(f64::total_cmp);
        let at = |q: f64| match n {
            0 => 0.0,
            _ => 1e3 * self.gaps[((n - 1) as f64 * q).round() as usize],
        };
        let summary = RunSummary {
            prompt_tokens: prompt,
            tokens: self.tokens.len() as u64,
            first_token_s: first,
            prefill_tokens_per_s: if first > 0.0 { prompt as f64 / first } else { 0.0 },
            decode_tokens_per_s: if decode > 0.0 { n as f64 / decode } else { 0.0 },
            latency_ms: [at(0.5), at(0.95), at(0.99)],
        };
        Generated {
            text: self.text,
            tokens: self.tokens,
            finish,
            summary,
        }
    }
}
