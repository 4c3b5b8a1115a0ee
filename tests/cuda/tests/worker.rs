//! The CUDA backend (emulated) in a process of its own: whatever becomes of the device or of the process, the text is
//! there, what happened is said, and what follows is bit for bit what would have followed.
#![cfg(target_os = "linux")]

mod gpu_process;

use std::path::Path;
use std::sync::{Arc, Mutex};

use engine::worker::Mode;
use engine::{
    Engine, EngineError, EngineOptions, GenerateOptions, SamplerParams, Session, SessionOptions, Silent, TokenEvent,
};
use gpu_process::Gpu;
use kernels::cuda::fault::{ILLEGAL_ADDRESS, LAUNCH_FAILED, MISALIGNED_ADDRESS};
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::ExecError;
use model1_tests::batch::{self, Sequence};
use model1_tests::goldens::{engine_with, folder};
use model1_tests_cuda::{Emulator, Faults, Order};

const MODEL: &str = "tiny-v4";
const PROMPT: [u32; 5] = [5, 9, 2, 77, 31];
const TOKENS: usize = 24;

/// What a process's user was told.
type Said = Arc<Mutex<Vec<String>>>;

/// A model on the emulated GPU in a process of its own, and what is said about that.
fn open(model: &Path) -> Result<(Arc<Engine>, Said), EngineError> {
    let said = Said::default();
    let to = said.clone();
    let options = EngineOptions {
        device: "cuda".into(),
        worker: Mode::On,
        threads: Some(1),
        // As the app has it.
        restarts: 1,
        notify: Some(Arc::new(move |words, _| to.lock().unwrap().push(words.into()))),
        ..EngineOptions::default()
    };
    Ok((Engine::open(model, &options, &Silent)?, said))
}

fn all(said: &Said) -> String {
    said.lock().unwrap().join("\n")
}

fn session(engine: &Arc<Engine>) -> Session {
    engine.session(engine.recipe(), SessionOptions::default()).unwrap()
}

fn drawing(tokens: usize) -> GenerateOptions {
    GenerateOptions {
        max_tokens: Some(tokens as u64),
        sampler: Some(SamplerParams {
            temperature: 1.0,
            seed: 3,
            ..SamplerParams::default()
        }),
        ignore_eos: true,
        ..GenerateOptions::default()
    }
}

/// Writes after `ids`; `each` hears of every token. The tokens that came, and how it ended.
fn write(
    session: &mut Session,
    ids: &[u32],
    tokens: usize,
    mut each: impl FnMut(usize),
) -> (Vec<u32>, Result<(), EngineError>) {
    let mut came = Vec::new();
    let mut note = |e: &TokenEvent<'_>| {
        came.push(e.token);
        each(came.len());
    };
    let ended = session.generate_ids(ids, &drawing(tokens), &mut note);
    (came, ended.map(|_| ()))
}

/// The GPU in this process.
fn here() -> (Arc<Engine>, Arc<Emulator>) {
    let device = Arc::new(Emulator::new(Order::Ascending, true));
    let cuda = Cuda::on(device.clone(), CudaOptions::default());
    (engine_with(&folder(MODEL), Arc::new(cuda)).unwrap(), device)
}

/// The text that a device on which nothing goes wrong writes, and the launches that it takes, both in this process.
fn undisturbed() -> (Vec<u32>, u64) {
    let (engine, device) = here();
    let (came, ended) = write(&mut session(&engine), &PROMPT, TOKENS, |_| {});
    ended.unwrap();
    (came, device.launched().values().sum())
}

#[test]
fn a_process_on_the_gpu_writes_the_same_text() {
    let _gpu = Gpu::new();
    let (engine, said) = open(&folder(MODEL)).unwrap();
    assert_eq!(engine.backend().name(), "cuda");
    assert!(engine.backend().describe().starts_with("emulator"));
    let (came, ended) = write(&mut session(&engine), &PROMPT, TOKENS, |_| {});
    ended.unwrap();
    assert_eq!(came, undisturbed().0);
    assert_eq!(all(&said), "");
}

