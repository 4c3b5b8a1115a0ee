//! Plans of every golden go over as they are, and what a step is told.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use checkpoint::Progress;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{Backend, CacheDesc, ExecError, Plan, State, StepOutput, StepParams, StepRequest, WeightSource};

use super::child::{Child, Model, Stopper};
use super::frames::{self, Answer, Call, Open, Reader, RunCall, plan_from_cbor, plan_to_cbor};
use crate::needs::Planned;
use crate::{SessionOptions, goldens};

#[test]
fn plans_with_probes_come_over_whole() {
    for name in ["tiny-v4", "tiny-llama", "tiny-gpt2"] {
        let engine = goldens::engine(name);
        let options = SessionOptions {
            probes: true,
            ..SessionOptions::default()
        };
        let mut session = engine.session(engine.recipe(), options).unwrap();
        for tokens in [1, 128] {
            let plan = session.plan(tokens, 0);
            assert!(
                plan_from_cbor(&plan_to_cbor(&plan).unwrap()).unwrap() == *plan,
                "{name}, {tokens} tokens"
            );
        }
    }
    assert!(plan_from_cbor(b"noise").is_err());
}

/// Says of every step whether another was expected behind it.
struct Telling(CpuBackend);

impl Backend for Telling {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn describe(&self) -> String {
        self.0.describe()
    }

    fn new_state(&self, caches: &[CacheDesc], context: u64) -> Result<Box<dyn State>, ExecError> {
        self.0.new_state(caches, context)
    }

    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        self.0.run(plan, weights, state, request, out)?;
        out.ahead_nanos = request.ahead.then_some(request.step.position);
        Ok(())
    }
}

#[test]
fn run_ahead_is_the_business_of_the_process() {
    let engine = goldens::engine("tiny-llama");
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    let plan = session.plan(1, 0);
    let caches = session.state().caches().to_vec();
    let (here, there) = UnixStream::pair().unwrap();
    let weights = engine.weights.clone();
    let process = std::thread::spawn(move || {
        let opener = move |_: &Open, _: &dyn Progress| {
            Ok(Model {
                backend: Arc::new(Telling(CpuBackend::new(1))),
                weights: weights.clone(),
                threads: 1,
                warning: None,
            })
        };
        let answers = there.try_clone().unwrap();
        // Ends when the other end is gone.
        let _ = Child::new(there, answers, &Stopper::default(), &opener).serve();
    });
    let (mut calls, mut answers) = (here.try_clone().unwrap(), Reader::new(here));
    let greeting = answers.next::<Answer>().unwrap();
    assert!(matches!(greeting, Some(Answer::Hello { .. })));
    let mut ask = |call: Call, answered: bool| {
        frames::write(&mut calls, &call).unwrap();
        answered.then(|| answers.next::<Answer>().unwrap().unwrap())
    };
    let open = Open {
        model: String::new(),
        device: "cpu".into(),
        threads: 1,
        prefault: false,
        context: None,
        planned: Planned::default(),
    };
    assert!(matches!(ask(Call::Open(open), true), Some(Answer::Opened { .. })));
    let state = Call::NewState {
        state: 1,
        caches,
        context: 0,
    };
    assert!(matches!(ask(state, true), Some(Answer::Done(_))));
    let sent = Call::Plan {
        state: 1,
        number: 1,
        cbor: plan_to_cbor(&plan).unwrap().into(),
        made: Vec::new(),
    };
    ask(sent, false);
    let run = |position: u64, ahead: bool| {
        Call::Run(Box::new(RunCall {
            number: position + 1,
            state: 1,
            plan: 1,
            step: StepParams::new(position, 1),
            ids: vec![5],
            kept: position,
            more: vec![5],
            sampler: None,
            trace: false,
            ahead,
        }))
    };
    let mut said = Vec::new();
    for (position, ahead) in [(0, true), (1, false), (2, true)] {
        let Some(Answer::Ran(ran)) = ask(run(position, ahead), true) else {
            panic!("no answer to step {position}");
        };
        said.push(ran.ahead_nanos);
    }
    assert_eq!(said, [Some(0), None, Some(2)]);
    drop((calls, answers));
    process.join().unwrap();
}
