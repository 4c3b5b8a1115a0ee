//! A and B each write their own text after the same prompt: where the texts part, and where they say the same again.

use egui::{Color32, RichText, Ui, vec2};
use protocol::{
    CompareText, ErrorInfo, ErrorKind, FinishView, FreeMode, FreeSpec, FreeView, JobId, JobKind, JobState, JobView,
    RecipeRef, Reply, Request,
};

use super::figures::tile;
use super::report::{title, two};
use super::runs;
use super::setup::letter;
use crate::fmt::{self, Figure};
use crate::icons;
use crate::store::{Store, Ticket};
use crate::theme::{self, Palette};
use crate::views::{Action, Context, failed};
use crate::widgets::controls;
use crate::widgets::plots::{Csv, Explain, field, figure_menu, label_word};
use crate::widgets::token_text::{TokenMark, TokenText};

/// Tokens each side writes when nothing else is said.
const TOKENS: u64 = 128;
/// Height of the texts.
const HEIGHT: f32 = 320.0;
/// Least time between two questions about a run, in seconds.
const AGAIN: f64 = 0.1;

const ABOUT: &str = "Both sides write on from the same prompt. Blue and amber: what only A or B says. Plain: what both say. \
                     They join again where 8 tokens in a row agree: the first such pair of places after the split.";

/// Where the prompt comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Source {
    /// Typed.
    #[default]
    Prompt,
    /// The shown branch of the current text.
    Current,
    /// The beginning of the built-in story.
    Builtin,
}

/// See the module.
#[derive(Debug)]
pub struct Free {
    source: Source,
    prompt: Option<String>,
    tokens: u64,
    drawn: bool,
    temperature: f32,
    seed: u64,
    mode: FreeMode,
    asked: Option<Ticket>,
    refused: Option<ErrorInfo>,
    /// The newest run.
    job: Option<JobId>,
    /// Its question on the way, when it was asked, and how far the job was then.
    question: Option<Ticket>,
    asked_at: f64,
    seen: Option<(u64, bool)>,
    view: Option<FreeView>,
    texts: [TokenText; 2],
    drawn_revision: u64,
}

impl Default for Free {
    fn default() -> Self {
        Self {
            source: Source::default(),
            prompt: None,
            tokens: TOKENS,
            drawn: false,
            temperature: 0.8,
            seed: 1,
            mode: FreeMode::Lockstep,
            asked: None,
            refused: None,
            job: None,
            question: None,
            asked_at: 0.0,
            seen: None,
            view: None,
            texts: [TokenText::default(), TokenText::default()],
            drawn_revision: 0,
        }
    }
}

impl Free {
    /// Whether a run waits or goes on.
    pub fn running(&self, cx: &Context<'_>) -> bool {
        self.asked.is_some() || self.job.and_then(|id| cx.store.jobs.get(id)).is_some_and(runs)
    }

    /// Takes what the host answered.
    pub fn follow(&mut self, cx: &mut Context<'_>) {
        if let Some(outcome) = self.asked.and_then(|t| cx.outcome(t)) {
            self.asked = None;
            match outcome {
                Ok(Reply::Job(id)) => self.begin(*id),
                Ok(_) => {}
                Err(e) => self.refused = Some(e.clone()),
            }
        }
        if self.job.is_none()
            && self.asked.is_none()
            && let Some(job) = cx.store.jobs.latest(&JobKind::FreeRun)
        {
            self.begin(job.id);
        }
        if let Some(outcome) = self.question.and_then(|t| cx.outcome(t)) {
            self.question = None;
            match outcome {
                Ok(Reply::FreeRun(view)) => self.take(view),
                Ok(_) => {}
                Err(e) => self.refused = Some(e.clone()),
            }
        }
        let Some((id, job)) = self.job.and_then(|id| Some((id, cx.store.jobs.get(id)?))) else {
            return;
        };
        let over = matches!(job.state, JobState::Done | JobState::Failed(_));
        let due = over || cx.now - self.asked_at >= AGAIN;
        let now = (job.done, over);
        if self.question.is_none() && job.state != JobState::Queued && self.seen != Some(now) && due {
            (self.seen, self.asked_at) = (Some(now), cx.now);
            let have = |i: usize| self.view.as_ref().map_or(0, |v| v.sides[i].tokens.len() as u64);
            let since = [have(0), have(1)];
            self.question = Some(cx.call(Request::GetFreeRun { job: id, since }));
        }
    }

