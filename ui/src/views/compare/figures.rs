//! A, B and their difference: what each side costs; then how far apart they are.

use egui::{Color32, RichText, Ui, vec2};
use protocol::{CompareResult, CompareSide, KvBytes};

use super::recipes::short_hash;
use super::setup::letter;
use super::words::Names;
use crate::fmt::{self, Figure, THIN};
use crate::theme::{self, Palette};
use crate::widgets::controls;

/// Three cards side by side where there is room, else one below the other.
pub fn sides(ui: &mut Ui, r: &CompareResult, names: &[String; 2]) {
    let [a, b] = &r.sides;
    let most = a.kv.total().max(b.kv.total()).max(1);
    let wide = ui.available_width() >= 560.0;
    let one = |ui: &mut Ui, i: usize| match i {
        0 => side(ui, "A", a, &names[0], most),
        1 => side(ui, "B", b, &names[1], most),
        _ => difference(ui, r),
    };
    if wide {
        ui.columns(3, |columns| {
            for (i, ui) in columns.iter_mut().enumerate() {
                one(ui, i);
            }
        });
    } else {
        (0..3).for_each(|i| one(ui, i));
    }
}

fn card(ui: &mut Ui, top: Color32, content: impl FnOnce(&mut Ui)) {
    let p = Palette::of(ui);
    let shown = egui::Frame::new()
        .fill(theme::mix(p.panel, p.canvas, 0.5))
        .stroke(egui::Stroke::new(theme::LINE, p.line))
        .corner_radius(theme::RADIUS)
        .inner_margin(egui::Margin::symmetric(10, 8))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.spacing_mut().item_spacing.y = 0.0;
            content(ui);
        });
    let rect = shown.response.rect;
    ui.painter().hline(
        rect.shrink(f32::from(theme::RADIUS)).x_range(),
        rect.top(),
        egui::Stroke::new(2.0, top),
    );
}

/// A row with its figure; its accessible name says whose it is.
fn line(ui: &mut Ui, whose: &str, name: &str, figure: &Figure, about: &str) {
    let response = controls::figure_row(ui, name, figure);
    let label = format!("{whose} {name}: {}", figure.plain());
    response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &label));
    response.on_hover_text(about);
}

const KV_ABOUT: &str = "Cache bytes in use after the last position, all layers and components. Counted.";
const DECODE_ABOUT: &str =
    "One token at a time, measured on the last positions of this text. A and B take turns in going first.";
const READ_ABOUT: &str = "Whole chunks, measured while the text was read.";
const PPL_ABOUT: &str = "exp of the mean negative log-probability of the text's own tokens, ± its standard error.";

fn side(ui: &mut Ui, name: &str, s: &CompareSide, what: &str, most: u64) {
    let p = Palette::of(ui);
    card(ui, if name == "A" { p.accent } else { p.second }, |ui| {
        ui.horizontal(|ui| {
            letter(ui, name);
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                ui.label(
                    RichText::new(short_hash(&s.hash))
                        .font(theme::mono_caption())
                        .color(p.faint),
                )
                .on_hover_text(format!("recipe {}", s.hash));
                ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                    ui.add(egui::Label::new(RichText::new(what).color(p.text)).truncate())
                        .on_hover_text(what);
                });
            });
        });
        ui.add_space(theme::GRID);
        line(ui, name, "KV cache", &fmt::bytes(s.kv.total()), KV_ABOUT);
        kv_bar(ui, name, &s.kv, most);
        line(ui, name, "decode", &fmt::rate(s.decode_tokens_per_s), DECODE_ABOUT);
        line(ui, name, "reading", &fmt::rate(s.prefill_tokens_per_s), READ_ABOUT);
        line(ui, name, "perplexity", &perplexity(s), PPL_ABOUT);
    });
}

fn perplexity(s: &CompareSide) -> Figure {
    let se = s.perplexity * s.ln_perplexity_se;
    Figure::new(format!("{}{THIN}±{THIN}{}", fmt::sig3(s.perplexity), fmt::sig3(se)), "")
}

