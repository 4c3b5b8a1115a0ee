//! What is compared: two recipes, a text, a number of positions.

use egui::{RichText, Ui, vec2};
use protocol::{CompareSpec, CompareText, Preset, RecipeRef};

use super::recipes::{Choice, Side};
use crate::fmt;
use crate::icons;
use crate::store::{Query, Store};
use crate::theme::{self, Palette};
use crate::views::Context;
use crate::widgets::controls::{self, icon_button};

/// Where the text comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The shown branch of the current text.
    Current,
    /// The story that comes with the program.
    Builtin,
    /// A story that is written first, from a prompt.
    Story,
    /// Pasted.
    Given,
}

/// Positions compared when nothing else is said.
const POSITIONS: u64 = 512;

/// Characters of a pasted text that are kept: many times what is compared, and little enough to draw in every frame.
pub const LONGEST: usize = 200_000;

/// What the form is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Task {
    /// A against B.
    Pair,
    /// Many recipes against A; what is wrong with the axes.
    Sweep(Option<String>),
    /// Both sides write; what is wrong with the prompt.
    Free(Option<String>),
}

impl Task {
    /// Title of the button.
    fn run(&self) -> &'static str {
        match self {
            Self::Pair => "Compare A and B",
            Self::Sweep(_) => "Start sweep",
            Self::Free(_) => "Let both write",
        }
    }
}

/// The form above a comparison.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Side A.
    pub a: Side,
    /// Side B.
    pub b: Side,
    /// Chosen source; `None` = the current text once there is one, else the built-in story.
    source: Option<Source>,
    given: String,
    prompt: Option<String>,
    positions: u64,
    /// Also compare A with each change alone.
    pub isolate: bool,
    /// Sides of earlier comparisons: what they were called, and their JSON.
    pub earlier: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            a: Side::new(Choice::Own),
            b: Side::new(Choice::Current),
            source: None,
            given: String::new(),
            prompt: None,
            positions: POSITIONS,
            isolate: false,
            earlier: Vec::new(),
        }
    }
}

/// What the user asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// Compare.
    Run,
    /// Stop the comparison that runs.
    Cancel,
}

impl Setup {
    fn source(&self, store: &Store) -> Source {
        let written = store.state.as_ref().map_or(0, |s| s.position) >= 2;
        self.source
            .unwrap_or(if written { Source::Current } else { Source::Builtin })
    }

    /// What the host is asked for. The sentence says what is missing.
    ///
    /// # Errors
    /// A side or a text that is not complete.
    pub fn spec(&self, store: &Store, presets: &[Preset]) -> Result<CompareSpec, String> {
        let a = self.a.reference(presets).map_err(|e| format!("A: {e}"))?;
        let b = self.b.reference(presets).map_err(|e| format!("B: {e}"))?;
        Ok(CompareSpec {
            a,
            b,
            text: self.text(store)?,
            positions: self.positions,
            isolate: self.isolate,
        })
    }

    /// Recipe A and the text, for everything that reads it with A.
    ///
    /// # Errors
    /// A side or a text that is not complete.
    pub fn base(&self, store: &Store, presets: &[Preset]) -> Result<(RecipeRef, CompareText, u64), String> {
        let a = self.a.reference(presets).map_err(|e| format!("A: {e}"))?;
        if self.source(store) == Source::Story {
            return Err("a new story is written for A against B only: choose another text".into());
        }
        Ok((a, self.text(store)?, self.positions))
    }

    /// Both recipes.
    ///
    /// # Errors
    /// A side that is not complete.
    pub fn sides(&self, presets: &[Preset]) -> Result<(RecipeRef, RecipeRef), String> {
        let a = self.a.reference(presets).map_err(|e| format!("A: {e}"))?;
        let b = self.b.reference(presets).map_err(|e| format!("B: {e}"))?;
        Ok((a, b))
    }

    fn text(&self, store: &Store) -> Result<CompareText, String> {
        Ok(match self.source(store) {
            Source::Current if store.state.as_ref().map_or(0, |s| s.position) < 2 => {
                return Err("the current text has fewer than 2 tokens: write one, or choose another text".into());
            }
            Source::Story if self.prompt(store).trim().is_empty() => return Err("write a prompt for the story".into()),
            Source::Story if store.writing().is_some() => return Err("a text is being written".into()),
            Source::Current | Source::Story => CompareText::Current,
            Source::Builtin => CompareText::Builtin,
            Source::Given if self.given.trim().is_empty() => return Err("paste a text".into()),
            Source::Given => CompareText::Given(self.given.clone()),
        })
    }

    /// The prompt of a story: the first starter until another one is typed.
    fn prompt<'a>(&'a self, store: &'a Store) -> &'a str {
        let starter = || {
            store
                .model()
                .and_then(|m| m.starters.first())
                .map_or("", String::as_str)
        };
        self.prompt.as_deref().unwrap_or_else(starter)
    }

