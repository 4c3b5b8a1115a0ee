use super::*;
use proptest::prelude::*;

const SHAPES: [(RowFormat, usize, usize); 14] = [
    (RowFormat::F32, 37, 5),
    (RowFormat::Bf16, 37, 5),
    (RowFormat::Fp8Model1, 512, 64),
    (RowFormat::Fp8B64, 512, 64),
    (RowFormat::Fp8B64, 128, 0),
    (RowFormat::Fp8B64, 100, 0),
    (RowFormat::Fp8B64, 32, 8),
    (RowFormat::Fp8B64, 8, 8),
    (RowFormat::Fp8V32, 576, 64),
    (RowFormat::IndexFp4, 128, 0),
    (RowFormat::IndexFp4, 16, 0),
    (RowFormat::IndexFp4, 45, 0),
    (RowFormat::IndexFp8, 128, 0),
    (RowFormat::IndexFp8, 20, 0),
];

const ISAS: [Isa; 3] = [Isa::Scalar, Isa::Avx2, Isa::Avx512];

fn encode(format: RowFormat, rope: usize, row: &[f32]) -> (Vec<u8>, RoundTrip) {
    let mut bytes = vec![0xa5; format.row_bytes(row.len(), rope)];
    let mut stats = RoundTrip::default();
    format.encode(row, rope, &mut bytes, &mut stats);
    (bytes, stats)
}

fn decode(format: RowFormat, rope: usize, width: usize, bytes: &[u8]) -> Vec<f32> {
    let mut out = vec![f32::NAN; width];
    format.decode_with(Isa::Scalar, bytes, rope, &mut out);
    out
}

fn bits(v: &[f32]) -> Vec<u32> {
    v.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn record_sizes() {
    assert_eq!(RowFormat::Fp8Model1.row_bytes(512, 64), 584);
    assert_eq!(RowFormat::Fp8V32.row_bytes(576, 64), 656);
    assert_eq!(RowFormat::IndexFp4.row_bytes(128, 0), 68);
    assert_eq!(RowFormat::IndexFp8.row_bytes(128, 0), 132);
    assert_eq!(RowFormat::Fp8B64.row_bytes(512, 64), 583);
    assert_eq!(
        [1, 2, 64, 256].map(|block_rows| Model1Page { block_rows }.stride()),
        [1152, 1728, 37440, 149760]
    );
}

#[test]
fn worked_example_of_the_rule() {
    let mut row = [0.0f32; 64];
    row[..4].copy_from_slice(&[3.0, -1.2345, 0.01, 0.0004]);
    let (bytes, stats) = encode(RowFormat::Fp8B64, 0, &row);
    assert_eq!((&bytes[..5], bytes[64]), (&[0x7c, 0xf2, 0x3a, 0x15, 0][..], 120));
    assert_eq!(decode(RowFormat::Fp8B64, 0, 64, &bytes)[1], -1.25);
    assert_eq!((stats.count, stats.saturated, stats.flushed), (64, 0, 0));
}

#[test]
fn e2m1_ties_go_to_even_codes() {
    let row = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, -0.25, -0.75];
    let (bytes, stats) = encode(RowFormat::IndexFp4, 0, &row);
    let want = [0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 6.0, 0.0, -1.0];
    assert_eq!(decode(RowFormat::IndexFp4, 0, 10, &bytes), want);
    assert_eq!(bytes[5], 127);
    assert_eq!(stats.flushed, 2);
}

