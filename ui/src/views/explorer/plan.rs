//! The plan of a step as a graph that expands in place: the residual stream runs down the left side, blocks branch off
//! and come back, ops stand in their order. Each with its FLOPs, bytes and time.

use std::collections::BTreeSet;

use egui::{Align2, Id, Pos2, Rect, Sense, Stroke, pos2, vec2};
use protocol::{OpView, PlanView, Request};

use super::cost::{Columns, about, csv, paint_costs, spoken};
use super::digest::{Costs, Digest};
use super::flow::{self, Flow};
use super::row::{ROW, Row, STEP};
use crate::fmt;
use crate::icons;
use crate::selection::Spot;
use crate::store::{Fetched, Query, Scope};
use crate::theme::{self, Palette};
use crate::views::blocks::kind_word;
use crate::views::{Context, View, empty, failed, loading};
use crate::widgets::controls::{icon_button, icon_toggle};
use crate::widgets::plots::{Explain, choice, elided, figure_menu};

/// Where the residual stream runs, from the left edge.
const STREAM: f32 = 16.0;
/// Left edge of level 0.
const LEFT: f32 = 26.0;
/// Where the ops of an open block stand, from the stream.
const BRANCH: f32 = 10.0 + STEP;
/// Tokens the costs are shown for change with the text in steps of this: a plan serves many tokens.
const CONTEXT_STEP: u64 = 128;

const ABOUT: &str = "The plan the engine runs for one step, op by op. FLOPs and bytes are functions of (tokens, context) \
that each op reports from its shapes: weights read, cache read and written, workspace moved. Times are measured on \
sampled steps while op timing is on; ops that ran inside a fused one share its time by bytes.";

/// The step that is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Step {
    #[default]
    Decode,
    Prefill8,
    Prefill32,
    Prefill128,
}

const STEPS: [(Step, &str); 4] = [
    (Step::Decode, "decode, 1 token"),
    (Step::Prefill8, "prefill, 8 tokens"),
    (Step::Prefill32, "prefill, 32 tokens"),
    (Step::Prefill128, "prefill, 128 tokens"),
];

impl Step {
    fn tokens(self) -> u32 {
        match self {
            Step::Decode => 1,
            Step::Prefill8 => 8,
            Step::Prefill32 => 32,
            Step::Prefill128 => 128,
        }
    }
}

/// The context that is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Text,
    Start,
    Half,
    Full,
}

const PLACES: [(At, &str); 4] = [
    (At::Text, "at the text's end"),
    (At::Start, "at the start"),
    (At::Half, "half-full context"),
    (At::Full, "full context"),
];

/// What a row stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Node {
    Part(usize),
    /// Place among all runs; whether it is the last of its part.
    Run(usize, bool),
    /// Place in the plan; whether it is the last of its block, and whether its block is the last of its layer.
    Op(usize, bool, bool),
}

/// See the module.
#[derive(Debug, Default)]
pub struct Plan {
    step: Step,
    at: At,
    open_parts: BTreeSet<usize>,
    open_runs: BTreeSet<usize>,
    made: Option<(Stamp, Digest, Flow)>,
    /// The op that the pointer is on, and the one it was on in the last frame.
    pointed: [Option<u32>; 2],
    rows: Vec<(Node, u8, Option<bool>)>,
    dirty: bool,
}

/// What the rows were made from.
#[derive(Clone, Debug, PartialEq)]
struct Stamp {
    hash: String,
    tokens: u64,
    context: u64,
    ops: usize,
    /// Sum of the times: they change while the plan stays.
    nanos: f64,
}

impl Plan {
    fn context(&self, cx: &Context<'_>) -> u64 {
        let state = cx.store.state.as_ref();
        let full = state.map_or(0, |s| s.context);
        let most = full.saturating_sub(u64::from(self.step.tokens()));
        let position = state.map_or(0, |s| s.position);
        match self.at {
            At::Text => (position / CONTEXT_STEP * CONTEXT_STEP).min(most),
            At::Start => 0,
            At::Half => most / 2,
            At::Full => most,
        }
    }

