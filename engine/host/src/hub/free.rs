//! Free runs as clients see them.

use std::collections::VecDeque;

use engine::compare::Written;
use protocol::{FreeSide, FreeView, JobId};

/// Runs that are remembered.
const KEPT: usize = 8;

/// All of them.
#[derive(Default)]
pub(crate) struct FreeRuns {
    list: VecDeque<(JobId, FreeView)>,
}

impl FreeRuns {
    /// Begins one.
    pub fn begin(&mut self, job: JobId, view: FreeView) {
        self.list.push_back((job, view));
        if self.list.len() > KEPT {
            self.list.pop_front();
        }
    }

    fn change(&mut self, job: JobId, f: impl FnOnce(&mut FreeView)) {
        if let Some((_, view)) = self.list.iter_mut().find(|(j, _)| *j == job) {
            f(view);
            view.revision += 1;
        }
    }

    /// Takes in what happened.
    pub fn event(&mut self, job: JobId, event: Written<'_>) {
        self.change(job, |view| match event {
            Written::Token(side, token) => view.sides[side].tokens.push(token.clone()),
            Written::Kl(value) => view.kl.push(value),
            Written::Split(split) => view.split = Some(split.clone()),
            Written::Ended(side, finish) => view.sides[side].finish = finish,
        });
    }

    /// Takes in the whole, at the end.
    pub fn end(&mut self, job: JobId, result: FreeView) {
        self.change(job, |view| {
            *view = FreeView {
                revision: view.revision,
                model: std::mem::take(&mut view.model),
                ..result
            };
        });
    }

    /// As it stands, with the tokens from these numbers on.
    pub fn view(&self, job: JobId, since: [u64; 2]) -> Option<FreeView> {
        let (_, view) = self.list.iter().find(|(j, _)| *j == job)?;
        let side = |i: usize| {
            let s = &view.sides[i];
            let from = (since[i] as usize).min(s.tokens.len());
            let cut = FreeSide {
                tokens: s.tokens[from..].to_vec(),
                hash: s.hash.clone(),
                ..*s
            };
            (from as u64, cut)
        };
        let ((a, left), (b, right)) = (side(0), side(1));
        Some(FreeView {
            from: [a, b],
            sides: [left, right],
            ..view.clone()
        })
    }
}
