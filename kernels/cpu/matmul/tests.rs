//! Every path against a double-precision product of the decoded weights, on every instruction set.

use std::sync::Arc;

use super::{Job, Path, Product, grouped, matmul, matmul_many, path};
use crate::cpu::Cpu;
use crate::cpu::formats::{BlockScales, Matrix};
use crate::cpu::isa::Isa;
use crate::cpu::pool::Pool;
use crate::ir::{Format, Layout, ScaleFormat, ScaleSpec};

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In -1..1.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

fn bytes_of(format: Format, n: usize, rng: &mut Random) -> Vec<u8> {
    let half = |rng: &mut Random| half::f16::from_f32(rng.value() * 0.1).to_le_bytes();
    match format {
        Format::F32 => rng.values(n).iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::F16 => rng
            .values(n)
            .iter()
            .flat_map(|v| half::f16::from_f32(*v).to_le_bytes())
            .collect(),
        Format::Bf16 => rng
            .values(n)
            .iter()
            .flat_map(|v| half::bf16::from_f32(*v).to_le_bytes())
            .collect(),
        // Codes of NaN left out.
        Format::F8E4m3 => (0..n).map(|_| (rng.next() as u8) & 0xf7).collect(),
        _ => {
            let size = format.block_bytes();
            let mut out: Vec<u8> = (0..n / format.block_len() * size).map(|_| rng.next() as u8).collect();
            for b in out.chunks_exact_mut(size) {
                let at: &[usize] = match format {
                    Format::Q4_1 | Format::Q4K => &[0, 2],
                    Format::Q6K => &[208],
                    Format::Fp4E2m1 => &[],
                    _ => &[0],
                };
                for &i in at {
                    b[i..i + 2].copy_from_slice(&half(rng));
                }
            }
            out
        }
    }
}

/// A stored matrix that owns its bytes.
struct Owned {
    rows: usize,
    cols: usize,
    format: Format,
    layout: Layout,
    data: Vec<u8>,
    scales: Option<(ScaleSpec, Vec<u8>)>,
}

impl Owned {
    fn new(format: Format, rows: usize, cols: usize, layout: Layout, rng: &mut Random) -> Self {
        let spec = match format {
            Format::F8E4m3 => Some((ScaleFormat::F32, 128, 128)),
            Format::Fp4E2m1 => Some((ScaleFormat::E8m0, 1, 32)),
            _ => None,
        };
        let scales = spec.map(|(format, block_rows, block_cols)| {
            let n = rows.div_ceil(block_rows) * cols.div_ceil(block_cols);
            let data = match format {
                ScaleFormat::E8m0 => (0..n).map(|_| 120 + (rng.next() % 12) as u8).collect(),
                _ => (0..n).flat_map(|_| (rng.value() * 0.01).to_le_bytes()).collect(),
            };
            (
                ScaleSpec {
                    format,
                    block_rows,
                    block_cols,
                },
                data,
            )
        });
        Self {
            rows,
            cols,
            format,
            layout,
            data: bytes_of(format, rows * cols, rng),
            scales,
        }
    }

    fn matrix(&self) -> Matrix<'_> {
        let scales = self
            .scales
            .as_ref()
            .map(|(spec, data)| BlockScales { spec: *spec, data });
        Matrix::new(self.rows, self.cols, self.format, self.layout, &self.data, scales).unwrap()
    }
}

const FORMATS: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::F8E4m3,
    Format::Fp4E2m1,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q4K,
    Format::Q6K,
];

fn cpu(isa: Isa, threads: usize) -> Cpu {
    Cpu {
        pool: Arc::new(Pool::new(threads)),
        isa,
        exact_activations: false,
        bf16_activations: true,
    }
}

/// `[tokens, rows]` products and, per output, the sum of magnitudes.
fn reference(w: &Matrix<'_>, x: &[f32], bias: Option<&[f32]>) -> Vec<(f64, f64)> {
    let mut row = vec![0.0; w.cols];
    let tokens = x.len() / w.cols;
    let mut out = vec![(0.0, 0.0); tokens * w.rows];
    for o in 0..w.rows {
        w.decode_row(o, &mut row);
        for (t, x) in x.chunks_exact(w.cols).enumerate() {
            let terms = row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b));
            let (sum, size) = terms.fold((0.0, 0.0), |(s, m), v: f64| (s + v, m + v.abs()));
            out[t * w.rows + o] = (sum + bias.map_or(0.0, |b| f64::from(b[o])), size);
        }
    }
    out
}

/// Relative to the sum of magnitudes; the activations' rounding is random, so it mostly cancels.
fn tolerance(cpu: &Cpu, w: &Matrix<'_>, tokens: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    if path(cpu, w, tokens) == Path::Gemm(super::gemm::Mode::Bf16) {
        return 1.0 / 250.0;
    }
    match path(cpu, w, tokens) {
        Path::Decoded | Path::Axpy | Path::Dot => 1e-6,
        _ if super::prep::Kind::of(w.format) != super::prep::Kind::Int8 => 1e-6,
        _ => 1.0 / 254.0,
    }
}

