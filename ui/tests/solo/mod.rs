//! One view alone in the window.
#![allow(dead_code, reason = "each test file uses its share")]

use egui_kittest::kittest::Queryable;
use egui_tiles::{Tiles, Tree};

use super::common::{Desk, Look, desk};
use ui::testing::Scene;

/// A window of that size that shows one view and nothing else.
pub fn solo(scene: Scene, view: &str, size: [f32; 2], dark: bool) -> Desk {
    let look = Look {
        size,
        dark,
        ..Look::default()
    };
    solo_as(scene, view, look)
}

/// The same with a zoom.
pub fn solo_as(scene: Scene, view: &str, look: Look) -> Desk {
    let mut d = desk(scene, look);
    alone(&mut d, view);
    d
}

/// Leaves one view in the window.
pub fn alone(d: &mut Desk, view: &str) {
    // A small window shows one panel: the enlarged one, else the main one of its workspace.
    let narrow = d.harness.ctx.content_rect().width() < 760.0;
    let Some(app) = d.harness.state_mut() else { return };
    app.layout.full = narrow.then(|| view.to_string());
    app.layout.left = false;
    app.layout.right = false;
    app.layout.bottom = false;
    let mut tiles = Tiles::default();
    let root = tiles.insert_pane(view.to_string());
    *app.layout.tree_mut() = Tree::new(egui::Id::unique("solo"), root, tiles);
    d.frames(6);
}

/// Clicks the widget with this name.
pub fn click(d: &mut Desk, name: &str) {
    d.harness.get_by_label(name).click();
    d.frames(4);
}

/// Moves the pointer onto the widget with this name.
pub fn hover(d: &mut Desk, name: &str) {
    d.harness.get_by_label(name).hover();
    d.frames(8);
}
