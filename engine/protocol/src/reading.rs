//! Reading a comparison: its statistics by name, the positions worth looking at, and drift by token and by layer. The
//! command, the app and the report all take them from here.

use crate::{CompareResult, Drift};

/// A figure under the name that llama.cpp's perplexity tool gives it with `--kl-divergence` (its Q is B, its base A).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Statistic {
    /// Name.
    pub name: &'static str,
    /// Value.
    pub value: f64,
    /// Standard error, where it has one.
    pub error: Option<f64>,
    /// Shown as percent: value and error are shares of 1.
    pub percent: bool,
}

impl std::fmt::Display for Statistic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (scale, unit) = if self.percent { (100.0, " %") } else { (1.0, "") };
        let digits = if self.percent { 3 } else { 6 };
        write!(f, "{:.digits$}", scale * self.value)?;
        if let Some(e) = self.error {
            write!(f, " ± {:.digits$}", scale * e)?;
        }
        f.write_str(unit)
    }
}

impl CompareResult {
    /// All statistics in the peer's order. Formulas: [`crate::PplStats`], [`crate::DeltaP`], [`crate::KlStats`].
    /// Perplexities and Δp are over the positions that have a next token; KL and "Same top p" are over all.
    pub fn statistics(&self) -> Vec<Statistic> {
        let plain = |name, value, error| Statistic {
            name,
            value,
            error,
            percent: false,
        };
        let share = |name, value, error| Statistic {
            percent: true,
            ..plain(name, value, error)
        };
        let [a, b] = &self.sides;
        let ppl = |s: &crate::CompareSide| (s.perplexity, Some(s.perplexity * s.ln_perplexity_se));
        let pair = |[v, e]: [f64; 2]| (v, Some(e));
        let ((q, q_se), (base, base_se)) = (ppl(b), ppl(a));
        let (ln, ln_se) = pair(self.ln_ppl_ratio);
        let (ratio, ratio_se) = pair(self.ppl.ratio);
        let (diff, diff_se) = pair(self.ppl.diff);
        let (k, d) = (&self.kl, &self.delta_p);
        vec![
            plain("Mean PPL(Q)", q, q_se),
            plain("Mean PPL(base)", base, base_se),
            share("Cor(ln(PPL(Q)), ln(PPL(base)))", self.ppl.cor, None),
            plain("Mean ln(PPL(Q)/PPL(base))", ln, ln_se),
            plain("Mean PPL(Q)/PPL(base)", ratio, ratio_se),
            plain("Mean PPL(Q)-PPL(base)", diff, diff_se),
            plain("Mean KLD", k.mean, Some(k.mean_se)),
            plain("Maximum KLD", k.max, None),
            plain("99.9 % KLD", k.p999, None),
            plain("99.0 % KLD", k.p99, None),
            plain("90.0 % KLD", k.p90, None),
            plain("Median KLD", k.median, None),
            share("Mean Δp", d.mean[0], Some(d.mean[1])),
            share("Maximum Δp", d.max, None),
            share("Median Δp", d.median, None),
            share("Minimum Δp", d.min, None),
            share("RMS Δp", d.rms[0], Some(d.rms[1])),
            share("Same top p", self.same_top1[0], Some(self.same_top1[1])),
        ]
    }

    /// The positions with the largest KL, largest first.
    pub fn by_kl(&self, most: usize) -> Vec<usize> {
        let kl = |i: &usize| self.tokens[*i].kl;
        self.ordered(most, |_| true, |a, b| kl(b).total_cmp(&kl(a)))
    }

    /// The positions after which A and B find different tokens likeliest, those first where A was surest.
    pub fn flips(&self, most: usize) -> Vec<usize> {
        let margin = |i: &usize| self.tokens[*i].margin_a;
        self.ordered(most, |i| self.flipped(i), |a, b| margin(b).total_cmp(&margin(a)))
    }

    /// The same in the order of the text: the first is where greedy texts part.
    pub fn first_flips(&self, most: usize) -> Vec<usize> {
        self.ordered(most, |i| self.flipped(i), |_, _| std::cmp::Ordering::Equal)
    }