    /// The prompt of the story that is to be written before comparing; `None` = nothing is written.
    pub fn story(&self, store: &Store) -> Option<String> {
        (self.source(store) == Source::Story).then(|| self.prompt(store).to_string())
    }

    /// Keeps a recipe for the menus of the sides, under the name it gets first.
    pub fn keep(&mut self, name: &str, json: &str) {
        const MOST: usize = 12;
        if !self.earlier.iter().any(|(_, known)| known == json) {
            self.earlier.insert(0, (name.to_string(), json.to_string()));
            self.earlier.truncate(MOST);
        }
    }

    /// Draws the form. `running`: what was asked for is on the way.
    pub fn show(&mut self, cx: &mut Context<'_>, ui: &mut Ui, task: &Task, running: bool) -> Option<Ask> {
        let wide = ui.available_width() >= 620.0;
        let earlier = std::mem::take(&mut self.earlier);
        let swapped = if let Task::Sweep(_) = task {
            side(cx, ui, &mut self.a, "A", false, &earlier)
        } else if wide {
            ui.columns(2, |columns| {
                let swapped = side(cx, &mut columns[0], &mut self.a, "A", true, &earlier);
                side(cx, &mut columns[1], &mut self.b, "B", true, &earlier);
                swapped
            })
        } else {
            let swapped = side(cx, ui, &mut self.a, "A", true, &earlier);
            side(cx, ui, &mut self.b, "B", true, &earlier);
            swapped
        };
        if swapped {
            std::mem::swap(&mut self.a, &mut self.b);
        }
        self.earlier = earlier;
        ui.add_space(theme::GRID);
        if let Task::Free(_) = task {
            // What both go on from is asked for above.
            return ui.horizontal(|ui| self.go(cx, ui, task, running)).inner;
        }
        let asked = self.text_row(cx, ui, task, running);
        match self.source(cx.store) {
            Source::Given => {
                let edit = egui::TextEdit::multiline(&mut self.given)
                    .desired_rows(3)
                    .desired_width(f32::INFINITY)
                    .char_limit(LONGEST)
                    .hint_text("Paste the text both sides read");
                egui::ScrollArea::vertical()
                    .id_salt("given")
                    .max_height(120.0)
                    .show(ui, |ui| {
                        ui.add(edit).accessible_name("Text both sides read");
                    });
            }
            Source::Story => self.prompt_row(cx, ui),
            Source::Current | Source::Builtin => {}
        }
        asked
    }

    /// The prompt, with the model's starters.
    fn prompt_row(&mut self, cx: &mut Context<'_>, ui: &mut Ui) {
        let p = Palette::of(ui);
        let mut prompt = self.prompt(cx.store).to_string();
        let edit = egui::TextEdit::singleline(&mut prompt)
            .desired_width(f32::INFINITY)
            .hint_text("How the story begins");
        if ui.add(edit).accessible_name("Prompt of the story").changed() {
            self.prompt = Some(prompt);
        }
        ui.horizontal_wrapped(|ui| {
            let starters = cx.store.model().map_or(&[][..], |m| m.starters.as_slice());
            for starter in starters {
                if controls::chip(ui, "", &super::recipes::elide(starter, 60), p.secondary).clicked() {
                    self.prompt = Some(starter.clone());
                }
            }
        });
        let words = "Written first, as a new text, with the recipe in force and the model's own sampler.";
        ui.add(egui::Label::new(RichText::new(words).font(theme::caption()).color(p.secondary)).wrap());
    }

    fn text_row(&mut self, cx: &mut Context<'_>, ui: &mut Ui, task: &Task, running: bool) -> Option<Ask> {
        let store = cx.store;
        let tokens = store.state.as_ref().map_or(0, |s| s.position);
        let most = store.model().map_or(POSITIONS, |m| m.context).max(2);
        let mut asked = None;
        ui.horizontal_wrapped(|ui| {
            ui.spacing_mut().item_spacing = vec2(2.0 * theme::GRID, theme::GRID);
            let short = ui.available_width() < 420.0;
            let name = |long: &'static str, narrow: &'static str| if short { narrow } else { long };
            let current = format!("{} · {}", name("current text", "current"), fmt::count(tokens));
            let refusal = if tokens < 2 {
                "Nothing has been written yet."
            } else {
                ""
            };
            let all = [Source::Current, Source::Builtin, Source::Story, Source::Given];
            let on = all.iter().position(|s| *s == self.source(store)).unwrap_or(0);
            let choices = [
                ("", current.as_str(), refusal),
                ("", name("built-in story", "built-in"), ""),
                ("", name("new story", "new"), ""),
                ("", name("pasted text", "pasted"), ""),
            ];
            if let Some(i) = controls::segmented(ui, &choices, on) {
                self.source = Some(all[i]);
            }
            let drag = egui::DragValue::new(&mut self.positions)
                .range(2..=most)
                .speed(4.0)
                .suffix(" positions");
            ui.add(drag)
                .on_hover_text("Most tokens compared. Both sides read the same tokens from the first one on.")
                .accessible_name("Positions");
            if *task == Task::Pair {
                self.isolate_switch(ui);
            }
            asked = self.go(cx, ui, task, running);
        });
        asked
    }

