//! The charts of a report as SVG.

use protocol::{CompareResult, KvBytes};

use super::svg::{Anchor, FAINT, INK, LogScale, SIDES, Svg, ticks, viridis};
use crate::memory::human;

const WIDTH: f64 = 960.0;
/// Room for axis labels.
const LEFT: f64 = 84.0;
const RIGHT: f64 = 96.0;
const TOP: f64 = 34.0;

/// A drawn chart.
pub(super) struct Chart {
    /// File name without ending.
    pub name: &'static str,
    pub title: &'static str,
    /// What it shows and how to read it.
    pub about: String,
    pub svg: String,
}

pub(super) fn all(r: &CompareResult) -> Vec<Chart> {
    let mut out = vec![kl(r), drift(r), kv(r)];
    if !r.isolate.is_empty() {
        out.push(isolate(r));
    }
    out
}

/// Largest value of each of at most `columns` equal runs; (first index, value).
fn pooled(values: &[f32], columns: usize) -> Vec<(usize, f64)> {
    let n = values.len();
    let columns = columns.min(n).max(1);
    (0..columns)
        .map(|c| {
            let (a, b) = (c * n / columns, (c + 1) * n / columns);
            let run = values.get(a..b.max(a + 1)).unwrap_or(&[]);
            (a, run.iter().map(|&v| f64::from(v)).fold(0.0, f64::max))
        })
        .collect()
}

fn positions(svg: &mut Svg, n: usize, y: f64, [x0, x1]: [f64; 2]) {
    for t in ticks(n as f64, 8) {
        let x = x0 + t / n.max(1) as f64 * (x1 - x0);
        svg.line([x, y, x, y + 4.0], INK, 1.0);
        svg.text(x, y + 17.0, Anchor::Middle, 12.0, &format!("{t}"));
    }
    svg.text((x0 + x1) / 2.0, y + 34.0, Anchor::Middle, 12.0, "position in the text");
}

fn decade(power: i32) -> String {
    match power {
        -3..=3 => format!("{}", 10f64.powi(power)),
        _ => format!("1e{power}"),
    }
}

fn log_axis(svg: &mut Svg, scale: LogScale, [y0, y1]: [f64; 2], [x0, x1]: [f64; 2]) {
    for power in scale.low..=scale.high {
        let y = y1 - f64::from(power - scale.low) / f64::from(scale.high - scale.low) * (y1 - y0);
        svg.line([x0, y, x1, y], FAINT, 1.0);
        let label = if power == scale.low {
            format!("≤ {}", decade(power))
        } else {
            decade(power)
        };
        svg.text(x0 - 8.0, y + 4.0, Anchor::End, 12.0, &label);
    }
}

/// KL along the text.
fn kl(r: &CompareResult) -> Chart {
    let (height, y0) = (300.0, TOP);
    let y1 = height - 46.0;
    let (x0, x1) = (LEFT, WIDTH - RIGHT);
    let mut svg = Svg::new(WIDTH, height);
    svg.text(x0, 20.0, Anchor::Start, 13.0, "KL(A‖B) per token, nats");
    let values: Vec<f32> = r.tokens.iter().map(|t| t.kl).collect();
    let scale = LogScale::of(values.iter().map(|&v| f64::from(v)), 6);
    log_axis(&mut svg, scale, [y0, y1], [x0, x1]);
    let n = values.len();
    let bars = pooled(&values, 480);
    let w = (x1 - x0) / bars.len() as f64;
    for (i, &(at, v)) in bars.iter().enumerate() {
        let h = scale.at(v) * (y1 - y0);
        let text = r.tokens.get(at).map_or("", |t| t.text.as_str());
        let gap = if w > 3.0 { 0.6 } else { 0.0 };
        let title = format!("{at} {text:?}: {v:.3e} nats");
        svg.rect([x0 + i as f64 * w, y1 - h, w - gap, h], SIDES[0], &title);
    }
    // From the top down; labels keep a line's height apart.
    let mut free = 0.0;
    for (name, v) in [("99 %", r.kl.p99), ("mean", r.kl.mean), ("median", r.kl.median)] {
        if v > 0.0 {
            let y = y1 - scale.at(v) * (y1 - y0);
            svg.line([x0, y, x1 + 4.0, y], SIDES[1], 1.2);
            let at = (y + 4.0).max(free);
            svg.text(x1 + 8.0, at, Anchor::Start, 12.0, &format!("{name} {v:.1e}"));
            free = at + 14.0;
        }
    }
    if let Some(d) = &r.divergence {
        let x = x0 + (d.position as f64 + 0.5) / n as f64 * (x1 - x0);
        svg.line([x, y0, x, y1], INK, 1.0);
        let near_end = x > (x0 + x1) / 2.0;
        let (anchor, at) = if near_end {
            (Anchor::End, x - 5.0)
        } else {
            (Anchor::Start, x + 5.0)
        };
        let tie = if d.near_tie { " (near tie)" } else { "" };
        svg.text(
            at,
            y0 + 12.0,
            anchor,
            12.0,
            &format!("greedy texts part at {}{tie}", d.position),
        );
    }
    svg.line([x0, y1, x1, y1], INK, 1.0);
    positions(&mut svg, n, y1, [x0, x1]);
    Chart {
        name: "kl",
        title: "KL along the text",
        about: "How far B's next-token distribution is from A's after each token; logarithmic. Where several \
                positions share a bar, the largest is shown."
            .into(),
        svg: svg.finish(),
    }
}

