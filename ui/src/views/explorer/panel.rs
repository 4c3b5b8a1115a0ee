//! The left region's tree: model, layers, blocks, choices of the recipe, tensors. Search, one tensor below, the memory
//! bar at the bottom.

use std::collections::BTreeSet;

use egui::{Color32, FontId, Id, Rect, RichText, pos2, vec2};
use protocol::{BlockView, LoadedModel, RecipeView};

use super::row::{ROW, Row};
use super::tree::{Key, Node, Tree, TreeRow};
use super::{Shared, memory, tensor};
use crate::fmt;
use crate::icons;
use crate::selection::Spot;
use crate::store::{Fetched, Query};
use crate::theme::{self, Palette};
use crate::views::blocks::{kind_word, pick};
use crate::views::{Action, Context, View, empty, failed, loading};
use crate::widgets::controls::icon_button;
use crate::widgets::plots::elided;

/// See the module.
#[derive(Debug)]
pub struct Explorer {
    shared: Shared,
    tree: Tree,
    search: String,
    /// The search field takes the focus in the next frame.
    focus: bool,
    memory: bool,
    /// The layer that was locked when the tree was last scrolled to it.
    seen: Option<u32>,
}

/// What rows are drawn from.
struct Show<'a> {
    model: &'a LoadedModel,
    blocks: &'a [BlockView],
    changed: BTreeSet<(String, u32)>,
    changed_layers: BTreeSet<u32>,
}

impl<'a> Show<'a> {
    fn new(model: &'a LoadedModel, blocks: &'a [BlockView], recipe: Option<&RecipeView>) -> Self {
        let changed = recipe.map(pick::changed).unwrap_or_default();
        let per_layer = |slot: &str| model.slots.iter().any(|s| s.per_layer && s.name == slot);
        let layers = changed.iter().filter(|(slot, _)| per_layer(slot)).map(|(_, l)| *l);
        Self {
            model,
            blocks,
            changed_layers: layers.collect(),
            changed,
        }
    }
}

impl Explorer {
    /// A tree that chooses the shared tensor.
    pub fn new(shared: Shared) -> Self {
        Self {
            shared,
            tree: Tree::default(),
            search: String::new(),
            focus: false,
            memory: false,
            seen: None,
        }
    }

    fn search_field(&mut self, ui: &mut egui::Ui) {
        let p = Palette::of(ui);
        egui::Frame::new()
            .inner_margin(egui::Margin::symmetric(12, 6))
            .show(ui, |ui| {
                ui.horizontal(|ui| {
                    ui.label(RichText::new(icons::MAGNIFYING_GLASS).color(p.faint));
                    let hits = self.tree.hits();
                    let room = if hits.is_some() { 96.0 } else { 0.0 };
                    let edit = egui::TextEdit::singleline(&mut self.search)
                        .hint_text("find a tensor: wkv, fp8, L3 …")
                        .desired_width((ui.available_width() - room).max(60.0));
                    let response = ui.add(edit).accessible_name("Find in the model");
                    if self.focus {
                        self.focus = false;
                        response.request_focus();
                    }
                    if let Some(n) = hits {
                        let word = if n == 1 { "tensor" } else { "tensors" };
                        let text = format!("{} {word}", fmt::count(n as u64));
                        ui.label(RichText::new(text).font(theme::caption()).color(p.secondary));
                        if icon_button(ui, icons::X, "Clear the search").clicked() {
                            self.search.clear();
                        }
                    }
                });
            });
    }

    fn rows(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, show: &Show<'_>, height: f32) {
        if self.tree.hits() == Some(0) && self.tree.rows().len() <= 1 {
            let what = "Nothing in this model has that name.";
            empty(ui, icons::MAGNIFYING_GLASS, what, None);
            return;
        }
        let mut area = egui::ScrollArea::vertical()
            .id_salt("tree")
            .max_height(height)
            .auto_shrink([false, false]);
        // A layer that was chosen elsewhere is scrolled to.
        let locked = cx.selection.locked().layer;
        if locked != self.seen {
            self.seen = locked;
            if let Some(at) = locked.and_then(|l| self.tree.place(Node::Layer(l))) {
                area = area.vertical_scroll_offset((at as f32 * ROW - height * 0.4).max(0.0));
            }
        }
        ui.spacing_mut().item_spacing.y = 0.0;
        let count = self.tree.rows().len();
        area.show_rows(ui, ROW, count, |ui, range| {
            for at in range {
                if let Some(row) = self.tree.rows().get(at).copied() {
                    self.row(cx, ui, show, row);
                }
            }
        });
    }

