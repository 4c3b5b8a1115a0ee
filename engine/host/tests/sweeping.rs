//! Many recipes against one, as a client sees it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::toy::Toy;
use common::{Client, Room, send, spec};
use protocol::*;

fn sweep_spec(axes: &[&str], text: CompareText) -> SweepSpec {
    SweepSpec {
        a: RecipeRef::Own,
        text,
        positions: 100_000,
        axes: axes.iter().map(ToString::to_string).collect(),
        presets: false,
        per_layer: true,
        budget: None,
    }
}

fn begun(c: &mut Client, spec: SweepSpec) -> JobId {
    match c.ask(Request::Sweep(spec)) {
        Ok(Reply::Job(job)) => job,
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn view(c: &mut Client, job: JobId, since: u64) -> SweepView {
    match c.ask(Request::GetSweep { job, since }) {
        Ok(Reply::Sweep(view)) => *view,
        other => panic!("{other:?}"),
    }
}

fn rows(view: &SweepView) -> Vec<SweepRow> {
    view.cells.iter().filter_map(|(_, c)| c.row().cloned()).collect()
}

fn toy() -> Toy {
    Toy {
        chat: false,
        ..Toy::default()
    }
}

#[test]
fn a_sweep_has_the_figures_of_comparisons_and_a_recommendation_that_can_be_put_in_force() {
    let room = Room::new();
    let mut c = room.with_toy(&toy());
    c.written(send("a text to compare on", spec(60)));
    let mut wanted = sweep_spec(
        &["layers.*.kv_cache=f32,bf16,fp8_b64", "weights.lm_head=own,fp8"],
        CompareText::Current,
    );
    wanted.budget = Some(10.0);
    let job = begun(&mut c, wanted.clone());
    c.until("the end", |c| c.job_over(job));
    let all = view(&mut c, job, 0);
    assert_eq!((all.model.as_str(), all.spec.clone()), ("toy", wanted));
    assert_eq!(all.cells.len(), all.total as usize);
    assert_eq!(rows(&all).len(), all.cells.len(), "{all:?}");
    assert_eq!(all.cells[0].1.group, SweepGroup::Base);
    assert_eq!(rows(&all)[0].kl.max, 0.0);
    let of = |group| all.cells.iter().filter(|(_, c)| c.group == group).count();
    // f32 x own is A. Six single changes of the cache, one of the output layer (which is a combination, too).
    assert_eq!((of(SweepGroup::Grid), of(SweepGroup::Single)), (5, 7));
    assert!(
        all.command
            .contains("--sweep 'layers.*.kv_cache=f32,bf16,fp8_b64' --sweep weights.lm_head=own,fp8")
    );
    // Nothing changed since: no cells are sent again.
    let later = view(&mut c, job, all.revision);
    assert!(later.cells.is_empty() && later.total == all.total);

    let SweepPick::Cell(best) = all.pick else {
        panic!("{:?}", all.pick)
    };
    let row = all.cells[best as usize].1.row().unwrap().clone();
    assert!(row.kl.mean <= 10.0 && row.step_bytes < rows(&all)[0].step_bytes);
    let Reply::Text(json) = c.ask(Request::GetSweepRecipe { job, cell: best }).unwrap() else {
        panic!()
    };
    let compare = Request::Compare(CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Json(json.clone()),
        text: CompareText::Current,
        positions: 100_000,
        isolate: false,
    });
    let Reply::Job(alone) = c.ask(compare).unwrap() else {
        panic!()
    };
    c.until("the end", |c| c.job_over(alone));
    let Reply::Compared(r) = c.ask(Request::GetComparison(alone)).unwrap() else {
        panic!()
    };
    assert_eq!(
        (r.sides[1].hash.clone(), r.kl, r.same_top1),
        (row.hash, row.kl, row.same_top1)
    );
    assert_eq!(r.sides[1].kv.total(), row.kv);
    assert!(matches!(c.ask(Request::SetRecipe(json)), Ok(Reply::Recipe(_))));
    let e = c.ask(Request::GetSweepRecipe { job, cell: 999 }).unwrap_err();
    assert!(e.what.contains("left no sweep with this recipe"), "{e}");
}

#[test]
fn a_stopped_sweep_keeps_what_it_measured_and_goes_on_from_there() {
    let room = Room::new();
    let mut c = room.with_toy(&toy());
    let text = CompareText::Given("a long text to read again and again ".repeat(60));
    let wanted = sweep_spec(&["layers.*.kv_cache=bf16,fp8_b64", "weights.lm_head=own,fp8"], text);
    let job = begun(&mut c, wanted.clone());
    // More recipes than fit one pass: the first eight are done while the others are still being read.
    c.until("the beginning", |c| {
        c.told.jobs.iter().any(|j| j.id == job && j.done > 0)
    });
    let mut seen = 0;
    let mut live = false;
    let first = loop {
        let v = view(&mut c, job, seen);
        seen = v.revision;
        live |= v.cells.iter().any(
            |(_, c)| matches!(c.state, SweepState::Reading { positions, kl_mean } if positions > 0 && kl_mean >= 0.0),
        );
        let done = rows(&v);
        if !done.is_empty() {
            break done;
        }
        assert!(!c.job_over(job), "{:?}", c.told.jobs);
    };
    assert!(live, "figures arrive while recipes are read");
    let e = c.ask(send("now", spec(1))).unwrap_err();
    assert!(e.what.contains("A sweep is running"), "{e}");
    c.ask(Request::GetPlan { tokens: 1, context: 0 }).unwrap();
    c.done(Request::CancelJob(job));
    c.until("the end", |c| c.job_over(job));
    let stopped = view(&mut c, job, 0);
    let kept = rows(&stopped);
    assert!(
        kept.len() >= first.len() && kept.len() < stopped.total as usize,
        "{}",
        kept.len()
    );

    let again = begun(&mut c, wanted);
    c.until("the end", |c| c.job_over(again));
    let all = view(&mut c, again, 0);
    assert_eq!(rows(&all).len(), all.total as usize);
    let taken: Vec<SweepRow> = all
        .cells
        .iter()
        .filter_map(|(_, c)| match &c.state {
            SweepState::Done { row, known: true } => Some((**row).clone()),
            _ => None,
        })
        .collect();
    assert_eq!(taken, kept, "speeds included: they were not measured again");
}

#[test]
fn what_cannot_be_swept_is_said_at_once() {
    let room = Room::new();
    let mut c = room.with_toy(&toy());
    let text = || CompareText::Given("a text".into());
    let plain = |axes: &[&str]| sweep_spec(axes, text());
    let lm_head = "weights.lm_head=fp8";
    let with = |f: fn(&mut SweepSpec)| {
        let mut s = plain(&[lm_head]);
        f(&mut s);
        s
    };
    let many = format!("weights.lm_head={}", vec!["fp8"; 70].join(","));
    for (wanted, words) in [
        (plain(&[]), "nothing to sweep"),
        (plain(&["layers.*.kv_cache"]), "found no `=`"),
        (plain(&["layers.77.ffn=own"]), "out of range"),
        (plain(&["layers.*.kv_cache=int3"]), "no variant `int3`"),
        (plain(&["layers.*.attention=top_k:k=0"]), "k"),
        (plain(&[&many, &many]), "4900 combinations"),
        (plain(&["layers.*.kv_cache=fp8_model1"]), "takes none of these"),
        (with(|s| s.budget = Some(-1.0)), "budget: found -1"),
        (with(|s| s.budget = Some(f64::NAN)), "budget: found NaN"),
        (with(|s| s.text = CompareText::Current), "at least 2"),
        (with(|s| s.text = CompareText::Given(String::new())), "at least 2"),
        (with(|s| s.positions = 0), "at least 2"),
        (
            with(|s| s.a = RecipeRef::Json("{\"schema\":1,\"set\":{\"layers.9.ffn\":\"own\"}}".into())),
            "layer",
        ),
        (with(|s| s.a = RecipeRef::Json("[".into())), "recipe A"),
    ] {
        let told = format!("{wanted:?}");
        let JobState::Failed(e) = c.job(Request::Sweep(wanted)) else {
            panic!("{told}")
        };
        assert_eq!(e.kind, ErrorKind::Input, "{told}: {e}");
        let said = e.to_string().to_lowercase();
        assert!(said.contains(&words.to_lowercase()), "{told}: {e}");
    }
    let mut idle = room.client();
    idle.done(Request::TakeOver);
    idle.done(Request::CloseModel);
    let e = idle.ask(Request::Sweep(plain(&[lm_head]))).unwrap_err();
    assert!(e.what.contains("No model"), "{e}");
}
