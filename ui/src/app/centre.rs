//! The centre: tiles.

use egui::{Color32, RichText, Sense, Stroke, Ui, Visuals, vec2};
use egui_tiles::{Container, ResizeState, SimplificationOptions, TabState, Tile, TileId, Tiles, UiResponse};

use super::{App, Views, side};
use crate::icons;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls::icon_button;

pub(super) fn show(app: &mut App, ui: &mut Ui) {
    let p = Palette::of(ui);
    egui::CentralPanel::no_frame()
        .frame(egui::Frame::new().fill(p.line))
        .show(ui, |ui| {
            let mut tiles = Vec::new();
            let narrow = app.narrow;
            let (views, layout, cx) = app.parts();
            // A small window has room for one panel: the enlarged one, or the main one of the workspace.
            let main = layout.workspace.main().to_string();
            let alone = narrow && layout.full.is_none() && views.contains_key(main.as_str());
            let tabbed = in_tab_bars(&layout.tree_mut().tiles);
            let mut behavior = Behavior {
                tabbed,
                views,
                cx,
                tiles: &mut tiles,
                full: if alone { Some(main) } else { layout.full.clone() },
                close: None,
                alone,
            };
            if let Some(full) = behavior.full.clone() {
                // Nothing is dragged out of an enlarged panel.
                let _ = behavior.pane(ui, &full, false);
            } else {
                layout.tree_mut().ui(&mut behavior, ui);
            }
            let (now_full, close) = (behavior.full.take(), behavior.close.take());
            if !alone {
                layout.full = now_full;
            }
            if let Some(id) = close {
                layout.tree_mut().set_visible(id, false);
            }
            for (id, rect) in tiles {
                app.anchors.insert(id, rect);
            }
        });
}

/// The panes that stand in tab bars.
fn in_tab_bars(tiles: &Tiles<String>) -> Vec<TileId> {
    let bars = tiles.iter().filter_map(|(_, tile)| match tile {
        Tile::Container(Container::Tabs(tabs)) => Some(tabs.children.clone()),
        _ => None,
    });
    bars.flatten().collect()
}

/// Width of a panel below which its title row has no title.
const SHORT: f32 = 240.0;

/// Space at both sides of a tab's title.
const TAB_SPACE: f32 = 8.0;

struct Behavior<'a, 'b> {
    /// Panes in tab bars: they leave their title to it.
    tabbed: Vec<TileId>,
    views: &'a mut Views,
    cx: Context<'b>,
    tiles: &'a mut Vec<(&'static str, egui::Rect)>,
    full: Option<String>,
    close: Option<TileId>,
    /// The panel is alone because the window is small.
    alone: bool,
}

impl Behavior<'_, '_> {
    /// Title row and content of a pane. `tabbed`: its title stands in a tab above already.
    fn pane(&mut self, ui: &mut Ui, pane: &str, tabbed: bool) -> UiResponse {
        let p = Palette::of(ui);
        let whole = ui.max_rect();
        ui.painter().rect_filled(whole, 0, p.panel);
        let mut response = UiResponse::None;
        let full = self.full.as_deref() == Some(pane);
        let Some(slot) = self.views.get_mut(pane) else {
            return response;
        };
        self.tiles.push((slot.view.id(), whole));
        ui.spacing_mut().item_spacing.y = 0.0;
        if !tabbed {
            let row = egui::Layout::left_to_right(egui::Align::Center);
            ui.allocate_ui_with_layout(vec2(ui.available_width(), side::TITLE), row, |ui| {
                ui.set_min_height(side::TITLE);
                ui.add_space(theme::PAD);
                // Tools need the whole row where it is short.
                if whole.width() >= SHORT {
                    let title = egui::Label::new(RichText::new(slot.view.title()).font(theme::strong()));
                    let handle = ui.add(title.sense(Sense::click_and_drag()));
                    let handle = handle.on_hover_cursor(egui::CursorIcon::Grab);
                    if handle.drag_started() && !full {
                        response = UiResponse::DragStarted;
                    }
                    if handle.double_clicked() && !self.alone {
                        self.full = if full { None } else { Some(pane.to_string()) };
                    }
                }
                ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
                    ui.spacing_mut().item_spacing.x = 2.0;
                    ui.add_space(4.0);
                    let hot = ui.rect_contains_pointer(whole) || full;
                    ui.scope(|ui| {
                        if self.alone {
                            return;
                        }
                        if !hot {
                            ui.multiply_opacity(0.0);
                        }
                        let (icon, verb) = if full {
                            (icons::ARROWS_IN, "Restore")
                        } else {
                            (icons::ARROWS_OUT, "Enlarge")
                        };
                        if icon_button(ui, icon, &format!("{verb} {}", slot.view.title())).clicked() {
                            self.full = if full { None } else { Some(pane.to_string()) };
                        }
                    });
                    slot.view.toolbar(&mut self.cx, ui);
                });
            });
        }
        ui.spacing_mut().item_spacing.y = theme::GRID;
        ui.scope(|ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(whole));
            slot.show(&mut self.cx, ui);
        });
        response
    }
}

