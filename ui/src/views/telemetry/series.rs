//! One figure per step, with a min/max pyramid over it, so that drawing costs as much as the chart is wide and not as
//! much as the history is long.

use std::ops::Range;

/// Samples per bucket of a level, in samples of the level below.
const FAN: u64 = 4;

/// A ring of f32 samples addressed by their absolute number, counted from 0 since the last [`Series::clear`].
///
/// NaN stands for "none": it is kept, and ignored by minima and maxima.
#[derive(Clone, Debug, Default)]
pub struct Series {
    /// Samples kept; a power of [`FAN`].
    capacity: u64,
    first: u64,
    end: u64,
    base: Vec<f32>,
    /// Level k holds the minimum and maximum of [`FAN`]^(k + 1) samples.
    levels: Vec<Vec<[f32; 2]>>,
}

/// A run of samples with the smallest and largest of them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bucket {
    /// First sample.
    pub first: u64,
    /// One past the last sample.
    pub end: u64,
    /// Smallest; NaN if there is none.
    pub min: f32,
    /// Largest; NaN if there is none.
    pub max: f32,
}

impl Series {
    /// An empty series that keeps at least `capacity` samples (rounded up to a power of 4, at least 16).
    pub fn new(capacity: usize) -> Self {
        let capacity = rounded_capacity(capacity) as u64;
        let mut levels = Vec::new();
        let mut span = FAN;
        while span * FAN <= capacity {
            levels.push(Vec::new());
            span *= FAN;
        }
        Self {
            capacity,
            levels,
            ..Self::default()
        }
    }

    /// Forgets every sample; numbers start at 0 again.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity as usize);
    }

    /// Number of the first sample still kept.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// One past the number of the last sample.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// Appends a sample, overwriting the oldest when full.
    pub fn push(&mut self, value: f32) {
        let index = self.end;
        put(&mut self.base, (index % self.capacity) as usize, value);
        let mut span = FAN;
        for level in &mut self.levels {
            let slot = slot(index / span, span, self.capacity);
            if index.is_multiple_of(span) {
                put(level, slot, [value, value]);
            } else if let Some(bucket) = level.get_mut(slot) {
                *bucket = [bucket[0].min(value), bucket[1].max(value)];
            }
            span *= FAN;
        }
        self.end += 1;
        self.first = self.first.max(self.end.saturating_sub(self.capacity));
    }

    /// Forgets the samples from number `end` on. Numbers before the first kept sample clear the series.
    pub fn truncate(&mut self, end: u64) {
        if end >= self.end {
            return;
        }
        if end <= self.first {
            self.clear();
            return;
        }
        self.end = end;
        let mut span = FAN;
        for k in 0..self.levels.len() {
            let bucket = end / span;
            if !end.is_multiple_of(span) {
                // The last bucket lost samples; the levels below it are already right.
                let (min, max) = self.range_below(bucket * span..end, k);
                let slot = slot(bucket, span, self.capacity);
                if let Some(b) = self.levels[k].get_mut(slot) {
                    *b = [min, max];
                }
            }
            span *= FAN;
        }
    }

    /// The sample of that number; NaN if it is not kept.
    pub fn get(&self, index: u64) -> f32 {
        if index < self.first || index >= self.end {
            return f32::NAN;
        }
        self.base
            .get((index % self.capacity) as usize)
            .copied()
            .unwrap_or(f32::NAN)
    }

    /// The latest sample; NaN if there is none.
    pub fn last(&self) -> f32 {
        self.end.checked_sub(1).map_or(f32::NAN, |i| self.get(i))
    }

    /// Smallest and largest sample of a range; NaN if there is none.
    pub fn range(&self, range: Range<u64>) -> (f32, f32) {
        self.range_below(range, self.levels.len())
    }

    /// [`Series::range`] that uses the first `levels` levels only.
    fn range_below(&self, range: Range<u64>, levels: usize) -> (f32, f32) {
        let (mut at, end) = (range.start.max(self.first), range.end.min(self.end));
        let (mut min, mut max) = (f32::NAN, f32::NAN);
        while at < end {
            let mut span = 1;
            let mut used = 0;
            while used < levels && at.is_multiple_of(span * FAN) && at + span * FAN <= end {
                span *= FAN;
                used += 1;
            }
            let [lo, hi] = match used {
                0 => [self.get(at); 2],
                k => self.levels[k - 1]
                    .get(slot(at / span, span, self.capacity))
                    .copied()
                    .unwrap_or([f32::NAN; 2]),
            };
            (min, max) = (min.min(lo), max.max(hi));
            at += span;
        }
        (min, max)
    }

    /// The range in at most about `most` buckets. Bucket borders lie at multiples of the bucket size, so that a chart
    /// that moves on does not flicker.
    pub fn buckets(&self, range: Range<u64>, most: usize) -> impl Iterator<Item = Bucket> + '_ {
        let (start, end) = (range.start.max(self.first), range.end.min(self.end));
        let mut span = 1;
        while end.saturating_sub(start) / span > most.max(1) as u64 {
            span *= 2;
        }
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let next = ((at / span + 1) * span).min(end);
            let (min, max) = self.range(at..next);
            let bucket = Bucket {
                first: at,
                end: next,
                min,
                max,
            };
            at = next;
            Some(bucket)
        })
    }
}

