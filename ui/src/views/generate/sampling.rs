//! How to generate: the sampler and what ends a text, with the model's own values marked.

use egui::{RichText, Ui};
use protocol::{GenerateSpec, LoadedModel, Sampling};

use crate::icons;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls::{self, icon_button, switch};

/// Tokens asked for at first.
const FIRST_TOKENS: u64 = 400;

/// The form and its values.
#[derive(Clone, Debug)]
pub(super) struct Form {
    /// Values.
    pub(super) spec: GenerateSpec,
    /// A new seed for every run.
    pub(super) fresh_seed: bool,
    model: String,
    own: Sampling,
    stop: String,
}

impl Default for Form {
    fn default() -> Self {
        let own = Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: 0,
            logprobs: 8,
        };
        let spec = GenerateSpec {
            sampling: own,
            max_tokens: FIRST_TOKENS,
            stop: Vec::new(),
            ignore_eos: false,
            thinking: true,
        };
        Self {
            spec,
            fresh_seed: true,
            model: String::new(),
            own,
            stop: String::new(),
        }
    }
}

impl Form {
    /// Takes over the values of a model that was just loaded.
    pub(super) fn follow(&mut self, model: &LoadedModel, logprobs: u32) {
        if self.model != model.path {
            self.model.clone_from(&model.path);
            self.own = model.default_sampling;
            self.spec.sampling = model.default_sampling;
        }
        self.spec.sampling.logprobs = logprobs;
    }

    /// The values for a run that starts now.
    pub(super) fn for_run(&mut self, now: f64) -> GenerateSpec {
        if self.fresh_seed {
            self.spec.sampling.seed = seed_from(now, self.spec.sampling.seed);
        }
        self.spec.clone()
    }

    /// Lets texts go on until the context is full, or takes that back; whether they do now.
    pub(super) fn toggle_endless(&mut self) -> bool {
        let on = !(self.spec.ignore_eos && self.spec.max_tokens == 0);
        self.spec.ignore_eos = on;
        self.spec.max_tokens = if on { 0 } else { FIRST_TOKENS };
        on
    }

    /// How many values differ from the model's.
    pub(super) fn changes(&self) -> usize {
        let (s, o) = (&self.spec.sampling, &self.own);
        [
            s.temperature != o.temperature,
            s.top_k != o.top_k,
            s.top_p != o.top_p,
            s.min_p != o.min_p,
            s.repetition_penalty != o.repetition_penalty,
            s.frequency_penalty != o.frequency_penalty,
            s.presence_penalty != o.presence_penalty,
            !self.spec.stop.is_empty(),
            self.spec.ignore_eos,
        ]
        .into_iter()
        .filter(|c| *c)
        .count()
    }

