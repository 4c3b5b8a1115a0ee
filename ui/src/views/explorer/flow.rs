//! The edges of the plan's graph: which op reads what which other op made. Within a block they run in lanes beside the
//! ops; what comes from other blocks comes over the residual stream.

use egui::{Color32, Pos2, Rect, Stroke, pos2, vec2};
use protocol::PlanView;

use super::digest::Run;
use crate::theme::{self, Palette};

/// Lanes side by side; where more would be needed, the last one is shared.
const LANES: usize = 5;
/// Width of a lane.
const LANE: f32 = 6.0;

/// A lane at the row of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    lane: u8,
    /// The op whose result runs here.
    source: u32,
    above: bool,
    below: bool,
    /// This op takes it out.
    tap: bool,
}

/// The edges at one op.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Edges {
    /// Places of the ops whose results it reads.
    pub(super) inputs: Vec<u32>,
    /// Places of the ops that read its result.
    pub(super) outputs: Vec<u32>,
    /// It reads what the op right above made.
    above: bool,
    /// The op right below reads what it makes.
    below: bool,
    /// It reads something from outside its block.
    outside: bool,
    marks: Vec<Mark>,
}

/// Edges of all ops of a plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Flow {
    ops: Vec<Edges>,
}

impl Flow {
    pub(super) fn new(plan: &PlanView, runs: &[Run]) -> Self {
        let mut ops: Vec<Edges> = vec![Edges::default(); plan.ops.len()];
        for (k, op) in plan.ops.iter().enumerate() {
            // Numbers of ops are their places; what a broken plan says of later ones is left out.
            let inputs: Vec<u32> = op.inputs.iter().copied().filter(|&i| (i as usize) < k).collect();
            for &i in &inputs {
                ops[i as usize].outputs.push(k as u32);
            }
            ops[k].inputs = inputs;
        }
        for run in runs {
            lay(&mut ops, run);
        }
        Self { ops }
    }

    /// Edges at an op.
    pub(super) fn at(&self, op: usize) -> Option<&Edges> {
        self.ops.get(op)
    }

    /// Width of the lanes of these ops.
    pub(super) fn width(&self, run: &Run) -> f32 {
        let lanes = self.ops[run.ops.clone()]
            .iter()
            .flat_map(|e| &e.marks)
            .map(|m| m.lane + 1);
        f32::from(lanes.max().unwrap_or(0)) * LANE
    }
}

/// Gives the edges within a block their lanes.
fn lay(ops: &mut [Edges], run: &Run) {
    // Op at which each lane is free again.
    let mut free = [0usize; LANES];
    for source in run.ops.clone() {
        ops[source].outside = ops[source].inputs.iter().any(|&i| (i as usize) < run.ops.start);
        let inside: Vec<usize> = ops[source]
            .outputs
            .iter()
            .map(|&o| o as usize)
            .filter(|o| run.ops.contains(o))
            .collect();
        if inside.contains(&(source + 1)) {
            ops[source].below = true;
            ops[source + 1].above = true;
        }
        let Some(last) = inside.iter().copied().filter(|&o| o > source + 1).max() else {
            continue;
        };
        let lane = free.iter().position(|&f| f <= source).unwrap_or(LANES - 1);
        free[lane] = free[lane].max(last);
        for (k, edges) in ops.iter_mut().enumerate().take(last + 1).skip(source) {
            edges.marks.push(Mark {
                lane: lane as u8,
                source: source as u32,
                above: k > source,
                below: k < last,
                tap: k > source + 1 && inside.contains(&k),
            });
        }
    }
}

