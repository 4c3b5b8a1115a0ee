//! Which machine measured.

use std::process::Command;

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
