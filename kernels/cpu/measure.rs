//! What the memory of this machine can do: the yardstick of timing tables.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::pool::Pool;

/// Least bytes to read: far more than the caches of small machines.
const LEAST: usize = 256 << 20;
/// Most bytes to read.
const MOST: usize = 2 << 30;
/// Passes over them go on for this long, since other programs may want the processor for a while; the best counts.
const LONG: Duration = Duration::from_millis(500);
/// Bytes of a task: small enough that no thread waits long for another.
const TASK: usize = 1 << 20;

/// Bytes of all last-level caches, as Linux tells it; `None` elsewhere.
pub fn cache_bytes() -> Option<u64> {
    let read = |file: &str| std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu0/cache/{file}")).ok();
    let last = (0..8).rev().find(|i| read(&format!("index{i}/size")).is_some())?;
    let size = read(&format!("index{last}/size"))?;
    let kib: u64 = size.trim().strip_suffix('K')?.parse().ok()?;
    let sharing = members(read(&format!("index{last}/shared_cpu_list"))?.trim())?;
    let all = members(std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?.trim())?;
    Some(kib * 1024 * all.div_ceil(sharing.max(1)))
}

/// Numbers in a list such as `0-3,8`.
fn members(list: &str) -> Option<u64> {
    let one = |part: &str| -> Option<u64> {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(last.parse::<u64>().ok()?.checked_sub(first.parse().ok()?)? + 1)
    };
    list.split(',').map(one).sum()
}

/// Bytes that [`read_bandwidth`] reads: four times the caches.
pub fn read_bytes() -> usize {
    let cache = cache_bytes().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
    cache.saturating_mul(4).clamp(LEAST, MOST)
}

/// Bytes per second at which the pool's threads read `bytes` bytes (rounded down to whole tasks) of memory; the best of
/// some passes.
pub fn read_bandwidth(pool: &Pool, bytes: usize) -> f64 {
    let tasks = (bytes / TASK).max(1);
    // Written by the threads that will read, so that pages are theirs; not zeros, which need no memory.
    let parts: Vec<std::sync::OnceLock<Vec<u64>>> = (0..tasks).map(|_| std::sync::OnceLock::new()).collect();
    pool.run(tasks, &|i| {
        parts[i].get_or_init(|| vec![0x5b5b_5b5b_5b5b_5b5b; TASK / 8]);
    });
    let mut best = f64::INFINITY;
    let begin = Instant::now();
    while best.is_infinite() || begin.elapsed() < LONG {
        let start = Instant::now();
        pool.run(tasks, &|i| {
            black_box(sum(parts[i].get().map_or(&[], Vec::as_slice)));
        });
        best = best.min(start.elapsed().as_secs_f64());
    }
    (tasks * TASK) as f64 / best
}

/// In 16 independent sums, so that loads and not additions are what takes time.
fn sum(words: &[u64]) -> u64 {
    let mut sums = [0u64; 16];
    for part in words.as_chunks::<16>().0 {
        for (s, w) in sums.iter_mut().zip(part) {
            *s = s.wrapping_add(*w);
        }
    }
    sums.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(members("0"), Some(1));
        assert_eq!(members("0-3,8,10-11"), Some(7));
        assert_eq!(members("3-0"), None);
        assert_eq!(members(""), None);
    }

    #[test]
    fn every_word_is_read() {
        let words: Vec<u64> = (0..64).collect();
        assert_eq!(sum(&words), 63 * 64 / 2);
        assert!((LEAST..=MOST).contains(&read_bytes()));
    }

    #[test]
    fn a_bandwidth_is_a_number_on_any_number_of_threads() {
        for threads in [1, 3] {
            let found = read_bandwidth(&Pool::new(threads), 3 * TASK);
            assert!(found.is_finite() && found > 0.0, "{found}");
        }
    }
}
