//! Where views stand: four workspaces of tiles, and the regions around them.

use std::collections::BTreeMap;

use egui_tiles::{Container, Linear, LinearDir, Tabs, Tile, TileId, Tiles, Tree};
use serde::{Deserialize, Serialize};

/// A workspace: one arrangement of the centre.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Workspace {
    /// Writing, with live charts.
    #[default]
    Generate,
    /// Looking inside.
    Inspect,
    /// A against B.
    Compare,
    /// Time per op, speed.
    Bench,
}

impl Workspace {
    /// All in order.
    pub const ALL: [Self; 4] = [Self::Generate, Self::Inspect, Self::Compare, Self::Bench];

    /// Title.
    pub fn title(self) -> &'static str {
        match self {
            Self::Generate => "Generate",
            Self::Inspect => "Inspect",
            Self::Compare => "Compare",
            Self::Bench => "Bench",
        }
    }

    /// The view that stands for the workspace where there is room for one.
    pub fn main(self) -> &'static str {
        match self {
            Self::Generate => "generate",
            Self::Inspect => "inspect.attention",
            Self::Compare => "compare",
            Self::Bench => "telemetry.speed",
        }
    }

    /// What stands where at first: views that do not exist are left out.
    fn places(self) -> Place {
        use Place::{Across, Down, Tabbed};
        match self {
            Self::Generate => Down(vec![
                (1.0, Place::View("generate")),
                (
                    1.0,
                    Down(vec![
                        (
                            1.0,
                            Across(vec![
                                (1.0, Place::View("telemetry.speed")),
                                (1.0, Place::View("telemetry.kv")),
                                (1.0, Tabbed(vec!["telemetry.sparsity", "telemetry.error"])),
                            ]),
                        ),
                        (
                            1.0,
                            Across(vec![
                                (1.0, Place::View("telemetry.experts")),
                                (2.0, Tabbed(vec!["telemetry.heatmap", "blocks"])),
                            ]),
                        ),
                    ]),
                ),
            ]),
            Self::Inspect => Tabbed(vec![
                "inspect.attention",
                "inspect.rows",
                "inspect.router",
                "explorer.plan",
                "explorer.tensor",
            ]),
            Self::Compare => Place::View("compare"),
            Self::Bench => Down(vec![
                (
                    1.0,
                    Across(vec![
                        (1.0, Place::View("telemetry.speed")),
                        (1.0, Place::View("telemetry.memory")),
                    ]),
                ),
                (2.0, Place::View("explorer.plan")),
            ]),
        }
    }
}

/// Views of the left region, as tabs.
pub const LEFT: [&str; 2] = ["explorer", "blocks"];
/// The view of the right region.
pub const RIGHT: &str = "token";

enum Place {
    View(&'static str),
    Across(Vec<(f32, Place)>),
    Down(Vec<(f32, Place)>),
    Tabbed(Vec<&'static str>),
}

impl Place {
    fn build(&self, tiles: &mut Tiles<String>, known: &dyn Fn(&str) -> bool) -> Option<TileId> {
        match self {
            Place::View(id) => known(id).then(|| tiles.insert_pane((*id).to_string())),
            Place::Tabbed(ids) => {
                let panes: Vec<TileId> = ids
                    .iter()
                    .filter(|id| known(id))
                    .map(|id| tiles.insert_pane((*id).to_string()))
                    .collect();
                match panes.as_slice() {
                    [] => None,
                    [one] => Some(*one),
                    _ => Some(tiles.insert_container(Container::Tabs(Tabs::new(panes)))),
                }
            }
            Place::Across(parts) => Self::linear(LinearDir::Horizontal, parts, tiles, known),
            Place::Down(parts) => Self::linear(LinearDir::Vertical, parts, tiles, known),
        }
    }

    fn linear(
        dir: LinearDir,
        parts: &[(f32, Place)],
        tiles: &mut Tiles<String>,
        known: &dyn Fn(&str) -> bool,
    ) -> Option<TileId> {
        let children: Vec<(f32, TileId)> = parts
            .iter()
            .filter_map(|(share, p)| p.build(tiles, known).map(|id| (*share, id)))
            .collect();
        if let [(_, one)] = children.as_slice() {
            return Some(*one);
        }
        if children.is_empty() {
            return None;
        }
        let mut linear = Linear::new(dir, children.iter().map(|(_, id)| *id).collect());
        for (share, id) in children {
            linear.shares.set_share(id, share);
        }
        Some(tiles.insert_container(Container::Linear(linear)))
    }
}

/// The whole arrangement; saved in the settings as JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    /// Shown workspace.
    pub workspace: Workspace,
    /// Left region shown.
    pub left: bool,
    /// Tab of the left region.
    pub left_tab: String,
    /// Right region shown.
    pub right: bool,
    /// Bottom region shown.
    pub bottom: bool,
    /// A view that fills the centre for now.
    pub full: Option<String>,
    trees: BTreeMap<Workspace, Tree<String>>,
}

impl Layout {
    /// The first arrangement, of the views that exist.
    pub fn new(known: &dyn Fn(&str) -> bool) -> Self {
        let trees = Workspace::ALL.iter().map(|w| (*w, first_tree(*w, known))).collect();
        Self {
            workspace: Workspace::Generate,
            left: true,
            left_tab: LEFT[0].to_string(),
            right: true,
            bottom: true,
            full: None,
            trees,
        }
    }

