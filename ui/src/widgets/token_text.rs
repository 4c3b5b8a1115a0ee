//! Running text of tokens, each with a colour of its own: by divergence, by attention, by choice of an expert. Knows
//! which token the pointer is on.

use std::ops::Range;
use std::sync::Arc;

use egui::text::{LayoutJob, TextFormat};
use egui::{Color32, Galley, Pos2, Rect, Response, Role, Sense, Stroke, StrokeKind, Ui, Vec2, WidgetInfo, pos2, vec2};

use crate::fmt;
use crate::theme::{self, Palette};

/// Height of a row.
const ROW: f32 = 22.0;
/// Shown before a line break, so that a token that is nothing else can be seen and pointed at.
const BREAK: char = '↵';

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct TokenText {
    text: String,
    /// Bytes and characters at which tokens end.
    ends: Vec<(usize, usize)>,
    revision: u64,
    made: Option<(Key, Arc<LayoutJob>)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Key {
    revision: u64,
    colors: u64,
    width: f32,
    dark: bool,
}

/// A frame around a token.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenMark {
    /// Number of the token.
    pub token: usize,
    /// Colour of the frame.
    pub color: Color32,
}

/// What the pointer did.
#[derive(Debug)]
pub struct TokenHit {
    /// The text's response.
    pub response: Response,
    /// Token under the pointer.
    pub hover: Option<usize>,
    /// Token that was clicked.
    pub clicked: Option<usize>,
}

impl TokenText {
    /// Another text. `revision` names it: the same text keeps its layout.
    pub fn set<'a>(&mut self, revision: u64, tokens: impl Iterator<Item = &'a str>) {
        if self.revision == revision && !self.ends.is_empty() {
            return;
        }
        self.revision = revision;
        self.made = None;
        self.text.clear();
        self.ends.clear();
        let mut chars = 0;
        for token in tokens {
            for c in fmt::special(token).chars() {
                match c {
                    '\n' => {
                        self.text.extend([BREAK, '\n']);
                        chars += 2;
                    }
                    '\r' => {}
                    c => {
                        self.text.push(fmt::visible_char(c));
                        chars += 1;
                    }
                }
            }
            self.ends.push((self.text.len(), chars));
        }
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// No tokens.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Draws it as wide as there is room. `colors` names the state of `fill`; `fill` gives the colour behind a token.
    pub fn show(
        &mut self,
        ui: &mut Ui,
        name: &str,
        colors: u64,
        fill: &dyn Fn(usize) -> Option<Color32>,
        marks: &[TokenMark],
    ) -> TokenHit {
        let width = ui.available_width().max(40.0);
        let key = Key {
            revision: self.revision,
            colors,
            width,
            dark: ui.visuals().dark_mode,
        };
        let job = match &self.made {
            Some((k, job)) if *k == key => job.clone(),
            _ => {
                let job = Arc::new(self.job(width, Palette::of(ui), fill));
                self.made = Some((key, job.clone()));
                job
            }
        };
        // Through the font cache in every frame: a galley kept here would outlive its glyphs.
        let galley = ui.fonts_mut(|f| f.layout_job((*job).clone()));
        let (rect, response) = ui.allocate_exact_size(vec2(width, galley.size().y.max(ROW)), Sense::click());
        let label = format!("{name}: {} tokens", fmt::count(self.len() as u64));
        let whole = &self.text;
        response.widget_info(|| {
            let mut info = WidgetInfo::labeled(Role::Document, true, &label);
            info.current_text_value = Some(whole.clone());
            info
        });
        let at = |pos: Pos2| self.token_at(&galley, pos - rect.min);
        let hover = response.hover_pos().and_then(at);
        let clicked = if response.clicked() {
            response.interact_pointer_pos().and_then(at)
        } else {
            None
        };
        if ui.is_rect_visible(rect) {
            let p = Palette::of(ui);
            ui.painter().galley(rect.min, galley.clone(), p.text);
            let frame = |token: usize, color: Color32, width: f32| {
                for part in self.rects(&galley, token) {
                    let part = part.translate(rect.min.to_vec2()).shrink2(vec2(0.0, 1.5));
                    ui.painter()
                        .rect_stroke(part, 3, Stroke::new(width, color), StrokeKind::Outside);
                }
            };
            for mark in marks {
                frame(mark.token, mark.color, 1.5);
            }
            if let Some(token) = hover {
                frame(token, p.text, theme::LINE);
            }
        }
        TokenHit {
            response,
            hover,
            clicked,
        }
    }

    fn job(&self, width: f32, p: &Palette, fill: &dyn Fn(usize) -> Option<Color32>) -> LayoutJob {
        let mut job = LayoutJob::default();
        job.wrap.max_width = width;
        job.keep_trailing_whitespace = true;
        let mut start = 0;
        for (i, (end, _)) in self.ends.iter().enumerate() {
            if *end == start {
                continue;
            }
            let fill = fill(i);
            let mut format = TextFormat {
                font_id: egui::FontId::proportional(14.0),
                line_height: Some(ROW),
                color: p.text,
                ..TextFormat::default()
            };
            if let Some(fill) = fill {
                format.background = fill;
                format.color = theme::text_on(fill);
                format.expand_bg = 0.0;
            }
            job.append(&self.text[start..*end], 0.0, format);
            start = *end;
        }
        job
    }

    /// Characters of a token.
    fn chars(&self, token: usize) -> Range<usize> {
        let end = self.ends.get(token).map_or(0, |e| e.1);
        let start = token.checked_sub(1).and_then(|t| self.ends.get(t)).map_or(0, |e| e.1);
        start..end
    }

    fn token_at(&self, galley: &Galley, place: Vec2) -> Option<usize> {
        let row = galley
            .rows
            .iter()
            .find(|r| place.y >= r.pos.y && place.y < r.pos.y + ROW)?;
        if place.x < row.pos.x || place.x > row.pos.x + row.size.x + 1.0 {
            return None;
        }
        let cursor = galley.cursor_from_pos(place);
        // The cursor stands between two letters: the one under the pointer is left of it in its right half.
        let letter = galley.pos_from_cursor(cursor);
        let index = if place.x < letter.left() {
            cursor.index.0.saturating_sub(1)
        } else {
            cursor.index.0
        };
        let token = self.ends.partition_point(|e| e.1 <= index);
        (token < self.ends.len()).then_some(token)
    }

    /// Where a token stands, a rectangle for each row, relative to the text.
    fn rects(&self, galley: &Galley, token: usize) -> Vec<Rect> {
        let range = self.chars(token);
        let mut out = Vec::new();
        let mut first = 0;
        for row in &galley.rows {
            let n = row.char_count_excluding_newline().0;
            let (a, b) = (range.start.max(first), range.end.min(first + n));
            if a < b {
                let left = row.pos.x + row.x_offset((a - first).into());
                let right = row.pos.x + row.x_offset((b - first).into());
                out.push(Rect::from_min_max(
                    pos2(left, row.pos.y),
                    pos2(right.max(left + 2.0), row.pos.y + ROW),
                ));
            }
            first += row.char_count_including_newline().0;
        }
        out
    }
}

