//! The text as it is written: hovering shows what a token could have been, a click locks it, dragging selects.

use std::ops::Range;

use egui::{Color32, Rect, Response, RichText, Sense, Ui, pos2, vec2};
use protocol::{DocKind, Request};

use super::groups::Groups;
use super::prose::{Kind, Mark, Prose, Tint};
use super::sampling::Form;
use crate::fmt;
use crate::icons;
use crate::selection::Spot;
use crate::store::Text;
use crate::theme::{self, Palette};
use crate::views::token::{alternatives_table, details};
use crate::views::{Action, Context, failed};

/// Widest column of running text: about 90 letters.
const MEASURE: f32 = 760.0;
pub(super) const HEAD: f32 = 24.0;
const FOOT: f32 = 28.0;
pub(super) const GAP: f32 = 12.0;

/// A place in the transcript: group and byte.
type Place = (usize, usize);

/// A message being rewritten.
#[derive(Clone, Debug, Default)]
pub(super) struct Rewriting {
    pub(super) node: u32,
    pub(super) text: String,
    /// Frames in which it still asks for the focus: the click that opened it takes it away in the first.
    pub(super) fresh: u8,
    /// Sending it makes the model answer.
    pub(super) answer: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(super) struct Transcript {
    pub(super) groups: Groups,
    selected: Option<(Place, Place)>,
    pub(super) rewriting: Option<Rewriting>,
    locked: Option<u64>,
    pub(super) system_open: bool,
    pub(super) system: Option<(u64, String)>,
    menu_token: Option<u64>,
    /// How tokens are coloured.
    pub(super) tint: Tint,
}

impl Transcript {
    /// The selected text; `None` = nothing is selected.
    pub(super) fn selection(&self) -> Option<String> {
        let (a, b) = self.selected?;
        let ((g1, b1), (g2, b2)) = if a <= b { (a, b) } else { (b, a) };
        if (g1, b1) == (g2, b2) {
            return None;
        }
        let mut out = String::new();
        for (i, group) in self.groups.list.iter().enumerate().take(g2 + 1).skip(g1) {
            let text = group.prose.text();
            let from = if i == g1 { b1.min(text.len()) } else { 0 };
            let to = if i == g2 { b2.min(text.len()) } else { text.len() };
            if i > g1 {
                out.push_str("\n\n");
            }
            out.push_str(text.get(from..to).unwrap_or_default());
        }
        Some(out)
    }

    pub(super) fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, text: &Text, form: &mut Form) {
        self.groups.update(text);
        self.copy_pressed(ui);
        let locked = cx.selection.locked().token;
        let jump = (locked != self.locked).then_some(locked).flatten();
        self.locked = locked;
        let scroll = egui::ScrollArea::vertical()
            .id_salt("transcript")
            .auto_shrink([false, false])
            .stick_to_bottom(true)
            .content_margin(egui::Margin::symmetric(theme::PAD as i8, 8));
        scroll.show(ui, |ui| {
            let room = ui.available_width();
            let width = room.min(MEASURE);
            let left = ui.cursor().left() + ((room - width) / 2.0).max(0.0).floor();
            ui.spacing_mut().item_spacing.y = 0.0;
            if text.view().info.kind == DocKind::Chat {
                self.system_prompt(cx, ui, text, left, width);
            }
            for i in 0..self.groups.list.len() {
                if jump.is_none() && self.out_of_sight(ui, i, width) {
                    ui.add_space(self.groups.list[i].height.1);
                    continue;
                }
                let top = ui.cursor().top();
                self.group(cx, ui, text, form, i, left, width, jump);
                self.groups.list[i].height = (width, ui.cursor().top() - top);
            }
            self.prefill(cx, ui, left, width);
        });
    }

