//! Figures of next-token distributions and their statistics, named and computed as llama.cpp's perplexity tool does.

use protocol::{DeltaP, KlStats, PplStats};

/// Log-softmax of one row of logits, as far as it is needed again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    /// Natural log of the sum of exponentials.
    pub lse: f64,
    /// The likeliest token, the lowest id on ties.
    pub top: u32,
    /// Probability of the likeliest minus that of the second.
    pub margin: f64,
}

impl Row {
    /// From f32 logits, in f64.
    pub fn new(logits: &[f32]) -> Self {
        let (mut top, mut first, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (i, &z) in logits.iter().enumerate() {
            if z > first {
                (top, second, first) = (i, first, z);
            } else if z > second {
                second = z;
            }
        }
        let max = f64::from(first);
        let sum: f64 = logits.iter().map(|&z| (f64::from(z) - max).exp()).sum();
        let lse = max + sum.ln();
        let p = |z: f32| (f64::from(z) - lse).exp();
        Self {
            lse,
            top: top as u32,
            margin: p(first) - p(second),
        }
    }

    /// Natural log of the probability of a token.
    pub fn logprob(&self, logits: &[f32], token: u32) -> f64 {
        logits
            .get(token as usize)
            .map_or(f64::NAN, |&z| f64::from(z) - self.lse)
    }
}

/// KL(A||B) = sum_i p_A(i) (ln p_A(i) - ln p_B(i)) in nats, in f64. Exactly 0 for equal logits; never negative.
pub(super) fn kl(a: &[f32], ra: &Row, b: &[f32], rb: &Row) -> f64 {
    let term = |(&x, &y): (&f32, &f32)| {
        let la = f64::from(x) - ra.lse;
        let p = la.exp();
        // 0 ln 0 = 0, also where B gives no probability either.
        if p > 0.0 {
            p * (la - (f64::from(y) - rb.lse))
        } else {
            0.0
        }
    };
    let sum: f64 = a.iter().zip(b).map(term).sum();
    if sum < 0.0 { 0.0 } else { sum }
}

/// Mean and its standard error: sqrt((mean of squares - square of mean) / (n - 1)).
pub(super) fn mean_se(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    if values.is_empty() {
        return (f64::NAN, f64::NAN);
    }
    let mean = values.iter().sum::<f64>() / n;
    // Around the mean: the difference of two large sums would lose digits.
    let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    let se = if n > 1.0 { (variance / (n - 1.0)).sqrt() } else { 0.0 };
    (mean, se)
}

/// A share with its standard error sqrt(p (1 - p) / (n - 1)).
pub(super) fn share_se(hits: usize, n: usize) -> [f64; 2] {
    if n == 0 {
        return [f64::NAN; 2];
    }
    let p = hits as f64 / n as f64;
    let se = if n > 1 {
        (p * (1.0 - p) / (n - 1) as f64).sqrt()
    } else {
        0.0
    };
    [p, se]
}

/// Quantile of ascending values, between neighbours by distance.
pub(super) fn quantile(sorted: &[f64], q: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f64::NAN;
    };
    let at = q.clamp(0.0, 1.0) * last as f64;
    let (i, rest) = (at.floor() as usize, at.fract());
    let next = sorted[(i + 1).min(last)];
    if rest == 0.0 {
        sorted[i]
    } else {
        (1.0 - rest) * sorted[i] + rest * next
    }
}

/// Statistics of KL values.
pub(super) fn kl_stats(values: &[f64]) -> KlStats {
    let (mean, mean_se) = mean_se(values);
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    KlStats {
        mean,
        mean_se,
        median: quantile(&sorted, 0.5),
        p90: quantile(&sorted, 0.9),
        p99: quantile(&sorted, 0.99),
        p999: quantile(&sorted, 0.999),
        max: sorted.last().copied().unwrap_or(f64::NAN),
    }
}

/// Perplexities of B and A from negative log-probabilities of the same tokens; formulas at [`PplStats`].
pub(super) fn ppl_stats(nll_a: &[f64], nll_b: &[f64]) -> PplStats {
    let ((ma, ea), (mb, eb)) = (mean_se(nll_a), mean_se(nll_b));
    let n = nll_a.len() as f64;
    // Around the means, as the variances are.
    let sum: f64 = nll_a.iter().zip(nll_b).map(|(a, b)| (a - ma) * (b - mb)).sum();
    let cov = if n > 1.0 { sum / n / (n - 1.0) } else { 0.0 };
    let (ppl_a, ppl_b) = (ma.exp(), mb.exp());
    let ratio = (mb - ma).exp();
    let root = |v: f64| v.max(0.0).sqrt();
    PplStats {
        cor: cov / (ea * eb),
        ratio: [ratio, ratio * root(ea * ea + eb * eb - 2.0 * cov)],
        diff: [
            ppl_b - ppl_a,
            root((ppl_b * eb).powi(2) + (ppl_a * ea).powi(2) - 2.0 * ppl_b * ppl_a * cov),
        ],
    }
}