fn bits(sequences: &[Sequence]) -> Vec<Vec<u32>> {
    sequences.iter().map(Sequence::bits).collect()
}

#[test]
fn sequences_go_together_through_the_process() {
    let _gpu = Gpu::new();
    let (engine, said) = open(&folder(MODEL)).unwrap();
    let (here, _) = here();
    assert_eq!(engine.backend().batch(), here.backend().batch());
    let three = |engine: &Arc<Engine>| {
        let mut three = batch::read(engine, &[5, 12, 41]);
        let why = batch::greedy(&mut three, 6);
        (bits(&three), why)
    };
    assert_eq!(three(&engine), three(&here));
    assert_eq!(three(&engine).1, None);
    batch::come_and_go(&engine, 2e-4);
    batch::go_back(&engine);
    batch::forks(&engine, &[12]);
    batch::draws(&engine, 6);
    batch::refused_and_apart(&engine, &here);
    assert_eq!(all(&said), "");
}

#[test]
fn a_device_that_fails_costs_nothing_of_several_texts() {
    let gpu = Gpu::new();
    let (here, device) = here();
    let launched = || device.launched().values().sum::<u64>();
    let mut want = batch::read(&here, &[7, 30]);
    let before = launched();
    batch::greedy(&mut want, 10);
    let middle = (before + launched()) / 2;
    gpu.faults(&[&format!("launch={middle}:{ILLEGAL_ADDRESS}")]);
    let (engine, said) = open(&folder(MODEL)).unwrap();
    let mut came = batch::read(&engine, &[7, 30]);
    batch::greedy(&mut came, 10);
    assert_eq!(bits(&came), bits(&want));
    assert!(came.iter().all(|s| s.session.revivals() == 1));
    for part in ["illegal memory access", "was started again with the same recipe"] {
        assert!(all(&said).contains(part), "{part}: {}", all(&said));
    }
}