#[test]
fn codes_are_those_of_the_conversions() {
    use crate::cpu::formats::{e2m1_to_f32, e4m3_to_f32, f32_to_e2m1, f32_to_e4m3};
    // Every f32 with the upper 16 bits free and a few lower ones, which includes all ties.
    let values = (0..=0x43e0u32).flat_map(|h| [0, 1, 0x8000, 0xffff].map(|l| f32::from_bits(h << 16 | l)));
    for v in values.filter(|v| *v <= 448.0) {
        let (code, value) = fp8::round_magnitude::<3, 121>(v);
        assert_eq!(
            (code as u8, value),
            (f32_to_e4m3(v), e4m3_to_f32(f32_to_e4m3(v))),
            "{v}"
        );
        if v <= 6.0 {
            let (code, value) = fp8::round_magnitude::<1, 127>(v);
            assert_eq!(
                (code as u8, value),
                (f32_to_e2m1(v), e2m1_to_f32(f32_to_e2m1(v))),
                "{v}"
            );
        }
    }
}

#[test]
fn bf16_is_the_usual_rounding() {
    for h in 0..=0xffffu32 {
        for l in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
            let v = f32::from_bits(h << 16 | l);
            let mut out = [0; 2];
            encode_bf16(&[v], &mut out);
            assert_eq!(
                u16::from_le_bytes(out),
                half::bf16::from_f32(v).to_bits(),
                "{:08x}",
                v.to_bits()
            );
        }
    }
}

#[test]
fn scales_at_exact_powers_and_floors() {
    for k in -13..100 {
        let p = 2f32.powi(k);
        assert_eq!(fp8_scale_byte(&[448.0 * p]), (127 + k) as u8, "448 * 2^{k}");
        assert_eq!(
            fp8_scale_byte(&[-(448.0 * p).next_up()]),
            (128 + k) as u8,
            "just above 448 * 2^{k}"
        );
        assert_eq!(fp4_scale_byte(&[6.0 * p]), (127 + k) as u8, "6 * 2^{k}");
    }
    assert_eq!(
        (
            fp8_scale_byte(&[0.0; 64]),
            fp8_scale_byte(&[1e-30]),
            fp8_scale_byte(&[])
        ),
        (105, 105, 105)
    );
    assert_eq!(
        (fp4_scale_byte(&[0.0; 32]), fp4_scale_byte(&[f32::MIN_POSITIVE])),
        (1, 1)
    );
    assert_eq!((fp8_scale_byte(&[f32::MAX]), fp4_scale_byte(&[f32::MAX])), (247, 253));
}

#[test]
fn zeros_and_tiny_values() {
    for (format, width, rope) in SHAPES {
        let (bytes, stats) = encode(format, rope, &vec![0.0; width]);
        assert!(
            decode(format, rope, width, &bytes).iter().all(|v| *v == 0.0),
            "{format:?}"
        );
        assert_eq!((stats.flushed, stats.relative()), (0, 0.0));
    }
    let (_, stats) = encode(RowFormat::Fp8B64, 0, &[1e-12; 64]);
    assert_eq!((stats.flushed, stats.relative()), (64, 1.0));
}

#[test]
fn non_finite_values() {
    for (format, width, rope) in SHAPES {
        let mut row = vec![1.0; width];
        row[0] = f32::NAN;
        row[1] = f32::INFINITY;
        row[2] = f32::NEG_INFINITY;
        let (bytes, stats) = encode(format, rope, &row);
        let back = decode(format, rope, width, &bytes);
        assert!(
            back[3..].iter().all(|v| *v == 1.0),
            "{format:?}: one bad value must not spoil its block"
        );
        if format.quantises() && rope < width {
            assert_eq!(stats.saturated, 3, "{format:?}");
            assert!(
                back[1].is_finite() && back[1] > 1.0 && back[2] == -back[1],
                "{format:?} {:?}",
                &back[..3]
            );
            assert_eq!(back[0].is_nan(), format != RowFormat::IndexFp4);
        } else {
            assert!(back[0].is_nan() && back[1] == f32::INFINITY && back[2] == f32::NEG_INFINITY);
        }
        assert!(stats.sum_sq.is_finite() && stats.sum_sq_err.is_finite());
    }
}