/// Colour behind a token for a place between 0 and 1 of viridis: faint at its low end, so that text without a finding
/// stays quiet.
pub fn tint(p: &Palette, place: f32) -> Option<Color32> {
    if !place.is_finite() {
        return Some(p.not_finite);
    }
    let t = place.clamp(0.0, 1.0);
    (t > 0.0).then(|| theme::mix(p.panel, theme::viridis(t), 0.08 + 0.92 * t * t))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_found_where_it_stands() {
        let ctx = egui::Context::default();
        theme::install(&ctx);
        let words: Vec<String> = (0..300)
            .map(|i| match i % 40 {
                39 => "\n".into(),
                20 => "é".into(),
                _ => format!(" word{i}"),
            })
            .collect();
        let mut text = TokenText::default();
        text.set(1, words.iter().map(String::as_str));
        assert_eq!(text.len(), 300);
        let mut shown = ctx.run_ui(egui::RawInput::default(), |ui| {
            let job = text.job(400.0, Palette::of(ui), &|_| None);
            let galley = ui.fonts_mut(|f| f.layout_job(job));
            assert!(galley.rows.len() > 10);
            for token in 0..300 {
                let rects = text.rects(&galley, token);
                let rect = rects.first().unwrap_or_else(|| panic!("token {token} stands nowhere"));
                assert_eq!(text.token_at(&galley, rect.center().to_vec2()), Some(token));
            }
            assert_eq!(text.token_at(&galley, vec2(-5.0, 3.0)), None);
        });
        shown.textures_delta.clear();
    }

    #[test]
    fn colours_grow_from_nothing_and_mark_what_went_wrong() {
        let p = &Palette::DARK;
        assert_eq!(tint(p, 0.0), None);
        assert_eq!(tint(p, 1.0), Some(theme::viridis(1.0)));
        assert_eq!(tint(p, f32::NAN), Some(p.not_finite));
    }
}
