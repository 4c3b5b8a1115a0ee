//! Buttons, chips and small controls in the program's own look.

use egui::{
    Align2, Color32, CornerRadius, Response, RichText, Role, Sense, Stroke, StrokeKind, Ui, WidgetInfo, pos2, vec2,
};

use crate::fmt::Figure;
use crate::theme::{self, Palette};

/// A frameless square button with an icon; `name` is its accessible name and tooltip.
pub fn icon_button(ui: &mut Ui, icon: &str, name: &str) -> Response {
    icon_toggle(ui, icon, name, false)
}

/// The same, shown as switched on or off.
pub fn icon_toggle(ui: &mut Ui, icon: &str, name: &str, on: bool) -> Response {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(theme::ROW, theme::ROW), Sense::click());
    let enabled = ui.is_enabled();
    response.widget_info(|| {
        if on {
            WidgetInfo::selected(Role::Button, enabled, true, name)
        } else {
            WidgetInfo::labeled(Role::Button, enabled, name)
        }
    });
    if ui.is_rect_visible(rect) {
        let hot = enabled && (response.hovered() || response.is_pointer_button_down_on());
        let color = match (on, hot) {
            (true, _) => p.accent,
            (false, true) => p.text,
            _ => p.secondary,
        };
        let fill = if hot { p.hover } else { Color32::TRANSPARENT };
        ui.painter().rect_filled(rect.shrink(1.0), theme::RADIUS - 1, fill);
        focus_ring(ui, &response, rect);
        ui.painter().text(
            rect.center(),
            Align2::CENTER_CENTER,
            icon,
            egui::FontId::proportional(15.0),
            fade(ui, color),
        );
    }
    response.on_hover_text(name).on_disabled_hover_text(name)
}

/// The ring of something that has the keyboard focus.
pub fn focus_ring(ui: &Ui, response: &Response, rect: egui::Rect) {
    if response.has_focus() {
        let p = Palette::of(ui);
        ui.painter().rect_stroke(
            rect.shrink(0.5),
            theme::RADIUS,
            Stroke::new(1.5, p.accent),
            StrokeKind::Inside,
        );
    }
}

fn fade(ui: &Ui, color: Color32) -> Color32 {
    if ui.is_enabled() {
        color
    } else {
        color.gamma_multiply(ui.visuals().disabled_alpha)
    }
}

/// The one button of a place: filled with the accent.
pub fn primary(ui: &mut Ui, icon: &str, text: &str) -> Response {
    let p = Palette::of(ui);
    filled(ui, &with_icon(icon, text), text, p.accent, p.on_accent)
}

/// The same as an icon alone, where there is no room for its name.
pub fn primary_icon(ui: &mut Ui, icon: &str, name: &str) -> Response {
    let p = Palette::of(ui);
    filled(ui, icon, name, p.accent, p.on_accent)
}

/// A filled button that ends something.
pub fn danger(ui: &mut Ui, icon: &str, text: &str) -> Response {
    let p = Palette::of(ui);
    filled(
        ui,
        &with_icon(icon, text),
        text,
        theme::mix(p.raised, p.bad, 0.18),
        p.bad,
    )
}

/// The same as an icon alone, where there is no room for its name.
pub fn danger_icon(ui: &mut Ui, icon: &str, name: &str) -> Response {
    let p = Palette::of(ui);
    filled(ui, icon, name, theme::mix(p.raised, p.bad, 0.18), p.bad)
}

fn with_icon(icon: &str, text: &str) -> String {
    if icon.is_empty() {
        text.to_string()
    } else {
        format!("{icon}  {text}")
    }
}

fn filled(ui: &mut Ui, label: &str, name: &str, fill: Color32, ink: Color32) -> Response {
    let p = Palette::of(ui);
    let galley = ui.painter().layout_no_wrap(label.to_string(), theme::strong(), ink);
    let size = vec2(galley.size().x + 24.0, 28.0);
    let (rect, response) = ui.allocate_exact_size(size, Sense::click());
    let enabled = ui.is_enabled();
    response.widget_info(|| WidgetInfo::labeled(Role::Button, enabled, name));
    if ui.is_rect_visible(rect) {
        let hot = enabled && response.hovered();
        let down = enabled && response.is_pointer_button_down_on();
        let fill = match (down, hot) {
            (true, _) => theme::mix(fill, p.canvas, 0.18),
            (false, true) => theme::mix(fill, p.text, 0.12),
            _ => fill,
        };
        ui.painter().rect_filled(rect, theme::RADIUS, fade(ui, fill));
        if response.has_focus() {
            ui.painter().rect_stroke(
                rect.expand(2.0),
                theme::RADIUS + 2,
                Stroke::new(1.5, p.accent),
                StrokeKind::Inside,
            );
        }
        let at = rect.center() - galley.size() / 2.0;
        ui.painter().galley(at, galley, fade(ui, ink));
    }
    response
}

