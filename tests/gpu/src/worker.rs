//! The engine in a process of its own behind this one, as the app and the command have it: kernels that fault, a kill and a
//! lack of memory, made on purpose. The process is this program again; what is to go wrong in it is told by files in a
//! folder of the case.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine::worker::Mode;
use engine::{Engine, EngineError, EngineOptions, GenerateOptions, SamplerParams, Session, SessionOptions, Silent};
use kernels::cuda::device::{Arg, DevPtr, Device, Launch};
use kernels::ir::Backend;
use model1_tests::batch;

use crate::checks::{bundled_folder, edited, open, story};
use crate::runner::{Bench, Case};

/// Tokens of a text.
const TOKENS: usize = 160;
/// The token after which something happens to the process.
const MIDDLE: usize = 60;
/// Caches in f32: what a text that passes 2048 tokens asks for is more than a driver's smallest piece of memory.
const LARGE: [&str; 2] = ["layers.*.kv_cache=f32", "layers.*.index_cache=f32"];

/// To be called first: the work of such a process, where this is one.
pub fn enter() -> Option<u8> {
    if std::env::args_os().nth(1).is_none_or(|a| a != engine::worker::COMMAND) {
        return None;
    }
    let called = std::env::args_os().next().unwrap_or_default();
    let folder = Path::new(&called).parent().map(PathBuf::from).unwrap_or_default();
    engine::worker::enter_on(&|ordinal| {
        let device = match folder.join("emulate").exists() {
            true => emulated(&folder)?,
            false => kernels::cuda::open(ordinal)?,
        };
        let (own, folder) = (device.clone(), folder.clone());
        std::thread::spawn(move || wait_to_fault(own.as_ref(), &folder));
        Ok(device)
    })
}

#[cfg(feature = "emulate")]
fn emulated(folder: &Path) -> Result<Arc<dyn Device>, String> {
    use model1_tests_cuda::{Emulator, Faults, Order};
    let left = folder.join("left");
    let faults = Faults {
        left: Some(Box::new(move || std::fs::read_to_string(&left).ok()?.parse().ok())),
        ..Faults::default()
    };
    Ok(Arc::new(Emulator::new(Order::Ascending, true).with_faults(faults)))
}

#[cfg(not(feature = "emulate"))]
fn emulated(_: &Path) -> Result<Arc<dyn Device>, String> {
    Err("this program was built without the emulator (feature `emulate`)".into())
}

/// Launches a kernel that reads where it may not, once the folder says so.
fn wait_to_fault(device: &dyn Device, folder: &Path) {
    let file = folder.join("fault");
    let address = loop {
        std::thread::sleep(Duration::from_millis(1));
        match std::fs::read_to_string(&file).as_deref() {
            // No allocation begins there.
            Ok("illegal") => break 16,
            // Kernels read 16 bytes at a time.
            Ok("misaligned") => match device.alloc(1 << 16, "an address") {
                Ok(ptr) => break ptr + 4,
                Err(_) => return,
            },
            _ => {}
        }
    };
    // The process that is started afterwards is to live.
    let _ = std::fs::remove_file(&file);
    let args = [address, address, 1 << 10].map(u64::to_le_bytes).concat();
    // What comes of it is for the engine to find out.
    let _ = device.launch(&Launch {
        kernel: "read_bandwidth",
        grid: [1, 1, 1],
        block: [512, 1, 1],
        shared: 0,
        early: false,
        apart: false,
        args: &[Arg::Struct(&args)],
    });
}

/// Memory of the GPU that this process keeps from others.
struct Held<'a> {
    device: &'a dyn Device,
    parts: Vec<DevPtr>,
    left: PathBuf,
}

impl<'a> Held<'a> {
    /// All but so many bytes, to a MiB or two.
    fn all_but(b: &'a Bench, room: &Room, bytes: usize) -> Self {
        let mut held = Self {
            device: b.device.as_ref(),
            parts: Vec::new(),
            left: room.folder.join("left"),
        };
        if room.emulated {
            // An emulated GPU belongs to its process.
            std::fs::write(&held.left, bytes.to_string()).unwrap();
            return held;
        }
        let mut part = usize::MAX;
        while part >= 1 << 20 {
            let free = held.device.memory().unwrap().0 as usize;
            part = part.min(free.saturating_sub(bytes));
            match held.device.alloc(part, "what others have") {
                Ok(at) => held.parts.push(at),
                Err(_) => part /= 2,
            }
        }
        held
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.parts.drain(..).for_each(|p| self.device.free(p));
        // There is none on a real GPU.
        let _ = std::fs::remove_file(&self.left);
    }
}

/// What was said about a process, and when.
type Said = Arc<Mutex<Vec<(String, Instant)>>>;

/// A folder from which processes are started.
struct Room {
    folder: PathBuf,
    emulated: bool,
}

