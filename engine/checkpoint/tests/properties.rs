//! Whatever the bytes, opening a checkpoint gives one or an error and never panics; what is sound comes back as it was.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use checkpoint::write::{Spec, Value, gguf_spec, write_gguf, write_safetensors};
use checkpoint::{Checkpoint, Silent};
use common::{Gguf, check, data, folder, laid_out, open, spec, string};
use kernels::ir::Format;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use tempfile::TempDir;

/// Opens; an error must have words, tensors must have the bytes of their shape and the scales of their blocks.
fn survives(path: &Path) {
    match Checkpoint::open(path, &Silent) {
        Ok(c) => {
            for t in c.tensors() {
                let cols = t.shape.last().copied().unwrap_or(1);
                let rows: usize = t.shape.iter().rev().skip(1).product();
                assert_eq!(Some(t.bytes.len()), t.format.row_bytes(cols).map(|n| n * rows), "{t:?}");
                if let Some(s) = &t.scales {
                    let blocks = [
                        t.shape[t.shape.len() - 2].div_ceil(s.spec.block_rows),
                        cols.div_ceil(s.spec.block_cols),
                    ];
                    assert!(s.shape.ends_with(&blocks), "{t:?}");
                }
            }
        }
        Err(e) => assert!(e.to_string().contains(": ") && !e.to_string().contains('\n'), "{e}"),
    }
}

thread_local! {
    /// One folder for all cases of a test: making folders takes longer than reading them.
    static DIR: TempDir = tempfile::tempdir().unwrap();
}

/// Survives a folder of these files (those of earlier cases are replaced, or stay), or one of them.
fn survives_with(files: &[(&str, &[u8])], open: &str) {
    DIR.with(|dir| {
        for (name, bytes) in files {
            let path = dir.path().join(name);
            // Some file systems write a truncated file out at once, which is slow; a new one can wait.
            let _ = std::fs::remove_file(&path);
            std::fs::write(path, bytes).unwrap();
        }
        survives(&dir.path().join(open));
    });
}

fn survives_as_safetensors(bytes: &[u8]) {
    survives_with(&[("config.json", b"{}"), ("model.safetensors", bytes)], "");
}

fn survives_as_gguf(bytes: &[u8]) {
    survives_with(&[("x.gguf", bytes)], "x.gguf");
}

/// A sound safetensors file with plain, FP8 and FP4 tensors.
fn sound_safetensors() -> Vec<u8> {
    laid_out(&[
        ("a", "F32", "[2,3]", 24),
        ("l.weight", "F8_E4M3", "[4,4]", 16),
        ("l.weight_scale_inv", "F32", "[1,1]", 4),
        ("p.weight", "I8", "[2,16]", 32),
        ("p.scale", "F8_E8M0", "[2,1]", 2),
        ("odd", "U16", "[]", 2),
    ])
}

/// A sound GGUF file with every kind of metadata.
fn sound_gguf() -> Vec<u8> {
    let list =
        |kind: u32, n: u64, items: Vec<u8>| [kind.to_le_bytes().to_vec(), n.to_le_bytes().to_vec(), items].concat();
    let mut g = Gguf::llama()
        .with("general.alignment", 4, &[64, 0, 0, 0])
        .with("w", 9, &list(8, 2, [string("one"), string("two")].concat()))
        .with("f", 9, &list(6, 3, vec![1; 12]))
        .with("n", 9, &list(9, 1, list(0, 2, vec![1, 2])))
        .with("b", 7, &[1])
        .with("d", 12, &[0; 8])
        .tensor("token_embd.weight", &[32, 2], 8, 0)
        .tensor("output.weight", &[4, 2], 0, 128)
        .tensor("odd", &[4], 77, 192)
        .data(256);
    g.align = 64;
    g.build()
}

/// A change to a file.
#[derive(Clone, Debug)]
enum Change {
    /// One byte becomes another.
    Byte(Index, u8),
    /// Eight bytes become a number, often one at an edge.
    Number(Index, u64),
    /// A part is left out.
    Remove(Index, usize),
    /// Bytes are put in.
    Insert(Index, Vec<u8>),
    /// Everything from a place on is gone.
    Cut(Index),
}

