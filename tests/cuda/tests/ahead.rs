//! Run-ahead on the emulator: whatever is done with a text, its bits are those of a backend that waits for every token.

use std::path::Path;
use std::sync::Arc;

use engine::{Engine, GenerateOptions, Generation};
use kernels::cuda::{Cuda, CudaOptions};
use model1_tests::ahead::{self, Writer, ids, samplers};
use model1_tests::goldens::{engine_with, folder};
use model1_tests_cuda::{Emulator, Order};

fn open(path: &Path, ahead: bool) -> (Arc<Engine>, Arc<Emulator>) {
    let device = Arc::new(Emulator::new(Order::Ascending, true));
    let options = CudaOptions {
        ahead,
        ..CudaOptions::default()
    };
    let engine = engine_with(path, Arc::new(Cuda::on(device.clone(), options)));
    (engine.unwrap_or_else(|e| panic!("{}: {e}", path.display())), device)
}

/// (decoded, begun ahead) of a story, the same with and without.
fn same(name: &str, sampler: usize, story: &dyn Fn(&mut Writer)) -> (usize, usize) {
    let ran = ahead::same(&|ahead| open(&folder(name), ahead).0, samplers()[sampler], story);
    println!("{name}: {} of {} steps", ran.1, ran.0);
    ran
}

/// Stops and edits at every place.
fn conversation(name: &str, sampler: usize) {
    let (steps, ahead) = same(name, sampler, &ahead::conversation);
    assert!(steps > 45 && ahead * 2 > steps, "{ahead} of {steps}");
}

#[test]
fn stops_and_edits_of_model1() {
    conversation("tiny-v4", 1);
}

#[test]
fn stops_and_edits_of_model1_with_penalties() {
    conversation("tiny-v4", 2);
}

#[test]
fn stops_and_edits_of_plain_models() {
    conversation("tiny-llama", 0);
    conversation("tiny-qwen2", 1);
    conversation("tiny-gpt2", 2);
}

#[test]
fn stops_and_edits_with_records_of_8_bits() {
    conversation("tiny-v4-fp8", 0);
}

#[test]
fn changes_in_the_middle_of_a_text() {
    for name in ["tiny-v4", "tiny-llama"] {
        let (steps, ahead) = same(name, 1, &ahead::changes);
        assert!(ahead > 15 && ahead < steps, "{name}: {ahead} of {steps}");
    }
}

/// The step that follows unasked changes nothing.
#[test]
fn a_token_that_cannot_be_drawn() {
    for name in ["tiny-v4", "tiny-llama"] {
        let to = tempfile::tempdir().unwrap();
        let prompt = ahead::undrawable(&folder(name), to.path(), &|path| open(path, false).0);
        let make = |ahead| open(to.path(), ahead).0;
        let (_, ran) = ahead::same(&make, samplers()[0], &|w| ahead::undrawn(w, &prompt));
        assert!(ran > 5, "{name}: {ran}");
    }
}

/// Where caches grow, the step that needs the room is waited for.
#[test]
fn caches_that_grow() {
    let (steps, ahead) = same("tiny-v4", 0, &|w| {
        let engine = w.session.engine().clone();
        w.write(&ids(&engine, 1017, 1), 14);
        w.rows();
    });
    assert!(ahead >= 5 && ahead < steps, "{ahead} of {steps}");
}

/// Two texts by turns on one backend are what each is alone.
#[test]
fn two_texts_by_turns() {
    for name in ["tiny-v4", "tiny-llama"] {
        let (engine, _) = open(&folder(name), true);
        let alone = |salt, sampler| {
            let mut w = Writer::new(&engine, sampler);
            w.write(&ids(&engine, 12, salt), 25);
            w.rows();
            w
        };
        let [first, second, _] = samplers();
        let want = [alone(1, first), alone(2, second)];
        let mut both = [Writer::new(&engine, first), Writer::new(&engine, second)];
        let mut runs = [0, 1].map(|i| both[i].begin(&ids(&engine, 12, i + 1)));
        for round in 0..25 {
            for (i, (w, run)) in both.iter_mut().zip(&mut runs).enumerate() {
                // Not always one after the other.
                if round % 5 != 2 || i == 0 {
                    assert!(w.token(run));
                }
            }
        }
        for (w, run) in both.iter_mut().zip(&mut runs) {
            while w.text.len() < 37 {
                assert!(w.token(run));
            }
            w.rows();
        }
        for (a, b) in both.iter().zip(&want) {
            // Numbers of steps are those of the session.
            assert!(a.seen == b.seen, "{name}");
            assert!(a.ahead > 5 && b.ahead > a.ahead, "{name}: {} and {}", a.ahead, b.ahead);
        }
    }
}

/// A text whose length is known runs no step in vain, and one that is stopped runs one.
#[test]
fn steps_in_vain() {
    let count = |ahead: bool, most: Option<u64>| {
        let (engine, device) = open(&folder("tiny-llama"), ahead);
        let mut w = Writer::new(&engine, samplers()[0]);
        w.text = ids(&engine, 12, 1);
        let options = GenerateOptions {
            max_tokens: most,
            ..w.options()
        };
        let mut run = Generation::begin(&mut w.session, &w.text, options).unwrap();
        for _ in 0..15 {
            assert!(w.token(&mut run));
        }
        assert_eq!(w.session.position(), 26);
        device.launched()["deliver"]
    };
    assert_eq!(count(true, Some(15)), 14);
    assert_eq!(count(false, Some(15)), 14);
    assert_eq!(count(true, None), 15);
    assert_eq!(count(false, None), 14);
}

#[test]
fn cancelled_between_two_tokens() {
    same("tiny-v4", 1, &ahead::cancelled);
}

#[test]
fn another_token_than_the_one_drawn() {
    for name in ["tiny-v4", "tiny-gpt2"] {
        let (_, ahead) = same(name, 0, &ahead::surprises);
        assert!((7..12).contains(&ahead), "{name}: {ahead}");
    }
}