/// Drift per layer and position.
fn drift(r: &CompareResult) -> Chart {
    let (layers, n) = (r.drift.layer_rms.len(), r.drift.columns());
    let cell = (260.0 / layers.max(1) as f64).clamp(7.0, 30.0);
    let (x0, x1, y0) = (LEFT, WIDTH - RIGHT, TOP);
    let y1 = y0 + cell * layers as f64;
    let mut svg = Svg::new(WIDTH, y1 + 48.0);
    svg.text(
        x0,
        20.0,
        Anchor::Start,
        13.0,
        "‖A − B‖ / ‖A‖ of the residual after each layer",
    );
    let scale = LogScale::of(r.drift.relative_rms.iter().map(|&v| f64::from(v)), 5);
    for l in 0..layers {
        let row = r.drift.relative_rms.get(l * n..(l + 1) * n).unwrap_or(&[]);
        let cells = pooled(row, 160);
        let w = (x1 - x0) / cells.len() as f64;
        for (i, &(at, v)) in cells.iter().enumerate() {
            let color = if v > 0.0 {
                viridis(scale.at(v))
            } else {
                "#20242c".into()
            };
            let title = format!("layer {l}, position {}: {v:.3e}", at * r.drift.step.max(1) as usize);
            // A little wider than its place, so that no seams show.
            svg.rect([x0 + i as f64 * w, y0 + l as f64 * cell, w + 0.4, cell], &color, &title);
        }
        let every = (14.0 / cell).ceil() as usize;
        if l % every == 0 {
            let y = y0 + (l as f64 + 0.5) * cell + 4.0;
            svg.text(x0 - 8.0, y, Anchor::End, 12.0, &format!("layer {l}"));
        }
    }
    let (lx, steps) = (x1 + 18.0, 40);
    let h = (y1 - y0).max(60.0);
    for i in 0..steps {
        let t = f64::from(i) / f64::from(steps);
        let y = y0 + (1.0 - t) * h - h / f64::from(steps);
        svg.rect([lx, y, 12.0, h / f64::from(steps) + 0.4], &viridis(t), "");
    }
    for power in scale.low..=scale.high {
        let t = f64::from(power - scale.low) / f64::from(scale.high - scale.low);
        svg.text(lx + 17.0, y0 + (1.0 - t) * h + 4.0, Anchor::Start, 11.0, &decade(power));
    }
    positions(&mut svg, n, y1, [x0, x1]);
    Chart {
        name: "drift",
        title: "Drift, layer by layer",
        about: "Relative difference of the hidden state between A and B on the same tokens; logarithmic. Black: no \
                difference at all. Where several positions share a cell, the largest is shown."
            .into(),
        svg: svg.finish(),
    }
}

/// Colours of the cache components, in the order of [`KvBytes::parts`].
const PARTS: [&str; 6] = ["#3b6fb6", "#5aa9a0", "#d9a441", "#b0574f", "#8a7bb8", "#9aa3ae"];

