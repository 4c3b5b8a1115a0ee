//! All commands and views by typing a few letters of them (Ctrl+K).

use egui::{Align2, Key, RichText, Sense, Stroke, WidgetInfo, vec2};

use super::App;
use crate::commands::{self, COMMANDS, Command, Entry};
use crate::icons;
use crate::theme::{self, Palette};
use crate::views::Action;
use crate::widgets::controls;

/// Rows in sight.
const ROWS: usize = 10;

/// State of the palette.
#[derive(Debug, Default)]
pub(super) struct PaletteWindow {
    open: bool,
    fresh: bool,
    typed: String,
    at: usize,
    ran: Option<Command>,
}

impl PaletteWindow {
    pub(super) fn toggle(&mut self) {
        self.open = !self.open;
        self.fresh = self.open;
        self.typed.clear();
        self.at = 0;
    }

    pub(super) fn close(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }

    /// Whether this command was just chosen here (asked once).
    pub(super) fn ran(&mut self, command: Command) -> bool {
        self.ran.take_if(|c| *c == command).is_some()
    }
}

/// A line of the list.
#[derive(Clone, Copy)]
enum Line {
    Command(&'static Entry),
    View(&'static str, &'static str),
}

impl Line {
    fn title(self) -> String {
        match self {
            Line::Command(e) => e.title.to_string(),
            Line::View(_, title) => format!("Show {title}"),
        }
    }
}

pub(super) fn show(app: &mut App, ctx: &egui::Context) {
    if !app.palette.open {
        return;
    }
    let lines = found(app);
    let n = lines.len();
    app.palette.at = app.palette.at.min(n.saturating_sub(1));
    ctx.input_mut(|i| {
        if i.consume_key(egui::Modifiers::NONE, Key::ArrowDown) {
            app.palette.at = (app.palette.at + 1).min(n.saturating_sub(1));
        }
        if i.consume_key(egui::Modifiers::NONE, Key::ArrowUp) {
            app.palette.at = app.palette.at.saturating_sub(1);
        }
    });
    let entered = ctx.input(|i| i.key_pressed(Key::Enter));
    let p = Palette::of_context(ctx);
    let screen = ctx.content_rect();
    let width = (screen.width() - 24.0).min(520.0);
    let mut chosen = entered.then_some(app.palette.at);
    let area = egui::Area::new(egui::Id::unique("palette"))
        .order(egui::Order::Foreground)
        .anchor(Align2::CENTER_TOP, vec2(0.0, (screen.height() * 0.12).min(80.0)))
        .show(ctx, |ui| {
            egui::Frame::new()
                .fill(p.panel)
                .stroke(Stroke::new(theme::LINE, p.line))
                .corner_radius(theme::RADIUS + 2)
                .shadow(ui.visuals().window_shadow)
                .inner_margin(8)
                .show(ui, |ui| {
                    ui.set_width(width - 16.0);
                    let field = egui::TextEdit::singleline(&mut app.palette.typed)
                        .hint_text("Type a command or a panel")
                        .desired_width(f32::INFINITY)
                        .margin(egui::Margin::symmetric(8, 6))
                        .return_key(None);
                    let response = ui.add(field).accessible_name("Command");
                    if std::mem::take(&mut app.palette.fresh) {
                        response.request_focus();
                    }
                    if response.changed() {
                        app.palette.at = 0;
                    }
                    ui.add_space(4.0);
                    if lines.is_empty() {
                        ui.label(RichText::new("No command is called that").color(p.secondary));
                    }
                    let height = (screen.height() * 0.6).min(ROWS as f32 * 28.0);
                    egui::ScrollArea::vertical().max_height(height).show(ui, |ui| {
                        ui.spacing_mut().item_spacing.y = 0.0;
                        for (i, line) in lines.iter().enumerate() {
                            if row(app, ui, *line, i == app.palette.at) {
                                chosen = Some(i);
                            }
                        }
                    });
                });
        });
    if let Some(line) = chosen.and_then(|i| lines.get(i)) {
        app.palette.open = false;
        match *line {
            Line::Command(e) => {
                app.palette.ran = Some(e.command);
                app.actions.push(Action::Run(e.command));
            }
            Line::View(id, _) => app.actions.push(Action::Show(id)),
        }
    } else if ctx.input(|i| i.pointer.any_pressed())
        && ctx
            .input(|i| i.pointer.interact_pos())
            .is_some_and(|at| !area.response.rect.contains(at))
    {
        app.palette.open = false;
    }
}

/// What fits what was typed, best first; without a letter everything in the registry's order.
fn found(app: &App) -> Vec<Line> {
    let typed = app.palette.typed.trim();
    let mut lines: Vec<(i32, Line)> = COMMANDS
        .iter()
        .filter(|e| e.command != Command::Palette)
        .filter_map(|e| commands::score(e, typed).map(|s| (s, Line::Command(e))))
        .collect();
    if app.store.model().is_some() {
        for (id, slot) in &app.views {
            let title = slot.view.title();
            if let Some(s) = commands::fuzzy(&format!("Show {title}"), typed) {
                lines.push((s, Line::View(id, title)));
            }
        }
    }
    if !typed.is_empty() {
        lines.sort_by_key(|(s, _)| std::cmp::Reverse(*s));
    }
    lines.into_iter().map(|(_, l)| l).collect()
}

fn row(app: &App, ui: &mut egui::Ui, line: Line, on: bool) -> bool {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), 28.0), Sense::click());
    let able = match line {
        Line::Command(e) => commands::available(e.command, &app.store),
        Line::View(..) => Ok(()),
    };
    let title = line.title();
    response.widget_info(|| WidgetInfo::selected(egui::Role::Button, able.is_ok(), on, &title));
    if on || response.hovered() {
        ui.painter()
            .rect_filled(rect, theme::RADIUS, if on { p.selected } else { p.hover });
    }
    if on {
        ui.scroll_to_rect(rect, None);
    }
    controls::focus_ring(ui, &response, rect);
    let color = if able.is_ok() { p.text } else { p.faint };
    let icon = match line {
        Line::Command(e) => e.icon,
        Line::View(..) => icons::SQUARE,
    };
    let icon_at = rect.left_center() + vec2(16.0, 0.0);
    ui.painter()
        .text(icon_at, Align2::CENTER_CENTER, icon, theme::body(), p.secondary);
    ui.painter().text(
        rect.left_center() + vec2(32.0, 0.0),
        Align2::LEFT_CENTER,
        title,
        theme::body(),
        color,
    );
    let right = match (line, able) {
        (_, Err(why)) => why.to_string(),
        (Line::Command(e), _) => e.keys.map(|k| ui.ctx().format_shortcut(&k)).unwrap_or_default(),
        _ => String::new(),
    };
    let at = rect.right_center() - vec2(8.0, 0.0);
    ui.painter()
        .text(at, Align2::RIGHT_CENTER, right, theme::mono_caption(), p.secondary);
    response.clicked() && able.is_ok()
}
