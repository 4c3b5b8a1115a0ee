//! Looking at the model and at the text, and comparing recipes.

use engine::compare::{CompareJob, Current, compare};
use engine::inspect::Replay;
use engine::{Cancel, OpTimer, Watch};
use protocol::{CompareSpec, CompareText, ErrorInfo, JobId, JobState, Reply};

use super::{Loaded, Look, Worker, said};
use crate::errors::{cancelled, input};

impl Worker {
    /// Answers a look. Replays stop when the client that asked is gone, or when stopping is asked for.
    pub(super) fn look(&mut self, what: Look, gone: &Cancel) -> Result<Reply, ErrorInfo> {
        let loaded = self.loaded_mut()?;
        match what {
            Look::Tree => Ok(Reply::Tree(loaded.session.tree())),
            Look::Plan { tokens, context } => {
                let mut plan = said(loaded.session.plan_view(tokens as usize, context))?;
                if let Some(timer) = &loaded.timer {
                    timer.apply(&mut plan);
                }
                Ok(Reply::Plan(plan))
            }
            Look::Baselines => Ok(Reply::Baselines(loaded.engine.kv_baselines(loaded.session.recipe()))),
            Look::Preview(edits) => loaded.preview(edits).map(Reply::Baselines),
            replayed => self.look_again(replayed, gone),
        }
    }

    /// Looks that process the text again, in a session of their own.
    fn look_again(&mut self, what: Look, gone: &Cancel) -> Result<Reply, ErrorInfo> {
        let loaded = self.loaded()?;
        let (ids, stop) = self.shown(loaded)?;
        if ids.is_empty() {
            return Err(input("There is no text to look at yet.", "Write one first."));
        }
        let replay = Replay {
            engine: &loaded.engine,
            recipe: loaded.session.recipe(),
            ids: &ids,
        };
        let cancel = Cancel::default();
        let mut progress = |_, _| {
            if gone.is_cancelled() || stop.is_cancelled() {
                cancel.cancel();
            }
        };
        let mut watch = Watch {
            cancel: &cancel,
            progress: &mut progress,
        };
        let watch = &mut watch;
        said(match what {
            Look::Attention(spec) => replay.attention(&spec, watch).map(Reply::Attention),
            Look::Rows(layer) => replay.kept_rows(layer, watch).map(Reply::Rows),
            Look::Router => replay.router(watch).map(Reply::Router),
            Look::Metric(name) => replay.metric(&name, watch).map(Reply::Metric),
            Look::Tree | Look::Plan { .. } | Look::Baselines | Look::Preview(_) => Ok(Reply::Done),
        })
    }

    /// Tokens of the shown branch, and what stops looking at them.
    pub(super) fn shown(&self, loaded: &Loaded) -> Result<(Vec<u32>, Cancel), ErrorInfo> {
        let (doc, writing, stop) = self.hub.with(|inner| {
            let doc = inner.docs.current().cloned();
            (doc, inner.writing, inner.look_stop.clone())
        });
        Ok((loaded.shown(doc.as_ref(), writing, &stop)?, stop))
    }

    /// Switches the timing of ops.
    pub(super) fn set_timing(&mut self, on: bool) -> Result<(), ErrorInfo> {
        let loaded = self.loaded_mut()?;
        // Switching on anew forgets older times.
        loaded.timer = on.then(OpTimer::default);
        self.hub.with(|inner| {
            inner.op_timing = on;
            inner.changed();
        });
        Ok(())
    }

    /// Compares recipes; both sides have sessions of their own.
    pub(super) fn compare(&mut self, job: JobId, cancel: &Cancel, spec: &CompareSpec) {
        self.long_job(job, cancel, "A comparison", |worker| {
            worker.compare_now(job, cancel, spec)
        });
    }

    fn compare_now(&mut self, job: JobId, cancel: &Cancel, spec: &CompareSpec) -> Result<(), ErrorInfo> {
        let loaded = self.loaded()?;
        let engine = loaded.engine.clone();
        let ids = self.compared(loaded, &spec.text)?;
        let current = Current {
            recipe: loaded.session.recipe(),
            ids: &ids,
        };
        let mut resolved = said(CompareJob::resolve(&engine, spec, Some(current)))?;
        resolved.model = loaded.model.name.clone();
        if let (CompareText::Current, Some(first)) = (&spec.text, loaded.converted.first()) {
            resolved.notes.push(format!(
                "This text was written on converted cache rows from position {first} on; both sides read it anew, so \
                 nothing here is converted."
            ));
        }
        self.hub.with(|inner| {
            inner.jobs.change(job, |j| j.state = JobState::Running);
            inner.jobs.detach(job, true);
        });
        let hub = self.hub.clone();
        let mut progress = |done, total| {
            hub.with(|inner| inner.jobs.change(job, |j| (j.done, j.total) = (done, total)));
            self.between();
        };
        let mut watch = Watch {
            cancel,
            progress: &mut progress,
        };
        let result = said(compare(&engine, &resolved, &mut watch))?;
        self.hub.with(|inner| {
            if cancel.is_cancelled() {
                return Err(cancelled());
            }
            inner.jobs.keep_result(job, result);
            Ok(())
        })
    }
}