    fn isolate_switch(&mut self, ui: &mut Ui) {
        let p = Palette::of(ui);
        let words = RichText::new("each change alone").color(p.secondary);
        let width = ui
            .painter()
            .layout_no_wrap(words.text().into(), theme::body(), p.text)
            .size()
            .x
            + 44.0;
        // Switch and words wrap together.
        ui.allocate_ui(vec2(width, 28.0), |ui| {
            ui.horizontal(|ui| {
                ui.set_min_height(28.0);
                controls::switch(ui, &mut self.isolate, "Isolate each change");
                ui.add(egui::Label::new(words).extend())
                    .on_hover_text("Also compares A with A plus one change at a time: which change does what.");
            });
        });
    }

    fn go(&self, cx: &mut Context<'_>, ui: &mut Ui, task: &Task, running: bool) -> Option<Ask> {
        if !running {
            return self.run_button(cx, ui, task);
        }
        let stop = controls::danger(ui, icons::STOP, "Stop").clicked();
        stop.then_some(Ask::Cancel)
    }

    /// The button that begins, and why it cannot.
    fn run_button(&self, cx: &mut Context<'_>, ui: &mut Ui, task: &Task) -> Option<Ask> {
        let p = Palette::of(ui);
        let presets = cx.fetch(&Query::presets()).value().map_or(&[][..], Vec::as_slice);
        let spec = match task {
            Task::Pair => self.spec(cx.store, presets).map(Some),
            Task::Sweep(Some(problem)) => Err(problem.clone()),
            Task::Sweep(None) => self.base(cx.store, presets).map(|_| None),
            Task::Free(Some(problem)) => Err(problem.clone()),
            Task::Free(None) => self.sides(presets).map(|_| None),
        };
        let unchanged = cx.store.recipe().is_some_and(|r| r.changes.is_empty());
        let plain = |side: &RecipeRef| *side == RecipeRef::Own || (unchanged && *side == RecipeRef::Current);
        let equal = |s: &CompareSpec| s.a == s.b || (plain(&s.a) && plain(&s.b));
        let same = matches!(&spec, Ok(Some(s)) if equal(s));
        let problem = match spec {
            Ok(_) if !cx.can_edit() => Some("another window is in control".to_string()),
            Ok(_) => None,
            Err(e) => Some(e),
        };
        // A group does not wrap by itself.
        let words = ui.painter().layout_no_wrap(task.run().into(), theme::strong(), p.text);
        if ui.available_size_before_wrap().x < words.size().x + 48.0 {
            ui.end_row();
        }
        let run = ui
            .add_enabled_ui(problem.is_none(), |ui| controls::primary(ui, icons::SCALES, task.run()))
            .inner;
        let clicked = run.clicked();
        if let Some(problem) = problem {
            run.on_disabled_hover_text(&problem);
            ui.label(RichText::new(problem).font(theme::caption()).color(p.warn));
        } else if same {
            let words = "A and B are the same recipe";
            ui.label(RichText::new(words).font(theme::caption()).color(p.secondary));
        }
        clicked.then_some(Ask::Run)
    }
}

/// A side: its letter in its colour, its menu, its form. Of two, A's row also has the button that swaps them; true if
/// it was clicked.
fn side(
    cx: &mut Context<'_>,
    ui: &mut Ui,
    side: &mut Side,
    name: &str,
    two: bool,
    earlier: &[(String, String)],
) -> bool {
    let mut swapped = false;
    ui.vertical(|ui| {
        ui.horizontal(|ui| {
            ui.set_min_height(28.0);
            letter(ui, name);
            side.menu(cx, ui, name, earlier);
            if two && name == "A" {
                swapped = icon_button(ui, icons::SWAP, "Swap A and B").clicked();
            }
        });
        side.form(cx, ui, name);
    });
    swapped
}

/// A or B on its colour.
pub fn letter(ui: &mut Ui, name: &str) {
    let p = Palette::of(ui);
    let color = if name == "A" { p.accent } else { p.second };
    let (rect, _) = ui.allocate_exact_size(vec2(22.0, 22.0), egui::Sense::hover());
    ui.painter().rect_filled(rect, theme::RADIUS, color);
    let ink = theme::text_on(color);
    ui.painter()
        .text(rect.center(), egui::Align2::CENTER_CENTER, name, theme::strong(), ink);
}