    fn begin(&mut self, job: JobId) {
        self.job = Some(job);
        (self.view, self.seen, self.question) = (None, None, None);
    }

    fn take(&mut self, news: &FreeView) {
        let old = self.view.take();
        let mut view = news.clone();
        for (i, side) in view.sides.iter_mut().enumerate() {
            let had = old.as_ref().map_or(&[][..], |o| o.sides[i].tokens.as_slice());
            let kept = had.get(..news.from[i] as usize).unwrap_or(&[]);
            let mut all = kept.to_vec();
            all.append(&mut side.tokens);
            side.tokens = all;
        }
        view.from = [0, 0];
        self.drawn_revision += 1;
        for (i, text) in self.texts.iter_mut().enumerate() {
            let tokens = view.sides[i].tokens.iter().map(|t| t.text.as_str());
            text.set(self.drawn_revision, tokens);
        }
        self.view = Some(view);
    }

    fn prompt<'a>(&'a self, store: &'a Store) -> &'a str {
        let starter = || {
            store
                .model()
                .and_then(|m| m.starters.first())
                .map_or("", String::as_str)
        };
        self.prompt.as_deref().unwrap_or_else(starter)
    }

    /// Why it cannot begin.
    pub fn problem(&self, store: &Store) -> Option<String> {
        match self.source {
            Source::Prompt if self.prompt(store).trim().is_empty() => Some("write a prompt".into()),
            Source::Current if store.state.as_ref().map_or(0, |s| s.position) == 0 => {
                Some("nothing has been written yet".into())
            }
            _ => None,
        }
    }

    /// Begins.
    pub fn run(&mut self, cx: &mut Context<'_>, a: RecipeRef, b: RecipeRef) {
        self.refused = None;
        let spec = FreeSpec {
            a,
            b,
            prompt: match self.source {
                Source::Prompt => CompareText::Given(self.prompt(cx.store).to_string()),
                Source::Current => CompareText::Current,
                Source::Builtin => CompareText::Builtin,
            },
            tokens: self.tokens,
            temperature: if self.drawn { self.temperature } else { 0.0 },
            seed: self.seed,
            mode: self.mode,
        };
        self.asked = Some(cx.call(Request::FreeRun(spec)));
    }

    /// Stops it.
    pub fn cancel(&mut self, cx: &mut Context<'_>) {
        if let Some(id) = self.job {
            cx.send(Request::CancelJob(id));
        }
    }

