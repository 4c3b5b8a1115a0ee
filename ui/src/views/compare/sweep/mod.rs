//! Many recipes against A on the same text: what to try, how far it is, what each costs, and which one to take.

mod axis;
mod charts;
mod data;
mod form;
mod table;

use egui::{RichText, Ui};
use protocol::{
    CompareText, ErrorInfo, ErrorKind, JobId, JobKind, JobState, RecipeRef, Reply, Request, SweepPick, SweepSpec,
    SweepView,
};

use super::report::{title, two};
use super::runs;
use crate::fmt;
use crate::icons;
use crate::store::Ticket;
use crate::theme::{self, Palette};
use crate::views::{Action, Context, failed};
use crate::widgets::controls;
use data::{Data, Price};
use form::Form;
use table::Table;

/// Height of the charts.
const HEIGHT: f32 = 260.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Sweep {
    form: Form,
    asked: Option<Ticket>,
    refused: Option<ErrorInfo>,
    /// The newest sweep.
    job: Option<JobId>,
    data: Data,
    table: Table,
    price: Price,
    /// The chosen cell.
    chosen: Option<usize>,
    /// The recipe of a cell is on its way, to be B: its name.
    taking: Option<(Ticket, String)>,
}

/// A recipe that is to be B: what to call it, and its JSON.
pub type Taken = (String, String);

impl Sweep {
    /// Whether a sweep waits or runs.
    pub fn running(&self, cx: &Context<'_>) -> bool {
        self.asked.is_some() || self.job.and_then(|id| cx.store.jobs.get(id)).is_some_and(runs)
    }

    /// Takes what the host answered. A recipe, when one was chosen to be B.
    pub fn follow(&mut self, cx: &mut Context<'_>) -> Option<Taken> {
        if let Some(outcome) = self.asked.and_then(|t| cx.outcome(t)) {
            self.asked = None;
            match outcome {
                Ok(Reply::Job(id)) => {
                    self.job = Some(*id);
                    self.chosen = None;
                }
                Ok(_) => {}
                Err(e) => self.refused = Some(e.clone()),
            }
        }
        if self.job.is_none() && self.asked.is_none() {
            self.job = cx.store.jobs.latest(&JobKind::Sweep).map(|j| j.id);
        }
        if let Some(job) = self.job {
            self.data.follow(cx, job);
        }
        let (ticket, name) = self.taking.clone()?;
        let outcome = cx.outcome(ticket)?;
        self.taking = None;
        match outcome {
            Ok(Reply::Text(json)) => Some((name, json.clone())),
            Ok(_) => None,
            Err(e) => {
                cx.act(Action::Error(e.clone()));
                None
            }
        }
    }

    /// The axes and switches.
    pub fn form(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        self.form.show(cx, ui);
        ui.add_space(theme::GRID);
    }

    /// Why it cannot begin.
    pub fn problem(&self, cx: &Context<'_>) -> Option<String> {
        let slots = cx.store.model().map_or(&[][..], |m| m.slots.as_slice());
        let layers = cx.store.facts().map_or(0, |f| f.layers.len() as u32);
        self.form.axes(slots, layers).err()
    }

    /// Begins. What an earlier sweep of the same A and text has measured is not measured again.
    pub fn run(&mut self, cx: &mut Context<'_>, a: RecipeRef, text: CompareText, positions: u64) {
        let slots = cx.store.model().map_or(&[][..], |m| m.slots.as_slice());
        let layers = cx.store.facts().map_or(0, |f| f.layers.len() as u32);
        match self.form.axes(slots, layers) {
            Ok(axes) => {
                self.refused = None;
                let spec = SweepSpec {
                    a,
                    text,
                    positions,
                    presets: self.form.presets,
                    per_layer: self.form.per_layer && !axes.is_empty(),
                    budget: self.form.budget(axes.len()),
                    axes: axes.into_iter().map(|(text, _)| text).collect(),
                };
                self.asked = Some(cx.call(Request::Sweep(spec)));
            }
            Err(e) => self.refused = Some(ErrorInfo::new(ErrorKind::Input, e)),
        }
    }

    /// Stops it.
    pub fn cancel(&mut self, cx: &mut Context<'_>) {
        if let Some(id) = self.job {
            cx.send(Request::CancelJob(id));
        }
    }