impl egui_tiles::Behavior<String> for Behavior<'_, '_> {
    fn pane_ui(&mut self, ui: &mut Ui, tile: TileId, pane: &mut String) -> UiResponse {
        let tabbed = self.tabbed.contains(&tile);
        self.pane(ui, pane, tabbed)
    }

    fn tab_title_for_pane(&mut self, pane: &String) -> egui::WidgetText {
        self.views.get(pane.as_str()).map_or("", |s| s.view.title()).into()
    }

    fn retain_pane(&mut self, pane: &String) -> bool {
        self.views.contains_key(pane.as_str())
    }

    fn top_bar_right_ui(
        &mut self,
        tiles: &Tiles<String>,
        ui: &mut Ui,
        _tile: TileId,
        tabs: &egui_tiles::Tabs,
        _scroll: &mut f32,
    ) {
        // The tools of the pane that is shown, in the room that the tabs leave.
        let titles = tabs.children.iter().filter_map(|id| match tiles.get(*id) {
            Some(Tile::Pane(pane)) => self.views.get(pane.as_str()).map(|s| s.view.title()),
            _ => None,
        });
        let wide = |title: &str| {
            let galley = ui
                .painter()
                .layout_no_wrap(title.into(), theme::strong(), Color32::PLACEHOLDER);
            galley.size().x + 2.0 * TAB_SPACE
        };
        let room = ui.available_width() - titles.map(wide).sum::<f32>() - theme::PAD;
        let Some(Tile::Pane(pane)) = tabs.active.and_then(|t| tiles.get(t)) else {
            return;
        };
        let Some(slot) = self.views.get_mut(pane.as_str()) else {
            return;
        };
        let row = egui::Layout::right_to_left(egui::Align::Center);
        ui.allocate_ui_with_layout(vec2(room.max(side::TITLE), ui.available_height()), row, |ui| {
            ui.spacing_mut().item_spacing.x = 2.0;
            ui.add_space(4.0);
            let name = format!("Enlarge {}", slot.view.title());
            if icon_button(ui, icons::ARROWS_OUT, &name).clicked() {
                self.full = Some(pane.clone());
            }
            slot.view.toolbar(&mut self.cx, ui);
        });
    }

    fn tab_title_spacing(&self, _visuals: &Visuals) -> f32 {
        TAB_SPACE
    }

    fn tab_bar_height(&self, _style: &egui::Style) -> f32 {
        side::TITLE
    }

    fn gap_width(&self, _style: &egui::Style) -> f32 {
        theme::LINE
    }

    fn min_size(&self) -> f32 {
        80.0
    }

    fn simplification_options(&self) -> SimplificationOptions {
        SimplificationOptions {
            all_panes_must_have_tabs: false,
            ..Default::default()
        }
    }

    fn resize_stroke(&self, style: &egui::Style, state: ResizeState) -> Stroke {
        let p = Palette::for_dark(style.visuals.dark_mode);
        match state {
            ResizeState::Idle => Stroke::NONE,
            ResizeState::Hovering => Stroke::new(2.0, theme::mix(p.line, p.accent, 0.6)),
            ResizeState::Dragging => Stroke::new(2.0, p.accent),
        }
    }

    fn tab_bar_color(&self, visuals: &Visuals) -> Color32 {
        Palette::for_dark(visuals.dark_mode).panel
    }

    fn tab_bg_color(&self, _visuals: &Visuals, _tiles: &Tiles<String>, _tile: TileId, _state: &TabState) -> Color32 {
        Color32::TRANSPARENT
    }

    fn tab_outline_stroke(&self, _v: &Visuals, _t: &Tiles<String>, _tile: TileId, _state: &TabState) -> Stroke {
        Stroke::NONE
    }

    fn tab_bar_hline_stroke(&self, _visuals: &Visuals) -> Stroke {
        Stroke::NONE
    }

    fn tab_text_color(&self, visuals: &Visuals, _t: &Tiles<String>, _tile: TileId, state: &TabState) -> Color32 {
        let p = Palette::for_dark(visuals.dark_mode);
        if state.active { p.text } else { p.secondary }
    }

    fn drag_preview_color(&self, visuals: &Visuals) -> Color32 {
        Palette::for_dark(visuals.dark_mode).accent.gamma_multiply(0.25)
    }

    fn drag_preview_stroke(&self, visuals: &Visuals) -> Stroke {
        Stroke::new(1.5, Palette::for_dark(visuals.dark_mode).accent)
    }
}
