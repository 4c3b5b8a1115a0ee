//! Two recipes write their own texts, as a client sees it; and what comparisons and free runs refuse.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::toy::Toy;
use common::{Client, Room, send, spec};
use protocol::*;

fn json(edit: &str) -> RecipeRef {
    let (slot, choice) = edit.split_once('=').unwrap();
    RecipeRef::Json(format!("{{\"schema\":1,\"set\":{{\"{slot}\":\"{choice}\"}}}}"))
}

fn free(tokens: u64, mode: FreeMode) -> FreeSpec {
    FreeSpec {
        a: RecipeRef::Own,
        b: json("layers.*.kv_cache=fp8_b64"),
        prompt: CompareText::Given("a text to go on from".into()),
        tokens,
        temperature: 0.7,
        seed: 5,
        mode,
    }
}

fn begun(c: &mut Client, spec: FreeSpec) -> JobId {
    match c.ask(Request::FreeRun(spec)) {
        Ok(Reply::Job(job)) => job,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn view(c: &mut Client, job: JobId, since: [u64; 2]) -> FreeView {
    match c.ask(Request::GetFreeRun { job, since }) {
        Ok(Reply::FreeRun(view)) => *view,
        other => panic!("{other:?}"),
    }
}

fn toy() -> Toy {
    Toy {
        chat: false,
        ..Toy::default()
    }
}

#[test]
fn both_modes_give_the_same_texts_and_a_stopped_run_keeps_what_it_wrote() {
    let room = Room::new();
    let mut c = room.with_toy(&toy());
    let all = [FreeMode::Lockstep, FreeMode::InTurn].map(|mode| {
        let job = begun(&mut c, free(60, mode));
        c.until("the end", |c| c.job_over(job));
        let mut v = view(&mut c, job, [0, 0]);
        assert_eq!((v.model.as_str(), v.sides[0].tokens.len()), ("toy", 60));
        // A client that has some tokens gets the others.
        let rest = view(&mut c, job, [50, 1000]);
        assert_eq!(
            (rest.from, rest.sides[0].tokens.len(), rest.sides[1].tokens.len()),
            ([50, 60], 10, 0)
        );
        assert_eq!(rest.sides[0].tokens, v.sides[0].tokens[50..]);
        for s in &mut v.sides {
            assert!(s.decode_tokens_per_s > 0.0);
            s.decode_tokens_per_s = 0.0;
        }
        (v.sides, v.kl, v.split, v.blocks, v.rejoin)
    });
    assert_eq!(all[0], all[1]);

    let job = begun(&mut c, free(500_000, FreeMode::Lockstep));
    c.until("some tokens", |c| {
        c.told.jobs.iter().any(|j| j.id == job && j.done > 20)
    });
    let early = view(&mut c, job, [0, 0]);
    assert!(!early.sides[1].tokens.is_empty() && early.sides[0].finish == FinishView::Running);
    let e = c.ask(send("now", spec(1))).unwrap_err();
    assert!(e.what.contains("A free run is running"), "{e}");
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    let kept = view(&mut c, job, [0, 0]);
    for (now, then) in kept.sides.iter().zip(&early.sides) {
        assert_eq!(
            now.tokens[..then.tokens.len()],
            then.tokens[..],
            "what was shown never changes"
        );
    }
    c.written(send("now", spec(1)));
    let e = c
        .ask(Request::GetFreeRun {
            job: JobId(999),
            since: [0, 0],
        })
        .unwrap_err();
    assert!(e.what.contains("left no free run"), "{e}");
}

/// One clear sentence each, and the host goes on.
#[test]
fn comparisons_and_free_runs_that_cannot_be_are_refused_in_words() {
    let room = Room::new();
    let mut c = room.with_toy(&Toy { context: 64, ..toy() });
    let foreign = r#"{"schema":1,"model":"deepseek_v4 7x256","layers":[]}"#;
    let recipes = [
        (RecipeRef::Json(foreign.into()), "recipe"),
        (RecipeRef::Json("{".into()), "recipe B"),
        (json("layers.3.kv_cache=bf16"), "layer 3 is out of range"),
        (json("layers.1-9.kv_cache=bf16"), "out of range"),
        (json("layers.0.kv_cache=fp8_model1"), "512"),
        (json("layers.0.attention=top_k:k=0"), "k"),
        (json("layers.0.attention=sliding_window:windows=3"), "windows"),
        (json("weights.nose=bf16"), "names no slot"),
    ];
    let given = |n: usize| CompareText::Given("x".repeat(n));
    for (b, words) in recipes {
        let compare = Request::Compare(CompareSpec {
            a: RecipeRef::Own,
            b: b.clone(),
            text: given(20),
            positions: 20,
            isolate: false,
        });
        let write = Request::FreeRun(FreeSpec {
            b: b.clone(),
            ..free(4, FreeMode::Lockstep)
        });
        for request in [compare, write] {
            let JobState::Failed(e) = c.job(request) else {
                panic!("{b:?}")
            };
            assert_eq!(e.kind, ErrorKind::Input, "{b:?}: {e}");
            assert!(
                e.to_string().to_lowercase().contains(&words.to_lowercase()),
                "{b:?}: {e}"
            );
        }
    }
    for (wanted, words) in [
        (free(0, FreeMode::InTurn), "accepted: 1 to"),
        (free(200, FreeMode::InTurn), "made for 64"),
        (
            FreeSpec {
                prompt: given(200),
                ..free(4, FreeMode::Lockstep)
            },
            "made for 64",
        ),
        (
            FreeSpec {
                prompt: given(0),
                ..free(4, FreeMode::Lockstep)
            },
            "at least 1",
        ),
        (
            FreeSpec {
                prompt: CompareText::Current,
                ..free(4, FreeMode::Lockstep)
            },
            "at least 1",
        ),
        (
            FreeSpec {
                temperature: f32::INFINITY,
                ..free(4, FreeMode::Lockstep)
            },
            "temperature",
        ),
    ] {
        let told = format!("{wanted:?}");
        let JobState::Failed(e) = c.job(Request::FreeRun(wanted)) else {
            panic!("{told}")
        };
        assert_eq!(e.kind, ErrorKind::Input, "{told}: {e}");
        assert!(e.to_string().to_lowercase().contains(words), "{told}: {e}");
    }
    // A text longer than the context is cut to it, and that is said.
    let long = Request::Compare(CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        text: given(500),
        positions: 400,
        isolate: false,
    });
    let Reply::Job(job) = c.ask(long).unwrap() else {
        panic!()
    };
    c.until("the end", |c| c.job_over(job));
    let Reply::Compared(r) = c.ask(Request::GetComparison(job)).unwrap() else {
        panic!()
    };
    assert_eq!(r.tokens.len(), 64);
    assert!(
        r.notes.iter().any(|n| n.contains("the checkpoint was made for 64")),
        "{:?}",
        r.notes
    );
    c.written(send("now", spec(1)));
}
