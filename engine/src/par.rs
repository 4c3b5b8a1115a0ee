//! Independent rows on several threads.

/// `f(0) .. f(n - 1)` in order, computed on up to `threads` threads. Each result depends on its number alone, so the
/// answer does not depend on `threads`.
pub(crate) fn map_rows<T: Send>(threads: usize, n: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let threads = threads.min(n).max(1);
    if threads == 1 {
        return (0..n).map(f).collect();
    }
    let mut parts: Vec<Vec<T>> = (0..threads).map(|_| Vec::new()).collect();
    std::thread::scope(|scope| {
        for (i, part) in parts.iter_mut().enumerate() {
            let f = &f;
            // Contiguous runs, so that joining them keeps the order.
            let (first, end) = (i * n / threads, (i + 1) * n / threads);
            scope.spawn(move || part.extend((first..end).map(f)));
        }
    });
    parts.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn order_is_kept_whatever_the_threads() {
        let want: Vec<usize> = (0..17).map(|i| i * i).collect();
        for threads in [0, 1, 2, 3, 16, 40] {
            assert_eq!(super::map_rows(threads, 17, |i| i * i), want);
        }
        assert!(super::map_rows(4, 0, |i| i).is_empty());
    }
}
