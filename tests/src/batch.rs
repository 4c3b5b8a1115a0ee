//! Several sequences taken through steps together, against the same ones alone. Stories that the emulator's tests and the
//! program for GPUs share.

use std::sync::Arc;

use engine::{Cancel, Engine, EngineError, Part, Session, SessionOptions};
use kernels::cpu::sample::sample;

use crate::ahead::{ids, samplers};
use crate::goldens::{argmax, max_abs};

/// Margin of the two likeliest tokens below which the choice is a matter of rounding.
const MARGIN: f32 = 1e-3;

/// A sequence: its session, and the logits behind its prompt and behind every token since.
pub struct Sequence {
    /// The session.
    pub session: Session,
    /// Tokens of the prompt.
    prompt: usize,
    /// Logits, one row for each step.
    pub logits: Vec<Vec<f32>>,
}

impl Sequence {
    /// A sequence that has read `n` tokens.
    pub fn read(engine: &Arc<Engine>, n: usize, salt: usize) -> Self {
        let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        session
            .feed(&ids(engine, n, salt), None, &Cancel::default(), &mut ())
            .unwrap();
        let logits = vec![session.output().logits.clone()];
        Self {
            session,
            prompt: n,
            logits,
        }
    }

    /// Another one that goes on from here.
    fn fork(&mut self) -> Self {
        Self {
            session: self.session.fork(&Cancel::default()).unwrap(),
            prompt: self.prompt,
            logits: self.logits.clone(),
        }
    }

    fn next(&self) -> u32 {
        argmax(self.logits.last().unwrap()) as u32
    }

    /// Bits of all logits so far.
    pub fn bits(&self) -> Vec<u32> {
        self.logits.iter().flatten().map(|v| v.to_bits()).collect()
    }
}

/// Sequences of these lengths; number i of the list has salt i.
pub fn read(engine: &Arc<Engine>, lengths: &[usize]) -> Vec<Sequence> {
    let each = lengths.iter().enumerate();
    each.map(|(i, n)| Sequence::read(engine, *n, i + 1)).collect()
}

/// The likeliest token of each of some sequences, `n` times, all together. Returns why some were taken apart.
pub fn greedy(sequences: &mut [Sequence], n: usize) -> Option<String> {
    let mut why = None;
    for _ in 0..n {
        let tokens: Vec<u32> = sequences.iter().map(Sequence::next).collect();
        let each = sequences.iter_mut().zip(&tokens);
        let mut parts: Vec<Part<'_>> = each.map(|(s, &token)| part(&mut s.session, token)).collect();
        why = Session::step_together(&mut parts, &Cancel::default(), &mut |_, record, _| {
            assert_eq!(record.tokens, 1);
        })
        .unwrap();
        for s in sequences.iter_mut() {
            s.logits.push(s.session.output().logits.clone());
        }
    }
    why
}

/// Holds what sequences got together against what each gets alone, on the same tokens: logits within `tolerance`, and the same
/// likeliest token but for near ties. Returns the largest difference.
pub fn as_alone(engine: &Arc<Engine>, sequences: &[Sequence], tolerance: f32) -> f32 {
    let mut most = 0f32;
    for (i, together) in sequences.iter().enumerate() {
        let tokens = together.session.tokens();
        let mut alone = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        alone
            .feed(&tokens[..together.prompt], None, &Cancel::default(), &mut ())
            .unwrap();
        for (at, logits) in together.logits.iter().enumerate() {
            if at > 0 {
                let token = tokens[together.prompt + at - 1];
                alone.feed(&[token], None, &Cancel::default(), &mut ()).unwrap();
            }
            let want = &alone.output().logits;
            let e = max_abs(logits, want);
            assert!(e <= tolerance, "sequence {i}, step {at}: logits differ by {e}");
            most = most.max(e);
            let (ours, theirs) = (argmax(logits), argmax(want));
            let margin = want[theirs] - want[ours];
            assert!(
                margin < MARGIN,
                "sequence {i}, step {at}: token {ours}, alone {theirs}, by {margin}"
            );
        }
    }
    most
}

