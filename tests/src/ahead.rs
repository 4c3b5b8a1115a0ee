//! Texts written with run-ahead and without: whatever is done with one, what is seen of it must be the same. Stories that
//! the emulator's tests and the program for GPUs share.

use std::path::Path;
use std::sync::Arc;

use engine::{Cancel, Engine, EngineError, GenerateOptions, Generation, SamplerParams, Session, SessionOptions, Step};
use kernels::ir::{CacheId, CacheRows, ExecError};
use protocol::StepRecord;

/// What a text leaves behind.
#[derive(Debug, PartialEq)]
pub enum Seen {
    /// A token, its log probability's bits, and the step's record without its time.
    Token(u32, u32, Option<StepRecord>),
    /// Bits of logits or of cache rows.
    Values(Vec<u32>),
    /// An error.
    Failed(String),
}

/// The rows of a cache that steps behind `position` tokens may read: slots of a ring, the oldest first, or all rows.
pub fn readable(rows: CacheRows, position: u64) -> Vec<usize> {
    match rows {
        CacheRows::Growing { rate } => (0..position as usize / rate).collect(),
        CacheRows::Ring { .. } => rows.kept_slots(position),
    }
}

/// A session, all of its text, and what was seen of it.
pub struct Writer {
    /// The session.
    pub session: Session,
    /// Its tokens, the one drawn last included.
    pub text: Vec<u32>,
    /// Settings of later texts.
    pub sampler: SamplerParams,
    /// What was seen.
    pub seen: Vec<Seen>,
    /// Decoded tokens.
    pub steps: usize,
    /// How many of their steps were begun before they were asked for.
    pub ahead: usize,
}

/// Tokens that look like nothing.
pub fn ids(engine: &Engine, n: usize, salt: usize) -> Vec<u32> {
    let vocab = engine.facts().vocab;
    (0..n)
        .map(|i| ((i * 7919 + 13 * salt) % (vocab - 2) + 2) as u32)
        .collect()
}

/// Settings that draw on the device.
pub fn samplers() -> [SamplerParams; 3] {
    let warm = SamplerParams {
        temperature: 0.9,
        seed: 3,
        ..SamplerParams::default()
    };
    let penalties = SamplerParams {
        repetition_penalty: 1.3,
        frequency_penalty: 0.2,
        penalty_window: 30,
        top_p: 0.95,
        ..warm
    };
    [SamplerParams::default(), warm, penalties]
}

impl Writer {
    /// An empty text.
    pub fn new(engine: &Arc<Engine>, sampler: SamplerParams) -> Self {
        Self {
            session: engine.session(engine.recipe(), SessionOptions::default()).unwrap(),
            text: Vec::new(),
            sampler,
            seen: Vec::new(),
            steps: 0,
            ahead: 0,
        }
    }

    /// An open end, stopped by nothing.
    pub fn options(&self) -> GenerateOptions {
        GenerateOptions {
            sampler: Some(self.sampler),
            ignore_eos: true,
            ..GenerateOptions::default()
        }
    }

    /// Begins to write behind the text and `prompt`.
    pub fn begin(&mut self, prompt: &[u32]) -> Generation {
        self.text.extend_from_slice(prompt);
        let options = self.options();
        Generation::begin(&mut self.session, &self.text, options).unwrap()
    }

    /// The next token; false where there is none.
    pub fn token(&mut self, run: &mut Generation) -> bool {
        match run.step(&mut self.session) {
            Ok(Step::Token(t)) => {
                let record = t.record.map(|r| StepRecord {
                    nanos: 0,
                    memory: None,
                    ..r
                });
                self.steps += usize::from(record.is_some());
                self.ahead += usize::from(self.session.output().ahead_nanos.is_some());
                self.text.push(t.token);
                self.seen.push(Seen::Token(t.token, t.logprob.to_bits(), record));
                true
            }
            Ok(Step::End(_)) => false,
            Err(e) => {
                self.seen.push(Seen::Failed(e.to_string()));
                false
            }
        }
    }

