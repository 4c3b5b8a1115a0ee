//! Op times averaged over sampled steps (level L1), for plan views.

use std::collections::BTreeMap;

use protocol::{OpTimeView, PlanView, StepRecord};

use crate::lower::Bucket;
use crate::session::Session;

/// Every how many steps one is timed by default: timing costs under 2 % of a step then.
pub const SAMPLE_EVERY: u64 = 16;

/// A plan in a bucket of tokens: times of other buckets would not mean anything.
type Key = (u64, usize);

#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    nanos: f64,
    steps: u32,
}

/// Times ops on sampled steps: call [`OpTimer::before`] and [`OpTimer::after`] around each step of a session.
#[derive(Clone, Debug)]
pub struct OpTimer {
    every: u64,
    steps: u64,
    plans: BTreeMap<Key, Vec<Sum>>,
}

impl Default for OpTimer {
    fn default() -> Self {
        Self::new(SAMPLE_EVERY)
    }
}

impl OpTimer {
    /// Times one step in `every` (at least 1), the first included.
    pub fn new(every: u64) -> Self {
        Self {
            every: every.max(1),
            steps: 0,
            plans: BTreeMap::new(),
        }
    }

    /// Switches timing on for the next step if it is one to sample.
    pub fn before(&mut self, session: &mut Session) {
        session.set_trace(self.steps.is_multiple_of(self.every));
        self.steps += 1;
    }

    /// Takes the times of the step just done, if it was timed, and switches timing off.
    pub fn after(&mut self, session: &mut Session, record: &StepRecord) {
        session.set_trace(false);
        let tokens = record.tokens as usize;
        let key = (record.plan, Bucket::for_step(tokens, 1, false, false).tokens);
        for t in session.times() {
            let sums = self.plans.entry(key).or_default();
            let at = t.op as usize;
            if sums.len() <= at {
                sums.resize(at + 1, Sum::default());
            }
            sums[at].nanos += t.nanos;
            sums[at].steps += 1;
        }
    }

    /// Puts mean times into a plan view, where steps of this plan and number of tokens were timed. Returns whether
    /// there were any.
    pub fn apply(&self, view: &mut PlanView) -> bool {
        let tokens = Bucket::for_step(view.tokens as usize, 1, false, false).tokens;
        let Ok(hash) = u64::from_str_radix(&view.hash, 16) else {
            return false;
        };
        let Some(sums) = self.plans.get(&(hash, tokens)) else {
            return false;
        };
        for op in &mut view.ops {
            op.time = sums.get(op.id as usize).filter(|s| s.steps > 0).map(|s| OpTimeView {
                nanos: s.nanos / f64::from(s.steps),
                steps: s.steps,
            });
        }
        true
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::new(self.every);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Engine, EngineOptions, GenerateOptions, Generation, SessionOptions, Silent, Step};

    #[test]
    fn sampled_steps_fill_the_plan_view() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tiny-v4");
        let engine = Engine::open(&path, &EngineOptions::default(), &Silent).unwrap();
        let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
        let options = GenerateOptions {
            max_tokens: Some(9),
            ignore_eos: true,
            ..GenerateOptions::default()
        };
        let mut run = Generation::begin(&mut session, &[1, 2, 3, 4, 5], options).unwrap();
        while !run.prefill_step(&mut session).unwrap().is_done() {}
        let mut timer = OpTimer::new(4);
        // The first token was drawn by the prompt; eight more are fed, two of them timed.
        loop {
            timer.before(&mut session);
            let Step::Token(t) = run.step(&mut session).unwrap() else {
                break;
            };
            match &t.record {
                Some(r) => timer.after(&mut session, r),
                None => timer.clear(),
            }
        }
        let mut view = session.plan_view(1, 5).unwrap();
        assert!(timer.apply(&mut view));
        for op in &view.ops {
            let time = op.time.unwrap();
            assert_eq!(time.steps, 2, "{}", op.name);
            assert!(time.nanos >= 0.0);
        }
        assert!(view.ops.iter().filter_map(|o| o.time).map(|t| t.nanos).sum::<f64>() > 0.0);
        // Prefill was not timed.
        let mut prefill = session.plan_view(32, 0).unwrap();
        assert!(!timer.apply(&mut prefill));
        assert!(prefill.ops.iter().all(|o| o.time.is_none()));
    }
}