    /// Prompt and how to write.
    pub fn form(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let most = cx.store.model().map_or(4096, |m| m.context).saturating_sub(1).max(1);
        ui.horizontal_wrapped(|ui| {
            ui.spacing_mut().item_spacing = vec2(2.0 * theme::GRID, theme::GRID);
            let written = cx.store.state.as_ref().map_or(0, |s| s.position);
            let current = format!("current text · {}", fmt::count(written));
            let refusal = if written == 0 {
                "Nothing has been written yet."
            } else {
                ""
            };
            let all = [Source::Prompt, Source::Current, Source::Builtin];
            let on = all.iter().position(|s| *s == self.source).unwrap_or(0);
            let choices = [
                ("", "prompt", ""),
                ("", current.as_str(), refusal),
                ("", "built-in beginning", ""),
            ];
            if let Some(i) = controls::segmented(ui, &choices, on) {
                self.source = all[i];
            }
            let drag = egui::DragValue::new(&mut self.tokens)
                .range(1..=most)
                .speed(2.0)
                .suffix(" tokens");
            ui.add(drag)
                .on_hover_text("Most tokens each side writes.")
                .accessible_name("Tokens to write");
            let how = [("", "greedy", ""), ("", "drawn", "")];
            if let Some(i) = controls::segmented(ui, &how, usize::from(self.drawn)) {
                self.drawn = i == 1;
            }
            if self.drawn {
                let drag = egui::DragValue::new(&mut self.temperature)
                    .range(0.05..=2.0)
                    .speed(0.01)
                    .prefix("T ");
                ui.add(drag)
                    .on_hover_text("Temperature.")
                    .accessible_name("Temperature");
                let drag = egui::DragValue::new(&mut self.seed).prefix("seed ");
                ui.add(drag)
                    .on_hover_text("Both sides draw with the same random numbers.")
                    .accessible_name("Seed");
            }
            let modes = [("", "in lockstep", ""), ("", "in turn", "")];
            let on = usize::from(self.mode == FreeMode::InTurn);
            if let Some(i) = controls::segmented(ui, &modes, on) {
                self.mode = [FreeMode::Lockstep, FreeMode::InTurn][i];
            }
        });
        let words = match self.mode {
            FreeMode::Lockstep => {
                "Token by token in turns: figures while the texts are written; both caches in memory."
            }
            FreeMode::InTurn => "All of A, then all of B: one cache at a time. The same figures, bit for bit.",
        };
        let p = Palette::of(ui);
        ui.label(RichText::new(words).font(theme::caption()).color(p.secondary));
        if self.source == Source::Prompt {
            let mut prompt = self.prompt(cx.store).to_string();
            let edit = egui::TextEdit::singleline(&mut prompt)
                .desired_width(f32::INFINITY)
                .char_limit(super::setup::LONGEST)
                .hint_text("How the text begins");
            if ui.add(edit).accessible_name("Prompt of both sides").changed() {
                self.prompt = Some(prompt);
            }
        }
        ui.add_space(theme::GRID);
    }

    /// Everything below the form.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        if let Some(error) = self.refused.clone() {
            failed(cx, ui, &error);
        }
        let job = self.job.and_then(|id| cx.store.jobs.get(id));
        match job.map(|j| (j, &j.state)) {
            Some((job, JobState::Queued | JobState::Running)) => progress(ui, job),
            Some((_, JobState::Failed(e))) if e.kind == ErrorKind::Cancelled => {
                let p = Palette::of(ui);
                ui.horizontal(|ui| {
                    ui.label(RichText::new(icons::STOP).color(p.secondary));
                    ui.label(RichText::new("Stopped; what was written is below.").color(p.secondary));
                });
            }
            Some((_, JobState::Failed(e))) => failed(cx, ui, e),
            _ => {}
        }
        let model = cx.store.model().map(|m| m.name.as_str());
        let Some(view) = self.view.take_if(|v| Some(v.model.as_str()) == model) else {
            if job.is_none_or(|j| !runs(j)) && self.refused.is_none() && self.asked.is_none() {
                nothing_yet(ui);
            }
            return;
        };
        let over = job.is_none_or(|j| !runs(j));
        tiles(ui, &view, over);
        ui.add_space(8.0);
        two(ui, 0.5, |ui, left| self.side(cx, ui, &view, usize::from(!left)));
        labels(cx, ui, &view);
        self.view = Some(view);
    }

    fn side(&mut self, cx: &mut Context<'_>, ui: &mut Ui, view: &FreeView, i: usize) {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        let side = &view.sides[i];
        let name = ["A", "B"][i];
        ui.horizontal(|ui| {
            letter(ui, name);
            let end = match side.finish {
                FinishView::Running => "writing",
                FinishView::Eos => "ended by itself",
                FinishView::ContextFull => "the context is full",
                _ => "as many as were asked for",
            };
            let words = format!("{} tokens, {end}", fmt::count(side.tokens.len() as u64));
            ui.label(RichText::new(words).color(p.secondary));
            if side.decode_tokens_per_s > 0.0 {
                fmt::rate(side.decode_tokens_per_s).show(ui);
                fmt::bytes(side.kv.total()).show(ui);
            }
        });
        let ink = if i == 0 { p.accent } else { p.second };
        let own = theme::mix(p.panel, ink, 0.28);
        let fill = |t: usize| -> Option<Color32> { (!in_common(view, i, t as u64)).then_some(own) };
        let split = view.split.as_ref().map(|s| s.at as usize);
        let marks: Vec<TokenMark> = split
            .filter(|at| *at < side.tokens.len())
            .map(|token| TokenMark { token, color: p.warn })
            .into_iter()
            .collect();
        let text = &mut self.texts[i];
        let label = format!("Text of {name}");
        let revision = self.drawn_revision;
        let shown = egui::ScrollArea::vertical()
            .id_salt(("free", i))
            .max_height(HEIGHT)
            .auto_shrink([false, true])
            .stick_to_bottom(side.finish == FinishView::Running)
            .show(ui, |ui| text.show(ui, &label, revision, &fill, &marks))
            .inner;
        if let Some(t) = shown.hover.and_then(|t| side.tokens.get(t)) {
            shown.response.clone().on_hover_ui_at_pointer(|ui| {
                ui.set_width(220.0);
                ui.label(RichText::new(fmt::quoted(&t.text)).font(theme::mono()));
                controls::figure_row(ui, "probability", &Figure::new(fmt::probability(t.logprob), ""));
                controls::figure_row(ui, "margin", &Figure::new(fmt::sig3(f64::from(t.margin)), ""));
            });
        }
        let all: String = side.tokens.iter().map(|t| t.text.as_str()).collect();
        let explain = Explain {
            label: view.label,
            text: ABOUT,
        };
        figure_menu(
            cx,
            &shown.response,
            &format!("free run {name}"),
            whole,
            &all,
            &|| csv(view),
            &explain,
        );
    }
}

