//! The three cards.

use egui::{RichText, Sense, Ui, WidgetInfo, vec2};
use protocol::{CardModel, ModelSource, ModelsView, RecentModel, Request};

use super::super::App;
use super::{Start, open};
use crate::fmt;
use crate::icons;
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls::{self, card, icon_button};

pub(super) fn show(app: &mut App, ui: &mut Ui, models: &ModelsView, which: usize, tall: f32) {
    let dialogs = app.platform.has_dialogs();
    let mut pick = None;
    let local = app.store.host.as_ref().is_some_and(|h| h.local);
    let mut start = std::mem::take(&mut app.start);
    {
        let (_, _, mut cx) = app.parts();
        card(ui, |ui| {
            ui.set_width(ui.available_width());
            ui.set_min_height((tall - 34.0).max(0.0));
            ui.spacing_mut().item_spacing.y = 6.0;
            match which {
                0 => model(
                    &mut start,
                    &mut cx,
                    ui,
                    &models.bundled,
                    "bundled",
                    "Tell a story",
                    icons::BOOK_OPEN,
                    tall,
                ),
                1 => model(
                    &mut start,
                    &mut cx,
                    ui,
                    &models.chat,
                    "chat",
                    "Chat",
                    icons::CHAT_CIRCLE,
                    tall,
                ),
                _ => pick = own(&mut start, &mut cx, ui, models, dialogs, local),
            }
        });
    }
    app.start = start;
    match pick {
        Some(Pick::Folder) => app.platform.pick_folder(),
        Some(Pick::File) => app.platform.pick_model(),
        Some(Pick::Path(path)) => app.choose(path),
        None => {}
    }
}

enum Pick {
    Folder,
    File,
    Path(String),
}

#[expect(clippy::too_many_arguments, reason = "one caller")]
fn model(
    start: &mut Start,
    cx: &mut Context<'_>,
    ui: &mut Ui,
    model: &CardModel,
    tag: &str,
    verb: &str,
    icon: &str,
    tall: f32,
) {
    let p = Palette::of(ui);
    title(ui, &model.name, tag);
    ui.add(egui::Label::new(RichText::new(&model.about).color(p.secondary)).wrap());
    ui.add_space(4.0);
    controls::figure_row(ui, "parameters", &fmt::short(model.parameters));
    let size = if model.present { "on disk" } else { "to fetch" };
    controls::figure_row(ui, size, &fmt::bytes(model.bytes));
    controls::row(ui, "licence", |ui| {
        ui.label(RichText::new(&model.licence).font(theme::mono()))
    });
    ui.add_space(4.0);
    let memory = start.memory.entry(model.name.clone()).or_default();
    let mut fits = true;
    if model.missing.is_empty() {
        fits = memory.show(cx, ui, &model.source);
    } else {
        ui.add(egui::Label::new(RichText::new(&model.missing).color(p.warn)).wrap());
    }
    let context = memory.context;
    if tall > 0.0 {
        ui.add_space((ui.max_rect().bottom() - ui.cursor().top() - 28.0).max(6.0));
    }
    let text = if model.present {
        verb.to_string()
    } else {
        format!("Fetch and {}", verb.to_lowercase())
    };
    ui.add_enabled_ui(fits && model.missing.is_empty(), |ui| {
        if controls::primary(ui, icon, &text).clicked() {
            start.open = false;
            open(cx, model.source.clone(), context);
        }
    });
}

fn title(ui: &mut Ui, name: &str, tag: &str) {
    let p = Palette::of(ui);
    ui.horizontal(|ui| {
        let tag = RichText::new(tag).font(theme::caption()).color(p.faint);
        if ui.available_width() < 180.0 {
            ui.add(egui::Label::new(RichText::new(name).font(theme::title())).truncate())
                .on_hover_text(tag.text());
            return;
        }
        ui.with_layout(egui::Layout::right_to_left(egui::Align::Center), |ui| {
            ui.label(tag);
            ui.with_layout(egui::Layout::left_to_right(egui::Align::Center), |ui| {
                ui.add(egui::Label::new(RichText::new(name).font(theme::title())).truncate());
            });
        });
    });
}

fn own(
    start: &mut Start,
    cx: &mut Context<'_>,
    ui: &mut Ui,
    models: &ModelsView,
    dialogs: bool,
    local: bool,
) -> Option<Pick> {
    let p = Palette::of(ui);
    title(ui, "Your own", "");
    if let Some((name, source)) = start.chosen.clone() {
        chosen(start, cx, ui, &name, &source);
        return None;
    }
    let mut pick = None;
    let what = if dialogs {
        "Drop a folder or a GGUF file here, or open one."
    } else {
        "A folder or a GGUF file of the host."
    };
    ui.add(egui::Label::new(RichText::new(what).color(p.secondary)).wrap());
    if dialogs {
        ui.horizontal(|ui| {
            if controls::button(ui, icons::FOLDER_OPEN, "Folder").clicked() {
                pick = Some(Pick::Folder);
            }
            if controls::button(ui, icons::FILE, "GGUF file").clicked() {
                pick = Some(Pick::File);
            }
        });
    }
    if local {
        field(
            ui,
            &mut start.path,
            "path of a folder, .gguf or .m1run",
            "Path of a model",
            icons::ARROW_RIGHT,
            "Look at this path",
        )
        .into_iter()
        .for_each(|path| match super::is_run(&path) {
            true => pick = Some(Pick::Path(path)),
            false => start.chosen = Some((short(&path), ModelSource::Path(path))),
        });
    }
    field(
        ui,
        &mut start.repository,
        "org/name on Hugging Face",
        "Repository",
        icons::CLOUD_ARROW_DOWN,
        "Look at this repository",
    )
    .into_iter()
    .for_each(|name| start.chosen = Some((name.clone(), ModelSource::Hub(name))));
    egui::ScrollArea::vertical()
        .id_salt("recent")
        .max_height(150.0)
        .show(ui, |ui| {
            ui.spacing_mut().item_spacing.y = 0.0;
            if !models.recent.is_empty() {
                controls::section(ui, "Recent");
                for model in &models.recent {
                    recent(start, cx, ui, model, true);
                }
            }
            if !models.cached.is_empty() {
                controls::section(ui, &format!("Hugging Face cache ({})", models.cached.len()));
                for model in &models.cached {
                    recent(start, cx, ui, model, false);
                }
            }
        });
    pick
}

