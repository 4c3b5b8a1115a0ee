//! Broken GGUF files: each is refused with one message naming the file, the tensor or field, what was found and what is
//! accepted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{Gguf, folder, open, refuse_gguf, string, words};

/// An array's type and count.
fn array(kind: u32, count: u64) -> Vec<u8> {
    let mut out = kind.to_le_bytes().to_vec();
    out.extend(count.to_le_bytes());
    out
}

#[test]
fn wrong_magic() {
    let mut g = Gguf::llama();
    g.magic = *b"GGJT";
    assert_eq!(g.refusal(), "x.gguf: the magic: found `GGJT`, accepted: `GGUF`");
    g.magic = [0, b'\n', 0xFF, b'F'];
    assert_eq!(
        g.refusal(),
        "x.gguf: the magic: found `\\x00\\n\\xffF`, accepted: `GGUF`"
    );
}

#[test]
fn versions() {
    let mut g = Gguf::llama();
    for version in [0, 1, 4, 99, 3u32.swap_bytes()] {
        g.version = version;
        assert_eq!(
            g.refusal(),
            format!("x.gguf: the GGUF version: found {version}, accepted: 2, 3 (little endian)")
        );
    }
    // Version 2 differs from 3 only in saying nothing of big-endian files.
    g.version = 2;
    open(folder(&[("x.gguf", &g.build())]).path());
}

#[test]
fn truncated_at_every_byte() {
    let g = Gguf::llama()
        .with("general.alignment", 4, &32u32.to_le_bytes())
        .with("some.words", 9, &[array(8, 1), string("word")].concat())
        .with("some.numbers", 9, &[array(6, 2), vec![0; 8]].concat())
        .tensor("a", &[4, 2], 0, 0)
        .data(32);
    let whole = g.build();
    open(folder(&[("x.gguf", &whole)]).path());
    let head = g.head().len();
    for cut in 0..whole.len() {
        let said = refuse_gguf(&whole[..cut]);
        assert!(said.starts_with("x.gguf: "), "{cut}: {said}");
        let parts: &[&str] = match cut {
            0 => &["found an empty file, accepted: "],
            1..4 => &["truncated: the magic needs 4 bytes at 0, "],
            4..8 => &["truncated: the version needs 4 bytes at 4, "],
            8..16 => &["truncated: the tensor count needs 8 bytes at 8, "],
            16..24 => &[
                "the tensor count: found 1, accepted: at most 0",
                "the metadata count needs 8",
            ],
            _ if cut < head => &["truncated: ", "accepted: at most "],
            _ => &["tensor `a`: found 32 bytes at offset 0, accepted: within the file's "],
        };
        assert!(parts.iter().any(|p| said.contains(p)), "{cut}: {said}");
    }
}

#[test]
fn counts_that_cannot_be() {
    let mut g = Gguf::llama();
    g.tensor_count = Some(1 << 60);
    let left = g.build().len() - 16;
    assert_eq!(
        g.refusal(),
        format!(
            "x.gguf: the tensor count: found 1152921504606846976, accepted: at most {} (bytes left in the file)",
            left / 24
        )
    );
    g.tensor_count = None;
    g.pair_count = Some(1 << 60);
    assert_eq!(
        g.refusal(),
        format!(
            "x.gguf: the metadata count: found 1152921504606846976, accepted: at most {} (bytes left in the file)",
            (left - 8) / 13
        )
    );
    for n in [1u64 << 60, u64::MAX] {
        let text = Gguf::llama().with("k", 8, &n.to_le_bytes()).head();
        assert_eq!(
            refuse_gguf(&text),
            format!("x.gguf: field `k`: found {n}, accepted: at most 0 (bytes left in the file)")
        );
        for kind in 0..=12 {
            let list = Gguf::llama().with("k", 9, &array(kind, n)).head();
            assert_eq!(
                refuse_gguf(&list),
                format!("x.gguf: field `k`: found {n}, accepted: at most 0 (bytes left in the file)")
            );
        }
        let mut key = Gguf::llama();
        key.pairs.push(n.to_le_bytes().to_vec());
        key.pair_count = Some(1);
        key.pairs.swap_remove(0);
        assert!(
            refuse_gguf(&key.build()).starts_with(&format!("x.gguf: a metadata key: found {n}, accepted: at most "))
        );
        let mut name = Gguf::llama().tensor("a", &[1], 0, 0);
        name.infos[0].splice(..8, n.to_le_bytes());
        assert!(
            refuse_gguf(&name.build()).starts_with(&format!("x.gguf: a tensor name: found {n}, accepted: at most "))
        );
    }
}