/// Whether a token stands in text that both sides wrote. Before the end only the common beginning is known.
fn in_common(view: &FreeView, side: usize, token: u64) -> bool {
    if view.blocks.is_empty() {
        return view.split.as_ref().is_none_or(|s| token < s.at);
    }
    view.blocks.iter().any(|b| {
        let from = if side == 0 { b.a } else { b.b };
        (from..from + b.len).contains(&token)
    })
}

fn tiles(ui: &mut Ui, v: &FreeView, over: bool) {
    let p = Palette::of(ui);
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = vec2(24.0, 8.0);
        let about = "The first token that differs, and A's margin there: probability of its likeliest token minus that of \
                     the second. Under 0.001 rounding alone could have decided: a near tie.";
        match &v.split {
            None => {
                let words = if over { "the same text" } else { "none so far" };
                tile(ui, "first difference", &Figure::new("nowhere", ""), words, p.good, about);
            }
            Some(s) => {
                let side = |i: usize| match s.tokens[i] {
                    Some(_) => fmt::quoted(&s.texts[i]),
                    None => "ends".into(),
                };
                let tie = if s.near_tie { ", near tie" } else { "" };
                let sub = format!("A {} B {}  margin {}{tie}", side(0), side(1), fmt::sig3(f64::from(s.margin[0])));
                let ink = if s.near_tie { p.warn } else { p.secondary };
                let at = Figure::new(format!("token {}", fmt::count(s.at)), "");
                tile(ui, "first difference", &at, &sub, ink, about);
            }
        }
        let about = "The first pair of places after the split from which 8 tokens in a row agree: the pair with the smallest \
                     sum, wherever they stand in each text.";
        match (&v.rejoin, &v.split, over) {
            (Some(j), ..) => {
                let at = Figure::new(format!("A {}  B {}", fmt::count(j.a), fmt::count(j.b)), "");
                let sub = format!("for {} tokens", fmt::count(j.len));
                tile(ui, "join again at token", &at, &sub, p.good, about);
            }
            (None, Some(_), true) => {
                let none = Figure::new("nowhere", "");
                tile(ui, "join again at token", &none, "no 8 tokens in a row agree", p.secondary, about);
            }
            _ => {}
        }
        if over && !v.blocks.is_empty() {
            let about = "Share of each text that lies in stretches both wrote: the common beginning, and every stretch of at \
                         least 8 tokens after it.";
            let figure = fmt::percent(v.shared[0]);
            let sub = format!("of A; {} of B", fmt::percent(v.shared[1]).plain());
            tile(ui, "in common", &figure, &sub, p.secondary, about);
        }
        let n = v.kl.len();
        if n > 0 {
            let mean = v.kl.iter().map(|k| f64::from(*k)).sum::<f64>() / n as f64;
            let most = v.kl.iter().copied().fold(0.0, f32::max);
            let sub = format!("max {}, {} tokens", fmt::sig3(f64::from(most)), fmt::count(n as u64));
            let about = format!(
                "KL(A||B) of the distributions the tokens were drawn from, while the texts are equal and one further; at most \
                 the first {}, for which A's distributions are kept.",
                fmt::count(v.kl_most)
            );
            let mean = Figure::new(fmt::sig3(mean), "nats");
            tile(ui, "KL(A||B) until they part", &mean, &sub, p.secondary, &about);
        }
    });
}