    /// Writes `n` tokens behind `prompt` and stops there, as a stop string does: in the middle of an open end.
    pub fn write(&mut self, prompt: &[u32], n: usize) {
        let mut run = self.begin(prompt);
        for _ in 0..n {
            assert!(self.token(&mut run));
        }
        run.stop();
        assert!(!self.token(&mut run));
    }

    /// Every row that a later step may read.
    pub fn rows(&mut self) {
        let position = self.session.position();
        let mut bits = Vec::new();
        for (i, desc) in self.session.state().caches().iter().enumerate() {
            for slot in readable(desc.rows, position) {
                let values = self.session.state().read_rows(CacheId(i as u32), slot, 1).unwrap();
                bits.extend(values.into_iter().map(f32::to_bits));
            }
        }
        self.seen.push(Seen::Values(bits));
    }

    /// Reads tokens that nobody draws from, and looks at the logits.
    pub fn read(&mut self, ids: &[u32]) {
        self.session.feed(ids, None, &Cancel::default(), &mut ()).unwrap();
        let logits = self.session.output().logits.iter().map(|v| v.to_bits()).collect();
        self.seen.push(Seen::Values(logits));
        self.text = self.session.tokens().to_vec();
    }

    /// Goes back.
    pub fn truncate(&mut self, length: u64) {
        self.session.truncate(length, &Cancel::default()).unwrap();
        self.text = self.session.tokens().to_vec();
    }
}

/// Runs a story on an engine that waits and on one that does not; both must see the same. `make` gets whether to run ahead.
/// Returns (decoded, begun ahead).
pub fn same(make: &dyn Fn(bool) -> Arc<Engine>, sampler: SamplerParams, story: &dyn Fn(&mut Writer)) -> (usize, usize) {
    let run = |ahead| {
        let mut w = Writer::new(&make(ahead), sampler);
        story(&mut w);
        w
    };
    let (waits, runs) = (run(false), run(true));
    assert_eq!(waits.ahead, 0, "a backend that waits");
    for (i, (a, b)) in waits.seen.iter().zip(&runs.seen).enumerate() {
        assert!(a == b, "{sampler:?}, {i} of {}: {a:?}\n{b:?}", waits.seen.len());
    }
    assert_eq!(waits.seen.len(), runs.seen.len());
    (runs.steps, runs.ahead)
}

/// Stops at every place of windows (8), compressed rows (4 and 16) and checkpoints (128), and goes on in every way.
pub fn conversation(w: &mut Writer) {
    let engine = w.session.engine().clone();
    let most = w.session.capacity() - 20;
    w.write(&ids(&engine, 71, 1), 9);
    for (i, n) in [1, 2, 3, 5, 4, 7, 6, 8, 3, 10].into_iter().enumerate() {
        if w.session.position() > most {
            w.truncate(50);
        }
        match i % 4 {
            // One token, several, and many behind the place where it stopped.
            0 => w.write(&ids(&engine, 1, i), n),
            1 => w.write(&ids(&engine, 5, i), n),
            2 => {
                w.truncate(w.session.position() - 2);
                w.write(&ids(&engine, 2, i), n);
            }
            _ => {
                w.read(&ids(&engine, 1, i));
                w.read(&ids(&engine, 9, i));
                w.write(&ids(&engine, 1, i), n);
            }
        }
        w.rows();
    }
    w.truncate(w.session.position() - 9);
    w.write(&ids(&engine, 1, 40), 4);
    w.read(&ids(&engine, 3, 41));
    w.rows();
}

/// In the middle of a text: another storage of rows, other blocks, another sampler, traced steps, alternatives that the host
/// lists.
pub fn changes(w: &mut Writer) {
    let go = |w: &mut Writer, run: &mut Generation| (0..7).for_each(|_| assert!(w.token(run)));
    let engine = w.session.engine().clone();
    let mut run = w.begin(&ids(&engine, 30, 1));
    go(w, &mut run);
    w.session.set("layers.*.kv_cache=bf16").unwrap();
    go(w, &mut run);
    w.session.set("layers.*.attention=top_k:k=3").unwrap();
    go(w, &mut run);
    let hotter = SamplerParams {
        temperature: 1.4,
        ..w.sampler
    };
    run.set_sampler(hotter).unwrap();
    go(w, &mut run);
    w.session.set_trace(true);
    let before = w.ahead;
    go(w, &mut run);
    assert!(w.ahead == before && !w.session.times().is_empty());
    w.session.set_trace(false);
    go(w, &mut run);
    let listed = SamplerParams {
        logprobs: 2,
        ..w.sampler
    };
    run.set_sampler(listed).unwrap();
    let before = w.ahead;
    go(w, &mut run);
    assert_eq!(w.ahead, before, "the host lists alternatives");
    w.rows();
}

