//! What all telemetry charts share: the history, the time axis, pause, the cursor.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use super::history::History;
use super::metric::{LayerMetric, StepMetric};
use super::series::Series;
use crate::icons;
use crate::selection::Spot;
use crate::store::Store;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::plots::{Mark, Trace, Zoom};

/// Tokens shown at least: a time axis that starts with one token would jump.
const LEAST_SPAN: f64 = 64.0;
/// Points per line: more than pixels of any chart.
pub const MOST_POINTS: usize = 600;

/// See the module. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Shared(Rc<RefCell<State>>);

/// Content of [`Shared`].
#[derive(Debug)]
pub struct State {
    /// The columns.
    pub history: History,
    taken: u64,
    epoch: u64,
    lost: u64,
    most: u32,
    zoom: Option<(f64, f64)>,
    /// One past the last token shown while paused.
    paused: Option<u64>,
}

impl Default for Shared {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(State {
            history: History::new(0),
            taken: 0,
            epoch: u64::MAX,
            lost: 0,
            most: 0,
            zoom: None,
            paused: None,
        })))
    }
}

impl Shared {
    /// Takes what is new in the store and hands out the state.
    pub fn pull(&self, store: &Store) -> std::cell::RefMut<'_, State> {
        let mut state = self.0.borrow_mut();
        state.pull(store);
        state
    }

    /// Stops or resumes following the text.
    pub fn toggle_pause(&self) {
        let mut state = self.0.borrow_mut();
        let end = state.history.tokens().end;
        state.paused = if state.paused.is_some() { None } else { Some(end) };
    }
}

impl State {
    fn pull(&mut self, store: &Store) {
        let most = store.settings.telemetry_steps;
        if self.epoch != store.steps.epoch() || self.most != most {
            self.history = History::new(most as usize);
            (self.epoch, self.most) = (store.steps.epoch(), most);
            (self.taken, self.lost, self.zoom, self.paused) = (0, 0, None, None);
        }
        if self.taken < store.steps.end() {
            for step in store.steps.since(self.taken) {
                self.history.push(step);
            }
            self.taken = store.steps.end();
            // The text was rewound behind the pause: what was held is gone.
            if self.paused.is_some_and(|p| p > self.history.tokens().end) {
                self.paused = None;
            }
        }
        if store.steps.lost() > self.lost {
            self.history.note_lost(store.steps.lost() - self.lost);
        }
        self.lost = store.steps.lost();
    }

    /// Whether charts hold still.
    pub fn paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Whether the time axis shows a part only.
    pub fn zoomed(&self) -> bool {
        self.zoom.is_some()
    }

    /// Tokens that may be shown: all that are kept, up to the pause.
    pub fn tokens(&self) -> Range<u64> {
        let all = self.history.tokens();
        all.start..self.paused.unwrap_or(all.end).min(all.end).max(all.start)
    }

    /// Range of the time axis.
    pub fn axis(&self) -> (f64, f64) {
        let all = self.tokens();
        let full = (
            all.start as f64,
            (all.end as f64 - 1.0).max(all.start as f64 + LEAST_SPAN),
        );
        self.zoom.filter(|z| z.0 < all.end as f64).unwrap_or(full)
    }

    /// Does what the user did to the time axis.
    pub fn zoom(&mut self, zoom: Option<Zoom>) {
        match zoom {
            Some(Zoom::Reset) => self.zoom = None,
            Some(Zoom::To(a, b)) => {
                let all = self.tokens();
                let (low, high) = (
                    all.start as f64,
                    (all.end as f64 - 1.0).max(all.start as f64 + LEAST_SPAN),
                );
                let span = (b - a).clamp(8.0, high - low);
                let start = a.min(high - span).max(low);
                self.zoom = if span >= high - low {
                    None
                } else {
                    Some((start, start + span))
                };
            }
            None => {}
        }
    }

    /// Samples on the time axis.
    pub fn samples(&self) -> Range<u64> {
        let (x0, x1) = self.axis();
        let end = self.tokens().end.min(x1.floor() as u64 + 2);
        self.history.samples_of((x0.floor().max(0.0) as u64)..end)
    }

    /// The sample under the cursor: of the selected token if there is one, else the newest shown.
    pub fn sample(&self, cx: &Context<'_>) -> Option<u64> {
        let tokens = self.tokens();
        let last = self.history.sample_of(tokens.end.checked_sub(1)?)?;
        match cx.shown().token {
            Some(token) if token < tokens.end => self.history.sample_of(token).or(Some(last)),
            _ => Some(last),
        }
    }