/// Sequences of different lengths, `n` steps: as alone within `tolerance`, and [`same_bits`]. Returns a line about it.
pub fn lengths(engine: &Arc<Engine>, n: usize, tolerance: f32) -> String {
    let three = same_bits(engine, n);
    let e = as_alone(engine, &three, tolerance);
    format!("{n} steps of 3 sequences: largest difference of a logit {e:.2e}")
}

/// Sequences of different lengths, `n` steps: the same bits twice, whoever and however many the others are. Returns three.
pub fn same_bits(engine: &Arc<Engine>, n: usize) -> Vec<Sequence> {
    let all = [5, 12, 41];
    let mut three = read(engine, &all);
    assert_eq!(greedy(&mut three, n), None);
    let mut again = read(engine, &all);
    greedy(&mut again, n);
    for (i, (a, b)) in three.iter().zip(&again).enumerate() {
        assert!(a.bits() == b.bits(), "sequence {i}: other bits the second time");
    }
    // By itself, with another, in the middle of eight.
    for others in [&[][..], &[33], &[3, 9, 27, 7, 64, 2, 18]] {
        let each = others.iter().enumerate();
        let mut some: Vec<Sequence> = each.map(|(i, len)| Sequence::read(engine, *len, 20 + i)).collect();
        let place = others.len() / 2;
        some.insert(place, Sequence::read(engine, all[0], 1));
        assert_eq!(greedy(&mut some, n), None);
        let same = some[place].bits() == three[0].bits();
        assert!(same, "other bits beside {} others", others.len());
    }
    three
}

/// Sequences end one by one, join again, and go on alone in between: what one gets does not change with the others.
pub fn come_and_go(engine: &Arc<Engine>, tolerance: f32) {
    let mut stays = read(engine, &[9, 20, 30]);
    greedy(&mut stays, 12);
    let mut goes = read(engine, &[9, 20, 30]);
    greedy(&mut goes, 4);
    greedy(&mut goes[..2], 4);
    greedy(&mut goes[..1], 4);
    for (i, steps) in [(0, 12), (1, 8), (2, 4)] {
        let want = &stays[i].logits[..=steps];
        assert!(goes[i].logits == want, "sequence {i} of those that end");
    }
    greedy(&mut goes[1..], 4);
    assert!(goes[1].logits == stays[1].logits, "a sequence that went on later");
    as_alone(engine, &stays, tolerance);
    // Steps alone in between, a rewind, and steps together again.
    let s = &mut goes[2].session;
    let position = s.position();
    s.feed(&ids(engine, 3, 7), None, &Cancel::default(), &mut ()).unwrap();
    s.truncate(position, &Cancel::default()).unwrap();
    greedy(&mut goes, 2);
    as_alone(engine, &goes, tolerance);
}

/// What was taken together is taken so again when a text goes back: the bits of one that never went further.
pub fn go_back(engine: &Arc<Engine>) {
    let mut stays = read(engine, &[9, 20]);
    greedy(&mut stays, 12);
    let mut goes = read(engine, &[9, 20]);
    greedy(&mut goes, 9);
    for (s, other) in goes.iter_mut().zip(&stays) {
        let length = s.prompt as u64 + 4;
        s.session.truncate(length, &Cancel::default()).unwrap();
        s.logits.truncate(5);
        assert!(
            s.session.output().logits == other.logits[4],
            "the last token taken again"
        );
    }
    greedy(&mut goes, 8);
    for (i, (a, b)) in goes.iter().zip(&stays).enumerate() {
        assert!(a.bits() == b.bits(), "sequence {i} that went back: other bits");
    }
}

/// Forks of a sequence give the bits of one that read the same prompt, of each of these lengths: forks in mid-text, of a sequence
/// that goes on and back in between.
pub fn forks(engine: &Arc<Engine>, prompts: &[usize]) {
    for &n in prompts {
        let mut of_their_own = read(engine, &[n]);
        greedy(&mut of_their_own, 9);
        let want = of_their_own[0].bits();
        let mut all = read(engine, &[n]);
        for others in 1..3 {
            greedy(&mut all, 3);
            let fork = all[0].fork();
            all.push(fork);
            let first = &mut all[0];
            let position = first.session.position();
            let more = ids(engine, 2, 7);
            first.session.feed(&more, None, &Cancel::default(), &mut ()).unwrap();
            first.session.truncate(position, &Cancel::default()).unwrap();
            assert_eq!(all.len(), 1 + others);
        }
        greedy(&mut all, 3);
        for (i, s) in all.iter().enumerate() {
            assert!(s.bits() == want, "prompt of {n}, fork {i}: other bits");
        }
    }
}

