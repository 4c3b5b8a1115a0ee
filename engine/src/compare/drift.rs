//! Differences of the residual stream after each layer.

use protocol::Drift;

use super::side::Side;

/// Sums over all positions of one layer.
#[derive(Clone, Copy, Default)]
struct Sums {
    aa: f64,
    bb: f64,
    ab: f64,
    err: f64,
    max: f64,
}

impl Sums {
    fn of(a: &[f32], b: &[f32]) -> Self {
        let mut s = Self::default();
        for (&x, &y) in a.iter().zip(b) {
            let (x, y) = (f64::from(x), f64::from(y));
            s.aa += x * x;
            s.bb += y * y;
            s.ab += x * y;
            s.err += (x - y) * (x - y);
            s.max = s.max.max((x - y).abs());
        }
        s
    }

    fn add(&mut self, o: &Self) {
        self.aa += o.aa;
        self.bb += o.bb;
        self.ab += o.ab;
        self.err += o.err;
        self.max = self.max.max(o.max);
    }

    /// ||a - b|| / ||a||
    fn relative(&self) -> f64 {
        if self.err == 0.0 {
            0.0
        } else {
            (self.err / self.aa).sqrt()
        }
    }

    fn cosine_error(&self) -> f64 {
        if self.err == 0.0 {
            0.0
        } else {
            1.0 - self.ab / (self.aa * self.bb).sqrt()
        }
    }

    fn sqnr_db(&self) -> f64 {
        if self.err == 0.0 {
            f64::INFINITY
        } else {
            10.0 * (self.aa / self.err).log10()
        }
    }
}

/// Most figures by layer and position that are kept (4 MiB); longer texts keep the largest of several positions.
const CELLS: usize = 1 << 20;

/// Gathers drift chunk by chunk.
pub(super) struct Gather {
    layers: Vec<Sums>,
    /// Per layer and column.
    relative: Vec<Vec<f32>>,
    /// Positions per column.
    step: usize,
    /// Positions so far.
    position: usize,
}

impl Gather {
    /// For so many positions.
    pub fn new(layers: usize, positions: usize) -> Self {
        Self::within(layers, positions, CELLS)
    }

    fn within(layers: usize, positions: usize, cells: usize) -> Self {
        Self {
            layers: vec![Sums::default(); layers],
            relative: vec![Vec::new(); layers],
            step: (layers * positions).div_ceil(cells).max(1),
            position: 0,
        }
    }

    /// Adds the chunk both sides just read.
    pub fn add(&mut self, a: &Side, b: &Side) {
        let (a, b) = (&a.session.output().probes, &b.session.output().probes);
        let mut rows = 0;
        for (i, ((_, width, x), (_, _, y))) in a.iter().zip(b).enumerate().take(self.layers.len()) {
            rows = x.len() / (*width).max(1);
            for (p, (x, y)) in x.chunks_exact(*width).zip(y.chunks_exact(*width)).enumerate() {
                self.row(i, self.position + p, &Sums::of(x, y));
            }
        }
        self.position += rows;
    }

    fn row(&mut self, layer: usize, position: usize, s: &Sums) {
        let (column, value) = (position / self.step, s.relative() as f32);
        match self.relative[layer].get_mut(column) {
            Some(largest) => *largest = largest.max(value),
            None => self.relative[layer].push(value),
        }
        self.layers[layer].add(s);
    }

    pub fn finish(self) -> Drift {
        let each = |f: fn(&Sums) -> f64| self.layers.iter().map(|s| f(s) as f32).collect();
        Drift {
            layer_rms: each(Sums::relative),
            layer_cosine: each(Sums::cosine_error),
            layer_max: each(|s| s.max),
            layer_sqnr_db: each(Sums::sqnr_db),
            relative_rms: self.relative.into_iter().flatten().collect(),
            step: self.step as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_keep_the_largest_of_several_positions() {
        // 10 positions, 2 layers, room for 8 figures: three positions a column.
        let mut g = Gather::within(2, 10, 8);
        assert_eq!(g.step, 3);
        for layer in 0..2 {
            for p in 0..10 {
                let b = 1.0 + ((p * 7 + layer) % 10) as f32 / 10.0;
                g.row(layer, p, &Sums::of(&[1.0], &[b]));
            }
        }
        let d = g.finish();
        assert_eq!((d.columns(), d.step, d.relative_rms.len()), (4, 3, 8));
        // Positions 3, 4, 5 have 0.1, 0.8, 0.5.
        assert!((d.at(0, 5).unwrap() - 0.8).abs() < 1e-6 && d.at(0, 3) == d.at(0, 5));
        assert!(d.layer_rms[0] > 0.0, "over all positions");
    }

    #[test]
    fn measures_of_known_vectors() {
        let s = Sums::of(&[3.0, 4.0], &[4.0, 3.0]);
        assert!((s.relative() - (2.0f64 / 25.0).sqrt()).abs() < 1e-12);
        assert!((s.cosine_error() - (1.0 - 24.0 / 25.0)).abs() < 1e-12);
        assert!((s.sqnr_db() - 10.0 * (25.0f64 / 2.0).log10()).abs() < 1e-12);
        assert_eq!(s.max, 1.0);
        let same = Sums::of(&[0.1, 0.7], &[0.1, 0.7]);
        assert_eq!((same.relative(), same.cosine_error()), (0.0, 0.0));
        assert!(same.sqnr_db().is_infinite());
        assert_eq!(Sums::of(&[0.0], &[0.0]).relative(), 0.0);
    }
}