#[test]
fn every_format_and_instruction_set_agrees_with_the_reference() {
    let mut rng = Random(1);
    for format in FORMATS {
        let unit = format.block_len().max(32);
        for (rows, cols) in [(1, 256), (7, 2 * unit), (11, 10 * unit), (53, 3 * 256), (130, 512)] {
            let owned = Owned::new(format, rows, cols, Layout::OutIn, &mut rng);
            let w = owned.matrix();
            let bias = rng.values(rows);
            for tokens in [1, 2, 3, 5, 8, 9, 15, 16, 23] {
                let x = rng.values(tokens * cols);
                let want = reference(&w, &x, Some(&bias));
                for isa in Isa::available() {
                    let cpu = cpu(isa, 2);
                    let limit = tolerance(&cpu, &w, tokens);
                    let mut y = vec![f32::NAN; tokens * rows];
                    matmul(&cpu, &x, tokens, &w, Some(&bias), &mut y, rows);
                    for (i, (got, (want, size))) in y.iter().zip(&want).enumerate() {
                        let off = (f64::from(*got) - want).abs();
                        assert!(
                            off <= limit * size + 1e-6 * want.abs() + 1e-30,
                            "{format} {rows}x{cols}, {tokens} tokens, {isa:?}, output {i}: {got} instead of {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn odd_widths_and_transposed_weights() {
    let mut rng = Random(2);
    for format in [Format::F32, Format::F16, Format::Bf16] {
        for layout in [Layout::OutIn, Layout::InOut] {
            for (rows, cols) in [(5, 1), (33, 47), (300, 97)] {
                let owned = Owned::new(format, rows, cols, layout, &mut rng);
                let w = owned.matrix();
                for tokens in [1, 4, 11, 17] {
                    let x = rng.values(tokens * cols);
                    let want = reference(&w, &x, None);
                    for isa in Isa::available() {
                        let cpu = cpu(isa, 3);
                        let limit = tolerance(&cpu, &w, tokens);
                        let mut y = vec![f32::NAN; tokens * rows];
                        matmul(&cpu, &x, tokens, &w, None, &mut y, rows);
                        for (got, (want, size)) in y.iter().zip(&want) {
                            let off = (f64::from(*got) - want).abs();
                            assert!(
                                off <= limit * size + 1e-30,
                                "{format} {layout:?} {rows}x{cols} {tokens} {isa:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Exact activations make quantised products as good as f32 ones.
#[test]
fn the_oracle_rounds_nothing() {
    let mut rng = Random(3);
    for format in FORMATS {
        let owned = Owned::new(format, 20, 512, Layout::OutIn, &mut rng);
        let w = owned.matrix();
        for tokens in [1, 20] {
            let x = rng.values(tokens * 512);
            let cpu = Cpu {
                exact_activations: true,
                bf16_activations: false,
                ..cpu(Isa::detect(), 2)
            };
            let mut y = vec![0.0; tokens * 20];
            matmul(&cpu, &x, tokens, &w, None, &mut y, 20);
            for (got, (want, size)) in y.iter().zip(reference(&w, &x, None)) {
                assert!((f64::from(*got) - want).abs() <= 1e-6 * size, "{format} {tokens}");
            }
        }
    }
}

/// Threads, the other tokens of a call of the same kind, and the other products of a call change no bit.
#[test]
fn bits_depend_on_the_shape_alone() {
    let mut rng = Random(4);
    for format in FORMATS {
        let (rows, cols, tokens) = (70, 512, 29);
        let owned = Owned::new(format, rows, cols, Layout::OutIn, &mut rng);
        let w = owned.matrix();
        let x = rng.values(tokens * cols);
        for isa in Isa::available() {
            let one = cpu(isa, 1);
            let run = |cpu: &Cpu, x: &[f32]| {
                let n = x.len() / cols;
                let mut y = vec![0.0; n * rows];
                matmul(cpu, x, n, &w, None, &mut y, rows);
                y
            };
            let all = run(&one, &x);
            assert_eq!(all, run(&cpu(isa, 3), &x), "{format} {isa:?} threads");
            for n in [17, 23] {
                assert_eq!(
                    all[..n * rows],
                    run(&one, &x[..n * cols])[..],
                    "{format} {isa:?} {n} tokens"
                );
            }
            let few = run(&one, &x[..7 * cols]);
            for t in 0..7 {
                let alone = run(&one, &x[t * cols..(t + 1) * cols]);
                assert_eq!(few[t * rows..(t + 1) * rows], alone[..], "{format} {isa:?} token {t}");
            }
            let (mut a, mut b) = (vec![0.0; 3 * rows], vec![0.0; 3 * rows]);
            let x3 = &x[..3 * cols];
            let mut products = [
                Product {
                    w,
                    bias: None,
                    y: &mut a,
                },
                Product {
                    w,
                    bias: None,
                    y: &mut b,
                },
            ];
            matmul_many(&cpu(isa, 2), x3, 3, &mut products);
            assert_eq!(a, few[..3 * rows], "{format} {isa:?}");
            assert_eq!(b, a, "{format} {isa:?}");
            let mut parts = vec![0.0; 3 * 40];
            let mut jobs: Vec<Job<'_, '_>> = parts
                .chunks_exact_mut(40)
                .zip(x3.chunks_exact(cols))
                .map(|(y, x)| Job { w, first_row: 20, x, y })
                .collect();
            grouped(&cpu(isa, 2), &mut jobs);
            for t in 0..3 {
                assert_eq!(
                    parts[t * 40..(t + 1) * 40],
                    few[t * rows + 20..t * rows + 60],
                    "{format} {isa:?}"
                );
            }
        }
    }
}

#[test]
fn not_a_number_is_not_hidden() {
    let mut rng = Random(5);
    for format in FORMATS {
        let owned = Owned::new(format, 16, 256, Layout::OutIn, &mut rng);
        let w = owned.matrix();
        for isa in Isa::available() {
            for tokens in [1, 16] {
                let mut x = rng.values(tokens * 256);
                x[3] = f32::NAN;
                let mut y = vec![0.0; tokens * 16];
                matmul(&cpu(isa, 1), &x, tokens, &w, None, &mut y, 16);
                assert!(y[..16].iter().all(|v| v.is_nan()), "{format} {isa:?} {tokens}");
                assert!(y[16..].iter().all(|v| v.is_finite()), "{format} {isa:?} {tokens}");
            }
        }
    }
}