    /// A saved arrangement; views that no longer exist are dropped.
    pub fn load(json: &str, known: &dyn Fn(&str) -> bool) -> Option<Self> {
        let mut layout: Self = serde_json::from_str(json).ok()?;
        for workspace in Workspace::ALL {
            let tree = layout
                .trees
                .entry(workspace)
                .or_insert_with(|| first_tree(workspace, known));
            let gone: Vec<TileId> = tree
                .tiles
                .iter()
                .filter(|(_, t)| matches!(t, Tile::Pane(id) if !known(id)))
                .map(|(id, _)| *id)
                .collect();
            for id in gone {
                tree.remove_recursively(id);
            }
        }
        if layout.full.as_ref().is_some_and(|f| !known(f)) {
            layout.full = None;
        }
        Some(layout)
    }

    /// For the settings.
    pub fn save(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Tiles of the shown workspace.
    pub fn tree_mut(&mut self) -> &mut Tree<String> {
        let workspace = self.workspace;
        self.trees
            .entry(workspace)
            .or_insert_with(|| Tree::empty(tree_id(workspace)))
    }

    /// Whether the shown workspace has a view.
    pub fn has(&self, view: &str) -> bool {
        self.trees.get(&self.workspace).is_some_and(|t| {
            t.tiles
                .iter()
                .any(|(id, tile)| t.is_visible(*id) && matches!(tile, Tile::Pane(p) if p == view))
        })
    }

    /// Brings a view to the front: in the shown workspace if it has it, else in one that has it, else added.
    pub fn show(&mut self, view: &str) {
        if view == RIGHT {
            self.right = true;
            return;
        }
        self.full = None;
        let here = std::iter::once(self.workspace);
        let order: Vec<Workspace> = here
            .chain(Workspace::ALL.into_iter().filter(|w| *w != self.workspace))
            .collect();
        for workspace in order {
            let Some(tree) = self.trees.get_mut(&workspace) else {
                continue;
            };
            let found = tree
                .tiles
                .iter()
                .find(|(_, t)| matches!(t, Tile::Pane(p) if p == view))
                .map(|(id, _)| *id);
            if let Some(id) = found {
                tree.set_visible(id, true);
                tree.make_active(|t, _| t == id);
                self.workspace = workspace;
                return;
            }
        }
        if LEFT.contains(&view) {
            self.left = true;
            self.left_tab = view.to_string();
            return;
        }
        let tree = self.tree_mut();
        let pane = tree.tiles.insert_pane(view.to_string());
        match tree.root() {
            Some(root) => {
                let both = tree
                    .tiles
                    .insert_container(Container::Linear(Linear::new(LinearDir::Vertical, vec![root, pane])));
                tree.root = Some(both);
            }
            None => tree.root = Some(pane),
        }
    }
}

fn tree_id(workspace: Workspace) -> egui::Id {
    egui::Id::unique(("tiles", workspace))
}

fn first_tree(workspace: Workspace, known: &dyn Fn(&str) -> bool) -> Tree<String> {
    let mut tiles = Tiles::default();
    match workspace.places().build(&mut tiles, known) {
        Some(root) => Tree::new(tree_id(workspace), root, tiles),
        None => Tree::empty(tree_id(workspace)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_survive_saving_and_lost_views() {
        let mut layout = Layout::new(&|_| true);
        layout.workspace = Workspace::Bench;
        let again = Layout::load(&layout.save(), &|_| true);
        assert_eq!(again.as_ref(), Some(&layout));
        let less = Layout::load(&layout.save(), &|id| id == "explorer.plan").unwrap();
        assert!(less.has("explorer.plan"));
        assert!(!less.has("telemetry.speed"));
        assert!(Layout::load("{", &|_| true).is_none());
    }

    #[test]
    fn showing_a_view_goes_where_it_is() {
        let mut layout = Layout::new(&|_| true);
        layout.show("inspect.rows");
        assert_eq!(layout.workspace, Workspace::Inspect);
        layout.show("never.seen");
        assert!(layout.has("never.seen"));
    }
}
