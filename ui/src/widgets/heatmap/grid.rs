//! What a heatmap shows: a grid of values that can be pooled, so that no cell is lost when it is drawn small.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// A cell that is masked or was not computed. NaN and infinities are values that went wrong and are drawn as such.
pub const MASKED: f32 = f32::MIN;

/// Whether a cell is [`MASKED`].
pub fn is_masked(value: f32) -> bool {
    value == MASKED
}

/// How several cells become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pool {
    /// The largest.
    #[default]
    Max,
    /// The one that is furthest from 0: for signed values.
    Furthest,
}

impl Pool {
    /// Two cells as one: a value that went wrong wins over all, a masked one over none.
    pub fn join(self, a: f32, b: f32) -> f32 {
        if is_masked(a) {
            return b;
        }
        if is_masked(b) {
            return a;
        }
        if !a.is_finite() {
            return a;
        }
        if !b.is_finite() {
            return b;
        }
        match self {
            Pool::Max => a.max(b),
            Pool::Furthest if b.abs() > a.abs() => b,
            Pool::Furthest => a,
        }
    }
}

/// A grid of values.
pub trait Grid {
    /// Rows, drawn top to bottom.
    fn rows(&self) -> usize;
    /// Columns, drawn left to right.
    fn cols(&self) -> usize;
    /// The cells of a block as one value.
    fn pooled(&self, rows: Range<usize>, cols: Range<usize>) -> f32;
    /// Changes whenever a value did.
    fn revision(&self) -> u64;
    /// Called before a picture is made of blocks of that many rows and columns (powers of two).
    fn prepare(&self, _row_block: usize, _col_block: usize) {}

    /// One cell.
    fn value(&self, row: usize, col: usize) -> f32 {
        self.pooled(row..row + 1, col..col + 1)
    }
}

/// A pooled copy of a grid.
#[derive(Clone, Debug)]
struct Level {
    cols: usize,
    values: Vec<f32>,
}

/// Values in memory, row by row, with pooled copies made when first drawn small.
#[derive(Clone, Debug)]
pub struct Dense {
    rows: usize,
    cols: usize,
    values: Arc<[f32]>,
    pool: Pool,
    revision: u64,
    /// By (log2 of the block's rows, log2 of its columns).
    levels: RefCell<BTreeMap<(u32, u32), Level>>,
}

impl Dense {
    /// A grid of `cols` columns over `values`, `[rows, cols]`; values that do not fill a row are left out. `revision`
    /// names this content: two grids drawn in the same place need different ones.
    pub fn new(values: impl Into<Arc<[f32]>>, cols: usize, revision: u64) -> Self {
        let values = values.into();
        Self {
            rows: values.len().checked_div(cols).unwrap_or(0),
            cols,
            values,
            pool: Pool::Max,
            revision,
            levels: RefCell::default(),
        }
    }

    /// With another way to pool.
    #[must_use]
    pub fn pool(mut self, pool: Pool) -> Self {
        self.pool = pool;
        self
    }

    /// The values, `[rows, cols]`.
    pub fn values(&self) -> &[f32] {
        &self.values[..self.rows * self.cols]
    }

    /// Smallest and largest finite value; `None` if there is none.
    pub fn range(&self) -> Option<(f32, f32)> {
        range_of(self.values().iter().copied())
    }

    /// A row.
    pub fn row(&self, row: usize) -> &[f32] {
        self.values().get(row * self.cols..(row + 1) * self.cols).unwrap_or(&[])
    }

    fn scan(&self, rows: Range<usize>, cols: Range<usize>) -> f32 {
        let mut out = MASKED;
        for row in rows.start..rows.end.min(self.rows) {
            for &v in self.row(row).get(cols.start..cols.end.min(self.cols)).unwrap_or(&[]) {
                out = self.pool.join(out, v);
            }
        }
        out
    }
}

impl Grid for Dense {
    fn rows(&self) -> usize {
        self.rows
    }

    fn cols(&self) -> usize {
        self.cols
    }

    fn revision(&self) -> u64 {
        self.revision
    }

