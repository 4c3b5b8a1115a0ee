//! Running text of a message or two, laid out in pieces so that appending a token costs the last rows only and only
//! rows in sight are touched. Knows which token every byte belongs to.

use std::ops::Range;
use std::sync::Arc;

use egui::text::{CCursor, LayoutJob, TextFormat};
use egui::{Color32, Galley, Painter, Pos2, Rect, Stroke, StrokeKind, pos2};

use crate::fmt;
use crate::theme::{self, Palette};

/// Height of a row of running text: 1.5 times the size, on the grid.
pub const ROW: f32 = 24.0;
/// Rows after which the tail is cut: the rows before are final.
const CUT: usize = 32;
/// Bytes laid out at once.
const BITE: usize = 6_000;

/// What a run of bytes is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// What the user wrote.
    Given,
    /// A token of the model: message, number in it, position in the context, natural log of its probability.
    Token {
        /// Message.
        node: u32,
        /// Number within the message.
        index: u32,
        /// Position in the context.
        position: u64,
        /// Natural log of its probability.
        logprob: f32,
    },
    /// Text of the model without tokens (edited by hand).
    Plain,
}

/// How tokens are coloured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tint {
    /// Not at all.
    #[default]
    None,
    /// By probability.
    Probability,
}

/// A marked byte range.
#[derive(Clone, Debug, PartialEq)]
pub struct Mark {
    /// Bytes.
    pub range: Range<usize>,
    /// Behind the letters.
    pub fill: Color32,
    /// Around them.
    pub frame: Color32,
}

#[derive(Clone, Debug)]
struct Piece {
    end: usize,
    kind: Kind,
}

