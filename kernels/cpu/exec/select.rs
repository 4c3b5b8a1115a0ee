//! Keeping the rows with the largest scores.

/// Numbers of the `out.len()` largest scores in ascending order; all of them, then -1, where there are no more. Equal
/// scores keep the earlier row; NaN counts as larger than every number.
pub(super) fn top_k(scores: &[f32], out: &mut [i32]) {
    let (n, k) = (scores.len(), out.len());
    out.fill(-1);
    if n <= k {
        out.iter_mut().zip(0..n as i32).for_each(|(o, j)| *o = j);
        return;
    }
    if k == 0 {
        return;
    }
    let mut order: Vec<u32> = (0..n as u32).collect();
    let larger_first = |&a: &u32, &b: &u32| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b));
    order.select_nth_unstable_by(k - 1, larger_first);
    order.truncate(k);
    order.sort_unstable();
    out.iter_mut().zip(order).for_each(|(o, j)| *o = j as i32);
}

#[cfg(test)]
mod tests {
    use super::top_k;
    use proptest::prelude::*;

    proptest! {
        /// What a full, stable sort keeps.
        #[test]
        fn as_a_stable_sort(
            scores in prop::collection::vec(prop_oneof![Just(0.0f32), -3.0f32..3.0, Just(f32::INFINITY)], 0..200),
            k in 0usize..40,
        ) {
            let mut out = vec![7; k];
            top_k(&scores, &mut out);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]));
            order.truncate(k);
            order.sort_unstable();
            let mut want: Vec<i32> = order.into_iter().map(|j| j as i32).collect();
            want.resize(k, -1);
            prop_assert_eq!(out, want);
        }
    }
}