    fn update(&mut self, plan: &PlanView) {
        let stamp = Stamp {
            hash: plan.hash.clone(),
            tokens: plan.tokens,
            context: plan.context,
            ops: plan.ops.len(),
            nanos: plan.ops.iter().filter_map(|o| o.time).map(|t| t.nanos).sum(),
        };
        let same = self.made.as_ref().is_some_and(|(s, ..)| *s == stamp);
        if same && !self.dirty {
            return;
        }
        if !same {
            let digest = Digest::new(plan);
            let flow = Flow::new(plan, &digest.runs);
            self.made = Some((stamp, digest, flow));
        }
        self.dirty = false;
        self.rows.clear();
        let Some((_, digest, _)) = &self.made else { return };
        for (i, part) in digest.parts.iter().enumerate() {
            let open = self.open_parts.contains(&i);
            self.rows.push((Node::Part(i), 0, Some(open)));
            if !open {
                continue;
            }
            // A part outside of layers is one block: its ops stand right below it.
            let layered = part.layer.is_some();
            for r in part.runs.clone() {
                let last_run = r + 1 == part.runs.end;
                let open = !layered || self.open_runs.contains(&r);
                if layered {
                    self.rows.push((Node::Run(r, last_run), 1, Some(open)));
                }
                if open {
                    let ops = digest.runs[r].ops.clone();
                    for k in ops.clone() {
                        let node = Node::Op(k, k + 1 == ops.end, last_run);
                        self.rows.push((node, if layered { 2 } else { 1 }, None));
                    }
                }
            }
        }
    }

    fn turn(&mut self, node: Node, open: bool) {
        let (set, i) = match node {
            Node::Part(i) => (&mut self.open_parts, i),
            Node::Run(r, _) => (&mut self.open_runs, r),
            Node::Op(..) => return,
        };
        self.dirty |= if open { set.insert(i) } else { set.remove(&i) };
    }

    fn row(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, plan: &PlanView, at: usize) {
        let Some((node, depth, open)) = self.rows.get(at).copied() else {
            return;
        };
        let Some((_, digest, flow)) = &self.made else { return };
        let p = Palette::of(ui);
        let (name, second, costs, layer) = label(cx, digest, plan, node);
        let timed = digest.timed;
        let layered = layer.is_some();
        let edges = match node {
            Node::Op(k, ..) => flow.at(k).map(|e| (k as u32, e)),
            _ => None,
        };
        let neighbours = edges.map(|(_, e)| neighbours(plan, e)).unwrap_or_default();
        let spoken_edges: String = neighbours
            .iter()
            .map(|(what, names)| format!("; {what} {names}"))
            .collect();
        let said = format!("{name} {second}: {}{spoken_edges}", spoken(&costs));
        let lit = matches!(node, Node::Part(_)) && layer.is_some() && cx.shown().layer == layer;
        let shown = Row {
            id: Id::unique(("plan", node)),
            depth,
            open,
            selected: false,
            lit,
            name: &said,
            left: LEFT,
        }
        .show(ui);
        let rect = shown.response.rect;
        graph(
            ui,
            rect,
            node,
            layered,
            open == Some(true),
            first_or_last(at, self.rows.len()),
        );
        let columns = Columns::new(rect);
        let mut content = shown.content;
        if let Some((op, edges)) = edges {
            let stream = rect.left() + STREAM;
            let dot = pos2(if layered { stream + BRANCH } else { stream }, rect.center().y);
            flow::paint(ui, rect, dot, stream, (op, edges), self.pointed[1]);
            let run = digest.runs.iter().find(|r| r.ops.contains(&(op as usize)));
            content.min.x = dot.x + 10.0 + run.map_or(0.0, |r| flow.width(r));
        }
        let font = if matches!(node, Node::Op(..)) {
            theme::mono_caption()
        } else {
            theme::body()
        };
        let room = columns.names - content.left();
        let galley = elided(ui, &name, font, p.text, room);
        let x = content.left() + galley.size().x + 8.0;
        let y = rect.center().y;
        ui.painter()
            .galley(pos2(content.left(), y - galley.size().y * 0.5), galley, p.text);
        if columns.names - x > 20.0 {
            let galley = elided(ui, &second, theme::caption(), p.faint, columns.names - x);
            ui.painter().galley(pos2(x, y - galley.size().y * 0.5), galley, p.faint);
        }
        paint_costs(ui, &columns, y, &costs, digest, digest.largest);
        if shown.response.hovered() {
            if let Some(l) = layer {
                cx.hover(Spot::layer(l));
            }
            self.pointed[0] = edges.map(|(op, _)| op);
        }
        let turned = shown
            .turned
            .or_else(|| open.filter(|_| shown.response.clicked()).map(|o| !o));
        let total = digest.total;
        if let Some(open) = turned {
            self.turn(node, open);
        }
        shown
            .response
            .on_hover_ui_at_pointer(|ui| about(ui, &name, &costs, &total, timed, &neighbours));
    }

