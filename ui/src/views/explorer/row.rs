//! A row of a tree: indented, with a caret where it can be opened.

use egui::{Align2, Id, Rect, Response, Role, Sense, Ui, WidgetInfo, pos2, vec2};

use crate::icons;
use crate::theme::{self, Palette};

/// Height.
pub(super) const ROW: f32 = 22.0;
/// Indentation per level.
pub(super) const STEP: f32 = 14.0;
/// Width of the caret.
const CARET: f32 = 16.0;

/// What a row says about itself.
pub(super) struct Row<'a> {
    /// Unique within the tree.
    pub id: Id,
    /// Level, 0 for the root.
    pub depth: u8,
    /// Whether it is open; `None` = there is nothing in it.
    pub open: Option<bool>,
    /// Chosen.
    pub selected: bool,
    /// Highlighted from elsewhere.
    pub lit: bool,
    /// For people who do not see it.
    pub name: &'a str,
    /// Left edge of level 0, from the left edge of the row.
    pub left: f32,
}

/// What happened to a row.
pub(super) struct Shown {
    /// The whole row.
    pub response: Response,
    /// Room for its content.
    pub content: Rect,
    /// It was opened or closed by its caret: what it is to be now.
    pub turned: Option<bool>,
}

impl Row<'_> {
    /// Draws background and caret; the content is the caller's affair.
    pub fn show(&self, ui: &mut Ui) -> Shown {
        let p = Palette::of(ui);
        let (rect, _) = ui.allocate_exact_size(vec2(ui.available_width(), ROW), Sense::hover());
        let response = ui.interact(rect, self.id, Sense::click());
        response.widget_info(|| WidgetInfo::selected(Role::TreeItem, true, self.selected, self.name));
        if let Some(open) = self.open {
            ui.ctx().accesskit_node_builder(self.id, |node| node.set_expanded(open));
        }
        let fill = match (self.selected, response.hovered() || self.lit) {
            (true, _) => p.selected,
            (false, true) => p.hover,
            _ => egui::Color32::TRANSPARENT,
        };
        ui.painter().rect_filled(rect, 0.0, fill);
        crate::widgets::controls::focus_ring(ui, &response, rect);
        let left = rect.left() + self.left + f32::from(self.depth) * STEP;
        let caret = Rect::from_min_size(pos2(left, rect.top()), vec2(CARET, ROW));
        let mut turned = None;
        if let Some(open) = self.open {
            let icon = if open { icons::CARET_DOWN } else { icons::CARET_RIGHT };
            let ink = if response.hovered() { p.text } else { p.faint };
            ui.painter()
                .text(caret.center(), Align2::CENTER_CENTER, icon, theme::caption(), ink);
            let on_caret = response.interact_pointer_pos().is_some_and(|at| at.x < caret.right());
            if response.clicked() && on_caret {
                turned = Some(!open);
            }
        }
        let content = Rect::from_min_max(pos2(caret.right() + 2.0, rect.top()), rect.max - vec2(theme::PAD, 0.0));
        Shown {
            response,
            content,
            turned,
        }
    }
}