fn short(path: &str) -> String {
    path.trim_end_matches(['/', '\\'])
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or(path)
        .to_string()
}

/// A field with a button at its end; returns what was entered.
fn field(ui: &mut Ui, text: &mut String, hint: &str, name: &str, icon: &str, action: &str) -> Option<String> {
    let mut entered = None;
    ui.horizontal(|ui| {
        // The field adds its margins to this.
        let width = ui.available_width() - theme::ROW - ui.spacing().item_spacing.x - 8.0;
        let response = ui
            .add(egui::TextEdit::singleline(text).hint_text(hint).desired_width(width))
            .accessible_name(name);
        let enter = response.lost_focus() && ui.input(|i| i.key_pressed(egui::Key::Enter));
        let able = !text.trim().is_empty();
        ui.add_enabled_ui(able, |ui| {
            if icon_button(ui, icon, action).clicked() || (enter && able) {
                entered = Some(text.trim().to_string());
            }
        });
    });
    entered
}

/// A model that stands ready: does it fit, and with which context?
fn chosen(start: &mut Start, cx: &mut Context<'_>, ui: &mut Ui, name: &str, source: &ModelSource) {
    let p = Palette::of(ui);
    ui.add(egui::Label::new(RichText::new(name).font(theme::strong())).wrap());
    let from = match source {
        ModelSource::Path(path) => path.clone(),
        ModelSource::Hub(repository) => format!("https://huggingface.co/{repository}"),
        ModelSource::Bundled | ModelSource::SmolLm2 => String::new(),
    };
    ui.add(egui::Label::new(RichText::new(from).font(theme::mono_caption()).color(p.secondary)).wrap());
    ui.add_space(4.0);
    let memory = start.memory.entry(format!("{source:?}")).or_default();
    let fits = memory.show(cx, ui, source);
    let context = memory.context;
    ui.add_space(8.0);
    ui.horizontal(|ui| {
        let verb = if matches!(source, ModelSource::Hub(_)) {
            "Fetch and open"
        } else {
            "Open"
        };
        ui.add_enabled_ui(fits, |ui| {
            if controls::primary(ui, icons::PLAY, verb).clicked() {
                start.open = false;
                start.chosen = None;
                open(cx, source.clone(), context);
            }
        });
        if controls::button(ui, "", "Another one").clicked() {
            start.chosen = None;
        }
    });
}

fn recent(start: &mut Start, cx: &mut Context<'_>, ui: &mut Ui, model: &RecentModel, forget: bool) {
    let p = Palette::of(ui);
    let (rect, response) = ui.allocate_exact_size(vec2(ui.available_width(), theme::ROW), Sense::click());
    let enabled = ui.is_enabled();
    response.widget_info(|| WidgetInfo::labeled(egui::Role::Button, enabled, &model.name));
    let hot = ui.rect_contains_pointer(rect);
    if hot {
        ui.painter().rect_filled(rect, 4, p.hover);
    }
    controls::focus_ring(ui, &response, rect);
    let painter = ui
        .painter()
        .with_clip_rect(rect.with_max_x(rect.right() - 76.0).intersect(ui.clip_rect()));
    painter.text(
        rect.left_center() + vec2(4.0, 0.0),
        egui::Align2::LEFT_CENTER,
        &model.name,
        theme::body(),
        p.text,
    );
    if !(hot && forget) {
        let size = fmt::bytes(model.bytes).plain();
        let at = rect.right_center() - vec2(4.0, 0.0);
        ui.painter()
            .text(at, egui::Align2::RIGHT_CENTER, size, theme::mono(), p.secondary);
    }
    if response.clicked() {
        start.chosen = Some((model.name.clone(), ModelSource::Path(model.path.clone())));
    }
    response.on_hover_text(&model.path);
    if forget {
        let builder = egui::UiBuilder::new().max_rect(rect.with_min_x(rect.right() - 26.0));
        ui.scope_builder(builder.id_salt(&model.path), |ui| {
            if !hot {
                ui.multiply_opacity(0.0);
            }
            if icon_button(ui, icons::X, &format!("Forget {}", model.name)).clicked() {
                cx.send(Request::ForgetModel(model.path.clone()));
            }
        });
    }
}
