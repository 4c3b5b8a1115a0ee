//! KL against cost, for sweeps.

use protocol::SweepRow;

use super::svg::{Anchor, FAINT, INK, LogScale, SIDES, Svg, ticks};
use crate::compare::sweep::{Price, front};
use crate::memory::human;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 460.0;
const BOX: [f64; 4] = [84.0, 36.0, 900.0, 400.0];

/// KL(A||recipe) over what a decode step costs; `rows[0]` is A. What nothing beats is joined by a line and named by its
/// number in `rows`. `budget`: a line to stay under.
pub fn pareto(rows: &[SweepRow], price: Price, budget: Option<f64>) -> String {
    let [x0, y0, x1, y1] = BOX;
    let mut svg = Svg::new(WIDTH, HEIGHT);
    svg.text(
        x0,
        20.0,
        Anchor::Start,
        13.0,
        "mean KL(A‖recipe), nats per token (logarithmic; A itself lies at the bottom)",
    );
    let costs: Vec<f64> = rows.iter().map(|r| price.of(r)).collect();
    let kls = rows.iter().map(|r| r.kl.mean).chain(budget);
    let smallest = kls.clone().filter(|v| *v > 0.0).fold(f64::INFINITY, f64::min);
    let largest = kls.clone().fold(0.0, f64::max);
    let decades = if smallest.is_finite() && largest > 0.0 {
        ((largest.log10().ceil() - smallest.log10().floor()) as i32).clamp(2, 9)
    } else {
        2
    };
    let scale = LogScale::of(kls, decades);
    for power in scale.low..=scale.high {
        let y = y1 - f64::from(power - scale.low) / f64::from(scale.high - scale.low) * (y1 - y0);
        svg.line([x0, y, x1, y], FAINT, 1.0);
        svg.text(x0 - 8.0, y + 4.0, Anchor::End, 12.0, &format!("1e{power}"));
    }
    let most = costs.iter().copied().filter(|c| c.is_finite()).fold(0.0, f64::max) * 1.05;
    let x = |cost: f64| x0 + (cost / most.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0) * (x1 - x0);
    let y = |kl: f64| y1 - scale.at(kl) * (y1 - y0);
    for t in ticks(most, 6) {
        svg.line([x(t), y1, x(t), y1 + 4.0], INK, 1.0);
        let label = match price {
            Price::Bytes => human(t as u64),
            Price::Time => format!("{:.2} ms", 1e3 * t),
        };
        svg.text(x(t), y1 + 18.0, Anchor::Middle, 12.0, &label);
    }
    let axis = match price {
        Price::Bytes => "weight and cache bytes of a decode step (estimated by the plan)",
        Price::Time => "time per decoded token (measured)",
    };
    svg.text((x0 + x1) / 2.0, y1 + 40.0, Anchor::Middle, 12.0, axis);
    svg.line([x0, y1, x1, y1], INK, 1.0);
    if let Some(b) = budget {
        svg.line([x0, y(b), x1, y(b)], SIDES[1], 1.2);
        svg.text(x1, y(b) - 5.0, Anchor::End, 12.0, &format!("budget {b:.1e}"));
    }
    let best = front(rows, price);
    let mut line: Vec<usize> = (0..rows.len()).filter(|&i| best[i]).collect();
    line.sort_by(|&a, &b| costs[a].total_cmp(&costs[b]));
    for pair in line.windows(2) {
        let (a, b) = (pair[0], pair[1]);
        svg.line(
            [x(costs[a]), y(rows[a].kl.mean), x(costs[b]), y(rows[b].kl.mean)],
            SIDES[0],
            1.2,
        );
    }
    for (i, row) in rows.iter().enumerate() {
        let half = if best[i] { 4.0 } else { 2.5 };
        let (px, py) = (x(costs[i]), y(row.kl.mean));
        let name = if row.edits.is_empty() {
            "A".into()
        } else {
            row.edits.join(" ")
        };
        let colour = if best[i] { SIDES[0] } else { "#9aa3ad" };
        let title = format!("{i}: {name}: {:.3e} nats, {}", row.kl.mean, human(row.step_bytes));
        svg.rect([px - half, py - half, 2.0 * half, 2.0 * half], colour, &title);
        if best[i] {
            let label = if row.edits.is_empty() {
                "A".into()
            } else {
                i.to_string()
            };
            svg.text(px + 7.0, py - 6.0, Anchor::Start, 12.0, &label);
        }
    }
    svg.finish()
}
