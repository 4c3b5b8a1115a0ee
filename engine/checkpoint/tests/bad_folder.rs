//! Folders that are not whole: configuration, index, shards and scales; and paths that are no checkpoint at all.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use checkpoint::{Checkpoint, CheckpointError, Kind, Progress, Silent};
use common::{Gguf, folder, laid_out, open, refusal, words};
use tempfile::TempDir;

const ACCEPTED: &str = "accepted: a folder with config.json and *.safetensors, or a .gguf file";
const INDEX: &str = "model.safetensors.index.json";

/// A file of one small tensor of each name.
fn shard(names: &[&str]) -> Vec<u8> {
    let tensors: Vec<_> = names.iter().map(|n| (*n, "U8", "[4]", 4)).collect();
    laid_out(&tensors)
}

/// The error of a folder with this config.json and a sound model.
fn refuse_config(config: &[u8]) -> String {
    refusal(
        &folder(&[("config.json", config), ("model.safetensors", &shard(&["a"]))]),
        "",
    )
}

/// The error of a folder with this index, and shards `one` (tensor a) and `two` (tensor b).
fn refuse_index(index: &str) -> String {
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        (INDEX, index.as_bytes()),
        ("one.safetensors", &shard(&["a"])),
        ("two.safetensors", &shard(&["b"])),
    ];
    refusal(&folder(&files), "")
}

/// A folder of one file with these tensors.
fn model(config: &str, tensors: &[(&str, &str, &str, usize)]) -> TempDir {
    folder(&[
        ("config.json", config.as_bytes()),
        ("model.safetensors", &laid_out(tensors)),
    ])
}

#[test]
fn paths_that_are_no_checkpoint() {
    let dir = folder(&[("notes.txt", b"hello"), ("config", b"{}")]);
    assert_eq!(refusal(&dir, "none"), format!("none: found nothing there; {ACCEPTED}"));
    assert_eq!(
        refusal(&dir, "none.gguf"),
        format!("none.gguf: found nothing there; {ACCEPTED}")
    );
    assert_eq!(
        refusal(&dir, "notes.txt"),
        format!("notes.txt: found a file of another kind; {ACCEPTED}")
    );
    assert_eq!(
        refusal(&dir, ""),
        format!("DIR: found a folder without config.json; {ACCEPTED}")
    );
    let ggufs = folder(&[("a.gguf", b""), ("b.GGUF", b"")]);
    assert_eq!(
        refusal(&ggufs, ""),
        format!("DIR: found a folder with 2 GGUF files; {ACCEPTED}")
    );
    assert!(!refusal(&dir, "").contains('\n'));
}

#[cfg(unix)]
#[test]
fn devices_are_no_checkpoint() {
    let error = Checkpoint::open(Path::new("/dev/null"), &Silent).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("/dev/null: found neither a folder nor a file; {ACCEPTED}")
    );
}

#[test]
fn empty_files() {
    let dir = folder(&[("x.gguf", b"")]);
    let empty = "x.gguf: found an empty file, accepted: a safetensors or GGUF file";
    assert_eq!(refusal(&dir, "x.gguf"), empty);
    assert_eq!(refusal(&dir, ""), empty);
    assert_eq!(
        refuse_config(b""),
        "config.json: found no JSON (EOF while parsing a value at line 1 column 0), accepted: a JSON object"
    );
}