/// Change of the probability of the tokens that follow, from negative log-probabilities; formulas at [`DeltaP`].
pub(super) fn delta_p(nll_a: &[f64], nll_b: &[f64]) -> DeltaP {
    let mut all: Vec<f64> = nll_a.iter().zip(nll_b).map(|(a, b)| (-b).exp() - (-a).exp()).collect();
    let (mean, se) = mean_se(&all);
    let squares: Vec<f64> = all.iter().map(|d| d * d).collect();
    let (square, square_se) = mean_se(&squares);
    let rms = square.sqrt();
    all.sort_by(f64::total_cmp);
    DeltaP {
        mean: [mean, se],
        rms: [rms, if rms > 0.0 { 0.5 / rms * square_se } else { 0.0 }],
        max: quantile(&all, 1.0),
        median: quantile(&all, 0.5),
        min: quantile(&all, 0.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_of_known_distributions() {
        // p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 ln 2 - 1/4 ln 2.
        let ln = |v: [f32; 3]| v.map(f32::ln);
        let (a, b) = (ln([0.5, 0.25, 0.25]), ln([0.25, 0.5, 0.25]));
        let (ra, rb) = (Row::new(&a), Row::new(&b));
        assert!((kl(&a, &ra, &b, &rb) - 0.25 * 2f64.ln()).abs() < 1e-7);
        assert_eq!(kl(&a, &ra, &a, &ra), 0.0);
        assert_eq!((ra.top, rb.top), (0, 1));
        assert!((ra.margin - 0.25).abs() < 1e-7);
        assert!((ra.logprob(&a, 1) - 0.25f64.ln()).abs() < 1e-7);
        assert!(ra.logprob(&a, 9).is_nan());
        // Shifting all logits changes nothing; ties go to the lower id; impossible tokens do not count.
        let shifted = a.map(|z| z + 80.0);
        assert!((kl(&shifted, &Row::new(&shifted), &b, &rb) - 0.25 * 2f64.ln()).abs() < 1e-5);
        assert_eq!(Row::new(&[1.0, 3.0, 3.0]).top, 1);
        let (never, other) = ([0.0, f32::NEG_INFINITY], [0.0, 0.0]);
        let d = kl(&never, &Row::new(&never), &other, &Row::new(&other));
        assert!((d - 2f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn statistics_as_the_peer_computes_them() {
        let v = [1.0, 2.0, 3.0, 6.0];
        let (mean, se) = mean_se(&v);
        // (50 / 4 - 9) / 3
        assert!((mean - 3.0).abs() < 1e-12 && (se - (3.5f64 / 3.0).sqrt()).abs() < 1e-12);
        let s = kl_stats(&v);
        assert_eq!((s.median, s.max), (2.5, 6.0));
        assert!((s.p90 - (3.0 * 0.3 + 6.0 * 0.7)).abs() < 1e-12);
        assert!((s.p999 - (3.0 * 0.003 + 6.0 * 0.997)).abs() < 1e-12);
        // By sums, as the peer's own code has it.
        let (a, b) = ([1.0, 2.5, 0.5, 3.0, 0.25], [1.25, 2.0, 0.75, 3.5, 0.5]);
        let n = a.len() as f64;
        let sum = |f: &dyn Fn(usize) -> f64| (0..a.len()).map(f).sum::<f64>();
        let se = |v: [f64; 5]| {
            let (s, s2) = (v.iter().sum::<f64>() / n, v.iter().map(|x| x * x).sum::<f64>() / n);
            ((s2 - s * s) / (n - 1.0)).sqrt()
        };
        let (ma, mb) = (sum(&|i| a[i]) / n, sum(&|i| b[i]) / n);
        let cov = (sum(&|i| a[i] * b[i]) / n - ma * mb) / (n - 1.0);
        let (ea, eb) = (se(a), se(b));
        let p = ppl_stats(&a, &b);
        let near = |x: f64, y: f64| assert!((x - y).abs() < 1e-12, "{x} against {y}");
        near(p.cor, cov / (ea * eb));
        near(p.ratio[0], mb.exp() / ma.exp());
        near(p.ratio[1], p.ratio[0] * (ea * ea + eb * eb - 2.0 * cov).sqrt());
        near(p.diff[0], mb.exp() - ma.exp());
        let (ua, ub) = (ma.exp() * ea, mb.exp() * eb);
        near(p.diff[1], (ub * ub + ua * ua - 2.0 * mb.exp() * ma.exp() * cov).sqrt());
        let d = delta_p(&a, &b);
        let dp = |i: usize| (-b[i]).exp() - (-a[i]).exp();
        near(d.mean[0], sum(&dp) / n);
        near(d.mean[1], se([dp(0), dp(1), dp(2), dp(3), dp(4)]));
        let (s2, s4) = (sum(&|i| dp(i).powi(2)) / n, sum(&|i| dp(i).powi(4)) / n);
        near(d.rms[0], s2.sqrt());
        near(d.rms[1], 0.5 / s2.sqrt() * ((s4 - s2 * s2) / (n - 1.0)).sqrt());
        assert!(d.min <= d.median && d.median <= d.max && (d.min, d.max) == (dp(4), dp(1)));
        // Nothing changes: no change, and no error of it.
        let same = delta_p(&a, &a);
        assert_eq!((same.mean, same.rms, same.max), ([0.0; 2], [0.0; 2], 0.0));
        near(ppl_stats(&a, &a).cor, 1.0);
        assert_eq!(share_se(3, 4), [0.75, 0.25]);
        assert_eq!(mean_se(&[5.0]), (5.0, 0.0));
    }
}
