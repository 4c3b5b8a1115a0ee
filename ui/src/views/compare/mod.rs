//! Recipe A against recipe B on the same tokens, teacher-forced: what is compared, how far it is, what came out. And
//! many recipes against A, and both writing their own text.

mod drift;
mod evidence;
mod figures;
mod free;
mod recipes;
mod report;
mod setup;
mod story;
mod sweep;
mod words;
mod worst;

use egui::{RichText, Ui};
use protocol::{ErrorInfo, ErrorKind, JobId, JobKind, JobState, JobView, Reply, Request};

use super::{Context, View, empty, failed, loading};
use crate::fmt;
use crate::icons;
use crate::store::{Fetched, Query, Ticket};
use crate::theme::{self, Palette};
use crate::widgets::controls;
use free::Free;
use recipes::{Choice, Side};
use report::Report;
use setup::{Ask, Setup, Task};
use story::{Story, Told};
use sweep::Sweep;

/// The panel.
pub fn views() -> Vec<Box<dyn View>> {
    vec![Box::<Compare>::default()]
}

/// What the panel shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    /// A against B.
    #[default]
    Pair,
    /// Many recipes against A.
    Sweep,
    /// Both write their own text.
    Free,
}

const MODES: [Mode; 3] = [Mode::Pair, Mode::Free, Mode::Sweep];

/// See the module.
#[derive(Debug, Default)]
pub struct Compare {
    mode: Mode,
    setup: Setup,
    sweep: Sweep,
    free: Free,
    /// The request for a comparison that was just sent.
    asked: Option<Ticket>,
    /// A story that is written before.
    story: Option<Story>,
    /// The host refused it.
    refused: Option<ErrorInfo>,
    /// The newest comparison.
    job: Option<JobId>,
    /// The comparison that is shown: the newest that is done.
    shown: Option<JobId>,
    report: Report,
}

impl View for Compare {
    fn id(&self) -> &'static str {
        "compare"
    }

    fn title(&self) -> &'static str {
        "Compare"
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        if cx.store.model().is_none() {
            empty(
                ui,
                icons::SCALES,
                "Two recipes are compared here once a model is loaded.",
                None,
            );
            return;
        }
        self.follow(cx);
        let scroll = egui::ScrollArea::vertical()
            .id_salt("compare")
            .auto_shrink([false, false])
            .content_margin(egui::Margin::symmetric(theme::PAD as i8, 8));
        scroll.show(ui, |ui| {
            let on = MODES.iter().position(|m| *m == self.mode).unwrap_or(0);
            let modes = [
                (icons::SCALES, "A against B", ""),
                (icons::GIT_DIFF, "Free-running", ""),
                (icons::SQUARES_FOUR, "Sweep", ""),
            ];
            if let Some(i) = controls::segmented(ui, &modes, on) {
                self.mode = MODES[i];
            }
            ui.add_space(theme::GRID);
            match self.mode {
                Mode::Pair => self.pair(cx, ui),
                Mode::Sweep => self.sweep(cx, ui),
                Mode::Free => self.free(cx, ui),
            }
        });
    }
}

impl Compare {
    fn pair(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let job = self.job.and_then(|id| cx.store.jobs.get(id));
        let running = self.asked.is_some() || self.story.is_some() || job.is_some_and(runs);
        match self.setup.show(cx, ui, &Task::Pair, running) {
            Some(Ask::Run) => self.run(cx),
            Some(Ask::Cancel) => self.cancel(cx),
            None => {}
        }
        ui.add_space(theme::GRID);
        if let Some(story) = &self.story {
            story.show(ui, cx.store);
        }
        if let Some(error) = self.refused.clone() {
            failed(cx, ui, &error);
        }
        match job.map(|j| (j, &j.state)) {
            Some((job, JobState::Queued | JobState::Running)) => progress(ui, job),
            Some((_, JobState::Failed(e))) if e.kind == ErrorKind::Cancelled => stopped(ui),
            Some((_, JobState::Failed(e))) => failed(cx, ui, e),
            _ => {}
        }
        self.result(cx, ui, running);
    }

    fn free(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let running = self.free.running(cx);
        self.free.form(cx, ui);
        let task = Task::Free(self.free.problem(cx.store));
        match self.setup.show(cx, ui, &task, running) {
            Some(Ask::Run) => {
                let presets = cx.fetch(&Query::presets()).value().map_or(&[][..], Vec::as_slice);
                if let Ok((a, b)) = self.setup.sides(presets) {
                    self.free.run(cx, a, b);
                }
            }
            Some(Ask::Cancel) => self.free.cancel(cx),
            None => {}
        }
        ui.add_space(theme::GRID);
        self.free.show(cx, ui);
    }

    fn sweep(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let running = self.sweep.running(cx);
        self.sweep.form(cx, ui);
        let task = Task::Sweep(self.sweep.problem(cx));
        match self.setup.show(cx, ui, &task, running) {
            Some(Ask::Run) => {
                let presets = cx.fetch(&Query::presets()).value().map_or(&[][..], Vec::as_slice);
                if let Ok((a, text, positions)) = self.setup.base(cx.store, presets) {
                    self.sweep.run(cx, a, text, positions);
                }
            }
            Some(Ask::Cancel) => self.sweep.cancel(cx),
            None => {}
        }
        ui.add_space(theme::GRID);
        if let Some(spec) = self.sweep.show(cx, ui) {
            self.sweep.again(cx, spec);
        }
    }