#[test]
fn values_of_unknown_type() {
    for kind in [13, 99, u32::MAX] {
        assert_eq!(
            Gguf::llama().with("some.key", kind, &[0; 64]).refusal(),
            format!("x.gguf: field `some.key`: found value type {kind}, accepted: 0 to 12")
        );
        for count in [0, 1] {
            let list = [array(kind, count), vec![0; 64]].concat();
            assert_eq!(
                Gguf::llama().with("some.key", 9, &list).refusal(),
                format!("x.gguf: field `some.key`: found an array of value type {kind}, accepted: 0 to 12")
            );
        }
    }
    assert_eq!(
        Gguf::llama().with("k", 10, &u64::MAX.to_le_bytes()).refusal(),
        "x.gguf: field `k`: found 18446744073709551615, accepted: below 2^63"
    );
    let nest = |depth: usize| {
        let value = [array(9, 1).repeat(depth), array(0, 0)].concat();
        Gguf::llama().with("k", 9, &value)
    };
    open(folder(&[("x.gguf", &nest(3).build())]).path());
    for depth in [4, 5, 5000] {
        assert_eq!(
            nest(depth).refusal(),
            "x.gguf: field `k`: found arrays nested deeper than 4, accepted: up to 4"
        );
    }
}

#[test]
fn keys_and_tensors_that_appear_twice() {
    assert_eq!(
        Gguf::llama().with("llama.block_count", 4, &[2, 0, 0, 0]).refusal(),
        "x.gguf: field `llama.block_count`: found twice, accepted: once"
    );
    let twice = |first: (&str, u32), second: (&str, u32)| {
        Gguf::llama()
            .tensor(first.0, &[8], first.1, 0)
            .tensor(second.0, &[8], second.1, 32)
            .data(64)
            .refusal()
    };
    let said = "x.gguf: tensor `output.weight`: found twice, accepted: once";
    for kinds in [(0, 0), (0, 99), (99, 0), (99, 99)] {
        assert_eq!(twice(("output.weight", kinds.0), ("output.weight", kinds.1)), said);
    }
    // Two names for one tensor.
    assert_eq!(twice(("lm_head.weight", 0), ("output.weight", 0)), said);
}

#[test]
fn tensors_of_unknown_type_are_reported_when_needed() {
    let g = Gguf::llama()
        .tensor("blk.0.attn_q.weight", &[256, 2], 10, 0)
        .tensor("odd", &[4], 4_000_000_000, 192)
        .data(256);
    let dir = folder(&[("x.gguf", &g.build())]);
    let c = open(dir.path());
    let accepted = "accepted: F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q6_K";
    for (name, kind) in [
        ("model.layers.0.self_attn.q_proj.weight", 10u32),
        ("odd", 4_000_000_000),
    ] {
        assert!(c.tensor(name).is_none());
        assert_eq!(
            words(dir.path(), c.require(name, &[2, 256]).unwrap_err()),
            format!("x.gguf: tensor `{name}`: found dtype ggml type {kind}, {accepted}")
        );
    }
}

#[test]
fn tensors_outside_the_file() {
    let at = |offset| Gguf::llama().tensor("a", &[8], 0, offset).data(64).refusal();
    let outside = |offset: u64| {
        format!(
            "x.gguf: tensor `a`: found 32 bytes at offset {offset}, accepted: within the file's 64 bytes of data (is \
             it truncated?)"
        )
    };
    for offset in [64, 96, 1 << 60, u64::MAX - 31] {
        assert_eq!(at(offset), outside(offset));
    }
    for offset in [1, 16, 33, u64::MAX] {
        assert_eq!(
            at(offset),
            format!("x.gguf: tensor `a`: offset: found {offset}, accepted: a multiple of the alignment 32")
        );
    }
}

#[test]
fn tensors_that_overlap() {
    let g = Gguf::llama()
        .tensor("a", &[8], 0, 64)
        .tensor("b", &[16], 0, 32)
        .data(96);
    assert_eq!(
        g.refusal(),
        "x.gguf: tensor `a`: overlaps `b`: found offset 64, accepted: from 96 on"
    );
    let same = Gguf::llama().tensor("a", &[8], 0, 0).tensor("b", &[8], 0, 0).data(32);
    assert_eq!(
        same.refusal(),
        "x.gguf: tensor `b`: overlaps `a`: found offset 0, accepted: from 32 on"
    );
}

#[test]
fn shapes_that_cannot_be() {
    let five = Gguf::llama().tensor("a", &[1; 5], 0, 0).data(32);
    assert_eq!(
        five.refusal(),
        "x.gguf: tensor `a`: found 5 dimensions, accepted: up to 4"
    );
    let mut many = Gguf::llama().tensor("a", &[1], 0, 0).data(32);
    many.infos[0].splice(9..13, u32::MAX.to_le_bytes());
    assert_eq!(
        many.refusal(),
        "x.gguf: tensor `a`: found 4294967295 dimensions, accepted: up to 4"
    );
    let shape = |dims: &[u64], kind| Gguf::llama().tensor("a", dims, kind, 0).data(32).refusal();
    let accepted = "accepted: rows of whole blocks, fewer than 2^64 bytes in all";
    assert_eq!(
        shape(&[1 << 40, 1 << 40], 0),
        format!("x.gguf: tensor `a`: shape: found [1099511627776, 1099511627776] in f32, {accepted}")
    );
    assert_eq!(
        shape(&[33, 2], 8),
        format!("x.gguf: tensor `a`: shape: found [2, 33] in q8_0, {accepted}")
    );
    assert_eq!(
        shape(&[128], 12),
        format!("x.gguf: tensor `a`: shape: found [128] in q4_k, {accepted}")
    );
}