    fn prepare(&self, row_block: usize, col_block: usize) {
        let key = (row_block.max(1).ilog2(), col_block.max(1).ilog2());
        if key == (0, 0) || self.levels.borrow().contains_key(&key) {
            return;
        }
        let (rows, cols) = (self.rows.div_ceil(1 << key.0), self.cols.div_ceil(1 << key.1));
        let mut values = Vec::with_capacity(rows * cols);
        for row in 0..rows {
            for col in 0..cols {
                values.push(self.scan(row << key.0..(row + 1) << key.0, col << key.1..(col + 1) << key.1));
            }
        }
        self.levels.borrow_mut().insert(key, Level { cols, values });
    }

    fn pooled(&self, rows: Range<usize>, cols: Range<usize>) -> f32 {
        let (high, wide) = (rows.len(), cols.len());
        if high == 1 && wide == 1 {
            let inside = rows.start < self.rows && cols.start < self.cols;
            return if inside {
                self.values[rows.start * self.cols + cols.start]
            } else {
                MASKED
            };
        }
        let whole = |at: usize, n: usize| n.is_power_of_two() && at.is_multiple_of(n);
        if whole(rows.start, high) && whole(cols.start, wide) {
            let key = (high.ilog2(), wide.ilog2());
            if let Some(level) = self.levels.borrow().get(&key) {
                let col = cols.start >> key.1;
                let at = (rows.start >> key.0) * level.cols + col;
                return if col < level.cols {
                    level.values.get(at).copied().unwrap_or(MASKED)
                } else {
                    MASKED
                };
            }
        }
        self.scan(rows, cols)
    }
}

/// Smallest and largest finite value; `None` if there is none.
pub fn range_of(values: impl Iterator<Item = f32>) -> Option<(f32, f32)> {
    values
        .filter(|v| v.is_finite() && !is_masked(*v))
        .fold(None, |range, v| match range {
            None => Some((v, v)),
            Some((lo, hi)) => Some((v.min(lo), v.max(hi))),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(pool: Pool) -> Dense {
        let values: Vec<f32> = (0..7 * 13)
            .map(|i| match i {
                20 => f32::NAN,
                40..=45 => MASKED,
                _ => ((i * 37) % 91) as f32 - 45.0,
            })
            .collect();
        Dense::new(values, 13, 1).pool(pool)
    }

    #[test]
    fn pooled_copies_equal_a_scan() {
        for pool in [Pool::Max, Pool::Furthest] {
            let plain = grid(pool);
            let prepared = grid(pool);
            for (rb, cb) in [(1, 2), (2, 1), (4, 4), (8, 2)] {
                prepared.prepare(rb, cb);
                for row in (0..7).step_by(rb) {
                    for col in (0..13).step_by(cb) {
                        let a = plain.pooled(row..row + rb, col..col + cb);
                        let b = prepared.pooled(row..row + rb, col..col + cb);
                        assert!(
                            a == b || (a.is_nan() && b.is_nan()),
                            "{pool:?} {rb}x{cb} at {row},{col}: {a} {b}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn wrong_values_show_through_every_level_and_masked_ones_only_if_alone() {
        let g = grid(Pool::Max);
        assert!(g.pooled(0..7, 0..13).is_nan(), "one NaN is seen from afar");
        assert!(is_masked(g.pooled(3..4, 1..7)), "40..45 are masked");
        assert!(!is_masked(g.pooled(3..4, 0..7)));
        assert!(
            is_masked(g.value(7, 0)) && is_masked(g.value(0, 13)),
            "outside there is nothing"
        );
    }

    #[test]
    fn signed_values_keep_the_one_furthest_from_zero() {
        let g = Dense::new(vec![-5.0, 3.0, 1.0, -2.0], 2, 1).pool(Pool::Furthest);
        assert_eq!(g.pooled(0..2, 0..2), -5.0);
        assert_eq!(g.pooled(1..2, 0..2), -2.0);
    }

    #[test]
    fn ranges_leave_out_what_is_masked_or_wrong() {
        let g = Dense::new(vec![MASKED, f32::NAN, 2.0, -1.0, f32::INFINITY, 0.5], 3, 1);
        assert_eq!(g.range(), Some((-1.0, 2.0)));
        assert_eq!(Dense::new(vec![MASKED], 1, 1).range(), None);
        assert_eq!(Dense::new(Vec::new(), 0, 1).rows(), 0);
        assert_eq!(
            Dense::new(vec![1.0; 7], 3, 1).rows(),
            2,
            "an unfinished row is left out"
        );
    }
}
