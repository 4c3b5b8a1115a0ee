//! Percentiles over the last samples.

use std::collections::VecDeque;

/// The last samples in order of arrival and of size.
#[derive(Clone, Debug)]
pub struct Sliding {
    most: usize,
    order: VecDeque<f32>,
    sorted: Vec<f32>,
}

impl Sliding {
    /// A window over the last `most` samples (at least 1).
    pub fn new(most: usize) -> Self {
        Self {
            most: most.max(1),
            order: VecDeque::new(),
            sorted: Vec::new(),
        }
    }

    /// Forgets all samples.
    pub fn clear(&mut self) {
        self.order.clear();
        self.sorted.clear();
    }

    /// Samples in the window.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Whether the window is empty.
    pub fn is_empty(&self) -> bool {
        self.sorted.is_empty()
    }

    /// Adds a sample; the oldest leaves a full window. NaN is not a sample.
    pub fn push(&mut self, value: f32) {
        if value.is_nan() {
            return;
        }
        if self.order.len() == self.most
            && let Some(old) = self.order.pop_front()
        {
            let at = self.sorted.partition_point(|&v| v < old);
            if at < self.sorted.len() {
                self.sorted.remove(at);
            }
        }
        self.order.push_back(value);
        let at = self.sorted.partition_point(|&v| v < value);
        self.sorted.insert(at, value);
    }

    /// The `q`-quantile (0 to 1), interpolated between neighbours; NaN if the window is empty.
    pub fn quantile(&self, q: f64) -> f32 {
        quantile_of_sorted(&self.sorted, q)
    }
}

/// The `q`-quantile of values in rising order, interpolated between neighbours (type 7); NaN without values.
pub fn quantile_of_sorted(sorted: &[f32], q: f64) -> f32 {
    let Some(last) = sorted.len().checked_sub(1) else {
        return f32::NAN;
    };
    let place = q.clamp(0.0, 1.0) * last as f64;
    let (low, part) = (place.floor() as usize, (place - place.floor()) as f32);
    let (a, b) = (sorted[low], sorted[(low + 1).min(last)]);
    if part == 0.0 { a } else { a + (b - a) * part }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_a_sliding_window_equal_those_of_a_sorted_copy() {
        let mut window = Sliding::new(50);
        let mut all: Vec<f32> = Vec::new();
        for i in 0..300_u64 {
            // Repeats on purpose: removal must take one of them, not all.
            let v = (i * 7919 % 23) as f32;
            window.push(v);
            all.push(v);
            let mut last: Vec<f32> = all[all.len().saturating_sub(50)..].to_vec();
            last.sort_by(f32::total_cmp);
            for q in [0.0, 0.5, 0.95, 0.99, 1.0] {
                assert_eq!(window.quantile(q), quantile_of_sorted(&last, q), "step {i}, q {q}");
            }
        }
        assert_eq!(window.len(), 50);
    }

    #[test]
    fn known_quantiles() {
        let v = [1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(quantile_of_sorted(&v, 0.5), 3.0);
        assert_eq!(quantile_of_sorted(&v, 0.25), 2.0);
        assert_eq!(quantile_of_sorted(&v, 0.9), 4.6);
        assert!(quantile_of_sorted(&[], 0.5).is_nan());
    }

    #[test]
    fn nan_is_no_sample() {
        let mut window = Sliding::new(3);
        window.push(f32::NAN);
        assert!(window.is_empty());
        assert!(window.quantile(0.5).is_nan());
    }
}