#[test]
fn alignments() {
    let aligned = |a: u32| {
        let mut g = Gguf::llama()
            .with("general.alignment", 4, &a.to_le_bytes())
            .tensor("a", &[2], 0, 0)
            .tensor("b", &[2], 0, u64::from(a))
            .data(a as usize + 8);
        g.align = a.max(1) as usize;
        g
    };
    for a in [0, 1, 3, 4, 33, 48, 131_072, u32::MAX - 1] {
        let mut g = aligned(8).without("general.alignment");
        g = g.with("general.alignment", 4, &a.to_le_bytes());
        assert_eq!(
            g.refusal(),
            format!("x.gguf: field `general.alignment`: found {a}, accepted: a power of two from 8 to 65536")
        );
    }
    assert!(
        Gguf::llama()
            .with("general.alignment", 8, &string("32"))
            .refusal()
            .contains("field `general.alignment`: found \"32\", accepted: a power of two")
    );
    for a in [8, 32, 4096, 65536] {
        let g = aligned(a);
        let dir = folder(&[("x.gguf", &g.build())]);
        let c = open(dir.path());
        let b = &c.require("b", &[2]).unwrap().bytes;
        assert_eq!(b[..], g.data[a as usize..]);
    }
}

#[test]
fn architectures_we_do_not_run() {
    let arch = |kind, value: &[u8]| {
        Gguf::llama()
            .without("general.architecture")
            .with("general.architecture", kind, value)
            .refusal()
    };
    let said = |found| format!("x.gguf: field `general.architecture`: found {found}, accepted: llama, qwen2");
    assert_eq!(arch(8, &string("mamba")), said("\"mamba\""));
    assert_eq!(arch(4, &[1, 0, 0, 0]), said("1"));
    assert_eq!(arch(9, &[array(8, 1), string("llama")].concat()), said("1 strings"));
    assert_eq!(Gguf::llama().without("general.architecture").refusal(), said("nothing"));
}

#[test]
fn metadata_that_is_missing_or_wrong() {
    for key in [
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "context_length",
        "attention.head_count_kv",
        "attention.key_length",
        "rope.dimension_count",
    ] {
        let key = format!("llama.{key}");
        let least = Gguf::llama().without(&key);
        let said = |found| format!("x.gguf: field `{key}`: found {found}, accepted: a whole number from 1 to 2^31 - 1");
        if least.pairs.len() < Gguf::llama().pairs.len() {
            assert_eq!(least.refusal(), said("nothing"));
        }
        let with = |kind, value: &[u8]| least.clone().with(&key, kind, value).refusal();
        assert_eq!(with(4, &[0; 4]), said("0"));
        assert_eq!(with(5, &(-3i32).to_le_bytes()), said("-3"));
        assert_eq!(with(10, &(1u64 << 40).to_le_bytes()), said("1099511627776"));
        assert_eq!(with(6, &2f32.to_le_bytes()), said("2.0"));
        assert_eq!(with(7, &[1]), said("true"));
        assert_eq!(with(8, &string("two")), said("\"two\""));
        assert_eq!(with(9, &[array(5, 2), vec![0; 8]].concat()), said("2 numbers"));
    }
    for key in ["attention.layer_norm_rms_epsilon", "rope.freq_base"] {
        let key = format!("llama.{key}");
        let said = |found| format!("x.gguf: field `{key}`: found {found}, accepted: a positive number");
        let with = |kind, value: &[u8]| Gguf::llama().without(&key).with(&key, kind, value).refusal();
        assert_eq!(with(6, &f32::NAN.to_le_bytes()), said("NaN"));
        assert_eq!(with(12, &(-1f64).to_le_bytes()), said("-1.0"));
        assert_eq!(with(8, &string("x")), said("\"x\""));
    }
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    assert_eq!(
        Gguf::llama().without(epsilon).refusal(),
        format!("x.gguf: field `{epsilon}`: found nothing, accepted: a positive number")
    );
    let scaled = Gguf::llama().with("llama.rope.scaling.type", 8, &string("linear"));
    assert_eq!(
        scaled.refusal(),
        "x.gguf: field `llama.rope.scaling.factor`: found nothing, accepted: a positive number"
    );
    let partial = Gguf::llama().with("llama.rope.dimension_count", 4, &[8, 0, 0, 0]);
    assert_eq!(
        partial.refusal(),
        "x.gguf: field `llama.rope.dimension_count`: found 8, accepted: the head width 16"
    );
    // More heads than columns leave no head width.
    let heads =
        Gguf::llama()
            .without("llama.attention.head_count")
            .with("llama.attention.head_count", 4, &[33, 0, 0, 0]);
    assert!(
        heads
            .refusal()
            .starts_with("x.gguf: field `llama.attention.key_length`: found nothing, accepted: ")
    );
}