#[derive(Clone, Debug)]
struct Chunk {
    bytes: Range<usize>,
    job: Arc<LayoutJob>,
    rows: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Look {
    width: f32,
    pixels: f32,
    dark: bool,
    tint: Tint,
    quiet: bool,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Prose {
    text: String,
    pieces: Vec<Piece>,
    chunks: Vec<Chunk>,
    look: Option<Look>,
    laid_out: usize,
    /// Bytes of `chunks` that are final: appended text cannot change them.
    fixed: usize,
    quiet: bool,
}

impl Prose {
    /// Appends text; control characters show as symbols, newlines and tabs stay.
    pub fn push(&mut self, text: &str, kind: Kind) {
        if text.is_empty() {
            return;
        }
        for c in text.chars() {
            match c {
                '\n' => self.text.push('\n'),
                '\r' => {}
                '\t' => self.text.push('\t'),
                c => self.text.push(fmt::visible_char(c)),
            }
        }
        self.pieces.push(Piece {
            end: self.text.len(),
            kind,
        });
    }

    /// An empty one, drawn small and in secondary colour (thoughts).
    pub fn quiet() -> Self {
        Self {
            quiet: true,
            ..Self::default()
        }
    }

    /// The text as shown.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Lays out what is new, or everything if the width or the colours changed.
    pub fn layout(&mut self, ctx: &egui::Context, width: f32, tint: Tint) {
        let dark = ctx.theme() == egui::Theme::Dark;
        let look = Look {
            width,
            pixels: ctx.pixels_per_point(),
            dark,
            tint,
            quiet: self.quiet,
        };
        if self.look != Some(look) {
            self.look = Some(look);
            self.chunks.clear();
            self.fixed = 0;
            self.laid_out = 0;
        }
        if self.laid_out == self.text.len() && (!self.chunks.is_empty() || self.text.is_empty()) {
            return;
        }
        while self.chunks.last().is_some_and(|c| c.bytes.start >= self.fixed) {
            self.chunks.pop();
        }
        let mut from = self.fixed;
        while from < self.text.len() {
            let to = self.bite(from);
            let whole = to == self.text.len();
            let job = self.job(from..to, look);
            let galley = ctx.fonts_mut(|f| f.layout_job((*job).clone()));
            let rows = galley.rows.len();
            // The last rows of a bite may change when more follows; those of the end do when the text grows.
            let keep = if rows > CUT + 4 {
                CUT
            } else if whole {
                rows
            } else {
                rows.saturating_sub(2).max(1)
            };
            if keep == rows {
                self.chunks.push(Chunk {
                    bytes: from..to,
                    job,
                    rows,
                });
                break;
            }
            let (end, next) = self.row_end(from, &galley, keep);
            let job = self.job(from..end, look);
            let rows = ctx.fonts_mut(|f| f.layout_job((*job).clone())).rows.len();
            self.chunks.push(Chunk {
                bytes: from..end,
                job,
                rows,
            });
            from = next;
            self.fixed = next;
        }
        self.laid_out = self.text.len();
    }

    fn bite(&self, from: usize) -> usize {
        let mut to = (from + BITE).min(self.text.len());
        while !self.text.is_char_boundary(to) {
            to += 1;
        }
        to
    }

    /// Where the first `keep` rows end, and where the next row starts (a newline between is skipped).
    fn row_end(&self, from: usize, galley: &Galley, keep: usize) -> (usize, usize) {
        let chars: usize = galley.rows[..keep]
            .iter()
            .map(|r| r.char_count_including_newline().0)
            .sum();
        let next = self.text[from..]
            .char_indices()
            .nth(chars)
            .map_or(self.text.len(), |(i, _)| from + i);
        let end = if galley.rows[keep - 1].ends_with_newline {
            next - 1
        } else {
            next
        };
        (end, next)
    }

    fn job(&self, bytes: Range<usize>, look: Look) -> Arc<LayoutJob> {
        let p = Palette::for_dark(look.dark);
        let mut job = LayoutJob::default();
        job.wrap.max_width = look.width;
        job.keep_trailing_whitespace = true;
        let first = self.pieces.partition_point(|x| x.end <= bytes.start);
        let mut at = bytes.start;
        let mut run: Option<(usize, TextFormat)> = None;
        for piece in &self.pieces[first..] {
            if at >= bytes.end {
                break;
            }
            let end = piece.end.min(bytes.end);
            let format = format_of(p, piece.kind, look);
            match &mut run {
                Some((_, f)) if *f == format => {}
                _ => {
                    if let Some((start, f)) = run.take() {
                        job.append(&self.text[start..at], 0.0, f);
                    }
                    run = Some((at, format));
                }
            }
            at = end;
        }
        if let Some((start, f)) = run {
            job.append(&self.text[start..at], 0.0, f);
        }
        Arc::new(job)
    }

    /// Height of everything.
    pub fn height(&self) -> f32 {
        self.chunks.iter().map(|c| c.rows as f32 * ROW).sum::<f32>().max(ROW)
    }

    /// Paints rows in sight with what is marked in them.
    pub fn paint(&self, painter: &Painter, at: Pos2, marks: &[Mark]) {
        let clip = painter.clip_rect();
        let p = Palette::of_context(painter.ctx());
        let mut y = at.y;
        for chunk in &self.chunks {
            let height = chunk.rows as f32 * ROW;
            if y < clip.bottom() && y + height > clip.top() {
                let galley = painter.fonts_mut(|f| f.layout_job((*chunk.job).clone()));
                let here = pos2(at.x, y);
                for mark in marks.iter().filter(|m| m.fill != Color32::TRANSPARENT) {
                    for rect in self.marked(chunk, &galley, here, &mark.range) {
                        painter.rect_filled(rect, 3, mark.fill);
                    }
                }
                painter.galley(here, galley.clone(), p.text);
                // Tokens with a tint hide what is behind them: the frame goes on top.
                for mark in marks.iter().filter(|m| m.frame != Color32::TRANSPARENT) {
                    for rect in self.marked(chunk, &galley, here, &mark.range) {
                        painter.rect_stroke(rect, 3, Stroke::new(1.5, mark.frame), StrokeKind::Outside);
                    }
                }
            }
            y += height;
        }
    }

    fn marked(&self, chunk: &Chunk, galley: &Galley, at: Pos2, range: &Range<usize>) -> Vec<Rect> {
        let (start, end) = (range.start.max(chunk.bytes.start), range.end.min(chunk.bytes.end));
        if start >= end {
            return Vec::new();
        }
        let grown = |r: Rect| {
            r.translate(at.to_vec2())
                .shrink2(egui::vec2(0.0, 2.0))
                .expand2(egui::vec2(1.0, 0.0))
        };
        self.rects(chunk, galley, start..end).into_iter().map(grown).collect()
    }

    /// Rectangles of a byte range within a chunk, a row each, relative to the chunk.
    fn rects(&self, chunk: &Chunk, galley: &Galley, range: Range<usize>) -> Vec<Rect> {
        let from = self.text[chunk.bytes.start..range.start].chars().count();
        let to = from + self.text[range].chars().count();
        let mut out = Vec::new();
        let mut first = 0;
        for row in &galley.rows {
            let n = row.char_count_excluding_newline().0;
            let (a, b) = (from.max(first), to.min(first + n));
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

    /// Rectangle of the first row of a byte range, relative to the text.
    pub fn rect_of(&self, ctx: &egui::Context, range: Range<usize>) -> Option<Rect> {
        let mut y = 0.0;
        for chunk in &self.chunks {
            if range.start < chunk.bytes.end.max(chunk.bytes.start + 1) {
                let galley = ctx.fonts_mut(|f| f.layout_job((*chunk.job).clone()));
                let start = range.start.max(chunk.bytes.start);
                let end = range.end.min(chunk.bytes.end).max(start);
                let found = self.rects(chunk, &galley, start..end);
                return found.first().map(|r| r.translate(egui::vec2(0.0, y)));
            }
            y += chunk.rows as f32 * ROW;
        }
        None
    }

    /// The byte at a place (relative to the text), and whether a glyph is really there.
    pub fn byte_at(&self, ctx: &egui::Context, place: egui::Vec2) -> (usize, bool) {
        let mut y = 0.0;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let height = chunk.rows as f32 * ROW;
            if place.y < y + height || i + 1 == self.chunks.len() {
                let galley = ctx.fonts_mut(|f| f.layout_job((*chunk.job).clone()));
                let inside = egui::vec2(place.x, place.y - y);
                let cursor: CCursor = galley.cursor_from_pos(inside);
                let text = &self.text[chunk.bytes.clone()];
                let byte = text.char_indices().nth(cursor.index.0).map_or(text.len(), |(b, _)| b);
                let row = ((inside.y / ROW).floor().max(0.0)) as usize;
                let on = galley
                    .rows
                    .get(row)
                    .is_some_and(|r| inside.x >= 0.0 && inside.x <= r.size.x + 1.0);
                // The cursor stands between two letters: the one under the pointer is left of it in its right half.
                let letter = galley.pos_from_cursor(cursor);
                let before = inside.x < letter.left() && byte > 0;
                let byte = if before { prev_char(text, byte) } else { byte };
                return (chunk.bytes.start + byte, on && (0.0..=height).contains(&inside.y));
            }
            y += height;
        }
        (self.text.len(), false)
    }

    /// The cursor (between two letters) at a place, for selecting text.
    pub fn cursor_at(&self, ctx: &egui::Context, place: egui::Vec2) -> usize {
        let mut y = 0.0;
        for (i, chunk) in self.chunks.iter().enumerate() {
            let height = chunk.rows as f32 * ROW;
            if place.y < y + height || i + 1 == self.chunks.len() {
                let galley = ctx.fonts_mut(|f| f.layout_job((*chunk.job).clone()));
                let cursor = galley.cursor_from_pos(egui::vec2(place.x, place.y - y));
                let text = &self.text[chunk.bytes.clone()];
                return chunk.bytes.start + text.char_indices().nth(cursor.index.0).map_or(text.len(), |(b, _)| b);
            }
            y += height;
        }
        self.text.len()
    }

    /// What is at a byte, with its range.
    pub fn piece_at(&self, byte: usize) -> Option<(Range<usize>, Kind)> {
        let i = self.pieces.partition_point(|x| x.end <= byte);
        let piece = self.pieces.get(i)?;
        let start = if i == 0 { 0 } else { self.pieces[i - 1].end };
        Some((start..piece.end, piece.kind))
    }

    /// Bytes of the token at a position of the context.
    pub fn range_of(&self, wanted: u64) -> Option<Range<usize>> {
        // Pieces without position (given text) stand before the tokens; tokens are in order.
        let key = |x: &Piece| match x.kind {
            Kind::Token { position, .. } => Some(position),
            _ => None,
        };
        let i = self.pieces.partition_point(|x| key(x).is_none_or(|p| p < wanted));
        let piece = self.pieces.get(i).filter(|x| key(x) == Some(wanted))?;
        let start = if i == 0 { 0 } else { self.pieces[i - 1].end };
        Some(start..piece.end)
    }

    /// The word around a byte.
    pub fn word_at(&self, byte: usize) -> Range<usize> {
        let word = |c: char| c.is_alphanumeric() || c == '\'';
        let byte = byte.min(self.text.len());
        let start = self.text[..byte]
            .char_indices()
            .rev()
            .take_while(|(_, c)| word(*c))
            .last()
            .map_or(byte, |(i, _)| i);
        let end = self.text[byte..]
            .char_indices()
            .find(|(_, c)| !word(*c))
            .map_or(self.text.len(), |(i, _)| byte + i);
        if start == end {
            byte..self.text[byte..].chars().next().map_or(byte, |c| byte + c.len_utf8())
        } else {
            start..end
        }
    }
}

fn prev_char(text: &str, byte: usize) -> usize {
    text[..byte].char_indices().next_back().map_or(0, |(i, _)| i)
}

fn format_of(p: &Palette, kind: Kind, look: Look) -> TextFormat {
    let mut format = TextFormat {
        font_id: theme::reading(),
        line_height: Some(ROW),
        color: p.text,
        ..TextFormat::default()
    };
    if look.quiet {
        format.color = p.secondary;
        format.font_id = theme::body();
    }
    match (kind, look.tint) {
        (Kind::Given, _) => format.color = p.secondary,
        (Kind::Token { logprob, .. }, Tint::Probability) if !logprob.is_nan() => {
            let fill = probability_color(logprob);
            format.background = fill;
            format.color = theme::text_on(fill);
            format.expand_bg = 0.0;
        }
        _ => {}
    }
    format
}

/// Colour of a probability: viridis over 0..1, bright = sure.
pub fn probability_color(logprob: f32) -> Color32 {
    theme::viridis(logprob.exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context() -> egui::Context {
        let ctx = egui::Context::default();
        theme::install(&ctx);
        drawn(&ctx, |_| {});
        ctx
    }

    fn drawn(ctx: &egui::Context, draw: impl FnMut(&mut egui::Ui)) {
        // Nothing is painted here: the textures go unused.
        ctx.run_ui(egui::RawInput::default(), draw).textures_delta.clear();
    }

    fn token(i: u64) -> Kind {
        Kind::Token {
            node: 1,
            index: i as u32,
            position: i,
            logprob: -0.1,
        }
    }

    fn layout(ctx: &egui::Context, prose: &mut Prose, width: f32) {
        drawn(ctx, |ui| prose.layout(ui.ctx(), width, Tint::None));
    }

    #[test]
    fn appending_gives_the_same_rows_as_laying_out_anew() {
        let ctx = context();
        let words: Vec<String> = (0..3_000)
            .map(|i| {
                if i % 97 == 96 {
                    ".\n\n".into()
                } else {
                    format!(" word{}", i % 13)
                }
            })
            .collect();
        let mut grown = Prose::default();
        for (i, w) in words.iter().enumerate() {
            grown.push(w, token(i as u64));
            if i % 7 == 0 {
                layout(&ctx, &mut grown, 500.0);
            }
        }
        layout(&ctx, &mut grown, 500.0);
        let mut whole = Prose::default();
        for (i, w) in words.iter().enumerate() {
            whole.push(w, token(i as u64));
        }
        layout(&ctx, &mut whole, 500.0);
        assert_eq!(grown.height(), whole.height());
        assert!(grown.chunks.len() > 4);
        // And as one galley.
        let mut job = LayoutJob::default();
        job.wrap.max_width = 500.0;
        job.keep_trailing_whitespace = true;
        let format = TextFormat {
            font_id: theme::reading(),
            line_height: Some(ROW),
            ..Default::default()
        };
        job.append(whole.text(), 0.0, format);
        let mut rows = 0;
        drawn(&ctx, |ui| {
            rows = ui.fonts_mut(|f| f.layout_job(job.clone())).rows.len();
        });
        assert_eq!(whole.height(), rows as f32 * ROW);
    }

    #[test]
    fn places_and_bytes_agree() {
        let ctx = context();
        let mut prose = Prose::default();
        prose.push("Once upon", Kind::Given);
        for i in 0..400 {
            prose.push(if i % 50 == 49 { "é\n" } else { " naïve" }, token(i));
        }
        layout(&ctx, &mut prose, 300.0);
        drawn(&ctx, |ui| {
            for wanted in [0, 1, 49, 50, 123, 399] {
                let range = prose.range_of(wanted).unwrap();
                let rect = prose.rect_of(ui.ctx(), range.clone()).unwrap();
                let (byte, on) = prose.byte_at(ui.ctx(), rect.center().to_vec2());
                assert!(range.contains(&byte) && on, "token {wanted}: {range:?} {byte} {rect:?}");
                assert!(matches!(prose.piece_at(byte), Some((_, Kind::Token { position, .. })) if position == wanted));
            }
        });
        assert_eq!(prose.piece_at(3).unwrap().1, Kind::Given);
        assert_eq!(prose.range_of(400), None);
    }

    #[test]
    fn control_characters_are_symbols_and_words_are_found() {
        let mut prose = Prose::default();
        prose.push("a\u{1b}[0m don't\r\n", Kind::Plain);
        assert_eq!(prose.text(), "a\u{241b}[0m don't\n");
        let at = prose.text().find("on't").unwrap();
        assert_eq!(&prose.text()[prose.word_at(at)], "don't");
    }
}
