//! A cell of an attention map in words.

use protocol::{AttentionMap, KeptRows, RowSpan, Segment};

use super::{span_text, token_name};
use crate::fmt;

/// What a column is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A raw token.
    Token(u64),
    /// A compressed row and the tokens it pools.
    Row(u64, RowSpan),
    /// The sink.
    Sink,
}

/// Tokens a compressed row pools.
pub fn span_of(row: u64, rate: u32, overlap: bool) -> RowSpan {
    let rate = u64::from(rate.max(1));
    let first = if overlap { row.saturating_sub(1) } else { row } * rate;
    RowSpan {
        first,
        last: (row + 1) * rate - 1,
    }
}

/// What column `col` is, and the columns of its segment.
pub fn key_of(segments: &[Segment], col: usize) -> Option<(Key, std::ops::Range<usize>)> {
    let mut start = 0;
    for segment in segments {
        let end = start + segment.columns() as usize;
        if col < end {
            let i = (col - start) as u64;
            let key = match *segment {
                Segment::Tokens { first, .. } => Key::Token(first + i),
                Segment::Rows {
                    first, rate, overlap, ..
                } => Key::Row(first + i, span_of(first + i, rate, overlap)),
                Segment::Sink => Key::Sink,
            };
            return Some((key, start..end));
        }
        start = end;
    }
    None
}

/// Columns at which segments begin, the first left out.
pub fn separators(segments: &[Segment]) -> Vec<usize> {
    let mut at = 0;
    let ends = segments.iter().map(|s| {
        at += s.columns() as usize;
        at
    });
    let mut out: Vec<usize> = ends.collect();
    out.pop();
    out
}

/// Short name of a column, for axes.
pub fn column_name(map: &AttentionMap, col: usize) -> String {
    match key_of(&map.segments, col).map(|k| k.0) {
        Some(Key::Token(t)) => map
            .tokens
            .get(t as usize)
            .map_or(String::new(), |l| fmt::visible(&l.text)),
        Some(Key::Row(row, _)) => format!("row {row}"),
        Some(Key::Sink) => "sink".into(),
        None => String::new(),
    }
}

/// Values of a query, `[columns]`.
pub fn row_of(map: &AttentionMap, query: usize) -> &[f32] {
    let columns: usize = map.segments.iter().map(|s| s.columns() as usize).sum();
    map.values.get(query * columns..(query + 1) * columns).unwrap_or(&[])
}

/// The cell in one sentence.
pub fn sentence(map: &AttentionMap, kept: Option<&KeptRows>, query: usize, col: usize) -> String {
    let at = map.spec.from + query as u64;
    let values = row_of(map, query);
    let (Some(value), Some((key, segment))) = (values.get(col), key_of(&map.segments, col)) else {
        return String::new();
    };
    let who = format!("Query {}", token_name(&map.tokens, at));
    let what = match key {
        Key::Token(t) if t == at => "itself".to_string(),
        Key::Token(t) => format!(
            "token {}, {} back",
            token_name(&map.tokens, t),
            fmt::count(at.saturating_sub(t))
        ),
        Key::Row(row, span) => {
            let text = span_text(&map.tokens, span.first, span.last, 48);
            format!(
                "compressed row {} (tokens {}–{}: {text})",
                fmt::count(row),
                fmt::count(span.first),
                fmt::count(span.last)
            )
        }
        Key::Sink => "the sink".into(),
    };
    if *value < 0.0 {
        return format!("{who} cannot read {what}: {}.", why_not(key, at, kept));
    }
    let mass = fmt::sig3(f64::from(*value));
    if key == Key::Sink {
        return format!("{who} leaves {mass} of its mass to the sink: it reads nothing with that part.");
    }
    let seen: Vec<f32> = values[segment].iter().copied().filter(|v| *v >= 0.0).collect();
    let rank = 1 + seen.iter().filter(|v| **v > *value).count();
    let place = format!(
        "the {} of the {} it reads there",
        ordinal(rank),
        fmt::count(seen.len() as u64)
    );
    let indexer = match key {
        Key::Row(row, _) => indexed(kept, at, row),
        _ => String::new(),
    };
    format!("{who} reads {what} with {mass} of its mass, {place}{indexer}.")
}

fn indexed(kept: Option<&KeptRows>, at: u64, row: u64) -> String {
    let Some(rows) = kept.and_then(|k| k.kept.get(at as usize)) else {
        return String::new();
    };
    match rows.iter().position(|r| u64::from(*r) == row) {
        Some(i) => format!("; kept by the indexer, rank {} of {}", i + 1, rows.len()),
        None => String::new(),
    }
}

fn why_not(key: Key, at: u64, kept: Option<&KeptRows>) -> String {
    match key {
        Key::Token(t) if t > at => "it comes later".into(),
        Key::Token(_) => "it has left the window".into(),
        Key::Row(_, span) if span.last > at => "the row is complete only after its last token".into(),
        Key::Row(row, _)
            if kept.is_some_and(|k| k.kept.get(at as usize).is_some_and(|r| !r.contains(&(row as u32)))) =>
        {
            "the indexer did not keep it".into()
        }
        Key::Row(..) => "it was not chosen for this query".into(),
        Key::Sink => "this head has none".into(),
    }
}