/// Each sequence draws by its own settings, on the device: what the CPU draws from the logits that the same steps give without.
pub fn draws(engine: &Arc<Engine>, n: usize) {
    let lengths = [7, 19, 28];
    let read_all = || read(engine, &lengths);
    let (mut drawing, mut looking) = (read_all(), read_all());
    let settings = samplers();
    let mut next: Vec<u32> = drawing.iter().map(Sequence::next).collect();
    for step in 0..n {
        let take = |all: &mut [Sequence], draw: bool| {
            let each = all.iter_mut().zip(&next).zip(&settings);
            let mut parts: Vec<Part<'_>> = each
                .map(|((s, &token), sampler)| Part {
                    session: &mut s.session,
                    token,
                    sampler: draw.then_some(sampler),
                })
                .collect();
            Session::step_together(&mut parts, &Cancel::default(), &mut |_, _, _| ()).unwrap();
        };
        take(&mut drawing, true);
        take(&mut looking, false);
        next.clear();
        for (i, (d, l)) in drawing.iter().zip(&looking).enumerate() {
            let drawn = d.session.sampled().unwrap();
            assert!(l.session.sampled().is_none());
            let history = l.session.tokens();
            let want = sample(&l.session.output().logits, &settings[i], history, history.len() as u64).unwrap();
            assert_eq!(drawn.token, want.token, "step {step} of sequence {i}");
            assert!(
                (drawn.logprob - want.logprob).abs() < 1e-4,
                "step {step} of sequence {i}"
            );
            next.push(drawn.token);
        }
    }
}

fn part(session: &mut Session, token: u32) -> Part<'_> {
    Part {
        session,
        token,
        sampler: None,
    }
}

/// What is refused is refused in a sentence and changes nothing; what cannot go together goes one after the other, and says
/// why.
pub fn refused_and_apart(engine: &Arc<Engine>, other: &Arc<Engine>) {
    let none = Cancel::default();
    let step = |parts: &mut [Part<'_>]| Session::step_together(parts, &none, &mut |_, _, _| ());
    let said = |found: Result<Option<String>, EngineError>, words: &[&str]| {
        let e = found.unwrap_err().to_string();
        assert!(words.iter().all(|w| e.contains(w)), "{e}");
    };
    let mut a = Sequence::read(engine, 5, 1).session;
    let mut b = Sequence::read(engine, 6, 2).session;
    let mut foreign = Sequence::read(other, 5, 1).session;
    let accepted = ["session 1", "accepted: sessions of one engine and one recipe"];
    said(step(&mut []), &["found 0, accepted: 1 or more"]);
    said(step(&mut [part(&mut a, 3), part(&mut foreign, 3)]), &accepted);
    let vocab = engine.facts().vocab as u32;
    said(
        step(&mut [part(&mut a, 3), part(&mut b, vocab)]),
        &["outside the vocabulary"],
    );
    b.set("layers.0.kv_cache=bf16").unwrap();
    said(step(&mut [part(&mut a, 3), part(&mut b, 3)]), &accepted);
    assert_eq!((a.position(), b.position()), (5, 6));
    none.cancel();
    let stopped = Session::step_together(&mut [part(&mut a, 3)], &none, &mut |_, _, _| ());
    assert!(matches!(stopped, Err(EngineError::Cancelled)), "{stopped:?}");
    assert_eq!(a.position(), 5);

    let mut nine = read(engine, &[3; 9]);
    let why = greedy(&mut nine, 2).expect("nine are too many");
    assert!(why.contains("at most 8 go together"), "{why}");
    let mut pair = read(engine, &[4, 8]);
    pair[1].session.set_trace(true);
    let why = greedy(&mut pair, 2).expect("a traced step");
    assert!(why.contains("timed by itself"), "{why}");
    assert!(!pair[1].session.times().is_empty());
    // One after the other is what each is alone.
    as_alone(engine, &pair, 0.0);
}
