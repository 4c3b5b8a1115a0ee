//! What came out: figures of both sides, the text coloured by KL, worst tokens, drift, changes one at a time, evidence.

use egui::{RichText, Sense, Ui, vec2};
use protocol::{CompareResult, CompareText, JobId};

use super::drift::{self, Drift};
use super::evidence::Evidence;
use super::figures;
use super::recipes::{edit_in_words, in_words};
use super::words::{self, Names};
use super::worst::{self, By};
use crate::fmt;
use crate::icons;
use crate::selection::Spot;
use crate::store::Store;
use crate::theme::{self, Palette};
use crate::views::{Action, Context};
use crate::widgets::controls;
use crate::widgets::heatmap::{Shades, color_bar};
use crate::widgets::plots::{Csv, Explain, Quantity, choice, field, figure_menu, label_word, remark};
use crate::widgets::token_text::{TokenMark, TokenText, tint};

/// Width from which two things stand side by side.
const WIDE: f32 = 760.0;
/// Height of the text and of the table beside it.
const HEIGHT: f32 = 230.0;

/// See the module.
#[derive(Debug, Default)]
pub struct Report {
    made: Option<JobId>,
    revision: u64,
    text: TokenText,
    drift: Drift,
    names: Names,
    by: By,
    /// Positions by what, and of which layer.
    order: ((By, usize), Vec<usize>),
    /// The layer whose positions are listed: the last one that was clicked.
    layer: usize,
    evidence: Evidence,
    /// Whether positions are those of the current text, and the revision of the text this holds for.
    shared: Option<(u64, bool)>,
    locked: Option<usize>,
    hovered: Option<usize>,
}