/// The capacity a series asked for `capacity` samples has.
pub fn rounded_capacity(capacity: usize) -> usize {
    let mut rounded = 16;
    while rounded < capacity {
        rounded *= FAN as usize;
    }
    rounded
}

/// Slot of a bucket in the ring of its level. One slot more than buckets fit: the oldest bucket may be half
/// overwritten, and its newer half is still needed.
fn slot(bucket: u64, span: u64, capacity: u64) -> usize {
    (bucket % (capacity / span + 1)) as usize
}

/// Writes into a vector that grows as numbers first reach a slot.
fn put<T: Clone>(into: &mut Vec<T>, slot: usize, value: T) {
    match into.get_mut(slot) {
        Some(place) => *place = value,
        // Numbers are consecutive from 0, so the first unused slot is the next one.
        None => into.push(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(values: &[f32], range: Range<usize>) -> (f32, f32) {
        let range = range.start.min(values.len())..range.end.min(values.len());
        values[range]
            .iter()
            .fold((f32::NAN, f32::NAN), |(lo, hi), &v| (lo.min(v), hi.max(v)))
    }

    fn same(a: f32, b: f32) -> bool {
        a == b || (a.is_nan() && b.is_nan())
    }

    /// Small deterministic noise with holes.
    fn noise(i: u64) -> f32 {
        let x = (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32;
        if i % 11 == 3 { f32::NAN } else { x }
    }

    #[test]
    fn ranges_equal_a_plain_scan_before_and_after_wrapping_and_truncation() {
        let mut s = Series::new(64);
        let mut all = Vec::new();
        for i in 0..500 {
            s.push(noise(i));
            all.push(noise(i));
            if i % 37 == 36 {
                let cut = all.len() - 9;
                all.truncate(cut);
                s.truncate(cut as u64);
                assert_eq!(s.end(), cut as u64);
            }
            let (first, end) = (s.first() as usize, s.end() as usize);
            assert!(end - first <= 64);
            for a in (first..end).step_by(5) {
                for b in [a + 1, a + 3, a + 16, a + 40, end] {
                    let (lo, hi) = s.range(a as u64..b as u64);
                    let (want_lo, want_hi) = naive(&all, a..b);
                    assert!(same(lo, want_lo) && same(hi, want_hi), "step {i}, range {a}..{b}");
                }
            }
        }
    }

    #[test]
    fn truncating_to_before_the_first_kept_sample_clears() {
        let mut s = Series::new(16);
        for i in 0..100 {
            s.push(i as f32);
        }
        assert_eq!((s.first(), s.end()), (84, 100));
        s.truncate(50);
        assert_eq!((s.first(), s.end()), (0, 0));
        assert!(s.last().is_nan());
        s.push(7.0);
        assert_eq!(s.last(), 7.0);
        assert_eq!(s.range(0..10), (7.0, 7.0));
    }

    #[test]
    fn buckets_cover_the_range_without_gaps_and_stay_under_the_limit() {
        let mut s = Series::new(4096);
        for i in 0..3000 {
            s.push((i % 100) as f32);
        }
        let buckets: Vec<Bucket> = s.buckets(5..3000, 200).collect();
        assert!(buckets.len() <= 201, "{}", buckets.len());
        assert_eq!(buckets[0].first, 5);
        assert_eq!(buckets.last().map(|b| b.end), Some(3000));
        for pair in buckets.windows(2) {
            assert_eq!(pair[0].end, pair[1].first);
        }
        assert!(buckets.iter().all(|b| b.min <= b.max));
        // Each sample by itself where there is room.
        let fine: Vec<Bucket> = s.buckets(10..20, 200).collect();
        assert_eq!(fine.len(), 10);
        assert!(fine.iter().all(|b| b.min == b.max));
    }

    #[test]
    fn an_empty_series_has_no_values() {
        let s = Series::new(10);
        assert!(s.get(0).is_nan());
        assert!(s.range(0..5).0.is_nan());
        assert_eq!(s.buckets(0..5, 10).count(), 0);
    }
}