fn csv(v: &FreeView) -> String {
    let mut csv = Csv::new([
        "side",
        "number",
        "token",
        "text",
        "logprob",
        "margin",
        "in_common",
        "kl_nats",
    ]);
    for (i, side) in v.sides.iter().enumerate() {
        for (n, t) in side.tokens.iter().enumerate() {
            let kl = v.kl.get(n).map_or(f64::NAN, |k| f64::from(*k));
            csv.row([
                ["A", "B"][i].to_string(),
                n.to_string(),
                t.token.to_string(),
                t.text.clone(),
                field(f64::from(t.logprob)),
                field(f64::from(t.margin)),
                in_common(v, i, n as u64).to_string(),
                field(kl),
            ]);
        }
    }
    csv.text()
}

fn progress(ui: &mut Ui, job: &JobView) {
    let p = Palette::of(ui);
    let words = match job.state {
        JobState::Queued => "waiting for the engine".to_string(),
        _ => format!(
            "{} of at most {} {}",
            fmt::count(job.done),
            fmt::count(job.total),
            job.unit
        ),
    };
    ui.horizontal(|ui| {
        ui.label(RichText::new(&job.what).color(p.text));
        ui.label(RichText::new(&words).font(theme::mono()).color(p.secondary));
    });
    let share = job.done as f32 / job.total.max(1) as f32;
    let size = vec2(ui.available_width(), 6.0);
    controls::bar(ui, size, &[(share, p.accent)], &format!("Writing: {words}"));
    ui.add_space(theme::GRID);
}

fn nothing_yet(ui: &mut Ui) {
    let p = Palette::of(ui);
    ui.add_space(32.0);
    ui.vertical_centered(|ui| {
        ui.set_max_width(440.0);
        ui.label(RichText::new(icons::GIT_DIFF).size(theme::FIGURE).color(p.faint));
        ui.add_space(theme::GRID);
        let what = "Each side writes its own text, so that one different token changes all that follows. Press Let both write \
                    to see where they part, and whether they say the same again later.";
        ui.add(egui::Label::new(RichText::new(what).color(p.secondary)).wrap());
    });
}

/// How everything above is to be read.
fn labels(cx: &mut Context<'_>, ui: &mut Ui, v: &FreeView) {
    let p = Palette::of(ui);
    ui.add_space(theme::GRID);
    title(ui, "How to read it", |_| ());
    ui.add(egui::Label::new(RichText::new(ABOUT).color(p.secondary)).wrap());
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        let how = if v.spec.temperature > 0.0 {
            format!(
                "temperature {}, seed {}",
                fmt::sig3(f64::from(v.spec.temperature)),
                v.spec.seed
            )
        } else {
            "greedy".into()
        };
        let mode = match v.spec.mode {
            FreeMode::Lockstep => "in lockstep",
            FreeMode::InTurn => "in turn",
        };
        let line = format!(
            "reference: A, {}  ·  free-running, {how}, {mode}  ·  prompt of {} tokens  ·  {}  ·  {}",
            v.reference,
            fmt::count(v.prompt_tokens),
            label_word(v.label),
            v.device,
        );
        let label = RichText::new(line).font(theme::caption()).color(p.secondary);
        ui.add(egui::Label::new(label).wrap().selectable(true));
        let copy = controls::link(ui, "copy the command");
        if copy.on_hover_text(&v.command).clicked() {
            cx.act(Action::Copy(v.command.clone()));
        }
    });
}