    fn flipped(&self, i: usize) -> bool {
        self.tokens[i].top1[0] != self.tokens[i].top1[1]
    }

    fn ordered(
        &self,
        most: usize,
        keep: impl Fn(usize) -> bool,
        by: impl Fn(&usize, &usize) -> std::cmp::Ordering,
    ) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.tokens.len()).filter(|i| keep(*i)).collect();
        // Stable: equal ones stay in the order of the text.
        all.sort_by(by);
        all.truncate(most);
        all
    }
}

impl Drift {
    /// Columns of [`Drift::relative_rms`] per layer.
    pub fn columns(&self) -> usize {
        self.relative_rms.len().checked_div(self.layer_rms.len()).unwrap_or(0)
    }

    /// Relative RMS after a layer at a position: of the position itself, or the largest of the [`Drift::step`] positions
    /// that its column stands for.
    pub fn at(&self, layer: usize, position: usize) -> Option<f32> {
        let column = position / self.step.max(1) as usize;
        let columns = self.columns();
        if layer >= self.layer_rms.len() || column >= columns {
            return None;
        }
        self.relative_rms.get(layer * columns + column).copied()
    }

    /// How much each layer adds to the drift at a position: (layer, relative RMS after it minus that after the layer
    /// before), the largest growth first. Layers that take drift away come last, with negative values.
    pub fn growth(&self, position: usize) -> Vec<(usize, f32)> {
        let mut before = 0.0;
        let mut all: Vec<(usize, f32)> = (0..self.layer_rms.len())
            .filter_map(|l| {
                let now = self.at(l, position)?;
                Some((l, now - std::mem::replace(&mut before, now)))
            })
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all
    }

    /// The positions with the most drift after a layer, largest first: (position, relative RMS). Where a column stands
    /// for several positions, the first of them.
    pub fn most(&self, layer: usize, most: usize) -> Vec<(usize, f32)> {
        let columns = self.columns();
        let row = self
            .relative_rms
            .get(layer * columns..(layer + 1) * columns)
            .unwrap_or(&[]);
        let mut all: Vec<(usize, f32)> = row.iter().copied().enumerate().filter(|(_, v)| *v > 0.0).collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(most);
        all.into_iter()
            .map(|(c, v)| (c * self.step.max(1) as usize, v))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drift(step: u64) -> Drift {
        Drift {
            relative_rms: vec![0.0, 0.1, 0.0, 0.3, 0.1, 0.2],
            step,
            layer_rms: vec![0.1, 0.2],
            layer_cosine: vec![0.0; 2],
            layer_max: vec![0.0; 2],
            layer_sqnr_db: vec![0.0; 2],
        }
    }

    #[test]
    fn drift_is_read_by_token_and_by_layer() {
        let d = drift(1);
        assert_eq!(
            (d.columns(), d.at(1, 2), d.at(2, 0), d.at(0, 3)),
            (3, Some(0.2), None, None)
        );
        assert_eq!(d.growth(0), [(1, 0.3), (0, 0.0)]);
        let at1 = d.growth(1);
        assert_eq!((at1[0].0, at1[0].1, at1[1].0), (0, 0.1, 1));
        assert_eq!(d.most(1, 2), [(0, 0.3), (2, 0.2)]);
        assert_eq!(d.most(0, 9), [(1, 0.1)], "no drift is no place to look at");
        assert!(d.most(7, 9).is_empty());
        // A column of four positions.
        let d = drift(4);
        assert_eq!(
            (d.at(1, 3), d.at(1, 4), d.at(1, 11), d.at(1, 12)),
            (Some(0.3), Some(0.1), Some(0.2), None)
        );
        assert_eq!(d.most(1, 2), [(0, 0.3), (8, 0.2)]);
    }

    #[test]
    fn figures_are_written_as_the_peer_writes_them() {
        let s = |value, error, percent| Statistic {
            name: "n",
            value,
            error,
            percent,
        };
        assert_eq!(s(0.25, Some(0.001), false).to_string(), "0.250000 ± 0.001000");
        assert_eq!(s(0.25, Some(0.001), true).to_string(), "25.000 ± 0.100 %");
        assert_eq!(s(-1.5, None, false).to_string(), "-1.500000");
    }
}