fn ordinal(n: usize) -> String {
    match n {
        1 => "largest share".into(),
        2 => "2nd largest share".into(),
        3 => "3rd largest share".into(),
        n => format!("{n}th largest share"),
    }
}

/// Mass of a query on each token of the text: what falls on a compressed row is spread evenly over the tokens it pools.
/// `None` = the query cannot see the token in any form.
pub fn by_token(map: &AttentionMap, query: usize) -> Vec<Option<f32>> {
    let mut out: Vec<Option<f32>> = vec![None; map.tokens.len()];
    let mut add = |token: u64, mass: f32| {
        if let Some(slot) = out.get_mut(token as usize) {
            *slot = Some(slot.unwrap_or(0.0) + mass);
        }
    };
    for (col, value) in row_of(map, query).iter().enumerate().filter(|(_, v)| **v >= 0.0) {
        match key_of(&map.segments, col).map(|k| k.0) {
            Some(Key::Token(t)) => add(t, *value),
            Some(Key::Row(_, span)) => {
                let n = (span.last + 1 - span.first) as f32;
                (span.first..=span.last).for_each(|t| add(t, *value / n));
            }
            _ => {}
        }
    }
    out
}

/// Mass of a query in the window, in compressed rows and in the sink.
pub fn shares(map: &AttentionMap, query: usize) -> [f32; 3] {
    let values = row_of(map, query);
    let mut out = [0.0; 3];
    let mut at = 0;
    for segment in &map.segments {
        let end = at + segment.columns() as usize;
        let mass: f32 = values.get(at..end).unwrap_or(&[]).iter().filter(|v| **v >= 0.0).sum();
        match segment {
            Segment::Tokens { .. } => out[0] += mass,
            Segment::Rows { .. } => out[1] += mass,
            Segment::Sink => out[2] += mass,
        }
        at = end;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::{AttentionSpec, TokenLabel};

    /// Two queries, 8 and 9, of a CSA layer with a window of 4 and two rows of 4 tokens.
    fn map() -> AttentionMap {
        let tokens = (0..10)
            .map(|i| TokenLabel {
                token: i,
                text: format!(" t{i}"),
            })
            .collect();
        let values = vec![
            // tokens 5..10, rows 0 and 1, sink
            0.1, 0.1, 0.1, 0.2, -1.0, 0.3, -1.0, 0.2, //
            -1.0, 0.1, 0.1, 0.1, 0.3, -1.0, 0.2, 0.2,
        ];
        AttentionMap {
            spec: AttentionSpec {
                layer: 2,
                head: None,
                from: 8,
                to: 10,
            },
            segments: vec![
                Segment::Tokens { first: 5, columns: 5 },
                Segment::Rows {
                    first: 0,
                    columns: 2,
                    rate: 4,
                    overlap: true,
                },
                Segment::Sink,
            ],
            values,
            tokens,
            heads: 1,
            head_stats: vec![(1.0, 0.2)],
        }
    }

    #[test]
    fn cells_in_words() {
        let m = map();
        assert_eq!(
            sentence(&m, None, 0, 5),
            "Query 8 \" t8\" reads compressed row 0 (tokens 0–3: \" t0 t1 t2 t3\") with 0.300 of its mass, the largest share of the 1 it reads there."
        );
        assert!(
            sentence(&m, None, 1, 6).contains("row 1 (tokens 0–7:"),
            "CSA rows overlap"
        );
        assert!(sentence(&m, None, 0, 3).starts_with("Query 8 \" t8\" reads itself with 0.200"));
        assert!(sentence(&m, None, 0, 2).contains("token 7 \" t7\", 1 back"));
        assert!(sentence(&m, None, 0, 4).ends_with("it comes later."));
        assert!(sentence(&m, None, 1, 0).ends_with("it has left the window."));
        assert!(sentence(&m, None, 0, 7).contains("0.200 of its mass to the sink"));
        assert_eq!(sentence(&m, None, 0, 8), "");
    }

    #[test]
    fn kept_rows_say_their_rank() {
        let mut kept = crate::testing::kept_rows(2, 10);
        kept.kept = vec![Vec::new(); 10];
        kept.kept[8] = vec![1, 0];
        assert!(sentence(&map(), Some(&kept), 0, 5).ends_with("; kept by the indexer, rank 2 of 2."));
        kept.kept[9] = vec![1];
        assert!(sentence(&map(), Some(&kept), 1, 5).ends_with("the indexer did not keep it."));
    }

    #[test]
    fn mass_is_spread_and_adds_up() {
        let m = map();
        for q in 0..2 {
            let [window, rows, sink] = shares(&m, q);
            assert!((window + rows + sink - 1.0).abs() < 1e-6);
            let spread: f32 = by_token(&m, q).into_iter().flatten().sum();
            assert!((spread - window - rows).abs() < 1e-6);
        }
        assert_eq!(by_token(&m, 0)[4], None);
        assert_eq!(by_token(&m, 0)[0], Some(0.075));
        assert_eq!(separators(&m.segments), [5, 7]);
        assert_eq!(column_name(&m, 6), "row 1");
    }
}