impl Report {
    /// Draws it. True if changes one at a time are asked for.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, job: JobId, r: &CompareResult, running: bool) -> bool {
        self.take(cx.store, job, r);
        self.link(cx.store, r);
        let at = self.at(cx, r);
        let layers = cx.store.facts().map_or(0, |f| f.layers.len() as u32);
        let names = [self.side_name(r, 0, layers), self.side_name(r, 1, layers)];
        figures::sides(ui, r, &names);
        ui.add_space(8.0);
        let chosen = figures::distance(ui, r, &self.names);
        ui.add_space(8.0);
        let mut asked = false;
        let can_edit = cx.can_edit();
        self.evidence.show(cx, ui, job, r, |ui| {
            asked = isolate_button(ui, r, can_edit && !running);
        });
        ui.add_space(theme::GRID);
        let mut hit = worst::Hit {
            clicked: chosen,
            ..worst::Hit::default()
        };
        two(ui, 0.6, |ui, left| {
            let found = if left {
                self.colored(cx, ui, r, at)
            } else {
                self.worst(ui, r, at)
            };
            hit.hover = hit.hover.or(found.hover);
            hit.clicked = hit.clicked.or(found.clicked);
        });
        ui.add_space(8.0);
        let rows = r.drift.layer_rms.len() as f32;
        let high = (40.0 + 20.0 * rows).clamp(120.0, 320.0);
        two(ui, 0.55, |ui, left| {
            if left {
                title(ui, "Drift of the hidden state", |ui| {
                    color_bar(ui, &self.drift.shades(), Quantity::Plain);
                });
                let [hover, clicked] = self.drift.map(cx, ui, r, at, high);
                hit.hover = hit.hover.or(hover);
                hit.clicked = hit.clicked.or(clicked);
            } else {
                let name = at.map_or("Layers".into(), |i| {
                    format!("Layers, at token {}", fmt::count(i as u64))
                });
                let order = if at.is_some() { "most growth first" } else { "" };
                title(ui, &name, |ui| remark(ui, order));
                if let Some(layer) = drift::layers(cx, ui, r, at, high) {
                    (self.layer, self.by) = (layer, By::Layer);
                }
            }
        });
        self.point(cx, r, hit);
        ui.add_space(8.0);
        isolated(ui, r, layers);
        labels(cx, ui, r);
        asked
    }

    fn take(&mut self, store: &Store, job: JobId, r: &CompareResult) {
        if self.made == Some(job) {
            return;
        }
        self.made = Some(job);
        self.revision += 1;
        self.text.set(self.revision, r.tokens.iter().map(|t| t.text.as_str()));
        self.drift.set(r, self.revision);
        self.names = Names::of(r, store.text.as_ref());
        self.layer = r.drift.layer_rms.len().saturating_sub(1);
        self.order = ((self.by, self.layer), worst::order(r, self.by, self.layer));
        self.evidence.set(r);
        (self.shared, self.locked, self.hovered) = (None, None, None);
    }

    /// Finds out whether positions of the comparison are positions of the current text.
    fn link(&mut self, store: &Store, r: &CompareResult) {
        let Some(text) = &store.text else {
            self.shared = None;
            return;
        };
        if self.shared.is_some_and(|(revision, _)| revision == text.revision()) {
            return;
        }
        let same = |t: crate::store::TokenRef<'_>| {
            r.tokens
                .get(t.info.position as usize)
                .is_none_or(|c| c.token == t.info.token)
        };
        let shared = r.spec.text == CompareText::Current && text.tokens().all(same);
        self.shared = Some((text.revision(), shared));
    }

    fn is_shared(&self) -> bool {
        self.shared.is_some_and(|(_, shared)| shared)
    }

    /// The chosen position: pointed at before clicked.
    fn at(&self, cx: &Context<'_>, r: &CompareResult) -> Option<usize> {
        let at = if self.is_shared() {
            let spot = cx.selection.hovered().or(cx.selection.locked());
            spot.token.map(|t| t as usize)
        } else {
            self.hovered.or(self.locked)
        };
        at.filter(|i| *i < r.tokens.len())
    }

    fn point(&mut self, cx: &mut Context<'_>, r: &CompareResult, hit: worst::Hit) {
        self.hovered = hit.hover;
        if self.is_shared() {
            if let Some(i) = hit.hover {
                cx.hover(Spot::token(i as u64));
            }
            if let Some(i) = hit.clicked {
                cx.selection.lock(Spot::token(i as u64));
            }
        } else if let Some(i) = hit.clicked.filter(|i| *i < r.tokens.len()) {
            self.locked = if self.locked == Some(i) { None } else { Some(i) };
        }
    }

    fn side_name(&self, r: &CompareResult, side: usize, layers: u32) -> String {
        let spec = if side == 0 { &r.spec.a } else { &r.spec.b };
        let own = *spec == protocol::RecipeRef::Own;
        if side == 1 && !r.changes.is_empty() {
            let edits: Vec<protocol::Edit> = r.changes.iter().map(|c| c.edit.clone()).collect();
            let base = if r.spec.a == protocol::RecipeRef::Own {
                ""
            } else {
                "A with "
            };
            return format!("{base}{}", in_words(&edits, layers));
        }
        match (side, own) {
            (_, true) => "checkpoint's own".into(),
            (1, _) => "the same as A".into(),
            _ => "recipe A".into(),
        }
    }

    fn colored(&mut self, cx: &mut Context<'_>, ui: &mut Ui, r: &CompareResult, at: Option<usize>) -> worst::Hit {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        let shades = kl_shades(r);
        title(ui, "Text, coloured by KL(A||B) after each token", |ui| {
            if let Some(shades) = &shades {
                color_bar(ui, shades, Quantity::Nats);
            }
        });
        let fill = |i: usize| {
            let kl = r.tokens.get(i)?.kl;
            match &shades {
                Some(s) if kl != 0.0 => tint(
                    p,
                    if kl.is_finite() {
                        s.place(kl).max(0.01)
                    } else {
                        f32::NAN
                    },
                ),
                _ => None,
            }
        };
        let mut marks: Vec<TokenMark> = splits(r).map(|token| TokenMark { token, color: p.warn }).collect();
        marks.extend(at.map(|token| TokenMark { token, color: p.accent }));
        let text = &mut self.text;
        let names = &self.names;
        let shown = egui::ScrollArea::vertical()
            .id_salt("kl text")
            .max_height(HEIGHT)
            .auto_shrink([false, true])
            .show(ui, |ui| {
                text.show(ui, "Text coloured by KL", self.revision, &fill, &marks)
            })
            .inner;
        if let Some(i) = shown.hover {
            shown.response.clone().on_hover_ui_at_pointer(|ui| {
                ui.set_width(300.0);
                words::position(ui, r, names, i);
            });
        }
        let about = "KL(A||B) of the next-token distributions after each token, in nats, teacher-forced. Outlined: the \
                     likeliest next tokens differ.";
        let value = shown.hover.or(at).map(|i| words::line(r, names, i)).unwrap_or_default();
        let explain = Explain {
            label: r.label,
            text: about,
        };
        figure_menu(cx, &shown.response, "KL by token", whole, &value, &|| csv(r), &explain);
        worst::Hit {
            hover: shown.hover,
            clicked: shown.clicked,
        }
    }

    fn worst(&mut self, ui: &mut Ui, r: &CompareResult, at: Option<usize>) -> worst::Hit {
        let layer = (self.by == By::Layer).then_some(self.layer);
        let name = layer.map_or("Worst tokens".into(), |l| format!("Most drift after layer {l}"));
        title(ui, &name, |ui| {
            choice(ui, "Order of the worst tokens", &mut self.by, &worst::BY);
        });
        if self.order.0 != (self.by, self.layer) {
            self.order = ((self.by, self.layer), worst::order(r, self.by, self.layer));
        }
        worst::table(ui, r, &self.names, &self.order.1, layer, at, HEIGHT)
    }
}