    /// Takes what the host answered, and the comparison of before a reload.
    fn follow(&mut self, cx: &mut Context<'_>) {
        self.follow_story(cx);
        self.free.follow(cx);
        if let Some((name, json)) = self.sweep.follow(cx) {
            self.setup.keep(&name, &json);
            self.setup.b = Side::new(Choice::Earlier(name, json));
            self.mode = Mode::Pair;
        }
        if let Some(outcome) = self.asked.and_then(|t| cx.outcome(t)) {
            self.asked = None;
            match outcome {
                Ok(Reply::Job(id)) => self.job = Some(*id),
                Ok(_) => {}
                Err(e) => self.refused = Some(e.clone()),
            }
        }
        if self.job.is_none() && self.asked.is_none() {
            self.job = cx.store.jobs.latest(&JobKind::Compare).map(|j| j.id);
        }
        let done = self
            .job
            .filter(|id| cx.store.jobs.get(*id).is_some_and(|j| j.state == JobState::Done));
        self.shown = done.or(self.shown);
    }

    fn follow_story(&mut self, cx: &mut Context<'_>) {
        let Some(mut story) = self.story.take() else { return };
        match story.follow(cx) {
            Told::Waiting => self.story = Some(story),
            Told::Ready(spec) => self.asked = Some(cx.call(Request::Compare(spec))),
            Told::Stopped => {}
            Told::Failed(e) => self.refused = Some(e),
        }
    }

    fn cancel(&mut self, cx: &mut Context<'_>) {
        if self.story.is_some() {
            cx.send(Request::Stop);
        } else if let Some(id) = self.job {
            cx.send(Request::CancelJob(id));
        }
    }

    fn run(&mut self, cx: &mut Context<'_>) {
        let presets = cx.fetch(&Query::presets()).value().map_or(&[][..], Vec::as_slice);
        match self.setup.spec(cx.store, presets) {
            Ok(spec) => {
                self.refused = None;
                match self.setup.story(cx.store) {
                    Some(prompt) => self.story = Some(Story::begin(cx, &prompt, spec)),
                    None => self.asked = Some(cx.call(Request::Compare(spec))),
                }
            }
            Err(e) => self.refused = Some(ErrorInfo::new(ErrorKind::Input, e)),
        }
    }

    fn result(&mut self, cx: &mut Context<'_>, ui: &mut Ui, running: bool) {
        let Some(id) = self.shown else {
            if !running && self.refused.is_none() {
                nothing_yet(ui);
            }
            return;
        };
        let model = cx.store.model().map(|m| m.name.as_str());
        match cx.fetch(&Query::comparison(id)) {
            Fetched::Loading => loading(ui, "The result is on its way"),
            Fetched::Failed(e) => failed(cx, ui, e),
            // A comparison of a model that is no longer loaded.
            Fetched::Ready(r) | Fetched::Stale(r) if Some(r.model.as_str()) != model => {
                if !running {
                    nothing_yet(ui);
                }
            }
            Fetched::Ready(r) | Fetched::Stale(r) => {
                self.remember(r);
                if self.report.show(cx, ui, id, r, running) {
                    self.setup.isolate = true;
                    let spec = protocol::CompareSpec {
                        isolate: true,
                        ..r.spec.clone()
                    };
                    self.asked = Some(cx.call(Request::Compare(spec)));
                }
            }
        }
    }

    /// Keeps the sides of a comparison for the menus of recipes.
    fn remember(&mut self, r: &protocol::CompareResult) {
        for side in &r.sides {
            let name = format!("{} of a comparison", recipes::short_hash(&side.hash));
            self.setup.keep(&name, &side.json);
        }
    }
}

fn runs(job: &JobView) -> bool {
    matches!(job.state, JobState::Queued | JobState::Running)
}

/// What an empty panel says.
fn nothing_yet(ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.add_space(32.0);
    ui.vertical_centered(|ui| {
        ui.set_max_width(440.0);
        ui.label(RichText::new(icons::SCALES).size(theme::FIGURE).color(p.faint));
        ui.add_space(theme::GRID);
        let what = "Both sides read the same text, token by token, each with a cache of its own. Press Compare A and B to see how \
                    far B's predictions are from A's, where the texts would part, and what each side costs.";
        ui.add(egui::Label::new(RichText::new(what).color(p.secondary)).wrap());
    });
}

fn stopped(ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.horizontal(|ui| {
        ui.label(RichText::new(icons::STOP).color(p.secondary));
        ui.label(RichText::new("The comparison was stopped; nothing was changed.").color(p.secondary));
    });
}

/// A comparison that waits or runs.
fn progress(ui: &mut Ui, job: &JobView) {
    let p = Palette::of(ui);
    let share = if job.total == 0 {
        0.0
    } else {
        (job.done as f64 / job.total as f64) as f32
    };
    let words = match job.state {
        JobState::Queued => "waiting for the engine".to_string(),
        _ => format!("{} of {} {}", fmt::count(job.done), fmt::count(job.total), job.unit),
    };
    ui.horizontal(|ui| {
        ui.label(RichText::new(&job.what).color(p.text));
        ui.label(RichText::new(&words).font(theme::mono()).color(p.secondary));
    });
    let size = egui::vec2(ui.available_width(), 6.0);
    controls::bar(ui, size, &[(share, p.accent)], &format!("Comparing: {words}"));
    ui.add_space(theme::GRID);
}
