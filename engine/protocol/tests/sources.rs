//! Rules about the crate's own sources.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

fn sources() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all: Vec<(String, String)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .map(|p| {
            let name = p.file_name().unwrap().to_str().unwrap().to_string();
            (name, std::fs::read_to_string(&p).unwrap())
        })
        .collect();
    all.sort();
    all
}

/// postcard does not describe itself: a field left out shifts everything behind it.
#[test]
fn every_field_is_always_written() {
    for (name, text) in sources() {
        for (i, line) in text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim_start().starts_with("//"))
        {
            let forbidden = ["skip", "flatten", "untagged", "tag =", "content ="];
            let broken = line.contains("serde(") && forbidden.iter().any(|f| line.contains(f));
            assert!(!broken, "{name}:{}: {line}", i + 1);
        }
    }
}

/// A file that is not part of the hash could change messages without anybody noticing.
#[test]
fn every_source_is_in_the_schema_hash() {
    let all = sources();
    let root = &all.iter().find(|(n, _)| n == "lib.rs").unwrap().1;
    for (name, _) in &all {
        assert!(root.contains(&format!("include_bytes!(\"{name}\")")), "{name}");
    }
    assert_ne!(protocol::SCHEMA_HASH, 0);
}
