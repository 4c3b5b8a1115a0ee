//! Generations driven call by call.

use std::sync::Arc;

use super::*;
use crate::goldens::engine;
use crate::{Engine, SessionOptions};

fn session(engine: &Arc<Engine>) -> Session {
    engine.session(engine.recipe(), SessionOptions::default()).unwrap()
}

fn options(n: u64) -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(n),
        ignore_eos: true,
        sampler: Some(SamplerParams {
            temperature: 0.9,
            seed: 3,
            logprobs: 4,
            ..SamplerParams::default()
        }),
        ..GenerateOptions::default()
    }
}

fn prompt(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i * 17 + 3) % 150).collect()
}

/// Runs to the end; every token.
fn all(run: &mut Generation, session: &mut Session) -> Vec<Produced> {
    let mut out = Vec::new();
    while let Step::Token(t) = run.step(session).unwrap() {
        out.push(t);
    }
    out
}

#[test]
fn call_by_call_is_the_same_as_at_once() {
    for name in ["tiny-v4", "tiny-llama"] {
        let engine = engine(name);
        let ids = prompt(300);
        let mut events = Vec::new();
        let whole = session(&engine)
            .generate_ids(&ids, &options(12), &mut |e: &TokenEvent<'_>| {
                events.push((e.index, e.token, e.logprob, e.top.to_vec()));
            })
            .unwrap();
        let mut s = session(&engine);
        let mut run = Generation::begin(&mut s, &ids, options(12)).unwrap();
        let mut seen = Vec::new();
        loop {
            let p = run.prefill_step(&mut s).unwrap();
            assert_eq!(
                p.record.as_ref().map(|r| u64::from(r.tokens)),
                Some(p.done - seen.last().unwrap_or(&0))
            );
            seen.push(p.done);
            if p.is_done() {
                break;
            }
        }
        assert_eq!(seen, [128, 256, 300]);
        assert!(
            run.prefill_step(&mut s).unwrap().record.is_none(),
            "nothing is left to do"
        );
        let tokens = all(&mut run, &mut s);
        let got: Vec<_> = tokens
            .iter()
            .map(|t| (t.index, t.token, t.logprob, t.top.clone()))
            .collect();
        assert_eq!(got, events);
        assert!(
            tokens.iter().all(|t| t.top.len() == 4),
            "alternatives from the first token on"
        );
        assert!(tokens[0].record.is_none() && tokens[1..].iter().all(|t| t.record.is_some()));
        assert!(tokens.iter().enumerate().all(|(i, t)| t.position == 300 + i as u64));
        assert_eq!(run.ended(), Some(Finish::MaxTokens));
        let out = run.finish();
        assert_eq!(
            (&out.tokens, &out.text, out.finish),
            (&whole.tokens, &whole.text, Finish::MaxTokens)
        );
        assert_eq!((out.summary.prompt_tokens, out.summary.tokens), (300, 12));
    }
}

#[test]
fn a_swap_takes_effect_from_the_next_step() {
    let engine = engine("tiny-v4");
    let ids = prompt(40);
    let edit = "layers.*.attention=top_k:k=1";
    let run_with = |swap_at: Option<usize>| {
        let mut s = session(&engine);
        let mut run = Generation::begin(&mut s, &ids, options(8)).unwrap();
        let mut plans = Vec::new();
        let mut tokens = Vec::new();
        while let Step::Token(t) = run.step(&mut s).unwrap() {
            plans.push(t.record.map(|r| r.plan));
            tokens.push((t.token, t.logprob));
            if Some(tokens.len()) == swap_at {
                s.set(edit).unwrap();
            }
        }
        (tokens, plans)
    };
    let (plain, plans) = run_with(None);
    assert!(plans[1..].windows(2).all(|w| w[0] == w[1]));
    let (swapped, plans) = run_with(Some(4));
    assert_eq!(swapped[..4], plain[..4]);
    assert_ne!(
        swapped[4].1, plain[4].1,
        "the fifth token is drawn under the new recipe"
    );
    assert!(plans[1..4].iter().all(|p| *p == plans[1]) && plans[4] != plans[3]);
}