    /// Everything below the form. The spec of a sweep that is to go on.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui) -> Option<SweepSpec> {
        if let Some(error) = self.refused.clone() {
            failed(cx, ui, &error);
        }
        let job = self.job.and_then(|id| cx.store.jobs.get(id));
        let mut again = None;
        match job.map(|j| (j, &j.state)) {
            Some((job, JobState::Queued | JobState::Running)) => progress(ui, job, &self.data),
            Some((_, JobState::Failed(e))) if e.kind == ErrorKind::Cancelled => {
                again = self.stopped(cx, ui, "The sweep was stopped; what was measured is kept.");
            }
            Some((_, JobState::Failed(e))) => {
                failed(cx, ui, e);
                again = self.stopped(cx, ui, "What was measured before is kept.");
            }
            _ => {}
        }
        let model = cx.store.model().map(|m| m.name.as_str());
        let ours = self.data.head().is_some_and(|h| Some(h.model.as_str()) == model);
        if !ours {
            if job.is_none_or(|j| !runs(j)) && self.refused.is_none() && self.asked.is_none() {
                nothing_yet(ui);
            }
            return again;
        }
        if let Some(error) = self.data.error.clone() {
            failed(cx, ui, &error);
        }
        self.found(cx, ui);
        again
    }

    /// A sweep that was stopped, with a button that goes on.
    fn stopped(&mut self, cx: &mut Context<'_>, ui: &mut Ui, what: &str) -> Option<SweepSpec> {
        let p = Palette::of(ui);
        let (done, all) = self.data.done();
        let spec = self.data.head().map(|h| h.spec.clone())?;
        let mut again = None;
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new(icons::STOP).color(p.secondary));
            let words = format!(
                "{what} {} of {} recipes are there.",
                fmt::count(done as u64),
                fmt::count(all as u64)
            );
            ui.label(RichText::new(words).color(p.secondary));
            let able = cx.can_edit() && self.asked.is_none();
            let go_on = ui
                .add_enabled_ui(able, |ui| controls::button(ui, icons::PLAY, "Go on"))
                .inner;
            if go_on
                .on_hover_text("Measures the rest; what is there is not measured again.")
                .clicked()
            {
                again = Some(spec);
            }
        });
        again
    }

    /// Begins a sweep again as it was asked for.
    pub fn again(&mut self, cx: &mut Context<'_>, spec: SweepSpec) {
        self.refused = None;
        self.asked = Some(cx.call(Request::Sweep(spec)));
    }

    fn found(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let budget = self.data.head().and_then(|h| h.spec.budget);
        self.recommendation(cx, ui, budget);
        let mut clicked = None;
        title(ui, "Recipes", |ui| self.table.choose(ui));
        let rows = self.data.main().count().min(12) as f32;
        clicked = self
            .table
            .show(ui, &self.data, self.chosen, 22.0 * rows.max(2.0))
            .or(clicked);
        self.chosen_row(cx, ui);
        ui.add_space(8.0);
        let single = charts::has_layers(&self.data);
        let (data, price, chosen) = (&self.data, &mut self.price, self.chosen);
        let mut hit = None;
        let mut draw = |ui: &mut Ui, left: bool| {
            let size = egui::vec2(ui.available_width(), HEIGHT);
            if left {
                title(ui, "KL against cost", |ui| charts::choose(ui, price));
            } else {
                title(ui, "One change by layer", |ui| charts::layers_legend(ui, data));
            }
            let found = ui.allocate_ui(size, |ui| {
                ui.set_min_size(size);
                ui.set_max_size(size);
                if left {
                    charts::pareto(cx, ui, data, *price, chosen, budget)
                } else {
                    charts::layers(cx, ui, data, chosen, budget)
                }
            });
            hit = hit.or(found.inner);
        };
        if single {
            two(ui, 0.5, draw);
        } else {
            draw(ui, true);
        }
        if let Some(i) = hit.or(clicked) {
            self.chosen = if self.chosen == Some(i) && hit.is_none() {
                None
            } else {
                Some(i)
            };
        }
        ui.add_space(8.0);
        if let Some(head) = self.data.head() {
            labels(cx, ui, head, &self.data);
        }
    }

    /// The recommendation, with the button that takes it.
    fn recommendation(&mut self, cx: &mut Context<'_>, ui: &mut Ui, budget: Option<f64>) {
        let Some(budget) = budget else { return };
        let p = Palette::of(ui);
        let pick = match self.data.pick() {
            SweepPick::None => return,
            SweepPick::Nothing => {
                let words = format!(
                    "No recipe that moves fewer bytes than A keeps the mean KL within {} nats.",
                    fmt::sig3(budget)
                );
                controls::strip(ui, icons::INFO, p.secondary, |ui| {
                    ui.add(egui::Label::new(words).wrap());
                });
                return;
            }
            SweepPick::Cell(i) => i as usize,
        };
        let (Some(cell), Some(base)) = (self.data.cells().get(pick), self.data.cells().first()) else {
            return;
        };
        let (Some(row), Some(a)) = (cell.row(), base.row()) else {
            return;
        };
        let fewer = 1.0 - row.step_bytes as f64 / a.step_bytes.max(1) as f64;
        let words = format!(
            "Recommended within {} nats: {} fewer bytes per step ({}), mean KL {} nats, KV {}",
            fmt::sig3(budget),
            fmt::percent(fewer).plain(),
            fmt::bytes(row.step_bytes).estimated().plain(),
            fmt::sig3(row.kl.mean),
            fmt::bytes(row.kv).plain(),
        );
        let name = data::name(cell);
        let mut take = false;
        controls::strip(ui, icons::CHECK_CIRCLE, p.good, |ui| {
            ui.vertical(|ui| {
                ui.add(
                    egui::Label::new(RichText::new(words).color(p.text))
                        .wrap()
                        .selectable(true),
                );
                ui.add(egui::Label::new(RichText::new(&name).font(theme::mono()).color(p.second)).truncate())
                    .on_hover_text(&name);
                take = use_button(ui, "Use the recommended recipe as B", self.taking.is_none());
            });
        });
        ui.add_space(theme::GRID);
        if take {
            self.take(cx, pick);
        }
    }

    /// What can be done with the chosen recipe.
    fn chosen_row(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let Some(cell) = self.chosen.and_then(|i| self.data.cells().get(i)) else {
            return;
        };
        let p = Palette::of(ui);
        let words = format!("{}: {}", data::name(cell), table::in_words(cell, &self.data));
        let able = cell.row().is_some() && !cell.edits.is_empty() && self.taking.is_none();
        let mut take = false;
        ui.add_space(theme::GRID);
        ui.horizontal_wrapped(|ui| {
            take = use_button(ui, "Use as B", able);
            ui.add(
                egui::Label::new(RichText::new(words).color(p.secondary))
                    .wrap()
                    .selectable(true),
            );
        });
        if take && let Some(i) = self.chosen {
            self.take(cx, i);
        }
    }

    fn take(&mut self, cx: &mut Context<'_>, cell: usize) {
        let (Some(job), Some(c)) = (self.job, self.data.cells().get(cell)) else {
            return;
        };
        let name = super::recipes::elide(&data::name(c), 60);
        let request = Request::GetSweepRecipe { job, cell: cell as u32 };
        self.taking = Some((cx.call(request), format!("of a sweep: {name}")));
    }
}

