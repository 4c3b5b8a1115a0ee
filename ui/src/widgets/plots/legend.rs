//! Legends in title rows: as much as fits.

use egui::{Color32, Ui, vec2};

use super::pointer::dot;
use crate::fmt::Figure;
use crate::theme::{self, Palette};

/// A line of a legend.
#[derive(Clone, Debug)]
pub struct LegendItem {
    /// Name.
    pub name: String,
    /// Colour of its dot.
    pub color: Color32,
    /// Value under the cursor, or the last one.
    pub value: Option<Figure>,
}

impl LegendItem {
    /// A line with a value.
    pub fn new(name: impl Into<String>, color: Color32, value: Option<Figure>) -> Self {
        Self {
            name: name.into(),
            color,
            value,
        }
    }
}

/// What fits of a legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Full,
    Values,
    Dots,
}

const GAP: f32 = 10.0;

/// Shows a legend in a right-to-left title row: dots, names and values if there is room, else dots and values, else
/// dots whose names are in their tooltips.
pub fn legend(ui: &mut Ui, items: &[LegendItem]) {
    let p = Palette::of(ui);
    let width = |form: Form| items.iter().map(|i| item_width(ui, i, form)).sum::<f32>();
    let room = ui.available_width() - 2.0 * theme::PAD;
    let fits = [Form::Full, Form::Values].into_iter().find(|f| width(*f) <= room);
    // Of two lines, the first in full says more than two dots.
    let first = || items.len() == 2 && item_width(ui, &items[0], Form::Full) <= room;
    let (form, items) = match fits {
        Some(form) => (form, items),
        None if first() => (Form::Full, &items[..1]),
        None if width(Form::Dots) <= room => (Form::Dots, items),
        None => return,
    };
    ui.add_space(theme::GRID);
    ui.spacing_mut().item_spacing.x = 0.0;
    for item in items.iter().rev() {
        let figure = item.value.as_ref().filter(|_| form != Form::Dots);
        // Title rows run from right to left; an item reads from left to right.
        let size = vec2(item_width(ui, item, form) - GAP, ui.available_height());
        let row = egui::Layout::left_to_right(egui::Align::Center);
        let response = ui.allocate_ui_with_layout(size, row, |ui| {
            ui.spacing_mut().item_spacing.x = 4.0;
            let mut response = dot(ui, item.color);
            if form == Form::Full {
                response |= ui.label(
                    egui::RichText::new(&item.name)
                        .font(theme::caption())
                        .color(p.secondary),
                );
            }
            if let Some(figure) = figure {
                response |= ui.label(figure.job(p, theme::mono_caption(), p.text));
            }
            response
        });
        let text = match &item.value {
            Some(v) => format!("{} {}", item.name, v.plain()),
            None => item.name.clone(),
        };
        response.inner.on_hover_text(text);
        ui.allocate_exact_size(vec2(GAP, 1.0), egui::Sense::hover());
    }
}

fn item_width(ui: &Ui, item: &LegendItem, form: Form) -> f32 {
    let measure = |text: String, font| ui.painter().layout_no_wrap(text, font, Color32::WHITE).size().x;
    let mut width = 8.0 + GAP;
    if form == Form::Full {
        width += 4.0 + measure(item.name.clone(), theme::caption());
    }
    if let (Some(value), true) = (&item.value, form != Form::Dots) {
        width += 4.0 + measure(value.plain(), theme::mono_caption());
    }
    width
}

/// A small choice in a title row: the current name with a caret, the others in a menu. True if it changed.
pub fn choice<T: Copy + PartialEq>(ui: &mut Ui, name: &str, current: &mut T, all: &[(T, &str)]) -> bool {
    let p = Palette::of(ui);
    let shown = all.iter().find(|(v, _)| v == current).map_or("", |(_, n)| n);
    let mut changed = false;
    let text = egui::RichText::new(format!("{shown} {}", crate::icons::CARET_DOWN))
        .font(theme::caption())
        .color(p.secondary);
    let button = egui::Button::new(text).frame(false).small();
    let menu = egui::containers::menu::MenuButton::from_button(button).ui(ui, |ui| {
        for (value, text) in all {
            if ui.selectable_label(value == current, *text).clicked() {
                changed |= value != current;
                *current = *value;
            }
        }
    });
    menu.0.accessible_name(format!("{name}: {shown}"));
    changed
}

/// A faint remark in a title row, left out where there is no room for it.
pub fn remark(ui: &mut Ui, text: &str) {
    let p = Palette::of(ui);
    let galley = ui.painter().layout_no_wrap(text.to_string(), theme::caption(), p.faint);
    if galley.size().x + 2.0 * theme::PAD < ui.available_width() {
        ui.add_space(theme::GRID);
        ui.label(galley);
    }
}