/// Paints the edges of a row whose op stands at `dot`, and the op. `stream`: where the residual stream runs;
/// `pointed`: the op that the pointer is on.
pub(super) fn paint(
    ui: &egui::Ui,
    rect: Rect,
    dot: Pos2,
    stream: f32,
    (op, edges): (u32, &Edges),
    pointed: Option<u32>,
) {
    let p = Palette::of(ui);
    let painter = ui.painter();
    let color = theme::mix(p.panel, p.secondary, 0.7);
    let thin = |color: Color32| Stroke::new(theme::LINE, color);
    let wide = |color: Color32| Stroke::new(1.5, color);
    let read_by_pointed = |source: u32, pointed: Option<u32>| pointed.is_some_and(|h| h == source);
    // What the op under the pointer made is amber, what it reads is blue.
    let ink = |source: u32| match pointed {
        Some(_) if read_by_pointed(source, pointed) => wide(p.second),
        Some(h) if h == op && edges.inputs.contains(&source) => wide(p.accent),
        _ => thin(color),
    };
    if edges.above {
        painter.vline(dot.x, rect.top()..=dot.y, ink(op.saturating_sub(1)));
    }
    if edges.below {
        let stroke = match pointed {
            Some(h) if h == op + 1 => wide(p.accent),
            _ => ink(op),
        };
        painter.vline(dot.x, dot.y..=rect.bottom(), stroke);
    }
    if edges.outside && dot.x > stream {
        painter.hline(stream..=dot.x - 3.0, dot.y, thin(color));
        arrow(ui, pos2(dot.x - 3.0, dot.y), 1.0, thin(color));
    }
    for mark in &edges.marks {
        let x = dot.x + 8.0 + f32::from(mark.lane) * LANE;
        let stroke = ink(mark.source);
        if mark.above {
            painter.vline(x, rect.top()..=dot.y, stroke);
        }
        if mark.below {
            painter.vline(x, dot.y..=rect.bottom(), stroke);
        }
        if mark.source == op {
            painter.hline(dot.x..=x, dot.y, stroke);
        } else if mark.tap {
            painter.hline(dot.x + 3.0..=x, dot.y, stroke);
            arrow(ui, pos2(dot.x + 3.5, dot.y), -1.0, stroke);
        }
    }
    painter.circle_filled(dot, 2.5, if pointed == Some(op) { p.second } else { p.accent });
}

/// The head of an arrow that points to the right (`way` = 1) or left (-1).
fn arrow(ui: &egui::Ui, tip: Pos2, way: f32, stroke: Stroke) {
    for side in [-2.5, 2.5] {
        ui.painter().line_segment([tip, tip + vec2(-3.0 * way, side)], stroke);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::views::explorer::digest::Digest;

    /// A plan of one block whose ops read what is listed.
    fn flow(reads: &[&[u32]], from: usize) -> (Flow, Run) {
        let mut plan = crate::testing::plan(1, 0, false);
        let one = plan.ops[0].clone();
        plan.ops = reads
            .iter()
            .enumerate()
            .map(|(i, inputs)| {
                let mut op = one.clone();
                op.inputs = inputs.to_vec();
                op.layer = Some(0);
                op.block = if i < from { "attention" } else { "ffn" }.into();
                op
            })
            .collect();
        let runs = Digest::new(&plan).runs;
        let run = runs.last().cloned().unwrap();
        (Flow::new(&plan, &runs), run)
    }

    #[test]
    fn neighbours_are_joined_directly_and_others_by_lanes() {
        // 0 -> 1 -> 2 -> 4, and 0 -> 3 -> 4, 0 -> 4.
        let (flow, run) = flow(&[&[], &[0], &[1], &[0], &[0, 2, 3]], 0);
        let at = |k: usize| flow.at(k).unwrap().clone();
        assert_eq!(at(0).outputs, [1, 3, 4]);
        assert!(at(0).below && at(1).above && at(1).below && at(2).above && at(3).below && at(4).above);
        assert!(!at(2).below && !at(3).above, "3 reads nothing of 2");
        // Results of 0 and 2 run beside each other; both are taken at 4.
        let taps = |k: usize| {
            let marks = at(k).marks.clone();
            marks
                .iter()
                .filter(|m| m.tap)
                .map(|m| (m.lane, m.source))
                .collect::<Vec<_>>()
        };
        assert_eq!((taps(3), taps(4)), (vec![(0, 0)], vec![(0, 0), (1, 2)]));
        assert_eq!(flow.width(&run), 2.0 * LANE);
    }

    #[test]
    fn lanes_are_used_again_and_shared_at_last_and_other_blocks_come_over_the_stream() {
        let (flow, run) = flow(&[&[], &[0], &[1], &[1], &[3], &[3]], 1);
        assert!(flow.at(1).unwrap().outside && !flow.at(2).unwrap().outside);
        assert_eq!(run.ops, 1..6);
        assert_eq!(flow.width(&run), LANE, "the second lane begins where the first ends");
        // More results at once than lanes: nothing breaks. Numbers out of range are left out.
        let many: Vec<Vec<u32>> = (0..20)
            .map(|k| if k < 10 { vec![] } else { vec![k - 10, 99] })
            .collect();
        let reads: Vec<&[u32]> = many.iter().map(Vec::as_slice).collect();
        let (crowded, run) = self::flow(&reads, 0);
        assert_eq!(crowded.width(&run), LANES as f32 * LANE);
        assert_eq!(crowded.at(19).unwrap().inputs, [9]);
    }
}