/// A plain framed button with an icon.
pub fn button(ui: &mut Ui, icon: &str, text: &str) -> Response {
    let label = if icon.is_empty() {
        text.to_string()
    } else {
        format!("{icon}  {text}")
    };
    let response = ui.add(egui::Button::new(label).min_size(vec2(0.0, 28.0)));
    let enabled = ui.is_enabled();
    response.widget_info(|| WidgetInfo::labeled(Role::Button, enabled, text));
    response
}

/// Looks like a link.
pub fn link(ui: &mut Ui, text: &str) -> Response {
    let p = Palette::of(ui);
    let galley = ui.painter().layout_no_wrap(text.to_string(), theme::body(), p.accent);
    let (rect, response) = ui.allocate_exact_size(vec2(galley.size().x, theme::ROW - 4.0), Sense::click());
    let enabled = ui.is_enabled();
    response.widget_info(|| WidgetInfo::labeled(Role::Link, enabled, text));
    let at = pos2(rect.left(), rect.center().y - galley.size().y / 2.0);
    ui.painter().galley(at, galley, fade(ui, p.accent));
    if response.hovered() || response.has_focus() {
        let y = rect.center().y + 8.0;
        ui.painter()
            .hline(rect.x_range(), y, Stroke::new(theme::LINE, p.accent));
    }
    response.on_hover_cursor(egui::CursorIcon::PointingHand)
}

/// Choices side by side, one of them on. Returns the one clicked. Each is (icon or "", name, reason why not or "").
pub fn segmented(ui: &mut Ui, choices: &[(&str, &str, &str)], on: usize) -> Option<usize> {
    let p = Palette::of(ui);
    let mut clicked = None;
    let widths: Vec<f32> = choices
        .iter()
        .map(|(icon, name, _)| {
            let label = label_of(icon, name);
            ui.painter().layout_no_wrap(label, theme::body(), p.text).size().x + 20.0
        })
        .collect();
    let (whole, _) = ui.allocate_exact_size(vec2(widths.iter().sum::<f32>() + 4.0, 28.0), Sense::hover());
    ui.painter().rect(
        whole,
        theme::RADIUS,
        p.canvas,
        Stroke::new(theme::LINE, p.line),
        StrokeKind::Inside,
    );
    let mut x = whole.left() + 2.0;
    for (i, ((icon, name, refusal), width)) in choices.iter().zip(widths).enumerate() {
        let rect = egui::Rect::from_min_size(pos2(x, whole.top() + 2.0), vec2(width, 24.0));
        x += width;
        let able = refusal.is_empty() && ui.is_enabled();
        let sense = if able { Sense::click() } else { Sense::hover() };
        let response = ui.interact(rect, ui.scope_id().with(("segment", name)), sense);
        response.widget_info(|| WidgetInfo::selected(Role::RadioButton, able, i == on, name));
        if i == on {
            ui.painter()
                .rect(rect, theme::RADIUS - 2, p.selected, Stroke::NONE, StrokeKind::Inside);
        } else if able && response.hovered() {
            ui.painter().rect_filled(rect, theme::RADIUS - 2, p.hover);
        }
        focus_ring(ui, &response, rect);
        let color = match (able, i == on) {
            (false, _) => p.faint,
            (true, true) => p.text,
            _ => p.secondary,
        };
        ui.painter().text(
            rect.center(),
            Align2::CENTER_CENTER,
            label_of(icon, name),
            theme::body(),
            color,
        );
        if response.clicked() {
            clicked = Some(i);
        }
        if !refusal.is_empty() {
            response.on_hover_text(*refusal);
        }
    }
    clicked
}

fn label_of(icon: &str, name: &str) -> String {
    if icon.is_empty() {
        name.to_string()
    } else {
        format!("{icon} {name}")
    }
}

/// A rounded label; clickable.
pub fn chip(ui: &mut Ui, icon: &str, text: &str, color: Color32) -> Response {
    let p = Palette::of(ui);
    let galley = ui.painter().layout_no_wrap(label_of(icon, text), theme::body(), color);
    let (rect, response) = ui.allocate_exact_size(vec2(galley.size().x + 16.0, theme::ROW), Sense::click());
    let enabled = ui.is_enabled();
    response.widget_info(|| WidgetInfo::labeled(Role::Button, enabled, text));
    if ui.is_rect_visible(rect) {
        let fill = if enabled && response.hovered() {
            p.hover
        } else {
            p.raised
        };
        ui.painter().rect(
            rect,
            theme::RADIUS,
            fill,
            Stroke::new(theme::LINE, p.line),
            StrokeKind::Inside,
        );
        focus_ring(ui, &response, rect);
        ui.painter()
            .galley(rect.center() - galley.size() / 2.0, galley, fade(ui, color));
    }
    response
}