#[test]
fn largest_values_survive() {
    for (format, width, rope) in SHAPES {
        let (bytes, _) = encode(format, rope, &vec![f32::MAX / 2.0; width]);
        assert!(
            decode(format, rope, width, &bytes).iter().all(|v| v.is_finite()),
            "{format:?}"
        );
    }
}

#[test]
fn every_code_decodes_alike_on_every_instruction_set() {
    let codes: Vec<u8> = (0..=255).collect();
    for scale in [0u8, 1, 105, 120, 127, 133, 247, 254] {
        for n in [256, 250, 64, 15, 1] {
            for blocks in [1, 7, 32, 64] {
                let scales = vec![scale; 256];
                let run = |isa| {
                    let (mut a, mut b) = (vec![0.0; n], vec![0.0; n]);
                    decode_e4m3_blocks(
                        isa,
                        &codes[..n],
                        Blocks::E8m0 {
                            len: blocks,
                            scales: &scales,
                        },
                        &mut a,
                    );
                    decode_fp4_blocks(isa, &codes[..n.div_ceil(2)], &scales, &mut b);
                    (bits(&a), bits(&b))
                };
                let want = run(Isa::Scalar);
                for isa in ISAS {
                    assert!(run(isa) == want, "{isa:?} scale {scale} n {n} block {blocks}");
                }
            }
        }
    }
}

#[test]
fn hadamard_is_orthogonal_and_ordered() {
    let mut x = [0.0f32; 8];
    x[3] = 8f32.sqrt();
    hadamard(&mut x);
    // Row 3 of the Sylvester matrix: (-1)^popcount(3 & j).
    for (j, v) in x.iter().enumerate() {
        let sign = if (3 & j).count_ones() % 2 == 0 { 1.0 } else { -1.0 };
        assert!((v - sign).abs() < 1e-6);
    }
}

/// Rows of mixed magnitudes: one shared exponent per row, now and then a zero.
fn row(width: usize) -> impl Strategy<Value = Vec<f32>> {
    (-30i32..30, prop::collection::vec((-1.0f32..1.0, -12i32..1), width)).prop_map(|(e, v)| {
        v.into_iter()
            .map(|(m, k)| if k == -12 { 0.0 } else { m * 2f32.powi(e + k) })
            .collect()
    })
}

fn any_case() -> impl Strategy<Value = (RowFormat, usize, Vec<f32>)> {
    (0..SHAPES.len()).prop_flat_map(|i| {
        let (format, width, rope) = SHAPES[i];
        row(width).prop_map(move |r| (format, rope, r))
    })
}

