//! Byte layouts against `tests/goldens/golden-bytes`: every tensor, byte for byte.
#![allow(missing_docs, clippy::unwrap_used)]

use kernels::cpu::formats::{BlockScales, Matrix};
use kernels::cpu::records::{Model1Page, RoundTrip, RowFormat, hadamard};
use kernels::ir::{Format, Layout, ScaleFormat, ScaleSpec};
use safetensors::SafeTensors;

const FILE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/goldens/golden-bytes/bytes.safetensors"
);

fn with_goldens(test: impl FnOnce(&SafeTensors<'_>)) {
    let raw = std::fs::read(FILE).unwrap();
    test(&SafeTensors::deserialize(&raw).unwrap());
}

fn bytes<'a>(file: &SafeTensors<'a>, name: &str) -> &'a [u8] {
    file.tensor(name).unwrap().data()
}

/// A bf16 tensor as f32 rows of `width`.
fn bf16_rows(file: &SafeTensors<'_>, name: &str, width: usize) -> Vec<Vec<f32>> {
    let value = |b: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    bytes(file, name)
        .chunks_exact(2 * width)
        .map(|r| r.chunks_exact(2).map(value).collect())
        .collect()
}

fn f32_values(file: &SafeTensors<'_>, name: &str) -> Vec<f32> {
    bytes(file, name)
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

fn assert_bits(got: &[f32], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!(
            a.to_bits() == b.to_bits() || (*a == 0.0 && *b == 0.0),
            "{what}, value {i}: {a} for {b}"
        );
    }
}

fn check_page(file: &SafeTensors<'_>, name: &str, block_rows: usize) {
    let page_of = Model1Page { block_rows };
    let want = bytes(file, &format!("{name}.page_u8"));
    let input = bf16_rows(file, &format!("{name}.input_bf16"), 512);
    let dequant = bf16_rows(file, &format!("{name}.dequant_bf16"), 512);
    assert_eq!((want.len(), input.len()), (page_of.stride(), block_rows));
    let mut page = vec![0; page_of.stride()];
    let mut stats = RoundTrip::default();
    for (i, row) in input.iter().enumerate() {
        let (nope, rope) = row.split_at(448);
        page_of.write_row(
            &mut page,
            i,
            nope.try_into().unwrap(),
            rope.try_into().unwrap(),
            &mut stats,
        );
    }
    assert!(
        page == want,
        "{name}: first difference at byte {:?}",
        page.iter().zip(want).position(|(a, b)| a != b)
    );
    for (i, row) in dequant.iter().enumerate() {
        let mut out = [0.0; 512];
        page_of.read_row(want, i, &mut out);
        assert_bits(&out, row, &format!("{name} row {i}"));
    }
    assert_eq!((stats.saturated, stats.count), (0, 448 * block_rows as u64));
    assert!(stats.relative() < 0.04, "{}", stats.relative());
}

#[test]
fn model1_pages() {
    with_goldens(|file| {
        check_page(file, "model1_b2", 2);
        check_page(file, "model1_b64", 64);
    });
}

#[test]
fn v32_rows() {
    with_goldens(|file| {
        let input = bf16_rows(file, "v32.input_bf16", 576);
        let dequant = f32_values(file, "v32.dequant_f32");
        let want = bytes(file, "v32.rows_u8");
        for (i, row) in input.iter().enumerate() {
            let mut out = [0; 656];
            RowFormat::Fp8V32.encode(row, 64, &mut out, &mut RoundTrip::default());
            assert_eq!(out, want[656 * i..656 * (i + 1)], "row {i}");
            let mut back = [0.0; 576];
            RowFormat::Fp8V32.decode(&out, 64, &mut back);
            assert_bits(&back, &dequant[576 * i..576 * (i + 1)], &format!("row {i}"));
        }
    });
}

#[test]
fn index_rows() {
    with_goldens(|file| {
        let turned = bf16_rows(file, "index.hadamard_bf16", 128);
        let dequant = bf16_rows(file, "index.dequant_bf16", 128);
        let (codes, scales) = (
            bytes(file, "index.codes_packed_u8"),
            bytes(file, "index.scale_ue8m0_u8"),
        );
        for (i, row) in bf16_rows(file, "index.input_bf16", 128).iter().enumerate() {
            let mut x = row.clone();
            hadamard(&mut x);
            x.iter_mut().for_each(|v| *v = half::bf16::from_f32(*v).to_f32());
            assert_bits(&x, &turned[i], &format!("Hadamard of row {i}"));
            let mut out = [0; 68];
            RowFormat::IndexFp4.encode(&x, 0, &mut out, &mut RoundTrip::default());
            assert_eq!(
                (&out[..64], &out[64..]),
                (&codes[64 * i..64 * (i + 1)], &scales[4 * i..4 * (i + 1)]),
                "row {i}"
            );
            let mut back = [0.0; 128];
            RowFormat::IndexFp4.decode(&out, 0, &mut back);
            assert_bits(&back, &dequant[i], &format!("index row {i}"));
        }
    });
}

fn check_weight(
    file: &SafeTensors<'_>,
    name: &str,
    data: &str,
    shape: (usize, usize),
    format: Format,
    block: (usize, usize),
) {
    let spec = ScaleSpec {
        format: ScaleFormat::E8m0,
        block_rows: block.0,
        block_cols: block.1,
    };
    let scales = BlockScales {
        spec,
        data: bytes(file, &format!("{name}.scale")),
    };
    let (rows, cols) = shape;
    let matrix = Matrix::new(rows, cols, format, Layout::OutIn, bytes(file, data), Some(scales)).unwrap();
    let want = f32_values(file, &format!("{name}.dequant_f32"));
    for row in 0..rows {
        let mut out = vec![f32::NAN; cols];
        matrix.decode_row(row, &mut out);
        assert_bits(&out, &want[row * cols..(row + 1) * cols], &format!("{name} row {row}"));
    }
}

#[test]
fn weights() {
    with_goldens(|file| {
        check_weight(file, "fp8w", "fp8w.weight", (200, 320), Format::F8E4m3, (128, 128));
        check_weight(
            file,
            "fp4w",
            "fp4w.weight_packed_i8",
            (8, 128),
            Format::Fp4E2m1,
            (1, 32),
        );
    });
}