impl Room {
    fn new(b: &Bench) -> Self {
        let folder = std::env::temp_dir().join(format!("model1-gpu-tests-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let program = folder.join("engine");
        if !program.exists() {
            std::os::unix::fs::symlink(std::env::current_exe().unwrap(), &program).unwrap();
        }
        engine::worker::set_program(program);
        let emulated = b.device.info().name == "emulator";
        if emulated {
            std::fs::write(folder.join("emulate"), "").unwrap();
        }
        Self { folder, emulated }
    }

    fn open(&self, b: &Bench) -> Result<(Arc<Engine>, Said), EngineError> {
        let said = Said::default();
        let to = said.clone();
        let options = EngineOptions {
            device: format!("cuda:{}", b.gpu),
            worker: Mode::On,
            notify: Some(Arc::new(move |words, _| {
                to.lock().unwrap().push((words.into(), Instant::now()));
            })),
            ..EngineOptions::default()
        };
        Ok((Engine::open(&bundled_folder(b), &options, &Silent)?, said))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // What is left lies in the system's folder for such things.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn words(said: &Said) -> String {
    said.lock().unwrap().iter().map(|s| format!("{}\n", s.0)).collect()
}

fn session(engine: &Arc<Engine>, edits: &[&str]) -> Session {
    let recipe = edited(engine, edits);
    engine.session(recipe, SessionOptions::default()).unwrap()
}

/// Tokens that came with the time of each, and how it ended.
type Written = (Vec<(u32, Instant)>, Result<(), EngineError>);

fn write(session: &mut Session, ids: &[u32], tokens: usize, mut each: impl FnMut(usize)) -> Written {
    let options = GenerateOptions {
        max_tokens: Some(tokens as u64),
        sampler: Some(SamplerParams {
            temperature: 0.8,
            seed: 5,
            ..SamplerParams::default()
        }),
        ignore_eos: true,
        ..GenerateOptions::default()
    };
    let mut came = Vec::new();
    let mut note = |e: &engine::TokenEvent<'_>| {
        came.push((e.token, Instant::now()));
        each(came.len());
    };
    let ended = session.generate_ids(ids, &options, &mut note).map(|_| ());
    (came, ended)
}

fn tokens(written: &[(u32, Instant)]) -> Vec<u32> {
    written.iter().map(|w| w.0).collect()
}

/// The text of a backend in this process.
fn undisturbed(b: &Bench) -> Vec<u32> {
    let backend: Arc<dyn Backend> = b.cuda();
    let engine = open(&bundled_folder(b), backend);
    let (came, ended) = write(&mut session(&engine, &[]), &story(&engine), TOKENS, |_| {});
    ended.unwrap();
    tokens(&came)
}

/// Writes a text in whose middle `strike` happens to the process of this number; the first sentence said must hold `part`.
fn struck(b: &Bench, strike: &dyn Fn(&Room, u32), part: &str) -> String {
    let room = Room::new(b);
    let (engine, said) = room.open(b).unwrap();
    let mut session = session(&engine, &[]);
    let mut at = None;
    let (came, ended) = write(&mut session, &story(&engine), TOKENS, |n| {
        if n == MIDDLE {
            at = Some(Instant::now());
            strike(&room, engine.worker().unwrap().pid().unwrap());
            // A text that is faster than the blow would not notice it.
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    ended.unwrap_or_else(|e| panic!("{e}\n{}", words(&said)));
    let log = said.lock().unwrap().clone();
    assert!(log.len() == 2 && log[0].0.contains(part), "{}", words(&said));
    assert!(
        log[1].0.contains("was started again with the same recipe"),
        "{}",
        words(&said)
    );
    assert!(tokens(&came) == undisturbed(b), "the text differs");
    assert_eq!(session.revivals(), 1);
    let next = came.iter().find(|c| c.1 > log[1].1).unwrap().1;
    format!(
        "{}{TOKENS} tokens, the same as without; process started, weights placed and text read anew in {:.2} s",
        words(&said),
        (next - log[0].1).as_secs_f64()
    )
}

/// Three texts that are written together in the process, which is killed in their middle: the bits that they have in this one.
fn together(b: &Bench) -> String {
    let backend: Arc<dyn Backend> = b.cuda();
    let here = open(&bundled_folder(b), backend);
    let room = Room::new(b);
    let (there, said) = room.open(b).unwrap();
    let lengths = [7, 40, 150];
    let [mut want, mut came] = [&here, &there].map(|engine| batch::read(engine, &lengths));
    assert_eq!(batch::greedy(&mut want, 24), None);
    assert_eq!(batch::greedy(&mut came, 12), None);
    kill(&room, there.worker().unwrap().pid().unwrap());
    assert_eq!(batch::greedy(&mut came, 12), None);
    for (i, (a, b)) in came.iter().zip(&want).enumerate() {
        assert!(a.bits() == b.bits(), "sequence {i}: other bits\n{}", words(&said));
        assert_eq!(a.session.revivals(), 1);
    }
    assert!(words(&said).contains("signal 9"), "{}", words(&said));
    words(&said)
}

fn kill(_: &Room, pid: u32) {
    let killed = Command::new("sh").args(["-c", &format!("kill -KILL {pid}")]).status();
    assert!(killed.unwrap().success());
}

/// Opens the model where less and less memory is left: refused with figures where it does not fit beside what the driver
/// takes for a process, and without them where even that does not fit.
fn refused(b: &Bench) -> String {
    let room = Room::new(b);
    let mut text = String::new();
    for mib in [2048, 1024, 896, 768, 640, 512, 384, 256, 128, 0] {
        let held = Held::all_but(b, &room, mib << 20);
        let opened = room.open(b).map(|(engine, _)| engine.backend().describe());
        drop(held);
        text += &match opened {
            Ok(on) => format!("{mib} MiB left: {on}\n"),
            Err(e) => format!("{mib} MiB left: {e}\n"),
        };
    }
    let lines: Vec<&str> = text.lines().collect();
    assert!(!lines[0].contains("memory"), "{text}");
    assert!(
        text.contains("are needed (estimated: weights") && text.contains("are free; "),
        "{text}"
    );
    let last = lines[lines.len() - 1];
    assert!(last.contains("memory") && last.contains("--device cpu"), "{text}");
    text
}

/// In the middle of a text it stops there, and goes on once there is memory.
fn short_of_memory(b: &Bench) -> String {
    let room = Room::new(b);
    let run = |short: bool| {
        let (engine, said) = room.open(b).unwrap();
        let pid = engine.worker().unwrap().pid();
        let mut session = session(&engine, &LARGE);
        let vocab = engine.facts().vocab as u32;
        let ids: Vec<u32> = (0..2000).map(|i| (i * 7919 + 13) % (vocab - 2) + 2).collect();
        let mut held = None;
        let (mut came, ended) = write(&mut session, &ids, TOKENS, |n| {
            if short && n == 20 {
                held = Some(Held::all_but(b, &room, 0));
            }
        });
        let mut text = String::new();
        if short {
            let e = ended.expect_err("there is no memory").to_string();
            // A row for four tokens: the one after these needs another.
            assert!(e.contains("not enough memory") && e.contains("cache of"), "{e}");
            assert_eq!(session.position(), 2051);
            text = format!("after {} tokens: {e}\n", came.len());
            drop(held);
            let ids = [&ids[..], &tokens(&came)].concat();
            let (rest, ended) = write(&mut session, &ids, TOKENS - came.len(), |_| {});
            ended.unwrap();
            came.extend(rest);
        } else {
            ended.unwrap();
        }
        assert!(
            engine.worker().unwrap().pid() == pid,
            "the same process: {}",
            words(&said)
        );
        (tokens(&came), text)
    };
    let ((came, text), (want, _)) = (run(true), run(false));
    assert!(came == want, "the text differs");
    format!("{text}then all {TOKENS} tokens as without, in the same process")
}

/// The same backend in this process: one clear error, then the same for whatever is asked. Costs this process its device.
fn fault_in_this_process(b: &Bench) -> String {
    let engine = open(&bundled_folder(b), b.cuda());
    let mut session = session(&engine, &[]);
    let device = b.device.clone();
    let (came, ended) = write(&mut session, &story(&engine), TOKENS, |n| {
        if n == MIDDLE {
            let folder = std::env::temp_dir().join(format!("model1-gpu-tests-fault-{}", std::process::id()));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("fault"), "illegal").unwrap();
            wait_to_fault(device.as_ref(), &folder);
            std::fs::remove_dir_all(&folder).unwrap();
        }
    });
    let e = ended.expect_err("the device failed").to_string();
    assert!(
        e.contains("illegal memory access") && e.contains("start the program again"),
        "{e}"
    );
    // What was drawn by a step begun ahead, before the fault, comes too.
    assert!((MIDDLE..=MIDDLE + 1).contains(&came.len()), "{}", came.len());
    let ids = session.tokens().to_vec();
    let again = write(&mut session, &ids, 1, |_| {})
        .1
        .expect_err("the device failed")
        .to_string();
    assert!(again.contains("start the program again"), "{again}");
    format!("{e}\nasked again: {again}")
}

/// What becomes of a text when its process or its device fails.
pub fn cases() -> Vec<Case> {
    let fault =
        |kind: &'static str| move |room: &Room, _: u32| std::fs::write(room.folder.join("fault"), kind).unwrap();
    vec![
        Case::new("worker", "a kernel reads an illegal address in mid-text", move |b| {
            // The emulator's memory is its process's.
            let emulated = b.device.info().name == "emulator";
            let part = if emulated { "signal 11" } else { "illegal memory access" };
            struck(b, &fault("illegal"), part)
        }),
        Case::new("worker", "a kernel reads a misaligned address in mid-text", move |b| {
            if b.device.info().name == "emulator" {
                return "not emulated".into();
            }
            struck(b, &fault("misaligned"), "misaligned address")
        }),
        Case::new("worker", "the process is killed in mid-text", move |b| {
            struck(b, &kill, "signal 9")
        }),
        Case::new("worker", "several texts together, the process is killed", together),
        Case::new("worker", "no memory to begin with", refused),
        Case::new("worker", "no memory in mid-text", short_of_memory),
        Case::new("worker", "a kernel that faults in this process", |b| {
            if b.device.info().name == "emulator" {
                return "not emulated".into();
            }
            fault_in_this_process(b)
        })
        .costs_the_device(),
    ]
}