    pub(super) fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let scroll = egui::ScrollArea::vertical()
            .id_salt("sampling")
            .auto_shrink([false, false])
            .content_margin(egui::Margin::symmetric(theme::PAD as i8, 8));
        scroll.show(ui, |ui| {
            let own = self.own;
            let s = &mut self.spec.sampling;
            header(ui, s, own);
            real(
                ui,
                "Temperature",
                "0 takes the likeliest token every time",
                &mut s.temperature,
                own.temperature,
                0.0..=2.0,
                0.01,
            );
            whole(
                ui,
                "Top-k",
                "only the k likeliest; 0 = all",
                &mut s.top_k,
                own.top_k,
                0..=500,
            );
            real(
                ui,
                "Top-p",
                "the likeliest that make up this share; 1 = all",
                &mut s.top_p,
                own.top_p,
                0.0..=1.0,
                0.005,
            );
            real(
                ui,
                "Min-p",
                "at least this share of the likeliest; 0 = all",
                &mut s.min_p,
                own.min_p,
                0.0..=1.0,
                0.005,
            );
            controls::section(ui, "Penalties");
            real(
                ui,
                "Repetition",
                "divides the score of what was written; 1 = off",
                &mut s.repetition_penalty,
                own.repetition_penalty,
                0.5..=2.0,
                0.01,
            );
            real(
                ui,
                "Frequency",
                "per occurrence; 0 = off",
                &mut s.frequency_penalty,
                own.frequency_penalty,
                -2.0..=2.0,
                0.01,
            );
            real(
                ui,
                "Presence",
                "once it occurred; 0 = off",
                &mut s.presence_penalty,
                own.presence_penalty,
                -2.0..=2.0,
                0.01,
            );
            controls::section(ui, "Run");
            self.seed(cx, ui);
            self.ending(cx, ui);
        });
    }

    fn seed(&mut self, cx: &Context<'_>, ui: &mut Ui) {
        let seed = &mut self.spec.sampling.seed;
        controls::row(ui, "Seed", |ui| {
            if icon_button(ui, icons::DICE_FIVE, "Another seed").clicked() {
                *seed = seed_from(cx.now, *seed);
            }
            let response = ui.add(egui::DragValue::new(seed).speed(1.0)).accessible_name("Seed");
            response.on_hover_text("The same seed, recipe and device give the same text");
        });
        controls::row(ui, "New seed for every run", |ui| {
            switch(ui, &mut self.fresh_seed, "New seed for every run")
        });
    }

    fn ending(&mut self, cx: &Context<'_>, ui: &mut Ui) {
        let p = Palette::of(ui);
        let most = cx.store.state.as_ref().map_or(4096, |s| s.context);
        let mut full = self.spec.max_tokens == 0;
        controls::row(ui, "Most tokens", |ui| {
            ui.add_enabled_ui(!full, |ui| {
                let shown = if full { most } else { self.spec.max_tokens };
                let mut value = shown;
                let field = egui::DragValue::new(&mut value).range(1..=most.max(1)).speed(4.0);
                let response = ui.add(field).accessible_name("Most tokens");
                if response.changed() && !full {
                    self.spec.max_tokens = value;
                }
            });
        });
        controls::row(ui, "Until the context is full", |ui| {
            if switch(ui, &mut full, "Until the context is full").changed() {
                self.spec.max_tokens = if full { 0 } else { FIRST_TOKENS.min(most) };
            }
        });
        controls::row(ui, "Go on past the end", |ui| {
            switch(ui, &mut self.spec.ignore_eos, "Go on past the end")
                .on_hover_text("Draws on where the model would have ended the text")
        });
        if cx.store.model().is_some_and(|m| m.chat.is_ok()) {
            controls::row(ui, "Think first", |ui| {
                switch(ui, &mut self.spec.thinking, "Think first").on_hover_text("For models that can")
            });
        }
        controls::section(ui, "Stop strings");
        let mut gone = None;
        for (i, stop) in self.spec.stop.iter().enumerate() {
            controls::row(ui, "", |ui| {
                if icon_button(ui, icons::X, "Remove this stop string").clicked() {
                    gone = Some(i);
                }
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    ui.label(RichText::new(format!("{stop:?}")).font(theme::mono()).color(p.text));
                });
            });
        }
        if let Some(i) = gone {
            self.spec.stop.remove(i);
        }
        ui.horizontal(|ui| {
            let width = ui.available_width() - 32.0;
            let field = egui::TextEdit::singleline(&mut self.stop)
                .hint_text("a text that ends the writing; \\n = new line")
                .desired_width(width);
            let response = ui.add(field).accessible_name("New stop string");
            let entered = response.lost_focus() && ui.input(|i| i.key_pressed(egui::Key::Enter));
            let added = icon_button(ui, icons::PLUS, "Add the stop string").clicked();
            if (entered || added) && !self.stop.is_empty() {
                self.spec.stop.push(unescaped(&self.stop));
                self.stop.clear();
            }
        });
    }
}

fn header(ui: &mut Ui, s: &mut Sampling, own: Sampling) {
    let p = Palette::of(ui);
    ui.horizontal(|ui| {
        let font = egui::FontId::new(theme::CAPTION, theme::strong_family());
        ui.label(RichText::new("Sampling").font(font).color(p.secondary));
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            let (seed, logprobs) = (s.seed, s.logprobs);
            let mine = Sampling { seed, logprobs, ..own };
            let changed = *s != mine;
            ui.add_enabled_ui(changed, |ui| {
                if controls::link(ui, "the model's own")
                    .on_hover_text("Puts the model's values back")
                    .clicked()
                {
                    *s = mine;
                }
            });
        });
    });
}

/// A row with a slider; a tick marks the model's own value, an arrow puts it back.
fn real(
    ui: &mut Ui,
    name: &str,
    help: &str,
    value: &mut f32,
    own: f32,
    range: std::ops::RangeInclusive<f32>,
    step: f64,
) {
    let changed = (*value - own).abs() > 1e-6;
    let (low, high) = (*range.start(), *range.end());
    row(ui, name, help, changed, |ui, reset| {
        if reset {
            *value = own;
        }
        let field = egui::DragValue::new(value)
            .range(range.clone())
            .speed(step)
            .max_decimals(3);
        ui.add_sized([52.0, theme::ROW], field).accessible_name(name);
        slider(
            ui,
            name,
            f64::from(*value),
            f64::from(own),
            f64::from(low)..=f64::from(high),
            |v| {
                let rounded = (v / step).round() * step;
                *value = rounded as f32;
            },
        );
    });
}