/// Cache bytes of both sides by component.
fn kv(r: &CompareResult) -> Chart {
    let (x0, x1) = (LEFT, WIDTH - RIGHT);
    let mut svg = Svg::new(WIDTH, 150.0);
    let n = r.tokens.len();
    svg.text(
        x0,
        20.0,
        Anchor::Start,
        13.0,
        &format!("KV cache in use after {n} tokens"),
    );
    let max = r.sides.iter().map(|s| s.kv.total()).max().unwrap_or(0).max(1) as f64;
    for (i, side) in r.sides.iter().enumerate() {
        let y = TOP + 8.0 + 36.0 * i as f64;
        svg.text(x0 - 12.0, y + 18.0, Anchor::End, 13.0, ["A", "B"][i]);
        let mut x = x0;
        for ((name, bytes), color) in side.kv.parts().into_iter().zip(PARTS) {
            let w = bytes as f64 / max * (x1 - x0);
            svg.rect([x, y, w, 26.0], color, &format!("{name}: {}", human(bytes)));
            x += w;
        }
        svg.text(x + 8.0, y + 18.0, Anchor::Start, 13.0, &human(side.kv.total()));
    }
    let mut x = x0;
    let used = |at: usize| r.sides.iter().any(|s| s.kv.parts()[at].1 > 0);
    for (at, ((name, _), color)) in KvBytes::default().parts().into_iter().zip(PARTS).enumerate() {
        if !used(at) {
            continue;
        }
        svg.rect([x, 126.0, 11.0, 11.0], color, "");
        svg.text(x + 17.0, 136.0, Anchor::Start, 12.0, name);
        x += 36.0 + 7.0 * name.len() as f64;
    }
    Chart {
        name: "kv",
        title: "KV cache",
        about: "Bytes in use at the end of the text, by component; measured.".into(),
        svg: svg.finish(),
    }
}

/// Mean KL of every change alone.
fn isolate(r: &CompareResult) -> Chart {
    let (x0, x1) = (330.0, WIDTH - 150.0);
    let row = 26.0;
    let height = TOP + row * (r.isolate.len() + 1) as f64 + 16.0;
    let mut svg = Svg::new(WIDTH, height);
    svg.text(
        x0,
        20.0,
        Anchor::Start,
        13.0,
        "mean KL(A‖A with the change alone), nats",
    );
    let mut rows: Vec<(String, f64)> = r
        .isolate
        .iter()
        .map(|i| (i.change.edit.to_string(), i.kl_mean))
        .collect();
    rows.push(("all changes (B)".into(), r.kl.mean));
    let max = rows.iter().map(|(_, v)| *v).fold(0.0, f64::max);
    let last = rows.len() - 1;
    for (i, (name, v)) in rows.iter().enumerate() {
        let y = TOP + row * i as f64;
        // Long selectors keep their end, which says what was chosen.
        let count = name.chars().count();
        let shown: String = if count > 46 {
            let end: String = name.chars().skip(count - 45).collect();
            format!("…{end}")
        } else {
            name.clone()
        };
        svg.text(x0 - 10.0, y + 15.0, Anchor::End, 12.0, &shown);
        let w = if max > 0.0 { v / max * (x1 - x0) } else { 0.0 };
        svg.rect([x0, y + 3.0, w, row - 10.0], SIDES[usize::from(i == last)], name);
        svg.text(x0 + w + 8.0, y + 15.0, Anchor::Start, 12.0, &format!("{v:.3e}"));
    }
    Chart {
        name: "isolate",
        title: "Changes one at a time",
        about: "What each change does when it is the only one. They need not add up to B.".into(),
        svg: svg.finish(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pooling_keeps_every_peak() {
        let values: Vec<f32> = (0..1000).map(|i| if i == 617 { 9.0 } else { 0.1 }).collect();
        let cells = pooled(&values, 160);
        assert_eq!(cells.len(), 160);
        assert_eq!(cells.iter().filter(|c| c.1 == 9.0).count(), 1);
        assert_eq!(pooled(&[1.0, 2.0], 10), [(0, 1.0), (1, 2.0)]);
        assert_eq!(pooled(&[f32::NAN, 2.0], 1), [(0, 2.0)]);
    }
}