proptest! {
    #[test]
    fn decoded_values_are_fixed_points((format, rope, row) in any_case()) {
        let (bytes, _) = encode(format, rope, &row);
        let once = decode(format, rope, row.len(), &bytes);
        let (again, stats) = encode(format, rope, &once);
        prop_assert_eq!(bits(&decode(format, rope, row.len(), &again)), bits(&once));
        prop_assert_eq!((stats.sum_sq_err, stats.saturated, stats.flushed), (0.0, 0, 0));
    }

    /// Same bytes again unless a block's largest code is M/2, as the module says.
    #[test]
    fn bytes_are_fixed_points((format, rope, row) in any_case()) {
        let (bytes, _) = encode(format, rope, &row);
        let once = decode(format, rope, row.len(), &bytes);
        let (again, _) = encode(format, rope, &once);
        let half_code = |block: &[f32], byte: u8, m: f32| {
            block.iter().fold(0f32, |a, v| a.max(v.abs())) == 0.5 * m * ue8m0_to_f32(byte)
        };
        let nope = row.len() - rope;
        let scales = &bytes[format.split(row.len(), rope).0..];
        let excused = match format {
            RowFormat::Fp8Model1 | RowFormat::Fp8B64 => {
                once[..nope].chunks(64).zip(scales).any(|(b, &s)| half_code(b, s, 448.0))
            }
            RowFormat::IndexFp4 => once.chunks(32).zip(scales).any(|(b, &s)| half_code(b, s, 6.0)),
            RowFormat::Fp8V32 | RowFormat::IndexFp8 => true,
            RowFormat::F32 | RowFormat::Bf16 => false,
        };
        prop_assert!(excused || again == bytes);
    }

    #[test]
    fn errors_are_bounded((format, rope, row) in any_case()) {
        let (bytes, stats) = encode(format, rope, &row);
        let back = decode(format, rope, row.len(), &bytes);
        let (block, half_ulp, step) = match format {
            RowFormat::F32 => (1, 0.0, 0.0),
            RowFormat::Bf16 => (1, 2f32.powi(-8), 0.0),
            RowFormat::Fp8Model1 | RowFormat::Fp8B64 => (64, 2f32.powi(-4), 2f32.powi(-10)),
            RowFormat::Fp8V32 => (128, 2f32.powi(-4), 2f32.powi(-10)),
            RowFormat::IndexFp8 => (row.len(), 2f32.powi(-4), 2f32.powi(-10)),
            RowFormat::IndexFp4 => (32, 0.25, 0.25),
        };
        let nope = if format == RowFormat::IndexFp4 { row.len() } else { row.len() - rope };
        for (v, b) in row[..nope].chunks(block).zip(back[..nope].chunks(block)) {
            let byte = if format == RowFormat::IndexFp4 { fp4_scale_byte(v) } else { fp8_scale_byte(v) };
            for (v, b) in v.iter().zip(b) {
                let bound = (v.abs() * half_ulp).max(step * ue8m0_to_f32(byte));
                prop_assert!((v - b).abs() <= bound, "{format:?}: {v} became {b}, bound {bound}");
            }
        }
        if format.quantises() {
            let err: f64 = row[..nope].iter().zip(&back).map(|(v, b)| (f64::from(*v) - f64::from(*b)).powi(2)).sum();
            prop_assert!((stats.sum_sq_err - err).abs() <= 1e-12 * err);
            prop_assert_eq!((stats.count, stats.saturated), (nope as u64, 0));
        }
    }

    #[test]
    fn instruction_sets_agree((format, rope, row) in any_case()) {
        let (bytes, _) = encode(format, rope, &row);
        let want = bits(&decode(format, rope, row.len(), &bytes));
        for isa in ISAS {
            let mut out = vec![0.0; row.len()];
            format.decode_with(isa, &bytes, rope, &mut out);
            prop_assert_eq!(bits(&out), want.clone());
        }
        let mut out = vec![0.0; row.len()];
        format.decode(&bytes, rope, &mut out);
        prop_assert_eq!(bits(&out), want);
    }

    #[test]
    fn pages_hold_records(row in row(512), block_rows in 1usize..5) {
        let page_of = Model1Page { block_rows };
        let mut page = vec![0xa5; page_of.stride()];
        let i = block_rows - 1;
        let (nope, rope) = row.split_first_chunk::<448>().unwrap();
        page_of.write_row(&mut page, i, nope, rope.try_into().unwrap(), &mut RoundTrip::default());
        let (bytes, _) = encode(RowFormat::Fp8Model1, 64, &row);
        prop_assert_eq!(&page_of.record(&page, i)[..], &bytes[..]);
        let mut out = [0.0; 512];
        page_of.read_row(&page, i, &mut out);
        prop_assert_eq!(bits(&out), bits(&decode(RowFormat::Fp8Model1, 64, 512, &bytes)));
        prop_assert!(page.iter().filter(|b| **b != 0xa5).count() <= 584);
    }

    #[test]
    fn hadamard_undoes_itself(row in row(128)) {
        let mut x = row.clone();
        hadamard(&mut x);
        hadamard(&mut x);
        let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (a, b) in x.iter().zip(&row) {
            prop_assert!((a - b).abs() <= 1e-6 * norm);
        }
    }
}
