//! The CUDA backend's tests as one program, for a machine with an NVIDIA GPU and without Rust. See the README.

mod ahead;
mod batch;
mod checks;
mod gguf;
mod long;
mod products;
mod resident;
mod runner;
mod swaps;
mod timing;
#[cfg(unix)]
mod worker;

use std::path::PathBuf;
use std::sync::Arc;

use kernels::cuda::device::Device;

use runner::{Bench, Case};

const HELP: &str = "\
model1-gpu-tests [--root DIR] [--only TEXT]... [--skip TEXT]... [--quick] [--json FILE] [--list] [--gpu N]
                 [--gguf FILE [--tokens N]]

  --root DIR   folder of the repository (goldens and the bundled model are read from it); default: this one
  --only TEXT  only cases whose section or name contains this; may be repeated
  --skip TEXT  not the cases whose section or name contains this; may be repeated
  --quick      shorter soaks and timings
  --json FILE  results, one object per line
  --list       say what there is and end
  --gpu N      number of the GPU, default 0
  --gguf FILE  also the greedy text of this model, on the GPU and on the CPU (section `gguf`)
  --tokens N   tokens of that text, default 300, with --quick 64
  --emulate    on the emulator instead (in builds with the feature `emulate`)

The exit code is 0 when every case passed, 1 when one failed, 2 when there is no GPU to run on.";

struct Options {
    root: PathBuf,
    only: Vec<String>,
    skip: Vec<String>,
    quick: bool,
    json: Option<PathBuf>,
    list: bool,
    gpu: usize,
    gguf: Option<PathBuf>,
    tokens: Option<usize>,
    emulate: bool,
    child: Option<usize>,
}

fn options(args: &[String]) -> Result<Options, String> {
    let mut o = Options {
        root: ".".into(),
        only: Vec::new(),
        skip: Vec::new(),
        quick: false,
        json: None,
        list: false,
        gpu: 0,
        gguf: None,
        tokens: None,
        emulate: false,
        child: None,
    };
    let mut args = args.iter();
    while let Some(a) = args.next() {
        let mut value = || args.next().cloned().ok_or(format!("{a} needs a value"));
        match a.as_str() {
            "--root" => o.root = value()?.into(),
            "--only" => o.only.push(value()?),
            "--skip" => o.skip.push(value()?),
            "--json" => o.json = Some(value()?.into()),
            "--gpu" => o.gpu = value()?.parse().map_err(|_| "--gpu needs a number")?,
            "--gguf" => o.gguf = Some(value()?.into()),
            "--tokens" => o.tokens = Some(value()?.parse().map_err(|_| "--tokens needs a number")?),
            "--child" => o.child = Some(value()?.parse().map_err(|_| "--child needs a number")?),
            "--quick" => o.quick = true,
            "--emulate" => o.emulate = true,
            "--list" => o.list = true,
            other => return Err(format!("not understood: {other}\n\n{HELP}")),
        }
    }
    Ok(o)
}

fn device(o: &Options) -> Result<Arc<dyn Device>, String> {
    if !o.emulate {
        return kernels::cuda::open(o.gpu);
    }
    #[cfg(feature = "emulate")]
    return Ok(Arc::new(model1_tests_cuda::Emulator::new(
        model1_tests_cuda::Order::Ascending,
        true,
    )));
    #[cfg(not(feature = "emulate"))]
    Err("this program was built without the emulator (feature `emulate`)".into())
}

fn cases(o: &Options) -> Vec<Case> {
    let mut all = checks::device();
    all.extend(checks::ops());
    all.extend(checks::plans());
    all.extend(checks::goldens());
    all.extend(checks::sessions());
    all.extend(long::cases());
    all.extend(o.gguf.iter().flat_map(|file| gguf::cases(file, o.tokens)));
    #[cfg(unix)]
    all.extend(worker::cases());
    all.extend(ahead::sessions());
    all.extend(batch::sessions());
    all.extend(timing::cases());
    all.extend(timing::by_depth());
    all.extend(timing::telemetry());
    all.extend(swaps::cases());
    all.extend(products::cases());
    all.extend(resident::cases());
    all.extend(ahead::timing());
    all.extend(batch::timing());
    all
}

fn main() {
    #[cfg(unix)]
    if let Some(code) = worker::enter() {
        std::process::exit(code.into());
    }
    std::process::exit(match run() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("{e}");
            2
        }
    });
}

fn run() -> Result<i32, String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--help" || a == "-h") {
        println!("{HELP}");
        return Ok(0);
    }
    let options = options(&args)?;
    let all = cases(&options);
    let matches = |c: &Case, list: &[String]| list.iter().any(|t| c.name.contains(t) || c.section.contains(t));
    let wanted: Vec<usize> = (0..all.len())
        .filter(|&i| (options.only.is_empty() || matches(&all[i], &options.only)) && !matches(&all[i], &options.skip))
        .collect();
    if options.list {
        wanted
            .iter()
            .for_each(|&i| println!("{:<9} {}", all[i].section, all[i].name));
        return Ok(0);
    }
    if let Some(first) = options.child {
        let bench = Bench {
            device: device(&options)?,
            gpu: options.gpu,
            root: options.root,
            quick: options.quick,
        };
        let mine: Vec<(usize, &Case)> = wanted.iter().map(|&i| (i, &all[i])).collect();
        return Ok(runner::child(&mine, first, &bench));
    }
    // Whether there is a GPU at all is asked in this process, so that the answer is one line.
    drop(device(&options)?);
    let (mut passed, mut failed) = (0, Vec::new());
    let mut json = String::new();
    runner::parent(&wanted, &args, &mut |o| {
        let c = &all[o.case];
        let verdict = if o.ok { "ok  " } else { "FAIL" };
        println!("{verdict} {:<9} {} ({:.2} s)", c.section, c.name, o.seconds);
        for line in o.text.lines() {
            println!("       {line}");
        }
        if o.ok {
            passed += 1;
        } else {
            failed.push(format!("{} {}", c.section, c.name));
        }
        let line = serde_json::json!({ "section": c.section, "name": c.name, "ok": o.ok, "seconds": o.seconds, "text": o.text });
        json.push_str(&format!("{line}\n"));
        if let Some(file) = &options.json
            && let Err(e) = std::fs::write(file, &json)
        {
            eprintln!("{}: {e}", file.display());
        }
    })?;
    for f in &failed {
        println!("failed: {f}");
    }
    println!("{passed} passed, {} failed", failed.len());
    Ok(i32::from(!failed.is_empty()))
}