fn whole(ui: &mut Ui, name: &str, help: &str, value: &mut u32, own: u32, range: std::ops::RangeInclusive<u32>) {
    let changed = *value != own;
    let (low, high) = (*range.start(), *range.end());
    row(ui, name, help, changed, |ui, reset| {
        if reset {
            *value = own;
        }
        ui.add_sized(
            [52.0, theme::ROW],
            egui::DragValue::new(value).range(range.clone()).speed(0.5),
        )
        .accessible_name(name);
        // Small values matter most: the slider runs along the square root.
        let root = |v: u32| f64::from(v).sqrt();
        slider(ui, name, root(*value), root(own), root(low)..=root(high), |v| {
            *value = (v * v).round() as u32
        });
    });
}

fn row(ui: &mut Ui, name: &str, help: &str, changed: bool, content: impl FnOnce(&mut Ui, bool)) {
    let p = Palette::of(ui);
    ui.allocate_ui_with_layout(
        egui::vec2(ui.available_width(), theme::ROW),
        egui::Layout::left_to_right(egui::Align::Center),
        |ui| {
            let color = if changed { p.text } else { p.secondary };
            ui.label(RichText::new(name).color(color)).on_hover_text(help);
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                ui.spacing_mut().item_spacing.x = 6.0;
                let mut reset = false;
                ui.scope(|ui| {
                    if !changed {
                        ui.disable();
                        ui.multiply_opacity(0.0);
                    }
                    reset = icon_button(ui, icons::ARROW_COUNTER_CLOCKWISE, &format!("Put {name} back")).clicked();
                });
                content(ui, reset);
            });
        },
    );
}

/// A slim slider with a tick at the model's own value.
fn slider(
    ui: &mut Ui,
    name: &str,
    value: f64,
    own: f64,
    range: std::ops::RangeInclusive<f64>,
    mut set: impl FnMut(f64),
) {
    let p = Palette::of(ui);
    let width = (ui.available_width() - 12.0).clamp(24.0, 120.0);
    let (rect, response) = ui.allocate_exact_size(egui::vec2(width, theme::ROW), egui::Sense::click_and_drag());
    let (low, high) = (*range.start(), *range.end());
    response.widget_info(|| egui::WidgetInfo::slider(true, value, format!("{name} slider")));
    let track = rect.shrink2(egui::vec2(6.0, 10.0));
    let x_of = |v: f64| track.left() + track.width() * ((v - low) / (high - low)).clamp(0.0, 1.0) as f32;
    if let Some(pointer) = response.interact_pointer_pos() {
        let t = f64::from(((pointer.x - track.left()) / track.width()).clamp(0.0, 1.0));
        let mut v = low + t * (high - low);
        // The tick is sticky.
        if (x_of(v) - x_of(own)).abs() < 4.0 {
            v = own;
        }
        set(v);
    }
    ui.painter().rect_filled(track, 2, p.line);
    let filled = egui::Rect::from_min_max(track.min, egui::pos2(x_of(value), track.bottom()));
    ui.painter().rect_filled(filled, 2, theme::mix(p.line, p.accent, 0.7));
    let tick = egui::Stroke::new(1.5, p.secondary);
    ui.painter()
        .vline(x_of(own), rect.center().y - 7.0..=rect.center().y + 7.0, tick);
    let grab = egui::pos2(x_of(value), rect.center().y);
    let ring = if response.hovered() || response.has_focus() {
        p.accent
    } else {
        p.secondary
    };
    ui.painter().circle(grab, 6.0, p.raised, egui::Stroke::new(1.5, ring));
    response.on_hover_text(format!("the model's own: {}", crate::fmt::sig3(own)));
}

/// A seed from the clock and the one before: different every time, small enough to read and type.
fn seed_from(now: f64, before: u64) -> u64 {
    let mut x = now.to_bits() ^ before.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x % 1_000_000
}

fn unescaped(text: &str) -> String {
    text.replace("\\n", "\n").replace("\\t", "\t")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_model_brings_its_own_values_and_changes_are_counted() {
        let mut form = Form::default();
        form.follow(&testing::loaded(), 5);
        assert_eq!(form.spec.sampling.temperature, 0.8);
        assert_eq!(form.spec.sampling.logprobs, 5);
        assert_eq!(form.changes(), 0);
        form.spec.sampling.temperature = 0.2;
        form.spec.stop.push("\n".into());
        form.follow(&testing::loaded(), 5);
        assert_eq!(form.changes(), 2, "the same model again changes nothing");
    }

    #[test]
    fn seeds_differ_and_stay_put_when_asked() {
        let mut form = Form::default();
        let (a, b) = (form.for_run(1.0).sampling.seed, form.for_run(2.0).sampling.seed);
        assert_ne!(a, b);
        form.fresh_seed = false;
        assert_eq!(form.for_run(3.0).sampling.seed, b);
    }
}