/// A copy of a model in `to` whose embedding of one token is no number, and a prompt behind which the model draws that token
/// for the first time after some others.
pub fn undrawable(model: &Path, to: &Path, make: &dyn Fn(&Path) -> Arc<Engine>) -> Vec<u32> {
    let engine = make(model);
    let mut w = Writer::new(&engine, SamplerParams::default());
    let prompt = ids(&engine, 30, 1);
    w.sampler.temperature = 1.0;
    w.write(&prompt, 20);
    let new = (9..19).find(|i| !w.text[..30 + i].contains(&w.text[30 + i]));
    let token = w.text[30 + new.expect("a token that is new")] as usize;
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(file), to.join(file)).unwrap();
    }
    let file = to.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let (head, tensors) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let table = tensors.info("model.embed_tokens.weight").unwrap();
    assert_eq!(table.dtype, safetensors::Dtype::F32);
    let at = 8 + head + table.data_offsets.0 + 4 * table.shape[1] * token;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    prompt
}

/// Writes until a token cannot be drawn ([`undrawable`]), and goes on with another one in its place.
pub fn undrawn(w: &mut Writer, prompt: &[u32]) {
    w.sampler.temperature = 1.0;
    let mut run = w.begin(prompt);
    while w.token(&mut run) {}
    let failed = w.seen.last();
    assert!(
        matches!(failed, Some(Seen::Failed(e)) if e.contains("NaN")),
        "{failed:?}"
    );
    w.rows();
    w.text = w.session.tokens().to_vec();
    w.read(&prompt[3..4]);
    w.read(&prompt[4..7]);
    w.rows();
}

/// A text that is told to stop between two tokens holds what it held, and goes on later.
pub fn cancelled(w: &mut Writer) {
    let engine = w.session.engine().clone();
    let cancel = Cancel::default();
    w.text = ids(&engine, 25, 1);
    let options = GenerateOptions {
        cancel: cancel.clone(),
        ..w.options()
    };
    let mut run = Generation::begin(&mut w.session, &w.text, options).unwrap();
    for _ in 0..8 {
        assert!(w.token(&mut run));
    }
    cancel.cancel();
    assert!(!w.token(&mut run));
    let fed = w.session.feed(&[5], None, &cancel, &mut ());
    assert!(matches!(fed, Err(EngineError::Cancelled)), "{fed:?}");
    w.rows();
    w.write(&[], 6);
    w.rows();
}

/// What is asked for is now and then another token than the one that was drawn.
pub fn surprises(w: &mut Writer) {
    let engine = w.session.engine().clone();
    let (none, greedy) = (Cancel::default(), SamplerParams::default());
    w.read(&ids(&engine, 19, 1));
    for i in 0..14u32 {
        let drawn = w.session.sampled().map_or(3, |s| s.token);
        let token = if i % 5 == 4 { (drawn + 1) % 100 + 2 } else { drawn };
        w.session.go_on(token, &greedy, false, &none, &mut ()).unwrap();
        w.steps += 1;
        w.ahead += usize::from(w.session.output().ahead_nanos.is_some());
        let s = w.session.sampled().unwrap();
        w.seen.push(Seen::Token(s.token, s.logprob.to_bits(), None));
    }
    // Ids are checked as ever.
    let e = w.session.go_on(1 << 30, &greedy, false, &none, &mut ()).unwrap_err();
    assert!(!matches!(e, EngineError::Exec(ExecError::Device(_))), "{e}");
    w.read(&ids(&engine, 4, 2));
    w.rows();
}