    /// A group above or below the window whose height is known and cannot have changed.
    fn out_of_sight(&self, ui: &Ui, i: usize, width: f32) -> bool {
        let group = &self.groups.list[i];
        let (for_width, height) = group.height;
        let top = ui.cursor().top();
        let last = i + 1 == self.groups.list.len();
        let rewriting = self.rewriting.as_ref().map(|r| Some(r.node));
        for_width == width
            && !last
            && rewriting.is_none_or(|r| r != group.given && r != group.written)
            && (top > ui.clip_rect().bottom() || top + height < ui.clip_rect().top())
    }

    fn copy_pressed(&mut self, ui: &Ui) {
        if ui.ctx().text_edit_focused() {
            return;
        }
        if let Some(text) = self.selection() {
            let wanted = ui.input(|i| i.events.iter().any(|e| matches!(e, egui::Event::Copy)));
            if wanted {
                ui.ctx().copy_text(text);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one caller; a struct would only rename them")]
    fn group(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        text: &Text,
        form: &mut Form,
        i: usize,
        left: f32,
        width: f32,
        jump: Option<u64>,
    ) {
        let chat = text.view().info.kind == DocKind::Chat;
        let (given, written) = {
            let g = &self.groups.list[i];
            (g.given.and_then(|n| text.node(n)), g.written.and_then(|n| text.node(n)))
        };
        let top = ui.cursor().top();
        let column = |ui: &mut Ui, height: f32| {
            let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, height));
            ui.allocate_rect(rect, Sense::hover());
            rect
        };
        let hovered = self.group_hovered(ui, i, left, width);
        if let Some(node) = if chat { given.or(written) } else { given } {
            let rect = column(ui, HEAD);
            self.head(cx, ui, text, node, rect, hovered, chat);
        }
        if self
            .rewriting
            .as_ref()
            .is_some_and(|r| Some(r.node) == given.map(|n| n.id) || Some(r.node) == written.map(|n| n.id))
        {
            self.rewriting(cx, ui, form, left, width);
        } else {
            if let Some(node) = written {
                self.thoughts(ui, i, node, left, width);
            }
            let group = &mut self.groups.list[i];
            group.prose.layout(ui.ctx(), width, self.tint);
            if !group.prose.is_empty() {
                let rect = column(ui, group.prose.height());
                self.prose(cx, ui, text, form, i, rect, jump);
            }
        }
        if let Some(node) = written {
            let rect = column(ui, FOOT);
            self.foot(cx, ui, text, form, node, rect, hovered);
            if let Some(error) = &node.error {
                let rect = Rect::from_min_size(pos2(left, ui.cursor().top()), vec2(width, 90.0));
                ui.scope_builder(egui::UiBuilder::new().max_rect(rect), |ui| failed(cx, ui, error));
            }
        }
        ui.add_space(GAP);
        let rect = Rect::from_min_max(pos2(left - 16.0, top), pos2(left + width + 16.0, ui.cursor().top()));
        ui.data_mut(|d| d.insert_temp(group_id(i), rect));
    }

    /// Controls of a message show while the pointer is on it.
    fn group_hovered(&self, ui: &Ui, i: usize, left: f32, width: f32) -> bool {
        let last: Option<Rect> = ui.data(|d| d.get_temp(group_id(i)));
        let column = left - 16.0..=left + width + 16.0;
        last.is_some_and(|r| {
            ui.input(|input| input.pointer.hover_pos())
                .is_some_and(|p| column.contains(&p.x) && r.y_range().contains(p.y))
        }) && ui.rect_contains_pointer(ui.clip_rect())
    }

    #[expect(clippy::too_many_arguments, reason = "one caller")]
    fn prose(
        &mut self,
        cx: &mut Context<'_>,
        ui: &mut Ui,
        text: &Text,
        form: &mut Form,
        i: usize,
        rect: Rect,
        jump: Option<u64>,
    ) {
        let touching = ui.input(|input| input.any_touches());
        let sense = if touching {
            Sense::click()
        } else {
            Sense::click_and_drag()
        };
        let response = ui.interact(rect, group_id(i).with("prose"), sense);
        let group = &self.groups.list[i];
        response.widget_info(|| egui::WidgetInfo::labeled(egui::Role::Label, true, group.prose.text()));
        let on = self.under_pointer(&response, i);
        self.select(ui, &response, i);
        if let Some((_, Kind::Token { position, .. })) = &on {
            cx.hover(Spot::token(*position));
            if response.clicked() && self.selection().is_none() {
                cx.selection.click(Spot::token(*position));
                self.locked = cx.selection.locked().token;
            }
            if response.secondary_clicked() {
                self.menu_token = Some(*position);
            }
        }
        let marks = self.marks(cx, ui, i);
        let group = &self.groups.list[i];
        group.prose.paint(ui.painter(), rect.min, &marks);
        if group.written.is_some() && group.written == cx.store.writing() {
            caret(ui, &group.prose, rect);
        }
        if let Some(range) = jump.and_then(|t| group.prose.range_of(t))
            && let Some(place) = group.prose.rect_of(ui.ctx(), range)
        {
            let place = place.translate(rect.min.to_vec2());
            if !ui.clip_rect().shrink(24.0).contains_rect(place) {
                ui.scroll_to_rect(place, Some(egui::Align::Center));
            }
        }
        self.menu(cx, text, form, &response);
        if let Some((_, Kind::Token { position, .. })) = on
            && !response.dragged()
            && let Some(token) = text.token_at(position)
        {
            response.on_hover_ui_at_pointer(|ui| {
                ui.set_max_width(240.0);
                details(ui, token.info);
                ui.add_space(theme::GRID);
                alternatives_table(ui, token.info, 5);
                let p = Palette::of(ui);
                let hint = RichText::new("click locks · right-click branches")
                    .font(theme::caption())
                    .color(p.faint);
                ui.label(hint);
            });
        }
    }

    fn under_pointer(&self, response: &Response, i: usize) -> Option<(Range<usize>, Kind)> {
        let place = response.hover_pos()? - response.rect.min;
        let prose = &self.groups.list[i].prose;
        let (byte, on) = prose.byte_at(&response.ctx, place);
        if on { prose.piece_at(byte) } else { None }
    }

    /// Dragging selects letters, a double click a word, a triple click the message.
    fn select(&mut self, ui: &Ui, response: &Response, i: usize) {
        let Some(pointer) = response.interact_pointer_pos() else {
            return;
        };
        let prose = &self.groups.list[i].prose;
        let cursor = prose.cursor_at(ui.ctx(), pointer - response.rect.min);
        if response.triple_clicked() {
            self.selected = Some(((i, 0), (i, prose.text().len())));
        } else if response.double_clicked() {
            let word = prose.word_at(cursor);
            self.selected = Some(((i, word.start), (i, word.end)));
        } else if response.drag_started() {
            self.selected = Some(((i, cursor), (i, cursor)));
        } else if response.dragged() {
            let head = self.place_at(ui, pointer).unwrap_or((i, cursor));
            if let Some((_, to)) = &mut self.selected {
                *to = head;
            }
        } else if response.clicked() {
            self.selected = None;
        }
    }

    /// The place under a point, in whichever message it is.
    fn place_at(&self, ui: &Ui, point: egui::Pos2) -> Option<Place> {
        for i in 0..self.groups.list.len() {
            let Some(response) = ui.ctx().read_response(group_id(i).with("prose")) else {
                continue;
            };
            if point.y <= response.rect.bottom() || i + 1 == self.groups.list.len() {
                let inside = point - response.rect.min;
                return Some((i, self.groups.list[i].prose.cursor_at(ui.ctx(), inside)));
            }
        }
        None
    }

    fn marks(&self, cx: &Context<'_>, ui: &Ui, i: usize) -> Vec<Mark> {
        let p = Palette::of(ui);
        let prose = &self.groups.list[i].prose;
        let mut marks = Vec::new();
        if let Some((a, b)) = self.selected {
            let (a, b) = if a <= b { (a, b) } else { (b, a) };
            if a.0 <= i && i <= b.0 && a != b {
                let from = if i == a.0 { a.1 } else { 0 };
                let to = if i == b.0 { b.1 } else { prose.text().len() };
                marks.push(Mark {
                    range: from..to,
                    fill: p.selected,
                    frame: Color32::TRANSPARENT,
                });
            }
        }
        let (locked, hovered) = (cx.selection.locked().token, cx.selection.hovered().token);
        if let Some(range) = hovered.and_then(|t| prose.range_of(t)) {
            let frame = if self.tint == Tint::None {
                Color32::TRANSPARENT
            } else {
                p.text
            };
            marks.push(Mark {
                range,
                fill: theme::mix(p.panel, p.accent, 0.22),
                frame,
            });
        }
        if let Some(range) = locked.and_then(|t| prose.range_of(t)) {
            marks.push(Mark {
                range,
                fill: p.selected,
                frame: p.accent,
            });
        }
        marks
    }

    fn menu(&mut self, cx: &mut Context<'_>, text: &Text, form: &mut Form, response: &Response) {
        let Some(token) = self.menu_token.and_then(|t| text.token_at(t)) else {
            return;
        };
        let selected = self.selection();
        response.context_menu(|ui| {
            ui.set_min_width(220.0);
            if let Some(text) = selected
                && ui.button(format!("{}  Copy the selection", icons::COPY)).clicked()
            {
                cx.act(Action::Copy(text));
            }
            if ui.button(format!("{}  Copy this token", icons::COPY)).clicked() {
                cx.act(Action::Copy(token.info.text.clone()));
            }
            if ui.button(format!("{}  Copy up to here", icons::COPY)).clicked() {
                let upto: String = token.node.tokens[..=token.index]
                    .iter()
                    .map(|t| t.text.as_str())
                    .collect();
                cx.act(Action::Copy(upto));
            }
            ui.separator();
            let able = cx.can_edit() && cx.store.writing().is_none();
            ui.add_enabled_ui(able, |ui| {
                let p = Palette::of(ui);
                ui.label(
                    RichText::new("Branch here with")
                        .font(theme::caption())
                        .color(p.secondary),
                );
                for alternative in token.info.top.iter().filter(|a| a.token != token.info.token).take(6) {
                    let label = format!(
                        "{}  {}",
                        fmt::probability(alternative.logprob),
                        fmt::quoted(&alternative.text)
                    );
                    if ui.button(RichText::new(label).font(theme::mono())).clicked() {
                        let spec = form.for_run(cx.now);
                        cx.send(Request::BranchAt {
                            node: token.node.id,
                            index: token.index as u32,
                            token: alternative.token,
                            spec,
                        });
                        ui.close();
                    }
                }
            });
        });
    }
}

/// The same from wherever it is asked for: selecting across messages needs their places.
fn group_id(i: usize) -> egui::Id {
    egui::Id::unique(("transcript group", i))
}

/// A block after the last letter of a text being written.
fn caret(ui: &Ui, prose: &Prose, rect: Rect) {
    let p = Palette::of(ui);
    let end = prose.text().len();
    let start = prose.text().char_indices().next_back().map_or(0, |(i, _)| i);
    if let Some(last) = prose.rect_of(ui.ctx(), start..end) {
        let newline = prose.text().ends_with('\n');
        let at = if newline {
            pos2(rect.left(), rect.bottom() - 24.0)
        } else {
            pos2(last.right() + 2.0 + rect.left(), last.top() + rect.top())
        };
        let block = Rect::from_min_size(at + vec2(0.0, 5.0), vec2(7.0, 15.0));
        ui.painter().rect_filled(block, 1, p.accent);
    }
}