#[test]
fn a_device_that_fails_in_mid_text_costs_nothing_of_it() {
    let gpu = Gpu::new();
    let (want, launches) = undisturbed();
    for (code, words) in [
        (ILLEGAL_ADDRESS, "an illegal memory access was encountered"),
        (MISALIGNED_ADDRESS, "misaligned address"),
        (LAUNCH_FAILED, "unspecified launch failure"),
        (214, "uncorrectable ECC error"),
    ] {
        // The first process faults within the text.
        gpu.faults(&[&format!("launch={}:{code}", launches / 2)]);
        let (engine, said) = open(&folder(MODEL)).unwrap();
        let first = engine.worker().unwrap().pid();
        let mut session = session(&engine);
        let mut there = 0;
        let (came, ended) = write(&mut session, &PROMPT, TOKENS, |n| {
            if all(&said).is_empty() {
                there = n;
            }
        });
        ended.unwrap();
        assert_eq!(came, want, "error {code}");
        assert!(0 < there && there < TOKENS, "it failed after {there} tokens");
        let said = all(&said);
        for part in [
            "The GPU process ended: the device failed: CUDA",
            words,
            "was started again with the same recipe",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
        let now = engine.worker().unwrap().pid();
        assert!(now.is_some() && now != first, "another process");
        assert_eq!(session.revivals(), 1);
        assert_eq!(session.recipe(), &engine.recipe());
    }
}

#[test]
fn a_changed_recipe_survives_the_device() {
    let gpu = Gpu::new();
    let edits = ["layers.*.kv_cache=bf16", "weights.ffn=fp8"];
    let run = |line: &str| {
        gpu.faults(&[line]);
        let (engine, said) = open(&folder(MODEL)).unwrap();
        let mut session = session(&engine);
        for edit in edits {
            session.set(edit).unwrap();
        }
        let (came, ended) = write(&mut session, &PROMPT, TOKENS, |_| {});
        ended.unwrap();
        (came, session.recipe().hash(), session.revivals(), all(&said))
    };
    let (want, hash, revivals, _) = run("");
    assert_eq!(revivals, 0);
    let (came, after, revivals, said) = run(&format!("launch={}:{ILLEGAL_ADDRESS}", undisturbed().1 / 2));
    assert_eq!((came, after, revivals), (want, hash, 1), "{said}");
}

#[test]
fn a_killed_process_costs_no_text() {
    let _gpu = Gpu::new();
    let (engine, said) = open(&folder(MODEL)).unwrap();
    let pid = || engine.worker().unwrap().pid().unwrap().to_string();
    let (came, ended) = write(&mut session(&engine), &PROMPT, TOKENS, |n| {
        if n == TOKENS / 2 {
            let killed = std::process::Command::new("kill").args(["-KILL", &pid()]).status();
            assert!(killed.unwrap().success());
        }
    });
    ended.unwrap();
    assert_eq!(came, undisturbed().0);
    assert!(all(&said).contains("The GPU process ended: signal 9"), "{}", all(&said));
}

#[test]
fn a_device_that_fails_again_and_again_is_given_up_until_somebody_asks() {
    let gpu = Gpu::new();
    let (want, launches) = undisturbed();
    let middle = format!("launch={}:{ILLEGAL_ADDRESS}", launches / 2);
    let soon = format!("launch=3:{ILLEGAL_ADDRESS}");
    gpu.faults(&[&middle, &soon]);
    let (engine, said) = open(&folder(MODEL)).unwrap();
    let mut session = session(&engine);
    let (mut came, ended) = write(&mut session, &PROMPT, TOKENS, |_| {});
    let e = ended.unwrap_err();
    assert!(matches!(e, EngineError::Exec(ExecError::Device(_))), "{e}");
    for part in [
        "ended again before it wrote a token",
        "illegal memory access",
        "it can be started once more",
    ] {
        assert!(e.to_string().contains(part), "{part}: {e}");
    }
    assert!(!came.is_empty() && came[..] == want[..came.len()], "{}", all(&said));
    // What came is there; it goes on where it was.
    let ids = [&PROMPT[..], &came].concat();
    let (none, ended) = write(&mut session, &ids, 1, |_| {});
    assert!(none.is_empty() && ended.is_err(), "nobody asked");
    engine.worker().unwrap().allow_restart();
    let (rest, ended) = write(&mut session, &ids, TOKENS - came.len(), |_| {});
    ended.unwrap();
    came.extend(rest);
    assert_eq!(came, want);
}

#[test]
fn memory_that_runs_out_is_predicted_or_said_and_nothing_is_lost() {
    let gpu = Gpu::new();
    // Predicted, before anything is put there.
    gpu.leave(Some(1 << 20));
    let e = open(&folder(MODEL)).err().unwrap().to_string();
    for part in [
        "are needed (estimated: weights",
        "1.0 MiB of 8.0 GiB on emulator are free",
        "would fit",
        "--device cpu",
    ] {
        assert!(e.contains(part), "{part}: {e}");
    }
    gpu.leave(None);
    // Not predicted: somebody takes it while the model is put there. No other process is needed.
    gpu.faults(&["alloc=20"]);
    let (engine, said) = open(&folder(MODEL)).unwrap();
    let pid = engine.worker().unwrap().pid();
    let mut session = session(&engine);
    let (came, ended) = write(&mut session, &PROMPT, TOKENS, |_| {});
    let e = ended.unwrap_err();
    assert!(came.is_empty() && matches!(e, EngineError::Memory { .. }), "{e}");
    let e = e.to_string();
    for part in [
        "not enough memory",
        "on the GPU needs about",
        "8.0 GiB are available",
        "use a smaller --context",
    ] {
        assert!(e.contains(part), "{part}: {e}");
    }
    let (came, ended) = write(&mut session, &PROMPT, TOKENS, |_| {});
    ended.unwrap();
    assert_eq!(came, undisturbed().0);
    assert_eq!((engine.worker().unwrap().pid(), all(&said).as_str()), (pid, ""));
}

/// Caches of this model have a row for four tokens, and grow when a text passes 1024 and the next four.
#[test]
fn memory_that_runs_out_in_mid_text_stops_it_there_and_it_goes_on_later() {
    let gpu = Gpu::new();
    let ids: Vec<u32> = (0..1010u32).map(|i| (i * 7919 + 13) % 120 + 2).collect();
    let run = |short: Option<(u64, &str)>| {
        let (engine, said) = open(&folder(MODEL)).unwrap();
        let pid = engine.worker().unwrap().pid();
        let mut session = session(&engine);
        let (mut came, ended) = write(&mut session, &ids, TOKENS, |n| {
            if n == 4 {
                gpu.leave(short.map(|s| s.0));
            }
        });
        if let Some((_, said)) = short {
            let e = ended.unwrap_err().to_string();
            // 1027 tokens are in the cache, the next one was drawn.
            assert_eq!((came.len(), session.position()), (18, 1027), "{e}");
            for part in ["not enough memory", said, "are available", "--kv-cache"] {
                assert!(e.contains(part), "{part}: {e}");
            }
            // As often as it is tried.
            let again = [&ids[..], &came].concat();
            let (none, ended) = write(&mut session, &again, 3, |_| {});
            assert!(none.is_empty() && ended.is_err());
            gpu.leave(None);
            let (rest, ended) = write(&mut session, &again, TOKENS - came.len(), |_| {});
            ended.unwrap();
            came.extend(rest);
        } else {
            ended.unwrap();
        }
        assert_eq!((engine.worker().unwrap().pid(), all(&said).as_str()), (pid, ""));
        came
    };
    let want = run(None);
    // Seen by the prediction before the step, and by the device, which doubles its rows.
    assert_eq!(run(Some((0, "the KV cache of 1028 tokens on the device needs"))), want);
    assert_eq!(
        run(Some((4096, "the cache of 1028 tokens on the GPU (1024 fit) needs"))),
        want
    );
}

#[test]
fn without_a_process_a_failed_device_says_that_the_program_must_be_started_again() {
    let launches = undisturbed().1;
    let device = Emulator::new(Order::Ascending, true).with_faults(Faults {
        launch: Some((launches / 2, ILLEGAL_ADDRESS)),
        ..Faults::default()
    });
    let backend = Arc::new(Cuda::on(Arc::new(device), CudaOptions::default()));
    let engine = engine_with(&folder(MODEL), backend).unwrap();
    let mut session = session(&engine);
    let (came, ended) = write(&mut session, &PROMPT, TOKENS, |_| {});
    let first = ended.unwrap_err();
    assert!(matches!(first, EngineError::Exec(ExecError::Fatal(_))), "{first}");
    for part in [
        "the device failed: CUDA",
        "illegal memory access",
        "start the program again",
    ] {
        assert!(first.to_string().contains(part), "{part}: {first}");
    }
    // The text is there, and everything asked of the device says the same.
    let want = undisturbed().0;
    assert!(!came.is_empty() && came[..] == want[..came.len()]);
    assert_eq!(session.tokens()[..PROMPT.len()], PROMPT);
    let (tokens, recipe) = (session.tokens().to_vec(), session.recipe().clone());
    let said = [
        session.set("layers.*.kv_cache=bf16").unwrap_err(),
        session.truncate(3, &engine::Cancel::default()).unwrap_err(),
        write(&mut session, &tokens, 3, |_| {}).1.unwrap_err(),
    ];
    for e in said {
        assert!(matches!(e, EngineError::Exec(ExecError::Fatal(_))), "{e}");
    }
    assert_eq!(session.recipe(), &recipe);
}
