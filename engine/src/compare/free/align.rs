//! Where two texts say the same again.
//!
//! The texts are equal up to the split. After it they *join again* at the first pair of places (i, j) from which on the
//! following [`REJOIN`] tokens agree: the pair with the smallest i + j, and among equals the one with the smaller i.
//! The block is as long as they agree from there, and the search goes on behind it. A few words that happen to be equal
//! are no block: in plain English eight tokens rarely come twice.

use std::collections::BTreeMap;

use protocol::FreeBlock;

/// Tokens that must agree for two texts to have joined again.
pub const REJOIN: usize = 8;

/// Number of tokens that both begin with.
pub fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// What two texts have in common, in order: the common beginning (left out where there is none), then every place where
/// they join again.
pub fn blocks(a: &[u32], b: &[u32]) -> Vec<FreeBlock> {
    let block = |a: usize, b: usize, len: usize| FreeBlock {
        a: a as u64,
        b: b as u64,
        len: len as u64,
    };
    let mut out = Vec::new();
    let start = common(a, b);
    if start > 0 {
        out.push(block(0, 0, start));
    }
    // Places in B by the tokens that follow, rising.
    let mut places: BTreeMap<&[u32], Vec<usize>> = BTreeMap::new();
    for (j, gram) in b.windows(REJOIN).enumerate() {
        places.entry(gram).or_default().push(j);
    }
    let (mut i, mut j) = (start, start);
    while let Some((x, y)) = join(a, &places, i, j) {
        let len = common(&a[x..], &b[y..]);
        out.push(block(x, y, len));
        (i, j) = (x + len, y + len);
    }
    out
}

/// The nearest pair of places at or behind (i, j) from which [`REJOIN`] tokens agree.
fn join(a: &[u32], places: &BTreeMap<&[u32], Vec<usize>>, i: usize, j: usize) -> Option<(usize, usize)> {
    let mut best: Option<(usize, usize)> = None;
    for (x, gram) in a.windows(REJOIN).enumerate().skip(i) {
        // Whatever comes later is farther in A alone than the best pair is in both.
        if best.is_some_and(|(p, q)| x + j >= p + q) {
            break;
        }
        let Some(list) = places.get(gram) else { continue };
        if let Some(&y) = list.get(list.partition_point(|y| *y < j))
            && best.is_none_or(|(p, q)| x + y < p + q)
        {
            best = Some((x, y));
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(a: u64, b: u64, len: u64) -> FreeBlock {
        FreeBlock { a, b, len }
    }

    #[test]
    fn texts_join_again_where_eight_tokens_agree() {
        let a: Vec<u32> = (0..40).collect();
        assert_eq!(blocks(&a, &a), [block(0, 0, 40)]);
        // Three tokens replaced by five.
        let mut b = a[..10].to_vec();
        b.extend([100, 101, 102, 103, 104]);
        b.extend(&a[13..]);
        assert_eq!(blocks(&a, &b), [block(0, 0, 10), block(13, 15, 27)]);
        // Seven equal tokens are too few, eight are enough.
        let other = |n: usize| {
            let mut b: Vec<u32> = vec![200; 3];
            b.extend(&a[20..20 + n]);
            b.extend([300; 12]);
            b
        };
        assert_eq!(blocks(&a, &other(7)), []);
        assert_eq!(blocks(&a, &other(8)), [block(20, 3, 8)]);
        assert_eq!(blocks(&[], &a), []);
    }

    #[test]
    fn the_nearest_pair_wins_and_nothing_is_used_twice() {
        // B holds A's tokens 30..40 early and 12..22 late: the pair with the smaller sum is taken.
        let a: Vec<u32> = (0..50).collect();
        let mut b = vec![500, 501];
        b.extend(&a[30..40]);
        b.extend(vec![600; 30]);
        b.extend(&a[12..22]);
        // (30, 2) has sum 32, (12, 42) has 54.
        assert_eq!(blocks(&a, &b), [block(30, 2, 10)]);
        // A slow search over all pairs agrees.
        let mut seed = 7u32;
        let mut draw = |n: u32| {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 16) % n
        };
        for _ in 0..200 {
            let x: Vec<u32> = (0..60).map(|_| draw(2)).collect();
            let y: Vec<u32> = (0..60).map(|_| draw(2)).collect();
            let found = blocks(&x, &y);
            let (mut i, mut j) = (common(&x, &y), common(&x, &y));
            let mut slow = Vec::new();
            if i > 0 {
                slow.push(block(0, 0, i as u64));
            }
            loop {
                let mut pairs: Vec<(usize, usize)> = (i..x.len())
                    .flat_map(|p| (j..y.len()).map(move |q| (p, q)))
                    .filter(|(p, q)| common(&x[*p..], &y[*q..]) >= REJOIN)
                    .collect();
                pairs.sort_by_key(|(p, q)| (p + q, *p));
                let Some(&(p, q)) = pairs.first() else { break };
                let len = common(&x[p..], &y[q..]);
                slow.push(block(p as u64, q as u64, len as u64));
                (i, j) = (p + len, q + len);
            }
            assert_eq!(found, slow, "{x:?} {y:?}");
        }
    }
}