/// A small title over a group of rows.
pub fn section(ui: &mut Ui, title: &str) {
    let p = Palette::of(ui);
    ui.add_space(theme::GRID);
    ui.label(
        RichText::new(title)
            .font(egui::FontId::new(theme::CAPTION, theme::strong_family()))
            .color(p.secondary),
    );
}

/// A row: name on the left, figure on the right.
pub fn figure_row(ui: &mut Ui, name: &str, figure: &Figure) -> Response {
    let p = Palette::of(ui);
    row(ui, name, |ui| {
        let job = figure.job(p, theme::mono(), p.text);
        ui.label(job)
    })
}

/// A row of fixed height: name on the left, anything on the right (added right to left).
pub fn row<R>(ui: &mut Ui, name: &str, right: impl FnOnce(&mut Ui) -> R) -> R {
    let p = Palette::of(ui);
    ui.allocate_ui_with_layout(
        vec2(ui.available_width(), theme::ROW),
        egui::Layout::left_to_right(egui::Align::Center),
        |ui| {
            ui.set_min_height(theme::ROW);
            ui.label(RichText::new(name).color(p.secondary));
            ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), right)
                .inner
        },
    )
    .inner
}

/// A switch.
pub fn switch(ui: &mut Ui, on: &mut bool, name: &str) -> Response {
    let p = Palette::of(ui);
    let (rect, mut response) = ui.allocate_exact_size(vec2(32.0, theme::ROW), Sense::click());
    if response.clicked() {
        *on = !*on;
        response.mark_changed();
    }
    let (enabled, state) = (ui.is_enabled(), *on);
    response.widget_info(|| WidgetInfo::selected(Role::CheckBox, enabled, state, name));
    let track = egui::Rect::from_center_size(rect.center(), vec2(30.0, 16.0));
    let t = ui
        .ctx()
        .animate_bool_with_time(response.id, *on, ui.style().animation_time);
    let fill = theme::mix(p.line, p.accent, t);
    ui.painter().rect_filled(track, 8, fade(ui, fill));
    let x = egui::lerp(track.left() + 8.0..=track.right() - 8.0, t);
    let knob = if *on { p.on_accent } else { p.secondary };
    ui.painter()
        .circle_filled(pos2(x, track.center().y), 5.5, fade(ui, knob));
    if response.has_focus() {
        ui.painter()
            .rect_stroke(track.expand(2.0), 10, Stroke::new(1.5, p.accent), StrokeKind::Inside);
    }
    response
}

/// A thin bar that is filled to `share`; a gauge. `parts` are (share, colour), left to right.
pub fn bar(ui: &mut Ui, size: egui::Vec2, parts: &[(f32, Color32)], name: &str) -> Response {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(size, Sense::hover());
    let total: f32 = parts.iter().map(|(s, _)| s).sum();
    response.widget_info(|| {
        let mut info = WidgetInfo::labeled(Role::ProgressIndicator, true, name);
        info.value = Some(f64::from(total));
        info
    });
    paint_bar(ui, rect, parts, p.line);
    response
}

/// Paints a bar into `rect`.
pub fn paint_bar(ui: &Ui, rect: egui::Rect, parts: &[(f32, Color32)], track: Color32) {
    let r = (rect.height() / 2.0).min(3.0) as u8;
    ui.painter().rect_filled(rect, r, track);
    let mut x = rect.left();
    for (share, color) in parts {
        let width = (share.clamp(0.0, 1.0) * rect.width()).min(rect.right() - x);
        if width > 0.0 {
            let part = egui::Rect::from_min_size(pos2(x, rect.top()), vec2(width, rect.height()));
            ui.painter().rect_filled(part, CornerRadius::same(r), *color);
            x += width;
        }
    }
}

/// A shortcut as keys: `Ctrl K`.
pub fn keys(ui: &mut Ui, shortcut: &egui::KeyboardShortcut) -> Response {
    let p = Palette::of(ui);
    let text = ui.ctx().format_shortcut(shortcut);
    ui.label(RichText::new(text).font(theme::mono_caption()).color(p.faint))
}

/// A card on the canvas.
pub fn card<R>(ui: &mut Ui, content: impl FnOnce(&mut Ui) -> R) -> egui::InnerResponse<R> {
    let p = Palette::of(ui);
    egui::Frame::new()
        .fill(p.panel)
        .stroke(Stroke::new(theme::LINE, p.line))
        .corner_radius(theme::RADIUS + 2)
        .inner_margin(16)
        .show(ui, content)
}

/// A slim strip across the window, with an icon in its colour.
pub fn strip<R>(ui: &mut Ui, icon: &str, color: Color32, content: impl FnOnce(&mut Ui) -> R) -> R {
    let p = Palette::of(ui);
    egui::Frame::new()
        .fill(theme::mix(p.panel, color, 0.10))
        .inner_margin(egui::Margin::symmetric(12, 4))
        .show(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.horizontal(|ui| {
                ui.label(RichText::new(icon).size(15.0).color(color));
                content(ui)
            })
            .inner
        })
        .inner
}