fn change() -> impl Strategy<Value = Change> {
    let edges = select(vec![
        0,
        1,
        2,
        63,
        64,
        1 << 31,
        u64::from(u32::MAX),
        1 << 60,
        1 << 63,
        u64::MAX - 7,
        u64::MAX,
    ]);
    let at = any::<Index>;
    prop_oneof![
        4 => (at(), any::<u8>()).prop_map(|(i, b)| Change::Byte(i, b)),
        4 => (at(), b' '..=b'~').prop_map(|(i, b)| Change::Byte(i, b)),
        4 => (at(), edges).prop_map(|(i, n)| Change::Number(i, n)),
        1 => (at(), 1..16usize).prop_map(|(i, n)| Change::Remove(i, n)),
        1 => (at(), prop::collection::vec(any::<u8>(), 1..16)).prop_map(|(i, b)| Change::Insert(i, b)),
        1 => at().prop_map(Change::Cut),
    ]
}

fn changed(mut file: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for c in changes {
        let place = |i: &Index| i.index(file.len() + 1);
        match c {
            Change::Byte(i, b) => {
                let i = place(i);
                file.splice(i..file.len().min(i + 1), [*b]);
            }
            Change::Number(i, n) => {
                let i = place(i);
                file.splice(i..file.len().min(i + 8), n.to_le_bytes());
            }
            Change::Remove(i, n) => {
                let i = place(i);
                file.drain(i..file.len().min(i + n));
            }
            Change::Insert(i, b) => {
                let i = place(i);
                file.splice(i..i, b.iter().copied());
            }
            Change::Cut(i) => file.truncate(place(i)),
        }
    }
    file
}

/// A header of the right grammar with arbitrary names, dtypes, shapes and offsets.
fn wild_header() -> impl Strategy<Value = String> {
    let dtypes = select(vec!["F32", "BF16", "F8_E4M3", "F8_E8M0", "I8", "F4", "F6_E2M3", "X"]);
    let names = select(vec!["a", "a.weight", "a.scale", "a.weight_scale_inv", "b"]);
    let dims = prop_oneof![4 => 0..5u64, 1 => any::<u64>()];
    let shape = prop::collection::vec(dims, 0..4);
    let offsets = prop_oneof![4 => (0..40u64, 0..40u64), 1 => any::<(u64, u64)>()];
    prop::collection::vec((names, dtypes, shape, offsets), 0..4).prop_map(|list| {
        let entries: Vec<String> = list
            .iter()
            .map(|(name, dtype, shape, (start, end))| common::entry(name, dtype, &format!("{shape:?}"), *start, *end))
            .collect();
        format!("{{{}}}", entries.join(","))
    })
}

/// Tensor names to formats and shapes.
fn tensor_sets(formats: Vec<Format>) -> impl Strategy<Value = BTreeMap<String, (Format, Vec<usize>)>> {
    let shape = prop::collection::vec(0..6usize, 1..=4);
    prop::collection::btree_map("[a-z_.\u{e9}\"]{1,12}", (select(formats), shape), 0..6)
}