    fn total(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, plan: &PlanView) {
        let Some((_, digest, _)) = &self.made else { return };
        let p = Palette::of(ui);
        let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 2.0 * ROW - 6.0), Sense::click());
        let columns = Columns::new(rect);
        let (top, bottom) = (rect.top() + 9.0, rect.bottom() - 11.0);
        let said = format!("whole step: {}", spoken(&digest.total));
        response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Row, true, &said));
        let heads = ["FLOPs", "bytes", "time"];
        for (right, head) in columns.right.into_iter().zip(heads) {
            if let Some(x) = right {
                ui.painter()
                    .text(pos2(x, top), Align2::RIGHT_CENTER, head, theme::caption(), p.faint);
            }
        }
        if let Some((x, _)) = columns.bar {
            let what = if digest.timed { "time" } else { "bytes" };
            ui.painter()
                .text(pos2(x, top), Align2::LEFT_CENTER, what, theme::caption(), p.faint);
        }
        let text = format!("{} ops", fmt::count(plan.ops.len() as u64));
        let left = rect.left() + theme::PAD;
        ui.painter().text(
            pos2(left, top),
            Align2::LEFT_CENTER,
            "whole step",
            theme::caption(),
            p.faint,
        );
        ui.painter()
            .text(pos2(left, bottom), Align2::LEFT_CENTER, text, theme::body(), p.text);
        let whole = digest.total.weight(digest.timed);
        paint_costs(ui, &columns, bottom, &digest.total, digest, whole);
        ui.painter()
            .hline(rect.x_range(), rect.bottom(), Stroke::new(theme::LINE, p.line));
        let explain = Explain::estimated(ABOUT);
        figure_menu(cx, &response, "Plan", ui.clip_rect(), &said, &|| csv(plan), &explain);
        let total = digest.total;
        response.on_hover_ui(|ui| about(ui, "whole step", &total, &total, digest.timed, &[]));
    }
}

/// Name, kind, costs and layer of a row.
fn label(cx: &Context<'_>, digest: &Digest, plan: &PlanView, node: Node) -> (String, String, Costs, Option<u32>) {
    match node {
        Node::Part(i) => {
            let part = &digest.parts[i];
            let facts = part
                .layer
                .and_then(|l| cx.store.facts().and_then(|f| f.layers.get(l as usize)));
            match part.layer {
                Some(l) => {
                    let kind = facts.map_or("", |f| kind_word(&f.attention));
                    (format!("layer {l}"), kind.to_string(), part.costs, part.layer)
                }
                None => (
                    digest.runs[part.runs.start].block.clone(),
                    String::new(),
                    part.costs,
                    None,
                ),
            }
        }
        Node::Run(r, _) => {
            let run = &digest.runs[r];
            let layer = plan.ops.get(run.ops.start).and_then(|o| o.layer);
            let text = format!("{} ops", run.ops.len());
            (run.block.clone(), text, run.costs, layer)
        }
        Node::Op(k, ..) => match plan.ops.get(k) {
            Some(op) => (op.name.clone(), kind_of(op), Costs::of(op), op.layer),
            None => (String::new(), String::new(), Costs::default(), None),
        },
    }
}

fn kind_of(op: &OpView) -> String {
    let kind = if op.kind == op.name { "" } else { &op.kind };
    match op.fused_with {
        0 | 1 => kind.to_string(),
        2 => format!("{kind}  fused with 1 other").trim_start().to_string(),
        n => format!("{kind}  fused with {} others", n - 1).trim_start().to_string(),
    }
}

/// What an op reads and what reads it, by name.
fn neighbours(plan: &PlanView, edges: &flow::Edges) -> Vec<(&'static str, String)> {
    // Longer lists are seen in the graph.
    const MOST: usize = 6;
    let names = |ops: &[u32]| {
        let mut names: Vec<&str> = ops
            .iter()
            .filter_map(|i| plan.ops.get(*i as usize))
            .map(|o| o.name.as_str())
            .collect();
        let more = names.len().saturating_sub(MOST);
        names.truncate(MOST);
        let list = names.join(", ");
        if more > 0 {
            format!("{list} and {more} more")
        } else {
            list
        }
    };
    [("reads", &edges.inputs), ("read by", &edges.outputs)]
        .into_iter()
        .filter(|(_, ops)| !ops.is_empty())
        .map(|(what, ops)| (what, names(ops)))
        .collect()
}

fn first_or_last(at: usize, rows: usize) -> (bool, bool) {
    (at == 0, at + 1 == rows)
}