    fn row(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui, show: &Show<'_>, row: TreeRow) {
        let p = Palette::of(ui);
        let line = self.line(p, show, row.node);
        let layer = match row.node {
            Node::Layer(l) => Some(l),
            Node::Block(b) | Node::Slot(b, _) | Node::Tensor(b, _) => show.blocks[b as usize].layer,
            Node::Model => None,
        };
        let shown_layer = cx.shown().layer;
        let selected = match row.node {
            Node::Layer(l) => cx.selection.locked().layer == Some(l),
            Node::Tensor(..) => self.shared.is(&line.name),
            _ => false,
        };
        let lit = matches!(row.node, Node::Layer(l) if shown_layer == Some(l));
        let said = format!("{} {}", line.spoken, line.right);
        let shown = Row {
            id: Id::unique(("explorer", row.node)),
            depth: row.depth,
            open: row.open,
            selected,
            lit,
            name: said.trim_end(),
            left: 4.0,
        }
        .show(ui);
        line.paint(ui, shown.content);
        if shown.response.hovered()
            && let Some(l) = layer
        {
            cx.hover(Spot::layer(l));
        }
        if let Some(open) = shown.turned {
            self.tree.turn(row.node, open);
        } else if shown.response.clicked() {
            self.click(cx, show, row);
        }
        if !line.about.is_empty() {
            shown.response.on_hover_text(&line.about);
        }
    }

    fn click(&mut self, cx: &mut Context<'_>, show: &Show<'_>, row: TreeRow) {
        match row.node {
            Node::Layer(l) => {
                let was = cx.selection.locked().layer == Some(l);
                cx.selection.click(Spot::layer(l));
                self.seen = cx.selection.locked().layer;
                if row.open == Some(was) {
                    self.tree.turn(row.node, !was);
                }
            }
            Node::Tensor(b, t) => {
                let name = show.blocks[b as usize].tensors[t as usize].name.clone();
                let again = self.shared.is(&name);
                self.shared.choose((!again).then_some(name));
            }
            Node::Slot(..) => cx.act(Action::Show("blocks")),
            node => {
                if let Some(open) = row.open {
                    self.tree.turn(node, !open);
                }
            }
        }
    }

    /// What a row says.
    fn line(&self, p: &Palette, show: &Show<'_>, node: Node) -> Line {
        match node {
            Node::Model => Line {
                name: show.model.name.clone(),
                font: theme::strong(),
                second: fmt::short(show.model.facts.parameters).plain() + " parameters",
                right: fmt::bytes(self.tree.bytes()).plain(),
                about: format!("{}\n{}", show.model.facts.family, show.model.path),
                ..Line::new(p)
            },
            Node::Layer(l) => {
                let facts = show.model.facts.layers.get(l as usize);
                let bytes = self.tree.layer(l).map_or(0, |part| part.bytes);
                Line {
                    name: format!("layer {l}"),
                    second: facts.map_or("", |f| kind_word(&f.attention)).to_string(),
                    right: fmt::bytes(bytes).plain(),
                    about: facts.map_or_else(String::new, |f| format!("{}; {}", f.attention_name, f.ffn_name)),
                    mark: show.changed_layers.contains(&l),
                    ..Line::new(p)
                }
            }
            Node::Block(b) => {
                let block = &show.blocks[b as usize];
                Line {
                    name: block.block.clone(),
                    second: block.kind.clone(),
                    right: fmt::bytes(block.tensors.iter().map(|t| t.bytes).sum()).plain(),
                    about: block.kind.clone(),
                    ..Line::new(p)
                }
            }
            Node::Slot(b, s) => {
                let block = &show.blocks[b as usize];
                let (slot, choice) = &block.slots[s as usize];
                let mark = show.changed.contains(&(slot.clone(), block.layer.unwrap_or(0)));
                Line {
                    name: slot.clone(),
                    font: theme::caption(),
                    ink: p.secondary,
                    right: choice.clone(),
                    right_ink: if mark { p.accent } else { p.text },
                    about: "A choice of the recipe: click to change it in the blocks panel.".into(),
                    mark,
                    ..Line::new(p)
                }
            }
            Node::Tensor(b, t) => {
                let block = &show.blocks[b as usize];
                let tensor = &block.tensors[t as usize];
                let short = block
                    .layer
                    .and_then(|l| tensor.name.split_once(&format!(".{l}.")))
                    .map_or(tensor.name.as_str(), |(_, rest)| rest);
                Line {
                    name: tensor.name.clone(),
                    shown: Some(short.to_string()),
                    font: theme::mono_caption(),
                    right: format!("{}  {}", tensor::shape_text(tensor), tensor.format),
                    about: format!(
                        "{}\n{}, {}, {}",
                        tensor.name,
                        tensor::shape_text(tensor),
                        tensor.format,
                        fmt::bytes(tensor.bytes).plain()
                    ),
                    ..Line::new(p)
                }
            }
        }
        .spoken()
    }
}

/// Text of a row.
struct Line {
    name: String,
    /// Shown instead of the name.
    shown: Option<String>,
    font: FontId,
    ink: Color32,
    second: String,
    right: String,
    right_ink: Color32,
    about: String,
    /// Differs from the checkpoint's own recipe.
    mark: bool,
    spoken: String,
}