#[test]
fn the_files_to_be_changed_are_sound() {
    let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &sound_safetensors())]);
    assert_eq!(open(dir.path()).tensors().count(), 3);
    let dir = folder(&[("x.gguf", &sound_gguf())]);
    assert_eq!(open(dir.path()).tensors().count(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives_as_safetensors(&bytes);
        survives_as_gguf(&bytes);
        survives_as_gguf(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        survives_as_safetensors(&[&(bytes.len() as u64).to_le_bytes()[..], &bytes].concat());
    }

    #[test]
    fn arbitrary_headers(header in wild_header(), n in 0..40usize) {
        survives_as_safetensors(&common::safetensors(&header, &vec![0; n]));
    }

    #[test]
    fn arbitrary_configurations(config in ".{0,40}") {
        let file = sound_safetensors();
        survives_with(&[("config.json", config.as_bytes()), ("model.safetensors", &file)], "");
    }

    #[test]
    fn arbitrary_indices(index in ".{0,40}", nested in any::<bool>()) {
        let index = if nested { format!("{{\"weight_map\":{{\"a\":{index:?}}}}}") } else { index };
        let name = "model.safetensors.index.json";
        survives_with(&[("config.json", b"{}"), (name, index.as_bytes()), ("x.safetensors", b"")], "");
    }

    #[test]
    fn changed_safetensors(changes in prop::collection::vec(change(), 1..4)) {
        survives_as_safetensors(&changed(sound_safetensors(), &changes));
    }

    #[test]
    fn changed_gguf(changes in prop::collection::vec(change(), 1..4)) {
        survives_as_gguf(&changed(sound_gguf(), &changes));
    }

    #[test]
    fn safetensors_round_trip(
        set in tensor_sets(vec![Format::F32, Format::F16, Format::Bf16, Format::I32, Format::I64]),
    ) {
        let specs: Vec<Spec> = set
            .iter()
            .map(|(name, (format, shape))| {
                let dtype = match format {
                    Format::F32 => "F32",
                    Format::F16 => "F16",
                    Format::Bf16 => "BF16",
                    Format::I32 => "I32",
                    _ => "I64",
                };
                spec(name, dtype, shape, shape.iter().product::<usize>() * format.block_bytes())
            })
            .collect();
        let dir = folder(&[("config.json", b"{}")]);
        write_safetensors(&dir.path().join("model.safetensors"), &specs, |i| data(&specs, i)).unwrap();
        let c = open(dir.path());
        prop_assert_eq!(c.tensors().count(), specs.len());
        for (i, s) in specs.iter().enumerate() {
            check(&c, s, set[&s.name].0, &s.shape, &data(&specs, i));
        }
    }

    #[test]
    fn fp8_round_trip(rows in 1..300usize, cols in 1..300usize, e8m0 in any::<bool>(), inverse in any::<bool>()) {
        let shape = [rows.div_ceil(128), cols.div_ceil(128)];
        let (dtype, size) = if e8m0 { ("F8_E8M0", 1) } else { ("F32", 4) };
        let name = if inverse { "l.weight_scale_inv" } else { "l.scale" };
        let specs = [
            spec("l.weight", "F8_E4M3", &[rows, cols], rows * cols),
            spec(name, dtype, &shape, shape[0] * shape[1] * size),
        ];
        let dir = folder(&[("config.json", b"{}")]);
        write_safetensors(&dir.path().join("model.safetensors"), &specs, |i| data(&specs, i)).unwrap();
        let c = open(dir.path());
        check(&c, &specs[0], Format::F8E4m3, &[rows, cols], &data(&specs, 0));
        let scales = c.tensor("l.weight").unwrap().scales.as_ref().unwrap();
        prop_assert_eq!(&scales.shape[..], &shape[..]);
        prop_assert_eq!(&scales.bytes[..], &data(&specs, 1)[..]);
    }

    #[test]
    fn gguf_round_trip(
        set in tensor_sets(vec![Format::F32, Format::Q8_0, Format::Q4_0, Format::Q5_0, Format::Q4K, Format::Q6K]),
        words in prop::collection::vec(".{0,8}", 0..5),
    ) {
        let specs: Vec<Spec> = set
            .iter()
            .map(|(name, (format, shape))| {
                let mut shape = shape.clone();
                *shape.last_mut().unwrap() *= format.block_len();
                gguf_spec(name, *format, &shape).unwrap()
            })
            .collect();
        let mut metadata: Vec<(String, Value)> = [
            ("block_count", 1),
            ("embedding_length", 32),
            ("feed_forward_length", 64),
            ("attention.head_count", 2),
            ("context_length", 128),
            ("attention.layer_norm_rms_epsilon", 1),
        ]
        .iter()
        .map(|(k, v)| (format!("qwen2.{k}"), Value::Int(*v)))
        .collect();
        metadata.push(("general.architecture".into(), Value::Text("qwen2".into())));
        metadata.push(("tokenizer.ggml.model".into(), Value::Text("gpt2".into())));
        metadata.push(("tokenizer.ggml.tokens".into(), Value::Texts(words.clone())));
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        write_gguf(&path, &metadata, &specs, |i| data(&specs, i)).unwrap();
        let c = open(&path);
        prop_assert_eq!(c.tensors().count(), specs.len());
        for (i, s) in specs.iter().enumerate() {
            check(&c, s, set[&s.name].0, &s.shape, &data(&specs, i));
        }
        let checkpoint::TokenizerSource::Gguf(tokenizer) = c.tokenizer else {
            panic!("no tokenizer");
        };
        prop_assert_eq!(tokenizer.tokens, words);
    }
}