/// The residual stream, and how a block hangs on it.
fn graph(ui: &egui::Ui, rect: Rect, node: Node, layered: bool, open: bool, (first, last): (bool, bool)) {
    let p = Palette::of(ui);
    let painter = ui.painter();
    let x = rect.left() + STREAM;
    let y = rect.center().y;
    let stream = Stroke::new(2.0, theme::mix(p.panel, p.secondary, 0.55));
    let thin = Stroke::new(theme::LINE, theme::mix(p.panel, p.secondary, 0.7));
    let top = if first { y } else { rect.top() };
    let bottom = if last && !matches!(node, Node::Op(..)) {
        y
    } else {
        rect.bottom()
    };
    painter.vline(x, top..=bottom, stream);
    let branch = x + BRANCH;
    match node {
        Node::Part(_) => {
            painter.circle(pos2(x, y), 4.0, p.panel, stream);
        }
        Node::Run(..) => {
            painter.hline(x..=branch - 2.0, y, thin);
            painter.circle_filled(pos2(x, y), 2.0, thin.color);
            if !open {
                plus(ui, pos2(x, rect.bottom() - 4.0), thin);
            }
        }
        Node::Op(_, end, _) if layered && end => {
            painter.line_segment([pos2(branch, y), pos2(x + 4.0, rect.bottom() - 4.0)], thin);
            plus(ui, pos2(x, rect.bottom() - 4.0), thin);
        }
        Node::Op(..) => {}
    }
}

/// Where a block is added to the stream.
fn plus(ui: &egui::Ui, at: Pos2, stroke: Stroke) {
    let p = Palette::of(ui);
    ui.painter().circle(at, 4.0, p.panel, stroke);
    ui.painter().hline(at.x - 2.0..=at.x + 2.0, at.y, stroke);
    ui.painter().vline(at.x, at.y - 2.0..=at.y + 2.0, stroke);
}

impl View for Plan {
    fn id(&self) -> &'static str {
        "explorer.plan"
    }

    fn title(&self) -> &'static str {
        "Plan"
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if cx.store.model().is_none() {
            return;
        }
        let timing = cx.store.state.as_ref().is_some_and(|s| s.op_timing);
        ui.add_enabled_ui(cx.can_edit(), |ui| {
            let name = if timing {
                "Stop timing ops"
            } else {
                "Time ops on sampled steps"
            };
            if icon_toggle(ui, icons::CLOCK, name, timing).clicked() {
                cx.send(Request::SetOpTiming(!timing));
            }
        });
        let any = !self.open_parts.is_empty();
        let (icon, name) = if any {
            (icons::ROWS, "Close all")
        } else {
            (icons::LIST, "Open all layers")
        };
        if icon_button(ui, icon, name).clicked() {
            self.dirty = true;
            if any {
                self.open_parts.clear();
                self.open_runs.clear();
            } else if let Some((_, digest, _)) = &self.made {
                self.open_parts = (0..digest.parts.len())
                    .filter(|i| digest.parts[*i].layer.is_some())
                    .collect();
            }
        }
        choice(ui, "Context", &mut self.at, &PLACES);
        choice(ui, "Step", &mut self.step, &STEPS);
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if cx.store.model().is_none() {
            let what = "The ops of a step with their FLOPs, bytes and times appear here once a model is loaded.";
            empty(ui, icons::GRAPH, what, None);
            return;
        }
        let mut query = Query::plan(self.step.tokens(), self.context(cx));
        if cx.store.state.as_ref().is_some_and(|s| s.op_timing) {
            // Times change with every step.
            query.scope = Scope::Text;
        }
        let plan = match cx.fetch(&query) {
            Fetched::Loading => return loading(ui, "The plan is being made"),
            Fetched::Failed(e) => {
                egui::Frame::new()
                    .inner_margin(theme::PAD)
                    .show(ui, |ui| failed(cx, ui, e));
                return;
            }
            Fetched::Ready(plan) | Fetched::Stale(plan) => plan,
        };
        self.update(plan);
        ui.spacing_mut().item_spacing.y = 0.0;
        self.total(cx, ui, plan);
        let count = self.rows.len();
        egui::ScrollArea::vertical()
            .id_salt("plan rows")
            .auto_shrink([false, false])
            .show_rows(ui, ROW, count, |ui, range| {
                for at in range {
                    self.row(cx, ui, plan, at);
                }
            });
        // Rows above the pointer were painted before it was known where it is.
        let now = self.pointed[0].take();
        if std::mem::replace(&mut self.pointed[1], now) != now {
            ui.ctx().request_repaint();
        }
    }
}
