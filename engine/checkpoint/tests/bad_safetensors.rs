//! Broken safetensors files: each is refused with one message naming the file, the tensor or field, what was found and
//! what is accepted.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{entry, folder, laid_out, open, refusal, safetensors, words};

/// The error of a folder whose model.safetensors holds these bytes.
fn refuse(file: &[u8]) -> String {
    refusal(&folder(&[("config.json", b"{}"), ("model.safetensors", file)]), "")
}

/// The error of a file with this header and `data` bytes after it.
fn refuse_header(header: &str, data: usize) -> String {
    refuse(&safetensors(header, &vec![0; data]))
}

#[test]
fn files_too_short_for_a_header() {
    assert_eq!(
        refuse(b""),
        "model.safetensors: found an empty file, accepted: a safetensors or GGUF file"
    );
    assert_eq!(
        refuse(&[0; 7]),
        "model.safetensors: truncated: found 7 bytes, accepted: at least the 8 bytes of the header length"
    );
}

#[test]
fn header_lengths_beyond_the_file() {
    let mut huge = (1u64 << 60).to_le_bytes().to_vec();
    huge.extend(b"{}");
    assert_eq!(
        refuse(&huge),
        "model.safetensors: header length: found 1152921504606846976, accepted: at most 2 \
         (the file has 2 bytes after the length)"
    );
    let mut all = u64::MAX.to_le_bytes().to_vec();
    all.extend(b"{}");
    assert!(refuse(&all).contains("header length: found 18446744073709551615, accepted: at most 2"));
    let mut longer = safetensors("{}", &[]);
    longer[0] = 3;
    assert_eq!(
        refuse(&longer),
        "model.safetensors: header length: found 3, accepted: at most 2 (the file has 2 bytes after the length)"
    );
}