/// Two things side by side where there is room, else one below the other. `content` is told whether it is the first.
pub fn two(ui: &mut Ui, share: f32, mut content: impl FnMut(&mut Ui, bool)) {
    let width = ui.available_width();
    if width < WIDE {
        content(ui, true);
        ui.add_space(8.0);
        content(ui, false);
        return;
    }
    let left = ((width - 16.0) * share).floor();
    ui.horizontal_top(|ui| {
        ui.spacing_mut().item_spacing.x = 16.0;
        let mut part = |ui: &mut Ui, width: f32, first: bool| {
            ui.vertical(|ui| {
                ui.set_width(width);
                content(ui, first);
            });
        };
        part(ui, left, true);
        part(ui, width - 16.0 - left, false);
    });
}

/// A small title with something at its right end.
pub fn title<R>(ui: &mut Ui, text: &str, right: impl FnOnce(&mut Ui) -> R) {
    let p = Palette::of(ui);
    let row = vec2(ui.available_width(), theme::ROW);
    // What stands at the right keeps its width; the title gives way.
    ui.allocate_ui_with_layout(row, egui::Layout::right_to_left(egui::Align::Center), |ui| {
        ui.set_min_size(row);
        right(ui);
        ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
            ui.add(egui::Label::new(RichText::new(text).font(theme::strong()).color(p.text)).truncate());
        });
    });
}

/// Colours of KL; `None` where it is 0 everywhere.
fn kl_shades(r: &CompareResult) -> Option<Shades> {
    let positive = r.tokens.iter().map(|t| t.kl).filter(|k| k.is_finite() && *k > 0.0);
    let (low, high) = positive.fold((f32::INFINITY, 0.0f32), |(lo, hi), k| (lo.min(k), hi.max(k)));
    (high > 0.0).then(|| Shades::log(low, high))
}

/// Positions at which the likeliest tokens differ.
fn splits(r: &CompareResult) -> impl Iterator<Item = usize> {
    r.tokens
        .iter()
        .enumerate()
        .filter(|(_, t)| t.top1[0] != t.top1[1])
        .map(|(i, _)| i)
}

fn csv(r: &CompareResult) -> String {
    let mut csv = Csv::new([
        "position",
        "token",
        "text",
        "kl_nats",
        "logprob_a",
        "logprob_b",
        "top1_a",
        "top1_b",
        "margin_a",
    ]);
    for (i, t) in r.tokens.iter().enumerate() {
        csv.row([
            i.to_string(),
            t.token.to_string(),
            t.text.clone(),
            field(f64::from(t.kl)),
            field(f64::from(t.logprob[0])),
            field(f64::from(t.logprob[1])),
            t.top1[0].to_string(),
            t.top1[1].to_string(),
            field(f64::from(t.margin_a)),
        ]);
    }
    csv.text()
}

