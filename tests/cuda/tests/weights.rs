//! Weights on a device whose memory is short: copies that nobody needs give way, no graph reads what was freed, and texts
//! stay what they are.

use std::sync::Arc;

use engine::{Cancel, Engine, EngineError, Recipe, Session, SessionOptions};
use kernels::cuda::device::Device;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::Backend;
use model1_tests::goldens::{engine_with, folder};
use model1_tests_cuda::{Emulator, Order};

const MODEL: &str = "tiny-qwen2";
/// Every storage of every slot.
const STORED: [&[&str]; 9] = [
    &[],
    &["weights.ffn=fp8"],
    &["weights.ffn=fp4"],
    &["weights.attention=bf16", "weights.ffn=bf16"],
    &["weights.attention=fp8"],
    &["weights.attention=fp4", "weights.lm_head=fp8"],
    &["weights.embedding=bf16"],
    &["weights.embedding=fp8", "weights.lm_head=fp4"],
    &["weights.embedding=fp4", "weights.ffn=bf16", "weights.lm_head=bf16"],
];

struct Machine {
    device: Arc<Emulator>,
    cuda: Arc<Cuda>,
    engine: Arc<Engine>,
}

impl Machine {
    fn new(memory: u64) -> Self {
        let device = Arc::new(Emulator::new(Order::Ascending, true).with_memory(memory));
        let cuda = Arc::new(Cuda::on(device.clone(), CudaOptions::default()));
        let engine = engine_with(&folder(MODEL), cuda.clone()).unwrap();
        Self { device, cuda, engine }
    }

    fn session(&self, edits: &[&str]) -> Session {
        self.engine
            .session(self.recipe(edits), SessionOptions::default())
            .unwrap()
    }

    fn recipe(&self, edits: &[&str]) -> Recipe {
        let mut recipe = self.engine.recipe();
        for edit in edits {
            recipe
                .set(edit, self.engine.facts(), self.engine.registry())
                .unwrap_or_else(|e| panic!("{edit}: {e}"));
        }
        recipe
    }

    fn used(&self) -> u64 {
        let (free, total) = self.device.memory().unwrap();
        total - free
    }
}

/// Reads a prompt and three tokens, so that plans have their graphs; the logits of the last.
fn read(session: &mut Session) -> Result<Vec<f32>, EngineError> {
    session.truncate(0, &Cancel::default())?;
    session.feed(&[5, 9, 33, 2, 17], None, &Cancel::default(), &mut ())?;
    for id in [7, 8, 11] {
        session.feed(&[id], None, &Cancel::default(), &mut ())?;
    }
    Ok(session.output().logits.clone())
}

/// What a recipe needs by itself: its logits, bytes of weights, and all memory in use.
fn alone(edits: &[&str]) -> (Vec<f32>, u64, u64) {
    let machine = Machine::new(1 << 30);
    let mut session = machine.session(edits);
    let logits = read(&mut session).unwrap();
    (logits, machine.cuda.weight_bytes(), machine.used())
}

#[test]
fn swaps_through_all_storages_stay_within_twice_the_most_that_is_needed() {
    let alone = STORED.map(alone);
    let most = alone.iter().map(|a| a.1).max().unwrap();
    let all: u64 = alone.iter().map(|a| a.1).sum();
    let machine = Machine::new(1 << 30);
    let mut session = machine.session(&[]);
    let mut worst = 0;
    for round in 0..3 {
        for (edits, (want, ..)) in STORED.iter().zip(&alone) {
            session.apply(machine.recipe(edits)).unwrap();
            assert!(
                read(&mut session).unwrap() == *want,
                "round {round}, {edits:?}: other logits"
            );
            worst = worst.max(machine.cuda.weight_bytes());
            // Spare copies count as free: they give way to whatever wants memory.
            let (free, total) = machine.cuda.device_memory().unwrap().unwrap();
            let there = machine.used();
            assert!(total - free <= there && there - (total - free) <= most, "{edits:?}");
        }
    }
    assert!(
        worst <= 2 * most && worst > most,
        "{worst}, {most} are needed, {all} are all of them"
    );
    // Back and forth: nothing is uploaded a second time.
    let both = [STORED[1], STORED[3]];
    for edits in both {
        session.apply(machine.recipe(edits)).unwrap();
        read(&mut session).unwrap();
    }
    let uploads = machine.device.uploaded();
    for edits in both {
        session.apply(machine.recipe(edits)).unwrap();
        read(&mut session).unwrap();
    }
    // What two texts of four steps say of themselves.
    assert!(
        machine.device.uploaded() - uploads < 4096,
        "{}",
        machine.device.uploaded() - uploads
    );
}

#[test]
fn a_device_that_has_room_for_one_recipe_runs_them_all() {
    let alone = STORED.map(alone);
    let most = alone.iter().map(|a| a.2).max().unwrap();
    // The next recipe's tables are there before the last one's are gone.
    let machine = Machine::new(most + most / 8);
    let mut session = machine.session(&[]);
    for round in 0..2 {
        for (edits, (want, ..)) in STORED.iter().zip(&alone) {
            session.apply(machine.recipe(edits)).unwrap();
            let got = read(&mut session).unwrap_or_else(|e| panic!("round {round}, {edits:?}: {e}"));
            assert!(got == *want, "round {round}, {edits:?}: other logits");
        }
    }
}

#[test]
fn copies_that_another_session_reads_do_not_give_way() {
    let [own, bf16] = [STORED[0], STORED[3]].map(alone);
    let machine = Machine::new(own.2 + own.2 / 16);
    let mut first = machine.session(&[]);
    assert!(read(&mut first).unwrap() == own.0);
    // bf16 matrices beside those of the first session do not fit: that is said, and the first goes on.
    let second = || {
        let recipe = machine.recipe(STORED[3]);
        let mut session = machine.engine.session(recipe, SessionOptions::default())?;
        read(&mut session)
    };
    let e = second().unwrap_err().to_string();
    assert!(e.contains("not enough memory"), "{e}");
    assert!(read(&mut first).unwrap() == own.0);
    drop(first);
    assert!(second().unwrap() == bf16.0);
}

#[test]
fn copies_of_engines_that_are_gone_give_way() {
    let (want, need, _) = alone(STORED[1]);
    let machine = Machine::new(1 << 30);
    for _ in 0..6 {
        // Every engine makes its own fp8 weights, at other addresses.
        let engine = engine_with(&folder(MODEL), machine.cuda.clone()).unwrap();
        let mut session = engine
            .session(machine.recipe(STORED[1]), SessionOptions::default())
            .unwrap();
        assert!(read(&mut session).unwrap() == *want);
        assert!(
            machine.cuda.weight_bytes() <= 3 * need,
            "{}",
            machine.cuda.weight_bytes()
        );
    }
}
