//! Compiles the CUDA kernels (feature `cuda`) into one fat binary per source and writes the list that the driver embeds.
//!
//! `MODEL1_CUDA` = `auto` (default: with kernels where there is an NVIDIA GPU and nvcc 13; elsewhere the list is empty, and
//! the program says so), `off`, `require` (with kernels, or the build fails).
//! `MODEL1_CUDA_ARCHS` = targets, comma separated: `90a` machine code, `+80` PTX. nvcc is looked for in `MODEL1_NVCC`,
//! `CUDA_HOME`, `PATH`, `/usr/local/cuda`, and where `.ci/cuda.sh` puts it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Oldest compiler accepted, major version: kernels are held to what it makes.
const NVCC: u32 = 13;
/// Targets where none are named: Hopper. `./run` names the ones of the machine.
const ARCHS: &str = "90a";

fn main() -> std::process::ExitCode {
    match run() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    for name in [
        "MODEL1_CUDA",
        "MODEL1_CUDA_ARCHS",
        "MODEL1_NVCC",
        "CUDA_HOME",
        "MODEL1_CACHE",
    ] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=cuda/src");
    println!("cargo:rerun-if-changed=build.rs");
    let out = PathBuf::from(variable("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let list = out.join("fatbins.rs");
    let mode = variable("MODEL1_CUDA").unwrap_or_else(|| "auto".into());
    if !["auto", "off", "require"].contains(&mode.as_str()) {
        return Err(format!("MODEL1_CUDA: found `{mode}`, accepted: auto, off, require"));
    }
    let entries = if variable("CARGO_FEATURE_CUDA").is_none() {
        Ok(Vec::new())
    } else if mode == "off" {
        Err("it was built with MODEL1_CUDA=off".to_string())
    } else if mode == "auto" && !gpu_present() {
        // Kernels take minutes to compile: not for builds on machines that cannot run them.
        Err("it was built on a machine without an NVIDIA GPU (MODEL1_CUDA=require builds with kernels anywhere)".into())
    } else {
        match find_nvcc() {
            Ok(nvcc) => Ok(compile(&nvcc, &out)?),
            Err(why) if mode == "require" => return Err(format!("MODEL1_CUDA=require, but {why}")),
            Err(why) => Err(why),
        }
    };
    let mut text =
        String::from("/// (source, fat binary) of every kernel source.\npub const FATBINS: &[(&str, &[u8])] = &[\n");
    for (name, file) in entries.as_deref().unwrap_or(&[]) {
        let _ = writeln!(
            text,
            "    ({name:?}, include_bytes!({:?})),",
            file.display().to_string()
        );
    }
    let why = entries.as_ref().err().cloned().unwrap_or_default();
    let _ = writeln!(text, "];\n/// Why there are none.\npub const WITHOUT: &str = {why:?};");
    std::fs::write(&list, text).map_err(|e| format!("{}: {e}", list.display()))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// Whether the machine has an NVIDIA GPU with a driver.
fn gpu_present() -> bool {
    ["/dev/nvidiactl", "/proc/driver/nvidia/version"]
        .iter()
        .any(|p| Path::new(p).exists())
}

/// The compiler, or why there is none.
fn find_nvcc() -> Result<PathBuf, String> {
    if let Some(path) = variable("MODEL1_NVCC").map(PathBuf::from) {
        return version(&path)
            .map(|_| path.clone())
            .map_err(|e| format!("MODEL1_NVCC: {e}"));
    }
    let mut places: Vec<PathBuf> = Vec::new();
    places.extend(variable("CUDA_HOME").map(|d| Path::new(&d).join("bin/nvcc")));
    places.extend(std::env::split_paths(&variable("PATH").unwrap_or_default()).map(|d| d.join("nvcc")));
    places.push("/usr/local/cuda/bin/nvcc".into());
    let cache = variable("MODEL1_CACHE").map(PathBuf::from).or_else(|| {
        let base = variable("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| variable("HOME").map(|h| Path::new(&h).join(".cache")))?;
        Some(base.join("model1-explorer"))
    });
    places.extend(cache.map(|d| d.join("cuda/nvidia/cu13/bin/nvcc")));
    let mut old = None;
    for path in places.into_iter().filter(|p| p.is_file()) {
        match version(&path) {
            Ok(()) => return Ok(path),
            Err(e) => old = old.or(Some(e)),
        }
    }
    Err(old.unwrap_or_else(|| "no CUDA compiler (nvcc) was found where it was built; .ci/cuda.sh fetches one".into()))
}

fn version(nvcc: &Path) -> Result<(), String> {
    let said = Command::new(nvcc).arg("--version").output();
    let said = said.map_err(|e| format!("{}: {e}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&said.stdout);
    let found = text
        .split("release ")
        .nth(1)
        .and_then(|t| t.split('.').next()?.parse::<u32>().ok());
    match found {
        Some(major) if major >= NVCC => Ok(()),
        _ => {
            let found = found.map_or("an unknown version".into(), |m| format!("version {m}"));
            Err(format!("{} is {found}; accepted is {NVCC}.0 or newer", nvcc.display()))
        }
    }
}

/// Flags for one target.
fn target(arch: &str) -> Result<String, String> {
    let (ptx, arch) = arch.strip_prefix('+').map_or((false, arch), |a| (true, a));
    let digits = arch.trim_end_matches(['a', 'f']);
    if digits.parse::<u32>().is_err() {
        return Err(format!(
            "MODEL1_CUDA_ARCHS: found `{arch}`, accepted: e.g. 80,90a,100f,+80"
        ));
    }
    Ok(if ptx {
        format!("-gencode=arch=compute_{arch},code=compute_{arch}")
    } else {
        format!("-gencode=arch=compute_{arch},code=sm_{arch}")
    })
}

/// Compiles every source; results are kept under a hash of all that goes into them.
fn compile(nvcc: &Path, out: &Path) -> Result<Vec<(String, PathBuf)>, String> {
    let archs = variable("MODEL1_CUDA_ARCHS").unwrap_or_else(|| ARCHS.into());
    let mut flags: Vec<String> = ["--fatbin", "-std=c++17", "-O3", "--compress-mode=size", "-Xptxas=-O3"]
        .map(String::from)
        .into();
    for arch in archs.split(',').map(str::trim).filter(|a| !a.is_empty()) {
        flags.push(target(arch)?);
    }
    let read = |p: &Path| std::fs::read(p).map_err(|e| format!("{}: {e}", p.display()));
    let mut files: Vec<PathBuf> = std::fs::read_dir("cuda/src")
        .map_err(|e| format!("cuda/src: {e}"))?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    files.sort();
    let (sources, headers): (Vec<_>, Vec<_>) = files
        .into_iter()
        .filter(|p| p.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .partition(|p| p.extension().is_some_and(|e| e == "cu"));
    let texts: BTreeMap<String, Vec<u8>> = headers
        .iter()
        .map(|h| {
            Ok((
                h.file_name().unwrap_or_default().to_string_lossy().into_owned(),
                read(h)?,
            ))
        })
        .collect::<Result<_, String>>()?;
    let mut running = Vec::new();
    let mut made = Vec::new();
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    for source in &sources {
        let mut hasher = DefaultHasher::new();
        (&flags, nvcc).hash(&mut hasher);
        let text = read(source)?;
        for (name, header) in included(&text, &texts) {
            (name, header).hash(&mut hasher);
        }
        text.hash(&mut hasher);
        let name = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let file = out.join(format!("{name}-{:016x}.fatbin", hasher.finish()));
        made.push((name, file.clone()));
        if file.is_file() {
            continue;
        }
        if running.len() >= jobs {
            finish(running.remove(0))?;
        }
        let part = file.with_extension("part");
        let mut command = Command::new(nvcc);
        command.args(&flags).arg("-o").arg(&part).arg(source);
        command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let child = command.spawn().map_err(|e| format!("{}: {e}", nvcc.display()))?;
        running.push((source.clone(), child, part, file));
    }
    for job in running {
        finish(job)?;
    }
    Ok(made)
}

/// The headers a source includes, and those they include.
fn included<'a>(source: &[u8], headers: &'a BTreeMap<String, Vec<u8>>) -> BTreeMap<&'a str, &'a [u8]> {
    let mut found = BTreeMap::new();
    let mut open = vec![source];
    while let Some(text) = open.pop() {
        for line in String::from_utf8_lossy(text).lines() {
            let name = line
                .trim()
                .strip_prefix("#include \"")
                .and_then(|l| l.strip_suffix('"'));
            if let Some((name, header)) = name.and_then(|n| headers.get_key_value(n))
                && found.insert(name.as_str(), header.as_slice()).is_none()
            {
                open.push(header);
            }
        }
    }
    found
}

fn finish((source, child, part, file): (PathBuf, std::process::Child, PathBuf, PathBuf)) -> Result<(), String> {
    let said = child.wait_with_output().map_err(|e| format!("nvcc: {e}"))?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stdout).into_owned() + &String::from_utf8_lossy(&said.stderr);
        return Err(format!(
            "nvcc could not compile {} (MODEL1_CUDA=off builds without CUDA):\n{text}",
            source.display()
        ));
    }
    std::fs::rename(&part, &file).map_err(|e| format!("{}: {e}", file.display()))
}