/// The button that asks for changes one at a time, where it has not been done and there is one. True if it was clicked.
fn isolate_button(ui: &mut Ui, r: &CompareResult, able: bool) -> bool {
    if !r.isolate.is_empty() || r.changes.is_empty() {
        return false;
    }
    let text = "Isolate one change";
    let button = egui::Button::new(format!("{}  {text}", icons::FLASK)).min_size(vec2(0.0, 28.0));
    let n = fmt::count(r.changes.len() as u64);
    let about = format!("Compares A with A plus one change at a time ({n} in all): which of them does what.");
    let response = ui.add_enabled(able, button).accessible_name(text);
    response.on_hover_text(about).clicked()
}

/// A with each change alone.
fn isolated(ui: &mut Ui, r: &CompareResult, layers: u32) {
    let p = Palette::of(ui);
    if r.isolate.is_empty() {
        return;
    }
    title(ui, "A with one change alone", |_| ());
    let most = r.isolate.iter().map(|i| i.kl_mean).fold(0.0, f64::max);
    let mut rows: Vec<&protocol::IsolateRow> = r.isolate.iter().collect();
    rows.sort_by(|a, b| b.kl_mean.total_cmp(&a.kl_mean));
    egui::ScrollArea::horizontal().id_salt("isolate").show(ui, |ui| {
        egui::Grid::new("isolate")
            .num_columns(6)
            .spacing(vec2(16.0, 2.0))
            .show(ui, |ui| {
                for name in ["change", "mean KL(A||·)", "", "max KL", "same top-1", "KV bytes"] {
                    ui.label(RichText::new(name).font(theme::caption()).color(p.secondary));
                }
                ui.end_row();
                for row in rows {
                    let what = format!("{}, was {}", edit_in_words(&row.change.edit, layers), row.change.from);
                    ui.label(RichText::new(&what).color(p.text));
                    let number = |ui: &mut Ui, text: String| ui.label(RichText::new(text).font(theme::mono()));
                    let mean = number(ui, fmt::sig3(row.kl_mean));
                    let label = format!("{what}: mean KL {}", fmt::sig3(row.kl_mean));
                    mean.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &label));
                    let share = if most > 0.0 { (row.kl_mean / most) as f32 } else { 0.0 };
                    let (rect, _) = ui.allocate_exact_size(vec2(72.0, 8.0), Sense::hover());
                    controls::paint_bar(ui, rect, &[(share, p.second)], p.line);
                    number(ui, fmt::sig3(row.kl_max));
                    number(ui, fmt::percent(row.same_top1).plain());
                    number(ui, fmt::signed_bytes(-row.kv_saved).plain());
                    ui.end_row();
                }
            });
    });
}

/// How everything above is to be read.
fn labels(cx: &mut Context<'_>, ui: &mut Ui, r: &CompareResult) {
    let p = Palette::of(ui);
    for note in &r.notes {
        ui.horizontal_wrapped(|ui| {
            ui.label(RichText::new(icons::INFO).color(p.secondary));
            ui.add(egui::Label::new(RichText::new(note).color(p.secondary)).wrap());
        });
    }
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        let line = format!(
            "reference: A, {}  ·  KL(A||B)  ·  teacher-forced  ·  {} positions  ·  {}  ·  {}  ·  {}",
            r.reference,
            fmt::count(r.tokens.len() as u64),
            label_word(r.label),
            r.device,
            fmt::seconds(r.seconds).plain(),
        );
        ui.add(
            egui::Label::new(RichText::new(line).font(theme::caption()).color(p.secondary))
                .wrap()
                .selectable(true),
        );
        let copy = controls::link(ui, "copy the command");
        if copy.on_hover_text(&r.command).clicked() {
            cx.act(Action::Copy(r.command.clone()));
        }
        let all: Vec<String> = r.statistics().iter().map(|s| format!("{:<32} {s}", s.name)).collect();
        let all = all.join("\n");
        let copy = controls::link(ui, "copy all statistics");
        let about = format!("As llama.cpp's perplexity tool names them (Q is B, base is A):\n{all}");
        if copy.on_hover_text(about).clicked() {
            cx.act(Action::Copy(all));
        }
    });
}
