//! Statistics of stored tensors.

use kernels::cpu::formats::Matrix;
use kernels::ir::{Format, WeightDesc, WeightId, WeightSource};
use protocol::TensorStats;

use crate::engine::Engine;
use crate::error::EngineError;

/// Tensors of at most this many values are looked at whole.
pub const SAMPLED_FROM: u64 = 1 << 22;
/// Bins of the histogram. An odd number, so that zero has a bin of its own.
const BINS: usize = 101;

impl Engine {
    /// Statistics of a stored tensor, by its name in [`crate::Session::tree`]. Of tensors with more than
    /// [`SAMPLED_FROM`] values, rows at equal distances are looked at, the same ones every time; the result says how
    /// many values that were.
    ///
    /// # Errors
    /// A name that no tensor has; a format without numbers.
    pub fn tensor_stats(&self, name: &str) -> Result<TensorStats, EngineError> {
        let at = self.weights.descs().iter().position(|d| d.name == name);
        let Some(at) = at else {
            return Err(EngineError::Invalid(format!(
                "tensor `{name}`: found none of this name, accepted: one of the {} tensors of the model",
                self.weights.len()
            )));
        };
        let view = self.weights.weight(WeightId(at as u32))?;
        let rows = Rows::new(view.desc);
        let mut stats = Stats::default();
        if matches!(view.desc.format, Format::I32 | Format::I64) {
            let size = if view.desc.format == Format::I32 { 4 } else { 8 };
            let mut values = Vec::with_capacity(view.desc.cols);
            for r in rows.clone() {
                values.clear();
                let row = &view.data[r * view.desc.cols * size..(r + 1) * view.desc.cols * size];
                values.extend(row.chunks_exact(size).map(|b| integer(b) as f32));
                stats.add(&values);
            }
            return Ok(stats.finish(name, view.desc.elements()));
        }
        let matrix = Matrix::from_view(&view).map_err(|e| EngineError::Invalid(format!("tensor `{name}`: {e}")))?;
        let mut values = vec![0.0; view.desc.cols];
        for r in rows {
            matrix.decode_row(r, &mut values);
            stats.add(&values);
        }
        Ok(stats.finish(name, view.desc.elements()))
    }
}

/// A little-endian integer of 4 or 8 bytes.
fn integer(bytes: &[u8]) -> i64 {
    let mut wide = [if bytes.last().is_some_and(|b| b & 0x80 != 0) {
        0xff
    } else {
        0
    }; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    i64::from_le_bytes(wide)
}

/// Numbers of the rows that are looked at.
#[derive(Clone)]
struct Rows {
    rows: usize,
    wanted: usize,
    at: usize,
}

impl Rows {
    fn new(d: &WeightDesc) -> Self {
        let wanted = if d.elements() <= SAMPLED_FROM {
            d.rows
        } else {
            (SAMPLED_FROM as usize / d.cols.max(1)).clamp(1, d.rows)
        };
        Self {
            rows: d.rows,
            wanted,
            at: 0,
        }
    }
}

impl Iterator for Rows {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        let i = self.at;
        self.at += 1;
        (i < self.wanted).then(|| (i as u128 * self.rows as u128 / self.wanted as u128) as usize)
    }
}

/// Running sums, and the values themselves: the histogram's limit is known at the end only.
#[derive(Default)]
struct Stats {
    values: Vec<f32>,
    zeros: u64,
    not_finite: u64,
    counted: u64,
}

impl Stats {
    fn add(&mut self, values: &[f32]) {
        self.counted += values.len() as u64;
        self.zeros += values.iter().filter(|&&v| v == 0.0).count() as u64;
        let before = self.values.len();
        self.values.extend(values.iter().filter(|v| v.is_finite()));
        self.not_finite += (values.len() - (self.values.len() - before)) as u64;
    }

    fn finish(self, name: &str, total: u64) -> TensorStats {
        let n = self.values.len().max(1) as f64;
        let mean = self.values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = self.values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        let std = variance.sqrt();
        let (mut min, mut max) = (f32::INFINITY, f32::NEG_INFINITY);
        for &v in &self.values {
            (min, max) = (min.min(v), max.max(v));
        }
        if self.values.is_empty() {
            (min, max) = (0.0, 0.0);
        }
        let largest = min.abs().max(max.abs());
        // Outliers would squeeze everything else into one bin: five standard deviations around zero are shown.
        let spread = ((mean.abs() + 5.0 * std) as f32).min(largest);
        let limit = if spread > 0.0 {
            spread
        } else {
            largest.max(f32::MIN_POSITIVE)
        };
        let mut histogram = vec![0u64; BINS];
        for &v in &self.values {
            let at = (f64::from(v) / f64::from(limit) + 1.0) * 0.5 * BINS as f64;
            histogram[(at.max(0.0) as usize).min(BINS - 1)] += 1;
        }
        TensorStats {
            name: name.into(),
            counted: self.counted,
            total,
            min,
            max,
            mean: mean as f32,
            std: std as f32,
            zeros: self.zeros,
            not_finite: self.not_finite,
            limit,
            histogram,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_values() {
        let mut s = Stats::default();
        s.add(&[-1.0, 0.0, 1.0, 2.0]);
        s.add(&[f32::NAN, f32::INFINITY, 0.0]);
        let t = s.finish("x", 70);
        assert_eq!((t.counted, t.total, t.zeros, t.not_finite), (7, 70, 2, 2));
        assert_eq!((t.min, t.max, t.limit), (-1.0, 2.0, 2.0));
        assert!((t.mean - 0.4).abs() < 1e-6 && (t.std - 1.04f32.sqrt()).abs() < 1e-6);
        assert_eq!(t.histogram.iter().sum::<u64>(), 5);
        assert_eq!(t.histogram[BINS / 2], 2, "zeros lie in the middle bin");
        assert_eq!(t.histogram[BINS - 1], 1);
    }

    #[test]
    fn sampled_rows_are_spread_and_repeatable() {
        let desc = |rows, cols| WeightDesc {
            name: "w".into(),
            rows,
            cols,
            format: Format::F32,
            layout: kernels::ir::Layout::OutIn,
            scales: None,
        };
        assert_eq!(Rows::new(&desc(5, 3)).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
        let rows: Vec<usize> = Rows::new(&desc(1 << 20, 1 << 12)).collect();
        assert_eq!(rows.len() as u64 * (1 << 12), SAMPLED_FROM);
        assert!(rows.windows(2).all(|w| w[1] - w[0] == 1024));
        assert_eq!(Rows::new(&desc(2, 1 << 30)).count(), 1, "a row is never cut");
    }

    #[test]
    fn integers_of_both_sizes() {
        assert_eq!(integer(&(-2i32).to_le_bytes()), -2);
        assert_eq!(integer(&7i64.to_le_bytes()), 7);
    }

    #[test]
    fn every_tensor_of_a_model_has_statistics() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens/tiny-v4-fp8");
        let engine = Engine::open(&path, &crate::EngineOptions::default(), &crate::Silent).unwrap();
        for d in engine.weights().descs() {
            let t = engine.tensor_stats(&d.name).unwrap();
            assert_eq!((t.counted, t.total), (d.elements(), d.elements()), "{}", d.name);
            assert!(t.min <= t.mean && t.mean <= t.max && t.not_finite == 0, "{}", d.name);
        }
        let e = engine.tensor_stats("nothing").unwrap_err().to_string();
        assert!(e.contains("`nothing`"), "{e}");
    }
}
