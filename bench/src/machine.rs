//! Which machine measured.

use std::process::Command;
use std::time::Instant;

use serde::Serialize;

/// What a reader needs to judge the numbers.
#[derive(Serialize)]
pub struct Machine {
    /// As /proc/cpuinfo names it.
    pub cpu: String,
    /// The vector extensions among the CPU's flags.
    pub flags: Vec<String>,
    /// Logical cores this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
    /// Load average of the last minute when the run began: more than a trace of it spoils the numbers.
    pub load: String,
    /// Commit of this repository, with `+` where the tree had changes.
    pub commit: String,
}

const FLAGS: &[&str] = &[
    "f16c", "fma", "avx2", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "sve",
];

/// Reads what the system tells; what it does not tell is left empty.
pub fn describe() -> Machine {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map(|(_, value)| value.trim().to_owned())
            .unwrap_or_default()
    };
    let flags = field("flags");
    let flags = flags
        .split_whitespace()
        .filter(|flag| FLAGS.contains(flag) || flag.starts_with("avx512"));
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let changed = if git(&["status", "--porcelain", "--untracked-files=no"]).is_empty() {
        ""
    } else {
        "+"
    };
    Machine {
        cpu: field("model name"),
        flags: flags.map(str::to_owned).collect(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        kernel: read("/proc/sys/kernel/osrelease"),
        load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        commit: git(&["rev-parse", "--short", "HEAD"]) + changed,
    }
}

fn git(arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-C", env!("CARGO_MANIFEST_DIR")])
        .args(arguments)
        .output();
    output
        .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        .unwrap_or_default()
}

/// Watches how much of the machine other processes use.
pub struct Meter {
    start: Instant,
    /// CPU seconds so far, of the whole machine and of this process; none where the system does not tell.
    cpu_seconds: Option<(f64, f64)>,
}

impl Meter {
    /// Starts watching.
    pub fn start() -> Meter {
        Meter {
            start: Instant::now(),
            cpu_seconds: cpu_seconds(),
        }
    }

    /// The part of all cores' time that other processes had since the start, 0 to 1.
    pub fn others(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
        let (Some((all, own)), Some((all_now, own_now))) = (self.cpu_seconds, cpu_seconds()) else {
            return 0.0;
        };
        let others = (all_now - all) - (own_now - own);
        (others / (self.start.elapsed().as_secs_f64() * cores)).clamp(0.0, 1.0)
    }
}

/// From /proc, in ticks of 1/100 second; see proc(5).
fn cpu_seconds() -> Option<(f64, f64)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let ticks: Vec<f64> = stat
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .filter_map(|tick| tick.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal
    let all: f64 = [0, 1, 2, 5, 6, 7].iter().filter_map(|&index| ticks.get(index)).sum();
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let after_name = stat.rsplit_once(')')?.1;
    let own: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|tick| tick.parse::<f64>().ok())
        .sum();
    Some((all / 100.0, own / 100.0))
}
