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

/// Where a control group's memory figures are.
struct Group {
    folder: String,
    limit: &'static str,
    usage: &'static str,
}

/// The groups named in `/proc/self/cgroup` that may limit memory (versions 2 and 1), and what a container sees as root.
fn groups(text: &str) -> Vec<Group> {
    let v2 = |path: &str| Group {
        folder: format!("/sys/fs/cgroup{}", path.trim_end_matches('/')),
        limit: "memory.max",
        usage: "memory.current",
    };
    let v1 = |path: &str| Group {
        folder: format!("/sys/fs/cgroup/memory{}", path.trim_end_matches('/')),
        limit: "memory.limit_in_bytes",
        usage: "memory.usage_in_bytes",
    };
    let mut all = vec![v2(""), v1("")];
    for line in text.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        if let (Some(controllers), Some(path)) = (parts.next(), parts.next()) {
            if controllers.is_empty() {
                all.push(v2(path));
            } else if controllers.split(',').any(|c| c == "memory") {
                all.push(v1(path));
            }
        }
    }
    all
}

fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(path).ok()
}

/// The number after `key` in a line that begins with it.
fn field(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes of memory there are for this process: the smaller of what the system and the control group leave. Pages of
/// files, which can be dropped, count as free. `None` where neither can be read.
pub fn physical() -> Option<u64> {
    let number = |s: String| s.trim().parse::<u64>().ok();
    let system = read("/proc/meminfo").and_then(|t| field(&t, "MemAvailable:"));
    let groups = groups(&read("/proc/self/cgroup").unwrap_or_default());
    let left = groups.iter().filter_map(|g| {
        let max = read(&format!("{}/{}", g.folder, g.limit)).and_then(number)?;
        let now = read(&format!("{}/{}", g.folder, g.usage)).and_then(number)?;
        let stat = read(&format!("{}/memory.stat", g.folder)).unwrap_or_default();
        let files = field(&stat, "inactive_file").unwrap_or(0) + field(&stat, "active_file").unwrap_or(0);
        Some(max.saturating_sub(now.saturating_sub(files)))
    });
    left.chain(system.map(|kib| kib * 1024)).min()
}

/// Bytes this process may still allocate: the smaller of [`physical`] and what the address-space limit leaves. `None`
/// where none can be read.
pub fn available() -> Option<u64> {
    let limit = read("/proc/self/limits").and_then(|t| {
        let line = t.lines().find(|l| l.starts_with("Max address space"))?.to_string();
        line.split_whitespace().nth(3)?.parse::<u64>().ok()
    });
    let size = read("/proc/self/status").and_then(|t| field(&t, "VmSize:"));
    let address = limit.zip(size).map(|(limit, kib)| limit.saturating_sub(kib * 1024));
    physical().into_iter().chain(address).min()
}

/// What to say about weights larger than the memory there is; they are mapped, so they can be used all the same.
pub fn warning(weights: u64) -> Option<String> {
    let left = physical().filter(|&left| weights > left)?;
    let (weights, left) = (human(weights), human(left));
    Some(format!(
        "the weights take {weights}, {left} of memory are free: they will be read from the disk again for every token"
    ))
}

/// Resident memory of this process in bytes.
pub fn resident() -> Option<u64> {
    read("/proc/self/status")
        .and_then(|t| field(&t, "VmRSS:"))
        .map(|kib| kib * 1024)
}

/// Peak resident memory of this process in bytes.
pub fn peak() -> Option<u64> {
    read("/proc/self/status")
        .and_then(|t| field(&t, "VmHWM:"))
        .map(|kib| kib * 1024)
}

/// Lets [`peak`] begin anew from here (Linux); whether that was possible.
pub fn reset_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_of_both_versions() {
        let text = "5:memory:/user/one\n4:cpu,cpuacct:/x\n0::/user.slice/a:b\n";
        let folders: Vec<String> = groups(text).into_iter().map(|g| g.folder).collect();
        let want = [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/memory/user/one",
            "/sys/fs/cgroup/user.slice/a:b",
        ];
        assert_eq!(folders, want);
    }

    #[test]
    fn figures_are_there_and_in_order() {
        let (free, left) = (physical().unwrap(), available().unwrap());
        assert!(left <= free && left > 1 << 20, "{left} of {free}");
        assert!(resident().unwrap() > 1 << 20 && peak().unwrap() >= resident().unwrap() / 2);
        assert_eq!(warning(1), None);
        let text = warning(1 << 60).unwrap();
        assert!(
            text.contains("1073741824.0 GiB") && text.contains("from the disk"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_fit_is_refused_with_both_figures() {
        require(1, "nothing", "").unwrap();
        let text = require(1 << 60, "the KV cache", "use less").unwrap_err().to_string();
        assert!(
            text.contains("the KV cache") && text.contains("1073741824.0 GiB") && text.contains("use less"),
            "{text}"
        );
    }
}