impl Line {
    fn new(p: &Palette) -> Self {
        Self {
            name: String::new(),
            shown: None,
            font: theme::body(),
            ink: p.text,
            second: String::new(),
            right: String::new(),
            right_ink: p.secondary,
            about: String::new(),
            mark: false,
            spoken: String::new(),
        }
    }

    fn spoken(mut self) -> Self {
        let changed = if self.mark { ", changed" } else { "" };
        self.spoken = format!("{} {}", self.name, self.second).trim_end().to_string() + changed;
        self
    }

    fn paint(&self, ui: &egui::Ui, rect: Rect) {
        let p = Palette::of(ui);
        let middle = |height: f32| rect.center().y - height * 0.5;
        let right = elided(
            ui,
            &self.right,
            theme::mono_caption(),
            self.right_ink,
            rect.width() * 0.6,
        );
        let left_room = rect.width() - right.size().x - 8.0;
        ui.painter().galley(
            pos2(rect.right() - right.size().x, middle(right.size().y)),
            right,
            self.right_ink,
        );
        let name = self.shown.as_ref().unwrap_or(&self.name);
        let galley = elided(ui, name, self.font.clone(), self.ink, left_room);
        let mut x = rect.left() + galley.size().x + 6.0;
        ui.painter()
            .galley(pos2(rect.left(), middle(galley.size().y)), galley, self.ink);
        if self.mark && x + 8.0 < rect.left() + left_room {
            ui.painter()
                .circle_filled(pos2(x + 2.0, rect.center().y), 2.5, p.accent);
            x += 10.0;
        }
        let room = rect.left() + left_room - x;
        if room > 16.0 && !self.second.is_empty() {
            let galley = elided(ui, &self.second, theme::caption(), p.faint, room);
            ui.painter().galley(pos2(x, middle(galley.size().y)), galley, p.faint);
        }
    }
}

impl View for Explorer {
    fn id(&self) -> &'static str {
        "explorer"
    }

    fn title(&self) -> &'static str {
        "Model"
    }

    fn find(&mut self) -> bool {
        self.focus = true;
        true
    }

    fn toolbar(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        if cx.store.model().is_some() && icon_button(ui, icons::ROWS, "Close all layers").clicked() {
            self.tree.close_all();
        }
    }

    fn ui(&mut self, cx: &mut Context<'_>, ui: &mut egui::Ui) {
        let store = cx.store;
        let Some(model) = store.model() else {
            let what = "Layers, blocks and tensors appear here once a model is loaded.";
            empty(ui, icons::TREE_STRUCTURE, what, None);
            return;
        };
        let fetched = cx.fetch(&Query::tree());
        let blocks = match fetched {
            Fetched::Loading => return loading(ui, "The model's tensors are being listed"),
            Fetched::Failed(e) => {
                egui::Frame::new()
                    .inner_margin(theme::PAD)
                    .show(ui, |ui| failed(cx, ui, e));
                return;
            }
            Fetched::Ready(blocks) | Fetched::Stale(blocks) => blocks,
        };
        let recipe = store.recipe();
        let key = Key {
            model: model.path.clone(),
            recipe: recipe.map(|r| r.hash.clone()).unwrap_or_default(),
            current: matches!(fetched, Fetched::Ready(_)),
            blocks: blocks.len(),
        };
        self.tree.update(blocks, key, &self.search);
        self.search_field(ui);
        let show = Show::new(model, blocks, recipe);
        let whole = ui.available_rect_before_wrap();
        let name = self.shared.tensor();
        let chosen = name.as_deref().and_then(|n| tensor::find(blocks, n));
        // Below the tree: the tensor where there is room for it, the memory bar always.
        let card = if chosen.is_some() && whole.height() > 320.0 {
            168.0
        } else {
            0.0
        };
        let bar = if self.memory { 48.0 + 9.0 * 18.0 } else { 44.0 };
        let height = (whole.height() - card - bar).max(3.0 * ROW);
        let top = Rect::from_min_size(whole.min, vec2(whole.width(), height));
        ui.scope_builder(egui::UiBuilder::new().max_rect(top), |ui| {
            ui.set_clip_rect(ui.clip_rect().intersect(top));
            self.rows(cx, ui, &show, height);
        });
        let mut y = top.bottom();
        let mut below = |ui: &mut egui::Ui, height: f32, content: &mut dyn FnMut(&mut egui::Ui)| {
            let rect = Rect::from_min_size(pos2(whole.left(), y), vec2(whole.width(), height));
            y += height;
            let p = Palette::of(ui);
            ui.painter()
                .hline(rect.x_range(), rect.top(), egui::Stroke::new(theme::LINE, p.line));
            ui.scope_builder(egui::UiBuilder::new().max_rect(rect), |ui| content(ui));
        };
        if let (Some((block, view)), true) = (chosen, card > 0.0) {
            let mut close = false;
            below(ui, card, &mut |ui| close = tensor::card(cx, ui, block, view));
            if close {
                self.shared.choose(None);
            }
        }
        let open = &mut self.memory;
        below(ui, bar, &mut |ui| memory::show(cx, ui, open));
    }
}
