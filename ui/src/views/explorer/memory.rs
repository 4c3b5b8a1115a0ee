//! The memory bar: weights, cache by component, workspace, and what is left.

use egui::{Color32, RichText, Sense, vec2};
use protocol::{KvBytes, Label};

use crate::fmt::{self, Figure};
use crate::icons;
use crate::store::Query;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls;
use crate::widgets::plots::{Csv, Explain, dot, figure_menu, label_word};

const ABOUT: &str = "Weights: bytes of the checkpoint's tensors as stored; stored otherwise: those that the recipe in force \
keeps in another format beside them. KV cache: bytes allocated per component, \
counted by the engine at the last step; before the first step computed from record sizes for the session's context. \
Workspace: buffers of the largest step, computed from shapes. Free: what the operating system or driver says can \
still be used.";

/// One line.
struct Line {
    name: &'static str,
    bytes: u64,
    label: Label,
    color: Color32,
}

/// What takes memory.
struct Use {
    lines: Vec<Line>,
    free: u64,
}

impl Use {
    fn new(cx: &mut Context<'_>, p: &Palette) -> Option<Self> {
        let store = cx.store;
        let model = store.model()?;
        let plan = cx.fetch(&Query::memory(model.source.clone(), model.context)).value();
        let counted = store.steps.last().map(|step| {
            let mut sum = KvBytes::default();
            step.layers.iter().for_each(|l| sum.add(&l.kv_allocated));
            sum
        });
        let (kv, label) = match (counted, plan) {
            (Some(kv), _) => (kv, Label::Measured),
            (None, Some(plan)) => (plan.kv, Label::Estimated),
            (None, None) => (KvBytes::default(), Label::Estimated),
        };
        let mut lines = vec![Line {
            name: "weights",
            bytes: model.facts.weight_bytes,
            label: Label::Measured,
            color: p.accent,
        }];
        let restored = store.state.as_ref().map_or(0, |s| s.restored_bytes);
        if restored > 0 {
            lines.push(Line {
                name: "weights stored otherwise",
                bytes: restored,
                label: Label::Measured,
                color: theme::mix(p.accent, p.panel, 0.4),
            });
        }
        for ((name, bytes), color) in kv.parts().into_iter().zip(p.kv) {
            if bytes > 0 {
                lines.push(Line {
                    name,
                    bytes,
                    label,
                    color,
                });
            }
        }
        if let Some(plan) = plan {
            lines.push(Line {
                name: "workspace",
                bytes: plan.workspace,
                label: Label::Estimated,
                color: p.faint,
            });
        }
        let free = store.state.as_ref().map_or(0, |s| s.device.free_bytes);
        Some(Self { lines, free })
    }

    fn total(&self) -> u64 {
        self.lines.iter().map(|l| l.bytes).sum()
    }

    fn csv(&self) -> String {
        let mut csv = Csv::new(["part", "bytes", "label"]);
        for l in &self.lines {
            csv.row([l.name, &l.bytes.to_string(), label_word(l.label)]);
        }
        csv.row(["free", &self.free.to_string(), "measured"]);
        csv.text()
    }
}

/// Shows the bar; `open` shows every part in a line of its own.
pub(super) fn show(cx: &mut Context<'_>, ui: &mut egui::Ui, open: &mut bool) {
    let p = Palette::of(ui);
    let Some(used) = Use::new(cx, p) else { return };
    let total = used.total();
    egui::Frame::new()
        .inner_margin(egui::Margin::symmetric(12, 6))
        .show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 2.0;
            ui.spacing_mut().interact_size.y = 16.0;
            let title = head(ui, *open, total, used.free);
            if title.clicked() {
                *open = !*open;
            }
            let share = |bytes: u64| bytes as f32 / total.max(1) as f32;
            let parts: Vec<(f32, Color32)> = used.lines.iter().map(|l| (share(l.bytes), l.color)).collect();
            let said: Vec<String> = used
                .lines
                .iter()
                .map(|l| format!("{} {}", l.name, figure(l).plain()))
                .collect();
            let name = format!("Memory: {}; free {}", said.join(", "), fmt::bytes(used.free).plain());
            let bar = controls::bar(ui, vec2(ui.available_width(), 8.0), &parts, &name);
            let bar = bar.interact(Sense::click());
            let copy = said.join("\n");
            figure_menu(
                cx,
                &bar,
                "Memory",
                bar.rect.expand(8.0),
                &copy,
                &|| used.csv(),
                &Explain::measured(ABOUT),
            );
            bar.on_hover_ui(|ui| {
                for l in &used.lines {
                    line(ui, l);
                }
            });
            if *open {
                ui.add_space(2.0);
                for l in &used.lines {
                    line(ui, l);
                }
                line(
                    ui,
                    &Line {
                        name: "free",
                        bytes: used.free,
                        label: Label::Measured,
                        color: p.line,
                    },
                );
            }
        });
}

fn figure(l: &Line) -> Figure {
    let figure = fmt::bytes(l.bytes);
    if l.label == Label::Estimated {
        figure.estimated()
    } else {
        figure
    }
}

fn head(ui: &mut egui::Ui, open: bool, total: u64, free: u64) -> egui::Response {
    let p = Palette::of(ui);
    let icon = if open { icons::CARET_DOWN } else { icons::CARET_RIGHT };
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        let text = RichText::new(format!("{icon}  Memory"))
            .font(theme::caption())
            .color(p.secondary);
        let title = ui.add(egui::Button::new(text).frame(false).small());
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            ui.label(RichText::new("free").font(theme::caption()).color(p.faint));
            ui.label(fmt::bytes(free).job(p, theme::mono_caption(), p.secondary));
            ui.label(RichText::new("·").font(theme::caption()).color(p.faint));
            ui.label(fmt::bytes(total).job(p, theme::mono_caption(), p.text));
        });
        title.accessible_name(if open {
            "Memory, close the parts"
        } else {
            "Memory, show the parts"
        })
    })
    .inner
}

fn line(ui: &mut egui::Ui, l: &Line) {
    let p = Palette::of(ui);
    ui.horizontal(|ui| {
        ui.spacing_mut().item_spacing.x = 6.0;
        dot(ui, l.color);
        ui.label(RichText::new(l.name).font(theme::caption()).color(p.secondary));
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            ui.label(figure(l).job(p, theme::mono_caption(), p.text));
        });
    });
}