    /// Where the shared cursor stands: nowhere while charts just follow the text.
    pub fn cursor(&self, cx: &Context<'_>) -> Option<f64> {
        let token = cx.selection.hovered().or(cx.selection.locked()).token?;
        self.tokens().contains(&token).then_some(token as f64)
    }

    /// A line of a series over the time axis.
    pub fn trace(&self, name: impl Into<String>, color: egui::Color32, series: &Series) -> Trace {
        let mut trace = Trace::new(name, color, Vec::new());
        for bucket in series.buckets(self.samples(), MOST_POINTS) {
            let x = self.history.x((bucket.first + bucket.end - 1) / 2);
            let (min, max) = (f64::from(bucket.min), f64::from(bucket.max));
            trace.points.push([x, (min + max) * 0.5]);
            if bucket.end - bucket.first > 1 && max > min {
                trace.band.push([x, min, max]);
            }
        }
        trace
    }

    /// Recipe swaps on the time axis.
    pub fn marks(&self, store: &Store, p: &Palette) -> Vec<Mark> {
        let (x0, x1) = self.axis();
        let inside = |x: f64| x >= x0 && x <= x1;
        let swaps = store
            .steps
            .swaps()
            .iter()
            .filter(|s| inside(s.position as f64) && s.position < self.tokens().end);
        swaps
            .map(|s| {
                let hash: String = s.hash.chars().take(4).collect();
                let converted = if s.converted > 0 { ", converted" } else { "" };
                Mark {
                    x: s.position as f64,
                    text: format!("recipe #{hash}{converted}"),
                    color: p.secondary,
                }
            })
            .collect()
    }

    /// Hover and click of a chart over tokens go into the shared selection.
    pub fn select(&self, cx: &mut Context<'_>, hover: Option<[f64; 2]>, clicked: Option<[f64; 2]>) {
        let token = |at: [f64; 2]| Some(at[0].round() as u64).filter(|t| self.tokens().contains(t));
        if let Some(token) = hover.and_then(token) {
            cx.hover(Spot::token(token));
        }
        if let Some(token) = clicked.and_then(token) {
            cx.selection.click(Spot::token(token));
        }
    }

    /// The value of a step metric under the cursor.
    pub fn step_value(&self, cx: &Context<'_>, metric: StepMetric) -> f64 {
        self.sample(cx)
            .map_or(f64::NAN, |s| f64::from(self.history.step(metric).get(s)))
    }

    /// The value of a layer metric under the cursor, for all layers together.
    pub fn all_value(&self, cx: &Context<'_>, metric: LayerMetric) -> f64 {
        self.sample(cx)
            .map_or(f64::NAN, |s| f64::from(self.history.all_layers(metric).get(s)))
    }
}

/// Chips that every telemetry title row shows when they apply: paused, zoomed, lost steps. Right to left.
pub fn chips(shared: &Shared, cx: &Context<'_>, ui: &mut egui::Ui) {
    let p = Palette::of(ui);
    let (paused, zoomed, lost) = {
        let state = shared.pull(cx.store);
        (state.paused(), state.zoomed(), state.history.lost())
    };
    let chip = |ui: &mut egui::Ui, icon: &str, color: egui::Color32| {
        let text = egui::RichText::new(icon).size(theme::BODY).color(color);
        ui.add(egui::Button::new(text).frame(false).small())
    };
    let pause = if paused {
        chip(ui, icons::PLAY, p.warn).on_hover_text("Paused. Click to follow the text again.")
    } else {
        chip(ui, icons::PAUSE, p.faint).on_hover_text("Hold the charts still while the text goes on.")
    };
    if pause
        .accessible_name(if paused { "Resume charts" } else { "Pause charts" })
        .clicked()
    {
        shared.toggle_pause();
    }
    if zoomed {
        let back = chip(ui, icons::MAGNIFYING_GLASS_MINUS, p.accent)
            .on_hover_text("A part of the text is shown. Click to show all of it.");
        if back.accessible_name("Show all tokens").clicked() {
            shared.0.borrow_mut().zoom = None;
        }
    }
    if lost > 0 {
        let text = format!(
            "{} steps were overwritten at the host before they got here; they are missing in the charts.",
            crate::fmt::count(lost)
        );
        let name = format!("{} steps are missing", crate::fmt::count(lost));
        chip(ui, icons::WARNING, p.warn)
            .on_hover_text(text)
            .accessible_name(name);
    }
}

/// What an empty chart says. Clicking goes to the text.
pub fn nothing_yet(cx: &mut Context<'_>, ui: &mut egui::Ui, icon: &str, what: &str) {
    if crate::views::empty(ui, icon, what, Some("Go to the text")) {
        cx.act(crate::views::Action::Show("generate"));
    }
}
