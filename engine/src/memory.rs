//! How much memory there is, and what a request would need.

use crate::error::EngineError;

/// 1.5 GiB, 12.0 MiB, 512 B.
pub fn human(bytes: u64) -> String {
    let b = bytes as f64;
    for (unit, size) in [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if bytes >= size {
            return format!("{:.1} {unit}", b / size as f64);
        }
    }
    format!("{bytes} B")
}

/// Bytes this process may still allocate: the smallest of what the system, the control group and the address-space
/// limit leave. `None` where none of them can be read.
pub fn available() -> Option<u64> {
    let read = |p: &str| std::fs::read_to_string(p).ok();
    let number = |s: String| s.trim().parse::<u64>().ok();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|l| l.starts_with(key))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let mut left = Vec::new();
    if let Some(kib) = read("/proc/meminfo").and_then(|t| field(&t, "MemAvailable:")) {
        left.push(kib * 1024);
    }
    if let (Some(max), Some(now)) = (
        read("/sys/fs/cgroup/memory.max").and_then(number),
        read("/sys/fs/cgroup/memory.current").and_then(number),
    ) {
        left.push(max.saturating_sub(now));
    }
    let limit = read("/proc/self/limits").and_then(|t| {
        let line = t.lines().find(|l| l.starts_with("Max address space"))?.to_string();
        line.split_whitespace().nth(3)?.parse::<u64>().ok()
    });
    let size = read("/proc/self/status").and_then(|t| field(&t, "VmSize:"));
    if let (Some(limit), Some(kib)) = (limit, size) {
        left.push(limit.saturating_sub(kib * 1024));
    }
    left.into_iter().min()
}

/// Resident memory of this process in bytes.
pub fn resident() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|k| k * 1024)
}

/// Peak resident memory of this process in bytes.
pub fn peak() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|k| k * 1024)
}

/// Refuses what will not fit.
pub fn require(bytes: u64, what: &str, hint: &str) -> Result<(), EngineError> {
    match available() {
        Some(left) if bytes > left => Err(EngineError::Memory {
            what: what.to_string(),
            needed: human(bytes),
            available: human(left),
            hint: hint.to_string(),
        }),
        _ => Ok(()),
    }
}