fn use_button(ui: &mut Ui, name: &str, able: bool) -> bool {
    let button = egui::Button::new(format!("{}  {name}", icons::SCALES)).min_size(egui::vec2(0.0, 28.0));
    let shown = ui.add_enabled(able, button).accessible_name(name);
    shown
        .on_hover_text("Makes it side B, to be compared with A token by token.")
        .clicked()
}

/// A sweep that waits or runs.
fn progress(ui: &mut Ui, job: &protocol::JobView, data: &Data) {
    let p = Palette::of(ui);
    let share = job.done as f32 / job.total.max(1) as f32;
    let (done, all) = data.done();
    let words = match job.state {
        JobState::Queued => "waiting for the engine".to_string(),
        _ => format!(
            "{} of {} recipes, {} of {} {}",
            fmt::count(done as u64),
            fmt::count(all as u64),
            fmt::count(job.done),
            fmt::count(job.total),
            job.unit
        ),
    };
    ui.horizontal(|ui| {
        ui.label(RichText::new(&job.what).color(p.text));
        ui.label(RichText::new(&words).font(theme::mono()).color(p.secondary));
    });
    let size = egui::vec2(ui.available_width(), 6.0);
    controls::bar(ui, size, &[(share, p.accent)], &format!("Sweeping: {words}"));
    ui.add_space(theme::GRID);
}

fn nothing_yet(ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.add_space(32.0);
    ui.vertical_centered(|ui| {
        ui.set_max_width(440.0);
        ui.label(RichText::new(icons::SQUARES_FOUR).size(theme::FIGURE).color(p.faint));
        ui.add_space(theme::GRID);
        let what = "Every combination of the choices above reads the same text as A. Press Start sweep to see what each costs \
                    in KL and saves in bytes, which layers take it, and which recipe to choose.";
        ui.add(egui::Label::new(RichText::new(what).color(p.secondary)).wrap());
    });
}

/// How everything above is to be read.
fn labels(cx: &mut Context<'_>, ui: &mut Ui, head: &SweepView, data: &Data) {
    let p = Palette::of(ui);
    let note = |ui: &mut Ui, icon: &str, text: &str| {
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new(icon).color(p.secondary));
            ui.add(egui::Label::new(RichText::new(text).color(p.secondary)).wrap());
        });
    };
    for r in head.refused.iter().take(6) {
        note(
            ui,
            icons::PROHIBIT,
            &format!("refused: {}: {}", r.edits.join(" "), r.reason),
        );
    }
    if let Some(more) = head.refused.len().checked_sub(6).filter(|n| *n > 0) {
        note(ui, icons::PROHIBIT, &format!("and {more} more were refused"));
    }
    for text in &head.notes {
        note(ui, icons::INFO, text);
    }
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        let line = format!(
            "reference: A, {}  ·  KL(A||·)  ·  teacher-forced  ·  {} positions  ·  measured; bytes per step estimated by \
             the plan  ·  * not beaten in bytes per step and KL  ·  {}",
            head.reference,
            fmt::count(head.positions),
            head.device,
        );
        let label = RichText::new(line).font(theme::caption()).color(p.secondary);
        ui.add(egui::Label::new(label).wrap().selectable(true));
        let copy = controls::link(ui, "copy the command");
        if copy.on_hover_text(&head.command).clicked() {
            cx.act(Action::Copy(head.command.clone()));
        }
        if controls::link(ui, "save the table").clicked() {
            cx.act(Action::Save("sweep.csv".into(), data::csv(data.cells()).into_bytes()));
        }
    });
}
