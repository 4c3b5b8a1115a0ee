//! A recorded run is told again without an engine: the same text, figures and answers, and nothing else is computed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;

use common::*;
use host::recorded::Recorder;
use protocol::*;
use toy::Toy;

/// Records what a client asks and is told.
struct Recording<'a> {
    client: &'a mut Client,
    recorder: Recorder,
}

impl Recording<'_> {
    fn ask(&mut self, request: Request) -> Result<Reply, ErrorInfo> {
        let id = self.client.post(request.clone());
        self.recorder.asked(id, &request);
        let result = self.client.answer(id);
        let reply = HostFrame::Reply {
            id,
            result: result.clone().map(Box::new),
        };
        self.recorder.told(&reply).unwrap();
        result
    }

    /// What the client was told so far, as one update.
    fn told(&mut self) {
        let t = &self.client.told;
        let update = Update {
            state: t.state.clone().map(Box::new),
            tokens: t.tokens.clone(),
            steps: t.steps.clone(),
            last_step: t.last_step,
            jobs: t.jobs.clone(),
            events: t.events.clone(),
            ..Update::default()
        };
        self.recorder.told(&HostFrame::Update(Box::new(update))).unwrap();
    }
}

/// A short run on the toy, in a file; the text it ended with.
fn recorded(room: &Room, file: &Path) -> DocView {
    let mut client = room.with_toy(&Toy::default());
    let mut r = Recording {
        client: &mut client,
        recorder: Recorder::default(),
    };
    r.told();
    r.ask(Request::GetTree).unwrap();
    r.client.started(send("5", spec(6)));
    r.client.until("the end", |c| {
        c.told.events.iter().any(|e| matches!(e, Event::Finished { .. }))
    });
    r.told();
    r.ask(Request::GetPlan {
        tokens: 1,
        context: 128,
    })
    .unwrap();
    let Reply::Doc(doc) = r.ask(Request::GetDoc).unwrap() else {
        panic!()
    };
    let state = r.client.told.state.clone().unwrap();
    assert_eq!(
        r.recorder.save(file, &state.device.describe, "toy").unwrap(),
        file.metadata().unwrap().len()
    );
    doc
}

#[test]
fn a_run_is_told_again_and_left() {
    let room = Room::new();
    let file = room.path("x.m1run");
    let doc = recorded(&room, &file);
    let source = ModelSource::Path(file.to_str().unwrap().into());

    // Another host, which has no model.
    let other = Room::new();
    let mut c = other.client();
    let live = c.run();
    let Reply::Job(_) = c.ask(Request::OpenModel { source, context: 0 }).unwrap() else {
        panic!()
    };
    c.until("the recorded run", |c| c.recorded().is_some_and(|r| !r.is_empty()));
    assert!(c.recorded().unwrap().contains("toy on CPU"), "{:?}", c.recorded());
    assert_ne!(c.run(), live, "cursors of the host itself mean nothing here");
    c.until("its tokens", |c| c.told.tokens.len() == 6);
    c.until("its end", |c| {
        c.told.events.iter().any(|e| matches!(e, Event::Finished { .. }))
    });
    assert!(c.state().loaded().is_some() && c.state().driver);
    let Reply::Doc(again) = c.ask(Request::GetDoc).unwrap() else {
        panic!()
    };
    assert_eq!(again, doc);
    assert!(matches!(c.ask(Request::GetTree), Ok(Reply::Tree(t)) if !t.is_empty()));
    // The plan of a context that was not asked for then is that of the nearest.
    assert!(matches!(c.ask(Request::GetPlan { tokens: 1, context: 0 }), Ok(Reply::Plan(p)) if !p.ops.is_empty()));
    let e = c.ask(Request::GetPlan { tokens: 8, context: 0 }).unwrap_err();
    assert!(e.kind == ErrorKind::Refused && e.what.contains("not looked at"), "{e}");
    let e = c.ask(send("9", spec(1))).unwrap_err();
    assert!(
        e.what.contains("nothing is computed") && e.remedy.contains("Open a model"),
        "{e}"
    );
    // What the host itself knows goes on.
    assert!(matches!(c.ask(Request::ListModels), Ok(Reply::Models(_))));
    // Who comes later sees it from the beginning.
    let mut late = other.client();
    late.until("the tokens", |c| c.told.tokens.len() == 6);

    c.done(Request::CloseModel);
    c.until("the host itself", |c| c.recorded().is_some_and(str::is_empty));
    assert_eq!(c.run(), live);
    c.until("its state", |c| {
        c.told.state.as_ref().is_some_and(|s| s.loaded().is_none())
    });
}

#[test]
fn what_is_no_run_is_refused_with_the_reason() {
    let room = Room::new();
    let file = room.path("broken.m1run");
    std::fs::write(&file, "no run").unwrap();
    let mut c = room.client();
    let source = ModelSource::Path(file.to_str().unwrap().into());
    let Reply::Job(job) = c.ask(Request::OpenModel { source, context: 0 }).unwrap() else {
        panic!()
    };
    c.until("its end", |c| c.job_over(job));
    c.until("the reason", |c| {
        c.told.state.as_ref().is_some_and(
            |s| matches!(&s.model, ModelState::Failed { error, .. } if error.what.contains("no recorded run")),
        )
    });
    assert!(c.recorded().is_some_and(str::is_empty));
}

/// Runs of every version that was ever written stay readable.
#[test]
fn old_runs_are_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/runs");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        let room = Room::new();
        let mut c = room.client();
        let source = ModelSource::Path(file.to_str().unwrap().into());
        c.ask(Request::OpenModel { source, context: 0 }).unwrap();
        c.until("the run", |c| c.recorded().is_some_and(|r| !r.is_empty()));
        // Nothing in it is left out.
        assert!(
            !c.recorded().unwrap().contains("cannot be read"),
            "{file:?}: {:?}",
            c.recorded()
        );
        c.until("its last message", |c| {
            c.told.events.iter().any(|e| matches!(e, Event::Finished { .. }))
        });
        assert!(!c.told.tokens.is_empty() && !c.told.steps.is_empty(), "{file:?}");
        assert!(
            matches!(c.ask(Request::GetDoc), Ok(Reply::Doc(d)) if !d.nodes.is_empty()),
            "{file:?}"
        );
    }
}