#[test]
fn headers_that_are_not_the_right_json() {
    let bad = |header: &str| refuse_header(header, 0);
    assert_eq!(
        bad(""),
        "model.safetensors: header: found no `{` at its start, accepted: a JSON object"
    );
    assert_eq!(
        bad("[]"),
        "model.safetensors: header: found no `{` at its start, accepted: a JSON object"
    );
    assert!(bad("{\"a\":").starts_with("model.safetensors: header: tensor `a`: EOF while parsing"));
    assert!(bad("{} {}").starts_with("model.safetensors: header: trailing characters"));
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    assert!(
        bad(&deep).starts_with("model.safetensors: header: tensor `a`: "),
        "{}",
        bad(&deep)
    );
    for (stored, part) in [
        (r#"{"shape":[],"data_offsets":[0,0]}"#, "missing field `dtype`"),
        (r#"{"dtype":"F32","data_offsets":[0,0]}"#, "missing field `shape`"),
        (r#"{"dtype":"F32","shape":[]}"#, "missing field `data_offsets`"),
        (
            r#"{"dtype":5,"shape":[],"data_offsets":[0,0]}"#,
            "invalid type: integer `5`, expected a string",
        ),
        (
            r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,0]}"#,
            "invalid value: integer `-1`, expected u64",
        ),
        (
            r#"{"dtype":"F32","shape":[1.5],"data_offsets":[0,0]}"#,
            "invalid type: floating point `1.5`, expected u64",
        ),
        (
            r#"{"dtype":"F32","shape":4,"data_offsets":[0,0]}"#,
            "invalid type: integer `4`, expected a list of whole numbers",
        ),
        (
            r#"{"dtype":"F32","shape":[],"data_offsets":[0]}"#,
            "invalid length 1, expected a tuple of size 2",
        ),
        (
            r#"{"dtype":"F32","shape":[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1],"data_offsets":[0,4]}"#,
            "more than 16 dimensions",
        ),
        ("7", "invalid type: integer `7`, expected struct Stored"),
    ] {
        let said = bad(&format!("{{\"a\":{stored}}}"));
        assert!(
            said.starts_with(&format!("model.safetensors: header: tensor `a`: {part}")),
            "{said}"
        );
    }
    assert!(
        bad(r#"{"__metadata__":{"k":1}}"#)
            .starts_with("model.safetensors: header: `__metadata__`: invalid type: integer `1`, expected a string")
    );
}

#[test]
fn names_that_appear_twice() {
    let header = format!(
        "{{{},{}}}",
        entry("a", "U8", "[1]", 0, 1),
        entry("a", "U8", "[1]", 1, 2)
    );
    let said = refuse_header(&header, 2);
    assert!(
        said.starts_with("model.safetensors: header: `a` appears twice, accepted: once"),
        "{said}"
    );
    let said = refuse_header(r#"{"__metadata__":{},"__metadata__":{}}"#, 0);
    assert!(
        said.starts_with("model.safetensors: header: `__metadata__` appears twice, accepted: once"),
        "{said}"
    );
}

#[test]
fn data_that_is_cut_short_or_too_long() {
    let whole = laid_out(&[("a", "F32", "[2, 3]", 24), ("b", "F32", "[4]", 16)]);
    let head = whole.len() - 40;
    assert_eq!(
        refuse(&whole[..whole.len() - 1]),
        "model.safetensors: tensor `b`: data_offsets: found [24, 40], accepted: within the file's 39 bytes of data \
         (is it truncated?)"
    );
    // Cut anywhere, the file is named and refused.
    for cut in 0..whole.len() {
        let said = refuse(&whole[..cut]);
        assert!(said.starts_with("model.safetensors: "), "{cut}: {said}");
        let part = if cut == 0 {
            "empty file"
        } else if cut < 8 {
            "truncated"
        } else if cut < head {
            "header length"
        } else {
            "data_offsets"
        };
        assert!(said.contains(part), "{cut}: {said}");
    }
    let mut longer = whole;
    longer.push(0);
    assert_eq!(
        refuse(&longer),
        "model.safetensors: found 41 bytes of data, accepted: the 40 that the header accounts for"
    );
}

#[test]
fn tensors_that_overlap_or_leave_gaps() {
    let two = |a: (u64, u64), b: (u64, u64), data| {
        let entries = [entry("a", "U8", "[4]", a.0, a.1), entry("b", "U8", "[4]", b.0, b.1)];
        refuse_header(&format!("{{{}}}", entries.join(",")), data)
    };
    assert_eq!(
        two((0, 4), (3, 7), 7),
        "model.safetensors: tensor `b`: overlaps the tensor before it: found start 3, accepted: 4"
    );
    assert_eq!(
        two((0, 4), (0, 4), 4),
        "model.safetensors: tensor `b`: overlaps the tensor before it: found start 0, accepted: 4"
    );
    assert_eq!(
        two((0, 4), (5, 9), 9),
        "model.safetensors: tensor `b`: leaves a gap before it: found start 5, accepted: 4"
    );
    assert_eq!(
        two((5, 9), (1, 5), 9),
        "model.safetensors: tensor `b`: leaves a gap before it: found start 1, accepted: 0"
    );
    // Reversed, and past the end.
    assert!(two((4, 0), (4, 8), 8).contains("tensor `a`: data_offsets: found [4, 0], accepted: within"));
    assert!(
        refuse_header(&format!("{{{}}}", entry("a", "U8", "[4]", 0, u64::MAX)), 4)
            .contains("tensor `a`: data_offsets: found [0, 18446744073709551615], accepted: within")
    );
}

#[test]
fn bytes_that_do_not_match_the_shape() {
    let one = |dtype, shape, n: usize| refuse_header(&format!("{{{}}}", entry("a", dtype, shape, 0, n as u64)), n);
    assert_eq!(
        one("F32", "[2,3]", 20),
        "model.safetensors: tensor `a`: found 20 bytes, accepted: 24 (F32 [2, 3])"
    );
    assert_eq!(
        one("BF16", "[]", 4),
        "model.safetensors: tensor `a`: found 4 bytes, accepted: 2 (BF16 [])"
    );
    assert_eq!(
        one("F4", "[3]", 1),
        "model.safetensors: tensor `a`: shape: found [3] in F4, accepted: whole bytes"
    );
    assert_eq!(
        one("F32", "[1099511627776,1099511627776]", 4),
        "model.safetensors: tensor `a`: shape: found [1099511627776, 1099511627776], accepted: fewer than 2^64 bits \
         in all"
    );
    // The product fits, its bits do not.
    assert!(one("F32", "[4611686018427387904]", 4).contains("accepted: fewer than 2^64 bits in all"));
}

#[test]
fn dtypes_nobody_knows_are_reported_when_their_tensor_is_needed() {
    let file = laid_out(&[
        ("new", "F5_NEW", "[2]", 2),
        ("old", "F64", "[1]", 8),
        ("ok", "F32", "[1]", 4),
    ]);
    let dir = folder(&[("config.json", b"{}"), ("model.safetensors", &file)]);
    let c = open(dir.path());
    assert!(c.tensor("new").is_none() && c.tensor("old").is_none());
    assert_eq!(c.require("ok", &[1]).unwrap().shape, [1]);
    let accepted = "accepted: F32, F16, BF16, F8_E4M3 with scales, packed FP4 (I8 or U8 with scales), I32, I64";
    assert_eq!(
        words(dir.path(), c.require("new", &[2]).unwrap_err()),
        format!("model.safetensors: tensor `new`: found dtype F5_NEW, {accepted}")
    );
    assert_eq!(
        words(dir.path(), c.require("old", &[1]).unwrap_err()),
        format!("model.safetensors: tensor `old`: found dtype F64, {accepted}")
    );
    assert_eq!(
        words(dir.path(), c.require("none", &[2, 3]).unwrap_err()),
        "DIR: tensor `none`: found nothing, accepted: a tensor of shape [2, 3]"
    );
    assert_eq!(
        words(dir.path(), c.require("ok", &[2]).unwrap_err()),
        "model.safetensors: tensor `ok`: found shape [1], accepted: [2]"
    );
}

#[test]
fn messages_stay_on_one_short_line() {
    let name = "a\\n\\u001b[31m";
    let header = format!("{{{}}}", entry(name, "U8", "[4]", 0, 1));
    assert_eq!(
        refuse_header(&header, 1),
        "model.safetensors: tensor `a\\n\\u{1b}[31m`: found 1 bytes, accepted: 4 (U8 [4])"
    );
    let header = format!("{{{}}}", entry(&"\u{e9}".repeat(100_000), "U8", "[4]", 0, 1));
    let (start, end) = ("\u{e9}".repeat(200), "\u{e9}".repeat(200));
    assert_eq!(
        refuse_header(&header, 1),
        format!("model.safetensors: tensor `{start} [...] {end}`: found 1 bytes, accepted: 4 (U8 [4])")
    );
}

#[test]
fn headers_longer_than_the_format_allows() {
    let dir = folder(&[("config.json", b"{}")]);
    let file = std::fs::File::create(dir.path().join("model.safetensors")).unwrap();
    // A hole: it takes no room on the disk.
    file.set_len(200_000_000).unwrap();
    std::io::Write::write_all(&mut &file, &100_000_001u64.to_le_bytes()).unwrap();
    assert_eq!(
        refusal(&dir, ""),
        "model.safetensors: header length: found 100000001, accepted: at most 100000000 (the file has 199999992 bytes \
         after the length)"
    );
}