#[test]
fn stopping_samplers_and_branches() {
    let engine = engine("tiny-llama");
    let mut s = session(&engine);
    let ids = prompt(20);
    let mut run = Generation::begin(&mut s, &ids, options(50)).unwrap();
    let first: Vec<Produced> = (0..5)
        .map(|_| match run.step(&mut s).unwrap() {
            Step::Token(t) => t,
            Step::End(f) => panic!("{f:?}"),
        })
        .collect();
    // Greedy from here on: the likeliest alternative is taken.
    run.set_sampler(SamplerParams {
        temperature: 0.0,
        ..*run.sampler()
    })
    .unwrap();
    let Step::Token(t) = run.step(&mut s).unwrap() else {
        panic!()
    };
    assert_eq!(t.token, t.top[0].0);
    assert!(
        run.set_sampler(SamplerParams {
            top_p: 7.0,
            ..SamplerParams::default()
        })
        .is_err()
    );
    run.stop();
    assert!(matches!(run.step(&mut s).unwrap(), Step::End(Finish::Cancelled)));
    let out = run.finish();
    assert_eq!((out.tokens.len(), out.finish), (6, Finish::Cancelled));
    // A branch: two tokens are kept, the third is another one.
    let other = first[2].top.iter().find(|(t, _)| *t != first[2].token).unwrap().0;
    let mut branch = ids.clone();
    branch.extend([first[0].token, first[1].token, other]);
    let mut run = Generation::begin(&mut s, &branch, options(6)).unwrap();
    let tokens: Vec<u32> = all(&mut run, &mut s).iter().map(|t| t.token).collect();
    assert_eq!(s.tokens()[..23], branch);
    let fresh = session(&engine)
        .generate_ids(&branch, &options(6), &mut |_: &TokenEvent<'_>| {})
        .unwrap();
    assert_eq!(tokens, fresh.tokens);
}

#[test]
fn what_a_session_holds_is_not_processed_again() {
    for name in ["tiny-llama", "tiny-v4"] {
        let engine = engine(name);
        let mut s = session(&engine);
        let ids = prompt(200);
        let mut run = Generation::begin(&mut s, &ids, options(4)).unwrap();
        let tokens = all(&mut run, &mut s);
        // The text so far and one more: only what is new is fed.
        let mut longer = ids.clone();
        longer.extend(tokens.iter().map(|t| t.token));
        longer.push(7);
        let run = Generation::begin(&mut s, &longer, options(1)).unwrap();
        assert_eq!(run.prefilled(), (0, 2), "the last token drawn, and the new one");
        // Going back: replays are counted, and the text equals that of a session that never went further.
        let mut again = Generation::begin(&mut s, &ids[..150], options(5)).unwrap();
        let (_, total) = again.prefilled();
        assert!(total > 0 && total <= 150);
        let back: Vec<u32> = all(&mut again, &mut s).iter().map(|t| t.token).collect();
        let mut fresh = session(&engine);
        // The same chunks: the last prompt token was processed on its own there.
        fresh
            .feed_chunks(&ids[..149], &[149], &Default::default(), &mut ())
            .unwrap();
        let mut run = Generation::begin(&mut fresh, &ids[..150], options(5)).unwrap();
        let want: Vec<u32> = all(&mut run, &mut fresh).iter().map(|t| t.token).collect();
        assert_eq!(back, want, "{name}");
    }
}

#[test]
fn mistakes_leave_the_session_alone() {
    let engine = engine("tiny-llama");
    let mut s = session(&engine);
    s.feed(&[1, 2, 3], None, &Default::default(), &mut ()).unwrap();
    let mut begin = |ids: &[u32], o: GenerateOptions| {
        let e = Generation::begin(&mut s, ids, o).err().map(|e| e.to_string());
        assert_eq!(s.tokens(), [1, 2, 3]);
        e.unwrap()
    };
    assert!(begin(&[], options(1)).contains("empty"));
    assert!(begin(&[1, 9999], options(1)).contains("outside the vocabulary"));
    assert!(begin(&[1; 600], options(1)).contains("context overflow"));
    assert!(begin(&[1], options(5000)).contains("context overflow"));
    // Somebody else fed the session.
    let mut run = Generation::begin(&mut s, &[1, 2, 3, 4], options(5)).unwrap();
    run.step(&mut s).unwrap();
    s.feed(&[5], None, &Default::default(), &mut ()).unwrap();
    let e = run.step(&mut s).unwrap_err().to_string();
    assert!(e.contains("in between"), "{e}");
    assert_eq!(run.finish().tokens.len(), 1);
}

#[test]
fn cancelling_in_the_prompt() {
    let engine = engine("tiny-v4");
    let mut s = session(&engine);
    let o = options(5);
    let cancel = o.cancel.clone();
    let mut run = Generation::begin(&mut s, &prompt(300), o).unwrap();
    run.prefill_step(&mut s).unwrap();
    cancel.cancel();
    let p = run.prefill_step(&mut s).unwrap();
    assert_eq!((p.done, p.is_done(), s.position()), (128, true, 128));
    assert!(matches!(run.step(&mut s).unwrap(), Step::End(Finish::Cancelled)));
    assert_eq!(run.finish().summary.tokens, 0);
}

/// Texts behind one prompt, which one session reads, are what each is in a session of its own; forks go back as it does.
#[test]
fn one_prompt_is_read_once() {
    for name in ["tiny-v4", "tiny-llama"] {
        let engine = engine(name);
        let seeded = |i: u64| {
            let mut options = options(6 + i);
            if let Some(s) = &mut options.sampler {
                s.seed = i;
            }
            options
        };
        let ids = prompt(300);
        let mut runs = Generation::begin_together(session(&engine), &ids, (0..3).map(seeded).collect()).unwrap();
        let chunks = |s: &Session| s.schedule().iter().map(|t| t.tokens).collect::<Vec<_>>();
        assert!(runs.iter().all(|(_, s)| chunks(s) == [128, 128, 44]));
        let mut seen = vec![Vec::new(); runs.len()];
        while runs.iter().any(|(run, _)| run.ended().is_none()) {
            for (all, step) in seen.iter_mut().zip(Generation::step_together(&mut runs).unwrap()) {
                if let Step::Token(t) = step {
                    all.push((t.token, t.logprob.to_bits(), t.top));
                }
            }
        }
        for (i, ((run, mut fork), seen)) in runs.into_iter().zip(seen).enumerate() {
            let mut s = session(&engine);
            let mut alone = Generation::begin(&mut s, &ids, seeded(i as u64)).unwrap();
            let want = all(&mut alone, &mut s).into_iter();
            let want: Vec<_> = want.map(|t| (t.token, t.logprob.to_bits(), t.top)).collect();
            assert_eq!(seen, want, "{name}, text {i}");
            assert_eq!(run.finish().text, alone.finish().text);
            for s in [&mut fork, &mut s] {
                s.truncate(270, &Cancel::default()).unwrap();
                s.feed(&[7, 8], None, &Cancel::default(), &mut ()).unwrap();
            }
            assert_eq!(
                fork.output().logits,
                s.output().logits,
                "{name}, text {i} after a rewind"
            );
        }
        let none = Generation::begin_together(session(&engine), &ids, Vec::new())
            .err()
            .unwrap();
        assert!(none.to_string().contains("found 0, accepted: 1 or more"), "{none}");
        // Stopped in the prompt.
        let stopped = seeded(0);
        stopped.cancel.cancel();
        let mut runs = Generation::begin_together(session(&engine), &ids, vec![stopped, seeded(1)]).unwrap();
        assert_eq!(runs.len(), 1);
        let steps = Generation::step_together(&mut runs).unwrap();
        assert!(matches!(steps[0], Step::End(Finish::Cancelled)));
    }
}

/// Texts of different lengths written together are what each is alone; one that ends leaves the others to go on.
#[test]
fn together_is_as_alone() {
    for name in ["tiny-v4", "tiny-llama"] {
        let engine = engine(name);
        let seeded = |i: usize| {
            let mut options = options([9, 14, 5][i]);
            if let Some(s) = &mut options.sampler {
                s.seed = i as u64;
            }
            options
        };
        let lengths = [3, 140, 20];
        let begin = |i: usize| {
            let mut s = session(&engine);
            (Generation::begin(&mut s, &prompt(lengths[i]), seeded(i)).unwrap(), s)
        };
        let mut runs: Vec<_> = (0..3).map(begin).collect();
        let mut seen = vec![Vec::new(); 3];
        loop {
            let steps = Generation::step_together(&mut runs).unwrap();
            if steps.iter().all(|s| matches!(s, Step::End(Finish::MaxTokens))) {
                break;
            }
            for (all, step) in seen.iter_mut().zip(steps) {
                if let Step::Token(t) = step {
                    assert_eq!(t.record.is_some(), t.index > 0);
                    all.push((t.token, t.logprob.to_bits(), t.top));
                }
            }
        }
        for (i, seen) in seen.iter().enumerate() {
            let (mut run, mut s) = begin(i);
            let alone = all(&mut run, &mut s);
            let alone: Vec<_> = alone
                .into_iter()
                .map(|t| (t.token, t.logprob.to_bits(), t.top))
                .collect();
            assert_eq!(*seen, alone, "{name}, text {i}");
        }
        // Stopped together.
        let mut runs: Vec<_> = (0..2).map(begin).collect();
        Generation::step_together(&mut runs).unwrap();
        runs[0].0.options.cancel.cancel();
        let steps = Generation::step_together(&mut runs).unwrap();
        assert!(
            steps.iter().all(|s| matches!(s, Step::End(Finish::Cancelled))),
            "{steps:?}"
        );
    }
}
