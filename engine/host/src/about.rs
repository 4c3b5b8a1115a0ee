//! What goes into reports: versions, machine, paths.

use protocol::{PROTOCOL_VERSION, SCHEMA_HASH};

use crate::hub::{Hub, Inner};

/// The program with its protocol.
pub(crate) fn versions() -> String {
    format!(
        "MODEL1 Explorer {}, protocol {PROTOCOL_VERSION} ({SCHEMA_HASH:016x}), {}",
        env!("CARGO_PKG_VERSION"),
        machine()
    )
}

/// Operating system and machine in words.
pub(crate) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let name = read("/etc/os-release").and_then(|text| {
        let line = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="))?;
        Some(line.trim_matches('"').to_string())
    });
    let kernel = read("/proc/sys/kernel/osrelease").map(|k| format!(", kernel {}", k.trim()));
    format!(
        "{} on {}{}",
        name.unwrap_or_else(|| std::env::consts::OS.to_string()),
        std::env::consts::ARCH,
        kernel.unwrap_or_default()
    )
}

/// The text of [`protocol::Request::About`].
pub(crate) fn text(hub: &Hub, inner: &Inner) -> String {
    let path = |p: &Option<std::path::PathBuf>| p.as_ref().map_or("none".to_string(), |p| p.display().to_string());
    let mut lines = vec![
        format!("MODEL1 Explorer {}", env!("CARGO_PKG_VERSION")),
        format!("protocol {PROTOCOL_VERSION}, schema {SCHEMA_HASH:016x}"),
        format!("machine  {}", machine()),
        format!("device   {}", inner.device.describe),
    ];
    if let Some(free) = engine::memory::available() {
        lines.push(format!("memory   {} free", engine::memory::human(free)));
    }
    if let Some(m) = inner.loaded() {
        let size = engine::memory::human(m.facts.weight_bytes);
        lines.push(format!(
            "model    {} ({}, {} layers, {size} of weights, context {})",
            m.name,
            m.facts.family,
            m.facts.layers.len(),
            m.context
        ));
        lines.push(format!("         {}", m.path));
    }
    if let Some(r) = &inner.recipe {
        lines.push(format!("recipe   {} ({} changes)", r.hash, r.changes.len()));
    }
    lines.push(format!("data     {}", path(&hub.paths.data)));
    if !hub.paths.not_kept.is_empty() {
        lines.push(format!("         not kept: {}", hub.paths.not_kept));
    }
    lines.push(format!("models   {}", path(&hub.paths.cache)));
    lines.push(format!("bundled  {}", path(&hub.paths.bundled)));
    lines.push(format!("clients  {}", inner.clients.count()));
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn versions_name_program_protocol_and_system() {
        let v = super::versions();
        assert!(v.contains(env!("CARGO_PKG_VERSION")) && v.contains("protocol 1"), "{v}");
        assert!(v.contains(std::env::consts::ARCH), "{v}");
    }
}
