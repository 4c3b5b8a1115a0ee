//! The grid: a row per layer, a column per slot. Thousands of layers stay cheap: only visible rows are made.

use std::collections::BTreeSet;

use egui::{Align2, Rect, Role, Sense, Stroke, StrokeKind, WidgetInfo, pos2, vec2};
use protocol::{ChoiceView, LoadedModel, RecipeView, SlotView};

use super::pick::{self, Pick};
use crate::selection::Spot;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::plots::elided;

const ROW: f32 = 23.0;
/// Width of the layer's name.
const NAME: f32 = 74.0;

struct Table<'a> {
    model: &'a LoadedModel,
    recipe: &'a RecipeView,
    slots: Vec<&'a SlotView>,
    changed: BTreeSet<(String, u32)>,
    /// Left edge and width per column.
    columns: Vec<(f32, f32)>,
}

/// Shows the grid and changes the pick.
pub(super) fn show(
    cx: &mut Context<'_>,
    ui: &mut egui::Ui,
    model: &LoadedModel,
    recipe: &RecipeView,
    pick: &mut Pick,
    dragging: &mut bool,
) {
    let slots: Vec<&SlotView> = model.slots.iter().filter(|s| s.per_layer).collect();
    let width = (ui.available_width() - NAME - theme::PAD - theme::GRID) / slots.len().max(1) as f32;
    let left = ui.max_rect().left() + theme::PAD + NAME;
    let columns = (0..slots.len())
        .map(|i| (left + i as f32 * width, width.min(180.0)))
        .collect::<Vec<_>>();
    // Columns stay together where there is more room than they need.
    let columns: Vec<(f32, f32)> = columns
        .iter()
        .enumerate()
        .map(|(i, (_, w))| (left + i as f32 * w, *w))
        .collect();
    let table = Table {
        model,
        recipe,
        slots,
        changed: pick::changed(recipe),
        columns,
    };
    if !ui.input(|i| i.pointer.primary_down()) {
        *dragging = false;
    }
    table.header(ui, pick);
    let others: Vec<&SlotView> = model.slots.iter().filter(|s| !s.per_layer).collect();
    let rows = recipe.layers.len();
    // One list: where there is little room, layers come first and the model's slots are reached by scrolling.
    egui::ScrollArea::vertical()
        .id_salt("layers")
        .auto_shrink([false, true])
        .show_rows(ui, ROW, rows + others.len(), |ui, range| {
            ui.spacing_mut().item_spacing.y = 0.0;
            for row in range {
                let Some(slot) = row.checked_sub(rows).and_then(|i| others.get(i)) else {
                    table.layer(cx, ui, row as u32, pick, dragging);
                    continue;
                };
                if row == rows {
                    let edge = ui.available_rect_before_wrap();
                    let line = Stroke::new(theme::LINE, Palette::of(ui).line);
                    ui.painter().hline(edge.x_range(), edge.top(), line);
                }
                table.model_slot(ui, slot, pick);
            }
        });
}

/// Short name of a kind of attention.
pub fn kind_word(kind: &str) -> &str {
    match kind {
        "sliding" => "SWA",
        "csa" => "CSA",
        "hca" => "HCA",
        "dense" => "dense",
        other => other,
    }
}