/// Cache bytes by component, on a scale that A and B share.
fn kv_bar(ui: &mut Ui, name: &str, kv: &KvBytes, most: u64) {
    let p = Palette::of(ui);
    let parts: Vec<(f32, Color32)> = kv
        .parts()
        .iter()
        .zip(p.kv)
        .map(|((_, n), c)| ((*n as f64 / most as f64) as f32, c))
        .collect();
    let label = format!("{name} KV cache by component");
    let bar = controls::bar(ui, vec2(ui.available_width(), 6.0), &parts, &label);
    bar.on_hover_ui(|ui| {
        for ((part, n), color) in kv.parts().iter().zip(p.kv).filter(|((_, n), _)| *n > 0) {
            ui.horizontal(|ui| {
                crate::widgets::plots::dot(ui, color);
                controls::figure_row(ui, part, &fmt::bytes(*n));
            });
        }
    });
    ui.add_space(2.0);
}

/// `+9.8%` of `b` against `a`.
fn relative(a: f64, b: f64) -> String {
    if a <= 0.0 || !a.is_finite() || !b.is_finite() {
        return String::new();
    }
    let share = (b - a) / a;
    let sign = if share > 0.0 { "+" } else { "" };
    format!("  {sign}{}", fmt::percent(share).plain())
}

fn signed(x: f64, unit: &'static str) -> Figure {
    let sign = if x > 0.0 { "+" } else { "" };
    Figure::new(format!("{sign}{}", fmt::sig3(x)), unit)
}

fn difference(ui: &mut Ui, r: &CompareResult) {
    let p = Palette::of(ui);
    let [a, b] = &r.sides;
    card(ui, p.neutral, |ui| {
        ui.horizontal(|ui| {
            ui.set_min_height(22.0);
            ui.label(RichText::new("difference").font(theme::strong()));
            ui.label(RichText::new("B − A").color(p.secondary));
        });
        ui.add_space(theme::GRID);
        let bytes = b.kv.total() as i64 - a.kv.total() as i64;
        let with = |mut f: Figure, a: f64, b: f64| {
            let tail = relative(a, b);
            if !tail.is_empty() {
                f.value = format!("{}{THIN}{}{tail}", f.value, f.unit);
                f.unit = "";
            }
            f
        };
        let kv = with(fmt::signed_bytes(bytes), a.kv.total() as f64, b.kv.total() as f64);
        line(ui, "Difference", "KV cache", &kv, KV_ABOUT);
        ui.add_space(8.0);
        let speed = |a: f64, b: f64| with(signed(b - a, "tok/s"), a, b);
        line(
            ui,
            "Difference",
            "decode",
            &speed(a.decode_tokens_per_s, b.decode_tokens_per_s),
            DECODE_ABOUT,
        );
        line(
            ui,
            "Difference",
            "reading",
            &speed(a.prefill_tokens_per_s, b.prefill_tokens_per_s),
            READ_ABOUT,
        );
        let [ratio, se] = r.ln_ppl_ratio;
        let ln = signed(ratio, "");
        let ln = Figure::new(format!("{}{THIN}±{THIN}{}", ln.value, fmt::sig3(se)), "");
        let about = "ln(perplexity B / perplexity A), ± its standard error, token by token on the same text. Within \
                     twice the error of 0 it says nothing.";
        line(ui, "Difference", "ln perplexity", &ln, about);
    });
}