#[test]
fn configurations_that_are_missing_or_no_object() {
    let dir = folder(&[("model.safetensors", &shard(&["a"]))]);
    let missing = format!("DIR: found a folder without config.json; {ACCEPTED}");
    assert_eq!(refusal(&dir, ""), missing);
    assert_eq!(refusal(&dir, "model.safetensors"), missing);
    for (config, found) in [
        ("[]", "a list"),
        ("null", "null"),
        ("true", "true or false"),
        ("3", "a number"),
        ("\"{}\"", "a string"),
    ] {
        assert_eq!(
            refuse_config(config.as_bytes()),
            format!("config.json: found {found}, accepted: a JSON object")
        );
    }
    assert!(refuse_config(b"{\"a\": }").starts_with("config.json: found no JSON (expected value at line 1 column 7)"));
    assert!(refuse_config(b"\xFF\xFE").starts_with("config.json: found no JSON ("));
    assert_eq!(
        refuse_config(br#"{"quantization_config":{"weight_block_size":[128,0]}}"#),
        "config.json: field `quantization_config.weight_block_size`: found [128,0], accepted: two positive numbers"
    );
}

#[test]
fn side_files_that_are_broken() {
    for name in ["generation_config.json", "tokenizer_config.json", "chat_template.json"] {
        let files: [(&str, &[u8]); 3] = [
            ("config.json", b"{}"),
            ("model.safetensors", &shard(&["a"])),
            (name, b"[1]"),
        ];
        assert_eq!(
            refusal(&folder(&files), ""),
            format!("{name}: found a list, accepted: a JSON object")
        );
    }
}

#[test]
fn folders_without_weights() {
    let dir = folder(&[("config.json", b"{}")]);
    let none = format!("DIR: found a folder with config.json but no *.safetensors; {ACCEPTED}");
    assert_eq!(refusal(&dir, ""), none);
    assert_eq!(refusal(&dir, "config.json"), none);
}

#[test]
fn indices_that_are_broken() {
    let accepted = "accepted: an object of tensor name -> file name";
    for (index, found) in [
        ("{}", "nothing"),
        (r#"{"weight_map":[]}"#, "a list"),
        (r#"{"weight_map":{}}"#, "an empty object"),
    ] {
        assert_eq!(
            refuse_index(index),
            format!("{INDEX}: field `weight_map`: found {found}, {accepted}")
        );
    }
    assert_eq!(
        refuse_index("7"),
        format!("{INDEX}: found a number, accepted: a JSON object")
    );
    for file in ["7", "\"../one.safetensors\"", "\"/etc/passwd\"", "\"..\"", "\"\""] {
        assert_eq!(
            refuse_index(&format!(r#"{{"weight_map":{{"a":{file}}}}}"#)),
            format!("{INDEX}: weight_map `a`: found {file}, accepted: a file name")
        );
    }
}

#[test]
fn shards_and_index_that_disagree() {
    assert_eq!(
        refuse_index(r#"{"weight_map":{"c":"three.safetensors","a":"one.safetensors","b":"three.safetensors"}}"#),
        "DIR: found no file `three.safetensors`, accepted: every shard of the index (tensor `b` lies in this one)"
    );
    assert_eq!(
        refuse_index(r#"{"weight_map":{"a":"one.safetensors","c":"two.safetensors"}}"#),
        format!("two.safetensors: tensor `c`: found nothing, accepted: a tensor of this name ({INDEX} places it here)")
    );
    // Each tensor is there, in the other file.
    assert!(
        refuse_index(r#"{"weight_map":{"b":"one.safetensors","a":"two.safetensors"}}"#)
            .starts_with("one.safetensors: tensor `b`: found nothing")
    );
}

#[test]
fn tensors_in_two_shards() {
    let twice = |index: Option<&[u8]>| {
        let (one, two) = (shard(&["a", "x"]), shard(&["b", "x"]));
        let mut files: Vec<(&str, &[u8])> = vec![
            ("config.json", b"{}"),
            ("one.safetensors", &one),
            ("two.safetensors", &two),
        ];
        files.extend(index.map(|i| (INDEX, i)));
        refusal(&folder(&files), "")
    };
    let said = "two.safetensors: tensor `x`: found here and in one.safetensors, accepted: one of them";
    assert_eq!(twice(None), said);
    assert_eq!(
        twice(Some(
            br#"{"weight_map":{"a":"one.safetensors","b":"two.safetensors","x":"one.safetensors"}}"#
        )),
        said
    );
}

#[test]
fn a_broken_shard_is_named() {
    let files: [(&str, &[u8]); 4] = [
        ("config.json", b"{}"),
        ("one.safetensors", &shard(&["a"])),
        ("three.safetensors", b"12345678"),
        ("two.safetensors", &shard(&["b"])[..20]),
    ];
    let said = refusal(&folder(&files), "");
    assert!(said.starts_with("three.safetensors: header length: found "), "{said}");
}

#[test]
fn fp8_and_fp4_weights_without_scales() {
    let dir = model("{}", &[("l.weight", "F8_E4M3", "[2,2]", 4), ("p", "I8", "[2,2]", 4)]);
    let c = open(dir.path());
    assert!(c.warnings.is_empty() && c.tensor("l.weight").is_none());
    let accepted = "accepted: F32, F16, BF16, F8_E4M3 with scales, packed FP4 (I8 or U8 with scales), I32, I64";
    assert_eq!(
        words(dir.path(), c.require("l.weight", &[2, 2]).unwrap_err()),
        format!(
            "model.safetensors: tensor `l.weight`: found dtype F8_E4M3 without its scales (`l.scale` or \
             `l.weight_scale_inv`), {accepted}"
        )
    );
    assert_eq!(
        words(dir.path(), c.require("p", &[2, 4]).unwrap_err()),
        format!("model.safetensors: tensor `p`: found dtype I8 without FP4 scales beside it, {accepted}")
    );
    // Scales of another 8-bit quantisation: one per row.
    let dir = model("{}", &[("p", "I8", "[2,32]", 64), ("p.scale", "F32", "[2,1]", 8)]);
    assert_eq!(
        words(dir.path(), open(dir.path()).require("p", &[2, 64]).unwrap_err()),
        format!(
            "model.safetensors: tensor `p`: found dtype I8 with scales `p.scale` of F32 [2, 1], not those of packed \
             FP4, {accepted}"
        )
    );
}

#[test]
fn scales_of_the_wrong_shape_or_dtype() {
    let fp8 = ("l.weight", "F8_E4M3", "[130,128]", 130 * 128);
    assert_eq!(
        refusal(&model("{}", &[fp8, ("l.scale", "F32", "[1,1]", 4)]), ""),
        "model.safetensors: tensor `l.scale`: found shape [1, 1], accepted: [2, 1] (`l.weight` [130, 128] in blocks \
         of 128 x 128)"
    );
    assert_eq!(
        refusal(&model("{}", &[fp8, ("l.weight_scale_inv", "F32", "[2]", 8)]), ""),
        "model.safetensors: tensor `l.weight_scale_inv`: found shape [2], accepted: [2, 1] (`l.weight` [130, 128] in \
         blocks of 128 x 128)"
    );
    let config = r#"{"quantization_config":{"weight_block_size":[64,32]}}"#;
    assert!(
        refusal(&model(config, &[fp8, ("l.scale", "F8_E8M0", "[2,1]", 2)]), "")
            .ends_with("found shape [2, 1], accepted: [3, 4] (`l.weight` [130, 128] in blocks of 64 x 32)")
    );
    assert_eq!(
        refusal(&model("{}", &[fp8, ("l.scale", "F64", "[2,1]", 16)]), ""),
        "model.safetensors: tensor `l.scale`: found dtype F64 for the scales of `l.weight`, accepted: F32, BF16, F8_E8M0"
    );
    assert_eq!(
        refusal(
            &model("{}", &[("n", "F8_E4M3", "[4]", 4), ("n.scale", "F32", "[]", 4)]),
            ""
        ),
        "model.safetensors: tensor `n.scale`: found scales of `n`, which has shape [4], accepted: scales of matrices"
    );
    assert_eq!(
        refusal(
            &model("{}", &[("p", "I8", "[2,32]", 64), ("p.scale", "F8_E8M0", "[2,1]", 2)]),
            ""
        ),
        "model.safetensors: tensor `p.scale`: found shape [2, 1], accepted: [2, 2] (`p` [2, 64] in blocks of 1 x 32)"
    );
}

#[test]
fn a_file_of_a_folder_stands_for_the_folder() {
    let dir = folder(&[("config.json", b"{\"k\":1}"), ("model.safetensors", &shard(&["a"]))]);
    for name in ["config.json", "model.safetensors"] {
        let c = open(&dir.path().join(name));
        assert_eq!(
            (c.kind, c.config_path()),
            (Kind::HfFolder, dir.path().join("config.json"))
        );
    }
    let dir = folder(&[("m.gguf", &Gguf::llama().build())]);
    let c = open(dir.path());
    assert_eq!((c.kind, c.config_path()), (Kind::Gguf, dir.path().join("m.gguf")));
}

#[test]
fn cancelling_stops_before_the_next_file() {
    /// Cancelled after so many questions.
    struct Patience(AtomicU64);
    impl Progress for Patience {
        fn report(&self, _: u64, _: u64) {}
        fn cancelled(&self) -> bool {
            let left = self.0.load(Ordering::SeqCst);
            self.0.store(left.saturating_sub(1), Ordering::SeqCst);
            left == 0
        }
    }
    let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &shard(&["a"]))]);
    for patience in 0..2 {
        let error = Checkpoint::open(dir.path(), &Patience(AtomicU64::new(patience))).unwrap_err();
        assert!(matches!(error, CheckpointError::Cancelled), "{error}");
    }
    assert!(Checkpoint::open(dir.path(), &Patience(AtomicU64::new(2))).is_ok());
}