impl Table<'_> {
    fn header(&self, ui: &mut egui::Ui, pick: &mut Pick) {
        let p = Palette::of(ui);
        let (row, _) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::hover());
        let at = pos2(row.left() + theme::PAD, row.center().y);
        ui.painter()
            .text(at, Align2::LEFT_CENTER, "layer", theme::caption(), p.faint);
        for (slot, (x, width)) in self.slots.iter().zip(&self.columns) {
            let rect = Rect::from_min_size(pos2(*x, row.top()), vec2(*width, ROW));
            let id = ui.make_persistent_id(("column", &slot.name));
            let fixed = !slot.fixed.is_empty();
            let response = ui.interact(rect, id, if fixed { Sense::hover() } else { Sense::click() });
            response.widget_info(|| WidgetInfo::labeled(Role::ColumnHeader, !fixed, &slot.name));
            let ink = if response.hovered() && !fixed {
                p.text
            } else {
                p.secondary
            };
            let galley = elided(ui, &slot.name, theme::caption(), ink, width - 8.0);
            ui.painter().galley(
                pos2(rect.left() + 6.0, rect.center().y - galley.size().y * 0.5),
                galley,
                ink,
            );
            if response.clicked() {
                pick.whole(slot);
            }
            let about = if fixed {
                slot.fixed.clone()
            } else {
                format!("{}: click chooses all layers", slot.name)
            };
            response.on_hover_text(about);
        }
    }

    fn layer(&self, cx: &mut Context<'_>, ui: &mut egui::Ui, layer: u32, pick: &mut Pick, dragging: &mut bool) {
        let p = Palette::of(ui);
        let (row, _) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::hover());
        let hovered = ui.rect_contains_pointer(row);
        if hovered {
            cx.hover(Spot::layer(layer));
        }
        if hovered || cx.shown().layer == Some(layer) {
            ui.painter().rect_filled(row, 0.0, p.hover.gamma_multiply(0.6));
        }
        let facts = self.model.facts.layers.get(layer as usize);
        let name = Rect::from_min_size(pos2(row.left() + theme::PAD, row.top()), vec2(NAME, ROW));
        let response = ui.interact(name, ui.make_persistent_id(("layer", layer)), Sense::click());
        response.widget_info(|| WidgetInfo::labeled(Role::RowHeader, true, format!("layer {layer}")));
        ui.painter().text(
            name.left_center() + vec2(22.0, 0.0),
            Align2::RIGHT_CENTER,
            layer,
            theme::mono(),
            p.text,
        );
        let kind = facts.map_or("", |f| kind_word(&f.attention));
        ui.painter().text(
            name.left_center() + vec2(30.0, 0.0),
            Align2::LEFT_CENTER,
            kind,
            theme::mono_caption(),
            p.faint,
        );
        if response.clicked() {
            cx.selection.click(Spot::layer(layer));
        }
        if let Some(f) = facts {
            response.on_hover_text(format!("layer {layer}: {}; {}", f.attention_name, f.ffn_name));
        }
        for (slot, (x, width)) in self.slots.iter().zip(&self.columns) {
            let cell = Rect::from_min_size(pos2(*x, row.top()), vec2(*width, ROW));
            self.cell(ui, slot, layer, cell, pick, dragging);
        }
    }

    fn cell(&self, ui: &mut egui::Ui, slot: &SlotView, layer: u32, cell: Rect, pick: &mut Pick, dragging: &mut bool) {
        let Some(choice) = pick::choice_of(self.recipe, &slot.name, layer) else {
            return;
        };
        let changed = self.changed.contains(&(slot.name.clone(), layer));
        let chosen = pick.has(&slot.name, layer);
        let id = ui.make_persistent_id(("cell", &slot.name, layer));
        let fixed = !slot.fixed.is_empty();
        let response = ui.interact(cell, id, if fixed { Sense::hover() } else { Sense::click_and_drag() });
        let label = format!(
            "layer {layer} {}: {choice}{}",
            slot.name,
            if changed { ", changed" } else { "" }
        );
        response.widget_info(|| WidgetInfo::selected(Role::Cell, !fixed, chosen, &label));
        paint_choice(ui, cell, choice, changed, chosen, fixed, response.hovered());
        if fixed {
            response.on_hover_text(&slot.fixed);
            return;
        }
        let modifiers = ui.input(|i| i.modifiers);
        if response.drag_started() {
            pick.click(&slot.name, layer, modifiers.command, modifiers.shift, &slot.layers);
            *dragging = true;
        } else if response.clicked() {
            pick.click(&slot.name, layer, modifiers.command, modifiers.shift, &slot.layers);
        }
        let under = ui
            .input(|i| i.pointer.latest_pos())
            .is_some_and(|at| cell.y_range().contains(at.y));
        if *dragging && under && pick.slot.as_deref() == Some(&slot.name) {
            pick.reach(layer, &slot.layers);
        }
    }

    fn model_slot(&self, ui: &mut egui::Ui, slot: &SlotView, pick: &mut Pick) {
        let p = Palette::of(ui);
        let (row, _) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::hover());
        let split = (row.width() * 0.45).clamp(100.0, 160.0);
        let galley = elided(ui, &slot.name, theme::caption(), p.secondary, split - theme::PAD);
        ui.painter().galley(
            pos2(row.left() + theme::PAD, row.center().y - galley.size().y * 0.5),
            galley,
            p.secondary,
        );
        let cell = Rect::from_min_max(
            pos2(row.left() + split + 6.0, row.top()),
            pos2(row.right() - theme::GRID, row.bottom()),
        );
        let own = ChoiceView {
            variant: slot.variants.first().map(|v| v.name.clone()).unwrap_or_default(),
            options: Vec::new(),
        };
        let choice = pick::model_choice(self.recipe, &slot.name).unwrap_or(&own);
        let fixed = !slot.fixed.is_empty();
        let changed = self.changed.contains(&(slot.name.clone(), 0));
        let chosen = pick.slot.as_deref() == Some(&slot.name);
        let id = ui.make_persistent_id(("model slot", &slot.name));
        let response = ui.interact(cell, id, if fixed { Sense::hover() } else { Sense::click() });
        response.widget_info(|| WidgetInfo::selected(Role::Cell, !fixed, chosen, format!("{}: {choice}", slot.name)));
        paint_choice(ui, cell, choice, changed, chosen, fixed, response.hovered());
        if response.clicked() {
            pick.whole(slot);
        }
        if fixed {
            response.on_hover_text(&slot.fixed);
        }
    }
}

fn paint_choice(
    ui: &egui::Ui,
    cell: Rect,
    choice: &ChoiceView,
    changed: bool,
    chosen: bool,
    fixed: bool,
    hovered: bool,
) {
    let p = Palette::of(ui);
    let inner = cell.shrink2(vec2(1.5, 1.5));
    let fill = match (chosen, hovered && !fixed, changed) {
        (true, ..) => p.selected,
        (false, true, _) => p.hover,
        (false, false, true) => theme::mix(p.panel, p.accent, 0.12),
        _ => egui::Color32::TRANSPARENT,
    };
    let frame = if chosen { p.accent } else { p.line.gamma_multiply(0.7) };
    ui.painter()
        .rect(inner, 3, fill, Stroke::new(theme::LINE, frame), StrokeKind::Inside);
    let ink = match (fixed, changed) {
        (true, _) => p.faint,
        (false, true) => p.accent,
        _ => p.text,
    };
    let galley = elided(ui, &choice.to_string(), theme::mono_caption(), ink, inner.width() - 8.0);
    ui.painter().galley(
        pos2(inner.left() + 5.0, inner.center().y - galley.size().y * 0.5),
        galley,
        ink,
    );
}