/// How far apart the sides are. Returns the position of a figure that was clicked.
pub fn distance(ui: &mut Ui, r: &CompareResult, names: &Names) -> Option<usize> {
    let p = Palette::of(ui);
    let mut clicked = None;
    ui.horizontal_wrapped(|ui| {
        ui.spacing_mut().item_spacing = vec2(24.0, 8.0);
        let k = &r.kl;
        let nats = |x: f64| Figure::new(fmt::sig3(x), "nats");
        let sub = format!("± {}", fmt::sig3(k.mean_se));
        let about = "Kullback-Leibler divergence of B's next-token distribution from A's, over all positions: the sum of \
                     p A × ln(p A / p B). Mean ± its standard error.";
        tile(ui, "KL(A||B) mean", &nats(k.mean), &sub, p.secondary, about);
        let sub = format!("median {}  p99.9 {}", fmt::sig3(k.median), fmt::sig3(k.p999));
        tile(ui, "KL(A||B) p99", &nats(k.p99), &sub, p.secondary, about);
        let worst = r.tokens.iter().enumerate().max_by(|a, b| a.1.kl.total_cmp(&b.1.kl)).map(|w| w.0);
        let sub = worst.map_or_else(String::new, |i| format!("after token {}", fmt::count(i as u64)));
        let largest = tile(ui, "KL(A||B) max", &nats(k.max), &sub, p.secondary, about);
        clicked = worst.filter(|_| chosen(largest)).or(clicked);
        let sub = format!("± {}", fmt::percent(r.same_top1[1]).plain());
        let about = "Share of positions at which A and B find the same next token likeliest.";
        tile(ui, "same top-1", &fmt::percent(r.same_top1[0]), &sub, p.secondary, about);
        let d = &r.delta_p;
        let sub = format!("mean {}", signed_percent(d.mean[0]));
        let about = "Change of the probability of the text's own next token, B against A: root of the mean square, over all \
                     positions that have one. Named as llama.cpp's perplexity tool names it.";
        tile(ui, "RMS Δp", &fmt::percent(d.rms[0]), &sub, p.secondary, about);
        let about = "The first position after which greedy texts would differ, and A's margin there: probability of its \
                     likeliest token minus that of the second. Under 0.001 rounding alone could have decided.";
        match &r.divergence {
            None => {
                tile(ui, "first split", &Figure::new("nowhere", ""), "the same greedy text", p.good, about);
            }
            Some(d) => {
                let i = d.position as usize;
                let said = r.tokens.get(i).map_or_else(String::new, |t| {
                    format!("A {} B {}  ", names.get(t.top1[0]), names.get(t.top1[1]))
                });
                let sub = format!("{said}margin {}", fmt::sig3(f64::from(d.margin)));
                let (sub, ink) = if d.near_tie { (format!("{sub}, near tie"), p.warn) } else { (sub, p.secondary) };
                let place = Figure::new(format!("token {}", fmt::count(d.position)), "");
                let split = tile(ui, "first split", &place, &sub, ink, about);
                clicked = Some(i).filter(|_| chosen(split)).or(clicked);
            }
        }
        let [mean, max] = r.noise_floor;
        let sub = if max == 0.0 { "A reads twice alike".to_string() } else { format!("max {}", fmt::sig3(max)) };
        let about = "KL(A||A) of two readings of A: what is not larger than this is noise. 0 on one device.";
        tile(ui, "noise floor A||A", &nats(mean), &sub, p.secondary, about);
    });
    clicked
}

fn signed_percent(x: f64) -> String {
    let sign = if x > 0.0 { "+" } else { "" };
    format!("{sign}{}", fmt::percent(x).plain())
}

/// Whether a tile that leads to a token was clicked.
fn chosen(tile: egui::Response) -> bool {
    let tile = tile
        .interact(egui::Sense::click())
        .on_hover_cursor(egui::CursorIcon::PointingHand);
    tile.clicked()
}

/// A figure with its name above and a remark below.
pub fn tile(ui: &mut Ui, name: &str, figure: &Figure, sub: &str, ink: Color32, about: &str) -> egui::Response {
    let p = Palette::of(ui);
    let job = figure.job(p, egui::FontId::monospace(theme::TITLE), p.text);
    let plain = |text: &str, font| ui.painter().layout_no_wrap(text.to_string(), font, ink).size();
    let lines = [
        plain(name, theme::caption()),
        ui.painter().layout_job(job.clone()).size(),
        plain(sub, theme::mono_caption()),
    ];
    // As wide as its widest line: what does not fit goes into the next row, and is never broken to fit.
    let width = lines.iter().map(|l| l.x.ceil() + 1.0).fold(0.0, f32::max);
    let size = vec2(width.min(ui.max_rect().width()), lines.iter().map(|l| l.y + 1.0).sum());
    let response = ui
        .allocate_ui_with_layout(size, egui::Layout::top_down(egui::Align::Min), |ui| {
            ui.set_width(size.x);
            ui.spacing_mut().item_spacing.y = 1.0;
            ui.style_mut().wrap_mode = Some(egui::TextWrapMode::Truncate);
            ui.label(RichText::new(name).font(theme::caption()).color(p.secondary));
            let value = ui.label(job);
            let label = format!("{name}: {}", figure.plain());
            value.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, &label));
            ui.label(RichText::new(sub).font(theme::mono_caption()).color(ink));
        })
        .response;
    response.on_hover_text(about)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_carry_signs_and_shares() {
        assert_eq!(relative(200.0, 250.0), "  +25.0%");
        assert_eq!(relative(200.0, 150.0), "  \u{2212}25.0%");
        assert_eq!(relative(0.0, 1.0), "");
        assert_eq!(signed(3.0, "tok/s").plain(), "+3.00\u{2009}tok/s");
        assert_eq!(signed(-3.0, "").plain(), "\u{2212}3.00");
    }
}
